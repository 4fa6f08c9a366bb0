//! What an event belongs to, packed into the 64 bits that the kernel keeps for us:
//!
//! ```text
//! 63            32 31 30 29                 0
//! │     serial    │ kind │       slot        │
//! ```
//!
//! An event that was fetched before its connection closed carries the old serial, and so finds
//! nothing, never the next tenant of the slot.

use crate::keys::{ClientKey, Conn, Key, ServerKey};

const SLOT_BITS: u32 = 30;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
const CLIENT: u64 = 0;
const SERVER: u64 = 1;
const LISTENER: u64 = 2;
const HOUSE: u64 = 3;
const WAKER_SLOT: u32 = 0;
const SIGNALS_SLOT: u32 = 1;
const METRICS_DOOR_SLOT: u32 = 2;
/// From here on up: those who ask for metrics.
const METRICS_GUEST_SLOT: u32 = 16;
/// Up to here.
const METRICS_LAST_SLOT: u32 = 255;

const _: () = assert!(usize::BITS == 64, "a token needs 64 bits");

/// Whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A client's or a server's socket.
    Conn(Conn),
    /// The listener with this number.
    Listener(u32),
    /// The helper thread has answers.
    Waker,
    /// The process got a signal.
    Signals,
    /// Somebody wants to see the metrics.
    MetricsDoor,
    /// The connection of somebody who does.
    MetricsGuest {
        /// Its place.
        slot: u32,
        /// Which of that place's guests.
        serial: u32,
    },
}

impl Token {
    /// `None` for numbers that we never gave out.
    pub fn decode(token: mio::Token) -> Option<Self> {
        let bits = token.0 as u64;
        let (serial, slot) = ((bits >> 32) as u32, (bits & SLOT_MASK) as u32);
        match (bits >> SLOT_BITS) & 3 {
            CLIENT => Some(Token::Conn(Conn::Client(ClientKey::new(slot, serial)))),
            SERVER => Some(Token::Conn(Conn::Server(ServerKey::new(slot, serial)))),
            LISTENER => Some(Token::Listener(slot)),
            _ if slot == WAKER_SLOT => Some(Token::Waker),
            _ if slot == SIGNALS_SLOT => Some(Token::Signals),
            _ if slot == METRICS_DOOR_SLOT => Some(Token::MetricsDoor),
            _ if (METRICS_GUEST_SLOT..=METRICS_LAST_SLOT).contains(&slot) => {
                Some(Token::MetricsGuest { slot: slot - METRICS_GUEST_SLOT, serial })
            }
            _ => None,
        }
    }
}

impl From<Token> for mio::Token {
    fn from(token: Token) -> Self {
        let (kind, slot, serial) = match token {
            Token::Conn(Conn::Client(key)) => (CLIENT, key.slot(), key.serial()),
            Token::Conn(Conn::Server(key)) => (SERVER, key.slot(), key.serial()),
            Token::Listener(slot) => (LISTENER, slot, 0),
            Token::Waker => (HOUSE, WAKER_SLOT, 0),
            Token::Signals => (HOUSE, SIGNALS_SLOT, 0),
            Token::MetricsDoor => (HOUSE, METRICS_DOOR_SLOT, 0),
            Token::MetricsGuest { slot, serial } => {
                let slot = METRICS_GUEST_SLOT + slot;
                assert!(slot <= METRICS_LAST_SLOT, "there are few guests");
                (HOUSE, slot, serial)
            }
        };
        // A slot that ran into the kind could deliver one client's events to another.
        assert!(u64::from(slot) <= SLOT_MASK, "fewer than 2^30 connections");
        mio::Token((u64::from(serial) << 32 | kind << SLOT_BITS | u64::from(slot)) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_way_through_the_kernel() {
        let last = SLOT_MASK as u32;
        let mut tokens = vec![
            Token::Waker,
            Token::Signals,
            Token::MetricsDoor,
            Token::Listener(0),
            Token::Listener(7),
        ];
        for slot in [0, 1, 77, last] {
            for serial in [0, 1, u32::MAX] {
                tokens.push(Token::Conn(Conn::Client(ClientKey::new(slot, serial))));
                tokens.push(Token::Conn(Conn::Server(ServerKey::new(slot, serial))));
            }
        }
        for (index, &token) in tokens.iter().enumerate() {
            let packed = mio::Token::from(token);
            assert_eq!(Token::decode(packed), Some(token));
            let same = tokens.iter().filter(|&&other| mio::Token::from(other) == packed).count();
            assert_eq!(same, 1, "token {index} is the only one with its bits");
        }
    }

    #[test]
    fn numbers_never_given_out_are_nobody() {
        assert_eq!(Token::decode(mio::Token(usize::MAX)), None);
        assert_eq!(Token::decode(mio::Token(3 << SLOT_BITS | 3)), None);
    }

    #[test]
    #[should_panic = "fewer than 2^30 connections"]
    fn a_slot_never_runs_into_the_kind() {
        let key = ClientKey::new(1 << SLOT_BITS, 0);
        let _ = mio::Token::from(Token::Conn(Conn::Client(key)));
    }
}
