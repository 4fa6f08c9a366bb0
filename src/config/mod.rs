//! Text → values: what the configuration file says, as one value that is whole or not at all.
//!
//! ```text
//! file ──ini──▶ sections, keys ──┬─ settings ──▶ Settings
//!                                └─ entries ───▶ Database, User, Peer      describe ──▶ text
//! ```
//!
//! Start and reload both build a new [`Config`]. Unlike PgBouncer, a file with an error changes
//! nothing at all: what runs goes on with the old value.

pub mod complaint;
pub mod describe;
pub mod entries;
pub mod ini;
pub mod pairs;
pub mod reload;
pub mod settings;
pub mod tls;
pub mod values;

pub use complaint::{Complaint, LoadError, Place};
pub use entries::{Database, Peer, User};
pub use reload::Changes;
pub use settings::{Setting, Settings, TABLE};
pub use tls::ServerTls;
pub use values::{
    AuthType, BadValue, CompatVersion, List, LoadBalanceHosts, LogFormat, PoolMode, Secret,
    SslMode, Switch, Value,
};

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The admin console: a database and a user of this name are ours alone.
pub const CONSOLE: &str = "pgbouncer";

/// No client can give a longer name.
pub const USER_NAME_BYTES: usize = 127;

/// Everything that a configuration file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Section `[pgbouncer]`.
    pub settings: Settings,
    /// Section `[databases]`, by name, but for `*`.
    pub databases: BTreeMap<String, Arc<Database>>,
    /// The connection string of `*`; as PgBouncer, nobody looks at it before it is used.
    pub auto_database: Option<String>,
    /// Section `[users]`, by name.
    pub users: BTreeMap<String, User>,
    /// Section `[peers]`, by id.
    pub peers: BTreeMap<u16, Peer>,
}

impl Config {
    /// Reads a file and what it includes.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::parse(&path.to_string_lossy(), &mut read_file)
    }

    /// Reads the file of this name, getting it and all others from `read_file`.
    pub fn parse(name: &str, read_file: &mut ini::ReadFile<'_>) -> Result<Self, LoadError> {
        let mut builder = Builder::default();
        builder.config.settings.conffile = Some(name.to_owned());
        ini::read(name, read_file, &mut builder)?;
        if !builder.main_section_seen {
            return Err(Complaint::NoMainSection.into());
        }
        Ok(builder.config)
    }

    /// Reads a text that includes nothing.
    pub fn parse_text(name: &str, text: &str) -> Result<Self, LoadError> {
        let mut only = |asked: &str| match asked == name {
            true => Ok(text.as_bytes().to_vec()),
            false => Err("No such file or directory".to_owned()),
        };
        Self::parse(name, &mut only)
    }

    /// Makes a database of this name from the entry of `*`, if there is one.
    pub fn auto(&self, name: &str) -> Option<Result<Database, LoadError>> {
        self.auto_database.as_deref().map(|text| Database::parse(name, text))
    }

    /// Takes back what cannot change at run time; tells which settings would have.
    pub fn keep_boot_only(&mut self, running: &Settings) -> Vec<&'static str> {
        let mut kept = Vec::new();
        for setting in TABLE.iter().filter(|setting| !setting.changeable) {
            if (setting.show)(&self.settings) != (setting.show)(running) {
                (setting.copy)(&mut self.settings, running);
                kept.push(setting.name);
            }
        }
        kept
    }
}

/// The file's bytes, or the system's words for what is wrong.
fn read_file(name: &str) -> Result<Vec<u8>, String> {
    match std::fs::read(name) {
        // As PgBouncer: a directory reads as an empty file.
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => Ok(Vec::new()),
        other => other.map_err(|error| crate::sys::error_text(&error)),
    }
}

/// Builds a configuration line by line.
#[derive(Default)]
struct Builder {
    config: Config,
    section: Option<Section>,
    main_section_seen: bool,
}

#[derive(Clone, Copy)]
enum Section {
    Main,
    Databases,
    Users,
    Peers,
}

impl ini::Sink for Builder {
    fn section(&mut self, name: &str) -> Result<(), LoadError> {
        self.section = Some(match name {
            "pgbouncer" => {
                // As PgBouncer: a second header takes back what the first section said.
                self.config.settings.reset();
                self.main_section_seen = true;
                Section::Main
            }
            "databases" => Section::Databases,
            "users" => Section::Users,
            "peers" => Section::Peers,
            _ => return Err(Complaint::NoSuchDefaults.into()),
        });
        Ok(())
    }

