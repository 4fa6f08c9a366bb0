//! How long things took, as histograms: each time falls into one of a few buckets, whose counts can
//! be added up over pools, databases and processes.
//!
//! The upper bounds of the buckets are 16 µs, 32 µs, … up to 134 s, the same for all histograms and
//! for ever: a monitoring system adds up what it scraped a year ago. To record is a shift and two
//! additions.

/// Buckets with an upper bound; one more has none.
pub const BOUNDED: usize = 24;
const FIRST_BOUND_BITS: u32 = 4;

/// See the module's page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BOUNDED + 1],
    sum_us: u64,
}

/// The upper bound of a bucket, itself included, in microseconds.
pub fn bound_us(bucket: usize) -> u64 {
    1 << (bucket as u32 + FIRST_BOUND_BITS)
}

impl Histogram {
    /// Something took so long.
    #[inline]
    pub fn record(&mut self, microseconds: u64) {
        let above = microseconds.saturating_sub(1) >> FIRST_BOUND_BITS;
        let bucket = (u64::BITS - above.leading_zeros()) as usize;
        self.counts[bucket.min(BOUNDED)] += 1;
        self.sum_us = self.sum_us.saturating_add(microseconds);
    }

    /// How many took no longer than the bound of each bucket and longer than that of the one
    /// before; the last are those beyond all bounds.
    pub fn counts(&self) -> &[u64; BOUNDED + 1] {
        &self.counts
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long all of them took together.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The bound of the bucket in which the time stands that so many in a thousand do not exceed.
    /// 0 if there were none; of those beyond all bounds the last bound.
    pub fn quantile_us(&self, per_mille: u64) -> u64 {
        let count = self.count();
        let rank = (u128::from(count) * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for (bucket, counted) in self.counts.iter().enumerate() {
            seen += u128::from(*counted);
            if count > 0 && seen >= rank {
                return bound_us(bucket.min(BOUNDED - 1));
            }
        }
        0
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (own, others) in self.counts.iter_mut().zip(other.counts) {
            *own += others;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }
}

/// The times of one pool, or of one database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Waiting for a server.
    pub wait: Histogram,
    /// From the first message of a query to its ReadyForQuery, waiting included.
    pub query: Histogram,
    /// From the first message of a transaction to the ReadyForQuery outside of it.
    pub transaction: Histogram,
    /// From a client's connection to its welcome.
    pub login: Histogram,
    /// From the beginning of a connection to a server to the end of our login there.
    pub connect: Histogram,
}

impl Times {
    /// All of them with their names.
    pub fn named(&self) -> [(&'static str, &Histogram); 5] {
        [
            ("wait", &self.wait),
            ("query", &self.query),
            ("transaction", &self.transaction),
            ("login", &self.login),
            ("connect", &self.connect),
        ]
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.wait.add(&other.wait);
        self.query.add(&other.query);
        self.transaction.add(&other.transaction);
        self.login.add(&other.login);
        self.connect.add(&other.connect);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_bucket_whose_bound_it_does_not_exceed() {
        for (microseconds, bucket) in [
            (0, 0),
            (1, 0),
            (16, 0),
            (17, 1),
            (32, 1),
            (33, 2),
            (bound_us(BOUNDED - 1), BOUNDED - 1),
            (bound_us(BOUNDED - 1) + 1, BOUNDED),
            (u64::MAX, BOUNDED),
        ] {
            let mut histogram = Histogram::default();
            histogram.record(microseconds);
            let found = histogram.counts().iter().position(|count| *count == 1);
            assert_eq!(found, Some(bucket), "{microseconds}");
            assert_eq!((histogram.count(), histogram.sum_us()), (1, microseconds));
        }
        assert_eq!(bound_us(BOUNDED - 1), 134_217_728);
    }

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(500), 0);
        for microseconds in 1..=1000 {
            histogram.record(microseconds);
        }
        assert_eq!(histogram.quantile_us(500), 512);
        assert_eq!(histogram.quantile_us(950), 1024);
        assert_eq!(histogram.quantile_us(0), 16);
        let mut twice = histogram;
        twice.add(&histogram);
        assert_eq!((twice.count(), twice.quantile_us(500)), (2000, 512));
        let mut long = Histogram::default();
        long.record(u64::MAX);
        assert_eq!(long.quantile_us(990), bound_us(BOUNDED - 1));
    }
}
