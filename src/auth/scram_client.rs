//! The client's part of SCRAM-SHA-256 (RFC 5802, 7677): how we log in to servers.
//!
//! ```text
//! FirstSent ──server-first──▶ Challenge ──keys──▶ ProofSent ──server-final──▶ done
//! ```
//!
//! Each phase is eaten by the next one. The server is a stranger: whatever it sends is measured
//! before it is used (reliability 2), and in the end it has to prove that it knows us, too.

use crate::auth::derivation::{MAX_ITERATIONS, ScramKeys};
use crate::auth::digest::{self, KEY_BYTES};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::fmt;

/// The mechanism for every server.
pub const MECHANISM: &[u8] = b"SCRAM-SHA-256";
/// The one that is bound to the channel, if there is TLS.
pub const MECHANISM_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";
/// Random bytes in our nonce.
pub const NONCE_BYTES: usize = 18;
/// No server of good faith has more to say; all our answers are shorter than that plus a little.
const MAX_MESSAGE_BYTES: usize = 4096;

/// To what the exchange is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// There is no TLS.
    None,
    /// There is, but the server does not offer to bind to it. It is told that we would have: if
    /// somebody in between has taken it out of the offer, it knows.
    NotOffered,
    /// To this hash of the server's certificate: nobody in between can pass the exchange on.
    Bound(Box<[u8]>),
}

impl Channel {
    /// What our first message begins with.
    fn header(&self) -> &'static str {
        match self {
            Channel::None => "n,,",
            Channel::NotOffered => "y,,",
            Channel::Bound(_) => "p=tls-server-end-point,,",
        }
    }

    /// The same and what we are bound to, in base64, for our last message.
    fn bound(&self) -> String {
        let hash: &[u8] = match self {
            Channel::None | Channel::NotOffered => b"",
            Channel::Bound(hash) => hash,
        };
        BASE64_STANDARD.encode([self.header().as_bytes(), hash].concat())
    }
}

/// Why an exchange ends without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// This is not the protocol; the words for the log.
    Protocol(&'static str),
    /// The server says what is wrong.
    ServerSays(String),
    /// The server does not know our secret: it is not who we think.
    InvalidSignature,
    /// What it sent is no signature.
    NoSignature,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Protocol(words) => f.write_str(words),
            Trouble::ServerSays(words) => {
                write!(f, "error received from server in SCRAM exchange: {words}")
            }
            Trouble::InvalidSignature => f.write_str("invalid server signature"),
            Trouble::NoSignature => f.write_str("failed to verify server signature"),
        }
    }
}

/// What proves who we are, and lets the server prove who it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Goes into the proof.
    pub client_key: [u8; KEY_BYTES],
    /// Goes into the server's signature.
    pub server_key: [u8; KEY_BYTES],
}

impl From<&ScramKeys> for Keys {
    fn from(keys: &ScramKeys) -> Self {
        Self { client_key: keys.client_key, server_key: keys.server_key }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(****)")
    }
}

/// We have said hello.
#[derive(Debug)]
pub struct FirstSent {
    nonce: String,
    channel: Channel,
}

impl FirstSent {
    /// Begins with this random nonce; the message to send.
    pub fn new(random: [u8; NONCE_BYTES], channel: Channel) -> (Self, Vec<u8>) {
        let first = Self { nonce: BASE64_STANDARD.encode(random), channel };
        let message = format!("{}{}", first.channel.header(), first.bare());
        (first, message.into_bytes())
    }

    /// As PgBouncer: the server knows our name from the Startup.
    fn bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Reads the server's first message.
    pub fn challenged(self, message: &[u8]) -> Result<Challenge, Trouble> {
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(Trouble::Protocol("malformed SCRAM message (too long)"));
        }
        let Ok(text) = std::str::from_utf8(message) else {
            return Err(Trouble::Protocol("malformed SCRAM message (not UTF-8)"));
        };
        if let Some(words) = text.strip_prefix("e=") {
            return Err(Trouble::ServerSays(printable(words)));
        }
        let mut attributes = text.split(',');
        let nonce = attribute(attributes.next(), "r=", "malformed SCRAM message (nonce expected)")?;
        let is_nonce = nonce.bytes().all(|byte| byte.is_ascii_graphic());
        // A server that adds nothing to our nonce could replay an old exchange.
        if !is_nonce || !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(Trouble::Protocol("invalid SCRAM response (nonce mismatch)"));
        }
        let salt = attribute(attributes.next(), "s=", "malformed SCRAM message (salt expected)")?;
        let salt = BASE64_STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty());
        let salt = salt.ok_or(Trouble::Protocol("malformed SCRAM message (invalid salt)"))?;
        const BAD_COUNT: &str = "malformed SCRAM message (invalid iteration count)";
        let count = attribute(attributes.next(), "i=", BAD_COUNT)?;
        let iterations = number(count).filter(|count| (1..=MAX_ITERATIONS).contains(count));
        let iterations = iterations.ok_or(Trouble::Protocol(BAD_COUNT))?;
        if attributes.next().is_some() {
            const GARBAGE: &str =
                "malformed SCRAM message (garbage at end of server-first-message)";
            return Err(Trouble::Protocol(GARBAGE));
        }
        let without_proof = format!("c={},r={nonce}", self.channel.bound());
        let auth_message = format!("{},{text},{without_proof}", self.bare());
        Ok(Challenge { salt: salt.into(), iterations, without_proof, auth_message })
    }
}

