//! When to open another server.

use crate::config::Config;
use crate::config::settings::Settings;
use crate::config::values::PoolMode;
use crate::keys::{ClientKey, GroupKey, PoolKey, ServerKey};
use crate::pool::queues::ServerStanding;
use crate::pool::{House, Pool};
use crate::session::client;
use crate::session::farewell::{MAX_CACHED_BYTES, cut};
use crate::session::server::{Server, ServerAddress, State, Turn};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// However short `server_login_retry` is: without a pause a refused connection would be tried again
/// at once, for ever.
pub const LEAST_RETRY: Duration = Duration::from_millis(100);

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

/// Why another server may be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Somebody waits.
    Waiting,
    /// This client waits, who wants to replicate and needs a server of its own.
    Replication(ClientKey),
    /// Somebody was turned away because the last login failed: that is the time to try again.
    Refused,
    /// `min_pool_size`. That takes no place from others.
    Upkeep,
}

impl Demand {
    /// Whether it is of clients that wait.
    pub fn is_of_clients(self) -> bool {
        matches!(self, Demand::Waiting | Demand::Replication(_))
    }
}

/// What the house says to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Open one.
    Launch {
        /// The client for whom the reserve is touched.
        reserve_for: Option<ClientKey>,
    },
    /// End this idle server of another pool, or of this one, and ask again.
    Evict(ServerKey),
    /// This group is full, and nobody there is idle.
    Blocked(GroupKey),
    /// The last places of this group are kept until then for others who have waited longer.
    Claimed(GroupKey, Instant),
    /// Not before then.
    Later(Instant),
    /// Not now.
    No,
}

impl House {
    /// Whether another server is opened for this pool now.
    pub fn opening(&self, key: PoolKey, demand: Demand, config: &Config, now: Instant) -> Opening {
        let Some(pool) =
            self.pools.get(key).filter(|pool| !self.mode.opens_none() && !pool.is_paused)
        else {
            return Opening::No;
        };
        if pool.has_lost_user {
            return Opening::No;
        }
        // One attempt at a time, and after a failure not before the pause is over.
        if pool.servers.count(ServerStanding::Login) > 0 {
            return Opening::No;
        }
        let retry_at = self.retry_at(pool, &config.settings, now);
        if let Some(at) = retry_at.filter(|at| now < *at) {
            return Opening::Later(at);
        }
        // Without a welcome nobody can log in, so that one connection is worth more than the limit.
        let is_full = pool.size.is_some_and(|size| pool.servers.total() >= size);
        let mut reserve_for = None;
        let is_own = matches!(demand, Demand::Replication(_));
        if is_full && is_own {
            // Who is about to leave makes room enough.
            match self.idle_of(pool) {
                _ if self.expects_place(pool) => return Opening::No,
                Some(victim) => return Opening::Evict(victim),
                None => {}
            }
        }
        if is_full && (pool.welcome.is_some() || is_own) {
            match self.reserve_from(pool, demand, &config.settings) {
                Some((client, at)) if at <= now => reserve_for = Some(client),
                Some((_, at)) => return Opening::Later(at),
                None => return Opening::No,
            }
        }
        for (group_key, limit) in pool.groups.into_iter().zip(pool.group_limits(config)) {
            let (Some(limit), Some(group)) = (limit, self.groups.get(group_key)) else {
                continue;
            };
            let free = limit.saturating_sub(group.servers.len());
            if free > 0
                && self.groups.blocked_pools > 0
                && let Some(kept) = self.kept_for_others(group_key, key, free, config, now)
            {
                return kept;
            }
            if free == 0 {
                // Places that are about to become free are for those who have waited longer.
                let others =
                    group.blocked_pools() - usize::from(pool.blocked_by == Some(group_key));
                let may_evict = demand != Demand::Upkeep && self.leaving(&group.servers) <= others;
                // One of its own that is idle, and does not serve those who wait, is in the middle
                // of saying something: it will be free sooner than a new one.
                let spared = (!is_own).then_some(key);
                let victim = may_evict.then(|| self.longest_idle(&group.servers, spared));
                return match victim.flatten() {
                    Some(victim) => Opening::Evict(victim),
                    None => Opening::Blocked(group_key),
                };
            }
        }
        Opening::Launch { reserve_for }
    }

