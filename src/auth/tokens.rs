//! The tokens of a line of the hba and ident files: words, `"quoted words"`, commas; `#` begins a
//! comment.

/// What a token is. The numbers stand in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In quotes: a name, whatever it says.
    Quoted = 0,
    /// Without: perhaps a keyword.
    Word = 1,
    /// A comma.
    Comma = 2,
    /// A quote that does not end on this line.
    Bad = 3,
    /// There is nothing more.
    End = 4,
}

/// Takes a line apart.
#[derive(Debug)]
pub struct Tokens<'a> {
    rest: &'a str,
    text: String,
}

impl<'a> Tokens<'a> {
    /// Of this line.
    pub fn new(line: &'a str) -> Self {
        Self { rest: line, text: String::new() }
    }

    /// The next one.
    pub fn take(&mut self) -> Kind {
        self.rest = self.rest.trim_ascii_start();
        match self.rest.chars().next() {
            None | Some('#') => {
                self.rest = "";
                Kind::End
            }
            Some(',') => {
                self.rest = &self.rest[1..];
                Kind::Comma
            }
            Some('"') => self.quoted(),
            Some(_) => {
                let ends = |c: char| c.is_ascii_whitespace() || matches!(c, ',' | '#' | '"');
                let (word, rest) =
                    self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
                (self.text, self.rest) = (word.to_owned(), rest);
                Kind::Word
            }
        }
    }

    fn quoted(&mut self) -> Kind {
        let mut inner = self.rest[1..].char_indices().peekable();
        let mut text = String::new();
        while let Some((at, c)) = inner.next() {
            match c {
                '"' if inner.next_if(|(_, next)| *next == '"').is_some() => text.push('"'),
                '"' => {
                    self.rest = &self.rest[1 + at + 1..];
                    self.text = text;
                    return Kind::Quoted;
                }
                c => text.push(c),
            }
        }
        self.rest = "";
        Kind::Bad
    }

    /// What the last word, quoted or not, said. Commas and the end of the line say nothing.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Shortens what the last word said.
    pub fn keep(&mut self, bytes: usize) {
        self.text.truncate(bytes);
    }

    /// Whether this is an unquoted word, and which.
    pub fn is_word(&self, kind: Kind, word: &str) -> bool {
        kind == Kind::Word && self.text == word
    }

    /// The rest of the line as it stands.
    pub fn rest(&mut self) -> &'a str {
        std::mem::take(&mut self.rest).trim_ascii()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        use Kind::{Bad, Comma, Quoted, Word};
        let cases: &[(&str, &[(Kind, &str)])] = &[
            ("", &[]),
            ("  # a", &[]),
            (" a\tb ", &[(Word, "a"), (Word, "b")]),
            ("a,b", &[(Word, "a"), (Comma, "a"), (Word, "b")]),
            ("a#b", &[(Word, "a")]),
            ("\"a#,\"\"b\"c", &[(Quoted, "a#,\"b"), (Word, "c")]),
            ("a\"b\"", &[(Word, "a"), (Quoted, "b")]),
            ("\"\"", &[(Quoted, "")]),
            ("a \"b", &[(Word, "a"), (Bad, "a")]),
            ("käse \"ö\"", &[(Word, "käse"), (Quoted, "ö")]),
        ];
        for (line, expected) in cases {
            let mut tokens = Tokens::new(line);
            let mut found = Vec::new();
            loop {
                match tokens.take() {
                    Kind::End => break,
                    kind => found.push((kind, tokens.text().to_owned())),
                }
            }
            let found: Vec<_> = found.iter().map(|(kind, text)| (*kind, text.as_str())).collect();
            assert_eq!(found, *expected, "{line:?}");
        }
    }
}
