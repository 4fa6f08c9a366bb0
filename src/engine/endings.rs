//! The one place where a conversation ends: why, who is told, what becomes of the other end.
//!
//! Nothing is freed here. A connection that ends becomes `Closing`, and the shell closes its
//! socket at the end of the turn (`Effect::Close`), after one last try to send what is queued.

use crate::engine::Engine;
use crate::engine::io::Effect;
use crate::keys::{ClientKey, Conn, PoolKey, ServerKey};
use crate::pool::House;
use crate::pool::causes::Side;
use crate::pool::queues::End;
use crate::session::client::{self, Client};
use crate::session::farewell::Reason;
use crate::session::inbox::Rest;
use crate::session::server::{self, Purpose, Server};
use crate::wire::emit;
use std::time::Instant;

/// Why servers end that are still being opened: these are our own doing, and say nothing about the
/// server.
pub(super) const OURS: [Reason; 6] = [
    Reason::CONNECT_STRING_CHANGED,
    Reason::DATABASE_REMOVED,
    Reason::PAUSE_MODE,
    Reason::UNSAFE_ON_SUSPEND,
    Reason::SUSPEND_TIMEOUT,
    Reason::REPLICATION_CLIENT_DISCONNECTED,
];

/// What becomes of a client's other end when it leaves.
enum OtherEnd {
    /// There is none.
    None,
    /// Its server goes on serving others.
    Release(ServerKey),
    /// Its server ends, too.
    Close(ServerKey, Reason),
    /// Its server is brought to where it can serve others; why it cannot yet.
    Rescue(ServerKey, Reason),
}

/// A CancelRequest that a connection was opened for.
struct Carried {
    /// Whose query it is about.
    target: ServerKey,
    /// Who asked; `None`: we did.
    requester: Option<ClientKey>,
    /// Whether it has been sent.
    was_sent: bool,
}

impl Engine {
    /// A client's conversation ends.
    pub(super) fn close_client(&mut self, key: ClientKey, reason: Reason, now: Instant) {
        let Some(client) = self.house.clients.get(key) else {
            return;
        };
        if client.state == client::State::Closing {
            return;
        }
        // Who asked for a cancel expects no word at all.
        let is_cancelling = matches!(
            client.state,
            client::State::AwaitingCancel { .. }
                | client::State::AwaitingPeer(_)
                | client::State::Cancelling { .. }
        );
        self.log_client_ending(key, &reason, now);
        self.house.endings.count(Side::Client, &reason);
        if let client::State::Waiting { since, .. } | client::State::AwaitingWelcome { since } =
            client.state
        {
            self.house.count_wait(key, since, now);
        }
        let is_cut_off = self.is_in_mid_reply(key);
        let asked = self.forget_asker(key);
        if let Some(client) = self.house.clients.get_mut(key) {
            // Whatever it waited for, its login does not go on.
            client.login = None;
        }
        let other_end = self.other_end(key, &reason);
        let remains = match other_end {
            OtherEnd::None => None,
            OtherEnd::Release(server) | OtherEnd::Close(server, _) => {
                self.house.unlink(server);
                None
            }
            OtherEnd::Rescue(server, _) => Some(self.take_back(server, key, now)),
        };
        if reason.is_told() && !is_cut_off && !is_cancelling {
            self.say_farewell(key, &reason);
        }
        self.house.set_client_state(key, client::State::Closing);
        let left = self.house.leave_pool(key);
        self.effects.push_back(Effect::Close { conn: Conn::Client(key) });
        match other_end {
            OtherEnd::None => {}
            OtherEnd::Release(server) => self.dismiss(server, now),
            OtherEnd::Close(server, reason) => self.close_server(server, reason, now),
            OtherEnd::Rescue(server, reason) => {
                remains.into_iter().for_each(|r| self.begin_rescue(server, r, &reason, now));
            }
        }
        for pool in left.into_iter().chain(asked) {
            self.forget_if_made_up(pool);
            self.tend(pool, now);
        }
    }

