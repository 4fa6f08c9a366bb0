//! Reliability 11, 12, 13, 14: random sequences of all messages that a client may send, cut anywhere,
//! from several clients at once, while others cancel what they do and leave in the middle of it. What
//! each client reads is what it would have read from PostgreSQL itself.
//!
//! - `MODEL_SEED=17` replays one run.
//! - `MODEL_RUNS=20000` makes a long test. Without nextest, which ends it after four minutes:
//!   `MODEL_RUNS=20000 cargo test --all-features --test model -- --nocapture`. It tells its count of
//!   messages as it goes, and memory has to stay flat.

mod cancelled;
#[path = "../common/mod.rs"]
mod common;
mod twins;
mod words;

use common::{Pooler, Postgres};
use std::sync::atomic::{AtomicU64, Ordering};
use twins::Twins;
use words::Manners;

/// Clients at once.
const CLIENTS: u64 = 4;
/// A long run says so often how far it is.
const RUNS_BETWEEN_WORDS: u64 = 500;
/// And so often forgets its rows: otherwise they fill the disk, and PostgreSQL goes away.
const RUNS_BETWEEN_TRUNCATES: u64 = 25;

/// What was sent and read through the pooler.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Counts {
    pub sent: AtomicU64,
    pub received: AtomicU64,
    pub cancels: AtomicU64,
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    match number("MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MODEL_RUNS").unwrap_or(4),
    }
}

#[test]
fn transaction_pooling_reads_like_a_direct_connection() {
    for pool_size in ["1", "3"] {
        model("transaction", pool_size, "3", &[]);
    }
}

#[test]
fn statement_pooling_reads_like_a_direct_connection() {
    for pool_size in ["1", "3"] {
        model("statement", pool_size, "200", &[]);
    }
}

#[test]
fn session_pooling_reads_like_a_direct_connection() {
    model("session", "6", "200", &[]);
}

#[test]
fn untracked_statements_read_like_a_direct_connection() {
    model("transaction", "3", "0", &[]);
}

/// Whoever leaves in the middle leaves a server that serves the next one.
#[test]
fn rescued_servers_read_like_a_direct_connection() {
    for (mode, pool_size) in [("transaction", "1"), ("transaction", "3"), ("session", "6")] {
        model(mode, pool_size, "3", &[("server_rescue_timeout", "10")]);
    }
}

#[test]
fn small_buffers_read_like_a_direct_connection() {
    model("transaction", "1", "3", &[("pkt_buf", "512")]);
}

fn model(
    mode: &'static str,
    pool_size: &str,
    max_prepared: &str,
    settings: &[(&'static str, &'static str)],
) {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    let mut setup = postgres.client(&database);
    setup.batch_execute("CREATE UNLOGGED TABLE target (a int, b text)").expect("a table");
    let pooler = Pooler::start(|ini| {
        ini.set("pool_mode", mode);
        ini.set("default_pool_size", pool_size);
        ini.set("max_prepared_statements", max_prepared);
        // Machines may be slow.
        ini.set("query_wait_notify", "0");
        ini.database("app", &format!("host=127.0.0.1 port={} dbname={database}", postgres.port));
        for (name, value) in settings {
            ini.set(name, value);
        }
    });
    let manners = Manners {
        has_transactions: mode != "statement",
        has_names: max_prepared != "0" || mode == "session",
    };
    let counts = Counts::default();
    let mut twins: Vec<Twins> =
        (0..CLIENTS).map(|_| Twins::new(&pooler, &database, manners, &counts)).collect();
    let mut settled_bytes = None;
    let seeds = seeds();
    for seed in seeds.clone() {
        std::thread::scope(|scope| {
            for (twins, number) in twins.iter_mut().zip(0..) {
                scope.spawn(move || twins.run(seed * CLIENTS + number));
            }
            scope.spawn(|| cancelled::run(&pooler, seed, &counts));
        });
        // (In simple words: whether names follow a client is not the question here.)
        assert_eq!(pooler.raw("alice").value("SELECT 41 + 1"), "42");
        let done = seed - seeds.start + 1;
        if done.is_multiple_of(RUNS_BETWEEN_TRUNCATES) {
            setup.batch_execute("TRUNCATE target").expect("the table is free");
        }
        if done == RUNS_BETWEEN_TRUNCATES {
            settled_bytes = Some(pooler.resident_bytes());
        }
        if done.is_multiple_of(RUNS_BETWEEN_WORDS) || (done > 100 && seed + 1 == seeds.end) {
            let [sent, received, cancels] = [&counts.sent, &counts.received, &counts.cancels]
                .map(|count| count.load(Ordering::Relaxed));
            let bytes = pooler.resident_bytes();
            eprintln!(
                "{mode} {pool_size} {max_prepared} {settings:?}: {done} runs, {sent} messages sent and \
                 {received} read, {cancels} cancels, {bytes} bytes"
            );
            let growth = bytes.saturating_sub(settled_bytes.unwrap_or(bytes));
            assert!(growth < 8 << 20, "{growth} bytes more after {done} runs");
        }
    }
}
