//! Bringing a client and a server together, and taking them apart. Nobody else writes the two
//! ends of a link.

use crate::config::settings::Settings;
use crate::config::values::PoolMode;
use crate::keys::{ClientKey, Conn, PoolKey, ServerKey};
use crate::pool::House;
use crate::pool::queues::{End, ServerStanding};
use crate::session::client;
use crate::session::farewell::Reason;
use crate::session::inbox::Rest;
use crate::session::params;
use crate::session::pipeline::Action;
use crate::session::prepared::Carried;
use crate::session::rescue::{MAX_PADDING_BYTES, Remains, Rescue};
use crate::session::server::{self, Activity, Server};
use crate::wire::frontend::Request;
use std::time::{Duration, Instant};

/// What came of asking for a server.
#[derive(Debug, PartialEq, Eq)]
pub enum Acquired {
    /// This one works for the client from now on.
    Linked(ServerKey),
    /// This idle one cannot serve any more. Close it and ask again.
    Stale(ServerKey, Reason),
    /// This idle one is to be tried out before it serves. See to that and ask again.
    Unused(ServerKey),
    /// None is free: the client waits.
    Queued,
    /// None is there and none can be had: tell the client at once.
    Failing(Reason),
}

/// What becomes of a server that has done its work.
#[derive(Debug, PartialEq, Eq)]
pub enum Released {
    /// It is free.
    Idle,
    /// It is free, and ends as soon as some time has passed since another one that was too old.
    Old,
    /// It is free, to be tried out before it serves again.
    Used,
    /// It has to run the reset query first.
    Reset,
    /// It waits until no cancel can hit the next client.
    Held,
    /// It ends.
    Close(Reason),
}

impl House {
    /// Finds a server for a client whose next message needs one.
    pub fn acquire(&mut self, client: ClientKey, now: Instant) -> Acquired {
        let pool = self.clients.get(client).and_then(|client| client.pool);
        let Some(pool) = pool.and_then(|pool| self.pools.get(pool)) else {
            return Acquired::Failing(Reason::CONFIG_ERROR);
        };
        if pool.has_lost_user {
            return Acquired::Failing(Reason::DATABASE_CHANGED);
        }
        let waiting = client::State::Waiting { since: now, is_told: false };
        if self.mode.is_paused() || pool.is_paused {
            if self.mode.refuses_work() {
                return Acquired::Failing(Reason::SERVER_SHUTTING_DOWN);
            }
            self.set_client_state(client, waiting);
            return Acquired::Queued;
        }
        if self.clients.get(client).is_some_and(|client| client.replicator.is_some()) {
            // It gets a server of its own, or none.
            self.set_client_state(client, waiting);
            return Acquired::Queued;
        }
        let Some(server) = pool.servers.of(ServerStanding::Idle).first() else {
            if let Some(cached) = pool.fails_fast() {
                return Acquired::Failing(Reason::login_failing(cached));
            }
            self.set_client_state(client, waiting);
            return Acquired::Queued;
        };
        let candidate = self.servers.get(server).expect("who is queued is there");
        if let Some(reason) = candidate.why_stale() {
            return Acquired::Stale(server, reason);
        }
        if pool.has_rested(candidate, now) {
            return Acquired::Unused(server);
        }
        match self.link(client, server) {
            Ok(()) => Acquired::Linked(server),
            Err(reason) => Acquired::Failing(reason),
        }
    }

    /// The idle server whose turn it is.
    pub fn first_idle(&self, pool: PoolKey) -> Option<ServerKey> {
        self.pools.get(pool)?.servers.of(ServerStanding::Idle).first()
    }

