//! Whose time is up.
//!
//! [`House::next_due`] looks at those whom [`watch`](super::watch) names, one after the other: each
//! is over the limit and ends, or is looked at again when it would be. Work done in time touches
//! nothing of this.

use crate::config::Config;
use crate::config::settings::Settings;
use crate::config::values::PoolMode;
use crate::keys::{ClientKey, Conn, PoolKey, ServerKey};
use crate::pool::limits::{self, shorter};
use crate::pool::queues::ServerStanding;
use crate::pool::{House, Pool};
use crate::session::client::{self, Client};
use crate::session::farewell::Reason;
use crate::session::server::{Activity, Server, State};
use std::time::{Duration, Instant};

/// Somebody who has taken too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// A client ends.
    Client(ClientKey, Reason),
    /// A server ends.
    Server(ServerKey, Reason),
    /// A server has been free for so long that it is to be tried out before it serves again.
    Unused(ServerKey),
    /// A server is being brought back, and its query takes long.
    Query(ServerKey),
}

/// What becomes of a server whose time is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It ends.
    End(Reason),
    /// It is tried out before it serves again.
    TryOut,
    /// It is being brought back, and its query is cancelled if it still runs.
    CancelQuery,
}

/// How often we look whether an outdated server is free at last; and how long one that has become
/// dirty may still tell us that it has gone.
const PACE: Duration = Duration::from_millis(333);

/// What may take so long from when on, and what it is called if it takes longer. A limit of zero is
/// none, and so is one beyond the end of time.
struct Limit(Instant, Duration, Reason);

impl Limit {
    fn end(self) -> Option<(Instant, Reason)> {
        let Self(since, limit, reason) = self;
        Some((since.checked_add(limit).filter(|_| !limit.is_zero())?, reason))
    }
}

/// The limit that is reached first; of two at the same time, the one that is named first.
fn first<const N: usize>(limits: [Option<Limit>; N]) -> Option<(Instant, Reason)> {
    let ends = limits.into_iter().flatten().filter_map(Limit::end);
    ends.min_by_key(|(at, _)| *at)
}

/// When something that may begin at any time from now on would be over its limit.
fn earliest(limit: Duration, now: Instant) -> Option<Instant> {
    now.checked_add(limit).filter(|_| !limit.is_zero())
}

impl House {
    /// The next one whose time is up.
    pub fn next_due(&mut self, config: &Config, now: Instant) -> Option<Due> {
        while let Some(conn) = self.next_watched(now) {
            let due = match conn {
                Conn::Client(key) => {
                    let end = self.clients.get(key).and_then(|c| self.client_end(c, config));
                    end.filter(|(at, _)| *at <= now).map(|(_, reason)| Due::Client(key, reason))
                }
                Conn::Server(key) => self.server_due(key, config, now),
            };
            if due.is_some() {
                return due;
            }
            self.watch_again(conn, config, now);
        }
        None
    }

    fn server_due(&self, key: ServerKey, config: &Config, now: Instant) -> Option<Due> {
        let server = self.servers.get(key)?;
        if config.settings.server_fast_close.is_on() && self.is_outdated(server) {
            return Some(Due::Server(key, Reason::DATABASE_CHANGED));
        }
        let (_, fate) = self.server_end(server, config).filter(|(at, _)| *at <= now)?;
        Some(match fate {
            Fate::End(reason) => Due::Server(key, reason),
            Fate::TryOut => Due::Unused(key),
            Fate::CancelQuery => Due::Query(key),
        })
    }

    /// Whether a server is to be closed and has nothing to do, although its client is still there,
    /// as in session pooling.
    fn is_outdated(&self, server: &Server) -> bool {
        let client = server.client().and_then(|client| self.clients.get(client));
        client.is_some_and(|client| {
            let says_nothing = client.inbox.unjudged() == 0 && !client.inbox.is_mid_message();
            server.close_needed && server.is_done() && says_nothing
        })
    }

