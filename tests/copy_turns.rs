//! A COPY of the extended protocol while others wait for the server: its client has to be let say the
//! Sync without which the server says nothing more.

mod common;

use common::desk::Desk;
use common::raw::{self, message};

#[test]
fn a_sync_behind_a_copy_is_a_part_of_it() {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
         default_pool_size = 1\nmax_pipeline_depth = 1\nmax_prepared_statements = 0",
    );
    let copier = desk.client("alice", "app");
    let server = desk.server();
    desk.take(copier);
    let begin = [
        raw::parse("", "COPY t FROM STDIN"),
        raw::bind("", &[]),
        raw::execute(0),
        // The server ignores it, for it is in the middle of a COPY then.
        raw::sync(),
    ];
    desk.feed(copier, &begin.concat());
    assert_eq!(desk.take(server), begin.concat());
    let other = desk.client("alice", "app");
    desk.take(other);
    desk.ask(other);
    let ready_for_data =
        [message(b'1', b""), message(b'2', b""), message(b'G', b"\0\0\0")].concat();
    desk.feed(server, &ready_for_data);
    assert_eq!(desk.take(copier), ready_for_data);
    let end = [raw::copy_data(b"1\n"), raw::copy_done(), raw::sync()];
    desk.feed(copier, &end.concat());
    assert_eq!(desk.take(server), end.concat(), "all of it, whoever waits");
    let done = [message(b'C', b"COPY 1\0"), common::fake::ready()].concat();
    desk.feed(server, &done);
    assert_eq!(desk.take(copier), done);
    desk.answer(server);
}
