//! What can happen to a client, one function each.

use crate::config::values::PoolMode;
use crate::engine::Engine;
use crate::engine::cancels::called_off_step;
use crate::engine::doubts;
use crate::engine::io::Effect;
use crate::engine::plain;
use crate::engine::statements::{self, Tools, Trouble};
use crate::engine::step::{Step, last_step};
use crate::engine::unnamed::{self, About};
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::House;
use crate::pool::link::Acquired;
use crate::ring::Ring;
use crate::session::call_off::CallOff;
use crate::session::client::{Client, Rules, State, Verdict};
use crate::session::farewell::Reason;
use crate::session::pipeline::Action;
use crate::session::prepared::Carried;
use crate::session::relay;
use crate::session::server::{Activity, Server, Turn};
use crate::wire::backend::TxStatus;
use crate::wire::emit::{self, Full};
use crate::wire::frame;
use crate::wire::frontend::{self, Request};
use std::time::Instant;

impl Engine {
    /// Bytes came from a client.
    pub(super) fn client_received(&mut self, key: ClientKey, bytes: usize, now: Instant) {
        let Some(client) = self.house.clients.get_mut(key) else {
            return;
        };
        client.inbox.filled(bytes);
        client.spoke_at = now;
        match client.state {
            State::LoggingIn => self.login_received(key, now),
            State::Proving(_) => self.proof_received(key, now),
            State::Console { .. } => self.effects.push_back(Effect::Attend { client: key }),
            _ => self.client_goes_on(key, now),
        }
    }

    /// Judges a client's messages, as far as that can be done now.
    pub(super) fn client_goes_on(&mut self, key: ClientKey, now: Instant) {
        loop {
            match self.client_steps(key, now) {
                Step::Next | Step::Wait => break,
                Step::NeedServer => {
                    if !self.client_needs_server(key, now) {
                        break;
                    }
                }
                Step::Close(reason) => {
                    self.close_client(key, reason, now);
                    return;
                }
            }
        }
        let House { clients, servers, rings, .. } = &mut self.house;
        let Some(client) = clients.get_mut(key) else {
            return;
        };
        let Some(server_key) = client.server() else {
            client.inbox.tidy(None, rings);
            if client.wants_write() {
                self.make_runnable(Conn::Client(key));
            }
            return;
        };
        let server = servers.get_mut(server_key).expect("links are written at both ends");
        client.inbox.tidy(server.egress.first_run(), rings);
        let has_own_words = client.wants_write();
        if server.wants_write() {
            self.make_runnable(Conn::Server(server_key));
        } else {
            // Everything was answered by us: the server is not needed.
            self.server_may_be_free(server_key, now);
        }
        if has_own_words {
            self.make_runnable(Conn::Client(key));
        }
    }

    /// Judges all messages that can be judged now.
    fn client_steps(&mut self, key: ClientKey, now: Instant) -> Step {
        let settings = &self.config.settings;
        let House { clients, servers, pools, rings, statements, .. } = &mut self.house;
        let Some(client) = clients.get_mut(key).filter(|client| client.may_go_on()) else {
            return Step::Wait;
        };
        let limit = usize::try_from(settings.max_prepared_statements).unwrap_or(0);
        let Some(pool) = client.pool.and_then(|pool| pools.get_mut(pool)) else {
            return Step::Wait;
        };
        let gives_back = pool.mode != PoolMode::Session && client.replicator.is_none();
        let rules = Rules {
            max_packet_bytes: settings.max_packet_size,
            disable_pqexec: settings.disable_pqexec.is_on(),
            // Who replicates could not give its server back.
            turn: match client.replicator {
                None => pool.turn(settings),
                Some(_) => Turn::Unlimited,
            },
            gives_back,
            tracks_statements: limit > 0 && gives_back,
        };
        let mut tools = Tools { rings, statements, limit, counters: &mut pool.stats.total, now };
        let server = client.server().and_then(|server| servers.get_mut(server));
        match server {
            Some(server) => last_step(|| linked_step(client, server, rules, &mut tools)),
            None => last_step(|| unlinked_step(client, rules, &mut tools)),
        }
    }

