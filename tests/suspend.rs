//! SUSPEND on the console: nothing moves, nothing is lost, and everything goes on behind it.

mod common;

use common::raw::{self, Startup, tags};
use common::{Pooler, Raw, wait_for};

fn admin(pooler: &Pooler) -> Raw {
    pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"))
}

fn tag(console: &mut Raw, query: &str) -> String {
    let answer = console.query(query);
    assert_eq!(tags(&answer), "CZ", "{query}: {answer:?}");
    raw::c_strings(&answer[0].body).remove(0)
}

fn error(console: &mut Raw, query: &str) -> (String, String) {
    let answer = console.query(query);
    assert_eq!(tags(&answer), "EZ", "{query}: {answer:?}");
    (answer[0].field('C'), answer[0].field('M'))
}

fn refusal(console: &mut Raw, query: &str) -> String {
    let (code, text) = error(console, query);
    assert_eq!(code, "08P01", "{query}");
    text
}

fn states(console: &mut Raw) -> Vec<String> {
    let rows = console.query("SHOW STATE");
    let rows = rows.iter().filter(|message| message.tag == b'D').map(raw::Message::columns);
    rows.filter(|row| row[1] == "yes").map(|row| row[0].clone()).collect()
}

/// Everything that lies in a ring of anybody but the console: all of it must be zero.
fn held_bytes(console: &mut Raw) -> Vec<Vec<String>> {
    let rows = console.query("SHOW SOCKETS");
    let rows = rows.iter().filter(|message| message.tag == b'D').map(raw::Message::columns);
    rows.filter(|row| row[2] != "pgbouncer" && row[21..].iter().any(|bytes| bytes != "0")).collect()
}

#[test]
fn nothing_moves_until_resume_and_then_all_goes_on() {
    let pooler = Pooler::start(|_| ());
    let mut console = admin(&pooler);
    let (mut idle, mut open, mut busy) =
        (pooler.raw("alice"), pooler.raw("alice"), pooler.raw("alice"));
    assert_eq!(idle.value("SELECT 1"), "1");
    assert_eq!(tags(&open.query("BEGIN")), "CZ");
    busy.send(&raw::query("SELECT pg_sleep(0.3), 'slept'"));
    let servers = "SHOW SERVERS";
    wait_for("two servers to work", || {
        let rows = console.query(servers);
        let active = rows.iter().filter(|m| m.tag == b'D' && m.columns()[4] == "active");
        active.count() == 2
    });
    // A query that runs does not delay it.
    assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
    assert!(pooler.log().contains("SUSPEND command issued"));
    assert_eq!(states(&mut console), ["suspended"]);
    idle.send(&raw::query("SELECT 2"));
    open.send(&raw::query("SELECT 3"));
    let mut late = pooler.unnamed();
    late.send(&Startup::v3().param("user", "alice").param("database", "app").bytes());
    // Not even its answer, which has long come by then, is read.
    let wait = std::time::Duration::from_millis(500);
    assert!(busy.is_quiet_for(wait));
    assert!(idle.is_quiet_for(wait / 10) && open.is_quiet_for(wait / 10));
    assert!(late.is_quiet_for(wait / 10));
    assert_eq!(held_bytes(&mut console), Vec::<Vec<String>>::new());
    assert_eq!(tag(&mut console, "RESUME"), "RESUME");
    assert_eq!(states(&mut console), ["active"]);
    for client in [&mut idle, &mut open, &mut busy] {
        assert_eq!(tags(&client.until_ready()), "TDCZ");
    }
    assert_eq!(tags(&late.until_ready()).chars().last(), Some('Z'));
    assert_eq!(late.value("SELECT 4"), "4");
    assert_eq!(tags(&open.query("COMMIT")), "CZ");
}

#[test]
fn it_excludes_a_pause_and_itself() {
    let pooler = Pooler::start(|_| ());
    let mut console = admin(&pooler);
    assert_eq!(tag(&mut console, "PAUSE app"), "PAUSE");
    assert_eq!(refusal(&mut console, "SUSPEND"), "cannot suspend with paused databases");
    assert_eq!(tag(&mut console, "RESUME app"), "RESUME");
    assert_eq!(tag(&mut console, "PAUSE"), "PAUSE");
    assert_eq!(refusal(&mut console, "SUSPEND"), "already suspended/paused");
    assert_eq!(tag(&mut console, "RESUME"), "RESUME");
    assert_eq!(
        refusal(&mut console, "SUSPEND now"),
        "invalid command 'SUSPEND now', use SHOW HELP;"
    );
    assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
    for query in ["SUSPEND", "PAUSE", "PAUSE app", "KILL", "KILL app"] {
        assert_eq!(refusal(&mut console, query), "already suspended/paused", "{query}");
    }
    for (query, answer) in [
        ("RELOAD", "RELOAD"),
        ("SET verbose = 0", "SET verbose=0"),
        ("RECONNECT app", "RECONNECT"),
        ("DISABLE app", "DISABLE"),
        ("ENABLE app", "ENABLE"),
        ("RESUME", "RESUME"),
    ] {
        assert_eq!(tag(&mut console, query), answer);
    }
    assert_eq!(refusal(&mut console, "RESUME"), "pooler is not paused/suspended");
    pooler.assert_serves();
}

