//! Clients that replicate, under all limits, on a desk: what counts, who makes room, and who waits.

mod common;

use common::desk::Desk;
use common::raw::{self, Startup, message};
use ringbouncer::engine::io::ClientAddress;
use ringbouncer::keys::Conn;
use ringbouncer::session::client::State;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const QUEUED: &[u8] = b"No server connection available in postgres backend, client being queued";
/// Of either kind: neither changes what is counted.
const KINDS: [&str; 2] = ["database", "on"];

fn desk(settings: &str) -> Desk {
    Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\nother = host=127.0.0.1\n\
         [pgbouncer]\npool_mode = transaction\n{settings}"
    ))
}

/// A client that wants to replicate and has sent its Startup.
fn replicator(desk: &mut Desk, user: &str, database: &str, kind: &str) -> Conn {
    let from = ClientAddress::Unix { pid: 0, uid: None };
    let client = Conn::Client(desk.engine.accept(from, [9; 8], desk.now));
    let startup = Startup::v3().param("user", user).param("database", database);
    desk.feed(client, &startup.param("replication", kind).bytes());
    client
}

/// A client that has been served once, and its server, which is idle now.
fn served(desk: &mut Desk, user: &str, database: &str) -> (Conn, Conn) {
    let client = desk.client(user, database);
    let server = desk.server();
    desk.take(client);
    desk.ask(client);
    desk.answer(server);
    (client, server)
}

fn is_active(desk: &Desk, conn: Conn) -> bool {
    let Conn::Client(key) = conn else { panic!("no client") };
    let client = desk.engine.house().clients.get(key);
    client.is_some_and(|client| matches!(client.state, State::Active { .. }))
}

fn begin_to_stream(desk: &mut Desk, client: Conn, server: Conn) {
    desk.feed(client, &raw::query("START_REPLICATION PHYSICAL 0/0"));
    assert!(!desk.take(server).is_empty());
    desk.feed(server, &message(b'W', &[0, 0, 0]));
    desk.take(client);
}

/// What its server is told: the kind, as PostgreSQL spells it, and no word of other clients.
#[test]
fn the_startup_of_each_kind_is_its_own() {
    for (kind, told) in [("database", "database"), ("on", "yes"), ("TRUE", "yes"), ("1", "yes")] {
        let mut desk = desk("");
        let client = replicator(&mut desk, "alice", "app", kind);
        let (server, _) = desk.dialled.pop_front().expect("a server of its own");
        let server_conn = Conn::Server(server);
        desk.handle(ringbouncer::engine::io::Input::Connected { server, local: None });
        let words = raw::c_strings(&desk.take(server_conn)[8..]);
        assert_eq!(words, ["database", "app", "replication", told, "user", "alice", ""]);
        desk.feed(server_conn, &common::fake::welcome());
        assert!(is_active(&desk, client));
    }
}

/// Client.md §7: it counts for `max_db_connections`. An idle server of another user makes room, a
/// busy one does not.
#[test]
fn it_counts_for_the_database_and_the_idle_make_room() {
    for kind in KINDS {
        let mut desk = desk("max_db_connections = 2");
        let (_, idle) = served(&mut desk, "bob", "app");
        let (carol, busy) = served(&mut desk, "carol", "app");
        desk.ask(carol);
        desk.take(busy);
        let first = replicator(&mut desk, "alice", "app", kind);
        assert!(desk.is_closed(idle) && !desk.is_closed(busy));
        let own = desk.server();
        assert!(is_active(&desk, first));
        begin_to_stream(&mut desk, first, own);
        // Another one has to wait: one place is taken by Carol's query, one by the stream.
        // (Bob's welcome is known: a server is opened for his first message.)
        let second = replicator(&mut desk, "bob", "app", kind);
        desk.take(second);
        desk.feed(second, &raw::query("IDENTIFY_SYSTEM"));
        desk.after(SECOND * 3);
        assert!(desk.dialled.is_empty() && !is_active(&desk, second));
        // And so has whoever wants nothing special.
        let normal = desk.client("alice", "app");
        desk.after(SECOND);
        assert!(desk.dialled.is_empty());
        desk.feed(busy, &common::fake::one_row("1"));
        desk.take(carol);
        desk.after(SECOND);
        assert!(desk.is_closed(busy), "it makes room as soon as it is idle");
        desk.server();
        assert!(is_active(&desk, second));
        // The stream ends, and its place is free.
        desk.feed(first, &raw::terminate());
        assert!(desk.is_closed(own));
        desk.after(SECOND);
        desk.server();
        assert!(!desk.take(normal).is_empty(), "its welcome");
    }
}