    /// Finds a server for a client, or lets it wait. `true`: it has one.
    fn client_needs_server(&mut self, key: ClientKey, now: Instant) -> bool {
        loop {
            match self.house.acquire(key, now) {
                Acquired::Linked(_) => return true,
                Acquired::Stale(server, reason) => self.close_server(server, reason, now),
                Acquired::Unused(server) => self.server_is_used(server, now),
                Acquired::Queued => {
                    if let Some(pool) = self.house.clients.get(key).and_then(|client| client.pool) {
                        self.house.watch_wait(key, now);
                        self.remember_to_tell(pool, now);
                        self.staff(pool, now);
                        self.house.note_cause(key);
                    }
                    self.wake_holders();
                    return false;
                }
                Acquired::Failing(reason) => {
                    let pool = self.house.clients.get(key).and_then(|client| client.pool);
                    self.close_client(key, reason, now);
                    pool.into_iter().for_each(|pool| self.try_again(pool, now));
                    return false;
                }
            }
        }
    }

    /// The longest waiting client gets a server that has just become free.
    pub(super) fn serve(&mut self, key: ClientKey, server: ServerKey, now: Instant) {
        self.house.wait_ends(key, now);
        match self.house.link(key, server) {
            Ok(()) => {
                self.client_goes_on(key, now);
                self.make_runnable(Conn::Client(key));
            }
            Err(reason) => self.close_client(key, reason, now),
        }
    }

    /// A client's socket took bytes. Whether somebody waited for that; `None`: it has gone.
    pub(super) fn note_client_sent(&mut self, key: ClientKey, bytes: usize) -> Option<bool> {
        let House { clients, rings, .. } = &mut self.house;
        let client = clients.get_mut(key)?;
        let was_held_back = client.egress.is_full() || client.egress.has_kept();
        client.egress.sent(bytes, rings);
        Some(was_held_back)
    }

    /// There is room for more.
    pub(super) fn client_sent(&mut self, key: ClientKey, was_held_back: bool, now: Instant) {
        let House { clients, servers, rings, .. } = &mut self.house;
        let Some(client) = clients.get_mut(key) else {
            return;
        };
        if let State::Console { .. } = client.state {
            self.effects.push_back(Effect::Attend { client: key });
            return;
        }
        let Some(server_key) = client.server() else {
            // What a former server left is gone: if there is a next message, its time has come.
            let has_more = client.inbox.unjudged() > 0 || statements::has_collected(client);
            if was_held_back && has_more && client.may_go_on() {
                self.client_goes_on(key, now);
                self.make_runnable(Conn::Client(key));
            }
            return;
        };
        let Some(server) = servers.get_mut(server_key) else {
            return;
        };
        let was_full = !server.inbox.has_room();
        server.inbox.tidy(client.egress.first_run(), rings);
        if was_held_back {
            self.server_goes_on(server_key, now);
        }
        if was_full {
            self.make_runnable(Conn::Server(server_key));
        }
    }

    /// A client will send nothing more.
    pub(super) fn client_read_closed(&mut self, key: ClientKey, now: Instant) {
        if self.console_rights(key).is_some() {
            // What it has said before it left is still carried out, as a script's last word.
            self.effects.push_back(Effect::Attend { client: key });
            self.console_leavers.push((key, false));
            return;
        }
        self.close_client(key, Reason::CLIENT_UNEXPECTED_EOF, now);
    }

    /// A client takes nothing more.
    pub(super) fn client_write_closed(&mut self, key: ClientKey, now: Instant) {
        self.close_client(key, Reason::UNEXPECTED_EOF, now);
    }

    /// Puts a message of our own into a client's egress.
    pub(super) fn tell_client(
        &mut self,
        key: ClientKey,
        write: impl FnOnce(&mut Ring) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let House { clients, rings, .. } = &mut self.house;
        if let Some(client) = clients.get_mut(key) {
            client.egress.push_own(rings, write)?;
            self.make_runnable(Conn::Client(key));
        }
        Ok(())
    }
}

