//! What a server will have prepared when it has dealt with all that is under way, as far as anybody
//! can tell.

use super::owed::Owed;
use super::{Action, Pipeline};
use crate::session::prepared::Statement;
use crate::wire::frontend::Request;

/// What was asked for behind a command that forgot all prepared statements.
#[derive(Debug, Default)]
pub struct Behind {
    /// Numbers of the statements that the server will have all the same.
    pub prepared: Vec<u64>,
    /// The client's namings that came later.
    pub serials: Vec<u32>,
}

impl Pipeline {
    /// Whether nobody can tell yet if a statement will be there for the next message. Its Parse or our
    /// Close is under way, and a Sync behind it: if something fails ahead of that, it is skipped, and
    /// what comes behind the Sync is not. It will be known when that Sync has been answered, at the
    /// latest.
    pub fn is_unsure_of(&self, statement: &Statement) -> bool {
        if self.parses == 0 {
            return false;
        }
        let mut has_sync = false;
        for owed in self.owed.iter().rev() {
            has_sync |= owed.request == Request::Sync;
            let is_it = owed.named().is_some_and(|other| other.id() == statement.id());
            if is_it && (owed.prepares() || owed.request == Request::Close) {
                return has_sync;
            }
        }
        false
    }

    /// The same of a naming by the client: an error may keep its name from meaning anything, and a
    /// Sync stands behind that.
    pub fn is_unsure_of_naming(&self, serial: u32) -> bool {
        let is_it = |owed: &Owed| owed.serial == serial && owed.named().is_some();
        let place = self.owed.iter().position(is_it);
        let mut behind = self.owed.range(place.unwrap_or(self.owed.len())..);
        behind.any(|owed| owed.request == Request::Sync)
    }

    /// Whether what was passed on last is CopyData: no request was noted since.
    pub fn is_in_copy_data(&self) -> bool {
        self.data_sent
    }

    /// The request that was noted last may be a command that forgets all prepared statements.
    pub fn note_forgetting(&mut self) {
        self.forgetting = true;
    }

    /// The batch that is open may run such a command.
    pub fn note_forgetting_batch(&mut self) {
        self.forgetting_batch = true;
    }

    /// Whether such a batch has been sent and not been answered.
    pub fn is_unsure_of_all(&self) -> bool {
        self.forgetters > 0
    }

    /// Whether such a command is under way: what is on the server will be known when it has been
    /// answered.
    pub fn is_forgetting(&self) -> bool {
        self.forgetting && !self.owed.is_empty()
    }

    /// What was asked for behind the command that is being answered now.
    pub fn behind(&mut self) -> Behind {
        let mut behind = Behind::default();
        for owed in &mut self.owed {
            let Some(id) = owed.named().map(|statement| statement.id()) else {
                continue;
            };
            match (owed.request, owed.action) {
                // If it is skipped, what it closes is gone all the same.
                (Request::Close, _) if !behind.prepared.contains(&id) => owed.statement = None,
                (Request::Close, _) => behind.prepared.retain(|other| *other != id),
                (_, Action::MakeUp) => behind.serials.push(owed.serial),
                _ => {
                    behind.prepared.push(id);
                    behind.serials.push(owed.serial);
                }
            }
        }
        behind
    }
}
