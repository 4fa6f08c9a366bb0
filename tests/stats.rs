//! What is counted, and who is told.

mod common;

use common::desk::Desk;
use common::fake::{one_row, ready, welcome};
use common::raw::{self, bind, close, copy_data, copy_done, execute, message, parse, query, sync};
use common::{Pooler, wait_for};
use ringbouncer::keys::Conn;
use ringbouncer::pool::stats::Counters;
use std::time::Duration;

const MILLISECOND: Duration = Duration::from_millis(1);

fn desk(settings: &str) -> Desk {
    Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\nother = host=127.0.0.1\n\
         [pgbouncer]\npool_mode = transaction\n{settings}"
    ))
}

fn counters(desk: &Desk) -> Counters {
    desk.pool("app", "alice").expect("somebody came").1.stats.total
}

/// A client that has logged in to a pool whose one server is free.
fn at_work(desk: &mut Desk) -> (Conn, Conn) {
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    (client, server)
}

/// What was counted since.
fn since(before: Counters, now: Counters) -> Vec<(&'static str, u64)> {
    let all = [
        ("assignments", now.assignments - before.assignments),
        ("transactions", now.transactions - before.transactions),
        ("queries", now.queries - before.queries),
        ("received", now.received_bytes - before.received_bytes),
        ("sent", now.sent_bytes - before.sent_bytes),
        ("transaction us", now.transaction_us - before.transaction_us),
        ("query us", now.query_us - before.query_us),
        ("wait us", now.wait_us - before.wait_us),
        ("client parses", now.client_parses - before.client_parses),
        ("server parses", now.server_parses - before.server_parses),
        ("binds", now.binds - before.binds),
        ("logins", now.client_logins - before.client_logins),
    ];
    all.into_iter().filter(|(_, number)| *number > 0).collect()
}

#[test]
fn a_login_counts_as_such_and_as_a_wait() {
    let mut desk = desk("");
    let client = desk.client("alice", "app");
    desk.after(7 * MILLISECOND);
    desk.server();
    desk.take(client);
    let expected = [("wait us", 7000), ("logins", 1)];
    assert_eq!(
        since(Counters::default(), counters(&desk)),
        expected,
        "login traffic is no traffic"
    );
    desk.client("alice", "app");
    assert_eq!(counters(&desk).client_logins, 2);
}

#[test]
fn a_query_is_timed_from_its_arrival_to_its_last_answer() {
    let mut desk = desk("");
    let (client, server) = at_work(&mut desk);
    let before = counters(&desk);
    let (question, reply) = (query("SELECT 1"), one_row("1"));
    desk.feed(client, &question);
    desk.after(3 * MILLISECOND);
    desk.take(server);
    desk.feed(server, &reply);
    desk.take(client);
    let expected = [
        ("assignments", 1),
        ("transactions", 1),
        ("queries", 1),
        ("received", question.len() as u64),
        ("sent", reply.len() as u64),
        ("transaction us", 3000),
        ("query us", 3000),
    ];
    assert_eq!(since(before, counters(&desk)), expected);
    // Its farewell is no query.
    let before = counters(&desk);
    desk.feed(client, &raw::terminate());
    assert_eq!(since(before, counters(&desk)), []);
}

#[test]
fn a_transaction_is_many_queries_and_the_time_between_them() {
    let mut desk = desk("");
    let (client, server) = at_work(&mut desk);
    let before = counters(&desk);
    let tail = |status: &[u8]| [message(b'C', b"OK\0"), message(b'Z', status)].concat();
    for (sql, status) in [("begin", b"T"), ("oh", b"E"), ("rollback", b"I")] {
        desk.feed(client, &query(sql));
        desk.after(MILLISECOND);
        desk.take(server);
        desk.feed(server, &tail(status));
        desk.take(client);
        desk.after(10 * MILLISECOND);
    }
    let done = since(before, counters(&desk));
    assert!(done.contains(&("transactions", 1)) && done.contains(&("queries", 3)), "{done:?}");
    assert!(done.contains(&("query us", 3000)) && done.contains(&("transaction us", 23_000)));
    assert!(done.contains(&("assignments", 1)));
}

