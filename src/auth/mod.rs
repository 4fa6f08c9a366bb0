//! Who is this: the files that say who may be whom, and how he has to prove it.

pub mod access;
pub mod answer;
pub mod challenge;
pub mod derivation;
pub mod digest;
pub mod hba;
pub mod ident;
pub mod lookup;
pub mod scram;
pub mod scram_client;
pub mod secret;
pub mod tokens;
pub mod userlist;

/// What is to be said of a file that was read. Nothing of it keeps us from starting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Why it could not be read at all.
    pub error: Option<String>,
    /// What was left out of it.
    pub warnings: Vec<String>,
}

impl Notes {
    /// Says it.
    pub fn log(&self) {
        self.error.iter().for_each(|error| log::error!("{error}"));
        self.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    }
}
