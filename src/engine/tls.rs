//! When TLS starts, on either side, and what follows from it. The handshake itself is the shell's.
//!
//! ```text
//! client: SSLRequest, or a first byte of TLS ──▶ StartTls ──▶ TlsReady ──▶ its Startup
//! server: Connected ──▶ SSLRequest ──▶ S ──▶ StartTls ──▶ TlsReady ──▶ our Startup, or a cancel
//! ```

use crate::config::tls::ServerTls;
use crate::config::values::SslMode;
use crate::engine::Engine;
use crate::engine::io::{Effect, Handshake, ServerAddress};
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::House;
use crate::pool::queues::End;
use crate::session::client::{self, ClientAddress};
use crate::session::farewell::Reason;
use crate::session::line::{Line, Secured};
use crate::session::server::{Purpose, State};
use crate::wire::emit::{self, Full};
use crate::wire::startup;
use std::time::Instant;

/// The first byte of every record of a handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

/// Whether the mode leaves no choice.
fn is_demanded(mode: SslMode) -> bool {
    matches!(mode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull)
}

impl Engine {
    /// What the shell has set up is in force from now on. Servers that would now be spoken to
    /// differently end, each as soon as it is free.
    pub fn apply_tls(&mut self, clients: SslMode, servers: ServerTls, now: Instant) {
        self.client_tls = clients;
        let old = std::mem::replace(&mut self.server_tls, servers);
        for key in self.house.pools.keys() {
            let Some(pool) = self.house.pools.get_mut(key) else {
                continue;
            };
            if old.of(&pool.database).differs(&self.server_tls.of(&pool.database)) {
                pool.welcome = None;
                self.retire_servers(key, now);
                self.staff(key, now);
            }
        }
    }

    /// What protects a client's line, as logs and SHOW say it.
    pub(super) fn tls_text(&self, key: ClientKey) -> String {
        let secured = self.house.clients.get(key).and_then(|client| client.line.secured());
        secured.map_or_else(|| "no".to_owned(), Secured::to_string)
    }

    /// Whether a client must speak TLS, and does not. Unix sockets need none.
    pub(super) fn lacks_tls(&self, key: ClientKey) -> bool {
        let is_plain = |client: &client::Client| {
            matches!(client.from, ClientAddress::Tcp(_)) && client.line.secured().is_none()
        };
        is_demanded(self.client_tls) && self.house.clients.get(key).is_some_and(is_plain)
    }

    fn may_start_tls(&self, from: ClientAddress) -> bool {
        self.client_tls != SslMode::Disable && matches!(from, ClientAddress::Tcp(_))
    }

    /// "Do you speak TLS?" What stands behind the question was sent by a client that did not wait
    /// for the answer, or by somebody in between: it must not count as said through TLS.
    pub(super) fn on_ssl_request(&mut self, key: ClientKey) -> Result<(), Reason> {
        let client = self.house.clients.get(key).ok_or(Reason::BAD_PACKET)?;
        if client.line.secured().is_some() {
            return Err(Reason::SSL_INSIDE_SSL);
        }
        if !self.may_start_tls(client.from) {
            return self.decline(key, Reason::DATA_AFTER_SSL);
        }
        if client.inbox.unjudged() > startup::HEADER_BYTES {
            return Err(Reason::DATA_AFTER_SSL);
        }
        // What has been said before is said in plain text, and must not be encrypted.
        if client.wants_write() {
            return Err(Reason::SSL_NOT_ANSWERED);
        }
        self.start_tls_with_client(key, startup::HEADER_BYTES, Handshake::Answer);
        Ok(())
    }

    /// Whether a client begins with TLS at once, without asking. It does so with its first byte or
    /// never.
    pub(super) fn begins_with_tls(&mut self, key: ClientKey) -> bool {
        let Some(client) = self.house.clients.get(key) else {
            return false;
        };
        let begins = client.inbox.peek_tag() == Some(HANDSHAKE_RECORD)
            && client.state == client::State::LoggingIn
            && matches!(client.line, Line::Plain)
            && client.user.is_none()
            && !client.wants_write()
            && self.may_start_tls(client.from);
        if begins {
            let bytes = client.inbox.unjudged();
            let received = client.inbox.copy(0, bytes);
            self.start_tls_with_client(key, bytes, Handshake::Begun(received));
        }
        begins
    }

    fn start_tls_with_client(&mut self, key: ClientKey, taken: u64, handshake: Handshake) {
        let House { clients, rings, .. } = &mut self.house;
        let client = clients.get_mut(key).expect("its caller has seen it");
        client.inbox.skip(taken);
        client.inbox.tidy(None, rings);
        client.line = Line::Starting;
        self.effects.push_back(Effect::StartTls { conn: Conn::Client(key), handshake });
    }

    /// The handshake is done.
    pub(super) fn tls_ready(&mut self, conn: Conn, secured: Box<Secured>, now: Instant) {
        match conn {
            Conn::Client(key) => {
                if let Some(client) = self.house.clients.get_mut(key) {
                    client.line = Line::Secured(secured);
                }
            }
            Conn::Server(key) => self.server_tls_ready(key, secured, now),
        }
        self.make_runnable(conn);
    }

