//! Which clock each limit of time is about, for whom it runs, and when it does not (client.md §3.7,
//! §3.8; server.md §1.5, §1.7, §1.9, §1.10, §2.7, §7.1).

mod common;

use common::desk::Desk;
use common::fake;
use common::raw::{self, message, untagged};
use ringbouncer::engine::io::{ClientAddress, Input};
use ringbouncer::keys::Conn;
use ringbouncer::pool::mode::Awaited;
use ringbouncer::pool::queues::ServerStanding;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn desk(before: &str, settings: &str) -> Desk {
    Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\n{before}\n\
         [pgbouncer]\npool_mode = transaction\nserver_check_query =\ndefault_pool_size = 1\n{settings}"
    ))
}

/// Who is in, by a server that is opened for that if there is none.
fn guest(desk: &mut Desk, database: &str) -> Conn {
    let client = desk.client("alice", database);
    if !desk.dialled.is_empty() {
        desk.server();
    }
    assert!(!desk.take(client).is_empty(), "a welcome");
    client
}

fn server_of(desk: &Desk, client: Conn) -> Conn {
    let Conn::Client(client) = client else { panic!("a client") };
    let server = desk.engine.house().clients.get(client).and_then(|client| client.server());
    Conn::Server(server.expect("it is served"))
}

/// Asks, and the server gets it but does not answer.
fn ask_in_vain(desk: &mut Desk, client: Conn) -> Conn {
    desk.ask(client);
    let server = server_of(desk, client);
    assert!(!desk.take(server).is_empty());
    server
}

/// A client that waits for the welcome is under the limits of who waits for a server.
#[test]
fn a_login_waits_no_longer_than_a_query() {
    for (setting, words) in [
        ("query_wait_timeout", "query_wait_timeout"),
        ("query_timeout", "query_timeout"),
        ("client_login_timeout", "client_login_timeout (server down)"),
    ] {
        let mut desk = desk("", &format!("server_connect_timeout = 100\n{setting} = 2\n"));
        let client = desk.client("alice", "app");
        desk.connect();
        desk.after(SECOND * 19 / 10);
        assert!(!desk.is_closed(client), "{setting}");
        desk.after(SECOND / 5);
        assert_eq!(desk.last_words(client).as_deref(), Some(words));
    }
}

/// A user's own query_timeout is about servers that work for it, not about the queue.
#[test]
fn who_is_queued_is_under_the_query_timeout_of_all_alone() {
    let mut desk = desk("[users]\nalice = query_timeout=2", "");
    let (busy, queued) = (guest(&mut desk, "app"), guest(&mut desk, "app"));
    let server = ask_in_vain(&mut desk, busy);
    desk.ask(queued);
    desk.after(SECOND * 21 / 10);
    assert_eq!(desk.last_words(busy).as_deref(), Some("query timeout"));
    assert!(desk.is_closed(server) && !desk.is_closed(queued));
    // It is served by another, and its query has taken too long already.
    desk.server();
    desk.after(SECOND / 10);
    assert_eq!(desk.last_words(queued).as_deref(), Some("query timeout"));
    let carriers = desk.dialled.iter().filter(|(key, _)| {
        let server = desk.engine.house().servers.get(*key);
        server.is_some_and(|server| format!("{:?}", server.state).contains("Cancel"))
    });
    assert_eq!(carriers.count(), 0, "no query is cancelled for that");
}

#[test]
fn a_session_that_has_its_server_may_be_idle_for_ever() {
    let mut desk = desk("", "client_idle_timeout = 5\n");
    let mut desk = {
        desk.engine.reload(
            common::desk::config(
                "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = session\n\
                 server_check_query =\ndefault_pool_size = 1\nclient_idle_timeout = 5\n",
            ),
            None,
            desk.now,
        );
        desk.perform();
        desk
    };
    let client = guest(&mut desk, "app");
    desk.ask(client);
    let server = server_of(&desk, client);
    desk.answer(server);
    desk.after(SECOND * 1000);
    assert!(!desk.is_closed(client), "it has a server");
    desk.ask(client);
    desk.answer(server);
}

