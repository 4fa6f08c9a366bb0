//! The file of rules (`auth_hba_file`, for `auth_type` `hba`): who has to prove in which way that
//! he is who he says, by where he comes from and where he wants to. The first rule that fits counts.
//!
//! ```text
//! local            DATABASES USERS         METHOD [map=NAME]
//! host             DATABASES USERS ADDRESS METHOD [map=NAME]
//! hostssl hostnossl   as host, with TLS only, or without only
//! ```
//!
//! A line that makes no sense is left out; the others count.

use super::Notes;
use super::ident::Ident;
use super::tokens::{Kind, Tokens};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// How deep files of names may name files of names.
const MAX_DEPTH: usize = 10;

/// All rules, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hba {
    rules: Vec<Rule>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which line of the file it is.
    pub line: u32,
    /// How who fits has to prove who he is.
    pub method: Method,
    /// The map of [`Ident`] that goes with it.
    pub map: Option<String>,
    from: Origin,
    databases: Vec<Name>,
    users: Vec<Name>,
}

/// How somebody has to prove who he is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Trust,
    /// He cannot.
    Reject,
    /// By a hashed password.
    Md5,
    /// By the password itself.
    Password,
    /// By being that user of this system.
    Peer,
    /// By a certificate.
    Cert,
    /// By SCRAM.
    ScramSha256,
    /// By asking a directory; how, in its own words, looked at when it is used.
    Ldap(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Local,
    Host { tls: Option<bool>, network: Network },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    All,
    /// As PgBouncer: an address with bits outside the mask fits nobody.
    Masked {
        address: IpAddr,
        mask: IpAddr,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    All,
    SameUser,
    Replication,
    Is(String),
}

/// Somebody who wants to log in.
#[derive(Clone, Copy, Debug)]
pub struct Visitor<'a> {
    /// The address; `None` over a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether TLS is in use.
    pub has_tls: bool,
    /// Whether it is a connection for physical replication, which is to no database.
    pub replicates: bool,
    /// To where.
    pub database: &'a str,
    /// As whom.
    pub user: &'a str,
}

/// A line that makes no sense, and what to say of it, if anything.
type Nonsense = Option<String>;

impl Hba {
    /// Reads a file; one that cannot be read has no rules, which lets nobody in.
    pub fn load(path: &str, maps: &Ident) -> (Self, Notes) {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&String::from_utf8_lossy(&bytes), path, maps),
            Err(error) => {
                let why = crate::sys::error_text(&error);
                let error = Some(format!("could not open hba config file {path}: {why}"));
                (Self::default(), Notes { error, ..Notes::default() })
            }
        }
    }

    /// Reads a text; the path is for messages and for the files that it names.
    pub fn parse(text: &str, path: &str, maps: &Ident) -> (Self, Notes) {
        let (mut hba, mut notes) = (Self::default(), Notes::default());
        for (line, number) in text.lines().zip(1..) {
            let tokens = Tokens::new(line);
            let mut reader = LineReader { tokens, number, path, maps, warnings: Vec::new() };
            match reader.rule() {
                Ok(rule) => hba.rules.extend(rule),
                Err(nonsense) => {
                    reader.warnings.extend(nonsense);
                    reader.warnings.push(format!("could not parse hba config line {number}"));
                }
            }
            notes.warnings.append(&mut reader.warnings);
        }
        (hba, notes)
    }

    /// Whether any rule has a directory asked.
    pub fn asks_directories(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.method, Method::Ldap(_)))
    }

    /// The first rule that fits; `None`: there is no way to log in.
    pub fn rule_for(&self, visitor: &Visitor<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.fits(visitor))
    }
}

impl Rule {
    fn fits(&self, visitor: &Visitor<'_>) -> bool {
        let comes_from = match (&self.from, visitor.address) {
            (Origin::Local, address) => address.is_none(),
            (Origin::Host { .. }, None) => false,
            (Origin::Host { tls, network }, Some(address)) => {
                tls.is_none_or(|tls| tls == visitor.has_tls) && network.contains(address)
            }
        };
        let Visitor { database, user, replicates, .. } = *visitor;
        let is_named = |names: &[Name], name: &str| {
            names.iter().any(|known| match known {
                Name::All => true,
                Name::SameUser => database == user,
                Name::Replication => false,
                Name::Is(known) => known == name,
            })
        };
        let goes_to = match replicates {
            // A connection to no database: `all` does not count.
            true => self.databases.contains(&Name::Replication),
            false => is_named(&self.databases, database),
        };
        comes_from && goes_to && is_named(&self.users, user)
    }
}

