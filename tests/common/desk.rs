//! The engine on a desk: no sockets, no real time. Bytes come and time passes when the test says so.

use super::fake::{one_row, welcome};
use super::raw::{self, Startup};
use ringbouncer::auth::derivation::Derivation;
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::Config;
use ringbouncer::engine::Engine;
use ringbouncer::engine::io::{ClientAddress, Effect, Input, ServerAddress};
use ringbouncer::keys::{Conn, PoolKey, ServerKey};
use ringbouncer::pool::Pool;
use ringbouncer::pool::stats::Averages;
use ringbouncer::session::server::{Server, State};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

/// An engine, and what it has asked for.
pub struct Desk {
    pub engine: Engine,
    pub now: Instant,
    pub start: Instant,
    /// Servers whose sockets are to be opened, oldest first.
    pub dialled: VecDeque<(ServerKey, ServerAddress)>,
    /// Who was closed, and the last bytes for each.
    pub closed: Vec<(Conn, Vec<u8>)>,
    pub reports: Vec<Averages>,
    /// Keys that the side thread is to make, oldest first.
    pub derivations: VecDeque<(Conn, Derivation)>,
    /// Servers do not go when they are told goodbye.
    pub servers_stay: bool,
    /// Servers that got the end of the line instead.
    pub hung_up: Vec<Conn>,
}

/// A configuration of these sections, `[pgbouncer]` last.
pub fn config(text: &str) -> Config {
    let text =
        format!("{text}\nauth_type = trust\nserver_tls_sslmode = disable\nunix_socket_dir =\n");
    Config::parse_text("desk.ini", &text).unwrap()
}

impl Desk {
    /// An engine with this configuration. It knows alice, bob and carol.
    pub fn new(text: &str) -> Desk {
        let now = Instant::now();
        let (users, _) = Userlist::parse(b"\"alice\" \"\"\n\"bob\" \"\"\n\"carol\" \"\"\n");
        Desk {
            engine: Engine::new(config(text), users, now),
            now,
            start: now,
            dialled: VecDeque::new(),
            closed: Vec::new(),
            reports: Vec::new(),
            derivations: VecDeque::new(),
            servers_stay: false,
            hung_up: Vec::new(),
        }
    }

    pub fn handle(&mut self, input: Input) {
        self.engine.handle(input, self.now);
    }

    /// The end of a turn.
    pub fn perform(&mut self) {
        self.handle(Input::Tick);
        self.perform_effects();
        // PostgreSQL goes when it is told goodbye.
        while let Some(conn) = self.next_leaving() {
            self.handle(Input::ReadClosed { conn });
            self.perform_effects();
        }
        self.engine.check();
    }

    fn next_leaving(&self) -> Option<Conn> {
        let mut servers = self.engine.house().servers.iter();
        let is_leaving = |server: &Server| matches!(server.state, State::Leaving(_));
        let (key, _) = servers.find(|(_, server)| is_leaving(server) && !self.servers_stay)?;
        Some(Conn::Server(key))
    }

    fn perform_effects(&mut self) {
        while let Some(effect) = self.engine.next_effect() {
            match effect {
                Effect::Connect { server, to } => self.dialled.push_back((server, to)),
                Effect::Derive { conn, derivation } => {
                    self.derivations.push_back((conn, derivation));
                }
                Effect::Report(averages) => self.reports.push(averages),
                // Whoever is on the console gets no answers here.
                Effect::Attend { .. } => {}
                Effect::HangUp { server } => self.hung_up.push(Conn::Server(server)),
                Effect::Close { conn } => {
                    let last = self.outgoing(conn);
                    self.closed.push((conn, last));
                    self.dialled.retain(|(server, _)| Conn::Server(*server) != conn);
                    self.engine.forget(conn);
                }
                other => panic!("nobody on this desk does {other:?}"),
            }
        }
    }

