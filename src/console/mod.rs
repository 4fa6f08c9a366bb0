//! The admin console: the database `pgbouncer`.
//!
//! It stands above the engine, reads the house and operates on it, and is asked through an
//! effect: [`crate::engine::io::Effect::Attend`] says that a client of the console has something
//! for it, and whoever performs that calls [`Console::attend`].
//!
//! ```text
//! attend ─ message ─▶ parse ─▶ rights ─▶ command ─▶ engine::operate, or an Order for the daemon
//!    ▲                                      └─────▶ show ─▶ table ─▶ at most a ring of bytes
//!    └── room for more ◀── the client takes them ◀──────────────────────────┘
//! ```
//!
//! A [`session::Session`] is what the console remembers of a client: what is still to be done and
//! said. What a client has not taken is never more than a ring and one row, however long the table
//! is and however slowly it reads; rows of connections are written when there is room for them.

pub mod command;
pub mod extended;
mod handover;
pub mod metrics;
pub mod parse;
pub mod rights;
pub mod session;
pub mod show;
pub mod table;

use crate::engine::Engine;
use crate::engine::operate::End;
use crate::keys::{ClientKey, Conn};
use session::{Session, Waiting};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

/// One point in time on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For spans.
    pub now: Instant,
    /// For people.
    pub wall: SystemTime,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerFacts {
    /// Its descriptor.
    pub descriptor: i32,
    /// Its address, or `unix`.
    pub address: String,
}

/// What only the shell around the engine knows.
pub trait Outside {
    /// Our own end of a connection; none for Unix sockets.
    fn local_address(&self, conn: Conn) -> Option<SocketAddr>;
    /// Its descriptor.
    fn descriptor(&self, conn: Conn) -> Option<i32>;
    /// The sockets that we listen on.
    fn listeners(&self) -> Vec<ListenerFacts>;
}

/// Something that is beyond the engine: the daemon does it, and answers by [`Console::answer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration again.
    Reload,
    /// Change one setting.
    Set {
        /// Its name.
        key: String,
        /// Its new value.
        value: String,
    },
    /// End the process.
    Shutdown(End),
    /// Send rows with descriptors, now and in order.
    HandOver {
        /// What comes before the rows.
        head: Vec<u8>,
        /// Each with its descriptor.
        rows: Vec<(i32, Vec<u8>)>,
    },
}

/// What came of an [`Order`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done: this is the tag.
    Done(String),
    /// It is done, but there is something to be said.
    DoneWith {
        /// What the client is to know.
        notice: &'static str,
        /// The tag.
        tag: String,
    },
    /// It failed.
    Failed {
        /// The SQLSTATE.
        code: &'static str,
        /// What to tell the client.
        text: String,
    },
}

/// See the module's page.
#[derive(Default)]
pub struct Console {
    sessions: HashMap<ClientKey, Session>,
    orders: VecDeque<(ClientKey, Order)>,
    /// Those who wait for something to become true, and for what.
    waiting: Vec<(ClientKey, Waiting)>,
}

impl Console {
    /// A client has something for us, or room for more.
    pub fn attend(
        &mut self,
        engine: &mut Engine,
        client: ClientKey,
        outside: &dyn Outside,
        moment: Moment,
    ) {
        let session = self.sessions.entry(client).or_default();
        let mut desk = session::Desk { engine, client, outside, moment };
        while let Some(event) = session.step(&mut desk) {
            match event {
                session::Event::Order(order) => self.orders.push_back((client, order)),
                session::Event::Wait(waiting) => self.waiting.push((client, waiting)),
            }
        }
        if engine.console_rights(client).is_none() {
            self.forget(client);
        }
    }

    /// A client's connection has gone.
    pub fn forget(&mut self, client: ClientKey) {
        if !self.sessions.is_empty() {
            self.sessions.remove(&client);
        }
        self.waiting.retain(|(waiting, _)| *waiting != client);
    }

    /// What the daemon is to do next, and for whom.
    pub fn next_order(&mut self) -> Option<(ClientKey, Order)> {
        self.orders.pop_front()
    }

    /// Whether there is anything of that.
    pub fn has_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Whether anybody waits for something to come true.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What came of an order. A client that has gone in the meantime is not told.
    pub fn answer(&mut self, engine: &mut Engine, client: ClientKey, answer: Answer) {
        self.answer_to(engine, client, (None, answer));
    }

    fn answer_to(
        &mut self,
        engine: &mut Engine,
        client: ClientKey,
        answer: (Option<&Waiting>, Answer),
    ) {
        if let Some(session) = self.sessions.get_mut(&client) {
            session.answer(engine, client, answer);
            engine.attend_again(client);
        }
    }

    /// Answers those for whom what they wait for has come true. Called at the end of each turn.
    pub fn settle(&mut self, engine: &mut Engine) {
        let waiting = std::mem::take(&mut self.waiting);
        let mut answered = Vec::new();
        for (client, what) in waiting {
            // What is behind one answer is said before the next: that one has its time next turn.
            match command::has_come_true(engine, &what).filter(|_| !answered.contains(&client)) {
                None => self.waiting.push((client, what)),
                Some(answer) => {
                    answered.push(client);
                    self.answer_to(engine, client, (Some(&what), answer));
                }
            }
        }
    }

    /// Somebody cancels what this client waits for.
    pub fn cancel(&mut self, engine: &mut Engine, client: ClientKey, now: Instant) {
        let was_waiting = self.waiting.iter().any(|(waiting, _)| *waiting == client);
        if !was_waiting {
            log::warn!("admin cancel request for non-waiting client?");
        }
        // As PgBouncer: who cancels a PAUSE does not want one.
        engine.resume(now);
        if let Some(place) = self.waiting.iter().position(|(waiting, _)| *waiting == client) {
            let (_, what) = self.waiting.remove(place);
            let text = "canceling statement due to user request".to_owned();
            let failed = Answer::Failed { code: "57014", text };
            self.answer_to(engine, client, (Some(&what), failed));
        }
    }
}
