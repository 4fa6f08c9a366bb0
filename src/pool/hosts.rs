//! Which hosts fail, and when each may be tried again.
//!
//! Only with `server_login_retry_min`, for without it every pool pauses for itself, as with
//! PgBouncer. With it a host that fails is known to all pools: it is left alone for a pause that
//! grows from `server_login_retry_min` to `server_login_retry`, and then one of all pools tries it,
//! not a thousand at once. A pool with several hosts goes on with the others meanwhile.

use crate::config::settings::Settings;
use crate::keys::ServerKey;
use crate::pool::sizing::{LEAST_RETRY, Whereabouts};
use crate::pool::{House, Pool};
use crate::session::farewell::Reason;
use crate::session::server::State;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A host that fails.
#[derive(Clone, Debug)]
pub struct Failing {
    /// How often in a row.
    pub failures: u32,
    /// When last.
    pub since: Instant,
    /// Why.
    pub error: String,
    /// When it may be tried again.
    pub retry_at: Instant,
    /// The connection that tries whether it is back.
    probe: Option<ServerKey>,
}

/// All hosts that fail, by `host:port`. The others are well, as far as anybody knows.
pub type Hosts = HashMap<Box<str>, Failing>;

/// Whether all pools learn of a host's failure.
fn is_shared(settings: &Settings) -> bool {
    !settings.server_login_retry_min.is_zero()
}

/// The pause after so many failures in a row: twice as long each time, and never quite the same, so
/// that those who failed together do not come back together. `chance` is any number.
pub fn pause(settings: &Settings, failures: u32, chance: u64) -> Duration {
    let most = settings.server_login_retry.max(LEAST_RETRY);
    let least = settings.server_login_retry_min;
    if least.is_zero() || least >= most {
        return most;
    }
    let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let whole = least.saturating_mul(doubled).min(most).max(LEAST_RETRY);
    // SplitMix64: chance may be small or regular.
    let mut mixed = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let part = u32::try_from((mixed ^ (mixed >> 31)) % 500).unwrap_or(0);
    whole / 1000 * (500 + part)
}

/// Whether this says something about the host, not about our login there.
fn is_of_host(reason: &Reason) -> bool {
    let of_host = [
        Reason::CONNECT_FAILED,
        Reason::CONNECT_TIMEOUT,
        Reason::DNS_FAILED,
        Reason::SERVER_CRASHED,
    ];
    of_host.contains(reason)
        || matches!(reason, Reason::ServerSays { code, .. } if code == b"57P03")
}

impl House {
    /// Whether a connection is under way that shows whether it is back.
    pub fn is_probed(&self, host: &Failing) -> bool {
        let probe = host.probe.and_then(|key| self.servers.get(key));
        probe.is_some_and(|server| {
            matches!(
                server.state,
                State::Connecting(_)
                    | State::AskingForTls(_)
                    | State::StartingTls(_)
                    | State::LoggingIn(_)
            )
        })
    }

    /// Before this no further attempt is made for a pool, if it has to pause.
    pub fn retry_at(&self, pool: &Pool, settings: &Settings, now: Instant) -> Option<Instant> {
        if !is_shared(settings) || (pool.attempts.failure.is_some() && !pool.attempts.is_of_host) {
            return pool.attempts.retry_at;
        }
        let mut earliest: Option<Instant> = None;
        for host in pool.host_names(&settings.unix_socket_dir) {
            let failing = self.hosts.get(host.as_str())?;
            let at = match self.is_probed(failing) {
                true => now + LEAST_RETRY,
                false => failing.retry_at,
            };
            earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
        }
        earliest
    }

    /// Chooses where a server that is about to be opened connects to.
    pub fn choose_host(
        &mut self,
        key: ServerKey,
        settings: &Settings,
        now: Instant,
    ) -> Whereabouts {
        let pool_key = self.servers.get(key).map(|server| server.pool);
        let Some(pool) = pool_key.and_then(|pool| self.pools.get(pool)) else {
            return Whereabouts::Nowhere;
        };
        let names = pool.host_names(&settings.unix_socket_dir);
        let mut skipped = 0;
        if is_shared(settings) {
            let first = pool.first_host();
            let may_try = |step: &usize| {
                let name = names.get((first + step) % names.len().max(1));
                let failing = name.and_then(|name| self.hosts.get(name.as_str()));
                failing.is_none_or(|host| host.retry_at <= now && !self.is_probed(host))
            };
            skipped = (0..names.len()).find(may_try).unwrap_or(0);
        }
        let pool = pool_key.and_then(|key| self.pools.get_mut(key));
        let pool = pool.expect("just found");
        let (index, whereabouts) = pool.next_host(&settings.unix_socket_dir, skipped);
        if let Some(name) = names.into_iter().nth(index) {
            if let Some(failing) = self.hosts.get_mut(name.as_str()) {
                failing.probe = Some(key);
            }
            if let Some(server) = self.servers.get_mut(key) {
                server.host = Some(name.into());
            }
        }
        whereabouts
    }

    /// An attempt to open a server failed.
    pub fn note_failure(
        &mut self,
        key: ServerKey,
        reason: &Reason,
        settings: &Settings,
        now: Instant,
    ) {
        let Some(server) = self.servers.get_mut(key) else {
            return;
        };
        let Some(pool) = self.pools.get_mut(server.pool) else {
            return;
        };
        // How long the attempt took to the nanosecond is as good as chance.
        let took = now.saturating_duration_since(server.connected_at).as_nanos();
        let chance = u64::try_from(took).unwrap_or(0) ^ (u64::from(pool.attempts.failures) << 40);
        let began = pool.attempts.last.unwrap_or(now);
        pool.note_failure(&reason.text(), is_of_host(reason));
        // As PgBouncer: the time counts from the beginning of the attempt.
        let from = if is_shared(settings) { now } else { began };
        pool.attempts.retry_at = from.checked_add(pause(settings, pool.attempts.failures, chance));
        let (true, Some(host)) = (is_of_host(reason), server.host.take()) else {
            return;
        };
        let error = reason.text().into_owned();
        let failures = self.hosts.get(&host).map_or(0, |host| host.failures).saturating_add(1);
        let retry_at = now.checked_add(pause(settings, failures, chance)).unwrap_or(now);
        self.hosts.insert(host, Failing { failures, since: now, error, retry_at, probe: None });
    }

    /// A login succeeded: its host is well.
    pub fn note_success(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get(key) else {
            return;
        };
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.attempts.failure = None;
            pool.attempts.failures = 0;
            pool.attempts.retry_at = None;
        }
        if let Some(host) = &server.host {
            self.hosts.remove(host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_never_quite_the_same() {
        let mut settings = Settings::default();
        let second = Duration::from_secs(1);
        assert_eq!(pause(&settings, 1, 7), 15 * second, "as ever, without the least one");
        settings.server_login_retry_min = second;
        for (failures, whole) in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 8), (5, 15), (99, 15)] {
            let pauses: Vec<Duration> =
                (0..200).map(|chance| pause(&settings, failures, chance)).collect();
            let range = whole * second / 2..=whole * second;
            assert!(pauses.iter().all(|pause| range.contains(pause)), "{failures}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause < whole * second * 6 / 10));
            assert!(pauses.iter().any(|pause| *pause > whole * second * 9 / 10));
        }
        settings.server_login_retry = Duration::ZERO;
        assert_eq!(pause(&settings, 3, 1), LEAST_RETRY);
    }
}
