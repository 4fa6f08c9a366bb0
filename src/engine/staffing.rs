//! Who needs another server, and gets one: for clients that wait, for cancels, for `min_pool_size`;
//! and what happens to pools that nobody needs.
//!
//! Nothing here looks at all pools. Whatever may give a pool a reason to act (a client begins to
//! wait, a server ends, a place in a limited group becomes free, an alarm goes off) looks at that
//! pool alone.

use crate::engine::Engine;
use crate::keys::{GroupKey, PoolKey, ServerKey};
use crate::pool::sizing::{Demand, Opening};
use crate::pool::{House, Pool};
use crate::session::client;
use crate::session::farewell::Reason;
use crate::session::rescue::Cancel;
use crate::session::server::Purpose;
use crate::wire::emit;
use std::time::{Duration, Instant};

/// As PgBouncer: upkeep opens one server at a time, so often at most.
const PACE: Duration = Duration::from_millis(333);
/// To clients that have waited for `query_wait_notify`.
const QUEUED: &[u8] = b"No server connection available in postgres backend, client being queued";
/// When upkeep finds no room.
const PACE_WITHOUT_ROOM: Duration = Duration::from_secs(5);

impl Engine {
    /// Opens what the clients of this pool wait for, as far as it may. Whether a server is on its
    /// way now that was not before.
    pub(super) fn staff(&mut self, key: PoolKey, now: Instant) -> bool {
        self.send_carriers(key, now);
        self.try_out_for_waiting(key, now);
        let demands = self.house.demands(key);
        demands.into_iter().flatten().any(|demand| self.try_open(key, demand, now))
    }

    fn send_carriers(&mut self, key: PoolKey, now: Instant) {
        while let Some((requester, target)) = self.house.next_cancel(key) {
            if !self.house.pools.get(key).is_some_and(Pool::has_room_for_carrier) {
                break;
            }
            let carrier = self.open(key, Purpose::Cancel { target, requester }, now);
            match requester {
                Some(requester) => self.house.note_carrier(requester, target, carrier, now),
                None => self.house.note_own_cancel(target, Cancel::UnderWay),
            }
            self.dial(carrier, now);
        }
    }

    /// Somebody was turned away because the last login failed: that is the time to try again.
    pub(super) fn try_again(&mut self, key: PoolKey, now: Instant) {
        self.try_open(key, Demand::Refused, now);
    }

    fn try_open(&mut self, key: PoolKey, demand: Demand, now: Instant) -> bool {
        loop {
            match self.house.opening(key, demand, &self.config, now) {
                Opening::Launch { reserve_for } => {
                    if let Some(client) = reserve_for {
                        let name = self.house.client_name(client, &self.config.settings);
                        log::warn!("{name} taking connection from reserve_pool");
                    }
                    self.house.unblock(key);
                    let server = self.open(key, Purpose::Serve, now);
                    if let (Demand::Replication(client), Some(server)) =
                        (demand, self.house.servers.get_mut(server))
                    {
                        server.replicates_for = Some(client);
                    }
                    self.dial(server, now);
                    return true;
                }
                Opening::Evict(victim) => self.close_server(victim, Reason::EVICTED, now),
                Opening::Blocked(group) if demand.is_of_clients() => {
                    self.house.block(key, group);
                    return false;
                }
                Opening::Claimed(group, until) => {
                    if demand.is_of_clients() {
                        self.house.block(key, group);
                    }
                    self.house.look_again(key, until);
                    return false;
                }
                Opening::Later(at) => {
                    self.house.look_again(key, at);
                    return false;
                }
                Opening::Blocked(_) | Opening::No => return false,
            }
        }
    }

    /// In the groups of this pool there may be room now: a server has gone, or become idle and can
    /// be evicted. Who has been kept out the longest comes first.
    pub(super) fn place_is_free(&mut self, key: PoolKey, now: Instant) {
        if self.house.groups.blocked_pools == 0 {
            return;
        }
        if let Some(groups) = self.house.pools.get(key).map(|pool| pool.groups) {
            groups.into_iter().for_each(|group| self.fill_place(group, now));
        }
    }

