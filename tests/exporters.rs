//! What monitoring tools read from the console, in the way they do it.

mod common;

use common::{Pooler, Postgres};
use postgres::SimpleQueryMessage::{self, Row};
use std::collections::BTreeMap;

const COLUMNS: &str = include_str!("data/show-columns.tsv");

/// A pooler that has something to show: a pool, clients that work and one that is idle.
fn start(version: &str) -> (Pooler, postgres::Client) {
    let pooler = Pooler::start(|ini| {
        ini.set("compat_version", version).set("stats_users", "carol");
        ini.set("max_user_connections", "50");
    });
    let mut client = pooler.client();
    client.batch_execute("BEGIN; SELECT 1").unwrap();
    (pooler, client)
}

fn console(pooler: &Pooler, user: &str) -> postgres::Client {
    pooler.config(user, "pgbouncer").connect(postgres::NoTls).expect("the console lets it in")
}

/// The rows of a command of the console, by the names of the columns.
fn show(console: &mut postgres::Client, command: &str) -> Vec<BTreeMap<String, Option<String>>> {
    let rows = console.simple_query(command).unwrap_or_else(|e| panic!("{command}: {e}"));
    let row = |message: SimpleQueryMessage| match message {
        Row(row) => {
            let names = row.columns().iter().map(|column| column.name().to_owned());
            let cells = (0..row.len()).map(|at| row.get(at).map(str::to_owned));
            Some(names.zip(cells).collect())
        }
        _ => None,
    };
    rows.into_iter().filter_map(row).collect()
}

/// The columns of a table in that version, with the types that a view gives them.
fn columns(table: &str, version: &str) -> Vec<(String, &'static str)> {
    let rows = COLUMNS.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    rows.filter(|row| row[0] == table)
        .filter(|row| version != "1.25" || !row[2].contains("client_login_count"))
        .map(|row| {
            let kind = match (row[2], row[3]) {
                ("connect_time" | "request_time", _) => "timestamptz",
                (_, "1700") => "numeric",
                (_, "23") => "int",
                (_, "20") => "bigint",
                (_, "17") => "bytea",
                _ => "text",
            };
            (row[2].to_owned(), kind)
        })
        .collect()
}

/// pgbouncer_fdw reads each table through dblink, with a column list that has to fit exactly.
#[test]
fn views_over_dblink_fit_both_versions() {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    let mut direct = postgres.client(&database);
    direct.batch_execute("CREATE EXTENSION dblink").unwrap();
    for (version, stats, clients) in [("1.26", 25, 21), ("1.25", 23, 21)] {
        let (pooler, _client) = start(version);
        let connect = format!("host=127.0.0.1 port={} user=carol dbname=pgbouncer", pooler.port);
        let tables = [
            "CLIENTS",
            "SERVERS",
            "POOLS",
            "DATABASES",
            "LISTS",
            "CONFIG",
            "STATS",
            "STATS_TOTALS",
            "STATS_AVERAGES",
            "SOCKETS",
            "USERS",
            "DNS_HOSTS",
            "DNS_ZONES",
            "VERSION",
        ];
        for table in tables {
            let columns = columns(table, version);
            match table {
                "STATS" => assert_eq!(columns.len(), stats),
                "CLIENTS" | "SERVERS" => assert_eq!(columns.len(), clients),
                _ => {}
            }
            let list: Vec<String> =
                columns.iter().map(|(name, kind)| format!("\"{name}\" {kind}")).collect();
            let sql = format!(
                "SELECT count(t) FROM dblink('{connect}', 'SHOW {table};') AS t({})",
                list.join(", ")
            );
            let count: i64 =
                direct.query_one(&sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0);
            assert!(count > 0 || table.starts_with("DNS"), "{table} of {version} is empty");
        }
    }
}

/// pgbouncer_fdw and Datadog take the version apart.
#[test]
fn the_version_is_one_that_tools_know() {
    for (version, minor) in [("1.26", 26), ("1.25", 25)] {
        let (pooler, _client) = start(version);
        let rows = show(&mut console(&pooler, "carol"), "SHOW VERSION;");
        assert_eq!(rows.len(), 1);
        let text = rows[0]["version"].clone().unwrap();
        let rest = text.strip_prefix("PgBouncer ").expect("the name that they expect");
        let numbers: Vec<u32> =
            rest.split(['.', ' ']).take(3).map(|number| number.parse().unwrap()).collect();
        assert_eq!((numbers[0], numbers[1]), (1, minor), "{text}");
        assert_eq!(numbers.len(), 3, "{text}");
    }
}

