//! The grammar of a connection string: rows of `key=value`, separated by spaces; a value with spaces
//! stands in `'…'`, where `''` is one quote.

use std::borrow::Cow;

/// A connection string that ends in something else than a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Splits a connection string into its pairs; ends after the first error.
pub struct Pairs<'a> {
    text: &'a str,
    /// Where the next pair, or the space before it, begins.
    at: usize,
}

impl<'a> Pairs<'a> {
    /// Starts at the beginning of the text.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Takes the pair at whose key we stand. Where it is malformed, `self.at` stays.
    fn pair(&mut self) -> Result<(&'a str, Cow<'a, str>), Malformed> {
        let start = &self.text[self.at..];
        let key_len = start
            .find(['=', ' '])
            .filter(|len| *len > 0)
            .ok_or(Malformed)?;
        let (key, rest) = start.split_at(key_len);
        let rest = skip_spaces(rest).strip_prefix('=').ok_or(Malformed)?;
        let rest = skip_spaces(rest);
        let (value, rest) = match rest.strip_prefix('\'') {
            Some(quoted) => unquote(quoted).ok_or(Malformed)?,
            None => {
                let (value, rest) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
                (Cow::Borrowed(value), rest)
            }
        };
        if value.is_empty() {
            return Err(Malformed);
        }
        self.at = self.text.len() - rest.len();
        Ok((key, value))
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<(&'a str, Cow<'a, str>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = skip_spaces(&self.text[self.at..]);
        self.at = self.text.len() - rest.len();
        if rest.is_empty() {
            return None;
        }
        let pair = self.pair();
        if pair.is_err() {
            self.at = self.text.len();
        }
        Some(pair)
    }
}

/// Spaces only: a tab belongs to what it stands in.
fn skip_spaces(text: &str) -> &str {
    text.trim_start_matches(' ')
}

/// Reads up to the closing quote: the value, and what follows.
fn unquote(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut end = 0;
    loop {
        end += text[end..].find('\'')?;
        if !text[end + 1..].starts_with('\'') {
            break;
        }
        end += 2;
    }
    let value = match text[..end].contains("''") {
        true => Cow::Owned(text[..end].replace("''", "'")),
        false => Cow::Borrowed(&text[..end]),
    };
    let mut after = text[end + 1..].chars();
    after.next(); // As PgBouncer: whatever stands after the closing quote is dropped.
    Some((value, after.as_str()))
}

/// The text without the values of `password=`, fit for a log. What cannot be read is cut off at
/// the word.
pub fn mask_passwords(text: &str) -> String {
    let mut shown = String::new();
    let mut pairs = Pairs::new(text);
    let mut copied = 0;
    loop {
        let rest = skip_spaces(&text[pairs.at..]);
        pairs.at = text.len() - rest.len();
        let key_at = pairs.at;
        match pairs.pair() {
            Ok(("password", _)) => {
                shown.push_str(&text[copied..key_at]);
                shown.push_str("password=****");
                copied = pairs.at;
                if text[..copied].ends_with(' ') {
                    shown.push(' '); // swallowed after a closing quote
                }
            }
            Ok(_) => {}
            Err(Malformed) => {
                match find_password(rest) {
                    Some(word) => {
                        shown.push_str(&text[copied..key_at + word]);
                        shown.push_str("password=****");
                    }
                    None => shown.push_str(&text[copied..]),
                }
                return shown;
            }
        }
    }
}

/// Where the key `password` stands, if it does, in a text that is no row of pairs.
fn find_password(text: &str) -> Option<usize> {
    let in_a_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices("password").map(|(at, _)| at).find(|at| {
        let (before, after) = (&text[..*at], &text[at + "password".len()..]);
        let alone = !before.ends_with(in_a_word) && !after.starts_with(in_a_word);
        alone && !after.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn connection_strings_split_as_pgbouncers() {
        let pairs = |text| {
            let pairs: Result<Vec<_>, _> = Pairs::new(text).collect();
            pairs.map(|pairs| {
                pairs
                    .iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect::<Vec<_>>()
            })
        };
        let good: &[(&str, &[&str])] = &[
            ("  ", &[]),
            ("a=1  b = 2 ", &["a=1", "b=2"]),
            ("a=1\tb=2", &["a=1\tb=2"]),
            ("a=1,b=2", &["a=1,b=2"]),
            ("a=x'y", &["a=x'y"]),
            ("a='x y'bc=1", &["a=x y", "c=1"]),
            ("a='it''s' b=1", &["a=it's", "b=1"]),
            ("a= b=5", &["a=b=5"]),
            ("'a'=1", &["'a'=1"]),
        ];
        for (text, split) in good {
            assert_eq!(pairs(text).unwrap(), *split, "{text:?}");
        }
        for text in [
            "a", "a ", "=1", "a=", "a= ", "a=''", "a=1 b", "a='x", "a='x''",
        ] {
            assert_eq!(pairs(text), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn passwords_are_masked() {
        let cases = [
            ("host=h", "host=h"),
            ("host=h password=x port=1", "host=h password=**** port=1"),
            ("password = 'a b' port=1", "password=**** port=1"),
            ("password=x", "password=****"),
            ("a=1 password='open secret", "a=1 password=****"),
            ("oops password=x", "oops password=****"),
            ("a password", "a password"),
            ("password x", "password=****"),
            ("a password_x", "a password_x"),
            ("session ; x", "session ; x"),
        ];
        for (text, masked) in cases {
            assert_eq!(mask_passwords(text), masked, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_masked_without_loss(text in "([a-b='\t é]|password=){0,30}") {
            let masked = mask_passwords(&text);
            prop_assert!(text.contains("password") || masked == text);
        }
    }
}
