//! Laws that span two moments: what may change in the house by one input.

use crate::book::Mode;
use ringbouncer::config::PoolMode;
use ringbouncer::engine::Engine;
use ringbouncer::keys::{ClientKey, PoolKey, ServerKey};
use ringbouncer::pool::queues::{ServerStanding, server_standing};
use ringbouncer::session::client::State;
use ringbouncer::session::server;
use std::time::Instant;

/// Who waited, before an input.
pub struct Queues(Vec<Waiting>);

/// In one pool, in order.
struct Waiting {
    pool: PoolKey,
    /// For a server, or for the welcome.
    all: Vec<ClientKey>,
    for_server: Vec<ClientKey>,
}

impl Queues {
    pub fn of(engine: &Engine) -> Self {
        let house = engine.house();
        let waiting = |(key, pool): (PoolKey, &ringbouncer::pool::Pool)| {
            let all = pool.waiting.keys(&house.clients);
            let mut for_server = all.clone();
            for_server.retain(|client| waits_for_server(engine, *client));
            Waiting { pool: key, all, for_server }
        };
        Self(house.pools.iter().map(waiting).collect())
    }

    /// Who came first is served first, and nobody waits while a server is free.
    pub fn check(&self, engine: &Engine) {
        let house = engine.house();
        for before in &self.0 {
            let Some(pool) = house.pools.get(before.pool) else {
                continue;
            };
            let now = pool.waiting.keys(&house.clients);
            let newcomers = now.iter().skip_while(|client| before.all.contains(client));
            assert!(newcomers.clone().all(|client| !before.all.contains(client)), "join behind");
            let mut still = now.clone();
            still.retain(|client| before.for_server.contains(client));
            let place = |client: &ClientKey| before.for_server.iter().position(|key| key == client);
            if !still.is_sorted_by_key(place) {
                // Who has cancelled what it waited for and asks for the next thing stands last.
                assert_eq!(still.pop().as_ref(), now.last(), "order kept");
            }
            assert!(still.is_sorted_by_key(place), "order kept");
            let mut passed_over = None;
            for client in &before.for_server {
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
            let queue = pool.waiting.keys(&house.clients);
            let waits = queue.into_iter().any(|key| waits_for_server(engine, key));
            // One that is in the middle of saying something cannot serve yet.
            let idle = pool.servers.of(ServerStanding::Idle).keys(&house.servers);
            let is_free = idle
                .into_iter()
                .any(|key| house.servers.get(key).is_some_and(|server| server.is_done()));
            assert!(!waits || !is_free, "somebody waits while a server is free");
            let is_paused = pool.is_paused || house.mode.is_paused();
            let used = pool.servers.count(ServerStanding::Used);
            let is_cared_for = used == 0 || pool.is_cared_for() || is_paused;
            assert!(is_cared_for, "somebody waits, and a server is not tried out");
        }
    }
}

/// No database and no user has more servers than it may, those that are leaving included. (What
/// carries a cancel may come on top.)
pub fn check_limits(engine: &Engine) {
    let house = engine.house();
    for (_, pool) in house.pools.iter() {
        let limits = pool.group_limits(engine.config());
        for (group, limit) in pool.groups.into_iter().zip(limits) {
            let (Some(group), Some(limit)) = (house.groups.get(group), limit) else {
                continue;
            };
            let serves = |key: &&ServerKey| {
                let server = house.servers.get(**key);
                let standing = server.and_then(|server| server_standing(&server.state));
                standing != Some(ServerStanding::Carrier)
            };
            let present = group.servers.iter().filter(serves).count();
            assert!(present <= limit, "{present} servers of {}, {limit} allowed", group.name);
        }
    }
}

/// Servers that have served nobody yet although clients of their own pool wait.
pub struct Fresh {
    evicted: u64,
    servers: Vec<(ServerKey, ClientKey)>,
}

impl Fresh {
    pub fn of(engine: &Engine) -> Self {
        let house = engine.house();
        let servers = house.servers.iter().filter(|(_, server)| !server.has_worked);
        let servers = servers.filter_map(|(key, server)| {
            let pool = house.pools.get(server.pool)?;
            // Who replicates has no use for it, but for its place.
            let first = pool.waiting.first().filter(|client| waits_for_server(engine, *client))?;
            let standing = server_standing(&server.state);
            matches!(standing, Some(ServerStanding::Login | ServerStanding::Idle))
                .then_some((key, first))
        });
        Self { evicted: evictions(engine), servers: servers.collect() }
    }

