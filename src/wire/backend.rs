//! What a server's messages ask of us, and views of the few whose content matters.

use crate::wire::frame::{RelayTags, relay_tags};
use crate::wire::sqlstate::SqlState;

/// Messages of a linked server that are passed on without a look: rows, COPY data and its end,
/// parameter descriptions, function results, notices.
pub const RELAY: RelayTags = relay_tags(b"DdctVN");

/// A message of a server that has logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Belongs to [`RELAY`].
    Plain,
    /// ParseComplete, BindComplete, CloseComplete, RowDescription, NoData, CommandComplete,
    /// EmptyQueryResponse or PortalSuspended: may settle a request.
    Reply(Reply),
    /// ReadyForQuery.
    ReadyForQuery,
    /// ErrorResponse.
    Error,
    /// NotificationResponse.
    Notification,
    /// ParameterStatus.
    ParameterStatus,
    /// CopyInResponse or CopyBothResponse: the client may send CopyData now.
    CopyIn,
    /// CopyOutResponse.
    CopyOut,
    /// Anything else.
    Unknown,
}

/// A reply that may settle the oldest request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// CloseComplete.
    Close,
    /// RowDescription or NoData.
    Describe,
    /// CommandComplete: also ends a COPY.
    Command,
    /// EmptyQueryResponse or PortalSuspended.
    Execute,
}

/// Classifies a type byte.
pub fn classify(tag: u8) -> Message {
    match tag {
        b'1' => Message::Reply(Reply::Parse),
        b'2' => Message::Reply(Reply::Bind),
        b'3' => Message::Reply(Reply::Close),
        b'T' | b'n' => Message::Reply(Reply::Describe),
        b'C' => Message::Reply(Reply::Command),
        b'I' | b's' => Message::Reply(Reply::Execute),
        b'Z' => Message::ReadyForQuery,
        b'E' => Message::Error,
        b'A' => Message::Notification,
        b'S' => Message::ParameterStatus,
        b'G' | b'W' => Message::CopyIn,
        b'H' => Message::CopyOut,
        tag if RELAY[tag as usize] => Message::Plain,
        _ => Message::Unknown,
    }
}

/// What a CommandComplete says after a command that forgets all prepared statements.
pub const FORGETTING_TAGS: [&[u8]; 2] = [b"DISCARD ALL\0", b"DEALLOCATE ALL\0"];

/// Whether this is the body of such a CommandComplete.
pub fn forgets_statements(body: &[u8]) -> bool {
    FORGETTING_TAGS.contains(&body)
}

/// The transaction status in a ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxStatus {
    /// `I`
    Idle,
    /// `T`
    InTransaction,
    /// `E`
    Failed,
}

/// The body of a ReadyForQuery.
pub fn ready_for_query(body: &[u8]) -> Option<TxStatus> {
    match body {
        b"I" => Some(TxStatus::Idle),
        b"T" => Some(TxStatus::InTransaction),
        b"E" => Some(TxStatus::Failed),
        _ => None,
    }
}

/// Takes the text up to the next NUL, and the NUL, off the front of `rest`.
pub fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == 0)?;
    let (text, after) = rest.split_at(end);
    *rest = &after[1..];
    Some(text)
}

/// Name and value in the body of a ParameterStatus.
pub fn parameter_status(mut body: &[u8]) -> Option<(&[u8], &[u8])> {
    let name = take_text(&mut body)?;
    let value = take_text(&mut body)?;
    body.is_empty().then_some((name, value))
}

/// What we use of an ErrorResponse. Every field may be missing (reliability 3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorFields {
    /// `S`
    pub severity: Option<String>,
    /// `V`: the server has nothing more to say.
    pub is_last_word: bool,
    /// `C`, if it has five characters as it must.
    pub code: Option<SqlState>,
    /// `M`
    pub message: Option<String>,
}

impl ErrorFields {
    /// Reads as many fields as there are.
    pub fn parse(mut body: &[u8]) -> Self {
        let mut fields = Self::default();
        while let Some((&kind, rest)) = body.split_first() {
            body = rest;
            let Some(text) = take_text(&mut body).filter(|_| kind != 0) else {
                break;
            };
            let words = || Some(String::from_utf8_lossy(text).into_owned());
            match kind {
                b'S' => fields.severity = words(),
                b'V' => fields.is_last_word = matches!(text, b"FATAL" | b"PANIC"),
                b'C' => fields.code = text.try_into().ok(),
                b'M' => fields.message = words(),
                _ => {}
            }
        }
        fields
    }
}

