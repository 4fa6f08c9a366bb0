//! What one peer is owed, in order.
//!
//! A list of pieces: a run of bytes that still lie in the inbox of the connection it is linked
//! to, or bytes of our own. Everything for a peer goes through here, so order is right by
//! construction, and all of it leaves in one vectored write.
//!
//! When a server goes back to its pool before its client has taken everything, the server's whole
//! ring moves here (`kept`): the runs mean that ring from then on, nothing is copied, and a slow
//! reader never keeps a server. A client with a kept ring gets no next server before it is empty.

use crate::ring::{Position, Ring, Rings};
use crate::session::prepared::Statement;
use crate::wire::emit::Full;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

/// So many pieces at most; then whoever appends has to wait. Bounds the memory of a connection.
const MAX_PIECES: usize = 64;
/// So much room is left for messages of our own as long as nobody has to wait.
const OWN_RESERVE_BYTES: usize = 8 * 1024;
/// A list that grew beyond this is given back when it is empty.
const IDLE_PIECES: usize = 8;

#[derive(Debug)]
enum Piece {
    /// Bytes in the inbox of the linked connection, or in the kept ring.
    Run { from: Position, to: Position },
    /// So many bytes of our own, next in line.
    Own { bytes: u64 },
    /// The body of a statement from this byte on: it may be larger than any ring.
    Text { statement: Arc<Statement>, from: usize },
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Egress {
    pieces: VecDeque<Piece>,
    own: Option<Ring>,
    kept: Option<Ring>,
}

impl Egress {
    /// Whether the peer has been sent everything.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether whoever appends has to wait now. If not, there is room for a few small messages.
    pub fn is_full(&self) -> bool {
        self.pieces.len() >= MAX_PIECES || !self.has_own_room(OWN_RESERVE_BYTES)
    }

    /// Whether messages of our own of so many bytes fit in.
    pub fn has_own_room(&self, bytes: usize) -> bool {
        self.own.as_ref().is_none_or(|own| own.free_bytes() >= bytes)
    }

    /// Whether a released server's ring is still being sent from.
    pub fn has_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// How many rings it owns.
    pub fn rings_held(&self) -> usize {
        usize::from(self.own.is_some()) + usize::from(self.kept.is_some())
    }

    /// How many bytes are waiting.
    pub fn bytes(&self) -> u64 {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Run { from, to } => to - from,
                Piece::Own { bytes } => *bytes,
                Piece::Text { statement, from } => (statement.body().len() - from) as u64,
            })
            .sum()
    }

    /// Appends bytes that lie in the linked connection's inbox.
    pub fn push_run(&mut self, from: Position, to: Position) {
        assert!(self.kept.is_none(), "runs of two rings at once");
        match self.pieces.back_mut() {
            Some(Piece::Run { to: end, .. }) if *end == from => *end = to,
            _ if from < to => self.pieces.push_back(Piece::Run { from, to }),
            _ => {}
        }
    }

    /// Appends a message of our own, as `write` puts it into the ring.
    pub fn push_own(
        &mut self,
        rings: &mut Rings,
        write: impl FnOnce(&mut Ring) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let ring = self.own.get_or_insert_with(|| rings.take());
        let before = ring.filled();
        let result = write(ring);
        let added = ring.filled() - before;
        match self.pieces.back_mut() {
            Some(Piece::Own { bytes }) => *bytes += added,
            _ if added > 0 => self.pieces.push_back(Piece::Own { bytes: added }),
            _ => self.release_own(rings),
        }
        result
    }

    /// Appends the body of a statement, behind the head of its Parse.
    pub fn push_text(&mut self, statement: Arc<Statement>) {
        self.pieces.push_back(Piece::Text { statement, from: 0 });
    }

    /// What to write, in order, into `slices`; how many of them are in use. `linked` is the ring
    /// of the linked connection's inbox.
    pub fn gather<'a>(&'a self, linked: Option<&'a Ring>, slices: &mut [IoSlice<'a>]) -> usize {
        let runs = self.kept.as_ref().or(linked);
        // Nearly always there is one run, and it does not wrap around.
        if let (1, Some(Piece::Run { from, to })) = (self.pieces.len(), self.pieces.front())
            && let (Some([all, []]), Some(place)) =
                (runs.map(|ring| ring.slices(*from, *to)), slices.first_mut())
        {
            *place = IoSlice::new(all);
            return 1;
        }
        let mut own_at = self.own.as_ref().map_or(0, Ring::freed);
        let mut used = 0;
        for piece in &self.pieces {
            let in_ring = |ring: Option<&'a Ring>, from, to| {
                ring.expect("the bytes of a piece lie in a ring").slices(from, to)
            };
            let parts = match piece {
                Piece::Run { from, to } => in_ring(runs, *from, *to),
                Piece::Own { bytes } => {
                    own_at += bytes;
                    in_ring(self.own.as_ref(), own_at - bytes, own_at)
                }
                Piece::Text { statement, from } => [&statement.body()[*from..], &[]],
            };
            for slice in parts.into_iter().filter(|slice| !slice.is_empty()) {
                let Some(place) = slices.get_mut(used) else {
                    return used;
                };
                *place = IoSlice::new(slice);
                used += 1;
            }
        }
        used
    }

    /// So many bytes have been written.
    pub fn sent(&mut self, bytes: usize, rings: &mut Rings) {
        let mut left = bytes as u64;
        // Nearly always there is one run, and all of it went.
        if let (1, Some(Piece::Run { from, to })) = (self.pieces.len(), self.pieces.front())
            && to - from == left
        {
            self.pieces.pop_front();
            self.tidy(rings);
            return;
        }
        while left > 0 {
            let piece = self.pieces.front_mut().expect("no more was sent than there was");
            let done = match piece {
                Piece::Run { from, to } => {
                    let step = left.min(*to - *from);
                    *from += step;
                    left -= step;
                    from == to
                }
                Piece::Own { bytes } => {
                    let step = left.min(*bytes);
                    *bytes -= step;
                    left -= step;
                    let own = self.own.as_mut().expect("our own bytes lie in a ring");
                    own.free_to(own.freed() + step);
                    *bytes == 0
                }
                Piece::Text { statement, from } => {
                    let length = statement.body().len();
                    let step = usize::try_from(left).unwrap_or(length).min(length - *from);
                    *from += step;
                    left -= step as u64;
                    *from == length
                }
            };
            if done {
                self.pieces.pop_front();
            }
        }
        self.tidy(rings);
    }

    /// The first byte of the other inbox that is still needed here.
    pub fn first_run(&self) -> Option<Position> {
        if self.kept.is_some() {
            return None;
        }
        self.pieces.iter().find_map(run_start)
    }

    /// The server goes: its ring, in which the runs lie, is ours now. Without runs it is not
    /// needed.
    pub fn keep(&mut self, ring: Ring, rings: &mut Rings) {
        assert!(self.kept.is_none(), "one ring is kept at most");
        self.kept = Some(ring);
        self.tidy(rings);
    }

    /// Forgets everything; the rings go back to the pool.
    pub fn clear(&mut self, rings: &mut Rings) {
        self.pieces.clear();
        self.tidy(rings);
    }

    fn tidy(&mut self, rings: &mut Rings) {
        if self.pieces.is_empty() {
            if let Some(kept) = self.kept.take() {
                rings.give(kept);
            }
            if let Some(own) = self.own.take() {
                rings.give(own);
            }
            if self.pieces.capacity() > IDLE_PIECES {
                self.pieces = VecDeque::new();
            }
            return;
        }
        if let Some(kept) = &mut self.kept {
            match self.pieces.iter().find_map(run_start) {
                Some(from) => kept.free_to(from),
                None => rings.give(self.kept.take().expect("just seen")),
            }
        }
    }

    fn release_own(&mut self, rings: &mut Rings) {
        if let Some(own) = self.own.take_if(|own| own.is_empty()) {
            rings.give(own);
        }
    }
}