fn attribute<'a>(
    found: Option<&'a str>,
    name: &str,
    trouble: &'static str,
) -> Result<&'a str, Trouble> {
    found.and_then(|text| text.strip_prefix(name)).ok_or(Trouble::Protocol(trouble))
}

/// Digits and nothing else: no sign, no blank.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A stranger's words, fit for a line of the log.
fn printable(words: &str) -> String {
    words.chars().filter(|char| !char.is_control()).take(100).collect()
}

/// The server has said with which salt it keeps our password.
#[derive(Debug)]
pub struct Challenge {
    /// The salt.
    pub salt: Box<[u8]>,
    /// How many rounds; from one to [`MAX_ITERATIONS`].
    pub iterations: u32,
    without_proof: String,
    auth_message: String,
}

impl Challenge {
    /// Proves who we are; the message to send.
    pub fn answer(self, keys: &Keys) -> (ProofSent, Vec<u8>) {
        let stored_key = digest::sha256(&keys.client_key);
        let mut proof = digest::hmac(&stored_key, self.auth_message.as_bytes());
        for (byte, key) in proof.iter_mut().zip(keys.client_key) {
            *byte ^= key;
        }
        let message = format!("{},p={}", self.without_proof, BASE64_STANDARD.encode(proof));
        let signature = digest::hmac(&keys.server_key, self.auth_message.as_bytes());
        (ProofSent { signature }, message.into_bytes())
    }
}

/// We have proven who we are; the server has not.
pub struct ProofSent {
    signature: [u8; KEY_BYTES],
}

impl fmt::Debug for ProofSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofSent(****)")
    }
}

