//! How long clients and transactions may take: each limit, its text, and that nothing else is hit.
//! Time passes when the test says so; the last tests meet a real PostgreSQL.

mod common;

use common::desk::{Desk, config};
use common::raw::{self, message};
use common::{Pooler, Raw, Startup, wait_for};
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::keys::Conn;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

fn desk(settings: &str) -> Desk {
    Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\n\
         [pgbouncer]\npool_mode = transaction\nserver_check_query =\ndefault_pool_size = 1\n{settings}"
    ))
}

/// A client that has its welcome, of a pool that gets a server for that if it has none yet.
fn client(desk: &mut Desk, user: &str, database: &str) -> Conn {
    let client = desk.client(user, database);
    if !desk.dialled.is_empty() {
        desk.server();
    }
    assert!(!desk.take(client).is_empty(), "a welcome");
    client
}

fn alice(desk: &mut Desk) -> Conn {
    client(desk, "alice", "app")
}

fn server_of(desk: &Desk, client: Conn) -> Conn {
    let Conn::Client(client) = client else { panic!("a client") };
    let server = desk.engine.house().clients.get(client).and_then(|client| client.server());
    Conn::Server(server.expect("it is served"))
}

/// The server of this client ends what it was asked, outside of a transaction (`I`) or in it.
fn answer(desk: &mut Desk, client: Conn, status: u8) {
    let server = server_of(desk, client);
    desk.take(server);
    let words = [message(b'C', b"BEGIN\0"), message(b'Z', &[status])].concat();
    desk.feed(server, &words);
    desk.take(client);
}

fn reload(desk: &mut Desk, text: &str) {
    let users: Option<Userlist> = None;
    desk.engine.reload(config(text), users.map(Into::into), desk.now);
    desk.perform();
}

/// Nothing but this is heard by a client whose server was ended for it, and PostgreSQL is told
/// goodbye.
fn assert_ended_with(desk: &Desk, client: Conn, server: Conn, words: &str) {
    assert_eq!(desk.last_words(client).as_deref(), Some(words));
    let farewell = desk.closed.iter().find(|(conn, _)| *conn == server);
    assert!(farewell.is_some(), "its server has gone");
}

#[test]
fn a_query_that_takes_too_long_ends_with_its_server() {
    let mut desk = desk("query_timeout = 5");
    let one = alice(&mut desk);
    desk.ask(one);
    let server = server_of(&desk, one);
    desk.take(server);
    // It has begun to answer: that is no end of it.
    desk.after(SECOND * 3);
    desk.feed(server, &message(b'C', b"SELECT 1\0"));
    desk.take(one);
    desk.after(SECOND * 2 - MOMENT);
    assert!(!desk.is_closed(one));
    desk.after(MOMENT);
    assert_ended_with(&desk, one, server, "query timeout");
    let (_, goodbye) = desk.closed.iter().find(|(conn, _)| *conn == server).unwrap();
    assert_eq!(*goodbye, raw::terminate());
}

/// A word of ours would be taken for the rest of the row.
#[test]
fn a_limit_that_is_reached_in_the_middle_of_a_row_ends_in_silence() {
    let mut desk = desk("query_timeout = 5");
    let one = alice(&mut desk);
    desk.ask(one);
    let server = server_of(&desk, one);
    desk.take(server);
    desk.feed(server, b"D\0\0\0\x20\0\x01");
    desk.take(one);
    desk.after(SECOND * 5);
    assert!(desk.is_closed(one) && desk.is_closed(server));
    assert_eq!(desk.last_words(one), None);
}

/// Reliability 20.
#[test]
fn a_query_timeout_needs_a_query() {
    let mut desk = desk("query_timeout = 5");
    let (one, two) = (alice(&mut desk), alice(&mut desk));
    desk.ask(one);
    answer(&mut desk, one, b'T');
    desk.after(SECOND * 100);
    assert!(!desk.is_closed(one), "nothing runs in its transaction");
    desk.ask(one);
    answer(&mut desk, one, b'I');
    desk.after(SECOND * 100);
    desk.ask(two);
    desk.after(SECOND * 4);
    answer(&mut desk, two, b'I');
    for _ in 0..20 {
        desk.after(SECOND);
        desk.ask(two);
        desk.after(SECOND);
        answer(&mut desk, two, b'I');
    }
    assert!(desk.closed.is_empty(), "who is in time is never interrupted");
}