#[test]
fn a_batch_is_one_query_and_so_is_what_is_sent_before_an_answer() {
    let mut desk = desk("");
    let (client, server) = at_work(&mut desk);
    let before = counters(&desk);
    let batch = [parse("", "SELECT 1"), bind("", &[]), execute(0), sync()].concat();
    desk.feed(client, &[batch.clone(), batch, query("SELECT 2")].concat());
    desk.take(server);
    let answer = [message(b'1', b""), message(b'2', b""), message(b'C', b"SELECT 1\0"), ready()];
    desk.after(MILLISECOND);
    desk.feed(server, &answer.concat());
    assert_eq!(counters(&desk).query_us, 0, "more is owed");
    desk.after(MILLISECOND);
    desk.feed(server, &answer.concat());
    desk.after(MILLISECOND);
    desk.feed(server, &one_row("2"));
    desk.take(client);
    let done = since(before, counters(&desk));
    assert!(done.contains(&("transactions", 1)) && done.contains(&("queries", 1)), "{done:?}");
    assert!(done.contains(&("query us", 3000)) && done.contains(&("transaction us", 3000)));
    assert!(!done.iter().any(|(name, _)| name.contains("parses") || *name == "binds"), "unnamed");
}

#[test]
fn who_waits_is_counted_when_it_is_served_and_who_gives_up_is_not() {
    let mut desk = desk("default_pool_size = 1\nquery_wait_timeout = 3");
    let (first, server) = at_work(&mut desk);
    let (second, third) = (desk.client("alice", "app"), desk.client("alice", "app"));
    desk.ask(first);
    desk.ask(second);
    let before = counters(&desk);
    desk.after(Duration::from_secs(2));
    desk.ask(third);
    desk.answer(server);
    assert_eq!(since(before, counters(&desk))[..1], [("assignments", 1)]);
    assert_eq!(counters(&desk).wait_us - before.wait_us, 2_000_000);
    let before = counters(&desk);
    desk.after(Duration::from_secs(4));
    assert_eq!(desk.last_words(third).as_deref(), Some("query_wait_timeout"));
    desk.answer(server);
    let done = since(before, counters(&desk));
    assert!(done.contains(&("query us", 6_000_000)), "waiting included: {done:?}");
    assert!(!done.iter().any(|(name, _)| *name == "wait us"));
    assert_eq!(counters(&desk).queries, 3, "its query came all the same");
}

#[test]
fn named_statements_are_counted_on_both_sides() {
    let mut desk = desk("");
    let (client, server) = at_work(&mut desk);
    let prepare = [parse("s", "SELECT 1"), sync()].concat();
    let before = counters(&desk);
    desk.feed(client, &prepare);
    desk.take(server);
    desk.feed(server, &[message(b'1', b""), ready()].concat());
    let done = since(before, counters(&desk));
    assert!(done.contains(&("client parses", 1)) && done.contains(&("server parses", 1)));
    assert!(done.contains(&("received", prepare.len() as u64)), "{done:?}");

    // A second client's is there already; a third one closes its own without a server.
    let other = desk.client("alice", "app");
    let before = counters(&desk);
    let again = [parse("t", "SELECT 1"), bind("t", &[]), execute(0), sync()].concat();
    desk.feed(other, &again);
    desk.take(server);
    desk.feed(server, &[message(b'2', b""), message(b'C', b"SELECT 1\0"), ready()].concat());
    let done = since(before, counters(&desk));
    assert!(done.contains(&("client parses", 1)) && done.contains(&("binds", 1)), "{done:?}");
    assert!(!done.iter().any(|(name, _)| *name == "server parses"));
    assert!(done.contains(&("queries", 1)) && done.contains(&("received", again.len() as u64)));
    desk.take(other);
    let before = counters(&desk);
    desk.feed(other, &close(b'S', "t"));
    assert_eq!(since(before, counters(&desk)), [("received", close(b'S', "t").len() as u64)]);
}

