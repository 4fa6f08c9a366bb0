//! Whose time is up.
//!
//! There is no timer per connection. Each kind of deadline has one duration, so whoever entered a
//! queue first is due first, and only the heads of the queues are looked at. That happens when the
//! nearest deadline known so far has come; work done in time never touches any of this.

use crate::config::settings::Settings;
use crate::keys::{ClientKey, ServerKey};
use crate::pool::queues::ServerStanding;
use crate::pool::{House, Pool};
use crate::session::client;
use crate::session::farewell::Reason;
use std::time::{Duration, Instant};

/// What is due.
#[derive(Debug, Default)]
pub struct Due {
    /// Clients whose time is up.
    pub clients: Vec<(ClientKey, Reason)>,
    /// Servers whose time is up.
    pub servers: Vec<(ServerKey, Reason)>,
    /// When to look again.
    pub next: Option<Instant>,
}

impl Due {
    /// Whether something that began at `since` and may take `limit` has taken too long; if not,
    /// when it will have. A limit of zero is none.
    fn is_over(&mut self, since: Instant, limit: Duration, now: Instant) -> bool {
        // A limit beyond the end of time is none either.
        let Some(at) = since.checked_add(limit).filter(|_| !limit.is_zero()) else {
            return false;
        };
        if at <= now {
            return true;
        }
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
        false
    }
}

impl House {
    /// Everybody whose time is up.
    pub fn due(&self, settings: &Settings, now: Instant) -> Due {
        let mut due = Due::default();
        let mut next = self.logging_in.first();
        while let Some((key, client)) = next.and_then(|key| Some((key, self.clients.get(key)?))) {
            if !due.is_over(client.connected_at, settings.client_login_timeout, now) {
                break;
            }
            // The authentication database has never been there.
            let is_down = match client.state {
                client::State::AwaitingAccount { pool, .. } => {
                    self.pools.get(pool).is_some_and(|pool| pool.welcome.is_none())
                }
                _ => false,
            };
            let reason = match is_down {
                true => Reason::CLIENT_LOGIN_TIMEOUT_SERVER_DOWN,
                false => Reason::CLIENT_LOGIN_TIMEOUT,
            };
            due.clients.push((key, reason));
            next = client.hook.next;
        }
        for (_, pool) in self.pools.iter() {
            self.due_waiting(pool, settings, now, &mut due);
            self.due_askers(pool, settings, now, &mut due);
            self.due_cancels(pool, settings, now, &mut due);
            self.due_logins(pool, settings, now, &mut due);
        }
        due
    }

    fn due_waiting(&self, pool: &Pool, settings: &Settings, now: Instant, due: &mut Due) {
        let wait_limit = pool.wait_limit(settings);
        let mut next = pool.waiting.first();
        while let Some((key, client)) = next.and_then(|key| Some((key, self.clients.get(key)?))) {
            next = client.hook.next;
            let (since, logging_in) = match client.state {
                client::State::Waiting { since } => (since, false),
                client::State::AwaitingWelcome { since } => (since, true),
                _ => continue,
            };
            let login_limit = settings.client_login_timeout;
            if logging_in && due.is_over(client.connected_at, login_limit, now) {
                due.clients.push((key, Reason::CLIENT_LOGIN_TIMEOUT_SERVER_DOWN));
            } else if due.is_over(since, wait_limit, now) {
                due.clients.push((key, Reason::QUERY_WAIT_TIMEOUT));
            } else if !logging_in && pool.welcome.is_some() {
                // Those behind came later, and all are logged in once the welcome is known.
                break;
            }
        }
    }

    fn due_askers(&self, pool: &Pool, settings: &Settings, now: Instant, due: &mut Due) {
        for key in &pool.askers {
            let state = self.clients.get(*key).map(|client| &client.state);
            let Some(client::State::AwaitingAccount { since, .. }) = state else {
                continue;
            };
            if !due.is_over(*since, pool.wait_limit(settings), now) {
                break;
            }
            due.clients.push((*key, Reason::QUERY_WAIT_TIMEOUT));
        }
    }

    fn due_cancels(&self, pool: &Pool, settings: &Settings, now: Instant, due: &mut Due) {
        for key in pool.cancels.keys(&self.clients) {
            let state = self.clients.get(key).map(|client| &client.state);
            if let Some(client::State::AwaitingCancel { since, .. }) = state
                && due.is_over(*since, settings.cancel_wait_timeout, now)
            {
                due.clients.push((key, Reason::CANCEL_WAIT_TIMEOUT));
            }
        }
    }

    fn due_logins(&self, pool: &Pool, settings: &Settings, now: Instant, due: &mut Due) {
        for standing in [ServerStanding::Login, ServerStanding::Carrier] {
            let keys = pool.servers.of(standing).keys(&self.servers);
            for server in keys.into_iter().filter_map(|key| Some((key, self.servers.get(key)?))) {
                let limit = settings.server_connect_timeout;
                if due.is_over(server.1.connected_at, limit, now) {
                    due.servers.push((server.0, server.1.timeout_reason()));
                }
            }
        }
    }
}
