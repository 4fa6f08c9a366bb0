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
    /// A Parse.
    Prepares,
    /// A Close.
    Closes,
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
        (Request::Parse, [0, ..]) => Some(Touch::Prepares),
        (Request::Close, [b'S', 0]) => Some(Touch::Closes),
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
    if server.pipeline.needs_care() || client.is_copying_in() {
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
            Touch::Closes => {
                server.pipeline.expect(request, Action::Forward);
                server.pipeline.note_unnamed(None);
            }
            Touch::Prepares => {
                let kept = unnamed::text_to_keep(body, &bytes[end..], tools);
                server.pipeline.expect(request, Action::Forward);
                server.pipeline.note_unnamed(kept);
                if frontend::may_forget_statements(&body[1..], true) == Some(true) {
                    server.pipeline.note_forgetting_batch();
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Key, ServerKey};
    use crate::ring::Rings;
    use crate::session::client::{ClientAddress, State, Verdict};
    use crate::session::params::Tracked;
    use proptest::prelude::*;
    use std::time::Instant;

    fn client_that_says(state: State, bytes: &[u8]) -> Client {
        let (tracked, mut rings) = (Tracked::new(std::iter::empty()), Rings::new(1 << 10));
        let from = ClientAddress::Unix { pid: 0, uid: None };
        let mut client = Client::new(from, [0; 8], tracked.unset(), Instant::now());
        client.state = state;
        client.inbox.room(&mut rings)[0][..bytes.len()].copy_from_slice(bytes);
        client.inbox.filled(bytes.len());
        client
    }

    /// A body that often looks like one of its kind.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let begins: [&[u8]; 10] = [
            b"",
            b"S",
            b"P",
            b"\0",
            b"\0\0",
            b"a\0",
            b"\0a\0",
            b" discard ",
            b"DEALLOCATE a",
            b"select",
        ];
        let begin = prop::sample::select(begins.to_vec());
        let end = prop_oneof![
            Just(Vec::new()),
            Just(vec![0]),
            prop::collection::vec(0u8..3, 0..6),
            prop::collection::vec(any::<u8>(), 0..20)
        ];
        (begin, end).prop_map(|(begin, end)| [begin, &end].concat())
    }

    /// What drivers say all day.
    #[test]
    fn ordinary_conversations_need_no_closer_look() {
        let turn = Turn::Unlimited;
        let (max_packet_bytes, disable_pqexec) = (1000, false);
        let (gives_back, tracks_statements) = (true, true);
        let rules = Rules { max_packet_bytes, disable_pqexec, turn, gives_back, tracks_statements };
        for (request, body) in [
            (Request::Query, &b"SELECT 1\0"[..]),
            (Request::Parse, b"\0SELECT 1\0\0\0"),
            (Request::Bind, b"\0\0\0\0\0\0\0\0"),
            (Request::Describe, b"P\0"),
            (Request::Describe, b"S\0"),
            (Request::Execute, b"\0\0\0\0\0"),
            (Request::Close, b"P\0"),
            (Request::Sync, b""),
        ] {
            assert!(touch(request, body, rules).is_some(), "{request:?}");
        }
        assert!(touch(Request::Bind, b"\0name\0\0\0\0\0\0\0", rules).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Both judge alike: what is passed on here is passed on there, whole.
        #[test]
        fn it_decides_as_judge_does(
            tag in prop::sample::select(b"QPBDCESFHdcfXp".to_vec()),
            body in body(),
            disable_pqexec: bool,
            tracks_statements: bool,
            max_packet_bytes in prop_oneof![Just(20u32), Just(1 << 20)],
        ) {
            let turn = Turn::Unlimited;
            let gives_back = tracks_statements;
            let rules =
                Rules { max_packet_bytes, disable_pqexec, turn, gives_back, tracks_statements };
            let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
            let message = [&[tag][..], &length, &body].concat();
            let idle = client_that_says(State::Idle, &message);
            if needs_server(&idle, rules) {
                prop_assert_eq!(idle.judge(rules), Verdict::NeedServer);
            }
            let server = ServerKey::new(0, 0);
            let linked = client_that_says(State::Active { server, copying_in: false }, &message);
            let passed_on = next_request(&message, rules)
                .filter(|(request, body)| touch(*request, body, rules).is_some())
                .map(|(request, _)| request);
            if let Some(request) = passed_on {
                let bytes = message.len() as u64;
                let expected = Verdict::Relay { bytes, request: Some(request) };
                prop_assert_eq!(linked.judge(rules), expected);
            }
        }
    }
}
