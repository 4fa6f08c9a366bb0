//! The shell around the engine, as `net` does it, but without sockets: the turn, the latches, one
//! read and one write at a time.

use crate::backend::{Backend, Phase};
use crate::laws::{Fresh, Queues, Rested, check_limits, check_quiet, check_times};
use crate::prng::Prng;
use crate::socket::{Outcome, Socket};
use crate::trace;
use ringbouncer::auth::derivation::Derivation;
use ringbouncer::engine::Engine;
use ringbouncer::engine::io::{ClientAddress, Effect, Input, Sent, ServerAddress};
use ringbouncer::keys::{ClientKey, Conn, ServerKey};
use ringbouncer::pool::queues::ServerStanding;
use ringbouncer::session::server::{Purpose, Server, State};
use std::collections::HashMap;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// So many times may connections be served in one turn; more is a loop without end.
const MAX_SERVED: usize = 100_000;

/// A connection that is being opened, or a name that is being looked up.
pub struct Dial {
    pub what: Dialled,
    pub fate: Fate,
    /// In so many turns.
    pub turns: usize,
}

/// One of those that a name may have.
pub fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

/// What is being found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// A connection.
    Server(ServerKey, ServerAddress),
    /// A look-up.
    Name(String),
    /// The serial of a zone.
    Zone(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Good,
    Refused,
    Hangs,
}

/// What the world decides about new connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct DialFaults {
    pub refused_per_mille: usize,
    pub hangs_per_mille: usize,
}

/// See the module's page.
pub struct Shell {
    pub engine: Engine,
    pub now: Instant,
    pub began: Instant,
    pub sockets: Vec<Socket>,
    pub backends: Vec<Backend>,
    pub dials: Vec<Dial>,
    pub dial_faults: DialFaults,
    /// Keys that are being made, each done in so many turns.
    pub keys: Vec<(usize, Conn, Derivation)>,
    /// Which client of the world has this key.
    pub ids: HashMap<ClientKey, usize>,
    /// Which backend a server's connection leads to.
    pub backend_of: HashMap<ServerKey, usize>,
    /// Sockets are read and written in full, every event is learned at once.
    pub is_calm: bool,
    /// The configuration has changed since the last effects.
    pub was_reloaded: bool,
    /// Where names lead, and which answer was the last for each.
    pub addresses: Vec<IpAddr>,
    answered: HashMap<String, Vec<IpAddr>>,
    /// How many servers had an address that had gone; in how many turns all was quiet.
    pub moved: u64,
    pub quiet: u64,
    /// How often several were written to together.
    pub batched: u64,
    /// Kernel buffers hold so many bytes at most.
    pub buffer_bytes: usize,
    /// Clients of the world that the engine has closed since somebody looked.
    pub closed: Vec<usize>,
    socket_of: HashMap<Conn, usize>,
    postponed: Vec<Conn>,
    /// Who will be written to together.
    lined_up: Vec<Conn>,
}

impl Shell {
    pub fn new(engine: Engine, now: Instant) -> Self {
        Self {
            engine,
            now,
            began: now,
            sockets: Vec::new(),
            backends: Vec::new(),
            dials: Vec::new(),
            dial_faults: DialFaults::default(),
            keys: Vec::new(),
            ids: HashMap::new(),
            backend_of: HashMap::new(),
            is_calm: true,
            was_reloaded: false,
            addresses: vec![address(9)],
            answered: HashMap::new(),
            moved: 0,
            quiet: 0,
            buffer_bytes: 1 << 18,
            closed: Vec::new(),
            socket_of: HashMap::new(),
            postponed: Vec::new(),
            lined_up: Vec::new(),
            batched: 0,
        }
    }

    /// Milliseconds since the world began.
    pub fn millis(&self) -> u64 {
        u64::try_from((self.now - self.began).as_millis()).unwrap()
    }

    pub fn sleep(&mut self, time: Duration) {
        self.now += time;
    }

