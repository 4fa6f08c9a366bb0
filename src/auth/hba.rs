//! The rules of `auth_hba_file`: who must prove what, by where he comes from.
//!
//! ```text
//! local     DATABASE USER         METHOD [map=NAME]
//! host      DATABASE USER ADDRESS METHOD [map=NAME]      also hostssl, hostnossl
//! ```
//!
//! The first rule that fits counts. A bad line is left out; the others stay in force.

use super::ident::IdentMaps;
use super::rules::{Remark, Token, Tokens, lines};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// How deep files of names may name files of names.
const INCLUDE_DEPTH: usize = 10;

/// All rules, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hba {
    rules: Vec<Rule>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands in the file.
    pub line: usize,
    /// What is asked of whom it fits.
    pub method: Method,
    /// The ident map for `cert` and `peer`.
    pub map: Option<String>,
    transport: Transport,
    databases: Names,
    users: Names,
    address: Address,
}

/// What a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// Nothing.
    Trust,
    /// More than anyone has.
    Reject,
    /// A password, hashed with MD5; SCRAM, if that is the kind of secret that we know.
    Md5,
    /// A password.
    Password,
    /// To be the system user of that name, at the other end of a Unix socket.
    Peer,
    /// A certificate.
    Cert,
    /// A password, by SCRAM.
    ScramSha256,
    /// A password that the LDAP server knows; these are its options, not looked at before a login.
    Ldap(String),
}

/// Somebody who wants to log in.
#[derive(Clone, Copy, Debug)]
pub struct Visitor<'a> {
    /// Where he comes from; `None`: a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether he speaks TLS.
    pub has_tls: bool,
    /// Whether he wants physical replication.
    pub replicates: bool,
    /// The database that he names.
    pub database: &'a str,
    /// Who he says he is.
    pub user: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
}

/// Columns DATABASE and USER.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    same_user: bool,
    replication: bool,
    names: BTreeSet<String>,
}

/// Column ADDRESS. As PgBouncer: one with bits outside of its mask fits nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    All,
    V4 { address: Ipv4Addr, mask: Ipv4Addr },
    V6 { address: Ipv6Addr, mask: Ipv6Addr },
}

/// Fetches a file of names; `None` if it cannot be read.
type ReadFile<'a> = dyn FnMut(&Path) -> Option<Vec<u8>> + 'a;

/// Why a line is left out, if there are words for it.
type Refusal = Option<String>;

impl Hba {
    /// Reads the file; without it there are no rules, and nobody is let in.
    pub fn load(path: &str, maps: &IdentMaps) -> (Self, Vec<Remark>) {
        match std::fs::read(path) {
            Ok(text) => Self::parse(path, &text, maps, &mut |path| std::fs::read(path).ok()),
            Err(error) => (Self::default(), vec![Remark::unreadable("hba", path, &error)]),
        }
    }

    /// Reads the text of the file of this name, getting files of names from `read_file`.
    pub fn parse(
        path: &str,
        text: &[u8],
        maps: &IdentMaps,
        read_file: &mut ReadFile<'_>,
    ) -> (Self, Vec<Remark>) {
        let mut hba = Self::default();
        let mut remarks = Vec::new();
        for (line, text) in lines(text) {
            let tokens = Tokens::new(text);
            let mut reader = Reader { path, line, tokens, maps, read_file, remarks: &mut remarks };
            match reader.rule() {
                Ok(rule) => hba.rules.extend(rule),
                Err(why) => {
                    remarks.extend(why.map(Remark::warning));
                    let text = format!("could not parse hba config line {line}");
                    remarks.push(Remark::warning(text));
                }
            }
        }
        (hba, remarks)
    }

    /// The first rule that fits.
    pub fn find(&self, visitor: &Visitor<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.fits(visitor))
    }
}