    fn entry(&mut self, key: &str, value: &str) -> Result<(), Option<LoadError>> {
        let config = &mut self.config;
        match self.section {
            None => return Err(Some(Complaint::OutsideSections(key.to_owned()).into())),
            Some(Section::Main) => {
                let setting = settings::find(key)
                    .ok_or_else(|| Some(Complaint::UnknownParameter(key.to_owned()).into()))?;
                (setting.set)(&mut config.settings, value)
                    .map_err(|bad| bad.because.map(LoadError::from))?;
            }
            Some(Section::Databases) if key == "*" => {
                config.auto_database = Some(value.to_owned());
            }
            Some(Section::Databases) => {
                let database = Arc::new(Database::parse(key, value)?);
                config.databases.insert(key.to_owned(), database);
            }
            Some(Section::Users) => {
                if key.len() > USER_NAME_BYTES {
                    log::warn!("too long user name, no client can have it: {key}");
                }
                config.users.insert(key.to_owned(), User::parse(key, value)?);
            }
            Some(Section::Peers) => {
                let peer = Peer::parse(key, value)?;
                config.peers.insert(peer.id, peer);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse_text("f.ini", text).map_err(|error| error.to_string())
    }

    #[test]
    fn sections_come_in_any_order_and_add_up() {
        let config = parse(
            "[users]\nu = pool_size=3\n[databases]\na = host=x\n* = host=auto\n[pgbouncer]\n\
             pool_mode = transaction\n[peers]\n1 = host=p\n[databases]\nb =\na = host=y\n",
        );
        let config = config.unwrap();
        assert_eq!(config.settings.pool_mode, PoolMode::Transaction);
        assert_eq!(config.settings.conffile.as_deref(), Some("f.ini"));
        assert_eq!(config.databases.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(config.databases["a"].host.as_deref(), Some("y"));
        assert_eq!(config.users["u"].pool_size, Some(3));
        assert_eq!(config.peers[&1].host, "p");
        let auto = config.auto("new").unwrap().unwrap();
        assert_eq!((auto.name.as_str(), auto.host.as_deref()), ("new", Some("auto")));
    }

    #[test]
    fn a_second_header_resets_what_has_a_default() {
        let text = "[pgbouncer]\nlisten_port = 1\nauth_user = u\n[pgbouncer]\npeer_id = 2\n";
        let settings = parse(text).unwrap().settings;
        assert_eq!((settings.listen_port, settings.peer_id), (6432, 2));
        assert_eq!(settings.auth_user.as_deref(), Some("u"));
    }

    #[test]
    fn the_file_may_name_the_next_file() {
        let config = parse("[pgbouncer]\nconffile = other.ini\n").unwrap();
        assert_eq!(config.settings.conffile.as_deref(), Some("other.ini"));
    }

    #[test]
    fn refusals_have_the_known_words() {
        let cases = [
            ("", "load_init_file: main section missing from config file"),
            (
                "a = 1\n[pgbouncer]",
                "load_init_file: value without section: a\n\
                 invalid value \"1\" for parameter a in configuration (f.ini:1)",
            ),
            (
                "[pgbouncer]\nfoo = 1\nbar = 2",
                "unknown parameter: pgbouncer/foo\n\
                 invalid value \"1\" for parameter foo in configuration (f.ini:2)",
            ),
            (
                "[pgbouncer]\nmax_client_conn = abc  \n\n",
                "invalid value \"abc\" for parameter max_client_conn in configuration (f.ini:2)",
            ),
            (
                "[pgbouncer]\nauth_dbname = pgbouncer",
                "cannot use the reserved \"pgbouncer\" database as an auth_dbname\n\
                 invalid value \"pgbouncer\" for parameter auth_dbname in configuration (f.ini:2)",
            ),
            ("[foo]", "fill_defaults fail\ninvalid section \"foo\" in configuration (f.ini:1)"),
            (
                "[databases]\na = port=x password=hush",
                "invalid port: x\ninvalid value \"port=x password=****\" for parameter a in \
                 configuration (f.ini:2)",
            ),
            (
                "[users]\n\nu = x=1",
                "unrecognized user parameter: x\n\
                 invalid value \"x=1\" for parameter u in configuration (f.ini:3)",
            ),
            (
                "[peers]\n2 = port=1",
                "host was not provided for peer 2\n\
                 invalid value \"port=1\" for parameter 2 in configuration (f.ini:2)",
            ),
            (
                "[pgbouncer]\n%include x",
                "could not load file \"x\": No such file or directory\n\
                 error processing include file in configuration (f.ini:2), stopping loading",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text), Err(message.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_bad_template_shows_when_it_is_used() {
        let config = parse("[databases]\n* = nonsense\n[pgbouncer]").unwrap();
        let error = config.auto("x").unwrap().unwrap_err();
        assert_eq!(error.to_string(), "syntax error in connection string");
        assert!(parse("[pgbouncer]").unwrap().auto("x").is_none());
    }

    #[test]
    fn boot_only_settings_stay() {
        let running = parse("[pgbouncer]\nlisten_port = 1\npool_mode = session").unwrap();
        let mut new = parse("[pgbouncer]\nlisten_port = 2\npool_mode = statement").unwrap();
        assert_eq!(new.keep_boot_only(&running.settings), ["listen_port"]);
        assert_eq!(new.settings.listen_port, 1);
        assert_eq!(new.settings.pool_mode, PoolMode::Statement);
    }

    #[test]
    fn files_are_read() {
        let error = Config::load(Path::new("no/such.ini")).unwrap_err().to_string();
        assert_eq!(error, "could not load file \"no/such.ini\": No such file or directory");
        let error = Config::load(Path::new(".")).unwrap_err().to_string();
        assert_eq!(error, "load_init_file: main section missing from config file");
    }

    #[test]
    fn the_sample_loads() {
        let sample = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/etc/ringbouncer.ini"));
        let config = Config::load(sample).unwrap();
        assert_eq!(config.settings.auth_type, AuthType::Trust);
        assert_eq!(config.settings.listen_addr.items().collect::<Vec<_>>(), ["127.0.0.1"]);
        assert_eq!(config.settings.listen_port, 6432);
        assert!(!config.databases.is_empty());
    }
}
