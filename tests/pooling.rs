//! Who works for whom: pool modes, release, queues, deaths on either side, settings that travel.

mod common;

use common::raw::{self, Message, tags};
use common::{Pooler, Postgres, Raw, Startup, wait_for};
use std::time::Duration;

const SIZES: [u32; 3] = [1, 2, 20];

fn pooler(mode: &str, size: u32) -> Pooler {
    Pooler::start(|ini| {
        ini.set("pool_mode", mode).set("default_pool_size", &size.to_string());
    })
}

fn named(pooler: &Pooler, application: &str) -> Raw {
    let startup = Startup::v3().param("user", "alice").param("database", "app");
    pooler.raw_with(startup.param("application_name", application))
}

/// Whether PostgreSQL still has this backend.
fn alive(backend: i32) -> bool {
    let mut client = Postgres::shared().client("app");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
    client.query_one(sql, &[&backend]).expect("pg_stat_activity").get::<_, i64>(0) > 0
}

fn terminate_backend(backend: i32) {
    let mut client = Postgres::shared().client("app");
    client.execute("SELECT pg_terminate_backend($1)", &[&backend]).expect("pg_terminate_backend");
}

/// Waits until PostgreSQL has a backend that runs a query with this text in it.
fn wait_until_running(part: &str) {
    let mut client = Postgres::shared().client("app");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' \
               AND strpos(query, $1) > 0 AND pid <> pg_backend_pid()";
    wait_for("the query to run", || {
        client.query_one(sql, &[&part]).expect("pg_stat_activity").get::<_, i64>(0) > 0
    });
}

/// The pooler's own last word to a client whose server is lost, behind what the server said.
fn expect_crash_notice(client: &mut Raw) {
    client.expect_fatal("server conn crashed?");
}

fn error_codes(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|m| m.tag == b'E').map(|m| m.field('C')).collect()
}

#[test]
fn transaction_mode_shares_a_server_between_transactions() {
    let pooler = pooler("transaction", 1);
    let mut clients: Vec<Raw> = (0..5).map(|_| pooler.raw("alice")).collect();
    let backend = clients[0].backend_pid();
    for round in 0..3 {
        for client in &mut clients {
            assert_eq!(client.backend_pid(), backend, "round {round}");
        }
    }
}

#[test]
fn a_transaction_keeps_its_server_to_its_end() {
    let pooler = pooler("transaction", 2);
    let (mut one, mut two) = (pooler.raw("alice"), pooler.raw("alice"));
    for end in ["COMMIT", "ROLLBACK"] {
        assert_eq!(tags(&one.query("BEGIN")), "CZ");
        let backend = one.backend_pid();
        assert_eq!(tags(&two.query("BEGIN")), "CZ");
        let other = two.backend_pid();
        assert_ne!(backend, other);
        for _ in 0..3 {
            assert_eq!(one.backend_pid(), backend);
            assert_eq!(two.backend_pid(), other);
        }
        // A failed transaction is one all the same.
        assert_eq!(tags(&one.query("SELECT 1/0")), "EZ");
        assert_eq!(one.query("SELECT 1").last().expect("Z").body, b"E");
        one.query(end);
        two.query(end);
    }
}

#[test]
fn session_mode_keeps_the_server_until_the_client_leaves() {
    for size in SIZES {
        let pooler = pooler("session", size);
        let mut client = pooler.raw("alice");
        let backend = client.backend_pid();
        client.query("CREATE TEMP TABLE mine (x int)");
        client.query("SET work_mem = '77MB'");
        for _ in 0..5 {
            assert_eq!(client.backend_pid(), backend);
        }
        assert_eq!(client.value("SHOW work_mem"), "77MB");
        client.send(&raw::terminate());
        client.expect_end();
        // The reset query has run before anybody else gets this server.
        let mut next = pooler.raw("alice");
        wait_for("the server to come back clean", || {
            let backend_again = next.backend_pid();
            let clean = next.value("SHOW work_mem") != "77MB";
            assert!(clean, "session state leaked");
            assert_eq!(next.value("SELECT to_regclass('mine') IS NULL"), "t");
            backend_again == backend || {
                next = pooler.raw("alice");
                false
            }
        });
    }
}

