//! Why clients wait, and why connections end, counted by cause.
//!
//! None of this is on the way of a query that finds a server at once.

use crate::keys::ClientKey;
use crate::pool::groups::Kind;
use crate::pool::queues::ServerStanding;
use crate::pool::stats::microseconds;
use crate::pool::{House, Pool};
use crate::session::client;
use crate::session::farewell::Reason;
use crate::session::server::{Purpose, State};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Instant;

/// What a client waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// All servers that the pool may have are at work.
    #[default]
    PoolSize,
    /// The database has all the servers that it may have.
    DatabaseLimit,
    /// The user has all the servers that it may have.
    UserLimit,
    /// A server is being connected and logged in to, or that failed lately.
    Login,
    /// Everything, or the database, is paused.
    Paused,
    /// Servers run the reset query, or are asked whether they are still there.
    Reset,
    /// A host name is being looked up.
    Dns,
    /// Servers are held back for a cancel request.
    Cancel,
}

impl Cause {
    /// All of them, in the order of SHOW WAITS.
    pub const ALL: [Cause; 8] = [
        Cause::PoolSize,
        Cause::DatabaseLimit,
        Cause::UserLimit,
        Cause::Login,
        Cause::Paused,
        Cause::Reset,
        Cause::Dns,
        Cause::Cancel,
    ];

    /// As SHOW WAITS prints it.
    pub fn word(self) -> &'static str {
        match self {
            Cause::PoolSize => "pool_size",
            Cause::DatabaseLimit => "database_limit",
            Cause::UserLimit => "user_limit",
            Cause::Login => "login",
            Cause::Paused => "paused",
            Cause::Reset => "reset",
            Cause::Dns => "dns",
            Cause::Cancel => "cancel",
        }
    }
}

/// How often and how long clients of a pool have waited, by cause.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits([(u64, u64); Cause::ALL.len()]);

impl Waits {
    /// How many waits have ended, and how many microseconds they took together.
    pub fn of(&self, cause: Cause) -> (u64, u64) {
        self.0[cause as usize]
    }
}

impl House {
    /// What a client of this pool that finds no server now has to wait for.
    pub fn cause_of_wait(&self, pool: &Pool) -> Cause {
        let servers = &pool.servers;
        let is_full = pool.size.is_some_and(|size| servers.total() >= size);
        let resolving = || {
            let mut keys = servers.of(ServerStanding::Login).keys(&self.servers).into_iter();
            keys.any(|key| {
                let server = self.servers.get(key);
                server.is_some_and(|server| {
                    server.address.is_none()
                        && matches!(server.state, State::Connecting(Purpose::Serve))
                })
            })
        };
        if self.mode.is_paused() || pool.is_paused {
            Cause::Paused
        } else if let Some(group) = pool.blocked_by.and_then(|key| self.groups.get(key)) {
            match group.kind {
                Kind::Database => Cause::DatabaseLimit,
                Kind::User => Cause::UserLimit,
            }
        } else if is_full && servers.count(ServerStanding::Held) > 0 {
            Cause::Cancel
        } else if servers.count(ServerStanding::Tested) > 0 && (is_full || pool.is_cared_for()) {
            Cause::Reset
        } else if is_full && servers.count(ServerStanding::Login) == 0 {
            Cause::PoolSize
        } else if resolving() {
            Cause::Dns
        } else {
            Cause::Login
        }
    }

    /// A client begins to wait: for what, is noted at once, for later nobody knows.
    pub fn note_cause(&mut self, key: ClientKey) {
        let pool = self.clients.get(key).and_then(|client| client.pool);
        let Some(cause) =
            pool.and_then(|pool| self.pools.get(pool)).map(|pool| self.cause_of_wait(pool))
        else {
            return;
        };
        if let Some(client) = self.clients.get_mut(key) {
            client.wait_cause = cause as u8;
        }
    }

