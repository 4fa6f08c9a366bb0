//! The small tables.

use super::{View, connections};
use crate::console::table::{Cell, Column, Row, Type};
use crate::keys::Conn;
use crate::session::client::{Client, State};
use crate::session::server::Server;
use Type::{Big, Bytes, Int, Text};

pub const FDS_COLUMNS: [Column; 15] = [
    ("fd", Int),
    ("task", Text),
    ("user", Text),
    ("database", Text),
    ("addr", Text),
    ("port", Int),
    ("cancel", Big),
    ("link", Int),
    ("client_encoding", Text),
    ("std_strings", Text),
    ("datestyle", Text),
    ("timezone", Text),
    ("password", Text),
    ("scram_client_key", Bytes),
    ("scram_server_key", Bytes),
];

pub const MEM_COLUMNS: [Column; 5] =
    [("name", Text), ("size", Int), ("used", Int), ("free", Int), ("memtotal", Int)];

pub fn version(view: &View<'_>) -> Vec<Row> {
    vec![vec![view.engine.settings().compat_version.banner().into()]]
}

/// Only what holds for the whole house counts here.
pub fn state(view: &View<'_>) -> Vec<Row> {
    let mode = view.engine.house().mode;
    let paused = mode.is_paused();
    let suspended = mode.is_suspended();
    let active = !paused && !suspended;
    let rows = [("active", active), ("paused", paused), ("suspended", suspended)];
    rows.map(|(key, holds)| vec![key.into(), if holds { "yes" } else { "no" }.into()]).to_vec()
}

pub fn lists(view: &View<'_>) -> Vec<Row> {
    let (house, config) = (view.engine.house(), view.engine.config());
    let auto = house.pools.iter().map(|(_, pool)| pool.database.name.as_str());
    let auto = auto.filter(|name| !config.databases.contains_key(*name));
    let databases = config.databases.len() + auto.collect::<std::collections::BTreeSet<_>>().len();
    let rows = [
        ("databases", databases + 1),
        ("users", super::users::names(view).len()),
        ("peers", config.peers.len()),
        ("pools", house.pools.len() + 1),
        ("peer_pools", house.peer_pools.len()),
        ("free_clients", 0),
        ("used_clients", house.open_clients() - house.logging_in.len()),
        ("login_clients", house.logging_in.len()),
        ("free_servers", 0),
        ("used_servers", house.servers.len()),
        ("dns_names", house.names.len()),
        ("dns_zones", super::hosts::zones(view).len()),
        ("dns_queries", house.names.in_flight()),
        ("dns_pending", 0),
    ];
    rows.map(|(list, items)| vec![list.into(), Cell::count(items)]).to_vec()
}

/// What we keep of each kind. Buffers are rings here.
pub fn mem(view: &View<'_>) -> Vec<Row> {
    let (house, config) = (view.engine.house(), view.engine.config());
    let rings = &house.rings;
    let statements = house.statements.len();
    let client_bytes = std::mem::size_of::<Client>();
    let rows = [
        ("user_cache", 128, super::users::names(view).len(), 0),
        ("credentials_cache", 64, view.engine.access().userlist.len(), 0),
        ("db_cache", 512, config.databases.len() + 1, 0),
        ("peer_cache", 64, config.peers.len(), 0),
        (
            "peer_pool_cache",
            std::mem::size_of::<crate::pool::peers::PeerPool>(),
            house.peer_pools.len(),
            0,
        ),
        ("pool_cache", std::mem::size_of::<crate::pool::Pool>(), house.pools.len() + 1, 0),
        ("outstanding_request_cache", 16, 0, 0),
        ("server_cache", std::mem::size_of::<Server>(), house.servers.len(), 0),
        ("client_cache", client_bytes, house.clients.len(), 0),
        ("iobuf_cache", rings.ring_bytes(), rings.in_use(), rings.free()),
        ("var_list_cache", house.values.bytes(), 1, 0),
        ("server_prepared_statement_cache", 64, statements, 0),
    ];
    rows.map(|(name, size, used, free)| {
        let total = (used + free).saturating_mul(size);
        let numbers = [size, used, free, total].map(Cell::count);
        std::iter::once(name.into()).chain(numbers).collect()
    })
    .to_vec()
}

/// Listeners, clients and servers with their descriptors; for the next process, and for people.
pub fn fds(view: &View<'_>) -> Vec<Row> {
    let settings = view.engine.settings();
    let mut rows = Vec::new();
    for listener in view.outside.listeners() {
        let mut row = vec![Cell::Int(listener.descriptor), "pooler".into(), Cell::Null, Cell::Null];
        row.push(Cell::text(listener.address));
        row.extend([Cell::Int(settings.listen_port), Cell::Big(0), Cell::Int(0)]);
        row.extend(std::iter::repeat_n(Cell::Null, 7));
        rows.push(row);
    }
    // Those that log in come first.
    let (mut login, others): (Vec<Conn>, Vec<Conn>) =
        connections::sockets(view).into_iter().partition(|conn| is_logging_in(view, *conn));
    login.extend(others);
    rows.extend(login.into_iter().filter_map(|conn| connections::fd_row(view, conn)));
    rows
}

fn is_logging_in(view: &View<'_>, conn: Conn) -> bool {
    let Conn::Client(key) = conn else {
        return false;
    };
    let client = view.engine.house().clients.get(key);
    client.is_some_and(|client| client.state == State::LoggingIn)
}