#[test]
fn session_mode_gives_each_client_a_server_of_its_own() {
    let pooler = pooler("session", 20);
    let mut clients: Vec<Raw> = (0..20).map(|_| pooler.raw("alice")).collect();
    let mut backends: Vec<i32> = clients.iter_mut().map(Raw::backend_pid).collect();
    backends.sort_unstable();
    backends.dedup();
    assert_eq!(backends.len(), 20);
}

#[test]
fn transaction_mode_does_not_reset_unless_told_to() {
    for (always, expected) in [("0", "77MB"), ("1", "4MB")] {
        let pooler = Pooler::start(|ini| {
            ini.set("default_pool_size", "1").set("server_reset_query_always", always);
        });
        let mut client = pooler.raw("alice");
        client.query("SET work_mem = '77MB'");
        assert_eq!(client.value("SHOW work_mem"), expected);
    }
}

#[test]
fn a_reset_query_of_ones_own_is_used() {
    let pooler = Pooler::start(|ini| {
        ini.set("pool_mode", "session").set("default_pool_size", "1");
        ini.set("server_reset_query", "SET work_mem = '55MB'");
    });
    let mut client = pooler.raw("alice");
    client.query("SET work_mem = '77MB'");
    client.send(&raw::terminate());
    client.expect_end();
    assert_eq!(pooler.raw("alice").value("SHOW work_mem"), "55MB");
}

