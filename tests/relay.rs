//! Through the pooler a client sees byte for byte what it would see without it.

mod common;

use common::raw::{
    self, bind, close, copy_data, copy_done, copy_fail, describe, execute, flush, parse, query,
    sync,
};
use common::{Pooler, Postgres, Random, Raw, Startup};
use std::io::{Read, Write};

const MEGABYTE: usize = 1024 * 1024;

fn direct() -> Raw {
    let mut raw = Raw::connect(Postgres::shared().port);
    raw.log_in(&Startup::v3().param("user", "alice").param("database", "app"));
    raw
}

fn pooler(mode: &str, size: u32) -> Pooler {
    Pooler::start(|ini| {
        ini.set("pool_mode", mode).set("default_pool_size", &size.to_string());
    })
}

/// A batch of messages and how many ReadyForQuery end its answer.
struct Batch {
    name: &'static str,
    bytes: Vec<u8>,
    readies: usize,
}

fn batch(name: &'static str, readies: usize, messages: &[Vec<u8>]) -> Batch {
    Batch { name, bytes: messages.concat(), readies }
}

fn simple_batches() -> Vec<Batch> {
    let notice = "DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$";
    vec![
        batch("one row", 1, &[query("SELECT 1, 'two', NULL, ''")]),
        batch("empty query", 1, &[query("")]),
        batch("empty texts", 1, &[query(";;  ; -- nothing")]),
        batch("no columns", 1, &[query("SELECT FROM generate_series(1, 3)")]),
        batch("error", 1, &[query("SELECT nonsense FROM nowhere")]),
        batch("several statements", 1, &[query("SELECT 1; SELECT 2; SELECT 1/0; SELECT 3")]),
        batch("notices", 1, &[query(notice)]),
        batch("settings", 1, &[query("SET DateStyle = german; SHOW DateStyle; RESET DateStyle")]),
        batch("pipeline", 3, &[query("SELECT 1"), query("SELECT 1/0"), query("SELECT 3")]),
        batch(
            "transaction",
            4,
            &[query("BEGIN"), query("SELECT 1/0"), query("SELECT 2"), query("ROLLBACK")],
        ),
        batch("function call", 1, &[raw::message(b'F', b"\0\0\x06\x4a\0\0\0\0\0\0")]),
        batch(
            "many rows",
            1,
            &[query("SELECT i, repeat('x', i % 50) FROM generate_series(1, 3000) i")],
        ),
    ]
}

fn extended_batches() -> Vec<Batch> {
    let one = || [parse("", "SELECT $1::text"), bind("", &["value"])].concat();
    vec![
        batch("extended", 1, &[one(), describe(b'P', ""), execute(0), sync()]),
        batch("only sync", 1, &[sync()]),
        batch("syncs", 3, &[sync(), sync(), sync()]),
        batch("describe statement", 1, &[parse("", "SELECT $1::int"), describe(b'S', ""), sync()]),
        batch("no data", 1, &[parse("", "BEGIN"), describe(b'S', ""), sync()]),
        batch("empty", 1, &[parse("", ""), bind("", &[]), execute(0), sync()]),
        batch(
            "suspended portal",
            1,
            &[
                parse("", "SELECT generate_series(1, 5)"),
                bind("", &[]),
                execute(2),
                execute(2),
                execute(2),
                sync(),
            ],
        ),
        batch(
            "error skips to sync",
            2,
            &[
                one(),
                execute(0),
                parse("", "SELECT nonsense"),
                bind("", &[]),
                execute(0),
                sync(),
                one(),
                execute(0),
                sync(),
            ],
        ),
        batch(
            "error skips a simple query, too",
            2,
            &[parse("", "nonsense"), query("SELECT 1"), sync(), query("SELECT 2")],
        ),
        batch("flush within", 1, &[one(), flush(), execute(0), flush(), sync()]),
        batch("batch then query", 2, &[one(), execute(0), query("SELECT 1"), sync()]),
        batch(
            "named, used and closed",
            1,
            &[
                parse("named", "SELECT $1::int + 1"),
                bind("named", &["41"]),
                execute(0),
                close(b'S', "named"),
                sync(),
            ],
        ),
        batch("close of nothing", 1, &[close(b'P', "nothing"), sync()]),
    ]
}

fn copy_batches() -> Vec<Batch> {
    let table = || query("BEGIN; CREATE TEMP TABLE sink (a int, b text)");
    let end = || query("ROLLBACK");
    vec![
        batch("copy out", 1, &[query("COPY (SELECT generate_series(1, 100)) TO STDOUT")]),
        batch(
            "copy in",
            4,
            &[
                table(),
                query("COPY sink FROM STDIN"),
                copy_data(b"1\tone\n2\tt"),
                copy_data(b"wo\n"),
                copy_done(),
                query("SELECT a + 0, b || '' FROM sink"),
                end(),
            ],
        ),
        batch(
            "copy in that the client fails",
            3,
            &[
                table(),
                query("COPY sink FROM STDIN"),
                copy_data(b"1\to"),
                copy_fail("enough"),
                end(),
            ],
        ),
        batch(
            "copy in that the server fails",
            3,
            &[table(), query("COPY sink FROM STDIN"), copy_data(b"x\ty\n"), copy_done(), end()],
        ),
        batch(
            "extended copy in",
            3,
            &[
                table(),
                parse("", "COPY sink FROM STDIN"),
                bind("", &[]),
                execute(0),
                copy_data(b"7\tseven\n"),
                copy_done(),
                sync(),
                end(),
            ],
        ),
    ]
}

