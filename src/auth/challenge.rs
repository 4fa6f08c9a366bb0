//! What a client has to answer so that we believe who it is, and whether its answer will do.
//!
//! ```text
//! Password ─┐
//! Md5 ──────┼─▶ Attempt ──judge──▶ Proven, Failed, NeedsKey (the side thread makes it; judge again)
//! Sasl ─▶ Proof ┘
//! ```
//!
//! Somebody whom we do not know is asked the same as everybody else, and fails at the same place
//! with the same words (reliability 8). Secrets are compared in constant time (reliability 17).

use crate::auth::derivation::{Derivation, MAX_ITERATIONS, ScramKeys};
use crate::auth::digest::{self, KEY_BYTES};
use crate::auth::scram::{
    Binding, ClientFirst, ClientProof, Dialogue, Keys, SCRAM_SHA_256, SCRAM_SHA_256_PLUS,
};
use crate::auth::secret::{Kind, Known, MD5_PREFIX, SALT_BYTES};
use crate::config::Secret;
use std::sync::Arc;

/// Who somebody says he is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// His name.
    pub user: String,
    /// Any of these will do; the first one counts towards servers. None at all: nobody knows him,
    /// or he has no password.
    pub secrets: Arc<Vec<Known>>,
}

/// What makes salts up: stable as long as the process lives, and nobody else can work them out.
#[derive(Clone)]
pub struct SaltSource([u8; KEY_BYTES]);

impl Default for SaltSource {
    fn default() -> Self {
        Self(digest::random())
    }
}

impl SaltSource {
    fn salt(&self, user: &str, password: &[u8]) -> [u8; SALT_BYTES] {
        let named = [user.as_bytes(), b"\0", password].concat();
        *digest::hmac(&self.0, &named).first_chunk().expect("it is longer")
    }
}

impl Claim {
    fn known(&self) -> impl Iterator<Item = &Known> {
        // An empty secret is one that no password opens.
        self.secrets.iter().filter(|known| !known.text().expose().is_empty())
    }

    fn kinds(&self) -> impl Iterator<Item = Kind<'_>> {
        self.known().map(Known::kind)
    }

    /// Whether `md5` means SCRAM for him, for no MD5 answer could be checked.
    pub fn keeps_scram(&self) -> bool {
        matches!(self.kinds().next(), Some(Kind::Scram(_)))
    }

    /// The salt that he is told, and how many rounds. Of several secrets a SCRAM one decides, for
    /// its salt is given. Who is not known gets a salt as well, the same one each time.
    fn salt(&self, source: &SaltSource, iterations: u32) -> (Box<[u8]>, u32) {
        for kind in self.kinds() {
            if let Kind::Scram(verifier) = kind {
                return (verifier.salt.clone(), verifier.iterations);
            }
        }
        let plain = self.known().find(|known| matches!(known.kind(), Kind::Plain(_)));
        let salt = |password: &[u8]| source.salt(&self.user, password);
        (plain.map_or_else(|| salt(b""), |known| known.salt(salt)).into(), iterations)
    }
}

/// What is awaited from the client. Eaten with each of its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// The password. Leaves to [`Attempt`].
    Password,
    /// The password, hashed with this salt. Leaves to [`Attempt`].
    Md5 {
        /// Four random bytes.
        salt: [u8; 4],
    },
    /// Its choice of a SASL mechanism and first message. Leaves to `Proof`.
    Sasl {
        /// What the dialogue can be bound to: the hash of our certificate, if there is TLS.
        binding: Option<Box<[u8]>>,
    },
    /// Its proof. Leaves to [`Attempt`].
    Proof {
        /// What was said so far.
        dialogue: Box<Dialogue>,
        /// The salt that it was told.
        salt: Box<[u8]>,
        /// How many rounds.
        iterations: u32,
    },
}

