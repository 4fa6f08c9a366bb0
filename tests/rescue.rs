//! `server_rescue_timeout`: what becomes of a server whose client goes in the middle of something.

mod common;

use common::desk::{Desk, config};
use common::fake::{self, FakeServer};
use common::pooler::Ini;
use common::raw::{self, message, tags};
use common::tls::{Certs, SecurePostgres};
use common::{Lease, Pooler, Postgres, Raw, Startup, wait_for};
use ringbouncer::engine::io::Input;
use ringbouncer::keys::Conn;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// One server, which is rescued for as long as the machine may take.
fn rescuer(change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("server_rescue_timeout", "60");
        change(ini);
    })
}

/// Whether PostgreSQL runs this just now.
fn runs(sql: &str) -> bool {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1";
    let mut direct = Postgres::shared().client("postgres");
    direct.query_one(query, &[&sql]).expect("look").get::<_, i64>(0) > 0
}

/// What a client leaves behind.
struct Case {
    name: &'static str,
    /// Asked and answered before.
    before: &'static [&'static str],
    /// Sent last, and then it is gone.
    last: Vec<u8>,
    /// What comes of that before it is gone.
    answered: &'static str,
    /// What PostgreSQL is doing then.
    running: &'static str,
}

fn batch(sql: &str) -> Vec<u8> {
    [raw::parse("", sql), raw::bind("", &[]), raw::execute(0)].concat()
}

/// The beginning of a CopyData of so many bytes.
fn half_a_row(bytes: u32) -> Vec<u8> {
    let mut head = vec![b'd'];
    head.extend((bytes + 4).to_be_bytes());
    head.extend(b"12");
    head
}

const COPY_IN: &str = "COPY rescued FROM STDIN";
const COPY_OUT: &str = "COPY (SELECT generate_series(1, 100000000), repeat('x', 1000)) TO STDOUT";
const ENDLESS: &str = "SELECT generate_series(1, 100000000), repeat('y', 1000)";

fn cases() -> Vec<Case> {
    let query = raw::query;
    let case =
        |name, before, last, answered, running| Case { name, before, last, answered, running };
    vec![
        case("idle in a transaction", &["BEGIN", "INSERT INTO rescued VALUES (1)"], vec![], "", ""),
        case("in a failed transaction", &["BEGIN", "SELECT 1/0"], vec![], "", ""),
        case("a sleep", &[], query("SELECT pg_sleep(1001)"), "", "SELECT pg_sleep(1001)"),
        case(
            "a sleep in a transaction",
            &["BEGIN", "INSERT INTO rescued VALUES (1)"],
            query("SELECT pg_sleep(1002)"),
            "",
            "SELECT pg_sleep(1002)",
        ),
        case(
            "an extended query",
            &[],
            [batch("SELECT pg_sleep(1003)"), raw::sync()].concat(),
            "",
            "SELECT pg_sleep(1003)",
        ),
        case(
            "an extended query without a Sync",
            &[],
            [batch("SELECT pg_sleep(1004)"), raw::flush()].concat(),
            "",
            "SELECT pg_sleep(1004)",
        ),
        case(
            "an answered extended query without a Sync",
            &[],
            [batch("INSERT INTO rescued VALUES (1)"), raw::flush()].concat(),
            "12C",
            "",
        ),
        case(
            "a failed batch without a Sync",
            &[],
            [batch("SELECT 1/"), raw::flush()].concat(),
            "E",
            "",
        ),
        case("nothing but a Flush", &[], raw::flush(), "", ""),
        case(
            "two simple queries",
            &[],
            [query("SELECT pg_sleep(1005)"), query("SELECT pg_sleep(1006)")].concat(),
            "",
            "SELECT pg_sleep(1005)",
        ),
        case(
            "a pipeline of sleepers",
            &["BEGIN"],
            [
                batch("INSERT INTO rescued VALUES (1)"),
                raw::sync(),
                batch("SELECT pg_sleep(1007)"),
                raw::sync(),
                query("SELECT pg_sleep(1008)"),
                batch("SELECT pg_sleep(1009)"),
            ]
            .concat(),
            "12CZ",
            "SELECT pg_sleep(1007)",
        ),
        case("a COPY that waits", &[], query(COPY_IN), "G", COPY_IN),
        case(
            "a COPY between rows",
            &["BEGIN", "INSERT INTO rescued VALUES (1)"],
            [query(COPY_IN), raw::copy_data(b"1\n"), raw::copy_data(b"2\n")].concat(),
            "G",
            COPY_IN,
        ),
        case(
            "a COPY within a row",
            &[],
            [query(COPY_IN), raw::copy_data(b"1\n"), half_a_row(9)].concat(),
            "G",
            COPY_IN,
        ),
        case(
            "a COPY within a large row",
            &[],
            [query(COPY_IN), raw::copy_data(b"1\n"), half_a_row(30_000)].concat(),
            "G",
            COPY_IN,
        ),
        case(
            "an extended COPY",
            &[],
            [batch(COPY_IN), raw::flush(), raw::copy_data(b"1\n")].concat(),
            "12G",
            COPY_IN,
        ),
        case(
            "an extended COPY as libpq does it",
            &[],
            [batch(COPY_IN), raw::sync(), raw::copy_data(b"1\n"), half_a_row(9)].concat(),
            "12G",
            COPY_IN,
        ),
        case("a COPY to the client", &[], query(COPY_OUT), "H", COPY_OUT),
        case("rows without end", &["BEGIN"], query(ENDLESS), "T", ENDLESS),
    ]
}

