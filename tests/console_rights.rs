//! Reliability 4, CVE-2026-6667: who may give which order on the console, over the wire. What
//! is expected is the contract's (console.md §3.1, §4), word for word, and not taken from our table.

mod common;

use common::raw::{self, Message, Startup, tags};
use common::{Pooler, Raw};

/// What the contract lets happen to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// Anybody who is in may give it.
    All,
    /// Users in `stats_users` may not.
    Admins,
    /// Nobody: there is no such order.
    Nobody,
}

/// An order, who may give it, and what an administrator is told: a tag, or an error. They come in an
/// order in which each of them succeeds.
const ORDERS: [(&str, May, &str); 66] = [
    ("SHOW HELP", May::All, "SHOW"),
    ("SHOW CONFIG", May::All, "SHOW"),
    ("SHOW DATABASES", May::All, "SHOW"),
    ("SHOW POOLS", May::All, "SHOW"),
    ("SHOW CLIENTS", May::All, "SHOW"),
    ("SHOW SERVERS", May::All, "SHOW"),
    ("SHOW USERS", May::All, "SHOW"),
    ("SHOW VERSION", May::All, "SHOW"),
    ("SHOW PEERS", May::All, "SHOW"),
    ("SHOW PEER_POOLS", May::All, "SHOW"),
    ("SHOW FDS", May::Admins, "SHOW"),
    ("show fds;", May::Admins, "SHOW"),
    ("SELECT FDS", May::Admins, "SHOW"),
    ("SHOW \"fds\"", May::Admins, "SHOW"),
    ("SHOW SOCKETS", May::All, "SHOW"),
    ("SHOW ACTIVE_SOCKETS", May::All, "SHOW"),
    ("SHOW LISTS", May::All, "SHOW"),
    ("SHOW MEM", May::All, "SHOW"),
    ("SHOW STATE", May::All, "SHOW"),
    ("SHOW DNS_HOSTS", May::All, "SHOW"),
    ("SHOW DNS_ZONES", May::All, "SHOW"),
    ("SHOW STATS", May::All, "SHOW"),
    ("SHOW STATS_TOTALS", May::All, "SHOW"),
    ("SHOW STATS_AVERAGES", May::All, "SHOW"),
    ("SHOW TOTALS", May::All, "SHOW"),
    ("SELECT VERSION", May::All, "SHOW"),
    ("SHOW client_encoding", May::All, "SHOW"),
    ("SHOW default_transaction_isolation", May::All, "SHOW"),
    ("SHOW standard_conforming_strings", May::All, "SHOW"),
    ("SHOW datestyle", May::All, "SHOW"),
    ("SHOW timezone", May::All, "SHOW"),
    ("SET client_encoding = 'UTF8'", May::All, "SET"),
    ("SET default_transaction_isolation TO 'serializable'", May::All, "SET"),
    ("SET standard_conforming_strings = on", May::All, "SET"),
    ("SET datestyle = 'ISO'", May::All, "SET"),
    ("SET TimeZone = 'UTC'", May::All, "SET"),
    ("SET server_lifetime = '77'", May::Admins, "SET server_lifetime=77"),
    ("SET nonsense = 1", May::Admins, "SET failed"),
    ("SET application_name = 'x'", May::Admins, "SET failed"),
    ("RELOAD", May::Admins, "RELOAD"),
    ("RELOAD app", May::Nobody, ""),
    ("PAUSE app", May::Admins, "PAUSE"),
    ("\"PAUSE\" nosuch", May::Admins, "no such database: nosuch"),
    ("RESUME app", May::Admins, "RESUME"),
    ("RESUME", May::Admins, "pooler is not paused/suspended"),
    ("PAUSE", May::Admins, "PAUSE"),
    ("RESUME;", May::Admins, "RESUME"),
    ("DISABLE app", May::Admins, "DISABLE"),
    ("ENABLE app", May::Admins, "ENABLE"),
    ("DISABLE", May::Admins, "a database is required"),
    ("ENABLE", May::Admins, "a database is required"),
    ("RECONNECT", May::Admins, "RECONNECT"),
    ("RECONNECT app", May::Admins, "RECONNECT"),
    ("WAIT_CLOSE", May::Admins, "WAIT_CLOSE"),
    ("WAIT_CLOSE app", May::Admins, "WAIT_CLOSE"),
    ("KILL_CLIENT", May::Admins, "invalid client pointer supplied"),
    ("KILL_CLIENT 999999", May::Admins, "client not found"),
    ("SUSPEND app", May::Nobody, ""),
    ("SUSPEND", May::Admins, "SUSPEND"),
    ("RESUME ", May::Admins, "RESUME"),
    ("SHUTDOWN nonsense", May::Nobody, ""),
    ("KILL app", May::Admins, "KILL"),
    ("KILL", May::Admins, "KILL"),
    ("BEGIN", May::Nobody, ""),
    ("SHOW", May::Nobody, ""),
    ("SHOW search_path", May::Nobody, ""),
];

