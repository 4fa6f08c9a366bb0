//! client.md §3, §9, §10: exact words, and the sequences of its check list, row by row. (Rows about
//! logins are in `login.rs`, those about statements that are known in `prepared.rs`.)

mod common;

use common::fake::{FakeServer, one_row, ready};
use common::pooler::Ini;
use common::raw::{
    self, CANCEL_REQUEST, bind, close, describe, execute, flush, message, parse, query, sync, tags,
    untagged,
};
use common::{Pooler, Postgres, Raw, Startup, wait_for};
use std::sync::atomic::{AtomicUsize, Ordering};

fn pooler(change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("server_login_retry", "0.1");
        change(ini);
    })
}

fn console(pooler: &Pooler, user: &str) -> Raw {
    pooler.raw_with(Startup::v3().param("user", user).param("database", "pgbouncer"))
}

/// Up to the last of so many ReadyForQuery, less what is told of parameters.
fn answer(client: &mut Raw, messages: &[Vec<u8>], readies: usize) -> String {
    client.send(&messages.concat());
    let all: Vec<_> = (0..readies).flat_map(|_| client.until_ready()).collect();
    tags(&all).replace('S', "")
}

/// §10. All on one client after the other, in a pool of one.
#[test]
fn the_check_list() {
    let pooler = pooler(|ini| _ = ini.set("query_wait_timeout", "60"));
    let client = pooler.raw("alice");
    let welcome = tags(&client.welcome);
    assert_eq!(welcome.replace('S', ""), "RKZ", "{welcome}");
    let (b, e) = (bind("", &[]), execute(0));
    let known = || parse("known", "SELECT 'known'");
    assert_eq!(answer(&mut pooler.raw("alice"), &[known(), sync()], 1), "1Z");
    for (name, messages, readies, expected) in [
        ("known statement", vec![known(), sync()], 1, "1Z"),
        ("P(known) D(S) S", vec![known(), describe(b'S', "known"), sync()], 1, "1tTZ"),
        (
            "C C P(unnamed) B E C S",
            vec![
                close(b'S', "none"),
                close(b'S', "nor this"),
                parse("", "SELECT 1"),
                b.clone(),
                e.clone(),
                close(b'S', "none"),
                sync(),
            ],
            1,
            "3312DC3Z",
        ),
        (
            "P B E Q S",
            vec![parse("", "SELECT 1"), b.clone(), e.clone(), query("SELECT 2"), sync()],
            2,
            "12DCTDCZZ",
        ),
        (
            "P(fails) B E Q S Q",
            vec![
                parse("", "no"),
                b.clone(),
                e.clone(),
                query("SELECT 2"),
                sync(),
                query("SELECT 3"),
            ],
            2,
            "EZTDCZ",
        ),
    ] {
        assert_eq!(answer(&mut pooler.raw("alice"), &messages, readies), expected, "{name}");
    }
    // C(S) without a server: no Sync, and nobody's server.
    let mut holder = pooler.raw("alice");
    holder.query("BEGIN");
    let mut other = pooler.raw("alice");
    other.send(&close(b'S', "none"));
    other.expect_tags("3");
    assert_eq!(tags(&holder.query("COMMIT")), "CZ");
    // P(fails) S, then B(same name) E S: prepared anew, fails anew.
    let mut client = pooler.raw("alice");
    assert_eq!(answer(&mut client, &[parse("bad", "SELECT nothing"), sync()], 1), "EZ");
    assert_eq!(answer(&mut client, &[bind("bad", &[]), e.clone(), sync()], 1), "EZ");
    // DEALLOCATE ALL, then B(old name).
    assert_eq!(answer(&mut client, &[known(), sync()], 1), "1Z");
    assert_eq!(answer(&mut client, &[query("DEALLOCATE ALL")], 1), "CZ");
    client.send(&[bind("known", &[]), e, sync()].concat());
    client.expect_fatal("prepared statement did not exist");
    // Only H: nothing; a server is taken, and comes back with the next Z.
    let mut flushing = pooler.raw("alice");
    flushing.send(&flush());
    let mut waiting = pooler.raw("alice");
    wait_for("it to have a server", || {
        let rows = console(&pooler, "postgres").query("SHOW CLIENTS");
        rows.iter().any(|row| row.tag == b'D' && !row.columns()[15].is_empty())
    });
    waiting.send(&query("SELECT 1"));
    assert!(waiting.is_quiet_for(std::time::Duration::from_millis(100)));
    assert_eq!(answer(&mut flushing, &[sync()], 1), "Z");
    assert_eq!(tags(&waiting.until_ready()), "TDCZ");
    // A backend that is terminated.
    let pid = waiting.backend_pid();
    waiting.query("BEGIN");
    let mut direct = Postgres::shared().client("app");
    direct.execute("SELECT pg_terminate_backend($1)", &[&pid]).expect("its end");
    let last = waiting.until_end();
    assert_eq!(tags(&last), "EE");
    assert_eq!(
        (last[0].field('C').as_str(), last[1].field('M').as_str()),
        ("57P01", "server conn crashed?")
    );
}

