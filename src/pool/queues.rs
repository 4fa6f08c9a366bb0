//! State is membership: the one place that moves connections between states, and with that
//! between queues and counters, so that what is counted cannot drift from what is.

use crate::keys::{ClientKey, Key, Keyed, PoolKey, ServerKey};
use crate::pool::House;
use crate::session::client::{self, Client, Hook};
use crate::session::server::{self, Server};

/// A queue through the entries of a slab: joining and leaving cost nothing but a few links.
#[derive(Debug)]
pub struct Queue<K> {
    first: Option<K>,
    last: Option<K>,
    len: usize,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { first: None, last: None, len: 0 }
    }
}

/// Something that can stand in a queue.
pub trait Queued {
    /// Its kind of key.
    type Key: Key;
    /// Its links.
    fn hook(&mut self) -> &mut Hook<Self::Key>;
    /// As above, to read.
    fn links(&self) -> Hook<Self::Key>;
}

impl Queued for Client {
    type Key = ClientKey;
    fn hook(&mut self) -> &mut Hook<ClientKey> {
        &mut self.hook
    }
    fn links(&self) -> Hook<ClientKey> {
        self.hook
    }
}

impl Queued for Server {
    type Key = ServerKey;
    fn hook(&mut self) -> &mut Hook<ServerKey> {
        &mut self.hook
    }
    fn links(&self) -> Hook<ServerKey> {
        self.hook
    }
}

impl<K: Key> Queue<K> {
    /// Who comes first.
    pub fn first(&self) -> Option<K> {
        self.first
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Joins at the end.
    pub fn push_back<T: Queued<Key = K>>(&mut self, all: &mut Keyed<K, T>, key: K) {
        let hook = Hook { previous: self.last, next: None };
        match self.last.replace(key).and_then(|last| all.get_mut(last)) {
            Some(last) => last.hook().next = Some(key),
            None => self.first = Some(key),
        }
        *all.get_mut(key).expect("who joins is there").hook() = hook;
        self.len += 1;
    }

    /// Joins at the front.
    pub fn push_front<T: Queued<Key = K>>(&mut self, all: &mut Keyed<K, T>, key: K) {
        let hook = Hook { previous: None, next: self.first };
        match self.first.replace(key).and_then(|first| all.get_mut(first)) {
            Some(first) => first.hook().previous = Some(key),
            None => self.last = Some(key),
        }
        *all.get_mut(key).expect("who joins is there").hook() = hook;
        self.len += 1;
    }

    /// Leaves, from wherever it stands.
    pub fn remove<T: Queued<Key = K>>(&mut self, all: &mut Keyed<K, T>, key: K) {
        let hook = std::mem::take(all.get_mut(key).expect("who leaves is there").hook());
        match hook.previous.and_then(|previous| all.get_mut(previous)) {
            Some(previous) => previous.hook().next = hook.next,
            None => self.first = hook.next,
        }
        match hook.next.and_then(|next| all.get_mut(next)) {
            Some(next) => next.hook().previous = hook.previous,
            None => self.last = hook.previous,
        }
        self.len -= 1;
    }

    /// All of them, in order.
    pub fn keys<T: Queued<Key = K>>(&self, all: &Keyed<K, T>) -> Vec<K> {
        let next = |key: &K| all.get(*key).and_then(|entry| entry.links().next);
        std::iter::successors(self.first, next).collect()
    }
}

/// Where a server stands, as SHOW SERVERS and SHOW POOLS count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStanding {
    /// Being connected or logging in, to serve.
    Login,
    /// Free.
    Idle,
    /// Free, to be tried out first.
    Used,
    /// Works for a client.
    Active,
    /// Runs the reset query, or is tried out: nearly free.
    Tested,
    /// Is being brought back from a client that has gone, if that can be done.
    Rescued,
    /// Held back for a cancel.
    Held,
    /// Carries a cancel, or is being connected for that.
    Carrier,
    /// About to be gone. Only limits count it.
    Leaving,
}

const STANDINGS: usize = 9;

/// The servers of one pool, by where they stand. Those that work are only counted: nobody asks who
/// has worked longest, and they come and go with every query.
#[derive(Debug, Default)]
pub struct ServerQueues {
    queues: [Queue<ServerKey>; STANDINGS],
    active: usize,
}

impl ServerQueues {
    /// Those that stand there; of those that work only [`ServerQueues::count`] tells.
    pub fn of(&self, standing: ServerStanding) -> &Queue<ServerKey> {
        &self.queues[standing as usize]
    }

    /// How many stand there.
    pub fn count(&self, standing: ServerStanding) -> usize {
        match standing {
            ServerStanding::Active => self.active,
            standing => self.of(standing).len(),
        }
    }

    /// All but those that log in, carry a cancel or are about to be gone.
    pub fn connected(&self) -> usize {
        use ServerStanding::{Active, Held, Idle, Rescued, Tested, Used};
        [Active, Held, Idle, Used, Tested, Rescued]
            .into_iter()
            .map(|standing| self.count(standing))
            .sum()
    }

