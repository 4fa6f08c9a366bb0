//! With what we log in at servers: which password counts, and keys that take time to make.

use crate::auth::answer::Credentials;
use crate::auth::derivation::{Derivation, ScramKeys};
use crate::auth::digest::KEY_BYTES;
use crate::auth::userlist::Userlist;
use crate::config::Secret;
use crate::engine::Engine;
use crate::engine::io::Effect;
use crate::keys::{Conn, PoolKey, ServerKey};
use crate::pool::{House, Pool};
use crate::session::farewell::Reason;
use crate::session::server::State;
use crate::session::server_login::{Failure, Next};
use std::time::Instant;

/// What the servers of a pool log in with. A forced user's own password counts before everything
/// else, and nothing that a client has brought is ever used for him unless he is that client.
pub(super) fn credentials<'a>(pool: &'a Pool, userlist: &'a Userlist) -> Credentials<'a> {
    let is_forced = pool.database.user.as_ref() == Some(&pool.user);
    let forced = pool.database.password.as_ref().filter(|_| is_forced);
    let learned = pool.learned.secret.as_ref();
    let secret = forced.or(learned).or_else(|| userlist.secret(&pool.user));
    Credentials {
        user: pool.user.as_bytes(),
        secret: secret.map_or(b"", Secret::expose),
        client_key: pool.learned.client_key.as_ref(),
        end_point: None,
    }
}

impl Engine {
    /// A client has proven to know this ClientKey (pass-through). It opens only servers that keep
    /// the very secret against which it was proven.
    pub fn client_proved_key(
        &mut self,
        (key, login): (PoolKey, &str),
        client_key: [u8; KEY_BYTES],
    ) {
        if let Some(pool) = self.house.pools.get_mut(key).filter(|pool| pool.user == login) {
            pool.learned.client_key = Some(client_key);
        }
    }

    /// A client's secret is known from elsewhere than the file of users: from `auth_query`, or
    /// because he has told it and PAM or LDAP have confirmed it. Servers of the same user are
    /// opened with it.
    pub fn learn_secret(&mut self, (key, login): (PoolKey, &str), secret: Option<Secret>) {
        if let Some(pool) = self.house.pools.get_mut(key).filter(|pool| pool.user == login) {
            pool.learned.secret = secret;
        }
    }

    /// Has a key made, unless it was made before: `Some` then.
    pub(super) fn derive(&mut self, conn: Conn, derivation: Derivation) -> Option<ScramKeys> {
        let known = self.derived.get(&derivation);
        if known.is_none() {
            self.effects.push_back(Effect::Derive { conn, derivation });
        }
        known
    }

    /// A key is made, or (`None`) there are too many to make.
    pub(super) fn on_derived(
        &mut self,
        conn: Conn,
        (derivation, keys): (Derivation, Option<ScramKeys>),
        now: Instant,
    ) {
        match (conn, keys) {
            (Conn::Server(key), Some(keys)) => {
                self.derived.keep(derivation, keys);
                self.server_key_derived(key, &keys, now);
                self.server_login_received(key, now);
            }
            (Conn::Server(key), None) => self.close_server(key, Reason::AUTHREQ_FAILED, now),
            (Conn::Client(_), _) => self.client_key_derived(&derivation, keys, now),
        }
    }

    /// The login at a server goes on, if that is still what this server is doing.
    pub(super) fn server_key_derived(&mut self, key: ServerKey, keys: &ScramKeys, now: Instant) {
        let House { servers, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        let State::LoggingIn(login) = &mut server.state else {
            return;
        };
        match login.derived(keys) {
            Next::Go(event) => self.server_login_event(key, event, now),
            Next::Failed(failure) => self.server_login_failed(key, failure, now),
            // A key is never the end of a login.
            Next::Done(_) => {
                self.server_login_failed(key, Failure::Other(Reason::AUTHREQ_FAILED), now);
            }
        }
    }
}
