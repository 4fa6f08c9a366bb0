//! Reads a client's Startup: what it asks for, or why it cannot be let in.

use crate::auth::challenge::{Attempt, Challenge, Claim, Refusal};
use crate::auth::derivation::Derivation;
use crate::auth::outside::Oracle;
use crate::config::CONSOLE;
use crate::config::Secret;
use crate::config::entries::Database;
use crate::keys::PoolKey;
use crate::session::client::Rights;
use crate::session::farewell::Reason;
use crate::session::params::{APPLICATION_NAME, Parameters, Tracked, Values};
use crate::wire::startup;
use std::sync::Arc;

/// Longer names of users do not exist.
pub const MAX_USER_BYTES: usize = 127;
/// `application_name_add_host` makes names up to this long.
const MAX_APPLICATION_NAME_BYTES: usize = 399;
/// Beginning of the names that NegotiateProtocolVersion is about.
const PROTOCOL_OPTION: &[u8] = b"_pq_.";

/// What `replication` in a Startup asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// A normal connection.
    No,
    /// `replication=database`.
    Logical,
    /// `replication=yes` and its like.
    Physical,
}

/// What a client that replicates has asked for: see `engine::replication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicator {
    /// Never [`Replication::No`].
    pub kind: Replication,
    /// `options`, as the client wrote them: its server gets the same words.
    pub options: Option<Box<[u8]>>,
}

/// What a client asks for.
#[derive(Debug)]
pub struct Startup {
    /// Never empty.
    pub user: String,
    /// The user's name, if the client named none.
    pub database: String,
    /// Tracked parameters, as the client wrote them.
    pub parameters: Parameters,
    /// Options of the protocol that we do not know, in order.
    pub protocol_options: Vec<Vec<u8>>,
    /// Whether it wants to replicate.
    pub replication: Replication,
    /// `options`, as they are, of who wants to.
    pub options: Option<Box<[u8]>>,
}

impl Startup {
    /// What a client wants that replicates.
    pub fn replicator(&self) -> Option<Box<Replicator>> {
        let (kind, options) = (self.replication, self.options.clone());
        (kind != Replication::No).then(|| Box::new(Replicator { kind, options }))
    }
}

/// A login that has to wait before it can go on.
#[derive(Debug)]
pub struct Pending {
    /// What the client asks for.
    pub startup: Startup,
    /// The entry it means; `None`: there is none, which only who has proven himself is told.
    pub database: Option<Arc<Database>>,
    /// What is asked about its user.
    pub query: String,
}

/// Where a client wants to, once it has proven who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// To a database.
    Database {
        /// As the client named it.
        name: String,
        /// Its pool; `None`: there is no such database.
        pool: Option<PoolKey>,
        /// Whether it wants to replicate.
        replication: Replication,
    },
    /// To the console.
    Console {
        /// What it may do there.
        rights: Rights,
    },
}

impl Goal {
    /// The name by which rules know it.
    pub fn name(&self) -> &str {
        match self {
            Goal::Database { name, .. } => name,
            Goal::Console { .. } => CONSOLE,
        }
    }

    /// Whether it wants to replicate all databases.
    pub fn is_physical_replication(&self) -> bool {
        matches!(self, Goal::Database { replication: Replication::Physical, .. })
    }
}

/// A login in which the client has to prove who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proving {
    /// Who it says it is, and the secrets of which it has to know one.
    pub claim: Claim,
    /// Where it wants to.
    pub goal: Goal,
    /// How far it is.
    pub step: Step,
}

/// How far a client is with its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was asked. Leaves to `Asked`, `Checking`, `Withheld`, or the login's end.
    Asked(Challenge),
    /// It was asked for a password that somebody else knows. Leaves to `Consulting`.
    AskedFor {
        /// What is awaited.
        challenge: Challenge,
        /// Who knows.
        oracle: Oracle,
    },
    /// Somebody else is asked about its password. Not read. Leaves to the login's end.
    Consulting {
        /// The password: if it is right, it opens servers, too.
        password: Secret,
        /// What the client is told if it is not.
        refusal: &'static str,
    },
    /// Its answer waits for a key. Not read. Leaves to `Checking`, or the login's end.
    Checking {
        /// The answer.
        attempt: Attempt,
        /// What is being made on the side thread.
        needed: Derivation,
    },
    /// Its answer is wrong, and it will be told so when a key could have been made. Not read.
    /// Leaves to the login's end.
    Withheld {
        /// What it will be told.
        refusal: Refusal,
    },
}

/// What reading a Startup depends on.
pub struct Rules<'a> {
    /// Which parameters follow the client.
    pub tracked: &'a Tracked,
    /// `ignore_startup_parameters`
    pub ignored: &'a dyn Fn(&str) -> bool,
    /// The client's address, if `application_name_add_host` is on.
    pub add_host: Option<String>,
}