    /// Has a connection looked at when the first limit would be reached that it is under now or may
    /// be soon.
    pub fn watch_again(&mut self, conn: Conn, config: &Config, now: Instant) {
        let next = match conn {
            Conn::Client(key) => self.clients.get(key).and_then(|client| {
                let end = self.client_end(client, config).map(|(at, _)| at);
                [end, client_prospect(client, config, now)].into_iter().flatten().min()
            }),
            Conn::Server(key) => {
                self.note_age(key, now);
                self.servers.get(key).and_then(|server| {
                    let end = self.server_end(server, config).map(|(at, _)| at);
                    [end, self.server_prospect(server, config, now)].into_iter().flatten().min()
                })
            }
        };
        if let Some(at) = next {
            self.watch(conn, at);
        }
    }

    /// Limits have changed.
    pub fn watch_all(&mut self, config: &Config, now: Instant) {
        for key in self.clients.keys() {
            self.set_patience(key, config);
            self.watch_again(Conn::Client(key), config, now);
        }
        for key in self.servers.keys() {
            self.watch_again(Conn::Server(key), config, now);
        }
    }

    /// A server has come to a pool. If that is one more than are to be kept, those that have nothing
    /// to do, for they may have been unused for too long already.
    pub fn kept_no_more(&self, key: PoolKey) -> Vec<ServerKey> {
        let is_one_more =
            |pool: &&Pool| pool.min_size > 0 && pool.servers.connected() == pool.min_size + 1;
        let Some(pool) = self.pools.get(key).filter(is_one_more) else {
            return Vec::new();
        };
        let resting = [ServerStanding::Idle, ServerStanding::Used];
        resting.map(|standing| pool.servers.of(standing).keys(&self.servers)).concat()
    }

    /// A client has said who it is: how long it may wait for a server is looked up once, not
    /// whenever it has to.
    pub fn set_patience(&mut self, key: ClientKey, config: &Config) {
        let House { clients, pools, .. } = self;
        let Some(client) = clients.get_mut(key) else {
            return;
        };
        if let Some(pool) = client.pool.and_then(|pool| pools.get(pool)) {
            let wait = limits::wait_limit(client.user.as_deref().unwrap_or(""), pool, config);
            client.patience = shorter(wait, config.settings.query_timeout);
        }
    }

    /// A client begins to wait for a server.
    pub fn watch_wait(&mut self, key: ClientKey, now: Instant) {
        let began = self.clients.get(key).map(|c| (c.query_since.unwrap_or(now), c.patience));
        if let Some((since, patience)) = began
            && let Some(at) = since.checked_add(patience).filter(|_| !patience.is_zero())
        {
            self.watch(Conn::Client(key), at);
        }
    }

