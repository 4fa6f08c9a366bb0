//! What has been done, in numbers.
//!
//! Each pool counts in plain integers ([`Counters`]), by the clock reading of the turn: nothing is
//! formatted, allocated or looked up for a query. Every `stats_period` all pools keep what they had
//! counted (`Stats::keep`), two times back, so that an average asked for at any moment spans one
//! to two periods.
//!
//! ```text
//!   older        newer        now
//!     │────────────│───────────│     averages on demand: from `older` to now
//!                  │───────────│     the log line, just before the next time is kept
//! ```

use crate::keys::ClientKey;
use crate::pool::House;
use crate::pool::times::Times;
use crate::session::client::{Client, State};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What one pool, one database or all of them have done. Times are in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often a free server was given to a client.
    pub assignments: u64,
    /// Transactions that clients have begun.
    pub transactions: u64,
    /// Queries that clients have begun: everything up to the ReadyForQuery with which nothing more
    /// is owed is one.
    pub queries: u64,
    /// What clients have sent after their logins.
    pub received_bytes: u64,
    /// What servers have sent after our logins.
    pub sent_bytes: u64,
    /// How long transactions took, waiting for a server included.
    pub transaction_us: u64,
    /// How long queries took, waiting for a server included.
    pub query_us: u64,
    /// How long clients waited that got a server in the end, or their welcome.
    pub wait_us: u64,
    /// Named statements that clients have prepared.
    pub client_parses: u64,
    /// Statements that we have prepared on servers.
    pub server_parses: u64,
    /// Uses of named statements.
    pub binds: u64,
    /// Clients that have proven who they are.
    pub client_logins: u64,
}

impl Counters {
    fn with(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            assignments: of(self.assignments, other.assignments),
            transactions: of(self.transactions, other.transactions),
            queries: of(self.queries, other.queries),
            received_bytes: of(self.received_bytes, other.received_bytes),
            sent_bytes: of(self.sent_bytes, other.sent_bytes),
            transaction_us: of(self.transaction_us, other.transaction_us),
            query_us: of(self.query_us, other.query_us),
            wait_us: of(self.wait_us, other.wait_us),
            client_parses: of(self.client_parses, other.client_parses),
            server_parses: of(self.server_parses, other.server_parses),
            binds: of(self.binds, other.binds),
            client_logins: of(self.client_logins, other.client_logins),
        }
    }

    /// A client's message came that a server has to see. The first one begins a query, and outside
    /// of a transaction that, too.
    #[inline]
    pub fn request_begins(&mut self, client: &mut Client, now: Instant) {
        if client.query_since.is_none() {
            client.query_since = Some(now);
            self.queries += 1;
            if client.transaction_since.is_none() {
                client.transaction_since = Some(now);
                self.transactions += 1;
            }
        }
    }

    /// A client has got ReadyForQuery, and nothing more is owed to it.
    #[inline]
    pub fn request_ends(
        &mut self,
        times: &mut Times,
        client: &mut Client,
        in_transaction: bool,
        now: Instant,
    ) {
        let query = client.query_since.take();
        let query_us = query.map(|since| microseconds(since, now));
        if let Some(took) = query_us {
            self.query_us += took;
            times.query.record(took);
        }
        if !in_transaction && let Some(since) = client.transaction_since.take() {
            // Nearly always a query is a transaction.
            let took = match query_us {
                Some(took) if query == Some(since) => took,
                _ => microseconds(since, now),
            };
            self.transaction_us += took;
            times.transaction.record(took);
        }
    }
}

/// The time between two readings of the clock, as it is counted.
pub fn microseconds(since: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(u64::MAX)
}

/// What has been counted up to now, up to the last time that was kept, and the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Up to now.
    pub total: Counters,
    newer: Counters,
    older: Counters,
}

impl Stats {
    /// A period has passed.
    fn keep(&mut self) {
        self.older = self.newer;
        self.newer = self.total;
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let add = u64::saturating_add;
        Self {
            total: self.total.with(&other.total, add),
            newer: self.newer.with(&other.newer, add),
            older: self.older.with(&other.older, add),
        }
    }
}

/// When what was counted was kept.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    newer: Instant,
    /// How long before `newer` the older time was kept.
    between: Duration,
    period: Duration,
}

