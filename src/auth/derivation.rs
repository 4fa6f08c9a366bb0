//! Making a key of a password: thousands of rounds of HMAC, which take milliseconds. The loop never
//! does that itself: it hands a [`Derivation`] to the side thread and gets [`ScramKeys`] back, which
//! are kept ([`Derived`]), for the next login wants the same ones.

use crate::auth::digest::{self, KEY_BYTES};
use crate::config::Secret;
use lru::LruCache;
use std::fmt;
use std::num::NonZeroUsize;

/// Nobody asks for more rounds than that in good faith: they would keep the side thread busy for
/// half a second, login after login (reliability 2).
pub const MAX_ITERATIONS: u32 = 1_000_000;
/// So many results are kept, each a few hundred bytes.
const MAX_KEPT: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// What a key is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Derivation {
    /// The password, after SASLprep.
    pub password: Secret,
    /// The salt, as bytes.
    pub salt: Box<[u8]>,
    /// How many rounds; at least one.
    pub iterations: u32,
}

impl Derivation {
    /// Of a password as somebody typed it.
    pub fn new(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        Self { password: Secret::new(prepare(password)), salt: salt.into(), iterations }
    }

    /// As much work as any other, for nothing: so that somebody who is wrong anyway waits as long as
    /// others do.
    pub fn decoy(iterations: u32) -> Self {
        let (password, salt) = (Secret::new(digest::random::<16>()), digest::random::<16>());
        Self { password, salt: salt.into(), iterations }
    }

    /// Does the work. It takes milliseconds: not for the loop.
    pub fn run(&self) -> ScramKeys {
        let salted = digest::pbkdf2(self.password.expose(), &self.salt, self.iterations);
        let client_key = digest::hmac(&salted, b"Client Key");
        let stored_key = digest::sha256(&client_key);
        ScramKeys { client_key, stored_key, server_key: digest::hmac(&salted, b"Server Key") }
    }
}

/// SASLprep; as PostgreSQL, what that refuses is taken as it is.
fn prepare(password: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(password).ok();
    let prepared = text.and_then(|text| stringprep::saslprep(text).ok());
    prepared
        .filter(|text| !text.is_empty())
        .map_or(password.to_vec(), |text| text.into_owned().into())
}

/// What comes of it: as good as the password itself towards servers that keep this salt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ScramKeys {
    /// Whoever knows it can prove to know the password.
    pub client_key: [u8; KEY_BYTES],
    /// What such a proof is held against.
    pub stored_key: [u8; KEY_BYTES],
    /// Whoever knows it can prove to know the user.
    pub server_key: [u8; KEY_BYTES],
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(****)")
    }
}

/// The results of late. Who has not been asked for longest goes first. Only keys that have opened
/// something, or may, are put here: nobody can push them out by guessing.
pub struct Derived {
    kept: LruCache<Derivation, ScramKeys>,
}

impl Default for Derived {
    fn default() -> Self {
        Self { kept: LruCache::new(MAX_KEPT) }
    }
}

impl Derived {
    /// The result, if it has been worked out before.
    pub fn get(&mut self, derivation: &Derivation) -> Option<ScramKeys> {
        self.kept.get(derivation).copied()
    }

    /// Keeps a result.
    pub fn keep(&mut self, derivation: Derivation, result: ScramKeys) {
        self.kept.put(derivation, result);
    }

    /// Forgets everything: passwords may have changed.
    pub fn clear(&mut self) {
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derivation(password: &str) -> Derivation {
        Derivation::new(password.as_bytes(), b"salt", 1)
    }

    #[test]
    fn passwords_are_prepared() {
        for (typed, prepared) in [
            (&b"pencil"[..], &b"pencil"[..]),
            // The examples of RFC 4013: a soft hyphen is nothing, a Roman nine is two letters.
            ("I\u{ad}X".as_bytes(), b"IX"),
            ("\u{2168}".as_bytes(), b"IX"),
            // Refused, and so taken as they are: a control character, the start of a mixture of
            // directions, bytes that are no text, nothing but what maps to nothing.
            (b"\x07", b"\x07"),
            ("\u{627}1".as_bytes(), "\u{627}1".as_bytes()),
            (b"\xff\xfe", b"\xff\xfe"),
            ("\u{ad}".as_bytes(), "\u{ad}".as_bytes()),
        ] {
            assert_eq!(Derivation::new(typed, b"s", 1).password.expose(), prepared, "{typed:?}");
        }
    }

    #[test]
    fn results_are_kept_and_forgotten() {
        let mut derived = Derived::default();
        assert_eq!(derived.get(&derivation("a")), None);
        let result = derivation("a").run();
        derived.keep(derivation("a"), result);
        assert_eq!(derived.get(&derivation("a")), Some(result));
        assert_eq!(derived.get(&derivation("b")), None);
        for number in 0..2 * MAX_KEPT.get() {
            derived.keep(derivation(&number.to_string()), result);
        }
        assert_eq!(derived.kept.len(), MAX_KEPT.get());
        derived.clear();
        assert_eq!(derived.kept.len(), 0);
    }

    /// Reliability 17: no secret is shown.
    #[test]
    fn nothing_secret_is_shown() {
        let shown = format!("{:?} {:?}", derivation("hush"), derivation("hush").run());
        assert!(!shown.contains("hush") && shown.contains("ScramKeys(****)"), "{shown}");
    }
}
