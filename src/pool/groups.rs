//! What limits count: everything of one database, and everything of one user.
//!
//! A pool belongs to the group of its database and to that of the user that its servers log in as.
//! A client counts for the database that it asked for and for the user that it says it is. Groups
//! come with their first pool or client and go with their last, so looking one up is all that a
//! limit costs, however many pools there are.
//!
//! A pool whose clients wait because a limit leaves no room is *blocked*: it stands in the line of
//! the group that is full, and has the next place that becomes free there. It may need a place in
//! two groups, and those do not become free at the same time: so whoever has been kept out for long
//! has a *claim* for a moment on a place in the one group while it waits for the other.

use crate::config::{CONSOLE, Config};
use crate::keys::{ClientKey, GroupKey, Keyed, PoolKey, ServerKey};
use crate::pool::sizing::Opening;
use crate::pool::{House, Pool};
use crate::session::client::{Client, Counted};
use crate::session::farewell::Reason;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Between two claims there is so much more time than a claim takes.
const CLAIM_REST: u32 = 10;

/// How long the clients of a pool that shares a limit with another one wait before that one has to
/// give up a server although its own clients wait, too.
const KEPT_OUT: Duration = Duration::from_secs(1);

/// What a place is worth to a pool that needs one, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// It lacks another one, too, and that may take long.
    None,
    /// It lacks another one, too, and this one is kept for it meanwhile.
    WithClaim,
    /// It opens a server.
    AtOnce,
}

/// What the members of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The entry of the database.
    Database,
    /// The name of the user.
    User,
}

/// See the module's page.
#[derive(Debug)]
pub struct Group {
    /// What its members have in common.
    pub kind: Kind,
    /// Of the database, or the user.
    pub name: Box<str>,
    /// Its pools.
    pub pools: Vec<PoolKey>,
    /// Its servers, whatever they are doing.
    pub servers: Vec<ServerKey>,
    /// How many clients there are, those that are still logging in included.
    pub clients: usize,
    /// Pools that wait for a place, longest first.
    blocked: VecDeque<PoolKey>,
}

impl Group {
    /// How many of its pools wait for a place.
    pub fn blocked_pools(&self) -> usize {
        self.blocked.len()
    }
}

/// All groups.
#[derive(Default)]
pub struct Groups {
    all: Keyed<GroupKey, Group>,
    databases: HashMap<Box<str>, GroupKey>,
    users: HashMap<Box<str>, GroupKey>,
    /// How many pools are blocked. Usually none, and then nobody has to look for them.
    pub blocked_pools: usize,
    /// Those that have, or had, a claim.
    pub claimants: Vec<PoolKey>,
}

impl Groups {
    fn names(&mut self, kind: Kind) -> &mut HashMap<Box<str>, GroupKey> {
        match kind {
            Kind::Database => &mut self.databases,
            Kind::User => &mut self.users,
        }
    }

    /// The group of this name; a new one if there is none.
    pub fn join(&mut self, kind: Kind, name: &str) -> GroupKey {
        if let Some(key) = self.names(kind).get(name) {
            return *key;
        }
        let group = Group {
            kind,
            name: name.into(),
            pools: Vec::new(),
            servers: Vec::new(),
            clients: 0,
            blocked: VecDeque::new(),
        };
        let key = self.all.insert(group);
        self.names(kind).insert(name.into(), key);
        key
    }

    /// Forgets a group in which nobody is any more.
    fn drop_if_empty(&mut self, key: GroupKey) {
        let is_empty = |group: &Group| group.pools.is_empty() && group.clients == 0;
        if self.all.get(key).is_some_and(is_empty)
            && let Some(group) = self.all.remove(key)
        {
            self.names(group.kind).remove(&group.name);
        }
    }

    /// The group of a database, if anybody has asked for it.
    pub fn database(&self, name: &str) -> Option<&Group> {
        self.all.get(*self.databases.get(name)?)
    }

    /// The group of a user, if there is one.
    pub fn user(&self, name: &str) -> Option<&Group> {
        self.all.get(*self.users.get(name)?)
    }

    /// A group that somebody belongs to.
    pub fn get(&self, key: GroupKey) -> Option<&Group> {
        self.all.get(key)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.all.iter().map(|(_, group)| group)
    }

