//! How we prove to a server who we are.
//!
//! ```text
//! Start ──cleartext, MD5──▶ Given ──Ok──▶ done
//!   └──SASL──▶ FirstSent ──Continue──▶ Deriving ──key──▶ ProofSent ──Final──▶ Given
//! ```
//!
//! Each login answers one request: a server that asks for SCRAM, and then for the password in
//! clear, gets nothing. Nor is an Ok believed before the server has proven itself.

use crate::auth::derivation::{Derivation, ScramKeys};
use crate::auth::digest;
use crate::auth::scram_client::{
    Challenge, Channel, FirstSent, Keys, MECHANISM, MECHANISM_PLUS, ProofSent, Trouble,
};
use crate::auth::secret::{Kind, MD5_PREFIX};
use crate::wire::backend::Authentication;

/// With what we log in.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// As whom.
    pub user: &'a [u8],
    /// A password, or what is kept instead of one; empty: we have none.
    pub secret: &'a [u8],
    /// The ClientKey that a client has proven to have, if one has. It is of use only together with
    /// the very secret against which it was proven.
    pub client_key: Option<&'a [u8; digest::KEY_BYTES]>,
    /// What can be bound to: the hash of the server's certificate, if there is TLS.
    pub end_point: Option<&'a [u8]>,
}

/// How far we are. Eaten with each request of the server.
#[derive(Debug, Default)]
pub enum Answer {
    /// Nothing was asked yet. Leaves to `Given`, `FirstSent`.
    #[default]
    Start,
    /// Said hello. Leaves to `Deriving`, `ProofSent`.
    FirstSent(FirstSent),
    /// The side thread works on the key. Leaves to `ProofSent`.
    Deriving(Challenge),
    /// Proven who we are. Leaves to `Given`.
    ProofSent(ProofSent),
    /// Everything was said and, with SCRAM, the server is who it should be: only Ok may follow.
    Given,
}

/// What a request leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// We are in.
    Accepted,
    /// Send this in a `p` message.
    Send(Vec<u8>),
    /// Work this out, and hand the result to [`Answer::derived`].
    Derive(Derivation),
    /// Wait for the next request.
    Wait,
}

/// We do not answer that.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the log.
    pub log: String,
    /// What waiting clients are told, if this will not pass by itself.
    pub told: Option<&'static str>,
}

const WRONG_TYPE: &str = "server login failed: wrong password type";
const NO_MECHANISM: &str = "none of the server's SASL authentication mechanisms are supported";

impl Refusal {
    fn log(words: impl Into<String>) -> Self {
        Self { log: words.into(), told: None }
    }

    fn wrong_type(words: &str) -> Self {
        Self { log: words.to_string(), told: Some(WRONG_TYPE) }
    }
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Self {
        let told = match &trouble {
            Trouble::InvalidSignature => Some("server login failed: invalid server signature"),
            Trouble::NoSignature => Some("server login failed: failed to verify server signature"),
            Trouble::Protocol(_) | Trouble::ServerSays(_) => None,
        };
        Self { log: trouble.to_string(), told }
    }
}

impl Answer {
    /// Takes the server's next request.
    pub fn step(
        self,
        request: Authentication<'_>,
        credentials: Credentials<'_>,
    ) -> Result<(Self, Step), Refusal> {
        match (self, request) {
            (Answer::Start | Answer::Given, Authentication::Ok) => {
                Ok((Answer::Given, Step::Accepted))
            }
            (Answer::Start, Authentication::CleartextPassword) => {
                Ok((Answer::Given, Step::Send(terminated(credentials.secret))))
            }
            (Answer::Start, Authentication::Md5Password(salt)) => {
                Ok((Answer::Given, Step::Send(md5_answer(salt, credentials)?)))
            }
            (Answer::Start, Authentication::Sasl(mechanisms)) => greet(mechanisms, credentials),
            (Answer::FirstSent(first), Authentication::SaslContinue(message)) => {
                challenged(first.challenged(message)?, credentials)
            }
            (Answer::ProofSent(proof), Authentication::SaslFinal(message)) => {
                proof.verify(message)?;
                Ok((Answer::Given, Step::Wait))
            }
            (state, request) => Err(out_of_order(&state, &request)),
        }
    }