    /// Links the two, and has the server catch up with the client's parameters: what it lacks is
    /// written ahead of the client's first message.
    pub fn link(&mut self, client_key: ClientKey, server_key: ServerKey) -> Result<(), Reason> {
        let House { clients, servers, pools, values, tracked, rings, .. } = self;
        let (Some(client), Some(server)) =
            (clients.get_mut(client_key), servers.get_mut(server_key))
        else {
            return Err(Reason::CONFIG_ERROR);
        };
        assert!(client.egress.first_run().is_none(), "a new link begins without runs");
        assert!(!client.egress.has_kept(), "who has not taken its last reply gets no server");
        let is_own = server.replicates_for.is_some();
        // What one for replication says behind its login is for its client, who has it first.
        let is_free = server.is_done() || is_own && server.owes_nothing();
        assert!(is_free, "only a server that owes nothing is handed out");
        assert!(!is_own || server.replicates_for == Some(client_key), "it is another one's own");
        server.has_served = true;
        server.has_worked = true;
        let stayed =
            client.unnamed.last_at == Some(server_key) && server.last_client == Some(client_key);
        server.pipeline.unnamed.begin(client.unnamed.kept.take(), stayed);
        server.last_client = Some(client_key);
        (server.asked, server.in_transaction) = (0, false);
        server.transaction_failed = false;
        let began = client.transaction_since.unwrap_or(client.spoke_at);
        let (wanted, present) = (&client.parameters, &server.parameters);
        let caught_up = match is_own {
            // It was opened with the client's parameters, and may understand no SQL.
            true => 0,
            false => {
                params::catch_up(wanted, present, (tracked, values), (&mut server.egress, rings))
                    .map_err(|_| Reason::INVALID_SERVER_PARAMETER)?
            }
        };
        for _ in 0..caught_up {
            server.pipeline.expect(Request::Query, Action::Swallow);
            server.pipeline.unnamed.on_own_query();
            server.activity = Activity::Busy;
        }
        let active = client::State::Active { server: server_key, copying_in: false };
        let pool = servers.get(server_key).and_then(|server| pools.get_mut(server.pool));
        let pool = pool.expect("a server's pool outlives it");
        pool.stats.total.assignments += u64::from(!is_own);
        if let Some(at) = pool.limits.shortest().and_then(|limit| began.checked_add(limit)) {
            self.watch(Conn::Server(server_key), at);
        }
        self.set_client_state(client_key, active);
        self.set_server_state(server_key, server::State::Active { client: client_key }, End::Back);
        Ok(())
    }

    /// Takes a client and its server apart; what the client has not been sent yet goes with it.
    /// The server is left `Unlinked` for the caller to decide about.
    pub fn unlink(&mut self, server_key: ServerKey) -> Option<ClientKey> {
        let House { clients, servers, rings, .. } = self;
        let server = servers.get_mut(server_key)?;
        let client_key = server.client()?;
        let client = clients.get_mut(client_key).expect("links are written at both ends");
        assert_eq!(client.server(), Some(server_key), "links point at each other");
        if client.egress.first_run().is_some() {
            let ring = server.inbox.hand_over().expect("runs lie in a ring");
            client.egress.keep(ring, rings);
        }
        client.served_at = server.spoke_at;
        client.unnamed = Carried { kept: server.pipeline.unnamed.end(), last_at: Some(server_key) };
        let cut_off = !server.egress.is_empty() || client.inbox.is_mid_message();
        server.egress.clear(rings);
        client.inbox.tidy(None, rings);
        self.set_client_state(client_key, client::State::Idle);
        self.set_server_state(server_key, server::State::Unlinked { cut_off }, End::Back);
        Some(client_key)
    }

    /// Takes a server from a client that goes in the middle of something. What it had asked for
    /// whole goes out, what it is owed goes with it, and the rest of the server's answer stays: it
    /// is for nobody, but it has to be read.
    pub fn take_back(&mut self, server_key: ServerKey, rescue: Rescue) -> Remains {
        let House { clients, servers, rings, .. } = self;
        let server = servers.get_mut(server_key).expect("its caller has seen it");
        let client_key = server.client().expect("only who works for a client is taken from it");
        let client = clients.get_mut(client_key).expect("links are written at both ends");
        assert_eq!(client.server(), Some(server_key), "links point at each other");
        if client.egress.first_run().is_some() {
            match server.inbox.unjudged() {
                0 => {
                    let ring = server.inbox.hand_over().expect("runs lie in a ring");
                    client.egress.keep(ring, rings);
                }
                _ => client.egress.clear(rings),
            }
        }
        let missing_bytes = match client.inbox.rest() {
            Rest::Relay(bytes) => bytes,
            Rest::None | Rest::Skip(_) | Rest::Collect(_) => 0,
        };
        if server.egress.first_run().is_some() {
            let ring = client.inbox.hand_over().expect("runs lie in a ring");
            server.egress.keep(ring, rings);
        }
        client.inbox.tidy(None, rings);
        server.inbox.tidy(None, rings);
        let state = server::State::Rescuing(Box::new(rescue));
        self.set_client_state(client_key, client::State::Idle);
        self.set_server_state(server_key, state, End::Back);
        Remains { missing_bytes }
    }

