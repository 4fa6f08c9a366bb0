//! The statement without a name, prepared now and bound later (issue 6): it follows its client to
//! another server, and nobody runs another one's by mistake.

mod common;

use common::raw::{bind, close, describe, execute, parse, query, sync, tags};
use common::{Pooler, Raw};

fn pooler(mode: &str) -> Pooler {
    Pooler::start(|ini| {
        ini.set("default_pool_size", "2").set("pool_mode", mode);
    })
}

fn exchange(client: &mut Raw, batch: &[Vec<u8>]) -> String {
    client.send(&batch.concat());
    tags(&client.until_ready())
}

/// What the unnamed statement gives, run now.
fn run(client: &mut Raw) -> String {
    client.send(&[bind("", &[]), execute(0), sync()].concat());
    let answer = client.until_ready();
    match answer.iter().find(|message| message.tag == b'D') {
        Some(row) => row.columns().remove(0),
        None => {
            let error = answer.iter().find(|message| message.tag == b'E');
            error.expect("a row or an error").field('C')
        }
    }
}

#[test]
fn it_follows_its_client_to_another_server() {
    for mode in ["transaction", "statement"] {
        let pooler = Pooler::start(|ini| {
            ini.set("default_pool_size", "1").set("pool_mode", mode);
        });
        let (mut one, mut two) = (pooler.raw("alice"), pooler.raw("alice"));
        assert_eq!(exchange(&mut one, &[parse("", "SELECT 'one'"), sync()]), "1Z");
        let batch = [parse("", "SELECT 'two'"), describe(b'S', ""), sync()];
        assert_eq!(exchange(&mut two, &batch), "1tTZ");
        for _ in 0..3 {
            assert_eq!(run(&mut one), "one");
            assert_eq!(run(&mut two), "two");
            let batch = [describe(b'S', ""), bind("", &[]), execute(0), sync()];
            assert_eq!(exchange(&mut one, &batch), "tT2DCZ");
        }
        // In one go, as usual; and prepared anew.
        let batch = [parse("", "SELECT 3"), bind("", &[]), describe(b'P', ""), execute(0), sync()];
        assert_eq!(exchange(&mut one, &batch), "12TDCZ");
        assert_eq!(exchange(&mut two, &[parse("", "SELECT 'new'"), sync()]), "1Z");
        assert_eq!(run(&mut two), "new");
        // In pieces.
        let parse = parse("", "SELECT 'cut'");
        let batch = [&parse[..], &sync()].concat();
        for cut in 0..parse.len() {
            one.send(&batch[..cut]);
            assert_eq!(run(&mut two), "new");
            one.send(&batch[cut..]);
            one.expect_tags("1Z");
            assert_eq!(run(&mut two), "new");
            assert_eq!(run(&mut one), "cut", "{cut}");
        }
    }
}

#[test]
fn it_moves_between_servers_that_are_there_at_once() {
    let pooler = pooler("transaction");
    let (mut client, mut first, mut second) =
        (pooler.raw("alice"), pooler.raw("alice"), pooler.raw("alice"));
    assert_eq!(exchange(&mut client, &[parse("", "SELECT pg_backend_pid()"), sync()]), "1Z");
    first.query("BEGIN");
    let here = run(&mut client);
    second.query("BEGIN");
    first.query("COMMIT");
    let there = run(&mut client);
    assert_ne!(here, there);
}

#[test]
fn what_forgets_it_forgets_it_everywhere() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("pool_mode", "transaction");
    });
    let (mut client, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
    let mut forgotten_by = |forget: &[Vec<u8>]| {
        assert_eq!(exchange(&mut client, &[parse("", "SELECT 'mine'"), sync()]), "1Z");
        exchange(&mut client, forget);
        assert_eq!(exchange(&mut other, &[parse("", "SELECT 'secret'"), sync()]), "1Z");
        assert_eq!(run(&mut client), "26000");
    };
    forgotten_by(&[query("SELECT 1")]);
    forgotten_by(&[close(b'S', ""), sync()]);
    forgotten_by(&[parse("", "SELECT nothing_of_it(1"), sync()]);
    forgotten_by(&[parse("no", "SELECT nothing"), parse("", "SELECT 'skipped'"), sync()]);
    // Whoever never prepared one gets nobody's.
    let mut stranger = pooler.raw("alice");
    assert_eq!(run(&mut stranger), "26000");
    // Too large to be kept: an error, and not the other's.
    let large = format!("SELECT '{}'", "x".repeat(300_000));
    assert_eq!(exchange(&mut stranger, &[parse("", &large), sync()]), "1Z");
    assert_eq!(exchange(&mut other, &[parse("", "SELECT 'secret'"), sync()]), "1Z");
    assert_eq!(run(&mut stranger), "26000");
    // An error while it runs forgets nothing.
    let batch = [parse("", "SELECT 1 / (random() * 0)::int"), sync()];
    assert_eq!(exchange(&mut stranger, &batch), "1Z");
    for _ in 0..2 {
        assert_eq!(exchange(&mut other, &[parse("", "SELECT 'secret'"), sync()]), "1Z");
        assert_eq!(run(&mut stranger), "22012");
    }
}