/// The last row: statement mode. What is judged is each ReadyForQuery; replies that came before it
/// are delivered, for nobody can depend on their loss (§3.9).
#[test]
fn statement_mode_ends_who_begins_a_transaction() {
    let pooler = pooler(|ini| _ = ini.set("pool_mode", "statement"));
    let text = "transaction blocks not allowed in statement pooling mode";
    let mut client = pooler.raw("alice");
    assert_eq!(tags(&client.query("BEGIN; SELECT 1; COMMIT")), "CTDCCZ");
    // In an extended query everything up to the Sync is one transaction of its own.
    let batch = [parse("", "SELECT 1"), bind("", &[]), execute(0), flush()].concat();
    client.send(&batch);
    client.expect_tags("12DC");
    client.send(&[batch, sync()].concat());
    client.expect_tags("12DCZ");
    for messages in [
        query("BEGIN"),
        query("START TRANSACTION; SELECT 1/0"),
        [parse("", "BEGIN"), bind("", &[]), execute(0), sync()].concat(),
    ] {
        let mut client = pooler.raw("alice");
        client.send(&messages);
        let all = client.until_end();
        let last = all.last().expect("words");
        assert!(!tags(&all).contains('Z'), "{}", tags(&all));
        let fields = ['S', 'C', 'M'].map(|field| last.field(field));
        assert_eq!(fields, ["FATAL", "08P01", text]);
    }
    let log = pooler.log();
    assert!(log.contains(&format!("closing because: {text} (age=")), "{log}");
    pooler.assert_serves();
}

/// `disable_pqexec`: no simple query, at whatever time; the extended protocol goes on.
#[test]
fn no_simple_query_where_it_is_disallowed() {
    let pooler = pooler(|ini| _ = ini.set("disable_pqexec", "1"));
    let mut client = pooler.raw("alice");
    let extended = [parse("", "SELECT 1"), bind("", &[]), execute(0), sync()];
    assert_eq!(answer(&mut client, &extended, 1), "12DCZ");
    assert_eq!(answer(&mut client, &[raw::message(b'F', b"\0\0\x06\x4a\0\0\0\0\0\0")], 1), "VZ");
    client.send(&query("SELECT 1"));
    client.expect_fatal("PQexec disallowed");
    // In the middle of a transaction, behind a query that is answered first.
    let mut client = pooler.raw("alice");
    let begin = [parse("", "BEGIN"), bind("", &[]), execute(0), sync()];
    assert_eq!(answer(&mut client, &begin, 1), "12CZ");
    client.send(&query("SELECT 1"));
    client.expect_fatal("PQexec disallowed");
    // While it waits for a server it is not heard.
    let mut holder = pooler.raw("alice");
    assert_eq!(answer(&mut holder, &begin, 1), "12CZ");
    let mut waiting = pooler.raw("alice");
    waiting.send(&[extended.concat(), query("SELECT 1")].concat());
    let commit = [parse("", "COMMIT"), bind("", &[]), execute(0), sync()];
    assert_eq!(answer(&mut holder, &commit, 1), "12CZ");
    let last = waiting.until_end();
    assert_eq!(last.last().expect("words").field('M'), "PQexec disallowed");
    let log = pooler.log();
    assert!(log.contains("ERROR client used \"Query\" packet type"), "{log}");
    assert!(log.contains("pooler error: PQexec disallowed"), "{log}");
}

/// §2.10: `disable_pqexec` hits the console, too, whoever is on it; what we speak there besides, the
/// extended protocol, is all that is left of it.
#[test]
fn no_simple_query_on_the_console_where_it_is_disallowed() {
    let pooler = pooler(|ini| _ = ini.set("disable_pqexec", "1").set("stats_users", "carol"));
    for user in ["postgres", "carol"] {
        for sql in ["SHOW VERSION", "RELOAD", "nonsense", ""] {
            let mut client = console(&pooler, user);
            client.send(&query(sql));
            client.expect_fatal("PQexec disallowed");
        }
        let mut client = console(&pooler, user);
        let extended = [parse("", "SHOW VERSION"), bind("", &[]), execute(0), sync()];
        assert_eq!(answer(&mut client, &extended, 1), "12DCZ", "{user}");
        client.send(&[extended.concat(), query("SHOW VERSION")].concat());
        assert_eq!(tags(&client.until_ready()), "12DCZ", "{user}: what came before it");
        client.expect_fatal("PQexec disallowed");
    }
    assert!(!pooler.log().contains("RELOAD command issued"), "{}", pooler.log());
}

