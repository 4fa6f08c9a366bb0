//! Syncs that a COPY may ignore or not.
//!
//! In a COPY from the client PostgreSQL ignores every Sync; once the COPY has failed it answers
//! them. Whether a Sync between CopyData was read before the COPY failed or behind that, only the
//! server knows. So what a client says behind such a Sync waits for the end of the COPY, and if
//! that has failed, we ask: by a Sync of our own, and a Close with an answer that nothing else can
//! bring about.
//!
//! ```text
//! certain ── Sync between CopyData ──▶ suspected ── COPY failed ──▶ open ── told by the Close ──▶ certain
//!                                         └── COPY done, or none: certain
//! ```
//!
//! As long as it is open, each ReadyForQuery is held back. When the Close is answered, the client
//! gets as many as were counted for its own Syncs. If that is none, the server would have ignored
//! all up to the client's next Sync, and we do that in its place, since ours has ended it.

use super::owed::{Lost, Owed};
use super::{Action, Pipeline, is_copy_end};
use crate::wire::frontend::{Message, Request};

/// See the module's page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Doubt {
    /// How many of the Syncs that are owed are suspected.
    pub suspects: usize,
    /// What we have done to have that COPY ended.
    pub prompt: Prompt,
    /// A COPY failed with Syncs on their way.
    pub open: Option<Open>,
    /// A ReadyForQuery may be owed that was not noted, and nobody has asked: for good.
    pub is_left: bool,
    /// Whether we have asked for a last answer, behind all that was not noted.
    pub sweep: Sweep,
    /// A part of a COPY was sent in an open batch, and no COPY had begun.
    pub has_stray: bool,
}

/// How far it is with our last question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sweep {
    #[default]
    NotAsked,
    Asked,
    Answered,
}

/// What we have done to have a COPY ended, of which a Sync is suspected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Prompt {
    #[default]
    Nothing,
    /// The client has ended it, and we have asked for the answer.
    Flushed,
    /// The client speaks of something else, and we have ended it.
    GaveUp,
}

/// A COPY failed with Syncs on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    /// It was one of a simple query: then the server ignores nothing behind it.
    pub is_simple: bool,
    /// Whether our question has been sent.
    pub is_asked: bool,
    /// ReadyForQuery that came since.
    pub rounds: usize,
}

/// What is to be done before a client's next message is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caution {
    /// Nothing.
    Pass,
    /// It has to wait.
    Wait,
    /// It has to wait, and a Flush has to be sent.
    Flush,
    /// It has to wait, and the COPY has to be ended. If the server is in it still, the client is
    /// breaking the protocol.
    EndCopy,
    /// It has to wait, and our question has to be sent.
    Ask,
}

impl Pipeline {
    /// Whether what the client says next needs [`Pipeline::caution`].
    #[inline]
    pub fn is_in_doubt(&self) -> bool {
        self.doubt.suspects > 0 || self.doubt.open.is_some()
    }

    /// Whether a request that comes now is one of those that are not just noted.
    #[inline]
    pub fn needs_care(&self) -> bool {
        self.skipping || self.data_sent || self.is_in_doubt()
    }

    /// Whether a reply might still come although nothing is owed. Such a server serves nobody else.
    pub fn is_uncertain(&self) -> bool {
        self.doubt.is_left || self.doubt.open.is_some()
    }

    /// Whether a Sync that is sent now, behind CopyData, may be one that a COPY ignores.
    pub(super) fn suspects_sync(&mut self) -> bool {
        if self.doubt.suspects == 0 {
            self.doubt.prompt = Prompt::Nothing;
        }
        self.owed.iter().any(|owed| matches!(owed.request, Request::Query | Request::Execute))
    }

    /// What is to be done before the client's next message is passed on, while there is doubt.
    pub fn caution(&self, next: Option<Message>) -> Caution {
        match (self.doubt.open, next) {
            (Some(open), _) if open.is_asked => Caution::Wait,
            (Some(_), _) => Caution::Ask,
            (None, None) => Caution::Wait,
            (None, Some(Message::Terminate | Message::Unknown)) => Caution::Pass,
            (None, Some(message)) => self.caution_ahead(message),
        }
    }

