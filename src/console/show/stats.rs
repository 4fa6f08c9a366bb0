//! SHOW STATS, STATS_TOTALS, STATS_AVERAGES and TOTALS.
//!
//! One list of the counters with their many names; version 1.25 does not know the last of them.

use super::View;
use crate::config::values::CompatVersion;
use crate::console::table::{Cell, Column, Row, Type::Numeric, Type::Text};
use crate::pool::stats::{Averages, Counters, Stats};

/// A counter and what the tables call it.
struct Counter {
    total: &'static str,
    average: &'static str,
    /// In STATS_TOTALS.
    plain: &'static str,
    /// In STATS_AVERAGES, where some have the prefix and some not.
    averaged: &'static str,
    /// In TOTALS, for both.
    sums: [&'static str; 2],
    read: fn(&Counters) -> u64,
}

macro_rules! counters {
    ($($field:ident $total:literal $average:literal $plain:literal $averaged:literal $sum:literal $sum_average:literal;)*) => {
        const COUNTERS: &[Counter] = &[$(Counter {
            total: $total,
            average: $average,
            plain: $plain,
            averaged: $averaged,
            sums: [$sum, $sum_average],
            read: |counters| counters.$field,
        }),*];
    };
}

counters! {
    assignments "total_server_assignment_count" "avg_server_assignment_count" "server_assignment_count" "server_assignment_count" "total_server_assignment_count" "avg_server_assignment_count";
    transactions "total_xact_count" "avg_xact_count" "xact_count" "xact_count" "total_xact_count" "avg_xact_count";
    queries "total_query_count" "avg_query_count" "query_count" "query_count" "total_query_count" "avg_query_count";
    received_bytes "total_received" "avg_recv" "bytes_received" "bytes_received" "total_client_bytes" "avg_client_bytes";
    sent_bytes "total_sent" "avg_sent" "bytes_sent" "bytes_sent" "total_server_bytes" "avg_server_bytes";
    transaction_us "total_xact_time" "avg_xact_time" "xact_time" "xact_time" "total_xact_time" "avg_xact_time";
    query_us "total_query_time" "avg_query_time" "query_time" "query_time" "total_query_time" "avg_query_time";
    wait_us "total_wait_time" "avg_wait_time" "wait_time" "wait_time" "total_wait_time" "avg_wait_time";
    client_parses "total_client_parse_count" "avg_client_parse_count" "client_parse_count" "avg_client_parse_count" "total_ps_client_parse_count" "avg_ps_client_parse_count";
    server_parses "total_server_parse_count" "avg_server_parse_count" "server_parse_count" "avg_server_parse_count" "total_ps_server_parse_count" "avg_ps_server_parse_count";
    binds "total_bind_count" "avg_bind_count" "bind_count" "avg_bind_count" "total_ps_bind_count" "avg_ps_bind_count";
    client_logins "total_client_login_count" "avg_client_login_count" "client_login_count" "avg_client_login_count" "total_client_login_count" "avg_client_login_count";
}

/// Those that this version knows.
fn known(version: CompatVersion) -> &'static [Counter] {
    match version {
        CompatVersion::V1_26 => COUNTERS,
        CompatVersion::V1_25 => &COUNTERS[..COUNTERS.len() - 1],
    }
}

fn columns(names: impl Iterator<Item = &'static str>) -> Vec<Column> {
    let numbers = names.map(|name| (name, Numeric));
    std::iter::once(("database", Text)).chain(numbers).collect()
}

pub fn stats_columns(version: CompatVersion) -> Vec<Column> {
    let counters = known(version);
    let totals = counters.iter().map(|counter| counter.total);
    columns(totals.chain(counters.iter().map(|counter| counter.average)))
}

pub fn totals_columns(version: CompatVersion) -> Vec<Column> {
    columns(known(version).iter().map(|counter| counter.plain))
}

pub fn averages_columns(version: CompatVersion) -> Vec<Column> {
    columns(known(version).iter().map(|counter| counter.averaged))
}

/// Which of a database's numbers a row has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Both,
    Totals,
    Averages,
}

pub fn by_database(view: &View<'_>, which: Which) -> Vec<Row> {
    let house = view.engine.house();
    let databases = house.stats_by_database();
    databases
        .into_iter()
        .map(|(name, stats)| {
            let mut row = vec![Cell::text(name)];
            if which != Which::Averages {
                row.extend(numbers(view, &stats.total));
            }
            if which != Which::Totals {
                row.extend(numbers(view, &averages(view, &stats).0));
            }
            row
        })
        .collect()
}

fn averages(view: &View<'_>, stats: &Stats) -> Averages {
    view.engine.house().periods.averages(stats, view.moment.now)
}

fn numbers(view: &View<'_>, counters: &Counters) -> impl Iterator<Item = Cell> {
    let known = known(view.engine.settings().compat_version);
    known.iter().map(|counter| Cell::Numeric((counter.read)(counters)))
}

pub fn sums(view: &View<'_>) -> Vec<Row> {
    let stats = view.engine.house().total_stats();
    let both = [stats.total, averages(view, &stats).0];
    let known = known(view.engine.settings().compat_version);
    let rows = both.iter().enumerate().flat_map(|(index, counters)| {
        known.iter().map(move |counter| {
            vec![counter.sums[index].into(), Cell::Numeric((counter.read)(counters))]
        })
    });
    rows.collect()
}
