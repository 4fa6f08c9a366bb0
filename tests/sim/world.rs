//! A seeded world around the engine: clients, servers, time, and what goes wrong with them.

use crate::backend::{First, Phase as Serving};
use crate::book::{Account, Book, Cancel, Mode};
use crate::client::{Appetite, Client, Phase};
use crate::faults::{Faults, Limits, REJECTION};
use crate::laws::mode_of;
use crate::prng::Prng;
use crate::script::value;
use crate::shell::{DialFaults, Shell, address};
use crate::socket::End;
use crate::town::Town;
use crate::trace;
use crate::wire;
use ringbouncer::engine::Engine;
use ringbouncer::keys::Conn;
use ringbouncer::session::server::State;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Somebody who connected to cancel a query.
pub struct Canceller {
    socket: usize,
    outbox: Vec<u8>,
}

/// See the module's page.
pub struct World {
    pub shell: Shell,
    pub book: Book,
    pub rng: Prng,
    pub clients: Vec<Client>,
    pub cancellers: Vec<Canceller>,
    pub faults: Faults,
    pub town: Town,
    /// Nothing happens by chance; clients do as they are told.
    pub is_directed: bool,
    /// The bytes of this socket's peer do not arrive by themselves.
    pub held: Option<usize>,
    pub born: Vec<u64>,
    most_clients: usize,
    /// The socket of who is on the console, if somebody is.
    operator: Option<usize>,
}