    /// There is no TLS, and no way back.
    pub(super) fn tls_failed(&mut self, conn: Conn, error: &str, is_ours: bool, now: Instant) {
        match conn {
            Conn::Client(key) => {
                if self.house.clients.get(key).is_none() {
                    return;
                }
                let name = self.house.client_name(key, &self.config.settings).to_string();
                log::warn!("{name} TLS handshake error: {error}");
                self.close_client(key, Reason::CLIENT_UNEXPECTED_EOF, now);
            }
            Conn::Server(key) => {
                if self.house.servers.get(key).is_none() {
                    return;
                }
                log::warn!("{} TLS handshake error: {error}", self.house.server_name(key));
                // As PgBouncer: also where clear text would have been good enough.
                let reason =
                    if is_ours { Reason::SSL_SETUP_FAILED } else { Reason::SERVER_CRASHED };
                self.close_server(key, reason, now);
            }
        }
    }

    /// The first words to a server that has just been connected to.
    pub(super) fn introduce(&mut self, key: ServerKey, purpose: Purpose, now: Instant) {
        let House { servers, pools, rings, .. } = &mut self.house;
        let Some(server) = servers.get(key) else {
            return;
        };
        let wants_tls = match purpose {
            // A key that was learned through TLS is not told to everybody on the way.
            Purpose::Cancel { target, .. } => {
                servers.get(target).is_some_and(|target| target.line.secured().is_some())
            }
            // As PgBouncer: poolers trust the net between them.
            Purpose::Forward { .. } => false,
            Purpose::Probe { .. } => false,
            Purpose::Serve => {
                let database = pools.get(server.pool).map(|pool| &pool.database);
                let tls = database.map(|database| self.server_tls.of(database));
                tls.is_some_and(|tls| tls.sslmode != SslMode::Disable)
            }
        };
        if !wants_tls || !matches!(server.address, Some(ServerAddress::Tcp(_))) {
            self.speak(key, purpose, now);
            return;
        }
        if self.server_tls.direct {
            self.start_tls_with_server(key, purpose);
            return;
        }
        let server = servers.get_mut(key).expect("just seen");
        let asked = server.egress.push_own(rings, emit::ssl_request);
        self.house.set_server_state(key, State::AskingForTls(purpose), End::Back);
        match asked {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(Full) => self.close_server(key, Reason::STARTUP_FAILED, now),
        }
    }

    /// The line is as it shall be: what the connection was opened for.
    fn speak(&mut self, key: ServerKey, purpose: Purpose, now: Instant) {
        match purpose {
            Purpose::Cancel { target, requester } => self.send_cancel(key, target, requester, now),
            Purpose::Forward { peer, requester } => {
                self.send_forward(key, (peer, requester), now);
            }
            Purpose::Probe { .. } => self.probe(key, purpose, now),
            Purpose::Serve => self.send_startup(key, now),
        }
    }

    fn start_tls_with_server(&mut self, key: ServerKey, purpose: Purpose) {
        self.house.set_server_state(key, State::StartingTls(purpose), End::Back);
        let House { servers, pools, .. } = &mut self.house;
        let server = servers.get_mut(key).expect("its caller has seen it");
        let pool = pools.get(server.pool).expect("a server's pool outlives it");
        let tls = self.server_tls.of(&pool.database);
        let host = server.tls_name.as_deref().unwrap_or_default().to_owned();
        server.line = Line::Starting;
        let handshake = Handshake::Open { host, tls };
        self.effects.push_back(Effect::StartTls { conn: Conn::Server(key), handshake });
    }

    /// A server's answer to our SSLRequest: one byte, and not one more before the handshake.
    pub(super) fn ssl_answer_received(&mut self, key: ServerKey, now: Instant) {
        let House { servers, pools, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        let (State::AskingForTls(purpose), Some(answer)) = (&server.state, server.inbox.peek_tag())
        else {
            return;
        };
        let purpose = *purpose;
        if let Purpose::Probe { .. } = purpose {
            self.close_server(key, Reason::PROBE_ANSWERED, now);
            return;
        }
        let has_more = server.inbox.unjudged() > 1;
        let database = pools.get(server.pool).map(|pool| &pool.database);
        let mode = database.map_or(SslMode::Require, |entry| self.server_tls.of(entry).sslmode);
        server.inbox.skip(1);
        server.inbox.tidy(None, rings);
        let is_cancel = matches!(purpose, Purpose::Cancel { .. });
        let refusal = match answer {
            b'S' | b'N' if has_more => Some(Reason::DATA_AFTER_SSL_ANSWER),
            b'S' => None,
            b'N' if is_demanded(mode) || is_cancel => Some(Reason::SERVER_REFUSED_SSL),
            b'N' => None,
            _ => Some(Reason::BAD_SSL_ANSWER),
        };
        match refusal {
            Some(reason) => self.close_server(key, reason, now),
            None if answer == b'S' => self.start_tls_with_server(key, purpose),
            None => self.speak(key, purpose, now),
        }
    }

    fn server_tls_ready(&mut self, key: ServerKey, secured: Box<Secured>, now: Instant) {
        let Some(server) = self.house.servers.get_mut(key) else {
            return;
        };
        let State::StartingTls(purpose) = server.state else {
            return;
        };
        let text = secured.to_string();
        server.line = Line::Secured(secured);
        if self.config.settings.log_connections.is_on() {
            log::info!("{} SSL established: {text}", self.house.server_name(key));
        }
        self.speak(key, purpose, now);
    }
}