/// It counts for `max_user_connections` of its user, in all databases together.
#[test]
fn it_counts_for_its_user() {
    for kind in KINDS {
        let mut desk = desk("max_user_connections = 1");
        let (_, idle) = served(&mut desk, "alice", "other");
        let client = replicator(&mut desk, "alice", "app", kind);
        assert!(desk.is_closed(idle));
        let own = desk.server();
        let elsewhere = desk.client("alice", "other");
        desk.take(elsewhere);
        desk.ask(elsewhere);
        desk.after(SECOND * 3);
        assert!(desk.dialled.is_empty(), "its user has no more");
        desk.feed(client, &raw::terminate());
        assert!(desk.is_closed(own));
        desk.after(SECOND);
        let server = desk.server();
        desk.answer(server);
    }
}

/// The reserve is there for it as for others, and no sooner.
#[test]
fn the_reserve_is_there_for_it_too() {
    for kind in KINDS {
        let mut desk =
            desk("default_pool_size = 1\nreserve_pool_size = 1\nreserve_pool_timeout = 3");
        let (busy, server) = served(&mut desk, "alice", "app");
        desk.ask(busy);
        desk.take(server);
        let client = replicator(&mut desk, "alice", "app", kind);
        // The welcome is known, so the server is opened with its first message.
        desk.take(client);
        desk.feed(client, &raw::query("IDENTIFY_SYSTEM"));
        desk.after(SECOND * 2);
        assert!(desk.dialled.is_empty());
        desk.after(SECOND * 2);
        let own = desk.server();
        assert!(is_active(&desk, client));
        assert!(!desk.is_closed(server) && desk.take(own) == raw::query("IDENTIFY_SYSTEM"));
        // That was all of it.
        let another = replicator(&mut desk, "alice", "app", kind);
        desk.take(another);
        desk.feed(another, &raw::query("IDENTIFY_SYSTEM"));
        desk.after(SECOND * 10);
        assert!(desk.dialled.is_empty());
    }
}

/// It waits no longer than others, and is told as they are.
#[test]
fn who_waits_too_long_is_told() {
    for kind in KINDS {
        let mut desk =
            desk("default_pool_size = 1\nquery_wait_timeout = 10\nquery_wait_notify = 2");
        let (busy, server) = served(&mut desk, "alice", "app");
        desk.ask(busy);
        desk.take(server);
        let client = replicator(&mut desk, "alice", "app", kind);
        desk.take(client);
        desk.feed(client, &raw::query("IDENTIFY_SYSTEM"));
        desk.after(SECOND * 4);
        let told = desk.take(client);
        assert!(told.windows(QUEUED.len()).any(|some| some == QUEUED), "{told:?}");
        desk.after(SECOND * 7);
        assert_eq!(desk.last_words(client).as_deref(), Some("query_wait_timeout"));
        // Its place in the line has gone with it: the server is free for others.
        desk.feed(server, &common::fake::one_row("1"));
        desk.take(busy);
        assert!(!desk.is_closed(server));
    }
}

/// A stream is one query: `query_timeout` ends it, and limits on idle things do not.
#[test]
fn a_stream_is_a_query() {
    for kind in KINDS {
        let idle_limits = "client_idle_timeout = 5\nidle_transaction_timeout = 5\n\
                           server_idle_timeout = 5\nserver_lifetime = 5";
        let mut desk = desk(&format!("query_timeout = 60\n{idle_limits}"));
        let client = replicator(&mut desk, "alice", "app", kind);
        let server = desk.server();
        desk.take(client);
        // Before its first command it is an idle session like any other.
        desk.after(SECOND * 50);
        assert!(!desk.is_closed(client));
        begin_to_stream(&mut desk, client, server);
        for _ in 0..5 {
            desk.after(SECOND * 10);
            desk.feed(server, &message(b'd', b"k"));
            desk.take(client);
            desk.feed(client, &message(b'd', b"r"));
            desk.take(server);
            assert!(!desk.is_closed(client));
        }
        desk.after(SECOND * 11);
        assert_eq!(desk.last_words(client).as_deref(), Some("query timeout"));
        assert!(desk.is_closed(server));
    }
}

