//! Holds what clients answer against what we know of them.
//!
//! That may take a key which takes milliseconds to make. The side thread makes it, and clients that
//! need the same one wait for it together: a thousand logins of one user at once are one job.
//!
//! How long a refusal takes must not tell what we know of a user (reliability 8). Whether a key has
//! to be made depends on that: for somebody unknown there is none, and the one of a known user may
//! be here from his last login. So whoever has answered wrong and has not waited for a key is told
//! later: when the side thread has made one for nothing. All who are wrong at the same time wait for
//! the same one, so that however many of them there are, the side thread has at most one such job.

use crate::auth::challenge::{Attempt, Claim, Outcome, Proof};
use crate::auth::derivation::{Derivation, ScramKeys};
use crate::engine::Engine;
use crate::engine::io::Effect;
use crate::engine::newcomers::PER_TURN;
use crate::keys::{ClientKey, Conn};
use crate::session::client::State;
use crate::session::client_login::{Goal, Proving, Step};
use crate::session::farewell::Reason;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// A key that has just come from the side thread; `None`: none was needed so far.
type Made<'a> = Option<(&'a Derivation, ScramKeys)>;

/// Who waits for which key. Some of them may have gone meanwhile.
#[derive(Default)]
pub(super) struct Checks {
    wanted: HashMap<Derivation, Wanted>,
    decoy: Decoy,
    ready: VecDeque<Ready>,
}

/// What somebody has waited for is there. However many they are, they go on a few at a time, for
/// others want to be served meanwhile.
struct Ready {
    news: News,
    clients: VecDeque<ClientKey>,
}

enum News {
    /// A key was made, or (`None`) cannot be.
    Key(Derivation, Option<ScramKeys>),
    /// A key could have been made, or (`false`) could not.
    Time(bool),
}

impl Checks {
    /// Whether somebody can go on.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

/// A key that is being made.
struct Wanted {
    /// Whether it is made of a secret that we keep; if not, of a guess.
    is_ours: bool,
    clients: Vec<ClientKey>,
}

/// The job that is done for nothing.
#[derive(Default)]
struct Decoy {
    /// What the side thread works on.
    running: Option<Derivation>,
    /// Those who are told when it has done that.
    clients: Vec<ClientKey>,
    /// Those who came when it had begun: for them it would be too soon.
    late: Vec<ClientKey>,
}

impl Engine {
    /// Lets in who has answered right, and refuses who has not; either may have to wait.
    pub(super) fn judge(
        &mut self,
        key: ClientKey,
        (claim, goal, attempt): (Claim, Goal, Attempt),
        made: Made<'_>,
        now: Instant,
    ) -> Result<(), Reason> {
        let outcome = attempt.judge(&claim, |derivation| match made {
            Some((made, keys)) if made == derivation => Some(keys),
            _ => self.derived.get(derivation),
        });
        match outcome {
            Outcome::Failed(refusal) if made.is_none() && attempt.may_take_time() => {
                self.put_proving(key, Proving { claim, goal, step: Step::Withheld { refusal } });
                self.withhold(key);
                Ok(())
            }
            Outcome::Failed(refusal) => Err(self.refuse(key, refusal)),
            Outcome::Proven(proof) => {
                if let Some((derivation, keys)) = made {
                    self.derived.keep(derivation.clone(), keys);
                }
                self.on_proof(key, (claim, goal), proof, now)
            }
            Outcome::NeedsKey(needed) => {
                self.await_key(key, &needed, attempt.needs_our_keys());
                let step = Step::Checking { attempt, needed };
                self.put_proving(key, Proving { claim, goal, step });
                Ok(())
            }
        }
    }

    fn on_proof(
        &mut self,
        key: ClientKey,
        (claim, goal): (Claim, Goal),
        proof: Proof,
        now: Instant,
    ) -> Result<(), Reason> {
        let Proof { farewell, client_key } = proof;
        if let Some(farewell) = farewell {
            self.request(key, &farewell)?;
        }
        if let (Some(client_key), Goal::Database { pool: Some(pool), .. }) = (client_key, &goal) {
            self.client_proved_key((*pool, &claim.user), client_key);
        }
        self.has_proven(key, goal, &claim.user, now)
    }

    /// Has a key made for a client, unless it is being made already.
    fn await_key(&mut self, key: ClientKey, needed: &Derivation, is_ours: bool) {
        match self.checks.wanted.entry(needed.clone()) {
            Entry::Occupied(mut wanted) => {
                let wanted = wanted.get_mut();
                wanted.is_ours |= is_ours;
                wanted.clients.push(key);
            }
            Entry::Vacant(place) => {
                place.insert(Wanted { is_ours, clients: vec![key] });
                let (conn, derivation) = (Conn::Client(key), needed.clone());
                self.effects.push_back(Effect::Derive { conn, derivation });
            }
        }
    }

