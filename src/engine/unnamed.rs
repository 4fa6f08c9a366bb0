//! The statement without a name, which a server has one of, whoever prepared it.
//!
//! Most drivers prepare, bind and run it in one go, and then nothing has to be known of it. Some
//! prepare it, look at the answer, and bind it later, when another server may work for them: for
//! those its text is kept, and prepared there again ahead of the Bind. What tells them from the
//! others is what stands behind the Parse.

use crate::engine::statements::{Tools, Trouble};
use crate::session::client::Client;
use crate::session::inbox::Inbox;
use crate::session::pipeline::{Action, Meeting};
use crate::session::prepared::Statement;
use crate::session::server::{Activity, Server};
use crate::wire::emit;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::frontend::{self, Request};
use std::sync::Arc;

/// A Describe of the unnamed statement.
const DESCRIBE_BYTES: usize = HEADER_BYTES + 2;
/// What has to be seen behind a Parse.
const BEHIND_BYTES: u64 = DESCRIBE_BYTES as u64 + 1;

/// What is noted of a message that goes to the server.
pub(super) enum About {
    /// Nothing.
    Other,
    /// It is a Parse or a Close of the unnamed statement.
    Unnamed {
        /// What it prepares, if the client may bind it when another server works for it.
        kept: Option<Arc<Statement>>,
    },
}

/// A message that names no statement that we follow is about to go to the server. If it is about
/// the unnamed statement of that server, this has to be the client's own, or nobody's.
#[inline]
pub(super) fn meet(
    client: &Client,
    server: &mut Server,
    (bytes, request): (u64, Option<Request>),
    tools: &mut Tools,
) -> Result<About, Trouble> {
    match request {
        // After an error the server ignores all this.
        _ if server.pipeline.is_skipping() => {}
        Some(Request::Parse) => {
            let here = client.inbox.unjudged();
            if here < bytes {
                return Ok(About::Unnamed { kept: None });
            }
            let body = client.inbox.window(HEADER_BYTES as u64, bytes);
            let behind = client.inbox.window(bytes, here.min(bytes + BEHIND_BYTES));
            return Ok(About::Unnamed { kept: text_to_keep(&body, &behind, tools) });
        }
        Some(Request::Close) if is_of_statement(&client.inbox) => {
            return Ok(About::Unnamed { kept: None });
        }
        Some(Request::Bind) => bring(server, tools)?,
        Some(Request::Describe) if is_of_statement(&client.inbox) => bring(server, tools)?,
        _ => {}
    }
    Ok(About::Other)
}

/// The text of a Parse is kept if it is not bound in the same breath. One that is larger than a ring
/// is not: so much of it there is at most for each client.
pub(super) fn text_to_keep(
    body: &[u8],
    behind: &[u8],
    tools: &mut Tools,
) -> Option<Arc<Statement>> {
    // Behind the empty name.
    let text = body.get(1..).filter(|_| !is_bound(behind))?;
    frontend::is_statement(text).then(|| tools.statements.intern(text))
}

/// Whether a Bind comes behind the Parse, at once or after a Describe.
fn is_bound(behind: &[u8]) -> bool {
    match behind.first() {
        Some(b'B') => true,
        Some(b'D') => behind.get(DESCRIBE_BYTES) == Some(&b'B'),
        _ => false,
    }
}

/// Whether a Describe or a Close is about a statement, not about a portal.
fn is_of_statement(inbox: &Inbox) -> bool {
    let at = inbox.judged() + HEADER_BYTES as u64;
    inbox.ring().and_then(|ring| ring.array::<1>(at)) == Some(*b"S")
}

/// The server may have another client's unnamed statement, or none. It gets this client's; if that
/// is not known, it forgets what it has, so that nobody runs another one's statement by mistake and
/// PostgreSQL says the truth.
fn bring(server: &mut Server, tools: &mut Tools) -> Result<(), Trouble> {
    let kept = match server.pipeline.meets_unnamed() {
        Meeting::Own => return Ok(()),
        Meeting::Unsure => return Err(Trouble::Unsure),
        Meeting::Foreign(kept) => kept,
    };
    let request = match &kept {
        Some(statement) => {
            let rest_bytes = statement.body().len();
            server.egress.push_own(tools.rings, |ring| {
                emit::message_head(ring, b'P', rest_bytes, |body| body.text(b""))
            })?;
            server.egress.push_text(statement.clone());
            Request::Parse
        }
        None => {
            server.egress.push_own(tools.rings, |ring| emit::close_statement(ring, b""))?;
            Request::Close
        }
    };
    server.pipeline.expect(request, Action::Swallow);
    server.pipeline.note_unnamed(kept);
    server.activity = Activity::Busy;
    Ok(())
}
