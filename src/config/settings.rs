//! The one table of all settings. The typed [`Settings`], reading, printing, SET, reload and SHOW
//! CONFIG all come from its rows; to add a setting is to add a row.
//!
//! A row: doc, name, type, default text (`null` prints as NULL), `reload` if it can change at run
//! time or `boot` if it holds from start to end, `check` where not every text is allowed, `ours`
//! where PgBouncer has no such setting. The order is that of SHOW CONFIG, ours last.

use super::complaint::Complaint;
use super::values::{
    AuthType, BadValue, CompatVersion, DirectoryWords, List, LogFormat, PoolMode, ProtocolVersion,
    SslMode, Switch, Value,
};
use std::time::Duration;

/// A row of the table.
#[derive(Debug)]
pub struct Setting {
    /// As in the file, in SET and in SHOW CONFIG.
    pub name: &'static str,
    /// What it does, in a line.
    pub doc: &'static str,
    /// The text it has before any other; `None` is NULL.
    pub default: Option<&'static str>,
    /// Whether it can change at run time.
    pub changeable: bool,
    /// Whether PgBouncer does not have it.
    pub ours: bool,
    /// Gives it the value that the text says.
    pub set: fn(&mut Settings, &str) -> Result<(), BadValue>,
    /// Its value as SHOW CONFIG prints it; `None` is NULL.
    pub show: fn(&Settings) -> Option<String>,
    /// Gives the first the second's value.
    pub copy: fn(&mut Settings, &Settings),
}

/// The row of a setting; names are exact.
pub fn find(name: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.name == name)
}

macro_rules! default_text {
    (null) => {
        None
    };
    ($text:literal) => {
        Some($text)
    };
}

macro_rules! default_value {
    (null) => {
        Default::default()
    };
    ($text:literal) => {
        Value::parse($text).expect("the table's defaults can be read")
    };
}

macro_rules! changeable {
    (reload) => {
        true
    };
    (boot) => {
        false
    };
}

macro_rules! is_ours {
    () => {
        false
    };
    (ours) => {
        true
    };
}

macro_rules! settings {
    ($(
        #[doc = $doc:literal]
        $name:ident: $type:ty = $default:tt, $scope:ident
        $(check $check:path)? $(, $ours:ident)?;
    )*) => {
        /// The value of every setting.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Settings {
            $(#[doc = $doc] pub $name: $type,)*
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($name: default_value!($default),)* }
            }
        }

        /// All settings, in the order of SHOW CONFIG.
        pub static TABLE: &[Setting] = &[$(Setting {
            name: stringify!($name),
            doc: $doc.trim_ascii(),
            default: default_text!($default),
            changeable: changeable!($scope),
            ours: is_ours!($($ours)?),
            set: |settings, text| {
                $($check(text)?;)?
                settings.$name = Value::parse(text)?;
                Ok(())
            },
            show: |settings| settings.$name.show(),
            copy: |to, from| to.$name.clone_from(&from.$name),
        },)*];
    };
}

