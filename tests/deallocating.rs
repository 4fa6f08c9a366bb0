//! SQL-level `DEALLOCATE name` (client.md §4.1, issue 6): a name that the pooler follows is forgotten,
//! and the answer is a direct server's. The server's statement, which others use, stays.

mod common;

use common::raw::{self, bind, execute, flush, parse, query, sync, tags};
use common::{Pooler, Postgres, Raw, Startup};

fn pooler(mode: &str) -> Pooler {
    Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("pool_mode", mode);
    })
}

fn direct() -> Raw {
    let mut direct = Raw::connect(Postgres::shared().port);
    direct.log_in(&Startup::v3().param("user", "alice").param("database", "app"));
    direct
}

/// The same to both; what both answer. Errors are compared by code and text.
fn both(direct: &mut Raw, pooled: &mut Raw, batch: &[Vec<u8>], readies: usize) -> String {
    let mut answers = Vec::new();
    for client in [&mut *direct, pooled] {
        client.send(&batch.concat());
        let all: Vec<_> = (0..readies).flat_map(|_| client.until_ready()).collect();
        let words = all.iter().map(|message| match message.tag {
            b'E' => format!("{} {}", message.field('C'), message.field('M')).into_bytes(),
            _ => message.body.clone(),
        });
        answers.push((tags(&all), words.collect::<Vec<_>>()));
    }
    assert_eq!(answers[1], answers[0], "{batch:?}");
    answers.remove(0).0
}

fn run(name: &str) -> [Vec<u8>; 3] {
    [bind(name, &[]), execute(0), sync()]
}

#[test]
fn a_name_is_forgotten_and_may_be_given_again() {
    for mode in ["transaction", "statement"] {
        let pooler = pooler(mode);
        let (mut direct, mut client, mut other) =
            (direct(), pooler.raw("alice"), pooler.raw("alice"));
        other.send(&[parse("theirs", "SELECT 1"), sync()].concat());
        other.expect_tags("1Z");
        for (name, sql) in [
            ("s", "DEALLOCATE s"),
            ("s", " deallocate prepare S ;"),
            ("MiXed \"x\"", "DEALLOCATE \"MiXed \"\"x\"\"\" -- all of it"),
            ("prepare", "DEALLOCATE prepare"),
            ("é", "DEALLOCATE/**/é"),
            (&"n".repeat(63), &format!("DEALLOCATE {}", "N".repeat(63))),
        ] {
            for text in ["SELECT 1", "SELECT 2"] {
                let batch = [parse(name, text), query(sql), sync()];
                let answer = both(&mut direct, &mut client, &batch[..1], 0);
                assert_eq!(answer, "");
                // The Parse is not answered before a Sync: see below for what comes between.
                let answer = both(&mut direct, &mut client, &batch[2..], 1);
                assert_eq!(answer, "1Z");
                assert_eq!(both(&mut direct, &mut client, &batch[1..2], 1), "CZ", "{sql}");
            }
        }
        other.send(&run("theirs").concat());
        other.expect_tags("2DCZ");
        client.send(&run("s").concat());
        client.expect_fatal("prepared statement did not exist");
    }
}

#[test]
fn the_transaction_it_stands_in_is_told() {
    let pooler = pooler("transaction");
    let (mut direct, mut client) = (direct(), pooler.raw("alice"));
    let mut both = |batch: &[Vec<u8>], readies| both(&mut direct, &mut client, batch, readies);
    assert_eq!(both(&[parse("s", "SELECT 1"), parse("t", "SELECT 2"), sync()], 1), "11Z");
    assert_eq!(both(&[query("BEGIN"), query("DEALLOCATE s"), query("SELECT 1")], 3), "CZCZTDCZ");
    assert_eq!(both(&[query("SELECT nothing"), query("DEALLOCATE t")], 2), "EZEZ");
    assert_eq!(both(&[query("ROLLBACK"), query("SELECT 3")], 2), "CZTDCZ");
    assert_eq!(both(&run("t"), 1), "2DCZ", "a failed one has forgotten nothing");
    assert_eq!(both(&[parse("s", "SELECT 4"), sync()], 1), "1Z", "the other's name is free");
    assert_eq!(both(&run("s"), 1), "2DCZ");
}

#[test]
fn in_a_pipeline_it_has_its_turn() {
    let pooler = pooler("transaction");
    let (mut direct, mut client) = (direct(), pooler.raw("alice"));
    let mut batch = vec![parse("s", "SELECT 1")];
    batch.extend(run("s"));
    batch.extend([query("SELECT 2"), query("DEALLOCATE s"), parse("s", "SELECT 3")]);
    batch.extend(run("s"));
    batch.extend([query("DEALLOCATE s"), query("SELECT 4")]);
    assert_eq!(both(&mut direct, &mut client, &batch, 6), "12DCZTDCZCZ12DCZCZTDCZ");
    // After an error a server ignores it, and so nothing is forgotten.
    let batch = [parse("s", "SELECT 5"), sync(), parse("", "SELECT nothing"), flush()];
    client.send(&batch.concat());
    client.expect_tags("1ZE");
    client.send(&[query("DEALLOCATE s"), sync()].concat());
    client.expect_tags("Z");
    client.send(&run("s").concat());
    client.expect_tags("2DCZ");
}

#[test]
fn what_is_more_than_that_or_not_ours_is_the_servers_business() {
    let pooler = pooler("transaction");
    let mut client = pooler.raw("alice");
    client.send(&[parse("s", "SELECT 1"), sync()].concat());
    client.expect_tags("1Z");
    for (sql, code) in [
        ("DEALLOCATE unknown", "26000"),
        ("DEALLOCATE \"S\"", "26000"),
        ("DEALLOCATE s; SELECT 1", "26000"),
        ("DEALLOCATE s s", "42601"),
        ("DEALLOCATE", "42601"),
    ] {
        let answer = client.query(sql);
        assert_eq!((tags(&answer).as_str(), answer[0].field('C').as_str()), ("EZ", code), "{sql}");
    }
    let long = format!("DEALLOCATE s {}", " ".repeat(500_000));
    assert_eq!(tags(&client.query(&long)), "EZ", "not looked at");
    // One that was prepared by SQL is the server's own.
    assert_eq!(tags(&client.query("BEGIN")), "CZ");
    assert_eq!(tags(&client.query("PREPARE own AS SELECT 1")), "CZ");
    assert_eq!(tags(&client.query("DEALLOCATE own")), "CZ");
    assert_eq!(tags(&client.query("COMMIT")), "CZ");
    client.send(&run("s").concat());
    client.expect_tags("2DCZ");
}

#[test]
fn it_is_understood_in_pieces_and_without_a_server() {
    let pooler = pooler("transaction");
    let (mut client, mut holder) = (pooler.raw("alice"), pooler.raw("alice"));
    let message = query("DEALLOCATE \"s\"; /* in pieces */");
    for cut in 0..message.len() {
        client.send(&[parse("s", "SELECT 1"), sync()].concat());
        client.expect_tags("1Z");
        client.send(&message[..cut]);
        // Its turn comes while the other's has not, so the first piece has been read.
        holder.query("SELECT 1");
        client.send(&message[cut..]);
        client.expect_tags("CZ");
    }
    client.send(&[parse("s", "SELECT 1"), sync()].concat());
    client.expect_tags("1Z");
    holder.query("BEGIN");
    client.send(&raw::query("DEALLOCATE s"));
    client.expect_tags("CZ");
    holder.query("COMMIT");
}