    /// A client has got its welcome.
    pub fn note_login(&mut self, key: ClientKey, now: Instant) {
        let client = self.clients.get_mut(key);
        let pool = client.as_ref().and_then(|client| self.pools.get_mut(client.pool?));
        if let (Some(client), Some(pool)) = (client, pool) {
            client.served_at = now;
            pool.times.login.record(microseconds(client.connected_at, now));
        }
    }

    /// A wait has ended, well or badly.
    pub fn count_wait(&mut self, key: ClientKey, since: Instant, now: Instant) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let cause = usize::from(client.wait_cause);
        let was_told = matches!(client.state, client::State::Waiting { is_told: true, .. });
        if let Some(pool) = client.pool.filter(|_| was_told) {
            // Who waits the longest now may have waited as long.
            self.look_again(pool, now);
        }
        let Some(client) = self.clients.get(key) else {
            return;
        };
        if let Some(pool) = client.pool.and_then(|pool| self.pools.get_mut(pool)) {
            let waited = microseconds(since, now);
            pool.times.wait.record(waited);
            if let Some((count, time)) = pool.waits.0.get_mut(cause) {
                *count += 1;
                *time = time.saturating_add(waited);
            }
        }
    }
}

/// What became of servers whose clients went in the middle of something (`server_rescue_timeout`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescues {
    /// So many went on to serve others.
    pub kept: u64,
    /// So many were closed, for whatever reason.
    pub lost: u64,
}

/// So many causes are told apart; what comes then is `other`.
const MAX_CAUSES: usize = 256;

/// How often connections have ended, by side and cause.
#[derive(Debug, Default)]
pub struct Endings(BTreeMap<(Side, Cow<'static, str>), u64>);

/// Whose connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// A client's.
    Client,
    /// One to a server.
    Server,
}

impl Side {
    /// As SHOW ERRORS prints it.
    pub fn word(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
        }
    }
}

impl Endings {
    /// One more.
    pub fn count(&mut self, side: Side, reason: &Reason) {
        let mut key = (side, cause_of_end(reason));
        if self.0.len() >= MAX_CAUSES && !self.0.contains_key(&key) {
            key.1 = "other".into();
        }
        *self.0.entry(key).or_insert(0) += 1;
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Side, &str, u64)> {
        self.0.iter().map(|((side, cause), count)| (*side, &**cause, *count))
    }
}

/// The part of a reason that does not name anybody: what stands before the first colon or quote.
fn cause_of_end(reason: &Reason) -> Cow<'static, str> {
    match reason {
        Reason::Told(text) | Reason::Silent(text) => Cow::Borrowed(text),
        Reason::ServerSays { code, .. } => {
            format!("server error {}", String::from_utf8_lossy(code)).into()
        }
        Reason::ToldOf(_) => {
            let text = reason.text();
            let cause = text[..text.find([':', '"']).unwrap_or(text.len())].trim();
            if cause.is_empty() { "other".into() } else { cause.to_owned().into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_name_nobody_and_are_limited() {
        let mut endings = Endings::default();
        endings.count(Side::Client, &Reason::no_such_database("one"));
        endings.count(Side::Client, &Reason::no_such_database("two"));
        endings.count(Side::Server, &Reason::ServerSays { code: *b"28P01", text: "x".into() });
        endings.count(Side::Client, &Reason::TRUST_FAILED);
        let seen: Vec<_> =
            endings.iter().map(|(side, cause, n)| (side, cause.to_owned(), n)).collect();
        assert_eq!(
            seen,
            [
                (Side::Client, "\"trust\" authentication failed".to_owned(), 1),
                (Side::Client, "no such database".to_owned(), 2),
                (Side::Server, "server error 28P01".to_owned(), 1),
            ]
        );
        for n in 0..2 * MAX_CAUSES {
            endings.count(Side::Client, &Reason::ToldOf(format!("cause {n}")));
        }
        assert!(endings.iter().count() <= MAX_CAUSES + 2);
    }
}
