//! The zones that names of hosts are in, and their serials (`dns_zone_check_period`).
//!
//! Every period the zones are asked for their serials, one after the other; the next round begins a
//! period after the last answer. A serial that has grown has the names of the zone looked up again.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The zone of a name: what follows the first dot. Names of zones have no case.
pub fn zone_of(host: &str) -> Option<String> {
    let (_, zone) = host.split_once('.')?;
    (!zone.is_empty()).then(|| zone.to_ascii_lowercase())
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Zones {
    /// The last serial of each zone.
    serials: BTreeMap<Box<str>, u32>,
    round: Round,
}

#[derive(Debug, Default)]
enum Round {
    /// None, nor will there be one.
    #[default]
    None,
    /// The next one begins then.
    At(Instant),
    /// This zone is being asked, then these.
    Asking { zone: Box<str>, others: VecDeque<Box<str>> },
}

/// A serial has grown.
#[derive(Debug, PartialEq, Eq)]
pub struct Grown {
    /// What it was; 0: not known.
    pub old: u32,
    /// What it is.
    pub new: u32,
}

impl Zones {
    /// When the next round begins.
    pub fn deadline(&self) -> Option<Instant> {
        match self.round {
            Round::At(at) => Some(at),
            Round::None | Round::Asking { .. } => None,
        }
    }

    /// Rounds are wanted from now on, unless the period is zero. One that is set already comes when
    /// it was to.
    // As PgBouncer: the period is read when a round is set.
    pub fn plan(&mut self, period: Duration, now: Instant) {
        if matches!(self.round, Round::None) && !period.is_zero() {
            self.round = now.checked_add(period).map_or(Round::None, Round::At);
        }
    }

    /// Begins a round over these zones. The one to ask first.
    pub fn begin(&mut self, zones: impl Iterator<Item = String>) -> Option<String> {
        let mut zones: Vec<Box<str>> = zones.map(String::into_boxed_str).collect();
        zones.sort();
        zones.dedup();
        self.serials.retain(|zone, _| zones.binary_search(zone).is_ok());
        self.ask_next(zones.into())
    }

    fn ask_next(&mut self, mut zones: VecDeque<Box<str>>) -> Option<String> {
        let Some(zone) = zones.pop_front() else {
            self.round = Round::None;
            return None;
        };
        let name = zone.to_string();
        self.round = Round::Asking { zone, others: zones };
        Some(name)
    }

    /// A zone was asked; `None`: it did not tell.
    pub fn note(&mut self, zone: &str, serial: Option<u32>) -> Option<Grown> {
        let new = serial?;
        let old = self.serials.insert(zone.into(), new).unwrap_or(0);
        // Serials go round (RFC 1982).
        let is_greater = new.wrapping_sub(old).cast_signed() > 0;
        is_greater.then_some(Grown { old, new })
    }

    /// The zone that was being asked has answered. The one to ask next; `None`: the round is over.
    pub fn go_on(&mut self) -> Option<String> {
        match std::mem::take(&mut self.round) {
            Round::Asking { others, .. } => self.ask_next(others),
            other => {
                self.round = other;
                None
            }
        }
    }

    /// The zone that is being asked.
    pub fn asked(&self) -> Option<&str> {
        match &self.round {
            Round::Asking { zone, .. } => Some(zone),
            Round::None | Round::At(_) => None,
        }
    }

    /// The last serial of a zone; 0: not known.
    pub fn serial(&self, zone: &str) -> u32 {
        self.serials.get(zone).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_of_names() {
        for (host, zone) in [
            ("db.example.com", Some("example.com")),
            ("DB.Example.COM", Some("example.com")),
            ("db", None),
            ("db.", None),
            ("", None),
        ] {
            assert_eq!(zone_of(host).as_deref(), zone, "{host}");
        }
    }

    #[test]
    fn serials_go_round() {
        let mut zones = Zones::default();
        for (serial, grown) in [
            (None, None),
            (Some(0), None),
            (Some(5), Some(Grown { old: 0, new: 5 })),
            (Some(5), None),
            (Some(4), None),
            (None, None),
            (Some(0x7fff_ffff), Some(Grown { old: 4, new: 0x7fff_ffff })),
            (Some(0xffff_fff0), Some(Grown { old: 0x7fff_ffff, new: 0xffff_fff0 })),
            (Some(3), Some(Grown { old: 0xffff_fff0, new: 3 })),
        ] {
            assert_eq!(zones.note("test", serial), grown, "{serial:?}");
        }
        assert_eq!(zones.serial("test"), 3);
        assert_eq!(zones.serial("other"), 0);
    }

    #[test]
    fn zones_are_asked_one_after_the_other_and_then_a_period_passes() {
        let (mut zones, now) = (Zones::default(), Instant::now());
        let second = Duration::from_secs(1);
        zones.plan(Duration::ZERO, now);
        assert_eq!(zones.deadline(), None);
        zones.plan(second, now);
        zones.plan(5 * second, now);
        assert_eq!(zones.deadline(), Some(now + second), "it is set");
        let names = || ["b", "a", "b"].map(str::to_owned).into_iter();
        assert_eq!(zones.begin(names()).as_deref(), Some("a"));
        assert_eq!((zones.deadline(), zones.asked()), (None, Some("a")));
        zones.plan(second, now);
        assert_eq!(zones.deadline(), None, "a round is under way");
        zones.note("a", Some(7));
        assert_eq!(zones.go_on().as_deref(), Some("b"));
        assert_eq!(zones.go_on(), None);
        zones.plan(second, now + second);
        assert_eq!(zones.deadline(), Some(now + 2 * second));
        assert_eq!(zones.begin(std::iter::empty()), None);
        assert_eq!(zones.serial("a"), 0, "nobody is in that zone any more");
        assert_eq!(zones.deadline(), None);
    }
}
