//! Tables that PgBouncer does not have: SHOW HOLDERS, WAITS, ERRORS, HISTOGRAMS and RINGS.

use super::{View, pointer};
use crate::config::CONSOLE;
use crate::console::table::{Cell, Column, Row, Type};
use crate::keys::{Conn, ServerKey};
use crate::pool::causes::Cause;
use crate::pool::stats::microseconds;
use crate::pool::times::{BOUNDED, Times};
use crate::session::params::APPLICATION_NAME;
use crate::session::server::{Activity, Server};
use Type::{Big, Int, Numeric, Text};
use std::collections::BTreeMap;

pub const HOLDERS_COLUMNS: [Column; 11] = [
    ("database", Text),
    ("pool_user", Text),
    ("user", Text),
    ("application_name", Text),
    ("client", Text),
    ("server", Text),
    ("state", Text),
    ("held_us", Numeric),
    ("query_us", Numeric),
    ("last_statement", Text),
    ("bytes_waiting", Numeric),
];

pub const WAITS_COLUMNS: [Column; 6] = [
    ("database", Text),
    ("user", Text),
    ("cause", Text),
    ("waiting", Int),
    ("wait_count", Numeric),
    ("wait_time", Numeric),
];

pub const ERRORS_COLUMNS: [Column; 3] = [("side", Text), ("cause", Text), ("count", Numeric)];

pub const RINGS_COLUMNS: [Column; 2] = [("name", Text), ("value", Big)];

/// The buckets stand beside each other, each with what is in it alone.
pub fn histogram_columns() -> Vec<Column> {
    let fixed = [
        ("database", Text),
        ("time", Text),
        ("count", Numeric),
        ("sum_us", Numeric),
        ("p50_us", Numeric),
        ("p95_us", Numeric),
        ("p99_us", Numeric),
    ];
    fixed.into_iter().chain(BUCKET_NAMES.map(|name| (name, Numeric))).collect()
}

const BUCKET_NAMES: [&str; BOUNDED + 1] = [
    "le_16us",
    "le_32us",
    "le_64us",
    "le_128us",
    "le_256us",
    "le_512us",
    "le_1024us",
    "le_2048us",
    "le_4096us",
    "le_8192us",
    "le_16384us",
    "le_32768us",
    "le_65536us",
    "le_131072us",
    "le_262144us",
    "le_524288us",
    "le_1048576us",
    "le_2097152us",
    "le_4194304us",
    "le_8388608us",
    "le_16777216us",
    "le_33554432us",
    "le_67108864us",
    "le_134217728us",
    "le_inf",
];

/// Each server that works for a client, or still does what one has left behind, longest held first.
pub fn holders(view: &View<'_>) -> Vec<Row> {
    let house = view.engine.house();
    let mut rows: Vec<(u64, Row)> = Vec::new();
    for (key, server) in house.servers.iter() {
        rows.extend(rescued(view, key, server));
        let Some((client_key, client)) =
            server.client().and_then(|key| Some((key, house.clients.get(key)?)))
        else {
            continue;
        };
        let Some(pool) = house.pools.get(server.pool) else {
            continue;
        };
        let age = |since: Option<std::time::Instant>| {
            since.map_or(0, |since| microseconds(since, view.moment.now))
        };
        let held = age(client.transaction_since);
        let state = match server.activity {
            Activity::Ready => "idle",
            Activity::InTransaction => "idle in transaction",
            Activity::Busy => "active",
        };
        let name = house.values.text(client.parameters.value(APPLICATION_NAME)).unwrap_or_default();
        let waiting = client.inbox.unjudged() + server.egress.bytes() + client.egress.bytes();
        let row = vec![
            Cell::text(&pool.database.name),
            Cell::text(&pool.user),
            Cell::text(client.user.as_deref().unwrap_or("(nouser)")),
            Cell::text(String::from_utf8_lossy(name)),
            Cell::text(pointer(Conn::Client(client_key))),
            Cell::text(pointer(Conn::Server(key))),
            state.into(),
            Cell::Numeric(held),
            Cell::Numeric(age(client.query_since)),
            Cell::maybe(server.statements.last_used()),
            Cell::Numeric(waiting),
        ];
        rows.push((held, row));
    }
    rows.sort_by_key(|(held, _)| std::cmp::Reverse(*held));
    rows.into_iter().map(|(_, row)| row).collect()
}