/// What comes of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this request, and await the answer.
    Ask(Vec<u8>, Challenge),
    /// An answer that has to be held against what we know.
    Judge(Attempt),
    /// It will not do.
    Refuse(Refusal),
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it is told.
    pub told: &'static str,
    /// What the log says before, if that is more.
    pub log: Option<&'static str>,
}

impl Refusal {
    const EMPTY: Refusal = Refusal { told: "empty password returned by client", log: None };
    /// PostgreSQL's words.
    const ENDLESS: Refusal = Refusal { told: "invalid password packet size", log: None };
    const MECHANISM: Refusal =
        Refusal { told: "client selected an invalid SASL authentication mechanism", log: None };
    /// A password that is not his.
    pub const PASSWORD: Refusal = Refusal { told: "password authentication failed", log: None };

    /// Something in a dialogue.
    pub fn sasl(log: &'static str) -> Self {
        Self { told: "SASL authentication failed", log: Some(log) }
    }
}

/// Codes of Authentication messages.
const CLEARTEXT_PASSWORD: i32 = 3;
const MD5_PASSWORD: i32 = 5;
const SASL: i32 = 10;
const SASL_CONTINUE: i32 = 11;
/// Tells a client that we, too, know its secret.
pub const SASL_FINAL: i32 = 12;

/// The body of an Authentication message.
pub fn request(code: i32, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), data].concat()
}

impl Challenge {
    /// Asks for the password itself.
    pub fn password() -> (Vec<u8>, Self) {
        (request(CLEARTEXT_PASSWORD, &[]), Challenge::Password)
    }

    /// Asks for the password, hashed with a salt of its own.
    pub fn md5() -> (Vec<u8>, Self) {
        let salt = digest::random();
        (request(MD5_PASSWORD, &salt), Challenge::Md5 { salt })
    }

    /// Asks for SCRAM, over TLS for the kind that is bound to the channel, too.
    pub fn sasl(binding: Option<Box<[u8]>>) -> (Vec<u8>, Self) {
        let mut mechanisms = Vec::new();
        if binding.is_some() {
            mechanisms.extend_from_slice(SCRAM_SHA_256_PLUS);
            mechanisms.push(0);
        }
        mechanisms.extend_from_slice(SCRAM_SHA_256);
        mechanisms.extend_from_slice(b"\0\0");
        (request(SASL, &mechanisms), Challenge::Sasl { binding })
    }

    /// Takes the body of the client's answer.
    pub fn step(self, body: &[u8], claim: &Claim, salts: (&SaltSource, u32)) -> Next {
        match self {
            Challenge::Password | Challenge::Md5 { .. } => {
                // As PgBouncer: what follows the end is nothing. Without an end it is no password,
                // and the login is over, as with PostgreSQL.
                let Some(end) = body.iter().position(|byte| *byte == 0) else {
                    return Next::Refuse(Refusal::ENDLESS);
                };
                let answer = Secret::new(&body[..end]);
                match self {
                    _ if end == 0 => Next::Refuse(Refusal::EMPTY),
                    Challenge::Md5 { salt } => Next::Judge(Attempt::Md5 { salt, answer }),
                    _ => Next::Judge(Attempt::Password(answer)),
                }
            }
            Challenge::Sasl { binding } => begin_dialogue(binding, body, claim, salts),
            Challenge::Proof { dialogue, salt, iterations } => match dialogue.proof(body) {
                Ok(proof) => Next::Judge(Attempt::Scram { proof, salt, iterations }),
                Err(refused) => Next::Refuse(Refusal::sasl(refused.0)),
            },
        }
    }
}

