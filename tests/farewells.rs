//! client.md §9, on a desk: reasons for which connections end that need rare circumstances. Who is
//! told and who is not, and what is counted for the operator.

mod common;

use common::desk::{Desk, config};
use common::fake::{self, one_row};
use common::raw::{self, Startup, message, query, untagged};
use ringbouncer::engine::io::{ClientAddress, Input};
use ringbouncer::keys::Conn;
use ringbouncer::pool::causes::Side;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const ONE: &str = "[databases]\napp = host=127.0.0.1\n\
    [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\nserver_login_retry = 10\n\
    query_wait_timeout = 100\nquery_wait_notify = 0\n";

/// How many connections of this side have ended for this reason, as SHOW ERRORS tells it.
fn ended(desk: &Desk, side: Side, reason: &str) -> u64 {
    let mut all = desk.engine.house().endings.iter();
    all.find(|(of, cause, _)| (*of, *cause) == (side, reason)).map_or(0, |(_, _, count)| count)
}

fn accept(desk: &mut Desk) -> Conn {
    let from = ClientAddress::Unix { pid: 0, uid: None };
    Conn::Client(desk.engine.accept(from, [0x44; 8], desk.now))
}

/// A client whose query the one server works on, and its key.
fn working(desk: &mut Desk) -> (Conn, Conn, Vec<u8>) {
    let client = desk.client("alice", "app");
    let server = desk.server();
    let key = key_of(desk, client);
    desk.ask(client);
    desk.take(server);
    (client, server, key)
}

/// The key in its welcome.
fn key_of(desk: &mut Desk, client: Conn) -> Vec<u8> {
    let welcome = desk.take(client);
    let at = welcome.windows(5).position(|head| head == b"K\0\0\0\x0c").expect("BackendKeyData");
    welcome[at + 5..at + 13].to_vec()
}

fn cancel(desk: &mut Desk, key: &[u8]) -> Conn {
    let canceller = accept(desk);
    desk.feed(canceller, &untagged(raw::CANCEL_REQUEST, key));
    canceller
}

fn leave(desk: &mut Desk, conn: Conn) {
    desk.handle(Input::ReadClosed { conn });
    desk.perform();
}

/// The query ends while the connection for the request is being opened: the request is not sent, so
/// the next client of that server has nothing to fear.
#[test]
fn a_cancel_that_comes_too_late_is_not_sent() {
    let mut desk = Desk::new(ONE);
    let (client, server, key) = working(&mut desk);
    let next = desk.client("alice", "app");
    desk.take(next);
    desk.ask(next);
    let canceller = cancel(&mut desk, &key);
    assert_eq!(desk.dialled.len(), 1);
    desk.feed(server, &one_row("1"));
    assert!(desk.is_closed(canceller) && desk.dialled.is_empty());
    assert_eq!(desk.last_words(canceller), None);
    let reason = "not sending cancel request for client that is now idle";
    assert_eq!(ended(&desk, Side::Client, reason), 1);
    let reason = "client gave up on cancel request, so we also give up forwarding to server";
    assert_eq!(ended(&desk, Side::Server, reason), 1);
    assert_eq!(desk.take(server), query("SELECT 1"), "of the next one");
    desk.feed(server, &one_row("2"));
    assert_eq!((desk.take(client), desk.take(next)), (one_row("1"), one_row("2")));
}

/// What else becomes of requests; nobody is told anything.
#[test]
fn each_fate_of_a_cancel_is_counted() {
    let mut desk = Desk::new(ONE);
    let (_, server, key) = working(&mut desk);
    let canceller = cancel(&mut desk, &key);
    desk.refuse();
    assert!(desk.is_closed(canceller));
    assert_eq!(ended(&desk, Side::Client, "failed to send cancel request"), 1);
    // Sent, and the line broke: nobody knows whether it arrived, so the server serves nobody else.
    let canceller = cancel(&mut desk, &key);
    let carrier = desk.connect();
    desk.handle(Input::WriteClosed { conn: carrier });
    desk.perform();
    assert!(desk.is_closed(canceller));
    assert_eq!(ended(&desk, Side::Client, "successfully sent cancel request"), 1);
    desk.feed(server, &one_row("1"));
    assert_eq!(ended(&desk, Side::Server, "close_needed"), 1);
    // Of one that waits for a server.
    let waiting = desk.client("alice", "app");
    let key = key_of(&mut desk, waiting);
    desk.ask(waiting);
    let canceller = cancel(&mut desk, &key);
    let reason = "successfully cancelled query that waited for a server";
    assert!(desk.is_closed(canceller));
    assert_eq!(ended(&desk, Side::Client, reason), 1);
}

