//! Clients that replicate: each has a server of its own, that was opened for it and ends with it.
//!
//! They wait in one line with the others, but free servers pass them by. `engine::replication` is
//! what happens to them.

use crate::keys::{ClientKey, Keyed, PoolKey, ServerKey};
use crate::pool::queues::ServerStanding;
use crate::pool::sizing::Demand;
use crate::pool::{House, Pool};
use crate::session::client::Client;

impl Pool {
    /// Who has waited the longest of those that replicate, or of the others.
    pub fn first_waiting(
        &self,
        clients: &Keyed<ClientKey, Client>,
        replicates: bool,
    ) -> Option<ClientKey> {
        let mut next = self.waiting.first();
        while let Some(key) = next {
            let client = clients.get(key)?;
            if client.replicator.is_some() == replicates {
                return Some(key);
            }
            next = client.hook.next;
        }
        None
    }

    fn is_full(&self) -> bool {
        self.size.is_some_and(|size| self.servers.total() >= size)
    }
}

impl House {
    /// For whom servers of a pool are to be opened, the longest waiting first.
    pub fn demands(&self, key: PoolKey) -> [Option<Demand>; 2] {
        let Some(pool) = self.pools.get(key) else {
            return [None, None];
        };
        let others = (!pool.is_cared_for()).then_some(Demand::Waiting);
        if pool.replicators_waiting == 0 {
            return [others, None];
        }
        let first = pool.first_waiting(&self.clients, true);
        let own = first.map(Demand::Replication);
        match first == pool.waiting.first() {
            true => [own, others],
            false => [others, own],
        }
    }

    /// The server that is being opened for a client to replicate through, and has not let it in.
    pub fn opened_for(&self, client: ClientKey) -> Option<ServerKey> {
        let pool = self.clients.get(client).filter(|client| client.replicator.is_some())?.pool?;
        // There is at most one attempt at a time.
        let server = self.pools.get(pool)?.servers.of(ServerStanding::Login).first()?;
        let is_own = self.servers.get(server)?.replicates_for == Some(client);
        is_own.then_some(server)
    }

    /// The server of a full pool whose place is taken next for a client that replicates.
    pub(super) fn idle_of(&self, pool: &Pool) -> Option<ServerKey> {
        let free = [ServerStanding::Idle, ServerStanding::Used];
        let free = free.map(|standing| pool.servers.of(standing).keys(&self.servers));
        self.longest_idle(&free.concat(), None)
    }

    /// Whether a server that has become free ends, because the pool is full and the client that
    /// has waited the longest needs the place for a server of its own: while others wait behind it,
    /// no server would ever be idle.
    pub fn makes_way(&self, key: ServerKey) -> bool {
        let pool = self.servers.get(key).and_then(|server| self.pools.get(server.pool));
        pool.is_some_and(|pool| {
            let own = pool.first_waiting(&self.clients, true);
            let nobody_comes_or_goes =
                pool.servers.count(ServerStanding::Login) == 0 && !self.expects_place(pool);
            own.is_some() && own == pool.waiting.first() && pool.is_full() && nobody_comes_or_goes
        })
    }
}
