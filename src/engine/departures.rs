//! Servers whose connections we have ended, and that may still be there.
//!
//! A backend of PostgreSQL lives a little longer than our word to it, and much longer when it has a
//! query to finish first, or when PostgreSQL stands still. Where there is a limit, its place is
//! taken until it has gone: a limit that we keep is to be kept in PostgreSQL's eyes, too.
//!
//! ```text
//!         goes
//! Told ───────────────────────────────────────────────────────▶ the place is free
//!   ├── nothing for a second ──▶ Overdue: is PostgreSQL alive?  ◀──┐
//!   │                               ├── no answer ─────────────────┘
//!   │                               ├── nobody listens ─────────▶ the place is free
//!   │                               └── yes ──▶ Last ── goes ───▶ the same
//!   └── goes on with an answer                   │ not in a second
//!             └──▶ Busy ◀────────────────────────┘
//!                   └── goes, or somebody has need of its place ▶ the same
//! ```
//!
//! As long as PostgreSQL stands still nobody could be served, so the place is held for as long as
//! that; and when it goes on, whoever has to leave has a second for it. If it lives, and the backend
//! is still there, that one is busy with a query: its place is held as long as nobody has waited for
//! it for a second. Then a client that asks for nothing but its turn comes first, and until the
//! query ends there is a backend more than the limit says.
//!
//! That could be helped by cancelling the query only. We must not do so unasked: PostgreSQL finishes
//! what a client has asked for before it went, and commits it; applications that send an UPDATE and
//! leave rely on that, and as with PgBouncer a `query_timeout` ends a connection and not a query.
//! Whoever wants limits kept at that price sets `server_rescue_timeout`: then the query is cancelled,
//! and the server is never one too many (see `rescue`).

use crate::engine::Engine;
use crate::engine::io::{Effect, ServerAddress};
use crate::keys::{Conn, PoolKey, ServerKey};
use crate::pool::queues::{End, ServerStanding};
use crate::pool::{House, Pool};
use crate::session::farewell::Reason;
use crate::session::server::{Leave, Purpose, Server, State};
use crate::wire::emit::{self, Full};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Who has nothing else to do is gone by then.
const PATIENCE: Duration = Duration::from_secs(1);

impl Engine {
    /// A server whose connection ends keeps its place. Who could not be told goodbye gets the end
    /// of the line.
    pub(super) fn let_leave(&mut self, key: ServerKey, is_told: bool, now: Instant) {
        let House { servers, rings, .. } = &mut self.house;
        if let Some(server) = servers.get_mut(key) {
            server.inbox.clear(rings);
        }
        if !is_told {
            self.effects.push_back(Effect::HangUp { server: key });
        }
        self.wait_for_leaving(key, Leave::Told { since: now }, now);
        self.make_runnable(Conn::Server(key));
    }

    fn wait_for_leaving(&mut self, key: ServerKey, leave: Leave, now: Instant) {
        self.house.set_server_state(key, State::Leaving(leave), End::Back);
        self.leaving.push_back((now + PATIENCE, key));
    }

    /// Whether a connection that we end may leave a backend behind that a limit counts.
    pub(super) fn may_stay_behind(&self, key: ServerKey, reason: &Reason) -> bool {
        let Some(server) = self.house.servers.get(key) else {
            return false;
        };
        let is_gone = [Reason::SERVER_CRASHED, Reason::SERVER_CONNECTION_CLOSED].contains(reason);
        // With its pool its place has gone.
        if is_gone || *reason == Reason::DATABASE_REMOVED || self.house.mode.is_shutting_down() {
            return false;
        }
        match server.state {
            State::Idle { .. }
            | State::Used { .. }
            | State::Active { .. }
            | State::Asking { .. }
            | State::Unlinked { .. }
            | State::Rescuing(_)
            | State::Resetting { .. }
            | State::Checking { .. }
            | State::HeldForCancel => true,
            // Who has read our Startup may yet let us in. (Who has refused us does not.)
            State::LoggingIn(_) => {
                *reason == Reason::CONNECT_TIMEOUT || super::endings::OURS.contains(reason)
            }
            State::Connecting(_)
            | State::AskingForTls(_)
            | State::StartingTls(_)
            | State::CarryingCancel { .. }
            | State::Forwarding { .. }
            | State::Leaving(_)
            | State::Closing => false,
        }
    }

