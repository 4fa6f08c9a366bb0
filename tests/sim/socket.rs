//! A socket between the engine and a model peer, with what kernel and network do to bytes: they
//! arrive in pieces of any size, buffers are bounded, and either end may break off at any byte.
//!
//! ```text
//! peer ──send──▶ flying ──deliver──▶ arrived ──read──▶ engine
//! peer ◀──take── sent ◀──────────────────────write──── engine
//! ```

/// Bytes in order.
#[derive(Default)]
pub struct Pipe {
    bytes: Vec<u8>,
    head: usize,
}

impl Pipe {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.head > 4096 && self.head * 2 > self.bytes.len() {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    pub fn skip(&mut self, bytes: usize) {
        self.head += bytes;
        assert!(self.head <= self.bytes.len());
        if self.is_empty() {
            self.clear();
        }
    }

    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        let taken = self.bytes()[..bytes].to_vec();
        self.skip(bytes);
        taken
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.head = 0;
    }

    /// Moves up to `most` bytes to `to`.
    pub fn pour(&mut self, to: &mut Pipe, most: usize) -> usize {
        let bytes = most.min(self.len());
        to.push(&self.bytes()[..bytes]);
        self.skip(bytes);
        bytes
    }
}

/// How a peer ended its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Behind its last byte.
    Orderly,
    /// At once: what was under way is lost.
    Reset,
}

/// What came of a read or a write of the engine's shell.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Bytes(usize),
    WouldBlock,
    Closed,
}

/// See the module's page.
pub struct Socket {
    flying: Pipe,
    arrived: Pipe,
    sent: Pipe,
    /// Bounds `flying` and `arrived` together.
    pub in_capacity: usize,
    /// Bounds `sent`.
    pub out_capacity: usize,
    end: Option<End>,
    end_arrived: bool,
    /// Edges that the shell has not learned of.
    pub readable_edge: bool,
    pub writable_edge: bool,
    /// The shell's latches.
    pub may_read: bool,
    pub may_write: bool,
    read_closed: bool,
    write_closed: bool,
    /// The engine has closed it.
    pub is_closed: bool,
    /// The engine writes nothing more.
    has_hung_up: bool,
    /// The farewell did not fit, or the peer broke off: its last bytes are missing.
    pub is_cut_off: bool,
    /// How many bytes the engine wrote and read.
    pub written: u64,
    pub read: u64,
}

impl Socket {
    pub fn new(in_capacity: usize, out_capacity: usize) -> Self {
        Self {
            flying: Pipe::default(),
            arrived: Pipe::default(),
            sent: Pipe::default(),
            in_capacity,
            out_capacity,
            end: None,
            end_arrived: false,
            readable_edge: false,
            writable_edge: false,
            may_read: false,
            may_write: true,
            read_closed: false,
            write_closed: false,
            is_closed: false,
            has_hung_up: false,
            is_cut_off: false,
            written: 0,
            read: 0,
        }
    }

    // The peer's side.

    /// Sends as much as the buffers hold.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        if self.is_closed || self.end.is_some() {
            return bytes.len();
        }
        let room = self.in_capacity.saturating_sub(self.flying.len() + self.arrived.len());
        let bytes = &bytes[..bytes.len().min(room)];
        self.flying.push(bytes);
        bytes.len()
    }

    pub fn take(&mut self, most: usize) -> Vec<u8> {
        let was_full = self.sent.len() >= self.out_capacity;
        let bytes = self.sent.take(most.min(self.sent.len()));
        self.writable_edge |= was_full && !bytes.is_empty();
        bytes
    }

    /// Nothing more will come from the engine.
    pub fn is_over(&self) -> bool {
        (self.is_closed || self.has_hung_up) && self.sent.is_empty()
    }

    pub fn close(&mut self, end: End) {
        if self.end.is_some() && end == Orderly {
            return;
        }
        self.end = Some(end);
        self.is_cut_off = true;
        self.sent.clear();
        if end == Reset {
            self.flying.clear();
        }
    }

    /// Gets larger buffers.
    pub fn widen(&mut self, bytes: usize) {
        (self.in_capacity, self.out_capacity) = (bytes, bytes);
        self.writable_edge = true;
    }

    // The network.

    /// Lets some bytes arrive. Says whether anything moved.
    pub fn deliver(&mut self, most: usize) -> bool {
        let mut moved = self.flying.pour(&mut self.arrived, most) > 0;
        if self.flying.is_empty() && self.end.is_some() && !self.end_arrived {
            self.end_arrived = true;
            self.writable_edge |= self.end == Some(Reset);
            moved = true;
        }
        self.readable_edge |= moved;
        moved
    }

    /// Lets one message arrive.
    pub fn deliver_message(&mut self) {
        let length = crate::wire::whole(self.flying.bytes());
        self.deliver(length.unwrap_or(usize::MAX));
    }

    // The engine's shell.

    /// Nothing more is written. What was not whole stays so.
    pub fn hang_up(&mut self) {
        self.has_hung_up = true;
        self.is_cut_off = true;
    }

    pub fn learn(&mut self) {
        self.may_read |= std::mem::take(&mut self.readable_edge);
        self.may_write |= std::mem::take(&mut self.writable_edge);
    }

    pub fn worth_reading(&self) -> bool {
        self.may_read && !self.read_closed
    }

    pub fn worth_writing(&self) -> bool {
        self.may_write && !self.write_closed
    }

    pub fn read(&mut self, rooms: [&mut [u8]; 2], limit: usize) -> Outcome {
        let room = rooms[0].len() + rooms[1].len();
        if self.arrived.is_empty() {
            if self.end_arrived {
                self.read_closed = true;
                return Outcome::Closed;
            }
            self.may_read = false;
            return Outcome::WouldBlock;
        }
        // A shell that reads less than there is room for knows nothing about the rest.
        let offered = room.min(limit);
        let mut left = offered.min(self.arrived.len());
        let bytes = left;
        for slice in rooms {
            let here = left.min(slice.len());
            slice[..here].copy_from_slice(&self.arrived.bytes()[..here]);
            self.arrived.skip(here);
            left -= here;
        }
        if bytes < offered && !self.end_arrived {
            self.may_read = false;
        }
        self.read += bytes as u64;
        Outcome::Bytes(bytes)
    }

    pub fn write(&mut self, slices: &[std::io::IoSlice<'_>]) -> Outcome {
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.end.is_some() && self.end_arrived {
            self.write_closed = true;
            return Outcome::Closed;
        }
        if self.end.is_some() {
            // The peer is gone, and we cannot know it yet.
            self.written += offered as u64;
            return Outcome::Bytes(offered);
        }
        let room = self.out_capacity.saturating_sub(self.sent.len());
        if room == 0 {
            self.may_write = false;
            return Outcome::WouldBlock;
        }
        let bytes = room.min(offered);
        let mut left = bytes;
        for slice in slices {
            let here = left.min(slice.len());
            self.sent.push(&slice[..here]);
            left -= here;
        }
        if bytes < offered {
            self.may_write = false;
        }
        self.written += bytes as u64;
        Outcome::Bytes(bytes)
    }
}

use End::{Orderly, Reset};
