//! `auth_query`: asking a database who a user is.
//!
//! The question goes by Parse and Bind, the name as a parameter: whatever it is, it is never SQL
//! (reliability 9). [`Asked`] reads the answer.

use crate::config::{Secret, USER_NAME_BYTES};
use crate::ring::Ring;
use crate::wire::backend::{self, ErrorFields, TxStatus};
use crate::wire::emit::{self, Full};

/// As PgBouncer: longer secrets are cut.
const SECRET_BYTES: usize = 65530;

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// His name in this session: as the database spells it, or as he said it himself.
    pub user: String,
    /// His password, or what is kept instead of one. `None`: he has none, it is NULL or empty, and
    /// nothing that he could say is right.
    pub secret: Option<Secret>,
}

/// Why an answer is none, in the words of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The server refused.
    Error(ErrorFields),
    /// An answer with another number of columns.
    Columns(u16),
    /// Nobody has no name.
    NullName,
    /// A name that is no text.
    BadName,
    /// A message that does not belong here.
    Unexpected,
    /// A message that is broken.
    BadPacket,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Trouble::Columns(count) => {
                return write!(f, "expected 2 columns from auth_query, not {count}");
            }
            Trouble::Error(_) => "error response from auth_query",
            Trouble::NullName => "auth_query response contained null user name",
            Trouble::BadName => "auth_query response contained a user name that is not UTF-8",
            Trouble::Unexpected => "unexpected response from auth_query",
            Trouble::BadPacket => "bad packet",
        })
    }
}

/// Asks the question.
pub fn ask(ring: &mut Ring, query: &str, user: &str) -> Result<(), Full> {
    let start = ring.filled();
    let whole = (|| {
        emit::message(ring, Some(b'P'), |body| {
            body.text(b"");
            body.text(query.as_bytes());
            body.bytes(&[0, 0]);
        })?;
        let name_bytes = i32::try_from(user.len()).map_err(|_| Full)?;
        emit::message(ring, Some(b'B'), |body| {
            body.text(b"");
            body.text(b"");
            // No formats given: everything is text. One parameter, and results as text.
            body.bytes(&[0, 0, 0, 1]);
            body.int(name_bytes);
            body.bytes(user.as_bytes());
            body.bytes(&[0, 0]);
        })?;
        emit::message(ring, Some(b'D'), |body| body.bytes(b"P\0"))?;
        emit::message(ring, Some(b'E'), |body| {
            body.text(b"");
            body.int(0);
        })?;
        emit::message(ring, Some(b'S'), |_| {})
    })();
    whole.inspect_err(|Full| ring.unfill(start))
}

/// Whom we have asked about, and what was said so far.
#[derive(Debug)]
pub struct Asked {
    phase: Phase,
    row: Option<Account>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The session is put back to how it began (`DISCARD ALL`). Leaves to `Answering`.
    Cleaning,
    /// The answer itself.
    Answering,
}

/// What a message of the answer leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// More is to come.
    Wait,
    /// That was all; `None`: there is no such user.
    Done(Option<Account>),
}

impl Asked {
    /// Before its first message. `cleans`: a `DISCARD ALL` is answered first.
    pub fn new(cleans: bool) -> Self {
        let phase = if cleans { Phase::Cleaning } else { Phase::Answering };
        Self { phase, row: None }
    }

    /// Whether the answer to `DISCARD ALL` is still to come.
    pub fn is_cleaning(&self) -> bool {
        self.phase == Phase::Cleaning
    }

    /// Takes the next message: its tag, and its body.
    pub fn step(&mut self, tag: u8, body: &[u8]) -> Result<Next, Trouble> {
        match (self.phase, tag) {
            (Phase::Cleaning, b'C' | b'N' | b'A' | b'S') => Ok(Next::Wait),
            (Phase::Cleaning, b'Z') if body == b"I" => {
                self.phase = Phase::Answering;
                Ok(Next::Wait)
            }
            (_, b'E') => Err(Trouble::Error(ErrorFields::parse(body))),
            (Phase::Cleaning, _) => Err(Trouble::Unexpected),
            (Phase::Answering, tag) => self.answer(tag, body),
        }
    }

