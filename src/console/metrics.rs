//! The numbers of the house for a monitoring system: a page in the text format of Prometheus, or in
//! OpenMetrics for who asks for that.
//!
//! The names are interface: `etc/grafana.json` and `etc/alerts.yml` use them, and so do others.

use super::show::{View, hosts, own, pools};
use super::table::Cell;
use crate::pool::causes::Cause;
use crate::pool::mode::Mode;
use crate::pool::peers::Counts;
use crate::pool::stats::Counters;
use crate::pool::times::{BOUNDED, Histogram, bound_us};
use std::fmt::{Display, Write};

/// In which of its two dialects the page is written. They differ in the names of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Prometheus, version 0.0.4.
    Prometheus,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Dialect {
    /// For the header of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

struct Page {
    text: String,
    dialect: Dialect,
    name: &'static str,
    kind: Kind,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    /// What follows are samples of this.
    fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        (self.name, self.kind) = (name, kind);
        let suffix = match (self.dialect, kind) {
            (Dialect::Prometheus, Kind::Counter) => "_total",
            _ => "",
        };
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.put(format_args!("# HELP ringbouncer_{name}{suffix} {help}\n"));
        self.put(format_args!("# TYPE ringbouncer_{name}{suffix} {word}\n"));
    }

    fn put(&mut self, words: impl Display) {
        write!(self.text, "{words}").expect("a String takes everything");
    }

    fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
        self.sample_of(suffix, labels, value);
    }

    fn sample_of(&mut self, suffix: &str, labels: Labels<'_>, value: impl Display) {
        let name = self.name;
        self.put(format_args!("ringbouncer_{name}{suffix}"));
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            self.put(format_args!("{before}{label}=\"{}\"", escaped(text)));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        self.put(format_args!("{end} {value}\n"));
    }

    fn histogram(&mut self, labels: Labels<'_>, histogram: &Histogram) {
        let mut sum = 0;
        for (bucket, count) in histogram.counts().iter().enumerate() {
            sum += count;
            let bound = match bucket {
                0..BOUNDED => seconds(bound_us(bucket)),
                _ => "+Inf".to_owned(),
            };
            let labels: Vec<(&str, &str)> =
                labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample_of("_bucket", &labels, sum);
        }
        self.sample_of("_sum", labels, seconds(histogram.sum_us()));
        self.sample_of("_count", labels, sum);
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Microseconds as seconds.
fn seconds(microseconds: u64) -> String {
    format!("{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000)
}

/// The whole page.
pub fn page(view: &View<'_>, dialect: Dialect) -> String {
    let mut page = Page { text: String::new(), dialect, name: "", kind: Kind::Gauge };
    house(view, &mut page);
    statistics(view, &mut page);
    pool_numbers(view, &mut page);
    peers(view, &mut page);
    waits(view, &mut page);
    endings(view, &mut page);
    hosts(view, &mut page);
    rescues(view, &mut page);
    times(view, &mut page);
    if dialect == Dialect::OpenMetrics {
        page.put("# EOF\n");
    }
    page.text
}

fn house(view: &View<'_>, page: &mut Page) {
    let (house, settings) = (view.engine.house(), view.engine.settings());
    page.family("build_info", Kind::Gauge, "Which version this is; always 1.");
    let banner = settings.compat_version.banner();
    page.sample(&[("version", env!("CARGO_PKG_VERSION")), ("compatible", banner)], 1);
    let number = |on: bool| i32::from(on);
    page.family("paused", Kind::Gauge, "Whether everything is paused.");
    page.sample(&[], number(house.mode.is_paused()));
    page.family("shutting_down", Kind::Gauge, "Whether the process is about to end.");
    page.sample(&[], number(matches!(house.mode, Mode::ShuttingDown { .. })));
    page.family("max_client_connections", Kind::Gauge, "The setting max_client_conn.");
    page.sample(&[], settings.max_client_conn.max(0));
    page.family("list_items", Kind::Gauge, "The rows of SHOW LISTS.");
    for row in super::show::lists(view) {
        if let [Cell::Text(list), Cell::Int(items)] = row.as_slice() {
            page.sample(&[("list", list)], items);
        }
    }
    let rings = &house.rings;
    let numbers = [("in_use", rings.in_use()), ("free", rings.free())];
    page.family("rings", Kind::Gauge, "Buffers held by connections, and ready to be.");
    numbers.into_iter().for_each(|(state, number)| page.sample(&[("state", state)], number));
    page.family("rings_high_water", Kind::Gauge, "The most buffers that were in use at once.");
    page.sample(&[], rings.high_water());
    page.family("ring_size_bytes", Kind::Gauge, "The size of a buffer.");
    page.sample(&[], rings.ring_bytes());
    page.family("database_paused", Kind::Gauge, "Whether a database is paused by name.");
    house.paused_databases.iter().for_each(|name| page.sample(&[("database", name)], 1));
    page.family("database_disabled", Kind::Gauge, "Whether a database is disabled.");
    house.disabled_databases.iter().for_each(|name| page.sample(&[("database", name)], 1));
}

/// Name, help, value of a counter of SHOW STATS, and whether it is a time.
type Statistic = (&'static str, &'static str, fn(&Counters) -> u64, bool);

const STATISTICS: [Statistic; 12] = [
    ("server_assignments", "How often a server was given to a client.", |c| c.assignments, false),
    ("transactions", "Transactions begun by clients.", |c| c.transactions, false),
    ("queries", "Queries begun by clients.", |c| c.queries, false),
    ("received_bytes", "What clients have sent.", |c| c.received_bytes, false),
    ("sent_bytes", "What servers have sent.", |c| c.sent_bytes, false),
    ("transaction_seconds", "Time spent in transactions.", |c| c.transaction_us, true),
    ("query_seconds", "Time spent in queries, waiting included.", |c| c.query_us, true),
    ("wait_seconds", "Time that clients waited for a server that they got.", |c| c.wait_us, true),
    ("client_parses", "Named statements prepared by clients.", |c| c.client_parses, false),
    ("server_parses", "Statements prepared on servers.", |c| c.server_parses, false),
    ("binds", "Uses of named statements.", |c| c.binds, false),
    ("client_logins", "Clients that have proven who they are.", |c| c.client_logins, false),
];

fn statistics(view: &View<'_>, page: &mut Page) {
    let house = view.engine.house();
    let databases = house.stats_by_database();
    for (name, help, read, is_time) in STATISTICS {
        page.family(name, Kind::Counter, help);
        for (database, stats) in &databases {
            let labels = [("database", *database)];
            match (is_time, read(&stats.total)) {
                (true, time) => page.sample(&labels, seconds(time)),
                (false, count) => page.sample(&labels, count),
            }
        }
    }
    let averages = "Per second, or in microseconds each, over the last one to two stats_period.";
    page.family("stats_average", Kind::Gauge, averages);
    for (database, stats) in &databases {
        let averages = house.periods.averages(stats, view.moment.now).0;
        for (name, _, read, _) in STATISTICS {
            page.sample(&[("database", database), ("counter", name)], read(&averages));
        }
    }
}

fn pool_numbers(view: &View<'_>, page: &mut Page) {
    let rows = pools::rows(view);
    let texts = |row: &[Cell]| match row {
        [Cell::Text(database), Cell::Text(user), ..] => [database.to_string(), user.to_string()],
        _ => Default::default(),
    };
    let families = [
        ("pool_clients", "Clients of a pool, by what they are doing.", "cl_"),
        ("pool_servers", "Servers of a pool, by what they are doing.", "sv_"),
    ];
    for (name, help, prefix) in families {
        page.family(name, Kind::Gauge, help);
        for row in &rows {
            let [database, user] = texts(row);
            for ((column, _), cell) in pools::COLUMNS.iter().zip(row) {
                if let (Some(state), Cell::Int(number)) = (column.strip_prefix(prefix), cell) {
                    let labels = [("database", &*database), ("user", &user), ("state", state)];
                    page.sample(&labels, number);
                }
            }
        }
    }
    page.family(
        "pool_max_wait_seconds",
        Kind::Gauge,
        "How long the first in the queue has waited.",
    );
    for row in &rows {
        let [database, user] = texts(row);
        if let [Cell::Int(whole), Cell::Int(rest)] = row[13..15] {
            let labels = [("database", &*database), ("user", &user)];
            page.sample(&labels, format_args!("{whole}.{rest:06}"));
        }
    }
    page.family("pool_max_servers", Kind::Gauge, "How many servers a pool may have, if limited.");
    for (_, pool) in view.engine.house().pools.iter() {
        if let Some(size) = pool.size {
            page.sample(&[("database", &pool.database.name), ("user", &pool.user)], size);
        }
    }
}

/// Of each peer that there is, whether anything is on its way to it or not.
fn peers(view: &View<'_>, page: &mut Page) {
    let house = view.engine.house();
    let help = "Cancel requests on their way to a peer, by how far they are.";
    page.family("peer_requests", Kind::Gauge, help);
    for id in view.engine.config().peers.keys() {
        let counts = house.peer_pools.get(id).map(|pool| house.peer_counts(pool));
        let Counts { waiting, opening, sent } = counts.unwrap_or_default();
        let states = [("waiting", waiting - opening), ("connecting", opening), ("sent", sent)];
        for (state, number) in states {
            page.sample(&[("peer", &id.to_string()), ("state", state)], number);
        }
    }
}

fn waits(view: &View<'_>, page: &mut Page) {
    let rows = own::waits(view);
    let families = [
        ("waiting_clients", Kind::Gauge, "Clients that wait now, by cause.", 3),
        ("waits", Kind::Counter, "How often clients have waited, by cause.", 4),
        ("waited_seconds", Kind::Counter, "How long they waited, by cause.", 5),
    ];
    debug_assert!(rows.len().is_multiple_of(Cause::ALL.len()));
    for (name, kind, help, column) in families {
        page.family(name, kind, help);
        for row in &rows {
            let [Cell::Text(database), Cell::Text(user), Cell::Text(cause), ..] = row.as_slice()
            else {
                continue;
            };
            let labels = [("database", &**database), ("user", user), ("cause", cause)];
            match &row[column] {
                Cell::Numeric(time) if column == 5 => page.sample(&labels, seconds(*time)),
                Cell::Numeric(number) => page.sample(&labels, number),
                Cell::Int(number) => page.sample(&labels, number),
                _ => {}
            }
        }
    }
}

fn endings(view: &View<'_>, page: &mut Page) {
    page.family(
        "connections_ended",
        Kind::Counter,
        "Connections that have ended, by side and cause.",
    );
    for (side, cause, count) in view.engine.house().endings.iter() {
        page.sample(&[("side", side.word()), ("cause", cause)], count);
    }
}

fn hosts(view: &View<'_>, page: &mut Page) {
    let hosts = hosts::hosts(view);
    type Reading = fn(&hosts::Host) -> u64;
    let families: [(&str, &str, Reading); 3] = [
        ("host_failing", "Whether the last connection to a host failed.", |host| {
            u64::from(host.state != hosts::State::Healthy)
        }),
        ("host_failures", "How often in a row connections to a host have failed.", |host| {
            host.failures.into()
        }),
        ("host_servers", "Connections to a host, those being opened included.", |host| {
            u64::try_from(host.servers).unwrap_or(u64::MAX)
        }),
    ];
    for (name, help, read) in families {
        page.family(name, Kind::Gauge, help);
        for host in &hosts {
            let port = host.port.to_string();
            page.sample(&[("host", &*host.name), ("port", &port)], read(host));
        }
    }
}

fn rescues(view: &View<'_>, page: &mut Page) {
    let rescues = view.engine.house().rescues;
    page.family(
        "server_rescues",
        Kind::Counter,
        "Servers whose client went in the middle of something, by what became of them.",
    );
    for (end, count) in [("kept", rescues.kept), ("lost", rescues.lost)] {
        page.sample(&[("end", end)], count);
    }
}

fn times(view: &View<'_>, page: &mut Page) {
    let databases = own::times_by_database(view);
    let families = [
        ("wait_duration_seconds", "How long clients waited for a server."),
        ("query_duration_seconds", "How long queries took, waiting included."),
        ("transaction_duration_seconds", "How long transactions took, waiting included."),
        ("login_duration_seconds", "From a client's connection to its welcome."),
        ("connect_duration_seconds", "From connecting to a server to the end of the login there."),
    ];
    for (index, (name, help)) in families.into_iter().enumerate() {
        page.family(name, Kind::Histogram, help);
        for (database, times) in &databases {
            let (_, histogram) = times.named()[index];
            page.histogram(&[("database", database)], histogram);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(dialect: Dialect) -> Page {
        Page { text: String::new(), dialect, name: "", kind: Kind::Gauge }
    }

    #[test]
    fn counters_are_named_as_the_dialect_wants_it() {
        for (dialect, family) in [
            (Dialect::Prometheus, "ringbouncer_queries_total"),
            (Dialect::OpenMetrics, "ringbouncer_queries"),
        ] {
            let mut page = empty(dialect);
            page.family("queries", Kind::Counter, "Help.");
            page.sample(&[("database", "a\"\\\nb"), ("x", "")], 3);
            let expected = format!(
                "# HELP {family} Help.\n# TYPE {family} counter\n\
                 ringbouncer_queries_total{{database=\"a\\\"\\\\\\nb\",x=\"\"}} 3\n"
            );
            assert_eq!(page.text, expected);
        }
    }

    #[test]
    fn buckets_add_up() {
        let mut histogram = Histogram::default();
        [10, 20, 3_000_000, u64::MAX >> 1].into_iter().for_each(|time| histogram.record(time));
        let mut page = empty(Dialect::Prometheus);
        page.family("x_seconds", Kind::Histogram, "Help.");
        page.histogram(&[], &histogram);
        let has = |line: &str| assert!(page.text.contains(line), "{line} in {}", page.text);
        has("ringbouncer_x_seconds_bucket{le=\"0.000016\"} 1\n");
        has("ringbouncer_x_seconds_bucket{le=\"0.000032\"} 2\n");
        has("ringbouncer_x_seconds_bucket{le=\"4.194304\"} 3\n");
        has("ringbouncer_x_seconds_bucket{le=\"134.217728\"} 3\n");
        has("ringbouncer_x_seconds_bucket{le=\"+Inf\"} 4\n");
        has("ringbouncer_x_seconds_count 4\n");
    }
}
