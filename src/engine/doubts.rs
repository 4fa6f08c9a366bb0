//! A Sync between CopyData, of which only the server knows whether it counts: see
//! `session::pipeline::doubt`.

use crate::engine::statements::{self, Tools};
use crate::engine::step::Step;
use crate::ring::{Ring, Rings};
use crate::session::client::{Client, Rules, State};
use crate::session::farewell::Reason;
use crate::session::inbox::Rest;
use crate::session::pipeline::Caution;
use crate::session::relay;
use crate::session::server::{Activity, Server};
use crate::wire::backend::ErrorFields;
use crate::wire::emit;
use crate::wire::frame::{HEADER_BYTES, Peek};
use crate::wire::frontend::{self, Message, Request};
use crate::wire::sqlstate::PROTOCOL_VIOLATION;

/// What we say for a client that has not ended its COPY. Known again in PostgreSQL's answer.
const GIVEN_UP: &str = "the client went on to something else in the middle of COPY";
/// Nobody has a statement of this name.
const NO_STATEMENT: &[u8] = b"ringbouncer_no_statement";
/// All of our words here are shorter.
const WORDS_BYTES: usize = 128;

/// What becomes of a client's next message while a Sync is in doubt, or all is ignored up to the
/// next one. `None`: it is judged.
pub(super) fn step(
    client: &mut Client,
    server: &mut Server,
    rules: Rules,
    tools: &mut Tools,
) -> Option<Step> {
    match server.pipeline.is_in_doubt() {
        true => ask(client, server, tools),
        false => skip(client, rules, tools),
    }
}

fn ask(client: &mut Client, server: &mut Server, tools: &mut Tools) -> Option<Step> {
    if matches!(client.inbox.rest(), Rest::Relay(_) | Rest::Skip(_)) {
        // Our own words cannot stand in the middle of a message.
        return Some(match relay::rest(&mut client.inbox, Some(&mut server.egress)) {
            true => Step::Next,
            false => Step::Wait,
        });
    }
    match server.pipeline.caution(client.inbox.peek_tag().map(frontend::classify)) {
        Caution::Pass => return None,
        Caution::Wait => {}
        _ if !server.egress.has_own_room(WORDS_BYTES) => {}
        Caution::Flush => {
            say(server, tools, emit::flush);
            server.pipeline.on_flushed();
        }
        Caution::EndCopy => {
            say(server, tools, |ring| {
                emit::copy_fail(ring, GIVEN_UP.as_bytes())?;
                emit::flush(ring)
            });
            server.pipeline.on_gave_up();
        }
        Caution::Ask => {
            say(server, tools, question);
            server.pipeline.on_asked();
        }
    }
    Some(Step::Wait)
}

/// Which Syncs counted?
pub(super) fn question(ring: &mut Ring) -> Result<(), emit::Full> {
    emit::sync(ring)?;
    emit::close_statement(ring, NO_STATEMENT)?;
    emit::sync(ring)
}

/// Has all been said?
pub(super) fn last_question(ring: &mut Ring) -> Result<(), emit::Full> {
    emit::close_statement(ring, NO_STATEMENT)?;
    emit::sync(ring)
}

pub(super) fn say(
    server: &mut Server,
    tools: &mut Tools,
    words: impl FnOnce(&mut Ring) -> Result<(), emit::Full>,
) {
    server.egress.push_own(tools.rings, words).expect("there is room for it");
    server.activity = Activity::Busy;
}

/// An error came after we ended a COPY for its client. `None`: it is none of ours, the COPY had
/// failed before. Else the server was in that COPY still, but throws nobody out for our words: so we
/// do, as it would have done for the client's.
pub(super) fn broken_off(
    server: &Server,
    client: &mut Client,
    bytes: u64,
    rings: &mut Rings,
) -> Option<Step> {
    if !server.pipeline.has_given_up() {
        return None;
    }
    if !server.inbox.has(bytes) && server.inbox.can_hold(bytes) {
        return Some(Step::Wait);
    }
    let here = bytes.min(server.inbox.unjudged());
    let error = ErrorFields::parse(&server.inbox.window(HEADER_BYTES as u64, here));
    let is_ours = error.message?.contains(GIVEN_UP);
    let tag = client.inbox.peek_tag().filter(|_| is_ours)?;
    let text = format!("unexpected message type 0x{tag:02X} during COPY from stdin");
    let told = client
        .egress
        .push_own(rings, |ring| emit::error(ring, PROTOCOL_VIOLATION, text.as_bytes()));
    if told.is_err() {
        log::debug!("no room to say: {text}");
    }
    Some(Step::Close(Reason::OUT_OF_STEP))
}

/// What becomes of the next message of a client all of whose words are ignored up to its next Sync.
/// `None`: it is judged.
pub(super) fn skip(client: &mut Client, rules: Rules, tools: &mut Tools) -> Option<Step> {
    if let Rest::Collect(left) = client.inbox.rest() {
        client.inbox.set_rest(Rest::Skip(left));
    }
    statements::forget_collected(client);
    if !relay::rest(&mut client.inbox, None) {
        return Some(Step::Wait);
    }
    let header = match client.inbox.peek(rules.max_packet_bytes) {
        Peek::Header(header) => header,
        Peek::NeedMore | Peek::Bad => return None,
    };
    match frontend::classify(header.tag) {
        Message::Terminate | Message::Unknown => return None,
        Message::Request(Request::Sync) => {
            client.skips_to_sync = false;
            return None;
        }
        Message::CopyData | Message::Flush => {}
        Message::Request(_) | Message::CopyEnd(_) => {
            if let State::Active { copying_in, .. } = &mut client.state {
                *copying_in = false;
            }
        }
    }
    tools.counters.received_bytes += header.bytes;
    client.inbox.skip(header.bytes);
    Some(Step::Next)
}