    /// A pool takes its place among the others.
    pub fn add_pool(&mut self, keys: [GroupKey; 2], pool: PoolKey) {
        for key in keys {
            if let Some(group) = self.all.get_mut(key) {
                group.pools.push(pool);
            }
        }
    }

    /// A pool has gone.
    pub fn remove_pool(&mut self, keys: [GroupKey; 2], pool: PoolKey) {
        for key in keys {
            if let Some(group) = self.all.get_mut(key) {
                group.pools.retain(|other| *other != pool);
                group.blocked.retain(|other| *other != pool);
                self.drop_if_empty(key);
            }
        }
    }

    /// A server is opened.
    pub fn add_server(&mut self, keys: [GroupKey; 2], server: ServerKey) {
        for key in keys {
            if let Some(group) = self.all.get_mut(key) {
                group.servers.push(server);
            }
        }
    }

    /// A server has gone.
    pub fn remove_server(&mut self, keys: [GroupKey; 2], server: ServerKey) {
        for key in keys {
            if let Some(group) = self.all.get_mut(key)
                && let Some(place) = group.servers.iter().position(|other| *other == server)
            {
                group.servers.swap_remove(place);
            }
        }
    }

    fn count_client(&mut self, kind: Kind, name: &str, joins: bool) {
        let key = self.join(kind, name);
        if let Some(group) = self.all.get_mut(key) {
            match joins {
                true => group.clients += 1,
                false => group.clients -= 1,
            }
        }
        self.drop_if_empty(key);
    }

    /// A pool gets in line.
    fn block(&mut self, key: GroupKey, pool: PoolKey) {
        if let Some(group) = self.all.get_mut(key) {
            group.blocked.push_back(pool);
            self.blocked_pools += 1;
        }
    }

    /// How many pools are in line.
    pub fn blocked_in(&self, key: GroupKey) -> usize {
        self.all.get(key).map_or(0, |group| group.blocked.len())
    }

    /// The pool that has been in line the longest, apart from this one.
    pub fn longest_blocked(&self, key: GroupKey, but: PoolKey) -> Option<PoolKey> {
        self.all.get(key)?.blocked.iter().copied().find(|pool| *pool != but)
    }
}

/// The database for which a client counts, if it does.
fn counted_database<'a>(client: &Client, pools: &'a Keyed<PoolKey, Pool>) -> Option<&'a str> {
    match client.counted {
        Counted::Pool => Some(&pools.get(client.pool?)?.database.name),
        Counted::Console => Some(CONSOLE),
        Counted::User | Counted::Nowhere => None,
    }
}

/// So many servers, or `None` for no limit.
fn limit(number: i32) -> Option<usize> {
    usize::try_from(number).ok().filter(|number| *number > 0)
}

impl Pool {
    /// How many servers its groups may have, in the order of [`Pool::groups`].
    pub fn group_limits(&self, config: &Config) -> [Option<usize>; 2] {
        let of_user = config.users.get(&self.user).and_then(|user| user.max_user_connections);
        let database = self.database.max_db_connections;
        let database = database.unwrap_or(config.settings.max_db_connections);
        [limit(database), limit(of_user.unwrap_or(config.settings.max_user_connections))]
    }
}

impl House {
    /// Whether one more client may come to the database of this name, which has this limit of its
    /// own.
    pub fn database_admits(
        &self,
        name: &str,
        own: Option<i32>,
        config: &Config,
    ) -> Result<(), Reason> {
        let most = limit(own.unwrap_or(config.settings.max_db_client_connections));
        let present = self.groups.database(name).map_or(0, |group| group.clients);
        match most.is_some_and(|most| present >= most) {
            true => Err(Reason::TOO_MANY_DATABASE_CLIENTS),
            false => Ok(()),
        }
    }

    /// Whether one more client may come as this user.
    pub fn user_admits(&self, user: &str, config: &Config) -> Result<(), Reason> {
        let own = config.users.get(user).and_then(|user| user.max_user_client_connections);
        let present = self.groups.user(user).map_or(0, |group| group.clients);
        // As PgBouncer: only 0 is no limit, less lets nobody in.
        match own.unwrap_or(config.settings.max_user_client_connections) {
            0 => Ok(()),
            most if usize::try_from(most).is_ok_and(|most| present < most) => Ok(()),
            _ => Err(Reason::TOO_MANY_USER_CLIENTS),
        }
    }

