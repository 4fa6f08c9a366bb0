//! Directed tests: the same world, but nothing happens by chance.

use crate::client::{Appetite, Client, Phase, Planned};
use crate::faults::Faults;
use crate::laws::check_home;
use crate::prng::Prng;
use crate::shell::Fate;
use crate::town::Town;
use crate::trace;
use crate::wire;
use crate::world::World;
use ringbouncer::config::PoolMode;
use ringbouncer::pool::queues::ServerStanding;
use ringbouncer::session::client::State;

/// One pool, and clients that do as they are told.
fn world(mode: PoolMode, size: usize) -> World {
    trace::begin(false);
    let mut world = World::with(Town::single(mode, size), Faults::default(), Prng::new(7));
    world.is_directed = true;
    world
}

impl World {
    /// A client that has logged in.
    pub fn guest(&mut self) -> usize {
        self.guest_with(Vec::new())
    }

    fn guest_with(&mut self, asked: Vec<(usize, String)>) -> usize {
        let id = self.admit_to(0, "ann", asked);
        self.clients[id].has_finished = true;
        self.quiet();
        assert_eq!(self.clients[id].phase, Phase::Ready);
        id
    }

    /// Everybody does what he can, until nothing moves any more. No time passes.
    pub fn quiet(&mut self) {
        let mut still = 0;
        for _ in 0..100_000 {
            still = if self.round() { 0 } else { still + 1 };
            if still > 5 {
                return;
            }
        }
        panic!("it never becomes quiet");
    }

    pub fn ask(&mut self, id: usize, sql: &str) {
        self.clients[id].simple(sql);
    }

    pub fn is_answered(&self, id: usize) -> bool {
        let client = &self.clients[id];
        client.outstanding.is_empty() && client.planned.is_empty()
    }

    fn state(&self, id: usize) -> State {
        let client = self.shell.engine.house().clients.get(self.clients[id].key);
        client.expect("the client is there").state.clone()
    }

    pub fn servers(&self, standing: ServerStanding) -> usize {
        let house = self.shell.engine.house();
        house.pools.iter().map(|(_, pool)| pool.servers.count(standing)).sum()
    }

    /// All go, nothing is left.
    pub fn close(mut self) {
        for client in &mut self.clients {
            let socket = &mut self.shell.sockets[client.socket];
            client.appetite = Appetite::Everything;
            client.leave(socket, &mut self.book, None, true);
        }
        self.quiet();
        assert!(self.shell.engine.house().clients.is_empty());
        check_home(&self.shell.engine);
    }
}

fn plan(client: &mut Client, unit: u32, bytes: Vec<u8>) {
    client.planned.push_back(Planned::Message { unit, bytes, in_copy: false });
}

/// Two queries in one stream, cut at every byte: what lies before the cut is dealt with to its end
/// before the rest comes. Each reply comes once, whatever server runs the query.
#[test]
fn pipelined_queries_survive_every_release() {
    let stream = wire::query("/*c1 q1*/rows 1 1").len() * 2;
    for cut in 0..=stream {
        let mut world = world(PoolMode::Transaction, 2);
        let (other, client) = (world.guest(), world.guest());
        world.held = Some(world.clients[client].socket);
        world.ask(client, "rows 1 1");
        world.ask(client, "rows 1 1");
        world.quiet();
        let socket = world.clients[client].socket;
        world.shell.sockets[socket].deliver(cut);
        world.quiet();
        let idle = matches!(world.state(client), State::Idle);
        assert_eq!(idle, cut % (stream / 2) < 5, "a whole header keeps the server, at {cut}");
        world.ask(other, "rows 1 1");
        world.quiet();
        assert!(world.is_answered(other));
        world.held = None;
        world.quiet();
        assert!(world.is_answered(client), "cut at {cut}");
        world.close();
    }
}

