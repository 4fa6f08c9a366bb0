//! A COPY that fails while more is on its way (reliability 13): what the server still owes is owed to
//! nobody else.

mod common;

use common::desk::Desk;
use common::fake::one_row;
use common::raw::{self, message, query};

const READY: &[u8] = b"Z\0\0\0\x05I";
const RESCUER: &str = "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
                       default_pool_size = 1\nserver_rescue_timeout = 10\nserver_reset_query =\n";

fn copy() -> Vec<u8> {
    [raw::parse("", "COPY t FROM STDIN"), raw::bind("", &[]), raw::execute(0)].concat()
}

fn begun() -> Vec<u8> {
    [message(b'1', b""), message(b'2', b""), message(b'G', &[0, 0, 0])].concat()
}

fn error() -> Vec<u8> {
    message(b'E', b"SERROR\0\0")
}

/// Whether PostgreSQL ignores a Sync between the data depends on where it was when the COPY failed.
/// So it is asked: what it says to a Close comes behind all that it has answered before. Nobody else
/// gets that server meanwhile.
#[test]
fn a_sync_between_the_data_of_a_failed_copy_is_asked_about() {
    for (ahead, counted) in
        [(vec![], 0), (raw::flush(), 1), ([raw::flush(), raw::flush()].concat(), 1)]
    {
        let mut desk = Desk::new(
            "[databases]\napp = host=127.0.0.1\n\
             [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\n",
        );
        let client = desk.client("alice", "app");
        let server = desk.server();
        let other = desk.client("alice", "app");
        for client in [client, other] {
            desk.take(client);
        }
        let data = [ahead.clone(), raw::copy_data(b"x\n").repeat(3), raw::sync()].concat();
        let behind = [raw::execute(0), raw::sync(), query("SELECT 'late'")].concat();
        desk.feed(client, &[copy(), data, behind].concat());
        desk.feed(other, &query("SELECT 'other'"));
        // The client has not ended its COPY, and it has to be known whether it is over.
        assert!(desk.take(server).ends_with(&raw::flush()));
        let (begun, error) = (begun(), error());
        desk.feed(server, &[begun.clone(), error.clone()].concat());
        let asked = desk.take(server);
        assert!(asked.starts_with(&raw::sync()) && asked.ends_with(&raw::sync()));
        desk.feed(server, &READY.repeat(counted + 1));
        desk.perform();
        assert_eq!(desk.take(client), [begun, error.clone()].concat(), "nobody knows");
        desk.feed(server, &[message(b'3', b""), READY.into()].concat());
        assert_eq!(desk.take(client), READY.repeat(counted));
        // Where the Sync was ignored, so is all up to the next one.
        let executed = if counted == 0 { vec![] } else { raw::execute(0) };
        let behind = [executed, raw::sync(), query("SELECT 'late'")].concat();
        assert_eq!(desk.take(server), behind);
        let failed = if counted == 0 { vec![] } else { error };
        let answers = [failed, READY.into(), one_row("late")].concat();
        desk.feed(server, &answers);
        assert_eq!(desk.take(client), answers);
        assert_eq!(desk.take(server), query("SELECT 'other'"), "it serves on");
    }
}

/// A Sync ahead of the data of a COPY is ignored, so it does not end the batch, although it is the
/// last one; and PostgreSQL keeps the end of the COPY back until it is asked for it. Whoever leaves
/// then leaves a server that can be brought back all the same.
#[test]
fn who_leaves_behind_an_ignored_sync_leaves_no_server_that_waits() {
    let mut desk = Desk::new(RESCUER);
    let client = desk.client("alice", "app");
    let server = desk.server();
    let other = desk.client("alice", "app");
    for client in [client, other] {
        desk.take(client);
    }
    let copy = copy();
    let data = [raw::sync(), raw::copy_data(b"x\n"), raw::copy_done()].concat();
    desk.feed(client, &[copy, data].concat());
    desk.take(server);
    desk.feed(client, &raw::terminate());
    assert!(desk.is_closed(client) && !desk.is_closed(server));
    desk.feed(other, &query("SELECT 'other'"));
    desk.take(server);
    desk.feed(server, &begun());
    assert_eq!(desk.take(server), raw::flush());
    desk.feed(server, &message(b'C', b"COPY 1\0"));
    // It is told to end the batch, and does.
    assert!(desk.take(server).ends_with(&raw::sync()));
    let undone = [message(b'1', b""), message(b'2', b""), message(b'C', b"ROLLBACK\0")].concat();
    desk.feed(server, &[undone, READY.into()].concat());
    assert_eq!(desk.take(server), query("SELECT 'other'"));
}