    /// All.
    pub fn total(&self) -> usize {
        self.active + self.queues.iter().map(Queue::len).sum::<usize>()
    }

    fn join(
        &mut self,
        servers: &mut Keyed<ServerKey, Server>,
        key: ServerKey,
        (standing, end): (ServerStanding, End),
    ) {
        let queue = &mut self.queues[standing as usize];
        match (standing, end) {
            (ServerStanding::Active, _) => self.active += 1,
            (_, End::Front) => queue.push_front(servers, key),
            (_, End::Back) => queue.push_back(servers, key),
        }
    }

    fn leave(
        &mut self,
        servers: &mut Keyed<ServerKey, Server>,
        key: ServerKey,
        standing: ServerStanding,
    ) {
        match standing {
            ServerStanding::Active => self.active -= 1,
            standing => self.queues[standing as usize].remove(servers, key),
        }
    }
}

/// `None`: it is counted nowhere, for it is as good as gone.
pub fn server_standing(state: &server::State) -> Option<ServerStanding> {
    match state {
        server::State::Connecting(server::Purpose::Serve)
        | server::State::AskingForTls(server::Purpose::Serve)
        | server::State::StartingTls(server::Purpose::Serve)
        | server::State::LoggingIn(_) => Some(ServerStanding::Login),
        server::State::Idle { .. } => Some(ServerStanding::Idle),
        server::State::Used { .. } => Some(ServerStanding::Used),
        server::State::Active { .. }
        | server::State::Asking { .. }
        | server::State::Unlinked { .. } => Some(ServerStanding::Active),
        server::State::Resetting { .. } | server::State::Checking { .. } => {
            Some(ServerStanding::Tested)
        }
        server::State::Rescuing(_) => Some(ServerStanding::Rescued),
        server::State::HeldForCancel => Some(ServerStanding::Held),
        server::State::Connecting(_)
        | server::State::AskingForTls(_)
        | server::State::StartingTls(_)
        | server::State::CarryingCancel { .. }
        | server::State::Forwarding { .. } => Some(ServerStanding::Carrier),
        server::State::Leaving(_) => Some(ServerStanding::Leaving),
        server::State::Closing => None,
    }
}

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientStanding {
    /// In `House::logging_in`.
    LoggingIn,
    /// Counted in `Pool::active_clients`.
    Active,
    /// In `Pool::waiting`.
    Waiting,
    /// In `Pool::cancels`.
    AwaitingCancel,
    /// In `Pool::dialled_cancels`.
    CancelDialled,
    /// In `House::peer_pools`, waiting or with a connection that is being opened.
    AwaitingPeer,
    /// Counted in `House::console_clients`.
    Console,
    /// Nowhere.
    Gone,
}

/// See [`ClientStanding`].
pub fn client_standing(state: &client::State) -> ClientStanding {
    match state {
        client::State::Proving(_)
        | client::State::LoggingIn
        | client::State::AwaitingAccount { .. } => ClientStanding::LoggingIn,
        client::State::Idle | client::State::Active { .. } => ClientStanding::Active,
        client::State::AwaitingWelcome { .. } | client::State::Waiting { .. } => {
            ClientStanding::Waiting
        }
        client::State::AwaitingCancel { carrier: None, .. } => ClientStanding::AwaitingCancel,
        client::State::AwaitingCancel { carrier: Some(_), .. } => ClientStanding::CancelDialled,
        client::State::AwaitingPeer(_) => ClientStanding::AwaitingPeer,
        client::State::Console { .. } => ClientStanding::Console,
        client::State::Cancelling { .. } | client::State::Closing => ClientStanding::Gone,
    }
}

/// At which end of its queue a server joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Next to be taken.
    Front,
    /// Last to be taken.
    Back,
}

impl House {
    /// Clients and servers are numbered in one sequence: the column `id`.
    fn next_serial(&mut self) -> u32 {
        self.last_serial = self.last_serial.wrapping_add(1);
        self.last_serial
    }

    /// A client that has just been accepted joins those that log in.
    pub fn admit_client(&mut self, client: Client) -> ClientKey {
        let serial = self.next_serial();
        let key = self.clients.insert_as(serial, client);
        self.logging_in.push_back(&mut self.clients, key);
        key
    }

    /// A server that is about to be connected joins its pool.
    pub fn admit_server(&mut self, server: Server) -> ServerKey {
        let pool = server.pool;
        let (standing, peer) = (server_standing(&server.state), server.state.peer());
        let serial = self.next_serial();
        let key = self.servers.insert_as(serial, server);
        if let (Some(pool), Some(standing)) = (self.pools.get_mut(pool), standing) {
            pool.unused_since = None;
            self.groups.add_server(pool.groups, key);
            pool.servers.join(&mut self.servers, key, (standing, End::Back));
        }
        self.note_carrier_to(key, None, peer);
        key
    }

