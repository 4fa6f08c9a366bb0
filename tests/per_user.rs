//! client.md §2.9, line by line, on a desk: whose settings count, those of the one who logs in or those
//! of the one who works on the servers.

mod common;

use common::desk::Desk;
use common::prover::{Prover, Said, derive_one};
use common::raw::{self, c_strings, message};
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::keys::Conn;
use ringbouncer::session::client::State;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// `app` is for everybody under his own name, on the servers of `forced` bob works for all.
fn desk(users: &str, settings: &str) -> Desk {
    Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\nforced = host=127.0.0.1 user=bob\n\
         waiting = host=127.0.0.1 query_wait_timeout=50\nby_statement = host=127.0.0.1 pool_mode=statement\n\
         by_force = host=127.0.0.1 user=bob pool_mode=statement\n\
         [users]\n{users}\n[pgbouncer]\npool_mode = transaction\n{settings}"
    ))
}

/// A client that has been served once, and its server.
fn served(desk: &mut Desk, user: &str, database: &str) -> (Conn, Conn) {
    let client = desk.client(user, database);
    let server = desk.server();
    desk.take(client);
    desk.ask(client);
    desk.answer(server);
    (client, server)
}

/// After how many seconds it is closed, at most a hundred; and its last words.
fn fate(desk: &mut Desk, client: Conn) -> Option<(u64, String)> {
    for second in 1..=100 {
        desk.after(SECOND);
        if desk.is_closed(client) {
            return Some((second, desk.last_words(client).unwrap_or_default()));
        }
    }
    None
}

/// `query_timeout`, `transaction_timeout` and `idle_transaction_timeout` are those of the user that
/// works on the servers. Nothing and 0 mean the global one.
#[test]
fn what_a_server_may_do_is_its_own_users_affair() {
    type Deed = fn(&mut Desk, Conn, Conn);
    let runs: Deed = |desk, client, server| {
        desk.ask(client);
        desk.take(server);
    };
    let begins: Deed = |desk, client, server| {
        desk.feed(client, &raw::query("BEGIN"));
        desk.take(server);
        desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
        desk.take(client);
    };
    for (setting, deed, text) in [
        ("query_timeout", runs, "query timeout"),
        ("transaction_timeout", runs, "transaction timeout"),
        ("transaction_timeout", begins, "transaction timeout"),
        ("idle_transaction_timeout", begins, "idle transaction timeout"),
    ] {
        let users = format!("alice = {setting}=10\nbob = {setting}=20\ncarol = {setting}=0");
        let global = format!("{setting} = 30");
        for (user, database, seconds) in [
            ("alice", "app", 10),
            ("alice", "forced", 20),
            ("bob", "app", 20),
            ("carol", "app", 30),
        ] {
            let mut desk = desk(&users, &global);
            let (client, server) = served(&mut desk, user, database);
            deed(&mut desk, client, server);
            let expected = Some((seconds, text.to_owned()));
            assert_eq!(fate(&mut desk, client), expected, "{setting}: {user} on {database}");
        }
        // Without a global one it is one user's alone.
        let mut desk = desk(&users, "");
        let (client, server) = served(&mut desk, "carol", "app");
        deed(&mut desk, client, server);
        assert_eq!(fate(&mut desk, client), None, "{setting}");
    }
}

/// `client_idle_timeout` is that of who logs in.
#[test]
fn how_long_a_client_may_idle_is_its_own_users_affair() {
    let users = "alice = client_idle_timeout=10\nbob = client_idle_timeout=20";
    for (user, database, seconds) in [
        ("alice", "app", 10),
        ("alice", "forced", 10),
        ("bob", "forced", 20),
        ("carol", "forced", 30),
    ] {
        let mut desk = desk(users, "client_idle_timeout = 30");
        let (client, _) = served(&mut desk, user, database);
        let expected = Some((seconds, "client_idle_timeout".to_owned()));
        assert_eq!(fate(&mut desk, client), expected, "{user} on {database}");
    }
}

