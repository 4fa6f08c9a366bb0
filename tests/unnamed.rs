//! The statement without a name, prepared now and bound later (issue 6): it follows its client to
//! another server, and nobody runs another one's by mistake.

mod common;

use common::raw::{bind, close, describe, execute, flush, message, parse, query, sync, tags};
use common::{Pooler, Postgres, Raw, Startup};

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

fn direct() -> Raw {
    let mut raw = Raw::connect(Postgres::shared().port);
    raw.log_in(&Startup::v3().param("user", "alice").param("database", "app"));
    raw
}

fn answers(client: &mut Raw, bytes: &[u8], readies: usize) -> Vec<String> {
    client.send(bytes);
    let all = (0..readies).flat_map(|_| client.until_ready());
    let words = all.filter(|message| !matches!(message.tag, b'S' | b'N')).map(|message| {
        let tag = char::from(message.tag);
        match message.tag {
            b'E' => format!("E{}:{}", message.field('C'), message.field('M')),
            _ => format!("{tag}{}", String::from_utf8_lossy(&message.body)),
        }
    });
    words.collect()
}

fn bound() -> Vec<u8> {
    [bind("", &[]), describe(b'P', ""), execute(0), sync()].concat()
}

fn parsed(sql: &str) -> Vec<u8> {
    [parse("", sql), describe(b'S', ""), sync()].concat()
}

fn execute_of(portal: &str) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), &[0; 5]].concat())
}

/// Conversations in batches. Between two batches the client comes to another server.
fn conversations() -> Vec<Vec<(Vec<u8>, usize)>> {
    let one = |bytes: Vec<u8>| (bytes, 1);
    vec![
        vec![one(parsed("SELECT 1")), one(bound())],
        vec![one([parse("", "SELECT 2"), sync()].concat()), one(bound()), one(bound())],
        vec![one(parsed("SELECT 3")), one(parsed("SELECT 4")), one(bound())],
        // Described again elsewhere.
        vec![one(parsed("SELECT 5")), one([describe(b'S', ""), sync()].concat()), one(bound())],
        // A simple query ends it, and so does a Close.
        vec![one(parsed("SELECT 6")), one(query("SELECT 'between'")), one(bound())],
        vec![one(parsed("SELECT 7")), one([close(b'S', ""), sync()].concat()), one(bound())],
        // One that fails is none.
        vec![one(parsed("SELECT 8")), one(parsed("SELEC")), one(bound())],
        // Another takes its place, bound at once.
        vec![one(parsed("SELECT 9")), one([parse("", "SELECT 10"), bound()].concat())],
        vec![
            one(parsed("SELECT 11")),
            one([parse("x", "SELECT 12"), sync()].concat()),
            one(bound()),
            one([close(b'S', "x"), sync()].concat()),
        ],
        // In a transaction the server stays.
        vec![(
            [query("BEGIN"), parsed("SELECT 13"), bound(), bound(), query("COMMIT")].concat(),
            5,
        )],
        vec![one([parse("", "SELECT 14"), flush(), bound()].concat()), one(bound())],
        // One that is skipped because of an error is none; the old one is still there.
        vec![
            one(parsed("SELECT 15")),
            one([parse("no", "SELECT nothing"), parse("", "SELECT 'skipped'"), sync()].concat()),
            one(bound()),
        ],
        // An error is still under way when the next one comes.
        vec![([execute_of("nowhere"), sync(), parsed("SELECT 16"), bound(), bound()].concat(), 4)],
        vec![
            ([parse("", "SELECT nothing"), sync(), parsed("SELECT 17")].concat(), 2),
            one(bound()),
        ],
        // What is brought to another server may be skipped there.
        vec![one(parsed("SELECT 18")), ([execute_of("nowhere"), bound(), bound()].concat(), 2)],
    ]
}

#[test]
fn a_bind_finds_its_statement_on_any_server() {
    let pooler = pooler("transaction");
    for (number, batches) in conversations().into_iter().enumerate() {
        let (mut pooled, mut direct) = (pooler.raw("alice"), direct());
        let mut holder = pooler.raw("alice");
        for (batch, (bytes, readies)) in batches.iter().enumerate() {
            assert_eq!(
                answers(&mut pooled, bytes, *readies),
                answers(&mut direct, bytes, *readies),
                "conversation {number}, batch {batch}"
            );
            // The server that was used last is taken first: by somebody else.
            answers(&mut holder, &query(if batch % 2 == 0 { "BEGIN" } else { "COMMIT" }), 1);
        }
    }
}

/// As long as nobody else came between, one server knows it all by itself.
#[test]
fn nobody_runs_what_another_has_left_unnamed() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("pool_mode", "transaction");
    });
    let (mut one, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
    let at_once = [parse("", "SELECT 'mine'"), bound()].concat();
    let mine = answers(&mut one, &at_once, 1);
    assert_eq!(answers(&mut one, &bound(), 1), mine[1..], "bound again on the same server");
    let none = ["E26000:unnamed prepared statement does not exist", "ZI"];
    assert_eq!(answers(&mut other, &bound(), 1), none);
    assert_eq!(answers(&mut other, &[describe(b'S', ""), sync()].concat(), 1), none);
    assert_eq!(answers(&mut one, &bound(), 1), none, "it is gone for good");
    // Having it forgotten may be skipped because of an error.
    assert_eq!(answers(&mut one, &at_once, 1), mine);
    let failing = [execute_of("nowhere"), bound(), bound()].concat();
    assert_eq!(answers(&mut other, &failing, 2)[2..], none);
    // An error in between, and a Parse that is skipped.
    answers(&mut one, &at_once, 1);
    let failing = [parse("bad", "SELEC"), parse("", "SELECT 'skipped'"), bound()].concat();
    answers(&mut other, &failing, 1);
    assert_eq!(answers(&mut other, &bound(), 1), none);
}