impl ErrorFields {
    /// `<severity>: <message>`, as other log lines show it.
    pub fn with_colon(&self) -> String {
        let or_unknown = |field: &Option<String>| field.clone().unwrap_or_else(|| "?".to_string());
        format!("{}: {}", or_unknown(&self.severity), or_unknown(&self.message))
    }
}

impl std::fmt::Display for ErrorFields {
    /// `<severity> <message>`, as log lines show a server's error.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = self.severity.as_deref().unwrap_or("?");
        write!(f, "{severity} {}", self.message.as_deref().unwrap_or("?"))
    }
}

/// What a server asks for in an Authentication message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// 0: the login is accepted.
    Ok,
    /// 3: the password as it is.
    CleartextPassword,
    /// 5: the password digested with this salt.
    Md5Password([u8; 4]),
    /// 10: one of these mechanisms, each with a NUL, and another NUL.
    Sasl(&'a [u8]),
    /// 11: the exchange goes on.
    SaslContinue(&'a [u8]),
    /// 12: the exchange ends.
    SaslFinal(&'a [u8]),
    /// Some other method, by its number.
    Other(u32),
}

/// The body of an Authentication message. `None`: it is none.
pub fn authentication(body: &[u8]) -> Option<Authentication<'_>> {
    let (method, rest) = body.split_first_chunk()?;
    let request = match u32::from_be_bytes(*method) {
        0 => Authentication::Ok,
        3 => Authentication::CleartextPassword,
        5 => return Some(Authentication::Md5Password(rest.try_into().ok()?)),
        10 => return Some(Authentication::Sasl(rest)),
        11 => return Some(Authentication::SaslContinue(rest)),
        12 => return Some(Authentication::SaslFinal(rest)),
        other => return Some(Authentication::Other(other)),
    };
    rest.is_empty().then_some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_status_needs_both_texts() {
        assert_eq!(parameter_status(b"a\0b\0"), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(parameter_status(b"a\0\0"), Some((&b"a"[..], &b""[..])));
        for broken in [&b""[..], b"a", b"a\0", b"a\0b", b"a\0b\0c"] {
            assert_eq!(parameter_status(broken), None, "{broken:?}");
        }
    }

    /// Reliability 3: an ErrorResponse without SQLSTATE, or without anything, is still read.
    #[test]
    fn every_field_of_an_error_is_optional() {
        let full = ErrorFields::parse(b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0");
        assert_eq!(full.to_string(), "FATAL bye");
        assert_eq!(full.code, Some(*b"57P01"));
        let body = b"SFATAL\0C57P01\0Mbye\0\0";
        for cut in 0..body.len() {
            ErrorFields::parse(&body[..cut]);
        }
        assert_eq!(ErrorFields::parse(b"Cxx\0\0"), ErrorFields::default());
        assert_eq!(ErrorFields::parse(b""), ErrorFields::default());
    }

    #[test]
    fn requests_for_authentication_are_told_apart() {
        let body = |method: u32, rest: &[u8]| [&method.to_be_bytes()[..], rest].concat();
        for (method, rest, expected) in [
            (0, &b""[..], Some(Authentication::Ok)),
            (0, b"x", None),
            (3, b"", Some(Authentication::CleartextPassword)),
            (5, b"salt", Some(Authentication::Md5Password(*b"salt"))),
            (5, b"sal", None),
            (5, b"salty", None),
            (10, b"A\0\0", Some(Authentication::Sasl(b"A\0\0"))),
            (11, b"r", Some(Authentication::SaslContinue(b"r"))),
            (12, b"v", Some(Authentication::SaslFinal(b"v"))),
            (7, b"x", Some(Authentication::Other(7))),
        ] {
            assert_eq!(authentication(&body(method, rest)), expected, "{method}");
        }
        assert_eq!(authentication(b"\0\0\0"), None);
    }

    #[test]
    fn every_tag_has_one_class() {
        for tag in 0..=255u8 {
            assert_eq!(classify(tag) == Message::Plain, RELAY[tag as usize], "{}", tag as char);
        }
    }
}