/// The client breaks off, by itself or with a word, and the next one gets the same server, clean.
fn is_rescued(pooler: &Pooler, case: &Case, mode: &str, says_goodbye: bool) {
    let what = format!("{} in {mode} pooling", case.name);
    let mut client = pooler.raw("alice");
    let pid = client.backend_pid();
    for sql in case.before {
        client.query(sql);
    }
    client.lenient = true;
    client.send(&case.last);
    client.expect_tags(case.answered);
    if !case.running.is_empty() {
        wait_for(&what, || runs(case.running));
    }
    if says_goodbye {
        client.send(&raw::terminate());
    }
    drop(client);
    let mut next = pooler.raw("alice");
    assert_eq!(tags(&next.query("SELECT count(*) FROM rescued")), "TDCZ", "{what}");
    assert_eq!(next.value("SELECT count(*) FROM rescued"), "0", "{what}");
    assert_eq!(next.backend_pid(), pid, "{what}");
    next.send(&[batch("SELECT 41 + 1"), raw::sync()].concat());
    assert_eq!(next.expect_tags("12DCZ")[2].columns(), ["42"], "{what}");
    next.send(&raw::terminate());
    next.expect_end();
}

#[test]
fn the_next_client_gets_the_same_server_whatever_was_left() {
    let database = Postgres::shared().fresh_database();
    Postgres::shared()
        .client(&database)
        .batch_execute("CREATE TABLE rescued (n int)")
        .expect("create");
    let port = Postgres::shared().port;
    for (mode, says_goodbye) in [("transaction", false), ("session", false), ("transaction", true)]
    {
        let pooler = rescuer(|ini| {
            ini.database("app", &format!("host=127.0.0.1 port={port} dbname={database}"));
            ini.set("pool_mode", mode);
        });
        for case in cases() {
            // A Terminate in the middle of a row is a part of that row.
            if !(says_goodbye && case.name.contains("within")) {
                is_rescued(&pooler, &case, mode, says_goodbye);
            }
        }
        let log = pooler.log();
        assert!(log.contains("rescuing because: client disconnect while server was not ready"));
        assert!(!log.contains("closing because: server rescue"), "{log}");
    }
}

/// Without the setting all is as PgBouncer does it.
#[test]
fn by_default_the_server_is_closed() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
    });
    let mut client = pooler.raw("alice");
    let pid = client.backend_pid();
    client.query("BEGIN");
    drop(client);
    assert_ne!(pooler.raw("alice").backend_pid(), pid);
    let log = pooler.log();
    assert!(log.contains("closing because: client disconnect while server was not ready"), "{log}");
    assert!(!log.contains("rescu"), "{log}");
}

