//! What can happen to a client, one function each.

use crate::engine::Engine;
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::House;
use crate::pool::link::Acquired;
use crate::ring::Rings;
use crate::session::client::{Client, Rules, State, Verdict};
use crate::session::farewell::Reason;
use crate::session::pipeline::Action;
use crate::session::relay;
use crate::session::server::{Activity, Server};
use crate::wire::frame;
use crate::wire::frontend::{self, Request};
use std::time::Instant;

/// What the client's messages led to.
enum Step {
    /// On to the next message.
    Next,
    /// Nothing more to do before something else happens.
    Wait,
    /// A server is needed.
    NeedServer,
    /// It ends.
    Close(Reason),
}

impl Engine {
    /// Bytes came from a client.
    pub(super) fn client_received(&mut self, key: ClientKey, bytes: usize, now: Instant) {
        let Some(client) = self.house.clients.get_mut(key) else {
            return;
        };
        client.inbox.filled(bytes);
        match client.state {
            State::LoggingIn => self.login_received(key, now),
            _ => self.client_goes_on(key, now),
        }
    }

    /// Judges a client's messages, as far as that can be done now.
    pub(super) fn client_goes_on(&mut self, key: ClientKey, now: Instant) {
        loop {
            match self.client_steps(key) {
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
            return;
        };
        if let Some(server) = servers.get_mut(server_key) {
            client.inbox.tidy(server.egress.first_run(), rings);
            if server.wants_write() {
                self.make_runnable(Conn::Server(server_key));
            }
        }
    }

    /// Judges all messages that can be judged now.
    fn client_steps(&mut self, key: ClientKey) -> Step {
        let rules = self.client_rules();
        let House { clients, servers, .. } = &mut self.house;
        let Some(client) = clients.get_mut(key).filter(|client| client.may_go_on()) else {
            return Step::Wait;
        };
        let server = client.server().and_then(|server| servers.get_mut(server));
        match server {
            Some(server) => last_step(|| linked_step(client, server, rules)),
            None => last_step(|| unlinked_step(client, rules)),
        }
    }

    fn client_rules(&self) -> Rules {
        let settings = &self.config.settings;
        Rules {
            max_packet_bytes: settings.max_packet_size,
            disable_pqexec: settings.disable_pqexec.is_on(),
        }
    }

    /// Finds a server for a client, or lets it wait. `true`: it has one.
    fn client_needs_server(&mut self, key: ClientKey, now: Instant) -> bool {
        loop {
            match self.house.acquire(key, now) {
                Acquired::Linked(_) => return true,
                Acquired::Stale(server, reason) => self.close_server(server, reason, now),
                Acquired::Queued => {
                    self.note_deadline(now, self.config.settings.query_wait_timeout);
                    let pool = self.house.clients.get(key).and_then(|client| client.pool);
                    let entry = pool.and_then(|pool| self.house.pools.get(pool));
                    let own_limit = entry.and_then(|pool| pool.database.query_wait_timeout);
                    self.note_deadline(now, own_limit.unwrap_or_default());
                    pool.into_iter().for_each(|pool| self.staff(pool, now));
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
    /// `false`: it cannot work for this client, which ends.
    pub(super) fn serve(&mut self, key: ClientKey, server: ServerKey, now: Instant) -> bool {
        match self.house.link(key, server) {
            Ok(()) => {
                self.client_goes_on(key, now);
                self.make_runnable(Conn::Client(key));
                true
            }
            Err(reason) => {
                self.close_client(key, reason, now);
                false
            }
        }
    }

    /// A client's socket took bytes.
    pub(super) fn client_sent(&mut self, key: ClientKey, bytes: usize, now: Instant) {
        let House { clients, servers, rings, .. } = &mut self.house;
        let Some(client) = clients.get_mut(key) else {
            return;
        };
        let was_held_back = client.egress.is_full() || client.egress.has_kept();
        client.egress.sent(bytes, rings);
        let Some(server_key) = client.server() else {
            // What a former server left is gone: the next message may be looked at.
            if was_held_back && client.may_go_on() {
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
        write: impl FnOnce(&mut crate::ring::Ring) -> Result<(), crate::wire::emit::Full>,
    ) -> Result<(), crate::wire::emit::Full> {
        let House { clients, rings, .. } = &mut self.house;
        if let Some(client) = clients.get_mut(key) {
            tell(client, rings, write)?;
            self.make_runnable(Conn::Client(key));
        }
        Ok(())
    }
}

fn tell(
    client: &mut Client,
    rings: &mut Rings,
    write: impl FnOnce(&mut crate::ring::Ring) -> Result<(), crate::wire::emit::Full>,
) -> Result<(), crate::wire::emit::Full> {
    client.egress.push_own(rings, write)
}

/// Goes from message to message until there is nothing more to do.
fn last_step(mut step: impl FnMut() -> Step) -> Step {
    loop {
        match step() {
            Step::Next => {}
            last => return last,
        }
    }
}

fn unlinked_step(client: &mut Client, rules: Rules) -> Step {
    if !relay::rest(&mut client.inbox, None) {
        return Step::Wait;
    }
    match client.judge(rules) {
        Verdict::NeedMore => Step::Wait,
        Verdict::NeedServer => Step::NeedServer,
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

fn linked_step(client: &mut Client, server: &mut Server, rules: Rules) -> Step {
    if must_wait_for_catch_up(client, server)
        || server.egress.is_full()
        || server.pipeline.is_full()
        || !relay::rest(&mut client.inbox, Some(&mut server.egress))
    {
        return Step::Wait;
    }
    match client.judge(rules) {
        Verdict::NeedMore => Step::Wait,
        Verdict::NeedServer => Step::NeedServer,
        Verdict::Drop { bytes } => {
            client.inbox.skip(bytes);
            Step::Next
        }
        Verdict::Close(reason) => Step::Close(reason),
        Verdict::Relay { bytes, request } => {
            pass_on(client, server, bytes, request, rules);
            Step::Next
        }
    }
}

/// Passes one message on, and with CopyData all others that need no look.
fn pass_on(
    client: &mut Client,
    server: &mut Server,
    bytes: u64,
    request: Option<Request>,
    rules: Rules,
) {
    server.activity = Activity::Busy;
    if let Some(request) = request {
        server.pipeline.expect(request, Action::Forward);
        // Who asks for something else after its COPY has failed will not send the end of it.
        if let State::Active { copying_in, .. } = &mut client.state
            && (matches!(request, Request::CopyDone | Request::CopyFail)
                || !server.pipeline.is_copying_in())
        {
            *copying_in = false;
        }
        relay::message(&mut client.inbox, &mut server.egress, bytes);
        return;
    }
    let ring = client.inbox.ring().expect("a message lies in a ring");
    let here = ring.stretch(client.inbox.judged());
    let run = frame::relay_run(here, &frontend::RELAY, rules.max_packet_bytes);
    if run.bytes == 0 {
        // Its header wraps around the end of the ring.
        relay::message(&mut client.inbox, &mut server.egress, bytes);
    } else {
        relay::run(&mut client.inbox, &mut server.egress, run);
    }
}
