//! The file of maps (`auth_ident_file`): which users of the system, or names in certificates, may
//! be which users of PostgreSQL.
//!
//! ```text
//! # map    system user    PostgreSQL user
//! admins   root           postgres
//! admins   "Ann Other"    all
//! ```

use super::Notes;
use super::tokens::{Kind, Tokens};
use std::collections::BTreeMap;

/// All maps, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ident {
    maps: BTreeMap<String, Vec<Entry>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    system_user: String,
    /// `None`: any.
    user: Option<String>,
}

impl Ident {
    /// Reads a file; one that cannot be read has no maps.
    pub fn load(path: &str) -> (Self, Notes) {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&String::from_utf8_lossy(&bytes)),
            Err(error) => {
                let why = crate::sys::error_text(&error);
                let error = Some(format!("could not open ident config file {path}: {why}"));
                (Self::default(), Notes { error, ..Notes::default() })
            }
        }
    }

    /// Reads a text. A line that makes no sense is left out.
    pub fn parse(text: &str) -> (Self, Notes) {
        let (mut ident, mut notes) = (Self::default(), Notes::default());
        for (line, number) in text.lines().zip(1..) {
            match entry(line) {
                Ok(Some((map, entry))) => ident.maps.entry(map).or_default().push(entry),
                Ok(None) => {}
                Err(warning) => {
                    notes
                        .warnings
                        .extend(warning.map(|what| format!("ident line {number}: {what}")));
                    notes.warnings.push(format!("could not parse ident config line {number}"));
                }
            }
        }
        (ident, notes)
    }

    /// Whether there is such a map.
    pub fn contains(&self, map: &str) -> bool {
        self.maps.contains_key(map)
    }

    /// Whether by this map the system's user may be that user.
    pub fn allows(&self, map: &str, system_user: &str, user: &str) -> bool {
        self.allows_any(map, |name| name == system_user, user)
    }

    /// Whether by this map somebody to whom such names belong may be that user.
    pub fn allows_any(&self, map: &str, is_his: impl Fn(&str) -> bool, user: &str) -> bool {
        let mut entries = self.maps.get(map).into_iter().flatten();
        entries.any(|entry| {
            is_his(&entry.system_user) && entry.user.as_ref().is_none_or(|name| name == user)
        })
    }
}

/// `None`: nothing stands on that line. An error is what to say of it, if anything.
fn entry(line: &str) -> Result<Option<(String, Entry)>, Option<&'static str>> {
    let mut tokens = Tokens::new(line);
    let map = match tokens.take() {
        Kind::End => return Ok(None),
        Kind::Word => tokens.text().to_owned(),
        Kind::Quoted | Kind::Comma | Kind::Bad => return Err(None),
    };
    let mut name = || match tokens.take() {
        kind @ (Kind::Word | Kind::Quoted) => Ok((kind, tokens.text().to_owned())),
        Kind::Comma | Kind::Bad | Kind::End => Err(None),
    };
    let (_, system_user) = name()?;
    let (kind, user) = name()?;
    let is_any = kind == Kind::Word && user == "all";
    let mut last = tokens.take();
    if is_any && last != Kind::End {
        // As PgBouncer: behind `all` one token more does no harm.
        last = tokens.take();
    }
    if last != Kind::End {
        return Err(Some("unsupported parameters"));
    }
    Ok(Some((map, Entry { system_user, user: (!is_any).then_some(user) })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn maps_are_read() {
        let text = "# map\n\nm root postgres\nm \"a b\" \"x\"\nn root all\nn odd \"all\"\n";
        let (ident, notes) = Ident::parse(text);
        assert_eq!(notes, Notes::default());
        assert!(ident.contains("m") && !ident.contains("o"));
        let cases = [
            ("m", "root", "postgres", true),
            ("m", "root", "x", false),
            ("m", "a b", "x", true),
            ("n", "root", "whoever", true),
            ("n", "odd", "all", true),
            ("n", "odd", "whoever", false),
            ("o", "root", "postgres", false),
        ];
        for (map, system_user, user, allowed) in cases {
            assert_eq!(ident.allows(map, system_user, user), allowed, "{map} {system_user} {user}");
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_left_out() {
        let text = "m a b c\n\"m\" a b\nm\nm a\nm , b\nm a \"b\nm a all x\nm a all x y\nm a b";
        let (ident, notes) = Ident::parse(text);
        assert_eq!(ident.maps["m"].len(), 2);
        let could_not = |number: u32| format!("could not parse ident config line {number}");
        let unsupported = |number: u32| format!("ident line {number}: unsupported parameters");
        let expected = [
            unsupported(1),
            could_not(1),
            could_not(2),
            could_not(3),
            could_not(4),
            could_not(5),
            could_not(6),
            unsupported(8),
            could_not(8),
        ];
        assert_eq!(notes.warnings, expected);
    }

    #[test]
    fn a_missing_file_has_no_maps() {
        let (ident, notes) = Ident::load("no/such");
        assert_eq!(ident, Ident::default());
        let expected = "could not open ident config file no/such: No such file or directory";
        assert_eq!(notes.error.as_deref(), Some(expected));
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "([a-c \",#\té\n]|all){0,60}") {
            let _ = Ident::parse(&text);
        }
    }
}