/// `max_packet_size` counts type byte and length word, for every message, in both directions.
#[test]
fn no_message_is_longer_than_allowed() {
    const LIMIT: usize = 1000;
    let pooler = pooler(|ini| _ = ini.set("max_packet_size", &LIMIT.to_string()));
    // A message of so many bytes, all told.
    let of_length = |bytes: usize| query(&format!("SELECT '{}'", "x".repeat(bytes - 15)));
    assert_eq!(of_length(LIMIT).len(), LIMIT);
    let mut client = pooler.raw("alice");
    // The answer has a few bytes less.
    client.send(&of_length(LIMIT - 30));
    assert_eq!(tags(&client.until_ready()), "TDCZ");
    client.send(&of_length(LIMIT));
    assert_eq!(tags(&client.until_ready()), "TDCZ");
    client.send(&of_length(LIMIT + 1));
    client.expect_fatal("bad packet header: '51000003e853454c'");
    for tag in [b'd', b'P', b'F'] {
        let mut client = pooler.raw("alice");
        client.send(&message(tag, &vec![b'x'; LIMIT]));
        let hex = format!("{tag:02x}000003ec787878");
        client.expect_fatal(&format!("bad packet header: '{hex}'"));
    }
    // A first packet that is longer. (It never gets as far as its user.)
    let mut client = pooler.unnamed();
    let long = Startup::v3().param("user", "alice").param("application_name", &"x".repeat(LIMIT));
    client.send(&long.bytes());
    let error = client.message();
    assert!(error.field('M').starts_with("bad packet header: '000004"), "{error:?}");
    // A row that is longer: the server is at fault.
    let mut client = pooler.raw("alice");
    client.send(&query("SELECT repeat('x', 990)"));
    let last = client.until_end();
    assert_eq!(last.last().expect("words").field('M'), "bad pkt header");
    pooler.assert_serves();
}

/// What a server may say that is wrong, and what its client is told then.
#[test]
fn servers_that_talk_nonsense_end_with_their_clients() {
    let cases: [(&str, Vec<u8>); 5] = [
        ("broken ParameterStatus packet", message(b'S', b"TimeZone")),
        ("broken ParameterStatus packet", message(b'S', b"TimeZone\0UTC\0more\0")),
        ("unknown pkt", message(b'y', b"")),
        ("bad pkt header", b"D\0\0\0\x03".to_vec()),
        ("bad pkt header", message(b'Z', b"X")),
    ];
    let turn = AtomicUsize::new(0);
    let script = cases.clone();
    let server = FakeServer::start(move |visit| {
        visit.welcome();
        if visit.message().is_some_and(|message| message.tag == b'Q') {
            let case = turn.fetch_add(1, Ordering::AcqRel);
            visit.send(&[one_row("1").as_slice(), &script[case].1, &ready()].concat());
            visit.silence();
        }
    });
    let pooler = pooler(|ini| {
        ini.database("fake", &server.connect_string()).set("default_pool_size", "9");
    });
    for (text, _) in &cases {
        let startup = Startup::v3().param("user", "alice").param("database", "fake");
        let mut client = pooler.raw_with(startup);
        // Two queries: the first is answered, and behind the answer comes the nonsense.
        client.send(&[query("SELECT 1"), query("SELECT 2")].concat());
        let all = client.until_end();
        assert_eq!(tags(&all[..4]), "TDCZ");
        let fields = ['S', 'C', 'M'].map(|field| all.last().expect("words").field(field));
        assert_eq!(fields, ["FATAL", "08P01", *text]);
    }
    assert!(pooler.log().contains("ERROR unknown pkt: 'y'"), "{}", pooler.log());
    pooler.assert_serves();
}

