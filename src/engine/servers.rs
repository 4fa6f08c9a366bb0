//! What can happen to a server that has logged in, one function each.

use crate::config::values::PoolMode;
use crate::engine::step::{Step, last_step};
use crate::engine::{Engine, doubts, statements};
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::link::Released;
use crate::pool::queues::End;
use crate::pool::stats::Counters;
use crate::pool::times::Times;
use crate::pool::{House, Pool};
use crate::ring::Rings;
use crate::session::client::{self, Client};
use crate::session::farewell::Reason;
use crate::session::params::{Tracked, Values};
use crate::session::pipeline::{Action, Lost};
use crate::session::relay;
use crate::session::server::{Activity, Note, Rules, Server, State, Verdict};
use crate::wire::backend::{self, ErrorFields, Reply};
use crate::wire::emit;
use crate::wire::frame;
use std::time::Instant;

impl Engine {
    /// Bytes came from a server.
    pub(super) fn server_received(&mut self, key: ServerKey, bytes: usize, now: Instant) {
        let Some(server) = self.house.servers.get_mut(key) else {
            return;
        };
        server.inbox.filled(bytes);
        server.spoke_at = now;
        match server.state {
            State::LoggingIn(_) => self.server_login_received(key, now),
            State::AskingForTls(_) => self.ssl_answer_received(key, now),
            State::Asking { .. } => self.answer_received(key, now),
            _ => self.server_goes_on(key, now),
        }
    }