/// Whatever a session may keep from one client to the next is not kept here, in any mode.
#[test]
fn nothing_of_the_session_is_left() {
    for mode in ["transaction", "session"] {
        let pooler = rescuer(|ini| {
            ini.set("pool_mode", mode);
        });
        let startup = Startup::v3().param("user", "alice").param("database", "app");
        let mut client = pooler.raw_with(startup.param("timezone", "Asia/Tokyo"));
        let pid = client.backend_pid();
        for sql in [
            "BEGIN",
            "CREATE TEMP TABLE left_behind (n int)",
            "SELECT pg_advisory_lock(4711)",
            "LISTEN left_behind",
            "SET statement_timeout = 12345",
            "SET DateStyle = german",
            "DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1",
            "PREPARE left_behind AS SELECT 1",
        ] {
            assert_eq!(client.query(sql).last().expect("an answer").body, b"T", "{sql}");
        }
        client.send(&[raw::parse("named", "SELECT 1"), raw::sync()].concat());
        client.expect_tags("1Z");
        drop(client);
        let mut next = pooler.raw("alice");
        assert_eq!(next.backend_pid(), pid);
        for (sql, clean) in [
            ("SHOW statement_timeout", "0"),
            ("SHOW DateStyle", "ISO, MDY"),
            ("SHOW timezone", "UTC"),
            ("SELECT count(*) FROM pg_class WHERE relname = 'left_behind'", "0"),
            ("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711", "0"),
            ("SELECT count(*) FROM pg_listening_channels()", "0"),
            ("SELECT count(*) FROM pg_cursors", "0"),
            ("SELECT count(*) FROM pg_prepared_statements", "0"),
        ] {
            assert_eq!(next.value(sql), clean, "{mode}: {sql}");
        }
        // The server has forgotten the statement, and we know it.
        next.send(
            &[
                raw::parse("named", "SELECT 1"),
                raw::bind("named", &[]),
                raw::execute(0),
                raw::sync(),
            ]
            .concat(),
        );
        next.expect_tags("12DCZ");
    }
}

/// Without a reset query the server keeps what was prepared there, and nobody is told that
/// something is there which is not.
#[test]
fn what_is_prepared_on_the_server_stays_known() {
    let pooler = rescuer(|ini| {
        ini.set("server_reset_query", "");
    });
    let pid = pooler.raw("alice").backend_pid();
    let parse = |n: u32| raw::parse(&format!("s{n}"), &format!("SELECT {n}"));
    let fails = raw::parse("bad", "SELECT 1/");
    for (last, running) in [
        (
            [parse(1), raw::sync(), raw::query("SELECT pg_sleep(1020)")].concat(),
            "SELECT pg_sleep(1020)",
        ),
        (
            [raw::query("SELECT pg_sleep(1021)"), parse(2), parse(3)].concat(),
            "SELECT pg_sleep(1021)",
        ),
        ([batch("SELECT pg_sleep(1022)"), parse(4), raw::sync()].concat(), "SELECT pg_sleep(1022)"),
        (
            [parse(5), fails.clone(), parse(6), raw::sync(), raw::query("SELECT pg_sleep(1023)")]
                .concat(),
            "SELECT pg_sleep(1023)",
        ),
    ] {
        let mut client = pooler.raw("alice");
        client.send(&last);
        wait_for(running, || runs(running));
        drop(client);
        let mut next = pooler.raw("alice");
        for n in 1..=6 {
            let name = format!("s{n}");
            next.send(&[parse(n), raw::bind(&name, &[]), raw::execute(0), raw::sync()].concat());
            assert_eq!(next.expect_tags("12DCZ")[2].columns(), [n.to_string()], "{running}");
        }
        assert_eq!(next.backend_pid(), pid);
    }
}

/// Somebody on the console throws the client out: it is told, and its server goes on.
#[test]
fn whom_the_operator_throws_out_leaves_his_server() {
    let pooler = rescuer(|_| ());
    let mut client = pooler.raw("alice");
    let pid = client.backend_pid();
    client.send(&raw::query("SELECT pg_sleep(1030)"));
    wait_for("the sleep", || runs("SELECT pg_sleep(1030)"));
    let clients = pooler.table("SHOW CLIENTS");
    let own = clients.iter().find(|row| row["user"] == "alice").expect("a row");
    let mut console =
        pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"));
    console.query(&format!("KILL_CLIENT {}", own["id"]));
    client.expect_fatal("admin forced disconnect");
    assert_eq!(pooler.raw("alice").backend_pid(), pid);
}

/// Nothing is committed that the client has not committed.
#[test]
fn what_was_not_committed_is_undone() {
    let database = Postgres::shared().fresh_database();
    let mut direct = Postgres::shared().client(&database);
    direct.batch_execute("CREATE TABLE kept (n int)").expect("create");
    let port = Postgres::shared().port;
    let pooler = rescuer(|ini| {
        ini.database("app", &format!("host=127.0.0.1 port={port} dbname={database}"));
    });
    let insert = |n: u32| batch(&format!("INSERT INTO kept VALUES ({n})"));
    for (last, answered) in [
        ([insert(1), raw::flush()].concat(), "12C"),
        ([raw::query("BEGIN"), insert(2), raw::sync()].concat(), "CZ12CZ"),
        // The first is committed by its Sync.
        ([insert(3), raw::sync(), insert(4), raw::flush()].concat(), "12CZ12C"),
        // A simple query commits itself.
        (raw::query("INSERT INTO kept VALUES (5)"), "CZ"),
    ] {
        let mut client = pooler.raw("alice");
        client.send(&last);
        client.expect_tags(answered);
    }
    assert_eq!(pooler.raw("alice").value("SELECT string_agg(n::text, ' ') FROM kept"), "3 5");
}

