//! Large transfers are passed on in larger pieces (`src/net/bulk.rs`), but nothing is kept back when
//! a transfer pauses: whoever has sent all that it has may wait for the other side to react to it.

mod common;

use common::fake::{self, FakeServer};
use common::raw::{copy_data, copy_done, message, query};
use common::{Pooler, Startup};
use std::sync::Mutex;
use std::sync::mpsc::channel;

const LARGE_BYTES: usize = 3 * 1024 * 1024;
/// As PostgreSQL sends it.
const PIECE_BYTES: usize = 8 * 1024;
/// So many times the transfer goes on and pauses again.
const PAUSES: usize = 3;

fn pooler(server: &FakeServer) -> Pooler {
    Pooler::start(|ini| {
        ini.database("fake", &server.connect_string()).set("default_pool_size", "1");
    })
}

fn fake_user() -> Startup {
    Startup::v3().param("user", "alice").param("database", "fake")
}

/// Rows of several megabytes, and one that fills no packet.
fn rows() -> (Vec<u8>, usize) {
    let row = message(b'D', &[b'r'; 1000]);
    let count = LARGE_BYTES / row.len();
    let mut bytes = row.repeat(count);
    bytes.extend(message(b'D', b"the last one before the pause"));
    (bytes, count + 1)
}

#[test]
fn a_result_that_pauses_is_delivered_up_to_its_last_byte() {
    let (go_on, may_go_on) = channel::<()>();
    let may_go_on = Mutex::new(may_go_on);
    let server = FakeServer::start(move |visit| {
        visit.welcome();
        while visit.message().is_some_and(|message| message.tag == b'Q') {
            for _ in 0..PAUSES {
                for piece in rows().0.chunks(PIECE_BYTES) {
                    visit.send(piece);
                }
                if may_go_on.lock().expect("one visit").recv().is_err() {
                    return;
                }
            }
            visit.send(&message(b'C', b"SELECT 1\0"));
            visit.send(&fake::ready());
        }
    });
    let pooler = pooler(&server);
    let mut client = pooler.raw_with(fake_user());
    for _ in 0..2 {
        client.send(&query("SELECT much"));
        for _ in 0..PAUSES {
            // Were a byte kept back, it would come only after we have said "go on": never.
            for _ in 0..rows().1 {
                assert_eq!(client.message().tag, b'D');
            }
            go_on.send(()).expect("the server waits");
        }
        client.expect_tags("CZ");
    }
}

#[test]
fn a_copy_that_pauses_is_delivered_up_to_its_last_byte() {
    let (arrived, has_arrived) = channel::<()>();
    let server = FakeServer::start(move |visit| {
        visit.welcome();
        while visit.message().is_some_and(|message| message.tag == b'Q') {
            visit.send(&message(b'G', b"\0\0\0"));
            while let Some(message) = visit.message().filter(|message| message.tag == b'd') {
                if message.body == b"pause" {
                    let _ = arrived.send(());
                }
            }
            visit.send(&message(b'C', b"COPY 1\0"));
            visit.send(&fake::ready());
        }
    });
    let pooler = pooler(&server);
    let mut client = pooler.raw_with(fake_user());
    client.send(&query("COPY much FROM STDIN"));
    client.expect_tags("G");
    for _ in 0..PAUSES {
        let piece = copy_data(&[b'x'; PIECE_BYTES]);
        for _ in 0..LARGE_BYTES / PIECE_BYTES {
            client.send(&piece);
        }
        client.send(&copy_data(b"pause"));
        has_arrived.recv_timeout(common::PATIENCE).expect("all of it, without another byte");
    }
    client.send(&copy_done());
    client.expect_tags("CZ");
}
