//! What a changed configuration and RECONNECT do to servers: which changes end them, when, and what
//! is forgotten with them (server.md §2.5, §2.11, §3.4, §3.5).

mod common;

use common::desk::{Desk, config};
use common::fake;
use common::raw::{self, message};
use ringbouncer::config::Config;
use ringbouncer::config::tls::ServerTls;
use ringbouncer::config::values::SslMode;
use ringbouncer::engine::io::Input;
use ringbouncer::keys::Conn;
use ringbouncer::pool::queues::ServerStanding;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const ENTRY: &str = "host=127.0.0.1";

fn text(entry: &str, settings: &str) -> String {
    format!(
        "[databases]\napp = {entry}\nother = host=127.0.0.9\n\
         [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 2\nserver_check_query =\n{settings}"
    )
}

fn reload(desk: &mut Desk, entry: &str, settings: &str) {
    desk.engine.reload(config(&text(entry, settings)), None, desk.now);
    desk.perform();
}

fn served(desk: &mut Desk, database: &str) -> (Conn, Conn) {
    let client = desk.client("alice", database);
    let server = desk.server();
    if !desk.take(server).is_empty() {
        // Its connect_query.
        desk.feed(server, &fake::one_row("1"));
    }
    desk.take(client);
    desk.ask(client);
    desk.answer(server);
    (client, server)
}

/// §3.4: the triggers, and what is none.
#[test]
fn servers_end_when_they_would_be_opened_differently_now() {
    let changes = [
        ("host=127.0.0.2", true),
        ("host=127.0.0.1,127.0.0.2", true),
        ("host=127.0.0.1 port=5433", true),
        ("host=127.0.0.1 dbname=another", true),
        ("host=127.0.0.1 user=bob", true),
        ("host=127.0.0.1 connect_query='select 1'", true),
        ("host=127.0.0.1 auth_query='select $1, null'", true),
        ("host=127.0.0.1 auth_dbname=other", true),
        ("host=127.0.0.1 load_balance_hosts=disable", true),
        ("host=127.0.0.1 password=secret", false),
        ("host=127.0.0.1 pool_size=7 min_pool_size=1 reserve_pool_size=2", false),
        ("host=127.0.0.1 max_db_connections=9 max_db_client_connections=9", false),
        ("host=127.0.0.1 pool_mode=session", false),
        ("host=127.0.0.1 server_lifetime=77 query_wait_timeout=7", false),
        ("host=127.0.0.1 client_encoding=LATIN1 datestyle=ISO timezone=CET", false),
        ("host=127.0.0.1 application_name=me", false),
    ];
    for (entry, ends) in changes {
        for (from, to) in [(ENTRY, entry), (entry, ENTRY)] {
            let mut desk = Desk::new(&text(from, ""));
            let (_, other) = served(&mut desk, "other");
            let (client, server) = served(&mut desk, "app");
            desk.dialled.clear();
            reload(&mut desk, to, "");
            assert_eq!(desk.is_closed(server), ends, "{from} to {to}");
            assert!(!desk.is_closed(client) && !desk.is_closed(other), "{from} to {to}");
            let said = desk.closed.iter().any(|(_, last)| *last == raw::terminate());
            assert_eq!(said, ends, "it is told goodbye");
        }
    }
    // What holds for all servers.
    for settings in [
        "server_lifetime = 60\nserver_idle_timeout = 60\nquery_timeout = 60",
        "default_pool_size = 3\nmax_db_connections = 10\npool_mode = session",
        "server_reset_query = SELECT 1\nserver_round_robin = 1\ntcp_keepidle = 9",
    ] {
        let mut desk = Desk::new(&text(ENTRY, ""));
        let (_, server) = served(&mut desk, "app");
        reload(&mut desk, ENTRY, settings);
        assert!(!desk.is_closed(server), "{settings}");
    }
}

/// §3.4: how servers are spoken to. The suites of TLS 1.3 and what files hold count for new ones.
#[test]
fn servers_end_when_they_would_be_spoken_to_differently_now() {
    let tls = |change: &str| {
        let text = format!("[databases]\n[pgbouncer]\n{change}\n");
        let config = Config::parse_text("tls.ini", &text).expect("a configuration");
        ServerTls::new(&config.settings)
    };
    for (change, ends) in [
        ("server_tls_sslmode = require", true),
        ("server_tls_protocols = tlsv1.3", true),
        ("server_tls_ciphers = HIGH", true),
        ("server_tls_ca_file = /a", true),
        ("server_tls_key_file = /a\nserver_tls_cert_file = /b", true),
        ("server_tls13_ciphers = TLS_AES_128_GCM_SHA256", false),
        ("client_tls_protocols = tlsv1.3", false),
    ] {
        let mut desk = Desk::new(&text(ENTRY, ""));
        // (The desk's servers have been opened without TLS, but that is for later.)
        let (client, server) = served(&mut desk, "app");
        let mut before = tls("");
        before.sslmode = SslMode::Disable;
        let mut after = tls(change);
        if !change.contains("sslmode") {
            after.sslmode = SslMode::Disable;
        }
        desk.engine.apply_tls(SslMode::Disable, before, desk.now);
        desk.perform();
        assert!(!desk.is_closed(server), "nothing has changed");
        desk.engine.apply_tls(SslMode::Disable, after, desk.now);
        desk.perform();
        assert_eq!(desk.is_closed(server), ends, "{change}");
        assert!(!desk.is_closed(client));
    }
}