    /// Time passes, and the engine wakes whenever it wants to.
    pub fn after(&mut self, time: Duration) {
        let until = self.now + time;
        let (mut last, mut turns) = (self.start, 0);
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.perform();
            // What one deadline leads to may be due at once, but not for ever.
            turns = if at == last { turns + 1 } else { 0 };
            assert!(turns < 10, "a deadline that was kept is over");
            last = at;
        }
        self.now = until;
        self.perform();
    }

    /// As much as the pooler is willing to read.
    pub fn feed_while_read(&mut self, conn: Conn, bytes: &[u8]) {
        for piece in bytes.chunks(1000) {
            if !self.engine.wants_read(conn) {
                return;
            }
            self.feed(conn, piece);
        }
    }

    /// It hangs up.
    pub fn leave(&mut self, conn: Conn) {
        self.handle(Input::ReadClosed { conn });
        self.perform();
    }

    /// Bytes arrive from a peer, all of which it must be willing to read.
    pub fn feed(&mut self, conn: Conn, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            assert!(self.engine.wants_read(conn), "{conn:?} is not read");
            let [first, second] = self.engine.inbox_room(conn).expect("it is there");
            let mut taken = 0;
            for (place, byte) in first.iter_mut().chain(second).zip(bytes) {
                *place = *byte;
                taken += 1;
            }
            bytes = &bytes[taken..];
            self.handle(Input::Received { conn, bytes: taken });
        }
        self.perform();
    }

    fn outgoing(&self, conn: Conn) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 200];
        let used = self.engine.outgoing(conn, &mut slices);
        slices[..used].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    /// The peer takes everything.
    pub fn take(&mut self, conn: Conn) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let bytes = self.outgoing(conn);
            if bytes.is_empty() {
                self.perform();
                return all;
            }
            self.handle(Input::Sent { conn, bytes: bytes.len() });
            all.extend(bytes);
        }
    }

    /// A client that has sent its Startup.
    pub fn client(&mut self, user: &str, database: &str) -> Conn {
        let from = ClientAddress::Unix { pid: 0, uid: None };
        let serial = self.engine.house().clients.len() + self.closed.len();
        let secret = u64::try_from(serial).unwrap().to_be_bytes();
        let client = Conn::Client(self.engine.accept(from, secret, self.now));
        let startup = Startup::v3().param("user", user).param("database", database);
        self.feed(client, &startup.bytes());
        client
    }

    /// The server dialled first connects and welcomes us.
    pub fn server(&mut self) -> Conn {
        let server = self.connect();
        self.feed(server, &welcome());
        server
    }

    /// The server dialled first connects, and has not answered our Startup.
    pub fn connect(&mut self) -> Conn {
        let (server, _) = self.dialled.pop_front().expect("a server was dialled");
        self.handle(Input::Connected { server, local: None });
        self.take(Conn::Server(server));
        Conn::Server(server)
    }

    /// The server dialled first refuses. Where it was.
    pub fn refuse(&mut self) -> ServerAddress {
        let (server, to) = self.dialled.pop_front().expect("a server was dialled");
        self.handle(Input::ConnectFailed { server, error: None });
        self.perform();
        to
    }

    /// A client sends a query.
    pub fn ask(&mut self, client: Conn) {
        self.feed(client, &raw::query("SELECT 1"));
    }

    /// A server takes what it was asked and answers.
    pub fn answer(&mut self, server: Conn) {
        assert!(!self.take(server).is_empty(), "it was asked something");
        self.feed(server, &one_row("1"));
        let clients: Vec<Conn> =
            self.engine.house().clients.keys().into_iter().map(Conn::Client).collect();
        for client in clients {
            self.take(client);
        }
    }

    pub fn pool(&self, database: &str, user: &str) -> Option<(PoolKey, &Pool)> {
        let is_it = |pool: &Pool| pool.database.name == database && pool.user == user;
        self.engine.house().pools.iter().find(|(_, pool)| is_it(pool))
    }

    /// The message of the FATAL with which somebody was closed; empty if without.
    pub fn last_words(&self, conn: Conn) -> Option<String> {
        let (_, last) = self.closed.iter().find(|(closed, _)| *closed == conn)?;
        let text = last.windows(3).position(|three| three == b"P01")?;
        let text = last[text..].split(|byte| *byte == 0).nth(1)?;
        Some(String::from_utf8_lossy(&text[1..]).into_owned())
    }

    pub fn is_closed(&self, conn: Conn) -> bool {
        self.closed.iter().any(|(closed, _)| *closed == conn)
    }
}
