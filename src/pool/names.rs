//! What is known of the names of hosts: the addresses of each, and how long that holds.
//!
//! ```text
//!         ask ─▶ known? ── one of its addresses, the next time another
//!                  │ no, or not any more
//!                  ▼
//!            waits for ONE look-up, with all others that ask ─▶ queue ─▶ in flight ─▶ answered
//! ```
//!
//! As PgBouncer: a look-up begins when somebody needs the name and what is known of it is too old,
//! and the TTLs of the records do not count, `dns_max_ttl` does. The law: a name has at most one
//! look-up, which is in the queue or in flight, and of the latter there are at most
//! [`MAX_IN_FLIGHT`]. Whoever performs them answers each of them once, in bounded time.

use crate::config::settings::Settings;
use crate::keys::ServerKey;
use crate::pool::zones::zone_of;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// So many names are kept. When there are more, the one goes that nobody has asked for the longest.
pub const MAX_NAMES: usize = 16_384;
/// So many look-ups are under way at once; others wait for their turn.
pub const MAX_IN_FLIGHT: usize = 32;
/// So many addresses of a name are kept.
pub const MAX_ADDRESSES: usize = 64;
/// When so many wait for a name, those among them that have gone are looked for.
const MANY_WAITING: usize = 64;

/// What somebody who needs an address is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// There.
    At(IpAddr),
    /// The name has no address, as we have heard not long ago.
    Nowhere,
    /// A look-up will tell: the same server gets its answer from [`Names::answered`].
    Wait,
}

/// What became of a look-up.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Those who waited, and what they are told.
    pub waiting: Vec<(ServerKey, Option<IpAddr>)>,
    /// Addresses that the name had, and has no more.
    pub lost: Vec<IpAddr>,
}

/// A name, as tables show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known<'a> {
    /// As configured.
    pub name: &'a str,
    /// Its addresses; none: it could not be looked up, or has not been yet.
    pub addresses: &'a [IpAddr],
    /// How long that holds.
    pub time_left: Duration,
}

#[derive(Debug)]
struct Entry {
    /// What the last look-up found that found anything.
    addresses: Vec<IpAddr>,
    /// How often an address was handed out.
    turn: usize,
    standing: Standing,
    /// The look-up that is queued or under way, and who waits for it.
    lookup: Option<Lookup>,
    asked_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Never looked up.
    New,
    /// Its addresses hold until then.
    Found { until: Instant },
    /// Until then it has none.
    Failed { until: Instant },
}

#[derive(Debug, Default)]
struct Lookup {
    waiting: Vec<ServerKey>,
    /// Wanted whether anybody waits or not.
    is_wanted: bool,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Names {
    entries: BTreeMap<Box<str>, Entry>,
    queue: VecDeque<Box<str>>,
    in_flight: usize,
}

impl Standing {
    fn holds_until(self) -> Option<Instant> {
        match self {
            Standing::New => None,
            Standing::Found { until } | Standing::Failed { until } => Some(until),
        }
    }
}

impl Entry {
    fn next_address(&mut self) -> Option<IpAddr> {
        let address = self.addresses.get(self.turn % self.addresses.len().max(1)).copied();
        self.turn = self.turn.wrapping_add(1);
        address
    }

    fn has_failed(&self) -> bool {
        matches!(self.standing, Standing::Failed { .. })
    }
}

impl Names {
    /// A server needs an address of this name. `is_waiting` tells who still does.
    pub fn ask(
        &mut self,
        name: &str,
        server: ServerKey,
        is_waiting: impl Fn(ServerKey) -> bool,
        now: Instant,
    ) -> Asked {
        if !self.entries.contains_key(name) && !self.make_room() {
            log::warn!("too many names are being looked up, {MAX_NAMES} of them");
            return Asked::Nowhere;
        }
        let entry = self.entries.entry(name.into()).or_insert_with(|| Entry {
            addresses: Vec::new(),
            turn: 0,
            standing: Standing::New,
            lookup: None,
            asked_at: now,
        });
        entry.asked_at = now;
        if let Some(lookup) = &mut entry.lookup {
            if lookup.waiting.len() >= MANY_WAITING {
                lookup.waiting.retain(|waiting| is_waiting(*waiting));
            }
            lookup.waiting.push(server);
            return Asked::Wait;
        }
        if entry.standing.holds_until().is_some_and(|until| now < until) {
            let address = if entry.has_failed() { None } else { entry.next_address() };
            return address.map_or(Asked::Nowhere, Asked::At);
        }
        entry.lookup = Some(Lookup { waiting: vec![server], is_wanted: false });
        self.queue.push_back(name.into());
        Asked::Wait
    }