impl Network {
    fn contains(self, visitor: IpAddr) -> bool {
        match (self, visitor) {
            (Self::All, _) => true,
            (
                Self::Masked { address: IpAddr::V4(address), mask: IpAddr::V4(mask) },
                IpAddr::V4(v),
            ) => v.to_bits() & mask.to_bits() == address.to_bits(),
            (
                Self::Masked { address: IpAddr::V6(address), mask: IpAddr::V6(mask) },
                IpAddr::V6(v),
            ) => v.to_bits() & mask.to_bits() == address.to_bits(),
            (Self::Masked { .. }, _) => false,
        }
    }
}

struct LineReader<'a> {
    tokens: Tokens<'a>,
    number: u32,
    path: &'a str,
    maps: &'a Ident,
    warnings: Vec<String>,
}

impl LineReader<'_> {
    /// `None`: nothing stands on that line.
    fn rule(&mut self) -> Result<Option<Rule>, Nonsense> {
        let kind = self.tokens.take();
        if kind == Kind::End {
            return Ok(None);
        }
        let word = Some(self.tokens.text()).filter(|_| kind == Kind::Word);
        let tls = match word {
            Some("local") => None,
            Some("host") => Some(None),
            Some("hostssl") => Some(Some(true)),
            Some("hostnossl") => Some(Some(false)),
            _ => return Err(self.say("unknown type")),
        };
        let (databases, mut last) = self.names()?;
        // What ended the first list begins the second.
        let users;
        (users, last) =
            names_from(&mut self.tokens, last, &mut self.warnings, Path::new(self.path), 0)?;
        let from = match tls {
            None => Origin::Local,
            Some(tls) => {
                let network = self.network(last)?;
                last = self.tokens.take();
                Origin::Host { tls, network }
            }
        };
        let method = self.method(last)?;
        let map = self.map(&method)?;
        Ok(Some(Rule { line: self.number, method, map, from, databases, users }))
    }

    fn names(&mut self) -> Result<(Vec<Name>, Kind), Nonsense> {
        let first = self.tokens.take();
        names_from(&mut self.tokens, first, &mut self.warnings, Path::new(self.path), 0)
    }

    fn say(&self, what: &str) -> Nonsense {
        Some(format!("hba line {}: {what}", self.number))
    }

    fn network(&mut self, kind: Kind) -> Result<Network, Nonsense> {
        if kind != Kind::Word {
            let (number, text) = (kind as u8, self.tokens.text());
            return Err(self.say(&format!("did not find address - {number} - '{text}'")));
        }
        if self.tokens.is_word(kind, "all") {
            return Ok(Network::All);
        }
        let word = self.tokens.text().to_owned();
        let (literal, bits) = match word.split_once('/') {
            Some((literal, bits)) => (literal, Some(bits)),
            None => (word.as_str(), None),
        };
        // As PgBouncer, whose messages show what is left of the word.
        self.tokens.keep(literal.len());
        let parsed = literal.parse::<IpAddr>();
        let address =
            parsed.map_err(|_| self.say(&format!("failed to parse address - {literal}")))?;
        let mask = match bits {
            Some(bits) => mask(address, bits).ok_or_else(|| self.say("invalid mask"))?,
            None => {
                if self.tokens.take() != Kind::Word {
                    return Err(self.say("did not find mask"));
                }
                let text = self.tokens.text();
                let mask = text.parse::<IpAddr>().ok();
                let mask = mask.filter(|mask| mask.is_ipv4() == address.is_ipv4());
                mask.ok_or_else(|| self.say(&format!("failed to parse mask: {text}")))?
            }
        };
        let network = Network::Masked { address, mask };
        if !network.contains(address) {
            let (path, number) = (self.path, self.number);
            self.warnings.push(format!(
                "address does not match mask in {path} line #{number}: {address} / {mask}"
            ));
        }
        Ok(network)
    }

    fn method(&mut self, kind: Kind) -> Result<Method, Nonsense> {
        let word = Some(self.tokens.text()).filter(|_| kind == Kind::Word);
        Ok(match word {
            Some("trust") => Method::Trust,
            Some("reject") => Method::Reject,
            Some("md5") => Method::Md5,
            Some("password") => Method::Password,
            Some("peer") => Method::Peer,
            Some("cert") => Method::Cert,
            Some("scram-sha-256") => Method::ScramSha256,
            Some("ldap") => Method::Ldap(self.tokens.rest().to_owned()),
            _ => {
                let text = self.tokens.text();
                return Err(self.say(&format!("unsupported method: buf={text}")));
            }
        })
    }

    fn map(&mut self, method: &Method) -> Result<Option<String>, Nonsense> {
        let kind = self.tokens.take();
        if kind == Kind::End || matches!(method, Method::Ldap(_)) {
            return Ok(None);
        }
        if kind != Kind::Word {
            return Err(self.say("unsupported parameters"));
        }
        let text = self.tokens.text();
        let Some(map) = text.strip_prefix("map=").map(str::to_owned) else {
            let malformed =
                format!("Ident map {text} is malformed. It is not in map=value format.");
            return Err(self.say(&malformed));
        };
        if !self.maps.contains(&map) {
            let missing = format!("Ident map {map} is not found in ident config file");
            return Err(self.say(&missing));
        }
        match self.tokens.take() {
            Kind::End => Ok(Some(map)),
            _ => Err(self.say("unsupported parameters")),
        }
    }
}

