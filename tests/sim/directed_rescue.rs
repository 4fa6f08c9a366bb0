//! Directed tests of `server_rescue_timeout`: what a client has said last before it went.

use crate::client::Planned;
use crate::faults::{Faults, Limits};
use crate::prng::Prng;
use crate::socket::End;
use crate::town::Town;
use crate::trace;
use crate::wire;
use crate::world::World;
use ringbouncer::config::PoolMode;
use std::time::Duration;

fn world(limits: Limits, always_resets: bool) -> World {
    trace::begin(false);
    let town =
        Town { limits, always_resets, rescues_for: 30, ..Town::single(PoolMode::Transaction, 1) };
    let mut world = World::with(town, Faults::default(), Prng::new(7));
    world.is_directed = true;
    world
}

/// What may come ahead of a Flush, with the number of its unit.
fn beginnings(unit: u32) -> Vec<Vec<Vec<u8>>> {
    let parse = |sql: &str| wire::parse("", &format!("/*c0 q{unit}*/{sql}"));
    let bind = || wire::bind("", "", "");
    vec![
        vec![],
        vec![parse("rows 1 1")],
        vec![parse("failparse")],
        vec![parse("rows 2 20"), bind()],
        vec![parse("failbind"), bind()],
        vec![parse("slow 100"), bind(), wire::execute("", 0)],
        vec![parse("fail"), bind(), wire::execute("", 0)],
        vec![parse("begin"), bind(), wire::execute("", 0)],
        vec![parse("copyin 0"), bind(), wire::execute("", 0)],
        vec![parse("copyin 1"), bind(), wire::execute("", 0)],
    ]
}

/// Outside of a transaction, in one, and in one that has failed: the server is brought back and
/// serves the next client, whatever the Flush was for.
#[test]
fn a_server_whose_clients_last_word_was_a_flush_comes_back() {
    for before in [&[][..], &["begin"], &["begin", "fail"], &["rows 1 1"]] {
        for beginning in 0..beginnings(0).len() {
            for (always_resets, answers) in [(false, 0), (true, 0), (false, 20), (true, 20)] {
                let mut world = world(Limits::wide(), always_resets);
                let (gone, next) = (world.guest(), world.guest());
                for sql in before {
                    world.ask(gone, sql);
                    world.quiet();
                }
                let client = &mut world.clients[gone];
                let unit = client.begin_unit();
                let mut messages = beginnings(unit).swap_remove(beginning);
                messages.push(wire::marked(b'H', gone, unit));
                for bytes in messages {
                    client.planned.push_back(Planned::Message { unit, bytes, in_copy: false });
                }
                // It goes before, or after it has got what there is to get.
                world.round();
                while world.clients[gone].has_unsent() {
                    world.round();
                }
                for _ in 0..answers {
                    world.round();
                }
                let client = &mut world.clients[gone];
                let socket = &mut world.shell.sockets[client.socket];
                client.leave(socket, &mut world.book, Some(End::Orderly), true);
                world.ask(next, "rows 1 1");
                for _ in 0..100 {
                    world.shell.sleep(Duration::from_millis(50));
                    world.round();
                }
                world.quiet();
                assert!(world.is_answered(next), "{before:?}, {beginning}, {answers}");
                assert_eq!(world.shell.backends.iter().filter(|b| !b.is_carrier()).count(), 1);
                world.close();
            }
        }
    }
}

/// A Sync in a COPY counts or does not, and its client goes when so many of the answers have come:
/// nothing of that is left to the next.
#[test]
fn a_server_that_was_asked_which_syncs_counted_comes_back() {
    for (sql, script) in [
        ("copyin 1", "HdSd"),
        ("copyin 1", "HSdSd"),
        ("copyin 1", "Sdd"),
        ("copyin 1", "SdSdc"),
        ("copyin 99", "SdSc"),
        ("copyin 0", "SSdc"),
        ("copyin 0", "HdSd"),
    ] {
        for answers in 0..10 {
            let mut world = world(Limits::wide(), false);
            let (gone, next) = (world.guest(), world.guest());
            copy_with_syncs(&mut world, gone, sql, script);
            let socket = world.shell.backends[0].socket;
            world.held = Some(socket);
            messages_arrive(&mut world, answers);
            let client = &mut world.clients[gone];
            let door = &mut world.shell.sockets[client.socket];
            client.leave(door, &mut world.book, Some(End::Orderly), true);
            messages_arrive(&mut world, 20);
            world.held = None;
            world.ask(next, "rows 1 1");
            for _ in 0..100 {
                world.shell.sleep(Duration::from_millis(50));
                world.round();
            }
            world.quiet();
            assert!(world.is_answered(next), "{sql} {script}, {answers}");
            assert_eq!(world.shell.backends.iter().filter(|b| !b.is_carrier()).count(), 1);
            world.close();
        }
    }
}

/// Plans a COPY; of the letters `d` is a row, `c` the end, `S` a Sync, `H` a Flush.
fn copy_with_syncs(world: &mut World, id: usize, sql: &str, script: &str) {
    let client = &mut world.clients[id];
    client.copies = true;
    let unit = client.begin_unit();
    let text = format!("/*c{id} q{unit}*/{sql}");
    let begun = [wire::parse("", &text), wire::bind("", "", ""), wire::execute("", 0)];
    let plan = |bytes| Planned::Message { unit, bytes, in_copy: false };
    client.planned.extend(begun.map(plan));
    for tag in script.bytes() {
        match tag {
            b'S' => client.sync_in_copy(false),
            b'H' => client.planned.push_back(plan(wire::marked(b'H', id, unit))),
            tag => client.planned.push_back(plan(wire::message(tag, b""))),
        }
    }
}

/// What comes from the server that is held back comes one by one.
fn messages_arrive(world: &mut World, count: usize) {
    let socket = world.held.expect("it is held back");
    for _ in 0..count {
        for _ in 0..3 {
            world.round();
        }
        world.shell.sockets[socket].deliver_message();
    }
    world.round();
}

/// Who is thrown out for taking too long leaves his server, too.
#[test]
fn a_server_whose_client_took_too_long_comes_back() {
    let limits = [
        (Limits { query: 1_000, ..Limits::wide() }, "slow 100000", "query timeout"),
        (Limits { transaction: 1_000, ..Limits::wide() }, "slow 100000", "transaction timeout"),
        (
            Limits { idle_transaction: 1_000, ..Limits::wide() },
            "rows 1 1",
            "idle transaction timeout",
        ),
    ];
    for (limits, sql, words) in limits {
        let mut world = world(limits, false);
        let (slow, next) = (world.guest(), world.guest());
        world.ask(slow, "begin");
        world.quiet();
        world.ask(slow, sql);
        for _ in 0..40 {
            world.shell.sleep(Duration::from_millis(50));
            world.round();
        }
        assert_eq!(world.clients[slow].farewell.as_deref(), Some(words));
        world.ask(next, "rows 1 1");
        for _ in 0..20 {
            world.shell.sleep(Duration::from_millis(5));
            world.round();
        }
        assert!(world.is_answered(next), "{words}");
        assert_eq!(world.shell.backends.iter().filter(|b| !b.is_carrier()).count(), 1, "{words}");
        world.close();
    }
}
