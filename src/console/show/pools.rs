//! SHOW POOLS, PEERS and PEER_POOLS.

use super::View;
use super::databases::load_balance_hosts;
use crate::config::CONSOLE;
use crate::console::table::{Cell, Column, Row, Type::Int, Type::Text};
use crate::pool::Pool;
use crate::pool::peers::{Counts, PeerPool};
use crate::pool::queues::ServerStanding;
use std::time::Duration;

pub const COLUMNS: [Column; 17] = [
    ("database", Text),
    ("user", Text),
    ("cl_active", Int),
    ("cl_waiting", Int),
    ("cl_active_cancel_req", Int),
    ("cl_waiting_cancel_req", Int),
    ("sv_active", Int),
    ("sv_active_cancel", Int),
    ("sv_being_canceled", Int),
    ("sv_idle", Int),
    ("sv_used", Int),
    ("sv_tested", Int),
    ("sv_login", Int),
    ("maxwait", Int),
    ("maxwait_us", Int),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
];

pub const PEER_COLUMNS: [Column; 4] =
    [("peer_id", Int), ("host", Text), ("port", Int), ("pool_size", Int)];

pub const PEER_POOL_COLUMNS: [Column; 5] = [
    ("peer_id", Int),
    ("cl_active_cancel_req", Int),
    ("cl_waiting_cancel_req", Int),
    ("sv_active_cancel", Int),
    ("sv_login", Int),
];

pub fn rows(view: &View<'_>) -> Vec<Row> {
    let house = view.engine.house();
    let mut pools: Vec<(&str, &str, Row)> = house
        .pools
        .iter()
        .map(|(_, pool)| (pool.database.name.as_str(), pool.user.as_str(), row(view, pool)))
        .collect();
    pools.push((CONSOLE, CONSOLE, console_row(view)));
    pools.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    pools.into_iter().map(|(_, _, row)| row).collect()
}

fn row(view: &View<'_>, pool: &Pool) -> Row {
    let count = |standing| Cell::count(pool.servers.count(standing));
    let sent = pool.servers.count(ServerStanding::Carrier) - connecting_carriers(view, pool);
    let wait = longest_wait(view, pool);
    vec![
        Cell::text(&pool.database.name),
        Cell::text(&pool.user),
        Cell::count(pool.active_clients),
        Cell::count(pool.waiting.len() + pool.askers.len()),
        Cell::count(sent),
        Cell::count(pool.waiting_cancels()),
        count(ServerStanding::Active),
        Cell::count(sent),
        count(ServerStanding::Held),
        count(ServerStanding::Idle),
        count(ServerStanding::Used),
        Cell::count(
            pool.servers.count(ServerStanding::Tested)
                + pool.servers.count(ServerStanding::Rescued),
        ),
        Cell::count(pool.servers.count(ServerStanding::Login) + connecting_carriers(view, pool)),
        Cell::count(usize::try_from(wait.as_secs()).unwrap_or(usize::MAX)),
        Cell::count(wait.subsec_micros() as usize),
        pool.mode.word().into(),
        load_balance_hosts(&pool.database),
    ]
}

/// Connections being opened that shall carry a cancel request.
fn connecting_carriers(view: &View<'_>, pool: &Pool) -> usize {
    let servers = &view.engine.house().servers;
    let carriers = pool.servers.of(ServerStanding::Carrier).keys(servers);
    let is_connecting = |key| servers.get(key).is_some_and(|server| server.is_connecting());
    carriers.into_iter().filter(|key| is_connecting(*key)).count()
}

/// How long the first in the queue has waited; not at all, if it waits for its welcome.
fn longest_wait(view: &View<'_>, pool: &Pool) -> Duration {
    let clients = &view.engine.house().clients;
    let first = pool.waiting.first().and_then(|key| clients.get(key));
    let since = first.and_then(|client| client.query_since);
    since.map_or(Duration::ZERO, |at| view.moment.now.saturating_duration_since(at))
}

fn console_row(view: &View<'_>) -> Row {
    let mut row = vec![CONSOLE.into(), CONSOLE.into()];
    row.push(Cell::count(view.engine.house().console_clients));
    row.extend(std::iter::repeat_n(Cell::Int(0), 12));
    row.extend(["statement".into(), Cell::Null]);
    row
}

pub fn peers(view: &View<'_>) -> Vec<Row> {
    let config = view.engine.config();
    let size = |own: Option<i32>| own.unwrap_or(config.settings.default_pool_size);
    let peers = config.peers.values();
    peers
        .map(|peer| {
            vec![
                Cell::Int(i32::from(peer.id)),
                Cell::text(&peer.host),
                Cell::Int(i32::from(peer.port)),
                Cell::Int(size(peer.pool_size)),
            ]
        })
        .collect()
}

/// Of the peers that a request was ever meant for.
pub fn peer_pools(view: &View<'_>) -> Vec<Row> {
    let house = view.engine.house();
    let row = |(id, pool): (&u16, &PeerPool)| {
        let Counts { waiting, opening, sent } = house.peer_counts(pool);
        let numbers = [sent, waiting, sent, opening].map(Cell::count);
        std::iter::once(Cell::Int(i32::from(*id))).chain(numbers).collect()
    };
    house.peer_pools.iter().map(row).collect()
}