/// The operator's word, or the server's words, can be more than fits: no half welcome is sent.
#[test]
fn a_welcome_that_does_not_fit_is_not_begun() {
    let words = "failed to prepare welcome message";
    let long = "x".repeat(70_000);
    let mut desk = Desk::new(&format!("{ONE}login_notify_message = {long}\n"));
    let client = desk.client("alice", "app");
    desk.server();
    assert_eq!(desk.last_words(client).as_deref(), Some(words));
    let (_, last) = desk.closed.iter().find(|(conn, _)| *conn == client).expect("its end");
    assert_eq!(last[0], b'E', "nothing of the welcome went before");
    let now = desk.now;
    desk.engine.reload(config(ONE), None, now);
    let client = desk.client("alice", "app");
    assert!(!desk.take(client).is_empty());
    // Two values that each fit, and do not both. Who waits and who comes later is told the same.
    let mut desk = Desk::new(ONE);
    let waiting = desk.client("alice", "app");
    let server = desk.connect();
    desk.feed(server, &message(b'R', &[0; 4]));
    for name in ["TimeZone", "DateStyle"] {
        desk.feed(server, &message(b'S', format!("{name}\0{}\0", "z".repeat(50_000)).as_bytes()));
    }
    desk.feed(server, &[message(b'K', &[7; 8]), fake::ready()].concat());
    let later = desk.client("alice", "app");
    for client in [waiting, later] {
        assert_eq!(desk.last_words(client).as_deref(), Some(words));
    }
}

#[test]
fn a_parameter_that_cannot_be_kept_ends_its_server() {
    let words = "failed to store ParameterStatus";
    for name in ["TimeZone", "of_ours"] {
        let mut desk = Desk::new(ONE);
        let (client, server, _) = working(&mut desk);
        let body = [name.as_bytes(), b"\0", &[b'z'; 70_000], b"\0"].concat();
        // So much of it that its length is known.
        desk.feed(server, &message(b'S', &body)[..100]);
        assert!(desk.is_closed(server));
        assert_eq!(desk.last_words(client).as_deref(), Some(words));
    }
    // In a login: so many that nobody could be told of them all.
    let mut desk = Desk::new(ONE);
    desk.client("alice", "app");
    let server = desk.connect();
    desk.feed(server, &message(b'R', &[0; 4]));
    let body = [&b"of_ours\0"[..], &[b'z'; 5000], b"\0"].concat();
    for _ in 0..20 {
        if desk.is_closed(server) {
            break;
        }
        desk.feed(server, &message(b'S', &body));
    }
    assert_eq!(ended(&desk, Side::Server, words), 1);
}

/// Two clients that know the welcome of a server that has gone, with another configuration since.
fn after_change(text: &str) -> (Desk, [Conn; 2]) {
    let mut desk = Desk::new(ONE);
    let clients = [desk.client("alice", "app"), desk.client("alice", "app")];
    let server = desk.server();
    for client in clients {
        desk.take(client);
    }
    leave(&mut desk, server);
    let now = desk.now;
    desk.engine.reload(config(text), None, now);
    desk.perform();
    desk.ask(clients[0]);
    (desk, clients)
}

fn is_told_at_once(desk: &mut Desk, client: Conn, cached: &str) {
    desk.ask(client);
    let words =
        format!("server login has been failing, cached error: {cached} (server_login_retry)");
    assert_eq!(desk.last_words(client).as_deref(), Some(&words[..words.len().min(127)]));
}