    /// Judges a server's messages, as far as that can be done now, and frees it if that was all.
    pub(super) fn server_goes_on(&mut self, key: ServerKey, now: Instant) {
        if let Some(reason) = self.judge_server(key, now) {
            self.close_server(key, reason, now);
            return;
        }
        let House { clients, servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        let Some(client_key) = server.client() else {
            server.inbox.tidy(None, rings);
            self.server_may_be_free(key, now);
            return;
        };
        let client = clients.get_mut(client_key).expect("links are written at both ends");
        server.inbox.tidy(client.egress.first_run(), rings);
        // Its next message may have waited for replies, or for the catch-up.
        let is_held_back = client.inbox.unjudged() > 0 || server.pipeline.is_in_doubt();
        self.make_runnable(Conn::Client(client_key));
        if is_held_back {
            self.client_goes_on(client_key, now);
        }
        self.server_may_be_free(key, now);
    }

    /// Moves a server on whose work is done.
    #[inline]
    pub(super) fn server_may_be_free(&mut self, key: ServerKey, now: Instant) {
        let Some(server) = self.house.servers.get(key) else {
            return;
        };
        match server.state {
            State::Rescuing(_) => self.rescue_goes_on(key, now),
            _ if !server.is_done() => {}
            State::Active { .. } if self.house.may_release(key) => self.release(key, now),
            State::Idle { .. } => self.settle_down(key, false, now),
            State::Resetting { .. } | State::Checking { .. } => {
                self.settle_down(key, false, now);
                self.watch(Conn::Server(key), now);
            }
            _ => {}
        }
    }

    /// Judges all messages that can be judged now; the reason, if that ends the connection.
    fn judge_server(&mut self, key: ServerKey, now: Instant) -> Option<Reason> {
        let max_packet_bytes = self.config.settings.max_packet_size;
        let House { clients, servers, pools, values, tracked, rings, .. } = &mut self.house;
        let server = servers.get_mut(key)?;
        let last = match server.state {
            State::Active { client } => {
                let client = clients.get_mut(client).expect("links are written at both ends");
                let pool = pools.get_mut(server.pool).expect("a server's pool outlives it");
                let mode = match server.replicates_for {
                    None => pool.mode,
                    Some(_) => PoolMode::Session,
                };
                let rules = Rules { max_packet_bytes, mode };
                let Pool { stats, times, .. } = pool;
                let counters = &mut stats.total;
                let mut tools = Tools { tracked, values, rings, counters, times, now };
                last_step(|| match statements::emit_made_up(client, server, tools.rings) {
                    true => linked_step(server, client, rules, &mut tools),
                    false => Step::Wait,
                })
            }
            State::Idle { .. }
            | State::Used { .. }
            | State::HeldForCancel
            | State::Resetting { .. }
            | State::Checking { .. } => return self.judge_unlinked(key, now),
            State::Rescuing(_) => return self.judge_rescued(key, now),
            State::CarryingCancel { .. } | State::Forwarding { .. } => {
                let bytes = server.inbox.unjudged();
                server.inbox.skip(bytes);
                Step::Wait
            }
            State::Unlinked { .. }
            | State::Asking { .. }
            | State::Connecting(_)
            | State::AskingForTls(_)
            | State::StartingTls(_)
            | State::LoggingIn(_)
            | State::Closing => Step::Wait,
            // It has nothing more to say to us.
            State::Leaving(_) => {
                server.inbox.skip(server.inbox.unjudged());
                Step::Wait
            }
        };
        match last {
            Step::Close(reason) => Some(reason),
            Step::Next | Step::Wait | Step::NeedServer => None,
        }
    }

    /// A server's socket took bytes. Whether somebody waited for that; `None`: it has gone.
    pub(super) fn note_server_sent(&mut self, key: ServerKey, bytes: usize) -> Option<bool> {
        let House { servers, rings, .. } = &mut self.house;
        let server = servers.get_mut(key)?;
        let was_full = server.egress.is_full();
        server.egress.sent(bytes, rings);
        Some(was_full)
    }

    /// There is room for more.
    pub(super) fn server_sent(&mut self, key: ServerKey, was_full: bool, now: Instant) {
        let House { clients, servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        let Some(client_key) = server.client() else {
            self.server_may_be_free(key, now);
            return;
        };
        if let Some(client) = clients.get_mut(client_key) {
            let was_stuck = was_full
                || !client.inbox.has_room()
                || client.inbox.unjudged() > 0
                || server.pipeline.is_in_doubt();
            client.inbox.tidy(server.egress.first_run(), rings);
            if was_stuck {
                self.client_goes_on(client_key, now);
                self.make_runnable(Conn::Client(client_key));
            }
        }
        self.server_may_be_free(key, now);
    }

    /// A server will send nothing more.
    pub(super) fn server_read_closed(&mut self, key: ServerKey, now: Instant) {
        if self.has_left(key, now) {
            return;
        }
        let state = self.house.servers.get(key).map(|server| &server.state);
        let reason = match state {
            Some(State::CarryingCancel { .. } | State::Forwarding { .. }) => Reason::CANCEL_SENT,
            _ => Reason::SERVER_CRASHED,
        };
        self.close_server(key, reason, now);
    }

    /// A server takes nothing more, and says nothing about it.
    pub(super) fn server_write_closed(&mut self, key: ServerKey, now: Instant) {
        if self.has_left(key, now) {
            return;
        }
        self.close_server(key, Reason::SERVER_CONNECTION_CLOSED, now);
    }

    /// Whether a server may have to say something to its client that was not noted: then it is asked
    /// for that first.
    fn has_last_question(&mut self, key: ServerKey) -> bool {
        let House { servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key).filter(|server| server.pipeline.wants_sweep())
        else {
            return false;
        };
        server.activity = Activity::Busy;
        if server.egress.push_own(rings, doubts::last_question).is_err() {
            return false;
        }
        server.pipeline.on_swept();
        self.make_runnable(Conn::Server(key));
        true
    }

    /// A server's work for its client is done.
    fn release(&mut self, key: ServerKey, now: Instant) {
        if self.has_last_question(key) {
            return;
        }
        let client = self.house.unlink(key);
        self.dismiss(key, now);
        let Some(client_key) = client else {
            return;
        };
        // What it sent meanwhile was not looked at while the last reply was under way.
        let client = self.house.clients.get(client_key);
        if client.is_some_and(|client| client.inbox.unjudged() > 0) {
            self.client_goes_on(client_key, now);
        }
        self.make_runnable(Conn::Client(client_key));
    }

    /// Finds something else to do for a server whose client has just left it.
    pub(super) fn dismiss(&mut self, key: ServerKey, now: Instant) {
        let Some(server) = self.house.servers.get(key) else {
            return;
        };
        if server.cancels_waiting > 0 {
            for late in self.house.stale_cancels(server.pool, key) {
                self.close_client(late, Reason::CANCEL_TOO_LATE, now);
            }
        }
        self.settle_down(key, true, now);
    }

    /// The server's last work is done; a reset may be due.
    pub(super) fn settle_down(&mut self, key: ServerKey, reset_due: bool, now: Instant) {
        match self.house.after_work(key, reset_due, &self.config.settings, now) {
            Released::Close(reason) => self.close_server(key, reason, now),
            Released::Used => self.server_is_used(key, now),
            Released::Held => self.house.set_server_state(key, State::HeldForCancel, End::Back),
            Released::Reset => self.reset(key, now),
            Released::Idle => self.server_is_free(key, now),
            Released::Old => {
                self.server_is_free(key, now);
                self.watch(Conn::Server(key), now);
            }
        }
    }

    fn reset(&mut self, key: ServerKey, now: Instant) {
        self.house.set_server_state(key, State::Resetting { since: now }, End::Back);
        self.watch(Conn::Server(key), now);
        let House { servers, rings, .. } = &mut self.house;
        let server = servers.get_mut(key).expect("just moved");
        let sql = self.config.settings.server_reset_query.as_bytes();
        match server.ask_ourselves(rings, sql) {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(emit::Full) => self.close_server(key, Reason::RESET_FAILED, now),
        }
    }

    /// A server can serve: the longest waiting client gets it.
    pub(super) fn server_is_free(&mut self, key: ServerKey, now: Instant) {
        let end = match self.config.settings.server_round_robin.is_on() {
            true => End::Back,
            false => End::Front,
        };
        let is_contended = self.house.groups.blocked_pools > 0;
        if is_contended && self.house.must_yield(key, &self.config, now) {
            self.yield_place(key, now);
            return;
        }
        if self.house.replicators_waiting > 0 && self.house.makes_way(key) {
            self.yield_place(key, now);
            return;
        }
        self.house.set_server_state(key, State::Idle { since: now }, end);
        let outer = self.serving.replace(key);
        if outer == self.serving {
            // Whoever got it was closed at once: the loop below, further down the stack, goes on.
            return;
        }
        // Who cannot be served is closed: the next one's turn.
        while let Some(waiting) = self.next_to_serve(key) {
            match waiting {
                Next::Waiting(client) => self.serve(client, key, now),
                Next::Asker(client) => self.serve_asker(client, key, now),
            }
        }
        self.serving = outer;
        let idle = self.house.servers.get(key).filter(|s| matches!(s.state, State::Idle { .. }));
        if is_contended && let Some(pool) = idle.map(|server| server.pool) {
            self.place_is_free(pool, now);
        }
    }

    fn next_to_serve(&self, key: ServerKey) -> Option<Next> {
        let House { clients, servers, pools, .. } = &self.house;
        let server = servers.get(key).filter(|s| matches!(s.state, State::Idle { .. }))?;
        let pool = pools.get(server.pool)?;
        let waiting =
            pool.first_waiting(clients, false).and_then(|key| match clients.get(key)?.state {
                client::State::Waiting { since, .. } => Some((since, Next::Waiting(key))),
                _ => None,
            });
        if pool.askers.is_empty() {
            return waiting.map(|(_, next)| next);
        }
        let asker = pool.askers.front().and_then(|key| match clients.get(*key)?.state {
            client::State::AwaitingAccount { since, .. } => Some((since, Next::Asker(*key))),
            _ => None,
        });
        [asker, waiting].into_iter().flatten().min_by_key(|(since, _)| *since).map(|(_, next)| next)
    }
}

/// Who gets a server that is free.
enum Next {
    /// A client of its pool.
    Waiting(ClientKey),
    /// A client about which it is to be asked.
    Asker(ClientKey),
}

/// What a linked server's messages are judged with.
struct Tools<'a> {
    tracked: &'a Tracked,
    values: &'a mut Values,
    rings: &'a mut Rings,
    /// Of its pool.
    counters: &'a mut Counters,
    times: &'a mut Times,
    now: Instant,
}

impl Tools<'_> {
    /// The client has just got a ReadyForQuery: its query may be over.
    #[inline]
    fn note_ready(&mut self, server: &Server, client: &mut Client) {
        if server.pipeline.is_empty() {
            let in_transaction = server.activity == Activity::InTransaction;
            self.counters.request_ends(self.times, client, in_transaction, self.now);
        }
    }
}