/// Everything the peer answers to a batch, sent in pieces of these sizes.
fn answer(raw: &mut Raw, batch: &Batch, mut piece: impl FnMut() -> usize) -> Vec<u8> {
    let mut rest = &batch.bytes[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece().clamp(1, rest.len()));
        raw.send(now);
        rest = later;
    }
    let mut transcript = Vec::new();
    let mut readies = 0;
    while readies < batch.readies {
        let message = raw.message();
        readies += usize::from(message.tag == b'Z');
        transcript.extend(message.to_bytes());
    }
    transcript
}

fn compare(pooler: &Pooler, batches: &[Batch], mut piece: impl FnMut() -> usize) {
    let (mut direct, mut pooled) = (direct(), pooler.raw("alice"));
    for batch in batches {
        let expected = answer(&mut direct, batch, || usize::MAX);
        let got = answer(&mut pooled, batch, &mut piece);
        assert!(
            got == expected,
            "{}:\n   direct {}\n   pooled {}",
            batch.name,
            String::from_utf8_lossy(&expected),
            String::from_utf8_lossy(&got)
        );
    }
}

fn all_batches() -> Vec<Batch> {
    [simple_batches(), extended_batches(), copy_batches()].into_iter().flatten().collect()
}

#[test]
fn transcripts_equal_those_of_a_direct_connection() {
    for mode in ["session", "transaction"] {
        for size in [1, 2, 20] {
            compare(&pooler(mode, size), &all_batches(), || usize::MAX);
        }
    }
}

#[test]
fn transcripts_are_the_same_when_sent_byte_by_byte() {
    compare(&pooler("transaction", 1), &all_batches(), || 1);
}

#[test]
fn transcripts_are_the_same_when_sent_in_random_pieces() {
    let pooler = pooler("transaction", 2);
    for seed in 0..10 {
        let mut random = Random::new(seed);
        compare(&pooler, &all_batches(), || 1 + random.below(40));
    }
}

#[test]
fn small_buffers_change_nothing() {
    let pooler = Pooler::start(|ini| {
        ini.set("pkt_buf", "512").set("default_pool_size", "1");
    });
    compare(&pooler, &all_batches(), || usize::MAX);
}

#[test]
fn transcripts_are_the_same_beside_other_clients() {
    let pooler = pooler("transaction", 2);
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let pooler = &pooler;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                compare(pooler, &all_batches(), || 1 + random.below(200));
            });
        }
    });
}

#[test]
fn a_row_larger_than_any_buffer_passes() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    let before = pooler.resident_bytes();
    let sql = format!("SELECT repeat('0123456789abcdef', {})", 20 * MEGABYTE / 16);
    let row = client.value(&sql);
    assert_eq!(row.len(), 20 * MEGABYTE);
    assert!(row.as_bytes().chunks(16).all(|chunk| chunk == b"0123456789abcdef"));
    let growth = pooler.resident_bytes().saturating_sub(before);
    assert!(growth < 8 << 20, "the pooler kept {growth} bytes of the row");
    assert_eq!(client.value("SELECT 42"), "42");
}

#[test]
fn a_query_larger_than_any_buffer_passes() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    let before = pooler.resident_bytes();
    let text = "y".repeat(20 * MEGABYTE);
    assert_eq!(client.value(&format!("SELECT length('{text}')")), text.len().to_string());
    let batch = [parse("", "SELECT length($1)"), bind("", &[&text]), execute(0), sync()].concat();
    client.send(&batch);
    let answer = client.expect_tags("12DCZ");
    assert_eq!(answer[2].columns(), [text.len().to_string()]);
    let growth = pooler.resident_bytes().saturating_sub(before);
    assert!(growth < 8 << 20, "the pooler kept {growth} bytes of the query");
}

#[test]
fn rows_reach_a_client_that_reads_byte_by_byte() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    client.send(&query("SELECT generate_series(1, 5000)"));
    assert_eq!(client.message_slowly().tag, b'T');
    for number in 1..=5000 {
        assert_eq!(client.message_slowly().columns(), [number.to_string()]);
    }
    assert_eq!(client.message_slowly().body, b"SELECT 5000\0");
    assert_eq!(client.message_slowly().tag, b'Z');
}

