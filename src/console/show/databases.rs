//! SHOW DATABASES: the entries, what holds for each, and how much it is used.

use super::View;
use crate::config::entries::Database;
use crate::config::{CONSOLE, LoadBalanceHosts};
use crate::console::table::{Cell, Column, Row, Type::Int, Type::Text};
use std::collections::BTreeMap;

pub const COLUMNS: [Column; 17] = [
    ("name", Text),
    ("host", Text),
    ("port", Int),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int),
    ("min_pool_size", Int),
    ("reserve_pool_size", Int),
    ("server_lifetime", Int),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
    ("max_connections", Int),
    ("current_connections", Int),
    ("max_client_connections", Int),
    ("current_client_connections", Int),
    ("paused", Int),
    ("disabled", Int),
];

/// How much a database is used.
#[derive(Clone, Copy, Default)]
struct Use {
    servers: usize,
    clients: usize,
}

pub fn rows(view: &View<'_>) -> Vec<Row> {
    let house = view.engine.house();
    let mut entries: BTreeMap<&str, &Database> = BTreeMap::new();
    for (name, entry) in &view.engine.config().databases {
        entries.insert(name, entry);
    }
    for (_, pool) in house.pools.iter() {
        // Those made from `*` are known by their pools alone.
        entries.entry(&pool.database.name).or_insert(&pool.database);
    }
    // And by what the operator has said of them, even if nobody has come yet.
    let named = house.paused_databases.iter().chain(&house.disabled_databases);
    let named: Vec<Database> = named
        .filter(|name| !entries.contains_key(name.as_str()))
        .filter_map(|name| view.engine.config().auto(name)?.ok())
        .collect();
    for entry in &named {
        entries.entry(&entry.name).or_insert(entry);
    }
    let mut rows: Vec<(&str, Row)> = entries
        .into_iter()
        .map(|(name, entry)| {
            let group = house.groups.database(name);
            let used = group.map_or(Use::default(), |group| Use {
                servers: group.servers.len(),
                clients: group.clients,
            });
            (name, row(view, entry, used))
        })
        .collect();
    rows.push((CONSOLE, console_row(view)));
    rows.sort_by_key(|(name, _)| *name);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn row(view: &View<'_>, entry: &Database, used: Use) -> Row {
    let settings = view.engine.settings();
    let house = view.engine.house();
    let own_or =
        |own: Option<i32>, global: i32| Cell::Int(own.filter(|n| *n >= 0).unwrap_or(global));
    let positive_or =
        |own: Option<i32>, global: i32| Cell::Int(own.filter(|n| *n > 0).unwrap_or(global));
    let lifetime = entry.server_lifetime.filter(|lifetime| !lifetime.is_zero());
    let lifetime = lifetime.unwrap_or(settings.server_lifetime).as_secs();
    vec![
        Cell::text(&entry.name),
        Cell::maybe(entry.host.as_deref()),
        Cell::Int(i32::from(entry.port)),
        Cell::text(&entry.dbname),
        Cell::maybe(entry.user.as_deref()),
        own_or(entry.pool_size, settings.default_pool_size),
        own_or(entry.min_pool_size, settings.min_pool_size),
        own_or(entry.reserve_pool_size, settings.reserve_pool_size),
        Cell::count(usize::try_from(lifetime).unwrap_or(usize::MAX)),
        entry.pool_mode.map_or(Cell::Null, |mode| mode.word().into()),
        load_balance_hosts(entry),
        positive_or(entry.max_db_connections, settings.max_db_connections),
        Cell::count(used.servers),
        positive_or(entry.max_db_client_connections, settings.max_db_client_connections),
        Cell::count(used.clients),
        Cell::Int(i32::from(house.paused_databases.contains(&entry.name))),
        Cell::Int(i32::from(house.disabled_databases.contains(&entry.name))),
    ]
}

/// NULL unless there are several hosts.
pub fn load_balance_hosts(entry: &Database) -> Cell {
    match (&entry.host, entry.load_balance_hosts) {
        (Some(host), turns) if host.contains(',') => match turns {
            LoadBalanceHosts::RoundRobin => "round-robin".into(),
            LoadBalanceHosts::Disable => "disable".into(),
        },
        _ => Cell::Null,
    }
}

fn console_row(view: &View<'_>) -> Row {
    let settings = view.engine.settings();
    let lifetime = settings.server_lifetime.as_secs();
    vec![
        CONSOLE.into(),
        Cell::Null,
        Cell::Int(settings.listen_port),
        CONSOLE.into(),
        CONSOLE.into(),
        Cell::Int(2),
        Cell::Int(settings.min_pool_size),
        Cell::Int(settings.reserve_pool_size),
        Cell::count(usize::try_from(lifetime).unwrap_or(usize::MAX)),
        "statement".into(),
        Cell::Null,
        Cell::Int(settings.max_db_connections),
        Cell::Int(0),
        Cell::Int(settings.max_db_client_connections),
        Cell::count(view.engine.house().console_clients),
        Cell::Int(0),
        Cell::Int(0),
    ]
}
