//! What the operator does to one database: pause, disable, kill, connect anew. Without a name it is
//! done to each that has pools.

use crate::engine::Engine;
use crate::keys::{ClientKey, PoolKey};
use crate::pool::Pool;
use crate::pool::queues::ServerStanding;
use crate::session::farewell::Reason;
use crate::session::server::{Leave, State};
use std::time::Instant;

impl Engine {
    /// Whether there is a database of this name. With `may_create`, one that `*` stands for counts;
    /// who asked for it is named in the log.
    pub fn knows_database(&self, name: &str, may_create: bool, asker: ClientKey) -> bool {
        let house = &self.house;
        let is_known = self.config.databases.contains_key(name)
            || house.pool_of(name).is_some()
            || house.paused_databases.contains(name)
            || house.disabled_databases.contains(name);
        if is_known || !may_create {
            return is_known;
        }
        let is_made = matches!(self.config.auto(name), Some(Ok(_)));
        if is_made {
            log::info!("{} registered new auto-database: {name}", self.name_of(asker));
        }
        is_made
    }

    /// The pools of one database, or all.
    fn pools_of(&self, name: Option<&str>) -> Vec<PoolKey> {
        let pools = self.house.pools.iter();
        let is_meant = |pool: &Pool| name.is_none_or(|name| pool.database.name == name);
        pools.filter(|(_, pool)| is_meant(pool)).map(|(key, _)| key).collect()
    }

    fn set_paused(&mut self, name: &str, on: bool) {
        match on {
            true => self.house.paused_databases.insert(name.to_owned()),
            false => self.house.paused_databases.remove(name),
        };
        for key in self.pools_of(Some(name)) {
            if let Some(pool) = self.house.pools.get_mut(key) {
                pool.is_paused = on;
            }
        }
    }

    /// Has everybody who needs a server of this database wait, until
    /// [`Engine::resume_database`].
    pub fn pause_database(&mut self, name: &str, now: Instant) {
        self.set_paused(name, true);
        for key in self.pools_of(Some(name)) {
            self.close_free_servers(key, now);
        }
    }

    /// Ends that. `false`: it was not paused.
    pub fn resume_database(&mut self, name: &str, now: Instant) -> bool {
        let was_paused = self.house.paused_databases.contains(name);
        self.set_paused(name, false);
        for key in self.pools_of(Some(name)) {
            self.staff(key, now);
            self.tend(key, now);
        }
        was_paused
    }

    /// Servers that work for nobody end.
    pub(super) fn close_free_servers(&mut self, key: PoolKey, now: Instant) {
        let Some(pool) = self.house.pools.get(key) else {
            return;
        };
        let servers = [ServerStanding::Idle, ServerStanding::Used, ServerStanding::Login]
            .map(|standing| pool.servers.of(standing).keys(&self.house.servers));
        for server in servers.into_iter().flatten() {
            self.close_server(server, Reason::PAUSE_MODE, now);
        }
    }

    /// Whether new clients are let into a database.
    pub fn set_enabled(&mut self, name: &str, on: bool) {
        match on {
            true => self.house.disabled_databases.remove(name),
            false => self.house.disabled_databases.insert(name.to_owned()),
        };
    }

    /// Servers end as soon as they are free, and are opened anew.
    pub fn reconnect(&mut self, name: Option<&str>, now: Instant) {
        for key in self.pools_of(name) {
            if let Some(pool) = self.house.pools.get_mut(key) {
                pool.welcome = None;
            }
            self.retire_servers(key, now);
            self.staff(key, now);
        }
    }

    /// Everybody is thrown out, and the database paused.
    pub fn kill_database(&mut self, name: Option<&str>, now: Instant) {
        if let Some(name) = name {
            self.set_paused(name, true);
        }
        for key in self.pools_of(name) {
            if let Some(pool) = self.house.pools.get(key) {
                let name = pool.database.name.clone();
                self.set_paused(&name, true);
            }
            self.close_pool(key, &Reason::DATABASE_REMOVED, now);
            self.house.remove_pool(key);
        }
    }

    /// Whether a database, or any, has servers at all.
    pub fn has_servers(&self, name: Option<&str>) -> bool {
        self.any_pool(name, |pool| pool.servers.total() > 0)
    }

    /// Whether a server of a database, or any, is at work or being reset.
    pub fn has_working_servers(&self, name: Option<&str>) -> bool {
        use ServerStanding::{Active, Held, Rescued, Tested};
        self.any_pool(name, |pool| {
            [Active, Held, Tested, Rescued]
                .into_iter()
                .any(|standing| pool.servers.count(standing) > 0)
        })
    }

    /// Whether a server of a database, or any, is to be closed and still there.
    pub fn has_servers_to_close(&self, name: Option<&str>) -> bool {
        let house = &self.house;
        let is_meant = |key| {
            let pool = house.pools.get(key);
            pool.is_some_and(|pool| name.is_none_or(|name| pool.database.name == name))
        };
        let mut servers = house.servers.iter();
        servers.any(|(_, server)| {
            let is_there = crate::pool::queues::server_standing(&server.state).is_some();
            // Its query may take hours, and it is not ours any more.
            let is_abandoned = matches!(server.state, State::Leaving(Leave::Busy));
            server.close_needed && is_there && !is_abandoned && is_meant(server.pool)
        })
    }

    fn any_pool(&self, name: Option<&str>, holds: impl Fn(&Pool) -> bool) -> bool {
        let is_meant = |pool: &Pool| name.is_none_or(|name| pool.database.name == name);
        self.house.pools.iter().any(|(_, pool)| is_meant(pool) && holds(pool))
    }
}
