//! Values → text: a configuration as a file that says it in full.

use super::values::{LoadBalanceHosts, Value};
use super::{Config, Database, Peer, TABLE, User};
use std::fmt::{self, Display};
use std::time::Duration;

/// What a password shows as.
const MASK: &str = "****";

/// The settings, every one of them, and all entries with what they say. What is NULL has no text
/// and stands as a comment; passwords are masked.
impl Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[pgbouncer]")?;
        for setting in TABLE {
            match (setting.show)(&self.settings) {
                Some(value) => writeln!(f, "{} = {value}", setting.name)?,
                None => writeln!(f, ";{} =", setting.name)?,
            }
        }
        writeln!(f, "\n[databases]")?;
        for database in self.databases.values() {
            writeln!(f, "{} ={}", name(&database.name), pairs(database_pairs(database)))?;
        }
        if let Some(template) = &self.auto_database {
            writeln!(f, "* = {}", super::pairs::mask_passwords(template))?;
        }
        writeln!(f, "\n[users]")?;
        for user in self.users.values() {
            writeln!(f, "{} ={}", name(&user.name), pairs(user_pairs(user)))?;
        }
        writeln!(f, "\n[peers]")?;
        for peer in self.peers.values() {
            writeln!(f, "{} ={}", peer.id, pairs(peer_pairs(peer)))?;
        }
        Ok(())
    }
}

/// A key of the file, quoted if it has to be.
fn name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.chars().all(is_plain) { name.to_owned() } else { format!("'{name}'") }
}

fn pairs(pairs: Vec<(&'static str, Option<String>)>) -> String {
    let present = pairs.into_iter().filter_map(|(key, value)| Some((key, value?)));
    present.map(|(key, value)| format!(" {key}={}", quoted(&value))).collect()
}

fn quoted(value: &str) -> String {
    match value.contains([' ', '\'']) {
        true => format!("'{}'", value.replace('\'', "''")),
        false => value.to_owned(),
    }
}

fn seconds(time: Option<Duration>) -> Option<String> {
    Some(time?.as_secs().to_string())
}

fn shown<T: Value>(value: Option<T>) -> Option<String> {
    value.and_then(|value| value.show())
}

fn database_pairs(database: &Database) -> Vec<(&'static str, Option<String>)> {
    let turns = database.load_balance_hosts;
    vec![
        ("dbname", Some(database.dbname.clone())),
        ("host", database.host.clone()),
        ("port", Some(database.port.to_string())),
        ("user", database.user.clone()),
        ("password", database.password.as_ref().map(|_| MASK.to_owned())),
        ("auth_user", database.auth_user.clone()),
        ("auth_query", database.auth_query.clone()),
        ("auth_dbname", database.auth_dbname.clone()),
        ("client_encoding", database.client_encoding.clone()),
        ("datestyle", database.datestyle.clone()),
        ("timezone", database.timezone.clone()),
        ("application_name", database.application_name.clone()),
        ("pool_size", shown(database.pool_size)),
        ("min_pool_size", shown(database.min_pool_size)),
        ("reserve_pool_size", shown(database.reserve_pool_size)),
        ("max_db_connections", shown(database.max_db_connections)),
        ("max_db_client_connections", shown(database.max_db_client_connections)),
        ("server_lifetime", seconds(database.server_lifetime)),
        ("query_wait_timeout", seconds(database.query_wait_timeout)),
        ("pool_mode", shown(database.pool_mode)),
        ("connect_query", database.connect_query.clone()),
        (
            "load_balance_hosts",
            Some(turns)
                .filter(|turns| *turns != LoadBalanceHosts::default())
                .map(|turns| turns.word().to_owned()),
        ),
        ("tls_sslmode", shown(database.tls_sslmode)),
        ("tls_ca_file", database.tls_ca_file.clone()),
        ("tls_cert_file", database.tls_cert_file.clone()),
        ("tls_key_file", database.tls_key_file.clone()),
    ]
}

fn user_pairs(user: &User) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("pool_mode", shown(user.pool_mode)),
        ("pool_size", shown(user.pool_size)),
        ("reserve_pool_size", shown(user.reserve_pool_size)),
        ("max_user_connections", shown(user.max_user_connections)),
        ("max_user_client_connections", shown(user.max_user_client_connections)),
        ("query_timeout", seconds(user.query_timeout)),
        ("idle_transaction_timeout", seconds(user.idle_transaction_timeout)),
        ("transaction_timeout", seconds(user.transaction_timeout)),
        ("client_idle_timeout", seconds(user.client_idle_timeout)),
        ("query_wait_timeout", seconds(user.query_wait_timeout)),
    ]
}

fn peer_pairs(peer: &Peer) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("host", Some(peer.host.clone())),
        ("port", Some(peer.port.to_string())),
        ("pool_size", shown(peer.pool_size)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_says_the_same() {
        let text = "[databases]\na =\n'b c' = dbname=d host=a,b port=6000 user=u \
            auth_user=au auth_query='select ''1''' auth_dbname=ad client_encoding=UTF8 \
            datestyle=ISO timezone=UTC application_name=app pool_size=0 min_pool_size=1 \
            reserve_pool=2 max_db_connections=3 max_db_client_connections=4 server_lifetime=5 \
            query_wait_timeout=0 pool_mode=Transaction connect_query='select ''x''' \
            load_balance_hosts=disable tls_sslmode=verify-ca tls_ca_file=ca tls_cert_file=cert \
            tls_key_file=key\n* = host=auto pool_size=2\n\
            [users]\nu = pool_mode=statement pool_size=1 reserve_pool_size=2 \
            max_user_connections=3 max_user_client_connections=4 query_timeout=5 \
            idle_transaction_timeout=6 transaction_timeout=7 client_idle_timeout=8 \
            query_wait_timeout=9\n[peers]\n3 = host=p pool_size=4\n\
            [pgbouncer]\nmax_client_conn = 0x10\nserver_idle_timeout = 0.25\nauth_user = au\n\
            unix_socket_mode = 0700\nverbose = 1\n";
        let config = Config::parse_text("f.ini", text).unwrap();
        let again = Config::parse_text("f.ini", &config.to_string()).unwrap();
        assert_eq!(again, config);
        assert!(config.to_string().contains("\nmax_client_conn = 16\n"));
    }

    #[test]
    fn passwords_are_not_shown() {
        let text = "[databases]\nd = password=hush\n* = password=hush\n[pgbouncer]\n";
        let shown = Config::parse_text("f.ini", text).unwrap().to_string();
        assert!(!shown.contains("hush"));
        assert!(shown.contains("d = dbname=d port=5432 password=****\n* = password=****\n"));
    }
}
