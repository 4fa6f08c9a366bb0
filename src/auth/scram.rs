//! Our side of SCRAM-SHA-256 (RFC 5802, RFC 7677) when a client logs in.
//!
//! ```text
//! client-first  n,,n=,r=NONCE                 ──▶ [`ClientFirst::parse`]
//! server-first  r=NONCEnonce,s=SALT,i=ROUNDS  ◀── [`Dialogue::begin`]
//! client-final  c=biws,r=NONCEnonce,p=PROOF   ──▶ [`Dialogue::proof`]
//! server-final  v=SIGNATURE                   ◀── [`ClientProof::check`]
//! ```
//!
//! Each step eats the last one: a finished phase cannot be used again. The user's name in
//! client-first does not count: the one in the Startup does.

use crate::auth::derivation::ScramKeys;
use crate::auth::digest::{self, KEY_BYTES};
use crate::auth::secret::Verifier;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::fmt;

/// The one mechanism for clients without TLS.
pub const SCRAM_SHA_256: &[u8] = b"SCRAM-SHA-256";
/// The one that is bound to the channel.
pub const SCRAM_SHA_256_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";
/// So much of the nonce is ours, before base64 makes 24 characters of it.
pub const NONCE_BYTES: usize = 18;
/// No message of ours has more bytes besides what is random or a key in it.
const MESSAGE_BYTES: usize = 24;
/// The channel binding that we offer.
const BINDING: &[u8] = b"tls-server-end-point";

/// A message that is not as it must be, or says that it will not do; the words are for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub &'static str);

/// How a client binds the dialogue to its TLS connection, and what is known of that connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// It chose the mechanism that is bound.
    pub is_chosen: bool,
    /// The hash of our certificate, if that mechanism was offered.
    pub offered: Option<&'a [u8]>,
}

impl Binding<'_> {
    /// Without TLS nothing can be bound.
    pub const NONE: Binding<'static> = Binding { is_chosen: false, offered: None };
}

/// The client's first message, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFirst {
    /// What `c=` must say in the end: the header, and what the dialogue is bound to.
    binding: Vec<u8>,
    bare: Vec<u8>,
    nonce: String,
}

impl ClientFirst {
    /// Reads it.
    pub fn parse(message: &[u8], channel: Binding<'_>) -> Result<Self, Refused> {
        const MALFORMED: Refused = Refused("malformed SCRAM message (client-first)");
        let (flag, rest) = cut(message, b',').ok_or(MALFORMED)?;
        let bound_to: &[u8] = match (flag, channel) {
            (b"n", Binding { is_chosen: false, .. }) => b"",
            // It could bind but believes that we cannot: then somebody in between has taken the
            // mechanism out of our offer.
            (b"y", Binding { is_chosen: false, offered: Some(_) }) => {
                return Err(Refused(
                    "client supports SCRAM channel binding but thinks the server does not",
                ));
            }
            (b"y", Binding { is_chosen: false, offered: None }) => b"",
            (flag, Binding { is_chosen: true, offered: Some(hash) })
                if flag.strip_prefix(b"p=") == Some(BINDING) =>
            {
                hash
            }
            (flag, _) if flag.starts_with(b"p=") => {
                return Err(Refused(
                    "client requires SCRAM channel binding, but it is not supported",
                ));
            }
            _ => return Err(MALFORMED),
        };
        let (authzid, bare) = cut(rest, b',').ok_or(MALFORMED)?;
        if !authzid.is_empty() {
            return Err(Refused("client uses authorization identity, but it is not supported"));
        }
        let mut attributes = bare.split(|byte| *byte == b',');
        let mut next = || attributes.next().ok_or(MALFORMED);
        let mut attribute = next()?;
        if attribute.starts_with(b"m=") {
            return Err(Refused("client requires an unsupported SCRAM extension"));
        }
        if attribute.starts_with(b"n=") {
            attribute = next()?;
        }
        let nonce = attribute.strip_prefix(b"r=").ok_or(MALFORMED)?;
        let nonce = str::from_utf8(nonce)
            .ok()
            .filter(|nonce| !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic()));
        let nonce = nonce.ok_or(Refused("non-printable characters in SCRAM nonce"))?;
        let header = &message[..message.len() - bare.len()];
        Ok(Self {
            binding: [header, bound_to].concat(),
            bare: bare.to_vec(),
            nonce: nonce.to_owned(),
        })
    }
}

/// The dialogue after our first message: the client's proof is awaited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    binding: Vec<u8>,
    /// Both nonces.
    nonce: String,
    /// What was said so far, as it is signed.
    said: Vec<u8>,
}

