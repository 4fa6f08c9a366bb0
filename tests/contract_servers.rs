//! client.md §3.6, §3.7, §9.4 and server.md §2.9, on a desk: what is said of servers that cannot be
//! reached or break, to whom and in which words.

mod common;

use common::desk::{Desk, config};
use common::fake::one_row;
use common::raw::{self, message};
use ringbouncer::engine::io::Input;
use ringbouncer::keys::Conn;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const TEXT: &str = "[databases]\napp = host=127.0.0.1\n\
    [pgbouncer]\npool_mode = transaction\nserver_login_retry = 10\nquery_wait_timeout = 100\n\
    query_wait_notify = 0\n";

/// Two clients that know the welcome, and no server any more; the first of them asks for one.
fn without_server(text: &str) -> (Desk, [Conn; 2]) {
    let mut desk = Desk::new(text);
    let clients = [desk.client("alice", "app"), desk.client("alice", "app")];
    let server = desk.server();
    for client in clients {
        assert!(!desk.take(client).is_empty(), "its welcome");
    }
    desk.leave(server);
    desk.ask(clients[0]);
    (desk, clients)
}

/// Who waited before stays in the line. Who asks now is told why, and the attempt is made again, no
/// sooner than `server_login_retry` says.
fn assert_fails_fast(desk: &mut Desk, [first, second]: [Conn; 2], cached: &str) {
    assert!(!desk.is_closed(first), "{cached}: who waited goes on to do so");
    desk.ask(second);
    let words =
        format!("server login has been failing, cached error: {cached} (server_login_retry)");
    assert_eq!(desk.last_words(second), Some(words));
    assert!(desk.dialled.is_empty());
    while desk.dialled.is_empty() {
        desk.after(SECOND);
    }
    let server = desk.server();
    assert_eq!(desk.take(server), raw::query("SELECT 1"), "{cached}: its turn comes");
    desk.feed(server, &one_row("1"));
    assert_eq!(desk.take(first), one_row("1"));
}

#[test]
fn each_way_of_failing_to_log_in_has_its_words() {
    let ok = message(b'R', &[0; 4]);
    for (cached, said) in [
        ("bad cancel key", [ok.clone(), message(b'K', b"short")].concat()),
        ("unknown pkt from server", [ok.clone(), message(b'y', b"")].concat()),
        ("unknown pkt from server", message(b'Z', b"I")),
        ("broken ParameterStatus packet", [ok.clone(), message(b'S', b"TimeZone")].concat()),
        ("bad pkt header", b"R\0\0\0\x03".to_vec()),
        ("failed to answer authreq", message(b'R', &[0, 0, 0, 7])),
        ("server conn crashed?", Vec::new()),
    ] {
        let (mut desk, clients) = without_server(TEXT);
        let server = desk.connect();
        match said.is_empty() {
            false => desk.feed(server, &said),
            true => {
                desk.leave(server);
            }
        }
        assert!(desk.is_closed(server), "{cached}");
        assert_fails_fast(&mut desk, clients, cached);
    }
}

#[test]
fn each_way_of_not_being_reached_has_its_words() {
    let (mut desk, clients) = without_server(TEXT);
    desk.refuse();
    assert_fails_fast(&mut desk, clients, "connect failed");
    // It is connected, and says nothing.
    let (mut desk, clients) = without_server(&format!("{TEXT}server_connect_timeout = 5\n"));
    let server = desk.connect();
    desk.after(SECOND * 6);
    assert!(desk.is_closed(server));
    assert_fails_fast(&mut desk, clients, "connect timeout");
    // It is never connected.
    let (mut desk, clients) = without_server(&format!("{TEXT}server_connect_timeout = 5\n"));
    desk.after(SECOND * 6);
    assert_fails_fast(&mut desk, clients, "connect failed");
}

/// The server's own words are cached, too, cut to 99 bytes; and whoever waits gets them as they are.
#[test]
fn a_refusal_reaches_all_who_wait() {
    let (mut desk, [first, second]) = without_server(TEXT);
    let server = desk.connect();
    let long = "no ".repeat(60);
    let error = format!("SFATAL\0C28000\0M{long}\0\0");
    desk.feed(server, &message(b'E', error.as_bytes()));
    let (_, last) = desk.closed.iter().find(|(conn, _)| *conn == first).expect("it is told");
    let told = [&b"SFATAL\0C28000\0M"[..], long.as_bytes(), b"\0"].concat();
    assert!(last.windows(told.len()).any(|words| words == told), "whole, with its SQLSTATE");
    desk.ask(second);
    let words = desk.last_words(second).expect("words");
    let begin = format!("server login has been failing, cached error: {}", &long[..82]);
    assert_eq!(words, begin[..127]);
}

/// A configuration that changes meanwhile is no failure: the next attempt is made at once, with the
/// new one.
#[test]
fn a_change_of_the_configuration_is_no_failure() {
    let (mut desk, [first, second]) = without_server(TEXT);
    let server = desk.connect();
    let now = desk.now;
    desk.engine.reload(config(&TEXT.replace("127.0.0.1", "127.0.0.2")), None, now);
    desk.perform();
    assert!(desk.is_closed(server));
    desk.ask(second);
    assert!(!desk.is_closed(first) && !desk.is_closed(second));
    desk.after(SECOND);
    let (_, to) = desk.dialled.front().expect("another one");
    assert!(format!("{to:?}").contains("127.0.0.2"), "{to:?}");
    let server = desk.server();
    desk.answer(server);
    desk.answer(server);
}

/// §3.6: what it said before its end is passed on, then the reason; nobody else notices.
#[test]
fn a_server_that_ends_takes_its_client_along_and_nobody_else() {
    for (text, input) in [
        ("server conn crashed?", (|conn| Input::ReadClosed { conn }) as fn(Conn) -> Input),
        ("server connection closed", |conn| Input::WriteClosed { conn }),
    ] {
        let mut desk = Desk::new(TEXT);
        let (client, other) = (desk.client("alice", "app"), desk.client("alice", "app"));
        let server = desk.server();
        desk.take(client);
        desk.take(other);
        desk.ask(client);
        desk.take(server);
        let said = message(b'E', b"SFATAL\0C57P01\0Mterminating\0\0");
        desk.feed(server, &said);
        desk.handle(input(server));
        desk.perform();
        let (_, last) = desk.closed.iter().find(|(conn, _)| *conn == client).expect("its end");
        assert!(last.starts_with(&said), "{text}: {last:?}");
        let reason = format!("SFATAL\0C08P01\0M{text}\0\0");
        assert!(last.ends_with(&message(b'E', reason.as_bytes())), "{text}: {last:?}");
        assert!(!desk.is_closed(other));
        desk.ask(other);
        let next = desk.server();
        desk.answer(next);
    }
}
