//! The statement without a name, which a server has one of, whoever prepared it.
//!
//! Most drivers prepare, bind and run it in one go, and then nothing has to be known of it. Some
//! prepare it, look at the answer, and bind it later, when another server may work for them: for
//! those its text is kept, and prepared there again ahead of the Bind. What tells them from the
//! others is what stands behind the Parse.

use crate::engine::statements::{Tools, Trouble};
use crate::session::client::Client;
use crate::session::inbox::Inbox;
use crate::session::pipeline::Action;
use crate::session::server::{Activity, Server};
use crate::wire::emit;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::frontend::{self, Request};

/// A Describe of the unnamed statement.
const DESCRIBE_BYTES: u64 = HEADER_BYTES as u64 + 2;

/// A message that names no statement that we follow is about to go to the server: the unnamed
/// statement of that server is the client's, or nobody's.
#[inline]
pub(super) fn meet(
    client: &mut Client,
    server: &mut Server,
    (bytes, request): (u64, Option<Request>),
    tools: &mut Tools,
) -> Result<(), Trouble> {
    match request {
        // After an error the server ignores all this.
        _ if server.pipeline.is_skipping() => {}
        Some(Request::Parse) => note(client, bytes, tools),
        Some(Request::Bind) if !client.unnamed.is_here => bring(client, server, tools)?,
        Some(Request::Describe) if !client.unnamed.is_here && is_of_statement(&client.inbox) => {
            bring(client, server, tools)?;
        }
        Some(Request::Close) if is_of_statement(&client.inbox) => client.unnamed.kept = None,
        // PostgreSQL forgets it with every simple query.
        Some(Request::Query) => client.unnamed.kept = None,
        _ => {}
    }
    Ok(())
}

/// It has prepared one. Its text is kept if it has not bound it in the same breath. A text larger
/// than a ring is not: so much of it there is at most for each client.
fn note(client: &mut Client, bytes: u64, tools: &mut Tools) {
    client.unnamed.is_here = true;
    client.unnamed.kept = None;
    if client.inbox.unjudged() < bytes || is_bound_behind(&client.inbox, bytes) {
        return;
    }
    let body = client.inbox.window(HEADER_BYTES as u64 + 1, bytes);
    if frontend::is_statement(&body) {
        client.unnamed.kept = Some(tools.statements.intern(&body));
    }
}

/// Whether a Bind comes behind the Parse, at once or after a Describe.
fn is_bound_behind(inbox: &Inbox, bytes: u64) -> bool {
    match byte(inbox, bytes) {
        Some(b'B') => true,
        Some(b'D') => byte(inbox, bytes + DESCRIBE_BYTES) == Some(b'B'),
        _ => false,
    }
}

/// Whether a Describe or a Close is about a statement, not about a portal.
fn is_of_statement(inbox: &Inbox) -> bool {
    byte(inbox, HEADER_BYTES as u64) == Some(b'S')
}

fn byte(inbox: &Inbox, skip: u64) -> Option<u8> {
    let ring = inbox.ring().filter(|_| skip < inbox.unjudged())?;
    ring.array::<1>(inbox.judged() + skip).map(|[byte]| byte)
}

/// The server has another client's unnamed statement, or none. It gets this client's; if that is
/// not known, it forgets what it has, so that nobody runs another one's statement by mistake and
/// PostgreSQL says the truth.
fn bring(client: &mut Client, server: &mut Server, tools: &mut Tools) -> Result<(), Trouble> {
    match &client.unnamed.kept {
        Some(statement) => {
            let rest_bytes = statement.body().len();
            server.egress.push_own(tools.rings, |ring| {
                emit::message_head(ring, b'P', rest_bytes, |body| body.text(b""))
            })?;
            server.egress.push_text(statement.clone());
            server.pipeline.expect(Request::Parse, Action::Swallow);
        }
        None => {
            server.egress.push_own(tools.rings, |ring| {
                emit::message(ring, Some(b'C'), |body| {
                    body.bytes(b"S");
                    body.text(b"");
                })
            })?;
            server.pipeline.expect(Request::Close, Action::Swallow);
        }
    }
    server.activity = Activity::Busy;
    client.unnamed.is_here = true;
    Ok(())
}