    /// When a client's time is up if nothing happens before, and what it is told then.
    pub fn client_end(&self, client: &Client, config: &Config) -> Option<(Instant, Reason)> {
        let settings = &config.settings;
        let login = |reason| Limit(client.connected_at, settings.client_login_timeout, reason);
        let user = client.user.as_deref().unwrap_or("");
        match client.state {
            client::State::LoggingIn | client::State::Proving(_) => {
                login(Reason::CLIENT_LOGIN_TIMEOUT).end()
            }
            client::State::AwaitingAccount { pool, ref server, since } => {
                let pool = self.pools.get(pool);
                // The authentication database has never been there.
                let login = match pool.is_some_and(|pool| pool.welcome.is_none()) {
                    true => login(Reason::CLIENT_LOGIN_TIMEOUT_SERVER_DOWN),
                    false => login(Reason::CLIENT_LOGIN_TIMEOUT),
                };
                // Who is being asked about is under no other limit (D10).
                let pool = pool.filter(|_| server.is_none());
                let wait = pool.map(|pool| pool.wait_limit(settings));
                let query = settings.query_timeout;
                first([
                    wait.map(|_| Limit(since, query, Reason::QUERY_TIMEOUT)),
                    wait.map(|limit| Limit(since, limit, Reason::QUERY_WAIT_TIMEOUT)),
                    Some(login),
                ])
            }
            client::State::AwaitingWelcome { since } | client::State::Waiting { since, .. } => {
                let pool = self.pools.get(client.pool?)?;
                let is_logging_in = matches!(client.state, client::State::AwaitingWelcome { .. });
                let since = client.query_since.unwrap_or(since);
                let wait = limits::wait_limit(user, pool, config);
                first([
                    Some(Limit(since, settings.query_timeout, Reason::QUERY_TIMEOUT)),
                    Some(Limit(since, wait, Reason::QUERY_WAIT_TIMEOUT)),
                    is_logging_in.then(|| login(Reason::CLIENT_LOGIN_TIMEOUT_SERVER_DOWN)),
                ])
            }
            client::State::Idle => {
                let since = client.spoke_at.max(client.served_at);
                let limit = limits::idle_limit(user, config);
                Limit(since, limit, Reason::CLIENT_IDLE_TIMEOUT).end()
            }
            client::State::AwaitingCancel { since, .. } => {
                Limit(since, settings.cancel_wait_timeout, Reason::CANCEL_WAIT_TIMEOUT).end()
            }
            client::State::AwaitingPeer(ref forward) => {
                let limit = settings.cancel_wait_timeout;
                Limit(forward.since, limit, Reason::CANCEL_WAIT_TIMEOUT).end()
            }
            client::State::Active { .. }
            | client::State::Cancelling { .. }
            | client::State::Console { .. }
            | client::State::Closing => None,
        }
    }

    fn note_age(&mut self, key: ServerKey, now: Instant) {
        let House { servers, pools, .. } = self;
        if let Some(server) = servers.get_mut(key)
            && let Some(pool) = pools.get(server.pool)
        {
            let end = server.connected_at.checked_add(pool.lifetime);
            server.has_aged = !pool.lifetime.is_zero() && end.is_some_and(|end| end <= now);
        }
    }

    /// When a server's time is up if nothing happens before, and what becomes of it then.
    pub fn server_end(&self, server: &Server, config: &Config) -> Option<(Instant, Fate)> {
        if server.state.peer().is_some() {
            let end = forward_end(server, &config.settings);
            return end.map(|(at, reason)| (at, Fate::End(reason)));
        }
        let pool = self.pools.get(server.pool)?;
        let settings = &config.settings;
        let is_dirty = server.activity != Activity::Ready;
        let end = match server.state {
            State::Connecting(_)
            | State::AskingForTls(_)
            | State::StartingTls(_)
            | State::LoggingIn(_)
            | State::CarryingCancel { .. } => {
                let limit = settings.server_connect_timeout;
                Limit(server.connected_at, limit, server.timeout_reason()).end()
            }
            State::Active { client } => pool.work_end(server, self.clients.get(client)?),
            State::Idle { since } if is_dirty => {
                Limit(since, PACE, Reason::SV_IDLE_GOT_DIRTY).end()
            }
            State::Rescuing(ref rescue) => {
                let end = Limit(rescue.since, rescue.limit, Reason::RESCUE_TIMEOUT).end();
                let query = rescue.cancel_at();
                if let Some(query) = query.filter(|at| end.as_ref().is_none_or(|end| *at < end.0)) {
                    return Some((query, Fate::CancelQuery));
                }
                end
            }
            State::Used { since } if is_dirty => {
                Limit(since, PACE, Reason::SV_USED_GOT_DIRTY).end()
            }
            State::Idle { since } => {
                let since = since.max(server.spoke_at);
                let end = pool.rest_end(server, since, settings);
                let check = settings.check_after().and_then(|delay| since.checked_add(delay));
                if let Some(check) = check.filter(|at| end.as_ref().is_none_or(|end| *at < end.0)) {
                    return Some((check, Fate::TryOut));
                }
                end
            }
            State::Used { since } => pool.rest_end(server, since, settings),
            State::Resetting { since } => {
                pool.test_end(server, since, Reason::RESET_FAILED, settings)
            }
            State::Checking { since } => {
                pool.test_end(server, since, Reason::TEST_QUERY_FAILED, settings)
            }
            State::Asking { .. }
            | State::Unlinked { .. }
            | State::HeldForCancel
            | State::Forwarding { .. }
            | State::Leaving(_)
            | State::Closing => None,
        };
        end.map(|(at, reason)| (at, Fate::End(reason)))
    }

