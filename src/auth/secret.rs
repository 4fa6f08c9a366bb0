//! What kind of secret is kept for a user: PostgreSQL keeps the same kinds, as the same texts.

use crate::auth::digest::KEY_BYTES;
use crate::config::Secret;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;

/// Begins the text of an MD5 hash, and of each answer to an MD5 challenge.
pub const MD5_PREFIX: &[u8] = b"md5";
/// Salts that we make up are so long.
pub const SALT_BYTES: usize = 16;
/// Digits behind it.
const MD5_DIGITS: usize = 32;

/// A stored secret, looked at closely.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// The password itself.
    Plain(&'a [u8]),
    /// `md5` and what MD5 makes of password and name; here are the digits.
    Md5(&'a [u8]),
    /// What SCRAM-SHA-256 needs to verify a password.
    Scram(Cow<'a, Verifier>),
}

impl<'a> Kind<'a> {
    /// Tells by the text: what is not well-formed is a password, however it begins.
    pub fn of(text: &'a [u8]) -> Self {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if let Some(digits) = text.strip_prefix(MD5_PREFIX)
            && digits.len() == MD5_DIGITS
            && digits.iter().all(is_digit)
        {
            return Kind::Md5(digits);
        }
        match Verifier::parse(text) {
            Some(verifier) => Kind::Scram(Cow::Owned(verifier)),
            None => Kind::Plain(text),
        }
    }
}

/// A stored secret, looked at before it is needed: each login needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    text: Secret,
    /// If it is one.
    verifier: Option<Verifier>,
    /// If it is a password: what clients are told, once one has asked.
    salt: OnceLock<[u8; SALT_BYTES]>,
}

impl From<Secret> for Known {
    fn from(text: Secret) -> Self {
        let verifier = Verifier::parse(text.expose());
        Self { text, verifier, salt: OnceLock::new() }
    }
}

impl Known {
    /// As it is stored.
    pub fn text(&self) -> &Secret {
        &self.text
    }

    /// The salt of a password, which is the same one for each login.
    pub fn salt(&self, make: impl FnOnce(&[u8]) -> [u8; SALT_BYTES]) -> [u8; SALT_BYTES] {
        *self.salt.get_or_init(|| make(self.text.expose()))
    }

    /// What it is.
    pub fn kind(&self) -> Kind<'_> {
        match &self.verifier {
            Some(verifier) => Kind::Scram(Cow::Borrowed(verifier)),
            None => Kind::of(self.text.expose()),
        }
    }
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, the last three in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// Rounds of the derivation.
    pub iterations: u32,
    /// The salt, as bytes.
    pub salt: Box<[u8]>,
    /// Proves that a client knows the password; its pre-image is the ClientKey.
    pub stored_key: [u8; KEY_BYTES],
    /// Proves that we know the user.
    pub server_key: [u8; KEY_BYTES],
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(****)")
    }
}

impl Verifier {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text.strip_prefix(b"SCRAM-SHA-256$")?).ok()?;
        let (head, keys) = text.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        if !iterations.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let decode = |text: &str| BASE64_STANDARD.decode(text).ok();
        Some(Self {
            iterations: iterations.parse().ok().filter(|count| *count > 0)?,
            salt: decode(salt).filter(|salt| !salt.is_empty())?.into(),
            stored_key: decode(stored_key)?.try_into().ok()?,
            server_key: decode(server_key)?.try_into().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &[u8] = b"md50123456789abcdef0123456789abcdef";

    fn verifier(iterations: &str, salt: &[u8], stored_key: &[u8]) -> String {
        let [salt, stored, server] =
            [salt, stored_key, &[2; 32]].map(|bytes| BASE64_STANDARD.encode(bytes));
        format!("SCRAM-SHA-256${iterations}:{salt}${stored}:{server}")
    }

    #[test]
    fn secrets_are_told_apart_by_their_text() {
        assert_eq!(Kind::of(HASH), Kind::Md5(&HASH[3..]));
        let upper = HASH.to_ascii_uppercase();
        for plain in [&b""[..], b"md5", &HASH[..34], &upper, b"SCRAM-SHA-256$4096:x", b"\xff"] {
            assert_eq!(Kind::of(plain), Kind::Plain(plain));
        }
        let longer = [HASH, b"0"].concat();
        assert_eq!(Kind::of(&longer), Kind::Plain(&longer));
        let text = verifier("4096", b"salt", &[1; 32]);
        let expected = Verifier {
            iterations: 4096,
            salt: Box::from(*b"salt"),
            stored_key: [1; 32],
            server_key: [2; 32],
        };
        let scram = Kind::Scram(Cow::Owned(expected));
        assert_eq!(Kind::of(text.as_bytes()), scram);
        assert_eq!(Known::from(Secret::new(text.as_bytes())).kind(), scram);
        assert_eq!(Known::from(Secret::new(HASH)).kind(), Kind::of(HASH));
        for broken in [
            verifier("", b"salt", &[1; 32]),
            verifier("0", b"salt", &[1; 32]),
            verifier("+1", b"salt", &[1; 32]),
            verifier("4294967296", b"salt", &[1; 32]),
            verifier("4096", b"", &[1; 32]),
            verifier("4096", b"salt", &[1; 31]),
            verifier("4096", b"salt", &[1; 33]),
            format!("{}x", verifier("4096", b"salt", &[1; 32])),
        ] {
            assert_eq!(Kind::of(broken.as_bytes()), Kind::Plain(broken.as_bytes()), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn every_cut_of_a_secret_is_a_password(cut in 0usize..120) {
            let text = verifier("4096", b"salt", &[1; 32]);
            let cut = &text.as_bytes()[..cut.min(text.len() - 1)];
            prop_assert_eq!(Kind::of(cut), Kind::Plain(cut));
        }
    }
}
