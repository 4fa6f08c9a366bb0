//! Cancel requests: who is meant, and whether the request may still be sent.
//!
//! A request is carried by a connection of its own. Until it has been delivered, the server whose
//! query it is meant for is not given to another client: see `HeldForCancel`. However many requests
//! there are, each costs the same: keys are looked up in the [`Keyring`], requests wait in queues,
//! and a server knows whether any of them aims at it.

use crate::keys::{ClientKey, PoolKey, ServerKey};
use crate::pool::House;
use crate::pool::queues::ClientStanding;
use crate::session::cancel_key::{self, Short};
use crate::session::client::State;
use crate::session::farewell::Reason;
use crate::session::rescue::Cancel;
use crate::session::server::{self, Server};
use std::collections::HashMap;
use std::time::Instant;

/// Who may cancel with which key: everybody who has been welcomed.
///
/// The time that a look-up takes tells nothing about the keys: places are chosen by a hash that
/// nobody outside can know (its seed is random), and what lies there is compared as one number. A
/// longer key is found by its beginning, and the rest compared in constant time.
#[derive(Debug, Default)]
pub struct Keyring(HashMap<u64, ClientKey>);

impl Keyring {
    fn add(&mut self, secret: Short, client: ClientKey) {
        self.0.insert(u64::from_be_bytes(secret), client);
    }

    fn remove(&mut self, secret: Short, client: ClientKey) {
        let secret = u64::from_be_bytes(secret);
        if self.0.get(&secret) == Some(&client) {
            self.0.remove(&secret);
        }
    }

    /// Whose key this is.
    pub fn holder(&self, secret: Short) -> Option<ClientKey> {
        self.0.get(&u64::from_be_bytes(secret)).copied()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the holder of a key would have cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meant {
    /// What this client of the admin console waits for.
    OnConsole(ClientKey),
    /// What this client has asked and no server works on yet.
    Waiting(ClientKey),
    /// What this server of this pool does for its client.
    Working(ServerKey, PoolKey),
}

impl House {
    /// A client is about to be told its key: as it must be now that we have this number, and as
    /// nobody else's is, or else one could cancel the other's queries.
    pub fn settle_key(&mut self, key: ClientKey, own_id: Option<u16>) {
        let House { clients, keyring, .. } = self;
        if let Some(client) = clients.get_mut(key) {
            client.secret = cancel_key::mark(client.secret, own_id);
            while keyring.holder(client.secret).is_some() {
                client.secret = cancel_key::random(own_id);
            }
        }
    }

    /// What is to be cancelled with this key: its beginning, and the rest. Keys that were given out
    /// while we had another number hold as long as their clients are here.
    pub fn meant_by(
        &self,
        (short, tail): (Short, &[u8]),
        own_id: Option<u16>,
    ) -> Result<Meant, Reason> {
        let holder = self.keyring.holder(short);
        let unhopped = || self.keyring.holder(cancel_key::unhopped(short));
        let holder = holder.or_else(|| own_id.and_then(|_| unhopped()));
        let key = holder.ok_or(Reason::FAILED_CANCEL_REQUEST)?;
        let client = self.clients.get(key).ok_or(Reason::FAILED_CANCEL_REQUEST)?;
        if !cancel_key::has_tail(client.secret_tail.as_deref(), tail) {
            return Err(Reason::FAILED_CANCEL_REQUEST);
        }
        match client.state {
            State::Console { .. } => Ok(Meant::OnConsole(key)),
            State::Waiting { .. } => Ok(Meant::Waiting(key)),
            State::Active { server, .. } => {
                let target = self.servers.get(server).ok_or(Reason::CANCEL_FOR_IDLE_CLIENT)?;
                Ok(Meant::Working(server, target.pool))
            }
            _ => Err(Reason::CANCEL_FOR_IDLE_CLIENT),
        }
    }

    /// The first request of this pool that no connection is being opened for: who asked, and what
    /// it is aimed at. Clients come before ourselves.
    pub fn next_cancel(&mut self, pool: PoolKey) -> Option<(Option<ClientKey>, ServerKey)> {
        let House { pools, clients, servers, .. } = self;
        let pool = pools.get_mut(pool)?;
        if let Some(key) = pool.cancels.first() {
            return match clients.get(key)?.state {
                State::AwaitingCancel { target, .. } => Some((Some(key), target)),
                _ => None,
            };
        }
        let wants = |key: &ServerKey| {
            let rescue = servers.get(*key).and_then(Server::rescue);
            rescue.is_some_and(|rescue| rescue.cancel == Cancel::Wanted)
        };
        while pool.own_cancels.front().is_some_and(|key| !wants(key)) {
            pool.own_cancels.pop_front();
        }
        pool.own_cancels.front().map(|target| (None, *target))
    }

    /// A connection is being opened that is to carry a client's request.
    pub fn note_carrier(
        &mut self,
        requester: ClientKey,
        target: ServerKey,
        carrier: ServerKey,
        now: Instant,
    ) {
        let since = self.clients.get(requester).and_then(|client| match client.state {
            State::AwaitingCancel { since, .. } => Some(since),
            _ => None,
        });
        let (since, carrier) = (since.unwrap_or(now), Some(carrier));
        self.set_client_state(requester, State::AwaitingCancel { target, carrier, since });
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
        let Some(pool) = self.pools.get(pool) else {
            return Vec::new();
        };
        let aims_there = |key: &ClientKey| {
            let state = self.clients.get(*key).map(|client| &client.state);
            matches!(state, Some(State::AwaitingCancel { target, .. }) if *target == ended)
        };
        let queues = [&pool.cancels, &pool.dialled_cancels];
        let waiting = queues.into_iter().flat_map(|queue| queue.keys(&self.clients));
        waiting.filter(aims_there).collect()
    }

    /// A client has gone from one standing to another: whoever has been welcomed may cancel, and a
    /// server knows how many requests aim at it.
    pub(super) fn note_cancels(&mut self, key: ClientKey, old: &State, to: ClientStanding) {
        use ClientStanding::{Active, AwaitingCancel, CancelDialled, Console, Gone};
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let was_coming_in = matches!(
            old,
            State::LoggingIn
                | State::Proving(_)
                | State::AwaitingAccount { .. }
                | State::AwaitingWelcome { .. }
        );
        match to {
            Active | Console if was_coming_in => self.keyring.add(client.secret, key),
            Gone if !was_coming_in => self.keyring.remove(client.secret, key),
            _ => {}
        }
        if let State::AwaitingCancel { target, .. } = old
            && let Some(target) = self.servers.get_mut(*target)
        {
            target.cancels_waiting -= 1;
        }
        if let (AwaitingCancel | CancelDialled, State::AwaitingCancel { target, .. }) =
            (to, &client.state)
            && let Some(target) = self.servers.get_mut(*target)
        {
            target.cancels_waiting += 1;
        }
    }
}