    /// A server makes room for one of a pool that has been kept out, although clients of its own
    /// pool wait: those get in line again.
    pub(super) fn yield_place(&mut self, key: ServerKey, now: Instant) {
        let Some(pool) = self.house.servers.get(key).map(|server| server.pool) else {
            return;
        };
        self.close_server(key, Reason::EVICTED, now);
        self.house.unblock(pool);
        self.place_is_free(pool, now);
        self.staff(pool, now);
    }

    fn fill_place(&mut self, group: GroupKey, now: Instant) {
        // Who still finds no room gets in line again, and is not asked twice; unless it only let
        // somebody go first who then had no use for the place, and has left the line.
        loop {
            let before = self.house.groups.blocked_in(group);
            for _ in 0..before {
                let Some(pool) = self.house.next_blocked(group) else {
                    return;
                };
                if self.staff(pool, now) {
                    return;
                }
            }
            if self.house.groups.blocked_in(group) >= before {
                return;
            }
        }
    }

    /// Something has changed in a pool: sees to it that it is looked at when it is time to.
    pub(super) fn tend(&mut self, key: PoolKey, now: Instant) {
        let is_unused = self.house.is_unused(key);
        let wants_upkeep = self.house.wants_upkeep(key);
        let is_oversized = self.house.pools.get(key).is_some_and(Pool::is_oversized);
        let Some(pool) = self.house.pools.get_mut(key) else {
            return;
        };
        match is_unused {
            true => _ = pool.unused_since.get_or_insert(now),
            false => pool.unused_since = None,
        }
        if wants_upkeep {
            let at = pool.attempts.last.map_or(now, |last| now.max(last + PACE));
            self.house.look_again(key, at);
        }
        if is_oversized {
            self.house.look_again(key, now + PACE);
        }
        if let Some(at) = self.removal_at(key).filter(|at| *at > now) {
            self.house.look_again(key, at);
        }
        self.tell_first(key, now);
    }

    /// Somebody begins to wait: if that takes long, it is told so.
    pub(super) fn remember_to_tell(&mut self, key: PoolKey, now: Instant) {
        if let Some(at) = self.time_before_telling().and_then(|limit| now.checked_add(limit)) {
            self.house.look_again(key, at);
        }
    }

