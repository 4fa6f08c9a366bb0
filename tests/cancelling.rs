//! Cancel requests (reliability 11, 19): they hit what they are meant for and nothing else, and who
//! waits for a server need not wait for one to be told that his query is cancelled.

mod common;

use common::desk::Desk;
use common::fake::one_row;
use common::raw::{self, message, query, tags};
use common::{Pooler, Raw, wait_for};
use ringbouncer::engine::io::{ClientAddress, Input};
use ringbouncer::keys::Conn;
use ringbouncer::pool::stats::Counters;
use std::collections::HashSet;

const READY: &[u8] = b"Z\0\0\0\x05I";

fn cancelled() -> Vec<u8> {
    message(b'E', b"SERROR\0C57014\0Mcanceling statement due to user request\0\0")
}

/// A pool of one, whose server works for the first client while the second has asked this.
struct Queue {
    desk: Desk,
    working: Conn,
    server: Conn,
    waiting: Conn,
    secret: Vec<u8>,
}

impl Queue {
    fn new(asked: &[u8]) -> Queue {
        let mut desk = Desk::new(
            "[databases]\napp = host=127.0.0.1\n\
                       [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\n",
        );
        let working = desk.client("alice", "app");
        let server = desk.server();
        let waiting = desk.client("alice", "app");
        let welcome = desk.take(waiting);
        let key = welcome.windows(5).position(|head| head == b"K\0\0\0\x0c").unwrap() + 5;
        let secret = welcome[key..key + 8].to_vec();
        desk.take(working);
        desk.ask(working);
        desk.feed(waiting, asked);
        Queue { desk, working, server, waiting, secret }
    }

    fn cancel(&mut self) {
        let canceller = self.canceller();
        assert!(self.desk.is_closed(canceller), "nothing has to be carried anywhere");
        assert_eq!(self.desk.last_words(canceller), None);
        assert!(self.desk.dialled.is_empty());
    }

    fn canceller(&mut self) -> Conn {
        let canceller = self.request();
        self.desk.perform();
        canceller
    }

    /// As above, without the end of the turn.
    fn request(&mut self) -> Conn {
        let from = ClientAddress::Unix { pid: 0, uid: None };
        let key = self.desk.engine.accept(from, [0xff; 8], self.desk.now);
        let canceller = Conn::Client(key);
        let request = raw::untagged(raw::CANCEL_REQUEST, &self.secret);
        let [room, _] = self.desk.engine.inbox_room(canceller).unwrap();
        room[..request.len()].copy_from_slice(&request);
        self.desk.handle(Input::Received { conn: canceller, bytes: request.len() });
        canceller
    }

    fn is_waiting(&self) -> bool {
        self.desk.pool("app", "alice").unwrap().1.waiting.len() == 1
    }

    /// The server is done with the first client; what it is sent for the second, if anything.
    fn next_query(&mut self) -> Vec<u8> {
        assert!(!self.desk.take(self.server).is_empty());
        self.desk.feed(self.server, &one_row("1"));
        self.desk.take(self.working);
        self.desk.take(self.server)
    }
}

/// What PostgreSQL would say, and at once; the next query waits and is served as ever.
#[test]
fn who_waits_for_a_server_and_cancels_is_told_at_once() {
    let mut queue = Queue::new(&query("SELECT 'never'"));
    assert!(queue.is_waiting());
    queue.cancel();
    assert_eq!(queue.desk.take(queue.waiting), [&cancelled()[..], READY].concat());
    assert!(!queue.is_waiting());
    // An idle client has nothing to cancel.
    queue.cancel();
    assert_eq!(queue.desk.take(queue.waiting), b"");
    queue.desk.feed(queue.waiting, &query("SELECT 'later'"));
    assert!(queue.is_waiting());
    assert_eq!(queue.next_query(), query("SELECT 'later'"));
    queue.desk.feed(queue.server, &one_row("later"));
    assert_eq!(queue.desk.take(queue.waiting), one_row("later"));
}

