//! The untagged first packets of a client, and the parameters in its Startup.

use crate::ring::{Position, Ring};
use crate::wire::backend::take_text;
use std::ops::RangeInclusive;

/// Code of an SSLRequest.
pub const SSL_REQUEST: u32 = 80_877_103;
/// The answer to an SSLRequest: we do.
pub const SSL_YES: &[u8] = b"S";
/// Code of a GSSENCRequest.
pub const GSSENC_REQUEST: u32 = 80_877_104;
/// Code of a CancelRequest.
pub const CANCEL_REQUEST: u32 = 80_877_102;
/// Protocol 3.0.
pub const PROTOCOL_3: u32 = 0x3_0000;
/// From this one on keys for CancelRequests are longer.
pub const LONGER_KEYS_SINCE: u16 = 2;
/// Length word and code.
pub const HEADER_BYTES: u64 = 8;
/// The longest untagged packet.
pub const MAX_BYTES: u32 = 65_535;
/// The shortest and the longest CancelRequest: with a process id and a key of 4 to 256 bytes.
pub const CANCEL_BYTES: RangeInclusive<u64> = HEADER_BYTES + 8..=HEADER_BYTES + 260;

/// What a connection that has not logged in sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Too few bytes to tell.
    NeedMore,
    /// No packet looks like this.
    Bad,
    /// "Do you speak TLS?"
    SslRequest,
    /// "Do you speak GSSAPI encryption?"
    GssEncRequest,
    /// "Stop the query of the client with this key"; so many bytes, header included.
    CancelRequest(u64),
    /// A Startup of protocol 2.
    OldStartup,
    /// A Startup of protocol 3.
    Startup {
        /// Its minor version.
        minor: u16,
        /// The whole packet.
        bytes: u64,
    },
    /// A message with a type byte, which has no place here.
    Tagged(u8),
}

/// Looks at what stands at `at`. An untagged packet begins with its length, and is shorter than
/// 2²⁴ bytes; so a first byte other than 0 is a type byte.
pub fn peek(ring: &Ring, at: Position, max_packet_bytes: u32) -> First {
    match ring.array::<1>(at) {
        None => return First::NeedMore,
        Some([0]) => {}
        Some([tag]) => return tagged(ring, at, tag, max_packet_bytes),
    }
    let Some([a, b, c, d, code @ ..]) = ring.array::<8>(at) else {
        return First::NeedMore;
    };
    let bytes = u32::from_be_bytes([a, b, c, d]);
    if bytes > MAX_BYTES.min(max_packet_bytes) || u64::from(bytes) < HEADER_BYTES {
        return First::Bad;
    }
    match u32::from_be_bytes(code) {
        SSL_REQUEST if bytes == 8 => First::SslRequest,
        GSSENC_REQUEST if bytes == 8 => First::GssEncRequest,
        CANCEL_REQUEST => First::CancelRequest(u64::from(bytes)),
        0x2_0000 => First::OldStartup,
        code @ 0x3_0000..=0x3_ffff => {
            First::Startup { minor: (code & 0xffff) as u16, bytes: u64::from(bytes) }
        }
        _ => First::Bad,
    }
}

fn tagged(ring: &Ring, at: Position, tag: u8, max_packet_bytes: u32) -> First {
    match super::frame::peek(ring, at, max_packet_bytes) {
        super::frame::Peek::NeedMore => First::NeedMore,
        super::frame::Peek::Header(_) => First::Tagged(tag),
        super::frame::Peek::Bad => First::Bad,
    }
}

/// The parameters of a Startup, in the order of the packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameters<'a> {
    /// Name and value.
    pub pairs: Vec<(&'a [u8], &'a [u8])>,
    /// Whether the list ended as it must: with one NUL, the last byte of the packet.
    pub well_formed: bool,
}

/// Reads what follows the header of a Startup.
pub fn parameters(mut body: &[u8]) -> Parameters<'_> {
    let mut pairs = Vec::new();
    loop {
        match take_text(&mut body) {
            None => {
                return Parameters { pairs, well_formed: false };
            }
            Some([]) => {
                return Parameters { pairs, well_formed: body.is_empty() };
            }
            Some(name) => match take_text(&mut body) {
                None => {
                    return Parameters { pairs, well_formed: false };
                }
                Some(value) => pairs.push((name, value)),
            },
        }
    }
}

/// Reads the parameter `options`: a list of `-c name=value` and `--name=value`, in which a
/// backslash takes the next character as it is. `None`: something else was in it.
///
/// As PgBouncer: only the space separates arguments, while any white space ends one; so a tab
/// between two of them, and a trailing space, are errors.
pub fn options(text: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut settings = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        rest = skip_spaces(rest);
        rest = match rest {
            [b'-', b'c', value @ ..] => skip_spaces(value),
            [b'-', b'-', value @ ..] => value,
            _ => return None,
        };
        let (argument, after) = unescape(rest);
        let equals = argument.iter().position(|byte| *byte == b'=')?;
        settings.push((argument[..equals].to_vec(), argument[equals + 1..].to_vec()));
        rest = after;
    }
    Some(settings)
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|byte| **byte == b' ').count();
    &text[spaces..]
}

