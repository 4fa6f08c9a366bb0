//! The replies that a server still owes, oldest first.
//!
//! Each request is noted when it is passed on, and settled by the reply that answers it. A server
//! may go back to its pool only when nothing is owed. The rules mirror what PostgreSQL itself does
//! with errors: after an error in an extended query it skips everything up to the next Sync, so
//! those requests are forgotten at once; an error in a simple query is followed by its
//! ReadyForQuery like a success.
//!
//! The end of a COPY is noted whenever something is owed, for a client may send it before the
//! CopyInResponse is here. It is owed no reply: if no COPY takes it, it goes unnoticed.

mod doubt;
mod owed;
mod packing;
mod prospects;
mod unnamed;

pub use doubt::Caution;
pub use owed::Lost;
pub use prospects::Behind;
pub use unnamed::{Meeting, Unnamed};

use crate::session::prepared::Statement;
use crate::wire::backend::Reply;
use crate::wire::frontend::Request;
use doubt::{Doubt, Sweep};
use owed::Owed;
use std::collections::VecDeque;
use std::sync::Arc;

/// So many requests may be under way; then the client has to wait. More than PostgreSQL keeps
/// replies back (8 KiB of at least 5 bytes each) when a client sends neither Sync nor Flush, so
/// that waiting always ends.
const MAX_OWED: usize = 8192;

/// What becomes of the reply to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The client asked, the client gets it.
    Forward,
    /// We asked; the client must not see it.
    Swallow,
    /// The server was not asked: the client gets a reply of our making, in its turn.
    MakeUp,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Pipeline {
    owed: VecDeque<Owed>,
    /// The server awaits CopyData. It ignores every Sync meanwhile.
    copying_in: bool,
    /// An error came, and no Sync was sent since: the server ignores everything up to the next.
    skipping: bool,
    doubt: Doubt,
    /// What was sent last is a part of a batch whose end was not sent.
    is_open: bool,
    /// The list is full, and the server was asked for all answers that it keeps back.
    is_flushed: bool,
    /// CopyData was sent since the last request.
    data_sent: bool,
    /// How many of those that are owed end with a ReadyForQuery.
    rounds: usize,
    /// The newest may be a command that forgets all prepared statements.
    forgetting: bool,
    /// The batch that is open may do so.
    forgetting_batch: bool,
    /// How many of those that are owed end such a batch.
    forgetters: usize,
    /// How many of those that are owed prepare a statement on the server.
    parses: usize,
    /// What the server has as its unnamed statement, as of the last reply.
    pub unnamed: Unnamed,
}

impl Pipeline {
    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Whether the next request has to wait for replies.
    pub fn is_full(&self) -> bool {
        self.owed.len() >= MAX_OWED
    }

    /// Whether a Flush is due because of that. Replies of our making, and ends of a COPY, take room,
    /// and the server knows nothing of them.
    pub fn wants_flush(&mut self) -> bool {
        self.is_full() && !std::mem::replace(&mut self.is_flushed, true)
    }

    /// How many replies are owed.
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    /// How many ReadyForQuery are owed.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// Whether the last request was one that ends with a ReadyForQuery, and the client is not in
    /// the middle of several that belong together.
    pub fn ends_a_round(&self) -> bool {
        let is_ended = self.owed.back().is_some_and(|owed| is_copy_end(owed.request));
        if self.copying_in && (!is_ended || self.wants_sync()) {
            return false;
        }
        let mut requests = self.owed.iter().rev().map(|owed| owed.request);
        let last = requests.find(|request| !is_copy_end(*request));
        last.is_none_or(ends_round)
    }

    /// CopyData was passed on.
    pub fn on_copy_data(&mut self) {
        self.data_sent = true;
        self.note_stray();
    }

    /// Whether the reply that is coming now was asked for by us, as a whole simple query.
    pub fn is_swallowing(&self) -> bool {
        self.owed
            .front()
            .is_some_and(|owed| owed.request == Request::Query && owed.action == Action::Swallow)
    }

    /// Whether the reply that is coming now is to something that we sent ourselves.
    pub fn is_next_ours(&self) -> bool {
        self.owed.front().is_some_and(|owed| owed.action == Action::Swallow)
    }

    /// A request was passed on.
    pub fn expect(&mut self, request: Request, action: Action) {
        let is_behind_data = std::mem::take(&mut self.data_sent);
        let is_suspect = is_behind_data && request == Request::Sync && self.suspects_sync();
        self.push(Owed { is_suspect, ..Owed::new(request, action) });
    }

