//! What the lines of `[databases]`, `[users]` and `[peers]` say. `pairs` splits them.
//!
//! Numbers are read as PgBouncer reads them here, by `atoi`: what is no number is 0.

use super::CONSOLE;
use super::complaint::{Complaint, LoadError};
use super::pairs::Pairs;
use super::values::{LoadBalanceHosts, PoolMode, Secret, SslMode, c_atoi};
use std::borrow::Cow;
use std::time::Duration;

/// PostgreSQL keeps no longer names of databases.
const DATABASE_NAME_BYTES: usize = 63;

/// Where a database listens unless its entry says otherwise.
const SERVER_PORT: u16 = 5432;

/// Where another pooler listens unless its entry says otherwise.
const PEER_PORT: u16 = 6432;

/// An entry of `[databases]`. What is `None` holds as in `[pgbouncer]`, or is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// The name clients ask for.
    pub name: String,
    /// The name on the server.
    pub dbname: String,
    /// Host, address, directory of a Unix socket, or several; `None` is our own socket's directory.
    pub host: Option<String>,
    /// The same on all hosts.
    pub port: u16,
    /// Who logs in to the server, whoever the client is.
    pub user: Option<String>,
    /// That user's password.
    pub password: Option<Secret>,
    /// Who runs `auth_query` for clients of this database.
    pub auth_user: Option<String>,
    /// The query that finds a user's secret.
    pub auth_query: Option<String>,
    /// The entry in which it runs.
    pub auth_dbname: Option<String>,
    /// A startup parameter for the server.
    pub client_encoding: Option<String>,
    /// A startup parameter for the server.
    pub datestyle: Option<String>,
    /// A startup parameter for the server.
    pub timezone: Option<String>,
    /// A startup parameter for the server.
    pub application_name: Option<String>,
    /// Server connections per pool; 0 is no limit.
    pub pool_size: Option<i32>,
    /// Server connections to keep open.
    pub min_pool_size: Option<i32>,
    /// Server connections to add in need.
    pub reserve_pool_size: Option<i32>,
    /// Server connections in all.
    pub max_db_connections: Option<i32>,
    /// Client connections in all.
    pub max_db_client_connections: Option<i32>,
    /// How long a server connection is used.
    pub server_lifetime: Option<Duration>,
    /// How long a query may wait for a server; zero is for ever.
    pub query_wait_timeout: Option<Duration>,
    /// When a server goes back to its pool.
    pub pool_mode: Option<PoolMode>,
    /// A query to run once on each new server.
    pub connect_query: Option<String>,
    /// In which order several hosts are tried.
    pub load_balance_hosts: LoadBalanceHosts,
    /// How much TLS is asked of its servers; ours.
    pub tls_sslmode: Option<SslMode>,
    /// The authorities for their certificates; ours.
    pub tls_ca_file: Option<String>,
    /// The certificate shown to them; ours.
    pub tls_cert_file: Option<String>,
    /// The key of that certificate; ours.
    pub tls_key_file: Option<String>,
}

