//! The fixed ring buffer through which every byte passes.
//!
//! ```text
//!            freed                    filled            freed + capacity
//!              │── bytes that count ────│──── free room ─────│
//! ─────────────┴────────────────────────┴────────────────────┴────▶ positions, only growing
//! ```
//!
//! The law of its cursors: `freed ≤ filled ≤ freed + capacity`. A position is the number of bytes
//! that ever passed that point, so it never wraps in practice (2⁶⁴ bytes) and never means two
//! things. Only the place in memory wraps: `position mod capacity`, and the capacity is a power of
//! two. What wraps around is handed out as two slices, for vectored reads and writes.
//!
//! [`Rings`] is the pool that rings come from and go back to: a connection owns one only while it
//! holds bytes.

use std::borrow::Cow;

/// A byte's place in the stream that went through a ring since it was taken from the pool.
pub type Position = u64;

/// A ring buffer; see the law above.
#[derive(Debug)]
pub struct Ring {
    memory: Box<[u8]>,
    freed: Position,
    filled: Position,
}

impl Ring {
    /// A ring of zeroed memory. `capacity_bytes` must be a power of two.
    pub fn new(capacity_bytes: usize) -> Self {
        assert!(capacity_bytes.is_power_of_two(), "a ring's capacity is a power of two");
        Self { memory: vec![0; capacity_bytes].into_boxed_slice(), freed: 0, filled: 0 }
    }

    /// How many bytes fit in at most.
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Everything before this position has left.
    pub fn freed(&self) -> Position {
        self.freed
    }

    /// Everything before this position has come in.
    pub fn filled(&self) -> Position {
        self.filled
    }

    /// How many bytes are in.
    pub fn len(&self) -> usize {
        (self.filled - self.freed) as usize
    }

    /// Whether none is in.
    pub fn is_empty(&self) -> bool {
        self.filled == self.freed
    }

    /// How many more bytes fit in.
    pub fn free_bytes(&self) -> usize {
        self.capacity() - self.len()
    }

    /// The free room, in order. The second slice is empty unless the room wraps around.
    pub fn room(&mut self) -> [&mut [u8]; 2] {
        let (start, free) = (self.place(self.filled), self.free_bytes());
        let (front, back) = self.memory.split_at_mut(start);
        let first = free.min(back.len());
        [&mut back[..first], &mut front[..free - first]]
    }

    /// Counts the first `bytes` of the room as come in.
    pub fn fill(&mut self, bytes: usize) {
        assert!(bytes <= self.free_bytes(), "filled past the ring's capacity");
        self.filled += bytes as u64;
    }

    /// The bytes between two positions that are both in the ring, in order.
    #[inline]
    pub fn slices(&self, from: Position, to: Position) -> [&[u8]; 2] {
        assert!(self.freed <= from && from <= to && to <= self.filled, "outside of the ring's law");
        let (start, len) = (self.place(from), (to - from) as usize);
        match self.memory.get(start..start + len) {
            Some(all) => [all, &[]],
            None => [&self.memory[start..], &self.memory[..len - (self.capacity() - start)]],
        }
    }

    /// The longest stretch from `from` that does not wrap around.
    #[inline]
    pub fn stretch(&self, from: Position) -> &[u8] {
        self.slices(from, self.filled)[0]
    }

    /// Lets go of everything before `to`.
    pub fn free_to(&mut self, to: Position) {
        assert!(self.freed <= to && to <= self.filled, "freed what is not in the ring");
        self.freed = to;
    }

    /// Copies `N` bytes at `from`; `None` while they have not all come in.
    #[inline]
    pub fn array<const N: usize>(&self, from: Position) -> Option<[u8; N]> {
        if from + N as u64 > self.filled {
            return None;
        }
        assert!(self.freed <= from, "outside of the ring's law");
        if let Some(bytes) = self.memory[self.place(from)..].first_chunk() {
            return Some(*bytes);
        }
        let [first, second] = self.slices(from, from + N as u64);
        let mut copy = [0; N];
        copy[..first.len()].copy_from_slice(first);
        copy[first.len()..].copy_from_slice(second);
        Some(copy)
    }

