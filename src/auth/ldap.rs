//! What the operator says about the directory that knows the passwords (`auth_ldap_options`, or the
//! rest of an `ldap` line in the file of rules), in the words of PostgreSQL:
//!
//! ```text
//! ldapserver=ldap.example.com ldapprefix="cn=" ldapsuffix=", dc=example, dc=com"
//! ldapserver=ldap.example.com ldapbasedn="dc=example, dc=com" ldapsearchattribute=uid
//! ldapurl="ldaps://ldap.example.com/dc=example,dc=com?uid?sub"
//! ```
//!
//! The first kind makes a user's entry out of his name; the second one looks for it. This file only
//! says what to ask; the asking is done on a side thread.

use crate::config::Secret;
use std::borrow::Cow;
use std::fmt;

/// A name in a search must not have these: they would make another search of it.
const NOT_IN_A_SEARCH: [char; 6] = ['*', '(', ')', '\\', '/', '\0'];
/// What a filter has in the place of the user's name.
const USER_NAME: &str = "$username";

/// Where the directory is, and how it knows users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// One address after the other, until one answers.
    pub urls: Vec<String>,
    /// Whether a connection without TLS is turned into one with it.
    pub starts_tls: bool,
    /// How a user's entry is found.
    pub way: Way,
}

/// How a user's entry is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is made of his name.
    Made {
        /// What stands before the name.
        prefix: String,
        /// What stands behind it.
        suffix: String,
    },
    /// It is the only one that a search finds.
    Found(Search),
}

/// How to search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Under which entry.
    pub base: String,
    /// How far below.
    pub scope: Scope,
    /// As whom; empty: as nobody.
    pub bind_dn: String,
    /// With which password.
    pub bind_password: Secret,
    filter: String,
}

/// How far below the base a search looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Nowhere but there.
    Base,
    /// One level.
    One,
    /// As far as it goes.
    #[default]
    Subtree,
}

/// What is wrong with the operator's words, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonsense(String);

impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Search {
    /// The filter that finds a user. `None`: no user has such a name.
    pub fn filter(&self, user: &str) -> Option<String> {
        (!user.contains(NOT_IN_A_SEARCH)).then(|| self.filter.replace(USER_NAME, user))
    }
}

impl Options {
    /// Reads the words.
    pub fn parse(text: &str) -> Result<Self, Nonsense> {
        let mut words = Words::default();
        let mut rest = skip_gap(text);
        while !rest.is_empty() {
            let (key, value, after) = pair(rest)?;
            words.take(key, value)?;
            rest = skip_gap(after);
        }
        words.finish()
    }
}

/// The words as they stand there.
#[derive(Default)]
struct Words {
    servers: String,
    port: Option<u16>,
    is_ldaps: bool,
    starts_tls: bool,
    prefix: Option<String>,
    suffix: Option<String>,
    base: Option<String>,
    scope: Scope,
    bind_dn: Option<String>,
    bind_password: Option<String>,
    attribute: Option<String>,
    filter: Option<String>,
}

impl Words {
    fn take(&mut self, key: &str, value: Cow<'_, str>) -> Result<(), Nonsense> {
        let bad = || Nonsense(format!("invalid value for LDAP option {key}"));
        let text = Some(value.clone().into_owned());
        match key {
            "ldapserver" => self.servers = value.into_owned(),
            "ldapport" => {
                let port = value.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?;
                self.port = Some(port);
            }
            "ldapscheme" => {
                self.is_ldaps = match &*value {
                    "ldap" => false,
                    "ldaps" => true,
                    _ => return Err(bad()),
                }
            }
            "ldaptls" => {
                self.starts_tls = match &*value {
                    "0" => false,
                    "1" => true,
                    _ => return Err(bad()),
                }
            }
            "ldapprefix" => self.prefix = text,
            "ldapsuffix" => self.suffix = text,
            "ldapbasedn" => self.base = text,
            "ldapbinddn" => self.bind_dn = text,
            "ldapbindpasswd" => self.bind_password = text,
            "ldapsearchattribute" => self.attribute = text,
            "ldapsearchfilter" => self.filter = text,
            "ldapurl" => self.take_url(&value).ok_or_else(bad)?,
            _ => return Err(Nonsense(format!("unknown LDAP option {key}"))),
        }
        Ok(())
    }