/// Reads a list of names whose first token is this one; the token behind the list comes with it.
fn names_from(
    tokens: &mut Tokens<'_>,
    mut kind: Kind,
    warnings: &mut Vec<String>,
    path: &Path,
    depth: usize,
) -> Result<(Vec<Name>, Kind), Nonsense> {
    let mut names = Vec::new();
    loop {
        match (kind, tokens.text()) {
            (Kind::Quoted, text) => names.push(Name::Is(text.to_owned())),
            (Kind::Word, "all") => names.push(Name::All),
            (Kind::Word, "sameuser") => names.push(Name::SameUser),
            (Kind::Word, "replication") => names.push(Name::Replication),
            (Kind::Word, text @ ("samerole" | "samegroup")) => {
                return Err(Some(format!("{text} is not supported")));
            }
            (Kind::Word, text) if text.starts_with('+') => return Err(None),
            (Kind::Word, text) => match text.strip_prefix('@') {
                Some(file) => names.extend(names_of_file(file, warnings, path, depth)?),
                None => names.push(Name::Is(text.to_owned())),
            },
            (Kind::Comma | Kind::Bad | Kind::End, _) => return Err(None),
        }
        kind = tokens.take();
        if kind != Kind::Comma {
            return Ok((names, kind));
        }
        kind = tokens.take();
    }
}

/// The names of a file, one list a line. As PgBouncer: what follows a list is nobody's business,
/// but a line without one spoils the file.
fn names_of_file(
    file: &str,
    warnings: &mut Vec<String>,
    named_in: &Path,
    depth: usize,
) -> Result<Vec<Name>, Nonsense> {
    let path: PathBuf = named_in.parent().unwrap_or(Path::new("")).join(file);
    let bytes = std::fs::read(&path).ok().filter(|_| depth < MAX_DEPTH).ok_or(None)?;
    let mut names = Vec::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let mut tokens = Tokens::new(line);
        let first = tokens.take();
        names.extend(names_from(&mut tokens, first, warnings, &path, depth + 1)?.0);
    }
    Ok(names)
}

/// As PgBouncer: as C reads numbers, and nothing is nought.
fn mask(address: IpAddr, bits: &str) -> Option<IpAddr> {
    let bits = match bits {
        "" => 0,
        bits => bits.parse::<u32>().ok()?,
    };
    match address {
        IpAddr::V4(_) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Some(IpAddr::V4(mask.into()))
        }
        IpAddr::V6(_) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Some(IpAddr::V6(mask.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