impl Periods {
    /// From now on, every so many seconds. As PgBouncer: the second before the first moment counts
    /// as a period, and later changes of `stats_period` have no effect.
    pub fn new(stats_period: i32, now: Instant) -> Self {
        let seconds = u64::try_from(stats_period).unwrap_or(0).max(1);
        let between = Duration::from_secs(1);
        Self { newer: now, between, period: Duration::from_secs(seconds) }
    }

    /// When the current period is over.
    pub fn end(&self) -> Instant {
        self.newer + self.period
    }

    /// The averages of one to two periods.
    pub fn averages(&self, stats: &Stats, now: Instant) -> Averages {
        let width = now.saturating_duration_since(self.newer) + self.between;
        Averages::over(&stats.total, &stats.older, width)
    }

    /// The averages of the current period alone.
    fn latest(&self, stats: &Stats, now: Instant) -> Averages {
        Averages::over(&stats.total, &stats.newer, now.saturating_duration_since(self.newer))
    }
}

/// What was done per second, and how long it took on average. The fields are those of
/// [`Counters`]: times are per transaction, per query, and per server given to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Averages(pub Counters);

impl Averages {
    fn over(now: &Counters, before: &Counters, width: Duration) -> Self {
        let done = now.with(before, u64::saturating_sub);
        let width = width.as_micros();
        if width == 0 {
            return Self::default();
        }
        let per_second = |count: u64, _| {
            u64::try_from(u128::from(count) * 1_000_000 / width).unwrap_or(u64::MAX)
        };
        let each = |time: u64, count: u64| time.checked_div(count).unwrap_or(0);
        Self(Counters {
            transaction_us: each(done.transaction_us, done.transactions),
            query_us: each(done.query_us, done.queries),
            wait_us: each(done.wait_us, done.assignments),
            ..done.with(&done, per_second)
        })
    }

    /// The line of `log_stats`, or for the service manager: they differ in the unit of time.
    fn line(&self, f: &mut fmt::Formatter<'_>, unit: &str) -> fmt::Result {
        let Counters { transactions, queries, client_parses, server_parses, binds, .. } = self.0;
        let Counters { client_logins, received_bytes, sent_bytes, .. } = self.0;
        let Counters { transaction_us, query_us, wait_us, .. } = self.0;
        write!(
            f,
            "stats: {transactions} xacts/s, {queries} queries/s, {client_parses} client parses/s, \
             {server_parses} server parses/s, {binds} binds/s, {client_logins} client logins/s, \
             in {received_bytes} B/s, out {sent_bytes} B/s, \
             xact {transaction_us} {unit}, query {query_us} {unit}, wait {wait_us} {unit}"
        )
    }

    /// As the service manager shows it.
    pub fn status(&self) -> impl fmt::Display {
        let averages = *self;
        fmt::from_fn(move |f| averages.line(f, "\u{3bc}s"))
    }
}

impl fmt::Display for Averages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line(f, "us")
    }
}

impl House {
    /// A client that waits gets what it waited for.
    pub fn wait_ends(&mut self, key: ClientKey, now: Instant) {
        let client = self.clients.get(key);
        let since = client.and_then(|client| match client.state {
            State::Waiting { since, .. } | State::AwaitingWelcome { since } => Some(since),
            _ => None,
        });
        let pool = client.and_then(|client| self.pools.get_mut(client.pool?));
        if let (Some(since), Some(pool)) = (since, pool) {
            pool.stats.total.wait_us += microseconds(since, now);
        }
        if let Some(since) = since {
            self.count_wait(key, since, now);
        }
    }

    /// The statistics of each database that was ever asked for, by name: the sums of its pools.
    pub fn stats_by_database(&self) -> BTreeMap<&str, Stats> {
        let mut sums: BTreeMap<&str, Stats> = BTreeMap::new();
        for (_, pool) in self.pools.iter() {
            let sum = sums.entry(&pool.database.name).or_default();
            *sum = sum.plus(&pool.stats);
        }
        sums.insert(crate::config::CONSOLE, self.console_stats);
        sums
    }

