//! Commands that forget all prepared statements (client.md §4.6), in the middle of pipelines: what is
//! prepared behind them is there, for its client and for the others. (Reliability 12.)

mod common;

use common::desk::Desk;
use common::raw::{bind, close, execute, message, parse, query, sync, tags};
use common::{Pooler, Raw};

fn pooler() -> Pooler {
    Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("max_prepared_statements", "10");
    })
}

fn answer(client: &mut Raw, pieces: &[&[u8]], readies: usize) -> String {
    pieces.iter().for_each(|piece| client.send(piece));
    let all: Vec<_> = (0..readies).flat_map(|_| client.until_ready()).collect();
    tags(&all).replace(['S', 'N'], "")
}

/// Somebody else has prepared it on the server before, and finds it there afterwards.
#[test]
fn what_is_prepared_behind_them_is_there() {
    let pooler = pooler();
    let sql = "SELECT 'one'";
    for command in
        ["DISCARD ALL", "deallocate all", "  \n DEALLOCATE PREPARE ALL", "DEALLOCATE ALL; "]
    {
        let (mut one, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
        assert_eq!(answer(&mut other, &[&[parse("s", sql), sync()].concat()], 1), "1Z");
        let again = [parse("t", sql), bind("t", &[]), execute(0), sync()].concat();
        let batch = [query(command), again, query("SELECT 2")].concat();
        for cut in 0..=batch.len().min(60) {
            let name = format!("{command}, cut at {cut}");
            assert_eq!(
                answer(&mut one, &[&batch[..cut], &batch[cut..]], 3),
                "CZ12DCZTDCZ",
                "{name}"
            );
            let use_it = [bind("t", &[]), execute(0), sync()].concat();
            assert_eq!(answer(&mut one, &[&use_it], 1), "2DCZ", "{name}");
            let use_it = [bind("s", &[]), execute(0), sync()].concat();
            assert_eq!(answer(&mut other, &[&use_it], 1), "2DCZ", "{name}");
            assert_eq!(answer(&mut one, &[&[close(b'S', "t"), sync()].concat()], 1), "3Z");
        }
    }
}

/// In whatever words, and whatever comes first: new statements behind them are known.
#[test]
fn what_is_new_behind_them_stays_known() {
    let pooler = pooler();
    let mut other = pooler.raw("alice");
    for (number, forget) in [
        query("SELECT 1; DISCARD ALL").clone(),
        query("/* all */ DEALLOCATE ALL"),
        [parse("", "DEALLOCATE ALL"), bind("", &[]), execute(0), sync()].concat(),
        [parse("", "DISCARD ALL"), bind("", &[]), execute(0), sync()].concat(),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = pooler.raw("alice");
        assert_eq!(
            answer(&mut client, &[&[parse("old", "SELECT 'old'"), sync()].concat()], 1),
            "1Z"
        );
        // (`DISCARD ALL` wants to be alone: that one fails, and nothing is forgotten.)
        let fails = number == 0;
        let new = [parse("new", &format!("SELECT 'new', {number}")), sync()].concat();
        let said = answer(&mut client, &[&[forget, new].concat()], 2);
        assert!(said.ends_with("Z1Z"), "{number}: {said}");
        assert_eq!(said.contains('E'), fails, "{number}: {said}");
        for _ in 0..2 {
            let use_it = [bind("new", &[]), execute(0), sync()].concat();
            assert_eq!(answer(&mut client, &[&use_it], 1), "2DCZ", "{number}");
            // Others may prepare the same.
            let same = parse("same", &format!("SELECT 'new', {number}"));
            let batch = [same, bind("same", &[]), execute(0), close(b'S', "same"), sync()].concat();
            assert_eq!(answer(&mut other, &[&batch], 1), "12DC3Z", "{number}");
        }
        client.send(&[bind("old", &[]), execute(0), sync()].concat());
        match fails {
            true => assert_eq!(tags(&client.until_ready()), "2DCZ"),
            false => client.expect_fatal("prepared statement did not exist"),
        }
    }
}

/// D3: an error that is still under way may have the server skip our own Parse. What relies on that in
/// the next batch waits until it is known.
#[test]
fn what_relies_on_a_parse_that_may_be_skipped_waits() {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
         default_pool_size = 1\nmax_prepared_statements = 10\n",
    );
    let client = desk.client("alice", "app");
    let first = desk.server();
    desk.take(client);
    desk.feed(client, &[parse("s", "SELECT 1"), sync()].concat());
    let prepared = [message(b'1', b""), message(b'Z', b"I")].concat();
    desk.take(first);
    desk.feed(first, &prepared);
    assert_eq!(desk.take(client), prepared);
    desk.leave(first);
    // The next server does not have it, and the batch fails before that is mended.
    let use_it = [bind("s", &[]), execute(0), sync()].concat();
    desk.feed(client, &[parse("", "nonsense"), use_it.clone(), use_it].concat());
    let server = desk.server();
    let own =
        [parse("PGBOUNCER_1", "SELECT 1"), bind("PGBOUNCER_1", &[]), execute(0), sync()].concat();
    assert_eq!(desk.take(server), [parse("", "nonsense"), own.clone()].concat());
    let failed = [message(b'E', b"SERROR\0C42601\0Mno\0\0"), message(b'Z', b"I")].concat();
    desk.feed(server, &failed);
    assert_eq!(desk.take(client), failed);
    assert_eq!(desk.take(server), own, "prepared anew");
    let done = [message(b'2', b""), message(b'C', b"SELECT 0\0"), message(b'Z', b"I")].concat();
    desk.feed(server, &[message(b'1', b""), done.clone()].concat());
    assert_eq!(desk.take(client), done);
}

/// The same of a statement that had to make room behind a Parse that is skipped: it is still there,
/// and a second Parse of it would fail.
#[test]
fn what_was_to_make_room_may_still_be_there() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("max_prepared_statements", "1");
    });
    let (mut client, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
    let give = |name: &str, sql: &str| [parse(name, sql), sync()].concat();
    let use_it = |name: &str| [bind(name, &[]), execute(0), sync()].concat();
    for round in 0..3 {
        let (old, new) = (format!("SELECT 'old {round}'"), format!("SELECT 'new {round}'"));
        let (one, two) = (format!("one{round}"), format!("two{round}"));
        assert_eq!(answer(&mut client, &[&give(&one, &old)], 1), "1Z");
        let failing = [parse("", "nonsense"), give(&two, &new)].concat();
        // Behind it the old one is wanted again: by the same name, or by another.
        match round {
            0 => {
                assert_eq!(answer(&mut client, &[&failing, &use_it(&one)], 2), "EZ2DCZ");
            }
            1 => {
                let again = [give("again", &old), use_it("again")].concat();
                assert_eq!(answer(&mut client, &[&failing, &again], 3), "EZ1Z2DCZ");
            }
            _ => {
                assert_eq!(answer(&mut client, &[&failing], 1), "EZ");
                assert_eq!(answer(&mut other, &[&give("theirs", &old)], 1), "1Z");
                assert_eq!(answer(&mut other, &[&use_it("theirs")], 1), "2DCZ");
            }
        }
        assert_eq!(answer(&mut client, &[&use_it(&two), &use_it(&one)], 2), "2DCZ2DCZ");
    }
}
