//! The pump for connections whose bytes go through TLS.
//!
//! A handshake is work: a signature takes a thousand times as long as passing on a query. So
//! handshakes stand in a queue of their own, of which each turn serves the first few. A storm of
//! them takes its time, and nobody else's.

use super::heart::Heart;
use super::pump::{self, MAX_SLICES, Pump, hung_up};
use super::sockets::{Found, Socket, Sockets};
use crate::engine::io::Input;
use crate::keys::Conn;
use crate::tls::Session;
use crate::tls::stream::{Drained, Filled, Shaken};
use std::io::{self, IoSlice};
use std::time::Instant;

/// So many handshakes go on a step in a turn. A turn is short, so few are enough to keep busy.
const HANDSHAKES_PER_TURN: usize = 2;

impl Pump {
    /// The first of the queue go on.
    pub(super) fn shake_hands<E: Heart>(
        &mut self,
        sockets: &mut Sockets,
        engine: &mut E,
        now: Instant,
    ) {
        for _ in 0..HANDSHAKES_PER_TURN {
            let Some(conn) = self.handshakes.pop_front() else {
                return;
            };
            if let Some(Found::Secured(socket, session)) = sockets.find(conn) {
                session.is_queued = false;
                self.shake_hand(conn, (socket, session), engine, now);
            }
        }
    }

    fn shake_hand<E: Heart>(
        &mut self,
        conn: Conn,
        (socket, session): (&mut Socket, &mut Session),
        engine: &mut E,
        now: Instant,
    ) {
        let scratch = self.scratch.get_or_insert_default();
        let may_read = socket.latches.may_read();
        let (shaken, read) = session.shake_hands(&mut socket.stream, may_read, scratch);
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.latches.would_block_reading();
            }
            Ok(true) if may_read => socket.latches.short_read(),
            Ok(_) | Err(_) => {}
        }
        if session.has_unsent() {
            socket.latches.short_write();
        }
        match shaken {
            Shaken::NotYet => {}
            Shaken::Done(secured) => engine.handle(Input::TlsReady { conn, secured }, now),
            Shaken::Left => {
                socket.latches.read_closed();
                engine.handle(Input::ReadClosed { conn }, now);
            }
            Shaken::Failed(error) => {
                let failed = Input::TlsFailed { conn, error, is_ours: false };
                engine.handle(failed, now);
            }
        }
        engine.make_runnable(conn);
    }

    /// As for a plain socket: one read and one write at most.
    pub(super) fn serve_secured<E: Heart>(
        &mut self,
        conn: Conn,
        (socket, session): (&mut Socket, &mut Session),
        share: u8,
        engine: &mut E,
        now: Instant,
    ) {
        if session.is_handshaking() {
            let may_send = session.has_unsent() && socket.latches.may_write();
            let has_work = socket.latches.may_read() || session.has_unread() || may_send;
            if has_work && !std::mem::replace(&mut session.is_queued, true) {
                self.handshakes.push_back(conn);
            }
            return;
        }
        let may_read = |socket: &Socket, session: &Session| {
            let is_open = !socket.latches.is_read_closed();
            socket.latches.may_read() || session.has_unread() && is_open
        };
        let mut has_more = hung_up(conn, socket, engine, now);
        if may_read(socket, session) && engine.wants_read(conn) {
            if socket.take_share(self.turn, share) {
                let got_on = self.fill_secured(conn, (socket, session), engine, now);
                has_more |= got_on && may_read(socket, session);
            } else if socket.latches.postpone() {
                self.postponed.push(conn);
            }
        }
        let has_unsent = session.has_unsent() || engine.wants_write(conn);
        if socket.latches.may_write() && has_unsent {
            let (moved, unsent) = self.drain_secured(conn, (socket, session), engine, now);
            let has_room = moved && may_read(socket, session) && engine.wants_read(conn);
            has_more |= unsent || has_room;
        }
        if has_more {
            engine.make_runnable(conn);
        }
    }

    /// One read. False if there was no room, or nothing to read.
    fn fill_secured<E: Heart>(
        &mut self,
        conn: Conn,
        (socket, session): (&mut Socket, &mut Session),
        engine: &mut E,
        now: Instant,
    ) -> bool {
        let Some(room) = engine.inbox_room(conn) else {
            return false;
        };
        if room.iter().all(|part| part.is_empty()) {
            return false;
        }
        let scratch = self.scratch.get_or_insert_default();
        let may_read = socket.latches.may_read();
        let (filled, is_short) = session.fill(&mut socket.stream, may_read, room, scratch);
        match filled {
            Filled::Bytes(bytes) => {
                if is_short {
                    socket.latches.short_read();
                }
                self.received(conn, bytes, engine, now);
                true
            }
            Filled::Blocked => {
                socket.latches.would_block_reading();
                engine.nothing_read(conn);
                if socket.latches.is_write_closed() {
                    engine.handle(Input::WriteClosed { conn }, now);
                }
                false
            }
            Filled::Closed(bytes) => {
                socket.latches.read_closed();
                self.received(conn, bytes, engine, now);
                engine.handle(Input::ReadClosed { conn }, now);
                true
            }
        }
    }

    fn received<E: Heart>(&mut self, conn: Conn, bytes: usize, engine: &mut E, now: Instant) {
        match bytes {
            0 => engine.nothing_read(conn),
            bytes => engine.handle(Input::Received { conn, bytes }, now),
        }
    }

    /// One write. Whether something left, and whether there is more.
    fn drain_secured<E: Heart>(
        &mut self,
        conn: Conn,
        (socket, session): (&mut Socket, &mut Session),
        engine: &mut E,
        now: Instant,
    ) -> (bool, bool) {
        let scratch = self.scratch.get_or_insert_default();
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let used = engine.outgoing(conn, &mut slices);
        match session.drain(&mut socket.stream, &slices[..used], scratch) {
            Drained::All(bytes) => {
                // Of a server that is being closed the engine has forgotten what was on its way.
                if bytes > 0 && engine.wants_write(conn) {
                    engine.handle(Input::Sent { conn, bytes }, now);
                }
                (true, engine.wants_write(conn))
            }
            Drained::Blocked => {
                socket.latches.short_write();
                (false, false)
            }
            Drained::Closed => {
                pump::write_failed(conn, socket, engine, now);
                (true, false)
            }
        }
    }
}