#[test]
fn a_released_server_serves_all_sizes_and_modes() {
    for mode in ["session", "transaction", "statement"] {
        for size in SIZES {
            let pooler = pooler(mode, size);
            std::thread::scope(|scope| {
                for worker in 0..8 {
                    let pooler = &pooler;
                    scope.spawn(move || {
                        for turn in 0..10 {
                            let mut client = pooler.raw("alice");
                            let expected = (worker * 100 + turn).to_string();
                            let sql = format!("SELECT {expected}");
                            assert_eq!(client.value(&sql), expected, "{mode}, {size}");
                            client.send(&raw::terminate());
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn no_more_servers_than_pool_size_are_opened() {
    for size in SIZES {
        let database = Postgres::shared().fresh_database();
        let port = Postgres::shared().port;
        let pooler = Pooler::start(|ini| {
            let connect = format!("host=127.0.0.1 port={port} dbname={database} pool_size={size}");
            ini.database("app", &connect).set("default_pool_size", "50");
        });
        std::thread::scope(|scope| {
            for _ in 0..size + 10 {
                scope.spawn(|| {
                    let mut client = pooler.raw("alice");
                    for _ in 0..3 {
                        client.value("SELECT pg_sleep(0.02)");
                    }
                });
            }
        });
        let mut direct = Postgres::shared().client("postgres");
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
        let servers: i64 = direct.query_one(sql, &[&database]).expect("count").get(0);
        assert!((1..=i64::from(size)).contains(&servers), "{servers} servers for a size of {size}");
    }
}

#[test]
fn waiting_clients_are_served_in_the_order_they_came() {
    let pooler = pooler("transaction", 1);
    let mut holder = pooler.raw("alice");
    holder.query("CREATE TEMP SEQUENCE turn");
    let mut waiting: Vec<Raw> = (0..6).map(|_| pooler.raw("alice")).collect();
    holder.query("BEGIN");
    for client in &mut waiting {
        client.send(&raw::query("SELECT nextval('turn')"));
        // There is no sign from outside that it queues; order of arrival is all we need, and a
        // moment of silence also shows that nobody is served while the holder works.
        assert!(client.is_quiet_for(Duration::from_millis(50)), "served beside the holder");
    }
    holder.query("COMMIT");
    for (place, client) in (1..).zip(&mut waiting) {
        let answer = client.until_ready();
        let row = answer.iter().find(|m| m.tag == b'D').expect("a row");
        assert_eq!(row.columns(), [place.to_string()], "out of turn");
    }
}

#[test]
fn statement_mode_refuses_transactions_over_several_messages() {
    for size in SIZES {
        let pooler = pooler("statement", size);
        let mut client = pooler.raw("alice");
        client.send(&raw::query("BEGIN"));
        let messages = client.until_end();
        // An implementation may deliver the CommandComplete before, or lose it.
        let last = messages.last().expect("an error");
        assert_eq!(last.field('M'), "transaction blocks not allowed in statement pooling mode");
        assert_eq!((last.field('S'), last.field('C')), ("FATAL".into(), "08P01".into()));
        let mut other = pooler.raw("alice");
        let answer = other.query("BEGIN; SELECT 1; COMMIT");
        assert_eq!(tags(&answer), "CTDCCZ", "one message may hold a whole transaction");
        assert_eq!(other.value("SELECT 42"), "42");
    }
}

#[test]
fn pipelined_messages_hold_the_server_until_all_are_answered() {
    let pooler = pooler("transaction", 1);
    let mut one = pooler.raw("alice");
    let mut two = pooler.raw("alice");
    one.query("CREATE TEMP SEQUENCE step");
    let step = raw::query("SELECT nextval('step')");
    one.send(&[&step[..], &step, &step].concat());
    one.expect_tags("TDCZTDCZTDCZ");
    assert_eq!(two.value("SELECT nextval('step')"), "4", "the server was released");
}

#[test]
fn flush_takes_a_server_and_keeps_it() {
    let pooler = pooler("transaction", 1);
    let mut one = pooler.raw("alice");
    let mut two = pooler.raw("alice");
    one.send(
        &[raw::parse("", "SELECT 1"), raw::bind("", &[]), raw::execute(0), raw::flush()].concat(),
    );
    one.expect_tags("12DC");
    two.send(&raw::query("SELECT 2"));
    assert!(two.is_quiet_for(Duration::from_millis(100)), "served by a server that is in use");
    one.send(&raw::sync());
    one.expect_tags("Z");
    two.expect_tags("TDCZ");
}

#[test]
fn a_client_that_dies_idle_leaves_the_server_to_others() {
    for (mode, clean) in [("transaction", true), ("transaction", false), ("session", true)] {
        let pooler = pooler(mode, 1);
        let mut client = pooler.raw("alice");
        let backend = client.backend_pid();
        if clean {
            client.send(&raw::terminate());
        }
        drop(client);
        assert_eq!(pooler.raw("alice").backend_pid(), backend, "{mode}, {clean}");
    }
}

#[test]
fn a_client_that_dies_in_a_transaction_takes_the_server_along() {
    for mode in ["transaction", "session"] {
        for clean in [true, false] {
            let pooler = pooler(mode, 1);
            let mut client = pooler.raw("alice");
            client.query("BEGIN");
            let backend = client.backend_pid();
            if clean {
                client.send(&raw::terminate());
            }
            drop(client);
            wait_for("the server to be closed", || !alive(backend));
            assert_ne!(pooler.raw("alice").backend_pid(), backend);
            let log = pooler.log();
            assert!(log.contains("client disconnect while server was not ready"), "{log}");
        }
    }
}

#[test]
fn a_client_that_dies_in_a_query_takes_the_server_along() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    let backend = client.backend_pid();
    client.send(&raw::query("SELECT pg_sleep(3), 'death in a query'"));
    wait_until_running("death in a query'");
    drop(client);
    // The query itself goes on; the place in the pool is free again at once.
    assert_ne!(pooler.raw("alice").backend_pid(), backend);
}

#[test]
fn a_client_that_dies_in_copy_takes_the_server_along() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    let backend = client.backend_pid();
    client.query("CREATE TEMP TABLE sink (t text)");
    client.send(&raw::query("COPY sink FROM STDIN"));
    client.expect_tags("G");
    client.send(&raw::copy_data(b"half a line"));
    drop(client);
    wait_for("the server to be closed", || !alive(backend));
    assert_ne!(pooler.raw("alice").backend_pid(), backend);
}

#[test]
fn a_client_that_dies_with_replies_owed_takes_the_server_along() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    let backend = client.backend_pid();
    client.send(&[raw::parse("", "SELECT 1"), raw::flush()].concat());
    client.expect_tags("1");
    drop(client);
    wait_for("the server to be closed", || !alive(backend));
    assert_ne!(pooler.raw("alice").backend_pid(), backend);
}

#[test]
fn a_client_that_dies_in_the_queue_is_no_burden() {
    let pooler = pooler("transaction", 1);
    let mut holder = pooler.raw("alice");
    holder.query("BEGIN");
    let mut leaving: Vec<Raw> = (0..3).map(|_| pooler.raw("alice")).collect();
    for client in &mut leaving {
        client.send(&raw::query("SELECT 1"));
        assert!(client.is_quiet_for(Duration::from_millis(20)));
    }
    drop(leaving);
    let mut staying = pooler.raw("alice");
    staying.send(&raw::query("SELECT 2"));
    assert!(staying.is_quiet_for(Duration::from_millis(20)));
    holder.query("COMMIT");
    staying.expect_tags("TDCZ");
}

#[test]
fn a_server_that_dies_in_a_query_is_reported_in_both_voices() {
    for mode in ["transaction", "session"] {
        for size in SIZES {
            let pooler = pooler(mode, size);
            let mut client = pooler.raw("alice");
            let backend = client.backend_pid();
            let mark = format!("dies of {}", pooler.port);
            client.send(&raw::query(&format!("SELECT pg_sleep(60), '{mark}'")));
            wait_until_running(&mark);
            terminate_backend(backend);
            let mut voice = client.message();
            while voice.tag != b'E' {
                voice = client.message();
            }
            assert_eq!(voice.field('C'), "57P01");
            expect_crash_notice(&mut client);
            pooler.assert_serves();
        }
    }
}

#[test]
fn a_server_that_dies_in_an_idle_transaction_is_reported() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    client.query("BEGIN");
    let backend = client.backend_pid();
    terminate_backend(backend);
    assert_eq!(error_codes(&[client.message()]), ["57P01"]);
    expect_crash_notice(&mut client);
    pooler.assert_serves();
}

#[test]
fn a_server_that_dies_under_an_idle_session_is_reported() {
    let pooler = pooler("session", 1);
    let mut client = pooler.raw("alice");
    let backend = client.backend_pid();
    terminate_backend(backend);
    assert_eq!(error_codes(&[client.message()]), ["57P01"]);
    expect_crash_notice(&mut client);
    pooler.assert_serves();
}

#[test]
fn a_server_that_dies_unlinked_is_noticed_by_nobody() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    let backend = client.backend_pid();
    terminate_backend(backend);
    wait_for("the backend to go", || !alive(backend));
    // Its end may still be on the way when we ask; a server that says goodbye is never handed out
    // again once that was read, so a moment later all is well.
    assert!(client.is_quiet_for(Duration::from_millis(200)));
    assert_ne!(client.backend_pid(), backend);
}

#[test]
fn a_forced_user_is_who_works_on_the_server() {
    let port = Postgres::shared().port;
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
        ini.database("app", &format!("host=127.0.0.1 port={port} dbname=app user=carol"));
    });
    let (mut one, mut two) = (pooler.raw("alice"), pooler.raw("bob"));
    assert_eq!(one.value("SELECT current_user"), "carol");
    assert_eq!(two.value("SELECT session_user"), "carol");
    assert_eq!(one.backend_pid(), two.backend_pid(), "one pool for all of them");
}

#[test]
fn users_have_pools_of_their_own() {
    let pooler = pooler("transaction", 1);
    let (mut one, mut two) = (pooler.raw("alice"), pooler.raw("bob"));
    assert_eq!(one.value("SELECT current_user"), "alice");
    assert_eq!(two.value("SELECT current_user"), "bob");
    assert_ne!(one.backend_pid(), two.backend_pid());
}

#[test]
fn a_database_may_have_another_pool_mode() {
    let port = Postgres::shared().port;
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
        let connect = format!("host=127.0.0.1 port={port} dbname=app pool_mode=session");
        ini.database("kept", &connect);
    });
    let mut one = pooler.raw_with(Startup::v3().param("user", "alice").param("database", "kept"));
    let mut two = pooler.raw_with(Startup::v3().param("user", "alice").param("database", "kept"));
    one.query("SELECT 1");
    two.send(&raw::query("SELECT 2"));
    assert!(two.is_quiet_for(Duration::from_millis(100)), "a session's server was shared");
    one.send(&raw::terminate());
    two.expect_tags("TDCZ");
}

