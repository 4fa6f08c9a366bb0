//! Hashes, random numbers, and comparing without telling how far two secrets agree.

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2, rand};
use md5::{Digest as _, Md5};
use std::cell::Cell;
use std::num::NonZeroU32;

/// Length of all keys of SCRAM-SHA-256.
pub const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; KEY_BYTES] {
    key(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// HMAC-SHA-256.
pub fn hmac(secret: &[u8], bytes: &[u8]) -> [u8; KEY_BYTES] {
    key(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), bytes).as_ref())
}

/// PBKDF2 with HMAC-SHA-256. Takes milliseconds: see `derivation`. No rounds count as one.
pub fn pbkdf2(password: &[u8], salt: &[u8], iterations: u32) -> [u8; KEY_BYTES] {
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    let mut derived = [0; KEY_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut derived);
    derived
}

fn key(bytes: &[u8]) -> [u8; KEY_BYTES] {
    bytes.try_into().expect("SHA-256 gives 32 bytes")
}

/// MD5 of several pieces, in hexadecimal digits, as PostgreSQL writes it.
pub fn md5_hex(pieces: &[&[u8]]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut md5 = Md5::new();
    pieces.iter().for_each(|piece| md5.update(piece));
    let mut hex = [0; 32];
    for (byte, digits) in md5.finalize().iter().zip(hex.chunks_exact_mut(2)) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
    hex
}

/// Random bytes in store, for each login needs a few and the library takes its time for any number.
struct Stock {
    bytes: [u8; STOCK_BYTES],
    /// So many were given out, and are zero.
    used: usize,
}

const STOCK_BYTES: usize = 4096;

thread_local! {
    static STOCK: Cell<Option<Box<Stock>>> = const { Cell::new(None) };
}

/// Unpredictable bytes, which nobody was given before.
pub fn random<const N: usize>() -> [u8; N] {
    const { assert!(N <= STOCK_BYTES) };
    let stock = STOCK.take();
    let mut stock =
        stock.unwrap_or_else(|| Box::new(Stock { bytes: [0; STOCK_BYTES], used: STOCK_BYTES }));
    if STOCK_BYTES - stock.used < N {
        // The library's generator is seeded by the kernel; it fails only if that cannot be.
        rand::fill(&mut stock.bytes).expect("the kernel gives random bytes");
        stock.used = 0;
    }
    let mut bytes = [0; N];
    let given = &mut stock.bytes[stock.used..stock.used + N];
    bytes.copy_from_slice(given);
    // Who reads our memory later does not find the nonces of others here.
    given.fill(0);
    stock.used += N;
    STOCK.set(Some(stock));
    bytes
}

/// Whether two secrets are equal, in a time that depends on their lengths alone (reliability 17).
pub fn is_equal(one: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn known_values_come_out() {
        assert_eq!(
            hex(&sha256(b"abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hex(&hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&pbkdf2(b"password", b"salt", 2)),
            "ae4d0c95af6b46d32d0adff928f06dd02a303f8ef3c251dfd6e2d85a95474c43"
        );
        assert_eq!(&md5_hex(&[b"a", b"bc"]), b"900150983cd24fb0d6963f7d28e17f72");
        assert!(is_equal(b"a", b"a") && !is_equal(b"a", b"b") && !is_equal(b"a", b"aa"));
    }

    #[test]
    fn no_random_bytes_come_twice() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..2 * STOCK_BYTES / 18 {
            assert!(seen.insert(random::<18>()));
        }
        let other = std::thread::spawn(random::<18>).join().unwrap();
        assert!(seen.insert(other) && seen.insert(random()));
    }
}
