//! The key with which a client cancels its queries, as BackendKeyData tells it.
//!
//! ```text
//! byte     0        1, 2        3 … 6     7                      8 … 35, from protocol 3.2 on
//!          random,  the peer's  random    random, with peers     random
//!          top bit  number, or            the two lowest bits:
//!          0        random                how many hops are left
//! ```
//!
//! So any pooler of several behind one address can tell from a CancelRequest whose client is meant,
//! and hand it on. A client that says it is of protocol 3.2 gets a longer key, which nobody guesses
//! however few of the first eight bytes are random.

use crate::auth::digest;

/// What every key has.
pub const SHORT_BYTES: usize = 8;
/// What a longer one has besides: with four bytes of the others the secret is as long as that of
/// PostgreSQL 18.
pub const TAIL_BYTES: usize = 28;

/// The beginning of a key, by which its holder is found.
pub type Short = [u8; SHORT_BYTES];

const HOPS: u8 = 0b11;

/// A key for a client of the pooler with this number; none without peers.
pub fn mark(mut short: Short, own_id: Option<u16>) -> Short {
    // As PgBouncer: the first four bytes are to be a positive process id.
    short[0] &= 0x7f;
    if let Some(id) = own_id {
        [short[1], short[2]] = id.to_le_bytes();
        short[7] |= HOPS;
    }
    short
}

/// A new key that nobody can guess.
pub fn random(own_id: Option<u16>) -> Short {
    mark(digest::random(), own_id)
}

/// Whose client is meant, if there are peers.
pub fn peer(short: Short) -> u16 {
    u16::from_le_bytes([short[1], short[2]])
}

/// As it was given out, however many hops it has come.
pub fn unhopped(mut short: Short) -> Short {
    short[7] |= HOPS;
    short
}

/// One hop further; `None`: it has come too far already.
pub fn hop(mut short: Short) -> Option<Short> {
    let has_hops_left = short[7] & HOPS != 0;
    short[7] = short[7].wrapping_sub(u8::from(has_hops_left));
    has_hops_left.then_some(short)
}

/// What a longer key has besides.
#[derive(Clone, PartialEq, Eq)]
pub struct Tail(pub [u8; TAIL_BYTES]);

impl Tail {
    /// One that nobody can guess.
    pub fn random() -> Self {
        Self(digest::random())
    }
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tail(****)")
    }
}

/// Whether this stands behind the first bytes of the key. Tells nothing by the time it takes.
pub fn has_tail(own: Option<&Tail>, told: &[u8]) -> bool {
    digest::is_equal(own.map_or(&[], |tail| &tail.0), told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_whose_it_is_and_nothing_else() {
        for id in [1, 0x1234, u16::MAX] {
            let (one, other) = (random(Some(id)), random(Some(id)));
            assert_eq!((peer(one), one[0] & 0x80, one[7] & HOPS), (id, 0, HOPS));
            assert_eq!(one[1..3], id.to_le_bytes(), "low byte first");
            assert_ne!(one, other);
        }
        assert_eq!(mark([0xff; 8], None), [0x7f, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(mark([0; 8], None), [0; 8], "without peers all of it is random");
    }

    #[test]
    fn a_key_hops_three_times() {
        let mut short = [9, 1, 0, 9, 9, 9, 9, 0b1010_0111];
        for left in [2, 1, 0] {
            short = hop(short).unwrap();
            assert_eq!(short[7], 0b1010_0100 | left);
            assert_eq!(unhopped(short)[7], 0b1010_0111);
        }
        assert_eq!(hop(short), None);
    }

    #[test]
    fn a_tail_is_all_or_nothing() {
        let tail = Tail::random();
        assert!(has_tail(None, b"") && has_tail(Some(&tail), &tail.0));
        assert!(!has_tail(Some(&tail), b"") && !has_tail(Some(&tail), &tail.0[..27]));
        assert!(!has_tail(None, &tail.0) && !has_tail(Some(&Tail::random()), &tail.0));
        assert_eq!(format!("{tail:?}"), "Tail(****)");
    }
}