#[test]
fn settings_of_one_client_never_reach_another() {
    for size in SIZES {
        let pooler = pooler("transaction", size);
        let startup = || Startup::v3().param("user", "alice").param("database", "app");
        let odd = "it's a \\ \"quoted\" name";
        let mut clients = [
            pooler
                .raw_with(startup().param("application_name", "one").param("DateStyle", "german")),
            pooler
                .raw_with(startup().param("application_name", odd).param("timezone", "Asia/Tokyo")),
            pooler.raw_with(startup()),
        ];
        let expected = [
            ("one", "German, DMY", "UTC"),
            (odd, "ISO, MDY", "Asia/Tokyo"),
            ("", "ISO, MDY", "UTC"),
        ];
        for _ in 0..4 {
            for (client, (name, style, zone)) in clients.iter_mut().zip(expected) {
                assert_eq!(client.value("SHOW application_name"), name);
                assert_eq!(client.value("SHOW DateStyle"), style);
                assert_eq!(client.value("SHOW timezone"), zone);
            }
        }
    }
}

#[test]
fn a_set_of_the_client_follows_it_to_other_servers() {
    for size in SIZES {
        let pooler = pooler("transaction", size);
        let (mut one, mut two) = (named(&pooler, "one"), named(&pooler, "two"));
        one.query("SET DateStyle = 'sql, ymd'");
        one.query("SET application_name = 'renamed'");
        two.query("BEGIN; SET LOCAL timezone = 'Asia/Tokyo'; COMMIT");
        for _ in 0..3 {
            assert_eq!(two.value("SHOW DateStyle"), "ISO, MDY");
            assert_eq!(two.value("SHOW application_name"), "two");
            assert_eq!(two.value("SHOW timezone"), "UTC");
            assert_eq!(one.value("SHOW DateStyle"), "SQL, YMD");
            assert_eq!(one.value("SHOW application_name"), "renamed");
        }
    }
}