    /// An eviction makes progress: it takes no place from a pool whose clients wait before that place
    /// has served one of them.
    pub fn check(&self, engine: &Engine) {
        if evictions(engine) == self.evicted {
            return;
        }
        for (key, first) in &self.servers {
            let state = engine.house().servers.get(*key).map(|server| &server.state);
            let is_gone = matches!(state, Some(server::State::Leaving(_)));
            let waits = waits_for_server(engine, *first);
            assert!(!is_gone || !waits, "{key:?} was evicted before it served anybody");
        }
    }
}

fn evictions(engine: &Engine) -> u64 {
    let mut endings = engine.house().endings.iter();
    endings.find(|(_, cause, _)| *cause == "evicted").map_or(0, |(_, _, count)| count)
}

/// Who is free for so long is not handed out untried.
pub struct Rested(Vec<ServerKey>);

impl Rested {
    pub fn of(engine: &Engine, now: Instant) -> Self {
        let house = engine.house();
        let servers = house.servers.iter().filter(|(_, server)| {
            let delay = engine.settings().check_after();
            let rests = |since: Instant| {
                let since = since.max(server.spoke_at);
                delay.is_some_and(|delay| !delay.is_zero() && now >= since + delay)
            };
            match server.state {
                server::State::Idle { since } => rests(since),
                server::State::Used { .. } => engine.settings().check_after().is_some(),
                _ => false,
            }
        });
        Self(servers.map(|(key, _)| key).collect())
    }

    pub fn check(&self, engine: &Engine) {
        for key in &self.0 {
            let state = engine.house().servers.get(*key).map(|server| &server.state);
            let serves = matches!(state, Some(server::State::Active { .. }));
            assert!(!serves, "{key:?} was not tried out");
        }
    }
}

/// In a complete suspension no byte of anybody lies with us, and nobody is in the middle of
/// something that only we know of.
pub fn check_quiet(engine: &Engine) {
    let house = engine.house();
    if !house.mode.is_quiet() {
        return;
    }
    for (key, client) in house.clients.iter() {
        let is_still = client.inbox.unjudged() == 0 && !client.inbox.is_mid_message();
        match client.state {
            State::Idle | State::Active { .. } => {
                assert!(is_still && client.egress.is_empty(), "{key:?} is not still");
            }
            State::Console { .. } | State::Closing => {}
            _ => panic!("{key:?} is {:?}", client.state),
        }
    }
    for (key, server) in house.servers.iter() {
        let is_still = server.inbox.unjudged() == 0 && !server.inbox.is_mid_message();
        match server.state {
            server::State::Idle { .. } | server::State::Active { .. } => {
                assert!(is_still && server.egress.is_empty(), "{key:?} is not still");
            }
            server::State::Leaving(_) | server::State::Closing => {}
            // Whether PostgreSQL stands still may be asked at any time.
            _ => assert!(server.is_probe(), "{key:?} is {:?}", server.state),
        }
    }
}

/// Limits hold: at the end of a turn nobody is over his.
pub fn check_times(engine: &Engine, now: Instant) {
    let house = engine.house();
    for (key, client) in house.clients.iter() {
        if let Some((at, reason)) = house.client_end(client, engine.config()) {
            assert!(at > now, "{key:?}: {reason} was due {:?} ago", now - at);
        }
    }
    for (key, server) in house.servers.iter() {
        if let Some((at, fate)) = house.server_end(server, engine.config()) {
            assert!(at > now, "{key:?}: {fate:?} was due {:?} ago", now - at);
        }
    }
}

/// Whoever replicates waits for a server of its own.
fn waits_for_server(engine: &Engine, client: ClientKey) -> bool {
    let client = engine.house().clients.get(client);
    let client = client.filter(|client| client.replicator.is_none());
    matches!(client.map(|client| &client.state), Some(State::Waiting { .. }))
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
    for (pool_key, pool) in house.pools.iter() {
        let name = &pool.database.name;
        assert!(pool.waiting.is_empty(), "{name}: nobody waits");
        assert!(pool.cancels.is_empty(), "{name}: no cancel waits");
        for key in house.servers_of(pool_key) {
            let server = house.servers.get(key).expect("who is queued is there");
            let state = &server.state;
            let is_free = matches!(state, server::State::Idle { .. } | server::State::Used { .. });
            assert!(is_free, "{name}: {key:?} is {state:?}");
        }
    }
    for (_, server) in house.servers.iter() {
        assert!(server.is_done() && server.cancels_in_flight == 0, "a server that owes nothing");
    }
}