#[test]
fn who_talks_without_a_pause_is_stopped_between_two_messages() {
    let pooler = Pooler::start(|_| ());
    let mut console = admin(&pooler);
    let mut clients: Vec<Raw> = (0..4).map(|_| pooler.raw("alice")).collect();
    const QUERIES: usize = 2000;
    let pipeline: Vec<u8> =
        (0..QUERIES).flat_map(|number| raw::query(&format!("SELECT {number}"))).collect();
    std::thread::scope(|scope| {
        let talk = |client: &mut Raw| {
            for part in pipeline.chunks(1000) {
                client.send(part);
            }
            for number in 0..QUERIES {
                let answer = client.until_ready();
                assert_eq!(answer[1].columns(), [number.to_string()]);
            }
        };
        let workers: Vec<_> = clients.iter_mut().map(|c| scope.spawn(move || talk(c))).collect();
        let mut times = 0;
        while times < 3 || !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
            assert_eq!(held_bytes(&mut console), Vec::<Vec<String>>::new());
            assert_eq!(tag(&mut console, "RESUME"), "RESUME");
            times += 1;
        }
    });
    assert!(!pooler.log().contains("suspend_timeout"), "{}", pooler.log());
}

#[test]
fn who_is_not_ready_in_time_is_closed() {
    let pooler = Pooler::start(|ini| {
        ini.set("suspend_timeout", "1").set("default_pool_size", "1");
    });
    let mut console = admin(&pooler);
    let mut holder = pooler.raw("alice");
    assert_eq!(tags(&holder.query("BEGIN")), "CZ");
    let mut waiting = pooler.raw("alice");
    waiting.send(&raw::query("SELECT 1"));
    let mut half = pooler.raw("bob");
    half.send(&raw::query("SELECT 1")[..7]);
    let mut silent = pooler.unnamed();
    silent.send(&[0, 0]);
    wait_for("all of them to be seen", || {
        let lists = console.query("SHOW LISTS");
        let lists = lists.iter().filter(|message| message.tag == b'D');
        let logins = lists.map(raw::Message::columns).any(|row| row == ["login_clients", "1"]);
        let clients = console.query("SHOW CLIENTS");
        logins && clients.iter().any(|m| m.tag == b'D' && m.columns()[4] == "waiting")
    });
    assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
    for client in [&mut waiting, &mut half, &mut silent] {
        client.expect_fatal("suspend_timeout");
    }
    assert_eq!(tag(&mut console, "RESUME"), "RESUME");
    assert_eq!(tags(&holder.query("COMMIT")), "CZ", "who is in a transaction is ready");
}

/// Reliability 19: with half a Startup anybody could have all others stand still for long.
#[test]
fn who_does_not_even_log_in_keeps_nobody_waiting() {
    let pooler = Pooler::start(|ini| {
        ini.set("suspend_timeout", "600");
    });
    let mut console = admin(&pooler);
    let mut half = pooler.unnamed();
    half.send(&[0, 0]);
    let mut silent = pooler.unnamed();
    silent.send(&raw::untagged(raw::SSL_REQUEST, b""));
    assert_eq!(silent.byte(), Some(b'N'));
    assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
    for client in [&mut half, &mut silent] {
        client.expect_fatal("suspend_timeout");
    }
    assert_eq!(tag(&mut console, "RESUME"), "RESUME");
}

#[test]
fn who_waits_for_a_server_still_gets_one() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
    });
    let mut console = admin(&pooler);
    let mut holder = pooler.raw("alice");
    assert_eq!(holder.value("SELECT 0"), "0");
    holder.send(&raw::query("SELECT pg_sleep(0.3)"));
    let mut waiting = pooler.raw("alice");
    waiting.send(&raw::query("SELECT 1"));
    wait_for("it to wait", || {
        let clients = console.query("SHOW CLIENTS");
        clients.iter().any(|m| m.tag == b'D' && m.columns()[4] == "waiting")
    });
    assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
    assert_eq!(tags(&holder.until_ready()), "TDCZ");
    assert_eq!(tag(&mut console, "RESUME"), "RESUME");
    assert_eq!(tags(&waiting.until_ready()), "TDCZ");
}