    /// The last word of a server that was leaving: its place is free. `false`: it was not leaving.
    pub(super) fn has_left(&mut self, key: ServerKey, now: Instant) -> bool {
        let server = self.house.servers.get(key);
        let server = server.filter(|server| matches!(server.state, State::Leaving(_)));
        let Some(pool) = server.map(|server| server.pool) else {
            return false;
        };
        self.house.set_server_state(key, State::Closing, End::Back);
        self.effects.push_back(Effect::Close { conn: Conn::Server(key) });
        self.place_is_free(pool, now);
        self.staff(pool, now);
        self.tend(pool, now);
        true
    }

    /// Servers that have been told to leave are not waited for any more: nobody gets their places.
    pub(super) fn forget_leaving(&mut self, now: Instant) {
        for (_, key) in std::mem::take(&mut self.leaving) {
            self.has_left(key, now);
        }
        let is_leaving = |server: &Server| matches!(server.state, State::Leaving(_));
        let servers = self.house.servers.iter().filter(|(_, server)| is_leaving(server));
        let overdue: Vec<ServerKey> = servers.map(|(key, _)| key).collect();
        for key in overdue {
            self.has_left(key, now);
        }
    }

    /// We have been patient for a while with servers that do not leave.
    pub(super) fn see_off(&mut self, now: Instant) {
        while let Some((_, key)) = self.leaving.pop_front_if(|(at, _)| *at <= now) {
            let Some(server) = self.house.servers.get(key) else {
                continue;
            };
            let pool = server.pool;
            match server.state {
                State::Leaving(Leave::Told { since }) => {
                    // What lay on the line already came at once.
                    let is_at_work = server.spoke_at > since + PATIENCE / 2;
                    if is_at_work || !self.house.is_met_again(server) {
                        self.hold_if_unneeded(key, pool, now);
                        continue;
                    }
                    let overdue = State::Leaving(Leave::Overdue);
                    self.house.set_server_state(key, overdue, End::Back);
                    self.ask_whether_alive(key, pool, now);
                    self.is_not_expected(pool, now);
                }
                State::Leaving(Leave::Overdue) => self.ask_whether_alive(key, pool, now),
                State::Leaving(Leave::Last | Leave::Busy) => self.hold_if_unneeded(key, pool, now),
                _ => {}
            }
        }
    }

    /// Nobody counts on a place to become free soon: another server may have to make room.
    fn is_not_expected(&mut self, pool: PoolKey, now: Instant) {
        self.place_is_free(pool, now);
        self.staff(pool, now);
    }

    /// A server that is busy keeps its place unless somebody needs that.
    fn hold_if_unneeded(&mut self, key: ServerKey, pool: PoolKey, now: Instant) {
        if self.house.needs_place_of(pool, now) {
            self.has_left(key, now);
            return;
        }
        let was_expected = self.house.servers.get(key).is_some_and(Server::leaves_soon);
        self.wait_for_leaving(key, Leave::Busy, now);
        if was_expected {
            self.is_not_expected(pool, now);
        }
    }

    /// Opens a connection that shows whether PostgreSQL stands still, if none is under way.
    fn ask_whether_alive(&mut self, overdue: ServerKey, pool: PoolKey, now: Instant) {
        let House { servers, pools, .. } = &self.house;
        let carriers = pools.get(pool).map(|pool| pool.servers.of(ServerStanding::Carrier));
        let carriers = carriers.map(|queue| queue.keys(servers)).unwrap_or_default();
        let asks = |key: ServerKey| servers.get(key).is_some_and(Server::is_probe);
        if !carriers.into_iter().any(asks) {
            let name = self.house.server_name(overdue).to_string();
            log::info!("{name} has not ended when told to: does its PostgreSQL stand still?");
            let probe = self.open(pool, Purpose::Probe { overdue }, now);
            self.dial(probe, now);
        }
    }

