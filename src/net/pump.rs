//! Moves bytes between sockets and the engine's rings: the only code that runs for every query.
//!
//! ```text
//! runnable ──▶ fill: one read  ──▶ Input::Received ──▶ the engine decides
//!          ──▶ line up ──▶ drain: one write, together with others ──▶ Input::Sent
//! ```
//!
//! Each time that a connection is served, it reads and writes once at most. If more is possible it
//! goes to the back of the queue, and after its share of the turn (`sbuf_loopcnt` reads) to the
//! next turn, so that no bulk transfer keeps the others waiting.

use super::bulk::{Bulk, LARGE_BYTES};
use super::connect;
use super::dispatch::Dispatch;
use super::heart::Heart;
use super::sockets::{Found, Socket, Sockets, Stream};
use crate::engine::io::Input;
use crate::keys::Conn;
use crate::sys::uninterrupted;
use crate::tls::Session;
use crate::tls::stream::Scratch;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::time::Instant;

/// So many pieces leave in one system call.
pub(super) const MAX_SLICES: usize = 16;
/// Reads per connection and turn if the setting names no limit.
const UNLIMITED_SHARE: u8 = 64;
/// So much of what a peer still sends us is thrown away when we close.
const MAX_DISCARD_BYTES: usize = 64 * 1024;

/// Which turn it is, who waits for the next, and the large transfers.
#[derive(Default)]
pub struct Pump {
    pub(super) turn: u16,
    pub(super) postponed: Vec<Conn>,
    bulk: Bulk,
    pub(super) dispatch: Dispatch,
    /// Whose handshake can go on, longest first.
    pub(super) handshakes: VecDeque<Conn>,
    /// Memory for TLS, from the first session on.
    pub(super) scratch: Option<Box<Scratch>>,
}

impl Pump {
    /// Whether the next poll must not sleep.
    pub fn has_postponed(&self) -> bool {
        !self.postponed.is_empty() || !self.handshakes.is_empty()
    }

    /// When the kernel has kept something back for long enough.
    pub fn deadline(&self) -> Option<Instant> {
        self.bulk.deadline()
    }

    /// Serves all connections that may have work until none is left, or their shares are used.
    pub fn run<E: Heart>(&mut self, sockets: &mut Sockets, engine: &mut E, now: Instant) {
        self.turn = self.turn.wrapping_add(1);
        for conn in self.postponed.drain(..) {
            if let Some(socket) = sockets.get_mut(conn) {
                socket.latches.resume();
                engine.make_runnable(conn);
            }
        }
        self.shake_hands(sockets, engine, now);
        let share = share_of_turn(engine.settings().sbuf_loopcnt);
        loop {
            while let Some(conn) = engine.next_runnable() {
                match sockets.find(conn) {
                    Some(Found::Plain(socket)) => self.serve(conn, socket, share, engine, now),
                    Some(Found::Secured(socket, session)) => {
                        self.serve_secured(conn, (socket, session), share, engine, now);
                    }
                    None => {}
                }
                if self.dispatch.is_full() {
                    self.dispatch(sockets, engine, now);
                }
            }
            if self.dispatch.is_empty() {
                break;
            }
            self.dispatch(sockets, engine, now);
        }
        self.bulk.end_turn(sockets, now, |conn| engine.make_runnable(conn));
    }

    fn serve<E: Heart>(
        &mut self,
        conn: Conn,
        socket: &mut Socket,
        share: u8,
        engine: &mut E,
        now: Instant,
    ) {
        if let Conn::Server(server) = conn
            && socket.latches.may_have_connected()
        {
            connect::finish(server, socket, engine, now);
        }
        let mut has_more = hung_up(conn, socket, engine, now);
        if socket.latches.may_read() && engine.wants_read(conn) {
            if socket.take_share(self.turn, share) {
                // Only who got on is served again: a ring that stays full must not keep us here.
                has_more |= self.fill(conn, socket, engine, now) && socket.latches.may_read();
            } else if socket.latches.postpone() {
                self.postponed.push(conn);
            }
        }
        if socket.latches.may_write() && engine.wants_write(conn) {
            self.dispatch.line_up(conn);
        }
        if has_more {
            engine.make_runnable(conn);
        }
    }

