//! Clients that replicate, among everything else that happens to a pooler: readers that do not read,
//! cancels, pauses, limits, ends and a new process. With PostgreSQL, both kinds.

mod common;

use common::own_postgresql::OwnPostgres;
use common::pooler::Ini;
use common::raw::{self, CANCEL_REQUEST, tags, untagged};
use common::{Pooler, Postgres, Raw, Startup, temp_dir, wait_for};
use std::time::Duration;

/// In SHOW CLIENTS.
const COLUMN_OF_ID: usize = 20;
const MEGABYTE: u64 = 1 << 20;

fn postgres() -> OwnPostgres {
    OwnPostgres::start_with(
        "max_wal_senders = 20\nwal_level = logical\nmax_replication_slots = 10\n",
    )
}

fn pooler(postgres: &OwnPostgres, change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.database("app", &format!("host=127.0.0.1 port={} dbname=app", postgres.port));
        change(ini);
    })
}

fn startup(kind: &str) -> Startup {
    Startup::v3().param("user", "alice").param("database", "app").param("replication", kind)
}

fn console(pooler: &Pooler) -> Raw {
    pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"))
}

/// Reads up to the CopyBothResponse, from here in the WAL.
fn start_streaming(client: &mut Raw, from: &str) {
    client.send(&raw::query(&format!("START_REPLICATION PHYSICAL {from} TIMELINE 1")));
    assert_eq!(client.message().tag, b'W');
}

fn position(postgres: &OwnPostgres) -> String {
    let mut direct = postgres.client("app");
    direct.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).expect("a place").get(0)
}

/// A place in the WAL as a number.
fn bytes_of(position: &str) -> u64 {
    let (high, low) = position.split_once('/').expect("two numbers");
    let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
    number(high) << 32 | number(low)
}

/// Reads the stream up to this place; every byte comes once, in order.
fn read_up_to(client: &mut Raw, from: u64, until: u64) -> u64 {
    let mut at = from;
    while at < until {
        let message = client.message();
        assert_eq!(message.tag, b'd', "{message:?}");
        if message.body[0] == b'w' {
            let start = u64::from_be_bytes(message.body[1..9].try_into().expect("eight bytes"));
            assert_eq!(start, at, "nothing is lost, nothing comes twice");
            at += message.body.len() as u64 - 25;
        }
    }
    at
}

/// A status update in which an answer is asked for.
fn ask_for_a_sign(client: &mut Raw) {
    client.send(&raw::copy_data(&[&b"r"[..], &[0; 32], &[1]].concat()));
    let is_sign = |message: &raw::Message| message.tag == b'd' && message.body[0] == b'k';
    wait_for("a keepalive", || is_sign(&client.message()));
}

/// Who does not read stops its own server and nobody else, costs no memory, and finds everything
/// there when it goes on.
#[test]
fn a_receiver_that_does_not_read_stops_only_itself() {
    let postgres = postgres();
    let pooler = pooler(&postgres, |ini| _ = ini.set("default_pool_size", "3"));
    let mut direct = postgres.client("app");
    direct.batch_execute("CREATE TABLE t (words text)").expect("a table");
    let from = position(&postgres);
    let mut lazy = pooler.raw_with(startup("on"));
    start_streaming(&mut lazy, &from);
    pooler.assert_serves();
    let before = pooler.resident_bytes();
    let fill = "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 1000)";
    for _ in 0..40 {
        direct.batch_execute(fill).expect("rows");
        pooler.assert_serves();
    }
    let until = position(&postgres);
    let (from, until) = (bytes_of(&from), bytes_of(&until));
    assert!(until - from > 30 * MEGABYTE);
    let growth = pooler.resident_bytes().saturating_sub(before);
    assert!(growth < 4 * MEGABYTE, "{growth} bytes more for a receiver that does not read");
    read_up_to(&mut lazy, from, until);
    let growth = pooler.resident_bytes().saturating_sub(before);
    assert!(growth < 4 * MEGABYTE, "{growth} bytes more for a receiver that reads");
    ask_for_a_sign(&mut lazy);
}

