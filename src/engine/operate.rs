//! What the operator does to the house.

use crate::auth::access::Access;
use crate::config::{Config, Database};
use crate::engine::Engine;
use crate::keys::{Conn, PoolKey, ServerKey};
use crate::pool::House;
use crate::pool::Learned;
use crate::pool::mode::{Awaited, Mode};
use crate::pool::queues::ServerStanding;
use crate::session::farewell::Reason;
use crate::session::server::State;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// How a SHUTDOWN is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Now, without a word to anybody.
    AtOnce,
    /// When the servers are free.
    Servers,
    /// When the clients have gone.
    Clients,
}

impl Engine {
    /// Has everybody who needs a server wait, until [`Engine::resume`].
    pub fn pause(&mut self, now: Instant) {
        self.house.mode = self.house.mode.paused();
        self.clear_out(now);
    }

    /// Ends a pause or a suspension. `false`: there is none, or we are shutting down.
    pub fn resume(&mut self, now: Instant) -> bool {
        if !matches!(self.house.mode, Mode::Paused | Mode::Suspended { .. }) {
            return false;
        }
        if self.house.mode.is_suspended() {
            self.wake_all();
        }
        self.house.mode = Mode::Running;
        for pool in self.house.pools.keys() {
            self.staff(pool, now);
            self.tend(pool, now);
        }
        // What is queued now is performed by the next turn, which must not be slept through.
        self.next_turn = Some(now);
        true
    }

    /// Works towards the end: see [`Engine::is_over`].
    pub fn shut_down(&mut self, awaited: Awaited, now: Instant) {
        if self.house.mode.is_suspended() {
            // Better than PgBouncer, which waits for ever then: who is to end must be able to.
            self.wake_all();
        }
        self.house.mode = self.house.mode.shutting_down(awaited);
        if awaited == Awaited::Servers {
            // A query that nobody waits for does not hold up the end.
            self.forget_leaving(now);
        }
        self.clear_out(now);
    }

    /// Whether a client that comes now can be served: we neither pause nor end, and there is a
    /// pool whose servers can be reached, unless nobody has needed one yet.
    pub fn is_ready(&self) -> bool {
        let House { mode, pools, .. } = &self.house;
        let mut pools = pools.iter().map(|(_, pool)| pool).peekable();
        *mode == Mode::Running
            && (pools.peek().is_none() || pools.any(|pool| pool.fails_fast().is_none()))
    }

    /// Whether whom we waited for has gone, and with them everything that was still to be done.
    pub fn is_over(&self) -> bool {
        let Mode::ShuttingDown { awaited, .. } = self.house.mode else {
            return false;
        };
        let House { clients, servers, .. } = &self.house;
        let all_gone = match awaited {
            Awaited::Clients => clients.is_empty(),
            // Who has not taken the end of its last reply yet is not left without it.
            Awaited::Servers => {
                servers.is_empty() && !clients.iter().any(|(_, client)| client.wants_write())
            }
        };
        all_gone && self.effects.is_empty()
    }

    /// Ends what the mode does not allow any more: servers that work for nobody, and those who
    /// would wait for one in vain.
    fn clear_out(&mut self, now: Instant) {
        let mode = self.house.mode;
        for key in self.house.pools.keys().into_iter().filter(|_| mode.is_paused()) {
            let Some(pool) = self.house.pools.get(key) else {
                continue;
            };
            let mut waiting = pool.waiting.keys(&self.house.clients);
            waiting.extend(&pool.askers);
            let servers = [ServerStanding::Idle, ServerStanding::Used, ServerStanding::Login]
                .map(|standing| pool.servers.of(standing).keys(&self.house.servers));
            for client in waiting.into_iter().filter(|_| mode.refuses_work()) {
                self.close_client(client, Reason::SERVER_SHUTTING_DOWN, now);
            }
            for server in servers.into_iter().flatten() {
                self.close_server(server, Reason::PAUSE_MODE, now);
            }
        }
        self.next_turn = Some(now);
    }

    /// Takes a configuration that has been read without an error. What cannot change at run time
    /// stays. Servers that would now be opened differently end: the free ones at once, the others
    /// when they are free.
    /// `None` for who may come in: that could not be read, and those of before stay.
    pub fn reload(&mut self, mut config: Config, access: Option<Access>, now: Instant) {
        for name in config.keep_boot_only(&self.config.settings) {
            log::debug!("{name} cannot change before the next start");
        }
        let old = std::mem::replace(&mut self.config, config);
        if let Some(access) = access {
            self.access = access;
        }
        // Passwords may have changed: what was made of the old ones is of no use.
        self.derived.clear();
        self.log_dropped(&old);
        for key in self.house.pools.keys() {
            self.reload_pool(key, &old, now);
        }
        self.reload_peers(now);
        self.forget_names(now);
        self.open_kept_pools(now);
        self.house.watch_all(&self.config, now);
        self.next_turn = Some(now);
    }

