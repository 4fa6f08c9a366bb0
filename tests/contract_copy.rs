//! client.md §3.4, row by row, on a desk: who has the server until when, and where late data goes.
//! (Reliability 13.)

mod common;

use common::desk::Desk;
use common::raw::{
    bind, copy_data, copy_done, copy_fail, execute, flush, message, parse, query, sync,
};
use ringbouncer::keys::Conn;

/// A pool of one with a client that copies and another that waits for it to end.
struct Scene {
    desk: Desk,
    client: Conn,
    other: Conn,
    server: Conn,
}

fn scene() -> Scene {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\n",
    );
    let client = desk.client("alice", "app");
    let server = desk.server();
    let other = desk.client("alice", "app");
    desk.take(client);
    desk.take(other);
    Scene { desk, client, other, server }
}

impl Scene {
    /// The client says this, and all of it gets to the server.
    fn says(&mut self, words: &[Vec<u8>]) {
        self.desk.feed(self.client, &words.concat());
        assert_eq!(self.desk.take(self.server), words.concat(), "passed on");
    }

    /// The server says this, and all of it gets to the client.
    fn hears(&mut self, words: &[Vec<u8>]) {
        self.desk.feed(self.server, &words.concat());
        assert_eq!(self.desk.take(self.client), words.concat(), "passed on");
    }

    /// The other one asks, and waits.
    fn other_waits(&mut self) {
        self.desk.feed(self.other, &query("SELECT 'other'"));
        assert!(self.desk.take(self.server).is_empty(), "it is not its turn");
    }

    fn assert_kept(&mut self) {
        assert!(self.desk.take(self.server).is_empty(), "the server is not free");
    }

    fn assert_released(&mut self) {
        assert_eq!(self.desk.take(self.server), query("SELECT 'other'"), "the server is free");
    }
}

fn copy_in() -> Vec<u8> {
    message(b'G', &[0, 0, 0])
}

fn done() -> Vec<u8> {
    message(b'C', b"COPY 1\0")
}