/// Its key cancels what its own server does, and that alone; its connection goes on.
#[test]
fn what_it_does_can_be_cancelled() {
    let postgres = postgres();
    let pooler = pooler(&postgres, |_| {});
    let cancel = |client: &Raw| {
        let mut canceller = pooler.unnamed();
        canceller.send(&untagged(CANCEL_REQUEST, &client.cancel_key()));
        canceller.expect_end();
    };
    let mut logical = pooler.raw_with(startup("database"));
    let mut physical = pooler.raw_with(startup("on"));
    let from = position(&postgres);
    start_streaming(&mut physical, &from);
    logical.send(&raw::query("SELECT pg_sleep(600)"));
    let mut direct = postgres.client("app");
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' \
                  AND state = 'active'";
    let mut sleepers = || direct.query_one(sleeps, &[]).expect("a count").get::<_, i64>(0);
    wait_for("it to sleep", || sleepers() == 1);
    cancel(&logical);
    let answer = logical.until_ready();
    let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
    assert_eq!(error.field('C'), "57014");
    assert_eq!(logical.value("SELECT 41 + 1"), "42");
    ask_for_a_sign(&mut physical);
    // PostgreSQL ends a stream that is cancelled.
    cancel(&physical);
    let rest = physical.until_ready();
    let error = rest.iter().find(|message| message.tag == b'E').expect("an error");
    assert_eq!(error.field('C'), "57014");
    assert_eq!(tags(&physical.query("IDENTIFY_SYSTEM")), "TDCZ");
}

/// SUSPEND stops a stream between two messages, and RESUME lets it go on; PAUSE waits for the end
/// of it.
#[test]
fn a_stream_is_suspended_and_a_pause_waits_for_its_end() {
    let postgres = postgres();
    let pooler = pooler(&postgres, |ini| _ = ini.set("suspend_timeout", "60"));
    let mut direct = postgres.client("app");
    direct.batch_execute("CREATE TABLE t (words text)").expect("a table");
    let from = position(&postgres);
    let mut client = pooler.raw_with(startup("on"));
    start_streaming(&mut client, &from);
    let mut operator = console(&pooler);
    let fill = "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 500)";
    let mut at = bytes_of(&from);
    for _ in 0..3 {
        direct.batch_execute(fill).expect("rows");
        operator.send(&raw::query("SUSPEND"));
        // It reads all that is under way; what comes behind that waits.
        let until = bytes_of(&position(&postgres));
        let reading = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_up_to(&mut client, at, until));
            let answer = operator.until_ready();
            assert_eq!(tags(&answer), "CZ", "{answer:?}");
            direct.batch_execute(fill).expect("rows");
            assert_eq!(tags(&operator.query("RESUME")), "CZ");
            reader.join().expect("the reader")
        });
        at = reading;
    }
    ask_for_a_sign(&mut client);
    operator.send(&raw::query("PAUSE app"));
    assert!(operator.is_quiet_for(Duration::from_millis(300)), "it waits for the stream");
    ask_for_a_sign(&mut client);
    client.send(&raw::terminate());
    assert_eq!(tags(&operator.until_ready()), "CZ");
    operator.query("RESUME app");
    pooler.assert_serves();
}

/// Both ends of a pooler wait for who replicates; the third does not.
#[test]
fn an_end_waits_for_it_or_not() {
    let postgres = postgres();
    for (how, last_words) in [
        ("SHUTDOWN WAIT_FOR_CLIENTS", "client connections dropped, exiting"),
        ("SHUTDOWN WAIT_FOR_SERVERS", "server connections dropped, exiting"),
        ("SHUTDOWN", ""),
    ] {
        for kind in ["database", "on"] {
            let mut pooler = pooler(&postgres, |_| {});
            let mut client = pooler.raw_with(startup(kind));
            start_streaming(&mut client, &position(&postgres));
            let mut operator = console(&pooler);
            operator.send(&raw::query(how));
            if last_words.is_empty() {
                assert!(pooler.wait_for_exit().success());
                client.lenient = true;
                client.until_end();
                continue;
            }
            assert_eq!(tags(&operator.until_ready()), "CZ");
            drop(operator);
            ask_for_a_sign(&mut client);
            ask_for_a_sign(&mut client);
            client.send(&raw::terminate());
            assert!(pooler.wait_for_exit().success());
            assert!(pooler.log().contains(last_words), "{}", pooler.log());
        }
    }
}