/// Who closes its socket without reading what has come breaks off hard; others never see a byte of
/// what it was owed, however much that is.
#[test]
fn no_byte_of_the_answer_reaches_another_client() {
    let pooler = rescuer(|_| ());
    let pid = pooler.raw("alice").backend_pid();
    for round in 0..10 {
        let mut client = pooler.raw("alice");
        client.send(&raw::query(ENDLESS));
        let mut waiting: Vec<Raw> = (0..5).map(|_| pooler.raw("alice")).collect();
        for (number, other) in waiting.iter_mut().enumerate() {
            other.send(&raw::query(&format!("SELECT {round}, {number}, pg_backend_pid()")));
        }
        client.lenient = true;
        for _ in 0..round {
            client.message();
        }
        drop(client);
        for (number, other) in waiting.iter_mut().enumerate() {
            let row = other.expect_tags("TDCZ")[1].columns();
            assert_eq!(row, [round.to_string(), number.to_string(), pid.to_string()]);
        }
    }
}

/// What a server is told that loses its client, up to the ROLLBACK; it takes no cancel seriously.
fn deaf(visits: &Arc<AtomicUsize>, deaf_to: &'static [&'static str]) -> FakeServer {
    let visits = visits.clone();
    FakeServer::start(move |visit| {
        // Carriers say goodbye at once: the cancel has no effect.
        let first = visit.startup();
        if first.starts_with(&raw::CANCEL_REQUEST.to_be_bytes()) {
            visits.fetch_add(1, Ordering::AcqRel);
            return;
        }
        visit.send(&fake::welcome());
        while let Some(question) = visit.message() {
            let text = String::from_utf8_lossy(&question.body).into_owned();
            let is_open = text.starts_with("BEGIN");
            if question.tag != b'Q' || deaf_to.iter().any(|word| text.starts_with(word)) {
                continue;
            }
            visit.send(&message(b'C', b"DONE\0"));
            visit.send(&message(b'Z', if is_open { b"T" } else { b"I" }));
        }
    })
}

/// Closed at the deadline, whatever it does not answer: the query, the ROLLBACK or the reset.
#[test]
fn a_server_that_does_not_come_back_is_closed_at_the_deadline() {
    std::thread::scope(|scope| {
        scope.spawn(|| is_closed_in_time(&["SELECT"], "rescue: draining"));
        scope.spawn(|| is_closed_in_time(&["ROLLBACK"], "rescue: rolling back"));
        scope.spawn(|| is_closed_in_time(&["DISCARD"], "rescue: resetting"));
    });
}

fn is_closed_in_time(deaf_to: &'static [&'static str], state: &str) {
    let cancels = deaf_to[0] == "SELECT";
    let visits = Arc::new(AtomicUsize::new(0));
    let server = deaf(&visits, deaf_to);
    let pooler = rescuer(|ini| {
        ini.database("fake", &server.connect_string()).set("server_rescue_timeout", "1.5");
        ini.set("server_tls_sslmode", "disable");
    });
    let startup = || Startup::v3().param("user", "alice").param("database", "fake");
    let is_held =
        |state: &str| pooler.table("SHOW HOLDERS").iter().any(|row| row["state"] == state);
    let mut client = pooler.raw_with(startup());
    client.query("BEGIN");
    if cancels {
        client.send(&raw::query("SELECT forever"));
        wait_for("the query to be sent", || is_held("active"));
    }
    drop(client);
    wait_for(state, || is_held(state));
    assert_eq!(pooler.table("SHOW SERVERS")[0]["state"], "tested");
    let mut next = pooler.raw_with(startup());
    next.send(&raw::query("UPDATE"));
    next.expect_tags("CZ");
    let log = pooler.log();
    assert!(log.contains("closing because: server rescue timeout"), "{log}");
    // Asked again after a second: the first request may have come too early.
    assert_eq!(visits.load(Ordering::Acquire) > 1, cancels);
    let errors = pooler.table("SHOW ERRORS");
    let timeouts = errors.iter().find(|row| row["cause"] == "server rescue timeout");
    assert_eq!(timeouts.expect("a row")["count"], "1");
    assert_eq!(server.visits(), 2 + visits.load(Ordering::Acquire));
}