/// `query_wait_timeout` is that of who logs in, then the database's, then the global one; here 0 is
/// a word of its own.
#[test]
fn how_long_a_client_waits_is_its_own_users_affair() {
    let users = "alice = query_wait_timeout=10\nbob = query_wait_timeout=0";
    for (user, database, seconds) in [
        ("alice", "app", Some(10)),
        ("alice", "waiting", Some(10)),
        ("alice", "forced", Some(10)),
        ("bob", "app", None),
        ("bob", "waiting", None),
        ("carol", "waiting", Some(50)),
        ("carol", "app", Some(30)),
        ("carol", "forced", Some(30)),
    ] {
        let mut desk = desk(users, "query_wait_timeout = 30\ndefault_pool_size = 1");
        let (holder, server) = served(&mut desk, user, database);
        desk.ask(holder);
        desk.take(server);
        let waiting = desk.client(user, database);
        desk.take(waiting);
        desk.ask(waiting);
        let expected = seconds.map(|seconds| (seconds, "query_wait_timeout".to_owned()));
        assert_eq!(fate(&mut desk, waiting), expected, "{user} on {database}");
    }
}

/// `max_user_client_connections` counts who logs in, in all databases together; `max_user_connections`
/// counts who works on servers.
#[test]
fn each_end_counts_its_own_user() {
    let users = "alice = max_user_client_connections=2\nbob = max_user_client_connections=1";
    let mut desk = desk(users, "");
    let (_, _) = served(&mut desk, "alice", "forced");
    let second = desk.client("alice", "forced");
    assert!(!desk.take(second).is_empty());
    let third = desk.client("alice", "app");
    let text = "client connections exceeded (max_user_client_connections)";
    assert_eq!(desk.last_words(third).as_deref(), Some(text));
    // None of that was bob.
    let bob = desk.client("bob", "forced");
    assert!(!desk.take(bob).is_empty());
    let again = desk.client("bob", "forced");
    assert_eq!(desk.last_words(again).as_deref(), Some(text));

    let users = "bob = max_user_connections=1\nalice = max_user_connections=5";
    let mut desk = self::desk(users, "");
    let (alice, server) = served(&mut desk, "alice", "forced");
    desk.ask(alice);
    desk.take(server);
    let carol = desk.client("carol", "forced");
    desk.take(carol);
    desk.ask(carol);
    desk.after(SECOND * 5);
    assert!(desk.dialled.is_empty(), "bob has no more than one");
    desk.client("bob", "app");
    desk.after(SECOND * 5);
    assert!(desk.dialled.is_empty(), "nor elsewhere");
    // Alice herself has five.
    let own = desk.client("alice", "app");
    desk.server();
    assert!(!desk.take(own).is_empty());
}

/// `pool_size` and `reserve_pool_size` are those of the user that works on the servers.
#[test]
fn how_many_servers_there_are_is_their_own_users_affair() {
    let users = "alice = pool_size=4 reserve_pool_size=4\nbob = pool_size=1 reserve_pool_size=1\n\
                 carol = reserve_pool_size=0";
    let settings = "default_pool_size = 2\nreserve_pool_size = 2\nreserve_pool_timeout = 3";
    for (user, database, size, reserve) in [
        ("alice", "app", 4, 4),
        ("alice", "forced", 1, 1),
        ("bob", "app", 1, 1),
        ("carol", "app", 2, 0),
        ("carol", "forced", 1, 1),
    ] {
        let mut desk = desk(users, settings);
        let clients: Vec<Conn> = (0..12).map(|_| desk.client(user, database)).collect();
        desk.server();
        for client in clients {
            desk.take(client);
            desk.ask(client);
        }
        let mut most = 1;
        let mut staff = |desk: &mut Desk| {
            while !desk.dialled.is_empty() {
                desk.server();
                most += 1;
            }
            most
        };
        desk.after(SECOND);
        assert_eq!(staff(&mut desk), size, "{user} on {database}");
        desk.after(SECOND * 3);
        staff(&mut desk);
        desk.after(SECOND * 3);
        assert_eq!(staff(&mut desk), size + reserve, "{user} on {database}");
    }
}

