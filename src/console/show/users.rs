//! SHOW USERS: everybody we know by name.

use super::View;
use crate::config::{CONSOLE, Database};
use crate::console::table::{Cell, Column, Row, Type::Int, Type::Text};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const COLUMNS: [Column; 8] = [
    ("name", Text),
    ("pool_size", Text),
    ("reserve_pool_size", Text),
    ("pool_mode", Text),
    ("max_user_connections", Int),
    ("current_connections", Int),
    ("max_user_client_connections", Int),
    ("current_client_connections", Int),
];

/// Their names: of the user list, of `[users]`, of entries, and of pools.
pub fn names(view: &View<'_>) -> BTreeSet<String> {
    let (engine, config) = (view.engine, view.engine.config());
    let listed =
        engine.access().userlist.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned());
    let of_entry = |entry: &Arc<Database>| [entry.user.clone(), entry.auth_user.clone()];
    let forced = config.databases.values().flat_map(of_entry).flatten();
    let pooled = engine.house().pools.iter().map(|(_, pool)| pool.user.clone());
    listed
        .chain(config.users.keys().cloned())
        .chain(forced)
        .chain(config.settings.auth_user.clone())
        .chain(pooled)
        .chain([CONSOLE.to_owned()])
        .collect()
}

pub fn rows(view: &View<'_>) -> Vec<Row> {
    let house = view.engine.house();
    names(view)
        .into_iter()
        .map(|name| {
            let group = house.groups.user(&name);
            let (servers, clients) =
                group.map_or((0, 0), |group| (group.servers.len(), group.clients));
            row(view, &name, servers, clients)
        })
        .collect()
}

fn row(view: &View<'_>, name: &str, servers: usize, clients: usize) -> Row {
    let config = view.engine.config();
    let user = config.users.get(name);
    let aligned = |size: Option<i32>| {
        let size = size.filter(|size| *size >= 0);
        Cell::text(size.map(|size| format!("{size:9}")).unwrap_or_default())
    };
    let effective =
        |own: Option<i32>, global: i32| Cell::Int(own.filter(|n| *n > 0).unwrap_or(global));
    let settings = &config.settings;
    vec![
        Cell::text(name),
        aligned(user.and_then(|user| user.pool_size)),
        aligned(user.and_then(|user| user.reserve_pool_size)),
        user.and_then(|user| user.pool_mode).map_or(Cell::Null, |mode| mode.word().into()),
        effective(user.and_then(|user| user.max_user_connections), settings.max_user_connections),
        Cell::count(servers),
        effective(
            user.and_then(|user| user.max_user_client_connections),
            settings.max_user_client_connections,
        ),
        Cell::count(clients),
    ]
}