    fn answer(&mut self, tag: u8, body: &[u8]) -> Result<Next, Trouble> {
        match tag {
            b'T' => {
                let count = u16::from_be_bytes(*body.first_chunk().ok_or(Trouble::BadPacket)?);
                (count == 2).then_some(Next::Wait).ok_or(Trouble::Columns(count))
            }
            b'n' => Err(Trouble::Columns(0)),
            b'D' => {
                // As PgBouncer: the last row counts.
                self.row = Some(account(body)?);
                Ok(Next::Wait)
            }
            b'1' | b'2' | b'C' | b'N' | b'A' | b'S' => Ok(Next::Wait),
            b'Z' => match backend::ready_for_query(body) {
                Some(TxStatus::Idle) => Ok(Next::Done(self.row.take())),
                // A query that leaves a transaction open would be the next client's trouble.
                Some(_) => Err(Trouble::Unexpected),
                None => Err(Trouble::BadPacket),
            },
            _ => Err(Trouble::Unexpected),
        }
    }
}

fn account(mut body: &[u8]) -> Result<Account, Trouble> {
    let count: [u8; 2] = take(&mut body).ok_or(Trouble::BadPacket)?;
    if u16::from_be_bytes(count) != 2 {
        return Err(Trouble::Columns(u16::from_be_bytes(count)));
    }
    let name = column(&mut body).ok_or(Trouble::BadPacket)?;
    let secret = column(&mut body).filter(|_| body.is_empty()).ok_or(Trouble::BadPacket)?;
    let name = name.filter(|name| !name.is_empty()).ok_or(Trouble::NullName)?;
    let name = std::str::from_utf8(name).map_err(|_| Trouble::BadName)?;
    let secret = secret.filter(|secret| !secret.is_empty());
    Ok(Account {
        user: cut(name, USER_NAME_BYTES).to_string(),
        secret: secret.map(|secret| Secret::new(&secret[..secret.len().min(SECRET_BYTES)])),
    })
}

/// The first `bytes` of a name, less if that would cut a character in two.
fn cut(name: &str, bytes: usize) -> &str {
    &name[..name.floor_char_boundary(bytes)]
}

/// The next column: `Some(None)` is NULL.
fn column<'a>(body: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = i32::from_be_bytes(take(body)?);
    if length == -1 {
        return Some(None);
    }
    let (value, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
    *body = rest;
    Some(Some(value))
}

