//! How long things may take: what the configuration says, for whom. Zero is no limit everywhere.

use crate::config::Config;
use crate::config::settings::Settings;
use crate::pool::Pool;
use std::time::Duration;

/// How long the servers of a pool may work for one client. What `[users]` says of the user that
/// they log in as goes before `[pgbouncer]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkLimits {
    /// `query_timeout`
    pub query: Duration,
    /// `idle_transaction_timeout`
    pub idle_transaction: Duration,
    /// `transaction_timeout`
    pub transaction: Duration,
    shortest: Option<Duration>,
}

impl WorkLimits {
    /// For servers that log in as this user.
    pub fn new(user: &str, config: &Config) -> Self {
        let (user, settings) = (config.users.get(user), &config.settings);
        let query = user.and_then(|user| user.query_timeout);
        let idle_transaction = user.and_then(|user| user.idle_transaction_timeout);
        let transaction = user.and_then(|user| user.transaction_timeout);
        let query = query.unwrap_or(settings.query_timeout);
        let idle_transaction = idle_transaction.unwrap_or(settings.idle_transaction_timeout);
        let transaction = transaction.unwrap_or(settings.transaction_timeout);
        let all = [query, idle_transaction, transaction];
        let shortest = all.into_iter().filter(|limit| !limit.is_zero()).min();
        Self { query, idle_transaction, transaction, shortest }
    }

    /// The shortest of them, if there is any.
    pub fn shortest(&self) -> Option<Duration> {
        self.shortest
    }
}

/// How long a client may be idle: `client_idle_timeout` of its own name, or of all. As PgBouncer
/// should (D7): the limit of one user is none for the others.
pub fn idle_limit(user: &str, config: &Config) -> Duration {
    let own = config.users.get(user).and_then(|user| user.client_idle_timeout);
    own.unwrap_or(config.settings.client_idle_timeout)
}

/// How long a client may wait for a server: `query_wait_timeout` of its own name, of the database,
/// or of all (D18).
pub fn wait_limit(user: &str, pool: &Pool, config: &Config) -> Duration {
    let own = config.users.get(user).and_then(|user| user.query_wait_timeout);
    own.unwrap_or_else(|| pool.wait_limit(&config.settings))
}

/// The shorter of two limits.
pub fn shorter(one: Duration, other: Duration) -> Duration {
    if one.is_zero() || (!other.is_zero() && other < one) { other } else { one }
}

impl Pool {
    /// How long anybody may wait for a server here who has no limit of his own.
    pub fn wait_limit(&self, settings: &Settings) -> Duration {
        self.database.query_wait_timeout.unwrap_or(settings.query_wait_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse_text("test.ini", text).unwrap()
    }

    #[test]
    fn the_users_own_limits_go_before_those_of_all() {
        let config = config(
            "[users]\nslow = query_timeout=60 transaction_timeout=0\n\
             idler = idle_transaction_timeout=7 client_idle_timeout=8\n\
             [pgbouncer]\nquery_timeout = 5\ntransaction_timeout = 9\n",
        );
        let seconds = Duration::from_secs;
        let limits = |user| {
            let WorkLimits { query, idle_transaction, transaction, shortest } =
                WorkLimits::new(user, &config);
            (query.as_secs(), idle_transaction.as_secs(), transaction.as_secs(), shortest)
        };
        assert_eq!(limits("slow"), (60, 0, 9, Some(seconds(9))), "0 is that of all");
        assert_eq!(limits("idler"), (5, 7, 9, Some(seconds(5))));
        assert_eq!(idle_limit("idler", &config), seconds(8));
        assert_eq!(idle_limit("slow", &config), Duration::ZERO, "D7: the others have none");
        assert_eq!(WorkLimits::new("x", &Config::default()).shortest(), None);
    }

    #[test]
    fn zero_is_not_the_shorter_limit() {
        let [none, one, two] = [0, 1, 2].map(Duration::from_secs);
        for (a, b, shorter_one) in [(none, one, one), (one, none, one), (two, one, one)] {
            assert_eq!(shorter(a, b), shorter_one);
        }
        assert_eq!(shorter(none, none), none);
    }
}
