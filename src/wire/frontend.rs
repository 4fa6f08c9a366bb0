//! What a client's messages ask of us.

use crate::wire::frame::{RelayTags, relay_tags};

/// Messages of a linked client that need no look and get no reply of their own.
pub const RELAY: RelayTags = relay_tags(b"dH");

/// A message of a client that has logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Query, FunctionCall, Parse, Bind, Describe, Close, Execute, Sync: something is owed for it.
    Request(Request),
    /// Flush: needs a server, and nothing is owed for it.
    Flush,
    /// CopyData: goes to the linked server, if there is one.
    CopyData,
    /// CopyDone or CopyFail: the client's end of a COPY.
    CopyEnd(Request),
    /// Terminate.
    Terminate,
    /// Anything else.
    Unknown,
}

/// A request for which the server owes a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Request {
    /// A simple query: any number of results, then ReadyForQuery.
    Query,
    /// A function call: its result, then ReadyForQuery.
    FunctionCall,
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// RowDescription or NoData.
    Describe,
    /// CloseComplete.
    Close,
    /// Rows, then CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// ReadyForQuery.
    Sync,
    /// Ends a COPY well.
    CopyDone,
    /// Ends a COPY badly.
    CopyFail,
}

/// Classifies a type byte.
pub fn classify(tag: u8) -> Message {
    match tag {
        b'Q' => Message::Request(Request::Query),
        b'F' => Message::Request(Request::FunctionCall),
        b'P' => Message::Request(Request::Parse),
        b'B' => Message::Request(Request::Bind),
        b'D' => Message::Request(Request::Describe),
        b'C' => Message::Request(Request::Close),
        b'E' => Message::Request(Request::Execute),
        b'S' => Message::Request(Request::Sync),
        b'H' => Message::Flush,
        b'd' => Message::CopyData,
        b'c' => Message::CopyEnd(Request::CopyDone),
        b'f' => Message::CopyEnd(Request::CopyFail),
        b'X' => Message::Terminate,
        _ => Message::Unknown,
    }
}
