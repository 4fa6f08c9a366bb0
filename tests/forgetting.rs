//! Commands that forget all prepared statements (client.md §4.6), in the middle of pipelines: what is
//! prepared behind them is there, for its client and for the others. (Reliability 12.)

mod common;

use common::raw::{bind, close, execute, parse, query, sync, tags};
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
