//! Orders of messages that hardly anybody sends, on a desk: reliability 12 and 13. What each client
//! reads is what it was sent, and no statement is taken for another. With a real PostgreSQL:
//! `odd_moments.rs`.

mod common;

use common::desk::Desk;
use common::fake::one_row;
use common::oracle::{account, answer, name_in};
use common::raw::{
    self, bind, close, copy_data, copy_done, execute, flush, message, parse, query, sync,
};
use ringbouncer::keys::Conn;
use std::time::Duration;

const READY: &[u8] = b"Z\0\0\0\x05I";
const PLAIN: &str = "[databases]\napp = host=127.0.0.1\n\
                     [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\n";
/// Each statement drives the one before out of the server.
const CROWDED: &str = "[databases]\napp = host=127.0.0.1\n\
                       [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\n\
                       max_prepared_statements = 1\n";
const RESCUER: &str = "[databases]\napp = host=127.0.0.1\n\
                       [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\n\
                       server_rescue_timeout = 10\nserver_reset_query =\n";

/// Two clients of one pool, and its server.
fn two(settings: &str) -> (Desk, [Conn; 2], Conn) {
    let mut desk = Desk::new(settings);
    let client = desk.client("alice", "app");
    let server = desk.server();
    let other = desk.client("alice", "app");
    for client in [client, other] {
        assert!(!desk.take(client).is_empty(), "a welcome");
    }
    (desk, [client, other], server)
}

/// A message without a body.
fn bare(tag: u8) -> Vec<u8> {
    message(tag, b"")
}

fn error() -> Vec<u8> {
    message(b'E', b"SERROR\0\0")
}

fn complete(tag: &str) -> Vec<u8> {
    message(b'C', &[tag.as_bytes(), b"\0"].concat())
}

/// The client prepares it, whether its server has it already or not.
fn prepare(desk: &mut Desk, (client, server): (Conn, Conn), name: &str, sql: &str) {
    desk.feed(client, &[parse(name, sql), sync()].concat());
    let is_new = desk.take(server).starts_with(b"P");
    let parsed = if is_new { bare(b'1') } else { Vec::new() };
    desk.feed(server, &[parsed, READY.to_vec()].concat());
    assert_eq!(desk.take(client), [bare(b'1'), READY.to_vec()].concat());
}

fn run(name: &str) -> Vec<u8> {
    [bind(name, &[]), execute(0), sync()].concat()
}

/// The message before it settles what ours stands behind, and only a part of it has come.
#[test]
fn no_reply_of_ours_stands_in_the_middle_of_the_servers() {
    let done = complete("SELECT 1");
    for cut in 1..done.len() {
        let (mut desk, [client, _], server) = two(PLAIN);
        prepare(&mut desk, (client, server), "a", "SELECT 1");
        let words = [bind("a", &[]), execute(0), close(b'S', "a"), sync()];
        desk.feed(client, &words.concat());
        desk.take(server);
        desk.feed(server, &[bare(b'2'), done[..cut].to_vec()].concat());
        let mut seen = desk.take(client);
        desk.feed(server, &[done[cut..].to_vec(), READY.to_vec()].concat());
        seen.extend(desk.take(client));
        let expected = [bare(b'2'), done.clone(), bare(b'3'), READY.to_vec()].concat();
        assert_eq!(seen, expected, "{cut}");
    }
}

/// The same where nothing is owed any more when the client asks.
#[test]
fn nor_does_one_that_would_be_due_at_once() {
    let done = complete("SELECT 1");
    for cut in 1..done.len() {
        let (mut desk, [client, _], server) = two(PLAIN);
        prepare(&mut desk, (client, server), "a", "SELECT 1");
        desk.feed(client, &[bind("a", &[]), execute(0), flush()].concat());
        desk.take(server);
        desk.feed(server, &[bare(b'2'), done[..cut].to_vec()].concat());
        desk.feed(client, &close(b'S', "a"));
        let mut seen = desk.take(client);
        desk.feed(server, &done[cut..]);
        seen.extend(desk.take(client));
        assert_eq!(seen, [bare(b'2'), done.clone(), bare(b'3')].concat(), "{cut}");
    }
}