    /// A server's connection ends; with it, if there is one, the conversation of its client.
    pub(super) fn close_server(&mut self, key: ServerKey, reason: Reason, now: Instant) {
        let Some(server) = self.house.servers.get(key) else {
            return;
        };
        let pool = server.pool;
        if matches!(server.state, server::State::Closing) || self.has_left(key, now) {
            return;
        }
        if let Some(pool) = self.house.pools.get_mut(pool)
            && reason == Reason::SERVER_LIFETIME_OVER
        {
            pool.retired_at = Some(now);
        }
        self.log_server_ending(key, &reason, now);
        self.house.endings.count(Side::Server, &reason);
        self.note_login_failure(key, &reason, now);
        self.note_lost_rescue(key);
        let carried = self.carried_cancel(key);
        let forwarded = self.forwarded(key);
        let asker = self.house.servers.get(key).and_then(Server::asker);
        let client = self.house.servers.get(key).and_then(Server::client);
        let replicator = self.replicator_hurt_by(key, &reason);
        if let Some(client) = client {
            let is_cut_off = self.is_in_mid_reply(client);
            self.house.unlink(key);
            // In the middle of a message, a word of ours would be taken for a part of it.
            let told = if is_cut_off { Reason::Silent(CUT_OFF) } else { reason.clone() };
            self.close_client(client, told, now);
        }
        let probe = self.house.servers.get(key).filter(|server| server.is_probe());
        let probed = probe.map(|server| matches!(server.state, server::State::AskingForTls(_)));
        let may_stay_behind = self.may_stay_behind(key, &reason);
        let is_told = self.terminate(key, &reason);
        if may_stay_behind && self.house.is_place_counted(pool, &self.config) {
            self.let_leave(key, is_told, now);
        } else {
            self.house.set_server_state(key, server::State::Closing, End::Back);
            self.effects.push_back(Effect::Close { conn: Conn::Server(key) });
        }
        if let Some(asker) = asker {
            if let Some(client) = self.house.clients.get_mut(asker)
                && let client::State::AwaitingAccount { server, .. } = &mut client.state
            {
                // It is being closed already: that must not be taken for its last word.
                *server = None;
            }
            self.close_client(asker, Reason::CONFIG_ERROR, now);
        }
        if let Some(client) = replicator {
            self.close_client(client, reason.clone(), now);
        }
        if let Some(carried) = carried {
            self.cancel_carrier_ended(carried, &reason, now);
        }
        if let Some(forwarded) = forwarded {
            self.forward_ended(forwarded, &reason, now);
            return;
        }
        if let Some(was_connected) = probed {
            self.probe_ended(pool, was_connected, &reason, now);
        }
        for requester in self.house.stale_cancels(pool, key) {
            self.close_client(requester, Reason::CANCEL_TOO_LATE, now);
        }
        // Who evicts it has a use for its place.
        if reason != Reason::EVICTED {
            self.place_is_free(pool, now);
            self.staff(pool, now);
        }
        self.tend(pool, now);
    }

    /// Whether a part of a server's message has been passed on to this client, and the rest has
    /// not come in.
    fn is_in_mid_reply(&self, key: ClientKey) -> bool {
        let server = self.house.clients.get(key).and_then(Client::server);
        let server = server.and_then(|key| self.house.servers.get(key));
        server.is_some_and(|server| matches!(server.inbox.rest(), Rest::Relay(_)))
    }

    fn other_end(&self, key: ClientKey, leaves_because: &Reason) -> OtherEnd {
        let Some(client) = self.house.clients.get(key) else {
            return OtherEnd::None;
        };
        match client.state {
            client::State::Active { server, .. } => match self.house.unfinished(server) {
                Some(reason) if self.may_rescue(server, leaves_because) => {
                    OtherEnd::Rescue(server, reason)
                }
                Some(reason) => OtherEnd::Close(server, reason),
                None => OtherEnd::Release(server),
            },
            client::State::AwaitingCancel { carrier: Some(carrier), .. }
            | client::State::Cancelling { carrier, .. } => {
                OtherEnd::Close(carrier, Reason::CANCEL_GIVEN_UP)
            }
            client::State::AwaitingPeer(ref forward) => match forward.carrier {
                Some(carrier) => OtherEnd::Close(carrier, Reason::CANCEL_GIVEN_UP),
                None => OtherEnd::None,
            },
            client::State::AwaitingAccount { server: Some(server), .. } => {
                OtherEnd::Close(server, Reason::CLIENT_LEFT_NOT_READY)
            }
            _ => match self.house.opened_for(key) {
                Some(server) => OtherEnd::Close(server, Reason::REPLICATION_CLIENT_DISCONNECTED),
                None => OtherEnd::None,
            },
        }
    }

    /// The last words: behind what is still queued, so that no earlier reply is lost for them.
    fn say_farewell(&mut self, key: ClientKey, reason: &Reason) {
        let text = reason.text();
        let told = self.tell_client(key, |ring| emit::fatal(ring, reason.code(), text.as_bytes()));
        if told.is_err() {
            log::debug!("no room for the last words to a client: {reason}");
        }
        if self.config.settings.log_pooler_errors.is_on() {
            let name = self.house.client_name(key, &self.config.settings);
            log::warn!("{name} pooler error: {reason}");
        }
    }

    /// Says goodbye to a server that can understand it: not while logging in, nor in the middle of
    /// a client's message, nor when the line is broken. Whether that was possible.
    fn terminate(&mut self, key: ServerKey, reason: &Reason) -> bool {
        let House { servers, rings, .. } = &mut self.house;
        let server = servers.get_mut(key).expect("its caller has seen it");
        let has_logged_in = matches!(
            server.state,
            server::State::Idle { .. }
                | server::State::Active { .. }
                | server::State::Unlinked { .. }
                | server::State::Rescuing(_)
                | server::State::Used { .. }
                | server::State::Resetting { .. }
                | server::State::Checking { .. }
                | server::State::HeldForCancel
        );
        let is_broken = [Reason::SERVER_CRASHED, Reason::SERVER_CONNECTION_CLOSED].contains(reason);
        // Five bytes more could make a whole of what the client did not finish.
        let is_cut_off = matches!(server.state, server::State::Unlinked { cut_off: true })
            || !server.egress.is_empty();
        server.egress.clear(rings);
        let can_be_told = has_logged_in && !is_broken && !is_cut_off;
        can_be_told && server.egress.push_own(rings, emit::terminate).is_ok()
    }

