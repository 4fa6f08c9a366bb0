//! Passwords that others know: PAM and directories (`auth_type` `pam` and `ldap`, and rules that say
//! `ldap`).
//!
//! We need not know the user: any name will do, and so will any password that is confirmed. The
//! client tells it in clear, a side thread asks, and the client is not read meanwhile. What was
//! confirmed opens servers, too.

use crate::auth::challenge::{Challenge, Claim};
use crate::auth::hba::Method;
use crate::auth::ldap::Options;
use crate::auth::outside::{Answer, Oracle, Question};
use crate::config::Secret;
use crate::config::values::AuthType;
use crate::engine::Engine;
use crate::engine::io::Effect;
use crate::keys::ClientKey;
use crate::session::client::{ClientAddress, State};
use crate::session::client_login::{Goal, Proving, Step};
use crate::session::farewell::Reason;
use std::time::Instant;

impl Engine {
    /// Whether the password is one that others know: then we need not know the user.
    pub(super) fn is_for_others(&self, key: ClientKey, user: &str, goal: &Goal) -> bool {
        match self.config.settings.auth_type {
            AuthType::Pam | AuthType::Ldap => true,
            AuthType::Hba if self.access.hba.asks_directories() => {
                // Without any rule the login fails in its time.
                let way = self.way_for(key, user, goal);
                way.is_ok_and(|(method, _)| matches!(method, Method::Ldap(_)))
            }
            _ => false,
        }
    }

    /// Whether that is a directory.
    pub(super) fn is_for_directory(&self, key: ClientKey, user: &str, goal: &Goal) -> bool {
        self.config.settings.auth_type != AuthType::Pam && self.is_for_others(key, user, goal)
    }

    /// Who is to be asked about the password; `None`: we know it ourselves.
    pub(super) fn oracle_outside(
        &self,
        key: ClientKey,
        method: &Method,
    ) -> Result<Option<Oracle>, Reason> {
        let settings = &self.config.settings;
        let options = match (settings.auth_type, method) {
            (AuthType::Pam, _) => {
                let remote_host = match self.house.clients.get(key).map(|client| client.from) {
                    Some(ClientAddress::Tcp(address)) => address.ip().to_canonical().to_string(),
                    Some(ClientAddress::Unix { .. }) | None => "unix".to_owned(),
                };
                return Ok(Some(Oracle::Pam { remote_host }));
            }
            (AuthType::Ldap, _) => settings.auth_ldap_options.expose(),
            (_, Method::Ldap(words)) => Some(words.as_str()),
            _ => return Ok(None),
        };
        let options = options.filter(|words| !words.trim().is_empty());
        match Options::parse(options.ok_or(Reason::NO_LDAP_OPTIONS)?) {
            Ok(options) => Ok(Some(Oracle::Ldap(Box::new(options)))),
            Err(nonsense) => {
                log::error!("{} {nonsense}", self.name_of(key));
                Err(Reason::LDAP_FAILED)
            }
        }
    }

    /// Asks for the password that somebody else knows.
    pub(super) fn ask_for_password(
        &mut self,
        key: ClientKey,
        (claim, goal): (Claim, Goal),
        oracle: Oracle,
    ) -> Result<(), Reason> {
        if !oracle.is_built_in() {
            log::error!("{} {}", self.name_of(key), oracle.absence());
            return Err(Reason::Told(oracle.absence()));
        }
        let (request, challenge) = Challenge::password();
        let step = Step::AskedFor { challenge, oracle };
        self.put_proving(key, Proving { claim, goal, step });
        self.request(key, &request)
    }

    /// A client has told its password: others are asked about it.
    pub(super) fn consult(
        &mut self,
        key: ClientKey,
        (claim, goal): (Claim, Goal),
        (oracle, password): (Oracle, Secret),
    ) {
        let refusal = oracle.refusal();
        let limit = self.config.settings.client_login_timeout;
        let until = match self.house.clients.get(key) {
            Some(client) if !limit.is_zero() => client.connected_at.checked_add(limit),
            _ => None,
        };
        let (user, secret) = (claim.user.clone(), password.clone());
        let question = Question { user, password: secret, oracle, until };
        self.effects.push_back(Effect::Consult { client: key, question });
        let step = Step::Consulting { password, refusal };
        self.put_proving(key, Proving { claim, goal, step });
    }

    /// Somebody else has answered.
    pub(super) fn on_consulted(&mut self, key: ClientKey, answer: Answer, now: Instant) {
        let state = self.house.clients.get(key).map(|client| &client.state);
        let Some(State::Proving(proving)) = state else {
            return;
        };
        let Step::Consulting { refusal, .. } = &proving.step else {
            return;
        };
        let refusal = *refusal;
        let Some(Proving { claim, goal, step: Step::Consulting { password, .. } }) =
            self.take_proving(key)
        else {
            return;
        };
        let outcome = match answer {
            Ok(()) => {
                if let Goal::Database { pool: Some(pool), .. } = goal {
                    self.learn_secret((pool, &claim.user), Some(password));
                }
                self.has_proven(key, goal, &claim.user, now)
            }
            Err(why) => {
                log::warn!("{} {why}", self.name_of(key));
                Err(Reason::Told(refusal))
            }
        };
        match outcome {
            Ok(()) => self.login_received(key, now),
            Err(reason) => self.close_client(key, reason, now),
        }
    }
}
