//! What a client's messages ask of us.

use crate::wire::backend::take_text;
use crate::wire::frame::{RelayTags, relay_tags};

/// Messages of a linked client that need no look and get no reply of their own.
pub const RELAY: RelayTags = relay_tags(b"dH");

/// A message of a client that has logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Query, FunctionCall, Parse, Bind, Describe, Close, Execute, Sync: something is owed for it.
    Request(Request),
    /// Flush: needs a server, and nothing is owed for it.
    Flush,
    /// CopyData: goes to the linked server, if there is one.
    CopyData,
    /// CopyDone or CopyFail: the client's end of a COPY.
    CopyEnd(Request),
    /// Terminate.
    Terminate,
    /// Anything else.
    Unknown,
}

/// A request for which the server owes a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Request {
    /// A simple query: any number of results, then ReadyForQuery.
    Query,
    /// A function call: its result, then ReadyForQuery.
    FunctionCall,
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// RowDescription or NoData.
    Describe,
    /// CloseComplete.
    Close,
    /// Rows, then CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// ReadyForQuery.
    Sync,
    /// Ends a COPY well.
    CopyDone,
    /// Ends a COPY badly.
    CopyFail,
}

/// Classifies a type byte.
pub fn classify(tag: u8) -> Message {
    match tag {
        b'Q' => Message::Request(Request::Query),
        b'F' => Message::Request(Request::FunctionCall),
        b'P' => Message::Request(Request::Parse),
        b'B' => Message::Request(Request::Bind),
        b'D' => Message::Request(Request::Describe),
        b'C' => Message::Request(Request::Close),
        b'E' => Message::Request(Request::Execute),
        b'S' => Message::Request(Request::Sync),
        b'H' => Message::Flush,
        b'd' => Message::CopyData,
        b'c' => Message::CopyEnd(Request::CopyDone),
        b'f' => Message::CopyEnd(Request::CopyFail),
        b'X' => Message::Terminate,
        _ => Message::Unknown,
    }
}

/// Why a message that names a prepared statement cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The name in a Parse, and what follows it. `None`: the name does not end.
pub fn parse_name(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = body;
    let name = take_text(&mut rest)?;
    Some((name, rest))
}

/// Whether what follows the name in a Parse is a query text and a list of types.
pub fn is_statement(rest: &[u8]) -> bool {
    let mut types = rest;
    let Some((count, types)) = take_text(&mut types).and_then(|_| types.split_first_chunk()) else {
        return false;
    };
    usize::try_from(i16::from_be_bytes(*count)).is_ok_and(|count| types.len() >= 4 * count)
}

/// The names of portal and statement at the start of a Bind, as far as it has come in.
pub fn bind_names(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = body;
    Some((take_text(&mut rest)?, take_text(&mut rest)?))
}

/// What a Describe or a Close is about: `S` or `P`, and a name that ends the message.
pub fn target(body: &[u8]) -> Result<(u8, &[u8]), Broken> {
    let (kind, mut rest) = body.split_first().ok_or(Broken)?;
    let name = take_text(&mut rest).ok_or(Broken)?;
    if rest.is_empty() { Ok((*kind, name)) } else { Err(Broken) }
}

/// Commands of which some forget all prepared statements.
const FORGETTING: [&[u8]; 2] = [b"DEALLOCATE", b"DISCARD"];

/// What stands farther behind in a query is not looked at.
pub const FIRST_WORDS_BYTES: usize = 64;

/// Whether a simple query that begins with this byte forgets no prepared statement: nearly all.
#[inline]
pub fn is_harmless(first: u8) -> bool {
    !matches!(first, b'D' | b'd') && !first.is_ascii_whitespace()
}