/// Those that end the pooler; an administrator's are tried one by one.
const ENDS: [(&str, Option<&str>); 3] = [
    ("SHUTDOWN", None),
    ("SHUTDOWN WAIT_FOR_SERVERS", Some("SHUTDOWN")),
    ("shutdown wait_for_clients;", Some("SHUTDOWN")),
];

fn start() -> Pooler {
    Pooler::start(|ini| {
        ini.set("admin_users", "postgres").set("stats_users", "carol");
    })
}

fn on_console(pooler: &Pooler, user: &str) -> Raw {
    pooler.raw_with(Startup::v3().param("user", user).param("database", "pgbouncer"))
}

/// The protocol in which an order is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Simple,
    Extended,
}

const WAYS: [Way; 2] = [Way::Simple, Way::Extended];

fn order(sql: &str, way: Way) -> Vec<u8> {
    let extended =
        || [raw::parse("", sql), raw::bind("", &[]), raw::execute(0), raw::sync()].concat();
    match way {
        Way::Simple => raw::query(sql),
        Way::Extended => extended(),
    }
}

/// What is told in the end: the tag, or the words of the error.
fn outcome(answer: &[Message]) -> String {
    assert_eq!(answer.last().map(|last| last.tag), Some(b'Z'), "{}", tags(answer));
    let of = |tag: u8| answer.iter().find(|message| message.tag == tag);
    match (of(b'E'), of(b'C')) {
        (Some(error), None) => error.field('M'),
        (None, Some(complete)) => raw::c_strings(&complete.body).remove(0),
        _ => panic!("{}", tags(answer)),
    }
}

fn give(console: &mut Raw, sql: &str, way: Way) -> String {
    console.send(&order(sql, way));
    outcome(&console.until_ready())
}

fn no_such(sql: &str) -> String {
    format!("invalid command '{sql}', use SHOW HELP;")
}

/// Whether anything has been changed by orders: settings, databases, and the state of it all.
fn state(pooler: &Pooler) -> Vec<String> {
    let mut console = on_console(pooler, "postgres");
    let mut rows = Vec::new();
    for table in ["SHOW STATE", "SHOW DATABASES", "SHOW CONFIG", "SHOW SERVERS"] {
        let answer = console.query(table);
        let found = answer.iter().filter(|message| message.tag == b'D').map(Message::columns);
        // Times and waits of a server are its own.
        rows.extend(
            found.map(|row| if table == "SHOW SERVERS" { row[4].clone() } else { row.join("|") }),
        );
    }
    rows
}