/// No limit of time runs in a suspension; afterwards they all count what has passed.
#[test]
fn in_a_suspension_no_time_passes() {
    let settings = "admin_users = bob\nquery_timeout = 3\nclient_idle_timeout = 3\n\
                    server_idle_timeout = 3\nserver_lifetime = 3\nsuspend_timeout = 0\n\
                    default_pool_size = 2\n";
    let mut desk = desk("", settings);
    let operator = desk.client("bob", "pgbouncer");
    assert!(!desk.take(operator).is_empty());
    let (busy, idle) = (guest(&mut desk, "app"), guest(&mut desk, "app"));
    let server = ask_in_vain(&mut desk, busy);
    desk.engine.suspend(desk.now);
    desk.perform();
    assert!(desk.engine.house().mode.is_quiet(), "a query that runs does not hold it up");
    desk.after(SECOND * 100);
    assert!(desk.closed.is_empty(), "{:?}", desk.closed);
    assert!(desk.engine.house().mode.is_quiet());
    assert!(desk.engine.resume(desk.now));
    desk.after(SECOND / 10);
    assert_eq!(desk.last_words(busy).as_deref(), Some("query timeout"));
    assert_eq!(desk.last_words(idle).as_deref(), Some("client_idle_timeout"));
    assert!(desk.is_closed(server) && !desk.is_closed(operator));
}

/// Queued or just about to be: both are sent away at once. Who has a server goes on.
#[test]
fn nobody_begins_to_wait_when_servers_are_awaited() {
    let mut desk = desk("", "");
    let clients = [guest(&mut desk, "app"), guest(&mut desk, "app"), guest(&mut desk, "app")];
    let [busy, queued, late] = clients;
    let server = ask_in_vain(&mut desk, busy);
    desk.ask(queued);
    desk.engine.shut_down(Awaited::Servers, desk.now);
    desk.perform();
    assert_eq!(desk.last_words(queued).as_deref(), Some("server shutting down"));
    assert!(!desk.is_closed(late) && !desk.is_closed(busy));
    desk.ask(late);
    assert_eq!(desk.last_words(late).as_deref(), Some("server shutting down"));
    desk.feed(server, &fake::one_row("1"));
    assert_eq!(desk.take(busy), fake::one_row("1"));
    desk.perform();
    assert!(desk.engine.is_over());
}

/// A connection for a cancel may be one more than all limits, and a pool has at most as many of them
/// as it has servers.
#[test]
fn a_cancel_is_kept_out_by_no_limit() {
    let mut desk = desk("", "max_db_connections = 1\nmax_user_connections = 1\n");
    let client = guest(&mut desk, "app");
    ask_in_vain(&mut desk, client);
    let key = {
        let Conn::Client(key) = client else { panic!("a client") };
        desk.engine.house().clients.get(key).expect("it is there").secret
    };
    let cancel = |desk: &mut Desk| {
        let from = ClientAddress::Unix { pid: 0, uid: None };
        let asker = Conn::Client(desk.engine.accept(from, [9; 8], desk.now));
        desk.feed(asker, &untagged(raw::CANCEL_REQUEST, &key));
        asker
    };
    let askers = [cancel(&mut desk), cancel(&mut desk)];
    assert_eq!(desk.dialled.len(), 1, "one more than the limits, and twice the pool's size");
    let (carrier, _) = desk.dialled.pop_front().expect("a carrier");
    desk.handle(Input::Connected { server: carrier, local: None });
    let carrier = Conn::Server(carrier);
    assert_eq!(desk.take(carrier), untagged(raw::CANCEL_REQUEST, &[1, 2, 3, 4, 5, 6, 7, 8]));
    let (_, pool) = desk.pool("app", "alice").expect("it is there");
    assert_eq!(pool.servers.count(ServerStanding::Carrier), 1);
    desk.leave(carrier);
    assert!(desk.is_closed(askers[0]) && !desk.is_closed(askers[1]));
    assert_eq!(desk.dialled.len(), 1, "now the next");
}

