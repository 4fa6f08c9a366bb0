//! Clients that replicate. PostgreSQL decides when a connection begins whether it is one for
//! replication, so each such client has a server of its own: it is opened with the client's own
//! words, serves it as in session pooling, and ends with it.
//!
//! Until that server has let us in the client waits in its pool's line, like everybody else.

use crate::engine::Engine;
use crate::engine::endings::OURS;
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::Welcome;
use crate::pool::queues::End;
use crate::session::client::{self, Client};
use crate::session::client_login::Replication;
use crate::session::farewell::Reason;
use crate::session::params::{Tracked, Values};
use crate::session::server::State;
use crate::session::server_login::Failure;
use std::time::Instant;

impl Engine {
    /// The server of a client that replicates has let us in.
    ///
    /// Better than PgBouncer: what it told us is for this client alone. A connection for physical
    /// replication is to no database, so what it says of encodings is not true of others.
    pub(super) fn replication_begins(
        &mut self,
        key: ServerKey,
        client_key: ClientKey,
        own: Welcome,
        now: Instant,
    ) {
        let client = self.house.clients.get(client_key);
        let pool = client.and_then(|client| client.pool);
        let state = client.map(|client| &client.state);
        let is_new = matches!(state, Some(client::State::AwaitingWelcome { .. }));
        let Some(pool) = pool.filter(|_| is_new || is_waiting(state)) else {
            // It has called off what it wanted.
            self.house.set_server_state(key, State::Idle { since: now }, End::Back);
            self.close_server(key, Reason::REPLICATION_CLIENT_CLOSED, now);
            return;
        };
        self.house.wait_ends(client_key, now);
        if is_new {
            if let Err(reason) = self.welcome(client_key, pool, Some(&own)) {
                self.close_client(client_key, reason, now);
                return;
            }
            self.house.note_login(client_key, now);
        }
        if let Err(reason) = self.house.link(client_key, key) {
            self.close_client(client_key, reason, now);
            return;
        }
        self.watch(Conn::Client(client_key), now);
        self.watch(Conn::Server(key), now);
        // It may have said more already, and the client has asked what it was opened for.
        self.server_goes_on(key, now);
    }

    /// It has not. Only its own client is told, and less than the log.
    pub(super) fn replication_refused(&mut self, key: ServerKey, failure: Failure, now: Instant) {
        let reason = match failure {
            Failure::Refused(error) => {
                let severity = error.severity.as_deref().unwrap_or("FATAL");
                let message = error.message.as_deref().unwrap_or("");
                log::error!("S: login failed: {severity}: {message}");
                Reason::LOGIN_FAILED
            }
            Failure::NotAnswered(refusal) => {
                log::error!("{} {}", self.house.server_name(key), refusal.log);
                Reason::AUTHREQ_FAILED
            }
            Failure::Other(reason) => reason,
        };
        self.close_server(key, reason, now);
    }

    /// The client that ends with a server that it has been promised: one that has got our Startup,
    /// which is the client's own. Before that, and if it is our own doing, there will be another.
    pub(super) fn replicator_hurt_by(&self, key: ServerKey, reason: &Reason) -> Option<ClientKey> {
        let server = self.house.servers.get(key)?;
        let is_promised = matches!(server.state, State::LoggingIn(_)) && !OURS.contains(reason);
        server.replicates_for.filter(|_| is_promised)
    }
}

fn is_waiting(state: Option<&client::State>) -> bool {
    matches!(state, Some(client::State::Waiting { .. }))
}

/// What a Startup for this client says besides the database's own words, in the contract's order.
pub(super) fn replication_words<'a>(
    client: &'a Client,
    tracked: &'a Tracked,
    values: &'a Values,
) -> impl Iterator<Item = (&'a str, &'a [u8])> {
    let replicator = client.replicator.as_deref();
    let kind = replicator.and_then(|replicator| match replicator.kind {
        Replication::No => None,
        Replication::Logical => Some(("replication", &b"database"[..])),
        Replication::Physical => Some(("replication", &b"yes"[..])),
    });
    let names = tracked.names().iter().enumerate();
    let parameters = names.filter_map(|(index, name)| {
        Some((name.as_str(), values.text(client.parameters.value(index))?))
    });
    let options =
        replicator.and_then(|replicator| Some(("options", &**replicator.options.as_ref()?)));
    kind.into_iter().chain(parameters).chain(options)
}
