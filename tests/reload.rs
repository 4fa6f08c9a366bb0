//! Reloads that hurt nobody: in quick succession, while clients work, and with a faulty file.

mod common;

use common::{Pooler, Postgres, wait_for};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn knows(pooler: &Pooler, user: &str) -> bool {
    pooler.config(user, "app").connect(postgres::NoTls).is_ok()
}

/// The entry of `app`; with another number its servers are not those of before.
fn entry(number: u32) -> String {
    let port = Postgres::shared().port;
    format!("host=127.0.0.1 port={port} dbname=app user=bob connect_query='SELECT {number}'")
}

/// Works until it is told to stop; how many rounds that were.
fn work(config: &postgres::Config, stop: &AtomicBool) -> u32 {
    let mut client = config.connect(postgres::NoTls).expect("connect through the pooler");
    let statement = client.prepare("SELECT $1::int + 1").expect("prepare");
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let row = client.query_one(&statement, &[&41]).expect("a prepared query");
        assert_eq!(row.get::<_, i32>(0), 42);
        let mut transaction = client.transaction().expect("BEGIN");
        let sum = "SELECT sum(n) FROM generate_series(1, 1000) n";
        let row = transaction.query_one(sum, &[]).expect("a query in a transaction");
        assert_eq!(row.get::<_, i64>(0), 500_500);
        transaction.query_one(&statement, &[&1]).expect("the statement in a transaction");
        transaction.commit().expect("COMMIT");
        rounds += 1;
    }
    rounds
}

#[test]
fn reloads_in_quick_succession_hurt_nobody() {
    let mut pooler = Pooler::start(|ini| {
        ini.database("app", &entry(0)).set("default_pool_size", "3");
    });
    let config = pooler.config("alice", "app");
    let mut idle = pooler.raw("alice");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| work(&config, &stop))).collect();
        let start = Instant::now();
        let mut turns = 0;
        while start.elapsed() < Duration::from_secs(3) && !clients.iter().any(|c| c.is_finished()) {
            // Every other reload changes nothing. A file that is read while it is being written
            // may be empty: then all stays as it was.
            turns += 1;
            pooler.rewrite(|ini| {
                ini.database("app", &entry(turns / 2));
            });
            pooler.signal(libc::SIGHUP);
            // The load itself, not a wait for something.
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().expect("no error") > 0);
        }
    });
    assert_eq!(idle.value("SELECT 42"), "42");
    let log = pooler.log();
    let reloads = log.matches("LOG got SIGHUP, re-reading config").count();
    assert!(reloads > 5, "{reloads} reloads only");
    let servers = log.matches("new connection to server").count();
    assert!(servers > 6, "{servers} servers only: each that is out of date is replaced");
    pooler.signal(libc::SIGHUP);
    wait_for("the last reload", || knows(&pooler, "alice"));
}

#[test]
fn a_failed_reload_says_why_and_that_it_failed() {
    let mut pooler = Pooler::start(|_| ());
    pooler.rewrite(|ini| {
        ini.set("max_client_conn", "0").set("pool_mode", "nonsense");
    });
    pooler.signal(libc::SIGHUP);
    let last = " WARNING config file loading failed\n";
    wait_for("the last word", || pooler.log().contains(last));
    let log = pooler.log();
    let said: Vec<&str> = log.lines().skip_while(|line| !line.contains("got SIGHUP")).collect();
    let beginnings = [
        "LOG got SIGHUP, re-reading config",
        "ERROR invalid value \"nonsense\" for parameter pool_mode in configuration (",
        "WARNING config file loading failed",
    ];
    assert_eq!(said.len(), beginnings.len(), "{said:?}");
    for (line, beginning) in said.iter().zip(beginnings) {
        assert!(line.contains(&format!("] {beginning}")), "{line}");
    }
    // The good lines of the file do not count either.
    pooler.assert_serves();
}