/// §3.4: a server that works ends when it is released, one that logs in at once, a free one at once;
/// new ones are opened at once, and one of them above the size of a pool whose welcome is unknown.
#[test]
fn a_reconnect_ends_each_server_when_that_hurts_nobody() {
    let mut desk = Desk::new(&text(ENTRY, "default_pool_size = 1\n"));
    let (client, server) = served(&mut desk, "app");
    desk.feed(client, &raw::query("BEGIN"));
    desk.take(server);
    let begun = [message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat();
    desk.feed(server, &begun);
    desk.take(client);
    desk.engine.reconnect(Some("app"), desk.now);
    desk.perform();
    assert!(!desk.is_closed(server), "in the middle of a transaction");
    // Who comes now gets a welcome of the new kind, and waits for that only.
    let newcomer = desk.client("alice", "app");
    assert!(desk.take(newcomer).is_empty());
    let next = desk.server();
    assert!(!desk.take(newcomer).is_empty(), "a welcome");
    let (_, pool) = desk.pool("app", "alice").expect("it is there");
    assert_eq!(pool.servers.connected(), 2, "one more than the pool's size, for the welcome");
    // The transaction goes on where it began, and ends there.
    desk.feed(client, &raw::query("COMMIT"));
    assert!(!desk.take(server).is_empty());
    desk.feed(server, &[message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat());
    assert!(desk.is_closed(server) && !desk.is_closed(client));
    desk.take(client);
    desk.ask(client);
    desk.answer(next);
    assert!(desk.dialled.is_empty());
    // One that logs in.
    let mut desk = Desk::new(&text(ENTRY, ""));
    desk.client("alice", "app");
    let login = desk.connect();
    desk.engine.reconnect(None, desk.now);
    desk.perform();
    assert!(desk.is_closed(login));
    assert_eq!(desk.dialled.len(), 1, "another attempt at once: this was no failure");
}

/// §2.11: all clients of a pool are told what its first server said, until that is forgotten.
#[test]
fn the_welcome_is_that_of_the_first_server_until_it_is_forgotten() {
    let welcome = |version: &str| {
        let status =
            |name: &str, value: &str| message(b'S', format!("{name}\0{value}\0").as_bytes());
        let key = message(b'K', &[1, 2, 3, 4, 5, 6, 7, 8]);
        let parts = [message(b'R', &[0; 4]), status("server_version", version), key, fake::ready()];
        parts.concat()
    };
    let told = |desk: &mut Desk, client: Conn, version: &str| {
        let said = desk.take(client);
        let wanted = format!("server_version\0{version}\0");
        assert!(said.windows(wanted.len()).any(|text| text == wanted.as_bytes()), "{version}");
    };
    let mut desk = Desk::new(&text(ENTRY, ""));
    let first = desk.client("alice", "app");
    let server = desk.connect();
    desk.feed(server, &welcome("15.1"));
    told(&mut desk, first, "15.1");
    // The second server is another one.
    let second = desk.client("alice", "app");
    told(&mut desk, second, "15.1");
    desk.ask(first);
    desk.take(server);
    desk.ask(second);
    let server = desk.connect();
    desk.feed(server, &welcome("16.2"));
    let third = desk.client("alice", "app");
    told(&mut desk, third, "15.1");
    desk.engine.reconnect(None, desk.now);
    desk.perform();
    let fourth = desk.client("alice", "app");
    assert!(desk.take(fourth).is_empty(), "it is not known any more");
    let server = desk.connect();
    desk.feed(server, &welcome("17.3"));
    told(&mut desk, fourth, "17.3");
}

/// §2.5: the words of the Startup stand in this order, whatever the order of the entry.
#[test]
fn the_startup_has_the_words_of_the_entry_in_order() {
    let entries = [
        (
            "host=127.0.0.1 application_name=me timezone=CET datestyle=ISO client_encoding=LATIN1",
            "database\0app\0client_encoding\0LATIN1\0datestyle\0ISO\0timezone\0CET\0\
             application_name\0me\0user\0alice\0\0",
        ),
        ("host=127.0.0.1 dbname=inside user=bob", "database\0inside\0user\0bob\0\0"),
        ("host=127.0.0.1 timezone=UTC", "database\0app\0timezone\0UTC\0user\0alice\0\0"),
    ];
    for (entry, words) in entries {
        let mut desk = Desk::new(&text(entry, ""));
        desk.client("alice", "app");
        let (key, _) = desk.dialled.pop_front().expect("dialled");
        desk.handle(Input::Connected { server: key, local: None });
        let startup = desk.take(Conn::Server(key));
        assert_eq!(String::from_utf8_lossy(&startup[8..]), words);
    }
}

/// §3.5, §1.9: sizes count from the reload on: more servers at once for those who wait, and fewer as
/// they become free.
#[test]
fn a_change_of_size_counts_at_once() {
    let mut desk = Desk::new(&text(ENTRY, "default_pool_size = 1\n"));
    let (_, server) = served(&mut desk, "app");
    let clients: Vec<Conn> = (0..4).map(|_| desk.client("alice", "app")).collect();
    for client in &clients {
        desk.take(*client);
        desk.ask(*client);
    }
    assert!(desk.dialled.is_empty());
    reload(&mut desk, ENTRY, "default_pool_size = 3\n");
    let mut servers = vec![server];
    while !desk.dialled.is_empty() {
        servers.push(desk.server());
    }
    assert_eq!(servers.len(), 3);
    reload(&mut desk, ENTRY, "default_pool_size = 1\n");
    while let Some(server) = servers.iter().copied().find(|server| !desk.is_closed(*server)) {
        let is_last = servers.iter().filter(|server| !desk.is_closed(**server)).count() == 1;
        if is_last {
            break;
        }
        for server in servers.clone() {
            if !desk.is_closed(server) && !desk.take(server).is_empty() {
                desk.feed(server, &fake::one_row("1"));
            }
        }
        desk.after(SECOND);
        let _ = server;
    }
    let (_, pool) = desk.pool("app", "alice").expect("it is there");
    assert_eq!(pool.servers.connected(), 1);
    assert!(clients.iter().all(|client| !desk.is_closed(*client)));
}

/// §2.1: each server in turn from the next host of the list; or the same until an attempt fails.
#[test]
fn hosts_take_turns_or_stay() {
    let hosts = "host=127.0.0.1,127.0.0.2,127.0.0.3";
    let host = |desk: &mut Desk| {
        let (_, to) = desk.dialled.front().expect("dialled");
        let to = format!("{to:?}");
        let at = to.find("127.0.0.").expect("an address") + 8;
        to[at..=at].parse::<u8>().expect("a digit")
    };
    // How clients who wait are served: `true` is an attempt that succeeds.
    let seen = |entry: &str, outcomes: &[bool]| {
        let settings = "default_pool_size = 20\nserver_login_retry = 1\n";
        let mut desk = Desk::new(&text(entry, settings));
        let mut hosts = Vec::new();
        for succeeds in outcomes {
            let client = desk.client("alice", "app");
            let is_in = !desk.take(client).is_empty();
            if is_in {
                desk.ask(client);
            }
            if desk.dialled.is_empty() {
                desk.after(SECOND);
            }
            hosts.push(host(&mut desk));
            match succeeds {
                true => {
                    let server = desk.server();
                    desk.take(client);
                    if !is_in {
                        desk.ask(client);
                    }
                    desk.take(server);
                }
                false => _ = desk.refuse(),
            }
        }
        hosts
    };
    assert_eq!(seen(hosts, &[true; 5]), [1, 2, 3, 1, 2]);
    assert_eq!(seen(hosts, &[false, true, true]), [1, 2, 3]);
    let stays = format!("{hosts} load_balance_hosts=disable");
    assert_eq!(seen(&stays, &[true; 4]), [1, 1, 1, 1]);
    assert_eq!(seen(&stays, &[true, false, true, true]), [1, 1, 2, 2]);
    assert_eq!(seen(&stays, &[false, false, false, true]), [1, 2, 3, 1]);
}

/// §1.5, 1: one server at a time logs in, however many wait.
#[test]
fn one_server_of_a_pool_logs_in_at_a_time() {
    let mut desk = Desk::new(&text(ENTRY, "default_pool_size = 20\n"));
    let (_, first) = served(&mut desk, "app");
    let clients: Vec<Conn> = (0..6).map(|_| desk.client("alice", "app")).collect();
    for client in clients {
        desk.take(client);
        desk.ask(client);
    }
    for opened in 1..=5 {
        assert_eq!(desk.dialled.len(), 1, "after {opened}");
        let server = desk.server();
        desk.take(server);
        let (_, pool) = desk.pool("app", "alice").expect("it is there");
        assert_eq!(pool.servers.count(ServerStanding::Active), opened + 1);
    }
    assert!(desk.dialled.is_empty() && !desk.is_closed(first), "nobody waits any more");
}
