//! Large transfers, in larger pieces.
//!
//! PostgreSQL sends a large result in pieces of 8 KiB. Passed on one by one, each wakes us, then
//! the client, and costs a packet on both sides; measured, that is most of what a result costs. So
//! in the middle of one
//!
//! - *writes are corked*: the kernel is told that more is to come and sends full packets only;
//! - *reads are patient*, from the first megabyte on: the kernel does not wake us for less than
//!   half a ring.
//!
//! Law: a socket of which something is kept back has an entry here, and an entry lives for a
//! millisecond after its last read or write. Then all is pushed or fetched, whatever it is; and the
//! next megabyte has to show anew that this is a large transfer.

use super::sockets::{Sockets, Stream};
use crate::keys::Conn;
use std::time::{Duration, Instant};

/// A read or write of so many bytes may belong to a large transfer.
pub const LARGE_BYTES: usize = 4096;
/// From so many bytes on we read patiently.
const PATIENT_FROM_BYTES: u64 = 1024 * 1024;
/// Half a ring: while we pass it on, the other half can fill.
const PATIENCE_BYTES: i32 = 32 * 1024;
/// So long is something kept back at most.
const LIMIT: Duration = Duration::from_millis(1);

/// A connection that sends us much.
#[derive(Debug)]
struct Inflow {
    conn: Conn,
    bytes: u64,
    last_read: Instant,
    is_patient: bool,
}

/// All large transfers that are under way.
#[derive(Debug, Default)]
pub struct Bulk {
    inflows: Vec<Inflow>,
    /// To whom a corked write went, and when the last one.
    corked: Vec<(Conn, Instant)>,
}

impl Bulk {
    /// When something will have been kept back for long enough.
    pub fn deadline(&self) -> Option<Instant> {
        let reads = self.inflows.iter().filter(|inflow| inflow.is_patient);
        let reads = reads.map(|inflow| inflow.last_read);
        let writes = self.corked.iter().map(|(_, last_write)| *last_write);
        reads.chain(writes).min().map(|last| last + LIMIT)
    }

    /// Whether reads of any size matter: those that end a transfer are small.
    pub fn is_watching(&self) -> bool {
        !self.inflows.is_empty()
    }

    /// So many bytes were read. `has_more`: they end in the middle of something.
    pub fn note_read(
        &mut self,
        (conn, stream): (Conn, &Stream),
        bytes: usize,
        has_more: bool,
        now: Instant,
    ) {
        let place = self.inflows.iter().position(|inflow| inflow.conn == conn);
        match (place, has_more) {
            (Some(place), true) => {
                let inflow = &mut self.inflows[place];
                inflow.bytes += bytes as u64;
                inflow.last_read = now;
                if !inflow.is_patient && inflow.bytes >= PATIENT_FROM_BYTES {
                    inflow.is_patient = stream.wake_from(PATIENCE_BYTES);
                }
            }
            (Some(place), false) => {
                if self.inflows.swap_remove(place).is_patient {
                    stream.wake_from(1);
                }
            }
            (None, true) if bytes >= LARGE_BYTES => {
                let bytes = bytes as u64;
                self.inflows.push(Inflow { conn, bytes, last_read: now, is_patient: false });
            }
            (None, _) => {}
        }
    }

    /// The kernel may keep back the end of what was just written.
    pub fn note_corked(&mut self, conn: Conn, now: Instant) {
        match self.corked.iter_mut().find(|(corked, _)| *corked == conn) {
            Some((_, last_write)) => *last_write = now,
            None => self.corked.push((conn, now)),
        }
    }

    /// Ends what has been kept back for long enough: it is pushed, or `fetch` is to read it.
    pub fn end_turn(&mut self, sockets: &mut Sockets, now: Instant, mut fetch: impl FnMut(Conn)) {
        self.corked.retain(|&(conn, last_write)| {
            let is_due = last_write + LIMIT <= now;
            if let (true, Some(socket)) = (is_due, sockets.get_mut(conn)) {
                socket.stream.uncork();
            }
            !is_due
        });
        self.inflows.retain(|inflow| {
            let is_due = inflow.last_read + LIMIT <= now;
            if let (true, true, Some(socket)) =
                (is_due, inflow.is_patient, sockets.get_mut(inflow.conn))
            {
                socket.stream.wake_from(1);
                socket.latches.expect_data();
                fetch(inflow.conn);
            }
            !is_due
        });
    }
}