/// What was done last is undone first.
#[test]
fn what_is_skipped_changes_no_list_of_statements() {
    // The server has it, our Close of it and our Parse of it are both skipped: it still has it.
    let (mut desk, [client, _], server) = two(CROWDED);
    prepare(&mut desk, (client, server), "a", "SELECT 'a'");
    let words = [parse("b", "SELECT nonsense"), bind("b", &[]), bind("a", &[]), sync()];
    desk.feed(client, &words.concat());
    desk.take(server);
    desk.feed(server, &[error(), READY.to_vec()].concat());
    desk.take(client);
    desk.feed(client, &run("a"));
    assert!(desk.take(server).starts_with(b"B"), "it has that");

    // The server does not have it, its Parse and our Close of it are both skipped.
    let (mut desk, [client, _], server) = two(CROWDED);
    let words = [parse("", "SELECT nonsense"), parse("a", "SELECT 'a'"), parse("b", "SELECT 'b'")];
    desk.feed(client, &[words.concat(), sync()].concat());
    desk.take(server);
    desk.feed(server, &[error(), READY.to_vec()].concat());
    desk.take(client);
    desk.feed(client, &run("a"));
    assert!(desk.take(server).starts_with(b"P"), "it never had that");

    // The server has forgotten it before our Close of it is skipped.
    let (mut desk, [client, other], server) = two(CROWDED);
    prepare(&mut desk, (client, server), "a", "SELECT 'a'");
    prepare(&mut desk, (other, server), "a", "SELECT 'a'");
    let forget = [parse("", "DEALLOCATE ALL"), bind("", &[]), execute(0)].concat();
    desk.feed(client, &[forget, parse("b", "SELECT nonsense"), sync()].concat());
    desk.take(server);
    let done = [bare(b'1'), bare(b'2'), complete("DEALLOCATE ALL"), error(), READY.to_vec()];
    desk.feed(server, &done.concat());
    desk.take(client);
    desk.feed(other, &run("a"));
    assert!(desk.take(server).starts_with(b"P"), "it has forgotten that");
}

/// `DEALLOCATE` of a name that we follow, where an INSERT has not been committed yet.
#[test]
fn nobody_is_told_that_he_is_idle_in_an_open_batch() {
    let (mut desk, [client, _], server) = two(PLAIN);
    prepare(&mut desk, (client, server), "a", "SELECT 'a'");
    desk.feed(client, &[parse("", "INSERT"), bind("", &[]), execute(0), flush()].concat());
    desk.take(server);
    desk.feed(server, &[bare(b'1'), bare(b'2'), complete("INSERT 0 1")].concat());
    desk.take(client);
    desk.feed(client, &query("DEALLOCATE a"));
    assert_eq!(desk.take(server), query("DEALLOCATE a"));
    assert_eq!(desk.take(client), b"");
}

/// When `statement_timeout` goes off between two messages, the next one is answered by the error,
/// were it a Flush.
#[test]
fn an_error_that_answers_a_flush_keeps_no_server() {
    let (mut desk, [client, other], server) = two(PLAIN);
    desk.feed(client, &[parse("", "SELECT 1"), flush()].concat());
    desk.take(server);
    desk.feed(server, &bare(b'1'));
    desk.feed(client, &flush());
    desk.take(server);
    desk.feed(server, &error());
    desk.feed(client, &run(""));
    desk.take(server);
    desk.feed(server, READY);
    assert_eq!(desk.take(client), [bare(b'1'), error(), READY.to_vec()].concat());
    desk.feed(other, &query("SELECT 1"));
    assert_eq!(desk.take(server), query("SELECT 1"), "it owes nothing");
}

/// A Sync ahead of all data counts if the COPY fails before it reads anything, and then an answer more
/// is owed than was noted.
#[test]
fn what_was_not_noted_reaches_its_client_all_the_same() {
    let (mut desk, [client, _], server) = two(PLAIN);
    let copy = [parse("", "COPY t FROM STDIN"), bind("", &[]), execute(0), sync()].concat();
    let behind = [copy_data(b"1\n"), copy_done(), sync(), query("SELECT 'last'")].concat();
    desk.feed(client, &[copy, behind].concat());
    desk.take(server);
    let begun = [bare(b'1'), bare(b'2'), message(b'G', &[0, 0, 0])].concat();
    let answers = [[begun, error(), READY.to_vec()].concat(), READY.to_vec(), one_row("last")];
    let mut seen = Vec::new();
    let mut told = Vec::new();
    for answer in &answers {
        desk.feed(server, answer);
        seen.extend(desk.take(client));
        told.extend(desk.take(server));
    }
    assert_eq!(seen, answers.concat());
    assert!(told.ends_with(&sync()), "it is asked whether that is all");
    desk.feed(server, &[bare(b'3'), READY.to_vec()].concat());
    assert_eq!(desk.take(client), b"");
    assert!(desk.is_closed(server), "nobody relies on it again");
    desk.feed(client, &query("SELECT 1"));
    let server = desk.server();
    assert_eq!(desk.take(server), query("SELECT 1"));
}

