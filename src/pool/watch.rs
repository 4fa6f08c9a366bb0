//! Whom to look at next.
//!
//! A connection for which some time limit runs, or may soon begin to run, has one entry here: at
//! that time [`janitor`](super::janitor) looks at it. An entry may come too early but never too
//! late. So nothing has to be changed when a query begins or ends in time: whoever is looked at too
//! early is looked at again when his time would be up by then. What this costs depends on the
//! limits alone, not on how many queries there are; and connections without one cost nothing,
//! however many there are.

use crate::keys::Conn;
use crate::pool::House;
use std::collections::BTreeSet;
use std::time::Instant;

/// All entries, earliest first.
#[derive(Debug, Default)]
pub struct Watches {
    entries: BTreeSet<(Instant, Conn)>,
    /// How often anybody has been looked at.
    pub looks: u64,
}

impl Watches {
    /// When to look at somebody.
    pub fn next(&self) -> Option<Instant> {
        self.entries.first().map(|(at, _)| *at)
    }

    /// How many connections are watched.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A connection has gone, and with it what was noted there.
    pub fn forget(&mut self, conn: Conn, noted: Option<Instant>) {
        if let Some(at) = noted {
            self.entries.remove(&(at, conn));
        }
    }
}

impl House {
    /// Sees to it that a connection is looked at by then.
    pub fn watch(&mut self, conn: Conn, at: Instant) {
        let House { clients, servers, watches, .. } = self;
        let noted = match conn {
            Conn::Client(key) => clients.get_mut(key).map(|client| &mut client.watched),
            Conn::Server(key) => servers.get_mut(key).map(|server| &mut server.watched),
        };
        let Some(noted) = noted.filter(|noted| noted.is_none_or(|noted| at < noted)) else {
            return;
        };
        if let Some(old) = noted.replace(at) {
            watches.entries.remove(&(old, conn));
        }
        watches.entries.insert((at, conn));
    }

    /// Takes out the entry that is due first.
    pub fn next_watched(&mut self, now: Instant) -> Option<Conn> {
        let House { clients, servers, watches, .. } = self;
        let (_, conn) = *watches.entries.first().filter(|(at, _)| *at <= now)?;
        watches.entries.pop_first();
        watches.looks += 1;
        match conn {
            Conn::Client(key) => clients.get_mut(key).map(|client| client.watched = None),
            Conn::Server(key) => servers.get_mut(key).map(|server| server.watched = None),
        };
        Some(conn)
    }

    /// Whether an entry of this connection comes early enough.
    pub fn is_watched(&self, conn: Conn, by: Instant) -> bool {
        let noted = match conn {
            Conn::Client(key) => self.clients.get(key).and_then(|client| client.watched),
            Conn::Server(key) => self.servers.get(key).and_then(|server| server.watched),
        };
        noted.is_some_and(|at| at <= by && self.watches.entries.contains(&(at, conn)))
    }
}