/// The key was learned through TLS, and goes through TLS.
#[test]
fn the_cancel_is_sent_over_tls_if_the_server_speaks_it() {
    let certs = Certs::new();
    certs.issue("server", "db.test", &["localhost"]);
    let postgres =
        SecurePostgres::start(&certs, "server", "", "hostssl all all 127.0.0.1/32 trust");
    let pooler = rescuer(|ini| {
        ini.database("app", &postgres.connect_string()).set("server_tls_sslmode", "require");
    });
    let mut client = pooler.raw("alice");
    let pid = client.backend_pid();
    client.send(&raw::query("SELECT pg_sleep(1000)"));
    wait_for("the query to be sent", || {
        pooler.table("SHOW HOLDERS").iter().any(|row| row["state"] == "active")
    });
    drop(client);
    let mut next = pooler.raw("alice");
    assert_eq!(next.backend_pid(), pid);
    let log = pooler.log();
    let mut carriers = log.lines().filter(|line| line.contains("successfully sent cancel request"));
    let carrier = carriers.next_back().expect("a carrier").split_whitespace();
    let name = carrier.clone().find(|word| word.starts_with("S-")).expect("its name").to_owned();
    let is_secured = |line: &&str| line.contains(&name) && line.contains("SSL established");
    assert!(log.lines().any(|line| is_secured(&line)), "{log}");
}

#[test]
fn rescues_are_counted() {
    let lease = Lease::take();
    let pooler = rescuer(|ini| {
        ini.set("metrics_listen", &format!("127.0.0.1:{}", lease.port));
    });
    for _ in 0..3 {
        pooler.raw("alice").query("BEGIN");
    }
    wait_for("the servers to be back", || pooler.log().matches("rescued (in ").count() == 3);
    assert!(pooler.table("SHOW HOLDERS").is_empty());
    let pools = pooler.table("SHOW POOLS");
    let pool = pools.iter().find(|row| row["database"] == "app").expect("a pool");
    assert_eq!((pool["sv_idle"].as_str(), pool["sv_tested"].as_str()), ("1", "0"));
    let mut metrics = TcpStream::connect(("127.0.0.1", lease.port)).expect("connect");
    metrics
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("ask");
    let mut page = String::new();
    metrics.read_to_string(&mut page).expect("a page");
    assert!(page.contains("ringbouncer_server_rescues_total{end=\"kept\"} 3\n"), "{page}");
    assert!(page.contains("ringbouncer_server_rescues_total{end=\"lost\"} 0\n"), "{page}");
}

const ONE_POOL: &str = "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
                        server_rescue_timeout = 30\n";

/// A client on a desk that has gone in the middle of a query, one that waits, and the server.
fn left_in_mid_query(settings: &str) -> (Desk, Conn, Conn) {
    let mut desk = Desk::new(&format!("{ONE_POOL}default_pool_size = 1\n{settings}"));
    let (client, waiting) = (desk.client("alice", "app"), desk.client("alice", "app"));
    let server = desk.server();
    desk.take(client);
    desk.take(waiting);
    desk.ask(client);
    desk.take(server);
    desk.ask(waiting);
    desk.leave(client);
    (desk, server, waiting)
}

/// PostgreSQL's answer to a query that was cancelled.
fn cancelled() -> Vec<u8> {
    let error = message(b'E', b"SERROR\0C57014\0Mcanceling statement due to user request\0\0");
    [error, fake::ready()].concat()
}

fn discarded() -> Vec<u8> {
    [message(b'C', b"DISCARD ALL\0"), fake::ready()].concat()
}

