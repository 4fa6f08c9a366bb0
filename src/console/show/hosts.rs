//! Where servers are: SHOW DNS_HOSTS, DNS_ZONES, and ours, HOSTS.

use super::View;
use crate::config::Database;
use crate::console::table::{Cell, Column, Row, Type};
use crate::pool::zones::zone_of;
use Type::{Big, Int, Numeric, Text};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

pub const DNS_HOSTS_COLUMNS: [Column; 3] = [("hostname", Text), ("ttl", Big), ("addrs", Text)];

pub const DNS_ZONES_COLUMNS: [Column; 3] = [("zonename", Text), ("serial", Big), ("count", Int)];

pub const COLUMNS: [Column; 8] = [
    ("host", Text),
    ("port", Int),
    ("address", Text),
    ("state", Text),
    ("failures", Int),
    ("retry_in_us", Numeric),
    ("servers", Int),
    ("error", Text),
];

/// As PgBouncer: a list of addresses is about so long at most.
const MAX_ADDRESSES_BYTES: usize = 1024;

pub fn dns_hosts(view: &View<'_>) -> Vec<Row> {
    let known = view.engine.house().names.known(view.moment.now);
    let row = |host: crate::pool::names::Known<'_>| {
        let mut addresses = String::new();
        for address in host.addresses {
            // There is no port yet, and the column has always shown one.
            let next = SocketAddr::new(*address, 0).to_string();
            if addresses.len() + 1 + next.len() > MAX_ADDRESSES_BYTES {
                break;
            }
            let comma = if addresses.is_empty() { "" } else { "," };
            addresses = addresses + comma + &next;
        }
        let ttl = i64::try_from(host.time_left.as_secs()).unwrap_or(i64::MAX);
        vec![Cell::text(host.name), Cell::Big(ttl), Cell::text(addresses)]
    };
    known.map(row).collect()
}

/// The zones of all names, and how many names each has.
pub fn zones(view: &View<'_>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for zone in view.engine.house().names.names().filter_map(zone_of) {
        *counts.entry(zone).or_default() += 1;
    }
    counts
}

pub fn dns_zones(view: &View<'_>) -> Vec<Row> {
    let serials = &view.engine.house().zones;
    let row = |(zone, count): (String, usize)| {
        let serial = i64::from(serials.serial(&zone));
        vec![Cell::text(zone), Cell::Big(serial), Cell::count(count)]
    };
    zones(view).into_iter().map(row).collect()
}

/// How a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing speaks against it.
    Healthy,
    /// The last connection to it failed.
    Failing,
    /// So it was, and a connection is under way that shows whether it still is.
    Probed,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            State::Healthy => "healthy",
            State::Failing => "failing",
            State::Probed => "probed",
        }
    }
}

/// What SHOW HOSTS and the metrics tell of a host.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub port: u16,
    pub state: State,
    pub failures: u32,
    pub retry_in_us: u64,
    pub servers: usize,
    pub error: Option<String>,
}

/// All hosts that servers may be at, by name and port.
pub fn hosts(view: &View<'_>) -> Vec<Host> {
    let (house, config) = (view.engine.house(), view.engine.config());
    let mut servers: HashMap<&str, usize> = HashMap::new();
    for host in house.servers.iter().filter_map(|(_, server)| server.host.as_deref()) {
        *servers.entry(host).or_default() += 1;
    }
    let mut named: BTreeMap<(String, u16), Host> = BTreeMap::new();
    let entries = config.databases.values();
    let entries = entries.chain(house.pools.iter().map(|(_, pool)| &pool.database));
    for entry in entries {
        for name in names_of(entry, &config.settings.unix_socket_dir) {
            let key = format!("{name}:{}", entry.port);
            let failing = house.hosts.get(key.as_str());
            let state = match failing {
                None => State::Healthy,
                Some(failing) if house.is_probed(failing) => State::Probed,
                Some(_) => State::Failing,
            };
            let retry_in = failing.map(|failing| {
                failing.retry_at.saturating_duration_since(view.moment.now).as_micros()
            });
            let host = Host {
                name: name.to_owned(),
                port: entry.port,
                state,
                failures: failing.map_or(0, |failing| failing.failures),
                retry_in_us: u64::try_from(retry_in.unwrap_or(0)).unwrap_or(u64::MAX),
                servers: servers.get(key.as_str()).copied().unwrap_or(0),
                error: failing.map(|failing| failing.error.clone()),
            };
            named.insert((name.to_owned(), entry.port), host);
        }
    }
    named.into_values().collect()
}

/// The hosts of a database; without any, the directory of our own Unix socket.
fn names_of<'a>(entry: &'a Database, directory: &'a str) -> Vec<&'a str> {
    let listed: Vec<&str> = entry.hosts().collect();
    if listed.is_empty() { vec![directory] } else { listed }
}

pub fn rows(view: &View<'_>) -> Vec<Row> {
    let known = &view.engine.house().names;
    let row = |host: Host| {
        let address = match host.name.starts_with(['/', '@']) {
            true => format!("{}/.s.PGSQL.{}", host.name, host.port),
            false if host.name.parse::<IpAddr>().is_ok() => host.name.clone(),
            false => {
                let found = known.addresses(&host.name).iter().map(IpAddr::to_string);
                found.collect::<Vec<_>>().join(",")
            }
        };
        vec![
            Cell::text(host.name),
            Cell::Int(i32::from(host.port)),
            Cell::text(address),
            host.state.word().into(),
            Cell::Int(i32::try_from(host.failures).unwrap_or(i32::MAX)),
            Cell::Numeric(host.retry_in_us),
            Cell::count(host.servers),
            Cell::maybe(host.error),
        ]
    };
    hosts(view).into_iter().map(row).collect()
}