/// prometheus-community's exporter: one fresh connection for each scrape, and these in turn.
#[test]
fn a_scrape_of_the_prometheus_exporter() {
    for version in ["1.26", "1.25"] {
        let (pooler, _client) = start(version);
        for _ in 0..3 {
            let mut console = console(&pooler, "carol");
            assert!(!show(&mut console, "SHOW STATS;").is_empty());
            assert_eq!(show(&mut console, "SHOW VERSION;").len(), 1);
            for row in show(&mut console, "SHOW LISTS;") {
                assert_eq!(row.len(), 2);
                row["items"].as_ref().unwrap().parse::<i64>().unwrap();
            }
            let config = show(&mut console, "SHOW CONFIG;");
            for row in &config {
                assert!([3, 4].contains(&row.len()));
                assert!(matches!(row["changeable"].as_deref(), Some("yes" | "no")), "{row:?}");
            }
            for key in ["max_client_conn", "max_user_connections"] {
                let row = config.iter().find(|row| row["key"].as_deref() == Some(key)).unwrap();
                row["value"].as_ref().unwrap().parse::<u32>().unwrap();
            }
            for row in show(&mut console, "SHOW CLIENTS;") {
                for key in ["database", "user", "state", "application_name"] {
                    assert!(row[key].is_some(), "{key}: {row:?}");
                }
            }
            let databases = show(&mut console, "SHOW DATABASES;");
            assert!(databases.iter().any(|row| row["name"].as_deref() == Some("app")));
            for row in show(&mut console, "SHOW STATS_TOTALS;") {
                for key in [
                    "query_count",
                    "query_time",
                    "bytes_received",
                    "bytes_sent",
                    "wait_time",
                    "xact_count",
                    "xact_time",
                    "client_parse_count",
                    "server_parse_count",
                    "bind_count",
                    "server_assignment_count",
                ] {
                    row[key].as_ref().unwrap().parse::<u64>().unwrap();
                }
            }
            for row in show(&mut console, "SHOW POOLS;") {
                for key in ["cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "maxwait"]
                {
                    row[key].as_ref().unwrap().parse::<u64>().unwrap();
                }
            }
        }
    }
}

/// CloudNativePG's exporter reads by position and knows these names only.
#[test]
fn what_cloudnative_pg_counts() {
    let (pooler, _client) = start("1.25");
    let mut console = console(&pooler, "carol");
    let stats = console.simple_query("SHOW STATS;").unwrap();
    let [_, Row(row), ..] = &stats[..] else { panic!("no row: {stats:?}") };
    assert_eq!(row.len(), 23);
    assert!(row.get(0).is_some());
    for at in 1..23 {
        row.get(at).unwrap().parse::<i64>().unwrap();
    }
    for row in show(&mut console, "SHOW POOLS;") {
        assert_eq!(row.len(), 17);
        assert_eq!(row["load_balance_hosts"], None, "of one host");
    }
    let known = [
        "databases",
        "users",
        "pools",
        "free_clients",
        "used_clients",
        "login_clients",
        "free_servers",
        "used_servers",
        "dns_names",
        "dns_zones",
        "dns_queries",
        "dns_pending",
        "peers",
        "peer_pools",
    ];
    for row in show(&mut console, "SHOW LISTS;") {
        let list = row["list"].clone().unwrap();
        assert!(known.contains(&list.as_str()), "{list}");
    }
}

/// Datadog's check: the console's own row is dropped by its name, times are parsed.
#[test]
fn what_datadog_reads() {
    for version in ["1.26", "1.25"] {
        let (pooler, _client) = start(version);
        let mut console = console(&pooler, "carol");
        for command in ["SHOW STATS", "SHOW POOLS", "SHOW DATABASES"] {
            let rows = show(&mut console, command);
            let key = if command == "SHOW DATABASES" { "name" } else { "database" };
            assert!(rows.iter().any(|row| row[key].as_deref() == Some("app")), "{command}");
            assert!(rows.iter().any(|row| row[key].as_deref() == Some("pgbouncer")), "{command}");
        }
        for command in ["SHOW CLIENTS", "SHOW SERVERS"] {
            for row in show(&mut console, command) {
                for key in ["connect_time", "request_time"] {
                    assert_time(row[key].as_deref().unwrap_or_default());
                }
            }
        }
    }
}

/// `2026-11-21 07:40:00 UTC`.
fn assert_time(text: &str) {
    let shape: String =
        text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).take(20).collect();
    assert_eq!(shape, "0000-00-00 00:00:00 ", "{text}");
    let zone = &text[20..];
    assert!(
        !zone.is_empty() && zone.chars().all(|c| c.is_ascii_alphanumeric() || "+-".contains(c))
    );
}

/// telegraf and lib/pq: the labels' types are text and integers, numbers have no decimals.
#[test]
fn numbers_have_no_decimals() {
    for version in ["1.26", "1.25"] {
        let (pooler, _client) = start(version);
        let mut console = console(&pooler, "carol");
        for (command, table) in [("show stats", "STATS"), ("show pools", "POOLS")] {
            for row in show(&mut console, command) {
                for (name, kind) in columns(table, version) {
                    if kind != "text" {
                        let cell = row[&name].clone().unwrap();
                        cell.parse::<i64>().unwrap_or_else(|_| panic!("{name} is {cell}"));
                    }
                }
            }
        }
    }
}

/// What drivers say when they connect, and pgbouncerhero's reload.
#[test]
fn drivers_probe_and_people_reload() {
    let (pooler, _client) = start("1.26");
    let mut carol = console(&pooler, "carol");
    for (probe, answer) in [
        ("SHOW client_encoding", "UTF-8"),
        ("show datestyle;", "ISO"),
        ("select timezone", "GMT"),
        ("SHOW standard_conforming_strings", "on"),
    ] {
        let rows = show(&mut carol, probe);
        let cells: Vec<_> = rows.iter().flat_map(|row| row.values().flatten()).collect();
        assert_eq!(cells, [answer], "{probe}");
    }
    let refusal = carol.simple_query("RELOAD").unwrap_err();
    assert_eq!(refusal.as_db_error().unwrap().message(), "admin access needed");
    console(&pooler, "postgres").simple_query("RELOAD").unwrap();
}