    /// A client, which has not proven yet who it is, is taken for one of this pool.
    pub fn join_pool(&mut self, client: ClientKey, key: PoolKey) {
        let Some(pool) = self.pools.get_mut(key) else {
            return;
        };
        pool.members += 1;
        pool.unused_since = None;
        if let Some(client) = self.clients.get_mut(client) {
            client.pool = Some(key);
        }
        self.count(client, Counted::Pool);
    }

    /// A client counts from now on: for its user, and for more.
    pub fn count(&mut self, client: ClientKey, counted: Counted) {
        let Some(client) = self.clients.get_mut(client) else {
            return;
        };
        assert_eq!(client.counted, Counted::Nowhere, "nobody is counted twice");
        client.counted = counted;
        let user = client.user.as_deref().unwrap_or("");
        self.groups.count_client(Kind::User, user, true);
        if let Some(database) = counted_database(client, &self.pools) {
            self.groups.count_client(Kind::Database, database, true);
        }
    }

    /// A client is leaving. The pool that it was counted for.
    pub fn leave_pool(&mut self, client: ClientKey) -> Option<PoolKey> {
        let client = self.clients.get_mut(client)?;
        if client.counted == Counted::Nowhere {
            return None;
        }
        if let Some(database) = counted_database(client, &self.pools) {
            self.groups.count_client(Kind::Database, database, false);
        }
        let user = client.user.as_deref().unwrap_or("");
        self.groups.count_client(Kind::User, user, false);
        if std::mem::take(&mut client.counted) != Counted::Pool {
            return None;
        }
        let key = client.pool?;
        self.pools.get_mut(key)?.members -= 1;
        Some(key)
    }

    /// A pool cannot have another server before some other server of this group has gone.
    pub fn block(&mut self, pool_key: PoolKey, group: GroupKey) {
        let by = self.pools.get(pool_key).and_then(|pool| pool.blocked_by);
        if by.is_some_and(|by| by != group) {
            // A reload, or the end of a claim: it is another limit that keeps it out now.
            self.unblock(pool_key);
        }
        if let Some(pool) = self.pools.get_mut(pool_key)
            && pool.blocked_by.is_none()
        {
            pool.blocked_by = Some(group);
            self.groups.block(group, pool_key);
        }
    }

    /// Whether a server that is free must not serve the next client of its own pool, because a pool
    /// that it shares a limit with has been kept out for too long: while there is always somebody
    /// who waits here, no server of ours would ever be idle to be evicted.
    ///
    /// Laws: who yields has served, and makes room for somebody who can use it. Otherwise pools
    /// could go on for ever opening servers for each other to close, with nobody served.
    pub fn must_yield(&mut self, key: ServerKey, config: &Config, now: Instant) -> bool {
        let server = self.servers.get(key).filter(|server| server.has_worked);
        let Some((own_key, pool)) =
            server.and_then(|server| Some((server.pool, self.pools.get(server.pool)?)))
        else {
            return false;
        };
        let Some((_, own)) = self.first_waiting(pool) else {
            return false;
        };
        let is_kept_out = |other: &PoolKey| {
            let first = self.pools.get(*other).and_then(|other| self.first_waiting(other));
            first.is_some_and(|(_, since)| {
                since < own && now.saturating_duration_since(since) >= KEPT_OUT
            })
        };
        let longest = |group| self.groups.longest_blocked(group, own_key);
        let kept_out = pool.groups.into_iter().filter_map(longest).filter(is_kept_out);
        let useful =
            kept_out.map(|other| (other, self.use_of_place(other, pool.groups, config, now)));
        match useful.max_by_key(|(_, of_use)| *of_use) {
            Some((_, Use::AtOnce)) => true,
            Some((other, Use::WithClaim)) => {
                self.claim(other, now);
                true
            }
            Some((_, Use::None)) | None => false,
        }
    }

