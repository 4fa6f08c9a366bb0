//! Other poolers behind the same address, and the cancel requests that are on their way to them.
//!
//! A peer has a pool as soon as a request has been handed on to it. No server is in there that could
//! serve anybody: each connection carries one request and ends. So a peer that is down, or hangs,
//! holds up nothing but requests that are meant for it.

use crate::config::Config;
use crate::config::entries::Peer;
use crate::config::settings::Settings;
use crate::keys::{ClientKey, ServerKey};
use crate::pool::House;
use crate::pool::queues::Queue;
use crate::pool::sizing::Whereabouts;
use crate::session::client::{self, Client};
use crate::session::server::{Server, ServerAddress};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Requests that are meant for clients of one peer.
#[derive(Debug, Default)]
pub struct PeerPool {
    /// Those for which no connection is being opened yet, oldest first.
    pub waiting: Queue<ClientKey>,
    /// Connections that carry one, or are being opened for that, oldest first.
    pub carriers: Queue<ServerKey>,
    /// Which host of a list comes next.
    host: usize,
    /// Connections are being opened for one request after the other: a thousand that end at once
    /// must not be a thousand calls deep.
    pub is_being_staffed: bool,
}

/// How many requests and connections are how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that have not been sent.
    pub waiting: usize,
    /// Connections being opened.
    pub opening: usize,
    /// Requests that have been sent, each through a connection of its own.
    pub sent: usize,
}

/// The pools of all peers that have been sent a request, by number.
pub type PeerPools = BTreeMap<u16, PeerPool>;

/// Our own number; `None`: we have no peers. As PgBouncer: only the low 16 bits are told.
pub fn own_id(settings: &Settings) -> Option<u16> {
    let [_, _, high, low] = settings.peer_id.to_be_bytes();
    (settings.peer_id > 0).then_some(u16::from_be_bytes([high, low]))
}

impl Peer {
    /// How many connections at most; `None`: no limit, as with other pools.
    pub fn size(&self, settings: &Settings) -> Option<usize> {
        let size = self.pool_size.unwrap_or(settings.default_pool_size);
        usize::try_from(size).ok().filter(|size| *size > 0)
    }

    /// Its hosts, in the order of the list.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.host.split(',').filter(|host| !host.is_empty())
    }

    /// A name's address, with the peer's port.
    pub fn tcp(&self, address: IpAddr) -> ServerAddress {
        ServerAddress::Tcp(SocketAddr::new(address, self.port))
    }

    fn unix(&self, directory: &str) -> Whereabouts {
        let path = format!("{directory}/.s.PGSQL.{}", self.port);
        Whereabouts::At(ServerAddress::Unix(PathBuf::from(path)))
    }

    fn whereabouts(&self, turn: usize, socket_directory: &str) -> Whereabouts {
        let hosts: Vec<&str> = self.hosts().collect();
        let Some(host) = hosts.get(turn % hosts.len().max(1)) else {
            return match socket_directory {
                "" => Whereabouts::Nowhere,
                directory => self.unix(directory),
            };
        };
        if host.starts_with(['/', '@']) {
            return self.unix(host);
        }
        match host.parse::<IpAddr>() {
            Ok(address) => Whereabouts::At(self.tcp(address)),
            Err(_) => Whereabouts::Named((*host).to_owned()),
        }
    }
}

impl PeerPool {
    /// Whether nobody waits for this peer, and nothing is on its way to it.
    pub fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.carriers.is_empty()
    }
}

impl House {
    /// Where the next connection to this peer goes.
    pub fn next_peer_host(&mut self, peer: &Peer, socket_directory: &str) -> Whereabouts {
        let pool = self.peer_pools.entry(peer.id).or_default();
        let turn = pool.host;
        pool.host = pool.host.wrapping_add(1);
        peer.whereabouts(turn, socket_directory)
    }

    /// The first request for this peer, if a connection may be opened for it.
    pub fn next_forward(&self, id: u16, config: &Config) -> Option<ClientKey> {
        let pool = self.peer_pools.get(&id)?;
        let size = config.peers.get(&id)?.size(&config.settings);
        let has_room = size.is_none_or(|size| pool.carriers.len() < size);
        pool.waiting.first().filter(|_| has_room)
    }

    /// The peer to which the request of this client goes.
    pub fn peer_of(&self, client: &Client) -> Option<u16> {
        match &client.state {
            client::State::AwaitingPeer(forward) => Some(forward.peer),
            client::State::Cancelling { peer, .. } => *peer,
            _ => None,
        }
    }

    /// What there is to be told of a peer's pool.
    pub fn peer_counts(&self, pool: &PeerPool) -> Counts {
        let carriers = pool.carriers.keys(&self.servers);
        let is_opening =
            |key: &ServerKey| self.servers.get(*key).is_some_and(Server::is_connecting);
        let opening = carriers.iter().filter(|key| is_opening(key)).count();
        let sent = carriers.len() - opening;
        Counts { waiting: pool.waiting.len() + opening, opening, sent }
    }

    /// Everything that is on its way to this peer: who asked, and our connections.
    pub fn everything_for(&self, id: u16) -> (Vec<ClientKey>, Vec<ServerKey>) {
        self.peer_pools.get(&id).map_or_else(Default::default, |pool| {
            (pool.waiting.keys(&self.clients), pool.carriers.keys(&self.servers))
        })
    }

    /// A client has gone from one state to another: who waits for a peer stands in its pool.
    pub(super) fn note_forward(&mut self, key: ClientKey, old: &client::State) {
        let House { clients, peer_pools, .. } = self;
        if let Some(pool) = waits_for(old).and_then(|id| peer_pools.get_mut(&id)) {
            pool.waiting.remove(clients, key);
        }
        if let Some(id) = clients.get(key).and_then(|client| waits_for(&client.state)) {
            peer_pools.entry(id).or_default().waiting.push_back(clients, key);
        }
    }

    /// The same of a connection to a peer.
    pub(super) fn note_carrier_to(&mut self, key: ServerKey, from: Option<u16>, to: Option<u16>) {
        let House { servers, peer_pools, .. } = self;
        if from == to {
            return;
        }
        if let Some(pool) = from.and_then(|id| peer_pools.get_mut(&id)) {
            pool.carriers.remove(servers, key);
        }
        if let Some(id) = to {
            peer_pools.entry(id).or_default().carriers.push_back(servers, key);
        }
    }
}

fn waits_for(state: &client::State) -> Option<u16> {
    match state {
        client::State::AwaitingPeer(forward) if forward.carrier.is_none() => Some(forward.peer),
        _ => None,
    }
}