    /// One read. False if there was no room, or nothing to read.
    fn fill<E: Heart>(
        &mut self,
        conn: Conn,
        socket: &mut Socket,
        engine: &mut E,
        now: Instant,
    ) -> bool {
        let Some([first, second]) = engine.inbox_room(conn) else {
            return false;
        };
        let room = first.len() + second.len();
        if room == 0 {
            return false; // a read of nothing would look like the end of the file
        }
        let result = uninterrupted(|| {
            if second.is_empty() {
                socket.stream.read(first)
            } else {
                let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
                socket.stream.read_vectored(&mut slices)
            }
        });
        match result {
            Ok(bytes) if bytes > 0 => {
                if bytes < room {
                    socket.latches.short_read();
                }
                engine.handle(Input::Received { conn, bytes }, now);
                if bytes >= LARGE_BYTES || self.bulk.is_watching() {
                    let has_more = engine.has_more_to_say(conn);
                    self.bulk.note_read((conn, &socket.stream), bytes, has_more, now);
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.latches.would_block_reading();
                engine.nothing_read(conn);
                if socket.latches.is_write_closed() {
                    engine.handle(Input::WriteClosed { conn }, now);
                }
                false
            }
            Ok(_) | Err(_) => {
                socket.latches.read_closed();
                engine.nothing_read(conn);
                engine.handle(Input::ReadClosed { conn }, now);
                true
            }
        }
    }

    /// One write, if there is something to write. Whether something left, and whether there is more than
    /// one write can take.
    pub(super) fn drain<E: Heart>(
        &mut self,
        conn: Conn,
        socket: &mut Socket,
        engine: &mut E,
        now: Instant,
    ) -> (bool, bool) {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let used = engine.outgoing(conn, &mut slices);
        let slices = &slices[..used];
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        if offered == 0 {
            return (false, false);
        }
        let result = self.write(conn, &mut socket.stream, (slices, offered), engine, now);
        let is_all = result.as_ref().is_ok_and(|bytes| *bytes == offered);
        let has_moved = settle_write(conn, socket, (offered, result), engine, now);
        (has_moved, used == MAX_SLICES && is_all)
    }

    /// Tells the kernel whether more is to come.
    fn write<E: Heart>(
        &mut self,
        conn: Conn,
        stream: &mut Stream,
        (slices, offered): (&[IoSlice<'_>], usize),
        engine: &E,
        now: Instant,
    ) -> io::Result<usize> {
        if offered < LARGE_BYTES || !engine.has_more_coming(conn) {
            return write(stream, slices);
        }
        let Some(mut result) = stream.write_corked(slices) else {
            return write(stream, slices);
        };
        while matches!(&result, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
            result = stream.write_corked(slices).expect("it is the same stream");
        }
        self.bulk.note_corked(conn, now);
        result
    }
}

/// Tells of a peer that is not read, because it waits, and has hung up. Whether that was so.
pub(super) fn hung_up<E: Heart>(
    conn: Conn,
    socket: &mut Socket,
    engine: &mut E,
    now: Instant,
) -> bool {
    let has_left = socket.latches.is_end_in_sight() && engine.minds_hang_up(conn);
    if has_left {
        socket.latches.read_closed();
        engine.handle(Input::ReadClosed { conn }, now);
    }
    has_left
}

/// A write has been tried. Whether anything has come of it, were it trouble.
fn settle_write<E: Heart>(
    conn: Conn,
    socket: &mut Socket,
    (offered, result): (usize, io::Result<usize>),
    engine: &mut E,
    now: Instant,
) -> bool {
    match result {
        Ok(bytes) if bytes > 0 => {
            if bytes < offered {
                socket.latches.short_write();
            }
            engine.handle(Input::Sent { conn, bytes }, now);
            true
        }
        trouble => settle_trouble(conn, socket, trouble, engine, now),
    }
}

/// A write has brought nothing. Whether that is for good.
pub(super) fn settle_trouble<E: Heart>(
    conn: Conn,
    socket: &mut Socket,
    result: io::Result<usize>,
    engine: &mut E,
    now: Instant,
) -> bool {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            socket.latches.short_write();
            false
        }
        Ok(_) | Err(_) => {
            write_failed(conn, socket, engine, now);
            true
        }
    }
}

/// A write failed.
pub(super) fn write_failed<E: Heart>(
    conn: Conn,
    socket: &mut Socket,
    engine: &mut E,
    now: Instant,
) {
    socket.latches.write_closed();
    if matches!(conn, Conn::Server(_)) && !socket.latches.is_read_closed() {
        // It may have said why, as a backend that is terminated does: that is read first.
        socket.latches.expect_data();
    } else {
        engine.handle(Input::WriteClosed { conn }, now);
    }
}

fn share_of_turn(sbuf_loopcnt: i32) -> u8 {
    match u8::try_from(sbuf_loopcnt) {
        Ok(0) => UNLIMITED_SHARE,
        Ok(share) => share,
        Err(_) if sbuf_loopcnt < 0 => UNLIMITED_SHARE,
        Err(_) => u8::MAX,
    }
}

/// The last words to a peer, then the socket closes.
///
/// The kernel answers with a reset instead of an orderly end if we close with data unread, and a
/// reset may overtake our last message. So what lies there already is thrown away, within limits.
pub fn farewell<E: Heart>(
    conn: Conn,
    (mut socket, session): (Socket, Option<Box<Session>>),
    engine: &E,
) {
    if socket.latches.may_write() {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let used = engine.outgoing(conn, &mut slices);
        if let Some(mut session) = session {
            session.close(&mut socket.stream, &slices[..used]);
        } else if used > 0 {
            // Whether it worked makes no difference any more.
            let _ = write(&mut socket.stream, &slices[..used]);
        }
    }
    if socket.latches.has_unread() {
        socket.stream.shutdown_write();
        discard(&mut socket.stream);
    }
}

fn discard(stream: &mut impl Read) {
    let mut bytes = [0; 4096];
    let mut discarded = 0;
    while discarded < MAX_DISCARD_BYTES {
        match uninterrupted(|| stream.read(&mut bytes)) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => discarded += bytes,
        }
    }
}

fn write(stream: &mut impl Write, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    uninterrupted(|| match slices {
        [only] => stream.write(only),
        several => stream.write_vectored(several),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_turn_is_never_nothing() {
        let cases = [(5, 5), (1, 1), (0, 64), (-1, 64), (i32::MIN, 64), (255, 255), (9999, 255)];
        for (setting, share) in cases {
            assert_eq!(share_of_turn(setting), share, "sbuf_loopcnt = {setting}");
        }
    }

    #[test]
    fn only_so_much_is_discarded() {
        let mut endless = io::repeat(7).take(10_000_000);
        discard(&mut endless);
        assert_eq!(endless.limit(), 10_000_000 - MAX_DISCARD_BYTES as u64);
    }
}