#[test]
fn it_ends_when_nobody_is_left_to_end_it() {
    let pooler = Pooler::start(|ini| {
        ini.set("stats_users", "carol");
    });
    // Who may only look could not end it.
    let looks = Startup::v3().param("user", "carol").param("database", "pgbouncer");
    let _onlooker = pooler.raw_with(looks);
    let mut console = admin(&pooler);
    assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
    drop(console);
    pooler.assert_serves();
    assert!(pooler.log().contains("LOG admin disappeared when suspended, doing RESUME"));
}

#[test]
fn who_waits_for_it_is_told_that_it_was_called_off() {
    let pooler = Pooler::start(|ini| {
        ini.set("suspend_timeout", "0");
    });
    let (mut first, mut second) = (admin(&pooler), admin(&pooler));
    let mut half = pooler.raw("alice");
    half.send(&raw::query("SELECT 1")[..3]);
    wait_for("the half to come in", || {
        let rows = second.query("SHOW SOCKETS");
        rows.iter().any(|m| m.tag == b'D' && m.columns()[21..].contains(&"3".to_owned()))
    });
    first.send(&raw::query("SUSPEND"));
    wait_for("it to begin", || states(&mut second) == ["suspended"]);
    assert_eq!(tag(&mut second, "RESUME"), "RESUME");
    let answer = first.until_ready();
    assert_eq!((tags(&answer).as_str(), answer[0].field('C').as_str()), ("EZ", "57014"));
    half.send(&raw::query("SELECT 1")[3..]);
    assert_eq!(tags(&half.until_ready()), "TDCZ");
}

#[test]
fn signals_know_of_it() {
    let mut pooler = Pooler::start(|_| ());
    let mut console = admin(&pooler);
    assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
    pooler.signal(libc::SIGUSR1);
    wait_for("SIGUSR1", || pooler.log().contains("got SIGUSR1, but already paused/suspended"));
    pooler.signal(libc::SIGUSR2);
    wait_for("SIGUSR2", || pooler.log().contains("got SIGUSR2, continuing from SUSPEND"));
    assert_eq!(states(&mut console), ["active"]);
    assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
    pooler.signal(libc::SIGTERM);
    assert_eq!(pooler.wait_for_exit().code(), Some(1));
    let log = pooler.log();
    assert!(log.contains("got SIGTERM, shutting down, waiting for all clients disconnect"));
    assert!(log.contains("FATAL suspend was in progress, going down immediately"), "{log}");
}

#[test]
fn it_does_not_hold_up_an_end() {
    for how in ["SHUTDOWN WAIT_FOR_CLIENTS", "SHUTDOWN WAIT_FOR_SERVERS"] {
        let mut pooler = Pooler::start(|_| ());
        let mut console = admin(&pooler);
        let mut client = pooler.raw("alice");
        assert_eq!(client.value("SELECT 1"), "1");
        assert_eq!(tag(&mut console, "SUSPEND"), "SUSPEND");
        assert_eq!(tag(&mut console, how), "SHUTDOWN");
        client.send(&raw::terminate());
        drop((console, client));
        assert!(pooler.wait_for_exit().success(), "{how}");
    }
}

#[test]
fn who_waits_for_the_end_of_a_transaction_gets_it() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
    });
    let mut console = admin(&pooler);
    let mut holder = pooler.raw("alice");
    assert_eq!(tags(&holder.query("BEGIN")), "CZ");
    let mut waiting = pooler.raw("alice");
    waiting.send(&raw::query("SELECT 1"));
    wait_for("it to wait", || {
        let clients = console.query("SHOW CLIENTS");
        clients.iter().any(|m| m.tag == b'D' && m.columns()[4] == "waiting")
    });
    console.send(&raw::query("SUSPEND"));
    assert_eq!(tags(&holder.query("SELECT 2")), "TDCZ");
    assert_eq!(tags(&holder.query("COMMIT")), "CZ");
    assert_eq!(tags(&console.until_ready()), "CZ");
    holder.send(&raw::query("SELECT 3"));
    assert!(holder.is_quiet_for(std::time::Duration::from_millis(50)));
    assert_eq!(tag(&mut console, "RESUME"), "RESUME");
    assert_eq!(tags(&waiting.until_ready()), "TDCZ");
    assert_eq!(tags(&holder.until_ready()), "TDCZ");
}