    /// A Parse of a statement that we know, or a Close of our own, was sent.
    pub fn expect_statement(
        &mut self,
        request: Request,
        action: Action,
        serial: u32,
        statement: Arc<Statement>,
    ) {
        let statement = Some(statement);
        self.push(Owed { serial, statement, ..Owed::new(request, action) });
    }

    fn push(&mut self, mut owed: Owed) {
        self.forgetting = false;
        if ends_round(owed.request) {
            owed.may_forget = std::mem::take(&mut self.forgetting_batch);
        }
        self.is_flushed = false;
        if is_copy_end(owed.request) {
            self.note_stray();
        }
        match owed.request {
            request if is_copy_end(request) && self.owed.is_empty() => return,
            Request::Sync => self.skipping = false,
            _ if self.skipping => return,
            _ => {}
        }
        if !is_copy_end(owed.request) && owed.action != Action::MakeUp {
            self.is_open = !ends_round(owed.request);
        }
        self.rounds += usize::from(ends_round(owed.request));
        self.parses += usize::from(owed.prepares());
        self.doubt.suspects += usize::from(owed.is_suspect);
        self.forgetters += usize::from(owed.may_forget);
        self.owed.push_back(owed);
    }

    /// Whether the server awaits CopyData, and the end of it has not been sent.
    pub fn awaits_copy_end(&self) -> bool {
        self.copying_in && !self.owed.iter().any(|owed| is_copy_end(owed.request))
    }

    /// Whether nothing was sent yet that the server answers with a last ReadyForQuery: it awaits
    /// more.
    pub fn wants_sync(&self) -> bool {
        if self.skipping {
            return true;
        }
        // In a COPY the server ignores every Sync that comes ahead of its end.
        let end = self.owed.iter().position(|owed| is_copy_end(owed.request));
        let first = match (self.copying_in, end) {
            (true, None) => self.owed.len(),
            (true, Some(end)) => end + 1,
            (false, _) => 0,
        };
        let behind = self.owed.range(first..).rev().find(|owed| !is_copy_end(owed.request));
        match behind.map(|owed| owed.request) {
            Some(Request::Sync | Request::Query | Request::FunctionCall) => false,
            Some(_) => true,
            None => !(self.copying_in && self.oldest() == Some(Request::Query)),
        }
    }

    /// Whether the client is in the middle of several that belong together.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether an error makes the server ignore what is sent now.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// A reply came that may answer the oldest request; what becomes of it.
    pub fn settle(&mut self, reply: Reply) -> Action {
        if reply == Reply::Command && self.copying_in {
            self.copying_in = false;
            // An Execute is settled together with the COPY, and what is behind that is not.
            if self.settle_copy() {
                self.drop_strays();
                return Action::Forward;
            }
        }
        let answered = match reply {
            Reply::Parse => Request::Parse,
            Reply::Bind => Request::Bind,
            Reply::Close => Request::Close,
            Reply::Describe => Request::Describe,
            Reply::Command | Reply::Execute => Request::Execute,
        };
        if self.oldest() != Some(answered) {
            self.drop_strays();
            return Action::Forward;
        }
        let settled = self.owed.pop_front();
        self.drop_strays();
        settled.map_or(Action::Forward, |owed| {
            self.parses -= usize::from(owed.prepares());
            if owed.is_of_unnamed {
                self.unnamed.on_done(owed.request, owed.action, owed.statement);
            }
            owed.action
        })
    }

    /// Whether the reply that is coming now is simply passed on: nothing of ours is involved,
    /// neither with it nor behind it, and no COPY.
    #[inline]
    pub fn is_plain(&self) -> bool {
        // What stands behind the end of a COPY that there was not may be ours all the same.
        let is_plain = |owed: Option<&Owed>| {
            owed.is_none_or(|owed| owed.action == Action::Forward && !is_copy_end(owed.request))
        };
        !self.copying_in
            && self.doubt.open.is_none()
            && is_plain(self.owed.front())
            && is_plain(self.owed.get(1))
    }

    /// Whether the reply that is due now is one that we have to make up.
    #[inline]
    pub fn owes_made_up(&self) -> bool {
        self.owed.front().is_some_and(|owed| owed.action == Action::MakeUp)
    }

    /// The next reply that we have to make up, now that all before it have been passed on.
    pub fn next_made_up(&mut self) -> Option<Request> {
        let made_up = |owed: &mut Owed| owed.action == Action::MakeUp;
        let request = self.owed.pop_front_if(made_up).map(|owed| owed.request);
        self.rounds -= usize::from(request.is_some_and(ends_round));
        self.drop_strays();
        request
    }