/// §9.4: what is said of servers that are not even tried, or not understood.
#[test]
fn failures_before_a_login_has_begun_have_their_words() {
    // Neither a host nor a directory for sockets (the desk has none).
    let (mut desk, [first, second]) = after_change(&ONE.replace("host=127.0.0.1", "dbname=app"));
    assert!(!desk.is_closed(first) && desk.dialled.is_empty());
    is_told_at_once(&mut desk, second, "cannot connect");
    // More than a Startup can hold.
    let long = format!("host=127.0.0.1 dbname={}", "d".repeat(70_000));
    let (mut desk, [first, second]) = after_change(&ONE.replace("host=127.0.0.1", &long));
    desk.connect();
    assert!(!desk.is_closed(first));
    is_told_at_once(&mut desk, second, "startup pkt failed");
    // A connect query that leaves a transaction behind would be the first client's trouble.
    let query = "host=127.0.0.1 connect_query='BEGIN'";
    let (mut desk, [first, second]) = after_change(&ONE.replace("host=127.0.0.1", query));
    let server = desk.connect();
    desk.feed(server, &fake::welcome());
    assert_eq!(desk.take(server), raw::query("BEGIN"));
    desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
    assert!(desk.is_closed(server) && !desk.is_closed(first));
    is_told_at_once(&mut desk, second, "exec_on_connect query failed");
}

/// Who replicates is told what became of the server that was opened for it alone.
#[test]
fn the_startup_of_a_client_that_replicates_may_be_too_long() {
    let mut desk = Desk::new(&ONE.replace("host=127.0.0.1", "host=127.0.0.1 timezone=UTC"));
    let client = accept(&mut desk);
    let startup = Startup::v3().param("user", "alice").param("database", "app");
    let startup = startup.param("replication", "database").param("options", "");
    let startup = startup.clone().param("options", &"o".repeat(65_535 - 9 - startup.bytes().len()));
    assert_eq!(startup.bytes().len(), 65_535);
    desk.feed(client, &startup.bytes());
    desk.connect();
    assert_eq!(desk.last_words(client).as_deref(), Some("startup pkt failed"));
}

/// Ends that are our own doing: they hurt nobody who waits, and nothing is remembered of them.
#[test]
fn what_we_end_ourselves_is_no_failure() {
    // The entry has changed.
    let (mut desk, [first, second]) = after_change(ONE);
    desk.connect();
    let now = desk.now;
    desk.engine.reload(config(&ONE.replace("127.0.0.1", "127.0.0.2")), None, now);
    desk.perform();
    assert_eq!(ended(&desk, Side::Server, "connect string changed"), 1);
    desk.ask(second);
    assert!(!desk.is_closed(first) && !desk.is_closed(second));
    // A suspension: what cannot be handed over.
    let (mut desk, [first, _]) = after_change(ONE);
    desk.connect();
    let now = desk.now;
    desk.engine.suspend(now);
    desk.perform();
    desk.after(SECOND * 11);
    assert!(desk.is_closed(first), "it could not be served in time");
    let closed = ended(&desk, Side::Server, "close unsafe file descriptors on suspend");
    assert_eq!(closed + ended(&desk, Side::Server, "suspend_timeout"), 1);
    // Who wanted to replicate has gone.
    let mut desk = Desk::new(ONE);
    let client = accept(&mut desk);
    let startup = Startup::v3().param("user", "alice").param("database", "app");
    desk.feed(client, &startup.param("replication", "yes").bytes());
    desk.connect();
    leave(&mut desk, client);
    assert_eq!(ended(&desk, Side::Server, "replication client disconnected"), 1);
    // The pool has become smaller.
    let mut desk = Desk::new(&ONE.replace("size = 1", "size = 2"));
    let clients = [desk.client("alice", "app"), desk.client("alice", "app")];
    let servers = [desk.server()];
    for client in clients {
        desk.take(client);
        desk.ask(client);
    }
    let other = desk.server();
    for server in [servers[0], other] {
        desk.take(server);
        desk.feed(server, &one_row("1"));
    }
    let now = desk.now;
    desk.engine.reload(config(ONE), None, now);
    desk.after(SECOND);
    assert_eq!(ended(&desk, Side::Server, "too many servers in the pool"), 1);
}