fn unescape(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut argument = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'\\' => {
                argument.extend(text.get(at));
                at = (at + 1).min(text.len());
            }
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => return (argument, &text[at - 1..]),
            _ => argument.push(byte),
        }
    }
    (argument, &[])
}

/// The minor version that is spoken with a client that asks for this one, where `newest` is the
/// newest that we speak: 0 or 2, as there never was a 3.1.
pub fn spoken_minor(asked: u16, newest: u16) -> u16 {
    if asked < newest { 0 } else { newest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(bytes: &[u8]) -> First {
        let mut ring = Ring::new(64);
        assert!(ring.push(bytes));
        peek(&ring, 0, i32::MAX as u32)
    }

    #[test]
    fn first_packets_are_told_apart() {
        let untagged = |bytes: u32, code: u32| {
            let mut packet = bytes.to_be_bytes().to_vec();
            packet.extend(code.to_be_bytes());
            first(&packet)
        };
        for (bytes, code, expected) in [
            (8, SSL_REQUEST, First::SslRequest),
            (9, SSL_REQUEST, First::Bad),
            (8, GSSENC_REQUEST, First::GssEncRequest),
            (16, CANCEL_REQUEST, First::CancelRequest(16)),
            (12, CANCEL_REQUEST, First::CancelRequest(12)),
            (20, 0x2_0000, First::OldStartup),
            (20, 0x2_0001, First::Bad),
            (20, 0x3_0000, First::Startup { minor: 0, bytes: 20 }),
            (65_535, 0x3_ffff, First::Startup { minor: 65_535, bytes: 65_535 }),
            (65_536, 0x3_0000, First::Bad),
            (29, 0x4_0000, First::Bad),
            (7, 0x3_0000, First::Bad),
            (0, 0x3_0000, First::Bad),
        ] {
            assert_eq!(untagged(bytes, code), expected, "{bytes} {code:#x}");
        }
        assert_eq!(first(b"p\0\0\0\x05\0"), First::Tagged(b'p'));
        assert_eq!(first(b"GET / HTTP/1.1"), First::Tagged(b'G'));
        assert_eq!(first(b"Q\0\0\0\x03"), First::Bad);
    }

    #[test]
    fn a_first_packet_cut_anywhere_waits() {
        let packet = [0, 0, 0, 8, 4, 210, 22, 47];
        for cut in 0..packet.len() {
            assert_eq!(first(&packet[..cut]), First::NeedMore, "cut at {cut}");
        }
        assert_eq!(first(&packet), First::SslRequest);
        assert_eq!(first(b"p\0\0\0"), First::NeedMore);
    }

    #[test]
    fn there_are_two_minor_versions() {
        assert_eq!([0, 1, 2, 3, u16::MAX].map(|asked| spoken_minor(asked, 2)), [0, 0, 2, 2, 2]);
        assert_eq!([0, 1, 2, 3, u16::MAX].map(|asked| spoken_minor(asked, 0)), [0; 5]);
    }

    #[test]
    fn parameters_end_with_the_last_byte() {
        let good = parameters(b"user\0u1\0database\0\0\0");
        assert_eq!(good.pairs, [(&b"user"[..], &b"u1"[..]), (b"database", b"")]);
        assert!(good.well_formed);
        assert!(parameters(b"\0").well_formed);
        for broken in [&b""[..], b"user", b"user\0u1", b"user\0u1\0", b"user\0u1\0\0x"] {
            assert!(!parameters(broken).well_formed, "{broken:?}");
        }
    }

    #[test]
    fn options_are_read_as_the_contract_says() {
        let read = |text: &str| {
            options(text.as_bytes()).map(|list| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                list.iter().map(|(n, v)| format!("{}={}", text(n), text(v))).collect::<Vec<_>>()
            })
        };
        let some = |list: &[&str]| Some(list.iter().map(ToString::to_string).collect::<Vec<_>>());
        for (text, expected) in [
            ("", some(&[])),
            ("-c a=b", some(&["a=b"])),
            ("-ca=b  --c=d=e", some(&["a=b", "c=d=e"])),
            (r"-c a=b\ c\\", some(&[r"a=b c\"])),
            (r"-c a=b\", some(&["a=b"])),
            ("-c a=b ", None),
            (" ", None),
            ("-c a=b\t-c c=d", None),
            ("-c ab", None),
            ("-d", None),
            ("--", None),
            ("  -c a=", some(&["a="])),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
    }
}
