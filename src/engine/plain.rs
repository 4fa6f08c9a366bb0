//! Messages of a client that are passed on as they are: nearly all. They are judged where they lie,
//! and leave as one run. What needs a closer look, or has not come in as a whole, is left to
//! [`Client::judge`], which decides the same with more patience.

use crate::engine::statements::Tools;
use crate::engine::unnamed;
use crate::session::client::{Client, Rules};
use crate::session::pipeline::{Action, Meeting, ends_round};
use crate::session::relay;
use crate::session::server::{Activity, Server, Turn};
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::frontend::{self, Message, Request};

/// What a message that needs no look has to do with the unnamed statement.
enum Touch {
    Nothing,
    /// A Bind or a Describe.
    Uses,
    /// A Parse or a Close.
    Changes,
}

/// `None`: it needs a closer look.
#[inline]
fn touch(request: Request, body: &[u8], rules: Rules) -> Option<Touch> {
    match (request, body) {
        (Request::Query, _) if rules.disable_pqexec => None,
        _ if !rules.tracks_statements => Some(Touch::Nothing),
        (Request::Query, [first, ..]) if frontend::is_harmless(*first) => Some(Touch::Nothing),
        (Request::Query, text) => {
            (frontend::may_forget_statements(text, true) == Some(false)).then_some(Touch::Nothing)
        }
        (Request::Parse, [0, ..]) | (Request::Close, [b'S', 0]) => Some(Touch::Changes),
        (Request::Describe, [b'S', 0]) | (Request::Bind, [0, 0, ..]) => Some(Touch::Uses),
        (Request::Describe | Request::Close, [b'P', ..])
        | (Request::Execute | Request::Sync | Request::FunctionCall, _) => Some(Touch::Nothing),
        _ => None,
    }
}

/// The next message, if it has come in as a whole in one piece and is a request.
#[inline]
fn next_request(bytes: &[u8], rules: Rules) -> Option<(Request, &[u8])> {
    let (tag, body) = frame::whole(bytes, rules.max_packet_bytes)?;
    match frontend::classify(tag) {
        Message::Request(request) => Some((request, body)),
        _ => None,
    }
}

/// Whether a client that has no server says something that needs one, beyond doubt.
#[inline]
pub(super) fn needs_server(client: &Client, rules: Rules) -> bool {
    let next = client.inbox.ring().and_then(|ring| {
        let (request, body) = next_request(ring.stretch(client.inbox.judged()), rules)?;
        touch(request, body, rules)
    });
    next.is_some()
}

/// Passes on all such messages at the front of the inbox. `false`: there is none.
#[inline]
pub(super) fn pass_on(
    client: &mut Client,
    server: &mut Server,
    rules: Rules,
    tools: &mut Tools,
) -> bool {
    let Some(ring) = client.inbox.ring() else {
        return false;
    };
    // What the server ignores, or takes for data, has rules of its own.
    if server.pipeline.is_skipping() || client.is_copying_in() {
        return false;
    }
    let bytes = ring.stretch(client.inbox.judged());
    let mut done = 0;
    while let Some((request, body)) = next_request(&bytes[done..], rules)
        && let Some(touch) = touch(request, body, rules)
        && !server.pipeline.is_full()
    {
        let end = done + HEADER_BYTES + body.len();
        match touch {
            Touch::Uses if server.pipeline.meets_unnamed() != Meeting::Own => break,
            Touch::Nothing | Touch::Uses => server.pipeline.expect(request, Action::Forward),
            Touch::Changes => {
                let kept = unnamed::text_to_keep(request, body, &bytes[end..], tools);
                server.pipeline.expect(request, Action::Forward);
                server.pipeline.note_unnamed(kept);
            }
        }
        done = end;
        if ends_round(request) {
            server.asked = server.asked.saturating_add(1);
            // The others may come first now.
            if rules.turn != Turn::Unlimited {
                break;
            }
        }
    }
    if done == 0 {
        return false;
    }
    tools.counters.request_begins(client, tools.now);
    tools.counters.received_bytes += done as u64;
    server.activity = Activity::Busy;
    relay::stretch(&mut client.inbox, &mut server.egress, done as u64);
    true
}