fn unlinked_step(client: &mut Client, rules: Rules, tools: &mut Tools) -> Step {
    if client.skips_to_sync
        && let Some(step) = doubts::skip(client, rules, tools)
    {
        return step;
    }
    if !statements::go_on_collecting(client) || !relay::rest(&mut client.inbox, None) {
        return Step::Wait;
    }
    if client.call_off != CallOff::Nothing {
        return called_off_step(client, rules, tools);
    }
    if statements::has_collected(client) {
        return Step::NeedServer;
    }
    if plain::needs_server(client, rules) {
        tools.counters.request_begins(client, tools.now);
        return Step::NeedServer;
    }
    match client.judge(rules) {
        Verdict::NeedMore => Step::Wait,
        Verdict::NeedServer => {
            tools.counters.request_begins(client, tools.now);
            Step::NeedServer
        }
        Verdict::Named { bytes, request: Request::Close } => {
            statements::close(client, bytes);
            tools.counters.received_bytes += bytes;
            match statements::tell_done(&mut client.egress, Request::Close, tools.rings) {
                Ok(()) => Step::Next,
                // It reads none of its replies, and sends one Close after the other.
                Err(Full) => Step::Close(Reason::UNEXPECTED_EOF),
            }
        }
        Verdict::Deallocate { bytes } => {
            client.unnamed = Carried::default();
            match statements::deallocate(client, (bytes, TxStatus::Idle), tools) {
                Ok(()) => Step::Next,
                Err(Full) => Step::Close(Reason::UNEXPECTED_EOF),
            }
        }
        Verdict::Named { .. } => {
            tools.counters.request_begins(client, tools.now);
            Step::NeedServer
        }
        Verdict::Collect { bytes } => {
            tools.counters.request_begins(client, tools.now);
            statements::begin_collecting(client, bytes);
            Step::Next
        }
        Verdict::Drop { bytes } | Verdict::Relay { bytes, .. } => {
            client.inbox.skip(bytes);
            Step::Next
        }
        Verdict::Close(reason) => Step::Close(reason),
    }
}

/// The server catches up with a client's parameters in the same write as the client's first
/// message, if some server has accepted those values before. The client's raw words from its
/// Startup are tried alone first: a server that refuses them must not run the client's query.
fn must_wait_for_catch_up(client: &Client, server: &Server) -> bool {
    server.is_catching_up() && !client.parameters_proven
}

/// Whether others come first: see `Turn`. What belongs to a COPY goes on in any case.
#[inline]
fn must_let_others(client: &Client, server: &Server, rules: Rules) -> bool {
    rules.turn != Turn::Unlimited
        && server.has_asked_enough(rules.turn)
        && !client.is_copying_in()
        && !client.inbox.is_mid_message()
        && !matches!(client.inbox.peek_tag(), Some(b'd' | b'c' | b'f'))
}

fn linked_step(client: &mut Client, server: &mut Server, rules: Rules, tools: &mut Tools) -> Step {
    if (server.pipeline.is_in_doubt() && rules.gives_back || client.skips_to_sync)
        && let Some(step) = doubts::step(client, server, rules, tools)
    {
        return step;
    }
    if client.inbox.unjudged() == 0 && !statements::has_collected(client) {
        return Step::Wait;
    }
    if !client.inbox.is_mid_message() && !server.egress.is_full() && server.pipeline.wants_flush() {
        doubts::say(server, tools, emit::flush);
    }
    if must_wait_for_catch_up(client, server)
        || server.egress.is_full()
        || server.pipeline.is_full() && !client.inbox.is_mid_message()
        || client.egress.is_full()
        || must_let_others(client, server, rules)
        || !statements::go_on_collecting(client)
        || !relay::rest(&mut client.inbox, Some(&mut server.egress))
        || server.pipeline.is_forgetting()
    {
        return Step::Wait;
    }
    if statements::has_collected(client) {
        return next_unless(statements::collected(client, server, tools), server);
    }
    if plain::pass_on(client, server, rules, tools) {
        return Step::Next;
    }
    match client.judge(rules) {
        Verdict::NeedMore => Step::Wait,
        Verdict::NeedServer => Step::NeedServer,
        Verdict::Drop { bytes } => {
            tools.counters.received_bytes += bytes;
            client.inbox.skip(bytes);
            Step::Next
        }
        Verdict::Close(reason) => Step::Close(reason),
        Verdict::Collect { bytes } => {
            tools.counters.request_begins(client, tools.now);
            statements::begin_collecting(client, bytes);
            Step::Next
        }
        Verdict::Named { bytes, request } => {
            if request != Request::Close {
                tools.counters.request_begins(client, tools.now);
            }
            next_unless(statements::named(client, server, (bytes, request), tools), server)
        }
        Verdict::Deallocate { bytes } => deallocating_step(client, server, bytes, rules, tools),
        Verdict::Relay { bytes, request } => {
            relaying_step(client, server, (bytes, request), rules, tools)
        }
    }
}