/// Servers that do not do as they are told between two clients.
#[test]
fn a_server_that_cannot_be_brought_back_to_order_ends() {
    // The reset query begins a transaction.
    let mut desk = Desk::new(&ONE.replace("= transaction", "= session"));
    let (client, server, _) = working(&mut desk);
    desk.feed(server, &one_row("1"));
    desk.take(client);
    leave(&mut desk, client);
    assert_eq!(desk.take(server), query("DISCARD ALL"));
    desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
    assert_eq!(ended(&desk, Side::Server, "reset query failed"), 1);
    // It will not roll back what its client has left.
    let mut desk = Desk::new(&format!("{ONE}server_rescue_timeout = 10\n"));
    let (client, server, _) = working(&mut desk);
    desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
    desk.take(client);
    leave(&mut desk, client);
    assert_eq!(desk.take(server), query("ROLLBACK"));
    desk.feed(server, &[message(b'E', b"SERROR\0C25000\0Mno\0\0"), message(b'Z', b"E")].concat());
    assert_eq!(ended(&desk, Side::Server, "server rescue failed"), 1);
    // It has been asked whether it still lives, and says no.
    let check = "server_check_delay = 0\nserver_check_query = SELECT 2\n";
    let mut desk = Desk::new(&format!("{ONE}{check}"));
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.ask(client);
    assert_eq!(desk.take(server), query("SELECT 2"));
    desk.feed(server, &[message(b'E', b"SERROR\0C25000\0Mno\0\0"), message(b'Z', b"E")].concat());
    assert_eq!(ended(&desk, Side::Server, "test query failed"), 1);
}

/// A question about a user that is longer than can be asked: the operator's mistake.
#[test]
fn a_question_that_does_not_fit_is_a_configuration_error() {
    let long = "x".repeat(70_000);
    let mut desk = Desk::new(&format!("{ONE}auth_user = bob\nauth_query = SELECT {long}\n"));
    let client = desk.client("stranger", "app");
    let server = desk.server();
    assert_eq!(desk.last_words(client).as_deref(), Some("bouncer config error"));
    assert!(desk.is_closed(server));
    assert_eq!(ended(&desk, Side::Server, "unable to send auth_query"), 1);
}

/// Reasons that no test can bring about, and why.
const OUT_OF_REACH: [(&str, &str); 5] = [
    ("SSL_NOT_ANSWERED", "a byte always fits into the buffer of a socket that is new"),
    ("OBSOLETE", "who is to be closed is closed when it comes free, so nobody finds it idle"),
    ("CLIENT_LEFT_UNSENT", "what is under way to a server makes it busy, and that goes first"),
    ("DEAD_ADMIN", "the next process would have to go in the middle of one system call"),
    ("PROBE_ANSWERED", "for the log alone; `standstill` shows what comes of it"),
];

/// client.md §9: each reason in `farewell` is one that some test has seen, by its text.
#[test]
fn each_reason_has_a_test_that_has_seen_it() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("src/session/farewell.rs")).expect("the table");
    let start = table.find("reasons! {\n    ///").expect("its beginning");
    let table = &table[start..start + table[start..].find("\n}\n").expect("its end")];
    let mut tests = String::new();
    let mut directories = vec![root.join("tests")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
            let path = entry.path();
            match path.extension() {
                _ if path.is_dir() => directories.push(path),
                Some(extension) if extension == "rs" => {
                    tests += &std::fs::read_to_string(&path).expect("a test");
                }
                _ => {}
            }
        }
    }
    // As rustfmt breaks long texts.
    let tests: String = tests.split("\\\n").map(str::trim_start).collect();
    let mut seen = 0;
    for row in table.split(';') {
        let Some((name, text)) = row.split_once(" = ") else {
            continue;
        };
        let name = name.rsplit(char::is_whitespace).next().expect("a name");
        let text =
            text[text.find('"').expect("a text") + 1..].trim_end_matches([')', '"', ' ', '\n']);
        let is_out_of_reach = OUT_OF_REACH.iter().any(|(known, _)| *known == name);
        let is_named = tests.contains(text) || tests.contains(&format!("Reason::{name}"));
        assert!(is_named || is_out_of_reach, "{name}: no test says {text:?}");
        seen += 1;
    }
    assert!(seen > 100, "{seen}");
}