    /// A server that never served: its pool remembers why.
    fn note_login_failure(&mut self, key: ServerKey, reason: &Reason, now: Instant) {
        let Some(server) = self.house.servers.get(key) else {
            return;
        };
        let was_to_serve = matches!(
            server.state,
            server::State::Connecting(Purpose::Serve)
                | server::State::AskingForTls(Purpose::Serve)
                | server::State::StartingTls(Purpose::Serve)
                | server::State::LoggingIn(_)
        );
        // Who does not even answer a probe would let nobody in.
        let is_silent = server.is_probe() && *reason == Reason::CONNECT_TIMEOUT;
        if (was_to_serve || is_silent) && !OURS.contains(reason) {
            self.house.note_failure(key, reason, &self.config.settings, now);
        }
    }

    fn carried_cancel(&self, key: ServerKey) -> Option<Carried> {
        match self.house.servers.get(key)?.state {
            server::State::Connecting(Purpose::Cancel { requester, target })
            | server::State::AskingForTls(Purpose::Cancel { requester, target })
            | server::State::StartingTls(Purpose::Cancel { requester, target }) => {
                Some(Carried { target, requester, was_sent: false })
            }
            server::State::CarryingCancel { target, requester } => {
                Some(Carried { target, requester, was_sent: true })
            }
            _ => None,
        }
    }

    /// A carrier has ended: who asked for the cancel is let go, and the server that was held back
    /// for it may serve again.
    fn cancel_carrier_ended(&mut self, carried: Carried, reason: &Reason, now: Instant) {
        let Carried { target: target_key, requester, was_sent } = carried;
        if let Some(requester) = requester.filter(|_| *reason != Reason::CANCEL_GIVEN_UP) {
            let fate = if was_sent { Reason::CANCEL_SENT } else { Reason::CANCEL_NOT_SENT };
            self.close_client(requester, fate, now);
        }
        if let Some(target) = self.house.servers.get_mut(target_key).filter(|_| was_sent) {
            target.cancels_in_flight -= 1;
            // Only the server's own end of the connection says that it has dealt with the request.
            target.may_be_hit |= *reason != Reason::CANCEL_SENT;
            if matches!(target.state, server::State::HeldForCancel) && target.cancels_in_flight == 0
            {
                self.settle_down(target_key, true, now);
            }
        }
        if requester.is_none() {
            self.own_cancel_ended(target_key, now);
        }
        self.rescue_goes_on(target_key, now);
    }

    fn log_client_ending(&self, key: ClientKey, reason: &Reason, now: Instant) {
        let Some(client) = self.house.clients.get(key) else {
            return;
        };
        // As PgBouncer: who goes away before proving who he is leaves no line.
        let came_to_nothing =
            matches!(client.state, client::State::LoggingIn | client::State::Proving(_))
                && [Reason::CLIENT_UNEXPECTED_EOF, Reason::UNEXPECTED_EOF].contains(reason);
        let settings = &self.config.settings;
        if settings.log_disconnections.is_on() && !came_to_nothing {
            let name = self.house.client_name(key, settings);
            let age = now.saturating_duration_since(client.connected_at).as_secs();
            log::info!("{name} closing because: {reason} (age={age}s)");
        }
    }

    fn log_server_ending(&self, key: ServerKey, reason: &Reason, now: Instant) {
        let Some(server) = self.house.servers.get(key) else {
            return;
        };
        if self.config.settings.log_disconnections.is_on() {
            let name = self.house.server_name(key);
            let age = now.saturating_duration_since(server.connected_at).as_secs();
            log::info!("{name} closing because: {reason} (age={age}s)");
        }
    }

    /// Everything of a pool ends, the pool too.
    pub(super) fn close_pool(&mut self, key: PoolKey, reason: &Reason, now: Instant) {
        for client in self.house.clients_of(key) {
            self.close_client(client, reason.clone(), now);
        }
        for asker in self.askers_of(key) {
            self.close_client(asker, reason.clone(), now);
        }
        if let Some(pool) = self.house.pools.get_mut(key) {
            // Or the end of one server would open a connection to cancel for another.
            pool.own_cancels.clear();
        }
        for server in self.house.servers_of(key) {
            self.close_server(server, reason.clone(), now);
        }
    }
}

/// In the log, of a client whose server was lost in mid-message.
const CUT_OFF: &str = "server conn crashed?";