    /// The server awaits CopyData from now on. Whether the client has yet to send the end of it.
    pub fn on_copy_in(&mut self) -> bool {
        self.copying_in = true;
        !self.owed.iter().any(|owed| is_copy_end(owed.request))
    }

    /// An ErrorResponse came. What it kept the server from doing.
    pub fn on_error(&mut self) -> Vec<Lost> {
        if self.copying_in {
            self.copying_in = false;
            self.unnamed.has_failed = self.oldest() == Some(Request::Query);
            return self.on_copy_failed();
        }
        self.on_error_with_stray();
        match self.oldest() {
            // Nothing that we ask about can fail: this is the server's last word.
            _ if self.doubt.open.is_some() || self.doubt.sweep == Sweep::Asked => Vec::new(),
            // All has been answered, and then a Flush failed: the time for the statement was up.
            None => {
                self.skipping = self.is_open;
                Vec::new()
            }
            Some(Request::Query) => {
                self.unnamed.has_failed = true;
                Vec::new()
            }
            Some(Request::FunctionCall | Request::Sync) => Vec::new(),
            Some(_) => self.skip_to_sync(true),
        }
    }

    /// A ReadyForQuery came.
    pub fn on_ready_for_query(&mut self) -> Action {
        self.skipping = false;
        let action = match (self.oldest(), &mut self.doubt.open) {
            (oldest, Some(open)) if oldest != Some(Request::Query) => {
                open.rounds += 1;
                return Action::Swallow;
            }
            (Some(Request::Query | Request::FunctionCall | Request::Sync), _) => {
                self.rounds -= 1;
                self.owed.pop_front().map_or(Action::Forward, |owed| {
                    self.doubt.suspects -= usize::from(owed.is_suspect);
                    self.forgetters -= usize::from(owed.may_forget);
                    let is_ours = (owed.request, owed.action) == (Request::Sync, Action::Swallow);
                    if is_ours && self.doubt.sweep == Sweep::Asked {
                        self.doubt.sweep = Sweep::Answered;
                    }
                    if owed.request == Request::Query {
                        self.unnamed.on_query(owed.action);
                    }
                    owed.action
                })
            }
            _ => Action::Forward,
        };
        self.drop_strays();
        self.doubt.has_stray &= self.is_open || !self.owed.is_empty();
        action
    }

    fn oldest(&self) -> Option<Request> {
        self.owed.front().map(|owed| owed.request)
    }

    /// A COPY has succeeded: what was noted up to the client's end of it is settled, a Sync among
    /// it included, since the server ignored that. A simple query stays: its ReadyForQuery is still
    /// to come. Whether an Execute was settled with it.
    fn settle_copy(&mut self) -> bool {
        let first = usize::from(self.oldest() == Some(Request::Query));
        match self.owed.iter().position(|owed| owed.request == Request::CopyDone) {
            Some(last) => {
                let is_extended = self.oldest() == Some(Request::Execute);
                self.owed.drain(first..=last);
                self.count();
                is_extended
            }
            None => false,
        }
    }

    /// Ends of a COPY that there was not: the server has ignored them.
    fn drop_strays(&mut self) {
        while !self.copying_in && self.oldest().is_some_and(is_copy_end) {
            self.owed.pop_front();
        }
    }

    /// The server ignores everything up to the next Sync. `failed`: the oldest request is what
    /// failed.
    fn skip_to_sync(&mut self, failed: bool) -> Vec<Lost> {
        if let Some(oldest) = self.owed.front().filter(|owed| failed && owed.is_of_unnamed) {
            self.unnamed.on_failed(oldest.action);
        }
        let sync = self.owed.iter().position(|owed| owed.request == Request::Sync);
        self.skipping = sync.is_none();
        let skipped = self.owed.drain(..sync.unwrap_or(self.owed.len()));
        let lost = skipped.filter_map(Owed::lost).collect();
        self.count();
        lost
    }

    /// Several have gone at once.
    fn count(&mut self) {
        self.rounds = self.owed.iter().filter(|owed| ends_round(owed.request)).count();
        self.parses = self.owed.iter().filter(|owed| owed.prepares()).count();
        self.doubt.suspects = self.owed.iter().filter(|owed| owed.is_suspect).count();
        self.forgetters = self.owed.iter().filter(|owed| owed.may_forget).count();
    }
}