    /// How long a client waits before it is told. As PgBouncer: more whole seconds than the setting
    /// says.
    fn time_before_telling(&self) -> Option<Duration> {
        let seconds = u64::try_from(self.config.settings.query_wait_notify).ok();
        seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds + 1))
    }

    /// Who has waited the longest for a server is told so when that has taken long.
    fn tell_first(&mut self, key: PoolKey, now: Instant) {
        let House { pools, clients, mode, .. } = &self.house;
        let pool = pools.get(key).filter(|pool| !mode.is_paused() && !pool.is_paused);
        let Some(first) = pool.and_then(|pool| pool.waiting.first()) else {
            return;
        };
        let Some(&client::State::Waiting { since, is_told: false }) =
            clients.get(first).map(|client| &client.state)
        else {
            return;
        };
        let limit = self.time_before_telling();
        let Some(at) = limit.and_then(|limit| since.checked_add(limit)) else {
            return;
        };
        if now < at {
            self.house.look_again(key, at);
            return;
        }
        let waiting = client::State::Waiting { since, is_told: true };
        self.house.set_client_state(first, waiting);
        let told = self.tell_client(first, |ring| emit::notice(ring, QUEUED));
        if told.is_err() {
            log::debug!("no room for a notice to a client that waits");
        }
    }

    /// The alarms of pools that have gone off.
    pub(super) fn answer_alarms(&mut self, now: Instant) {
        if !self.house.groups.claimants.is_empty() {
            self.house.forget_claims(now);
        }
        // One that is set anew for now must wait for the next turn.
        for _ in 0..self.house.alarms.len() {
            let Some(pool) = self.house.next_alarmed(now) else {
                return;
            };
            self.answer_alarm(pool, now);
        }
    }

    fn answer_alarm(&mut self, key: PoolKey, now: Instant) {
        while let Some(server) = self.house.excess_server(key) {
            self.close_server(server, Reason::TOO_MANY_SERVERS, now);
        }
        self.staff(key, now);
        self.tell_first(key, now);
        if self.house.wants_upkeep(key) {
            let last = self.house.pools.get(key).and_then(|pool| pool.attempts.last);
            let is_due = last.is_none_or(|last| last + PACE <= now);
            if is_due && !self.try_open(key, Demand::Upkeep, now) {
                self.house.look_again(key, now + PACE_WITHOUT_ROOM);
                return;
            }
        }
        if self.removal_at(key).is_some_and(|at| at <= now) {
            self.remove_unused(key, now);
        }
        self.tend(key, now);
    }

    /// When a pool that nobody needs is to go, or its database.
    fn removal_at(&self, key: PoolKey) -> Option<Instant> {
        [self.pool_end(key), self.database_end(key)].into_iter().flatten().min()
    }

    fn pool_end(&self, key: PoolKey) -> Option<Instant> {
        let pool = self.house.pools.get(key)?;
        if self.is_made_up(pool) {
            return pool.unused_since?.checked_add(self.config.settings.server_login_retry);
        }
        let limit = self.config.settings.pool_idle_timeout;
        let is_kept = pool.is_of_forced_user() && pool.min_size > 0;
        pool.unused_since?.checked_add(limit).filter(|_| !limit.is_zero() && !is_kept)
    }

    /// A database made from `*` goes with all its pools.
    fn database_end(&self, key: PoolKey) -> Option<Instant> {
        let pool = self.house.pools.get(key)?;
        let limit = self.config.settings.autodb_idle_timeout;
        let is_paused = self.house.paused_databases.contains(&pool.database.name);
        let is_listed = self.config.databases.contains_key(&pool.database.name);
        if limit.is_zero() || is_paused || is_listed {
            return None;
        }
        let group = self.house.groups.database(&pool.database.name)?;
        let since = |key: &PoolKey| self.house.pools.get(*key)?.unused_since;
        let ends: Option<Vec<Instant>> = group.pools.iter().map(since).collect();
        ends?.into_iter().max()?.checked_add(limit)
    }

    fn remove_unused(&mut self, key: PoolKey, now: Instant) {
        let Some(pool) = self.house.pools.get(key) else {
            return;
        };
        if self.database_end(key).is_some_and(|at| at <= now) {
            let name = pool.database.name.clone();
            log::warn!(
                "dropping database '{name}' as it does not exist anymore or inactive auto-database"
            );
            let group = self.house.groups.database(&name);
            for pool in group.map(|group| group.pools.clone()).unwrap_or_default() {
                self.house.remove_pool(pool);
            }
        } else if self.pool_end(key).is_some_and(|at| at <= now) {
            let since = pool.unused_since.unwrap_or(now);
            let age = now.saturating_duration_since(since).as_secs();
            let (user, database) = (&pool.user, &pool.database.name);
            log::info!(
                "cleaning up idle pool for user {user} on db {database} because: \
                 pool idle timeout (age= {age}s)"
            );
            self.house.remove_pool(key);
        }
    }

    /// Pools that are to have servers although nobody has come yet.
    pub(super) fn open_kept_pools(&mut self, now: Instant) {
        let least = self.config.settings.min_pool_size;
        let kept = self.config.databases.values().filter(|database| {
            database.user.is_some() && database.min_pool_size.unwrap_or(least) > 0
        });
        for database in kept {
            let user = database.user.as_deref().unwrap_or_default();
            let pool = self.house.pool(database, user, &self.config);
            self.house.look_again(pool, now);
        }
    }
}
