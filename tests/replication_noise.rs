//! What PostgreSQL says right behind the login of a connection for replication (a notice, a setting
//! that its operator has just changed) is for the client that the connection belongs to.

mod common;

use common::desk::Desk;
use common::fake;
use common::raw::{self, Startup, message};
use ringbouncer::engine::io::{ClientAddress, Input};
use ringbouncer::keys::Conn;

fn replicator(desk: &mut Desk) -> Conn {
    let from = ClientAddress::Unix { pid: 0, uid: None };
    let client = Conn::Client(desk.engine.accept(from, [7; 8], desk.now));
    let startup = Startup::v3().param("user", "alice").param("database", "app");
    desk.feed(client, &startup.param("replication", "database").bytes());
    client
}

fn noise() -> Vec<u8> {
    let notice = message(b'N', b"SWARNING\0C01000\0Mby the way\0\0");
    [notice, message(b'S', b"in_hot_standby\0on\0")].concat()
}

/// In one read with the end of the login, or cut anywhere: by a client that waits for its welcome, or
/// for the answer to its first query.
#[test]
fn what_comes_behind_the_login_is_for_its_client() {
    let login = fake::welcome();
    for is_known in [false, true] {
        for cut in 0..=noise().len() {
            let mut desk = Desk::new(
                "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
                 server_check_query =\n",
            );
            if is_known {
                let other = desk.client("alice", "app");
                desk.server();
                assert!(!desk.take(other).is_empty());
            }
            let client = replicator(&mut desk);
            if is_known {
                assert!(!desk.take(client).is_empty(), "the welcome is known");
                desk.ask(client);
            }
            let (key, _) = desk.dialled.pop_front().expect("a server of its own");
            let server = Conn::Server(key);
            desk.handle(Input::Connected { server: key, local: None });
            let startup = desk.take(server);
            assert!(startup.windows(12).any(|words| words == b"replication\0"));
            desk.feed(server, &[&login[..], &noise()[..cut]].concat());
            desk.feed(server, &noise()[cut..]);
            let told = desk.take(client);
            let place = told.windows(noise().len()).position(|words| words == noise());
            assert!(place.is_some() && told.ends_with(&noise()), "cut at {cut}: {told:?}");
            if !is_known {
                desk.ask(client);
            }
            assert_eq!(desk.take(server), raw::query("SELECT 1"), "cut at {cut}");
            desk.feed(server, &fake::one_row("1"));
            assert_eq!(desk.take(client), fake::one_row("1"), "cut at {cut}");
            assert!(desk.closed.is_empty());
        }
    }
}