/// Reliability 11: until the cancel has been delivered, nobody gets the server, not even with the
/// reset query.
#[test]
fn nobody_gets_a_server_before_the_cancel_has_been_delivered() {
    let (mut desk, server, waiting) = left_in_mid_query("");
    let (carrier, _) = desk.dialled.pop_front().expect("a carrier");
    desk.handle(Input::Connected { server: carrier, local: None });
    let carrier = Conn::Server(carrier);
    let request = raw::untagged(raw::CANCEL_REQUEST, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(desk.take(carrier), request);
    desk.feed(server, &cancelled());
    assert_eq!(desk.take(server), b"", "the request may still be on its way");
    desk.leave(carrier);
    assert_eq!(desk.take(server), raw::query("DISCARD ALL"));
    desk.feed(server, &discarded());
    assert_eq!(desk.take(server), raw::query("SELECT 1"));
    desk.feed(server, &fake::one_row("1"));
    assert_eq!(desk.take(waiting), fake::one_row("1"), "and nothing else");
}

/// Who waits does not wait for a rescue if there is room for another server.
#[test]
fn a_rescue_keeps_nobody_from_a_new_server() {
    let (mut desk, _, waiting) = left_in_mid_query("");
    assert_eq!(desk.dialled.len(), 1, "the carrier, for the pool is full");
    desk.engine.reload(config(&format!("{ONE_POOL}default_pool_size = 3\n")), None, desk.now);
    desk.perform();
    assert_eq!(desk.dialled.len(), 2);
    desk.dialled.pop_front();
    let server = desk.server();
    assert_eq!(desk.take(server), raw::query("SELECT 1"));
    desk.feed(server, &fake::one_row("1"));
    assert_eq!(desk.take(waiting), fake::one_row("1"));
}

/// A carrier that comes too late does not send its request.
#[test]
fn a_cancel_that_is_not_needed_any_more_is_not_sent() {
    let (mut desk, server, _) = left_in_mid_query("server_reset_query =\n");
    let (carrier, _) = desk.dialled.pop_front().expect("a carrier");
    desk.feed(server, &fake::one_row("1"));
    assert_eq!(desk.take(server), raw::query("SELECT 1"), "the next one's");
    desk.handle(Input::Connected { server: carrier, local: None });
    assert_eq!(desk.take(Conn::Server(carrier)), b"");
    assert!(desk.is_closed(Conn::Server(carrier)));
}

/// A second query of the pipeline is cancelled, too, and at once.
#[test]
fn each_query_of_a_pipeline_is_cancelled() {
    let mut desk = Desk::new(ONE_POOL);
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    desk.feed(client, &[raw::query("SELECT 1"), raw::query("SELECT 2")].concat());
    desk.take(server);
    desk.leave(client);
    for _ in 0..2 {
        let carrier = desk.connect();
        desk.leave(carrier);
        assert!(desk.dialled.is_empty());
        desk.feed(server, &cancelled());
    }
    assert_eq!(desk.take(server), raw::query("DISCARD ALL"));
}

/// PAUSE and RECONNECT in the middle of it: the server ends when it is back.
#[test]
fn who_is_not_wanted_any_more_is_not_kept() {
    for pauses in [true, false] {
        let (mut desk, server, _) = left_in_mid_query("server_reset_query =\n");
        let now = desk.now;
        match pauses {
            true => desk.engine.pause(now),
            false => desk.engine.reconnect(Some("app"), now),
        }
        desk.perform();
        assert!(!desk.is_closed(server));
        desk.feed(server, &cancelled());
        assert!(desk.is_closed(server));
    }
}

/// A server that hosts have been changed for is not worth it.
#[test]
fn a_rescue_is_for_servers_that_will_serve() {
    let mut desk = Desk::new(ONE_POOL);
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    desk.ask(client);
    desk.take(server);
    let now = desk.now;
    desk.engine.reconnect(Some("app"), now);
    desk.leave(client);
    assert!(desk.is_closed(server));
}

/// A query whose rest will never come must not run in a half.
#[test]
fn a_message_that_was_cut_off_costs_the_server() {
    let mut desk = Desk::new(ONE_POOL);
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    let query = raw::query("DELETE FROM accounts WHERE id = 1");
    desk.feed(client, &query[..query.len() - 12]);
    desk.take(server);
    desk.leave(client);
    assert!(desk.is_closed(server));
}

/// What was said whole and not written yet goes out, as from the client's own socket.
#[test]
fn what_is_still_to_be_written_is_written() {
    let mut desk = Desk::new(ONE_POOL);
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    desk.feed(client, &[raw::query("BEGIN"), raw::query("SELECT 1")].concat());
    desk.leave(client);
    assert_eq!(desk.take(server), [raw::query("BEGIN"), raw::query("SELECT 1")].concat());
    assert!(desk.dialled.is_empty(), "it may not have begun");
    desk.after(Duration::from_millis(1100));
    assert_eq!(desk.dialled.len(), 1, "it takes long");
    let begun = [message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat();
    desk.feed(server, &[begun, message(b'C', b"SELECT 1\0"), message(b'Z', b"T")].concat());
    assert_eq!(desk.take(server), raw::query("ROLLBACK"));
}