#[test]
fn an_administrator_may_give_every_order() {
    for way in WAYS {
        let pooler = start();
        pooler.raw("alice").query("SELECT 1");
        let mut console = on_console(&pooler, "postgres");
        for (sql, may, told) in ORDERS {
            let expected = if may == May::Nobody { no_such(sql) } else { told.to_owned() };
            assert_eq!(give(&mut console, sql, way), expected, "{sql} {way:?}");
        }
    }
    for way in WAYS {
        for (sql, told) in ENDS {
            let mut pooler = start();
            let mut console = on_console(&pooler, "postgres");
            console.send(&order(sql, way));
            if let Some(told) = told {
                assert_eq!(outcome(&console.until_ready()), told, "{sql} {way:?}");
                console.send(&raw::terminate());
            }
            console.until_end();
            assert!(pooler.wait_for_exit().success(), "{sql} {way:?}");
        }
    }
}

/// Nothing but looking: no order that is refused leaves a trace.
#[test]
fn whoever_may_look_may_do_nothing_else() {
    let pooler = start();
    let mut client = pooler.raw("alice");
    client.query("SELECT 1");
    let clients = pooler.table("SHOW CLIENTS");
    let id = clients.iter().find(|row| row["user"] == "alice").expect("it is there")["id"].clone();
    let kill = format!("KILL_CLIENT {id}");
    let before = state(&pooler);
    for way in WAYS {
        let mut console = on_console(&pooler, "carol");
        for (sql, may, told) in ORDERS {
            let expected = match may {
                May::All => told.to_owned(),
                May::Admins => "admin access needed".to_owned(),
                May::Nobody => no_such(sql),
            };
            assert_eq!(give(&mut console, sql, way), expected, "{sql} {way:?}");
        }
        for sql in ENDS.map(|(sql, _)| sql).into_iter().chain([&kill[..]]) {
            assert_eq!(give(&mut console, sql, way), "admin access needed", "{sql} {way:?}");
        }
    }
    assert_eq!(state(&pooler), before);
    let log = pooler.log();
    assert!(!log.contains(" command issued"), "{log}");
    assert_eq!(client.value("SELECT 42"), "42");
}

/// Who is in neither list is refused before he can say anything, and so is who is not known at all;
/// what they send along with their Startup is not carried out.
#[test]
fn who_is_in_no_list_gives_no_orders() {
    let pooler = start();
    let mut client = pooler.raw("alice");
    client.query("SELECT 1");
    let before = state(&pooler);
    for (user, words) in [("bob", "not allowed"), ("nobody", "\"trust\" authentication failed")] {
        for way in WAYS {
            let orders = ORDERS.iter().map(|(sql, ..)| *sql).chain(ENDS.map(|(sql, _)| sql));
            for sql in orders {
                let startup = Startup::v3().param("user", user).param("database", "pgbouncer");
                let mut refused = pooler.unnamed();
                refused.send(&[startup.bytes(), order(sql, way)].concat());
                refused.expect_fatal(words);
            }
        }
    }
    assert_eq!(state(&pooler), before);
    let log = pooler.log();
    assert!(!log.contains(" command issued"), "{log}");
    assert_eq!(client.value("SELECT 42"), "42");
}

/// Every order that the console itself tells of is tried here.
#[test]
fn no_order_is_left_out() {
    let pooler = start();
    let help = on_console(&pooler, "carol").query("SHOW HELP").swap_remove(0).field('D');
    let tried = ORDERS.iter().map(|(sql, ..)| *sql).chain(ENDS.map(|(sql, _)| sql));
    let tried: Vec<String> = tried.map(|sql| sql.trim_end_matches(';').to_uppercase()).collect();
    let is_tried = |order: &str| tried.iter().any(|sql| sql.starts_with(order));
    for line in help.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let verb = words.next().expect("a verb");
        assert!(is_tried(verb), "{verb}");
        let topics = words.next().filter(|_| ["SHOW", "SHUTDOWN"].contains(&verb)).unwrap_or("");
        // Tables of our own are no business of the contract's.
        let ours = ["HOLDERS", "HOSTS", "WAITS", "ERRORS", "HISTOGRAMS", "RINGS", ""];
        for topic in topics.split('|').filter(|topic| !ours.contains(topic)) {
            assert!(is_tried(&format!("{verb} {topic}")), "{verb} {topic}");
        }
    }
}