#[test]
fn every_byte_of_a_copy_is_counted_once() {
    let mut desk = desk("");
    let (client, server) = at_work(&mut desk);
    let before = counters(&desk);
    let start = query("COPY t FROM STDIN");
    desk.feed(client, &start);
    desk.take(server);
    let asks = message(b'G', &[0, 0, 0]);
    desk.feed(server, &asks);
    desk.take(client);
    let data = [copy_data(&[7; 50_000]), copy_data(b"x").repeat(100), copy_done()].concat();
    for piece in data.chunks(1711) {
        desk.feed(client, piece);
        desk.take(server);
    }
    let end = [message(b'C', b"COPY 101\0"), ready()].concat();
    desk.feed(server, &end);
    let done = since(before, counters(&desk));
    assert!(done.contains(&("received", (start.len() + data.len()) as u64)), "{done:?}");
    assert!(done.contains(&("sent", (asks.len() + end.len()) as u64)), "{done:?}");
    assert!(done.contains(&("queries", 1)));
}

#[test]
fn our_own_exchanges_with_a_server_are_no_queries_but_traffic() {
    let mut desk = desk("server_reset_query_always = 1\nserver_reset_query = RESET ALL");
    let (client, server) = at_work(&mut desk);
    desk.ask(client);
    desk.take(server);
    desk.feed(server, &one_row("1"));
    let before = counters(&desk);
    desk.after(MILLISECOND);
    desk.take(server);
    let reset = [message(b'C', b"RESET\0"), ready()].concat();
    desk.feed(server, &reset);
    assert_eq!(since(before, counters(&desk)), [("sent", reset.len() as u64)]);
}

#[test]
fn each_database_has_the_sum_of_its_pools() {
    let mut desk = desk("stats_period = 10");
    for (user, database) in [("alice", "app"), ("bob", "app"), ("carol", "other")] {
        let client = desk.client(user, database);
        let server = desk.connect();
        desk.feed(server, &welcome());
        desk.ask(client);
        desk.answer(server);
    }
    let sums = desk.engine.house().stats_by_database();
    let queries: Vec<_> = sums.iter().map(|(name, sum)| (*name, sum.total.queries)).collect();
    assert_eq!(queries, [("app", 2), ("other", 1), ("pgbouncer", 0)]);
    assert_eq!(desk.engine.house().total_stats().total.queries, 3);
    desk.after(Duration::from_secs(10));
    assert_eq!(desk.reports.len(), 1);
    assert_eq!(desk.reports[0].0.client_logins, 0, "three in ten seconds are none per second");
    assert!(desk.reports[0].0.sent_bytes > 0);
    desk.after(Duration::from_secs(25));
    assert_eq!(desk.reports.len(), 3);
    assert_eq!(desk.reports[1].0, Counters::default(), "nothing was done");
}

#[test]
fn the_service_manager_gets_zeros_without_the_line_in_the_log() {
    let mut desk = desk("stats_period = 1\nlog_stats = 0");
    let (client, server) = at_work(&mut desk);
    desk.ask(client);
    desk.answer(server);
    desk.after(Duration::from_secs(1));
    assert_eq!(desk.reports[0].0, Counters::default());
}

#[test]
fn the_line_comes_every_period() {
    let pooler = Pooler::start(|ini| {
        ini.set("stats_period", "1");
    });
    let mut client = pooler.raw("alice");
    let lines = || {
        let log = pooler.log();
        let lines = log.lines().filter(|line| line.contains(" LOG stats: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let has_work = |line: &String| !line.contains(" 0 xacts/s, 0 queries/s");
    wait_for("a line that tells of queries", || {
        for _ in 0..20 {
            client.query("SELECT 1");
        }
        lines().iter().any(has_work)
    });
    let line = lines().into_iter().find(has_work).expect("just seen");
    let numbers = line.split("stats: ").nth(1).expect("the numbers");
    let form = [
        "xacts/s",
        "queries/s",
        "client parses/s",
        "server parses/s",
        "binds/s",
        "client logins/s",
        "B/s",
        "B/s",
        "us",
        "us",
        "us",
    ];
    for (part, unit) in numbers.split(", ").zip(form) {
        let (rest, found) = part.split_once(' ').expect("a number and its unit");
        let is_named = ["in", "out", "xact", "query", "wait"].contains(&rest);
        let (number, found) =
            if is_named { found.split_once(' ').expect("a unit") } else { (rest, found) };
        assert!(number.parse::<u64>().is_ok() && found == unit, "{part} in {line}");
    }
    assert_eq!(numbers.split(", ").count(), form.len());
}