    /// For whom a pool that is full may touch its reserve, and from when on.
    fn reserve_from(
        &self,
        pool: &Pool,
        demand: Demand,
        settings: &Settings,
    ) -> Option<(ClientKey, Instant)> {
        let timeout = settings.reserve_pool_timeout;
        let most = pool.size?.saturating_add(pool.reserve);
        if !demand.is_of_clients() || timeout.is_zero() || pool.servers.total() >= most {
            return None;
        }
        let (first, since) = self.first_waiting(pool)?;
        Some((first, since.checked_add(timeout)?))
    }

    /// Since when a client has waited.
    pub fn waiting_since(&self, client: ClientKey) -> Option<Instant> {
        match self.clients.get(client)?.state {
            client::State::Waiting { since, .. }
            | client::State::AwaitingWelcome { since }
            | client::State::AwaitingAccount { since, .. } => Some(since),
            _ => None,
        }
    }

    /// Who has waited the longest for a server of this pool, be it only to ask it something.
    pub fn first_waiting(&self, pool: &Pool) -> Option<(ClientKey, Instant)> {
        let first = [pool.waiting.first(), pool.askers.front().copied()].into_iter().flatten();
        let first = first.filter_map(|client| Some((client, self.waiting_since(client)?)));
        first.min_by_key(|(_, since)| *since)
    }

    fn leaving(&self, servers: &[ServerKey]) -> usize {
        let leaves_soon =
            |key: &&ServerKey| self.servers.get(**key).is_some_and(Server::leaves_soon);
        servers.iter().filter(leaves_soon).count()
    }

    /// Whether there is a limit that counts the servers of this pool.
    pub fn is_place_counted(&self, key: PoolKey, config: &Config) -> bool {
        self.pools.get(key).is_some_and(|pool| {
            pool.size.is_some() || pool.group_limits(config).iter().any(Option::is_some)
        })
    }

    /// The one that has been free for the longest, apart from those of one pool. One that is in the
    /// middle of saying something is about to serve who waits for it.
    pub(super) fn longest_idle(
        &self,
        servers: &[ServerKey],
        spared: Option<PoolKey>,
    ) -> Option<ServerKey> {
        let idle = servers.iter().filter_map(|key| {
            let server = self.servers.get(*key).filter(|server| Some(server.pool) != spared)?;
            if !server.is_done() && self.pools.get(server.pool).is_some_and(Pool::has_waiting) {
                return None;
            }
            match server.state {
                State::Idle { since } | State::Used { since } => Some((since, *key)),
                _ => None,
            }
        });
        idle.min_by_key(|(since, _)| *since).map(|(_, key)| key)
    }

    /// Whether a pool has fewer servers than are to be kept open, and somebody who may need them.
    pub fn wants_upkeep(&self, key: PoolKey) -> bool {
        self.pools.get(key).is_some_and(|pool| {
            let there = pool.servers.connected() + pool.servers.count(ServerStanding::Login);
            let is_needed = pool.members > 0 || pool.is_of_forced_user();
            there < pool.min_size && pool.size.is_none_or(|size| there < size) && is_needed
        })
    }

    /// An idle server too many, if the pool has become smaller.
    pub fn excess_server(&self, key: PoolKey) -> Option<ServerKey> {
        let pool = self.pools.get(key).filter(|pool| pool.is_oversized())?;
        let free = [ServerStanding::Used, ServerStanding::Idle];
        free.into_iter().find_map(|standing| pool.servers.of(standing).first())
    }

    /// Whether nobody needs a pool now.
    pub fn is_unused(&self, key: PoolKey) -> bool {
        self.pools.get(key).is_some_and(|pool| {
            let nobody_waits = pool.waiting_cancels() == 0 && !pool.has_waiting();
            pool.members == 0 && pool.servers.total() == 0 && nobody_waits
        })
    }
}

impl Pool {
    /// Whether its servers log in as the user that its database's entry forces.
    pub fn is_of_forced_user(&self) -> bool {
        self.database.user.as_ref() == Some(&self.user)
    }

    /// Whether nobody waits for a server, or all who do will get one that is being reset or tried
    /// out. (Who waits for the welcome is not helped by those.)
    pub fn is_cared_for(&self) -> bool {
        let waiting = self.waiting.len() - self.replicators_waiting + self.askers.len();
        let coming = self.servers.count(ServerStanding::Tested);
        waiting == 0 || (waiting <= coming && self.welcome.is_some())
    }