/// Whether a simple query that begins so may forget all prepared statements. `None`: too little of it
/// has come in to tell.
pub fn may_forget_statements(begin: &[u8], is_whole: bool) -> Option<bool> {
    let begin = &begin[..begin.len().min(FIRST_WORDS_BYTES)];
    let is_all = is_whole || begin.len() == FIRST_WORDS_BYTES;
    let text = begin.trim_ascii_start();
    let is_like = |command: &&[u8]| {
        let seen = text.len().min(command.len());
        text[..seen].eq_ignore_ascii_case(&command[..seen])
    };
    match FORGETTING.iter().find(|command| is_like(command)) {
        None => Some(false),
        Some(command) if text.len() >= command.len() => Some(true),
        Some(_) => is_all.then_some(false),
    }
}

/// A longer text is not looked at for the name that it deallocates.
pub const DEALLOCATE_BYTES: usize = 1024;
/// PostgreSQL cuts longer names.
const MAX_IDENTIFIER_BYTES: usize = 63;

/// The name in a query text, NUL included, that is nothing but `DEALLOCATE name` or `DEALLOCATE
/// PREPARE name`. `None`: it is something else, or PostgreSQL should say what is wrong with it.
pub fn deallocated_name(text: &[u8]) -> Option<Vec<u8>> {
    let text = blanks(text.strip_suffix(b"\0")?)?;
    let (command, text) = word(text)?;
    let (mut name, mut text) = identifier(blanks(text)?)?;
    if command != b"deallocate" {
        return None;
    }
    if name == Identifier::Word(b"prepare".to_vec())
        && let Some((second, rest)) = blanks(text).and_then(identifier)
    {
        (name, text) = (second, rest);
    }
    let mut rest = blanks(text)?;
    while let Some(behind) = rest.strip_prefix(b";") {
        rest = blanks(behind)?;
    }
    let name = match name {
        Identifier::Word(word) if word == b"all" => return None,
        Identifier::Word(name) | Identifier::Quoted(name) => name,
    };
    (rest.is_empty() && name.len() <= MAX_IDENTIFIER_BYTES).then_some(name)
}

#[derive(Debug, PartialEq, Eq)]
enum Identifier {
    /// In lower case; it may be a keyword.
    Word(Vec<u8>),
    Quoted(Vec<u8>),
}

/// A name at the start of a text, and what follows.
fn identifier(text: &[u8]) -> Option<(Identifier, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        return word(text).map(|(word, rest)| (Identifier::Word(word), rest));
    };
    let (mut name, mut rest) = (Vec::new(), quoted);
    loop {
        let end = rest.iter().position(|byte| *byte == b'"')?;
        name.extend_from_slice(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix(b"\"") {
            Some(behind) => {
                name.push(b'"');
                rest = behind;
            }
            None if name.is_empty() => return None,
            None => return Some((Identifier::Quoted(name), rest)),
        }
    }
}

/// An unquoted word at the start of a text, as PostgreSQL reads it, and what follows.
fn word(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let is_first = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_' || *byte >= 0x80;
    text.first().filter(|byte| is_first(byte))?;
    let goes_on = |byte: &u8| is_first(byte) || byte.is_ascii_digit() || *byte == b'$';
    let end = text.iter().position(|byte| !goes_on(byte)).unwrap_or(text.len());
    Some((text[..end].to_ascii_lowercase(), &text[end..]))
}

/// A text without blanks and comments at its start. `None`: a comment does not end.
fn blanks(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        text = text.trim_ascii_start();
        if let Some(comment) = text.strip_prefix(b"--") {
            let end = comment.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            text = &comment[end.unwrap_or(comment.len())..];
        } else if let Some(comment) = text.strip_prefix(b"/*") {
            text = behind_comment(comment)?;
        } else {
            return Some(text);
        }
    }
}