settings! {
    /// Names with all rights on the admin console.
    admin_users: List = "", reload;
    /// Whether the client's address is added to its application_name.
    application_name_add_host: Switch = "0", reload;
    /// The database entry in which auth_query runs.
    auth_dbname: Option<String> = null, reload check not_the_console;
    /// The file of user names and their secrets.
    auth_file: Option<String> = null, reload;
    /// The rules for auth_type hba.
    auth_hba_file: String = "", reload;
    /// The maps between system users and ours, for those rules.
    auth_ident_file: Option<String> = null, reload;
    /// How to ask the LDAP server, for auth_type ldap.
    auth_ldap_options: DirectoryWords = null, reload;
    /// The query that finds a user's secret; $1 is the name.
    auth_query: String = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin", reload;
    /// How clients prove who they are.
    auth_type: AuthType = "md5", reload;
    /// The role that runs auth_query.
    auth_user: Option<String> = null, reload;
    /// How long a database made from `*` lives unused; 0 is for ever.
    autodb_idle_timeout: Duration = "3600", reload;
    /// How long a cancel request may wait to be forwarded; 0 is for ever.
    cancel_wait_timeout: Duration = "10", reload;
    /// How long a client without a server may be silent; 0 is for ever.
    client_idle_timeout: Duration = "0", reload;
    /// How long a client may take to log in; 0 is for ever.
    client_login_timeout: Duration = "60", reload;
    /// TLS 1.3 cipher suites for clients; empty is the library's choice.
    client_tls13_ciphers: Option<String> = null, reload;
    /// The authorities for clients' certificates.
    client_tls_ca_file: String = "", reload;
    /// The certificate shown to clients.
    client_tls_cert_file: String = "", reload;
    /// TLS 1.2 ciphers for clients.
    client_tls_ciphers: String = "default", reload;
    /// Parameters for Diffie-Hellman with clients: none or auto, both without effect here.
    client_tls_dheparams: String = "auto", reload;
    /// The curve for key exchange with clients: none, auto or its name.
    client_tls_ecdhcurve: String = "auto", reload;
    /// The key of the certificate shown to clients.
    client_tls_key_file: String = "", reload;
    /// TLS versions that clients may use.
    client_tls_protocols: String = "secure", reload;
    /// How much TLS is asked of clients.
    client_tls_sslmode: SslMode = "disable", reload;
    /// The configuration file that the next reload reads.
    conffile: Option<String> = null, reload;
    /// Server connections per pool; 0 or less is no limit.
    default_pool_size: i32 = "20", reload;
    /// Whether simple Query messages are refused.
    disable_pqexec: Switch = "0", boot;
    /// How long found addresses are kept, whatever the TTL of their records.
    dns_max_ttl: Duration = "15", reload;
    /// How long it is kept that a name has no address.
    dns_nxdomain_ttl: Duration = "15", reload;
    /// How often zone serials are looked at; 0 is never.
    dns_zone_check_period: Duration = "0", reload;
    /// How long a server may idle inside a transaction; 0 is for ever.
    idle_transaction_timeout: Duration = "0", reload;
    /// Startup parameters to drop in silence.
    ignore_startup_parameters: List = "", reload;
    /// Without effect here.
    job_name: String = "pgbouncer", boot;
    /// The addresses to listen on, separated by commas; * is all.
    listen_addr: List = "", boot;
    /// How many connections the kernel may hold for us to accept.
    listen_backlog: i32 = "128", boot;
    /// The port to listen on, also part of the Unix socket's name.
    listen_port: i32 = "6432", boot;
    /// Whether logins are logged.
    log_connections: Switch = "1", reload;
    /// Whether ends of connections are logged, with the reason.
    log_disconnections: Switch = "1", reload;
    /// Whether errors sent to clients are logged.
    log_pooler_errors: Switch = "1", reload;
    /// Whether totals are logged every stats_period.
    log_stats: Switch = "1", reload;
    /// The file to log to; empty is none.
    logfile: String = "", reload;
    /// A notice to each client that has logged in; empty is none.
    login_notify_message: String = "", reload;
    /// Client connections in all.
    max_client_conn: i32 = "100", reload;
    /// Client connections per database; 0 or less is no limit.
    max_db_client_connections: i32 = "0", reload;
    /// Server connections per database; 0 or less is no limit.
    max_db_connections: i32 = "0", reload;
    /// The longest message accepted, in bytes.
    max_packet_size: u32 = "2147483647", reload;
    /// Prepared statements kept per server when it is shared; 0 turns tracking off.
    max_prepared_statements: i32 = "200", reload;
    /// Client connections per user; 0 is no limit.
    max_user_client_connections: i32 = "0", reload;
    /// Server connections per user; 0 or less is no limit.
    max_user_connections: i32 = "0", reload;
    /// Server connections to keep open in each pool.
    min_pool_size: i32 = "0", reload;
    /// Our own number among peers, which hand cancel requests on; 0 is no peering.
    peer_id: i32 = "0", reload;
    /// The file that holds our process id; empty is none.
    pidfile: String = "", boot;
    /// The size of an I/O buffer, in bytes.
    pkt_buf: i32 = "4096", boot;
    /// When a server goes back to its pool.
    pool_mode: PoolMode = "session", reload;
    /// How long an empty pool is kept; 0 is for ever.
    pool_idle_timeout: Duration = "0", reload;
    /// How long a query may take, waiting included; 0 is for ever.
    query_timeout: Duration = "0", reload;
    /// After how many seconds a waiting client is told so; 0 or less is never.
    query_wait_notify: i32 = "5", reload;
    /// How long a query may wait for a server; 0 is for ever.
    query_wait_timeout: Duration = "120", reload;
    /// Server connections that a pool may add in need.
    reserve_pool_size: i32 = "0", reload;
    /// How long a client must have waited for those; 0 is never.
    reserve_pool_timeout: Duration = "5", reload;
    /// Another resolv.conf; its name servers may have ports, as in 127.0.0.1:5353.
    resolv_conf: String = "", boot;
    /// Buffers moved per socket and turn; 0 or less is no limit.
    sbuf_loopcnt: i32 = "5", reload;
    /// Iterations for SCRAM secrets made from plain passwords.
    scram_iterations: i32 = "4096", reload;
    /// After how long unused a server is checked before use; 0 is always.
    server_check_delay: Duration = "30", reload;
    /// The query for that check; empty is none, `<empty>` is an empty query.
    server_check_query: String = "<empty>", reload;
    /// How long connecting and logging in to a server may take.
    server_connect_timeout: Duration = "15", reload;
    /// Whether session pooling closes an outdated server as soon as it is idle.
    server_fast_close: Switch = "0", reload;
    /// How long a server may be unused; 0 is for ever.
    server_idle_timeout: Duration = "600", reload;
    /// How long a server connection is used; 0 is once.
    server_lifetime: Duration = "3600", reload;
    /// How long to wait after a failed connection to a server.
    server_login_retry: Duration = "15", reload;
    /// The query that resets a server for the next client; empty is none.
    server_reset_query: String = "DISCARD ALL", reload;
    /// Whether it runs in transaction and statement pooling, too.
    server_reset_query_always: Switch = "0", reload;
    /// Whether servers are used in turn, not the last used first.
    server_round_robin: Switch = "0", reload;
    /// TLS 1.3 cipher suites for servers; empty is the library's choice.
    server_tls13_ciphers: Option<String> = null, reload;
    /// The authorities for servers' certificates.
    server_tls_ca_file: String = "", reload;
    /// The certificate shown to servers.
    server_tls_cert_file: String = "", reload;
    /// TLS 1.2 ciphers for servers.
    server_tls_ciphers: String = "default", reload;
    /// The key of the certificate shown to servers.
    server_tls_key_file: String = "", reload;
    /// TLS versions to use with servers.
    server_tls_protocols: String = "secure", reload;
    /// How much TLS is asked of servers.
    server_tls_sslmode: SslMode = "prefer", reload;
    /// Whether several processes may listen on the same port.
    so_reuseport: Switch = "0", boot;
    /// The time between two stats lines and over which averages go, in seconds.
    stats_period: i32 = "60", reload;
    /// Names that may look, but not change anything, on the admin console.
    stats_users: List = "", reload;
    /// How long SUSPEND waits for buffers to empty; 0 is for ever.
    suspend_timeout: Duration = "10", reload;
    /// Whether to log to syslog.
    syslog: Switch = "0", reload;
    /// The facility to name there.
    syslog_facility: String = "daemon", reload;
    /// The program name to give there.
    syslog_ident: String = "pgbouncer", reload;
    /// Whether the kernel waits for data before we see a connection.
    tcp_defer_accept: Switch = "1", reload;
    /// Whether TCP looks if silent peers are still there.
    tcp_keepalive: Switch = "1", reload;
    /// After how many unanswered probes they are not; 0 is the system's choice.
    tcp_keepcnt: i32 = "0", reload;
    /// After how many seconds of silence it looks; 0 is the system's choice.
    tcp_keepidle: i32 = "0", reload;
    /// The seconds between probes; 0 is the system's choice.
    tcp_keepintvl: i32 = "0", reload;
    /// The size of kernel socket buffers, in bytes; 0 is the system's choice.
    tcp_socket_buffer: i32 = "0", reload;
    /// How many milliseconds data may stay unacknowledged; 0 is the system's choice.
    tcp_user_timeout: i32 = "0", reload;
    /// Parameters to keep per client besides the usual ones.
    track_extra_parameters: List = "IntervalStyle", boot;
    /// How long a transaction may take; 0 is for ever.
    transaction_timeout: Duration = "0", reload;
    /// The directory of the Unix socket, ours and servers'; empty is none.
    unix_socket_dir: String = "/tmp", boot;
    /// The group of our Unix socket.
    unix_socket_group: String = "", boot;
    /// The permissions of our Unix socket.
    unix_socket_mode: i32 = "0777", boot;
    /// The system user to run as.
    user: Option<String> = null, boot;
    /// How much is logged beyond the usual: 0 to 3.
    verbose: Option<i32> = null, reload;
    /// The PgBouncer version named by SHOW VERSION: 1.26 or 1.25.
    compat_version: CompatVersion = "1.26", reload, ours;
    /// Whether TLS with servers starts without asking first, as PostgreSQL 17 can.
    server_tls_direct: Switch = "0", reload, ours;
    /// The form of log lines: text or json.
    log_format: LogFormat = "text", reload, ours;
    /// The first pause after a host has failed, doubled up to server_login_retry; 0 is that one.
    server_login_retry_min: Duration = "0", reload, ours;
    /// How long to bring a server back whose client broke off or timed out; 0 closes it.
    server_rescue_timeout: Duration = "0", reload, ours;
    /// Queries in a row from a client while others wait for its server; 0 is no limit.
    max_pipeline_depth: i32 = "16", reload, ours;
    /// Where metrics are shown over HTTP: addr:port or the path of a Unix socket.
    metrics_listen: String = "", boot, ours;
    /// The newest protocol spoken with clients: 3.2, or 3.0 if a PgBouncer is among the peers.
    max_protocol_version: ProtocolVersion = "3.2", reload, ours;
}