    /// Whether an idle server has been free for so long that nobody knows whether it is still
    /// there. The janitor comes at the end of the turn, which is too late when we have slept for
    /// long ourselves.
    pub fn has_rested(&self, server: &Server, now: Instant) -> bool {
        match (&server.state, self.check_after) {
            (State::Idle { since }, Some(delay)) if !delay.is_zero() => {
                now.saturating_duration_since((*since).max(server.spoke_at)) >= delay
            }
            _ => false,
        }
    }

    /// Whether a server that is older than it may be ends now: the ends of those of one age are
    /// spread over the time that they may live.
    pub fn may_retire(&self, server: &Server, was_used: bool, now: Instant) -> bool {
        let is_old = server.has_aged || (was_used && self.lifetime.is_zero());
        is_old && self.next_retirement().is_none_or(|at| at <= now)
    }

    /// Before then no server ends for its age.
    pub fn next_retirement(&self) -> Option<Instant> {
        let size = self.size.and_then(|size| u32::try_from(size).ok())?;
        self.retired_at?.checked_add(self.lifetime / size)
    }

    /// Whether it has more servers than it may, its reserve included.
    pub fn is_oversized(&self) -> bool {
        let most = self.size.map(|size| size.saturating_add(self.reserve));
        most.is_some_and(|most| self.servers.connected() > most)
    }

    /// For how long one of its clients may go on asking one thing after the other.
    pub fn turn(&self, settings: &Settings) -> Turn {
        let depth = u32::try_from(settings.max_pipeline_depth).unwrap_or(0);
        if depth == 0 || self.members <= 1 || self.mode == PoolMode::Session {
            return Turn::Unlimited;
        }
        if self.has_waiting() {
            return Turn::Shared(depth);
        }
        let is_full = self.size.is_some_and(|size| self.servers.total() >= size);
        match is_full && self.servers.of(ServerStanding::Idle).is_empty() {
            true => Turn::Window(depth),
            false => Turn::Unlimited,
        }
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
    pub fn note_failure(&mut self, reason: &str, is_of_host: bool) {
        self.attempts.failure = Some(cut(reason, MAX_CACHED_BYTES).to_string());
        self.attempts.failures = self.attempts.failures.saturating_add(1);
        self.attempts.is_of_host = is_of_host;
    }

    /// Its hosts with their port, in the order of the list.
    pub fn host_names(&self, socket_directory: &str) -> Vec<String> {
        let named = |host: &str| format!("{host}:{}", self.database.port);
        let names: Vec<String> = self.database.hosts().map(named).collect();
        if names.is_empty() { vec![named(socket_directory)] } else { names }
    }

    /// Which host of the list is next.
    pub fn first_host(&self) -> usize {
        use crate::config::values::LoadBalanceHosts::{Disable, RoundRobin};
        let failed = self.attempts.failure.is_some();
        match self.database.load_balance_hosts {
            RoundRobin => self.attempts.host,
            Disable => self.attempts.host + usize::from(failed),
        }
    }

    /// Chooses the host for the next attempt, so many further than it would be: its place in the
    /// list, and where it is.
    pub fn next_host(&mut self, socket_directory: &str, skipped: usize) -> (usize, Whereabouts) {
        let hosts: Vec<&str> = self.database.hosts().collect();
        if hosts.is_empty() {
            return match socket_directory {
                "" => (0, Whereabouts::Nowhere),
                directory => (0, self.unix(directory)),
            };
        }
        use crate::config::values::LoadBalanceHosts::{Disable, RoundRobin};
        let index = self.first_host() + skipped;
        let place = index % hosts.len();
        let host = hosts[place].to_string();
        self.attempts.host = match self.database.load_balance_hosts {
            RoundRobin => (index + 1) % hosts.len(),
            Disable => index % hosts.len(),
        };
        if host.starts_with(['/', '@']) {
            return (place, self.unix(&host));
        }
        match host.parse::<IpAddr>() {
            Ok(address) => (place, Whereabouts::At(self.tcp(address))),
            Err(_) => (place, Whereabouts::Named(host)),
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