/// §3.5: whoever leaves in the middle, and what the log says of his server.
#[test]
fn the_log_says_what_a_client_left_behind() {
    let server = FakeServer::start(|visit| {
        visit.welcome();
        // Of two queries one is answered.
        while visit.message().is_some_and(|message| message.tag == b'Q') {
            visit.send(&one_row("1"));
            let _ = visit.message();
        }
    });
    let pooler = pooler(|ini| {
        ini.database("fake", &server.connect_string()).set("pool_mode", "session");
    });
    let closing = |who: &str, reason: &str| {
        let log = pooler.log();
        log.lines().any(|line| {
            line.contains(&format!(" {who}-0x"))
                && line.contains(&format!("closing because: {reason} (age="))
        })
    };
    // Clean, with a word and without.
    let mut polite = pooler.raw("alice");
    polite.value("SELECT 1");
    polite.send(&raw::terminate());
    wait_for("its end", || closing("C", "client close request"));
    let mut rude = pooler.raw("alice");
    rude.value("SELECT 1");
    drop(rude);
    wait_for("its end", || closing("C", "client unexpected eof"));
    assert!(
        !pooler.log().contains("S-0x")
            || !closing("S", "client disconnect while server was not ready")
    );
    // In a transaction.
    let mut busy = pooler.raw("alice");
    busy.query("BEGIN");
    drop(busy);
    wait_for("its server's end", || closing("S", "client disconnect while server was not ready"));
    // With a reply still owed.
    let mut eager = pooler.raw_with(Startup::v3().param("user", "alice").param("database", "fake"));
    eager.send(&[query("SELECT 1"), query("SELECT 2")].concat());
    assert_eq!(tags(&eager.until_ready()), "TDCZ");
    drop(eager);
    wait_for("its server's end", || closing("S", "client disconnected with query in progress"));
    // In the middle of its first message.
    let mut halting = pooler.raw("alice");
    halting.value("SELECT 1");
    halting.send(b"Q\0\0\0\x10SELECT");
    wait_for("it to be on its way", || {
        let rows = console(&pooler, "postgres").query("SHOW CLIENTS");
        rows.iter()
            .any(|row| row.tag == b'D' && row.columns()[4] == "active" && row.columns()[2] == "app")
    });
    drop(halting);
    pooler.assert_serves();
}

/// §6.2, §9.6: nobody is told, but the log is.
#[test]
fn the_log_says_what_became_of_a_cancel() {
    let pooler = pooler(|_| {});
    let idle = pooler.raw("alice");
    let on_console = console(&pooler, "postgres");
    let mut wrong = idle.cancel_key();
    wrong[6] ^= 1;
    for (body, reason) in [
        (idle.cancel_key(), "cancel request for idle client"),
        (on_console.cancel_key(), "cancel request for console client"),
        (wrong, "failed cancel request"),
        (b"short".to_vec(), "bad cancel request"),
    ] {
        let mut canceller = pooler.unnamed();
        canceller.send(&untagged(CANCEL_REQUEST, &body));
        canceller.expect_end();
        let words = format!("closing because: {reason} (age=");
        // Who has not logged in leaves no line, unless that is all he came for.
        wait_for(reason, || pooler.log().contains(&words));
    }
    let mut busy = pooler.raw("alice");
    busy.send(&query("SELECT pg_sleep(600)"));
    let mut direct = Postgres::shared().client("app");
    let sleeps = "SELECT count(*) FROM pg_stat_activity \
                  WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'";
    wait_for("it to sleep", || {
        direct.query_one(sleeps, &[]).expect("a count").get::<_, i64>(0) > 0
    });
    let mut canceller = pooler.unnamed();
    canceller.send(&untagged(CANCEL_REQUEST, &busy.cancel_key()));
    canceller.expect_end();
    let cancelled = busy.until_ready();
    let error = cancelled.iter().find(|message| message.tag == b'E').expect("an error");
    assert_eq!(error.field('C'), "57014");
    wait_for("its line", || {
        pooler.log().contains("closing because: successfully sent cancel request")
    });
}

/// §11, D14: a query to the console may come in pieces.
#[test]
fn the_console_waits_for_the_rest_of_a_query() {
    let pooler = pooler(|_| {});
    let mut slow = console(&pooler, "postgres");
    for _ in 0..2 {
        slow.send_slowly(&query("SHOW VERSION"));
        assert_eq!(tags(&slow.until_ready()), "TDCZ");
    }
}

/// §11, D12: where names prove nothing, anybody may look at the console (as the contract warns), and
/// nobody who is not in `admin_users` may change anything.
#[test]
fn under_any_the_console_may_be_looked_at() {
    let pooler = pooler(|ini| {
        let connect = format!("host=127.0.0.1 port={} user=alice", Postgres::shared().port);
        for name in ["app", "postgres"] {
            ini.database(name, &connect);
        }
        ini.set("auth_type", "any");
    });
    let mut stranger = console(&pooler, "stranger");
    assert_eq!(tags(&stranger.query("SHOW POOL_MODE")).pop(), Some('Z'));
    assert_eq!(tags(&stranger.query("SHOW VERSION")), "TDCZ");
    let refused = stranger.query("PAUSE");
    assert_eq!(refused[0].field('M'), "admin access needed");
    assert_eq!(tags(&console(&pooler, "postgres").query("RELOAD")), "CZ");
}
