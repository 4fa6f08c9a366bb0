//! Opening servers: where, and our login there.

use crate::auth::answer::Credentials;
use crate::engine::Engine;
use crate::engine::credentials::credentials;
use crate::engine::io::{Effect, ServerAddress};
use crate::engine::replication::replication_words;
use crate::keys::{ClientKey, Conn, PoolKey, ServerKey};
use crate::pool::queues::End;
use crate::pool::sizing::Whereabouts;
use crate::pool::stats::microseconds;
use crate::pool::{House, Welcome};
use crate::ring::Ring;
use crate::session::client;
use crate::session::farewell::Reason;
use crate::session::relay;
use crate::session::rescue::Step;
use crate::session::server::{Activity, Purpose, Server, State};
use crate::session::server_login::{Failure, Next, ServerLoginEvent, Tools};
use crate::wire::backend::ErrorFields;
use crate::wire::emit;
use crate::wire::frame::Peek;
use crate::wire::sqlstate;
use std::net::SocketAddr;
use std::time::Instant;

impl Engine {
    /// A new connection of this pool, not dialled yet.
    pub(super) fn open(&mut self, key: PoolKey, purpose: Purpose, now: Instant) -> ServerKey {
        if let (Purpose::Serve, Some(pool)) = (purpose, self.house.pools.get_mut(key)) {
            pool.attempts.last = Some(now);
        }
        let parameters = self.house.tracked.unset();
        let server = self.house.admit_server(Server::new(purpose, key, parameters, now));
        self.watch(Conn::Server(server), now);
        server
    }

    /// Finds out where to connect to.
    pub(super) fn dial(&mut self, key: ServerKey, now: Instant) {
        let server = self.house.servers.get(key).expect("just opened");
        let pool = server.pool;
        let whereabouts = match server.state {
            // A cancel must reach the very server that runs the query, a probe the one that is asked
            // about.
            State::Connecting(
                Purpose::Cancel { target, .. } | Purpose::Probe { overdue: target },
            ) => {
                let target = self.house.servers.get(target);
                let address = target.and_then(|target| target.address.clone());
                address.map_or(Whereabouts::Nowhere, Whereabouts::At)
            }
            _ => self.house.choose_host(key, &self.config.settings, now),
        };
        let servers = &mut self.house.servers;
        let state = servers.get(key).map(|server| &server.state);
        let tls_name = match (&whereabouts, state) {
            (_, Some(State::Connecting(Purpose::Cancel { target, .. }))) => {
                servers.get(*target).and_then(|target| target.tls_name.clone())
            }
            (_, Some(State::Connecting(Purpose::Probe { .. }))) => None,
            (Whereabouts::Named(host), _) => Some(host.as_str().into()),
            (Whereabouts::At(ServerAddress::Tcp(to)), _) => Some(to.ip().to_string().into()),
            (Whereabouts::At(ServerAddress::Unix(_)) | Whereabouts::Nowhere, _) => None,
        };
        servers.get_mut(key).expect("just seen").tls_name = tls_name;
        match whereabouts {
            Whereabouts::At(address) => self.connect(key, address),
            Whereabouts::Named(host) => self.look_up(key, &host, now),
            Whereabouts::Nowhere => {
                let pool = self.house.pools.get(pool).expect("a server's pool outlives it");
                log::error!("unix socket dir not configured: {}", pool.database.name);
                self.close_server(key, Reason::CANNOT_CONNECT, now);
            }
        }
    }

    pub(super) fn connect(&mut self, key: ServerKey, to: ServerAddress) {
        if let Some(server) = self.house.servers.get_mut(key) {
            server.address = Some(to.clone());
            self.effects.push_back(Effect::Connect { server: key, to });
        }
    }