#[test]
fn a_big_result_streams_in_bounded_memory() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    let before = pooler.resident_bytes();
    client.send(&query("SELECT repeat('z', 1000) FROM generate_series(1, 200000)"));
    assert_eq!(client.message().tag, b'T');
    let (mut rows, mut most) = (0, 0);
    loop {
        let message = client.message();
        if message.tag != b'D' {
            assert_eq!(message.body, b"SELECT 200000\0");
            break;
        }
        assert!(message.body.len() == 1006 && message.body[6..].iter().all(|byte| *byte == b'z'));
        rows += 1;
        if rows % 20_000 == 0 {
            most = most.max(pooler.resident_bytes());
        }
    }
    assert_eq!(rows, 200_000);
    client.expect_tags("Z");
    let growth = most.saturating_sub(before);
    assert!(growth < 8 << 20, "{growth} bytes more for a stream");
}

#[test]
fn a_client_that_does_not_read_does_not_fill_the_pooler() {
    let pooler = pooler("transaction", 2);
    let mut lazy = pooler.raw("alice");
    let before = pooler.resident_bytes();
    lazy.send(&query("SELECT repeat('z', 1000) FROM generate_series(1, 50000)"));
    for _ in 0..50 {
        pooler.assert_serves();
    }
    let growth = pooler.resident_bytes().saturating_sub(before);
    assert!(growth < 8 << 20, "{growth} bytes more for a client that does not read");
    let answer = lazy.until_ready();
    assert_eq!(answer.len(), 50_000 + 3);
}

#[test]
fn long_pipelines_are_answered_in_order() {
    for size in [1, 20] {
        let pooler = pooler("transaction", size);
        let mut client = pooler.raw("alice");
        let mut writer = client.stream.try_clone().expect("a second handle");
        let pipeline: Vec<u8> = (0..5000)
            .flat_map(|number| match number % 3 {
                0 => query(&format!("SELECT {number}")),
                1 => [parse("", &format!("SELECT {number}")), bind("", &[]), execute(0), sync()]
                    .concat(),
                _ => query(&format!("SELECT {number} / 0")),
            })
            .collect();
        let writing = std::thread::spawn(move || writer.write_all(&pipeline).expect("send"));
        for number in 0..5000 {
            let expected = ["TDCZ", "12DCZ", "EZ"][number % 3];
            let answer = client.expect_tags(expected);
            if let Some(row) = answer.iter().find(|message| message.tag == b'D') {
                assert_eq!(row.columns(), [number.to_string()]);
            }
        }
        writing.join().expect("the writer");
    }
}

#[test]
fn copy_carries_much_data_both_ways() {
    let pooler = pooler("transaction", 2);
    let mut client = pooler.client();
    let mut transaction = client.transaction().expect("begin");
    transaction.batch_execute("CREATE TEMP TABLE sink (n int, t text)").expect("create");
    let mut data = Vec::new();
    for number in 0..100_000 {
        writeln!(data, "{number}\t{}", "w".repeat(number % 400)).expect("a line");
    }
    let mut writer = transaction.copy_in("COPY sink FROM STDIN").expect("copy in");
    writer.write_all(&data).expect("send");
    assert_eq!(writer.finish().expect("finish"), 100_000);
    let mut back = Vec::new();
    let mut reader = transaction.copy_out("COPY sink TO STDOUT").expect("copy out");
    reader.read_to_end(&mut back).expect("read");
    drop(reader);
    assert!(back == data, "what came back differs");
    transaction.commit().expect("commit");
}

#[test]
fn late_copy_data_after_a_failed_copy_hurts_nobody() {
    // Client side of reliability.md 13: the data is on its way when the server says no.
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    client.query("CREATE TEMP TABLE sink (n int)");
    for _ in 0..5 {
        client.send(&query("COPY sink FROM STDIN"));
        client.expect_tags("G");
        client.send(&copy_data(b"not a number\n"));
        client.expect_tags("EZ");
        client.send(&[copy_data(b"late\n"), copy_data(b"later\n"), copy_done()].concat());
        assert_eq!(client.value("SELECT 42"), "42");
    }
    let mut other = pooler.raw("alice");
    assert_eq!(other.value("SELECT count(*) FROM sink"), "0", "the server came back");
}

#[test]
fn notifications_reach_a_listening_session() {
    let pooler = pooler("session", 2);
    let mut listener = pooler.raw("alice");
    let channel = format!("channel_{}", pooler.port);
    listener.query(&format!("LISTEN {channel}"));
    pooler.client().batch_execute(&format!("NOTIFY {channel}, 'news'")).expect("notify");
    let news = listener.message();
    assert_eq!(news.tag, b'A');
    assert!(news.body.ends_with(b"\0news\0"));
}

#[test]
fn the_postgres_crate_is_content() {
    for mode in ["session", "transaction"] {
        let pooler = pooler(mode, 1);
        let mut client = pooler.client();
        let mut transaction = client.transaction().expect("begin");
        let statement = transaction.prepare("SELECT $1::int8 * 2").expect("prepare");
        for number in 0..20_i64 {
            let row = transaction.query_one(&statement, &[&number]).expect("query");
            assert_eq!(row.get::<_, i64>(0), number * 2);
        }
        let fault = transaction.query_one("SELECT 1/0", &[]).expect_err("a division by zero");
        assert_eq!(fault.code(), Some(&postgres::error::SqlState::DIVISION_BY_ZERO));
        transaction.rollback().expect("rollback");
    }
}
