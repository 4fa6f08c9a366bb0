//! What the connections of a turn have to write leaves together, where the kernel allows it: see
//! [`Together`]. Who is alone, or has much to write, is written to by himself.
//!
//! So what is to be written waits until nobody has anything left to read, or until so many wait: as
//! long as some reads take. In return a busy pooler is not stopped behind each write by whom that
//! woke, which took a seventh of all its CPU with 16 clients and a fifth with 500, measured by
//! `bench/`. (The clients get their answers sooner, too.)

use super::bulk::LARGE_BYTES;
use super::heart::Heart;
use super::pump::{Pump, settle_trouble};
use super::sockets::{Found, Sockets};
use crate::engine::io::Sent;
use crate::keys::Conn;
use crate::sys::together::{MOST, Together};
use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::time::Instant;

/// Whoever has more pieces to write is written to by himself.
const FEW_SLICES: usize = 4;

/// Those who have something to write.
#[derive(Debug, Default)]
pub struct Dispatch {
    waiting: Vec<Conn>,
    way: Way,
}

#[derive(Debug, Default)]
enum Way {
    /// Not known yet. (A process that forks has to ask anew, so that is done late.)
    #[default]
    Untried,
    Together(Box<Together>),
    /// The kernel has no such call, or does not let us.
    Alone,
}

impl Dispatch {
    /// Somebody has something to write.
    #[inline]
    pub fn line_up(&mut self, conn: Conn) {
        if !self.waiting.contains(&conn) {
            self.waiting.push(conn);
        }
    }

    /// Whether they have to be written to before others are.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.waiting.len() == MOST
    }

    /// Whether nobody has.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn together(&mut self) -> Option<&mut Together> {
        if let Way::Untried = self.way {
            self.way = match Together::new() {
                Ok(together) => Way::Together(Box::new(together)),
                Err(error) => {
                    log::debug!("io_setup() failed: {}", crate::sys::error_text(&error));
                    Way::Alone
                }
            };
        }
        match &mut self.way {
            Way::Together(together) => Some(together),
            Way::Untried | Way::Alone => None,
        }
    }

    /// What came of one of those that were written together.
    fn result(&self, index: usize) -> Option<io::Result<usize>> {
        match &self.way {
            Way::Together(together) => together.result(index),
            Way::Untried | Way::Alone => None,
        }
    }
}

impl Pump {
    /// Writes to all who have lined up, once each.
    pub(super) fn dispatch<E: Heart>(
        &mut self,
        sockets: &mut Sockets,
        engine: &mut E,
        now: Instant,
    ) {
        let mut waiting = std::mem::take(&mut self.dispatch.waiting);
        let mut offered = [0; MOST];
        if waiting.len() > 1
            && let Some(together) = self.dispatch.together()
        {
            let is_taken;
            (offered, is_taken) = offer(&waiting, sockets, engine, together);
            if !is_taken {
                log::debug!("io_submit() is of no use here");
                self.dispatch.way = Way::Alone;
            }
        }
        self.settle(&waiting, &offered, sockets, engine, now);
        waiting.clear();
        self.dispatch.waiting = waiting;
    }

    /// What has left is noted first, all of it; then comes what follows from that, and from what could
    /// not be written.
    fn settle<E: Heart>(
        &mut self,
        waiting: &[Conn],
        offered: &[usize; MOST],
        sockets: &mut Sockets,
        engine: &mut E,
        now: Instant,
    ) {
        let mut sent = [Sent::new(waiting[0], 0); MOST];
        let mut count = 0;
        for (index, conn) in waiting.iter().enumerate().filter(|(index, _)| offered[*index] > 0) {
            if let Some(Ok(bytes @ 1..)) = self.dispatch.result(index) {
                sent[count] = Sent::new(*conn, bytes);
                count += 1;
            }
        }
        engine.sent(&mut sent[..count], now);
        for ((index, conn), offered) in waiting.iter().copied().enumerate().zip(*offered) {
            let Some(Found::Plain(socket)) = sockets.find(conn) else {
                continue;
            };
            let result = self.dispatch.result(index).filter(|_| offered > 0);
            let (has_moved, has_unsent) = match result {
                Some(Ok(bytes @ 1..)) => {
                    if bytes < offered {
                        socket.latches.short_write();
                    }
                    (true, false)
                }
                Some(trouble) => (settle_trouble(conn, socket, trouble, engine, now), false),
                None if socket.latches.may_write() && engine.wants_write(conn) => {
                    self.drain(conn, socket, engine, now)
                }
                None => continue,
            };
            // What left may have made room to read.
            let has_room = has_moved && socket.latches.may_read() && engine.wants_read(conn);
            if has_unsent || has_room {
                engine.make_runnable(conn);
            }
        }
    }
}

/// Has all of them written to who have little to write. How many bytes each of them has, or none; and
/// whether the kernel does that.
fn offer<E: Heart>(
    waiting: &[Conn],
    sockets: &mut Sockets,
    engine: &E,
    together: &mut Together,
) -> ([usize; MOST], bool) {
    let mut offered = [0; MOST];
    let mut slices = [[IoSlice::new(&[]); FEW_SLICES]; MOST];
    let mut writes: [(RawFd, &[IoSlice<'_>]); MOST] = [(-1, &[]); MOST];
    let places = writes.iter_mut().zip(&mut slices).zip(&mut offered);
    for (conn, ((write, slices), offered)) in waiting.iter().zip(places) {
        let Some(Found::Plain(socket)) = sockets.find(*conn) else {
            continue;
        };
        if !socket.latches.may_write() || !engine.wants_write(*conn) {
            continue;
        }
        let used = engine.outgoing(*conn, slices);
        let slices = &slices[..used];
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        if used < FEW_SLICES && bytes < LARGE_BYTES {
            (*write, *offered) = ((socket.stream.descriptor(), slices), bytes);
        }
    }
    let is_taken = together.write(&writes[..waiting.len()]);
    (offered, is_taken)
}
