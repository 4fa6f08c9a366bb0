//! The grammar of the configuration file: sections, keys, comments, includes.
//!
//! ```text
//! ; comment          # comment, too; neither may follow something on its line
//! [section]
//! key = value        the value ends with the line
//! 'odd key' = value
//! %include other.ini
//! ```
//!
//! The reader only splits; what the pieces mean is the [`Sink`]'s business. It works on bytes, since
//! comments may be in any encoding.

use super::complaint::{Complaint, LoadError, Place};
use super::pairs::mask_passwords;
use super::values::mask_directory_password;

/// How deep files may include files.
const INCLUDE_DEPTH: usize = 10;

/// Takes what the reader finds; after the first refusal nothing more is read.
pub trait Sink {
    /// A `[name]`; it stays in force, across the borders of files, until the next one.
    fn section(&mut self, name: &str) -> Result<(), LoadError>;
    /// A `key = value`. A refusal may stay empty of reasons: the line that names value and place is
    /// added by the reader.
    fn entry(&mut self, key: &str, value: &str) -> Result<(), Option<LoadError>>;
}

/// Fetches a file by name; what goes wrong comes as the text to log.
pub type ReadFile<'a> = dyn FnMut(&str) -> Result<Vec<u8>, String> + 'a;

/// Reads a file and all that it includes.
pub fn read(
    file: &str,
    read_file: &mut ReadFile<'_>,
    sink: &mut dyn Sink,
) -> Result<(), LoadError> {
    Reader { read_file, sink }.read(file, 0)
}

struct Reader<'a, 'f> {
    read_file: &'a mut ReadFile<'f>,
    sink: &'a mut dyn Sink,
}

impl Reader<'_, '_> {
    fn read(&mut self, file: &str, depth: usize) -> Result<(), LoadError> {
        let bytes =
            (self.read_file)(file).map_err(|why| Complaint::Unreadable(file.to_owned(), why))?;
        let mut text = Text::new(&bytes);
        loop {
            text.skip_while(|byte| byte.is_ascii_whitespace() || byte == 0x0b);
            let place = Place { file: file.to_owned(), line: text.line };
            let Some(item) = text.item() else {
                return Err(Complaint::Syntax(place).into());
            };
            match item {
                Item::End => return Ok(()),
                Item::Comment => {}
                Item::Include(name) => self.include(&name, place, depth)?,
                Item::Section(name) => self
                    .sink
                    .section(&name)
                    .map_err(|error| error.and(Complaint::InvalidSection(name.clone(), place)))?,
                Item::Entry(key, value) => self.entry(&key, value, place)?,
            }
        }
    }

    fn include(&mut self, name: &str, place: Place, depth: usize) -> Result<(), LoadError> {
        if depth == INCLUDE_DEPTH {
            return Err(Complaint::IncludeTooDeep(place).into());
        }
        self.read(name, depth + 1).map_err(|error| error.and(Complaint::IncludeFailed(place)))
    }

    fn entry(&mut self, key: &str, value: &[u8], place: Place) -> Result<(), LoadError> {
        let shown = mask_passwords(&mask_directory_password(&String::from_utf8_lossy(value)));
        log::debug!("parse_ini_file: '{key}' = '{shown}'");
        let taken = match str::from_utf8(value) {
            Ok(value) => self.sink.entry(key, value),
            Err(_) => Err(Some(Complaint::NotUtf8.into())),
        };
        taken.map_err(|error| {
            let invalid = Complaint::InvalidValue(shown, key.to_owned(), place);
            match error {
                Some(error) => error.and(invalid),
                None => invalid.into(),
            }
        })
    }
}

/// What a file consists of.
enum Item<'a> {
    End,
    Comment,
    Include(String),
    Section(String),
    Entry(String, &'a [u8]),
}

/// What is left of a file, and the number of the line where that starts.
struct Text<'a> {
    rest: &'a [u8],
    line: u32,
}

