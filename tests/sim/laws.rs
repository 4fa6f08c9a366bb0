//! Laws that span two moments: what may change in the house by one input.

use crate::book::Mode;
use ringbouncer::config::PoolMode;
use ringbouncer::engine::Engine;
use ringbouncer::keys::{ClientKey, PoolKey};
use ringbouncer::pool::queues::ServerStanding;
use ringbouncer::session::client::State;
use ringbouncer::session::server;

/// Who waited for a server, before an input.
pub struct Queues(Vec<(PoolKey, Vec<ClientKey>)>);

impl Queues {
    pub fn of(engine: &Engine) -> Self {
        let house = engine.house();
        let waiting = |(key, pool): (PoolKey, &ringbouncer::pool::Pool)| {
            let mut keys = pool.waiting.keys(&house.clients);
            keys.retain(|key| {
                let state = house.clients.get(*key).map(|client| &client.state);
                matches!(state, Some(State::Waiting { .. }))
            });
            (key, keys)
        };
        Self(house.pools.iter().map(waiting).collect())
    }

    /// Who came first is served first, and nobody waits while a server is free.
    pub fn check(&self, engine: &Engine) {
        let house = engine.house();
        for (key, before) in &self.0 {
            let Some(pool) = house.pools.get(*key) else {
                continue;
            };
            let mut still = pool.waiting.keys(&house.clients);
            still.retain(|client| before.contains(client));
            assert!(still.is_sorted_by_key(|client| place(before, *client)), "order kept");
            let mut passed_over = None;
            for client in before {
                let state = house.clients.get(*client).map(|client| &client.state);
                match state {
                    Some(State::Waiting { .. }) => passed_over = Some(*client),
                    Some(State::Active { .. }) => {
                        assert_eq!(passed_over, None, "first come, first served");
                    }
                    _ => {}
                }
            }
        }
        for (_, pool) in house.pools.iter() {
            let waits = pool.waiting.keys(&house.clients).into_iter().any(|key| {
                let state = house.clients.get(key).map(|client| &client.state);
                matches!(state, Some(State::Waiting { .. }))
            });
            // One that is in the middle of saying something cannot serve yet.
            let idle = pool.servers.of(ServerStanding::Idle).keys(&house.servers);
            let is_free = idle
                .into_iter()
                .any(|key| house.servers.get(key).is_some_and(|server| server.is_done()));
            assert!(!waits || !is_free, "somebody waits while a server is free");
        }
    }
}

fn place(queue: &[ClientKey], client: ClientKey) -> usize {
    queue.iter().position(|key| *key == client).unwrap_or(usize::MAX)
}

/// The engine and the models speak of the same modes.
pub fn mode_of(mode: PoolMode) -> Mode {
    match mode {
        PoolMode::Session => Mode::Session,
        PoolMode::Transaction => Mode::Transaction,
        PoolMode::Statement => Mode::Statement,
    }
}

/// Everybody has come home: no ring is out, nobody waits, every server is free.
pub fn check_home(engine: &Engine) {
    let house = engine.house();
    assert_eq!(house.rings.in_use(), 0, "all rings came back");
    assert_eq!(house.logging_in.len(), 0);
    for (_, pool) in house.pools.iter() {
        let name = &pool.database.name;
        assert!(pool.waiting.is_empty(), "{name}: nobody waits");
        assert!(pool.cancels.is_empty(), "{name}: no cancel waits");
        for key in pool.servers.keys(&house.servers) {
            let server = house.servers.get(key).expect("who is queued is there");
            let state = &server.state;
            assert!(matches!(state, server::State::Idle { .. }), "{name}: {key:?} is {state:?}");
        }
    }
    for (_, server) in house.servers.iter() {
        assert!(server.is_done() && server.cancels_in_flight == 0, "a server that owes nothing");
    }
}
