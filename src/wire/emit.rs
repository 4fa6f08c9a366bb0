//! Writes the messages that are our own into a ring.
//!
//! Each function writes one whole message, or nothing and says [`Full`].

use crate::ring::Ring;
use crate::wire::backend::TxStatus;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup;

/// The message did not fit into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Writes one message: the tag (none for a first packet), a length, what `write` adds.
pub fn message(
    ring: &mut Ring,
    tag: Option<u8>,
    write: impl FnOnce(&mut Body),
) -> Result<(), Full> {
    let start = ring.filled();
    let mut body = Body { ring, fits: true };
    match tag {
        Some(tag) => body.bytes(&[tag, 0, 0, 0, 0]),
        None => body.int(0),
    }
    let length_at = start + u64::from(tag.is_some());
    write(&mut body);
    if !body.fits {
        ring.unfill(start);
        return Err(Full);
    }
    let length = i32::try_from(ring.filled() - length_at).map_err(|_| Full)?;
    ring.patch(length_at, &length.to_be_bytes());
    Ok(())
}

/// As [`message`], of a message whose last `rest_bytes` are sent from somewhere else.
pub fn message_head(
    ring: &mut Ring,
    tag: u8,
    rest_bytes: usize,
    write: impl FnOnce(&mut Body),
) -> Result<(), Full> {
    let length_at = ring.filled() + 1;
    message(ring, Some(tag), write)?;
    let written = usize::try_from(ring.filled() - length_at).map_err(|_| Full)?;
    let length = written.checked_add(rest_bytes).and_then(|length| i32::try_from(length).ok());
    // Longer than a message can be: the caller has read its length from one.
    ring.patch(length_at, &length.ok_or(Full)?.to_be_bytes());
    Ok(())
}

/// The body of a message on its way into the ring.
pub struct Body<'a> {
    ring: &'a mut Ring,
    fits: bool,
}

impl Body<'_> {
    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.fits = self.fits && self.ring.push(bytes);
    }

    /// A text and its NUL.
    pub fn text(&mut self, text: &[u8]) {
        self.bytes(text);
        self.bytes(b"\0");
    }

    /// An Int32.
    pub fn int(&mut self, number: i32) {
        self.bytes(&number.to_be_bytes());
    }
}

/// Severity of an ErrorResponse or NoticeResponse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The connection is closed after it.
    Fatal,
    /// Just a word.
    Notice,
}

/// ErrorResponse with exactly the fields `S`, `C` and `M`.
pub fn fatal(ring: &mut Ring, code: SqlState, text: &[u8]) -> Result<(), Full> {
    report(ring, b'E', b"FATAL", code, text)
}

/// ErrorResponse of the same fields, to a client that keeps its connection.
pub fn error(ring: &mut Ring, code: SqlState, text: &[u8]) -> Result<(), Full> {
    report(ring, b'E', b"ERROR", code, text)
}

/// NoticeResponse with exactly the fields `S`, `C` and `M`.
pub fn notice(ring: &mut Ring, text: &[u8]) -> Result<(), Full> {
    report(ring, b'N', b"NOTICE", *b"00000", text)
}

fn report(
    ring: &mut Ring,
    tag: u8,
    severity: &[u8],
    code: SqlState,
    text: &[u8],
) -> Result<(), Full> {
    message(ring, Some(tag), |body| {
        body.bytes(b"S");
        body.text(severity);
        body.bytes(b"C");
        body.text(&code);
        body.bytes(b"M");
        body.text(text);
        body.bytes(b"\0");
    })
}

/// SSLRequest.
pub fn ssl_request(ring: &mut Ring) -> Result<(), Full> {
    message(ring, None, |body| body.int(startup::SSL_REQUEST as i32))
}

/// AuthenticationOk.
pub fn authentication_ok(ring: &mut Ring) -> Result<(), Full> {
    message(ring, Some(b'R'), |body| body.int(0))
}

/// Any other Authentication message: its code and what follows.
pub fn authentication(ring: &mut Ring, body: &[u8]) -> Result<(), Full> {
    message(ring, Some(b'R'), |written| written.bytes(body))
}

/// ParameterStatus.
pub fn parameter_status(ring: &mut Ring, name: &[u8], value: &[u8]) -> Result<(), Full> {
    message(ring, Some(b'S'), |body| {
        body.text(name);
        body.text(value);
    })
}

/// BackendKeyData: the process id, and a key of which the rest is empty before protocol 3.2.
pub fn backend_key_data(ring: &mut Ring, key: &[u8], rest: &[u8]) -> Result<(), Full> {
    message(ring, Some(b'K'), |body| {
        body.bytes(key);
        body.bytes(rest);
    })
}

/// ReadyForQuery.
pub fn ready_for_query(ring: &mut Ring, status: TxStatus) -> Result<(), Full> {
    message(ring, Some(b'Z'), |body| {
        body.bytes(match status {
            TxStatus::Idle => b"I",
            TxStatus::InTransaction => b"T",
            TxStatus::Failed => b"E",
        });
    })
}

/// NegotiateProtocolVersion: we speak this minor version of protocol 3 and none of these options.
pub fn negotiate_protocol_version(
    ring: &mut Ring,
    minor: u16,
    options: &[&[u8]],
) -> Result<(), Full> {
    message(ring, Some(b'v'), |body| {
        body.int((startup::PROTOCOL_3 | u32::from(minor)) as i32);
        body.int(i32::try_from(options.len()).expect("fewer options than bytes in a Startup"));
        for option in options {
            body.text(option);
        }
    })
}

