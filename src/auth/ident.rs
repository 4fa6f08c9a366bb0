//! The ident file (`auth_ident_file`): which system users, or names in certificates, may log in as
//! which users of ours.
//!
//! ```text
//! # map     system user    user
//! office    anna           alice
//! office    "bob smith"    all
//! ```

use super::rules::{Remark, Token, Tokens, lines};
use std::collections::BTreeMap;

/// All maps, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentMaps {
    maps: BTreeMap<String, Vec<Line>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    system_user: String,
    /// `None`: all of them.
    user: Option<String>,
}

impl IdentMaps {
    /// Reads the file; without it there are no maps.
    pub fn load(path: &str) -> (Self, Vec<Remark>) {
        match std::fs::read(path) {
            Ok(text) => Self::parse(&text),
            Err(error) => (Self::default(), vec![Remark::unreadable("ident", path, &error)]),
        }
    }

    /// Reads a text in the same way. Bad lines are left out.
    pub fn parse(text: &[u8]) -> (Self, Vec<Remark>) {
        let mut maps = Self::default();
        let mut remarks = Vec::new();
        for (number, line) in lines(text) {
            match parse_line(&mut Tokens::new(line)) {
                Ok(None) => {}
                Ok(Some((name, line))) => maps.maps.entry(name).or_default().push(line),
                Err(why) => {
                    let why = why.map(|why| Remark::warning(format!("ident line {number}: {why}")));
                    remarks.extend(why);
                    let text = format!("could not parse ident config line {number}");
                    remarks.push(Remark::warning(text));
                }
            }
        }
        (maps, remarks)
    }

    /// Whether there is a map of this name.
    pub fn contains(&self, map: &str) -> bool {
        self.maps.contains_key(map)
    }

    /// Whether this map lets the system user log in under this name.
    pub fn allows(&self, map: &str, system_user: &str, user: &str) -> bool {
        let fits = |line: &Line| {
            line.system_user == system_user
                && line.user.as_deref().is_none_or(|known| known == user)
        };
        self.maps.get(map).is_some_and(|lines| lines.iter().any(fits))
    }
}

/// `Ok(None)`: there is nothing in it. A refusal may have no words of its own.
fn parse_line(tokens: &mut Tokens<'_>) -> Result<Option<(String, Line)>, Option<&'static str>> {
    let name = match tokens.take() {
        Token::End => return Ok(None),
        Token::Word(name) => name,
        Token::Quoted(_) | Token::Comma | Token::Bad => return Err(None),
    };
    let system_user = tokens.take().into_name().ok_or(None)?;
    let user = match tokens.take() {
        Token::Word(all) if all == "all" => {
            tokens.take(); // As PgBouncer: one word more is not minded here.
            None
        }
        other => Some(other.into_name().ok_or(None)?),
    };
    match tokens.take() {
        Token::End => Ok(Some((name, Line { system_user, user }))),
        _ => Err(Some("unsupported parameters")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> (IdentMaps, Vec<String>) {
        let (maps, remarks) = IdentMaps::parse(text.as_bytes());
        (maps, remarks.into_iter().map(|remark| remark.text).collect())
    }

    #[test]
    fn maps_say_who_may_be_whom() {
        let (maps, remarks) =
            parse("# c\n\nm s u\nm \"s s\" \"all\" # c\nm t all\n n s all extra\nm s v\r\n");
        assert_eq!(remarks, [""; 0]);
        assert!(maps.contains("m") && maps.contains("n") && !maps.contains("s"));
        let cases = [
            ("m", "s", "u", true),
            ("m", "s", "v", true),
            ("m", "s", "w", false),
            ("m", "s s", "all", true),
            ("m", "s s", "u", false),
            ("m", "t", "whoever", true),
            ("m", "u", "u", false),
            ("n", "s", "x", true),
            ("o", "s", "u", false),
        ];
        for (map, system_user, user, allowed) in cases {
            assert_eq!(maps.allows(map, system_user, user), allowed, "{map} {system_user} {user}");
        }
    }

    #[test]
    fn bad_lines_are_left_out() {
        let more = "ident line 1: unsupported parameters";
        let bad = "could not parse ident config line 1";
        let cases: [(&str, &[&str]); 8] = [
            ("m s u v", &[more, bad]),
            ("m s all u v", &[more, bad]),
            ("m s u,", &[more, bad]),
            ("\"m\" s u", &[bad]),
            ("m s", &[bad]),
            ("m", &[bad]),
            ("m s \"u", &[bad]),
            ("m , u", &[bad]),
        ];
        for (line, expected) in cases {
            let (maps, remarks) = parse(&format!("{line}\nn s u"));
            assert_eq!(remarks, expected, "{line}");
            assert!(!maps.contains("m") && maps.contains("n"), "{line}");
        }
    }

    #[test]
    fn a_missing_file_has_no_maps() {
        let (maps, remarks) = IdentMaps::load("no/such");
        assert_eq!(maps, IdentMaps::default());
        let words = "could not open ident config file no/such: No such file or directory";
        assert_eq!(remarks, [Remark { level: log::Level::Error, text: words.to_owned() }]);
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "[a\" ,#\nl]{0,80}") {
            let _ = IdentMaps::parse(text.as_bytes());
        }
    }
}