/// One request cancels one query, as with PostgreSQL.
#[test]
fn a_cancel_takes_one_query_of_a_pipeline() {
    let mut queue = Queue::new(&[query("SELECT 1"), query("SELECT 2"), query("SELECT 3")].concat());
    queue.cancel();
    assert!(queue.is_waiting());
    queue.cancel();
    let told = [&cancelled()[..], READY].concat();
    assert_eq!(queue.desk.take(queue.waiting), [&told[..], &told].concat());
    assert_eq!(queue.next_query(), query("SELECT 3"));
}

fn extended(name: &str, sql: &str) -> Vec<u8> {
    [raw::parse(name, sql), raw::bind(name, &[]), raw::execute(0)].concat()
}

/// After the error everything is ignored up to the next Sync, whenever that comes.
#[test]
fn an_extended_query_that_is_called_off_is_skipped_up_to_its_sync() {
    let rest = [extended("one", "SELECT 1"), query("SELECT 2"), raw::close(b'S', "one")].concat();
    let behind = query("SELECT 'behind'");
    for cut in [0, 1, 7, rest.len() - 3, rest.len()] {
        let mut queue =
            Queue::new(&[extended("", "SELECT 'never'"), rest[..cut].to_vec()].concat());
        queue.cancel();
        assert_eq!(queue.desk.take(queue.waiting), cancelled());
        queue.desk.feed(queue.waiting, &rest[cut..]);
        assert_eq!(queue.desk.take(queue.waiting), b"");
        assert!(!queue.is_waiting());
        queue.desk.feed(queue.waiting, &[raw::sync(), behind.clone()].concat());
        assert_eq!(queue.desk.take(queue.waiting), READY);
        assert!(queue.is_waiting());
        assert_eq!(queue.next_query(), behind);
    }
}

/// A Parse that was ignored has named nothing.
#[test]
fn a_statement_that_was_called_off_is_not_there() {
    let mut queue = Queue::new(&[extended("s", "SELECT 1"), raw::sync()].concat());
    queue.cancel();
    assert_eq!(queue.desk.take(queue.waiting), [&cancelled()[..], READY].concat());
    let again = [extended("s", "SELECT 1"), raw::sync()].concat();
    queue.desk.feed(queue.waiting, &again);
    assert!(queue.is_waiting());
    assert!(!queue.next_query().is_empty());
}

/// Larger than any ring: it was collected while it waited.
#[test]
fn a_large_statement_is_called_off_as_a_whole() {
    let large = format!("SELECT '{}'", "x".repeat(300_000));
    for behind in [raw::sync(), raw::bind("large", &[])] {
        let mut queue = Queue::new(&[raw::parse("large", &large), behind.clone()].concat());
        assert!(queue.is_waiting());
        queue.cancel();
        let told = queue.desk.take(queue.waiting);
        if behind == raw::sync() {
            assert_eq!(told, [&cancelled()[..], READY].concat());
        } else {
            assert_eq!(told, cancelled());
            queue.desk.feed(queue.waiting, &raw::sync());
            assert_eq!(queue.desk.take(queue.waiting), READY);
        }
    }
    // A simple query streams: most of this one comes after the answer to it.
    let streamed = query(&large);
    let mut queue = Queue::new(&streamed[..100]);
    queue.cancel();
    assert_eq!(queue.desk.take(queue.waiting), [&cancelled()[..], READY].concat());
    queue.desk.feed(queue.waiting, &streamed[100..]);
    queue.desk.feed(queue.waiting, &query("SELECT 'behind'"));
    assert_eq!(queue.next_query(), query("SELECT 'behind'"));
}

/// What needs no answer, or has a simple one, is not what was meant.
#[test]
fn a_cancel_looks_for_something_that_can_be_cancelled() {
    let mut queue = Queue::new(&[raw::flush(), raw::sync(), query("SELECT 1")].concat());
    queue.cancel();
    assert_eq!(queue.desk.take(queue.waiting), [READY, &cancelled(), READY].concat());
    let mut queue = Queue::new(&raw::sync());
    queue.cancel();
    assert_eq!(queue.desk.take(queue.waiting), READY, "there was nothing to fail");
    queue.desk.feed(queue.waiting, &query("SELECT 1"));
    assert!(queue.is_waiting(), "and what comes later was not meant");
}