    /// The entry of this name as it is now, or one made from `*`.
    pub(super) fn entry(&self, name: &str) -> Option<Arc<Database>> {
        let listed = self.config.databases.get(name).cloned();
        listed.or_else(|| self.config.auto(name)?.ok().map(Arc::new))
    }

    /// Says which databases and peers there are no longer: each of them once, however many pools
    /// it has.
    fn log_dropped(&self, old: &Config) {
        let changes = old.changes(&self.config);
        let used = self.house.pools.iter().map(|(_, pool)| pool.database.name.as_str());
        let names: BTreeSet<&str> = changes.dropped.into_iter().chain(used).collect();
        for name in names.into_iter().filter(|name| self.entry(name).is_none()) {
            log::warn!(
                "dropping database '{name}' as it does not exist anymore or inactive auto-database"
            );
        }
        for id in changes.dropped_peers {
            log::warn!("dropping peer {id} as it does not exist anymore");
        }
    }

    fn reload_pool(&mut self, key: PoolKey, old: &Config, now: Instant) {
        let Some(name) = self.house.pools.get(key).map(|pool| pool.database.name.clone()) else {
            return;
        };
        let was_auto = !old.databases.contains_key(&name);
        let Some(entry) = self.entry(&name) else {
            self.close_pool(key, &Reason::DATABASE_REMOVED, now);
            self.house.remove_pool(key);
            return;
        };
        let Some(pool) = self.house.pools.get_mut(key) else {
            return;
        };
        let is_of_another = entry.user.as_ref().is_some_and(|user| *user != pool.user);
        pool.has_lost_user = is_of_another && (pool.has_lost_user || pool.is_of_forced_user());
        let auto_changed = was_auto && old.auto_database != self.config.auto_database;
        let moved = pool.database.servers_differ(&entry) || auto_changed;
        // The user is part of what makes a pool: clients of a pool whose entry has another forced
        // user now belong to another pool, which their next login finds. In this one they finish what
        // they have begun.
        pool.database = entry;
        pool.configure(&self.config);
        if self.access.userlist.contains(&pool.user) {
            // The operator's word is newer than what a client has brought.
            pool.learned = Learned::default();
        }
        let waiting =
            if pool.has_lost_user { pool.waiting.keys(&self.house.clients) } else { vec![] };
        if moved {
            pool.welcome = None;
            self.retire_servers(key, now);
        }
        for client in waiting {
            self.close_client(client, Reason::DATABASE_CHANGED, now);
        }
        self.staff(key, now);
        self.tend(key, now);
    }

    /// Ends the servers of a pool without hurting anybody.
    pub(super) fn retire_servers(&mut self, key: PoolKey, now: Instant) {
        for server in self.house.servers_of(key) {
            self.retire_server(server, now);
        }
    }

    /// Ends a server without hurting anybody.
    pub(super) fn retire_server(&mut self, key: ServerKey, now: Instant) {
        let Some(server) = self.house.servers.get_mut(key) else {
            return;
        };
        server.close_needed = true;
        match server.state {
            State::Connecting(_)
            | State::AskingForTls(_)
            | State::StartingTls(_)
            | State::LoggingIn(_) => {
                self.close_server(key, Reason::CONNECT_STRING_CHANGED, now);
            }
            State::Idle { .. } | State::Used { .. } => {
                self.close_server(key, Reason::DATABASE_CHANGED, now);
            }
            // Its client may never leave.
            State::Active { .. } if server.replicates_for.is_some() => {
                self.close_server(key, Reason::DATABASE_CHANGED, now);
            }
            // In session pooling it need not wait for its client to leave.
            State::Active { .. } => self.house.watch(Conn::Server(key), now),
            // They end when they are done: see `after_work`.
            State::Asking { .. }
            | State::Unlinked { .. }
            | State::Rescuing(_)
            | State::Resetting { .. }
            | State::Checking { .. }
            | State::HeldForCancel
            | State::CarryingCancel { .. }
            | State::Forwarding { .. }
            | State::Leaving(_)
            | State::Closing => {}
        }
    }
}
