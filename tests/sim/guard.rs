//! How a model server finds out who logs in: anybody, or by a password in clear, MD5, SCRAM.

use crate::wire;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ringbouncer::auth::digest;

/// Few rounds: there is no attacker here.
const ITERATIONS: u32 = 3;

/// What it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    Clear,
    Md5,
    /// The first message of SCRAM.
    Hello,
    /// The proof; so far this was said.
    Proof(String),
}

/// What comes of a message.
pub enum Verdict {
    Ask(Guard, Vec<u8>),
    LetIn(Vec<u8>),
}

/// The one password of a user.
pub fn password(user: &str) -> String {
    format!("{user}'s own")
}

impl Guard {
    /// Which of them stands at this port, and what he asks first. `None`: nobody does.
    pub fn at(port: u16) -> Option<(Self, Vec<u8>)> {
        match (port / 10 + port) % 4 {
            0 => None,
            1 => Some((Guard::Hello, request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"))),
            2 => Some((Guard::Md5, request(5, b"salt"))),
            _ => Some((Guard::Clear, request(3, b""))),
        }
    }

    /// Reads an answer, which must be right: the pooler knows all passwords.
    pub fn hear(self, user: &str, message: &[u8]) -> Verdict {
        assert_eq!(message[0], b'p', "an answer: {}", wire::show(message));
        let body = &message[5..];
        let password = password(user);
        match self {
            Guard::Clear => {
                assert_eq!(body, [password.as_bytes(), b"\0"].concat());
                Verdict::LetIn(Vec::new())
            }
            Guard::Md5 => {
                let inner = digest::md5_hex(&[password.as_bytes(), user.as_bytes()]);
                let outer = digest::md5_hex(&[&inner, b"salt"]);
                assert_eq!(body, [b"md5", &outer[..], b"\0"].concat());
                Verdict::LetIn(Vec::new())
            }
            Guard::Hello => {
                let hello = body.strip_prefix(b"SCRAM-SHA-256\0").expect("the mechanism");
                let bare = hello[4..].strip_prefix(b"n,,").expect("no channel binding");
                let bare = String::from_utf8(bare.to_vec()).expect("text");
                let nonce = bare.strip_prefix("n=,r=").expect("a nonce");
                let salt = BASE64_STANDARD.encode(user);
                let first = format!("r={nonce}sim,s={salt},i={ITERATIONS}");
                let said = format!("{bare},{first},c=biws,r={nonce}sim");
                Verdict::Ask(Guard::Proof(said), request(11, first.as_bytes()))
            }
            Guard::Proof(said) => {
                let keys = digest::pbkdf2(password.as_bytes(), user.as_bytes(), ITERATIONS);
                let client_key = digest::hmac(&keys, b"Client Key");
                let signature = digest::hmac(&digest::sha256(&client_key), said.as_bytes());
                let proof: Vec<u8> =
                    signature.iter().zip(client_key).map(|(one, other)| one ^ other).collect();
                let proof = format!(",p={}", BASE64_STANDARD.encode(proof));
                assert!(body.ends_with(proof.as_bytes()), "not his proof: {}", wire::show(body));
                let ours = digest::hmac(&digest::hmac(&keys, b"Server Key"), said.as_bytes());
                let last = format!("v={}", BASE64_STANDARD.encode(ours));
                Verdict::LetIn(request(12, last.as_bytes()))
            }
        }
    }
}

fn request(method: u32, rest: &[u8]) -> Vec<u8> {
    wire::message(b'R', &[&method.to_be_bytes()[..], rest].concat())
}
