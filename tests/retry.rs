//! What is tried when servers cannot be reached, and how often.

mod common;

use common::desk::Desk;
use ringbouncer::engine::io::ServerAddress;
use ringbouncer::keys::Conn;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn desk(host: &str, settings: &str) -> Desk {
    Desk::new(&format!(
        "[databases]\napp = host={host}\nother = host={host}\n[pgbouncer]\n\
         query_wait_timeout = 0\nclient_login_timeout = 0\n{settings}"
    ))
}

fn host(address: &ServerAddress) -> String {
    match address {
        ServerAddress::Tcp(address) => address.ip().to_string(),
        ServerAddress::Unix(path) => path.display().to_string(),
    }
}

/// How long it takes until the next attempt.
fn until_dialled(desk: &mut Desk) -> Duration {
    let start = desk.now;
    while desk.dialled.is_empty() {
        desk.after(SECOND / 100);
        assert!(desk.now - start < 100 * SECOND, "nothing is tried any more");
    }
    desk.now - start
}

#[test]
fn without_the_least_pause_each_pool_tries_every_so_often() {
    let mut desk = desk("127.0.0.1", "server_login_retry = 5");
    desk.client("alice", "app");
    for _ in 0..5 {
        desk.refuse();
        let pause = until_dialled(&mut desk);
        assert!(pause >= 5 * SECOND && pause < 51 * SECOND / 10, "{pause:?}");
    }
    assert!(desk.engine.house().hosts.len() == 1, "what fails can be seen");
}

#[test]
fn pauses_grow_and_one_pool_of_all_tries_first() {
    let mut desk = desk("127.0.0.1", "server_login_retry_min = 1\nserver_login_retry = 8");
    desk.client("alice", "app");
    desk.refuse();
    // Another pool of the same host does not even begin.
    desk.client("bob", "other");
    assert!(desk.dialled.is_empty());
    for whole in [1, 2, 4, 8, 8] {
        let pause = until_dialled(&mut desk);
        assert!(pause >= whole * SECOND / 2 && pause <= whole * SECOND + SECOND / 10, "{pause:?}");
        desk.after(SECOND * 5);
        assert_eq!(desk.dialled.len(), 1, "one probe at a time");
        desk.refuse();
    }
    let failing = desk.engine.house().hosts.values().next().expect("it fails").clone();
    assert_eq!((failing.failures, failing.error.as_str()), (6, "connect failed"));
    // It comes back, and everybody is served at once.
    until_dialled(&mut desk);
    desk.server();
    until_dialled(&mut desk);
    desk.server();
    assert!(desk.engine.house().hosts.is_empty());
}

#[test]
fn hosts_that_are_well_go_before_one_that_fails() {
    let settings = "server_login_retry_min = 2\nserver_login_retry = 30\npool_mode = transaction";
    let mut desk = desk("127.0.0.1,127.0.0.2,127.0.0.3", settings);
    desk.client("alice", "app");
    assert_eq!(host(&desk.refuse()), "127.0.0.1");
    // No pause: there are others.
    until_dialled(&mut desk);
    assert_eq!(host(&desk.dialled[0].1), "127.0.0.2");
    desk.server();
    let clients: Vec<Conn> = (0..4).map(|_| desk.client("alice", "app")).collect();
    let mut used = Vec::new();
    for client in clients {
        desk.take(client);
        desk.ask(client);
        while let Some((_, to)) = desk.dialled.front().cloned() {
            used.push(host(&to));
            desk.server();
        }
    }
    assert!(used.len() >= 3 && !used.contains(&"127.0.0.1".to_owned()), "{used:?}");
    // When its pause is over it gets its chance.
    desk.after(SECOND * 3);
    for _ in 0..3 {
        let client = desk.client("alice", "app");
        desk.take(client);
        desk.ask(client);
        while let Some((_, to)) = desk.dialled.front().cloned() {
            used.push(host(&to));
            desk.server();
        }
    }
    assert!(used.contains(&"127.0.0.1".to_owned()), "{used:?}");
    assert!(desk.engine.house().hosts.is_empty());
}

#[test]
fn a_wrong_password_says_nothing_about_the_host() {
    let mut desk = desk("127.0.0.1", "server_login_retry_min = 1\nserver_login_retry = 8");
    desk.client("alice", "app");
    let server = desk.connect();
    let words = b"SFATAL\0C28P01\0Mpassword authentication failed\0\0";
    desk.feed(server, &common::raw::message(b'E', words));
    assert!(desk.engine.house().hosts.is_empty());
    desk.client("bob", "other");
    assert_eq!(desk.dialled.len(), 1, "the other pool is not held up");
}