fn begin_dialogue(
    binding: Option<Box<[u8]>>,
    body: &[u8],
    claim: &Claim,
    (source, iterations): (&SaltSource, u32),
) -> Next {
    let malformed = || Next::Refuse(Refusal::sasl("malformed SASLInitialResponse"));
    let Some((mechanism, rest)) = split_at_end(body) else {
        return malformed();
    };
    let is_chosen = mechanism == SCRAM_SHA_256_PLUS;
    if mechanism != SCRAM_SHA_256 && !(is_chosen && binding.is_some()) {
        return Next::Refuse(Refusal::MECHANISM);
    }
    let Some(message) = first_message(rest) else {
        return malformed();
    };
    let channel = Binding { is_chosen, offered: binding.as_deref() };
    let first = match ClientFirst::parse(message, channel) {
        Ok(first) => first,
        Err(refused) => return Next::Refuse(Refusal::sasl(refused.0)),
    };
    let (salt, iterations) = claim.salt(source, iterations);
    let (dialogue, server_first) = Dialogue::begin(first, (&salt, iterations), digest::random());
    let dialogue = Box::new(dialogue);
    Next::Ask(
        request(SASL_CONTINUE, &server_first),
        Challenge::Proof { dialogue, salt, iterations },
    )
}

/// The name of a mechanism, and what stands behind its end. (Whoever takes the request for another
/// and sends just a password is told that this is no mechanism, as PostgreSQL says it.)
fn split_at_end(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.iter().position(|byte| *byte == 0)?;
    Some((&body[..end], &body[end + 1..]))
}

/// What stands in a SASLInitialResponse behind the mechanism: a message behind its length.
fn first_message(rest: &[u8]) -> Option<&[u8]> {
    let (length, message) = rest.split_first_chunk::<4>()?;
    (u32::from_be_bytes(*length) as usize == message.len()).then_some(message)
}

/// An answer that has to be held against what we know of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// This is the password.
    Password(Secret),
    /// The hash of the password with this salt.
    Md5 {
        /// What it was told.
        salt: [u8; 4],
        /// What it says.
        answer: Secret,
    },
    /// A proof that it knows the password.
    Scram {
        /// The proof.
        proof: ClientProof,
        /// The salt that it was told.
        salt: Box<[u8]>,
        /// How many rounds.
        iterations: u32,
    },
}

/// Whether an answer will do.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is who it says.
    Proven(Proof),
    /// It is not.
    Failed(Refusal),
    /// That can be told only with the help of this key.
    NeedsKey(Derivation),
}

/// What we have learned from a client that is who it says.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// The request that ends the dialogue: our own proof.
    pub farewell: Option<Vec<u8>>,
    /// The ClientKey of a SCRAM secret that we keep: opens servers that keep the same one.
    pub client_key: Option<[u8; KEY_BYTES]>,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(****)")
    }
}

/// Against one secret: yes, no, or "make this key first".
enum Match {
    Yes(Proof),
    No,
    Unknown(Derivation),
}

impl From<bool> for Match {
    fn from(is_equal: bool) -> Self {
        if is_equal { Match::Yes(Proof::default()) } else { Match::No }
    }
}

impl Attempt {
    /// Holds it against all secrets of an claim. `key`: the keys that were made already.
    pub fn judge(
        &self,
        claim: &Claim,
        mut key: impl FnMut(&Derivation) -> Option<ScramKeys>,
    ) -> Outcome {
        for kind in claim.kinds() {
            let found = match self {
                Attempt::Password(password) => {
                    against_password(password.expose(), &claim.user, &kind, &mut key)
                }
                Attempt::Md5 { salt, answer } => {
                    against_md5(answer.expose(), *salt, &claim.user, &kind).into()
                }
                Attempt::Scram { proof, salt, iterations } => {
                    against_proof(proof, (salt, *iterations), &kind, &mut key)
                }
            };
            match found {
                Match::Yes(proof) => return Outcome::Proven(proof),
                Match::No => {}
                Match::Unknown(derivation) => return Outcome::NeedsKey(derivation),
            }
        }
        if claim.kinds().next().is_none() {
            self.against_nothing(&claim.user);
        }
        Outcome::Failed(match self {
            Attempt::Password(_) | Attempt::Md5 { .. } => Refusal::PASSWORD,
            Attempt::Scram { .. } if matches!(claim.kinds().next(), Some(Kind::Md5(_))) => {
                Refusal::sasl("SCRAM authentication failed: user has MD5 secret")
            }
            Attempt::Scram { .. } => Refusal::sasl("password authentication failed"),
        })
    }

