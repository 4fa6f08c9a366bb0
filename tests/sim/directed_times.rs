//! Directed tests of time limits: the same world, nothing happens by chance, and time passes when
//! the test says so.

use crate::faults::{Faults, Limits};
use crate::prng::Prng;
use crate::socket::End;
use crate::town::{Life, Town};
use crate::trace;
use crate::world::World;
use ringbouncer::config::PoolMode;
use ringbouncer::pool::queues::ServerStanding;
use std::time::Duration;

/// One pool of transactions, with these limits.
fn world(size: usize, limits: Limits, life: Life) -> World {
    trace::begin(false);
    let town = Town { limits, life, ..Town::single(PoolMode::Transaction, size) };
    let mut world = World::with(town, Faults::default(), Prng::new(7));
    world.is_directed = true;
    world
}

impl World {
    /// Time passes, and all do what they can.
    fn pass(&mut self, millis: u64) {
        for _ in 0..millis / 50 {
            self.shell.sleep(Duration::from_millis(50));
            self.quiet();
        }
    }

    fn all_hang(&mut self, hang: bool) {
        self.shell.backends.iter_mut().for_each(|backend| backend.hangs = hang);
    }

    fn farewell(&self, id: usize) -> Option<&str> {
        self.clients[id].farewell.as_deref()
    }
}

#[test]
fn under_servers_that_stand_still_everybody_gets_his_words() {
    let limits = Limits { query: 2_000, query_wait: 1_000, ..Limits::wide() };
    let mut world = world(2, limits, Life::eternal());
    let guests: Vec<usize> = (0..6).map(|_| world.guest()).collect();
    guests[..2].iter().for_each(|id| world.ask(*id, "begin"));
    world.quiet();
    world.all_hang(true);
    guests.iter().for_each(|id| world.ask(*id, "rows 1 1"));
    world.pass(3_000);
    for id in &guests[..2] {
        assert_eq!(world.farewell(*id), Some("query timeout"));
    }
    for id in &guests[2..] {
        assert_eq!(world.farewell(*id), Some("query_wait_timeout"));
    }
    world.all_hang(false);
    world.pass(3_000);
    let next = world.guest();
    world.ask(next, "rows 1 1");
    world.pass(2_000);
    assert!(world.is_answered(next));
    world.close();
}

#[test]
fn who_is_in_time_is_never_interrupted() {
    let limits = Limits {
        query: 2_000,
        idle_transaction: 2_000,
        transaction: 5_000,
        client_idle: 2_000,
        ..Limits::wide()
    };
    let mut world = world(1, limits, Life::eternal());
    let guest = world.guest();
    for _ in 0..10 {
        for sql in ["begin", "rows 3 10", "commit", "rows 1 1"] {
            world.ask(guest, sql);
            world.pass(1_100);
            assert!(world.is_answered(guest) && world.farewell(guest).is_none());
        }
    }
    world.pass(2_000);
    assert_eq!(world.farewell(guest), Some("client_idle_timeout"));
    world.close();
}

#[test]
fn a_server_that_does_not_answer_its_check_costs_nobody_a_query() {
    let life = Life { check_delay: 1, check_query: "select 1", ..Life::eternal() };
    let mut world = world(1, Limits { connect: 2_000, ..Limits::wide() }, life);
    let guest = world.guest();
    world.ask(guest, "rows 1 1");
    world.pass(1_500);
    assert_eq!(world.servers(ServerStanding::Used), 1);
    world.all_hang(true);
    world.ask(guest, "rows 1 1");
    world.pass(1_500);
    assert_eq!(world.servers(ServerStanding::Tested), 1);
    assert!(!world.is_answered(guest));
    // It is waited for, and once more when the others are seen to be well.
    world.pass(3_000);
    assert!(world.is_answered(guest), "by another server");
    // One that has gone is found in the same way.
    world.pass(1_500);
    let backend = world.shell.backends.last_mut().expect("one that served");
    let socket = &mut world.shell.sockets[backend.socket];
    backend.end(socket, End::Reset);
    world.ask(guest, "rows 1 1");
    world.pass(1_000);
    assert!(world.is_answered(guest));
    world.close();
}

#[test]
fn servers_that_are_used_once_lose_no_query() {
    let mut world = world(2, Limits::wide(), Life { lifetime: 0, ..Life::eternal() });
    let guests: Vec<usize> = (0..4).map(|_| world.guest()).collect();
    for _ in 0..5 {
        guests.iter().for_each(|id| world.ask(*id, "rows 2 10"));
        world.pass(500);
        assert!(guests.iter().all(|id| world.is_answered(*id)));
    }
    assert!(world.shell.backends.len() >= 20, "a new one for each query");
    world.close();
}
