//! SUSPEND: everybody finishes the message that he has begun, who waits for a server still gets
//! one, and then nothing moves any more. No byte of any connection lies in our memory then, so
//! that another process can take the sockets over (`daemon::takeover`), or the process be frozen.
//!
//! ```text
//! Clients ── none of them has anything with us ──▶ Servers ── nor has a server ──▶ Quiet
//! ```
//!
//! Sockets are read up to the end of a message and not beyond: a peer that talks without a pause
//! does not hold us up. But while somebody waits in a pool, those who hold its servers go on until
//! they give them back: he may be waiting for the end of a transaction. (As soon as that has come
//! they are read no more.) A query that runs does not either: its server has nothing with us. Who is
//! not ready after `suspend_timeout` is closed, and who has not even logged in, after a second.
//! Listeners rest meanwhile, and no time limit runs.

use crate::engine::{Engine, statements};
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::mode::{Mode, Phase};
use crate::session::call_off::CallOff;
use crate::session::client::{self, Client, Rights};
use crate::session::farewell::Reason;
use crate::session::inbox::{Inbox, Rest};
use crate::session::server::{self, Server};
use crate::wire::frame::{HEADER_BYTES, Peek};
use std::time::{Duration, Instant};

/// So long may somebody who has not proven who he is keep all others waiting.
const LOGIN_PATIENCE: Duration = Duration::from_secs(1);

impl Engine {
    /// Begins a suspension; [`Mode::is_quiet`] tells when it is complete.
    pub fn suspend(&mut self, now: Instant) {
        let timeout = self.config.settings.suspend_timeout;
        let deadline = (!timeout.is_zero()).then(|| now.checked_add(timeout)).flatten();
        let logins_end = now.checked_add(LOGIN_PATIENCE);
        self.house.mode = Mode::Suspended { phase: Phase::Clients, logins_end, deadline };
        self.next_turn = Some(now);
    }

    /// Begins in a complete suspension, before anybody is in: whoever takes over from another
    /// process lets nothing move before that has gone.
    pub fn begin_suspended(&mut self) {
        assert_eq!(self.house.clients.len(), 0, "nobody is in yet");
        self.house.mode = Mode::Suspended { phase: Phase::Quiet, logins_end: None, deadline: None };
    }

    /// Whether nobody is let in, not even to the console.
    pub fn holds_listeners(&self) -> bool {
        self.house.mode.is_suspended()
    }

    /// Everybody may be read and written again.
    pub(super) fn wake_all(&mut self) {
        let clients: Vec<Conn> =
            self.house.clients.iter().map(|(key, _)| Conn::Client(key)).collect();
        let servers: Vec<Conn> =
            self.house.servers.iter().map(|(key, _)| Conn::Server(key)).collect();
        // A server first, as in `Engine::wake`: it may have gone meanwhile.
        servers.into_iter().chain(clients).for_each(|conn| self.make_runnable(conn));
    }

    /// When a suspension is cut short.
    pub(super) fn suspend_deadline(&self) -> Option<Instant> {
        match self.house.mode {
            Mode::Suspended { phase, logins_end, deadline } if phase < Phase::Quiet => {
                [logins_end, deadline].into_iter().flatten().min()
            }
            _ => None,
        }
    }

    /// Looks once a turn how far a suspension is.
    pub(super) fn suspend_step(&mut self, now: Instant) {
        let Mode::Suspended { mut phase, mut logins_end, deadline } = self.house.mode else {
            return;
        };
        if logins_end.take_if(|at| *at <= now).is_some() {
            self.house.mode = Mode::Suspended { phase, logins_end, deadline };
            self.close_logins(now);
        }
        if deadline.is_some_and(|at| at <= now) && phase < Phase::Quiet {
            self.close_unready(now);
        }
        if phase == Phase::Clients && self.unready_client().is_none() {
            phase = Phase::Servers;
            self.house.mode = Mode::Suspended { phase, logins_end, deadline };
            self.close_unsafe(now);
        }
        if phase == Phase::Servers
            && self.unready_client().is_none()
            && self.unready_server().is_none()
        {
            phase = Phase::Quiet;
            self.house.mode = Mode::Suspended { phase, logins_end, deadline };
            // Whoever waits for this is answered now.
            self.next_turn = Some(now);
        }
        if phase == Phase::Quiet && !self.has_admin() {
            log::info!("admin disappeared when suspended, doing RESUME");
            self.resume(now);
        }
    }

    /// Whether somebody is there who can end a suspension: nobody new is let in.
    fn has_admin(&self) -> bool {
        let mut clients = self.house.clients.iter();
        clients.any(|(_, c)| matches!(c.state, client::State::Console { rights: Rights::Admin }))
    }

    /// Somebody begins to wait: those who hold servers, and may have been left alone so far, are
    /// read again.
    pub(super) fn wake_holders(&mut self) {
        if !self.house.mode.is_suspended() {
            return;
        }
        let clients = self.house.clients.iter();
        let holders = clients.filter(|(_, client)| client.server().is_some());
        let holders: Vec<ClientKey> = holders.map(|(key, _)| key).collect();
        holders.into_iter().for_each(|key| self.make_runnable(Conn::Client(key)));
    }

    /// Whether somebody may be waiting for what this client gives back.
    fn is_waited_for(&self, client: &Client) -> bool {
        let pool = client.pool.and_then(|pool| self.house.pools.get(pool));
        client.server().is_some() && pool.is_some_and(|pool| !pool.waiting.is_empty())
    }

    fn unready_client(&self) -> Option<ClientKey> {
        let mut clients = self.house.clients.iter();
        clients.find(|(_, client)| !is_client_ready(client)).map(|(key, _)| key)
    }

