//! A client that waits for a server has called off what it waits for.
//!
//! PostgreSQL answers a cancelled query with an error. What no server has seen yet is cancelled by
//! us, with the same words: a simple query gets the error and a ReadyForQuery, a message of the
//! extended protocol the error, and then everything up to the next Sync goes unanswered. The
//! client keeps its connection, and its next message is served as ever.

use crate::session::client::Client;
use crate::session::farewell::Reason;
use crate::wire::frame::Peek;
use crate::wire::frontend::{self, Message, Request};

/// What becomes of a client's messages because it has cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallOff {
    /// Nothing special.
    #[default]
    Nothing,
    /// The first thing that can be cancelled is. Leaves to `Nothing`, `UpToSync`.
    Next,
    /// Everything is ignored up to the next Sync. Leaves to `Nothing`.
    UpToSync,
}

/// What a message gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its header has not come in yet.
    NeedMore,
    /// Nothing: it is ignored. So many bytes.
    Ignored(u64),
    /// The error, and ReadyForQuery.
    Cancelled(u64),
    /// The error. What follows is ignored.
    Failed(u64),
    /// ReadyForQuery.
    Ready(u64),
    /// It is none of those that can be cancelled.
    Served,
    /// The conversation ends.
    Close(Reason),
}

impl Client {
    /// Judges the next message of a client that has called something off.
    pub fn judge_call_off(&self, max_packet_bytes: u32, disable_pqexec: bool) -> Answer {
        let header = match self.inbox.peek(max_packet_bytes) {
            Peek::NeedMore => return Answer::NeedMore,
            Peek::Bad => return Answer::Close(Reason::bad_header(&self.inbox.hex())),
            Peek::Header(header) => header,
        };
        let bytes = header.bytes;
        let is_skipping = self.call_off == CallOff::UpToSync;
        match frontend::classify(header.tag) {
            // Judged, logged and refused as any other.
            Message::Unknown | Message::Terminate => Answer::Served,
            Message::Request(Request::Query) if disable_pqexec => Answer::Served,
            Message::Request(Request::Sync) => Answer::Ready(bytes),
            _ if is_skipping => Answer::Ignored(bytes),
            Message::Flush | Message::CopyData | Message::CopyEnd(_) => Answer::Ignored(bytes),
            Message::Request(Request::Query | Request::FunctionCall) => Answer::Cancelled(bytes),
            Message::Request(_) => Answer::Failed(bytes),
        }
    }
}