    /// The key that [`Step::Derive`] asked for is there.
    pub fn derived(self, keys: &ScramKeys) -> Result<(Self, Step), Refusal> {
        match self {
            Answer::Deriving(challenge) => Ok(prove(challenge, &Keys::from(keys))),
            _ => Err(Refusal::log("a key that nobody asked for")),
        }
    }

    /// Whether the next request has to wait for the side thread.
    pub fn is_deriving(&self) -> bool {
        matches!(self, Answer::Deriving(_))
    }
}

/// A text and its NUL; as for every reader of the message, the text ends at its first one.
fn terminated(text: &[u8]) -> Vec<u8> {
    [text.split(|byte| *byte == 0).next().unwrap_or_default(), b"\0"].concat()
}

fn md5_answer(salt: [u8; 4], credentials: Credentials<'_>) -> Result<Vec<u8>, Refusal> {
    let computed;
    let inner = match Kind::of(credentials.secret) {
        Kind::Md5(digits) => digits,
        Kind::Plain(password) => {
            computed = digest::md5_hex(&[password, credentials.user]);
            &computed
        }
        Kind::Scram(_) => {
            return Err(Refusal::wrong_type("cannot do MD5 authentication: wrong password type"));
        }
    };
    Ok([MD5_PREFIX, &digest::md5_hex(&[inner, &salt]), b"\0"].concat())
}

/// Chooses the mechanism and says hello, unless it is clear already that we shall not be able to
/// prove anything.
fn greet(mechanisms: &[u8], credentials: Credentials<'_>) -> Result<(Answer, Step), Refusal> {
    let offers = |wanted: &[u8]| mechanisms.split(|byte| *byte == 0).any(|name| name == wanted);
    let (mechanism, channel) = match credentials.end_point {
        Some(hash) if offers(MECHANISM_PLUS) => (MECHANISM_PLUS, Channel::Bound(hash.into())),
        Some(_) => (MECHANISM, Channel::NotOffered),
        None => (MECHANISM, Channel::None),
    };
    if !offers(mechanism) {
        let told = Some(
            "server login failed: none of the server's SASL authentication mechanisms are supported",
        );
        return Err(Refusal { log: NO_MECHANISM.to_string(), told });
    }
    match Kind::of(credentials.secret) {
        Kind::Plain(_) => {}
        Kind::Scram(_) if proven_keys(credentials).is_some() => {}
        Kind::Scram(_) => {
            return Err(Refusal::wrong_type(
                "cannot do SCRAM authentication: password is SCRAM secret but client \
                 authentication did not provide SCRAM keys",
            ));
        }
        Kind::Md5(_) => {
            return Err(Refusal::wrong_type("cannot do SCRAM authentication: wrong password type"));
        }
    }
    let (first, message) = FirstSent::new(digest::random(), channel);
    let length = u32::try_from(message.len()).expect("some forty bytes").to_be_bytes();
    let message = [mechanism, b"\0", &length, &message].concat();
    Ok((Answer::FirstSent(first), Step::Send(message)))
}

/// The keys of a stored verifier, of which a client has brought the half that we do not keep.
fn proven_keys(credentials: Credentials<'_>) -> Option<Keys> {
    let (Kind::Scram(verifier), Some(client_key)) =
        (Kind::of(credentials.secret), credentials.client_key)
    else {
        return None;
    };
    let is_its = digest::is_equal(&digest::sha256(client_key), &verifier.stored_key);
    is_its.then_some(Keys { client_key: *client_key, server_key: verifier.server_key })
}

fn challenged(
    challenge: Challenge,
    credentials: Credentials<'_>,
) -> Result<(Answer, Step), Refusal> {
    if let Some(keys) = proven_keys(credentials) {
        return Ok(prove(challenge, &keys));
    }
    match Kind::of(credentials.secret) {
        Kind::Plain(password) => {
            let derivation = Derivation::new(password, &challenge.salt, challenge.iterations);
            Ok((Answer::Deriving(challenge), Step::Derive(derivation)))
        }
        // The secret was another one when we said hello: a reload came in between.
        Kind::Md5(_) | Kind::Scram(_) => Err(Refusal::log("the password has changed meanwhile")),
    }
}