/// The admin console is no database in which a query could run.
fn not_the_console(name: &str) -> Result<(), BadValue> {
    if name == super::CONSOLE {
        return Err(BadValue { because: Some(Complaint::ReservedAuthDbname) });
    }
    Ok(())
}

impl Settings {
    /// The query that checks a server before use: `None` is no check, `Some("")` an empty query.
    pub fn check_query(&self) -> Option<&str> {
        match self.server_check_query.as_str() {
            "" => None,
            "<empty>" => Some(""),
            query => Some(query),
        }
    }

    /// How long a server is free before it is checked; `None`: it never is.
    pub fn check_after(&self) -> Option<Duration> {
        (!self.server_check_query.is_empty()).then_some(self.server_check_delay)
    }

    /// What each `[pgbouncer]` header does: whatever has a default gets it back.
    pub(super) fn reset(&mut self) {
        let defaults = Self::default();
        for setting in TABLE.iter().filter(|setting| setting.default.is_some()) {
            (setting.copy)(self, &defaults);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = include_str!("../../tests/data/show-config.tsv");

    #[test]
    fn the_table_is_that_of_show_config() {
        let rows: Vec<_> = CONTRACT.lines().skip(1).collect();
        let table: Vec<_> = TABLE.iter().filter(|setting| !setting.ours).collect();
        assert_eq!(rows.len(), 100);
        assert_eq!(table.len(), 100);
        for (row, setting) in rows.iter().zip(table) {
            let changeable = if setting.changeable { "yes" } else { "no" };
            let ours =
                format!("{}\t{}\t{changeable}", setting.name, setting.default.unwrap_or("\\N"));
            assert_eq!(*row, ours);
        }
        assert!(TABLE[100..].iter().all(|setting| setting.ours));
        assert_eq!(TABLE.iter().filter(|setting| !setting.changeable && !setting.ours).count(), 14);
    }

    #[test]
    fn defaults_print_as_they_are_written_but_for_two() {
        let settings = Settings::default();
        for setting in TABLE {
            let shown = (setting.show)(&settings);
            match setting.name {
                "unix_socket_mode" => assert_eq!(shown.as_deref(), Some("511")),
                "verbose" => assert_eq!(shown.as_deref(), Some("0")),
                _ => assert_eq!(shown.as_deref(), setting.default, "{}", setting.name),
            }
            assert!(setting.doc.ends_with('.') && setting.doc.len() < 90, "{}", setting.name);
        }
    }

    /// All settings with their defaults, as a file to take lines from.
    fn reference() -> String {
        let mut text = String::from(
            ";; All settings of section [pgbouncer] with their defaults, made from the table in\n\
             ;; src/config/settings.rs. Those without a value after the sign have none.\n\n\
             [pgbouncer]\n",
        );
        for setting in TABLE {
            let Setting { name, doc, default, changeable, ours, .. } = setting;
            let scope = if *changeable { "" } else { " Needs a restart." };
            let origin = if *ours { " PgBouncer does not have this one." } else { "" };
            let line = format!(";{name} = {}", default.unwrap_or_default());
            text.push_str(&format!("\n;; {doc}{scope}{origin}\n{}\n", line.trim_ascii_end()));
        }
        text
    }

    #[test]
    fn the_reference_in_etc_is_complete() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/all-settings.ini");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, reference()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(written, reference(), "BLESS=1 cargo test writes it anew");
        // With its comment signs off it must load; NULL has no text, so empty lines stay away.
        let lines = written.lines().map(|line| match line.strip_prefix(';') {
            Some(setting) if !setting.starts_with(';') && !setting.ends_with('=') => setting,
            _ => line,
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        let config = crate::config::Config::parse_text("all", &text).unwrap();
        assert_eq!(Settings { conffile: None, ..config.settings }, Settings::default());
    }

    #[test]
    fn settings_are_set_and_copied_by_name() {
        let mut settings = Settings::default();
        (find("max_client_conn").unwrap().set)(&mut settings, "0x20").unwrap();
        assert_eq!(settings.max_client_conn, 32);
        (find("auth_user").unwrap().set)(&mut settings, "").unwrap();
        assert_eq!(settings.auth_user.as_deref(), Some(""));
        assert_eq!((find("pool_mode").unwrap().set)(&mut settings, "x"), Err(BadValue::default()));
        assert!((find("auth_dbname").unwrap().set)(&mut settings, "pgbouncer").is_err());
        assert!(find("LISTEN_PORT").is_none());
        settings.reset();
        assert_eq!(settings.max_client_conn, 100);
        assert_eq!(settings.auth_user.as_deref(), Some(""), "as it has no default");
    }

    #[test]
    fn the_check_query_may_be_empty_or_absent() {
        let mut settings = Settings::default();
        assert_eq!(settings.check_query(), Some(""));
        settings.server_check_query = "select 1".to_owned();
        assert_eq!(settings.check_query(), Some("select 1"));
        settings.server_check_query.clear();
        assert_eq!(settings.check_query(), None);
    }
}
