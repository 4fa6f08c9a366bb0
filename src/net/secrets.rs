//! Unpredictable numbers for new clients, fetched from the kernel in batches.

use crate::sys;
use std::io;

const SECRET_BYTES: usize = 8;
const BATCH_BYTES: usize = 4096;

/// A batch, and how much of it is used.
pub struct Secrets {
    batch: Box<[u8; BATCH_BYTES]>,
    used: usize,
}

impl Default for Secrets {
    fn default() -> Self {
        Self { batch: Box::new([0; BATCH_BYTES]), used: BATCH_BYTES }
    }
}

impl Secrets {
    /// Eight bytes that were never given out before.
    pub fn take(&mut self) -> io::Result<[u8; SECRET_BYTES]> {
        if self.used == BATCH_BYTES {
            sys::fill_random(&mut self.batch[..])?;
            self.used = 0;
        }
        let mut secret = [0; SECRET_BYTES];
        let given = &mut self.batch[self.used..self.used + SECRET_BYTES];
        secret.copy_from_slice(given);
        // Who reads our memory later does not find the secrets of living clients here.
        given.fill(0);
        self.used += SECRET_BYTES;
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_secret_comes_twice() {
        let mut secrets = Secrets::default();
        let mut seen = HashSet::new();
        for _ in 0..2 * BATCH_BYTES / SECRET_BYTES {
            assert!(seen.insert(secrets.take().unwrap()));
        }
    }
}