/// The client means its own, which it has prepared before.
#[test]
fn behind_a_copy_nobody_runs_what_another_has_left_unnamed() {
    let (mut desk, [client, other], server) = two(PLAIN);
    prepare(&mut desk, (client, server), "", "SELECT 'mine'");
    prepare(&mut desk, (other, server), "", "SELECT 'not yours'");
    let copy = [parse("c", "COPY t FROM STDIN"), bind("c", &[]), execute(0), flush()].concat();
    desk.feed(client, &copy);
    desk.take(server);
    desk.feed(server, &[bare(b'1'), bare(b'2'), message(b'G', &[0, 0, 0])].concat());
    let ended = [copy_data(b"1\n"), copy_done()].concat();
    desk.feed(client, &[ended.clone(), run("")].concat());
    let told = desk.take(server);
    let behind = told.strip_prefix(&ended[..]).expect("the end of the COPY");
    assert!(behind.starts_with(b"P"), "{:?}", String::from_utf8_lossy(behind));
}

/// The server that it was prepared on has been asked about somebody else meanwhile.
#[test]
fn nobody_runs_auth_query_as_his_unnamed_statement() {
    let query = "auth_user = alice\nauth_query = SELECT name, secret FROM users WHERE name = $1\n";
    let (mut desk, [client, _], server) = two(&format!("{PLAIN}{query}"));
    prepare(&mut desk, (client, server), "", "SELECT 'mine'");
    let stranger = desk.client("stranger", "app");
    assert_eq!(name_in(&desk.take(server)).as_deref(), Some("stranger"));
    desk.feed(server, &[complete("DISCARD ALL"), READY.to_vec()].concat());
    desk.feed(server, &answer(Some(account("stranger", Some("x")))));
    desk.take(stranger);
    desk.feed(client, &run(""));
    assert!(desk.take(server).starts_with(b"P"), "its own again");
}

/// A rescue ends what its client did not by an unnamed statement of ours.
#[test]
fn nobody_runs_our_rollback_as_his_unnamed_statement() {
    let (mut desk, [client, other], server) = two(RESCUER);
    desk.feed(client, &query("SELECT 1"));
    desk.take(server);
    desk.feed(server, &one_row("1"));
    desk.take(client);
    desk.feed(client, &flush());
    desk.take(server);
    desk.leave(client);
    assert!(String::from_utf8_lossy(&desk.take(server)).contains("ROLLBACK"));
    let done = [bare(b'1'), bare(b'2'), complete("ROLLBACK"), READY.to_vec()].concat();
    desk.feed(server, &done);
    desk.feed(other, &run(""));
    assert!(desk.take(server).starts_with(b"C"), "it has none, and its server gets none");
}

/// PostgreSQL keeps the answer to a Parse back until somebody asks for it.
#[test]
fn a_list_full_of_replies_of_ours_does_not_wait_for_ever() {
    let (mut desk, [client, _], server) = two(PLAIN);
    desk.feed(client, &parse("", "SELECT 1"));
    assert_eq!(desk.take(server), parse("", "SELECT 1"));
    for _ in 0..100 {
        desk.feed_while_read(client, &close(b'S', "nothing").repeat(100));
    }
    assert_eq!(desk.take(server), flush());
    desk.feed(server, &bare(b'1'));
    assert!(desk.take(client).starts_with(&[bare(b'1'), bare(b'3')].concat()));
}

/// Nobody is left who would read them.
#[test]
fn replies_of_ours_that_found_no_room_delay_no_rescue() {
    let (mut desk, [client, _], server) = two(RESCUER);
    // The client reads nothing from here on.
    for _ in 0..110 {
        desk.feed(client, &close(b'S', "nothing").repeat(100));
    }
    desk.feed(client, &[parse("", "SELECT 1"), bind("", &[]), execute(0)].concat());
    desk.take(server);
    for _ in 0..40 {
        desk.feed(client, &close(b'S', "nothing").repeat(100));
    }
    desk.feed(client, &flush());
    desk.take(server);
    desk.feed(server, &[bare(b'1'), bare(b'2'), complete("SELECT 1")].concat());
    desk.leave(client);
    desk.after(Duration::from_millis(10));
    assert!(String::from_utf8_lossy(&desk.take(server)).contains("ROLLBACK"));
}