    /// Makes room for one more name; false if all are being looked up.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < MAX_NAMES {
            return true;
        }
        let idle = self.entries.iter().filter(|(_, entry)| entry.lookup.is_none());
        let oldest = idle.min_by_key(|(_, entry)| entry.asked_at).map(|(name, _)| name.clone());
        oldest.is_some_and(|name| self.entries.remove(&name).is_some())
    }

    /// The name that is to be looked up next, if there may be another look-up. One that nobody
    /// waits for any more is not worth it.
    pub fn next_lookup(&mut self, is_waiting: impl Fn(ServerKey) -> bool) -> Option<String> {
        while self.in_flight < MAX_IN_FLIGHT {
            let name = self.queue.pop_front()?;
            let entry = self.entries.get_mut(&name).expect("who is in the queue stays");
            let lookup = entry.lookup.as_mut().expect("who is in the queue is to be looked up");
            lookup.waiting.retain(|waiting| is_waiting(*waiting));
            if lookup.is_wanted || !lookup.waiting.is_empty() {
                self.in_flight += 1;
                return Some(name.into());
            }
            entry.lookup = None;
        }
        None
    }

    /// A look-up has come to its end; no addresses: it found none.
    pub fn answered(
        &mut self,
        name: &str,
        mut found: Vec<IpAddr>,
        settings: &Settings,
        now: Instant,
    ) -> Answered {
        let Some(entry) = self.entries.get_mut(name) else {
            return Answered::default();
        };
        let Some(lookup) = entry.lookup.take() else {
            return Answered::default();
        };
        self.in_flight -= 1;
        let after = |time: Duration| now.checked_add(time).unwrap_or(now);
        if found.is_empty() {
            // What it had is remembered: when it is found again elsewhere, servers there have lost
            // their address all the same.
            entry.standing = Standing::Failed { until: after(settings.dns_nxdomain_ttl) };
            let waiting = lookup.waiting.into_iter().map(|server| (server, None)).collect();
            return Answered { waiting, lost: Vec::new() };
        }
        found.truncate(MAX_ADDRESSES);
        entry.standing = Standing::Found { until: after(settings.dns_max_ttl) };
        let had = std::mem::replace(&mut entry.addresses, found);
        let lost = had.into_iter().filter(|old| !entry.addresses.contains(old)).collect();
        let waiting =
            lookup.waiting.into_iter().map(|server| (server, entry.next_address())).collect();
        Answered { waiting, lost }
    }

    /// A zone has changed: what is known of its names is too old, and they are looked up again.
    pub fn renew_zone(&mut self, zone: &str, now: Instant) {
        for (name, entry) in &mut self.entries {
            if entry.lookup.is_some() || zone_of(name).as_deref() != Some(zone) {
                continue;
            }
            match &mut entry.standing {
                Standing::New => continue,
                Standing::Found { until } | Standing::Failed { until } => *until = now,
            }
            entry.lookup = Some(Lookup { waiting: Vec::new(), is_wanted: true });
            self.queue.push_back(name.clone());
        }
    }

    /// Forgets the names that are no longer in use.
    pub fn retain(&mut self, is_in_use: impl Fn(&str) -> bool) {
        self.entries.retain(|name, entry| entry.lookup.is_some() || is_in_use(name));
    }

    /// All names, in byte order.
    pub fn known(&self, now: Instant) -> impl Iterator<Item = Known<'_>> {
        self.entries.iter().map(move |(name, entry)| {
            let until = entry.standing.holds_until().filter(|_| entry.lookup.is_none());
            let time_left = until.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            let addresses = if entry.has_failed() { &[][..] } else { &entry.addresses };
            Known { name, addresses, time_left }
        })
    }

    /// All names, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(|name| &**name)
    }

    /// The addresses of a name, as last found.
    pub fn addresses(&self, name: &str) -> &[IpAddr] {
        self.entries.get(name).map_or(&[], |entry| &entry.addresses)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many look-ups are under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many names are being looked up, or are to be.
    pub fn pending(&self) -> usize {
        self.queue.len() + self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Key as _;
    use std::net::Ipv4Addr;

    const SECOND: Duration = Duration::from_secs(1);

    fn server(number: u32) -> ServerKey {
        ServerKey::new(number, 1)
    }

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    struct Desk {
        names: Names,
        settings: Settings,
        now: Instant,
    }

    impl Desk {
        fn new() -> Desk {
            let mut settings = Settings::default();
            (settings.dns_max_ttl, settings.dns_nxdomain_ttl) = (15 * SECOND, 5 * SECOND);
            Desk { names: Names::default(), settings, now: Instant::now() }
        }

        fn ask(&mut self, name: &str, number: u32) -> Asked {
            self.names.ask(name, server(number), |_| true, self.now)
        }

        fn next(&mut self) -> Option<String> {
            self.names.next_lookup(|_| true)
        }

        fn answer(&mut self, name: &str, found: &[u8]) -> Answered {
            let found = found.iter().map(|last| ip(*last)).collect();
            self.names.answered(name, found, &self.settings, self.now)
        }
    }

    #[test]
    fn all_who_ask_share_one_look_up_and_take_turns() {
        let mut desk = Desk::new();
        for number in 1..=3 {
            assert_eq!(desk.ask("db.test", number), Asked::Wait);
        }
        assert_eq!((desk.next().as_deref(), desk.next()), (Some("db.test"), None));
        assert_eq!(desk.names.in_flight(), 1);
        let told = desk.answer("db.test", &[1, 2]);
        let expected = [(server(1), ip(1)), (server(2), ip(2)), (server(3), ip(1))];
        assert_eq!(told.waiting, expected.map(|(server, ip)| (server, Some(ip))));
        assert_eq!(desk.ask("db.test", 4), Asked::At(ip(2)));
        assert_eq!(desk.ask("db.test", 4), Asked::At(ip(1)));
        // As written: another case is another name.
        assert_eq!(desk.ask("DB.test", 5), Asked::Wait);
    }

    #[test]
    fn what_is_known_holds_for_so_long_and_failures_for_another_time() {
        let mut desk = Desk::new();
        desk.ask("db.test", 1);
        desk.next();
        desk.answer("db.test", &[1]);
        desk.now += 15 * SECOND - Duration::from_nanos(1);
        assert_eq!(desk.ask("db.test", 1), Asked::At(ip(1)));
        let left = desk.names.known(desk.now).next().unwrap().time_left;
        assert_eq!(left, Duration::from_nanos(1));
        desk.now += Duration::from_nanos(1);
        assert_eq!(desk.ask("db.test", 1), Asked::Wait);
        let pending = desk.names.known(desk.now).next().unwrap();
        assert_eq!((pending.time_left, pending.addresses), (Duration::ZERO, &[ip(1)][..]));
        desk.next();
        assert_eq!(desk.answer("db.test", &[]).waiting, [(server(1), None)]);
        assert_eq!(desk.ask("db.test", 1), Asked::Nowhere);
        assert_eq!(desk.names.known(desk.now).next().unwrap().addresses, [] as [IpAddr; 0]);
        desk.now += 5 * SECOND;
        assert_eq!(desk.ask("db.test", 1), Asked::Wait);
    }

    #[test]
    fn lost_addresses_are_told_even_after_a_failure() {
        let mut desk = Desk::new();
        for (found, lost) in
            [(&[1, 2][..], &[][..]), (&[2, 3], &[1]), (&[], &[]), (&[3], &[2]), (&[3, 4], &[])]
        {
            assert_eq!(desk.ask("db.test", 1), Asked::Wait);
            desk.next();
            let expected: Vec<IpAddr> = lost.iter().map(|last| ip(*last)).collect();
            assert_eq!(desk.answer("db.test", found).lost, expected);
            desk.now += 15 * SECOND;
        }
    }

    #[test]
    fn look_ups_are_limited_and_those_that_nobody_waits_for_are_dropped() {
        let mut desk = Desk::new();
        let names: Vec<String> = (0..100).map(|number| format!("db{number}.test")).collect();
        for (number, name) in (0..).zip(&names) {
            desk.ask(name, number);
        }
        let begun: Vec<String> = std::iter::from_fn(|| desk.next()).collect();
        assert_eq!(begun, names[..MAX_IN_FLIGHT]);
        desk.answer("db0.test", &[]);
        // Only the last of those that are left has somebody who waits.
        let next = desk.names.next_lookup(|waiting| waiting == server(99));
        assert_eq!(next.as_deref(), Some("db99.test"));
        assert_eq!(desk.names.pending(), MAX_IN_FLIGHT);
        assert_eq!(desk.ask("db50.test", 1), Asked::Wait, "it can be asked for again");
    }

    #[test]
    fn who_waits_in_vain_is_not_remembered_for_ever() {
        let mut desk = Desk::new();
        for number in 0..100_000 {
            desk.names.ask("db.test", server(number), |_| false, desk.now);
        }
        let waiting = &desk.names.entries["db.test"].lookup.as_ref().unwrap().waiting;
        assert!(waiting.len() <= MANY_WAITING);
    }

    #[test]
    fn names_are_limited() {
        let mut desk = Desk::new();
        for number in 0..MAX_NAMES {
            desk.ask(&format!("db{number}"), 1);
        }
        assert_eq!(desk.ask("one.more", 1), Asked::Nowhere, "all are being looked up");
        while let Some(name) = desk.next() {
            desk.answer(&name, &[1]);
        }
        desk.now += SECOND;
        desk.ask("db0", 1);
        assert_eq!(desk.ask("one.more", 1), Asked::Wait);
        assert_eq!(desk.names.len(), MAX_NAMES);
        assert_eq!(desk.ask("db0", 1), Asked::At(ip(1)), "it was asked for not long ago");
        desk.names.retain(|name| name == "db0");
        assert_eq!(desk.names.names().collect::<Vec<_>>(), ["db0", "one.more"]);
    }

    #[test]
    fn a_zone_that_changed_has_all_its_names_looked_up() {
        let mut desk = Desk::new();
        for (name, found) in [("a.test", &[1][..]), ("b.test", &[]), ("c.other", &[1])] {
            desk.ask(name, 1);
            desk.next();
            desk.answer(name, found);
        }
        desk.ask("d.test", 1);
        desk.next();
        desk.names.renew_zone("test", desk.now);
        let again: Vec<String> = std::iter::from_fn(|| desk.next()).collect();
        assert_eq!(again, ["a.test", "b.test"], "what is under way already goes on");
        assert_eq!(desk.answer("a.test", &[2]).lost, [ip(1)]);
    }

    #[test]
    fn answers_that_nobody_asked_for_are_ignored() {
        let mut desk = Desk::new();
        assert_eq!(desk.answer("db.test", &[1]), Answered::default());
        desk.ask("db.test", 1);
        desk.next();
        desk.answer("db.test", &[1]);
        assert_eq!(desk.answer("db.test", &[2]), Answered::default());
        assert_eq!(desk.names.in_flight(), 0);
    }
}
