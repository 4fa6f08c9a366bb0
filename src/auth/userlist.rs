//! The file of users and their secrets (`auth_file`):
//!
//! ```text
//! ; a comment
//! "name" "secret"     the rest of the line is nobody's business
//! "it""s" "md5..."    a doubled quote is one
//! ```
//!
//! An error ends the reading where it stands; what came before stays.
//!
//! A user may have several entries: while a password is being changed, the old one and the new one.
//! A client may know any of them; towards servers the first one counts. (PgBouncer takes the last
//! one for everything.) Of several SCRAM verifiers only those count that share the first one's salt
//! and rounds, for a client is told one salt.

use crate::auth::secret::Known;
use crate::config::{Secret, USER_NAME_BYTES};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Longer secrets are refused.
const SECRET_BYTES: usize = 65530;

/// Names and their secrets. An empty secret is one that no password opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Userlist {
    /// Each login shares them.
    users: BTreeMap<Box<[u8]>, Arc<Vec<Known>>>,
}

impl Userlist {
    /// Reads the file, as far as it can be read; tells the line to log if that is not its end.
    pub fn load(path: &str) -> (Self, Option<String>) {
        match std::fs::read(path) {
            Ok(text) => Self::parse(&text),
            Err(error) => {
                let why = crate::sys::error_text(&error);
                (Self::default(), Some(format!("could not open auth_file {path}: {why}")))
            }
        }
    }

    /// Reads a text in the same way.
    pub fn parse(text: &[u8]) -> (Self, Option<String>) {
        let mut list = Self::default();
        let mut rest = text;
        loop {
            match entry(rest) {
                Ok(Some((name, secret, after))) => {
                    let secrets = list.users.entry(name.into()).or_default();
                    Arc::make_mut(secrets).push(Known::from(Secret::new(secret)));
                    rest = after;
                }
                Ok(None) => return (list, None),
                Err(error) => return (list, Some(error.to_owned())),
            }
        }
    }

    /// Whether the user is listed.
    pub fn contains(&self, user: impl AsRef<[u8]>) -> bool {
        self.users.contains_key(user.as_ref())
    }

    /// The user's secret for servers: a password, an MD5 hash or a SCRAM verifier.
    pub fn secret(&self, user: impl AsRef<[u8]>) -> Option<&Secret> {
        self.users.get(user.as_ref())?.first().map(Known::text)
    }

    /// All of the user's secrets, in the order of the file: a client may know any of them.
    pub fn secrets(&self, user: impl AsRef<[u8]>) -> Arc<Vec<Known>> {
        self.users.get(user.as_ref()).cloned().unwrap_or_default()
    }

    /// How many users are listed.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// All users with their secrets, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Secret)> {
        let users = self.users.iter();
        users.flat_map(|(name, secrets)| secrets.iter().map(|secret| (&**name, secret.text())))
    }
}

/// A name, a secret and what follows their line.
type Entry<'a> = (Vec<u8>, Vec<u8>, &'a [u8]);

/// Takes the next entry; `None` at the end.
fn entry(text: &[u8]) -> Result<Option<Entry<'_>>, &'static str> {
    const BROKEN: &str = "broken auth file";
    let mut rest = text.trim_ascii_start();
    while rest.starts_with(b";") {
        rest = after_line(rest).trim_ascii_start();
    }
    if rest.is_empty() {
        return Ok(None);
    }
    let (name, rest) = quoted(rest).ok_or(BROKEN)?;
    if name.len() > USER_NAME_BYTES {
        return Err("username too long in auth file");
    }
    // As PgBouncer: whatever stands between the two is skipped, even the ends of lines.
    let gap = rest.iter().position(|byte| *byte == b'"').ok_or(BROKEN)?;
    let (secret, rest) = quoted(&rest[gap..]).ok_or(BROKEN)?;
    if secret.len() > SECRET_BYTES {
        return Err("password too long in auth file");
    }
    Ok(Some((undouble(name), undouble(secret), after_line(rest))))
}

/// Takes a quoted item: what is between its quotes, and what follows.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = text.strip_prefix(b"\"")?;
    let mut end = 0;
    loop {
        end += inner[end..].iter().position(|byte| *byte == b'"')?;
        if inner.get(end + 1) != Some(&b'"') {
            return Some((&inner[..end], &inner[end + 1..]));
        }
        end += 2;
    }
}

