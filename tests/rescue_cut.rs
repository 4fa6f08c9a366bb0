//! A client that goes in the middle of a message (`server_rescue_timeout`): only CopyData is ever
//! completed for it. A statement that is cut short would be another statement.

mod common;

use common::desk::Desk;
use common::raw::{self, copy_data, message, query};
use ringbouncer::keys::Conn;

/// A client in the middle of a COPY, as far as we have heard, and its server.
fn copying() -> (Desk, Conn, Conn) {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
         default_pool_size = 1\nserver_rescue_timeout = 10\n",
    );
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    desk.feed(client, &query("COPY accounts FROM STDIN"));
    desk.take(server);
    desk.feed(server, &message(b'G', &[0, 0, 0]));
    desk.take(client);
    (desk, client, server)
}

/// What of a COPY's data is missing does not matter, for the COPY will fail.
#[test]
fn data_that_was_cut_off_is_made_up() {
    let (mut desk, client, server) = copying();
    let data = copy_data(b"1\tone\n");
    desk.feed(client, &data[..data.len() - 3]);
    desk.leave(client);
    assert!(!desk.is_closed(server));
    let sent = desk.take(server);
    assert!(sent.starts_with(&data[..data.len() - 3]));
    assert_eq!(sent[data.len() - 3..data.len()], [0; 3]);
    assert_eq!(sent[data.len()..data.len() + 1], *b"f");
}

/// The server may have given up the COPY a moment ago, and would take this for its next query.
#[test]
fn a_query_in_the_middle_of_a_copy_is_not_made_up() {
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 14].to_vec();
    let delete = || query("DELETE FROM accounts WHERE id = 1");
    for (name, said) in [
        ("a query", vec![copy_data(b"1\n"), cut(delete())]),
        ("a query at once", vec![cut(delete())]),
        ("a call", vec![copy_data(b"1\n"), message(b'F', &[1; 40])[..20].to_vec()]),
    ] {
        let (mut desk, client, server) = copying();
        desk.feed(client, &said.concat());
        desk.leave(client);
        assert!(desk.is_closed(server), "{name}");
    }
    // Where a Parse is collected before any of it is passed on, nothing has to be made up.
    let (mut desk, client, server) = copying();
    desk.feed(client, &[copy_data(b"1\n"), cut(raw::parse("", "DELETE FROM t WHERE 1"))].concat());
    desk.leave(client);
    let sent = desk.take(server);
    assert!(!desk.is_closed(server) && !sent.windows(6).any(|some| some == b"DELETE"));
}