/// Comments of this kind may stand in one another.
fn behind_comment(mut text: &[u8]) -> Option<&[u8]> {
    let mut depth = 1;
    while depth > 0 {
        let (step, bytes) = match text {
            [b'*', b'/', ..] => (-1, 2),
            [b'/', b'*', ..] => (1, 2),
            [] => return None,
            _ => (0, 1),
        };
        depth += step;
        text = &text[bytes..];
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_only_when_they_end() {
        assert_eq!(parse_name(b"s\0SELECT\0\0\0"), Some((&b"s"[..], &b"SELECT\0\0\0"[..])));
        assert_eq!(parse_name(b"s"), None);
        assert_eq!(bind_names(b"\0s\0rest"), Some((&b""[..], &b"s"[..])));
        assert_eq!(bind_names(b"p\0s"), None);
        assert_eq!(target(b"Ss\0"), Ok((b'S', &b"s"[..])));
        for broken in [&b""[..], b"S", b"Ss", b"Ss\0x"] {
            assert_eq!(target(broken), Err(Broken));
        }
    }

    #[test]
    fn forgetting_is_seen_from_the_beginning_of_a_query() {
        let blanks = " ".repeat(FIRST_WORDS_BYTES);
        for (text, whole, in_part) in [
            ("DISCARD ALL", Some(true), Some(true)),
            (" \n deallocate all", Some(true), Some(true)),
            ("DEALLOCATE", Some(true), Some(true)),
            ("", Some(false), None),
            ("\n", Some(false), None),
            ("DEALLOC", Some(false), None),
            (" dis", Some(false), None),
            ("DISCO", Some(false), Some(false)),
            ("SELECT 1", Some(false), Some(false)),
            ("\0", Some(false), Some(false)),
            (&blanks, Some(false), Some(false)),
        ] {
            assert_eq!(may_forget_statements(text.as_bytes(), true), whole, "{text}");
            assert_eq!(may_forget_statements(text.as_bytes(), false), in_part, "{text}");
        }
    }

    #[test]
    fn a_name_is_deallocated_by_a_query_that_does_nothing_else() {
        let long = format!("DEALLOCATE {}", "n".repeat(64));
        for (text, name) in [
            ("DEALLOCATE s", Some("s")),
            ("deallocate S1$_;", Some("s1$_")),
            (" \n DEALLOCATE\tPREPARE s ; ; ", Some("s")),
            ("DEALLOCATE prepare", Some("prepare")),
            ("DEALLOCATE \"Aa \"\"b\"", Some("Aa \"b")),
            ("DEALLOCATE\"s\"", Some("s")),
            ("DEALLOCATE PREPARE\"all\"", Some("all")),
            ("DEALLOCATE/* a /* b */ c */s -- why", Some("s")),
            ("DEALLOCATE -- why\n s", Some("s")),
            ("DEALLOCATE é", Some("é")),
            ("DEALLOCATE ALL", None),
            ("DEALLOCATE PREPARE ALL", None),
            ("DEALLOCATE", None),
            ("DEALLOCATE \"\"", None),
            ("DEALLOCATE \"s", None),
            ("DEALLOCATE s /* ", None),
            ("DEALLOCATE s t", None),
            ("DEALLOCATE s; SELECT 1", None),
            ("DEALLOCATE U&\"s\"", None),
            ("DEALLOCATE 1", None),
            ("DEALLOCATES s", None),
            ("DISCARD s", None),
            (&long, None),
        ] {
            let name = name.map(|name| name.as_bytes().to_vec());
            assert_eq!(deallocated_name(format!("{text}\0").as_bytes()), name, "{text}");
            for cut in 0..text.len() {
                deallocated_name(&text.as_bytes()[..cut]);
            }
        }
    }

    #[test]
    fn a_statement_has_all_its_types() {
        for (rest, good) in [
            (&b"SELECT 1\0\0\0"[..], true),
            (b"\0\0\x01\0\0\0\x17", true),
            (b"\0\0\x01\0\0\0", false),
            (b"\0\0", false),
            (b"\0\xff\xff", false),
            (b"SELECT 1", false),
            (b"", false),
        ] {
            assert_eq!(is_statement(rest), good, "{rest:?}");
        }
    }
}
