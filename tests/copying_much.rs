//! COPY of much data, both ways at once, in all modes, while clients and servers die in the middle of
//! theirs: nothing is lost, nothing is mixed up, others go on, and memory stays flat.
//!
//! `COPY_MEGABYTES=4000` has each of the four streams of a mode carry so much (by default 16, which
//! makes 200 for all modes): `COPY_MEGABYTES=4000 cargo test --all-features --test copying_much`.

mod common;

use common::raw::{copy_data, copy_done, query};
use common::{Pooler, Postgres, Random, Raw, wait_for};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MEGABYTE: usize = 1 << 20;
/// The second column of each row; with the first one and what is between them a kilobyte or so.
const TEXT_BYTES: usize = 1000;

fn megabytes() -> usize {
    let text = std::env::var("COPY_MEGABYTES").ok();
    text.map_or(16, |text| text.parse().expect("a number of megabytes"))
}

fn rows() -> usize {
    megabytes() * MEGABYTE / TEXT_BYTES
}

/// Row `n` as COPY writes it.
fn row(n: usize) -> Vec<u8> {
    let letter = b'a' + u8::try_from(n % 26).expect("a letter");
    let mut row = n.to_string().into_bytes();
    row.push(b'\t');
    row.resize(row.len() + TEXT_BYTES, letter);
    row.push(b'\n');
    row
}

/// What all take part in.
struct Stage<'a> {
    pooler: &'a Pooler,
    is_over: AtomicBool,
    deaths: AtomicU64,
    queries: AtomicU64,
}

/// Sends all rows, in pieces that end anywhere. PostgreSQL itself looks at each: it has to be the
/// next one, and right; what is wrong would be kept.
fn write_all(stage: &Stage<'_>, number: u64) {
    let mut random = Random::new(number);
    let mut client = stage.pooler.raw("alice");
    client.query(&format!(
        "CREATE SEQUENCE rows_{number}; CREATE TABLE wrong_{number} (n int, t text)"
    ));
    client.send(&query(&format!(
        "COPY wrong_{number} FROM STDIN WHERE n <> nextval('rows_{number}') \
         OR t <> repeat(chr(97 + n % 26), {TEXT_BYTES})"
    )));
    client.expect_tags("G");
    let (mut bytes, mut piece) = (Vec::new(), Vec::new());
    for n in 1..=rows() {
        bytes.extend(row(n));
        while bytes.len() > 100_000 {
            let longest = [10, 1000, 90_000][random.below(3)];
            let length = 1 + random.below(longest);
            piece.extend(copy_data(&bytes[..length]));
            bytes.drain(..length);
        }
        if piece.len() > 200_000 {
            client.send(&std::mem::take(&mut piece));
        }
    }
    client.send(&[piece, copy_data(&bytes), copy_done()].concat());
    let answer = client.expect_tags("CZ");
    assert_eq!(answer[0].body, b"COPY 0\0", "all rows are right");
    assert_eq!(client.value(&format!("SELECT last_value FROM rows_{number}")), rows().to_string());
    assert_eq!(client.value(&format!("SELECT count(*) FROM wrong_{number}")), "0");
    client.query(&format!("DROP SEQUENCE rows_{number}; DROP TABLE wrong_{number}"));
}

fn sql_of_rows(count: usize) -> String {
    format!("SELECT n, repeat(chr(97 + n % 26), {TEXT_BYTES}) FROM generate_series(1, {count}) n")
}

/// Reads all rows and looks at each.
fn read_all(stage: &Stage<'_>) {
    let mut client = stage.pooler.raw("alice");
    client.send(&query(&format!("COPY ({}) TO STDOUT", sql_of_rows(rows()))));
    client.expect_tags("H");
    for n in 1..=rows() {
        let message = client.message();
        assert!(message.tag == b'd' && message.body == row(n), "row {n}: {message:?}");
    }
    let end = client.expect_tags("cCZ");
    assert_eq!(end[1].body, format!("COPY {}\0", rows()).into_bytes());
    assert_eq!(client.value("SELECT 'after'"), "after");
}

/// Asks small things and gets the right answers.
fn go_on(stage: &Stage<'_>) {
    let mut client = stage.pooler.raw("alice");
    for number in 0.. {
        assert_eq!(client.value(&format!("SELECT {number}")), number.to_string());
        stage.queries.fetch_add(1, Ordering::Relaxed);
        if stage.is_over.load(Ordering::Acquire) {
            return;
        }
    }
}