/// A server whose client has gone: nobody's, for now.
fn rescued(view: &View<'_>, key: ServerKey, server: &Server) -> Option<(u64, Row)> {
    let rescue = server.rescue()?;
    let pool = view.engine.house().pools.get(server.pool)?;
    let held = microseconds(rescue.since, view.moment.now);
    let row = vec![
        Cell::text(&pool.database.name),
        Cell::text(&pool.user),
        "(nouser)".into(),
        "".into(),
        Cell::text(pointer(Conn::Client(rescue.client))),
        Cell::text(pointer(Conn::Server(key))),
        rescue.step.word().into(),
        Cell::Numeric(held),
        Cell::Numeric(0),
        Cell::maybe(server.statements.last_used()),
        Cell::Numeric(server.egress.bytes()),
    ];
    Some((held, row))
}

/// For each pool and cause: who waits now, who has waited, and how long.
pub fn waits(view: &View<'_>) -> Vec<Row> {
    let house = view.engine.house();
    let mut pools: Vec<_> = house.pools.iter().map(|(_, pool)| pool).collect();
    pools.sort_by(|a, b| (&a.database.name, &a.user).cmp(&(&b.database.name, &b.user)));
    let mut rows = Vec::new();
    for pool in pools {
        let mut now = [0_usize; Cause::ALL.len()];
        for client in pool.waiting.keys(&house.clients) {
            let client = house.clients.get(client);
            if let Some(place) = client.and_then(|c| now.get_mut(usize::from(c.wait_cause))) {
                *place += 1;
            }
        }
        for cause in Cause::ALL {
            let (count, time) = pool.waits.of(cause);
            rows.push(vec![
                Cell::text(&pool.database.name),
                Cell::text(&pool.user),
                cause.word().into(),
                Cell::count(now[cause as usize]),
                Cell::Numeric(count),
                Cell::Numeric(time),
            ]);
        }
    }
    rows
}

/// Why connections have ended, and how many of them.
pub fn errors(view: &View<'_>) -> Vec<Row> {
    let endings = view.engine.house().endings.iter();
    let row = |(side, cause, count): (crate::pool::causes::Side, &str, u64)| {
        vec![side.word().into(), Cell::text(cause), Cell::Numeric(count)]
    };
    endings.map(row).collect()
}

/// The times of each database.
pub fn times_by_database<'a>(view: &View<'a>) -> BTreeMap<&'a str, Times> {
    let mut sums: BTreeMap<&str, Times> = BTreeMap::new();
    for (_, pool) in view.engine.house().pools.iter() {
        sums.entry(&pool.database.name).or_default().add(&pool.times);
    }
    debug_assert!(!sums.contains_key(CONSOLE), "the console is no pool");
    sums
}

pub fn histograms(view: &View<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (database, times) in times_by_database(view) {
        for (name, histogram) in times.named() {
            let mut row = vec![Cell::text(database), name.into()];
            let quantiles = [500, 950, 990].map(|per_mille| histogram.quantile_us(per_mille));
            let numbers = [histogram.count(), histogram.sum_us()].into_iter().chain(quantiles);
            row.extend(numbers.map(Cell::Numeric));
            row.extend(histogram.counts().map(Cell::Numeric));
            rows.push(row);
        }
    }
    rows
}

pub fn rings(view: &View<'_>) -> Vec<Row> {
    let rings = &view.engine.house().rings;
    let numbers = [
        ("ring_bytes", rings.ring_bytes()),
        ("in_use", rings.in_use()),
        ("free", rings.free()),
        ("high_water", rings.high_water()),
    ];
    let big = |number: usize| Cell::Big(i64::try_from(number).unwrap_or(i64::MAX));
    numbers.map(|(name, number)| vec![name.into(), big(number)]).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::times::bound_us;

    #[test]
    fn buckets_are_named_for_their_bounds() {
        for (bucket, name) in BUCKET_NAMES.iter().take(BOUNDED).enumerate() {
            assert_eq!(*name, format!("le_{}us", bound_us(bucket)));
        }
    }
}
