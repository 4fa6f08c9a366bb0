//! The statement without a name, which a server has one of, whoever prepared it.
//!
//! A Parse or a Close of it may be skipped because of an error before, so what the server has is
//! told by the replies alone. As long as those are under way, only what stands in the same round as
//! the last change can rely on it: that is skipped with it.

use super::{Action, Pipeline, ends_round};
use crate::session::prepared::Statement;
use crate::wire::frontend::Request;
use std::sync::Arc;

/// Whose statement it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Holder {
    /// There is none.
    #[default]
    Nobody,
    /// The linked client's.
    Linked,
    /// That of a client that was linked before, or nobody knows whose.
    Other,
}

/// What is known of a server's unnamed statement, and of that of its client.
#[derive(Debug, Default)]
pub struct Unnamed {
    pub(super) holder: Holder,
    /// What the linked client's is, if that was kept; the server need not have it.
    pub(super) kept: Option<Arc<Statement>>,
    /// The simple query that is being answered has failed.
    pub(super) has_failed: bool,
}

/// What a message about the unnamed statement meets at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// The client's own statement, or none.
    Own,
    /// Not the client's own, which is this if it was kept.
    Foreign(Option<Arc<Statement>>),
    /// That depends on replies that are under way.
    Unsure,
}

impl Unnamed {
    /// A client is linked that brings this along. `stayed`: nobody was linked since it went.
    pub fn begin(&mut self, kept: Option<Arc<Statement>>, stayed: bool) {
        if !stayed && self.holder == Holder::Linked {
            self.holder = Holder::Other;
        }
        self.kept = kept;
    }

    /// The client goes and takes this along.
    pub fn end(&mut self) -> Option<Arc<Statement>> {
        self.kept.take()
    }

    /// The server is sent a query of ours ahead of everything: PostgreSQL forgets the unnamed
    /// statement with every simple query.
    pub fn on_own_query(&mut self) {
        self.holder = Holder::Nobody;
    }

    /// The server is told to prepare one of ours, unknown to the pipeline.
    pub fn on_own_parse(&mut self) {
        self.holder = Holder::Other;
    }

    /// The client has sent a simple query that only we have seen.
    pub fn on_unseen_query(&mut self) {
        self.kept = None;
        if self.holder == Holder::Linked {
            self.holder = Holder::Other;
        }
    }

    /// A simple query has been answered.
    pub(super) fn on_query(&mut self, action: Action) {
        self.holder = match std::mem::take(&mut self.has_failed) {
            // Perhaps it was never looked at: `statement_timeout` goes off between messages, too.
            true => Holder::Other,
            false => Holder::Nobody,
        };
        if action == Action::Forward {
            self.kept = None;
        }
    }

    /// A Parse of this, or a Close, has succeeded.
    pub(super) fn on_done(
        &mut self,
        request: Request,
        action: Action,
        statement: Option<Arc<Statement>>,
    ) {
        self.holder = match request {
            Request::Parse => Holder::Linked,
            _ => Holder::Nobody,
        };
        if action == Action::Forward {
            self.kept = statement;
        }
    }

    /// A Parse has failed: the old statement was dropped before, if it was looked at at all.
    pub(super) fn on_failed(&mut self, action: Action) {
        self.has_failed = true;
        self.on_query(action);
    }
}

impl Pipeline {
    /// The request that was noted last is a Parse, or a Close, of the unnamed statement. `kept`: what
    /// it prepares, if that may be wanted on another server.
    pub fn note_unnamed(&mut self, kept: Option<Arc<Statement>>) {
        if let Some(last) = self.owed.back_mut() {
            (last.is_of_unnamed, last.statement) = (true, kept);
        }
    }

    /// What a message about the unnamed statement would meet now.
    pub fn meets_unnamed(&self) -> Meeting {
        // In a COPY there is nothing to rely on, and the data that ends it may stand behind.
        if self.awaits_copy_end() {
            return Meeting::Own;
        }
        let mut has_round_end = false;
        for owed in self.owed.iter().rev() {
            let is_asked = owed.request == Request::Query && owed.action == Action::Forward;
            // A query may be thrown away unseen, and what another has left is there still.
            let is_unsure = has_round_end || is_asked && self.unnamed.holder == Holder::Other;
            if owed.is_of_unnamed || is_asked {
                return if is_unsure { Meeting::Unsure } else { Meeting::Own };
            }
            has_round_end |= ends_round(owed.request);
        }
        match (self.unnamed.holder, &self.unnamed.kept) {
            (Holder::Linked, _) | (Holder::Nobody, None) => Meeting::Own,
            (Holder::Nobody | Holder::Other, kept) => Meeting::Foreign(kept.clone()),
        }
    }
}
