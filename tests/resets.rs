//! A reset query that is not answered.

mod common;

use common::desk::Desk;
use common::raw;
use ringbouncer::keys::Conn;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A client that has been served in session pooling, the one that waits for its server, and that.
fn session(settings: &str) -> (Desk, Conn, Conn, Conn) {
    let mut desk = Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = session\n\
         default_pool_size = 1\nquery_wait_timeout = 0\nserver_idle_timeout = 0\n{settings}"
    ));
    let first = desk.client("alice", "app");
    let server = desk.server();
    desk.take(first);
    desk.ask(first);
    desk.answer(server);
    let next = desk.client("alice", "app");
    desk.take(next);
    desk.ask(next);
    // That says nothing about how long the reset takes.
    desk.after(SECOND * 1000);
    desk.leave(first);
    assert_eq!(desk.take(server), raw::query("DISCARD ALL"));
    (desk, first, next, server)
}

/// As long as a new connection may take, which is what the waiting client gets then.
#[test]
fn a_reset_that_hangs_ends_its_server_in_time() {
    let (mut desk, _, next, server) = session("server_connect_timeout = 5");
    desk.after(SECOND * 49 / 10);
    assert!(!desk.is_closed(server) && desk.dialled.is_empty());
    desk.after(SECOND / 10);
    assert!(desk.is_closed(server));
    let another = desk.server();
    desk.answer(another);
    assert!(!desk.is_closed(next));
}

#[test]
fn a_reset_in_time_is_all_that_the_next_client_waits_for() {
    let (mut desk, _, next, server) = session("server_connect_timeout = 5");
    desk.after(SECOND * 4);
    let mut done = raw::message(b'C', b"DISCARD ALL\0");
    done.extend(common::fake::ready());
    desk.feed(server, &done);
    desk.answer(server);
    desk.after(SECOND * 10);
    assert!(!desk.is_closed(server) && !desk.is_closed(next));
}

#[test]
fn without_a_limit_it_is_waited_for() {
    let (mut desk, _, _, server) = session("server_connect_timeout = 0\nserver_lifetime = 7200");
    desk.after(SECOND * 3000);
    assert!(!desk.is_closed(server));
    desk.after(SECOND * 3201);
    assert!(desk.is_closed(server), "its age ends it");
}