impl Rule {
    fn fits(&self, visitor: &Visitor<'_>) -> bool {
        let transport = match self.transport {
            Transport::Local => visitor.address.is_none(),
            Transport::Host => visitor.address.is_some(),
            Transport::HostSsl => visitor.address.is_some() && visitor.has_tls,
            Transport::HostNoSsl => visitor.address.is_some() && !visitor.has_tls,
        };
        let database = match visitor.replicates {
            true => self.databases.replication,
            false => self.databases.fit(visitor.database, visitor),
        };
        transport
            && database
            && self.users.fit(visitor.user, visitor)
            && visitor.address.is_none_or(|address| self.address.fits(address))
    }
}

impl Names {
    // As PgBouncer: the keywords of one column are those of the other, too.
    fn fit(&self, name: &str, visitor: &Visitor<'_>) -> bool {
        self.all
            || (self.same_user && visitor.user == visitor.database)
            || self.names.contains(name)
    }
}

impl Address {
    fn fits(&self, other: IpAddr) -> bool {
        match (self, other) {
            (Address::All, _) => true,
            (Address::V4 { address, mask }, IpAddr::V4(other)) => other & mask == *address,
            (Address::V6 { address, mask }, IpAddr::V6(other)) => other & mask == *address,
            (Address::V4 { .. }, IpAddr::V6(_)) | (Address::V6 { .. }, IpAddr::V4(_)) => false,
        }
    }

    /// `None`: so many bits there are not.
    fn with_bits(address: IpAddr, bits: &str) -> Option<Self> {
        // As PgBouncer: no number is zero.
        let bits: u32 = if bits.is_empty() { 0 } else { bits.parse().ok()? };
        match address {
            IpAddr::V4(address) => {
                let rest = Ipv4Addr::BITS.checked_sub(bits)?;
                let mask = Ipv4Addr::from(u32::MAX.checked_shl(rest).unwrap_or(0));
                Some(Address::V4 { address, mask })
            }
            IpAddr::V6(address) => {
                let rest = Ipv6Addr::BITS.checked_sub(bits)?;
                let mask = Ipv6Addr::from(u128::MAX.checked_shl(rest).unwrap_or(0));
                Some(Address::V6 { address, mask })
            }
        }
    }

    /// `None`: the mask is none, or one of the other family.
    fn with_mask(address: IpAddr, mask: &str) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(Address::V4 { address, mask: mask.parse().ok()? }),
            IpAddr::V6(address) => Some(Address::V6 { address, mask: mask.parse().ok()? }),
        }
    }

    /// Address and mask as text, if no address at all can fit.
    fn contradiction(&self) -> Option<String> {
        match self {
            Address::V4 { address, mask } if address & mask != *address => {
                Some(format!("{address} / {mask}"))
            }
            Address::V6 { address, mask } if address & mask != *address => {
                Some(format!("{address} / {mask}"))
            }
            Address::All | Address::V4 { .. } | Address::V6 { .. } => None,
        }
    }
}

/// One line being read.
struct Reader<'a, 'f> {
    path: &'a str,
    line: usize,
    tokens: Tokens<'a>,
    maps: &'a IdentMaps,
    read_file: &'a mut ReadFile<'f>,
    remarks: &'a mut Vec<Remark>,
}

impl Reader<'_, '_> {
    /// `Ok(None)`: there is nothing in it.
    fn rule(&mut self) -> Result<Option<Rule>, Refusal> {
        let transport = match self.tokens.take() {
            Token::End => return Ok(None),
            Token::Word(word) => match word.as_str() {
                "local" => Transport::Local,
                "host" => Transport::Host,
                "hostssl" => Transport::HostSsl,
                "hostnossl" => Transport::HostNoSsl,
                _ => return Err(self.because("unknown type")),
            },
            _ => return Err(self.because("unknown type")),
        };
        let databases = self.names()?;
        let users = self.names()?;
        let address = match transport {
            Transport::Local => Address::All,
            _ => self.address()?,
        };
        let (method, map) = self.method()?;
        let line = self.line;
        Ok(Some(Rule { line, method, map, transport, databases, users, address }))
    }

    fn because(&self, why: impl std::fmt::Display) -> Refusal {
        Some(format!("hba line {}: {why}", self.line))
    }

    fn names(&mut self) -> Result<Names, Refusal> {
        let mut names = Names::default();
        let directory = Path::new(self.path).parent().unwrap_or(Path::new("")).to_owned();
        add_list(&mut names, &mut self.tokens, &directory, self.read_file, 0)?;
        Ok(names)
    }

