//! When to open another server.

use crate::config::settings::Settings;
use crate::pool::Pool;
use crate::pool::queues::ServerStanding;
use crate::session::farewell::{MAX_CACHED_BYTES, cut};
use crate::session::server::ServerAddress;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// However short `server_login_retry` is: without a pause a refused connection would be tried again
/// at once, for ever.
const LEAST_RETRY: Duration = Duration::from_millis(100);

/// Where the next server of a pool is to be found.
#[derive(Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// There.
    At(ServerAddress),
    /// At the addresses of this name.
    Named(String),
    /// Nowhere: no host is configured, and no directory for Unix sockets.
    Nowhere,
}

impl Pool {
    /// Whether another server may be opened now: one attempt at a time, and after a failure not
    /// before `server_login_retry` has passed.
    pub fn may_open(&self, settings: &Settings, now: Instant) -> bool {
        if self.servers.count(ServerStanding::Login) > 0 {
            return false;
        }
        if self.retry_at(settings).is_some_and(|at| now < at) {
            return false;
        }
        // Without a welcome nobody can log in, so that one connection is worth more than the limit.
        let has_room = self.size.is_none_or(|size| self.servers.total() < size);
        has_room || self.welcome.is_none()
    }

    /// Before this no further attempt is made.
    pub fn retry_at(&self, settings: &Settings) -> Option<Instant> {
        self.attempts.failure.as_ref()?;
        self.attempts.last?.checked_add(settings.server_login_retry.max(LEAST_RETRY))
    }

    /// Whether a connection may be opened that carries a cancel.
    pub fn has_room_for_carrier(&self) -> bool {
        self.size.is_none_or(|size| self.servers.total() < 2 * size)
    }

    /// The error of the last login, if that is all that this pool has to offer.
    pub fn fails_fast(&self) -> Option<&str> {
        let only_logins = self.servers.connected() == 0;
        self.attempts.failure.as_deref().filter(|_| only_logins)
    }

    /// An attempt to open a server failed.
    pub fn note_failure(&mut self, reason: &str) {
        self.attempts.failure = Some(cut(reason, MAX_CACHED_BYTES).to_string());
    }

    /// Chooses the host for the next attempt.
    pub fn next_host(&mut self, socket_directory: &str) -> Whereabouts {
        let hosts: Vec<&str> = self.database.hosts().collect();
        if hosts.is_empty() {
            return match socket_directory {
                "" => Whereabouts::Nowhere,
                directory => self.unix(directory),
            };
        }
        use crate::config::values::LoadBalanceHosts::{Disable, RoundRobin};
        let failed = self.attempts.failure.is_some();
        let index = match self.database.load_balance_hosts {
            RoundRobin => self.attempts.host,
            Disable => self.attempts.host + usize::from(failed),
        };
        let host = hosts[index % hosts.len()].to_string();
        self.attempts.host = match self.database.load_balance_hosts {
            RoundRobin => (index + 1) % hosts.len(),
            Disable => index % hosts.len(),
        };
        if host.starts_with(['/', '@']) {
            return self.unix(&host);
        }
        match host.parse::<IpAddr>() {
            Ok(address) => Whereabouts::At(self.tcp(address)),
            Err(_) => Whereabouts::Named(host),
        }
    }

    /// This address, with the database's port.
    pub fn tcp(&self, address: IpAddr) -> ServerAddress {
        ServerAddress::Tcp(SocketAddr::new(address, self.database.port))
    }

    fn unix(&self, directory: &str) -> Whereabouts {
        let path = format!("{directory}/.s.PGSQL.{}", self.database.port);
        Whereabouts::At(ServerAddress::Unix(PathBuf::from(path)))
    }
}