/// What its server has not taken may fill all of a client's ring for now.
#[test]
fn a_bind_is_not_broken_because_its_server_is_slow() {
    let (mut desk, [client, _], server) = two(PLAIN);
    prepare(&mut desk, (client, server), "s", "SELECT $1::text");
    // As long as a ring, and as what of the first message need not stay there.
    let length = 65_537;
    let first = bind("s", &[&"x".repeat(length - bind("s", &[""]).len())]);
    assert_eq!(first.len(), length);
    let second = bind("s", &["y"]);
    desk.feed(client, &[first, second[..7].to_vec()].concat());
    assert!(!desk.is_closed(client), "{:?}", desk.last_words(client));
    desk.take(server);
    desk.feed(client, &[&second[7..], &raw::execute(0), &sync()].concat());
    assert!(desk.take(server).ends_with(&sync()));
}

/// Room in the list is for whole messages.
#[test]
fn a_full_list_does_not_cut_a_message_in_two() {
    let (mut desk, [client, _], server) = two(PLAIN);
    desk.feed(client, &parse("", "SELECT $1::text"));
    assert_eq!(desk.take(server), parse("", "SELECT $1::text"));
    for _ in 0..819 {
        desk.feed(client, &close(b'S', "nothing").repeat(10));
    }
    let long = bind("", &[&"x".repeat(1000)]);
    desk.feed(client, &long[..500]);
    let mut seen = desk.take(server);
    desk.feed(client, &long[500..]);
    seen.extend(desk.take(server));
    assert_eq!(seen, long);
}

/// The client's names are forgotten, too, wherever it says so.
#[test]
fn who_forgets_all_may_give_a_name_again() {
    // On a server that has never had that statement.
    let (mut desk, [client, other], server) = two(&PLAIN.replace("size = 1", "size = 2"));
    prepare(&mut desk, (client, server), "a", "SELECT 1");
    desk.feed(other, &query("BEGIN"));
    desk.take(server);
    desk.feed(server, &[complete("BEGIN"), b"Z\0\0\0\x05T".to_vec()].concat());
    desk.take(other);
    desk.feed(client, &[query("DEALLOCATE ALL"), parse("a", "SELECT 2"), sync()].concat());
    let second = desk.server();
    desk.take(second);
    desk.feed(second, &[complete("DEALLOCATE ALL"), READY.to_vec()].concat());
    assert!(desk.take(second).starts_with(b"P"));
    assert!(!desk.is_closed(client), "{:?}", desk.last_words(client));

    // In a batch.
    let (mut desk, [client, _], server) = two(PLAIN);
    prepare(&mut desk, (client, server), "a", "SELECT 1");
    let forget = [parse("", "DEALLOCATE ALL"), bind("", &[]), execute(0), sync()].concat();
    desk.feed(client, &[forget, parse("a", "SELECT 1"), run("a")].concat());
    let mut told = desk.take(server);
    assert!(!desk.is_closed(client), "{:?}", desk.last_words(client));
    let done = [bare(b'1'), bare(b'2'), complete("DEALLOCATE ALL"), READY.to_vec()];
    desk.feed(server, &done.concat());
    told.extend(desk.take(server));
    let told = String::from_utf8_lossy(&told);
    assert_eq!(told.matches("SELECT 1").count(), 1, "it is not there any more: {told}");
}

/// Of two ends of a COPY the first one ends the one that is under way.
#[test]
fn the_end_of_another_copy_opens_no_batch() {
    let (mut desk, [client, _], server) = two(PLAIN);
    prepare(&mut desk, (client, server), "a", "SELECT 1");
    let first = [parse("", "COPY t FROM STDIN"), bind("", &[]), execute(0)].concat();
    let first = [first, copy_data(b"1\n"), copy_done(), sync()].concat();
    let second = [query("COPY t FROM STDIN"), copy_data(b"2\n"), copy_done()].concat();
    desk.feed(client, &[first, second].concat());
    desk.take(server);
    let copying = message(b'G', b"\0\0\0");
    desk.feed(server, &[bare(b'1'), bare(b'2'), copying.clone()].concat());
    desk.feed(client, &query("DEALLOCATE a"));
    assert_eq!(desk.take(server), b"", "that name means nothing to it");
    let done = [complete("COPY 1"), READY.to_vec()].concat();
    desk.feed(server, &[done.clone(), copying, done].concat());
    desk.take(server);
    assert!(desk.take(client).ends_with(&[complete("DEALLOCATE"), READY.to_vec()].concat()));
}