    /// When a server could be over a limit that it is not under yet.
    fn server_prospect(&self, server: &Server, config: &Config, now: Instant) -> Option<Instant> {
        let pool = self.pools.get(server.pool)?;
        let settings = &config.settings;
        let rest =
            shorter(settings.server_idle_timeout, settings.check_after().unwrap_or_default());
        let rest = earliest(rest, now);
        let age = server.connected_at.checked_add(pool.lifetime);
        let age = age.filter(|_| !pool.lifetime.is_zero() && !server.has_aged);
        let prospects = match server.state {
            State::Active { .. } => {
                let work = pool.limits.shortest().and_then(|limit| earliest(limit, now));
                let may_end_early = server.close_needed && settings.server_fast_close.is_on();
                let is_session = pool.mode == PoolMode::Session;
                [work, age, rest, (may_end_early && is_session).then(|| now + PACE)]
            }
            State::Asking { .. }
            | State::Unlinked { .. }
            | State::Resetting { .. }
            | State::Checking { .. }
            | State::HeldForCancel => [None, age, rest, None],
            // It may be at work when there are more than are to be kept.
            State::Idle { .. } | State::Used { .. } if pool.keeps_all() => {
                [None, None, earliest(settings.server_idle_timeout, now), None]
            }
            _ => [None; 4],
        };
        prospects.into_iter().flatten().min()
    }
}

impl Pool {
    /// Whether none of its servers ends for being unused: there are no more than are to be kept.
    pub fn keeps_all(&self) -> bool {
        self.min_size > 0 && self.servers.connected() <= self.min_size
    }

    /// When a server will have worked for its client for too long.
    fn work_end(&self, server: &Server, client: &Client) -> Option<(Instant, Reason)> {
        let limits = self.limits;
        // A server may have said its last word to one of several queries, or wait for the rest of
        // one: it is the client's clocks that tell.
        let idle = (server.activity == Activity::InTransaction).then_some(server.spoke_at);
        let (query, transaction) = (client.query_since, client.transaction_since);
        first([
            query.map(|since| Limit(since, limits.query, Reason::QUERY_TIMED_OUT)),
            idle.map(|since| {
                Limit(since, limits.idle_transaction, Reason::IDLE_TRANSACTION_TIMEOUT)
            }),
            transaction.map(|since| Limit(since, limits.transaction, Reason::TRANSACTION_TIMEOUT)),
        ])
    }

    /// When a query of our own will have taken too long: as long as a new connection may take, which
    /// is what else could be done. (PgBouncer waits for `server_idle_timeout`, if there is one, while
    /// a server that does not answer takes a place that clients wait for.)
    fn test_end(
        &self,
        server: &Server,
        since: Instant,
        reason: Reason,
        settings: &Settings,
    ) -> Option<(Instant, Reason)> {
        let unanswered = Limit(since, settings.server_connect_timeout, reason).end();
        earlier(unanswered, self.rest_end(server, since, settings))
    }

    /// When a server that works for nobody will have been unused for too long, or be too old.
    fn rest_end(
        &self,
        server: &Server,
        since: Instant,
        settings: &Settings,
    ) -> Option<(Instant, Reason)> {
        let limit = if self.keeps_all() { Duration::ZERO } else { settings.server_idle_timeout };
        let idle = Limit(since, limit, Reason::SERVER_IDLE_TIMEOUT).end();
        let age = Limit(server.connected_at, self.lifetime, Reason::SERVER_LIFETIME_OVER).end();
        // Those of one age do not end all at once.
        let age =
            age.map(|(at, why)| (self.next_retirement().map_or(at, |next| next.max(at)), why));
        earlier(idle, age)
    }
}