/// A message goes to the server as it is.
fn relaying_step(
    client: &mut Client,
    server: &mut Server,
    (bytes, request): (u64, Option<Request>),
    rules: Rules,
    tools: &mut Tools,
) -> Step {
    let is_tracked = rules.tracks_statements;
    let about = match is_tracked {
        true => unnamed::meet(client, server, (bytes, request), tools),
        false => Ok(About::Other),
    };
    let Ok(about) = about else {
        return next_unless(about.map(drop), server);
    };
    let forgets = is_tracked
        && request == Some(Request::Query)
        && (!server.statements.is_empty() || client.has_named())
        && client.may_forget_statements(bytes) == Some(true);
    let forgets_in_batch =
        is_tracked && request == Some(Request::Parse) && client.parses_what_forgets(bytes);
    tools.counters.request_begins(client, tools.now);
    tools.counters.received_bytes += pass_on(client, server, bytes, request, rules);
    if let About::Unnamed { kept } = about {
        server.pipeline.note_unnamed(kept);
    }
    if forgets_in_batch {
        server.pipeline.note_forgetting_batch();
    }
    if forgets {
        server.pipeline.note_forgetting();
    }
    Step::Next
}

/// `DEALLOCATE name` is answered by us, for the server knows the statement under another name, and
/// keeps it for others. That needs to be known in which transaction it is: so all that was asked
/// before has to be answered. Whoever sends it between messages that belong together, without a
/// Sync, might wait for ever so; that goes to the server as it is, and so does what an error or a
/// COPY makes the server ignore or refuse.
fn deallocating_step(
    client: &mut Client,
    server: &mut Server,
    bytes: u64,
    rules: Rules,
    tools: &mut Tools,
) -> Step {
    let pipeline = &server.pipeline;
    let is_between = match pipeline.is_empty() {
        true => pipeline.is_open(),
        false => pipeline.wants_sync(),
    };
    if is_between || pipeline.is_skipping() || client.is_copying_in() {
        tools.counters.request_begins(client, tools.now);
        tools.counters.received_bytes +=
            pass_on(client, server, bytes, Some(Request::Query), rules);
        return Step::Next;
    }
    if !pipeline.is_empty() || server.inbox.is_mid_message() {
        return Step::Wait;
    }
    match statements::deallocate(client, (bytes, server.status()), tools) {
        Ok(()) => {
            server.pipeline.unnamed.on_unseen_query();
            Step::Next
        }
        Err(Full) => Step::Wait,
    }
}

fn next_unless(result: Result<(), Trouble>, server: &Server) -> Step {
    match result {
        Ok(()) => Step::Next,
        // Names that fill a ring.
        Err(Trouble::Full) if server.egress.is_empty() => Step::Close(Reason::BROKEN_BIND),
        Err(Trouble::Full | Trouble::Unsure) => Step::Wait,
        Err(Trouble::Close(reason)) => Step::Close(reason),
    }
}

/// Passes one message on, and with CopyData all others that need no look. How long they are.
fn pass_on(
    client: &mut Client,
    server: &mut Server,
    bytes: u64,
    request: Option<Request>,
    rules: Rules,
) -> u64 {
    server.activity = Activity::Busy;
    if let Some(request) = request {
        server.pipeline.expect(request, Action::Forward);
        // Whoever asks for something else has given up on a COPY that failed. (A Sync may go
        // ahead of the data.)
        if let State::Active { copying_in, .. } = &mut client.state
            && request != Request::Sync
        {
            *copying_in = false;
        }
        if matches!(request, Request::Query | Request::FunctionCall | Request::Sync) {
            server.asked = server.asked.saturating_add(1);
        }
        relay::message(&mut client.inbox, &mut server.egress, bytes);
        return bytes;
    }
    let ring = client.inbox.ring().expect("a message lies in a ring");
    let here = ring.stretch(client.inbox.judged());
    // Flushes come this way, too, and may stand ahead of the data.
    let flush = [b'H', 0, 0, 0, 4];
    let first = here.chunks(flush.len()).find(|message| *message != flush);
    if first.is_some_and(|message| message.first() == Some(&b'd')) {
        server.pipeline.on_copy_data();
    }
    let run = frame::relay_run(here, &frontend::RELAY, rules.max_packet_bytes);
    if run.bytes == 0 {
        // Its header wraps around the end of the ring.
        relay::message(&mut client.inbox, &mut server.egress, bytes);
        bytes
    } else {
        relay::run(&mut client.inbox, &mut server.egress, run);
        run.bytes as u64 + run.body_left
    }
}
