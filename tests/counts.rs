//! What we count, beside what others count of the same run: pgbench, its log, and PostgreSQL.

mod common;

use common::postgresql::bin_dir;
use common::{Pooler, Postgres, temp_dir, wait_for};
use postgres::SimpleQueryMessage::Row;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const CLIENTS: u64 = 6;
const EACH: u64 = 60;

/// A pooler in front of a database of its own.
fn start(database: &str, pool_size: u64) -> Pooler {
    let connect = format!("host=127.0.0.1 port={} dbname={database}", Postgres::shared().port);
    Pooler::start(|ini| {
        ini.database("counted", &connect).set("default_pool_size", &pool_size.to_string());
        ini.set("max_prepared_statements", "50");
    })
}

/// Runs the script through the pooler, in this mode; the latencies of all transactions in
/// microseconds, in order of size.
fn pgbench(pooler: &Pooler, script: &str, mode: &str, dir: &Path) -> Vec<u64> {
    let file = dir.join("script.sql");
    fs::write(&file, script).unwrap();
    let mut command = Command::new(bin_dir().join("pgbench"));
    command.current_dir(dir).env_clear().env("PGSSLMODE", "disable").stdin(Stdio::null());
    command.args([
        "-n",
        "-l",
        "--log-prefix=latency",
        "-M",
        mode,
        "-h",
        "127.0.0.1",
        "-U",
        "alice",
    ]);
    command.arg("-p").arg(pooler.port.to_string()).arg("-f").arg(&file);
    command.arg("-c").arg(CLIENTS.to_string()).arg("-t").arg(EACH.to_string()).arg("counted");
    let output = command.output().expect("run pgbench");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pgbench: {said}");
    let logs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut latencies = Vec::new();
    for log in logs.filter(|path| path.to_string_lossy().contains("latency.")) {
        let text = fs::read_to_string(log).unwrap();
        // Client, transaction, latency, …
        latencies.extend(
            text.lines().map(|line| line.split(' ').nth(2).unwrap().parse::<u64>().unwrap()),
        );
    }
    latencies.sort_unstable();
    latencies
}

/// One row of a table of the console: that of our database.
fn row(
    console: &mut postgres::Client,
    command: &str,
    also: &[(&str, &str)],
) -> impl Fn(&str) -> u64 + use<> {
    let messages = console.simple_query(command).unwrap();
    let wanted = messages.into_iter().find_map(|message| match message {
        Row(row)
            if row.get("database") == Some("counted")
                && also.iter().all(|(name, value)| row.get(*name) == Some(*value)) =>
        {
            Some(row)
        }
        _ => None,
    });
    let row = wanted.unwrap_or_else(|| panic!("no row for the database in {command}"));
    move |name: &str| row.get(name).unwrap().parse().unwrap()
}

fn console(pooler: &Pooler) -> postgres::Client {
    pooler.config("postgres", "pgbouncer").connect(postgres::NoTls).unwrap()
}

/// Two statements in each transaction, and one outside.
#[test]
fn totals_are_what_pgbench_and_pg_stat_statements_count() {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    let mut direct = postgres.client(&database);
    direct.batch_execute("CREATE EXTENSION pg_stat_statements").unwrap();
    for mode in ["simple", "extended", "prepared"] {
        // pgbench prepares statements in one client while another's transaction is open, and waits
        // for that alone: with fewer servers than clients it would wait for ever.
        let pooler = start(&database, if mode == "prepared" { CLIENTS } else { 2 });
        let dir = temp_dir(&postgres.socket_dir, "pgbench");
        direct.batch_execute("SELECT pg_stat_statements_reset()").unwrap();
        let script = format!(
            "BEGIN;\nSELECT 'one of {mode}', 7::text;\nSELECT 'two of {mode}', 8::text;\nEND;\n\
             SELECT 'three of {mode}', 9::text;\n"
        );
        let latencies = pgbench(&pooler, &script, mode, &dir);
        let runs = CLIENTS * EACH;
        assert_eq!(latencies.len() as u64, runs);
        let mut console = console(&pooler);
        let totals = row(&mut console, "SHOW STATS_TOTALS", &[]);
        // To prepare a statement is a query of its own; two of the five are prepared outside of a
        // transaction.
        let prepared = if mode == "prepared" { CLIENTS } else { 0 };
        assert_eq!(totals("xact_count"), 2 * (runs + prepared), "{mode}");
        assert_eq!(totals("query_count"), 5 * (runs + prepared), "{mode}");
        assert_eq!(totals("client_login_count"), CLIENTS + 1, "pgbench looks first, {mode}");
        let parsed = totals("client_parse_count");
        // Statements without a name are not counted.
        let (parses, binds) = if mode == "prepared" { (5 * CLIENTS, 5 * runs) } else { (0, 0) };
        assert_eq!((parsed, totals("bind_count")), (parses, binds), "{mode}");
        assert!(totals("xact_time") <= latencies.iter().sum::<u64>(), "{mode}");
        assert!(totals("query_time") <= totals("xact_time"), "{mode}");
        // PostgreSQL counts a statement when its transaction's work is done, before it answers.
        let calls = "SELECT sum(calls)::bigint FROM pg_stat_statements WHERE query LIKE 'SELECT $1%' \
                     AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let calls: i64 = direct.query_one(calls, &[]).unwrap().get(0);
        assert_eq!(u64::try_from(calls), Ok(3 * runs), "{mode}");
        fs::remove_dir_all(&dir).unwrap();
    }
}

/// The histograms' quantiles stand in the bucket of pgbench's own, or beside it.
#[test]
fn quantiles_agree_with_pgbenchs_log() {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    let pooler = start(&database, 20);
    let dir = temp_dir(&postgres.socket_dir, "pgbench");
    let script = "\\set ms random_exponential(2, 200, 4)\nSELECT pg_sleep(:ms / 1000.0);\n";
    let latencies = pgbench(&pooler, script, "simple", &dir);
    let mut console = console(&pooler);
    let query = row(&mut console, "SHOW HISTOGRAMS", &[("time", "query")]);
    for (name, per_mille) in [("p50", 500), ("p95", 950), ("p99", 990)] {
        let rank = (latencies.len() * per_mille).div_ceil(1000).max(1);
        let theirs = bucket(latencies[rank - 1]);
        let ours = bucket(query(&format!("{name}_us")));
        assert!(theirs.abs_diff(ours) <= 1, "{name}: bucket {ours}, pgbench's {theirs}");
    }
    wait_for("the pool to be idle", || row(&mut console, "SHOW POOLS", &[])("sv_active") == 0);
    fs::remove_dir_all(&dir).unwrap();
}

/// Each bucket goes twice as far as the one before.
fn bucket(microseconds: u64) -> u32 {
    microseconds.max(1).next_power_of_two().trailing_zeros()
}