    /// A client is not told yet that it is refused.
    fn withhold(&mut self, key: ClientKey) {
        match self.checks.decoy.running {
            Some(_) => self.checks.decoy.late.push(key),
            None => self.run_decoy(vec![key]),
        }
    }

    fn run_decoy(&mut self, clients: Vec<ClientKey>) {
        let Some(first) = clients.first().copied() else {
            return;
        };
        let iterations = u32::try_from(self.config.settings.scram_iterations).unwrap_or(1);
        let derivation = Derivation::decoy(iterations);
        let decoy = &mut self.checks.decoy;
        (decoy.running, decoy.clients) = (Some(derivation.clone()), clients);
        self.effects.push_back(Effect::Derive { conn: Conn::Client(first), derivation });
    }

    /// A key has been made, or (`None`) cannot be: everybody who waits for it goes on.
    pub(super) fn client_key_derived(
        &mut self,
        made: &Derivation,
        keys: Option<ScramKeys>,
        now: Instant,
    ) {
        if self.checks.decoy.running.as_ref() == Some(made) {
            self.decoy_done(keys.is_some(), now);
            return;
        }
        let Some(Wanted { is_ours, clients }) = self.checks.wanted.remove(made) else {
            return;
        };
        if let Some(keys) = keys.filter(|_| is_ours) {
            self.derived.keep(made.clone(), keys);
        }
        self.go_on(News::Key(made.clone(), keys), clients, now);
    }

    /// As much time has passed as a key takes.
    fn decoy_done(&mut self, is_made: bool, now: Instant) {
        let Decoy { clients, late, .. } = std::mem::take(&mut self.checks.decoy);
        self.run_decoy(late);
        self.go_on(News::Time(is_made), clients, now);
    }

    fn go_on(&mut self, news: News, clients: Vec<ClientKey>, now: Instant) {
        self.checks.ready.push_back(Ready { news, clients: clients.into() });
        self.settle_checks(now);
    }

    /// The next ones who have waited go on.
    pub(super) fn settle_checks(&mut self, now: Instant) {
        for _ in 0..PER_TURN {
            let Some(ready) = self.checks.ready.front_mut() else {
                return;
            };
            let Some(key) = ready.clients.pop_front() else {
                self.checks.ready.pop_front();
                continue;
            };
            match &ready.news {
                News::Key(made, keys) => {
                    let made = (made.clone(), *keys);
                    self.key_is_there(key, made, now);
                }
                News::Time(is_made) => {
                    let is_made = *is_made;
                    self.time_is_over(key, is_made, now);
                }
            }
        }
    }

    fn key_is_there(
        &mut self,
        key: ClientKey,
        (made, keys): (Derivation, Option<ScramKeys>),
        now: Instant,
    ) {
        match self.proving_step(key) {
            Some(Step::Checking { needed, .. }) if *needed == made => {}
            _ => return,
        }
        let Some(Proving { claim, goal, step: Step::Checking { attempt, .. } }) =
            self.take_proving(key)
        else {
            return;
        };
        let outcome = match keys {
            Some(keys) => self.judge(key, (claim, goal, attempt), Some((&made, keys)), now),
            None => Err(Reason::TOO_MANY_PROOFS),
        };
        match outcome {
            Ok(()) => self.login_received(key, now),
            Err(reason) => self.close_client(key, reason, now),
        }
    }

    /// If the side thread has too much to do, those who are wrong are told the same as those who may
    /// be right.
    fn time_is_over(&mut self, key: ClientKey, is_made: bool, now: Instant) {
        let Some(Step::Withheld { refusal }) = self.proving_step(key) else {
            return;
        };
        let reason = match is_made {
            true => self.refuse(key, *refusal),
            false => Reason::TOO_MANY_PROOFS,
        };
        self.close_client(key, reason, now);
    }

    fn proving_step(&self, key: ClientKey) -> Option<&Step> {
        match &self.house.clients.get(key)?.state {
            State::Proving(proving) => Some(&proving.step),
            _ => None,
        }
    }

    /// Nobody waits for a key that is not being made.
    pub(super) fn check_checks(&self) {
        for (key, client) in self.house.clients.iter() {
            let State::Proving(proving) = &client.state else {
                continue;
            };
            let is_ready = self.checks.ready.iter().any(|ready| ready.clients.contains(&key));
            let is_awaited = match &proving.step {
                Step::Checking { needed, .. } => {
                    let wanted = self.checks.wanted.get(needed);
                    wanted.is_some_and(|wanted| wanted.clients.contains(&key))
                }
                Step::Withheld { .. } => {
                    let Decoy { running, clients, late } = &self.checks.decoy;
                    running.is_some() && (clients.contains(&key) || late.contains(&key))
                }
                Step::Asked(_) | Step::AskedFor { .. } | Step::Consulting { .. } => continue,
            };
            assert!(is_awaited || is_ready, "{key:?} waits for a key that nobody makes");
        }
    }
}
