//! The laws of the whole house. Swept after every step of a simulation, never in production: the
//! laws that guard against mixing up two clients are asserted where they could be broken.

use crate::config::CONSOLE;
use crate::engine::Engine;
use crate::keys::{ClientKey, Conn, PoolKey, ServerKey};
use crate::pool::groups::Kind;
use crate::pool::queues::{ClientStanding, ServerStanding, client_standing, server_standing};
use crate::pool::{House, Pool};
use crate::session::client::{self, Client, Counted};
use crate::session::server::{Server, State};

impl Engine {
    /// Panics if any law is broken.
    pub fn check(&self) {
        self.check_links();
        self.check_clients();
        self.check_askers();
        self.check_checks();
        for (key, pool) in self.house.pools.iter() {
            self.check_pool(key, pool);
        }
        self.check_rings();
        self.check_groups();
        self.check_watches();
        self.check_peers();
    }

    /// Whoever is under a limit is looked at before it is over.
    fn check_watches(&self) {
        let House { clients, servers, .. } = &self.house;
        for (key, client) in clients.iter() {
            if let Some((at, reason)) = self.house.client_end(client, &self.config) {
                let is_watched = self.house.is_watched(Conn::Client(key), at);
                assert!(is_watched, "{key:?}: {reason} is overlooked");
            }
        }
        for (key, server) in servers.iter() {
            if let Some((at, fate)) = self.house.server_end(server, &self.config) {
                let is_watched = self.house.is_watched(Conn::Server(key), at);
                assert!(is_watched, "{key:?}: {fate:?} is overlooked");
            }
        }
    }

    /// What limits count is what is there.
    fn check_groups(&self) {
        let House { clients, servers, pools, groups, .. } = &self.house;
        let mut blocked = 0;
        for group in groups.iter() {
            let is_own = |pool: &Pool| match group.kind {
                Kind::Database => *pool.database.name == *group.name,
                Kind::User => *pool.user == *group.name,
            };
            let own: Vec<PoolKey> =
                pools.iter().filter(|(_, pool)| is_own(pool)).map(|(key, _)| key).collect();
            let mut counted = group.pools.clone();
            counted.sort_unstable();
            let mut present = own.clone();
            present.sort_unstable();
            assert_eq!(counted, present, "the pools of {}", group.name);
            let is_there = |server: &Server| {
                own.contains(&server.pool) && server_standing(&server.state).is_some()
            };
            let present = servers.iter().filter(|(_, server)| is_there(server)).count();
            assert_eq!(group.servers.len(), present, "the servers of {}", group.name);
            let counts = |client: &Client| match group.kind {
                Kind::Database => match client.counted {
                    Counted::Pool => client.pool.is_some_and(|pool| own.contains(&pool)),
                    Counted::Console => *group.name == *CONSOLE,
                    Counted::User | Counted::Nowhere => false,
                },
                Kind::User => {
                    client.counted != Counted::Nowhere
                        && client.user.as_deref() == Some(&group.name)
                }
            };
            let present = clients.iter().filter(|(_, client)| counts(client)).count();
            assert_eq!(group.clients, present, "the clients of {}", group.name);
            blocked += group.blocked_pools();
        }
        assert_eq!(blocked, groups.blocked_pools, "pools in line");
        let flagged = pools.iter().filter(|(_, pool)| pool.blocked_by.is_some()).count();
        assert_eq!(blocked, flagged, "pools in line know it");
    }

    fn check_links(&self) {
        for (key, client) in self.house.clients.iter() {
            if let Some(server) = client.server() {
                let server = self.house.servers.get(server).expect("a client's server is there");
                assert_eq!(server.client(), Some(key), "links point at each other");
                assert_eq!(Some(server.pool), client.pool, "a client is served by its own pool");
                assert!(!client.egress.has_kept(), "who has a server has taken earlier replies");
            }
        }
        for (key, server) in self.house.servers.iter() {
            assert!(!matches!(server.state, State::Unlinked { .. }), "decided about at once");
            if let Some(client) = server.client() {
                let client = self.house.clients.get(client).expect("a server's client is there");
                assert_eq!(client.server(), Some(key), "links point at each other");
            } else {
                assert!(server.egress.first_run().is_none(), "runs need a link");
            }
        }
    }

    fn check_askers(&self) {
        for (key, client) in self.house.clients.iter() {
            let client::State::AwaitingAccount { pool, server, .. } = client.state else {
                assert!(client.login.is_none(), "only who waits for an answer keeps his login");
                continue;
            };
            assert!(client.login.is_some(), "who waits for an answer keeps his login");
            let askers = self.house.pools.get(pool).map(|pool| &pool.askers);
            let places = askers.map_or(0, |all| all.iter().filter(|asker| **asker == key).count());
            assert_eq!(places, usize::from(server.is_none()), "who has asked does not wait");
            if let Some(server) = server {
                let server = self.house.servers.get(server).expect("who is asked is there");
                assert_eq!(server.asker(), Some(key), "they know each other");
                assert_eq!(server.pool, pool, "asked through its pool");
            }
        }
        for (key, server) in self.house.servers.iter() {
            if let Some(asker) = server.asker() {
                let client = self.house.clients.get(asker).map(|client| &client.state);
                assert!(
                    matches!(client, Some(client::State::AwaitingAccount { server: Some(asked), .. }) if *asked == key),
                    "they know each other"
                );
            }
        }
        for (_, pool) in self.house.pools.iter() {
            for asker in &pool.askers {
                let state = self.house.clients.get(*asker).map(|client| &client.state);
                let waits = matches!(state, Some(client::State::AwaitingAccount { .. }));
                assert!(waits, "who has gone does not wait");
            }
        }
    }