fn linked_step(server: &mut Server, client: &mut Client, rules: Rules, tools: &mut Tools) -> Step {
    if server.inbox.unjudged() == 0 || client.egress.is_full() {
        return Step::Wait;
    }
    if server.inbox.is_mid_message() {
        // Behind it a reply of our making may be due.
        return match relay::rest(&mut server.inbox, Some(&mut client.egress)) {
            true => Step::Next,
            false => Step::Wait,
        };
    }
    let swallowing = server.pipeline.is_swallowing();
    if !swallowing {
        let run = server.take_plain_run(rules);
        if run.bytes > 0 {
            relay::run(&mut server.inbox, &mut client.egress, run);
            tools.counters.sent_bytes += run.bytes as u64 + run.body_left;
            if server.activity != Activity::Busy {
                tools.note_ready(server, client);
            }
            return Step::Next;
        }
    }
    match server.judge(rules.max_packet_bytes) {
        Verdict::NeedMore => Step::Wait,
        Verdict::Close(reason) => Step::Close(reason),
        Verdict::Parameter { bytes } => {
            server.activity = Activity::Busy;
            tools.counters.sent_bytes += bytes;
            let names = (tools.tracked, &mut *tools.values);
            if let Err(reason) = store_parameter(server, Some(client), bytes, names) {
                return Step::Close(reason);
            }
            pass(server, client, bytes, swallowing);
            Step::Next
        }
        Verdict::Pass { note: Note::Error, bytes } if swallowing => {
            refused_parameter(server, client, bytes)
        }
        Verdict::Pass { note: Note::Error, bytes }
            if let Some(step) = doubts::broken_off(server, client, bytes, tools.rings) =>
        {
            step
        }
        Verdict::Pass { note: Note::Ready(status), .. } if !rules.allows(status) => {
            Step::Close(Reason::TRANSACTION_IN_STATEMENT_MODE)
        }
        Verdict::Pass { bytes, note } => {
            tools.counters.sent_bytes += bytes;
            let action = take_note(server, Some(client), note);
            pass(server, client, bytes, swallowing || action == Action::Swallow);
            match note {
                // Nothing of ours stands between its replies: they need not be told apart.
                Note::Error if rules.mode == PoolMode::Session => server.pipeline.leave_open(),
                Note::Ready(_) if swallowing && server.is_catching_up() => {}
                Note::Ready(_) if swallowing => {
                    client.parameters.adopt(&server.parameters);
                    client.parameters_proven = true;
                }
                Note::Ready(_) => tools.note_ready(server, client),
                _ => {}
            }
            Step::Next
        }
    }
}