impl Dialogue {
    /// Answers the first message; that answer, and what comes next.
    pub fn begin(
        first: ClientFirst,
        (salt, iterations): (&[u8], u32),
        ours: [u8; NONCE_BYTES],
    ) -> (Self, Vec<u8>) {
        let ClientFirst { binding, bare, mut nonce } = first;
        nonce.reserve(2 * NONCE_BYTES);
        BASE64_STANDARD.encode_string(ours, &mut nonce);
        let mut message = String::with_capacity(nonce.len() + 2 * salt.len() + MESSAGE_BYTES);
        message.extend(["r=", &nonce, ",s="]);
        BASE64_STANDARD.encode_string(salt, &mut message);
        message.extend([",i=", &iterations.to_string()]);
        // The client's last message, without its proof, comes behind it.
        let more = binding.len() + nonce.len() + MESSAGE_BYTES;
        let mut said = Vec::with_capacity(bare.len() + message.len() + 2 * more);
        for part in [&*bare, b",", message.as_bytes(), b","] {
            said.extend_from_slice(part);
        }
        (Self { binding, nonce, said }, message.into_bytes())
    }

    /// Reads the client's last message.
    pub fn proof(self, message: &[u8]) -> Result<ClientProof, Refused> {
        const MALFORMED: Refused = Refused("malformed SCRAM message (client-final)");
        let at = message.windows(3).rposition(|bytes| bytes == b",p=").ok_or(MALFORMED)?;
        let (without_proof, proof) = (&message[..at], &message[at + 3..]);
        let proof = BASE64_STANDARD.decode(proof).map_err(|_| MALFORMED)?;
        let proof = proof.try_into().map_err(|_| MALFORMED)?;
        let mut attributes = without_proof.split(|byte| *byte == b',');
        let mut next = |name: &[u8]| {
            attributes.next().and_then(|attribute| attribute.strip_prefix(name)).ok_or(MALFORMED)
        };
        if next(b"c=")? != BASE64_STANDARD.encode(&self.binding).as_bytes() {
            return Err(Refused(
                "unexpected SCRAM channel-binding attribute in client-final-message",
            ));
        }
        if next(b"r=")? != self.nonce.as_bytes() {
            return Err(Refused("invalid SCRAM response (nonce does not match)"));
        }
        let mut said = self.said;
        said.extend_from_slice(without_proof);
        Ok(ClientProof { said, proof })
    }
}

/// What the client has signed, and the proof that it could.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientProof {
    said: Vec<u8>,
    proof: [u8; KEY_BYTES],
}

impl fmt::Debug for ClientProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientProof(****)")
    }
}

/// Against what a proof is held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    stored_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(****)")
    }
}

impl From<&ScramKeys> for Keys {
    fn from(keys: &ScramKeys) -> Self {
        Self { stored_key: keys.stored_key, server_key: keys.server_key }
    }
}

impl From<&Verifier> for Keys {
    fn from(verifier: &Verifier) -> Self {
        Self { stored_key: verifier.stored_key, server_key: verifier.server_key }
    }
}

impl Keys {
    /// Whether somebody who knows these keys knows the password.
    pub fn come_from(&self, keys: &ScramKeys) -> bool {
        digest::is_equal(&self.server_key, &keys.server_key)
    }
}

/// A proof that holds.
pub struct Accepted {
    /// What the client knows; it opens servers that keep the same secret.
    pub client_key: [u8; KEY_BYTES],
    /// Proves to the client that we know it, too.
    pub server_final: Vec<u8>,
}

impl ClientProof {
    /// Whether it holds against these keys.
    pub fn check(&self, keys: &Keys) -> Option<Accepted> {
        let mut client_key = digest::hmac(&keys.stored_key, &self.said);
        client_key.iter_mut().zip(self.proof).for_each(|(byte, proof)| *byte ^= proof);
        if !digest::is_equal(&digest::sha256(&client_key), &keys.stored_key) {
            return None;
        }
        let mut server_final = String::with_capacity(MESSAGE_BYTES + 2 * KEY_BYTES);
        server_final.push_str("v=");
        let signature = digest::hmac(&keys.server_key, &self.said);
        BASE64_STANDARD.encode_string(signature, &mut server_final);
        Some(Accepted { client_key, server_final: server_final.into_bytes() })
    }
}

