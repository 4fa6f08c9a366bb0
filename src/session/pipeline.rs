//! The replies that a server still owes, oldest first.
//!
//! Each request is noted when it is passed on, and settled by the reply that answers it. A server
//! may go back to its pool only when nothing is owed. The rules mirror what PostgreSQL itself does
//! with errors: after an error in an extended query it skips everything up to the next Sync, so
//! those requests are forgotten at once; an error in a simple query is followed by its
//! ReadyForQuery like a success.

use crate::wire::backend::Reply;
use crate::wire::frontend::Request;
use std::collections::VecDeque;

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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owed {
    request: Request,
    action: Action,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Pipeline {
    owed: VecDeque<Owed>,
    /// The server awaits CopyData. It ignores every Sync meanwhile.
    copying_in: bool,
    /// An error came, and no Sync was sent since: the server ignores everything up to the next.
    skipping: bool,
    /// A COPY failed with requests behind it of which nobody knows whether the server read them
    /// before its failure, and ignored them, or after it.
    in_doubt: bool,
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

    /// How many replies are owed.
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    /// Whether it may owe more than is noted here: then it must not serve another client.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Whether the server awaits CopyData.
    pub fn is_copying_in(&self) -> bool {
        self.copying_in
    }

    /// Whether the reply that is coming now was asked for by us, as a whole simple query.
    pub fn is_swallowing(&self) -> bool {
        self.owed.front() == Some(&Owed { request: Request::Query, action: Action::Swallow })
    }

    /// A request was passed on.
    pub fn expect(&mut self, request: Request, action: Action) {
        match request {
            // It ends a COPY that is under way, or one that a request before it may yet begin: not
            // every client waits for CopyInResponse.
            Request::CopyDone | Request::CopyFail if self.owed.is_empty() => return,
            Request::Sync => self.skipping = false,
            _ if self.skipping => return,
            _ => {}
        }
        self.owed.push_back(Owed { request, action });
    }

    /// A reply came that may answer the oldest request.
    pub fn settle(&mut self, reply: Reply) {
        if reply == Reply::Command && self.copying_in {
            self.copying_in = false;
            self.drop_copy(|request| request == Request::CopyDone);
        }
        let answered = match reply {
            Reply::Parse => Request::Parse,
            Reply::Bind => Request::Bind,
            Reply::Close => Request::Close,
            Reply::Describe => Request::Describe,
            Reply::Command | Reply::Execute => Request::Execute,
        };
        if self.oldest() == Some(answered) {
            self.owed.pop_front();
        }
        self.forget_idle_ends();
    }

    /// The server awaits CopyData from now on.
    pub fn on_copy_in(&mut self) {
        self.copying_in = true;
    }

    /// An ErrorResponse came.
    pub fn on_error(&mut self) {
        if self.copying_in {
            self.copying_in = false;
            let extended = self.oldest() == Some(Request::Execute);
            let is_end = |request| matches!(request, Request::CopyDone | Request::CopyFail);
            let next = self.owed.get(1).map(|owed| owed.request);
            self.in_doubt |= next.is_some_and(|request| !is_end(request));
            self.drop_copy(is_end);
            if extended {
                self.skip_to_sync();
            }
            return;
        }
        match self.oldest() {
            None | Some(Request::Query | Request::FunctionCall | Request::Sync) => {}
            Some(_) => self.skip_to_sync(),
        }
    }

    /// A ReadyForQuery came.
    pub fn on_ready_for_query(&mut self) -> Action {
        self.skipping = false;
        match self.oldest() {
            Some(Request::Query | Request::FunctionCall | Request::Sync) => {
                let settled = self.owed.pop_front();
                self.forget_idle_ends();
                settled.map_or(Action::Forward, |owed| owed.action)
            }
            _ => Action::Forward,
        }
    }

    /// Ends of a COPY that has not come about: the server ignores them.
    fn forget_idle_ends(&mut self) {
        while let Some(Request::CopyDone | Request::CopyFail) = self.oldest() {
            self.owed.pop_front();
        }
    }

    fn oldest(&self) -> Option<Request> {
        self.owed.front().map(|owed| owed.request)
    }

    /// A COPY is over: what was noted up to the client's end of it is settled (all, if that has
    /// not been sent), a Sync among it included, since the server ignored that. A simple query
    /// stays: its ReadyForQuery is still to come.
    fn drop_copy(&mut self, is_end: impl Fn(Request) -> bool) {
        let first = usize::from(self.oldest() == Some(Request::Query));
        let last = self.owed.iter().position(|owed| is_end(owed.request));
        let end = last.map_or(self.owed.len(), |last| last + 1);
        self.owed.drain(first.min(end)..end);
    }

    fn skip_to_sync(&mut self) {
        let sync = self.owed.iter().position(|owed| owed.request == Request::Sync);
        self.skipping = sync.is_none();
        self.owed.drain(..sync.unwrap_or(self.owed.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{backend, frontend};

    /// Plays a script: upper case words are request tags from the client (`>`), and reply tags
    /// from the server (`<`). Says how many replies are owed at the end.
    fn play(script: &str) -> usize {
        let mut pipeline = Pipeline::default();
        for step in script.split_whitespace() {
            let (side, tag) = (step.as_bytes()[0], step.as_bytes()[1]);
            match side {
                b'>' => match frontend::classify(tag) {
                    frontend::Message::Request(request) | frontend::Message::CopyEnd(request) => {
                        pipeline.expect(request, Action::Forward);
                    }
                    _ => {}
                },
                _ => match backend::classify(tag) {
                    backend::Message::Reply(reply) => pipeline.settle(reply),
                    backend::Message::ReadyForQuery => {
                        pipeline.on_ready_for_query();
                    }
                    backend::Message::Error => pipeline.on_error(),
                    backend::Message::CopyIn => pipeline.on_copy_in(),
                    _ => {}
                },
            }
        }
        pipeline.len()
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
            (0, ">P >B >E >S <1 <2 <G >d <E >d >c >S <Z"),
            (0, ">P >B >E >S <1 <2 <G >d >f >S <E <Z"),
            // The end comes before the consent, and something else behind it.
            (1, ">Q >d >c >Q <G <C <Z"),
            (0, ">Q >d >c >Q <G <C <Z <C <Z"),
            (1, ">Q >d >f >Q <G <E <Z"),
            (1, ">Q >d >c >Q <E <Z"),
            (1, ">Q >d >c >Q <C <Z"),
            (1, ">P >B >E >d >c >S >Q <1 <2 <G <C <Z"),
            (1, ">P >B >E >d >c >S >Q <1 <2 <C <Z"),
            (0, ">Q >c >c >f <C <Z >c"),
            (0, ">P >B >E >c >c >S <1 <2 <G <C <Z"),
            // A simple query behind a COPY keeps its own ReadyForQuery.
            (1, ">Q <G >d >c >Q <C <Z"),
            (1, ">Q <G >d >c >Q <E <Z"),
            (0, ">Q <H <d <c <C <Z"),
        ] {
            assert_eq!(play(script), owed, "{script}");
        }
    }

    #[test]
    fn what_stands_between_a_failed_copy_and_its_end_leaves_doubt() {
        for (in_doubt, last) in [(false, Request::CopyDone), (true, Request::Sync)] {
            let mut pipeline = Pipeline::default();
            pipeline.expect(Request::Execute, Action::Forward);
            pipeline.expect(last, Action::Forward);
            pipeline.on_copy_in();
            assert!(!pipeline.is_in_doubt());
            pipeline.on_error();
            assert_eq!(pipeline.is_in_doubt(), in_doubt);
            assert!(pipeline.is_empty());
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