    /// Moves a client to another state, and to where that state belongs. The state that it had.
    pub fn set_client_state(&mut self, key: ClientKey, state: client::State) -> client::State {
        let client = self.clients.get_mut(key).expect("only a client that is there moves");
        let (from, to) = (client_standing(&client.state), client_standing(&state));
        self.closing_clients += usize::from(matches!(state, client::State::Closing));
        let old = std::mem::replace(&mut client.state, state);
        if from == to && to != ClientStanding::AwaitingPeer {
            return old;
        }
        let pool = client.pool.and_then(|pool| self.pools.get_mut(pool));
        match (from, pool) {
            (ClientStanding::LoggingIn, _) => self.logging_in.remove(&mut self.clients, key),
            (ClientStanding::Console, _) => self.console_clients -= 1,
            (ClientStanding::Active, Some(pool)) => pool.active_clients -= 1,
            (ClientStanding::Waiting, Some(pool)) => {
                pool.waiting.remove(&mut self.clients, key);
                let is_one = self.clients.get(key).is_some_and(|c| c.replicator.is_some());
                pool.replicators_waiting -= usize::from(is_one);
                self.replicators_waiting -= usize::from(is_one);
            }
            (ClientStanding::CancelDialled, Some(pool)) => {
                pool.dialled_cancels.remove(&mut self.clients, key);
            }
            (ClientStanding::AwaitingCancel, Some(pool)) => {
                pool.cancels.remove(&mut self.clients, key);
            }
            _ => {}
        }
        let pool = self.clients.get(key).and_then(|client| client.pool);
        match (to, pool.and_then(|pool| self.pools.get_mut(pool))) {
            (ClientStanding::Active, Some(pool)) => pool.active_clients += 1,
            (ClientStanding::Waiting, Some(pool)) => {
                pool.waiting.push_back(&mut self.clients, key);
                let is_one = self.clients.get(key).is_some_and(|c| c.replicator.is_some());
                pool.replicators_waiting += usize::from(is_one);
                self.replicators_waiting += usize::from(is_one);
            }
            (ClientStanding::CancelDialled, Some(pool)) => {
                pool.dialled_cancels.push_back(&mut self.clients, key);
            }
            (ClientStanding::AwaitingCancel, Some(pool)) => {
                pool.cancels.push_back(&mut self.clients, key);
            }
            (ClientStanding::Console, _) => self.console_clients += 1,
            (ClientStanding::AwaitingPeer, _) | (ClientStanding::Gone, _) => {}
            (to, _) => panic!("a client cannot become {to:?} without a pool"),
        }
        if [from, to].contains(&ClientStanding::AwaitingPeer) {
            self.note_forward(key, &old);
        }
        self.note_cancels(key, &old, to);
        old
    }

    /// Moves a server to another state, and to where that state belongs.
    pub fn set_server_state(&mut self, key: ServerKey, state: server::State, end: End) {
        let server = self.servers.get_mut(key).expect("only a server that is there moves");
        let (from, to) = (server_standing(&server.state), server_standing(&state));
        if server.pool == PoolKey::NONE {
            let (left, stays_with) = (server.state.peer(), state.peer());
            server.state = state;
            self.note_carrier_to(key, left, stays_with);
            return;
        }
        server.state = state;
        if from == to {
            return;
        }
        let pool = self.pools.get_mut(server.pool).expect("a server's pool outlives it");
        if let Some(from) = from {
            pool.servers.leave(&mut self.servers, key, from);
        }
        match to {
            Some(to) => pool.servers.join(&mut self.servers, key, (to, end)),
            None => self.groups.remove_server(pool.groups, key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Default)]
    struct Entry(Hook<ClientKey>);

    impl Queued for Entry {
        type Key = ClientKey;
        fn hook(&mut self) -> &mut Hook<ClientKey> {
            &mut self.0
        }
        fn links(&self) -> Hook<ClientKey> {
            self.0
        }
    }

    proptest! {
        #[test]
        fn a_queue_is_a_queue_from_which_anybody_may_leave(steps in prop::collection::vec((0u8..3, 0usize..8), 0..60)) {
            let (mut all, mut queue) = (Keyed::<ClientKey, Entry>::default(), Queue::default());
            let mut model = VecDeque::new();
            for (step, which) in steps {
                match step {
                    0 | 1 => {
                        let key = all.insert(Entry::default());
                        if step == 0 {
                            queue.push_back(&mut all, key);
                            model.push_back(key);
                        } else {
                            queue.push_front(&mut all, key);
                            model.push_front(key);
                        }
                    }
                    _ if !model.is_empty() => {
                        let key = model.remove(which % model.len()).unwrap();
                        queue.remove(&mut all, key);
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.keys(&all), Vec::from(model.clone()));
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.first(), model.front().copied());
            }
        }
    }
}
