//! What one peer has sent us.
//!
//! ```text
//!      freed               judged               filled
//!        │── on their way ────│── not judged yet ──│
//! ```
//!
//! What is judged was either relayed, and stays until the other side's egress has sent it, or was
//! for us. The ring comes from the pool with the first byte and goes back with the last one.

use crate::ring::{Position, Ring, Rings};
use crate::wire::frame::{self, Peek};
use std::borrow::Cow;

/// What to do with the part of a message that has not come in yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing is left: at `judged` a message begins.
    None,
    /// So many bytes are to be passed on.
    Relay(u64),
    /// So many bytes are to be dropped.
    Skip(u64),
    /// So many bytes are to be collected: a message that must be seen whole and fits no ring.
    Collect(u64),
}

/// Bytes from one socket, judged in order.
#[derive(Debug)]
pub struct Inbox {
    ring: Option<Ring>,
    judged: Position,
    rest: Rest,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { ring: None, judged: 0, rest: Rest::None }
    }
}

impl Inbox {
    /// Room for the next read, in a ring from the pool if need be.
    pub fn room(&mut self, rings: &mut Rings) -> [&mut [u8]; 2] {
        self.ring.get_or_insert_with(|| rings.take()).room()
    }

    /// So many bytes were read into the room.
    pub fn filled(&mut self, bytes: usize) {
        self.ring.as_mut().expect("bytes were read into a ring").fill(bytes);
    }

    /// Whether a read has somewhere to go.
    pub fn has_room(&self) -> bool {
        self.ring.as_ref().is_none_or(|ring| ring.free_bytes() > 0)
    }

    /// The ring, while there is one.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// How many bytes wait to be judged.
    pub fn unjudged(&self) -> u64 {
        self.ring.as_ref().map_or(0, |ring| ring.filled() - self.judged)
    }

    /// Everything before this was judged.
    pub fn judged(&self) -> Position {
        self.judged
    }

    /// What is to be done with bytes of the message that was judged last.
    pub fn rest(&self) -> Rest {
        self.rest
    }

    /// Whether a message has been judged of which a part has not come in yet.
    pub fn is_mid_message(&self) -> bool {
        self.rest != Rest::None
    }

    /// The next message's header.
    pub fn peek(&self, max_packet_bytes: u32) -> Peek {
        match &self.ring {
            Some(ring) => frame::peek(ring, self.judged, max_packet_bytes),
            None => Peek::NeedMore,
        }
    }

    /// The next message's type byte.
    pub fn peek_tag(&self) -> Option<u8> {
        let [tag] = self.ring.as_ref()?.array::<1>(self.judged)?;
        Some(tag)
    }

    /// Whether so many bytes wait to be judged.
    pub fn has(&self, bytes: u64) -> bool {
        self.unjudged() >= bytes
    }

    /// Whether a message of this length can ever be in the ring as a whole.
    pub fn can_hold(&self, bytes: u64) -> bool {
        self.ring.as_ref().is_some_and(|ring| bytes <= ring.capacity() as u64)
    }

    /// The next `bytes`, copied, less the `skip` first ones. They must have come in.
    pub fn copy(&self, skip: usize, bytes: u64) -> Vec<u8> {
        match &self.ring {
            Some(ring) => ring.copy(self.judged + skip as u64, self.judged + bytes),
            None => Vec::new(),
        }
    }

    /// The next `bytes` less the `skip` first ones, as one slice. They must have come in.
    pub fn window(&self, skip: u64, bytes: u64) -> Cow<'_, [u8]> {
        match &self.ring {
            Some(ring) => ring.window(self.judged + skip, self.judged + bytes),
            None => Cow::Borrowed(&[]),
        }
    }

    /// The first bytes not judged, for `bad packet header`.
    pub fn hex(&self) -> String {
        frame::hex(&self.copy(0, self.unjudged().min(8)))
    }

    /// Judged so many bytes that are in.
    pub fn advance(&mut self, bytes: u64) {
        assert!(bytes <= self.unjudged(), "judged what has not come in");
        self.judged += bytes;
    }

    /// Notes what shall happen to what is still to come of the message just judged.
    pub fn set_rest(&mut self, rest: Rest) {
        self.rest = match rest {
            Rest::Relay(0) | Rest::Skip(0) | Rest::Collect(0) => Rest::None,
            rest => rest,
        };
    }

    /// Drops a whole message: what of it is in, at once, the rest when it comes.
    pub fn skip(&mut self, bytes: u64) {
        let here = bytes.min(self.unjudged());
        self.advance(here);
        self.set_rest(Rest::Skip(bytes - here));
    }

    /// Lets go of what nobody needs any more: everything judged, except what an egress still holds
    /// from `held` on. An empty ring goes back to the pool.
    pub fn tidy(&mut self, held: Option<Position>, rings: &mut Rings) {
        if let Some(ring) = &mut self.ring {
            ring.free_to(held.unwrap_or(self.judged).min(self.judged));
            self.give_back_if_empty(rings);
        }
    }

    /// Gives back a ring in which nothing is.
    pub fn give_back_if_empty(&mut self, rings: &mut Rings) {
        if let Some(ring) = self.ring.take_if(|ring| ring.is_empty()) {
            self.judged = 0;
            rings.give(ring);
        }
    }

    /// Gives the ring away, with what is still on its way. What was not judged goes unseen, and
    /// the rest of a message goes to nobody.
    pub fn hand_over(&mut self) -> Option<Ring> {
        self.judged = 0;
        if let Rest::Relay(left) = self.rest {
            self.rest = Rest::Skip(left);
        }
        self.ring.take()
    }

    /// Gives the ring back, whatever is in it.
    pub fn clear(&mut self, rings: &mut Rings) {
        self.judged = 0;
        self.rest = Rest::None;
        if let Some(ring) = self.ring.take() {
            rings.give(ring);
        }
    }
}