    /// There is no connection.
    pub(super) fn server_connect_failed(
        &mut self,
        key: ServerKey,
        error: Option<&str>,
        now: Instant,
    ) {
        if let (Some(error), Some(server)) = (error, self.house.servers.get(key)) {
            let address = match &server.address {
                Some(ServerAddress::Tcp(address)) => address.to_string(),
                Some(ServerAddress::Unix(path)) => format!("unix:{}", path.display()),
                None => "?".to_string(),
            };
            log::warn!("sbuf_connect failed to connect to {address}: {error}");
        }
        self.close_server(key, Reason::CONNECT_FAILED, now);
    }

    /// There is a connection: we introduce ourselves, or hand over a cancel.
    pub(super) fn server_connected(
        &mut self,
        key: ServerKey,
        local: Option<SocketAddr>,
        now: Instant,
    ) {
        let Some(server) = self.house.servers.get(key) else {
            return;
        };
        let State::Connecting(purpose) = server.state else {
            return;
        };
        if self.config.settings.log_connections.is_on() {
            let name = self.house.server_name(key);
            match local {
                Some(local) => log::info!("{name} new connection to server (from {local})"),
                None => log::info!("{name} new connection to server"),
            }
        }
        match purpose {
            Purpose::Serve | Purpose::Cancel { .. } => self.introduce(key, purpose, now),
            Purpose::Forward { peer, requester } => {
                self.send_forward(key, (peer, requester), now);
            }
            Purpose::Probe { .. } => self.probe(key, purpose, now),
        }
    }

    pub(super) fn send_startup(&mut self, key: ServerKey, now: Instant) {
        let login = State::LoggingIn(Box::default());
        self.house.set_server_state(key, login, End::Back);
        let House { clients, servers, pools, rings, tracked, values, .. } = &mut self.house;
        let server = servers.get_mut(key).expect("just moved");
        let pool = pools.get(server.pool).expect("a server's pool outlives it");
        let entry = &pool.database;
        let client = server.replicates_for.and_then(|client| clients.get(client));
        let words = client.map(|client| replication_words(client, tracked, values));
        let parameters = [
            ("database", Some(entry.dbname.as_str())),
            ("client_encoding", entry.client_encoding.as_deref()),
            ("datestyle", entry.datestyle.as_deref()),
            ("timezone", entry.timezone.as_deref()),
            ("application_name", entry.application_name.as_deref()),
        ];
        let present =
            parameters.into_iter().filter_map(|(name, value)| Some((name, value?.as_bytes())));
        let user = ("user", pool.user.as_bytes());
        let present = present.chain(words.into_iter().flatten()).chain([user]);
        match server.egress.push_own(rings, |ring| emit::startup(ring, present)) {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(emit::Full) => self.close_server(key, Reason::STARTUP_FAILED, now),
        }
    }

    /// Bytes came from a server at which we are logging in.
    pub(super) fn server_login_received(&mut self, key: ServerKey, now: Instant) {
        loop {
            match self.server_login_step(key) {
                None => break,
                Some(Next::Go(event)) => self.server_login_event(key, event, now),
                Some(Next::Done(untracked)) => {
                    self.server_logged_in(key, untracked, now);
                    return;
                }
                Some(Next::Failed(failure)) => {
                    self.server_login_failed(key, failure, now);
                    return;
                }
            }
        }
        let House { servers, rings, .. } = &mut self.house;
        if let Some(server) = servers.get_mut(key) {
            server.inbox.tidy(None, rings);
        }
    }