/// The whole reply fits into a ring, so the server goes on while the client has read nothing.
#[test]
fn a_slow_reader_never_keeps_a_server() {
    let mut world = world(PoolMode::Transaction, 1);
    let (slow, quick) = (world.guest(), world.guest());
    world.shell.sockets[world.clients[slow].socket].out_capacity = 100;
    world.clients[slow].appetite = Appetite::Nothing(u32::MAX);
    world.ask(slow, "rows 10 5000");
    world.quiet();
    assert!(!world.is_answered(slow));
    for _ in 0..20 {
        world.ask(quick, "rows 2 5000");
        world.quiet();
        assert!(world.is_answered(quick), "the only server is free");
    }
    world.clients[slow].appetite = Appetite::Few(1000);
    world.quiet();
    assert!(world.is_answered(slow));
    world.close();
}

/// What the slow client has not taken moves to it with the ring; its next query waits until it has
/// taken that, and the queries of others do not.
#[test]
fn a_ring_is_handed_over_with_its_unsent_bytes() {
    for capacity in [1, 7, 100, 5000, 40_000] {
        let mut world = world(PoolMode::Transaction, 1);
        let (slow, quick) = (world.guest(), world.guest());
        world.shell.sockets[world.clients[slow].socket].out_capacity = capacity;
        world.clients[slow].appetite = Appetite::Nothing(u32::MAX);
        world.ask(slow, "rows 9 5000");
        world.ask(slow, "rows 3 9");
        world.quiet();
        assert!(!world.is_answered(slow));
        world.ask(quick, "rows 1 60000");
        world.quiet();
        assert!(world.is_answered(quick));
        let house = world.shell.engine.house();
        let held = house.clients.get(world.clients[slow].key).expect("it is there");
        assert!(held.egress.has_kept());
        assert_eq!(held.state, State::Idle);
        assert_eq!(world.servers(ServerStanding::Idle), 1);
        world.clients[slow].appetite = Appetite::Everything;
        world.quiet();
        assert!(world.is_answered(slow));
        world.close();
    }
}

/// More than a ring of it: the server waits as long as it must, and no longer.
#[test]
fn a_reply_beyond_a_ring_keeps_its_server_until_the_rest_fits() {
    let mut world = world(PoolMode::Transaction, 1);
    let (slow, quick) = (world.guest(), world.guest());
    let socket = world.clients[slow].socket;
    world.shell.sockets[socket].out_capacity = 100;
    world.clients[slow].appetite = Appetite::Nothing(u32::MAX);
    world.ask(slow, "rows 1 300000");
    world.ask(quick, "rows 1 1");
    world.quiet();
    assert!(!world.is_answered(quick), "most of the reply is still at the server");
    world.clients[slow].appetite = Appetite::Few(10_000);
    let mut rounds = 0;
    while !world.is_answered(quick) {
        world.round();
        rounds += 1;
        assert!(rounds < 20_000);
    }
    assert!(!world.is_answered(slow), "served before the slow one has read all");
    world.quiet();
    assert!(world.is_answered(slow));
    world.close();
}

/// CopyData that nobody waits for any more is half relayed when its COPY has failed.
#[test]
fn no_server_is_released_in_the_middle_of_copy_data() {
    for (size, cut) in
        [(200_000, 1), (200_000, 5), (200_000, 1000), (200_000, 70_000), (50_000, 50_010)]
    {
        let mut world = world(PoolMode::Transaction, 1);
        let (other, client) = (world.guest(), world.guest());
        let socket = world.clients[client].socket;
        // Data at once, without waiting for the consent that never comes.
        world.held = Some(socket);
        world.ask(client, "fail");
        let unit = world.clients[client].next_unit - 1;
        let query = wire::query(&format!("/*c{client} q{unit}*/fail")).len();
        let data = wire::message(b'd', &vec![b'x'; size]);
        plan(&mut world.clients[client], unit, data);
        plan(&mut world.clients[client], unit, wire::message(b'c', b""));
        world.quiet();
        world.shell.sockets[world.shell.backends[0].socket].out_capacity = 300;
        world.shell.sockets[socket].deliver(query + cut);
        world.ask(other, "rows 1 1");
        world.quiet();
        world.held = None;
        world.quiet();
        // As PgBouncer: after such leftovers only its next query's end frees the server.
        world.ask(client, "rows 1 1");
        world.quiet();
        assert!(world.is_answered(other) && world.is_answered(client), "cut at {cut}");
        world.close();
    }
}