#[test]
fn a_bad_setting_of_the_startup_shows_at_the_first_query() {
    let pooler = pooler("transaction", 1);
    let startup = Startup::v3().param("user", "alice").param("database", "app");
    let mut client = pooler.raw_with(startup.param("timezone", "No/Such"));
    assert_eq!(client.parameter("TimeZone").as_deref(), Some("No/Such"));
    client.send(&raw::query("SELECT 1"));
    client.expect_fatal("invalid server parameter");
    pooler.assert_serves();
}

#[test]
fn long_values_are_set_as_any_other() {
    // A pooler that skips what does not fit its buffer leaves the next client with the name of the
    // one before (client.md D4).
    let pooler = pooler("transaction", 1);
    let mut one = named(&pooler, "one");
    let quotes = "'".repeat(63);
    let mut two = named(&pooler, &quotes);
    let mut three = named(&pooler, &"x".repeat(300));
    for _ in 0..2 {
        assert_eq!(one.value("SHOW application_name"), "one");
        assert_eq!(two.value("SHOW application_name"), quotes);
        assert_eq!(three.value("SHOW application_name"), "x".repeat(63));
    }
}

#[test]
fn copy_data_without_a_server_is_dropped() {
    let pooler = pooler("transaction", 1);
    let mut client = pooler.raw("alice");
    client.send(&[raw::copy_data(b"lost"), raw::copy_done(), raw::copy_fail("lost")].concat());
    assert_eq!(client.value("SELECT 42"), "42");
    client.send(&raw::message(b'p', b"again\0"));
    client.expect_fatal("unknown pkt");
}

#[test]
fn a_query_waits_no_longer_than_allowed() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("query_wait_timeout", "1");
    });
    let mut holder = pooler.raw("alice");
    holder.query("BEGIN");
    let mut waiting = pooler.raw("alice");
    waiting.send(&raw::query("SELECT 1"));
    waiting.expect_fatal("query_wait_timeout");
    assert_eq!(tags(&holder.query("COMMIT")), "CZ", "the holder is not disturbed");
    pooler.assert_serves();
}