    /// There is a connection to ask that with: PostgreSQL answers an SSLRequest before it looks at
    /// anything else, and counts nobody for it.
    pub(super) fn probe(&mut self, key: ServerKey, purpose: Purpose, now: Instant) {
        let House { servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        let asked = server.egress.push_own(rings, emit::ssl_request);
        self.house.set_server_state(key, State::AskingForTls(purpose), End::Back);
        match asked {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(Full) => self.close_server(key, Reason::STARTUP_FAILED, now),
        }
    }

    /// What a probe has shown, by the way in which it ended.
    pub(super) fn probe_ended(
        &mut self,
        pool: PoolKey,
        was_connected: bool,
        reason: &Reason,
        now: Instant,
    ) {
        let House { servers, pools, .. } = &self.house;
        let leaving = pools.get(pool).map(|pool| pool.servers.of(ServerStanding::Leaving));
        let mut overdue = leaving.map(|queue| queue.keys(servers)).unwrap_or_default();
        overdue.retain(|key| {
            let state = servers.get(*key).map(|server| &server.state);
            matches!(state, Some(State::Leaving(Leave::Overdue)))
        });
        // An end of the line is as good an answer as any.
        let is_alive = [Reason::PROBE_ANSWERED, Reason::SERVER_CRASHED].contains(reason);
        for key in overdue {
            match was_connected {
                true if is_alive => self.wait_for_leaving(key, Leave::Last, now),
                false if *reason == Reason::CONNECT_FAILED => _ = self.has_left(key, now),
                _ => self.wait_for_leaving(key, Leave::Overdue, now),
            }
        }
    }
}

impl House {
    /// Whether the next connection of this server's pool would meet the same PostgreSQL. Where
    /// there are several, the place of one that stands still is needed for another.
    fn is_met_again(&self, server: &Server) -> bool {
        let (Some(pool), Some(address)) = (self.pools.get(server.pool), &server.address) else {
            return false;
        };
        let mut hosts = pool.database.hosts();
        let (only, None) = (hosts.next(), hosts.next()) else {
            return false;
        };
        match (address, only) {
            (ServerAddress::Unix(_), host) => host.is_none_or(|host| host.starts_with(['/', '@'])),
            (ServerAddress::Tcp(at), Some(host)) => {
                let addresses = match host.parse::<IpAddr>() {
                    Ok(address) => &[address][..],
                    Err(_) => self.names.addresses(host),
                };
                addresses == [at.ip()] && at.port() == pool.database.port
            }
            (ServerAddress::Tcp(_), None) => false,
        }
    }

    /// Whether a client has waited for so long that it would get a place that a server of this pool
    /// holds, and could have it at once: in this pool, or in one that shares a limit with it.
    fn needs_place_of(&self, key: PoolKey, now: Instant) -> bool {
        let groups = self.pools.get(key).map(|pool| pool.groups).into_iter().flatten();
        let blocked = groups.filter_map(|group| self.groups.longest_blocked(group, key));
        let has_need = |key: PoolKey| {
            // One server is opened at a time.
            let pool = self.pools.get(key);
            let pool = pool.filter(|pool| pool.servers.count(ServerStanding::Login) == 0)?;
            let (client, since) = self.first_waiting(pool)?;
            let patience = self.clients.get(client)?.patience;
            let limit = if patience.is_zero() { PATIENCE } else { PATIENCE.min(patience / 2) };
            (now.saturating_duration_since(since) >= limit).then_some(())
        };
        blocked.chain([key]).any(|key| has_need(key).is_some())
    }

    /// Whether a place of this pool becomes free soon: somebody is leaving it, as far as we know.
    pub fn expects_place(&self, pool: &Pool) -> bool {
        let leaving = pool.servers.of(ServerStanding::Leaving).keys(&self.servers);
        leaving.into_iter().any(|key| self.servers.get(key).is_some_and(Server::leaves_soon))
    }
}