/// The end of the COPY comes before the consent, and another query right behind it.
#[test]
fn an_early_end_of_a_copy_hides_no_query() {
    for (end, sql) in [(b'c', "copyin 0"), (b'f', "copyin 0"), (b'c', "copyin 1"), (b'c', "fail")] {
        let mut world = world(PoolMode::Transaction, 1);
        let (other, client) = (world.guest(), world.guest());
        world.ask(client, sql);
        let unit = world.clients[client].next_unit - 1;
        plan(&mut world.clients[client], unit, wire::message(b'd', b"row"));
        plan(
            &mut world.clients[client],
            unit,
            wire::message(end, b"\0"[..(end == b'f').into()].as_ref()),
        );
        world.ask(client, "slow 50");
        world.ask(other, "rows 1 1");
        world.quiet();
        assert!(world.is_answered(other) && world.is_answered(client), "{sql}");
        world.close();
    }
}

/// A notification comes in two parts, and a release would be possible between them.
#[test]
fn no_server_is_released_in_the_middle_of_its_own_message() {
    for cut in 1..36 {
        let mut world = world(PoolMode::Transaction, 1);
        let (other, client) = (world.guest(), world.guest());
        let backend = &mut world.shell.backends[0];
        let socket = backend.socket;
        world.held = Some(socket);
        world.ask(client, "rows 1 1");
        world.quiet();
        let reply =
            world.book.accounts[client].expected.iter().map(|e| e.bytes.len()).sum::<usize>();
        let notice = wire::notification("sim: by the way");
        world.shell.backends[0].say(&mut world.book, &notice);
        world.quiet();
        world.shell.sockets[socket].deliver(reply + cut.min(notice.len() - 1));
        world.quiet();
        world.ask(other, "rows 1 1");
        world.quiet();
        world.held = None;
        world.quiet();
        assert!(world.is_answered(other) && world.is_answered(client), "cut at {cut}");
        assert!(world.book.strays.is_empty(), "the notification belongs to somebody");
        world.close();
    }
}

/// A client leaves in the middle of a message: no word of ours completes it.
#[test]
fn a_message_that_is_cut_off_is_never_completed() {
    let text = "/*c0 q1*/rows 1 1";
    for cut in 1..wire::query(text).len() {
        let mut world = world(PoolMode::Transaction, 1);
        let client = world.guest();
        let socket = world.clients[client].socket;
        world.held = Some(socket);
        world.ask(client, "rows 1 1");
        world.quiet();
        world.shell.sockets[socket].deliver(cut);
        world.quiet();
        let before = world.book.executed;
        world.shell.sockets[socket].close(crate::socket::End::Reset);
        world.held = None;
        world.clients[client].phase = Phase::Over;
        world.quiet();
        assert_eq!(world.book.executed, before, "cut at {cut}");
        world.close();
    }
}

/// What a client asks for in its Startup may be too long to be set. It goes; the others are served.
#[test]
fn a_client_that_cannot_be_linked_keeps_nobody_waiting() {
    let mut world = world(PoolMode::Transaction, 1);
    let holder = world.guest();
    let greedy = world.guest_with(vec![(4, "'".repeat(40_000))]);
    let next = world.guest();
    world.ask(holder, "begin");
    world.quiet();
    world.clients[greedy].is_naughty = true;
    world.ask(greedy, "rows 1 1");
    world.quiet();
    world.ask(next, "rows 1 1");
    world.quiet();
    assert!(matches!(world.state(next), State::Waiting { .. }));
    world.ask(holder, "commit");
    world.quiet();
    assert_eq!(world.clients[greedy].farewell.as_deref(), Some("invalid server parameter"));
    assert!(world.is_answered(next), "the server is free");
    world.close();
}