    /// The statistics of all pools together, the console's included.
    pub fn total_stats(&self) -> Stats {
        let pools = self.pools.iter().map(|(_, pool)| &pool.stats);
        pools.fold(self.console_stats, |sum, stats| sum.plus(stats))
    }

    /// Closes a period. Its averages, for the log.
    pub fn end_period(&mut self, now: Instant) -> Averages {
        let averages = self.periods.latest(&self.total_stats(), now);
        for (_, pool) in self.pools.iter_mut() {
            pool.stats.keep();
        }
        self.console_stats.keep();
        self.periods.between = now.saturating_duration_since(self.periods.newer);
        self.periods.newer = now;
        averages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(number: u64) -> Counters {
        let mut counters = Counters::default();
        counters.with(&Counters::default(), |_, _| number).clone_into(&mut counters);
        counters
    }

    #[test]
    fn averages_are_truncated_and_per_second_or_per_piece() {
        let now = Counters {
            transactions: 7,
            queries: 20,
            transaction_us: 100,
            query_us: 199,
            wait_us: 55,
            assignments: 0,
            ..counted(3_999_999)
        };
        let Averages(averages) = Averages::over(&now, &counted(0), Duration::from_secs(4));
        assert_eq!(averages.transactions, 1);
        assert_eq!(averages.queries, 5);
        assert_eq!(averages.received_bytes, 999_999);
        assert_eq!(averages.transaction_us, 100 / 7);
        assert_eq!(averages.query_us, 199 / 20);
        assert_eq!(averages.wait_us, 0, "nobody got a server");
        let nothing = Averages::over(&now, &counted(0), Duration::ZERO);
        assert_eq!(nothing, Averages::default());
        let backwards = Averages::over(&counted(1), &counted(2), Duration::from_secs(1));
        assert_eq!(backwards, Averages::default(), "a pool was removed");
        let endless = Averages::over(&counted(u64::MAX), &counted(0), Duration::from_micros(1));
        assert_eq!(endless.0.queries, u64::MAX);
    }

    #[test]
    fn an_average_spans_one_to_two_periods() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut periods = Periods::new(60, start);
        let mut stats = Stats::default();
        assert_eq!(periods.end(), at(60));
        // Before the first period is over the second before the start counts.
        stats.total.queries = 30;
        assert_eq!(periods.averages(&stats, at(9)).0.queries, 3);
        stats.total.queries = 600;
        assert_eq!(periods.latest(&stats, at(60)).0.queries, 10);
        stats.keep();
        periods = Periods { newer: at(60), between: Duration::from_secs(60), ..periods };
        stats.total.queries = 2400;
        assert_eq!(periods.averages(&stats, at(120)).0.queries, 20);
        stats.keep();
        periods.newer = at(120);
        assert_eq!(periods.averages(&stats, at(120)).0.queries, 30, "the first minute is out");
        assert_eq!(periods.averages(&stats, at(180)).0.queries, 15);
    }

    #[test]
    fn a_period_is_never_nothing() {
        let start = Instant::now();
        for setting in [0, -5, i32::MIN] {
            assert_eq!(Periods::new(setting, start).end(), start + Duration::from_secs(1));
        }
    }

    #[test]
    fn the_line_is_that_of_the_contract() {
        let line = "stats: 0 xacts/s, 0 queries/s, 0 client parses/s, 0 server parses/s, \
                    0 binds/s, 0 client logins/s, in 0 B/s, out 0 B/s, xact 0 us, query 0 us, \
                    wait 0 us";
        assert_eq!(Averages::default().to_string(), line);
        let status = line.replace(" us", " \u{3bc}s");
        assert_eq!(Averages::default().status().to_string(), status);
        let averages = Averages(Counters {
            transactions: 1,
            queries: 2,
            client_parses: 3,
            server_parses: 4,
            binds: 5,
            client_logins: 6,
            received_bytes: 7,
            sent_bytes: 8,
            transaction_us: 9,
            query_us: 10,
            wait_us: 11,
            assignments: 99,
        });
        let line = averages.to_string();
        let numbers = line.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
        let numbers: Vec<u64> = numbers.map(|digits| digits.parse().unwrap()).collect();
        assert_eq!(numbers, (1..=11).collect::<Vec<u64>>());
    }
}
