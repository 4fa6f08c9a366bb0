//! Lines for the journal, when it reads our stderr: sent as it likes them best, with the level and
//! the message apart.

use super::datagrams::Datagrams;
use super::line::{self, Loudness};
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

/// Where the journal listens.
const PLACE: &str = "/run/systemd/journal/socket";

/// Our way to the journal.
#[derive(Debug)]
pub struct Journal {
    datagrams: Datagrams,
}

impl Journal {
    /// `None`: our stderr does not lead to the journal.
    pub fn behind_stderr() -> Option<Self> {
        let stream = env::var("JOURNAL_STREAM").ok()?;
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
        let metadata = stderr.metadata().ok()?;
        (stream == format!("{}:{}", metadata.dev(), metadata.ino())).then_some(())?;
        Some(Self { datagrams: Datagrams::to(PLACE).ok()? })
    }

    /// Sends a line; `false`: it was not taken.
    pub fn write(&self, loudness: Loudness, message: &str) -> bool {
        self.datagrams.send(&entry(loudness, line::cut(message))).is_ok()
    }
}

/// An entry: the message with its length, since it may have several lines.
fn entry(loudness: Loudness, message: &str) -> Vec<u8> {
    let mut entry = format!("PRIORITY={}\nMESSAGE\n", loudness.severity()).into_bytes();
    entry.extend((message.len() as u64).to_le_bytes());
    entry.extend(message.as_bytes());
    entry.push(b'\n');
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_journals_form() {
        let expected = b"PRIORITY=4\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n";
        assert_eq!(entry(Loudness::Warning, "a\nb"), expected);
    }
}
