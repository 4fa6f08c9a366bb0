//! How many files we may hold open, beside how many the configuration may need: one line for the
//! operator, nothing is enforced.

use crate::auth::userlist::Userlist;
use crate::config::CONSOLE;
use crate::config::Config;
use crate::sys;
use std::collections::BTreeSet;

/// Listeners, log, pid file and the like.
const OTHER_FILES: i64 = 10;
/// The console is counted as a database with this pool size.
const CONSOLE_FILES: i64 = 2;

/// Logs the line.
pub fn report(config: &Config, userlist: &Userlist) {
    match sys::open_files_limit() {
        Ok((soft, hard)) => log::info!(
            "kernel file descriptor limit: {} (hard: {}); max_client_conn: {}, max expected fd \
             use: {}",
            as_c_int(soft),
            as_c_int(hard),
            config.settings.max_client_conn,
            expected_files(config, userlist),
        ),
        Err(error) => log::error!("could not get RLIMIT_NOFILE: {}", sys::error_text(&error)),
    }
}

/// As PgBouncer: what is unlimited shows as -1.
fn as_c_int(limit: u64) -> i32 {
    limit as i32
}

/// As PgBouncer: every client, and for every database as many servers as all known users can have.
fn expected_files(config: &Config, userlist: &Userlist) -> i64 {
    let users = i64::try_from(known_users(config, userlist)).unwrap_or(i64::MAX);
    let servers = config.databases.values().map(|database| {
        let size = i64::from(database.pool_size.unwrap_or(config.settings.default_pool_size));
        if database.user.is_some() { size } else { size.saturating_mul(users) }
    });
    let servers = servers.fold(CONSOLE_FILES, i64::saturating_add);
    servers.saturating_add(i64::from(config.settings.max_client_conn) + OTHER_FILES)
}

fn known_users(config: &Config, userlist: &Userlist) -> usize {
    let mut names: BTreeSet<&[u8]> = userlist.iter().map(|(name, _)| name).collect();
    names.insert(CONSOLE.as_bytes());
    names.extend(config.users.keys().map(|name| name.as_bytes()));
    names.extend(config.settings.auth_user.as_deref().map(str::as_bytes));
    let auth_users = config.databases.values().filter_map(|entry| entry.auth_user.as_deref());
    names.extend(auth_users.map(str::as_bytes));
    names.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_as_pgbouncer_counts_them() {
        let (one, _) = Userlist::parse(b"\"a\" \"b\"");
        let cases = [
            ("[databases]\nd =\n[pgbouncer]", 152), // as seen on PgBouncer
            ("[databases]\n* =\n[pgbouncer]", 112),
            ("[databases]\nd = user=u pool_size=3\n[pgbouncer]\nmax_client_conn=5", 20),
            ("[databases]\nd = pool_size=1\n[users]\na =\nb =\n[pgbouncer]", 115),
            ("[databases]\nd = pool_size=1 auth_user=x\n[pgbouncer]\nauth_user=y", 116),
            ("[databases]\nd =\n[pgbouncer]\nmax_client_conn=-10", 42),
        ];
        for (text, files) in cases {
            let config = Config::parse_text("f.ini", text).unwrap();
            assert_eq!(expected_files(&config, &one), files, "{text:?}");
        }
    }

    #[test]
    fn what_is_unlimited_shows_as_minus_one() {
        assert_eq!((as_c_int(1024), as_c_int(u64::MAX)), (1024, -1));
    }
}