/// `pool_mode` is that of the user that works on the servers, then the database's, then the global
/// one.
#[test]
fn the_mode_is_that_of_who_works_on_the_servers() {
    let users = "bob = pool_mode=session\nalice = pool_mode=transaction";
    for (user, database, mode) in [
        ("alice", "app", "transaction"),
        ("alice", "by_statement", "transaction"),
        ("alice", "forced", "session"),
        ("alice", "by_force", "session"),
        ("bob", "by_statement", "session"),
        ("carol", "by_statement", "statement"),
        ("carol", "by_force", "session"),
        ("carol", "app", "transaction"),
    ] {
        let mut desk = desk(users, "");
        let (client, server) = served(&mut desk, user, database);
        let Conn::Client(key) = client else { panic!("no client") };
        let state = desk.engine.house().clients.get(key).map(|client| &client.state);
        let keeps_it = matches!(state, Some(State::Active { .. }));
        assert_eq!(keeps_it, mode == "session", "{user} on {database}");
        desk.feed(client, &raw::query("BEGIN"));
        desk.take(server);
        desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
        assert_eq!(desk.is_closed(client), mode == "statement", "{user} on {database}");
    }
}

/// The client proves that it is itself. The server is opened under the forced name, with the
/// database's password, else with that of this name in `auth_file`.
#[test]
fn a_forced_user_has_a_password_of_its_own() {
    let text = "[databases]\nplain = host=127.0.0.1\n\
                forced = host=127.0.0.1 user=bob\n\
                told = host=127.0.0.1 user=bob password=told\n\
                unknown = host=127.0.0.1 user=nobody\n\
                [pgbouncer]\npool_mode = transaction\nauth_type = plain\n\
                server_tls_sslmode = disable\nunix_socket_dir =";
    let users = b"\"alice\" \"of alice\"\n\"bob\" \"of bob\"\n";
    for (database, user, password) in [
        ("plain", "alice", "of alice"),
        ("forced", "bob", "of bob"),
        ("told", "bob", "told"),
        ("unknown", "nobody", ""),
    ] {
        let mut desk = Desk::new("[databases]\n[pgbouncer]\n");
        let now = desk.now;
        let users = Userlist::parse(users).0;
        let config = ringbouncer::config::Config::parse_text("desk.ini", text).expect("it is one");
        desk.engine.reload(config, Some(users.into()), now);
        desk.perform();
        let mut wrong = Prover::knock(&mut desk, "alice", database, "of bob");
        assert_eq!(wrong.go_on(&mut desk), Said::Nothing);
        // A wrong one takes the time of a key, and is refused then.
        while derive_one(&mut desk) {}
        let refused = Said::Refused("password authentication failed".into());
        assert_eq!(wrong.go_on(&mut desk), refused, "{database}: alice does not know bob's");
        let mut client = Prover::knock(&mut desk, "alice", database, "of alice");
        assert_eq!(client.go_on(&mut desk), Said::Nothing);
        while derive_one(&mut desk) {}
        let (server, _) = desk.dialled.pop_front().expect("a server");
        desk.handle(ringbouncer::engine::io::Input::Connected { server, local: None });
        let server = Conn::Server(server);
        let words = c_strings(&desk.take(server)[8..]);
        let named = words.iter().position(|word| word == "user").expect("a user");
        assert_eq!(words[named + 1], user, "{database}");
        desk.feed(server, &message(b'R', &[0, 0, 0, 3]));
        let answer = desk.take(server);
        if user == "nobody" {
            // There is no password to send.
            assert!(answer.is_empty() || answer[5..] == [0], "{answer:?}");
            continue;
        }
        assert_eq!(c_strings(&answer[5..]), [password], "{database}");
        desk.feed(server, &common::fake::welcome());
        assert_eq!(client.go_on(&mut desk), Said::Welcome, "{database}");
    }
}