    fn caution_ahead(&self, next: Message) -> Caution {
        let first = self.owed.iter().position(|owed| owed.is_suspect).unwrap_or(0);
        let is_ended = self.owed.range(first..).any(|owed| is_copy_end(owed.request));
        let is_of_copy = matches!(
            next,
            Message::CopyData
                | Message::CopyEnd(_)
                | Message::Flush
                | Message::Request(Request::Sync)
        );
        match self.doubt.prompt {
            _ if is_of_copy && !is_ended => Caution::Pass,
            Prompt::Nothing if is_ended => Caution::Flush,
            Prompt::Nothing => Caution::EndCopy,
            Prompt::Flushed | Prompt::GaveUp => Caution::Wait,
        }
    }

    /// A Flush was sent, so that the end of the COPY will be answered.
    pub fn on_flushed(&mut self) {
        self.doubt.prompt = Prompt::Flushed;
    }

    /// A CopyFail of ours was sent, and a Flush.
    pub fn on_gave_up(&mut self) {
        self.doubt.prompt = Prompt::GaveUp;
        self.push(Owed::new(Request::CopyFail, Action::Swallow));
    }

    /// Whether the error that is coming now may be due to our CopyFail.
    pub fn has_given_up(&self) -> bool {
        self.doubt.suspects > 0 && self.doubt.prompt == Prompt::GaveUp
    }

    /// Our question was sent: a Sync, a Close of a statement that there is not, a Sync.
    pub fn on_asked(&mut self) {
        if let Some(open) = &mut self.doubt.open {
            open.is_asked = true;
        }
        self.skipping = false;
        // The first Sync is counted with the client's: nobody can tell them apart.
        self.owed.push_back(Owed::new(Request::Close, Action::Swallow));
        self.owed.push_back(Owed::new(Request::Sync, Action::Swallow));
        self.count();
    }

    /// A CloseComplete came. If it is the answer to our question, the client is owed what was
    /// counted: whether all up to its next Sync is to be ignored.
    pub fn on_told(&mut self) -> Option<bool> {
        let open = self.doubt.open.filter(|open| open.is_asked)?;
        self.doubt.open = None;
        self.owed.pop_front();
        let counted = open.rounds.saturating_sub(1);
        for _ in 0..counted {
            self.owed.push_front(Owed::new(Request::Sync, Action::MakeUp));
        }
        self.count();
        Some(counted == 0 && !open.is_simple)
    }

    /// Whether our question has to be sent.
    pub fn wants_answer(&self) -> bool {
        self.doubt.open.is_some_and(|open| !open.is_asked)
    }

    /// Whether nobody will ever find out.
    pub fn is_left_in_doubt(&self) -> bool {
        self.doubt.is_left
    }

    /// Whether a last answer has to be asked for, before the server can leave its client: what it says
    /// up to there is the client's.
    pub fn wants_sweep(&self) -> bool {
        self.doubt.is_left && self.doubt.sweep == Sweep::NotAsked
    }

    /// A Close of a statement that there is not was sent, and a Sync.
    pub fn on_swept(&mut self) {
        self.doubt.sweep = Sweep::Asked;
        self.push(Owed::new(Request::Close, Action::Swallow));
        self.push(Owed::new(Request::Sync, Action::Swallow));
    }

    /// A part of a COPY is sent. When `statement_timeout` has gone off between two messages, PostgreSQL
    /// answers the next one with the error; if that is this, with a ReadyForQuery, too, and skips
    /// nothing.
    pub(super) fn note_stray(&mut self) {
        self.doubt.has_stray |= self.is_open && !self.copying_in;
    }

    /// An error came that may be the answer to that: nobody knows what is skipped.
    pub(super) fn on_error_with_stray(&mut self) {
        if std::mem::take(&mut self.doubt.has_stray) {
            self.doubt.is_left = true;
            self.doubt.sweep = Sweep::NotAsked;
        }
    }

    /// Nobody needs to find out, as long as the client keeps the server.
    pub fn leave_open(&mut self) {
        if self.doubt.open.take_if(|open| !open.is_asked).is_some() {
            self.doubt.is_left = true;
        }
    }

