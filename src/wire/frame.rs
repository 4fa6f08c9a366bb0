//! Where a message begins and ends: one type byte, a length word that counts itself, the body.
//!
//! A header decides what happens to a message; its body need not have come in. [`relay_run`] steps
//! from header to header over messages that are passed on without a look, which makes of a
//! thousand rows one stretch of bytes.

use crate::ring::{Position, Ring};

/// Type byte and length word.
pub const HEADER_BYTES: usize = 5;

/// The first bytes of a tagged message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub tag: u8,
    /// The whole message, type byte included.
    pub bytes: u64,
}

/// What stands at a place where a message should begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// Too few bytes to tell.
    NeedMore,
    /// A message.
    Header(Header),
    /// No message can look like this, or it is longer than `max_packet_size`.
    Bad,
}

/// Reads the header at `at`, and holds its length against the limit.
pub fn peek(ring: &Ring, at: Position, max_packet_bytes: u32) -> Peek {
    match ring.array::<HEADER_BYTES>(at) {
        None => Peek::NeedMore,
        Some(header) => parse(header, max_packet_bytes),
    }
}

#[inline]
fn parse([tag, a, b, c, d]: [u8; HEADER_BYTES], max_packet_bytes: u32) -> Peek {
    let length = u32::from_be_bytes([a, b, c, d]);
    let bytes = u64::from(length) + 1;
    if length < 4 || bytes > u64::from(max_packet_bytes) {
        return Peek::Bad;
    }
    Peek::Header(Header { tag, bytes })
}

/// Which tags are passed on without a look.
pub type RelayTags = [bool; 256];

/// Makes the table for [`relay_run`] from a list of tags.
pub const fn relay_tags(tags: &[u8]) -> RelayTags {
    let mut table = [false; 256];
    let mut index = 0;
    while index < tags.len() {
        table[tags[index] as usize] = true;
        index += 1;
    }
    table
}

/// A stretch of messages that need no look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many of the given bytes belong to it.
    pub bytes: usize,
    /// How many bytes of its last message are still to come.
    pub body_left: u64,
}

/// How far the messages at the start of `bytes` can be passed on without a look. Stops before the
/// first other message, the first bad header, and a header that is cut off by the end.
#[inline]
pub fn relay_run(bytes: &[u8], relay: &RelayTags, max_packet_bytes: u32) -> Run {
    let mut done = 0;
    while let Some(header) = bytes[done..].first_chunk::<HEADER_BYTES>() {
        if !relay[header[0] as usize] {
            break;
        }
        let Peek::Header(message) = parse(*header, max_packet_bytes) else {
            break;
        };
        let left = (bytes.len() - done) as u64;
        if message.bytes > left {
            return Run { bytes: bytes.len(), body_left: message.bytes - left };
        }
        done += message.bytes as usize;
    }
    Run { bytes: done, body_left: 0 }
}

/// The message at the start of `bytes`, if it has come in as a whole.
#[inline]
pub fn whole(bytes: &[u8], max_packet_bytes: u32) -> Option<(u8, &[u8])> {
    match parse(*bytes.first_chunk()?, max_packet_bytes) {
        Peek::Header(Header { tag, bytes: length }) => {
            Some((tag, bytes.get(HEADER_BYTES..usize::try_from(length).ok()?)?))
        }
        Peek::NeedMore | Peek::Bad => None,
    }
}

/// The text in `bad packet header: '%s'`: the first eight bytes at most, in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: u32 = i32::MAX as u32;

    fn ring_of(bytes: &[u8], offset: usize) -> Ring {
        let mut ring = Ring::new(64);
        assert!(ring.push(&vec![0; offset]));
        ring.free_to(offset as u64);
        assert!(ring.push(bytes));
        ring
    }

    #[test]
    fn a_header_is_read_at_every_offset_and_cut() {
        let message = b"Q\0\0\0\x0cselect\0\0";
        for offset in 0..64 {
            for cut in 0..message.len() {
                let ring = ring_of(&message[..cut], offset);
                let expected = match cut {
                    0..5 => Peek::NeedMore,
                    _ => Peek::Header(Header { tag: b'Q', bytes: 13 }),
                };
                assert_eq!(peek(&ring, offset as u64, ANY), expected, "{offset} {cut}");
            }
        }
    }

    /// Reliability 1: no length off the wire is ever trusted in arithmetic.
    #[test]
    fn hostile_lengths_are_bad_headers() {
        for (length, limit, good) in [
            (0u32, ANY, false),
            (3, ANY, false),
            (4, ANY, true),
            (i32::MAX as u32 - 1, ANY, true),
            (i32::MAX as u32, ANY, false),
            (0x8000_0000, ANY, false),
            (u32::MAX, ANY, false),
            (u32::MAX, u32::MAX, false),
            (99, 100, true),
            (100, 100, false),
        ] {
            let [a, b, c, d] = length.to_be_bytes();
            let result = peek(&ring_of(&[b'Q', a, b, c, d], 0), 0, limit);
            assert_eq!(matches!(result, Peek::Header(_)), good, "{length} of {limit}");
            let run = relay_run(&[b'Q', a, b, c, d], &relay_tags(b"Q"), limit);
            assert_eq!(run.bytes == 5, good);
        }
    }

    #[test]
    fn a_run_is_found_however_it_is_cut() {
        const ROWS: RelayTags = relay_tags(b"D");
        let mut bytes = b"D\0\0\0\x06ab".repeat(3);
        bytes.extend(b"Z\0\0\0\x05I");
        for cut in 0..=bytes.len() {
            let run = relay_run(&bytes[..cut], &ROWS, ANY);
            let into_message = cut % 7;
            let expected = match cut {
                21.. => Run { bytes: 21, body_left: 0 },
                _ if into_message < 5 => Run { bytes: cut - into_message, body_left: 0 },
                _ => Run { bytes: cut, body_left: (7 - into_message) as u64 },
            };
            assert_eq!(run, expected, "cut at {cut}");
        }
    }

    #[test]
    fn hex_is_as_the_contract_shows_it() {
        assert_eq!(hex(&[0, 0, 0, 0x1d, 0, 4, 0, 0, 1]), "0000001d00040000");
        assert_eq!(hex(&[0x51, 0, 2, 0, 0]), "5100020000");
    }
}