/// The wait and the query are over as far as statistics and limits are concerned.
#[test]
fn what_was_called_off_is_counted_once() {
    let mut queue = Queue::new(&query("SELECT 1"));
    queue.cancel();
    let Counters { queries, transactions, .. } =
        queue.desk.pool("app", "alice").unwrap().1.stats.total;
    assert_eq!((queries, transactions), (2, 2));
    let client = match queue.waiting {
        Conn::Client(key) => queue.desk.engine.house().clients.get(key).unwrap(),
        Conn::Server(_) => unreachable!(),
    };
    assert_eq!((client.query_since, client.transaction_since), (None, None));
}

/// Reliability 19: ten thousand requests for one query and its neighbours cost what they must.
#[test]
fn a_storm_of_requests_is_flat() {
    let mut queue = Queue::new(&query("SELECT 1"));
    let waiting = std::mem::replace(&mut queue.waiting, queue.working);
    // The first client's key: everybody aims at what the server does.
    queue.secret = match queue.working {
        Conn::Client(key) => queue.desk.engine.house().clients.get(key).unwrap().secret.to_vec(),
        Conn::Server(_) => unreachable!(),
    };
    let cancellers: Vec<Conn> = (0..10_000).map(|_| queue.request()).collect();
    queue.desk.perform();
    let pool = queue.desk.pool("app", "alice").unwrap().1;
    assert_eq!(pool.waiting_cancels(), 10_000);
    // One of the two connections that a pool of one may have is the server.
    assert_eq!(queue.desk.dialled.len(), 1);
    let (carrier, _) = queue.desk.dialled.pop_front().unwrap();
    queue.desk.handle(Input::Connected { server: carrier, local: None });
    assert_eq!(queue.desk.take(Conn::Server(carrier)).len(), 16);
    queue.desk.handle(Input::ReadClosed { conn: Conn::Server(carrier) });
    queue.desk.perform();
    assert!(queue.desk.is_closed(cancellers[0]) && !queue.desk.is_closed(cancellers[1]));
    assert_eq!(queue.desk.dialled.len(), 1, "the next one's turn");
    // The query ends: none of the others may hit the next one.
    let next = queue.next_query();
    assert_eq!(next, query("SELECT 1"));
    let cancellers: HashSet<Conn> = cancellers.into_iter().collect();
    let closed = queue.desk.closed.iter().filter(|(conn, _)| cancellers.contains(conn));
    assert_eq!(closed.count(), 10_000);
    queue.desk.feed(queue.server, &one_row("1"));
    assert_eq!(queue.desk.take(waiting), one_row("1"));
    assert_eq!(queue.desk.engine.house().keyring.len(), 2);
}

/// Clients whose servers work for them, and the key of the first one.
fn busy_pool(size: usize, busy: usize) -> (Desk, Vec<u8>) {
    let mut desk = Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\n\
         [pgbouncer]\npool_mode = transaction\ndefault_pool_size = {size}\n"
    ));
    let first = desk.client("alice", "app");
    let mut servers = vec![desk.server()];
    let welcome = desk.take(first);
    let key = welcome.windows(5).position(|head| head == b"K\0\0\0\x0c").unwrap() + 5;
    desk.ask(first);
    while servers.len() < busy {
        let client = desk.client("alice", "app");
        desk.take(client);
        desk.ask(client);
        servers.push(desk.server());
    }
    for server in servers {
        assert!(!desk.take(server).is_empty(), "it has something to do");
    }
    (desk, welcome[key..key + 8].to_vec())
}

/// All that are dialled connect, until no more are; those that carry a request, which they have sent.
fn carriers(desk: &mut Desk) -> Vec<Conn> {
    let mut carriers = Vec::new();
    while let Some((carrier, _)) = desk.dialled.pop_front() {
        desk.handle(Input::Connected { server: carrier, local: None });
        let carrier = Conn::Server(carrier);
        assert_eq!(desk.take(carrier).len(), 16, "the request and nothing else");
        carriers.push(carrier);
    }
    carriers
}