/// One after the other begins a COPY that does not end well: half of them leave, the others lose
/// their server.
fn die(stage: &Stage<'_>, database: &str, mode: &str) {
    let mut random = Random::new(7);
    let mut direct = Postgres::shared().client(database);
    for number in 0.. {
        if stage.is_over.load(Ordering::Acquire) && number >= 8 {
            return;
        }
        let mut client = stage.pooler.raw("alice");
        client.lenient = true;
        let name = format!("/* {mode} {number} */");
        let goes_in = number % 2 == 0;
        let rows = match goes_in {
            true => format!("COPY doomed FROM STDIN {name}"),
            false => format!("COPY ({}) TO STDOUT {name}", sql_of_rows(1_000_000)),
        };
        client.send(&query(&rows));
        client.expect_tags(if goes_in { "G" } else { "H" });
        for n in 1..random.below(500) {
            match goes_in {
                true => client.send(&copy_data(&row(n))),
                false => assert_eq!(client.message().body, row(n)),
            }
        }
        if goes_in {
            // In the middle of a message, or of a row.
            let last = copy_data(&row(1));
            client.send(&last[..random.below(last.len())]);
        }
        if number % 4 < 2 {
            lose_server(&mut client, &mut direct, &name, goes_in);
        }
        stage.deaths.fetch_add(1, Ordering::Relaxed);
    }
}

/// The backend that runs this query is told to go; what its client is told then.
fn lose_server(client: &mut Raw, direct: &mut postgres::Client, name: &str, goes_in: bool) {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE query LIKE '%{name}' AND pid <> pg_backend_pid()"
    );
    wait_for("its backend", || !direct.query(&sql, &[]).expect("a word to it").is_empty());
    let end = client.until_end();
    let mut words = end.iter().filter(|message| message.tag == b'E');
    // In the middle of a row nobody is told anything: it would be taken for a part of that.
    match words.next().map(|error| error.field('C')) {
        Some(code) => assert_eq!(code, "57P01"),
        None => assert!(!goes_in, "it is told"),
    }
    if let Some(ours) = words.next() {
        assert_eq!(ours.field('M'), "server conn crashed?");
    }
    assert!(goes_in || end.iter().all(|message| message.tag != b'Z'));
}

#[test]
fn nothing_is_lost_of_much_data_while_others_die() {
    let postgres = Postgres::shared();
    for (mode, pool_size) in [("session", "8"), ("transaction", "5"), ("statement", "5")] {
        let database = postgres.fresh_database();
        let mut direct = postgres.client(&database);
        direct.batch_execute("CREATE UNLOGGED TABLE doomed (n int, t text)").expect("a table");
        let pooler = Pooler::start(|ini| {
            let connect = format!("host=127.0.0.1 port={} dbname={database}", postgres.port);
            ini.database("app", &connect).set("pool_mode", mode);
            ini.set("default_pool_size", pool_size).set("query_wait_timeout", "0");
        });
        pooler.assert_serves();
        let before = pooler.resident_bytes();
        let stage = Stage {
            pooler: &pooler,
            is_over: AtomicBool::new(false),
            deaths: AtomicU64::new(0),
            queries: AtomicU64::new(0),
        };
        let mut most = before;
        std::thread::scope(|scope| {
            let stage = &stage;
            let streams = [
                scope.spawn(|| write_all(stage, 1)),
                scope.spawn(|| write_all(stage, 2)),
                scope.spawn(|| read_all(stage)),
                scope.spawn(|| read_all(stage)),
            ];
            let others =
                [scope.spawn(|| go_on(stage)), scope.spawn(|| die(stage, &database, mode))];
            while !streams.iter().all(|stream| stream.is_finished()) {
                most = most.max(pooler.resident_bytes());
                std::thread::sleep(std::time::Duration::from_millis(5));
                // Whoever fails ends all.
                assert!(!others.iter().any(|other| other.is_finished()), "they go on");
            }
            stage.is_over.store(true, Ordering::Release);
        });
        let growth = most.saturating_sub(before);
        assert!(growth < 8 * MEGABYTE as u64, "{growth} bytes more in {mode} pooling");
        let [deaths, queries] = [&stage.deaths, &stage.queries].map(|n| n.load(Ordering::Relaxed));
        assert!(deaths >= 8 && queries > 3, "{deaths} have died, {queries} queries went on");
        eprintln!(
            "{mode}: {} MB, {deaths} deaths, {queries} queries, {growth} bytes",
            4 * megabytes()
        );
        let kept: i64 =
            direct.query_one("SELECT count(*) FROM doomed", &[]).expect("a count").get(0);
        assert_eq!(kept, 0, "what did not end well has left nothing");
        pooler.assert_serves();
    }
}