    /// The work of a comparison, for somebody who has no secret. Whatever comes of it does not
    /// count.
    fn against_nothing(&self, user: &str) {
        let decoy = digest::random::<KEY_BYTES>();
        match self {
            Attempt::Password(password) => {
                std::hint::black_box(digest::is_equal(&decoy, password.expose()));
            }
            Attempt::Md5 { salt, answer } => {
                let kind = Kind::Plain(&decoy);
                std::hint::black_box(against_md5(answer.expose(), *salt, user, &kind));
            }
            Attempt::Scram { proof, .. } => {
                let decoy = ScramKeys { client_key: decoy, stored_key: decoy, server_key: decoy };
                std::hint::black_box(proof.check(&Keys::from(&decoy)).is_some());
            }
        }
    }

    /// Whether somebody's answer of this kind may have to wait for a key, depending on what is kept
    /// for him. Then every wrong one has to.
    pub fn may_take_time(&self) -> bool {
        match self {
            Attempt::Password(_) | Attempt::Scram { .. } => true,
            Attempt::Md5 { .. } => false,
        }
    }

    /// Whether the keys that it needs are made of what we keep. Those of a guess are worth nothing
    /// unless it is right.
    pub fn needs_our_keys(&self) -> bool {
        matches!(self, Attempt::Scram { .. })
    }
}

fn against_password(
    password: &[u8],
    user: &str,
    kind: &Kind<'_>,
    key: &mut impl FnMut(&Derivation) -> Option<ScramKeys>,
) -> Match {
    match kind {
        Kind::Plain(known) => digest::is_equal(known, password).into(),
        Kind::Md5(digits) => {
            digest::is_equal(digits, &digest::md5_hex(&[password, user.as_bytes()])).into()
        }
        // So many rounds nobody asks for in good faith.
        Kind::Scram(verifier) if verifier.iterations > MAX_ITERATIONS => Match::No,
        Kind::Scram(verifier) => {
            let derivation = Derivation::new(password, &verifier.salt, verifier.iterations);
            match key(&derivation) {
                Some(keys) => Keys::from(&**verifier).come_from(&keys).into(),
                None => Match::Unknown(derivation),
            }
        }
    }
}

fn against_md5(answer: &[u8], salt: [u8; 4], user: &str, kind: &Kind<'_>) -> bool {
    let of_plain;
    let inner: &[u8] = match kind {
        Kind::Plain(password) => {
            of_plain = digest::md5_hex(&[password, user.as_bytes()]);
            &of_plain
        }
        Kind::Md5(digits) => digits,
        Kind::Scram(_) => return false,
    };
    let expected = digest::md5_hex(&[inner, &salt]);
    answer.strip_prefix(MD5_PREFIX).is_some_and(|digits| digest::is_equal(digits, &expected))
}

fn against_proof(
    proof: &ClientProof,
    (salt, iterations): (&[u8], u32),
    kind: &Kind<'_>,
    key: &mut impl FnMut(&Derivation) -> Option<ScramKeys>,
) -> Match {
    let (keys, is_kept) = match kind {
        Kind::Plain(password) => {
            let derivation = Derivation::new(password, salt, iterations);
            match key(&derivation) {
                Some(keys) => (Keys::from(&keys), false),
                None => return Match::Unknown(derivation),
            }
        }
        Kind::Scram(verifier) if *verifier.salt == *salt && verifier.iterations == iterations => {
            (Keys::from(&**verifier), true)
        }
        Kind::Md5(_) | Kind::Scram(_) => return Match::No,
    };
    proof.check(&keys).map_or(Match::No, |accepted| {
        Match::Yes(Proof {
            farewell: Some(request(SASL_FINAL, &accepted.server_final)),
            client_key: is_kept.then_some(accepted.client_key),
        })
    })
}

#[cfg(test)]
mod tests;