/// A parameter that makes us refuse, for the log: it shows the value too.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// Told to the client.
    pub reason: Reason,
    /// A WARNING before that.
    pub warning: Option<String>,
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Self {
        Self { reason, warning: None }
    }
}

/// Reads what follows the header of a Startup of protocol 3.
pub fn read(body: &[u8], rules: &Rules, values: &mut Values) -> Result<Startup, Refused> {
    let list = startup::parameters(body);
    let replication = list.pairs.iter().rev().find(|(name, _)| *name == b"replication");
    let replication = replication.map_or(Replication::No, |(_, value)| replication_of(value));
    let (mut user, mut database) = (&b""[..], &b""[..]);
    let (mut protocol_options, mut options) = (Vec::new(), None);
    let mut parameters = rules.tracked.unset();
    for (name, value) in &list.pairs {
        match *name {
            b"user" => user = value,
            b"database" => database = value,
            b"replication" => {}
            b"options" if replication == Replication::No => {
                read_options(value, rules, values, &mut parameters)?;
            }
            b"options" => options = Some(Box::from(*value)),
            name if name.starts_with(PROTOCOL_OPTION) => protocol_options.push(name.to_vec()),
            name => match rules.tracked.index_of(name) {
                Some(index) => parameters.set(index, values.intern(value)),
                None if is_ignored(rules, name) => {}
                None => return Err(unsupported("unsupported startup parameter", name, value)),
            },
        }
    }
    if !list.well_formed {
        return Err(Reason::BAD_STARTUP_LAYOUT.into());
    }
    if user.is_empty() {
        return Err(Reason::NO_USERNAME.into());
    }
    if let Some(host) = &rules.add_host {
        add_host(&mut parameters, host, values);
    }
    let database = if database.is_empty() { user } else { database };
    Ok(Startup {
        user: name_text(user)?,
        database: name_text(database)?,
        parameters,
        protocol_options,
        replication,
        options,
    })
}

/// Names are looked up in files of text, so they must be text. Replacing what is not would make
/// two names one, and let somebody in as somebody else.
fn name_text(name: &[u8]) -> Result<String, Refused> {
    String::from_utf8(name.to_vec())
        .map_err(|_| Reason::Told("names of users and databases must be UTF-8").into())
}

fn is_ignored(rules: &Rules, name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| (rules.ignored)(name))
}

fn unsupported(what: &str, name: &[u8], value: &[u8]) -> Refused {
    let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
    Refused {
        reason: Reason::ToldOf(format!("{what}: {name}")),
        warning: Some(format!("{what}: {name}={value}")),
    }
}

fn read_options(
    text: &[u8],
    rules: &Rules,
    values: &mut Values,
    parameters: &mut Parameters,
) -> Result<(), Refused> {
    let settings = startup::options(text).ok_or(Reason::BAD_OPTIONS)?;
    for (name, value) in settings {
        match rules.tracked.index_of(&name) {
            Some(index) => parameters.set(index, values.intern(&value)),
            None if is_ignored(rules, &name) || (rules.ignored)("options") => {}
            None => {
                return Err(unsupported("unsupported startup parameter in options", &name, &value));
            }
        }
    }
    Ok(())
}

/// As PostgreSQL reads a boolean; what is none is ignored, as PgBouncer does.
fn replication_of(value: &[u8]) -> Replication {
    let word = value.to_ascii_lowercase();
    let is_prefix_of = |full: &[u8], least: usize| word.len() >= least && full.starts_with(&word);
    if value == b"database" {
        Replication::Logical
    } else if is_prefix_of(b"true", 1)
        || is_prefix_of(b"yes", 1)
        || is_prefix_of(b"on", 2)
        || word == b"1"
    {
        Replication::Physical
    } else {
        Replication::No
    }
}

fn add_host(parameters: &mut Parameters, host: &str, values: &mut Values) {
    let name = values.text(parameters.value(APPLICATION_NAME)).unwrap_or(b"app");
    let mut with_host = [name, b" - ", host.as_bytes()].concat();
    // Half a character would be no text to the server.
    let cut = String::from_utf8_lossy(&with_host);
    let length = crate::session::farewell::cut(&cut, MAX_APPLICATION_NAME_BYTES).len();
    with_host.truncate(length);
    parameters.set(APPLICATION_NAME, values.intern(&with_host));
}