impl ProofSent {
    /// Reads the server's last message.
    pub fn verify(self, message: &[u8]) -> Result<(), Trouble> {
        if let Some(words) = message.strip_prefix(b"e=") {
            return Err(Trouble::ServerSays(printable(&String::from_utf8_lossy(words))));
        }
        let signature = message.strip_prefix(b"v=").filter(|text| text.len() <= MAX_MESSAGE_BYTES);
        let signature = signature.and_then(|text| BASE64_STANDARD.decode(text).ok());
        match signature {
            Some(bytes) if bytes.len() != KEY_BYTES => Err(Trouble::NoSignature),
            Some(bytes) if digest::is_equal(&bytes, &self.signature) => Ok(()),
            Some(_) => Err(Trouble::InvalidSignature),
            None => Err(Trouble::NoSignature),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::derivation::Derivation;
    use crate::config::Secret;
    use proptest::prelude::*;

    /// Another nonce than the one of RFC 7677, whose own is no base64 of 18 bytes.
    const NONCE: [u8; NONCE_BYTES] = [7; NONCE_BYTES];
    const OURS: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcH";

    fn begin() -> FirstSent {
        FirstSent::new(NONCE, Channel::None).0
    }

    fn server_first(rest: &str) -> Vec<u8> {
        format!("r={}{rest}", begin().nonce).into_bytes()
    }

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn the_exchange_of_the_rfc_comes_out() {
        let password = Secret::new(*b"pencil");
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_string();
        let first = FirstSent { nonce, channel: Channel::None };
        let message = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let mut challenge = first.challenged(message).unwrap();
        // The RFC's client says its name, which ours leaves to the Startup.
        challenge.auth_message = challenge.auth_message.replacen("n=,", "n=user,", 1);
        let (salt, iterations) = (challenge.salt.clone(), challenge.iterations);
        let keys = Derivation { password, salt, iterations }.run();
        let (sent, answer) = challenge.answer(&Keys::from(&keys));
        let expected = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(String::from_utf8_lossy(&answer), expected);
        let last = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(sent.verify(last), Ok(()));
    }

    #[test]
    fn the_first_message_is_as_pgbouncers() {
        let (first, message) = FirstSent::new(NONCE, Channel::None);
        assert_eq!(String::from_utf8_lossy(&message), format!("n,,n=,r={}", first.nonce));
        assert_eq!(first.nonce.len(), 24);
        assert_eq!(first.nonce, OURS[..24]);
    }

    #[test]
    fn an_exchange_is_bound_to_the_channel() {
        for (channel, header) in [
            (Channel::None, &b"n,,"[..]),
            (Channel::NotOffered, b"y,,"),
            (Channel::Bound([1, 2, 3].into()), b"p=tls-server-end-point,,"),
        ] {
            let (first, message) = FirstSent::new(NONCE, channel.clone());
            assert!(message.starts_with(header), "{channel:?}");
            let challenge = first.challenged(&server_first("x,s=AAAA,i=1")).unwrap();
            let hash: &[u8] = if header.starts_with(b"p") { &[1, 2, 3] } else { &[] };
            let bound = BASE64_STANDARD.encode([header, hash].concat());
            assert!(challenge.without_proof.starts_with(&format!("c={bound},r=")), "{channel:?}");
        }
    }

    /// Reliability 2: a nonce of a megabyte, a salt of as much, 2³¹ rounds.
    #[test]
    fn hostile_challenges_are_refused() {
        let refused = |rest: &str, words: &str| {
            let trouble = begin().challenged(&server_first(rest)).unwrap_err();
            assert_eq!(trouble.to_string(), words, "{}", &rest[..rest.len().min(60)]);
        };
        let mismatch = "invalid SCRAM response (nonce mismatch)";
        let bad_salt = "malformed SCRAM message (invalid salt)";
        let bad_count = "malformed SCRAM message (invalid iteration count)";
        let too_long = "malformed SCRAM message (too long)";
        refused(&format!("{},s=AAAA,i=1", "x".repeat(1 << 20)), too_long);
        refused(&format!("x,s={},i=1", "A".repeat(1 << 20)), too_long);
        refused(&format!("x,s=AAAA,i={}", "1".repeat(1 << 20)), too_long);
        refused(",s=AAAA,i=4096", mismatch);
        refused("x y,s=AAAA,i=4096", mismatch);
        refused("x,s=,i=4096", bad_salt);
        refused("x,s=A,i=4096", bad_salt);
        refused("x,s=AAAA,i=2147483648", bad_count);
        for count in ["2147483647", "4294967296", "99999999999999999999", "0", "-1", "+1", "", "x"]
        {
            refused(&format!("x,s=AAAA,i={count}"), bad_count);
        }
        refused("x,s=AAAA", bad_count);
        refused("x", "malformed SCRAM message (salt expected)");
        refused(
            "x,s=AAAA,i=1,x=y",
            "malformed SCRAM message (garbage at end of server-first-message)",
        );
        let other = begin().challenged(b"r=other,s=AAAA,i=1").unwrap_err();
        assert_eq!(other.to_string(), mismatch);
        let said = begin().challenged(b"e=other\n-error").unwrap_err();
        assert_eq!(said.to_string(), "error received from server in SCRAM exchange: other-error");
    }

    #[test]
    fn a_server_that_does_not_know_us_is_found_out() {
        let sent = || {
            let challenge = begin().challenged(&server_first("x,s=AAAA,i=1")).unwrap();
            challenge.answer(&Keys { client_key: [1; KEY_BYTES], server_key: [2; KEY_BYTES] }).0
        };
        let right = BASE64_STANDARD.encode(sent().signature);
        let wrong = BASE64_STANDARD.encode([0; KEY_BYTES]);
        let says = |text: String| sent().verify(text.as_bytes());
        assert_eq!(says(format!("v={right}")), Ok(()));
        assert_eq!(says(format!("v={wrong}")), Err(Trouble::InvalidSignature));
        for nothing in ["v=", "v=AAAA", "x=", "", "v=&", "v", &format!("v={right},x=y")] {
            assert_eq!(says(nothing.to_string()), Err(Trouble::NoSignature), "{nothing}");
        }
        let refused = Err(Trouble::ServerSays("invalid-proof".to_string()));
        assert_eq!(says("e=invalid-proof".to_string()), refused);
    }

    proptest! {
        /// Every message cut at every byte is in here, too.
        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..80), cut in 0usize..60) {
            let whole = server_first("server,s=c2FsdA==,i=4096");
            let mut message = whole[..cut.min(whole.len())].to_vec();
            message.extend(&noise);
            let _ = begin().challenged(&message);
            let proof = ProofSent { signature: [3; KEY_BYTES] };
            prop_assert!(proof.verify(&noise).is_err());
        }
    }
}