fn error() -> Vec<u8> {
    message(b'E', b"SERROR\0C22P02\0Mno\0\0")
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

fn extended() -> [Vec<u8>; 3] {
    [parse("", "COPY t FROM STDIN"), bind("", &[]), execute(0)]
}

fn begun() -> [Vec<u8>; 3] {
    [message(b'1', b""), message(b'2', b""), copy_in()]
}

#[test]
fn a_copy_that_succeeds_ends_with_its_ready_for_query() {
    let mut scene = scene();
    scene.says(&[query("COPY t FROM STDIN")]);
    scene.other_waits();
    scene.hears(&[copy_in()]);
    scene.says(&[copy_data(b"1\n"), copy_data(b"2\n")]);
    scene.assert_kept();
    scene.says(&[copy_done()]);
    scene.hears(&[done()]);
    scene.assert_kept();
    scene.hears(&[ready()]);
    scene.assert_released();
}

/// The client is told at once, and what it still has on its way goes to the server that knows what
/// to do with it. Only its next query ends that.
#[test]
fn a_simple_copy_that_the_server_fails_ends_with_the_next_query() {
    let mut scene = scene();
    scene.says(&[query("COPY t FROM STDIN")]);
    scene.other_waits();
    scene.hears(&[copy_in()]);
    scene.says(&[copy_data(b"x\n")]);
    scene.hears(&[error(), ready()]);
    scene.assert_kept();
    scene.says(&[copy_data(b"late\n"), copy_data(b"later\n")]);
    scene.says(&[copy_done()]);
    scene.assert_kept();
    scene.says(&[query("SELECT 1")]);
    scene.hears(&[message(b'C', b"SELECT 0\0"), ready()]);
    scene.assert_released();
}

#[test]
fn an_extended_copy_that_the_server_fails_ends_with_its_sync() {
    let mut scene = scene();
    scene.says(&[&extended()[..], &[flush()]].concat());
    scene.other_waits();
    scene.hears(&begun());
    scene.says(&[copy_data(b"x\n")]);
    scene.hears(&[error()]);
    scene.says(&[copy_data(b"late\n"), copy_done()]);
    scene.assert_kept();
    scene.says(&[sync()]);
    scene.assert_kept();
    scene.hears(&[ready()]);
    scene.assert_released();
}

#[test]
fn a_copy_that_the_client_fails_ends_with_its_ready_for_query() {
    let mut scene = scene();
    scene.says(&[query("COPY t FROM STDIN")]);
    scene.other_waits();
    scene.hears(&[copy_in()]);
    scene.says(&[copy_data(b"1\n"), copy_fail("enough")]);
    scene.hears(&[error()]);
    scene.assert_kept();
    scene.hears(&[ready()]);
    scene.assert_released();
}

/// libpq sends it right behind the Execute. PostgreSQL ignores it, so it is owed no reply.
#[test]
fn a_sync_ahead_of_the_data_is_owed_nothing() {
    for comes_first in [true, false] {
        let mut scene = scene();
        match comes_first {
            true => scene.says(&[&extended()[..], &[sync()]].concat()),
            false => scene.says(&[&extended()[..], &[flush()]].concat()),
        }
        scene.other_waits();
        scene.hears(&begun());
        if !comes_first {
            scene.says(&[sync()]);
        }
        scene.says(&[copy_data(b"1\n"), copy_done(), sync()]);
        scene.hears(&[done()]);
        scene.assert_kept();
        scene.hears(&[ready()]);
        scene.assert_released();
    }
}

#[test]
fn a_copy_out_is_nothing_special() {
    let mut scene = scene();
    scene.says(&[query("COPY t TO STDOUT")]);
    scene.other_waits();
    scene.hears(&[message(b'H', &[0, 0, 0]), message(b'd', b"1\n"), message(b'd', b"2\n")]);
    scene.hears(&[message(b'c', b""), done()]);
    scene.assert_kept();
    scene.hears(&[ready()]);
    scene.assert_released();
}

/// Nobody else's server gets it, and it needs none.
#[test]
fn data_that_comes_behind_the_release_is_dropped() {
    let mut scene = scene();
    scene.says(&[query("COPY t FROM STDIN")]);
    scene.other_waits();
    scene.hears(&[copy_in()]);
    scene.says(&[copy_done()]);
    scene.hears(&[done(), ready()]);
    scene.assert_released();
    let late = [copy_data(b"late\n"), copy_data(&[b'x'; 9000]), copy_done(), copy_fail("no")];
    scene.desk.feed(scene.client, &late.concat());
    scene.assert_kept();
    scene.desk.feed(scene.server, &common::fake::one_row("other"));
    scene.desk.take(scene.other);
    scene.says(&[query("SELECT 1")]);
    scene.hears(&[message(b'C', b"SELECT 0\0"), ready()]);
}

/// PostgreSQL throws out who asks for something in the middle of a COPY; its words are passed on.
#[test]
fn other_messages_in_the_middle_are_the_servers_affair() {
    for other in [query("SELECT 1"), parse("", "SELECT 1"), message(b'F', &[0; 10])] {
        let mut scene = scene();
        scene.says(&[query("COPY t FROM STDIN")]);
        scene.other_waits();
        scene.hears(&[copy_in()]);
        scene.says(&[copy_data(b"1\n"), other]);
        let fatal = message(b'E', b"SFATAL\0C08P01\0Munexpected message type\0\0");
        scene.desk.feed(scene.server, &fatal);
        scene.desk.handle(ringbouncer::engine::io::Input::ReadClosed { conn: scene.server });
        scene.desk.perform();
        let (_, last) = scene.desk.closed.iter().find(|(conn, _)| *conn == scene.client).unwrap();
        assert!(last.starts_with(&fatal));
        let next = scene.desk.server();
        assert_eq!(scene.desk.take(next), query("SELECT 'other'"));
    }
}

/// CopyBoth is a COPY in both directions (§3.2): its client may send data, and ends its own direction.
#[test]
fn a_copy_in_both_directions_is_one_of_both() {
    let mut scene = scene();
    scene.says(&[query("START_REPLICATION SLOT s LOGICAL 0/0")]);
    scene.other_waits();
    scene.hears(&[message(b'W', &[0, 0, 0])]);
    scene.hears(&[message(b'd', b"w")]);
    scene.says(&[copy_data(b"r")]);
    scene.hears(&[message(b'd', b"k")]);
    scene.says(&[copy_done()]);
    scene.hears(&[message(b'd', b"w"), message(b'c', b""), done()]);
    scene.assert_kept();
    scene.hears(&[ready()]);
    scene.assert_released();
}
