//! What can be wrong with a configuration, in the words that operators and their scripts know.

use log::Level;
use std::fmt;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name as it was given.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One line that explains why a configuration cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// A file that cannot be read, and what the system said.
    Unreadable(String, String),
    /// Text that is neither section, key nor comment.
    Syntax(Place),
    /// Goes before `InvalidSection`, as PgBouncer.
    NoSuchDefaults,
    /// A section that there is not.
    InvalidSection(String, Place),
    /// A key before the first section.
    OutsideSections(String),
    /// Neither the file nor what it includes has a `[pgbouncer]`.
    NoMainSection,
    /// A key of `[pgbouncer]` that there is not.
    UnknownParameter(String),
    /// A value, its key and place.
    InvalidValue(String, String, Place),
    /// A value with bytes that are not UTF-8.
    NotUtf8,
    /// Files that include files that include files, too many of them.
    IncludeTooDeep(Place),
    /// An included file has failed; its own complaints went before.
    IncludeFailed(Place),
    /// Not a row of `key=value`.
    ConnectionSyntax,
    /// The same in `[users]`.
    UserSyntax,
    /// A key that a connection string does not have.
    UnknownConnectionKey(String),
    /// A key that `[users]` does not have.
    UnknownUserKey(String),
    /// A port that is not between 1 and 65535.
    InvalidPort(String),
    /// Not a pool mode.
    InvalidPoolMode(String),
    /// Not a way to walk a list of hosts.
    InvalidLoadBalanceHosts(String),
    /// Not a way to speak TLS.
    InvalidSslMode(String),
    /// The admin console's name, which no entry may have.
    ReservedDatabase(String),
    /// The admin console's name as `auth_dbname`.
    ReservedAuthDbname,
    /// A database name beyond 63 bytes; a warning.
    DatabaseNameTooLong(String),
    /// Goes after `DatabaseNameTooLong`, as PgBouncer.
    NoDatabase,
    /// A key of `[peers]` that is no peer id.
    InvalidPeerId,
    /// A peer without an address.
    PeerWithoutHost(u16),
}

impl Complaint {
    /// How loud it is.
    pub fn level(&self) -> Level {
        match self {
            Self::DatabaseNameTooLong(_) => Level::Warn,
            _ => Level::Error,
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(file, why) => write!(f, "could not load file \"{file}\": {why}"),
            Self::Syntax(place) => {
                write!(f, "syntax error in configuration ({place}), stopping loading")
            }
            Self::NoSuchDefaults => f.write_str("fill_defaults fail"),
            Self::InvalidSection(name, place) => {
                write!(f, "invalid section \"{name}\" in configuration ({place})")
            }
            Self::OutsideSections(key) => {
                write!(f, "load_init_file: value without section: {key}")
            }
            Self::NoMainSection => {
                f.write_str("load_init_file: main section missing from config file")
            }
            Self::UnknownParameter(key) => write!(f, "unknown parameter: pgbouncer/{key}"),
            Self::InvalidValue(value, key, place) => {
                write!(
                    f,
                    "invalid value \"{value}\" for parameter {key} in configuration ({place})"
                )
            }
            Self::NotUtf8 => f.write_str("value is not valid UTF-8"),
            Self::IncludeTooDeep(place) => {
                write!(f, "include nesting level too deep ({place}), stopping loading")
            }
            Self::IncludeFailed(place) => write!(
                f,
                "error processing include file in configuration ({place}), stopping loading"
            ),
            Self::ConnectionSyntax => f.write_str("syntax error in connection string"),
            Self::UserSyntax => f.write_str("syntax error in user settings"),
            Self::UnknownConnectionKey(key) => {
                write!(f, "unrecognized connection parameter: {key}")
            }
            Self::UnknownUserKey(key) => write!(f, "unrecognized user parameter: {key}"),
            Self::InvalidPort(text) => write!(f, "invalid port: {text}"),
            Self::InvalidPoolMode(text) => write!(f, "invalid pool mode: {text}"),
            Self::InvalidLoadBalanceHosts(text) => write!(f, "invalid load_balance_hosts: {text}"),
            Self::InvalidSslMode(text) => write!(f, "invalid tls_sslmode: {text}"),
            Self::ReservedDatabase(name) => write!(f, "database name \"{name}\" is reserved"),
            Self::ReservedAuthDbname => {
                f.write_str("cannot use the reserved \"pgbouncer\" database as an auth_dbname")
            }
            Self::DatabaseNameTooLong(name) => write!(f, "too long db name: {name}"),
            Self::NoDatabase => f.write_str("cannot create database, no memory?"),
            Self::InvalidPeerId => {
                f.write_str("ids of peers must be a number larger than 0 and at most 65536")
            }
            Self::PeerWithoutHost(id) => write!(f, "host was not provided for peer {id}"),
        }
    }
}

/// Why a configuration was not loaded: one or more lines, in the order in which they are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    complaints: Vec<Complaint>,
}

impl LoadError {
    /// The lines; each knows its level.
    pub fn lines(&self) -> &[Complaint] {
        &self.complaints
    }

    /// The same with one more line at the end.
    pub(super) fn and(mut self, last: Complaint) -> Self {
        self.complaints.push(last);
        self
    }

    /// Writes the lines to the log.
    pub fn log(&self) {
        for complaint in &self.complaints {
            log::log!(complaint.level(), "{complaint}");
        }
    }
}

impl From<Complaint> for LoadError {
    fn from(complaint: Complaint) -> Self {
        Self { complaints: vec![complaint] }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, complaint) in self.complaints.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{complaint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}