#[test]
fn a_query_that_waits_too_long_is_spelt_otherwise() {
    let mut desk = desk("query_timeout = 5");
    let (one, two) = (alice(&mut desk), alice(&mut desk));
    desk.ask(one);
    answer(&mut desk, one, b'T');
    desk.ask(two);
    desk.after(SECOND * 5 - MOMENT);
    assert!(!desk.is_closed(two));
    desk.after(MOMENT);
    assert_eq!(desk.last_words(two).as_deref(), Some("query_timeout"));
    assert!(!desk.is_closed(one));
}

/// The time in the queue counts for the query and for the transaction.
#[test]
fn the_clock_runs_before_there_is_a_server() {
    for (settings, words) in
        [("query_timeout = 5", "query timeout"), ("transaction_timeout = 5", "transaction timeout")]
    {
        let mut desk = desk(settings);
        let (one, two) = (alice(&mut desk), alice(&mut desk));
        desk.ask(one);
        desk.ask(two);
        desk.after(SECOND * 4);
        answer(&mut desk, one, b'I');
        let server = server_of(&desk, two);
        desk.after(SECOND - MOMENT);
        assert!(!desk.is_closed(two));
        desk.after(MOMENT);
        assert_ended_with(&desk, two, server, words);
    }
}

/// Reliability 20: a slow query in a transaction is not an idle transaction.
#[test]
fn an_idle_transaction_ends_and_a_busy_one_does_not() {
    let mut desk = desk("idle_transaction_timeout = 5");
    let one = alice(&mut desk);
    desk.ask(one);
    answer(&mut desk, one, b'T');
    desk.after(SECOND * 4);
    desk.ask(one);
    desk.after(SECOND * 100);
    assert!(!desk.is_closed(one), "a slow query");
    answer(&mut desk, one, b'E');
    let server = server_of(&desk, one);
    desk.after(SECOND * 5 - MOMENT);
    assert!(!desk.is_closed(one));
    desk.after(MOMENT);
    assert_ended_with(&desk, one, server, "idle transaction timeout");
}

#[test]
fn a_transaction_may_take_so_long_whatever_it_does() {
    let mut desk = desk("transaction_timeout = 10");
    let one = alice(&mut desk);
    for _ in 0..3 {
        desk.ask(one);
        answer(&mut desk, one, b'T');
        desk.after(SECOND * 3);
    }
    let server = server_of(&desk, one);
    desk.after(SECOND - MOMENT);
    assert!(!desk.is_closed(one));
    desk.after(MOMENT);
    assert_ended_with(&desk, one, server, "transaction timeout");
    // One after the other, each in time.
    let two = alice(&mut desk);
    for _ in 0..10 {
        desk.ask(two);
        desk.after(SECOND * 2);
        while !desk.dialled.is_empty() {
            desk.server();
        }
        answer(&mut desk, two, b'I');
    }
    assert!(!desk.is_closed(two));
}

#[test]
fn in_session_pooling_each_query_has_its_own_time() {
    let mut desk = desk("pool_mode = session\nquery_timeout = 5\nclient_idle_timeout = 7");
    let one = alice(&mut desk);
    desk.ask(one);
    answer(&mut desk, one, b'I');
    desk.after(SECOND * 1000);
    assert!(!desk.is_closed(one), "who has a server is not idle");
    desk.ask(one);
    let server = server_of(&desk, one);
    desk.after(SECOND * 5);
    assert_ended_with(&desk, one, server, "query timeout");
}