    fn unready_server(&self) -> Option<ServerKey> {
        let mut servers = self.house.servers.iter();
        servers.find(|(_, server)| !is_server_ready(server)).map(|(key, _)| key)
    }

    /// Servers that are in the middle of something that only we know of.
    fn close_unsafe(&mut self, now: Instant) {
        let is_unsafe = |server: &Server| match server.state {
            server::State::Idle { .. }
            | server::State::Active { .. }
            | server::State::CarryingCancel { .. }
            | server::State::Forwarding { .. }
            | server::State::Leaving(_)
            | server::State::Closing => false,
            server::State::Connecting(_)
            | server::State::AskingForTls(_)
            | server::State::StartingTls(_)
            | server::State::LoggingIn(_)
            | server::State::Used { .. }
            | server::State::Asking { .. }
            | server::State::Unlinked { .. }
            | server::State::Rescuing(_)
            | server::State::Resetting { .. }
            | server::State::Checking { .. }
            | server::State::HeldForCancel => true,
        };
        let servers = self.house.servers.iter().filter(|(_, server)| is_unsafe(server));
        let servers: Vec<ServerKey> = servers.map(|(key, _)| key).collect();
        for key in servers {
            self.close_server(key, Reason::UNSAFE_ON_SUSPEND, now);
        }
    }

    /// Or else anybody who says half a Startup, and nothing more, could have all others stand still
    /// for the whole `suspend_timeout`.
    fn close_logins(&mut self, now: Instant) {
        let is_login = |client: &Client| {
            matches!(client.state, client::State::LoggingIn | client::State::Proving(_))
        };
        let clients = self.house.clients.iter().filter(|(_, client)| is_login(client));
        let clients: Vec<ClientKey> = clients.map(|(key, _)| key).collect();
        for key in clients {
            self.close_client(key, Reason::SUSPEND_TIMEOUT, now);
        }
    }

    /// It has taken too long.
    fn close_unready(&mut self, now: Instant) {
        let clients = self.house.clients.iter().filter(|(_, client)| !is_client_ready(client));
        let clients: Vec<ClientKey> = clients.map(|(key, _)| key).collect();
        for key in clients {
            self.close_client(key, Reason::SUSPEND_TIMEOUT, now);
        }
        self.close_unsafe(now);
        let servers = self.house.servers.iter().filter(|(_, server)| !is_server_ready(server));
        let servers: Vec<ServerKey> = servers.map(|(key, _)| key).collect();
        for key in servers {
            self.close_server(key, Reason::SUSPEND_TIMEOUT, now);
        }
    }

    /// How many bytes may be read from a socket during a suspension.
    pub(super) fn readable_when_suspended(&self, conn: Conn, phase: Phase) -> u64 {
        let limit = self.config.settings.max_packet_size;
        match conn {
            Conn::Client(key) => {
                self.house.clients.get(key).map_or(0, |client| match client.state {
                    client::State::Active { .. }
                        if phase == Phase::Clients && self.is_waited_for(client) =>
                    {
                        u64::MAX
                    }
                    client::State::Idle | client::State::Active { .. } if phase < Phase::Quiet => {
                        to_boundary(&client.inbox, limit)
                    }
                    client::State::Console { .. } => u64::MAX,
                    _ if phase < Phase::Quiet => u64::MAX,
                    _ => 0,
                })
            }
            Conn::Server(key) => {
                self.house.servers.get(key).map_or(0, |server| match (&server.state, phase) {
                    (server::State::Leaving(_), _) | (_, Phase::Clients) => u64::MAX,
                    (
                        server::State::CarryingCancel { .. } | server::State::Forwarding { .. },
                        Phase::Servers,
                    ) => u64::MAX,
                    (_, Phase::Servers) => to_boundary(&server.inbox, limit),
                    (_, Phase::Quiet) => 0,
                })
            }
        }
    }
}

/// How many bytes are missing of the message that has begun to come in.
fn to_boundary(inbox: &Inbox, max_packet_bytes: u32) -> u64 {
    let here = inbox.unjudged();
    match (inbox.rest(), inbox.peek(max_packet_bytes)) {
        (Rest::Relay(left) | Rest::Skip(left) | Rest::Collect(left), _) => {
            left.saturating_sub(here)
        }
        (Rest::None, _) if here == 0 => 0,
        (Rest::None, Peek::NeedMore) => (HEADER_BYTES as u64).saturating_sub(here),
        (Rest::None, Peek::Header(header)) => header.bytes.saturating_sub(here),
        (Rest::None, Peek::Bad) => 0,
    }
}

fn is_client_ready(client: &Client) -> bool {
    match client.state {
        client::State::Console { .. } | client::State::Closing => true,
        client::State::Idle | client::State::Active { .. } => {
            client.inbox.unjudged() == 0
                && !client.inbox.is_mid_message()
                && client.egress.is_empty()
                && client.call_off != CallOff::UpToSync
                && !statements::has_collected(client)
        }
        client::State::LoggingIn
        | client::State::Proving(_)
        | client::State::AwaitingAccount { .. }
        | client::State::AwaitingWelcome { .. }
        | client::State::Waiting { .. }
        | client::State::AwaitingCancel { .. }
        | client::State::AwaitingPeer(_)
        | client::State::Cancelling { .. } => false,
    }
}

fn is_server_ready(server: &Server) -> bool {
    match server.state {
        server::State::Idle { .. } | server::State::Active { .. } => {
            server.inbox.unjudged() == 0
                && !server.inbox.is_mid_message()
                && server.egress.is_empty()
        }
        server::State::Leaving(_) | server::State::Closing => true,
        _ => false,
    }
}
