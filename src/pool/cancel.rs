//! Cancel requests: who is meant, and whether the request may still be sent.
//!
//! A request is carried by a connection of its own. Until it has been delivered, the server whose
//! query it is meant for is not given to another client: see `HeldForCancel`.

use crate::keys::{ClientKey, PoolKey, ServerKey};
use crate::pool::House;
use crate::pool::queues::{ClientStanding, client_standing};
use crate::session::client;
use crate::session::farewell::Reason;
use crate::session::rescue::Cancel;
use crate::session::server::{self, Server};

impl House {
    /// The server whose query the holder of this key would have cancelled, and its pool.
    ///
    /// All keys are compared, each as a whole, so that the time tells nothing about them.
    pub fn cancel_target(&self, secret: [u8; 8]) -> Result<(ServerKey, PoolKey), Reason> {
        let mut found = None;
        for (key, client) in self.clients.iter() {
            let has_logged_in = client_standing(&client.state) != ClientStanding::LoggingIn;
            if equal(&client.secret, &secret) & has_logged_in {
                found = Some(key);
            }
        }
        let client = found.and_then(|key| self.clients.get(key));
        let client = client.ok_or(Reason::FAILED_CANCEL_REQUEST)?;
        let server = client.server().ok_or(Reason::CANCEL_FOR_IDLE_CLIENT)?;
        let target = self.servers.get(server).ok_or(Reason::CANCEL_FOR_IDLE_CLIENT)?;
        if target.is_catching_up() {
            return Err(Reason::CANCEL_WHILE_SETTING);
        }
        Ok((server, target.pool))
    }

    /// The client of the console that holds this key. All keys of the console are compared.
    pub fn on_console_with(&self, secret: [u8; 8]) -> Option<ClientKey> {
        if self.console_clients == 0 {
            return None;
        }
        let mut found = None;
        for (key, client) in self.clients.iter() {
            let is_there = matches!(client.state, client::State::Console { .. });
            if equal(&client.secret, &secret) & is_there {
                found = Some(key);
            }
        }
        found
    }

    /// The first request of this pool that no connection is being opened for: who asked, and what
    /// it is aimed at. Clients come before ourselves.
    pub fn next_cancel(&mut self, pool: PoolKey) -> Option<(Option<ClientKey>, ServerKey)> {
        let pool = self.pools.get_mut(pool)?;
        let mut next = pool.cancels.first();
        while let Some(key) = next {
            let client = self.clients.get(key)?;
            if let client::State::AwaitingCancel { target, carrier: None, .. } = client.state {
                return Some((Some(key), target));
            }
            next = client.hook.next;
        }
        let wants = |key: &ServerKey| {
            let rescue = self.servers.get(*key).and_then(Server::rescue);
            rescue.is_some_and(|rescue| rescue.cancel == Cancel::Wanted)
        };
        while pool.own_cancels.front().is_some_and(|key| !wants(key)) {
            pool.own_cancels.pop_front();
        }
        pool.own_cancels.front().map(|target| (None, *target))
    }

    /// How far our own request for this server is, whose client has gone.
    pub fn note_own_cancel(&mut self, target: ServerKey, state: Cancel) {
        let server = self.servers.get_mut(target);
        if let Some(server::State::Rescuing(rescue)) = server.map(|server| &mut server.state) {
            rescue.cancel = state;
        }
    }

    /// Requests that came too late: what they are aimed at has ended.
    pub fn stale_cancels(&self, pool: PoolKey, ended: ServerKey) -> Vec<ClientKey> {
        let Some(pool) = self.pools.get(pool).filter(|pool| !pool.cancels.is_empty()) else {
            return Vec::new();
        };
        let aims_there = |key: &ClientKey| {
            let state = self.clients.get(*key).map(|client| &client.state);
            matches!(state, Some(client::State::AwaitingCancel { target, .. }) if *target == ended)
        };
        pool.cancels.keys(&self.clients).into_iter().filter(aims_there).collect()
    }
}

fn equal(one: &[u8; 8], other: &[u8; 8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(differences) == 0
}