/// `KILL_CLIENT` in the middle of a stream, and a limit on the time of queries.
#[test]
fn it_ends_by_order_and_by_limit_as_others_do() {
    let postgres = postgres();
    let pooler = pooler(&postgres, |ini| _ = ini.set("query_timeout", "1.5"));
    let last_words = |client: &mut Raw| {
        let rest = client.until_end();
        let error = rest.into_iter().find(|message| message.tag == b'E');
        error.map(|error| (error.field('S'), error.field('C'), error.field('M')))
    };
    let fatal = |text: &str| Some(("FATAL".into(), "08P01".into(), text.to_owned()));
    for kind in ["database", "on"] {
        let mut client = pooler.raw_with(startup(kind));
        start_streaming(&mut client, &position(&postgres));
        assert_eq!(last_words(&mut client), fatal("query timeout"));
        let mut client = pooler.raw_with(startup(kind));
        start_streaming(&mut client, &position(&postgres));
        let mut operator = console(&pooler);
        let rows = operator.query("SHOW CLIENTS");
        let rows = rows.iter().filter(|row| row.tag == b'D').map(raw::Message::columns);
        let own = rows.filter(|row| row[2] == "app").map(|row| row[COLUMN_OF_ID].clone()).next();
        operator.query(&format!("KILL_CLIENT {}", own.expect("its row")));
        assert_eq!(last_words(&mut client), fatal("admin forced disconnect"));
    }
    let mut direct = postgres.client("app");
    let senders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    wait_for("its servers to go", || {
        direct.query_one(senders, &[]).expect("a count").get::<_, i64>(0) == 0
    });
}

/// A new process takes over the stream and its server, which is still nobody else's.
#[test]
fn a_takeover_leaves_it_its_server() {
    let postgres = postgres();
    let dir = temp_dir(&Postgres::shared().socket_dir, "replication");
    let mut pooler = pooler(&postgres, |ini| {
        ini.set("unix_socket_dir", &dir.to_string_lossy());
        ini.set("pidfile", &dir.join("pid").to_string_lossy());
    });
    wait_for("the pooler to be up", || pooler.log().contains("process up"));
    let from = position(&postgres);
    let mut stream = pooler.raw_with(startup("on"));
    let mut idle = pooler.raw_with(startup("on"));
    let options = "-c work_mem=1MB";
    let mut logical = pooler.raw_with(startup("database").param("options", options));
    let mut normal = pooler.raw("alice");
    normal.value("SELECT 1");
    // It has not asked for anything, so there is no server for it yet.
    let mut late = pooler.raw_with(startup("database").param("options", options));
    start_streaming(&mut stream, &from);
    let own = logical.backend_pid();
    assert!(pooler.take_over().success());
    let mut direct = postgres.client("app");
    direct.batch_execute("CREATE TABLE t (words text)").expect("a table");
    let until = position(&postgres);
    read_up_to(&mut stream, bytes_of(&from), bytes_of(&until));
    ask_for_a_sign(&mut stream);
    // Between two commands nobody else gets their servers.
    for _ in 0..3 {
        assert_eq!(tags(&idle.query("IDENTIFY_SYSTEM")), "TDCZ");
        assert_eq!(logical.backend_pid(), own);
        normal.send(&[raw::parse("", "SELECT 1"), raw::bind("", &[]), raw::sync()].concat());
        assert_eq!(tags(&normal.until_ready()), "12Z", "no server of theirs");
        assert_ne!(normal.backend_pid(), own);
    }
    assert_eq!(late.value("SHOW work_mem"), "1MB", "the server of its own words");
    let rows = console(&pooler).query("SHOW SERVERS");
    let rows = rows.iter().filter(|row| row.tag == b'D').map(|row| row.columns()[3].clone());
    let mut kinds: Vec<String> = rows.collect();
    kinds.sort();
    assert_eq!(kinds, ["logical", "logical", "none", "physical", "physical"]);
    for mut client in [stream, idle, logical, late] {
        client.send(&raw::terminate());
    }
    let senders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    wait_for("their servers to go", || {
        direct.query_one(senders, &[]).expect("a count").get::<_, i64>(0) == 0
    });
    pooler.assert_serves();
    let _ = std::fs::remove_dir_all(dir);
}