    fn address(&mut self) -> Result<Address, Refusal> {
        let token = self.tokens.take();
        let Token::Word(word) = token else {
            let (kind, last) = (token.kind(), self.tokens.last());
            return Err(self.because(format_args!("did not find address - {kind} - '{last}'")));
        };
        if word == "all" {
            return Ok(Address::All);
        }
        let (text, bits) = match word.split_once('/') {
            Some((text, bits)) => (text, Some(bits)),
            None => (word.as_str(), None),
        };
        let address: IpAddr = text
            .parse()
            .map_err(|_| self.because(format_args!("failed to parse address - {text}")))?;
        let address = match bits {
            Some(bits) => {
                Address::with_bits(address, bits).ok_or_else(|| self.because("invalid mask"))?
            }
            None => {
                let Token::Word(mask) = self.tokens.take() else {
                    return Err(self.because("did not find mask"));
                };
                Address::with_mask(address, &mask)
                    .ok_or_else(|| self.because(format_args!("failed to parse mask: {mask}")))?
            }
        };
        if let Some(both) = address.contradiction() {
            let (path, line) = (self.path, self.line);
            let text = format!("address does not match mask in {path} line #{line}: {both}");
            self.remarks.push(Remark::warning(text));
        }
        Ok(address)
    }

    fn method(&mut self) -> Result<(Method, Option<String>), Refusal> {
        let token = self.tokens.take();
        let method = match &token {
            Token::Word(word) => match word.as_str() {
                "trust" => Some(Method::Trust),
                "reject" => Some(Method::Reject),
                "md5" => Some(Method::Md5),
                "password" => Some(Method::Password),
                "peer" => Some(Method::Peer),
                "cert" => Some(Method::Cert),
                "scram-sha-256" => Some(Method::ScramSha256),
                "ldap" => {
                    let options = String::from_utf8_lossy(self.tokens.raw_rest());
                    return Ok((Method::Ldap(options.trim().to_owned()), None));
                }
                _ => None,
            },
            _ => None,
        };
        let method = method.ok_or_else(|| {
            self.because(format_args!("unsupported method: buf={}", self.tokens.last()))
        })?;
        Ok((method, self.map()?))
    }

    fn map(&mut self) -> Result<Option<String>, Refusal> {
        let map = match self.tokens.take() {
            Token::End => return Ok(None),
            Token::Word(word) => {
                let name = word.strip_prefix("map=").filter(|name| !name.is_empty());
                let name = name.ok_or_else(|| {
                    self.because(format_args!(
                        "Ident map {word} is malformed. It is not in map=value format."
                    ))
                })?;
                if !self.maps.contains(name) {
                    return Err(self.because(format_args!(
                        "Ident map {name} is not found in ident config file"
                    )));
                }
                name.to_owned()
            }
            _ => return Err(self.because("unsupported parameters")),
        };
        match self.tokens.take() {
            Token::End => Ok(Some(map)),
            _ => Err(self.because("unsupported parameters")),
        }
    }
}

/// Reads names with commas in between.
fn add_list(
    names: &mut Names,
    tokens: &mut Tokens<'_>,
    directory: &Path,
    read_file: &mut ReadFile<'_>,
    depth: usize,
) -> Result<(), Refusal> {
    loop {
        match tokens.take() {
            Token::Quoted(name) => {
                names.names.insert(name);
            }
            Token::Word(word) => match word.as_str() {
                "all" => names.all = true,
                "sameuser" => names.same_user = true,
                "replication" => names.replication = true,
                "samerole" | "samegroup" => return Err(Some(format!("{word} is not supported"))),
                name if name.starts_with('+') => return Err(None),
                name => match name.strip_prefix('@') {
                    Some(file) => add_file(names, &directory.join(file), read_file, depth + 1)?,
                    None => {
                        names.names.insert(word);
                    }
                },
            },
            Token::Comma | Token::Bad | Token::End => return Err(None),
        }
        if tokens.peek() != Token::Comma {
            return Ok(());
        }
        tokens.take();
    }
}

