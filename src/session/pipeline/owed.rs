//! One reply that is owed, and what is lost if the request is never carried out.

use super::Action;
use crate::session::prepared::Statement;
use crate::wire::frontend::Request;
use std::sync::Arc;

/// A reply that a server owes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owed {
    pub request: Request,
    pub action: Action,
    /// Which of its client's namings a Parse is.
    pub serial: u32,
    /// What is prepared by a Parse that we know of, or closed by a Close of our own.
    pub statement: Option<Arc<Statement>>,
    /// Whether a Parse or a Close is about the statement without a name.
    pub is_of_unnamed: bool,
    /// A Sync that was sent between CopyData: see `doubt`.
    pub is_suspect: bool,
    /// What ends a batch that may forget all prepared statements.
    pub may_forget: bool,
}

/// Something that an error kept the server from doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A statement is not prepared.
    Parse {
        /// Which.
        statement: Arc<Statement>,
        /// The client's naming, if it was the client who asked for it.
        serial: Option<u32>,
    },
    /// A client's naming, of a statement that was there.
    Naming {
        /// Which.
        serial: u32,
    },
    /// A statement is still there.
    Close {
        /// Which.
        statement: Arc<Statement>,
    },
}

impl Owed {
    pub fn new(request: Request, action: Action) -> Self {
        let (serial, statement) = (0, None);
        let (is_of_unnamed, is_suspect, may_forget) = (false, false, false);
        Self { request, action, serial, statement, is_of_unnamed, is_suspect, may_forget }
    }

    /// Which named statement of ours this is about.
    pub fn named(&self) -> Option<&Arc<Statement>> {
        self.statement.as_ref().filter(|_| !self.is_of_unnamed)
    }

    /// Whether it prepares a named statement that we know of on the server.
    pub fn prepares(&self) -> bool {
        self.request == Request::Parse && self.action != Action::MakeUp && self.named().is_some()
    }

    pub fn lost(self) -> Option<Lost> {
        if self.is_of_unnamed {
            return None;
        }
        let (serial, statement) = (self.serial, self.statement?);
        match (self.request, self.action) {
            (Request::Close, _) => Some(Lost::Close { statement }),
            (_, Action::Forward) => Some(Lost::Parse { statement, serial: Some(serial) }),
            (_, Action::Swallow) => Some(Lost::Parse { statement, serial: None }),
            (_, Action::MakeUp) => Some(Lost::Naming { serial }),
        }
    }
}