fn take<const N: usize>(body: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = body.split_first_chunk()?;
    *body = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(columns: &[Option<&[u8]>]) -> Vec<u8> {
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for column in columns {
            match column {
                Some(bytes) => {
                    body.extend((bytes.len() as i32).to_be_bytes());
                    body.extend(*bytes);
                }
                None => body.extend((-1i32).to_be_bytes()),
            }
        }
        body
    }

    fn play(messages: &[(u8, Vec<u8>)]) -> Result<Next, Trouble> {
        play_on(Asked::new(false), messages)
    }

    fn play_on(mut asked: Asked, messages: &[(u8, Vec<u8>)]) -> Result<Next, Trouble> {
        let mut last = Ok(Next::Wait);
        for (tag, body) in messages {
            last = Ok(asked.step(*tag, body)?);
        }
        last
    }

    fn answer(row: Vec<u8>) -> Vec<(u8, Vec<u8>)> {
        let head = [(b'1', vec![]), (b'2', vec![]), (b'T', vec![0, 2])];
        let tail = [(b'D', row), (b'C', b"SELECT 1\0".to_vec()), (b'Z', b"I".to_vec())];
        head.into_iter().chain(tail).collect()
    }

    fn account(user: &str, secret: Option<&[u8]>) -> Result<Next, Trouble> {
        let secret = secret.map(Secret::new);
        Ok(Next::Done(Some(Account { user: user.to_string(), secret })))
    }

    #[test]
    fn the_answer_is_read() {
        let read = |columns: &[Option<&[u8]>]| play(&answer(row(columns)));
        assert_eq!(read(&[Some(b"u"), Some(b"p")]), account("u", Some(b"p")));
        // D1: NULL and nothing are no passwords.
        assert_eq!(read(&[Some(b"u"), None]), account("u", None));
        assert_eq!(read(&[Some(b"u"), Some(b"")]), account("u", None));
        assert_eq!(read(&[None, Some(b"p")]), Err(Trouble::NullName));
        assert_eq!(read(&[Some(b""), Some(b"p")]), Err(Trouble::NullName));
        assert_eq!(read(&[Some(b"\xff"), Some(b"p")]), Err(Trouble::BadName));
        assert_eq!(read(&[Some(b"u")]), Err(Trouble::Columns(1)));
        assert_eq!(read(&[None, None, None]), Err(Trouble::Columns(3)));
        let long = [b'x'; 70_000];
        assert_eq!(
            read(&[Some(&long[..200]), Some(&long)]),
            account(&"x".repeat(127), Some(&long[..65530]))
        );
        let nobody = [(b'T', vec![0, 2]), (b'C', vec![]), (b'Z', b"I".to_vec())];
        assert_eq!(play(&nobody), Ok(Next::Done(None)));
        assert_eq!(play(&[(b'n', vec![])]), Err(Trouble::Columns(0)));
        assert_eq!(play(&[(b'T', vec![0, 3])]), Err(Trouble::Columns(3)));
        assert_eq!(play(&[(b'Z', b"T".to_vec())]), Err(Trouble::Unexpected));
        assert_eq!(play(&[(b'G', vec![])]), Err(Trouble::Unexpected));
        let error = Trouble::Error(ErrorFields::default());
        assert_eq!(play(&[(b'E', vec![])]), Err(error));
    }

    #[test]
    fn a_session_is_cleaned_before_the_answer() {
        let clean = [(b'S', b"a\0b\0".to_vec()), (b'C', vec![]), (b'Z', b"I".to_vec())];
        let all: Vec<_> = clean.into_iter().chain(answer(row(&[Some(b"u"), Some(b"p")]))).collect();
        assert_eq!(play_on(Asked::new(true), &all), account("u", Some(b"p")));
        // Nothing but its end is an end: a row before it is somebody else's.
        let early = answer(row(&[Some(b"u"), Some(b"p")]));
        assert_eq!(play_on(Asked::new(true), &early), Err(Trouble::Unexpected));
        let failed = [(b'E', vec![])];
        let error = Err(Trouble::Error(ErrorFields::default()));
        assert_eq!(play_on(Asked::new(true), &failed), error);
        assert_eq!(play_on(Asked::new(true), &[(b'Z', b"T".to_vec())]), Err(Trouble::Unexpected));
    }

    /// Reliability 9: a name is a parameter, whatever it looks like.
    #[test]
    fn the_question_binds_the_name() {
        let mut ring = Ring::new(256);
        let name = "x'; DROP TABLE users; --";
        ask(&mut ring, "SELECT $1", name).unwrap();
        let bytes = ring.copy(0, ring.filled());
        let expected = [
            &b"P\0\0\0\x11\0SELECT $1\0\0\0"[..],
            b"B\0\0\0\x28\0\0\0\0\0\x01\0\0\0\x18",
            name.as_bytes(),
            b"\0\0D\0\0\0\x06P\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04",
        ];
        assert_eq!(bytes, expected.concat());
        let mut small = Ring::new(32);
        assert_eq!(ask(&mut small, "SELECT $1", name), Err(Full));
        assert!(small.is_empty());
    }

    proptest! {
        #[test]
        fn noise_never_panics(
            messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8)
        ) {
            let _ = play(&messages);
        }

        #[test]
        fn a_row_cut_anywhere_is_broken(cut in 0usize..20) {
            let whole = row(&[Some(b"user"), Some(b"password")]);
            let cut = whole[..cut.min(whole.len() - 1)].to_vec();
            prop_assert_eq!(play(&answer(cut)), Err(Trouble::BadPacket));
        }
    }
}