/// Makes one quote of two.
fn undouble(raw: &[u8]) -> Vec<u8> {
    let mut bytes = raw.iter();
    let mut plain = Vec::with_capacity(raw.len());
    while let Some(byte) = bytes.next() {
        plain.push(*byte);
        if *byte == b'"' {
            bytes.next(); // `quoted` lets quotes through in pairs only
        }
    }
    plain
}

/// What follows the end of this line.
fn after_line(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    &text[end..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> (Vec<(String, String)>, Option<String>) {
        let (list, error) = Userlist::parse(text.as_bytes());
        let plain = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let users = list.iter().map(|(name, secret)| (plain(name), plain(secret.expose())));
        (users.collect(), error)
    }

    /// A text, the users read from it, and the error.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);

    #[test]
    fn entries_are_read_and_errors_end_the_file() {
        let long_name = format!("\"{}\" \"x\"", "n".repeat(128));
        let fitting_name = "n".repeat(127);
        let fitting = format!("\"{fitting_name}\" \"x\"");
        let broken = Some("broken auth file");
        let cases: &[Case] = &[
            ("", &[], None),
            ("\n ;c\n\"a\" \"b\"", &[("a", "b")], None),
            ("\"a\"x\"b\" y \"z\"\n\"c\" \"d\"\n", &[("a", "b"), ("c", "d")], None),
            ("\"a\"\n\"c\" \"d\"\n", &[("a", "c")], None),
            ("\"a\" \"b\"\n# no\n\"c\" \"d\"", &[("a", "b")], broken),
            ("\"a\" \"b\"\n\"a\" \"c\"", &[("a", "b"), ("a", "c")], None),
            ("\"a\"\"b\" \"c\"\"\"\"\"", &[("a\"b", "c\"\"")], None),
            ("\"\"\"\" \"\"\"x\"", &[("\"", "\"x")], None),
            ("\"a\nb\" \"\"", &[("a\nb", "")], None),
            ("\"\" \"x\"", &[("", "x")], None),
            ("\"a\"", &[], broken),
            ("\"a\" \"b", &[], broken),
            ("\"a", &[], broken),
            ("a b", &[], broken),
            (&long_name, &[], Some("username too long in auth file")),
            (&fitting, &[(&fitting_name, "x")], None),
        ];
        for (text, users, error) in cases {
            let (found, complaint) = read(text);
            let found: Vec<_> = found.iter().map(|(n, s)| (n.as_str(), s.as_str())).collect();
            assert_eq!(found, *users, "{text:?}");
            assert_eq!(complaint.as_deref(), *error, "{text:?}");
        }
    }

    #[test]
    fn secrets_have_a_limit() {
        let text = |len| format!("\"a\" \"b\"\n\"c\" \"{}\"", "x".repeat(len));
        assert_eq!(read(&text(65530)).0.len(), 2);
        let (users, error) = read(&text(65531));
        assert_eq!((users.len(), error.as_deref()), (1, Some("password too long in auth file")));
    }

    #[test]
    fn users_are_looked_up_by_bytes_or_text() {
        let (list, _) = Userlist::parse(b"\"\xe4\" \"b\" \n\"u\" \"p\"");
        assert!(list.contains(b"\xe4") && list.contains("u") && !list.contains("U"));
        assert_eq!(list.secret("u").map(Secret::expose), Some(&b"p"[..]));
        let (list, _) = Userlist::parse(b"\"u\" \"old\"\n\"v\" \"w\"\n\"u\" \"new\"");
        let secrets = list.secrets("u");
        let texts: Vec<_> = secrets.iter().map(|secret| secret.text().expose()).collect();
        assert_eq!(texts, [b"old", b"new"]);
        assert_eq!(list.secret("u").map(Secret::expose), Some(&b"old"[..]));
        assert!(list.secrets("nobody").is_empty());
        assert_eq!((list.len(), list.is_empty()), (2, false));
    }

    #[test]
    fn a_missing_file_is_an_empty_list() {
        let (list, error) = Userlist::load("no/such");
        assert!(list.is_empty());
        let expected = "could not open auth_file no/such: No such file or directory";
        assert_eq!(error.as_deref(), Some(expected));
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Userlist::parse(&bytes);
        }

        #[test]
        fn what_is_written_is_read(name in "[\"a ;\n]{0,9}", secret in "[\"a ;\n]{0,9}") {
            let double = |text: &str| text.replace('"', "\"\"");
            let text = format!("\"{}\" \"{}\"", double(&name), double(&secret));
            prop_assert_eq!(read(&text), (vec![(name, secret)], None));
        }
    }
}
