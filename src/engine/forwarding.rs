//! Cancel requests that are meant for another pooler behind the same address.
//!
//! ```text
//! client: LoggingIn ──▶ AwaitingPeer ──▶ Cancelling ──▶ Closing
//! ours:                   Connecting ──▶ Forwarding ──▶ Closing     when the peer closes
//! ```
//!
//! Each request has a connection of its own, to which nothing is said but the request: no TLS, no
//! login. When the peer closes it, the request has come to its end, and who asked is let go.

use crate::engine::Engine;
use crate::keys::{ClientKey, Conn, PoolKey, ServerKey};
use crate::pool::House;
use crate::pool::queues::End;
use crate::pool::sizing::Whereabouts;
use crate::session::cancel_key::{self, Short};
use crate::session::client::{self, Forward};
use crate::session::farewell::Reason;
use crate::session::server::{self, Purpose};
use crate::wire::emit::{self, Full};
use std::time::Instant;

/// A request that a connection to a peer was opened for.
pub(super) struct Forwarded {
    peer: u16,
    requester: ClientKey,
    was_sent: bool,
}

impl Engine {
    /// Somebody wants something cancelled that a client of another pooler has asked.
    pub(super) fn forward_cancel(
        &mut self,
        key: ClientKey,
        (short, tail): (Short, &[u8]),
        now: Instant,
    ) -> Result<(), Reason> {
        let peer = cancel_key::peer(short);
        let short = cancel_key::hop(short).ok_or(Reason::CANCEL_TOO_MANY_HOPS)?;
        if !self.config.peers.contains_key(&peer) {
            return Err(Reason::CANCEL_WITHOUT_PEER);
        }
        let key_on = [&short, tail].concat().into_boxed_slice();
        let forward = Forward { peer, key: key_on, carrier: None, since: now };
        self.house.set_client_state(key, client::State::AwaitingPeer(Box::new(forward)));
        self.watch(Conn::Client(key), now);
        self.staff_peer(peer, now);
        Ok(())
    }

    /// Opens connections for the requests that wait for this peer, as many as it may have.
    fn staff_peer(&mut self, peer: u16, now: Instant) {
        if self.is_being_staffed(peer, true) {
            // What was to be opened ended at once: the loop below, further down the stack, goes on.
            return;
        }
        while let Some(requester) = self.house.next_forward(peer, &self.config) {
            let carrier = self.open(PoolKey::NONE, Purpose::Forward { peer, requester }, now);
            if let Some(mut forward) = self.forward_of(requester) {
                forward.carrier = Some(carrier);
                let waiting = client::State::AwaitingPeer(Box::new(forward));
                self.house.set_client_state(requester, waiting);
            }
            self.dial_peer(carrier, peer, now);
        }
        self.is_being_staffed(peer, false);
    }

    /// Whether it has been, up to now.
    fn is_being_staffed(&mut self, peer: u16, from_now_on: bool) -> bool {
        let pool = self.house.peer_pools.get_mut(&peer);
        pool.is_some_and(|pool| std::mem::replace(&mut pool.is_being_staffed, from_now_on))
    }

    fn forward_of(&self, requester: ClientKey) -> Option<Forward> {
        match &self.house.clients.get(requester)?.state {
            client::State::AwaitingPeer(forward) => Some(Forward::clone(forward)),
            _ => None,
        }
    }

    fn dial_peer(&mut self, key: ServerKey, peer: u16, now: Instant) {
        let Some(peer) = self.config.peers.get(&peer) else {
            return;
        };
        let directory = &self.config.settings.unix_socket_dir;
        match self.house.next_peer_host(peer, directory) {
            Whereabouts::At(address) => self.connect(key, address),
            Whereabouts::Named(host) => self.look_up(key, &host, now),
            Whereabouts::Nowhere => {
                log::error!("unix socket dir not configured: peer {}", peer.id);
                self.close_server(key, Reason::CANNOT_CONNECT, now);
            }
        }
    }

    /// There is a connection to a peer: the request is all that it is told.
    pub(super) fn send_forward(
        &mut self,
        key: ServerKey,
        (peer, requester): (u16, ClientKey),
        now: Instant,
    ) {
        let Some(forward) = self.forward_of(requester) else {
            self.close_server(key, Reason::CANCEL_GIVEN_UP, now);
            return;
        };
        let House { servers, rings, .. } = &mut self.house;
        let carrier = servers.get_mut(key).expect("its caller has seen it");
        let sent = carrier.egress.push_own(rings, |ring| emit::cancel_request(ring, &forward.key));
        let forwarding = server::State::Forwarding { peer, requester, since: now };
        self.house.set_server_state(key, forwarding, End::Back);
        let cancelling = client::State::Cancelling { carrier: key, peer: Some(peer) };
        self.house.set_client_state(requester, cancelling);
        self.watch(Conn::Server(key), now);
        match sent {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(Full) => self.close_server(key, Reason::CANCEL_NOT_SENT, now),
        }
    }

    /// What this connection was opened for, if it leads to a peer.
    pub(super) fn forwarded(&self, key: ServerKey) -> Option<Forwarded> {
        match self.house.servers.get(key)?.state {
            server::State::Connecting(Purpose::Forward { peer, requester })
            | server::State::AskingForTls(Purpose::Forward { peer, requester })
            | server::State::StartingTls(Purpose::Forward { peer, requester }) => {
                Some(Forwarded { peer, requester, was_sent: false })
            }
            server::State::Forwarding { peer, requester, .. } => {
                Some(Forwarded { peer, requester, was_sent: true })
            }
            _ => None,
        }
    }

    /// A connection to a peer has ended: who asked is let go, and the next one has its turn.
    pub(super) fn forward_ended(&mut self, forwarded: Forwarded, reason: &Reason, now: Instant) {
        let Forwarded { peer, requester, was_sent } = forwarded;
        if *reason != Reason::CANCEL_GIVEN_UP {
            let fate = match reason {
                removed if *removed == Reason::PEER_REMOVED => Reason::PEER_REMOVED,
                _ if was_sent => Reason::CANCEL_SENT,
                _ => Reason::CANCEL_NOT_SENT,
            };
            self.close_client(requester, fate, now);
        }
        self.staff_peer(peer, now);
    }

    /// The configuration has changed. Values that have are for new connections.
    pub(super) fn reload_peers(&mut self, now: Instant) {
        let known: Vec<u16> = self.house.peer_pools.keys().copied().collect();
        for peer in known {
            if self.config.peers.contains_key(&peer) {
                self.staff_peer(peer, now);
                continue;
            }
            let (waiting, carriers) = self.house.everything_for(peer);
            for client in waiting {
                self.close_client(client, Reason::PEER_REMOVED, now);
            }
            for carrier in carriers {
                self.close_server(carrier, Reason::PEER_REMOVED, now);
            }
            let pool = self.house.peer_pools.remove(&peer);
            assert!(pool.is_none_or(|pool| pool.is_quiet()), "nothing is left of a removed peer");
        }
    }
}