fn run_start(piece: &Piece) -> Option<Position> {
    match *piece {
        Piece::Run { from, .. } => Some(from),
        Piece::Own { .. } | Piece::Text { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::emit;

    fn text(egress: &Egress, linked: Option<&Ring>) -> String {
        let mut slices = [IoSlice::new(&[]); 16];
        let used = egress.gather(linked, &mut slices);
        slices[..used].iter().map(|slice| String::from_utf8_lossy(slice)).collect()
    }

    fn own(egress: &mut Egress, rings: &mut Rings, text: &[u8]) {
        egress.push_own(rings, |ring| ring.push(text).then_some(()).ok_or(emit::Full)).unwrap();
    }

    #[test]
    fn runs_and_own_messages_keep_their_order_whatever_is_sent_at_once() {
        for step in 1..8 {
            let mut rings = Rings::new(16);
            let mut inbox = Ring::new(16);
            assert!(inbox.push(b"abcdefgh"));
            let mut egress = Egress::default();
            egress.push_run(0, 2);
            egress.push_run(2, 3);
            own(&mut egress, &mut rings, b"1");
            own(&mut egress, &mut rings, b"2");
            egress.push_run(5, 8);
            own(&mut egress, &mut rings, b"3");
            let mut all = "abc12fgh3".to_string();
            while !all.is_empty() {
                assert_eq!(text(&egress, Some(&inbox)), all);
                let bytes = step.min(all.len());
                egress.sent(bytes, &mut rings);
                all.drain(..bytes);
            }
            assert!(egress.is_empty());
            assert_eq!(rings.in_use(), 0, "an empty egress holds no ring");
        }
    }

    #[test]
    fn a_kept_ring_goes_back_when_its_last_byte_has_left() {
        let mut rings = Rings::new(16);
        let mut inbox = rings.take();
        assert!(inbox.push(b"abcd"));
        let mut egress = Egress::default();
        egress.push_run(1, 4);
        own(&mut egress, &mut rings, b"!");
        egress.keep(inbox, &mut rings);
        assert_eq!(text(&egress, None), "bcd!");
        egress.sent(2, &mut rings);
        assert!(egress.has_kept());
        egress.sent(1, &mut rings);
        assert!(!egress.has_kept());
        assert_eq!(text(&egress, None), "!");
        egress.sent(1, &mut rings);
        assert_eq!(rings.in_use(), 0);
    }

    #[test]
    fn an_unneeded_ring_is_not_kept() {
        let mut rings = Rings::new(16);
        let ring = rings.take();
        let mut egress = Egress::default();
        egress.keep(ring, &mut rings);
        assert!(!egress.has_kept());
        assert_eq!(rings.in_use(), 0);
    }

    #[test]
    fn a_message_that_does_not_fit_changes_nothing() {
        let mut rings = Rings::new(16);
        let mut egress = Egress::default();
        let result = egress.push_own(&mut rings, |ring| emit::query(ring, &[b'x'; 20]));
        assert_eq!(result, Err(Full));
        assert!(egress.is_empty());
        assert_eq!(rings.in_use(), 0);
    }
}