    /// Up to where had the server read when it failed? A COPY is ended by its end and by nothing
    /// else: whoever asks for something in the middle of it is thrown out. So the server failed
    /// before it read any other request, and all from there on is in force. Of a Sync that was sent
    /// ahead of all data nobody asks if more is under way: it was ignored, unless the COPY failed
    /// before it read anything.
    pub(super) fn on_copy_failed(&mut self) -> Vec<Lost> {
        let is_simple = self.oldest() == Some(Request::Query);
        let is_sync = |owed: &&Owed| owed.request == Request::Sync;
        let syncs = self.owed.iter().skip(1).take_while(is_sync).count();
        let first = usize::from(is_simple);
        let past = (1 + syncs).min(self.owed.len());
        let ends = self.owed.get(past).is_some_and(|owed| is_copy_end(owed.request));
        let past = past + usize::from(ends);
        if syncs > 0 && past == self.owed.len() {
            self.doubt.open = Some(Open { is_simple, is_asked: false, rounds: 0 });
        } else if syncs > 0 {
            self.doubt.is_left = true;
            self.doubt.sweep = Sweep::NotAsked;
        }
        let skipped = self.owed.drain(first.min(past)..past);
        let mut lost: Vec<Lost> = skipped.filter_map(Owed::lost).collect();
        self.count();
        if !is_simple {
            lost.extend(self.skip_to_sync(false));
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use crate::session::pipeline::tests::played;

    #[test]
    fn who_asks_for_more_behind_a_sync_between_data_has_to_wait() {
        for (doubt, script) in [
            (true, ">E >d >S"),
            (true, ">E >d >S <G"),
            (true, ">Q >d >S <G >d"),
            (true, ">E >d >S >c >d"),
            // The COPY has succeeded.
            (false, ">E <G >d >S >c <C"),
            (false, ">Q <G >d >S >c <C"),
            // There was none.
            (false, ">E >d >S <C <Z"),
            (false, ">E >d >S <E <Z"),
            // Ordinary conversations.
            (false, ">E >S <G >d >c >S"),
            (false, ">E >d >c >S"),
            (false, ">Q >d >c >S"),
            (false, ">d >S"),
            (false, ">S >d >S"),
        ] {
            assert_eq!(played(script).is_in_doubt(), doubt, "{script}");
        }
    }

    /// A trigger may fail a COPY before it reads anything: then a Sync ahead of all data counts.
    #[test]
    fn a_copy_that_fails_with_a_sync_on_its_way_raises_a_question() {
        for (open, left, script) in [
            (true, false, ">E >d >S <G <E"),
            (true, false, ">E >d >S >d >c <G <E"),
            (true, false, ">Q >d >S >d >c <G <E"),
            (true, false, ">E >S <G >d <E"),
            (false, true, ">E >S <G >c >S <E"),
            (false, true, ">Q >S >c >Q <G <E <Z"),
            (false, false, ">E <G >c >S <E <Z"),
            (false, false, ">E >S <G >c >S <C <Z"),
            (false, false, ">E >S <E <Z"),
            (false, false, ">E >d >c >S <G <E"),
        ] {
            let pipeline = played(script);
            assert_eq!(pipeline.doubt.open.is_some(), open, "{script}");
            assert_eq!(pipeline.doubt.is_left, left, "{script}");
        }
    }

    #[test]
    fn the_answer_tells_how_many_syncs_counted() {
        for (made_up, skips, script) in [
            (0, true, ">E >d >S >d <G <E ? <Z <3"),
            (1, false, ">E >d >S >d <G <E ? <Z <Z <3"),
            (1, false, ">E >d >S >d <G <E <Z ? <Z <3"),
            (2, false, ">E >S >d >S >d >c <G <E <Z ? <Z <Z <3"),
            (0, false, ">Q >d >S >d <G <E <Z ? <Z <3"),
            (1, false, ">Q >d >S >d <G <E ? <Z <Z <Z <3"),
        ] {
            let (script, close) = script.rsplit_once(' ').unwrap();
            assert_eq!(close, "<3");
            let mut pipeline = played(script);
            assert!(pipeline.is_uncertain() && pipeline.is_in_doubt(), "{script}");
            assert_eq!(pipeline.on_told(), Some(skips), "{script}");
            assert!(!pipeline.is_uncertain(), "{script}");
            for _ in 0..made_up {
                assert!(pipeline.next_made_up().is_some(), "{script}");
            }
            assert!(pipeline.next_made_up().is_none(), "{script}");
            // Our second Sync.
            assert_eq!(pipeline.rounds(), 1, "{script}");
            assert_eq!(pipeline.on_ready_for_query(), super::Action::Swallow);
            assert!(pipeline.is_empty());
        }
    }
}