impl Database {
    /// An entry that says nothing.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dbname: name.to_owned(),
            host: None,
            port: SERVER_PORT,
            user: None,
            password: None,
            auth_user: None,
            auth_query: None,
            auth_dbname: None,
            client_encoding: None,
            datestyle: None,
            timezone: None,
            application_name: None,
            pool_size: None,
            min_pool_size: None,
            reserve_pool_size: None,
            max_db_connections: None,
            max_db_client_connections: None,
            server_lifetime: None,
            query_wait_timeout: None,
            pool_mode: None,
            connect_query: None,
            load_balance_hosts: LoadBalanceHosts::default(),
            tls_sslmode: None,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
        }
    }

    /// Reads an entry: its name and its connection string.
    pub fn parse(name: &str, text: &str) -> Result<Self, LoadError> {
        if name == CONSOLE {
            return Err(Complaint::ReservedDatabase(name.to_owned()).into());
        }
        let mut database = Self::new(name);
        for pair in Pairs::new(text) {
            let (key, value) = pair.map_err(|_| Complaint::ConnectionSyntax)?;
            database.set(key, value)?;
        }
        if name.len() > DATABASE_NAME_BYTES {
            let too_long = Complaint::DatabaseNameTooLong(name.to_owned());
            return Err(LoadError::from(too_long).and(Complaint::NoDatabase));
        }
        Ok(database)
    }

    /// The hosts of the list; none means our own socket's directory.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.host.iter().flat_map(|list| list.split(','))
    }

    fn set(&mut self, key: &str, value: Cow<'_, str>) -> Result<(), Complaint> {
        match key {
            "dbname" => self.dbname = value.into_owned(),
            "host" => self.host = Some(value.into_owned()),
            "port" => self.port = port(&value)?,
            "user" => self.user = Some(value.into_owned()),
            "password" => self.password = Some(Secret::new(value.into_owned().into_bytes())),
            "auth_user" => self.auth_user = Some(value.into_owned()),
            "auth_query" => self.auth_query = Some(value.into_owned()),
            "auth_dbname" => self.auth_dbname = Some(value.into_owned()),
            "client_encoding" => self.client_encoding = Some(value.into_owned()),
            "datestyle" => self.datestyle = Some(value.into_owned()),
            "timezone" => self.timezone = Some(value.into_owned()),
            "application_name" => self.application_name = Some(value.into_owned()),
            "pool_size" => self.pool_size = not_negative(&value),
            "min_pool_size" => self.min_pool_size = not_negative(&value),
            "reserve_pool_size" | "reserve_pool" => self.reserve_pool_size = not_negative(&value),
            "max_db_connections" => self.max_db_connections = positive(&value),
            "max_db_client_connections" => self.max_db_client_connections = positive(&value),
            "server_lifetime" => self.server_lifetime = seconds_unless_zero(&value),
            "query_wait_timeout" => self.query_wait_timeout = Some(seconds_or_never(&value)),
            "pool_mode" => self.pool_mode = Some(pool_mode(&value)?),
            "connect_query" => self.connect_query = Some(value.into_owned()),
            "load_balance_hosts" => {
                self.load_balance_hosts = LoadBalanceHosts::from_word(&value)
                    .ok_or_else(|| Complaint::InvalidLoadBalanceHosts(value.into_owned()))?;
            }
            "tls_sslmode" => {
                let mode = SslMode::from_word(&value);
                self.tls_sslmode =
                    Some(mode.ok_or_else(|| Complaint::InvalidSslMode(value.into_owned()))?);
            }
            "tls_ca_file" => self.tls_ca_file = Some(value.into_owned()),
            "tls_cert_file" => self.tls_cert_file = Some(value.into_owned()),
            "tls_key_file" => self.tls_key_file = Some(value.into_owned()),
            _ => return Err(Complaint::UnknownConnectionKey(key.to_owned())),
        }
        Ok(())
    }
}

/// An entry of `[users]`: limits for a user. What is `None` holds as in `[pgbouncer]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user's name.
    pub name: String,
    /// When a server goes back to its pool.
    pub pool_mode: Option<PoolMode>,
    /// Server connections per pool; 0 is no limit.
    pub pool_size: Option<i32>,
    /// Server connections to add in need.
    pub reserve_pool_size: Option<i32>,
    /// Server connections in all.
    pub max_user_connections: Option<i32>,
    /// Client connections in all.
    pub max_user_client_connections: Option<i32>,
    /// How long a query may take.
    pub query_timeout: Option<Duration>,
    /// How long a server may idle inside a transaction.
    pub idle_transaction_timeout: Option<Duration>,
    /// How long a transaction may take.
    pub transaction_timeout: Option<Duration>,
    /// How long a client without a server may be silent.
    pub client_idle_timeout: Option<Duration>,
    /// How long a query may wait for a server; zero is for ever.
    pub query_wait_timeout: Option<Duration>,
}

impl User {
    /// Reads an entry: its name and its settings.
    pub fn parse(name: &str, text: &str) -> Result<Self, LoadError> {
        let mut user = Self { name: name.to_owned(), ..Self::default() };
        for pair in Pairs::new(text) {
            let (key, value) = pair.map_err(|_| Complaint::UserSyntax)?;
            user.set(key, &value)?;
        }
        Ok(user)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Complaint> {
        match key {
            "pool_mode" => self.pool_mode = Some(pool_mode(value)?),
            "pool_size" => self.pool_size = not_negative(value),
            "reserve_pool_size" => self.reserve_pool_size = not_negative(value),
            "max_user_connections" => self.max_user_connections = positive(value),
            "max_user_client_connections" => self.max_user_client_connections = positive(value),
            "query_timeout" => self.query_timeout = seconds_unless_zero(value),
            "idle_transaction_timeout" => {
                self.idle_transaction_timeout = seconds_unless_zero(value);
            }
            "transaction_timeout" => self.transaction_timeout = seconds_unless_zero(value),
            "client_idle_timeout" => self.client_idle_timeout = seconds_unless_zero(value),
            "query_wait_timeout" => self.query_wait_timeout = Some(seconds_or_never(value)),
            _ => return Err(Complaint::UnknownUserKey(key.to_owned())),
        }
        Ok(())
    }
}

/// An entry of `[peers]`: another pooler that may know whom a cancel request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub id: u16,
    /// Where it is; forms as for [`Database::host`].
    pub host: String,
    /// Where it listens.
    pub port: u16,
    /// Connections to it.
    pub pool_size: Option<i32>,
}