impl<'a> Text<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        // As PgBouncer: a NUL byte ends the file.
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Self { rest: &bytes[..end], line: 1 }
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        for byte in taken {
            self.line = self.line.saturating_add(u32::from(*byte == b'\n'));
        }
        taken
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let len = self.rest.iter().position(|byte| !wanted(*byte)).unwrap_or(self.rest.len());
        self.take(len)
    }

    fn skip_while(&mut self, skipped: impl Fn(u8) -> bool) {
        self.take_while(skipped);
    }

    /// Skips this byte, if it is next.
    fn skip(&mut self, byte: u8) -> Option<()> {
        self.rest.starts_with(&[byte]).then(|| {
            self.take(1);
        })
    }

    /// The rest of the line without white space at either end.
    fn value(&mut self) -> &'a [u8] {
        self.skip_while(is_blank);
        self.take_while(|byte| byte != b'\n').trim_ascii_end()
    }

    /// The next item, at whose first byte we stand; `None` is a syntax error.
    fn item(&mut self) -> Option<Item<'a>> {
        match self.rest {
            [] => Some(Item::End),
            [b'#' | b';', ..] => {
                self.skip_while(|byte| byte != b'\n');
                Some(Item::Comment)
            }
            [b'[', ..] => {
                self.take(1);
                let name = self.take_while(|byte| byte != b']' && byte != b'\n');
                self.skip(b']')?;
                Some(Item::Section(String::from_utf8_lossy(name).into_owned()))
            }
            [b'%', ..] => {
                self.rest
                    .strip_prefix(b"%include")
                    .filter(|rest| rest.first().is_some_and(|byte| is_blank(*byte)))?;
                self.take(b"%include".len());
                let name = self.value();
                Some(Item::Include(String::from_utf8_lossy(name).into_owned()))
            }
            _ => {
                let key = self.key()?;
                self.skip_while(is_blank);
                self.skip(b'=')?;
                Some(Item::Entry(key, self.value()))
            }
        }
    }

    fn key(&mut self) -> Option<String> {
        if self.skip(b'\'').is_none() {
            let key = self.take_while(|byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'*')
            });
            return Some(String::from_utf8_lossy(key).into_owned());
        }
        let key = self.take_while(|byte| byte != b'\'');
        self.skip(b'\'')?;
        // A name that is not UTF-8 cannot be asked for, so it need not be kept exactly.
        (!key.is_empty()).then(|| String::from_utf8_lossy(key).into_owned())
    }
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes down what it is told; refuses sections named `bad` and values `bad`.
    #[derive(Default)]
    struct Notes(Vec<String>);

    impl Sink for Notes {
        fn section(&mut self, name: &str) -> Result<(), LoadError> {
            self.0.push(format!("[{name}]"));
            if name == "bad" { Err(Complaint::NoSuchDefaults.into()) } else { Ok(()) }
        }
        fn entry(&mut self, key: &str, value: &str) -> Result<(), Option<LoadError>> {
            self.0.push(format!("{key}={value}"));
            if value == "bad" { Err(None) } else { Ok(()) }
        }
    }

    /// Reads `main`, with other files by name; what was noted, or the complaint.
    fn notes(main: &[u8], others: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let mut notes = Notes::default();
        let mut files = |name: &str| {
            if name == "f.ini" {
                return Ok(main.to_vec());
            }
            let found = others.iter().find(|(other, _)| *other == name);
            found
                .map(|(_, text)| text.as_bytes().to_vec())
                .ok_or_else(|| "No such file or directory".to_owned())
        };
        match read("f.ini", &mut files, &mut notes) {
            Ok(()) => Ok(notes.0),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn items_are_found() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("  \n\n ; c\n # c", &[]),
            ("[a]\nk=v", &["[a]", "k=v"]),
            ("[a] k = v w \t\r\n", &["[a]", "k=v w"]),
            ("[ a ] ; note", &["[ a ]"]),
            ("k = session ; x", &["k=session ; x"]),
            ("k =\nj = 'q'", &["k=", "j='q'"]),
            ("k=\t \n", &["k="]),
            ("a.b-c_D9* = 1", &["a.b-c_D9*=1"]),
            ("* = host=x", &["*=host=x"]),
            ("= 1", &["=1"]),
            ("'my db' = x", &["my db=x"]),
            ("'a\nb'=x", &["a\nb=x"]),
            ("'käse'=x", &["käse=x"]),
            ("k = a\\\nj = b", &["k=a\\", "j=b"]),
            ("k = 1\n\0 nonsense", &["k=1"]),
        ];
        for (text, found) in cases {
            assert_eq!(
                notes(text.as_bytes(), &[]).as_deref(),
                Ok(&found.map_str()[..]),
                "{text:?}"
            );
        }
    }

    trait MapStr {
        fn map_str(&self) -> Vec<String>;
    }
    impl MapStr for [&str] {
        fn map_str(&self) -> Vec<String> {
            self.iter().map(|s| (*s).to_owned()).collect()
        }
    }

    #[test]
    fn syntax_errors_name_the_line() {
        let cases = [
            ("[a]\n\nfoo\n= 1", 3),
            ("[a\nb]", 1),
            ("[a]x", 1),
            ("\"a\" = 1", 1),
            ("käse = 1", 1),
            ("a/b = 1", 1),
            ("\n'my''db' = 1", 2),
            ("'' = 1", 1),
            ("'open", 1),
            ("\u{feff}[a]", 1),
            ("%include", 1),
            ("%includefoo", 1),
            ("%other x", 1),
            ("a\0b = 1", 1),
        ];
        for (text, line) in cases {
            let expected =
                format!("syntax error in configuration (f.ini:{line}), stopping loading");
            assert_eq!(notes(text.as_bytes(), &[]), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn refusals_name_value_and_place() {
        let invalid = "invalid value \"bad\" for parameter k in configuration (f.ini:3)";
        assert_eq!(notes(b"[a]\n\nk = bad  \n\n\nj = 1", &[]), Err(invalid.to_owned()));
        let section = "fill_defaults fail\ninvalid section \"bad\" in configuration (f.ini:2)";
        assert_eq!(notes(b"\n[bad]", &[]), Err(section.to_owned()));
        let encoding = "value is not valid UTF-8\n\
            invalid value \"\u{fffd}\" for parameter k in configuration (f.ini:1)";
        assert_eq!(notes(b"k = \xe4", &[]), Err(encoding.to_owned()));
        assert_eq!(notes(b"; caf\xe9\nk = v", &[]), Ok(vec!["k=v".to_owned()]));
    }

    #[test]
    fn includes_carry_the_section_and_pass_errors_up() {
        let found = notes(b"[a]\n%include \t b.ini \nk = 2", &[("b.ini", "j = 1\n[b]\n")]);
        assert_eq!(found, Ok(["[a]", "j=1", "[b]", "k=2"].as_slice().map_str()));
        assert_eq!(notes(b"%include b.ini\n", &[("b.ini", "")]), Ok(vec![]));

        let missing = "could not load file \"\": No such file or directory\n\
            error processing include file in configuration (f.ini:1), stopping loading";
        assert_eq!(notes(b"%include \n", &[]), Err(missing.to_owned()));

        let failing = "invalid value \"bad\" for parameter k in configuration (c.ini:2)\n\
            error processing include file in configuration (b.ini:1), stopping loading\n\
            error processing include file in configuration (f.ini:1), stopping loading";
        let others = [("b.ini", "%include c.ini"), ("c.ini", "\nk = bad")];
        assert_eq!(notes(b"%include b.ini\n", &others), Err(failing.to_owned()));
    }

    #[test]
    fn the_eleventh_include_is_too_deep() {
        let nested = |files: usize| {
            let mut notes = Notes::default();
            let mut files = |name: &str| {
                let number: usize = name.parse().unwrap();
                let text =
                    if number < files { format!("%include {}", number + 1) } else { String::new() };
                Ok(text.into_bytes())
            };
            read("0", &mut files, &mut notes).map_err(|error| error.to_string())
        };
        assert_eq!(nested(10), Ok(()));
        let error = nested(11).unwrap_err();
        let mut lines = error.lines();
        assert_eq!(lines.next(), Some("include nesting level too deep (10:1), stopping loading"));
        assert_eq!(lines.clone().count(), 10);
        let last = "error processing include file in configuration (0:1), stopping loading";
        assert_eq!(lines.last(), Some(last));
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = notes(&bytes, &[]);
        }

        #[test]
        fn likely_noise_never_panics(text in "([\\[\\]'\"=;#%\n \0a-c]|%include |\\[a\\]|k = v\n){0,40}") {
            let _ = notes(text.as_bytes(), &[("a", "k = v")]);
        }
    }
}