    /// What a place in these groups is worth to a pool that is blocked.
    fn use_of_place(
        &self,
        key: PoolKey,
        groups: [GroupKey; 2],
        config: &Config,
        now: Instant,
    ) -> Use {
        let Some(pool) = self.pools.get(key).filter(|pool| !pool.is_paused) else {
            return Use::None;
        };
        if self.retry_at(pool, &config.settings, now).is_some_and(|at| now < at) {
            return Use::None;
        }
        let mut limits = pool.groups.into_iter().zip(pool.group_limits(config));
        let lacks_another = limits.any(|(group, limit)| {
            let present = self.groups.get(group).map_or(0, |group| group.servers.len());
            !groups.contains(&group) && limit.is_some_and(|limit| present >= limit)
        });
        let may_claim = pool.claims_until.is_none_or(|until| now >= until + KEPT_OUT * CLAIM_REST);
        match (lacks_another, may_claim) {
            (false, _) => Use::AtOnce,
            (true, true) => Use::WithClaim,
            (true, false) => Use::None,
        }
    }

    /// What becomes free in one of the groups of a pool is kept for it, for a moment, while it waits
    /// for the other one, and not again for some time. (Who has to wait for hours there must not
    /// keep places empty for as long.)
    fn claim(&mut self, key: PoolKey, now: Instant) {
        if let Some(pool) = self.pools.get_mut(key) {
            pool.claims_until = Some(now + KEPT_OUT);
            if !self.groups.claimants.contains(&key) {
                self.groups.claimants.push(key);
            }
        }
    }

    /// What a pool is told that would take one of the last free places of a group, if others have
    /// waited longer: those that have a claim, and the first in line, who is about to be asked.
    pub fn kept_for_others(
        &self,
        group: GroupKey,
        key: PoolKey,
        free: usize,
        config: &Config,
        now: Instant,
    ) -> Option<Opening> {
        let first_of = |key: PoolKey| self.first_waiting(self.pools.get(key)?);
        let own = first_of(key).map(|(_, since)| since);
        let is_older = |other: PoolKey| {
            first_of(other).is_some_and(|(_, since)| own.is_none_or(|own| since < own))
        };
        let claimants = self.groups.claimants.iter().filter(|other| **other != key);
        let claims = claimants.filter_map(|other| {
            let pool = self.pools.get(*other)?;
            let until = pool.claims_until.filter(|until| now < *until)?;
            let waits_elsewhere = pool.blocked_by.is_some_and(|by| by != group);
            let holds = waits_elsewhere && pool.groups.contains(&group) && is_older(*other);
            holds.then_some(until)
        });
        let (claims, until) =
            claims.fold((0, now + KEPT_OUT), |(count, first), until| (count + 1, first.min(until)));
        let next = self.groups.longest_blocked(group, key).filter(|other| is_older(*other));
        let next =
            next.filter(|other| self.use_of_place(*other, [group; 2], config, now) == Use::AtOnce);
        if claims >= free {
            Some(Opening::Claimed(group, until))
        } else if claims + usize::from(next.is_some()) >= free {
            Some(Opening::Blocked(group))
        } else {
            None
        }
    }

    /// Forgets claims that were made long ago.
    pub fn forget_claims(&mut self, now: Instant) {
        let House { groups, pools, .. } = self;
        groups.claimants.retain(|key| {
            let until = pools.get(*key).and_then(|pool| pool.claims_until);
            until.is_some_and(|until| now < until)
        });
    }

    /// Takes the pool out of a group's line that has been there the longest.
    pub fn next_blocked(&mut self, key: GroupKey) -> Option<PoolKey> {
        let pool = self.groups.all.get_mut(key)?.blocked.pop_front()?;
        self.groups.blocked_pools -= 1;
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.blocked_by = None;
        }
        Some(pool)
    }

    /// Takes a pool out of the line that it is in.
    pub fn unblock(&mut self, key: PoolKey) {
        let group = self.pools.get_mut(key).and_then(|pool| pool.blocked_by.take());
        if let Some(group) = group.and_then(|group| self.groups.all.get_mut(group)) {
            group.blocked.retain(|other| *other != key);
            self.groups.blocked_pools -= 1;
        }
    }
}