impl Peer {
    /// Reads an entry: its id and its connection string.
    pub fn parse(id: &str, text: &str) -> Result<Self, LoadError> {
        let id = u16::try_from(c_atoi(id)).ok().filter(|id| *id > 0);
        let id = id.ok_or(Complaint::InvalidPeerId)?;
        let mut host = None;
        let mut peer = Self { id, host: String::new(), port: PEER_PORT, pool_size: None };
        for pair in Pairs::new(text) {
            let (key, value) = pair.map_err(|_| Complaint::ConnectionSyntax)?;
            match key {
                "host" => host = Some(value.into_owned()),
                "port" => peer.port = port(&value)?,
                "pool_size" => peer.pool_size = not_negative(&value),
                _ => return Err(Complaint::UnknownConnectionKey(key.to_owned()).into()),
            }
        }
        peer.host = host.ok_or(Complaint::PeerWithoutHost(id))?;
        Ok(peer)
    }
}

fn port(text: &str) -> Result<u16, Complaint> {
    let number = u16::try_from(c_atoi(text)).ok().filter(|port| *port > 0);
    number.ok_or_else(|| Complaint::InvalidPort(text.to_owned()))
}

fn pool_mode(text: &str) -> Result<PoolMode, Complaint> {
    PoolMode::from_word(text).ok_or_else(|| Complaint::InvalidPoolMode(text.to_owned()))
}

/// A number where 0 has a meaning and -1 says "as elsewhere".
fn not_negative(text: &str) -> Option<i32> {
    Some(c_atoi(text)).filter(|number| *number >= 0)
}

/// A number where 0 says "as elsewhere".
fn positive(text: &str) -> Option<i32> {
    Some(c_atoi(text)).filter(|number| *number > 0)
}

/// Whole seconds where 0 says "as elsewhere".
fn seconds_unless_zero(text: &str) -> Option<Duration> {
    match c_atoi(text) {
        0 => None,
        // As PgBouncer: below zero it wraps to a time that nobody lives to see.
        number => Some(u64::try_from(number).map_or(AGES, Duration::from_secs)),
    }
}

/// Whole seconds where 0 and less say "for ever", which is zero.
fn seconds_or_never(text: &str) -> Duration {
    Duration::from_secs(u64::try_from(c_atoi(text)).unwrap_or(0))
}

