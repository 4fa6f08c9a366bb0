//! Whether a client could bind its proof to the channel, and believes that we could (client.md §2.5):
//! `n` and `y` of its first message, what has to follow in its last one, with TLS and without.

mod common;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::raw::{Message, message};
use common::tls::{Certs, Secured, client_config};
use common::{Pooler, Raw, Startup, wait_for};
use ringbouncer::auth::derivation::Derivation;
use ringbouncer::auth::digest;

const REFUSED: &str = "SASL authentication failed";
const PLUS_AND_PLAIN: &[u8] = b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
const PLAIN: &[u8] = b"\0\0\0\x0aSCRAM-SHA-256\0\0";

/// A connection, with TLS or without.
enum Wire {
    Open(Raw),
    Closed(Box<Secured>),
}

impl Wire {
    fn send(&mut self, bytes: &[u8]) {
        match self {
            Wire::Open(raw) => raw.send(bytes),
            Wire::Closed(secured) => secured.send(bytes),
        }
    }

    fn message(&mut self) -> Message {
        match self {
            Wire::Open(raw) => raw.message(),
            Wire::Closed(secured) => secured.message().expect("a message"),
        }
    }

    /// alice, who knows her password, says these things about channels. What she is told in the end.
    fn log_in(&mut self, offer: &[u8], flag: &str, binding: &str) -> Result<(), String> {
        self.send(&Startup::v3().param("user", "alice").param("database", "app").bytes());
        assert_eq!(self.message().body, offer);
        let bare = "n=,r=abc";
        let first = format!("{flag},,{bare}");
        let length = u32::try_from(first.len()).expect("short").to_be_bytes();
        self.send(&message(b'p', &[b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat()));
        let server_first = self.challenge()?;
        let [nonce, salt, rounds] = ["r=", "s=", "i="].map(|name| {
            let mut attributes = server_first.split(',');
            attributes.find_map(|attribute| attribute.strip_prefix(name)).expect("an attribute")
        });
        let salt = BASE64_STANDARD.decode(salt).expect("a salt");
        let keys = Derivation::new(b"secret", &salt, rounds.parse().expect("a number")).run();
        let last = format!("c={binding},r={nonce}");
        let mut proof =
            digest::hmac(&keys.stored_key, format!("{bare},{server_first},{last}").as_bytes());
        proof.iter_mut().zip(keys.client_key).for_each(|(byte, key)| *byte ^= key);
        let last = format!("{last},p={}", BASE64_STANDARD.encode(proof));
        self.send(&message(b'p', last.as_bytes()));
        self.challenge().map(drop)
    }

    /// What the next message of SASL says, or the words of the refusal.
    fn challenge(&mut self) -> Result<String, String> {
        let next = self.message();
        if next.tag == b'E' {
            return Err(next.field('M'));
        }
        assert_eq!(next.tag, b'R', "{next:?}");
        Ok(String::from_utf8(next.body[4..].to_vec()).expect("text"))
    }
}

fn start(certs: &Certs) -> Pooler {
    certs.issue("pooler", "pooler.test", &["localhost"]);
    Pooler::start(|ini| {
        ini.set("auth_type", "scram-sha-256").set("client_tls_sslmode", "allow");
        ini.set("client_tls_cert_file", &certs.path("pooler.crt"));
        ini.set("client_tls_key_file", &certs.path("pooler.key"));
    })
}

fn logged(pooler: &Pooler, words: &str) {
    wait_for(words, || pooler.log().contains(words));
}

/// Where we have offered to bind, who says that we have not was told so by somebody in between.
#[test]
fn who_could_bind_and_was_offered_it_has_to() {
    let certs = Certs::new();
    let pooler = start(&certs);
    let through = || {
        let secured = Secured::ask(pooler.port, client_config(None, &[])).expect("a handshake");
        Wire::Closed(Box::new(secured))
    };
    assert_eq!(through().log_in(PLUS_AND_PLAIN, "n", "biws"), Ok(()), "it cannot bind");
    for binding in ["eSws", "biws"] {
        let refused = through().log_in(PLUS_AND_PLAIN, "y", binding);
        assert_eq!(refused, Err(REFUSED.to_owned()), "{binding}");
    }
    logged(&pooler, "client supports SCRAM channel binding but thinks the server does not");
    // What it says in the end is what it said first.
    let refused = through().log_in(PLUS_AND_PLAIN, "n", "eSws");
    assert_eq!(refused, Err(REFUSED.to_owned()));
    logged(&pooler, "unexpected SCRAM channel-binding attribute in client-final-message");
    // To choose the mechanism without it, and bind all the same, is neither.
    let refused = through().log_in(PLUS_AND_PLAIN, "p=tls-server-end-point", "biws");
    assert_eq!(refused, Err(REFUSED.to_owned()));
}

/// Where we have not, both are true, and each has its own last word.
#[test]
fn who_could_bind_and_was_not_offered_it_comes_in() {
    let certs = Certs::new();
    let pooler = start(&certs);
    for (flag, binding, is_in) in
        [("n", "biws", true), ("y", "eSws", true), ("n", "eSws", false), ("y", "biws", false)]
    {
        let mut wire = Wire::Open(pooler.unnamed());
        let expected = if is_in { Ok(()) } else { Err(REFUSED.to_owned()) };
        assert_eq!(wire.log_in(PLAIN, flag, binding), expected, "{flag} {binding}");
    }
    logged(&pooler, "unexpected SCRAM channel-binding attribute in client-final-message");
}