/// §6.2, 6: there are no more than twice `pool_size` connections of a pool, its servers and those that
/// carry requests, and that many there are, if there are requests for them.
#[test]
fn requests_are_carried_by_twice_the_size_of_the_pool_at_most() {
    for (size, busy) in [(1, 1), (2, 1), (2, 2), (3, 1), (5, 2), (5, 5)] {
        let (mut desk, key) = busy_pool(size, busy);
        let requests = 3 * size;
        let mut cancellers = Vec::new();
        for _ in 0..requests {
            let from = ClientAddress::Unix { pid: 0, uid: None };
            let canceller = Conn::Client(desk.engine.accept(from, [0xff; 8], desk.now));
            desk.feed(canceller, &raw::untagged(raw::CANCEL_REQUEST, &key));
            cancellers.push(canceller);
        }
        let mut under_way = carriers(&mut desk);
        let mut sent = under_way.len();
        assert_eq!(sent, (2 * size - busy).min(requests), "{busy} of {size} are busy");
        // No time makes it more.
        desk.after(std::time::Duration::from_secs(1));
        assert!(desk.dialled.is_empty());
        // Each that ends makes room for one.
        while let Some(carrier) = under_way.pop() {
            desk.leave(carrier);
            let next = carriers(&mut desk);
            assert_eq!(next.len(), usize::from(sent < requests));
            sent += next.len();
            under_way.splice(0..0, next);
            let pool = desk.pool("app", "alice").unwrap().1;
            assert!(pool.servers.total() <= 2 * size, "{busy} of {size} are busy");
        }
        assert_eq!(sent, requests, "all of them were sent");
        assert!(cancellers.iter().all(|canceller| desk.is_closed(*canceller)));
    }
}

fn pooler() -> Pooler {
    Pooler::start(|ini| {
        ini.set("pool_mode", "transaction").set("default_pool_size", "1");
        ini.set("admin_users", "alice");
    })
}

fn waiting(console: &mut Raw, count: &str) -> bool {
    let rows = console.query("SHOW POOLS");
    let is_it = |row: &&raw::Message| row.tag == b'D' && row.columns()[0] == "app";
    rows.iter().find(is_it).is_some_and(|row| row.columns()[3] == count)
}

/// The same with a real server, and a client of libpq's manners: it uses its connection on.
#[test]
fn a_cancelled_client_keeps_its_connection() {
    let pooler = pooler();
    let mut busy = pooler.raw("alice");
    let mut client = pooler.raw("alice");
    let mut console = pooler
        .raw_with(common::Startup::v3().param("user", "alice").param("database", "pgbouncer"));
    busy.query("BEGIN");
    client.send(&query("SELECT 'never'"));
    wait_for("the client to wait", || waiting(&mut console, "1"));
    let mut canceller = pooler.unnamed();
    canceller.send(&raw::untagged(raw::CANCEL_REQUEST, &client.cancel_key()));
    canceller.expect_end();
    let answer = client.until_ready();
    assert_eq!(tags(&answer), "EZ");
    assert_eq!((answer[0].field('S'), answer[0].field('C')), ("ERROR".into(), "57014".into()));
    assert!(waiting(&mut console, "0"));
    busy.query("COMMIT");
    assert_eq!(client.value("SELECT 'later'"), "later");
}

/// Who hangs up while waiting leaves the queue at once, not when its turn comes.
#[test]
fn who_hangs_up_while_waiting_is_gone_at_once() {
    let pooler = pooler();
    let mut busy = pooler.raw("alice");
    let mut clients: Vec<Raw> = (0..3).map(|_| pooler.raw("alice")).collect();
    let mut console = pooler
        .raw_with(common::Startup::v3().param("user", "alice").param("database", "pgbouncer"));
    busy.query("BEGIN");
    clients[0].send(&query("SELECT 1"));
    clients[1].send(&[query("SELECT 2"), raw::terminate()].concat());
    clients[2].send(&query(&format!("SELECT '{}'", "x".repeat(30_000))));
    wait_for("the clients to wait", || waiting(&mut console, "3"));
    drop(clients);
    wait_for("the clients to be gone", || waiting(&mut console, "0"));
    // Together with its query, too.
    pooler.raw("alice").send(&query("SELECT 'in vain'"));
    wait_for("everybody to be gone", || {
        waiting(&mut console, "0") && pooler.log().matches("client unexpected eof").count() == 4
    });
    assert_eq!(busy.value("SELECT 3"), "3");
    busy.query("COMMIT");
}