/// Longer than any process runs.
const AGES: Duration = Duration::from_secs(u32::MAX as u64);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn database(text: &str) -> Database {
        Database::parse("db", text).unwrap()
    }

    #[test]
    fn an_empty_entry_has_defaults() {
        let database = database("");
        assert_eq!(database, Database::new("db"));
        assert_eq!((database.dbname.as_str(), database.port), ("db", 5432));
        assert_eq!(database.hosts().count(), 0);
    }

    #[test]
    fn every_key_of_a_database_is_read() {
        let read = database(
            "dbname=d host=a,b port=6000 user=u password='p w' auth_user=au auth_query='select 1' \
             auth_dbname=ad client_encoding=UTF8 datestyle=ISO timezone=UTC application_name=app \
             pool_size=0 min_pool_size=1 reserve_pool=2 max_db_connections=3 \
             max_db_client_connections=4 server_lifetime=5 query_wait_timeout=0 \
             pool_mode=Transaction connect_query='select ''x''' load_balance_hosts=disable \
             tls_sslmode=Verify-Full tls_ca_file=ca tls_cert_file=cert tls_key_file=key",
        );
        let some = |text: &str| Some(text.to_owned());
        let expected = Database {
            name: "db".to_owned(),
            dbname: "d".to_owned(),
            host: some("a,b"),
            port: 6000,
            user: some("u"),
            password: Some(Secret::new(*b"p w")),
            auth_user: some("au"),
            auth_query: some("select 1"),
            auth_dbname: some("ad"),
            client_encoding: some("UTF8"),
            datestyle: some("ISO"),
            timezone: some("UTC"),
            application_name: some("app"),
            pool_size: Some(0),
            min_pool_size: Some(1),
            reserve_pool_size: Some(2),
            max_db_connections: Some(3),
            max_db_client_connections: Some(4),
            server_lifetime: Some(Duration::from_secs(5)),
            query_wait_timeout: Some(Duration::ZERO),
            pool_mode: Some(PoolMode::Transaction),
            connect_query: some("select 'x'"),
            load_balance_hosts: LoadBalanceHosts::Disable,
            tls_sslmode: Some(SslMode::VerifyFull),
            tls_ca_file: some("ca"),
            tls_cert_file: some("cert"),
            tls_key_file: some("key"),
        };
        assert_eq!(read, expected);
        assert_eq!(read.hosts().collect::<Vec<_>>(), ["a", "b"]);
        assert!(!format!("{read:?}").contains("p w"));
    }

    #[test]
    fn wrong_entries_are_refused_with_the_known_words() {
        let long = "x".repeat(64);
        let too_long = format!("too long db name: {long}\ncannot create database, no memory?");
        let syntax = "syntax error in connection string";
        let cases = [
            ("pgbouncer", "foo=1", "database name \"pgbouncer\" is reserved"),
            (&long, "", &too_long),
            (&long, "foo=1", "unrecognized connection parameter: foo"),
            ("d", "host=''", syntax),
            ("d", "host", syntax),
            ("d", "host='ab'port=1", "unrecognized connection parameter: ort"),
            ("d", "Host=a", "unrecognized connection parameter: Host"),
            ("d", "port=abc", "invalid port: abc"),
            ("d", "port=0", "invalid port: 0"),
            ("d", "port=65536", "invalid port: 65536"),
            ("d", "port=-1", "invalid port: -1"),
            ("d", "pool_mode=tx", "invalid pool mode: tx"),
            ("d", "load_balance_hosts=x", "invalid load_balance_hosts: x"),
            ("d", "tls_sslmode=x", "invalid tls_sslmode: x"),
            (
                "d",
                "max_user_connections=1",
                "unrecognized connection parameter: max_user_connections",
            ),
        ];
        for (name, text, message) in cases {
            assert_eq!(Database::parse(name, text).unwrap_err().to_string(), message, "{text:?}");
        }
        let error = Database::parse(&long, "").unwrap_err();
        assert_eq!(error.lines()[0].level(), log::Level::Warn);
        assert!(Database::parse("PGBOUNCER", "").is_ok());
        assert!(Database::parse("", "").is_ok());
        assert!(Database::parse(&long[..63], "").is_ok());
    }

    #[test]
    fn numbers_of_entries_are_lenient() {
        let read = database("pool_size=-1 min_pool_size=abc max_db_connections=-2 port=7x");
        assert_eq!((read.pool_size, read.min_pool_size), (None, Some(0)));
        assert_eq!((read.max_db_connections, read.port), (None, 7));
        assert_eq!(database("query_wait_timeout=-1").query_wait_timeout, Some(Duration::ZERO));
        assert_eq!(database("server_lifetime=0").server_lifetime, None);
        assert_eq!(database("server_lifetime=-1").server_lifetime, Some(AGES));
    }

    #[test]
    fn every_key_of_a_user_is_read() {
        let read = User::parse(
            "u",
            "pool_mode=statement pool_size=1 reserve_pool_size=2 max_user_connections=3 \
             max_user_client_connections=4 query_timeout=5 idle_transaction_timeout=6 \
             transaction_timeout=7 client_idle_timeout=8 query_wait_timeout=9",
        );
        let seconds = |number| Some(Duration::from_secs(number));
        let expected = User {
            name: "u".to_owned(),
            pool_mode: Some(PoolMode::Statement),
            pool_size: Some(1),
            reserve_pool_size: Some(2),
            max_user_connections: Some(3),
            max_user_client_connections: Some(4),
            query_timeout: seconds(5),
            idle_transaction_timeout: seconds(6),
            transaction_timeout: seconds(7),
            client_idle_timeout: seconds(8),
            query_wait_timeout: seconds(9),
        };
        assert_eq!(read, Ok(expected));
        let cases = [
            ("pool_mode", "syntax error in user settings"),
            ("pool_mode=x", "invalid pool mode: x"),
            ("reserve_pool=1", "unrecognized user parameter: reserve_pool"),
        ];
        for (text, message) in cases {
            assert_eq!(User::parse("u", text).unwrap_err().to_string(), message, "{text:?}");
        }
    }

    #[test]
    fn peers_need_an_id_and_a_host() {
        let expected = Peer { id: 1, host: "h".to_owned(), port: 6432, pool_size: None };
        assert_eq!(Peer::parse("1", "host=h"), Ok(expected));
        let expected = Peer { id: 65535, host: "/s".to_owned(), port: 7, pool_size: Some(2) };
        assert_eq!(Peer::parse("65535", "host=/s port=7 pool_size=2"), Ok(expected));
        let bad_id = "ids of peers must be a number larger than 0 and at most 65536";
        let cases = [
            ("0", "host=h", bad_id),
            ("65536", "host=h", bad_id),
            ("x", "host=h", bad_id),
            ("3", "", "host was not provided for peer 3"),
            ("3", "host", "syntax error in connection string"),
            ("3", "user=u", "unrecognized connection parameter: user"),
        ];
        for (id, text, message) in cases {
            assert_eq!(Peer::parse(id, text).unwrap_err().to_string(), message, "{id} {text:?}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "([a-b='\t é]|password=){0,30}") {
            let _ = Database::parse("d", &text);
            let _ = User::parse("u", &text);
            let _ = Peer::parse(&text, &text);
        }
    }
}