impl Step {
    /// Whether a message of the client is awaited.
    pub fn awaits_answer(&self) -> bool {
        match self {
            Step::Asked(_) | Step::AskedFor { .. } => true,
            Step::Consulting { .. } | Step::Checking { .. } | Step::Withheld { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in pairs {
            body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        body.push(0);
        body
    }

    fn read_with(body: &[u8], ignored: &[&str], host: Option<&str>) -> Result<Vec<String>, String> {
        let (tracked, mut values) = (Tracked::new(["IntervalStyle"]), Values::default());
        let rules = Rules {
            tracked: &tracked,
            ignored: &|name| ignored.contains(&name),
            add_host: host.map(ToString::to_string),
        };
        let startup = read(body, &rules, &mut values).map_err(|r| r.reason.text().into_owned())?;
        let mut seen = vec![startup.user, startup.database, format!("{:?}", startup.replication)];
        for (index, name) in tracked.names().iter().enumerate() {
            if let Some(text) = values.text(startup.parameters.value(index)) {
                seen.push(format!("{name}={}", String::from_utf8_lossy(text)));
            }
        }
        seen.extend(startup.protocol_options.iter().map(|o| String::from_utf8_lossy(o).into()));
        Ok(seen)
    }

    fn startup(pairs: &[(&str, &str)]) -> Result<Vec<String>, String> {
        read_with(&packet(pairs), &["extra_float_digits"], None)
    }

    #[test]
    fn parameters_are_read_as_the_contract_says() {
        let good = |pairs: &[(&str, &str)], expected: &[&str]| {
            assert_eq!(startup(pairs).unwrap(), expected, "{pairs:?}");
        };
        good(&[("user", "u")], &["u", "u", "No"]);
        good(&[("user", "u"), ("database", "")], &["u", "u", "No"]);
        good(&[("user", "a"), ("user", "u"), ("database", "d")], &["u", "d", "No"]);
        good(&[("user", "u"), ("datestyle", "german")], &["u", "u", "No", "DateStyle=german"]);
        good(&[("user", "u"), ("extra_float_digits", "3")], &["u", "u", "No"]);
        good(
            &[("_pq_.b", "1"), ("user", "u"), ("_pq_.a", "")],
            &["u", "u", "No", "_pq_.b", "_pq_.a"],
        );
        good(
            &[("user", "u"), ("options", "-c timezone=UTC"), ("TimeZone", "CET")],
            &["u", "u", "No", "TimeZone=CET"],
        );
        good(
            &[("user", "u"), ("TimeZone", "CET"), ("options", "-c timezone=UTC")],
            &["u", "u", "No", "TimeZone=UTC"],
        );
        for (word, expected) in [
            ("database", "Logical"),
            ("Database", "No"),
            ("t", "Physical"),
            ("YES", "Physical"),
            ("o", "No"),
            ("on", "Physical"),
            ("1", "Physical"),
            ("0", "No"),
            ("maybe", "No"),
            ("", "No"),
        ] {
            good(&[("user", "u"), ("replication", word)], &["u", "u", expected]);
        }
        let anything = [("user", "u"), ("replication", "1"), ("options", "-x")];
        good(&anything, &["u", "u", "Physical"]);
    }

    #[test]
    fn refusals_have_the_contracts_texts_and_order() {
        let bad = |pairs: &[(&str, &str)], expected: &str| {
            assert_eq!(startup(pairs).unwrap_err(), expected, "{pairs:?}");
        };
        bad(&[], "no username supplied");
        bad(&[("user", "")], "no username supplied");
        bad(&[("foo", "bar")], "unsupported startup parameter: foo");
        bad(&[("Extra_float_digits", "1")], "unsupported startup parameter: Extra_float_digits");
        bad(&[("options", "-c a=b")], "unsupported startup parameter in options: a");
        bad(&[("options", "-c a=b ")], &Reason::BAD_OPTIONS.text());
        let mut body = packet(&[("user", "u")]);
        body.push(b'x');
        let layout = Reason::BAD_STARTUP_LAYOUT.text().into_owned();
        assert_eq!(read_with(&body, &[], None).unwrap_err(), layout);
        assert_eq!(
            read_with(b"foo\0bar\0", &[], None).unwrap_err(),
            "unsupported startup parameter: foo"
        );
        assert_eq!(read_with(b"", &[], None).unwrap_err(), layout);
        assert_eq!(
            read_with(b"user\0\xff\0\0", &[], None).unwrap_err(),
            "names of users and databases must be UTF-8"
        );
    }

    #[test]
    fn options_swallows_unknown_settings_when_ignored() {
        let body = packet(&[("user", "u"), ("options", "-c a=b --datestyle=ISO")]);
        let seen = read_with(&body, &["options"], None).unwrap();
        assert_eq!(seen, ["u", "u", "No", "DateStyle=ISO"]);
        let body = packet(&[("user", "u"), ("options", "-x")]);
        assert_eq!(read_with(&body, &["options"], None).unwrap_err(), Reason::BAD_OPTIONS.text());
    }

    #[test]
    fn the_host_is_added_to_the_application_name() {
        let host = Some("127.0.0.1:5000");
        let seen = read_with(&packet(&[("user", "u")]), &[], host).unwrap();
        assert_eq!(seen[3], "application_name=app - 127.0.0.1:5000");
        let named = [("user", "u"), ("application_name", "psql")];
        let seen = read_with(&packet(&named), &[], host).unwrap();
        assert_eq!(seen[3], "application_name=psql - 127.0.0.1:5000");
    }
}