fn cut(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..place], &bytes[place + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::derivation::Derivation;
    use proptest::prelude::*;

    const FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";

    /// The nonce of RFC 7677 is not base64 of 18 bytes: its dialogue is put together by hand.
    fn rfc_7677() -> (Dialogue, Keys) {
        let first = ClientFirst::parse(FIRST, Binding::NONE).unwrap();
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let said = b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,";
        let dialogue =
            Dialogue { binding: first.binding, nonce: nonce.to_owned(), said: said.to_vec() };
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        (dialogue, Keys::from(&Derivation::new(b"pencil", &salt, 4096).run()))
    }

    const FINAL: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    #[test]
    fn the_dialogue_of_rfc_7677_is_accepted() {
        let (dialogue, keys) = rfc_7677();
        let accepted = dialogue.proof(FINAL).unwrap().check(&keys).unwrap();
        assert_eq!(accepted.server_final, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let wrong = Keys::from(&Derivation::new(b"pencil2", b"salt", 1).run());
        assert!(rfc_7677().0.proof(FINAL).unwrap().check(&wrong).is_none());
    }

    #[test]
    fn our_first_message_is_as_the_contract_says() {
        let first = ClientFirst::parse(b"y,,r=abc,x=y", Binding::NONE).unwrap();
        let (dialogue, message) = Dialogue::begin(first, (b"salt", 4096), [0; NONCE_BYTES]);
        assert_eq!(message, b"r=abcAAAAAAAAAAAAAAAAAAAAAAAA,s=c2FsdA==,i=4096");
        let proof = BASE64_STANDARD.encode([7; 32]);
        let answer = |c: &str, r: &str| format!("c={c},r={r},ext=1,p={proof}").into_bytes();
        let nonce = "abcAAAAAAAAAAAAAAAAAAAAAAAA";
        assert!(dialogue.clone().proof(&answer("eSws", nonce)).is_ok());
        assert!(dialogue.clone().proof(&answer("biws", nonce)).is_err());
        assert!(dialogue.proof(&answer("eSws", "abc")).is_err());
    }

    #[test]
    fn first_messages_that_will_not_do() {
        for message in [
            &b""[..],
            b"n",
            b"n,",
            b"n,,",
            b"n,,n=user",
            b"n,,r=",
            b"n,,r=a\x01b",
            b"n,,r=a\xffb",
            b"n,,m=x,r=abc",
            b"n,a=root,r=abc",
            b"p=tls-unique,,r=abc",
            b"p=tls-server-end-point,,r=abc",
            b"q,,r=abc",
            b"n,,x=1,r=abc",
        ] {
            assert!(ClientFirst::parse(message, Binding::NONE).is_err(), "{message:?}");
        }
        assert!(ClientFirst::parse(b"n,,r=abc", Binding::NONE).is_ok());
    }

    #[test]
    fn a_dialogue_is_bound_to_its_channel_or_refused() {
        let hash = [1, 2, 3];
        let offered = |is_chosen| Binding { is_chosen, offered: Some(&hash) };
        let bound = ClientFirst::parse(b"p=tls-server-end-point,,r=abc", offered(true)).unwrap();
        assert_eq!(bound.binding, b"p=tls-server-end-point,,\x01\x02\x03");
        for (message, channel) in [
            (&b"p=tls-unique,,r=abc"[..], offered(true)),
            (b"n,,r=abc", offered(true)),
            (b"y,,r=abc", offered(true)),
            (b"p=tls-server-end-point,,r=abc", offered(false)),
            // Somebody has taken our offer away.
            (b"y,,r=abc", offered(false)),
        ] {
            assert!(ClientFirst::parse(message, channel).is_err(), "{message:?}");
        }
        assert!(ClientFirst::parse(b"n,,r=abc", offered(false)).is_ok());
    }

    proptest! {
        #[test]
        fn noise_and_cuts_never_panic_and_never_prove(
            noise in prop::collection::vec(any::<u8>(), 0..80),
            cut in 0usize..FINAL.len(),
        ) {
            let _ = ClientFirst::parse(&noise, Binding::NONE);
            let _ = ClientFirst::parse(&FIRST[..cut.min(FIRST.len())], Binding::NONE);
            let (dialogue, keys) = rfc_7677_cheap();
            for message in [&noise[..], &FINAL[..cut]] {
                let proof = dialogue.clone().proof(message);
                prop_assert!(proof.ok().and_then(|proof| proof.check(&keys)).is_none());
            }
        }
    }

    fn rfc_7677_cheap() -> (Dialogue, Keys) {
        let first = ClientFirst::parse(FIRST, Binding::NONE).unwrap();
        let (dialogue, _) = Dialogue::begin(first, (b"salt", 1), [3; NONCE_BYTES]);
        (dialogue, Keys { stored_key: [1; 32], server_key: [2; 32] })
    }
}