fn prove(challenge: Challenge, keys: &Keys) -> (Answer, Step) {
    let (proof, message) = challenge.answer(keys);
    (Answer::ProofSent(proof), Step::Send(message))
}

fn out_of_order(state: &Answer, request: &Authentication<'_>) -> Refusal {
    Refusal::log(match (state, request) {
        (_, Authentication::Other(method)) => {
            return Refusal::log(format!("unknown/unsupported auth method: {method}"));
        }
        (_, Authentication::Sasl(_)) => {
            "protocol error: duplicate AuthenticationSASL message from server"
        }
        (Answer::Start, Authentication::SaslContinue(_)) => {
            "protocol error: AuthenticationSASLContinue without prior AuthenticationSASL"
        }
        (_, Authentication::SaslContinue(_)) => {
            "SCRAM exchange protocol error: received second AuthenticationSASLContinue"
        }
        (_, Authentication::SaslFinal(_)) => {
            "protocol error: AuthenticationSASLFinal without prior AuthenticationSASLContinue"
        }
        (_, Authentication::Ok) => "protocol error: AuthenticationOk in the middle of SCRAM",
        (_, Authentication::CleartextPassword | Authentication::Md5Password(_)) => {
            "protocol error: second request for authentication"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    const CLIENT_KEY: [u8; 32] = [5; 32];

    fn with(secret: &[u8]) -> Credentials<'_> {
        Credentials { user: b"u", secret, client_key: None, end_point: None }
    }

    /// The verifier of [`CLIENT_KEY`].
    fn verifier() -> String {
        let [salt, stored, server] = [&b"salt"[..], &digest::sha256(&CLIENT_KEY), &[6; 32]]
            .map(|bytes| BASE64_STANDARD.encode(bytes));
        format!("SCRAM-SHA-256$4096:{salt}${stored}:{server}")
    }

    fn answer(request: Authentication<'_>, credentials: Credentials<'_>) -> Result<Step, Refusal> {
        Answer::Start.step(request, credentials).map(|(_, step)| step)
    }

    fn told(result: Result<Step, Refusal>) -> Option<&'static str> {
        result.unwrap_err().told
    }

    #[test]
    fn passwords_are_sent_as_asked_for() {
        let sent = |text: &[u8]| Ok(Step::Send(text.to_vec()));
        let clear = Authentication::CleartextPassword;
        assert_eq!(answer(clear, with(b"p w")), sent(b"p w\0"));
        assert_eq!(answer(clear, with(b"")), sent(b"\0"));
        assert_eq!(answer(clear, with(b"a\0b")), sent(b"a\0"));
        let md5 = Authentication::Md5Password(*b"salt");
        let hash = [MD5_PREFIX, &digest::md5_hex(&[b"p", b"u"])].concat();
        let expected = [MD5_PREFIX, &digest::md5_hex(&[&hash[3..], b"salt"]), b"\0"].concat();
        assert_eq!(answer(md5, with(b"p")), sent(&expected));
        assert_eq!(answer(md5, with(&hash)), sent(&expected));
        assert_eq!(told(answer(md5, with(verifier().as_bytes()))), Some(WRONG_TYPE));
        let sasl = Authentication::Sasl(b"SCRAM-SHA-256\0\0");
        assert_eq!(told(answer(sasl, with(&hash))), Some(WRONG_TYPE));
        assert_eq!(answer(Authentication::Ok, with(b"")), Ok(Step::Accepted));
    }

    #[test]
    fn the_mechanism_is_the_best_that_both_have() {
        let plain = &b"SCRAM-SHA-256\0\0"[..];
        let both = &b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"[..];
        for (offer, end_point, expected) in [
            (plain, None, &b"SCRAM-SHA-256\0\0\0\0 n,,"[..]),
            (both, None, b"SCRAM-SHA-256\0\0\0\0 n,,"),
            (plain, Some(&[7][..]), b"SCRAM-SHA-256\0\0\0\0 y,,"),
            (both, Some(&[7][..]), b"SCRAM-SHA-256-PLUS\0\0\0\x005p=tls-server-end-point,,"),
        ] {
            let credentials = Credentials { end_point, ..with(b"p") };
            let step = answer(Authentication::Sasl(offer), credentials).unwrap();
            let Step::Send(words) = step else {
                panic!("no hello but {step:?}");
            };
            let seen = String::from_utf8_lossy(&words).into_owned();
            assert!(words.starts_with(expected), "{seen:?}");
        }
    }

    fn hello(credentials: Credentials<'_>) -> (Answer, String) {
        let sasl = Authentication::Sasl(b"OTHER\0SCRAM-SHA-256\0\0");
        let (answer, step) = Answer::Start.step(sasl, credentials).unwrap();
        let Step::Send(words) = step else {
            panic!("no hello but {step:?}");
        };
        let nonce = words[words.len() - 24..].to_vec();
        assert!(words.starts_with(b"SCRAM-SHA-256\0\0\0\0\x20n,,n=,r="));
        (answer, String::from_utf8(nonce).unwrap())
    }

    /// Pass-through: the key that a client has proven opens the server, and nothing is derived.
    #[test]
    fn a_proven_key_opens_servers_that_keep_the_same_secret() {
        let verifier = verifier();
        let proven = Credentials { client_key: Some(&CLIENT_KEY), ..with(verifier.as_bytes()) };
        let (first, nonce) = hello(proven);
        let challenge = format!("r={nonce}x,s=AAAA,i=4096");
        let request = Authentication::SaslContinue(challenge.as_bytes());
        let (sent, step) = first.step(request, proven).unwrap();
        assert!(matches!(step, Step::Send(_)) && matches!(sent, Answer::ProofSent(_)));
        // D8: the key of somebody else, or none at all, is of no use.
        for client_key in [None, Some(&[7; 32])] {
            let useless = Credentials { client_key, ..proven };
            let sasl = Authentication::Sasl(b"SCRAM-SHA-256\0\0");
            assert_eq!(told(answer(sasl, useless)), Some(WRONG_TYPE));
        }
        // Nor is a key that was proven against something else used instead of a plain password.
        let plain = Credentials { client_key: Some(&CLIENT_KEY), ..with(b"password") };
        let (first, nonce) = hello(plain);
        let challenge = format!("r={nonce}x,s=AAAA,i=4096");
        let request = Authentication::SaslContinue(challenge.as_bytes());
        let (deriving, step) = first.step(request, plain).unwrap();
        assert_eq!(step, Step::Derive(Derivation::new(b"password", &[0, 0, 0], 4096)));
        assert!(deriving.is_deriving());
        assert!(deriving.step(Authentication::Ok, plain).is_err(), "not before the proof");
    }

    /// One request, whole or not, in any order.
    fn request() -> impl Strategy<Value = (u32, Vec<u8>)> {
        let texts = prop::sample::select(vec![
            &b""[..],
            b"salt",
            b"SCRAM-SHA-256\0\0",
            b"r=,s=AAAA,i=1",
            b"v=AAAA",
            b"e=x",
        ]);
        let noise = prop::collection::vec(any::<u8>(), 0..12);
        (prop::sample::select(vec![0u32, 2, 3, 5, 7, 10, 11, 12, 13]), texts, 0usize..20, noise)
            .prop_map(|(method, text, cut, noise)| {
                (method, [&text[..cut.min(text.len())], &noise].concat())
            })
    }

    proptest! {
        /// Wrong orders, cut messages, noise: no panic, and no server is believed to have let us
        /// in after a SCRAM exchange in which it did not prove itself.
        #[test]
        fn no_server_gets_further_than_it_may(
            requests in prop::collection::vec(request(), 1..8),
            secret in prop::sample::select(vec![&b"p"[..], b"", b"md5"])
        ) {
            let (mut state, mut spoke_scram) = (Answer::Start, false);
            for (method, rest) in requests {
                let body = [&method.to_be_bytes()[..], &rest].concat();
                let Some(request) = crate::wire::backend::authentication(&body) else {
                    break;
                };
                let Ok((next, step)) = state.step(request, with(secret)) else {
                    break;
                };
                prop_assert!(!(spoke_scram && step == Step::Accepted));
                spoke_scram |= matches!(next, Answer::FirstSent(_));
                state = next;
            }
        }
    }
}