    /// Takes the next message, which must have come in as a whole.
    fn server_login_step(&mut self, key: ServerKey) -> Option<Next> {
        let max_packet_bytes = self.config.settings.max_packet_size;
        let House { servers, pools, values, tracked, .. } = &mut self.house;
        let Server { state, inbox, parameters, pool, line, .. } = servers.get_mut(key)?;
        let State::LoggingIn(login) = state else {
            return None;
        };
        if login.is_deriving() || !relay::rest(inbox, None) {
            return None;
        }
        let header = match inbox.peek(max_packet_bytes) {
            Peek::NeedMore => return None,
            Peek::Header(header) if login.skips(header.tag) => {
                inbox.skip(header.bytes);
                return Some(Next::Go(ServerLoginEvent::None));
            }
            Peek::Header(header) if inbox.can_hold(header.bytes) => header,
            // What does not fit into a ring has no place in a login.
            Peek::Header(_) | Peek::Bad => {
                return Some(Next::Failed(Failure::Other(Reason::BAD_SERVER_HEADER)));
            }
        };
        if !inbox.has(header.bytes) {
            return None;
        }
        let message = inbox.copy(0, header.bytes);
        inbox.skip(header.bytes);
        let pool = pools.get(*pool).expect("a server's pool outlives it");
        let tools = Tools {
            credentials: Credentials {
                end_point: line.secured().and_then(|secured| secured.end_point.as_deref()),
                ..credentials(pool, &self.access.userlist)
            },
            has_connect_query: pool.database.connect_query.is_some(),
            parameters,
            tracked,
            values,
        };
        Some(login.step(&message, tools))
    }

