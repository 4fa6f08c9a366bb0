//! ringbouncer, a connection pooler for PostgreSQL: the map of the house.
//!
//! One poll loop, two slabs of connections, fixed rings, explicit state machines. The heart is
//! the [`engine`]: it is told what happened ([`engine::io::Input`]) and what time it is, changes
//! its own memory, and says what it wants done ([`engine::io::Effect`]). Around it lies a thin
//! shell, [`net`], that owns sockets and clock and decides nothing.
//!
//! # The rooms
//!
//! From the ground up; a room uses only rooms that stand above it here.
//!
//! | room | what it is about |
//! |---|---|
//! | [`ring`], [`keys`], [`sys`] | the fixed ring buffer, typed keys, the calls of the system |
//! | [`wire`] | bytes and messages, without any state |
//! | [`config`] | files of text and the values in them |
//! | [`auth`] | who is this |
//! | [`session`] | one conversation: what a client or a server may say now |
//! | [`pool`] | who works for whom |
//! | [`engine`] | one function for each thing that can happen |
//! | [`console`] | the admin database: what it is asked, what it shows and does |
//! | [`tls`] | how bytes are protected on their way |
//! | [`net`] | the turn of the loop, sockets, listeners, signals |
//! | [`daemon`] | command line, log, pid file, start and end |
//!
//! # The life of one query
//!
//! In transaction pooling, from a client's socket to a server and back:
//!
//! 1. The loop wakes ([`net::EventLoop::turn`]), marks the client's socket readable and has
//!    [`net::pump`] *fill*: one read into the client's [`session::inbox::Inbox`], whose ring came
//!    from the pool of [`ring::Rings`] for that.
//! 2. [`engine::Engine::handle`] takes the `Received` and calls `Engine::client_received` in
//!    [`engine::clients`], which judges message after message.
//! 3. Nearly all messages need no more than a look at their heads: `engine::plain` sees that an idle
//!    client needs a server. For the others [`session::client::Client::judge`] turns a header
//!    ([`wire::frame::peek`]) into a [`session::client::Verdict`]. The body need not have come in: it
//!    streams.
//! 4. [`pool::House::acquire`] takes an idle server, or lets the client wait, and then
//!    `Engine::staff` in `engine::staffing` asks [`pool::House::opening`] whether to open
//!    another.
//! 5. [`pool::House::link`] ties the two together. In it [`session::params::catch_up`] writes what
//!    the server lacks of the client's parameters, ahead of the client's message.
//! 6. Now `engine::plain` passes on all that has come in: [`session::pipeline::Pipeline::expect`]
//!    notes each reply now owed, [`session::relay::stretch`] appends to the server's
//!    [`session::egress::Egress`] where the bytes lie. Nothing is copied. The pump *drains* it: one
//!    write, straight from the client's ring, and in the same system call as those of others
//!    (`net::dispatch`).
//! 7. The answer comes the same way: fill, `Engine::server_received` in [`engine::servers`]. Rows
//!    need no look ([`wire::frame::relay_run`]) and most replies only settle what is owed, so
//!    [`session::server::Server::take_plain_run`] makes one run of them all; what is left is for
//!    [`session::server::Server::judge`]. The client's egress learns of the bytes.
//! 8. ReadyForQuery, outside of a transaction, nothing owed ([`pool::House::may_release`]): the
//!    server is unlinked ([`pool::House::unlink`]), and what the client has not been sent yet moves
//!    over to it with the whole ring, so that a slow reader never keeps a server.
//!    [`pool::House::after_work`] decides: reset query, closing, or free for the longest waiting
//!    client (`Engine::server_is_free`), which is at step 5 then.
//!
//! Where to change something: a setting is a row in [`config::settings`], a text for a peer stands
//! in [`session::farewell`], a state and its exits are in [`session::client::State`] and
//! [`session::server::State`], a law of the whole is in [`engine::check`].

pub mod auth;
pub mod config;
pub mod console;
pub mod daemon;
pub mod engine;
pub mod keys;
pub mod net;
pub mod pool;
pub mod ring;
pub mod session;
pub mod sys;
pub mod tls;
pub mod wire;
