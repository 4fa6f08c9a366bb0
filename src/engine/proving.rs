//! Has a client prove who it is, in the way that counts for it, and holds its answer against what
//! we know.
//!
//! A client that is not known is asked as one that is, and fails at the end (reliability 8). What
//! it answers is held against what we know in `checking`.

use crate::auth::challenge::{Attempt, Challenge, Claim, Next, Refusal};
use crate::auth::hba::{Method, Visitor};
use crate::config::values::AuthType;
use crate::engine::Engine;
use crate::keys::ClientKey;
use crate::pool::House;
use crate::session::client::{ClientAddress, State};
use crate::session::client_login::{Goal, Proving, Step};
use crate::session::farewell::Reason;
use crate::session::line::Secured;
use crate::sys;
use crate::wire::emit;
use crate::wire::frame::{HEADER_BYTES, Peek};
use crate::wire::startup::First;
use std::time::Instant;

/// How somebody has to prove who he is, and by which map of names.
type Way = (Method, Option<String>);

impl Engine {
    /// Asks for what proves that a client is who it claims to be, unless nothing has to be proven.
    pub(super) fn have_proven(
        &mut self,
        key: ClientKey,
        (claim, is_known): (Claim, bool),
        goal: Goal,
        now: Instant,
    ) -> Result<(), Reason> {
        let (method, map) = self.way_for(key, &claim.user, &goal)?;
        if let Some(oracle) = self.oracle_outside(key, &method)? {
            return self.ask_for_password(key, (claim, goal), oracle);
        }
        let (request, challenge) = match method {
            Method::Trust if is_known => return self.has_proven(key, goal, &claim.user, now),
            Method::Trust => return Err(Reason::TRUST_FAILED),
            Method::Reject => return Err(Reason::LOGIN_REJECTED),
            Method::Peer if is_known && self.is_peer(key, &claim.user, map.as_deref()) => {
                return self.has_proven(key, goal, &claim.user, now);
            }
            Method::Peer => return Err(Reason::PEER_REJECTED),
            Method::Cert if is_known && self.is_certified(key, &claim.user, map.as_deref()) => {
                return self.has_proven(key, goal, &claim.user, now);
            }
            Method::Cert => return Err(Reason::CERTIFICATE_FAILED),
            // A directory was asked above.
            Method::Password | Method::Ldap(_) => Challenge::password(),
            Method::Md5 if !claim.keeps_scram() => Challenge::md5(),
            Method::Md5 | Method::ScramSha256 => Challenge::sasl(self.end_point_of(key)),
        };
        let proving = Proving { claim, goal, step: Step::Asked(challenge) };
        self.put_proving(key, proving);
        self.request(key, &request)
    }

    /// By `auth_type`, or with `hba` by the first rule that fits.
    pub(super) fn way_for(&self, key: ClientKey, user: &str, goal: &Goal) -> Result<Way, Reason> {
        let method = match self.config.settings.auth_type {
            AuthType::Any | AuthType::Trust => Method::Trust,
            AuthType::Plain => Method::Password,
            AuthType::Md5 => Method::Md5,
            AuthType::ScramSha256 => Method::ScramSha256,
            AuthType::Cert => Method::Cert,
            // Somebody else knows the password: see `consulting`.
            AuthType::Pam | AuthType::Ldap => Method::Password,
            AuthType::Hba => {
                let from = self.house.clients.get(key).map(|client| client.from);
                let visitor = Visitor {
                    address: match from {
                        Some(ClientAddress::Tcp(address)) => Some(address.ip().to_canonical()),
                        Some(ClientAddress::Unix { .. }) | None => None,
                    },
                    has_tls: self.secured(key).is_some(),
                    replicates: goal.is_physical_replication(),
                    database: goal.name(),
                    user,
                };
                let rule = self.access.hba.rule_for(&visitor).ok_or(Reason::NO_METHOD)?;
                return Ok((rule.method.clone(), rule.map.clone()));
            }
        };
        Ok((method, None))
    }

    fn secured(&self, key: ClientKey) -> Option<&Secured> {
        self.house.clients.get(key).and_then(|client| client.line.secured())
    }

    /// What SCRAM can be bound to.
    fn end_point_of(&self, key: ClientKey) -> Option<Box<[u8]>> {
        self.secured(key).and_then(|secured| secured.end_point.as_deref()).map(Box::from)
    }

    /// Whether the client's certificate, which has been verified, names that user, or one who may
    /// be him.
    fn is_certified(&self, key: ClientKey, user: &str, map: Option<&str>) -> bool {
        let Some(names) = self.secured(key).and_then(|secured| secured.peer.as_ref()) else {
            return false;
        };
        match map {
            None => names.is_client(user),
            Some(map) if self.access.ident.allows_any(map, |name| names.is_client(name), user) => {
                true
            }
            Some(map) => {
                log::error!("{} ident map: {map} does not have a match", self.name_of(key));
                false
            }
        }
    }

    /// Whether the process at the other end of a Unix socket belongs to that user of this system,
    /// or to one who may be him.
    fn is_peer(&self, key: ClientKey, user: &str, map: Option<&str>) -> bool {
        let from = self.house.clients.get(key).map(|client| client.from);
        let Some(ClientAddress::Unix { uid: Some(uid), .. }) = from else {
            return false;
        };
        let Some(name) = sys::user_name(uid) else {
            return false;
        };
        match map {
            None => name == user,
            Some(map) if self.access.ident.allows(map, &name, user) => true,
            Some(map) => {
                log::error!("{} ident map {map} cannot be matched", self.name_of(key));
                false
            }
        }
    }