/// When a connection to another pooler will have taken too long.
fn forward_end(server: &Server, settings: &Settings) -> Option<(Instant, Reason)> {
    let (connect, wait) = (settings.server_connect_timeout, settings.cancel_wait_timeout);
    match server.state {
        // There the request may have to wait, and then for a connection to PostgreSQL.
        State::Forwarding { since, .. } if !connect.is_zero() && !wait.is_zero() => {
            Limit(since, connect.saturating_add(wait), Reason::CANCEL_WAIT_TIMEOUT).end()
        }
        State::Forwarding { .. } => None,
        _ => first([
            Some(Limit(server.connected_at, connect, server.timeout_reason())),
            Some(Limit(server.connected_at, wait, Reason::CANCEL_WAIT_TIMEOUT)),
        ]),
    }
}

/// Of two ends the one that comes first.
fn earlier(
    one: Option<(Instant, Reason)>,
    other: Option<(Instant, Reason)>,
) -> Option<(Instant, Reason)> {
    [one, other].into_iter().flatten().min_by_key(|(at, _)| *at)
}

/// The same of a client that is not idle.
fn client_prospect(client: &Client, config: &Config, now: Instant) -> Option<Instant> {
    let may_idle = matches!(
        client.state,
        client::State::Active { .. }
            | client::State::Waiting { .. }
            | client::State::AwaitingWelcome { .. }
    );
    let user = client.user.as_deref().filter(|_| may_idle)?;
    earliest(limits::idle_limit(user, config), now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::pool::queues::End;
    use crate::pool::stats::Periods;
    use crate::session::params::Tracked;
    use crate::session::server::Purpose;
    use std::sync::Arc;

    const SECOND: Duration = Duration::from_secs(1);

    /// So many pools with an idle server each.
    fn crowd(pools: usize, config: &Config, now: Instant) -> House {
        let tracked = Tracked::new(config.settings.track_extra_parameters.items());
        let mut house = House::new(1024, tracked, Periods::new(60, now));
        for number in 0..pools {
            let database = Arc::new(Database::new(&format!("db{number}")));
            let pool = house.pool_as(&database, "alice", config);
            let unset = house.tracked.unset();
            let key = house.admit_server(Server::new(Purpose::Serve, pool, unset, now));
            house.watch_again(Conn::Server(key), config, now);
            house.servers.get_mut(key).unwrap().activity = Activity::Ready;
            house.set_server_state(key, State::Idle { since: now }, End::Back);
        }
        house
    }

    /// A tick looks at those who are due and at nobody else, however many there are.
    #[test]
    fn ten_thousand_idle_pools_cost_nothing() {
        let config = Config::parse_text(
            "test.ini",
            "[pgbouncer]\nserver_idle_timeout = 0\nserver_check_query =\n\
             server_lifetime = 1000000\nquery_timeout = 1\ntransaction_timeout = 1\n\
             idle_transaction_timeout = 1\nquery_wait_timeout = 1\nclient_idle_timeout = 1\n",
        )
        .unwrap();
        let begin = Instant::now();
        let mut house = crowd(10_000, &config, begin);
        // The logins were in time: that is seen once.
        assert_eq!(house.next_due(&config, begin + SECOND * 60), None);
        assert_eq!(house.watches.looks, 10_000);
        let one = house.servers.keys()[0];
        for tick in 0..10_000 {
            let now = begin + SECOND * 60 + SECOND * tick / 3;
            if tick % 1000 == 0 {
                house.watch(Conn::Server(one), now);
            }
            assert_eq!(house.next_due(&config, now), None);
        }
        assert_eq!(house.watches.looks, 10_010, "the one that was due, ten times");
    }
}