/// Passes one message on, or drops it.
fn pass(server: &mut Server, client: &mut Client, bytes: u64, swallow: bool) {
    if swallow {
        server.inbox.skip(bytes);
    } else {
        relay::message(&mut server.inbox, &mut client.egress, bytes);
    }
}

/// Notes what a message tells us; what becomes of it.
pub(super) fn take_note(server: &mut Server, client: Option<&mut Client>, note: Note) -> Action {
    if !matches!(note, Note::Notification) {
        server.activity = Activity::Busy;
    }
    match note {
        Note::Nothing | Note::Notification => {}
        Note::Reply(Reply::Close) if let Some(skips) = server.pipeline.on_told() => {
            if let Some(client) = client {
                client.skips_to_sync = skips;
            }
            return Action::Swallow;
        }
        Note::Reply(reply) => return server.pipeline.settle(reply),
        Note::Forgotten => {
            let behind = server.pipeline.behind();
            server.statements.clear_all_but(&behind.prepared);
            if let Some(statements) = client.and_then(|client| client.statements.as_mut()) {
                statements.close_all_but(&behind.serials);
            }
            return server.pipeline.settle(Reply::Command);
        }
        Note::Error => {
            let mut serials = Vec::new();
            // What was done last is undone first.
            for lost in server.pipeline.on_error().into_iter().rev() {
                server.statements.undo(&lost);
                if let Lost::Parse { serial: Some(serial), .. } | Lost::Naming { serial } = lost {
                    serials.push(serial);
                }
            }
            if let Some(statements) = client.and_then(|client| client.statements.as_mut()) {
                statements.take_back(serials);
            }
        }
        Note::CopyIn => {
            let is_open = server.pipeline.on_copy_in();
            if let Some(client::State::Active { copying_in, .. }) =
                client.map(|client| &mut client.state)
            {
                *copying_in = is_open;
            }
        }
        Note::Ready(status) => {
            server.note_status(status);
            return server.pipeline.on_ready_for_query();
        }
    }
    Action::Forward
}

/// A value in our own `SET` was refused: the client cannot have the session it asked for. If the
/// server says goodbye instead, for reasons of its own, that is for the client, as it always is.
fn refused_parameter(server: &mut Server, client: &mut Client, bytes: u64) -> Step {
    if !server.inbox.has(bytes) && server.inbox.can_hold(bytes) {
        return Step::Wait;
    }
    let here = bytes.min(server.inbox.unjudged());
    let error = ErrorFields::parse(&server.inbox.copy(frame::HEADER_BYTES, here));
    if error.is_last_word {
        pass(server, client, bytes, false);
        return Step::Next;
    }
    log::error!("varcache_apply failed: {}", error.with_colon());
    Step::Close(Reason::INVALID_SERVER_PARAMETER)
}

pub(super) fn store_parameter(
    server: &mut Server,
    client: Option<&mut Client>,
    bytes: u64,
    (tracked, values): (&Tracked, &mut Values),
) -> Result<(), Reason> {
    let body = server.inbox.copy(frame::HEADER_BYTES, bytes);
    let (name, value) = backend::parameter_status(&body).ok_or(Reason::BROKEN_PARAMETER_STATUS)?;
    let Some(index) = tracked.index_of(name) else {
        return Ok(());
    };
    let value = values.intern(value);
    server.parameters.set(index, value);
    // While it answers our own `SET`s the client's values are still what it wants.
    if let Some(client) = client.filter(|_| !server.pipeline.is_swallowing()) {
        client.parameters.set(index, value);
    }
    Ok(())
}