    /// Looks at what a client answers.
    pub(super) fn proof_received(&mut self, key: ClientKey, now: Instant) {
        loop {
            let outcome = match self.next_answer(key) {
                Ok(None) => break,
                Ok(Some(body)) => self.on_answer(key, &body, now),
                Err(reason) => Err(reason),
            };
            if let Err(reason) = outcome {
                self.close_client(key, reason, now);
                return;
            }
        }
        let House { clients, rings, .. } = &mut self.house;
        if let Some(client) = clients.get_mut(key) {
            client.inbox.tidy(None, rings);
            if matches!(client.state, State::Idle) {
                self.client_goes_on(key, now);
            }
        }
    }

    /// The body of the next message, once it has come in as a whole.
    fn next_answer(&mut self, key: ClientKey) -> Result<Option<Vec<u8>>, Reason> {
        let limit = self.config.settings.max_packet_size;
        let Some(client) = self.house.clients.get_mut(key) else {
            return Ok(None);
        };
        match &client.state {
            State::Proving(proving) if proving.step.awaits_answer() => {}
            _ => return Ok(None),
        }
        if client.inbox.peek_tag() == Some(0) {
            return self.on_first_packet_again(key).map(|()| None);
        }
        let header = match client.inbox.peek(limit) {
            Peek::NeedMore => return Ok(None),
            Peek::Bad => return Err(Reason::bad_header(&client.inbox.hex())),
            Peek::Header(header) => header,
        };
        if header.tag != b'p' || !client.inbox.can_hold(header.bytes) {
            return Err(Reason::BAD_PACKET);
        }
        if !client.inbox.has(header.bytes) {
            return Ok(None);
        }
        let body = client.inbox.copy(HEADER_BYTES, header.bytes);
        client.inbox.skip(header.bytes);
        Ok(Some(body))
    }

    /// A packet without a type byte where a password is awaited. As PgBouncer: somebody may still
    /// ask for encryption; ours does not begin in the middle of a login.
    fn on_first_packet_again(&mut self, key: ClientKey) -> Result<(), Reason> {
        match self.peek_first(key) {
            None | Some(First::NeedMore) => Ok(()),
            Some(First::SslRequest) if self.secured(key).is_some() => Err(Reason::SSL_INSIDE_SSL),
            Some(First::SslRequest) => self.decline(key, Reason::DATA_AFTER_SSL),
            Some(First::GssEncRequest) => self.decline(key, Reason::DATA_AFTER_GSSENC),
            Some(First::CancelRequest(_) | First::Tagged(_)) => Err(Reason::BAD_PACKET),
            Some(First::Startup { .. }) => Err(Reason::STARTUP_AGAIN),
            Some(First::OldStartup) => Err(Reason::OLD_PROTOCOL),
            Some(First::Bad) => Err(self.bad_header(key)),
        }
    }

    fn on_answer(&mut self, key: ClientKey, body: &[u8], now: Instant) -> Result<(), Reason> {
        let iterations = u32::try_from(self.config.settings.scram_iterations).unwrap_or(1);
        let Some(Proving { claim, goal, step }) = self.take_proving(key) else {
            return Ok(());
        };
        let (challenge, oracle) = match step {
            Step::Asked(challenge) => (challenge, None),
            Step::AskedFor { challenge, oracle } => (challenge, Some(oracle)),
            Step::Consulting { .. } | Step::Checking { .. } | Step::Withheld { .. } => {
                return Err(Reason::BAD_PACKET);
            }
        };
        let (request, challenge) = match challenge.step(body, &claim, (&self.salts, iterations)) {
            Next::Ask(request, challenge) => (request, challenge),
            Next::Judge(attempt) => {
                if let (Attempt::Password(password), Some(oracle)) = (&attempt, oracle) {
                    self.consult(key, (claim, goal), (oracle, password.clone()));
                    return Ok(());
                }
                return self.judge(key, (claim, goal, attempt), None, now);
            }
            Next::Refuse(refusal) => return Err(self.refuse(key, refusal)),
        };
        let step = match oracle {
            Some(oracle) => Step::AskedFor { challenge, oracle },
            None => Step::Asked(challenge),
        };
        self.put_proving(key, Proving { claim, goal, step });
        self.request(key, &request)
    }

    /// A client is who it says. Only now is it told whether there is such a database.
    pub(super) fn has_proven(
        &mut self,
        key: ClientKey,
        goal: Goal,
        user: &str,
        now: Instant,
    ) -> Result<(), Reason> {
        let (name, pool) = match goal {
            Goal::Console { rights } => return self.enter_console(key, rights),
            Goal::Database { name, pool, .. } => (name, pool),
        };
        let Some(pool) = pool else {
            log::info!("{} login failed: db={name} user={user}", self.name_of(key));
            return Err(Reason::no_such_database(&name));
        };
        self.let_in(key, pool, now)
    }

    pub(super) fn refuse(&self, key: ClientKey, refusal: Refusal) -> Reason {
        if let Some(words) = refusal.log {
            log::error!("{} {words}", self.name_of(key));
        }
        Reason::Told(refusal.told)
    }

    /// Sends an Authentication message.
    pub(super) fn request(&mut self, key: ClientKey, body: &[u8]) -> Result<(), Reason> {
        self.tell_client(key, |ring| emit::authentication(ring, body))
            .map_err(|emit::Full| Reason::WELCOME_FAILED)
    }

    pub(super) fn take_proving(&mut self, key: ClientKey) -> Option<Proving> {
        self.house.clients.get(key)?;
        // Both states stand in the same queue: nothing moves.
        match self.house.set_client_state(key, State::LoggingIn) {
            State::Proving(proving) => Some(*proving),
            other => panic!("{other:?} is not proving anything"),
        }
    }

    pub(super) fn put_proving(&mut self, key: ClientKey, proving: Proving) {
        self.house.set_client_state(key, State::Proving(Box::new(proving)));
    }
}