/// Reads a file with a list on each line. As PgBouncer: what follows a list on its line is not
/// looked at, and a line without a name spoils the whole file.
fn add_file(
    names: &mut Names,
    path: &Path,
    read_file: &mut ReadFile<'_>,
    depth: usize,
) -> Result<(), Refusal> {
    if depth > INCLUDE_DEPTH {
        return Err(None);
    }
    let text = read_file(path).ok_or(None)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    if text.is_empty() {
        return Ok(());
    }
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    for (_, line) in lines(text) {
        add_list(names, &mut Tokens::new(line), directory, read_file, depth)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The files that rules may name.
    fn read_file(path: &Path) -> Option<Vec<u8>> {
        let text = match path.to_str()? {
            "d/list" => "a, \"all\"\nb ignored\n",
            "d/empty" => "",
            "d/newline" => "\n",
            "d/blank" => "a\n\nb\n",
            "d/comment" => "a\n# b\n",
            "d/sub/outer" => "@inner\n",
            "d/sub/inner" => "c",
            "d/loop" => "@loop",
            _ => return None,
        };
        Some(text.as_bytes().to_vec())
    }

    fn parse(text: &str) -> (Hba, Vec<String>) {
        let (maps, _) = IdentMaps::parse(b"known s u");
        let (hba, remarks) = Hba::parse("d/hba", text.as_bytes(), &maps, &mut read_file);
        (hba, remarks.into_iter().map(|remark| remark.text).collect())
    }

    fn visitor<'a>(from: &str, database: &'a str, user: &'a str) -> Visitor<'a> {
        let (has_tls, from) = match from.strip_prefix("tls ") {
            Some(from) => (true, from),
            None => (false, from),
        };
        Visitor { address: from.parse().ok(), has_tls, replicates: false, database, user }
    }

    #[track_caller]
    fn fits(line: &str, visitor: &Visitor<'_>, expected: bool) {
        let (hba, remarks) = parse(line);
        assert_eq!(remarks, [""; 0], "{line}");
        assert_eq!(hba.find(visitor).is_some(), expected, "{line}: {visitor:?}");
    }

    #[test]
    fn rules_fit_by_where_one_comes_from() {
        let cases = [
            ("local all all trust", "unix", true),
            ("local all all trust", "1.2.3.4", false),
            ("host all all all trust", "unix", false),
            ("host all all all trust", "1.2.3.4", true),
            ("host all all all trust", "tls ::1", true),
            ("hostssl all all all trust", "tls 1.2.3.4", true),
            ("hostssl all all all trust", "1.2.3.4", false),
            ("hostnossl all all all trust", "1.2.3.4", true),
            ("hostnossl all all all trust", "tls 1.2.3.4", false),
            ("host all all 1.2.3.0/24 trust", "1.2.3.255", true),
            ("host all all 1.2.3.0/24 trust", "1.2.4.0", false),
            ("host all all 1.2.3.0/+24 trust", "1.2.3.1", true),
            ("host all all 1.2.3.4/32 trust", "1.2.3.5", false),
            ("host all all 0.0.0.0/0 trust", "9.9.9.9", true),
            ("host all all 0.0.0.0/ trust", "9.9.9.9", true),
            ("host all all 0.0.0.0/0 trust", "::1", false),
            ("host all all ::/0 trust", "1.2.3.4", false),
            ("host all all ::/0 trust", "::1", true),
            ("host all all fe80::/16 trust", "fe80::1", true),
            ("host all all fe80::/16 trust", "fe81::1", false),
            ("host all all 1.0.0.4 255.0.0.255 trust", "1.9.9.4", true),
            ("host all all 1.0.0.4 255.0.0.255 trust", "1.9.9.5", false),
            ("host all all :: ffff:: trust", "0:1::", true),
        ];
        for (line, from, expected) in cases {
            fits(line, &visitor(from, "d", "u"), expected);
        }
    }

    #[test]
    fn rules_fit_by_names() {
        let cases = [
            ("d u", "d", "u", true),
            ("\"d\" \"u\"", "d", "u", true),
            ("d u", "d", "v", false),
            ("d u", "e", "u", false),
            ("c,d u , v", "d", "v", true),
            ("\"all\" u", "d", "u", false),
            ("\"all\" u", "all", "u", true),
            ("ALL u", "d", "u", false),
            ("sameuser all", "x", "x", true),
            ("sameuser all", "x", "y", false),
            ("all sameuser", "x", "x", true),
            ("all sameuser", "x", "y", false),
            ("replication all", "replication", "u", false),
            ("\"replication\" all", "replication", "u", true),
            ("all replication", "d", "replication", false),
            ("/d u", "/d", "u", true),
            ("a\\b u", "a\\b", "u", true),
            ("\"\" u", "", "u", true),
            ("@list u", "a", "u", true),
            ("@list u", "all", "u", true),
            ("@list u", "b", "u", true),
            ("@list u", "ignored", "u", false),
            ("x,@sub/outer u", "c", "u", true),
            ("@empty u", "", "u", false),
        ];
        for (names, database, user, expected) in cases {
            fits(&format!("local {names} trust"), &visitor("unix", database, user), expected);
        }
    }

    #[test]
    fn replication_is_named_or_not_allowed() {
        let physical = Visitor { replicates: true, ..visitor("unix", "d", "u") };
        fits("local all all trust", &physical, false);
        fits("local d all trust", &physical, false);
        fits("local \"replication\" all trust", &physical, false);
        fits("local d,replication u trust", &physical, true);
        fits("local replication v trust", &physical, false);
    }

    #[test]
    fn the_first_rule_counts() {
        let (hba, remarks) = parse(
            "# rules\n\nlocal all bad reject # no\nlocal d all peer map=known\n\
             local all all ldap ldapserver=\"x y\" # z\r\n",
        );
        assert_eq!(remarks, [""; 0]);
        let found = |database, user| {
            let rule = hba.find(&visitor("unix", database, user)).unwrap();
            (rule.line, rule.method.clone(), rule.map.as_deref())
        };
        assert_eq!(found("d", "bad"), (3, Method::Reject, None));
        assert_eq!(found("d", "u"), (4, Method::Peer, Some("known")));
        let options = Method::Ldap("ldapserver=\"x y\" # z".to_owned());
        assert_eq!(found("e", "u"), (5, options, None));
        assert_eq!(hba.find(&visitor("1.2.3.4", "d", "u")), None);
    }

    #[test]
    fn all_methods_are_known() {
        let methods = [
            ("trust", Method::Trust),
            ("reject", Method::Reject),
            ("md5", Method::Md5),
            ("password", Method::Password),
            ("peer", Method::Peer),
            ("cert", Method::Cert),
            ("scram-sha-256", Method::ScramSha256),
            ("ldap", Method::Ldap(String::new())),
        ];
        for (word, method) in methods {
            let (hba, _) = parse(&format!("local all all {word}"));
            assert_eq!(hba.find(&visitor("unix", "d", "u")).unwrap().method, method);
        }
    }

    /// As PgBouncer 1.18 answers, except for maps, which it does not have.
    #[test]
    fn bad_lines_are_left_out_with_the_known_words() {
        let cases = [
            ("Local all all trust", "hba line 1: unknown type"),
            ("\"local\" all all trust", "hba line 1: unknown type"),
            ("hostgssenc all all all trust", "hba line 1: unknown type"),
            (",", "hba line 1: unknown type"),
            ("host all all \"::1\" trust", "hba line 1: did not find address - 0 - '::1'"),
            ("host all all , trust", "hba line 1: did not find address - 4 - 'trust'"),
            ("host all all", "hba line 1: did not find address - 4 - 'all'"),
            ("host all all \"x", "hba line 1: did not find address - 3 - 'all'"),
            ("host all all 1.2.3/8 trust", "hba line 1: failed to parse address - 1.2.3"),
            ("host all all samehost trust", "hba line 1: failed to parse address - samehost"),
            ("host all all 127.0.0.1\\ md5", "hba line 1: failed to parse address - 127.0.0.1\\"),
            ("host all all 1.2.3.4/33 trust", "hba line 1: invalid mask"),
            ("host all all ::/129 trust", "hba line 1: invalid mask"),
            ("host all all 1.2.3.4/-1 trust", "hba line 1: invalid mask"),
            ("host all all 1.2.3.4/8x trust", "hba line 1: invalid mask"),
            ("host all all 1.2.3.4", "hba line 1: did not find mask"),
            ("host all all 1.2.3.4 \"255.0.0.0\" md5", "hba line 1: did not find mask"),
            ("host all all 1.2.3.4 ::1 trust", "hba line 1: failed to parse mask: ::1"),
            ("local all all pam", "hba line 1: unsupported method: buf=pam"),
            ("local all all \"md5\"", "hba line 1: unsupported method: buf=md5"),
            ("local all all", "hba line 1: unsupported method: buf=all"),
            ("local a b, md5", "hba line 1: unsupported method: buf=md5"),
            ("local all all md5,", "hba line 1: unsupported parameters"),
            ("local all all md5 \"x\"", "hba line 1: unsupported parameters"),
            ("local all all md5 map=known x", "hba line 1: unsupported parameters"),
            (
                "local all all md5 mop=x",
                "hba line 1: Ident map mop=x is malformed. It is not in map=value format.",
            ),
            (
                "local all all peer map=x",
                "hba line 1: Ident map x is not found in ident config file",
            ),
            ("local samerole all md5", "samerole is not supported"),
            ("local all samegroup md5", "samegroup is not supported"),
            ("local +g all md5", ""),
            ("local a,,b all md5", ""),
            ("local \"a all md5", ""),
            ("local a", ""),
            ("local @blank all md5", ""),
            ("local @comment all md5", ""),
            ("local x,@newline all md5", ""),
            ("local @missing all md5", ""),
            ("local @loop all md5", ""),
        ];
        for (line, first) in cases {
            let (hba, remarks) = parse(&format!("{line}\nlocal d u trust"));
            let expected = [first, "could not parse hba config line 1"];
            assert_eq!(remarks, expected[usize::from(first.is_empty())..], "{line}");
            assert_eq!(hba.rules.len(), 1, "{line}: the other rule stays");
        }
    }

    #[test]
    fn an_address_outside_of_its_mask_fits_nobody() {
        for (column, both) in [
            ("127.0.0.1 255.0.0.0", "127.0.0.1 / 255.0.0.0"),
            ("1.2.3.4/08", "1.2.3.4 / 255.0.0.0"),
            ("127.0.0.1/", "127.0.0.1 / 0.0.0.0"),
            ("::1/64", "::1 / ffff:ffff:ffff:ffff::"),
        ] {
            let (hba, remarks) = parse(&format!("host all all {column} trust"));
            let expected = format!("address does not match mask in d/hba line #1: {both}");
            assert_eq!(remarks, [expected]);
            for from in ["127.0.0.1", "1.2.3.4", "::1"] {
                assert_eq!(hba.find(&visitor(from, "d", "u")), None);
            }
        }
        let (_, remarks) = parse("host all all 1.2.3.4 255.0.0.0");
        assert_eq!(remarks.len(), 3, "told even of a line that is bad for another reason");
    }

    #[test]
    fn a_missing_file_lets_nobody_in() {
        let (hba, remarks) = Hba::load("no/such", &IdentMaps::default());
        assert_eq!(hba.find(&visitor("unix", "d", "u")), None);
        let words = "could not open hba config file no/such: No such file or directory";
        assert_eq!(remarks, [Remark { level: log::Level::Error, text: words.to_owned() }]);
    }

    proptest! {
        #[test]
        fn noise_never_panics(
            words in proptest::collection::vec("local|host|all|@list|@loop|::1/[0-9]{0,3}|1\\.2\\.3\\.4(/-?[0-9]{1,20})?|map=[a-z]?|md5|ldap|[,\"#\n+@ \t]|[^ ]{1,4}", 0..30),
        ) {
            let _ = parse(&words.join(" "));
        }

        #[test]
        fn any_bytes_will_do(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Hba::parse("x", &bytes, &IdentMaps::default(), &mut read_file);
        }
    }
}
