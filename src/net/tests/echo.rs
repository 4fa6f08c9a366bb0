//! An engine that sends back what it gets, through one ring per connection.

use crate::config::settings::Settings;
use crate::console::metrics::Dialect;
use crate::console::{Console, Moment, Outside};
use crate::engine::io::{ClientAddress, Effect, Input, Sent, ServerAddress};
use crate::keys::{ClientKey, Conn, Keyed, ServerKey};
use crate::net::Heart;
use std::collections::{HashSet, VecDeque};
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub const RING_BYTES: usize = 64 * 1024;

pub struct Peer {
    ring: Box<[u8]>,
    start: usize,
    len: usize,
    pub is_read_closed: bool,
    is_closing: bool,
}

impl Peer {
    fn new() -> Self {
        let ring = vec![0; RING_BYTES].into_boxed_slice();
        Self { ring, start: 0, len: 0, is_read_closed: false, is_closing: false }
    }

    fn room(&mut self) -> [&mut [u8]; 2] {
        if self.len == 0 {
            self.start = 0;
        }
        let end = self.start + self.len;
        if end < RING_BYTES {
            let (before, free) = self.ring.split_at_mut(end);
            [free, &mut before[..self.start]]
        } else {
            [&mut self.ring[end - RING_BYTES..self.start], &mut []]
        }
    }

    fn filled(&self) -> [&[u8]; 2] {
        let end = self.start + self.len;
        if end <= RING_BYTES {
            [&self.ring[self.start..end], &[]]
        } else {
            [&self.ring[self.start..], &self.ring[..end - RING_BYTES]]
        }
    }

    /// Puts bytes of our own into the ring.
    pub fn say(&mut self, words: &[u8]) {
        self.room()[0][..words.len()].copy_from_slice(words);
        self.len += words.len();
    }
}

/// How our connects went.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Connected(Option<SocketAddr>),
    Failed(Option<String>),
}

pub struct Echo {
    pub settings: Settings,
    pub clients: Keyed<ClientKey, Peer>,
    pub servers: Keyed<ServerKey, Peer>,
    runnable: VecDeque<Conn>,
    is_runnable: HashSet<Conn>,
    effects: VecDeque<Effect>,
    last_tick: Instant,
    /// Whether clients are kept after they have sent all they had, to watch them.
    pub keeps_clients: bool,
    /// Whether nobody is read from.
    pub is_deaf: bool,
    pub accepted: Vec<(ClientKey, ClientAddress, [u8; 8])>,
    pub outcomes: Vec<(ServerKey, Outcome)>,
    pub resolved: Vec<(String, Vec<IpAddr>)>,
    /// Who was read, in order, with a `None` for each end of a turn.
    pub reads: Vec<Option<Conn>>,
    pub write_failures: usize,
    pub nothing_read: usize,
}

impl Echo {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            clients: Keyed::default(),
            servers: Keyed::default(),
            runnable: VecDeque::new(),
            is_runnable: HashSet::new(),
            effects: VecDeque::new(),
            last_tick: Instant::now(),
            keeps_clients: false,
            is_deaf: false,
            accepted: Vec::new(),
            outcomes: Vec::new(),
            resolved: Vec::new(),
            reads: Vec::new(),
            write_failures: 0,
            nothing_read: 0,
        }
    }

    pub fn connect(&mut self, to: ServerAddress) -> ServerKey {
        let server = self.servers.insert(Peer::new());
        self.effects.push_back(Effect::Connect { server, to });
        server
    }

    pub fn resolve(&mut self, host: &str) {
        self.effects.push_back(Effect::Resolve { host: host.to_string() });
    }

    pub fn close(&mut self, conn: Conn) {
        if let Some(peer) = self.peer_mut(conn)
            && !peer.is_closing
        {
            peer.is_closing = true;
            self.effects.push_back(Effect::Close { conn });
        }
    }

    pub fn peer(&self, conn: Conn) -> Option<&Peer> {
        match conn {
            Conn::Client(key) => self.clients.get(key),
            Conn::Server(key) => self.servers.get(key),
        }
    }

    pub fn peer_mut(&mut self, conn: Conn) -> Option<&mut Peer> {
        match conn {
            Conn::Client(key) => self.clients.get_mut(key),
            Conn::Server(key) => self.servers.get_mut(key),
        }
    }

    fn close_if_done(&mut self, conn: Conn) {
        let is_done = self.peer(conn).is_some_and(|peer| peer.is_read_closed && peer.len == 0);
        if is_done && !self.keeps_clients {
            self.close(conn);
        }
    }
}