    /// What lies between two positions as one slice: copied only if it wraps around.
    pub fn window(&self, from: Position, to: Position) -> Cow<'_, [u8]> {
        match self.slices(from, to) {
            [all, []] => Cow::Borrowed(all),
            parts => Cow::Owned(parts.concat()),
        }
    }

    /// Copies what lies between two positions. For messages that must be looked at as a whole.
    pub fn copy(&self, from: Position, to: Position) -> Vec<u8> {
        self.slices(from, to).concat()
    }

    /// Appends all of `bytes`, or nothing and says `false`.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.free_bytes() {
            return false;
        }
        // Nearly always: it does not wrap around.
        let start = self.place(self.filled);
        if let Some(room) = self.memory.get_mut(start..start + bytes.len()) {
            room.copy_from_slice(bytes);
            self.filled += bytes.len() as u64;
            return true;
        }
        let [first, second] = self.room();
        let (head, tail) = bytes.split_at(bytes.len().min(first.len()));
        first[..head.len()].copy_from_slice(head);
        second[..tail.len()].copy_from_slice(tail);
        self.fill(bytes.len());
        true
    }

    /// Writes over bytes that are in already, as for a length known only at the end.
    pub fn patch(&mut self, at: Position, bytes: &[u8]) {
        assert!(self.freed <= at && at + bytes.len() as u64 <= self.filled, "patched outside");
        for (offset, byte) in bytes.iter().enumerate() {
            let place = self.place(at + offset as u64);
            self.memory[place] = *byte;
        }
    }

    /// Takes back everything that came in after `to`: a message that turned out not to fit.
    pub fn unfill(&mut self, to: Position) {
        assert!(self.freed <= to && to <= self.filled, "unfilled what never came in");
        self.filled = to;
    }

    fn place(&self, position: Position) -> usize {
        position as usize & (self.capacity() - 1)
    }
}

/// So many rings stay in the pool even if nobody needs them.
const KEPT_RINGS: usize = 8;

/// The pool of rings. The one given back last is taken first, for it is still in the cache.
#[derive(Debug)]
pub struct Rings {
    free: Vec<Box<[u8]>>,
    ring_bytes: usize,
    in_use: usize,
    high_water: usize,
    /// The fewest free rings since the last [`Rings::trim`]: so many nobody needed.
    spare: usize,
}

impl Rings {
    /// A pool of rings of `ring_bytes` each, a power of two.
    pub fn new(ring_bytes: usize) -> Self {
        assert!(ring_bytes.is_power_of_two(), "a ring's capacity is a power of two");
        Self { free: Vec::new(), ring_bytes, in_use: 0, high_water: 0, spare: 0 }
    }

    /// An empty ring, whose first byte lies at the start of its memory.
    pub fn take(&mut self) -> Ring {
        self.in_use += 1;
        self.high_water = self.high_water.max(self.in_use);
        let Some(memory) = self.free.pop() else {
            return Ring::new(self.ring_bytes);
        };
        self.spare = self.spare.min(self.free.len());
        Ring { memory, freed: 0, filled: 0 }
    }

    /// Takes a ring back. What was in it is forgotten.
    pub fn give(&mut self, ring: Ring) {
        assert_eq!(ring.capacity(), self.ring_bytes, "a ring of this pool");
        self.in_use -= 1;
        self.free.push(ring.memory);
    }

    /// Returns the rings to the system that nobody needed since the last call, but for a few.
    pub fn trim(&mut self) {
        let surplus = self.spare.saturating_sub(KEPT_RINGS);
        self.free.truncate(self.free.len() - surplus);
        self.spare = self.free.len();
    }

    /// Whether there are more than are worth keeping, if nobody needs them.
    pub fn has_surplus(&self) -> bool {
        self.free.len() > KEPT_RINGS
    }

    /// The capacity of each.
    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// How many are held by connections.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// How many lie ready.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The most that were ever in use at once.
    pub fn high_water(&self) -> usize {
        self.high_water
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<u8>),
        Read(Vec<u8>),
        Free(usize),
        Patch(u8),
        Unfill(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bytes = prop::collection::vec(any::<u8>(), 0..40);
        let step = prop_oneof![
            3 => bytes.clone().prop_map(Step::Push),
            3 => bytes.prop_map(Step::Read),
            4 => (0usize..40).prop_map(Step::Free),
            1 => any::<u8>().prop_map(Step::Patch),
            1 => (0usize..5).prop_map(Step::Unfill),
        ];
        prop::collection::vec(step, 1..200)
    }