/// Statement pooling knows no transactions; who replicates is in session pooling whatever is set.
#[test]
fn the_mode_of_the_pool_is_not_its_mode() {
    for mode in ["session", "transaction", "statement"] {
        for kind in KINDS {
            let mut desk = desk(&format!("pool_mode = {mode}\nserver_reset_query_always = 1"));
            let client = replicator(&mut desk, "alice", "app", kind);
            let server = desk.server();
            desk.take(client);
            // Names of statements are the server's own.
            let named = [raw::parse("s", "SELECT 1"), raw::sync()].concat();
            desk.feed(client, &named);
            assert_eq!(desk.take(server), named);
            let answer = [message(b'1', b""), message(b'Z', b"I")].concat();
            desk.feed(server, &answer);
            assert_eq!(desk.take(client), answer);
            desk.feed(client, &raw::query("BEGIN"));
            desk.take(server);
            desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
            desk.take(client);
            desk.feed(client, &raw::query("COMMIT"));
            assert!(!desk.take(server).is_empty());
            desk.feed(server, &[message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat());
            desk.take(client);
            assert!(is_active(&desk, client), "{mode}");
            // It serves nobody else, before or after; no reset is worth while.
            let normal = desk.client("alice", "app");
            let other = desk.server();
            desk.take(normal);
            desk.ask(normal);
            assert!(desk.take(server).is_empty());
            desk.answer(other);
            desk.feed(client, &raw::terminate());
            assert!(desk.is_closed(server));
        }
    }
}

/// Where a server for replication makes one more than are to be kept, the others are kept no longer.
#[test]
fn a_server_that_is_kept_no_more_ends_at_once() {
    let mut desk =
        desk("min_pool_size = 1\nserver_idle_timeout = 60\nserver_check_delay = 10000\n");
    let (_, idle) = served(&mut desk, "alice", "app");
    desk.after(SECOND * 90);
    assert!(!desk.is_closed(idle), "the last one is kept");
    let client = replicator(&mut desk, "alice", "app", "database");
    desk.feed(client, &raw::query("IDENTIFY_SYSTEM"));
    desk.server();
    assert!(desk.is_closed(idle));
}

/// What a server says that lets nobody in.
fn refusal() -> Vec<u8> {
    message(b'E', b"SFATAL\0C28000\0Mno such slot for you\0\0")
}

/// Its pool is failing from then on, and normal connections of it wait for `server_login_retry`, too:
/// they are told why, in the words of the close, and the server's own words are for the log.
#[test]
fn a_login_that_fails_counts_for_everybody() {
    let told =
        "server login has been failing, cached error: login failed (server_login_retry)".to_owned();
    for kind in KINDS {
        let mut desk = desk("server_login_retry = 15");
        let (normal, server) = served(&mut desk, "alice", "app");
        let (late, other) = (desk.client("alice", "app"), desk.client("alice", "app"));
        desk.leave(server);
        assert!(desk.dialled.is_empty());
        let client = replicator(&mut desk, "alice", "app", kind);
        desk.take(client);
        desk.feed(client, &raw::query("IDENTIFY_SYSTEM"));
        let own = desk.connect();
        desk.feed(own, &refusal());
        assert_eq!(desk.last_words(client), Some("login failed".to_owned()), "{kind}");
        assert!(desk.is_closed(own) && !desk.is_closed(normal), "{kind}");
        desk.ask(normal);
        assert_eq!(desk.last_words(normal), Some(told.clone()), "{kind}");
        desk.after(SECOND * 14);
        assert!(desk.dialled.is_empty(), "{kind}: no attempt before its time");
        // Another pool of the same database has nothing to do with it.
        let bob = desk.client("bob", "app");
        desk.server();
        assert!(!desk.take(bob).is_empty());
        // Who asks when it is time is told the same, and makes us try.
        desk.after(SECOND * 2);
        desk.take(late);
        desk.ask(late);
        assert_eq!(desk.last_words(late), Some(told.clone()), "{kind}");
        let server = desk.server();
        desk.take(other);
        desk.ask(other);
        desk.answer(server);
        assert!(!desk.is_closed(other), "{kind}: it is over");
    }
}

/// Who waits when it fails goes on waiting: for a server in the queue, or for the welcome.
#[test]
fn a_login_that_fails_throws_nobody_out() {
    for kind in KINDS {
        for is_known in [true, false] {
            let mut desk = desk("server_login_retry = 15\ndefault_pool_size = 1");
            let normal = is_known.then(|| {
                let (normal, server) = served(&mut desk, "alice", "app");
                desk.leave(server);
                normal
            });
            let client = replicator(&mut desk, "alice", "app", kind);
            if is_known {
                desk.take(client);
                desk.feed(client, &raw::query("IDENTIFY_SYSTEM"));
            }
            let own = desk.connect();
            // The pool is full, or busy with that login: this one waits behind it.
            let waiting = normal.unwrap_or_else(|| desk.client("alice", "app"));
            if is_known {
                desk.ask(waiting);
            }
            desk.feed(own, &refusal());
            assert_eq!(desk.last_words(client), Some("login failed".to_owned()), "{kind}");
            desk.after(SECOND * 14);
            assert!(!desk.is_closed(waiting), "{kind} {is_known}");
            assert!(desk.dialled.is_empty(), "{kind} {is_known}: no attempt before its time");
            desk.after(SECOND * 2);
            let server = desk.server();
            if is_known {
                desk.answer(server);
            } else {
                assert!(!desk.take(waiting).is_empty(), "its welcome");
            }
            assert!(!desk.is_closed(waiting), "{kind} {is_known}");
        }
    }
}