impl Heart for Echo {
    fn accept(&mut self, from: ClientAddress, secret: [u8; 8], _: Instant) -> ClientKey {
        let key = self.clients.insert(Peer::new());
        self.accepted.push((key, from, secret));
        key
    }

    fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Received { conn, bytes } => {
                assert!(bytes > 0);
                self.reads.push(Some(conn));
                self.peer_mut(conn).unwrap().len += bytes;
                self.make_runnable(conn);
            }
            Input::Sent { conn, bytes } => {
                let peer = self.peer_mut(conn).unwrap();
                assert!(bytes > 0 && bytes <= peer.len);
                peer.start = (peer.start + bytes) % RING_BYTES;
                peer.len -= bytes;
                // There is room again: as the engine, we say so.
                self.make_runnable(conn);
                self.close_if_done(conn);
            }
            Input::Derived { .. } => panic!("an echo has no passwords"),
            Input::TlsReady { .. } | Input::TlsFailed { .. } => {
                panic!("an echo speaks no TLS")
            }
            Input::ReadClosed { conn } => {
                let peer = self.peer_mut(conn).unwrap();
                assert!(!peer.is_read_closed, "the end comes once");
                peer.is_read_closed = true;
                self.close_if_done(conn);
            }
            Input::WriteClosed { conn } => {
                self.write_failures += 1;
                self.close(conn);
            }
            Input::Connected { server, local } => {
                self.outcomes.push((server, Outcome::Connected(local)));
                self.make_runnable(Conn::Server(server));
            }
            Input::ConnectFailed { server, error } => {
                self.outcomes.push((server, Outcome::Failed(error)));
                self.close(Conn::Server(server));
            }
            Input::Resolved { host, addresses } => self.resolved.push((host, addresses)),
            Input::Serial { .. } => panic!("an echo knows no zones"),
            Input::Consulted { .. } => panic!("nobody else is asked"),
            Input::Tick => {
                self.last_tick = now;
                self.reads.push(None);
            }
        }
    }

    fn sent(&mut self, all: &mut [Sent], now: Instant) {
        for Sent { conn, bytes, .. } in all {
            self.handle(Input::Sent { conn: *conn, bytes: *bytes }, now);
        }
    }

    fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn next_deadline(&self) -> Option<Instant> {
        Some(self.last_tick + Duration::from_millis(10))
    }

    fn next_runnable(&mut self) -> Option<Conn> {
        let conn = self.runnable.pop_front()?;
        self.is_runnable.remove(&conn);
        Some(conn)
    }

    fn make_runnable(&mut self, conn: Conn) {
        if self.peer(conn).is_some() && self.is_runnable.insert(conn) {
            self.runnable.push_back(conn);
        }
    }

    fn has_runnable(&self) -> bool {
        !self.runnable.is_empty()
    }

    fn wants_read(&self, conn: Conn) -> bool {
        let Some(peer) = self.peer(conn) else {
            return false;
        };
        !self.is_deaf && !peer.is_read_closed && peer.len < RING_BYTES
    }

    fn wants_write(&self, conn: Conn) -> bool {
        self.peer(conn).is_some_and(|peer| peer.len > 0)
    }

    fn inbox_room(&mut self, conn: Conn) -> Option<[&mut [u8]; 2]> {
        self.peer_mut(conn).map(Peer::room)
    }

    fn nothing_read(&mut self, _: Conn) {
        self.nothing_read += 1;
    }

    fn outgoing<'a>(&'a self, conn: Conn, slices: &mut [IoSlice<'a>]) -> usize {
        let Some(peer) = self.peer(conn) else {
            return 0;
        };
        let mut used = 0;
        for part in peer.filled().into_iter().filter(|part| !part.is_empty()) {
            slices[used] = IoSlice::new(part);
            used += 1;
        }
        used
    }

    fn has_more_to_say(&self, _conn: Conn) -> bool {
        false
    }
    fn has_more_coming(&self, _conn: Conn) -> bool {
        false
    }
    fn forget(&mut self, conn: Conn) {
        let gone = match conn {
            Conn::Client(key) => self.clients.remove(key),
            Conn::Server(key) => self.servers.remove(key),
        };
        assert!(gone.is_some(), "a connection is forgotten once");
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn attend(&mut self, _: &mut Console, _: ClientKey, _: &dyn Outside, _: Moment) {
        panic!("an echo has no console");
    }

    fn cancel_attendance(&mut self, _: &mut Console, _: ClientKey, _: Instant) {
        panic!("an echo has no console");
    }

    fn settle(&mut self, _: &mut Console) {}

    fn metrics(&self, _: &dyn Outside, _: Moment, _: Dialect) -> String {
        String::new()
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn is_over(&self) -> bool {
        false
    }
}