/// Query.
pub fn query(ring: &mut Ring, sql: &[u8]) -> Result<(), Full> {
    message(ring, Some(b'Q'), |body| body.text(sql))
}

/// Close of a prepared statement.
pub fn close_statement(ring: &mut Ring, name: &[u8]) -> Result<(), Full> {
    message(ring, Some(b'C'), |body| {
        body.bytes(b"S");
        body.text(name);
    })
}

/// Sync.
pub fn sync(ring: &mut Ring) -> Result<(), Full> {
    message(ring, Some(b'S'), |_| {})
}

/// Flush.
pub fn flush(ring: &mut Ring) -> Result<(), Full> {
    message(ring, Some(b'H'), |_| {})
}

/// A statement without parameters, by Parse, Bind and Execute.
pub fn unnamed_statement(ring: &mut Ring, sql: &[u8]) -> Result<(), Full> {
    message(ring, Some(b'P'), |body| {
        body.text(b"");
        body.text(sql);
        body.bytes(&[0, 0]);
    })?;
    message(ring, Some(b'B'), |body| body.bytes(&[0; 8]))?;
    message(ring, Some(b'E'), |body| {
        body.text(b"");
        body.int(0);
    })
}

/// CopyFail.
pub fn copy_fail(ring: &mut Ring, why: &[u8]) -> Result<(), Full> {
    message(ring, Some(b'f'), |body| body.text(why))
}

/// So many bytes that mean nothing, in the middle of a message.
pub fn padding(ring: &mut Ring, bytes: usize) -> Result<(), Full> {
    ring.push(&vec![0; bytes]).then_some(()).ok_or(Full)
}

/// Terminate.
pub fn terminate(ring: &mut Ring) -> Result<(), Full> {
    message(ring, Some(b'X'), |_| {})
}

/// StartupMessage of protocol 3.0.
pub fn startup<'a>(
    ring: &mut Ring,
    parameters: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<(), Full> {
    message(ring, None, |body| {
        body.int(startup::PROTOCOL_3 as i32);
        for (name, value) in parameters {
            body.text(name.as_bytes());
            body.text(value);
        }
        body.bytes(b"\0");
    })
}

/// CancelRequest.
pub fn cancel_request(ring: &mut Ring, key: &[u8]) -> Result<(), Full> {
    message(ring, None, |body| {
        body.int(startup::CANCEL_REQUEST as i32);
        body.bytes(key);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Ring) -> Result<(), Full>) -> Vec<u8> {
        let mut ring = Ring::new(256);
        write(&mut ring).unwrap();
        ring.copy(0, ring.filled())
    }

    #[test]
    fn messages_are_as_the_protocol_lays_them_out() {
        assert_eq!(written(authentication_ok), b"R\0\0\0\x08\0\0\0\0");
        assert_eq!(written(terminate), b"X\0\0\0\x04");
        assert_eq!(written(|ring| ready_for_query(ring, TxStatus::Idle)), b"Z\0\0\0\x05I");
        assert_eq!(written(|ring| query(ring, b"x")), b"Q\0\0\0\x06x\0");
        assert_eq!(
            written(|ring| fatal(ring, *b"08P01", b"bad packet")),
            b"E\0\0\0\x22SFATAL\0C08P01\0Mbad packet\0\0"[..].replace_length()
        );
        assert_eq!(
            written(|ring| negotiate_protocol_version(ring, 0, &[b"_pq_.foo"])),
            b"v\0\0\0\x15\0\x03\0\0\0\0\0\x01_pq_.foo\0"
        );
        assert_eq!(
            written(|ring| negotiate_protocol_version(ring, 2, &[])),
            b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0"
        );
        assert_eq!(
            written(|ring| backend_key_data(ring, b"12345678", b"9")),
            b"K\0\0\0\x0d123456789"
        );
        let parameters = [("database", "d"), ("user", "u")];
        assert_eq!(
            written(|ring| startup(
                ring,
                parameters.map(|(name, value)| (name, value.as_bytes())).into_iter()
            )),
            b"\0\0\0\x1b\0\x03\0\0database\0d\0user\0u\0\0"
        );
        assert_eq!(
            written(|ring| cancel_request(ring, &[1; 8])),
            [0, 0, 0, 16, 4, 210, 22, 46, 1, 1, 1, 1, 1, 1, 1, 1]
        );
    }

    trait ReplaceLength {
        fn replace_length(&self) -> Vec<u8>;
    }

    impl ReplaceLength for [u8] {
        fn replace_length(&self) -> Vec<u8> {
            let mut bytes = self.to_vec();
            let length = (bytes.len() - 1) as u32;
            bytes[1..5].copy_from_slice(&length.to_be_bytes());
            bytes
        }
    }

    #[test]
    fn a_message_that_does_not_fit_leaves_nothing_behind() {
        for room in 0..26 {
            let mut ring = Ring::new(32);
            assert!(ring.push(&vec![0; 32 - room]));
            let before = ring.filled();
            let result = fatal(&mut ring, *b"08P01", b"text");
            assert_eq!(result, Err(Full), "{room} bytes of room");
            assert_eq!(ring.filled(), before);
        }
    }
}