/// Who learns that its COPY has failed sends no end of it, but its next query.
#[test]
fn a_failed_copy_without_its_end_keeps_no_server() {
    let mut world = world(PoolMode::Transaction, 1);
    let (other, client) = (world.guest(), world.guest());
    world.ask(client, "copyin 1");
    let unit = world.clients[client].next_unit - 1;
    world.quiet();
    plan(&mut world.clients[client], unit, wire::message(b'd', b"bad"));
    world.quiet();
    assert!(world.is_answered(client), "the error and its end came at once");
    world.ask(client, "rows 1 1");
    world.ask(other, "rows 1 1");
    world.quiet();
    assert!(world.is_answered(client) && world.is_answered(other));
    world.close();
}

/// A Sync right behind the Execute of a COPY is ignored by a server that has begun the COPY, and
/// answered by one that has failed it before.
#[test]
fn a_sync_that_may_or_may_not_be_ignored_frees_no_server_too_early() {
    let mut world = world(PoolMode::Transaction, 1);
    let (other, client) = (world.guest(), world.guest());
    world.ask(client, "");
    world.clients[client].planned.clear();
    let unit = world.clients[client].next_unit - 1;
    let text = format!("/*c{client} q{unit}*/copyin 0");
    let begin = [
        wire::parse("", &text),
        wire::bind("", "", &format!("c{client} q{unit}")),
        wire::execute("", 0),
        wire::marked(b'H', client, unit),
    ];
    begin.into_iter().for_each(|bytes| plan(&mut world.clients[client], unit, bytes));
    world.quiet();
    world.shell.backends[0].hangs = true;
    world.clients[client].copies = true;
    plan(&mut world.clients[client], unit, wire::marked(b'S', client, unit));
    plan(&mut world.clients[client], unit, wire::message(b'd', b"row"));
    plan(&mut world.clients[client], unit, wire::message(b'c', b""));
    world.ask(client, "");
    world.clients[client].planned.pop_back();
    plan(&mut world.clients[client], unit + 1, wire::marked(b'S', client, unit + 1));
    world.quiet();
    world.cancel(client);
    world.quiet();
    assert_eq!(world.book.cancelled, 1);
    world.ask(other, "slow 90");
    world.shell.sockets[world.shell.backends[0].socket].in_capacity = 6;
    world.shell.backends[0].hangs = false;
    world.quiet();
    assert!(world.is_answered(other), "by a new server: the old one may owe more than is known");
    world.close();
}

/// The carrier of a cancel takes so long to connect that the server works for somebody else.
#[test]
fn a_late_cancel_hits_nobody_else() {
    let mut world = world(PoolMode::Transaction, 1);
    let (other, client) = (world.guest(), world.guest());
    world.shell.dial_faults.hangs_per_mille = 1000;
    world.shell.backends[0].hangs = true;
    world.ask(client, "rows 1 1");
    world.quiet();
    world.ask(other, "slow 5000");
    world.quiet();
    world.cancel(client);
    world.quiet();
    assert_eq!(world.servers(ServerStanding::Carrier), 1);
    world.shell.backends[0].hangs = false;
    while !world.is_answered(client) {
        world.round();
    }
    (0..10).for_each(|_| _ = world.round());
    assert!(world.shell.backends[0].is_busy());
    world.shell.dials.iter_mut().for_each(|dial| dial.fate = Fate::Good);
    world.quiet();
    assert!(world.is_answered(other));
    assert_eq!(world.book.cancelled, 0);
    world.close();
}

/// The server is lost in the middle of an answer that the client never sees: it is told.
#[test]
fn a_client_is_told_that_its_server_was_lost_in_catching_up() {
    let mut world = world(PoolMode::Transaction, 1);
    world.faults.resets = true;
    let client = world.guest_with(vec![(4, "psql".to_string())]);
    let socket = world.shell.backends[0].socket;
    world.held = Some(socket);
    world.ask(client, "rows 1 1");
    world.quiet();
    world.shell.sockets[socket].deliver(7);
    world.quiet();
    world.shell.backends[0].end(&mut world.shell.sockets[socket], crate::socket::End::Reset);
    world.held = None;
    world.quiet();
    assert_eq!(world.clients[client].farewell.as_deref(), Some("server conn crashed?"));
    world.close();
}