#[test]
fn a_client_without_a_server_may_be_idle_so_long() {
    let mut desk = desk("client_idle_timeout = 60");
    let (one, two) = (alice(&mut desk), alice(&mut desk));
    desk.after(SECOND * 59);
    desk.ask(one);
    desk.after(SECOND);
    assert_eq!(desk.last_words(two).as_deref(), Some("client_idle_timeout"));
    // A query that takes longer than that is no idleness, nor is the moment after it.
    desk.after(SECOND * 100);
    answer(&mut desk, one, b'I');
    desk.after(SECOND * 60 - MOMENT);
    assert!(!desk.is_closed(one));
    desk.after(MOMENT);
    assert_eq!(desk.last_words(one).as_deref(), Some("client_idle_timeout"));
}

/// Nor is a long login, or a long wait that somebody has called off.
#[test]
fn who_has_waited_is_not_idle_from_then_on() {
    let mut desk = desk("client_idle_timeout = 60\nclient_login_timeout = 0");
    let one = desk.client("alice", "app");
    desk.after(SECOND * 100);
    while !desk.dialled.is_empty() {
        desk.server();
    }
    let welcome = desk.take(one);
    desk.after(SECOND * 59);
    assert!(!desk.is_closed(one));
    let two = alice(&mut desk);
    desk.ask(two);
    desk.ask(one);
    desk.after(SECOND * 100);
    let key = welcome.windows(5).position(|head| head == b"K\0\0\0\x0c").unwrap() + 5;
    let from = ringbouncer::engine::io::ClientAddress::Unix { pid: 0, uid: None };
    let canceller = Conn::Client(desk.engine.accept(from, [9; 8], desk.now));
    desk.feed(canceller, &raw::untagged(80_877_102, &welcome[key..key + 8]));
    assert!(!desk.take(one).is_empty(), "its query was cancelled");
    desk.after(SECOND * 59);
    assert!(!desk.is_closed(one));
    desk.after(SECOND);
    assert_eq!(desk.last_words(one).as_deref(), Some("client_idle_timeout"));
}

/// D7 of the contract, and the overrides of `[users]`.
#[test]
fn the_limit_of_one_user_is_none_for_another() {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1\nforced = host=127.0.0.1 user=bob\n\
         [users]\nbob = client_idle_timeout=10 query_timeout=3\n\
         carol = query_timeout=30 query_wait_timeout=2\n\
         [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\n",
    );
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|user| client(&mut desk, user, "app"));
    let forced = client(&mut desk, "carol", "forced");
    desk.ask(forced);
    let server = server_of(&desk, forced);
    // Who waits is measured by his own name, who works by that of the server.
    let waiting = client(&mut desk, "carol", "forced");
    desk.ask(waiting);
    desk.after(SECOND * 2);
    assert_eq!(desk.last_words(waiting).as_deref(), Some("query_wait_timeout"));
    desk.after(SECOND);
    assert_ended_with(&desk, forced, server, "query timeout");
    desk.after(SECOND * 100);
    assert_eq!(desk.last_words(bob).as_deref(), Some("client_idle_timeout"));
    assert!(!desk.is_closed(alice) && !desk.is_closed(carol));
}

/// D18: nothing else has to be set for it.
#[test]
fn the_users_own_wait_limit_goes_before_that_of_the_database() {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1 user=carol query_wait_timeout=20\n\
         [users]\nalice = query_wait_timeout=0\nbob = query_wait_timeout=7\n\
         [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\n",
    );
    let users = ["carol", "alice", "bob", "carol"];
    let [busy, alice, bob, carol] = users.map(|user| client(&mut desk, user, "app"));
    for client in [busy, alice, bob, carol] {
        desk.ask(client);
    }
    for (seconds, ended) in [(7, bob), (13, carol)] {
        desk.after(SECOND * seconds - MOMENT);
        assert!(!desk.is_closed(ended));
        desk.after(MOMENT);
        assert_eq!(desk.last_words(ended).as_deref(), Some("query_wait_timeout"));
    }
    desk.after(SECOND * 10_000);
    assert!(!desk.is_closed(alice), "0 is for ever");
}