    /// Whether a linked server can be taken from a client that goes for this reason, and brought
    /// back: nothing may be cut off that only the client could complete, and no reply be lost that
    /// somebody is there to read.
    pub fn can_take_back(&self, key: ServerKey, reason: &Reason) -> bool {
        let may_serve_on = |server: &&Server| {
            !server.close_needed && !server.may_be_hit && server.replicates_for.is_none()
        };
        let server = self.servers.get(key).filter(may_serve_on);
        let client = server.and_then(Server::client).and_then(|client| self.clients.get(client));
        let (Some(server), Some(client)) = (server, client) else {
            return false;
        };
        let is_whole = match client.inbox.rest() {
            // The COPY will fail, so it does not matter how its data ends. Anything else is not for
            // us to complete: the server may have given up the COPY a moment ago.
            Rest::Relay(bytes) => {
                let is_data =
                    server.pipeline.awaits_copy_end() && server.pipeline.is_in_copy_data();
                is_data && bytes <= MAX_PADDING_BYTES
            }
            Rest::None | Rest::Skip(_) | Rest::Collect(_) => true,
        };
        let is_read = reason.is_told() && client.egress.first_run().is_some();
        is_whole && !self.mode.is_shutting_down() && !(is_read && server.inbox.unjudged() > 0)
    }

    /// Whether a linked server has done all its work and may go to another client. Not while it
    /// waits for the rest of a message for which nothing is owed: it would take the next client's
    /// words for that.
    pub fn may_release(&self, key: ServerKey) -> bool {
        let Some(server) = self.servers.get(key) else {
            return false;
        };
        let client = server.client().and_then(|client| self.clients.get(client));
        let mode = self.pools.get(server.pool).map(|pool| pool.mode);
        server.is_done()
            && !server.pipeline.is_in_doubt()
            && mode != Some(PoolMode::Session)
            && server.replicates_for.is_none()
            && client
                .is_some_and(|client| !client.is_copying_in() && !client.inbox.is_mid_message())
    }

    /// Decides what becomes of a server without a client, done with its work. The reset query is
    /// due once, right after the client has gone.
    pub fn after_work(
        &self,
        key: ServerKey,
        reset_due: bool,
        settings: &Settings,
        now: Instant,
    ) -> Released {
        let server = self.servers.get(key).expect("only a server that is there is released");
        let pool = self.pools.get(server.pool);
        let mode = pool.map(|pool| pool.mode);
        let resets = mode == Some(PoolMode::Session) || settings.server_reset_query_always.is_on();
        if !server.is_done() {
            // It said something of its own accord, and that has not come in as a whole.
            Released::Close(Reason::IDLE_GOT_DIRTY)
        } else if pool.is_some_and(|pool| pool.may_retire(server, reset_due, now)) {
            Released::Close(Reason::SERVER_LIFETIME_OVER)
        } else if server.close_needed || server.may_be_hit || server.pipeline.is_uncertain() {
            Released::Close(Reason::CLOSE_NEEDED)
        } else if server.replicates_for.is_some() {
            Released::Close(Reason::REPLICATION_CLIENT_CLOSED)
        } else if self.mode.is_paused() || pool.is_some_and(|pool| pool.is_paused) {
            Released::Close(Reason::PAUSE_MODE)
        } else if server.cancels_in_flight > 0 {
            Released::Held
        } else if reset_due && resets && !settings.server_reset_query.is_empty() {
            Released::Reset
        } else if reset_due && pool.is_some_and(|pool| pool.check_after == Some(Duration::ZERO)) {
            Released::Used
        } else if server.has_aged {
            Released::Old
        } else {
            Released::Idle
        }
    }

    /// Why a server cannot be used further when its client leaves now; `None`: it can.
    pub fn unfinished(&self, key: ServerKey) -> Option<Reason> {
        let server = self.servers.get(key)?;
        let client = server.client().and_then(|client| self.clients.get(client));
        let is_cut_off = client.is_some_and(|client| client.inbox.is_mid_message());
        let has_more = server.inbox.unjudged() > 0 || server.inbox.is_mid_message();
        if server.activity != Activity::Ready || has_more {
            Some(Reason::CLIENT_LEFT_NOT_READY)
        } else if !server.pipeline.is_empty() {
            Some(Reason::CLIENT_LEFT_IN_PROGRESS)
        } else if !server.egress.is_empty() || is_cut_off {
            Some(Reason::CLIENT_LEFT_UNSENT)
        } else {
            None
        }
    }
}
