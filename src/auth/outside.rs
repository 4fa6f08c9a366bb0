//! Passwords that others know: PAM and LDAP. Asking them takes as long as they like, so it is done
//! on a side thread; this is what goes there and comes back.

use crate::auth::ldap;
use crate::config::Secret;
use std::time::Instant;

/// The service name under which PAM knows us.
pub const PAM_SERVICE: &str = "pgbouncer";

/// "Is this the user's password?"
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The user.
    pub user: String,
    /// What he says is his password. Never empty: directories take an empty one for a wish to be
    /// nobody in particular, and say yes.
    pub password: Secret,
    /// Who is asked.
    pub oracle: Oracle,
    /// When the user's time for his login is over; `None`: never.
    pub until: Option<Instant>,
}

/// Who knows the passwords.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// The system's stack of modules.
    Pam {
        /// Where the user is, as PAM is told: an address, or `unix`.
        remote_host: String,
    },
    /// A directory.
    Ldap(Box<ldap::Options>),
}

impl Oracle {
    /// What a client is told that has failed.
    pub fn refusal(&self) -> &'static str {
        match self {
            Oracle::Pam { .. } => "PAM authentication failed",
            Oracle::Ldap(_) => "LDAP authentication failed",
        }
    }

    /// What a client is told that a build without it cannot help.
    pub fn absence(&self) -> &'static str {
        match self {
            Oracle::Pam { .. } => "pam is not supported by this build",
            Oracle::Ldap(_) => "ldap is not supported by this build",
        }
    }

    /// Whether this build can ask.
    pub fn is_built_in(&self) -> bool {
        match self {
            Oracle::Pam { .. } => HAS_PAM,
            Oracle::Ldap(_) => HAS_LDAP,
        }
    }
}

/// Whether this build has the cargo feature `pam`.
pub const HAS_PAM: bool = cfg!(feature = "pam");
/// Whether this build has the cargo feature `ldap`.
pub const HAS_LDAP: bool = cfg!(feature = "ldap");

/// The answer. `Err`: no, or nobody could tell; why, for the log.
pub type Answer = Result<(), String>;