#[test]
fn a_reload_makes_limits_shorter_and_longer_at_once() {
    let text = |settings: &str| {
        format!(
            "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
             default_pool_size = 1\n{settings}"
        )
    };
    let mut desk = Desk::new(&text("query_wait_timeout = 0"));
    let [busy, waiting, idle] = [(); 3].map(|()| alice(&mut desk));
    desk.ask(busy);
    desk.ask(waiting);
    desk.after(SECOND * 10);
    let limits = "query_timeout = 100\nquery_wait_timeout = 11\nclient_idle_timeout = 12";
    reload(&mut desk, &text(limits));
    assert!(desk.closed.is_empty());
    desk.after(SECOND);
    assert_eq!(desk.last_words(waiting).as_deref(), Some("query_wait_timeout"));
    desk.after(SECOND);
    assert_eq!(desk.last_words(idle).as_deref(), Some("client_idle_timeout"));
    reload(&mut desk, &text("query_timeout = 13"));
    assert!(!desk.is_closed(busy));
    reload(&mut desk, &text("query_timeout = 200"));
    desk.after(SECOND * 100);
    assert!(!desk.is_closed(busy));
    reload(&mut desk, &text("query_timeout = 20"));
    assert_eq!(desk.last_words(busy).as_deref(), Some("query timeout"));
}

#[test]
fn who_waits_in_a_pause_is_not_forgotten() {
    let mut desk = desk("query_wait_timeout = 9\nquery_wait_notify = 1");
    let one = alice(&mut desk);
    desk.engine.pause(desk.now);
    desk.perform();
    desk.ask(one);
    desk.after(SECOND * 9 - MOMENT);
    assert!(desk.take(one).is_empty(), "nor told that it waits");
    desk.after(MOMENT);
    assert_eq!(desk.last_words(one).as_deref(), Some("query_wait_timeout"));
}

const NOTICE: &[u8] = b"SNOTICE\0C00000\0\
    MNo server connection available in postgres backend, client being queued\0\0";

#[test]
fn who_waits_the_longest_is_told_once() {
    let mut desk = desk("query_wait_notify = 1");
    let clients = [(); 4].map(|()| alice(&mut desk));
    clients.iter().for_each(|client| desk.ask(*client));
    let [busy, first, second, third] = clients;
    desk.after(SECOND * 2 - MOMENT);
    assert!(desk.take(first).is_empty(), "more than one whole second");
    desk.after(MOMENT);
    assert_eq!(desk.take(first), message(b'N', NOTICE));
    desk.after(SECOND * 10);
    assert!(desk.take(first).is_empty() && desk.take(second).is_empty());
    answer(&mut desk, busy, b'I');
    assert_eq!(desk.take(second), message(b'N', NOTICE), "the next one is the first now");
    answer(&mut desk, first, b'I');
    assert_eq!(desk.take(third), message(b'N', NOTICE));
    // Told or not, their replies are whole.
    answer(&mut desk, second, b'I');
    answer(&mut desk, third, b'I');
    desk.ask(busy);
    desk.ask(first);
    desk.after(SECOND * 2);
    assert_eq!(desk.take(first), message(b'N', NOTICE), "once in each stay");
}

#[test]
fn nobody_is_told_without_a_time_or_in_his_login() {
    let mut desk = desk("query_wait_notify = 0");
    let (busy, waiting) = (alice(&mut desk), alice(&mut desk));
    desk.ask(busy);
    desk.ask(waiting);
    desk.after(SECOND * 100);
    assert!(desk.take(waiting).is_empty());
    let mut desk = self::desk("query_wait_notify = 1");
    let early = desk.client("alice", "app");
    desk.after(SECOND * 10);
    assert!(desk.take(early).is_empty());
}

#[test]
fn the_one_who_waits_behind_is_told_when_the_first_gives_up() {
    let mut desk = desk("query_wait_notify = 1\nquery_wait_timeout = 10");
    let [busy, first] = [(); 2].map(|()| alice(&mut desk));
    desk.ask(busy);
    desk.ask(first);
    desk.after(SECOND * 5);
    let second = alice(&mut desk);
    desk.ask(second);
    desk.after(SECOND * 4);
    assert!(desk.take(second).is_empty());
    desk.after(SECOND);
    assert_eq!(desk.last_words(first).as_deref(), Some("query_wait_timeout"));
    assert_eq!(desk.take(second), message(b'N', NOTICE));
}

