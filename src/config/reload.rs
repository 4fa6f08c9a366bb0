//! What differs between the configuration that runs and the next one.

use super::{Config, Database, ServerTls, Settings};

/// Whose connections a reload ends. Everything else just has new values from then on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes<'a> {
    /// Databases that are no longer listed.
    pub dropped: Vec<&'a str>,
    /// Databases whose servers are now somewhere else, or somebody else's.
    pub moved: Vec<&'a str>,
    /// Whether databases made from `*` have to be made anew.
    pub auto_changed: bool,
    /// Peers that are no longer listed.
    pub dropped_peers: Vec<u16>,
    /// Whether TLS with servers is another.
    pub server_tls_changed: bool,
}

impl Config {
    /// What happens to connections when `next` takes the place of this.
    pub fn changes<'a>(&'a self, next: &Config) -> Changes<'a> {
        let mut changes = Changes {
            auto_changed: self.auto_database != next.auto_database,
            server_tls_changed: self.settings.server_tls_differs(&next.settings),
            ..Changes::default()
        };
        for (name, database) in &self.databases {
            match next.databases.get(name) {
                None => changes.dropped.push(name),
                Some(next) if database.servers_differ(next) => changes.moved.push(name),
                Some(_) => {}
            }
        }
        let dropped = self.peers.keys().filter(|id| !next.peers.contains_key(id));
        changes.dropped_peers.extend(dropped);
        changes
    }
}

impl Database {
    /// Whether a server connected for this entry is of no use for the other one.
    pub fn servers_differ(&self, other: &Self) -> bool {
        // As PgBouncer: the rest, among it the password, counts for new connections only.
        self.dbname != other.dbname
            || self.host != other.host
            || self.port != other.port
            || self.user != other.user
            || self.connect_query != other.connect_query
            || self.auth_dbname != other.auth_dbname
            || self.auth_query != other.auth_query
            || self.load_balance_hosts != other.load_balance_hosts
            || self.tls_sslmode != other.tls_sslmode
            || self.tls_ca_file != other.tls_ca_file
            || self.tls_cert_file != other.tls_cert_file
            || self.tls_key_file != other.tls_key_file
    }
}

impl Settings {
    /// Whether servers are spoken to by other TLS.
    pub fn server_tls_differs(&self, other: &Self) -> bool {
        ServerTls::new(self).differs(&ServerTls::new(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entries: &str, settings: &str) -> Config {
        let text = format!("[databases]\n{entries}\n[pgbouncer]\n{settings}\n");
        Config::parse_text("f.ini", &text).unwrap()
    }

    #[test]
    fn what_names_the_server_moves_a_database() {
        let before = config("d = host=a", "");
        let moving = [
            "dbname=x host=a",
            "",
            "host=b",
            "host=a port=1",
            "host=a user=u",
            "host=a connect_query=q",
            "host=a auth_dbname=x",
            "host=a auth_query=q",
            "host=a load_balance_hosts=disable",
            "host=a tls_sslmode=require",
            "host=a tls_ca_file=f",
            "host=a tls_cert_file=f",
            "host=a tls_key_file=f",
        ];
        for text in moving {
            let next = config(&format!("d = {text}"), "");
            assert_eq!(before.changes(&next).moved, ["d"], "{text:?}");
        }
        let staying = "d = host=a password=x auth_user=u pool_size=1 min_pool_size=1 \
            reserve_pool_size=1 max_db_connections=1 max_db_client_connections=1 \
            pool_mode=statement client_encoding=x datestyle=x timezone=x application_name=x \
            server_lifetime=1 query_wait_timeout=1";
        assert_eq!(before.changes(&config(staying, "")), Changes::default());
    }

    #[test]
    fn what_is_not_listed_is_dropped() {
        let before = config("a =\nb =\n* =\n[peers]\n1 = host=x\n2 = host=x", "");
        let next = config("b =\nc =\n* = host=x\n[peers]\n2 = host=y", "pool_mode = statement");
        let expected = Changes {
            dropped: vec!["a"],
            auto_changed: true,
            dropped_peers: vec![1],
            ..Changes::default()
        };
        assert_eq!(before.changes(&next), expected);
    }

    #[test]
    fn other_tls_is_seen() {
        let before = config("", "");
        for (setting, differs) in [
            ("server_tls_sslmode = require", true),
            ("server_tls_protocols = tlsv1.3", true),
            ("server_tls_ciphers = x", true),
            ("server_tls_ca_file = x", true),
            ("server_tls_cert_file = x", true),
            ("server_tls_key_file = x", true),
            ("server_tls_direct = 1", true),
            ("server_tls13_ciphers = x", false),
            ("client_tls_ca_file = x", false),
        ] {
            let changes = before.changes(&config("", setting));
            assert_eq!(changes.server_tls_changed, differs, "{setting}");
        }
    }
}