/// Whether a ReadyForQuery ends the answer to this.
pub fn ends_round(request: Request) -> bool {
    matches!(request, Request::Query | Request::FunctionCall | Request::Sync)
}

fn is_copy_end(request: Request) -> bool {
    matches!(request, Request::CopyDone | Request::CopyFail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{backend, frontend};

    /// Plays a script: upper case words are request tags from the client (`>`), and reply tags
    /// from the server (`<`). Says how many replies are owed at the end.
    fn play(script: &str) -> usize {
        played(script).len()
    }

    pub(super) fn played(script: &str) -> Pipeline {
        let mut pipeline = Pipeline::default();
        for step in script.split_whitespace() {
            let (side, tag) = (step.as_bytes()[0], step.as_bytes().get(1).copied().unwrap_or(0));
            match side {
                b'?' => pipeline.on_asked(),
                b'>' => match frontend::classify(tag) {
                    frontend::Message::Request(request) | frontend::Message::CopyEnd(request) => {
                        pipeline.expect(request, Action::Forward);
                    }
                    _ if tag == b'd' => pipeline.on_copy_data(),
                    _ => {}
                },
                _ => match backend::classify(tag) {
                    backend::Message::Reply(Reply::Close) if pipeline.on_told().is_some() => {}
                    backend::Message::Reply(reply) => {
                        pipeline.settle(reply);
                    }
                    backend::Message::ReadyForQuery => {
                        pipeline.on_ready_for_query();
                    }
                    backend::Message::Error => {
                        pipeline.on_error();
                    }
                    backend::Message::CopyIn => {
                        pipeline.on_copy_in();
                    }
                    _ => {}
                },
            }
        }
        pipeline
    }

    /// What has to be sent for a client that has gone.
    #[test]
    fn who_takes_over_knows_what_the_server_waits_for() {
        for (awaits_end, wants_sync, script) in [
            (false, true, ""),
            (false, false, ">Q"),
            (false, false, ">F"),
            (false, false, ">P >B >E >S"),
            (false, true, ">P"),
            (false, true, ">P >S >B"),
            (false, true, ">P >B >E <1 <2 <D"),
            (false, false, ">P >B >E >Q"),
            (false, true, ">P <E"),
            (false, true, ">P <E >B >E"),
            (false, false, ">P <E >B >S"),
            // COPY: a Sync ahead of its end is ignored.
            (true, false, ">Q <G"),
            (true, false, ">Q <G >d >d"),
            (true, true, ">P >B >E <1 <2 <G"),
            (true, true, ">P >B >E >S <1 <2 <G >d"),
            (false, false, ">Q <G >d >c"),
            (false, false, ">Q >d >c <G"),
            (false, true, ">P >B >E <1 <2 <G >d >f"),
            (false, true, ">P >B >E >S <1 <2 <G >d >c"),
            (false, false, ">P >B >E >S <1 <2 <G >d >c >S"),
            (false, false, ">Q <G >d >c >Q"),
        ] {
            let pipeline = played(script);
            assert_eq!(pipeline.awaits_copy_end(), awaits_end, "{script}");
            assert_eq!(pipeline.wants_sync(), wants_sync, "{script}");
        }
    }

    #[test]
    fn nothing_is_owed_at_the_right_ready_for_query() {
        for (owed, script) in [
            (1, ">Q"),
            (1, ">Q <T <D <C"),
            (0, ">Q <T <D <C <Z"),
            (0, ">Q <C <T <D <C <Z"),
            (0, ">Q <E <Z"),
            (1, ">Q >Q <C <Z"),
            (1, ">Q >Q <E <Z"),
            (0, ">F <V <Z"),
            (1, ">P >B >D >E >S <1 <2 <T <D <C"),
            (0, ">P >B >D >E >S <1 <2 <T <D <C <Z"),
            (0, ">P >B >E >S <1 <2 <s <Z"),
            (0, ">C >S <3 <Z"),
            // Errors skip to the Sync, wherever it is.
            (0, ">P >B >E >S <E <Z"),
            (1, ">P >B >E >S <E"),
            (0, ">P >B >E <E >B >E"),
            (1, ">P >B >E <E >B >E >S"),
            (0, ">P >B >E <E >B >Q >S <Z"),
            (1, ">P >B >E >Q >S >Q <E <Z"),
            (0, ">P >B >E >Q >S >Q <E <Z <T <D <C <Z"),
            (0, ">P >B >E >Q >S <1 <2 <D <C <T <D <C <Z <Z"),
            (2, ">P >S >P >S <E <Z"),
            (0, ">P >S >P >S <E <Z <1 <Z"),
            // The commit at Sync fails.
            (0, ">P >B >E >S <1 <2 <C <E <Z"),
            // Only a Sync; two of them.
            (0, ">S <Z"),
            (1, ">S >S <Z"),
        ] {
            assert_eq!(play(script), owed, "{script}");
        }
    }

    #[test]
    fn copy_settles_what_the_server_ignored() {
        for (owed, script) in [
            (0, ">Q <G >d >c <C <Z"),
            (0, ">Q <G >d >f <E <Z"),
            // The server fails first; the client's end comes late.
            (0, ">Q <G >d <E <Z >d >c"),
            (0, ">Q <G >d >c <E <Z"),
            // Extended: a Sync before the CopyInResponse is ignored by the server.
            (0, ">P >B >E >S <1 <2 <G >d >c >S <C <Z"),
            (0, ">P >B >E <1 <2 <G >d >c >S <C <Z"),
            (0, ">P >B >E <1 <2 <G >d <E >d >c >S <Z"),
            (0, ">P >B >E >S <1 <2 <G >d <E ? <Z <3 <Z >d >c >S <Z"),
            (0, ">P >B >E >S <1 <2 <G >d >f >S <E <Z"),
            // A simple query behind a COPY keeps its own ReadyForQuery.
            (1, ">Q <G >d >c >Q <C <Z"),
            (1, ">Q <G >d >c >Q <E <Z"),
            (0, ">Q <H <d <c <C <Z"),
            // Everything was sent before the CopyInResponse came.
            (1, ">Q >d >c >Q <G <C <Z"),
            (1, ">Q >d >f >Q <G <E <Z"),
            (0, ">Q >d >c >Q <G <C <Z <T <D <C <Z"),
            (0, ">P >B >E >S >d >c >S <1 <2 <G <C <Z"),
            (1, ">P >B >E >d >c >S >Q <1 <2 <G <C <Z"),
            (1, ">P >B >E >d >c >S >Q <1 <2 <G <E <Z"),
            // Two COPYs in one query.
            (0, ">Q >d >c >d >c <G <C <G <C <Z"),
            // The COPY fails before it reads the next query.
            (1, ">Q >Q <G <E <Z"),
            // It fails before it reads what cannot stand in a COPY.
            (2, ">Q >d >Q >d >c <G <E <Z"),
            (0, ">Q >d >Q >d >c <G <E <Z <T <D <C <Z"),
            (2, ">P >B >E >d >P >S >d >c <1 <2 <G <E"),
            (0, ">P >B >E >d >P >S >d >c <1 <2 <G <E <Z"),
            // A portal is executed again after its COPY, which is an error.
            (0, ">P >B >E >d >c >E >Q >S <1 <2 <G <C <E <Z"),
            (1, ">P >B >E >d >c >E >Q >S >Q <1 <2 <G <C <E <Z"),
            // No COPY at all.
            (0, ">Q >c >f <C <Z"),
            (1, ">Q >c >Q <C <Z"),
            (0, ">P >c >S <1 <Z"),
            // A second end, for which there is no COPY left.
            (0, ">P >B >E >c >c >S <1 <2 <G <C <Z"),
        ] {
            assert_eq!(play(script), owed, "{script}");
        }
    }

    #[test]
    fn skipping_never_fills_the_list() {
        let mut pipeline = Pipeline::default();
        pipeline.expect(Request::Parse, Action::Forward);
        pipeline.on_error();
        for _ in 0..3 * MAX_OWED {
            pipeline.expect(Request::Bind, Action::Forward);
        }
        assert!(pipeline.is_empty());
        pipeline.expect(Request::Sync, Action::Forward);
        assert_eq!(pipeline.on_ready_for_query(), Action::Forward);
    }

    #[test]
    fn our_own_query_is_swallowed_as_a_whole() {
        let mut pipeline = Pipeline::default();
        pipeline.expect(Request::Query, Action::Swallow);
        pipeline.expect(Request::Query, Action::Forward);
        assert!(pipeline.is_swallowing());
        pipeline.settle(Reply::Command);
        assert!(pipeline.is_swallowing());
        assert_eq!(pipeline.on_ready_for_query(), Action::Swallow);
        assert!(!pipeline.is_swallowing());
        assert_eq!(pipeline.on_ready_for_query(), Action::Forward);
        assert!(pipeline.is_empty());
    }
}