    fn apply(ring: &mut Ring, model: &mut VecDeque<u8>, step: Step) {
        match step {
            Step::Push(bytes) => {
                let fits = bytes.len() <= ring.capacity() - model.len();
                assert_eq!(ring.push(&bytes), fits);
                if fits {
                    model.extend(bytes);
                }
            }
            Step::Read(bytes) => {
                let [first, second] = ring.room();
                let mut read = 0;
                for (into, from) in first.iter_mut().chain(second.iter_mut()).zip(&bytes) {
                    *into = *from;
                    read += 1;
                }
                ring.fill(read);
                model.extend(&bytes[..read]);
            }
            Step::Free(bytes) => {
                let bytes = bytes.min(model.len());
                ring.free_to(ring.freed() + bytes as u64);
                model.drain(..bytes);
            }
            Step::Patch(byte) => {
                if let Some(last) = model.back_mut() {
                    *last = byte;
                    ring.patch(ring.filled() - 1, &[byte]);
                }
            }
            Step::Unfill(bytes) => {
                let bytes = bytes.min(model.len());
                ring.unfill(ring.filled() - bytes as u64);
                model.truncate(model.len() - bytes);
            }
        }
    }

    proptest! {
        /// At every offset in memory: the ring starts with its cursors anywhere.
        #[test]
        fn a_ring_is_a_queue_of_bytes(offset in 0u64..130, steps in steps()) {
            let mut ring = Ring::new(32);
            ring.freed = offset;
            ring.filled = offset;
            let mut model = VecDeque::new();
            for step in steps {
                apply(&mut ring, &mut model, step);
                prop_assert!(ring.freed <= ring.filled);
                prop_assert!(ring.filled <= ring.freed + ring.capacity() as u64);
                prop_assert_eq!(ring.len(), model.len());
                prop_assert_eq!(ring.copy(ring.freed(), ring.filled()), Vec::from(model.clone()));
                let [first, second] = ring.room();
                prop_assert_eq!(first.len() + second.len(), 32 - model.len());
            }
        }
    }

    #[test]
    fn arrays_are_read_across_the_end() {
        for offset in 0..20 {
            let mut ring = Ring::new(8);
            (ring.freed, ring.filled) = (offset, offset);
            assert!(ring.push(b"abcde"));
            assert_eq!(ring.array::<5>(offset), Some(*b"abcde"));
            assert_eq!(ring.array::<5>(offset + 1), None, "the last byte has not come in");
        }
    }

    #[test]
    #[should_panic(expected = "freed what is not in the ring")]
    fn nothing_is_freed_that_never_came_in() {
        let mut ring = Ring::new(8);
        ring.free_to(1);
    }

    #[test]
    #[should_panic(expected = "filled past")]
    fn nothing_is_filled_past_the_capacity() {
        Ring::new(8).fill(9);
    }

    #[test]
    fn the_pool_hands_out_the_last_ring_first_and_trims_what_nobody_needs() {
        let mut rings = Rings::new(16);
        let mut first = rings.take();
        assert!(first.push(b"left over"));
        let second = rings.take();
        assert_eq!((rings.in_use(), rings.free(), rings.high_water()), (2, 0, 2));
        rings.give(second);
        rings.give(first);
        let again = rings.take();
        assert!(again.is_empty() && again.freed() == 0, "a ring comes back empty");
        rings.give(again);
        let many: Vec<Ring> = (0..20).map(|_| rings.take()).collect();
        many.into_iter().for_each(|ring| rings.give(ring));
        assert!(rings.has_surplus());
        rings.trim();
        assert_eq!(rings.free(), 20, "at some moment since the last time all were in use");
        rings.trim();
        assert_eq!(rings.free(), KEPT_RINGS, "and since then none was");
        assert!(!rings.has_surplus());
    }
}
