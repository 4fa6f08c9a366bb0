//! What the shell asks of the engine, as a trait, so that the shell can be tested with an engine
//! that merely echoes. Dispatch is static: it costs nothing.

use crate::config::settings::Settings;
use crate::console::metrics::{self, Dialect};
use crate::console::show::View;
use crate::console::{Console, Moment, Outside};
use crate::engine::Engine;
use crate::engine::io::{ClientAddress, Effect, Input, Sent};
use crate::keys::{ClientKey, Conn};
use std::io::IoSlice;
use std::time::Instant;

/// The engine as the shell sees it.
pub trait Heart {
    /// A new client; `secret` is unpredictable.
    fn accept(&mut self, from: ClientAddress, secret: [u8; 8], now: Instant) -> ClientKey;
    /// Something happened.
    fn handle(&mut self, input: Input, now: Instant);
    /// These were written together.
    fn sent(&mut self, all: &mut [Sent], now: Instant);
    /// What it wants done next.
    fn next_effect(&mut self) -> Option<Effect>;
    /// When it wants a [`Input::Tick`] at the latest.
    fn next_deadline(&self) -> Option<Instant>;
    /// Takes out a connection that may have work.
    fn next_runnable(&mut self) -> Option<Conn>;
    /// Puts one in, at most once at a time; keys of connections that have gone are ignored.
    fn make_runnable(&mut self, conn: Conn);
    /// The same when an event said so.
    fn wake(&mut self, conn: Conn) {
        self.make_runnable(conn);
    }
    /// Whether there is one.
    fn has_runnable(&self) -> bool;
    /// Whether there is room for what a read would bring.
    fn wants_read(&self, conn: Conn) -> bool;
    /// Whether it is not read now, and its peer's hanging up is to be told all the same.
    fn minds_hang_up(&self, _conn: Conn) -> bool {
        false
    }
    /// Whether anything waits to be written.
    fn wants_write(&self, conn: Conn) -> bool;
    /// Where to read to; the second slice is empty unless the free space wraps. When this is
    /// `None` or empty, the engine makes the connection runnable once there is room.
    fn inbox_room(&mut self, conn: Conn) -> Option<[&mut [u8]; 2]>;
    /// The read brought nothing.
    fn nothing_read(&mut self, conn: Conn);
    /// What to write, in order; returns how many slices it has set.
    fn outgoing<'a>(&'a self, conn: Conn, slices: &mut [IoSlice<'a>]) -> usize;
    /// Whether what it has sent so far ends in the middle of something, the rest of which is coming.
    fn has_more_to_say(&self, conn: Conn) -> bool;
    /// Whether what is to be written ends in the middle of something, the rest of which is coming.
    fn has_more_coming(&self, conn: Conn) -> bool;
    /// The socket is closed: the slot is free.
    fn forget(&mut self, conn: Conn);
    /// The settings as they are now.
    fn settings(&self) -> &Settings;
    /// A client of the console has something for it.
    fn attend(
        &mut self,
        console: &mut Console,
        client: ClientKey,
        outside: &dyn Outside,
        at: Moment,
    );
    /// Somebody cancels what a client of the console waits for.
    fn cancel_attendance(&mut self, console: &mut Console, client: ClientKey, now: Instant);
    /// Those who wait on the console may have what they wait for.
    fn settle(&mut self, console: &mut Console);
    /// The page of metrics.
    fn metrics(&self, outside: &dyn Outside, at: Moment, dialect: Dialect) -> String;
    /// Whether a client that comes now can be served.
    fn is_ready(&self) -> bool;
    /// Whether nobody is let in for now: who knocks waits in the kernel's queue.
    fn holds_listeners(&self) -> bool {
        false
    }
    /// Whether there is nothing left to turn for.
    fn is_over(&self) -> bool;
}

impl Heart for Engine {
    fn accept(&mut self, from: ClientAddress, secret: [u8; 8], now: Instant) -> ClientKey {
        Engine::accept(self, from, secret, now)
    }
    fn handle(&mut self, input: Input, now: Instant) {
        Engine::handle(self, input, now);
    }
    fn sent(&mut self, all: &mut [Sent], now: Instant) {
        Engine::sent(self, all, now);
    }
    fn next_effect(&mut self) -> Option<Effect> {
        Engine::next_effect(self)
    }
    fn next_deadline(&self) -> Option<Instant> {
        Engine::next_deadline(self)
    }
    fn next_runnable(&mut self) -> Option<Conn> {
        Engine::next_runnable(self)
    }
    fn make_runnable(&mut self, conn: Conn) {
        Engine::make_runnable(self, conn);
    }
    fn wake(&mut self, conn: Conn) {
        Engine::wake(self, conn);
    }
    fn has_runnable(&self) -> bool {
        Engine::has_runnable(self)
    }
    fn wants_read(&self, conn: Conn) -> bool {
        Engine::wants_read(self, conn)
    }
    fn minds_hang_up(&self, conn: Conn) -> bool {
        Engine::minds_hang_up(self, conn)
    }
    fn wants_write(&self, conn: Conn) -> bool {
        Engine::wants_write(self, conn)
    }
    fn inbox_room(&mut self, conn: Conn) -> Option<[&mut [u8]; 2]> {
        Engine::inbox_room(self, conn)
    }
    fn nothing_read(&mut self, conn: Conn) {
        Engine::nothing_read(self, conn);
    }
    fn outgoing<'a>(&'a self, conn: Conn, slices: &mut [IoSlice<'a>]) -> usize {
        Engine::outgoing(self, conn, slices)
    }
    fn has_more_to_say(&self, conn: Conn) -> bool {
        Engine::has_more_to_say(self, conn)
    }
    fn has_more_coming(&self, conn: Conn) -> bool {
        Engine::has_more_coming(self, conn)
    }
    fn forget(&mut self, conn: Conn) {
        Engine::forget(self, conn);
    }
    fn settings(&self) -> &Settings {
        Engine::settings(self)
    }
    fn attend(
        &mut self,
        console: &mut Console,
        client: ClientKey,
        outside: &dyn Outside,
        at: Moment,
    ) {
        console.attend(self, client, outside, at);
    }
    fn cancel_attendance(&mut self, console: &mut Console, client: ClientKey, now: Instant) {
        console.cancel(self, client, now);
    }
    fn settle(&mut self, console: &mut Console) {
        console.settle(self);
    }
    fn metrics(&self, outside: &dyn Outside, moment: Moment, dialect: Dialect) -> String {
        metrics::page(&View { engine: self, outside, asker: None, moment }, dialect)
    }
    fn is_ready(&self) -> bool {
        Engine::is_ready(self)
    }
    fn holds_listeners(&self) -> bool {
        Engine::holds_listeners(self)
    }
    fn is_over(&self) -> bool {
        Engine::is_over(self)
    }
}
