//! Life in the background: without terminal, session and parent.

use crate::sys::{self, Side};
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;

/// Why we cannot go there. All are fatal.
#[derive(Debug)]
pub enum BackgroundError {
    /// Nobody could tell what to end.
    NoPidfile,
    /// The stand-in for the standard streams cannot be had.
    Null(io::Error),
    /// There is no room for another process.
    Fork(io::Error),
    /// The session cannot be left.
    Session(io::Error),
}

impl fmt::Display for BackgroundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, error) = match self {
            Self::NoPidfile => return f.write_str("daemon needs pidfile configured"),
            Self::Null(error) => ("could not open /dev/null", error),
            Self::Fork(error) => ("fork failed", error),
            Self::Session(error) => ("setsid failed", error),
        };
        write!(f, "{what}: {}", sys::error_text(error))
    }
}

impl std::error::Error for BackgroundError {}

/// Goes to the background. Whoever is told `Parent` has nothing left to do but leave: the child
/// goes on. Nothing may have been started yet that the child would have to share.
pub fn go(has_pidfile: bool) -> Result<Side, BackgroundError> {
    if !has_pidfile {
        return Err(BackgroundError::NoPidfile);
    }
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(BackgroundError::Null)?;
    sys::redirect_standard_streams(null.as_fd()).map_err(BackgroundError::Null)?;
    if sys::fork().map_err(BackgroundError::Fork)? == Side::Parent {
        return Ok(Side::Parent);
    }
    sys::leave_session().map_err(BackgroundError::Session)?;
    // Only the leader of a session can get a terminal again: the child of the leader cannot.
    sys::fork().map_err(BackgroundError::Fork)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_known_words() {
        let full = || io::Error::from_raw_os_error(libc::EAGAIN);
        let words = "Resource temporarily unavailable";
        let cases = [
            (go(false).unwrap_err(), "daemon needs pidfile configured".to_owned()),
            (BackgroundError::Null(full()), format!("could not open /dev/null: {words}")),
            (BackgroundError::Fork(full()), format!("fork failed: {words}")),
            (BackgroundError::Session(full()), format!("setsid failed: {words}")),
        ];
        for (error, words) in cases {
            assert_eq!(error.to_string(), words);
        }
    }
}