    /// `ldap[s]://host[:port]/base[?attribute[?scope[?filter]]]`
    fn take_url(&mut self, url: &str) -> Option<()> {
        let (scheme, rest) = url.split_once("://")?;
        self.is_ldaps = match scheme.to_ascii_lowercase().as_str() {
            "ldap" => false,
            "ldaps" => true,
            _ => return None,
        };
        let (authority, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an address of version 6 stand in brackets.
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        self.servers = host.to_owned();
        self.port = port.map(str::parse).transpose().ok()?;
        let mut parts = rest.split('?').map(decode);
        let mut next = || match parts.next() {
            None => Some(None),
            Some(part) => Some(Some(part?).filter(|part| !part.is_empty())),
        };
        self.base = next()?;
        let attribute = next()?;
        self.scope = match next()?.as_deref() {
            // As a URL of LDAP has it by RFC 4516.
            None | Some("base") => Scope::Base,
            Some("one") => Scope::One,
            Some("sub") => Scope::Subtree,
            Some(_) => return None,
        };
        let filter = next()?;
        self.attribute = attribute.or(self.attribute.take());
        self.filter = filter.or(self.filter.take());
        Some(())
    }

    fn finish(self) -> Result<Options, Nonsense> {
        let no = |words: &str| Err(Nonsense(words.to_owned()));
        if self.servers.trim().is_empty() {
            return no("LDAP server is not specified");
        }
        if self.is_ldaps && self.starts_tls {
            return no("cannot use ldaptls with ldaps: there is TLS already");
        }
        let (scheme, default_port) = match self.is_ldaps {
            true => ("ldaps", 636),
            false => ("ldap", 389),
        };
        let port = self.port.unwrap_or(default_port);
        let servers = self.servers.split_ascii_whitespace();
        let urls = servers.map(|server| format!("{scheme}://{server}:{port}")).collect();
        let searches = [&self.base, &self.bind_dn, &self.attribute, &self.filter];
        let searches = searches.iter().any(|word| word.is_some()) || self.bind_password.is_some();
        let way = match (self.prefix, self.suffix) {
            (None, None) => {
                let Some(base) = self.base else {
                    return no("LDAP options need ldapprefix, ldapsuffix or ldapbasedn");
                };
                let filter = match (self.filter, self.attribute) {
                    (Some(_), Some(_)) => {
                        return no("cannot use ldapsearchattribute together with ldapsearchfilter");
                    }
                    (Some(filter), None) => filter,
                    (None, attribute) => {
                        format!("({}={USER_NAME})", attribute.as_deref().unwrap_or("uid"))
                    }
                };
                Way::Found(Search {
                    base,
                    scope: self.scope,
                    bind_dn: self.bind_dn.unwrap_or_default(),
                    bind_password: Secret::new(self.bind_password.unwrap_or_default().into_bytes()),
                    filter,
                })
            }
            _ if searches => {
                return no("cannot use ldapprefix or ldapsuffix together with options of a search");
            }
            (prefix, suffix) => {
                Way::Made { prefix: prefix.unwrap_or_default(), suffix: suffix.unwrap_or_default() }
            }
        };
        Ok(Options { urls, starts_tls: self.starts_tls, way })
    }
}

fn is_gap(char: char) -> bool {
    char.is_ascii_whitespace() || char == ','
}

fn skip_gap(text: &str) -> &str {
    text.trim_start_matches(is_gap)
}

/// Takes `key=value` or `key="value"`, in which a doubled quote is one.
fn pair(text: &str) -> Result<(&str, Cow<'_, str>, &str), Nonsense> {
    let broken = || Nonsense("LDAP options are not of the form key=value".to_owned());
    let (key, rest) = text.split_once('=').ok_or_else(broken)?;
    if key.is_empty() || key.contains(is_gap) {
        return Err(broken());
    }
    let Some(mut quoted) = rest.strip_prefix('"') else {
        let end = rest.find(is_gap).unwrap_or(rest.len());
        return Ok((key, Cow::Borrowed(&rest[..end]), &rest[end..]));
    };
    let mut value = String::new();
    loop {
        let end = quoted.find('"').ok_or_else(broken)?;
        value.push_str(&quoted[..end]);
        quoted = &quoted[end + 1..];
        match quoted.strip_prefix('"') {
            Some(after) => {
                value.push('"');
                quoted = after;
            }
            None => return Ok((key, Cow::Owned(value), quoted)),
        }
    }
}

/// Undoes the `%20` of a URL.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?].map(char::from);
                let [high, low] = digits.map(|digit| digit.to_digit(16));
                bytes.push(u8::try_from(high? * 16 + low?).ok()?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> String {
        Options::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_entry_is_made_of_a_name() {
        let options = Options::parse(
            "ldapserver=\"one two\", ldapport=1389 ldapprefix=\"cn=\" ldapsuffix=\", dc=a\"\"b\"",
        );
        let options = options.unwrap();
        assert_eq!(options.urls, ["ldap://one:1389", "ldap://two:1389"]);
        let (prefix, suffix) = ("cn=".to_string(), ", dc=a\"b".to_string());
        assert_eq!(options.way, Way::Made { prefix, suffix });
        assert!(!options.starts_tls);
    }

    #[test]
    fn an_entry_is_searched_for() {
        let text = "ldapserver=h ldaptls=1 ldapbasedn=dc=x ldapbinddn=cn=r ldapbindpasswd=s";
        let options = Options::parse(text).unwrap();
        let Way::Found(search) = options.way else {
            panic!("not a search: {options:?}");
        };
        assert_eq!((options.urls, options.starts_tls), (vec!["ldap://h:389".to_string()], true));
        assert_eq!((search.base.as_str(), search.scope), ("dc=x", Scope::Subtree));
        assert_eq!((search.bind_dn.as_str(), search.bind_password.expose()), ("cn=r", &b"s"[..]));
        assert_eq!(search.filter("ann").as_deref(), Some("(uid=ann)"));
        for name in ["a*", "a(", "a)", "a\\", "a/", "a\0"] {
            assert_eq!(search.filter(name), None, "{name}");
        }
    }

    #[test]
    fn a_url_says_it_all() {
        let options =
            Options::parse("ldapurl=\"LDAPS://h:1636/dc=x%20y?cn?sub?(&(cn=$username)(a=b))\"");
        let error = "cannot use ldapsearchattribute together with ldapsearchfilter";
        assert_eq!(options.unwrap_err().to_string(), error);
        let options =
            Options::parse("ldapurl=\"LDAPS://[::1]/dc=x%20y??sub?(&(cn=$username)(a=b))\"");
        let options = options.unwrap();
        assert_eq!(options.urls, ["ldaps://[::1]:636"]);
        let Way::Found(search) = options.way else {
            panic!("not a search");
        };
        assert_eq!((search.base.as_str(), search.scope), ("dc=x y", Scope::Subtree));
        assert_eq!(search.filter("ann").as_deref(), Some("(&(cn=ann)(a=b))"));
        assert!(Options::parse("ldapurl=ldap://h/dc=x?uid?one").is_ok());
        for bad in ["http://h/x", "h", "ldap://h:x/b", "ldap://h/%zz", "ldap://h/b?a?far"] {
            let url = format!("ldapurl=\"{bad}\"");
            assert_eq!(refused(&url), "invalid value for LDAP option ldapurl", "{bad}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, error) in [
            ("", "LDAP server is not specified"),
            ("ldapserver=h", "LDAP options need ldapprefix, ldapsuffix or ldapbasedn"),
            ("ldapserver=h ldapport=0", "invalid value for LDAP option ldapport"),
            ("ldapserver=h ldapscheme=x", "invalid value for LDAP option ldapscheme"),
            ("ldapserver=h ldaptls=2", "invalid value for LDAP option ldaptls"),
            ("ldapserver", "LDAP options are not of the form key=value"),
            ("a b=c", "LDAP options are not of the form key=value"),
            ("ldapserver=\"h", "LDAP options are not of the form key=value"),
            ("ldapserver=h color=red", "unknown LDAP option color"),
            (
                "ldapserver=h ldapprefix=a ldapbasedn=b",
                "cannot use ldapprefix or ldapsuffix together with options of a search",
            ),
            (
                "ldapserver=h ldapscheme=ldaps ldaptls=1 ldapbasedn=b",
                "cannot use ldaptls with ldaps: there is TLS already",
            ),
        ] {
            assert_eq!(refused(text), error, "{text}");
        }
    }

    /// Reliability 17: the directory's password is not shown.
    #[test]
    fn nothing_secret_is_shown() {
        let options = Options::parse("ldapserver=h ldapbasedn=b ldapbindpasswd=hush").unwrap();
        assert!(!format!("{options:?}").contains("hush"));
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "(ldapurl=|ldapserver=|ldapport=)?[a-z=\", :/?%()$\u{e4}]{0,40}") {
            let _ = Options::parse(&text);
        }
    }
}