/// When does the client go?
#[derive(Clone, Copy, Debug)]
enum Gone {
    BeforeError,
    BehindError,
    BehindQuestion,
    BehindFirstReady,
}

/// Where nobody is left who wants to know which Syncs counted, it is found out all the same: an
/// answer that nobody counts on would go to the next client.
#[test]
fn a_server_whose_client_has_gone_is_asked_as_well() {
    for gone in [Gone::BeforeError, Gone::BehindError, Gone::BehindQuestion, Gone::BehindFirstReady]
    {
        for syncs in [vec![], raw::copy_data(b"x\n")].map(|data| [data, raw::sync()].concat()) {
            for counted in [0, 1] {
                is_asked(gone, &[copy(), syncs.clone()].concat(), counted);
            }
        }
    }
}

fn is_asked(gone: Gone, said: &[u8], counted: usize) {
    let mut desk = Desk::new(RESCUER);
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    desk.feed(client, said);
    desk.feed(server, &begun());
    desk.take(server);
    if matches!(gone, Gone::BeforeError) {
        desk.leave(client);
        assert!(desk.take(server).starts_with(&raw::copy_fail("client disconnected")));
    }
    desk.feed(server, &error());
    let mut asked = Vec::new();
    if matches!(gone, Gone::BehindQuestion | Gone::BehindFirstReady) {
        // Any word of the client lets us ask.
        desk.feed(client, &raw::sync());
        asked = desk.take(server);
    }
    let (first, then) = match gone {
        Gone::BehindFirstReady => (1, counted),
        _ => (0, counted + 1),
    };
    desk.feed(server, &READY.repeat(first));
    if !matches!(gone, Gone::BeforeError) {
        desk.leave(client);
    }
    asked.extend(desk.take(server));
    assert!(asked.starts_with(&raw::sync()) && asked.ends_with(&raw::sync()), "{gone:?}");
    let other = desk.client("alice", "app");
    desk.take(other);
    desk.feed(other, &query("SELECT 'other'"));
    desk.feed(server, &[READY.repeat(then), message(b'3', b"")].concat());
    assert_eq!(desk.take(server), b"", "{gone:?}: it has more to say");
    desk.feed(server, READY);
    assert_eq!(desk.take(server), query("SELECT 'other'"), "{gone:?}");
    desk.feed(server, &one_row("other"));
    assert_eq!(desk.take(other), one_row("other"), "{gone:?}");
}

/// Behind a Sync ahead of all data the client may go on at once. If that COPY fails, nobody can tell
/// any more what is an answer to what; PostgreSQL may even be at work on the next query.
#[test]
fn a_server_of_which_nobody_knows_what_it_will_say_is_not_rescued() {
    for behind in [[raw::copy_done(), raw::sync()].concat(), query("SELECT 'its last'")] {
        for goes_first in [false, true] {
            let mut desk = Desk::new(RESCUER);
            let client = desk.client("alice", "app");
            let server = desk.server();
            desk.take(client);
            desk.feed(client, &[copy(), raw::sync(), behind.clone()].concat());
            desk.take(server);
            if goes_first {
                desk.leave(client);
                assert!(!desk.is_closed(server));
            }
            desk.feed(server, &[begun(), error(), READY.into()].concat());
            if !goes_first {
                desk.leave(client);
            }
            assert!(desk.is_closed(server), "{goes_first}");
        }
    }
}