    /// Somebody connects.
    pub fn accept(&mut self, id: Option<usize>, rng: &mut Prng) -> (ClientKey, usize) {
        let secret = rng.next().to_be_bytes();
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000);
        let key = self.engine.accept(ClientAddress::Tcp(address), secret, self.now);
        if let Some(id) = id {
            self.ids.insert(key, id);
        }
        let socket = self.open(Conn::Client(key), rng);
        (key, socket)
    }

    fn open(&mut self, conn: Conn, rng: &mut Prng) -> usize {
        let mut capacity = || match self.is_calm {
            true => self.buffer_bytes,
            false => rng.size(self.buffer_bytes).max(16),
        };
        self.sockets.push(Socket::new(capacity(), capacity()));
        self.socket_of.insert(conn, self.sockets.len() - 1);
        self.sockets.len() - 1
    }

    /// Tells the engine something, and holds it to its laws.
    pub fn tell(&mut self, input: Input) {
        let fresh = matches!(input, Input::Received { .. }).then(|| Fresh::of(&self.engine));
        self.tell_all(|engine, now| engine.handle(input, now));
        fresh.into_iter().for_each(|fresh| fresh.check(&self.engine));
    }

    fn tell_all(&mut self, tell: impl FnOnce(&mut Engine, Instant)) {
        let queues = Queues::of(&self.engine);
        let rested = Rested::of(&self.engine, self.now);
        tell(&mut self.engine, self.now);
        queues.check(&self.engine);
        rested.check(&self.engine);
        check_limits(&self.engine);
    }

    /// One turn of the loop.
    pub fn turn(&mut self, rng: &mut Prng) {
        self.learn(rng);
        self.finish_dials(rng);
        self.finish_keys();
        for conn in std::mem::take(&mut self.postponed) {
            self.engine.make_runnable(conn);
        }
        let mut served = 0;
        loop {
            while let Some(conn) = self.engine.next_runnable() {
                served += 1;
                assert!(served < MAX_SERVED, "the turn never ends");
                if let Some(socket) = self.socket_of.get(&conn).copied() {
                    self.serve(conn, socket, rng);
                }
                if rng.per_mille(100) {
                    self.engine.check();
                }
            }
            if self.lined_up.is_empty() {
                break;
            }
            self.dispatch(rng);
        }
        self.tell(Input::Tick);
        if self.engine.house().mode.is_suspended() {
            check_quiet(&self.engine);
            self.quiet += u64::from(self.engine.house().mode.is_quiet());
        } else {
            check_times(&self.engine, self.now);
        }
        while let Some(effect) = self.engine.next_effect() {
            self.perform(effect, rng);
        }
        self.was_reloaded = false;
        self.engine.check();
    }

    fn learn(&mut self, rng: &mut Prng) {
        let mut ready: Vec<Conn> = self
            .socket_of
            .iter()
            .filter(|(_, socket)| {
                let socket = &self.sockets[**socket];
                socket.readable_edge || socket.writable_edge
            })
            .map(|(conn, _)| *conn)
            .collect();
        ready.sort_by_key(|conn| self.socket_of[conn]);
        for conn in ready {
            if self.is_calm || rng.per_mille(700) {
                self.sockets[self.socket_of[&conn]].learn();
                self.engine.wake(conn);
            }
        }
    }

    fn serve(&mut self, conn: Conn, socket: usize, rng: &mut Prng) {
        let mut has_moved = false;
        if self.sockets[socket].worth_reading() && self.engine.wants_read(conn) {
            if self.is_calm || rng.per_mille(900) {
                has_moved |= self.fill(conn, socket, rng);
            } else {
                self.postponed.push(conn);
            }
        }
        let wants_write = self.sockets[socket].worth_writing() && self.engine.wants_write(conn);
        if wants_write && rng.per_mille(300) {
            has_moved |= self.drain(conn, socket, rng);
        } else if wants_write && !self.lined_up.contains(&conn) {
            self.lined_up.push(conn);
        }
        let may_read = self.sockets[socket].worth_reading() && self.engine.wants_read(conn);
        let may_write = self.sockets[socket].worth_writing() && self.engine.wants_write(conn);
        if has_moved && (may_read || may_write) {
            self.engine.make_runnable(conn);
        }
    }

    fn fill(&mut self, conn: Conn, socket: usize, rng: &mut Prng) -> bool {
        let limit = if self.is_calm { usize::MAX } else { rng.size(100_000) };
        let Some(rooms) = self.engine.inbox_room(conn) else {
            return false;
        };
        if rooms[0].is_empty() && rooms[1].is_empty() {
            return false;
        }
        match self.sockets[socket].read(rooms, limit) {
            Outcome::Bytes(bytes) => {
                trace::note(|| format!("{conn} read {bytes}"));
                self.tell(Input::Received { conn, bytes });
                true
            }
            Outcome::WouldBlock => {
                self.engine.nothing_read(conn);
                false
            }
            Outcome::Closed => {
                trace::note(|| format!("{conn} read the end"));
                self.engine.nothing_read(conn);
                self.tell(Input::ReadClosed { conn });
                true
            }
        }
    }

    /// Those who have lined up are written to together: all of it has happened before the engine hears
    /// of anything.
    fn dispatch(&mut self, rng: &mut Prng) {
        let (mut sent, mut closed) = (Vec::new(), Vec::new());
        for conn in std::mem::take(&mut self.lined_up) {
            let Some(socket) = self.socket_of.get(&conn).copied() else {
                continue;
            };
            if !self.sockets[socket].worth_writing() || !self.engine.wants_write(conn) {
                continue;
            }
            match self.write(conn, socket, rng) {
                Outcome::Bytes(0) | Outcome::WouldBlock => {}
                Outcome::Bytes(bytes) => {
                    trace::note(|| format!("{conn} wrote {bytes}, with others"));
                    sent.push(Sent::new(conn, bytes));
                }
                Outcome::Closed => {
                    trace::note(|| format!("{conn} cannot write, with others"));
                    closed.push(conn);
                }
            }
        }
        self.batched += u64::from(sent.len() > 1);
        self.tell_all(|engine, now| engine.sent(&mut sent, now));
        for conn in closed {
            self.tell(Input::WriteClosed { conn });
        }
        for Sent { conn, .. } in sent {
            let Some(socket) = self.socket_of.get(&conn) else {
                continue;
            };
            let socket = &self.sockets[*socket];
            if socket.worth_reading() && self.engine.wants_read(conn)
                || socket.worth_writing() && self.engine.wants_write(conn)
            {
                self.engine.make_runnable(conn);
            }
        }
    }

    fn drain(&mut self, conn: Conn, socket: usize, rng: &mut Prng) -> bool {
        match self.write(conn, socket, rng) {
            Outcome::Bytes(0) | Outcome::WouldBlock => false,
            Outcome::Bytes(bytes) => {
                trace::note(|| format!("{conn} wrote {bytes}"));
                self.tell(Input::Sent { conn, bytes });
                true
            }
            Outcome::Closed => {
                trace::note(|| format!("{conn} cannot write"));
                self.tell(Input::WriteClosed { conn });
                true
            }
        }
    }

    /// One write of what is owed, and a note for whom a server is written to.
    fn write(&mut self, conn: Conn, socket: usize, rng: &mut Prng) -> Outcome {
        let mut slices = [IoSlice::new(&[]); 16];
        let most = if self.is_calm { slices.len() } else { rng.between(1, slices.len()) };
        let used = self.engine.outgoing(conn, &mut slices[..most]);
        if slices[..used].iter().all(|slice| slice.is_empty()) {
            return Outcome::Bytes(0);
        }
        let outcome = self.sockets[socket].write(&slices[..used]);
        if let Conn::Server(key) = conn
            && let Some(backend) = self.backend_of.get(&key)
        {
            let server = self.engine.house().servers.get(key);
            // Whose client has gone, speaks in its name, until it is free.
            let gone = server.and_then(|server| server.rescue()).map(|rescue| rescue.client);
            let client = server.and_then(|server| server.client()).or(gone);
            let id = client.map(|client| self.ids[&client]);
            let until = self.sockets[socket].written;
            self.backends[*backend].claims.push_back((until, id));
        }
        outcome
    }

    fn perform(&mut self, effect: Effect, rng: &mut Prng) {
        trace::note(|| format!("effect: {effect:?}"));
        match effect {
            Effect::Connect { server, to } => {
                self.check_connect(server, &to);
                self.dial(Dialled::Server(server, to), rng);
            }
            Effect::Resolve { host } => self.dial(Dialled::Name(host), rng),
            Effect::AskSerial { zone } => self.dial(Dialled::Zone(zone), rng),
            Effect::StartTls { .. } => unreachable!("no TLS in this world"),
            Effect::Derive { conn, derivation } => {
                let turns = if self.is_calm { 0 } else { rng.below(10) };
                self.keys.push((turns, conn, derivation));
            }
            Effect::Consult { .. } => panic!("nobody else is asked"),
            // Who is on the console says nothing.
            Effect::Attend { .. } | Effect::CancelAttendance { .. } => {}
            Effect::Report(_) => {}
            Effect::HangUp { server } => {
                if let Some(socket) = self.socket_of.get(&Conn::Server(server)) {
                    self.sockets[*socket].hang_up();
                }
            }
            Effect::Close { conn } => {
                if let Some(socket) = self.socket_of.remove(&conn) {
                    if self.sockets[socket].worth_writing() {
                        let offered = self.owed(conn);
                        if self.write(conn, socket, rng) != Outcome::Bytes(offered) {
                            self.sockets[socket].is_cut_off = true;
                        }
                    } else {
                        self.sockets[socket].is_cut_off |= self.owed(conn) > 0;
                    }
                    self.sockets[socket].is_closed = true;
                }
                if let Conn::Client(client) = conn {
                    self.closed.extend(self.ids.get(&client));
                }
                if let Conn::Server(server) = conn {
                    let is_its =
                        |dial: &Dial| matches!(dial.what, Dialled::Server(key, _) if key == server);
                    self.dials.retain(|dial| !is_its(dial));
                }
                self.engine.forget(conn);
            }
        }
    }

    fn owed(&self, conn: Conn) -> usize {
        let house = self.engine.house();
        let bytes = match conn {
            Conn::Client(key) => house.clients.get(key).map(|client| client.egress.bytes()),
            Conn::Server(key) => house.servers.get(key).map(|server| server.egress.bytes()),
        };
        usize::try_from(bytes.unwrap_or(0)).unwrap()
    }

    /// A pool opens no more than it may, and where its entry says.
    fn check_connect(&self, key: ServerKey, to: &ServerAddress) {
        let house = self.engine.house();
        let Some(server) = house.servers.get(key) else {
            return;
        };
        let State::Connecting(Purpose::Serve) = server.state else {
            return;
        };
        let pool = house.pools.get(server.pool).expect("a server's pool outlives it");
        if let ServerAddress::Tcp(address) = to {
            assert_eq!(address.port(), pool.database.port, "the entry's own port");
        }
        let limit = pool.size.map_or(usize::MAX, |size| size + pool.reserve);
        let total = pool.servers.total() - pool.servers.count(ServerStanding::Carrier);
        let is_within = total <= limit || pool.welcome.is_none();
        // Where a name had to be looked up first, the pool may have shrunk meanwhile.
        let is_new = server.connected_at == self.now && !self.was_reloaded;
        assert!(is_within || !is_new, "{total} servers, pool_size {limit}");
    }

    fn dial(&mut self, what: Dialled, rng: &mut Prng) {
        let DialFaults { refused_per_mille, hangs_per_mille } = self.dial_faults;
        let fate = if rng.per_mille(refused_per_mille) {
            Fate::Refused
        } else if rng.per_mille(hangs_per_mille) {
            Fate::Hangs
        } else {
            Fate::Good
        };
        let turns = if self.is_calm { 0 } else { rng.below(10) };
        // A look-up always comes to an end.
        let (fate, turns) = match (fate, &what) {
            (Fate::Hangs, Dialled::Name(_) | Dialled::Zone(_)) => (Fate::Refused, 100),
            as_is => (as_is.0, turns),
        };
        self.dials.push(Dial { what, fate, turns });
    }

    fn finish_dials(&mut self, rng: &mut Prng) {
        for dial in &mut self.dials {
            dial.turns = dial.turns.saturating_sub(1);
        }
        let (done, open): (Vec<Dial>, Vec<Dial>) = std::mem::take(&mut self.dials)
            .into_iter()
            .partition(|dial| dial.turns == 0 && dial.fate != Fate::Hangs);
        self.dials = open;
        for Dial { what, fate, .. } in done {
            trace::note(|| format!("dial of {what:?}: {fate:?}"));
            let good = fate == Fate::Good;
            match what {
                Dialled::Name(host) => {
                    let addresses = if good { self.addresses.clone() } else { Vec::new() };
                    if good {
                        self.retire_moved(&host);
                    }
                    self.tell(Input::Resolved { host, addresses });
                }
                Dialled::Zone(zone) => {
                    // Now and then it has changed, or nobody knows.
                    let serial = u32::try_from(self.millis() / 2000).expect("a short life");
                    self.tell(Input::Serial { zone, serial: good.then_some(serial) });
                }
                Dialled::Server(server, to) if good => self.connected(server, &to, rng),
                Dialled::Server(server, _) => {
                    self.tell(Input::ConnectFailed { server, error: None });
                }
            }
        }
    }

    /// Servers at an address that this name has no more are on their way out.
    fn retire_moved(&mut self, host: &str) {
        let known = self.answered.insert(host.to_string(), self.addresses.clone());
        let known = known.unwrap_or_default();
        let house = self.engine.house();
        for (key, index) in &self.backend_of {
            // What was written before the engine closed it may still arrive.
            let is_there =
                |server: &&Server| !matches!(server.state, State::Leaving(_) | State::Closing);
            let Some(server) = house.servers.get(*key).filter(is_there) else {
                continue;
            };
            let Some(ServerAddress::Tcp(at)) = &server.address else {
                continue;
            };
            // With a database that has been dropped its pools have gone.
            let Some(pool) = house.pools.get(server.pool) else {
                continue;
            };
            let is_its = pool.database.hosts().any(|name| name == host);
            let has_moved = known.contains(&at.ip()) && !self.addresses.contains(&at.ip());
            let backend = &mut self.backends[*index];
            if is_its && has_moved && backend.phase != Phase::Dead && backend.retired.is_none() {
                self.moved += 1;
                let gone = server.rescue().map(|rescue| rescue.client);
                backend.retired = Some(server.client().or(gone).map(|client| self.ids[&client]));
            }
        }
    }

    fn finish_keys(&mut self) {
        for (turns, conn, derivation) in std::mem::take(&mut self.keys) {
            match turns {
                0 => {
                    let keys = Some(derivation.run());
                    self.tell(Input::Derived { conn, derivation, keys });
                }
                turns => self.keys.push((turns - 1, conn, derivation)),
            }
        }
    }

    fn connected(&mut self, server: ServerKey, to: &ServerAddress, rng: &mut Prng) {
        let port = match to {
            ServerAddress::Tcp(address) => address.port(),
            ServerAddress::Unix(path) => {
                let name = path.extension().and_then(|name| name.to_str());
                name.and_then(|name| name.parse().ok()).expect("a port ends the path")
            }
        };
        let socket = self.open(Conn::Server(server), rng);
        let key = rng.next().to_be_bytes().to_vec();
        self.backend_of.insert(server, self.backends.len());
        self.backends.push(Backend::new(socket, port, key));
        self.tell(Input::Connected { server, local: None });
        self.engine.make_runnable(Conn::Server(server));
    }
}