/// As many as it takes are evicted, the one that was unused for the longest first.
#[test]
fn a_limit_that_is_lowered_is_kept_by_whoever_needs_a_server() {
    let before = "one = host=127.0.0.1\ntwo = host=127.0.0.1\nthree = host=127.0.0.1";
    let mut desk = desk(before, "max_user_connections = 4\n");
    let servers: Vec<Conn> = ["app", "one", "two"]
        .map(|database| {
            let client = guest(&mut desk, database);
            desk.ask(client);
            let server = server_of(&desk, client);
            desk.answer(server);
            desk.after(SECOND);
            server
        })
        .into();
    let text = format!(
        "[databases]\napp = host=127.0.0.1\n{before}\n[pgbouncer]\npool_mode = transaction\n\
         server_check_query =\nmax_user_connections = 2\n"
    );
    desk.engine.reload(common::desk::config(&text), None, desk.now);
    desk.perform();
    assert!(servers.iter().all(|server| !desk.is_closed(*server)), "nobody needs one");
    desk.client("alice", "three");
    let closed = servers.iter().map(|server| desk.is_closed(*server));
    assert_eq!(closed.collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(desk.dialled.len(), 1);
}

/// Its results are nobody's, whatever they are; one that leaves a transaction open is no success.
#[test]
fn what_a_connect_query_says_is_for_nobody() {
    let mut desk = desk("greeted = host=127.0.0.1 connect_query='select 1'", "");
    let client = desk.client("alice", "greeted");
    let server = desk.connect();
    desk.feed(server, &fake::welcome());
    assert!(desk.take(client).is_empty(), "the login is not over");
    assert_eq!(desk.take(server), raw::query("select 1"));
    let said = [
        message(b'N', b"SNOTICE\0C00000\0Mhm\0\0"),
        message(b'A', b"\0\0\0\x01channel\0\0"),
        message(b'S', b"TimeZone\0Asia/Tokyo\0"),
        fake::one_row("1"),
    ];
    desk.feed(server, &said.concat());
    let welcome = String::from_utf8_lossy(&desk.take(client)).into_owned();
    assert!(welcome.contains("TimeZone\0Asia/Tokyo\0"), "what it has set is known");
    assert!(!welcome.contains("hm") && !welcome.contains("channel"));
    desk.ask(client);
    desk.answer(server);
    // A transaction would be the first client's trouble.
    let late = desk.client("bob", "greeted");
    let server = desk.connect();
    desk.feed(server, &fake::welcome());
    desk.take(server);
    desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
    assert!(desk.is_closed(server) && !desk.is_closed(late));
    let (_, pool) = desk.pool("greeted", "bob").expect("it is there");
    assert_eq!(pool.fails_fast(), Some("exec_on_connect query failed"));
}

/// What the operator has paused, or wants servers kept for, is not cleaned up.
#[test]
fn what_is_wanted_is_not_unused() {
    for setting in ["pool_idle_timeout", "autodb_idle_timeout"] {
        let mut desk = Desk::new(&format!(
            "[databases]\nkept = host=127.0.0.1 user=bob min_pool_size=1\n* = host=127.0.0.2\n\
             [pgbouncer]\npool_mode = transaction\nautodb_idle_timeout = 0\n{setting} = 5\n\
             server_idle_timeout = 1\nserver_check_query =\n"
        ));
        desk.after(SECOND);
        let kept = desk.server();
        for database in ["paused", "unused"] {
            let client = guest(&mut desk, database);
            desk.leave(client);
        }
        desk.engine.pause_database("paused", desk.now);
        desk.perform();
        desk.after(SECOND * 100);
        assert!(desk.pool("kept", "bob").is_some() && !desk.is_closed(kept));
        assert!(desk.pool("unused", "alice").is_none(), "nobody uses it");
        let is_pool = setting == "pool_idle_timeout";
        assert_eq!(desk.pool("paused", "alice").is_none(), is_pool, "{setting}");
    }
}