    pub(super) fn server_login_event(
        &mut self,
        key: ServerKey,
        event: ServerLoginEvent,
        now: Instant,
    ) {
        let House { servers, pools, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        match event {
            ServerLoginEvent::None => {}
            ServerLoginEvent::Answer(words) => {
                let answer =
                    |ring: &mut Ring| emit::message(ring, Some(b'p'), |body| body.bytes(&words));
                match server.egress.push_own(rings, answer) {
                    Ok(()) => self.make_runnable(Conn::Server(key)),
                    Err(emit::Full) => self.close_server(key, Reason::AUTHREQ_FAILED, now),
                }
            }
            ServerLoginEvent::Derive(derivation) => {
                if let Some(keys) = self.derive(Conn::Server(key), derivation) {
                    self.server_key_derived(key, &keys, now);
                }
            }
            ServerLoginEvent::CancelKey(cancel_key) => server.cancel_key = cancel_key,
            ServerLoginEvent::ConnectQueryFailed(error) => {
                let ErrorFields { severity, message, .. } = error;
                let [severity, message] = [severity, message].map(Option::unwrap_or_default);
                log::error!("S: error while executing exec_on_query: {severity}: {message}");
            }
            ServerLoginEvent::SendConnectQuery => {
                let entry = pools.get(server.pool).map(|pool| &pool.database);
                let sql = entry.and_then(|entry| entry.connect_query.as_deref()).unwrap_or("");
                match server.egress.push_own(rings, |ring| emit::query(ring, sql.as_bytes())) {
                    Ok(()) => self.make_runnable(Conn::Server(key)),
                    Err(emit::Full) => self.close_server(key, Reason::CONNECT_QUERY_FAILED, now),
                }
            }
        }
    }

    fn server_logged_in(&mut self, key: ServerKey, untracked: Vec<u8>, now: Instant) {
        self.house.note_success(key);
        let House { servers, pools, rings, tracked, values, .. } = &mut self.house;
        let server = servers.get_mut(key).expect("its caller has seen it");
        server.activity = Activity::Ready;
        server.inbox.tidy(None, rings);
        let pool_key = server.pool;
        let replicates_for = server.replicates_for;
        let pool = pools.get_mut(pool_key).expect("a server's pool outlives it");
        pool.times.connect.record(microseconds(server.connected_at, now));
        if let Some(client) = replicates_for {
            let welcome = Welcome::new(untracked, server.parameters.clone(), (tracked, values));
            self.replication_begins(key, client, welcome, now);
        } else {
            if pool.welcome.is_none() {
                let defaults = server.parameters.clone();
                pool.welcome = Some(Welcome::new(untracked, defaults, (tracked, values)));
            }
            self.welcome_waiting(pool_key, now);
            self.house.set_server_state(key, State::Idle { since: now }, End::Back);
            self.watch(Conn::Server(key), now);
            self.server_goes_on(key, now);
        }
        for other in self.house.kept_no_more(pool_key) {
            self.watch(Conn::Server(other), now);
        }
        self.staff(pool_key, now);
        self.tend(pool_key, now);
    }

    pub(super) fn server_login_failed(&mut self, key: ServerKey, failure: Failure, now: Instant) {
        let server = self.house.servers.get(key);
        if server.is_some_and(|server| server.replicates_for.is_some()) {
            self.replication_refused(key, failure, now);
            return;
        }
        let pool = server.map(|server| server.pool);
        let (reason, told) = match failure {
            Failure::Refused(error) => refusal(error),
            Failure::NotAnswered(refusal) => {
                log::error!("{} {}", self.house.server_name(key), refusal.log);
                (Reason::AUTHREQ_FAILED, refusal.told.map(Reason::Told))
            }
            Failure::Other(reason) => (reason, None),
        };
        if let (Some(pool), Some(told)) = (pool, told) {
            self.turn_away_waiting(pool, &told, now);
        }
        self.close_server(key, reason, now);
    }

    /// A login was refused for good: nobody needs to wait for the next attempt, unless the pool
    /// has servers that work.
    fn turn_away_waiting(&mut self, key: PoolKey, told: &Reason, now: Instant) {
        let Some(pool) = self.house.pools.get(key) else {
            return;
        };
        if pool.servers.connected() > 0 && pool.welcome.is_some() {
            return;
        }
        let mut waiting = pool.waiting.keys(&self.house.clients);
        waiting.extend(&pool.askers);
        for client in waiting {
            self.close_client(client, told.clone(), now);
        }
    }

    pub(super) fn send_cancel(
        &mut self,
        key: ServerKey,
        target_key: ServerKey,
        requester: Option<ClientKey>,
        now: Instant,
    ) {
        let House { servers, rings, clients, .. } = &mut self.house;
        let asker = requester.map(|requester| clients.get(requester).map(|client| &client.state));
        let target = servers.get_mut(target_key).filter(|target| match asker {
            Some(state) => {
                let waits = matches!(state, Some(client::State::AwaitingCancel { .. }));
                waits && target.client().is_some()
            }
            None => target.rescue().is_some_and(|rescue| rescue.step == Step::Draining),
        });
        let Some(target) = target else {
            self.close_server(key, Reason::CANCEL_GIVEN_UP, now);
            return;
        };
        if target.is_catching_up() {
            // It would hit our own SET, and close the server for it.
            match requester {
                Some(client) => self.close_client(client, Reason::CANCEL_WHILE_SETTING, now),
                None => self.close_server(key, Reason::CANCEL_GIVEN_UP, now),
            }
            return;
        }
        target.cancels_in_flight += 1;
        let cancel_key = target.cancel_key.clone();
        let carrier = servers.get_mut(key).expect("its caller has seen it");
        let sent = carrier.egress.push_own(rings, |ring| emit::cancel_request(ring, &cancel_key));
        self.house.set_server_state(
            key,
            State::CarryingCancel { target: target_key, requester },
            End::Back,
        );
        if let Some(requester) = requester {
            self.house.set_client_state(
                requester,
                client::State::Cancelling { carrier: key, peer: None },
            );
        }
        match sent {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(emit::Full) => self.close_server(key, Reason::CANCEL_NOT_SENT, now),
        }
    }
}

/// The log's reason for a refused login, and what waiting clients are told: nothing if the server
/// is only starting up or shutting down, for then it pays to wait.
fn refusal(error: ErrorFields) -> (Reason, Option<Reason>) {
    match (&error.severity, &error.message) {
        (Some(_), Some(_)) => log::warn!("server login failed: {error}"),
        _ => log::warn!("server login failed"),
    }
    let code = error.code.unwrap_or(sqlstate::PROTOCOL_VIOLATION);
    let text = error.message.unwrap_or_else(|| "server login failed".to_string());
    let reason = Reason::ServerSays { code, text };
    let told = (code != sqlstate::CANNOT_CONNECT_NOW).then(|| reason.clone());
    (reason, told)
}
