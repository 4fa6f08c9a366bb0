//! When to look at a pool again.
//!
//! A pool for which nothing is to be done but later (another attempt to connect, a connection from
//! the reserve, its removal) has one alarm, at the earliest of those times. Pools without one cost
//! nothing, however many there are.

use crate::keys::PoolKey;
use crate::pool::House;
use std::collections::BTreeSet;
use std::time::Instant;

/// The alarms of all pools, earliest first.
#[derive(Debug, Default)]
pub struct Alarms(BTreeSet<(Instant, PoolKey)>);

impl Alarms {
    /// How many pools have one.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no pool has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The earliest.
    pub fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }
}

impl House {
    /// Replaces the alarm of a pool.
    pub fn set_alarm(&mut self, key: PoolKey, at: Option<Instant>) {
        let Some(pool) = self.pools.get_mut(key) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut pool.alarm, at) {
            self.alarms.0.remove(&(old, key));
        }
        if let Some(at) = at {
            self.alarms.0.insert((at, key));
        }
    }

    /// Sees to it that a pool is looked at by then.
    pub fn look_again(&mut self, key: PoolKey, at: Instant) {
        let alarm = self.pools.get(key).and_then(|pool| pool.alarm);
        if alarm.is_none_or(|alarm| at < alarm) {
            self.set_alarm(key, Some(at));
        }
    }

    /// The pool whose alarm goes off now, if one does.
    pub fn next_alarmed(&mut self, now: Instant) -> Option<PoolKey> {
        let (_, key) = *self.alarms.0.first().filter(|(at, _)| *at <= now)?;
        self.set_alarm(key, None);
        Some(key)
    }
}
