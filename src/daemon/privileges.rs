//! Whose rights we have: the switch to another system user, and the refusal to be root.

use crate::sys::{self, Account};
use std::fmt;
use std::io;

/// Why we cannot have the rights that we are to have. All are fatal.
#[derive(Debug)]
pub enum PrivilegeError {
    /// No user of the system has this name.
    NoSuchUser(String),
    /// We may not become this user.
    NotAllowed(String, io::Error),
    /// The groups of before could not be left.
    Groups(io::Error),
    /// The switch did not last.
    NotSwitched,
    /// Whoever takes us over would own the machine.
    Root,
}

impl fmt::Display for PrivilegeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchUser(user) => write!(f, "could not find user '{user}' to switch to"),
            Self::NotAllowed(user, error) => {
                let why = sys::error_text(error);
                write!(f, "failed to assume identity of user '{user}': {why}")
            }
            Self::Groups(error) => write!(f, "failed to reset groups: {}", sys::error_text(error)),
            Self::NotSwitched => f.write_str("setuid() failed to work"),
            Self::Root => f.write_str("PgBouncer should not run as root"),
        }
    }
}

impl std::error::Error for PrivilegeError {}

/// Looks a user up.
pub fn find(user: &str) -> Result<Account, PrivilegeError> {
    sys::account(user).ok_or_else(|| PrivilegeError::NoSuchUser(user.to_owned()))
}

/// Becomes this user, with the rights of that user's own group and no other.
pub fn assume(user: &str, account: Account) -> Result<(), PrivilegeError> {
    // Images name the user that they run as already; that needs no rights and must not fail.
    if sys::effective_user() == account.uid && account.uid != 0 {
        return Ok(());
    }
    let not_allowed = |error| PrivilegeError::NotAllowed(user.to_owned(), error);
    // Groups first: a user other than root may not change them any more.
    sys::set_groups(account.gid).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => not_allowed(error),
        _ => PrivilegeError::Groups(error),
    })?;
    sys::set_group(account.gid).map_err(not_allowed)?;
    sys::set_user(account.uid).map_err(not_allowed)?;
    match sys::effective_user() == account.uid {
        true => Ok(()),
        false => Err(PrivilegeError::NotSwitched),
    }
}

/// Root is refused, whoever asked for it.
pub fn refuse_root() -> Result<(), PrivilegeError> {
    if sys::is_root() { Err(PrivilegeError::Root) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_known_words() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        let cases = [
            (find("no such user").unwrap_err(), "could not find user 'no such user' to switch to"),
            (
                PrivilegeError::NotAllowed("x".to_owned(), denied()),
                "failed to assume identity of user 'x': Operation not permitted",
            ),
            (PrivilegeError::Groups(denied()), "failed to reset groups: Operation not permitted"),
            (PrivilegeError::NotSwitched, "setuid() failed to work"),
            (PrivilegeError::Root, "PgBouncer should not run as root"),
        ];
        for (error, words) in cases {
            assert_eq!(error.to_string(), words);
        }
    }
}