#[test]
fn a_cancel_request_that_cannot_be_forwarded_is_dropped_in_silence() {
    let mut desk = desk("cancel_wait_timeout = 5\nserver_connect_timeout = 60");
    let one = desk.client("alice", "app");
    desk.server();
    let welcome = desk.take(one);
    let key = welcome.windows(5).position(|head| head == b"K\0\0\0\x0c").unwrap() + 5;
    let secret = welcome[key..key + 8].to_vec();
    desk.ask(one);
    let from = ringbouncer::engine::io::ClientAddress::Unix { pid: 0, uid: None };
    let canceller = Conn::Client(desk.engine.accept(from, [9; 8], desk.now));
    desk.feed(canceller, &raw::untagged(80_877_102, &secret));
    assert_eq!(desk.dialled.len(), 1, "a connection for the request");
    desk.after(SECOND * 5 - MOMENT);
    assert!(!desk.is_closed(canceller));
    desk.after(MOMENT);
    assert!(desk.is_closed(canceller));
    assert_eq!(desk.last_words(canceller), None);
    assert!(!desk.is_closed(one));
}

/// D10: PgBouncer ends it at once, for its transaction never began.
#[test]
fn limits_of_clients_are_none_for_our_own_questions() {
    let limits = "auth_user = carol\nauth_query = SELECT $1, $1\nclient_login_timeout = 0\n\
                  query_timeout = 5\ntransaction_timeout = 5\nidle_transaction_timeout = 5";
    let mut desk = desk(limits);
    let (asked, waiting) = (desk.client("dave", "app"), desk.client("dora", "app"));
    let server = desk.server();
    assert!(!desk.take(server).is_empty(), "it is asked about dave");
    desk.after(SECOND * 5);
    assert_eq!(desk.last_words(waiting).as_deref(), Some("query_timeout"), "as all who wait");
    desk.after(SECOND * 1000);
    assert!(!desk.is_closed(asked) && !desk.is_closed(server));
}

/// What a limit costs is how long it is, not how many queries there are; and who is under none
/// costs nothing.
#[test]
fn limits_are_looked_at_as_rarely_as_they_are_long() {
    let mut desk = desk("query_timeout = 10\ntransaction_timeout = 10\nquery_wait_timeout = 10");
    let clients = [(); 5].map(|()| alice(&mut desk));
    desk.after(SECOND * 100);
    let before = looks(&desk);
    for _ in 0..2000 {
        for client in clients {
            desk.ask(client);
        }
        for _ in clients {
            let busy = clients.into_iter().find(|client| {
                let Conn::Client(key) = *client else { panic!("a client") };
                let client = desk.engine.house().clients.get(key);
                client.is_some_and(|client| client.server().is_some())
            });
            answer(&mut desk, busy.unwrap(), b'I');
        }
        desk.after(MOMENT * 10);
    }
    // 20 seconds: each of six connections, every ten seconds.
    let looked = looks(&desk) - before;
    assert!((2..=18).contains(&looked), "{looked} looks for 10000 queries");
    desk.after(SECOND * 20);
    let quiet = looks(&desk);
    desk.after(SECOND * 500);
    assert_eq!(looks(&desk), quiet, "nobody is under a limit");
    assert!(desk.closed.is_empty());
}

fn looks(desk: &Desk) -> u64 {
    desk.engine.house().watches.looks
}

fn pooler(settings: &[(&str, &str)]) -> Pooler {
    Pooler::start(|ini| {
        ini.set("pool_mode", "transaction").set("default_pool_size", "1");
        for (name, value) in settings {
            ini.set(name, value);
        }
    })
}

fn wait_for_log(pooler: &Pooler, line: &str) {
    wait_for(line, || pooler.log().contains(line));
}