impl World {
    /// A world drawn from a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Prng::new(seed);
        let faults = Faults::draw(&mut rng);
        let town = Town::draw(&mut rng, faults.leaps);
        let mut world = Self::with(town, faults, rng);
        world.most_clients = world.rng.between(2, 25);
        world
    }

    /// A world as wanted.
    pub fn with(town: Town, faults: Faults, rng: Prng) -> Self {
        let now = Instant::now();
        let (config, userlist) = town.config();
        let engine = Engine::new(config, userlist, now);
        let mut shell = Shell::new(engine, now);
        shell.is_calm = !faults.pieces;
        if faults.dials {
            shell.dial_faults = DialFaults { refused_per_mille: 150, hangs_per_mille: 80 };
        }
        let book = Book { greeting: town.customs.greeting, ..Book::default() };
        Self {
            shell,
            book,
            rng,
            clients: Vec::new(),
            cancellers: Vec::new(),
            faults,
            town,
            is_directed: false,
            held: None,
            born: Vec::new(),
            most_clients: 0,
            operator: None,
        }
    }

    /// One random thing happens, and then others react.
    pub fn step(&mut self) {
        let most = self.most_clients;
        let present = self.clients.iter().filter(|client| client.phase != Phase::Over).count();
        let sleep = self.rng.below(12) as u64;
        self.shell.sleep(Duration::from_millis(sleep));
        match self.rng.below(1000) {
            0..40 if present < most && !self.shell.engine.holds_listeners() => self.admit(),
            40..60 if self.faults.leavers => self.someone_leaves(),
            60..80 if self.faults.cancels && !self.shell.engine.holds_listeners() => {
                self.someone_cancels();
            }
            80..84 if self.faults.resets => self.server_breaks(),
            84..86 if self.faults.shutdowns => self.server_shuts_down(),
            86..110 if self.faults.strays => self.server_blurts(),
            110..113 if self.faults.reloads => self.reload(),
            113..115 if self.faults.leaps => self.leap(),
            115..125 if self.faults.hangs => self.server_hangs(),
            125..140 if self.faults.slow_readers => self.someone_tires(),
            140..145 if self.faults.pauses => self.pause_or_resume(),
            145..148 if self.faults.pauses => self.pause_or_resume_one(),
            148..152 if self.faults.suspends => self.suspend_or_resume(),
            152..160 if self.faults.moves => self.names_move(),
            145..450 => {
                for _ in 0..3 {
                    if let Some(id) = self.some_client() {
                        self.client_acts(id, false);
                    }
                }
            }
            450..750 => {
                for _ in 0..3 {
                    self.servers_act(false);
                }
            }
            _ => {
                self.network_acts(false);
                self.turn();
                self.look_for_new_servers();
            }
        }
    }

    /// One turn of the engine's loop. Whom it has closed has left.
    pub fn turn(&mut self) {
        self.shell.turn(&mut self.rng);
        for id in std::mem::take(&mut self.shell.closed) {
            self.book.accounts[id].has_left = true;
        }
    }

    /// Somebody connects and logs in.
    fn admit(&mut self) {
        let house = self.rng.below(self.town.houses.len());
        let login = *self.rng.pick(&["ann", "bob"]);
        let mut asked = Vec::new();
        while self.rng.per_mille(300) {
            let (index, value) = value(&mut self.rng, self.town.customs.tracked());
            if !asked.iter().any(|(other, _)| *other == index) {
                asked.push((index, value.to_string()));
            }
        }
        let is_naughty = self.faults.naughty && self.rng.per_mille(100);
        if is_naughty && self.rng.per_mille(500) {
            asked.retain(|(index, _)| *index != 2);
            asked.push((2, "no such zone".to_string()));
        }
        let replicates = self.town.customs.replicates && self.rng.per_mille(200);
        let id = self.admit_as(house, login, asked, replicates);
        let rng = &mut self.rng;
        let client = &mut self.clients[id];
        client.is_naughty = is_naughty;
        client.depth = *rng.pick(&[1, 1, 1, 2, 5]);
        client.largest = *rng.pick(&[300, 3_000, 3_000, 200_000]);
        if is_naughty && client.mode == Mode::Statement {
            client.in_tx = true;
            client.simple("begin");
        }
    }

    /// As above, to a house of our choice. Which client it is.
    pub fn admit_to(&mut self, house: usize, login: &str, asked: Vec<(usize, String)>) -> usize {
        self.admit_as(house, login, asked, false)
    }

    fn admit_as(
        &mut self,
        house: usize,
        login: &str,
        asked: Vec<(usize, String)>,
        replicates: bool,
    ) -> usize {
        let id = self.clients.len();
        let (key, socket) = self.shell.accept(Some(id), &mut self.rng);
        let house = &self.town.houses[house];
        let user = house.user.unwrap_or(login).to_string();
        let user_of_pool = user.clone();
        let pool = (house.name.to_string(), user);
        let mode = match replicates {
            true => Mode::Session,
            false => mode_of(self.town.customs.mode(house.mode, &user_of_pool)),
        };
        self.book.replicators += u64::from(replicates);
        trace::note(|| {
            format!("client {id} is {}: {pool:?} {mode:?} {asked:?}", Conn::Client(key))
        });
        self.book.accounts.push(Account {
            pool: pool.clone(),
            mode,
            replicates,
            sent: VecDeque::new(),
            passed_over: Vec::new(),
            expected: VecDeque::new(),
            desired: None,
            copies: false,
            skips_to_sync: false,
            was_cancelled: false,
            has_left: false,
        });
        let mut client = Client::new(id, key, socket, pool, mode, (login, replicates), asked);
        client.tracked = self.town.customs.tracked();
        client.log_in(self.rng.per_mille(300));
        self.clients.push(client);
        self.born.push(self.shell.millis());
        id
    }

    fn some_client(&mut self) -> Option<usize> {
        let present: Vec<usize> =
            self.clients.iter().filter(|c| c.phase != Phase::Over).map(|c| c.id).collect();
        (!present.is_empty()).then(|| *self.rng.pick(&present))
    }

    fn some_server(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.shell.backends.len())
            .filter(|index| self.shell.backends[*index].phase != Serving::Dead)
            .collect();
        (!open.is_empty()).then(|| *self.rng.pick(&open))
    }

    fn someone_leaves(&mut self) {
        let Some(id) = self.some_client() else {
            return;
        };
        let how = *self.rng.pick(&[None, None, Some(End::Orderly), Some(End::Reset)]);
        let is_brisk = self.rng.per_mille(500);
        let client = &mut self.clients[id];
        client.leave(&mut self.shell.sockets[client.socket], &mut self.book, how, is_brisk);
    }

    fn someone_tires(&mut self) {
        if let Some(id) = self.some_client() {
            self.clients[id].appetite = match self.rng.below(3) {
                0 => Appetite::Few(self.rng.size(3000)),
                1 => Appetite::Nothing(self.rng.size(300) as u32),
                _ => Appetite::Everything,
            };
        }
    }

    fn someone_cancels(&mut self) {
        if self.town.customs.has_peer && self.rng.per_mille(300) {
            self.cancel_elsewhere();
            return;
        }
        let known: Vec<usize> = self
            .clients
            .iter()
            .filter(|client| client.phase == Phase::Ready && !client.outstanding.is_empty())
            .map(|client| client.id)
            .collect();
        if !known.is_empty() {
            let id = *self.rng.pick(&known);
            self.cancel(id);
        }
    }

    /// Asks to cancel what a client of the other pooler has running.
    fn cancel_elsewhere(&mut self) {
        let mut secret = self.rng.next().to_be_bytes();
        (secret[0], secret[1], secret[2]) = (secret[0] & 0x7f, 2, 0);
        let hops = secret[7] & 3;
        if hops > 0 {
            let mut passed_on = secret;
            passed_on[7] -= 1;
            self.book.to_forward.push(passed_on.to_vec());
        }
        let (_, socket) = self.shell.accept(None, &mut self.rng);
        self.cancellers.push(Canceller { socket, outbox: wire::cancel_request(&secret) });
    }

    /// Asks to cancel whatever this client has running.
    pub fn cancel(&mut self, id: usize) {
        let secret = self.clients[id].secret.clone().expect("who is ready has a key");
        let (key, socket) = self.shell.accept(None, &mut self.rng);
        trace::note(|| format!("{} cancels client {id}", Conn::Client(key)));
        self.book.cancels.push(Cancel { socket, client: id });
        self.book.accounts[id].was_cancelled = true;
        let outbox = wire::cancel_request(&secret);
        self.cancellers.push(Canceller { socket, outbox });
    }

    fn server_breaks(&mut self) {
        let Some(index) = self.some_server() else {
            return;
        };
        let backend = &mut self.shell.backends[index];
        trace::note(|| format!("backend {index} breaks off"));
        let how = *self.rng.pick(&[End::Orderly, End::Reset]);
        let socket = &mut self.shell.sockets[backend.socket];
        backend.end(socket, how);
    }

    fn server_shuts_down(&mut self) {
        if let Some(index) = self.some_server() {
            trace::note(|| format!("backend {index} shuts down"));
            let backend = &mut self.shell.backends[index];
            backend.shut_down(&mut self.shell.sockets[backend.socket], &mut self.book);
        }
    }

    fn server_blurts(&mut self) {
        if let Some(index) = self.some_server()
            && self.shell.backends[index].phase == Serving::Ready
        {
            self.shell.backends[index].blurt(&mut self.book, &mut self.rng);
        }
    }

    fn server_hangs(&mut self) {
        if let Some(index) = self.some_server() {
            let hangs = &mut self.shell.backends[index].hangs;
            *hangs = !*hangs;
        }
    }

    fn leap(&mut self) {
        if let Some(at) = self.shell.engine.next_deadline() {
            trace::note(|| "time leaps".to_string());
            self.shell.now = self.shell.now.max(at);
        }
    }

    fn pause_or_resume(&mut self) {
        let now = self.shell.now;
        let engine = &mut self.shell.engine;
        match engine.house().mode.is_paused() {
            false if engine.house().mode.is_suspended() => {}
            true => assert!(engine.resume(now)),
            false => engine.pause(now),
        }
        trace::note(|| format!("{:?}", engine.house().mode));
        engine.check();
    }

    /// The operator suspends everything, with whom he is in for that, or resumes.
    fn suspend_or_resume(&mut self) {
        let mode = self.shell.engine.house().mode;
        if mode.is_suspended() {
            self.resume_all();
        } else if !mode.is_paused() {
            self.hire();
            self.shell.engine.suspend(self.shell.now);
        }
        trace::note(|| format!("{:?}", self.shell.engine.house().mode));
    }

    /// Somebody is on the console; nobody is suspended for ever.
    fn hire(&mut self) {
        if self.operator.is_some_and(|socket| !self.shell.sockets[socket].is_closed) {
            return;
        }
        let (_, socket) = self.shell.accept(None, &mut self.rng);
        let pairs = [("user", "boss"), ("database", "pgbouncer")];
        let pairs = pairs.map(|(name, value)| (name.to_string(), value.to_string()));
        self.shell.sockets[socket].widen(1 << 18);
        self.shell.sockets[socket].send(&wire::startup(&pairs));
        self.operator = Some(socket);
    }

    /// The operator goes home.
    pub fn dismiss(&mut self) {
        if let Some(socket) = self.operator.take() {
            self.shell.sockets[socket].close(End::Orderly);
        }
    }

    fn names_move(&mut self) {
        let last = *self.rng.pick(&[&[9][..], &[8], &[7], &[7, 8]]);
        self.shell.addresses = last.iter().map(|last| address(*last)).collect();
        trace::note(|| format!("names lead to {:?}", self.shell.addresses));
    }

    fn reload(&mut self) {
        if self.rng.per_mille(250) {
            trace::note(|| "RECONNECT".to_string());
            self.shell.engine.reconnect(None, self.shell.now);
            self.shell.engine.check();
            return;
        }
        self.town.change(&mut self.rng);
        self.apply_town();
    }

    /// The operator pauses one database, or resumes it.
    fn pause_or_resume_one(&mut self) {
        let name = self.town.houses[self.rng.below(self.town.houses.len())].name;
        let engine = &mut self.shell.engine;
        match engine.house().paused_databases.contains(name) {
            true => assert!(engine.resume_database(name, self.shell.now)),
            false => engine.pause_database(name, self.shell.now),
        }
        trace::note(|| format!("paused: {:?}", engine.house().paused_databases));
        engine.check();
    }

    /// All of them go on.
    pub fn resume_all(&mut self) {
        for name in self.shell.engine.house().paused_databases.clone() {
            self.shell.engine.resume_database(&name, self.shell.now);
        }
        self.shell.engine.resume(self.shell.now);
    }

    /// Loads the configuration as the town is now.
    pub fn apply_town(&mut self) {
        trace::note(|| format!("reload: {:?}", self.town.houses));
        for (server, index) in &self.shell.backend_of {
            let backend = &mut self.shell.backends[*index];
            let house = self.town.houses.iter().find(|house| house.name == backend.pool.0);
            let moved = house.is_none_or(|house| house.port != backend.port || !house.is_listed);
            let is_ready = backend.phase == Serving::Ready;
            if moved && is_ready && backend.retired.is_none() {
                // What was written before the engine closed it may still arrive.
                let server = self.shell.engine.house().servers.get(*server);
                if let Some(server) =
                    server.filter(|s| !matches!(s.state, State::Leaving(_) | State::Closing))
                {
                    let gone = server.rescue().map(|rescue| rescue.client);
                    let heir = server.client().or(gone).map(|client| self.shell.ids[&client]);
                    backend.retired = Some(heir);
                }
            }
        }
        let (config, userlist) = self.town.config();
        let now = self.shell.now;
        self.shell.engine.reload(config, Some(userlist.into()), now);
        self.shell.was_reloaded = true;
        self.shell.engine.check();
    }

    pub fn client_acts(&mut self, id: usize, closing: bool) -> bool {
        let now = self.shell.millis();
        let client = &mut self.clients[id];
        let socket = &mut self.shell.sockets[client.socket];
        let had_farewell = client.farewell.is_some();
        let moved = client.step(socket, &mut self.book, &mut self.rng, closing, now);
        if let Some(text) = self.clients[id].farewell.as_ref().filter(|_| !had_farewell) {
            let client = &self.clients[id];
            let waited = now - self.born[id];
            let town = &self.town;
            let limits = town.customs.limits(town.limits, &client.login, &client.pool);
            // Who waits for a server is under the limit of all.
            let limits = match text.as_str() {
                // How the login of its own server has failed.
                "login failed" | "connect timeout" if self.book.accounts[id].replicates => {
                    return moved;
                }
                // A refusal that is cut off.
                "server conn crashed?"
                    if self.faults.rejects && self.book.accounts[id].replicates =>
                {
                    return moved;
                }
                "query_timeout" => Limits { query: town.limits.query, ..limits },
                _ => limits,
            };
            let excused = self.faults.excuse(text, waited, limits)
                || town.means.excuses(text)
                || town.customs.excuses(text, &client.login, &client.pool.0);
            assert!(excused || client.is_naughty, "client {id} must not be told: {text}");
        }
        moved
    }

    /// All servers, or a random one, work.
    pub fn servers_act(&mut self, all: bool) -> bool {
        let mut moved = false;
        if all {
            for index in 0..self.shell.backends.len() {
                moved |= self.server_acts(index);
            }
        } else if let Some(index) = self.some_server() {
            moved = self.server_acts(index);
        }
        moved
    }

    fn server_acts(&mut self, index: usize) -> bool {
        let Shell { backends, sockets, .. } = &mut self.shell;
        let backend = &mut backends[index];
        let socket = &mut sockets[backend.socket];
        let (moved, first) = backend.step(socket, &mut self.book, &mut self.rng);
        if let First::Cancel(key) = first {
            let target = backends.iter_mut().find(|backend| backend.key == key);
            if let Some(target) = target {
                trace::note(|| format!("a cancel reaches backend with socket {}", target.socket));
                target.cancel(&sockets[target.socket], &mut self.book);
            }
        }
        moved
    }

    /// Bytes arrive, and those who cancel send theirs.
    pub fn network_acts(&mut self, all: bool) -> bool {
        let mut moved = false;
        if let Some(operator) = self.operator {
            self.shell.sockets[operator].take(usize::MAX);
        }
        for canceller in &mut self.cancellers {
            let socket = &mut self.shell.sockets[canceller.socket];
            let sent = socket.send(&canceller.outbox);
            canceller.outbox.drain(..sent);
            let said = socket.take(usize::MAX);
            let is_late = String::from_utf8_lossy(&said).contains("client_login_timeout");
            // Who has not said yet that it cancels is taken for any client.
            let is_stopped = self.faults.suspends && said.first().is_none_or(|tag| *tag == b'E');
            let is_excused = self.faults.leaps && is_late || is_stopped;
            assert!(said.is_empty() || is_excused, "who cancels gets: {}", wire::show(&said));
            moved |= sent > 0;
        }
        // Whose connection has ended has had his cancel, or will not get it; unless the server took
        // its time, and nobody waited for it any more.
        let sockets = &self.shell.sockets;
        let is_patient = self.town.limits.connect >= 10_000;
        if !self.faults.hangs && !self.faults.suspends && is_patient {
            self.book.cancels.retain(|cancel| !sockets[cancel.socket].is_closed);
        }
        let held = self.held;
        let free = |index: &usize| Some(*index) != held;
        for index in (0..self.shell.sockets.len()).filter(free) {
            let socket = &mut self.shell.sockets[index];
            if all || self.rng.per_mille(500) {
                let most =
                    if all || !self.faults.pieces { usize::MAX } else { self.rng.size(100_000) };
                moved |= socket.deliver(most);
            }
        }
        moved
    }

    /// Some of the servers that have just been reached log nobody in.
    fn look_for_new_servers(&mut self) {
        if self.faults.rejects {
            for backend in &mut self.shell.backends {
                if backend.phase == Serving::Startup && backend.rejects.is_none() {
                    backend.rejects = self.rng.per_mille(100).then_some(REJECTION);
                }
            }
        }
    }
}
