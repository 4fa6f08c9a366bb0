//! What the two files of rules have in common: lines, cut into tokens, and what is wrong with them.
//!
//! ```text
//! word "quoted ""word""" , # a comment
//! ```
//!
//! A bad line is left out and told about; the others count. The files are read as bytes, since
//! comments may be in any encoding.

use log::Level;

/// One piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A bare word; only those can be keywords.
    Word(String),
    /// A word in quotes, without them.
    Quoted(String),
    /// A comma outside of quotes.
    Comma,
    /// A quote that is not closed, or bytes that are not UTF-8.
    Bad,
    /// Nothing more.
    End,
}

impl Token {
    /// The name, quoted or not.
    pub fn into_name(self) -> Option<String> {
        match self {
            Token::Word(name) | Token::Quoted(name) => Some(name),
            Token::Comma | Token::Bad | Token::End => None,
        }
    }

    /// The number that PgBouncer's messages give its kind.
    pub fn kind(&self) -> u8 {
        match self {
            Token::Quoted(_) => 0,
            Token::Word(_) => 1,
            Token::Comma => 2,
            Token::Bad => 3,
            Token::End => 4,
        }
    }
}

/// Takes one token after the other from a line.
#[derive(Clone, Debug)]
pub struct Tokens<'a> {
    rest: &'a [u8],
    /// The text of the last word, which messages name.
    last: String,
}

impl<'a> Tokens<'a> {
    /// The tokens of this line.
    pub fn new(line: &'a [u8]) -> Self {
        Self { rest: line, last: String::new() }
    }

    /// The next one; `End` for ever behind the last.
    pub fn take(&mut self) -> Token {
        let rest = self.rest.trim_ascii_start();
        let token = match rest {
            [] | [b'#', ..] => {
                self.rest = &[];
                return Token::End;
            }
            [b',', rest @ ..] => {
                self.rest = rest;
                return Token::Comma;
            }
            [b'"', inner @ ..] => self.quoted(inner).map(Token::Quoted),
            _ => self.word(rest).map(Token::Word),
        };
        token.unwrap_or(Token::Bad)
    }

    /// The next one, which stays.
    pub fn peek(&self) -> Token {
        self.clone().take()
    }

    /// The text of the last word taken, quoted or not.
    pub fn last(&self) -> &str {
        &self.last
    }

    /// Everything that has not been taken, as it stands there.
    pub fn raw_rest(&self) -> &'a [u8] {
        self.rest
    }

    fn word(&mut self, rest: &'a [u8]) -> Option<String> {
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b",#\"".contains(byte);
        let end = rest.iter().position(ends).unwrap_or(rest.len());
        self.rest = &rest[end..];
        self.keep(rest[..end].to_vec())
    }

    /// `inner` is what follows the opening quote.
    fn quoted(&mut self, inner: &'a [u8]) -> Option<String> {
        let mut text = Vec::new();
        let mut rest = inner;
        loop {
            let Some(quote) = rest.iter().position(|byte| *byte == b'"') else {
                self.rest = &[];
                return None;
            };
            text.extend_from_slice(&rest[..quote]);
            rest = &rest[quote + 1..];
            if rest.first() != Some(&b'"') {
                self.rest = rest;
                return self.keep(text);
            }
            text.push(b'"');
            rest = &rest[1..];
        }
    }

    fn keep(&mut self, text: Vec<u8>) -> Option<String> {
        self.last = String::from_utf8(text).ok()?;
        Some(self.last.clone())
    }
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// How loud it is.
    pub level: Level,
    /// Its words.
    pub text: String,
}

impl Remark {
    /// A line of the file is not as it should be.
    pub fn warning(text: impl Into<String>) -> Self {
        Self { level: Level::Warn, text: text.into() }
    }

    /// The file cannot be read at all. `kind` is its name in messages.
    pub fn unreadable(kind: &str, path: &str, error: &std::io::Error) -> Self {
        let why = crate::sys::error_text(error);
        Self {
            level: Level::Error,
            text: format!("could not open {kind} config file {path}: {why}"),
        }
    }

    /// Writes it to the log.
    pub fn log(&self) {
        log::log!(self.level, "{}", self.text);
    }
}

/// The lines of a file, counted from 1.
pub fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    (1..).zip(text.split(|byte| *byte == b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(line: &[u8]) -> Vec<Token> {
        let mut tokens = Tokens::new(line);
        let next = || Some(tokens.take()).filter(|token| *token != Token::End);
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn lines_are_cut_into_tokens() {
        let word = |text: &str| Token::Word(text.to_owned());
        let quoted = |text: &str| Token::Quoted(text.to_owned());
        let cases: [(&[u8], Vec<Token>); 12] = [
            (b"", vec![]),
            (b" \t\r", vec![]),
            (b"# a \"", vec![]),
            (b"a b", vec![word("a"), word("b")]),
            (b"a,b , c", vec![word("a"), Token::Comma, word("b"), Token::Comma, word("c")]),
            (b"a#b", vec![word("a")]),
            (b"a\"b\"c", vec![word("a"), quoted("b"), word("c")]),
            (b"\"a \"\" #,\"", vec![quoted("a \" #,")]),
            (b"\"\"", vec![quoted("")]),
            (b"a \\", vec![word("a"), word("\\")]),
            (b"a \"b c", vec![word("a"), Token::Bad]),
            (b"a \xe4 b", vec![word("a"), Token::Bad, word("b")]),
        ];
        for (line, expected) in cases {
            assert_eq!(tokens(line), expected, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn looking_ahead_takes_nothing() {
        let mut tokens = Tokens::new(b"a , rest # raw");
        assert_eq!((tokens.peek(), tokens.last()), (Token::Word("a".to_owned()), ""));
        assert_eq!(tokens.take().into_name().as_deref(), Some("a"));
        assert_eq!((tokens.take(), tokens.last()), (Token::Comma, "a"));
        assert_eq!(tokens.raw_rest(), b" rest # raw");
    }

    proptest! {
        #[test]
        fn noise_comes_to_an_end(line in proptest::collection::vec(any::<u8>(), 0..99)) {
            prop_assert!(tokens(&line).len() <= line.len());
        }

        #[test]
        fn what_is_quoted_is_read(text in "[\"a ,#é]{0,9}") {
            let line = format!("\"{}\"", text.replace('"', "\"\""));
            prop_assert_eq!(tokens(line.as_bytes()), [Token::Quoted(text)]);
        }
    }
}