#[test]
fn postgresql_is_left_in_the_middle_of_a_query() {
    // While PostgreSQL goes on, the place of the server that was left is not free at once.
    let pooler = pooler(&[("query_timeout", "1"), ("default_pool_size", "2")]);
    let mut one = pooler.raw("alice");
    one.send(&raw::query("SELECT pg_sleep(20)"));
    one.expect_fatal("query timeout");
    wait_for_log(&pooler, "closing because: query timeout (age=");
    wait_for_log(&pooler, "pooler error: query timeout");
    let log = pooler.log();
    let place = |start: &str| {
        let found = log.lines().position(|line| {
            line.contains(start) && line.contains("closing because: query timeout")
        });
        found.unwrap_or_else(|| panic!("no line of {start} in {log}"))
    };
    assert!(place(" S-") < place(" C-"), "the server's line comes first");
    pooler.assert_serves();
}

#[test]
fn a_transaction_that_is_left_open_ends() {
    for (setting, words) in [
        ("idle_transaction_timeout", "idle transaction timeout"),
        ("transaction_timeout", "transaction timeout"),
    ] {
        let pooler = pooler(&[(setting, "1")]);
        let mut one = pooler.raw("alice");
        one.query("BEGIN");
        one.expect_fatal(words);
        // PostgreSQL was told goodbye and has rolled back; the next client gets a server.
        pooler.assert_serves();
        wait_for_log(&pooler, &format!("pooler error: {words}"));
    }
}

#[test]
fn an_idle_client_ends_and_a_waiting_one_is_told_so() {
    let pooler = pooler(&[("client_idle_timeout", "2"), ("query_wait_notify", "1")]);
    let (mut busy, mut idle): (Raw, Raw) = (pooler.raw("alice"), pooler.raw("alice"));
    let mut waiting = pooler.raw("alice");
    let startup = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
    let mut console = pooler.raw_with(startup);
    busy.send(&raw::query("BEGIN"));
    busy.until_ready();
    busy.send(&raw::query("SELECT pg_sleep(4)"));
    waiting.send(&raw::query("SELECT 1"));
    let notice = waiting.message();
    assert_eq!((notice.tag, notice.field('C').as_str()), (b'N', "00000"));
    idle.expect_fatal("client_idle_timeout");
    busy.expect_tags("TDCZ");
    busy.query("COMMIT");
    waiting.expect_tags("TDCZ");
    // The console is under no limit.
    assert_eq!(console.query("SHOW VERSION").last().expect("an answer").tag, b'Z');
}

/// What is changed on the console holds for those who are there.
#[test]
fn a_limit_set_on_the_console_holds_at_once() {
    let pooler = pooler(&[("default_pool_size", "2")]);
    let (mut idle, mut busy) = (pooler.raw("alice"), pooler.raw("alice"));
    busy.query("BEGIN");
    let startup = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
    let mut console = pooler.raw_with(startup);
    console.query("SET idle_transaction_timeout = 1");
    busy.expect_fatal("idle transaction timeout");
    console.query("SET client_idle_timeout = 1");
    idle.expect_fatal("client_idle_timeout");
}

/// How often a process has gone to sleep, and been woken.
fn wake_ups(pooler: &Pooler) -> u64 {
    let path = format!("/proc/{}/status", pooler.pid());
    let status = std::fs::read_to_string(path).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).expect("a count")
}

/// Deadlines that are far away wake nobody, and one that is over does not come again and again.
#[test]
fn who_waits_for_far_deadlines_sleeps() {
    let far = ["query_timeout", "transaction_timeout", "idle_transaction_timeout"];
    let mut settings = far.map(|name| (name, "1000")).to_vec();
    settings.extend([("client_idle_timeout", "1000"), ("query_wait_notify", "1")]);
    settings.extend([("server_check_delay", "1"), ("min_pool_size", "1")]);
    let pooler = pooler(&settings);
    let (mut busy, mut waiting) = (pooler.raw("alice"), pooler.raw("alice"));
    // Its server is unused, and to be tried out.
    let mut idle = pooler.raw_with(Startup::v3().param("user", "bob").param("database", "app"));
    idle.query("SELECT 1");
    busy.query("BEGIN");
    waiting.send(&raw::query("SELECT 1"));
    assert_eq!(waiting.message().tag, b'N', "it has been told that it waits");
    let before = wake_ups(&pooler);
    assert!(waiting.is_quiet_for(SECOND * 2));
    let woken = wake_ups(&pooler) - before;
    assert!(woken < 20, "woken {woken} times in two seconds");
}
