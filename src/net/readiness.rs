//! Latches: what we know of a socket's readiness, in one byte.
//!
//! Events are edge-triggered and our buffers bounded, so each direction remembers "ready" from the
//! event that said so until a read or write comes back short. A spurious event therefore costs one
//! failed system call and nothing else.

/// The latches of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latches(u8);

/// Reading may bring something.
const READABLE: u8 = 1;
/// Writing may succeed.
const WRITABLE: u8 = 1 << 1;
/// An event said that the end of the peer's data is near, or that there is an error to fetch: a
/// short read then does not mean that there is nothing more to learn.
const END_IN_SIGHT: u8 = 1 << 2;
/// The end was read, and the engine told.
const READ_CLOSED: u8 = 1 << 3;
/// A write failed, and the engine told.
const WRITE_CLOSED: u8 = 1 << 4;
/// The connection we open is not there yet.
const CONNECTING: u8 = 1 << 5;
/// It has used its share of the turn and stands in the list for the next.
const POSTPONED: u8 = 1 << 6;

/// While the end is in sight: a short read has brought everything before it.
const DRAINED: u8 = 1 << 7;

impl Latches {
    /// A socket that is still being connected.
    pub fn connecting() -> Self {
        Self(CONNECTING)
    }

    /// A socket that is connected: its send buffer is empty.
    pub fn connected() -> Self {
        Self(WRITABLE)
    }

    /// Learns what the event says.
    pub fn learn(&mut self, event: &mio::event::Event) {
        if event.is_readable() {
            self.0 = self.0 & !DRAINED | READABLE;
        }
        if event.is_writable() {
            self.0 |= WRITABLE;
        }
        if event.is_read_closed() || event.is_error() {
            self.0 |= READABLE | END_IN_SIGHT;
        }
        if event.is_write_closed() || event.is_error() {
            self.0 |= WRITABLE;
        }
    }

    /// There is probably something to read: worth a try without waiting for the event.
    pub fn expect_data(&mut self) {
        self.0 |= READABLE;
    }

    /// Whether a read is worth its system call.
    pub fn may_read(self) -> bool {
        self.0 & (READABLE | READ_CLOSED | CONNECTING) == READABLE
    }

    /// Whether a write is worth its system call.
    pub fn may_write(self) -> bool {
        self.0 & (WRITABLE | WRITE_CLOSED | CONNECTING) == WRITABLE
    }

    /// Whether an event said that the peer has sent its last, and that end has not been read.
    pub fn is_end_in_sight(self) -> bool {
        self.0 & (END_IN_SIGHT | READ_CLOSED | CONNECTING) == END_IN_SIGHT
    }

    /// A read brought less than there was room for.
    pub fn short_read(&mut self) {
        if self.0 & END_IN_SIGHT == 0 {
            self.0 &= !READABLE;
        } else {
            self.0 |= DRAINED;
        }
    }

    /// Whether data may lie there that nobody has read.
    pub fn has_unread(self) -> bool {
        self.may_read() && self.0 & DRAINED == 0
    }

    /// A read brought nothing: not even the end that was in sight is there yet.
    pub fn would_block_reading(&mut self) {
        self.0 &= !(READABLE | END_IN_SIGHT);
    }

    /// A write took less than offered, or nothing.
    pub fn short_write(&mut self) {
        self.0 &= !WRITABLE;
    }

    /// The peer's end was read; no read from now on.
    pub fn read_closed(&mut self) {
        self.0 |= READ_CLOSED;
    }

    /// A write failed; no write from now on.
    pub fn write_closed(&mut self) {
        self.0 |= WRITE_CLOSED;
    }

    /// Whether a write has failed.
    pub fn is_write_closed(self) -> bool {
        self.0 & WRITE_CLOSED != 0
    }

    /// Whether the peer's end was read.
    pub fn is_read_closed(self) -> bool {
        self.0 & READ_CLOSED != 0
    }

    /// Whether our connect has neither succeeded nor failed.
    pub fn is_connecting(self) -> bool {
        self.0 & CONNECTING != 0
    }

    /// Whether a connect may have come to its end, one way or the other.
    pub fn may_have_connected(self) -> bool {
        self.0 & (CONNECTING | WRITABLE) == CONNECTING | WRITABLE
    }

    /// The connect was a success.
    pub fn now_connected(&mut self) {
        self.0 &= !CONNECTING;
    }

    /// Marks it as standing in the list for the next turn; false if it stood there already.
    pub fn postpone(&mut self) -> bool {
        let is_new = self.0 & POSTPONED == 0;
        self.0 |= POSTPONED;
        is_new
    }

    /// It has left that list.
    pub fn resume(&mut self) {
        self.0 &= !POSTPONED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_read_clears_the_latch_unless_the_end_is_in_sight() {
        let mut latches = Latches(READABLE);
        latches.short_read();
        assert!(!latches.may_read());
        let mut latches = Latches(READABLE | END_IN_SIGHT);
        assert!(latches.has_unread());
        latches.short_read();
        assert!(latches.may_read() && !latches.has_unread());
        latches.would_block_reading();
        assert!(!latches.may_read());
    }

    #[test]
    fn nothing_is_read_after_the_end_nor_written_after_a_failure() {
        let mut latches = Latches(READABLE | WRITABLE | END_IN_SIGHT);
        latches.read_closed();
        latches.write_closed();
        assert!(!latches.may_read() && !latches.may_write());
    }

    #[test]
    fn while_connecting_neither_direction_is_open() {
        let mut latches = Latches(CONNECTING);
        assert!(!latches.may_have_connected());
        latches.0 |= READABLE | WRITABLE;
        assert!(!latches.may_read() && !latches.may_write() && latches.may_have_connected());
        latches.now_connected();
        assert!(latches.may_read() && latches.may_write());
    }

    #[test]
    fn a_socket_is_postponed_once() {
        let mut latches = Latches::connected();
        assert!(latches.postpone());
        assert!(!latches.postpone());
        latches.resume();
        assert!(latches.postpone());
    }
}