    fn check_clients(&self) {
        assert_eq!(self.house.console_clients, self.count(None, ClientStanding::Console));
        let logging_in = self.house.logging_in.keys(&self.house.clients);
        assert_eq!(logging_in.len(), self.house.logging_in.len());
        assert_eq!(logging_in.len(), self.count(None, ClientStanding::LoggingIn));
        for (_, client) in self.house.clients.iter() {
            if client.server().is_none() {
                assert!(client.egress.first_run().is_none(), "runs need a link");
            }
            if let Some(ring) = client.inbox.ring() {
                assert!(!ring.is_empty() || client.wants_read(), "an empty ring went back");
            }
        }
    }

    fn count(&self, pool: Option<PoolKey>, standing: ClientStanding) -> usize {
        let stands = |client: &Client| {
            client_standing(&client.state) == standing && (pool.is_none() || client.pool == pool)
        };
        self.house.clients.iter().filter(|(_, client)| stands(client)).count()
    }

    fn check_pool(&self, key: PoolKey, pool: &Pool) {
        let waiting: Vec<ClientKey> = pool.waiting.keys(&self.house.clients);
        assert_eq!(waiting.len(), pool.waiting.len());
        assert_eq!(waiting.len(), self.count(Some(key), ClientStanding::Waiting));
        assert_eq!(pool.active_clients, self.count(Some(key), ClientStanding::Active));
        assert_eq!(pool.cancels.len(), self.count(Some(key), ClientStanding::AwaitingCancel));
        let dialled = pool.dialled_cancels.len();
        assert_eq!(dialled, self.count(Some(key), ClientStanding::CancelDialled));
        let mode = self.house.mode;
        if mode.is_paused() || pool.is_paused {
            let free = [ServerStanding::Idle, ServerStanding::Used, ServerStanding::Login];
            let free: usize = free.map(|standing| pool.servers.count(standing)).iter().sum();
            assert_eq!(free, 0, "in a pause no server is free, nor about to be");
        }
        assert!(!mode.refuses_work() || waiting.is_empty(), "who cannot be served does not wait");
        let members = self.house.servers_of(key);
        assert_eq!(members.len(), pool.servers.total(), "every server is counted once");
        for standing in [
            ServerStanding::Login,
            ServerStanding::Idle,
            ServerStanding::Used,
            ServerStanding::Active,
            ServerStanding::Tested,
            ServerStanding::Rescued,
            ServerStanding::Held,
            ServerStanding::Carrier,
            ServerStanding::Leaving,
        ] {
            let stands = |key: &ServerKey| {
                let server = self.house.servers.get(*key);
                server.and_then(|server| server_standing(&server.state)) == Some(standing)
            };
            let there: Vec<ServerKey> = members.iter().copied().filter(stands).collect();
            assert_eq!(there.len(), pool.servers.count(standing), "{standing:?}");
            if standing != ServerStanding::Active {
                let mut queued = pool.servers.of(standing).keys(&self.house.servers);
                queued.sort_unstable();
                assert_eq!(queued, there, "in the queue of {standing:?}");
            }
        }
    }

    /// Whoever wants something from another pooler is known in its pool, and nobody else.
    fn check_peers(&self) {
        let House { clients, servers, peer_pools, .. } = &self.house;
        let (mut waiting, mut carriers) = (0, 0);
        for (id, pool) in peer_pools {
            assert!(self.config.peers.contains_key(id), "peer {id} has been removed");
            for key in pool.waiting.keys(clients) {
                let client = clients.get(key).expect("who waits is there");
                assert_eq!(self.house.peer_of(client), Some(*id));
                waiting += 1;
            }
            for key in pool.carriers.keys(servers) {
                let carrier = servers.get(key).expect("who carries is there");
                assert_eq!((carrier.state.peer(), carrier.pool), (Some(*id), PoolKey::NONE));
                carriers += 1;
            }
            assert_eq!(pool.waiting.len(), pool.waiting.keys(clients).len());
            assert_eq!(pool.carriers.len(), pool.carriers.keys(servers).len());
        }
        let is_waiting = |client: &Client| match &client.state {
            client::State::AwaitingPeer(forward) => forward.carrier.is_none(),
            _ => false,
        };
        assert_eq!(waiting, clients.iter().filter(|(_, client)| is_waiting(client)).count());
        let is_carrier = |server: &Server| server.state.peer().is_some();
        assert_eq!(carriers, servers.iter().filter(|(_, server)| is_carrier(server)).count());
    }

    fn check_rings(&self) {
        let clients = self.house.clients.iter().map(|(_, client)| {
            usize::from(client.inbox.ring().is_some()) + client.egress.rings_held()
        });
        let servers = self.house.servers.iter().map(|(_, server)| {
            usize::from(server.inbox.ring().is_some()) + server.egress.rings_held()
        });
        let held: usize = clients.chain(servers).sum();
        assert_eq!(held, self.house.rings.in_use(), "every ring in use is held by somebody");
    }
}
