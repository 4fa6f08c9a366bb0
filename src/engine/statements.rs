//! Messages that name prepared statements, on their way to a server: the client's name becomes the
//! server's, and what the server lacks is prepared ahead.

use crate::pool::stats::Counters;
use crate::ring::Rings;
use crate::session::client::Client;
use crate::session::egress::Egress;
use crate::session::farewell::Reason;
use crate::session::inbox::Rest;
use crate::session::pipeline::Action;
use crate::session::prepared::{Statement, Statements};
use crate::session::relay;
use crate::session::server::{Activity, Server};
use crate::wire::backend::TxStatus;
use crate::wire::emit::{self, Full};
use crate::wire::frame::HEADER_BYTES;
use crate::wire::frontend::{self, Request};
use crate::wire::sqlstate::IN_FAILED_TRANSACTION;
use std::sync::Arc;
use std::time::Instant;

/// No Close of ours is longer.
const CLOSE_BYTES: usize = 64;
/// Nor any answer to a `DEALLOCATE`.
const DEALLOCATED_BYTES: usize = 128;
/// What PostgreSQL says to everything in a transaction that has failed.
const ABORTED: &[u8] =
    b"current transaction is aborted, commands ignored until end of transaction block";

/// What the work on statements needs besides the two ends.
pub(super) struct Tools<'a> {
    pub rings: &'a mut Rings,
    pub statements: &'a mut Statements,
    /// `max_prepared_statements`
    pub limit: usize,
    /// Of the client's pool.
    pub counters: &'a mut Counters,
    pub now: Instant,
}

/// Why a message cannot be passed on.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server's egress has no room for what we would have to write: try again when it has
    /// sent something.
    Full,
    /// Whether the server has the statement is not known yet: try again when it has said more.
    Unsure,
    /// The conversation ends.
    Close(Reason),
}

impl From<Full> for Trouble {
    fn from(_: Full) -> Self {
        Trouble::Full
    }
}

/// A message that names a statement, with a server linked.
pub(super) fn named(
    client: &mut Client,
    server: &mut Server,
    (bytes, request): (u64, Request),
    tools: &mut Tools,
) -> Result<(), Trouble> {
    match request {
        Request::Parse => {
            let body = client.inbox.window(HEADER_BYTES as u64, bytes).into_owned();
            parse(client, server, &body, tools)?;
            client.inbox.skip(bytes);
        }
        Request::Bind => bind(client, server, bytes, tools)?,
        Request::Describe => describe(client, server, bytes, tools)?,
        _ => {
            close(client, bytes);
            server.pipeline.expect(Request::Close, Action::MakeUp);
            emit_made_up(client, server, tools.rings);
        }
    }
    tools.counters.received_bytes += bytes;
    Ok(())
}

/// A named Parse that was collected because it fits no ring, with a server linked.
pub(super) fn collected(
    client: &mut Client,
    server: &mut Server,
    tools: &mut Tools,
) -> Result<(), Trouble> {
    let Some(statements) = &mut client.statements else {
        return Ok(());
    };
    let message = std::mem::take(&mut statements.collected);
    let result = parse(client, server, &message[HEADER_BYTES..], tools);
    if result.is_ok() {
        tools.counters.received_bytes += message.len() as u64;
    }
    if let (Err(Trouble::Full | Trouble::Unsure), Some(statements)) =
        (&result, &mut client.statements)
    {
        statements.collected = message;
    }
    result
}

/// Begins to collect a message of this length.
pub(super) fn begin_collecting(client: &mut Client, bytes: u64) {
    client.statements.get_or_insert_default().collected.clear();
    client.inbox.set_rest(Rest::Collect(bytes));
}

/// Goes on with that. `false`: it has not come in as a whole.
#[inline]
pub(super) fn go_on_collecting(client: &mut Client) -> bool {
    if !client.inbox.is_mid_message() {
        return true;
    }
    let (Rest::Collect(left), Some(statements)) = (client.inbox.rest(), &mut client.statements)
    else {
        return true;
    };
    let here = left.min(client.inbox.unjudged());
    statements.collected.extend_from_slice(&client.inbox.window(0, here));
    client.inbox.advance(here);
    client.inbox.set_rest(Rest::Collect(left - here));
    here == left
}

/// Whether a collected Parse waits for a server.
pub(super) fn has_collected(client: &Client) -> bool {
    let statements = client.statements.as_ref();
    statements.is_some_and(|statements| !statements.collected.is_empty())
}

/// It is not wanted any more.
pub(super) fn forget_collected(client: &mut Client) {
    if let Some(statements) = &mut client.statements {
        statements.collected = Vec::new();
    }
}

/// A Close of a named statement needs no server: its name means nothing from now on.
pub(super) fn close(client: &mut Client, bytes: u64) {
    if let Ok((_, name)) = frontend::target(&client.inbox.window(HEADER_BYTES as u64, bytes))
        && let Some(statements) = &mut client.statements
    {
        statements.close(name);
    }
    client.inbox.skip(bytes);
}

/// `DEALLOCATE name`, of a name that we follow, in a transaction of this status: what PostgreSQL
/// would answer if it knew the name.
pub(super) fn deallocate(
    client: &mut Client,
    (bytes, status): (u64, TxStatus),
    tools: &mut Tools,
) -> Result<(), Full> {
    if !client.egress.has_own_room(DEALLOCATED_BYTES) {
        return Err(Full);
    }
    client.egress.push_own(tools.rings, |ring| {
        match status {
            TxStatus::Failed => emit::error(ring, IN_FAILED_TRANSACTION, ABORTED)?,
            _ => emit::message(ring, Some(b'C'), |body| body.text(b"DEALLOCATE"))?,
        }
        emit::ready_for_query(ring, status)
    })?;
    if status != TxStatus::Failed
        && let Some(name) = client.deallocated_name(bytes)
        && let Some(statements) = &mut client.statements
    {
        statements.close(&name);
    }
    client.inbox.skip(bytes);
    tools.counters.received_bytes += bytes;
    Ok(())
}

/// Sends the made-up replies whose turn has come. `false`: for some of them there is no room.
#[inline]
pub(super) fn emit_made_up(client: &mut Client, server: &mut Server, rings: &mut Rings) -> bool {
    // In the middle of the reply that is ahead of it, a word of ours would be taken for a part of that.
    if !server.pipeline.owes_made_up() || server.inbox.is_mid_message() {
        return true;
    }
    while !client.egress.is_full() {
        let Some(request) = server.pipeline.next_made_up() else {
            return true;
        };
        let told = match request {
            Request::Sync => {
                let status = server.status();
                client.egress.push_own(rings, |ring| emit::ready_for_query(ring, status))
            }
            _ => tell_done(&mut client.egress, request, rings),
        };
        told.expect("there is room while it is not full");
    }
    false
}

/// ParseComplete or CloseComplete.
pub(super) fn tell_done(
    egress: &mut Egress,
    request: Request,
    rings: &mut Rings,
) -> Result<(), Full> {
    let tag = if request == Request::Parse { b'1' } else { b'3' };
    egress.push_own(rings, |ring| emit::message(ring, Some(tag), |_| {}))
}

fn parse(
    client: &mut Client,
    server: &mut Server,
    body: &[u8],
    tools: &mut Tools,
) -> Result<(), Trouble> {
    let closes = |reason| Err(Trouble::Close(reason));
    let Some((name, rest)) = frontend::parse_name(body) else {
        return closes(Reason::UNPARSABLE_PACKET);
    };
    if !frontend::is_statement(rest) {
        return closes(Reason::BROKEN_PARSE);
    }
    let statements = client.statements.get_or_insert_default();
    let is_skipped = server.pipeline.is_skipping();
    if let Some(serial) = statements.naming_in_use(name).filter(|_| !is_skipped) {
        if server.pipeline.is_unsure_of_all() || server.pipeline.is_unsure_of_naming(serial) {
            return Err(Trouble::Unsure);
        }
        log::error!("prepared statement '{}' was already prepared", String::from_utf8_lossy(name));
        return closes(Reason::STATEMENT_NAME_IN_USE);
    }
    let naming = tools.statements.name(name, rest);
    if is_skipped {
        // The server would ignore it, because of an error.
        tools.counters.client_parses += 1;
        let serial = statements.give(naming);
        statements.take_back(serial.into_iter().collect());
        return Ok(());
    }
    let statement = naming.statement().clone();
    let is_there = server.statements.has(&statement);
    if server.pipeline.is_unsure_of_all() || server.pipeline.is_unsure_of(&statement) {
        return Err(Trouble::Unsure);
    }
    if !is_there {
        send_parse(server, &statement, tools)?;
    }
    tools.counters.client_parses += 1;
    let serial = statements.give(naming).expect("seen to be free");
    if is_there {
        server.pipeline.expect_statement(Request::Parse, Action::MakeUp, serial, statement);
        emit_made_up(client, server, tools.rings);
    } else {
        prepared(server, statement, (Action::Forward, serial), tools);
    }
    Ok(())
}

/// The statement of this name, prepared on the server now if it was not there.
fn ready_statement(
    client: &Client,
    server: &mut Server,
    name: &[u8],
    tools: &mut Tools,
) -> Result<Arc<Statement>, Trouble> {
    let found = client.statements.as_ref().and_then(|statements| statements.find(name));
    let Some(statement) = found.cloned() else {
        log::error!("prepared statement '{}' not found", String::from_utf8_lossy(name));
        return Err(Trouble::Close(Reason::NO_SUCH_STATEMENT));
    };
    if server.pipeline.is_unsure_of_all() || server.pipeline.is_unsure_of(&statement) {
        return Err(Trouble::Unsure);
    }
    if !server.statements.touch(&statement) {
        send_parse(server, &statement, tools)?;
        prepared(server, statement.clone(), (Action::Swallow, 0), tools);
    }
    Ok(statement)
}

/// A Parse with the server's name. The body is sent from where the statement is stored.
fn send_parse(
    server: &mut Server,
    statement: &Arc<Statement>,
    tools: &mut Tools,
) -> Result<(), Full> {
    let name = statement.server_name();
    server.egress.push_own(tools.rings, |ring| {
        emit::message_head(ring, b'P', statement.body().len(), |body| body.text(name.as_bytes()))
    })?;
    server.egress.push_text(statement.clone());
    tools.counters.server_parses += 1;
    server.activity = Activity::Busy;
    Ok(())
}

/// Notes what was sent, and has the server forget its oldest statements if it has too many. What
/// finds no room now goes with the next one.
fn prepared(
    server: &mut Server,
    statement: Arc<Statement>,
    (action, serial): (Action, u32),
    tools: &mut Tools,
) {
    if server.pipeline.is_skipping() {
        // An error makes the server ignore this.
        return;
    }
    server.statements.add(statement.clone());
    server.pipeline.expect_statement(Request::Parse, action, serial, statement);
    while server.egress.has_own_room(CLOSE_BYTES)
        && let Some(oldest) = server.statements.evict(tools.limit)
    {
        let name = oldest.server_name();
        let sent = server
            .egress
            .push_own(tools.rings, |ring| emit::close_statement(ring, name.as_bytes()));
        sent.expect("there is room for it");
        server.pipeline.expect_statement(Request::Close, Action::Swallow, 0, oldest);
    }
}

/// Only the names at its start are rewritten; the rest of a Bind streams.
fn bind(
    client: &mut Client,
    server: &mut Server,
    bytes: u64,
    tools: &mut Tools,
) -> Result<(), Trouble> {
    let here = bytes.min(client.inbox.unjudged());
    let body = client.inbox.window(HEADER_BYTES as u64, here);
    let (portal, name) = frontend::bind_names(&body).ok_or(Trouble::Close(Reason::BROKEN_BIND))?;
    let statement = ready_statement(client, server, name, tools)?;
    let head_bytes = (HEADER_BYTES + portal.len() + name.len() + 2) as u64;
    let rest_bytes = usize::try_from(bytes - head_bytes).map_err(|_| Full)?;
    let server_name = statement.server_name();
    server.egress.push_own(tools.rings, |ring| {
        emit::message_head(ring, b'B', rest_bytes, |body| {
            body.text(portal);
            body.text(server_name.as_bytes());
        })
    })?;
    drop(body);
    tools.counters.binds += 1;
    server.pipeline.expect(Request::Bind, Action::Forward);
    if frontend::may_forget_statements(statement.body(), true) == Some(true) {
        server.pipeline.note_forgetting_batch();
    }
    server.activity = Activity::Busy;
    client.inbox.advance(head_bytes);
    relay::message(&mut client.inbox, &mut server.egress, bytes - head_bytes);
    Ok(())
}

fn describe(
    client: &mut Client,
    server: &mut Server,
    bytes: u64,
    tools: &mut Tools,
) -> Result<(), Trouble> {
    let body = client.inbox.window(HEADER_BYTES as u64, bytes);
    let broken = |frontend::Broken| Trouble::Close(Reason::BROKEN_DESCRIBE);
    let (_, name) = frontend::target(&body).map_err(broken)?;
    let statement = ready_statement(client, server, name, tools)?;
    let server_name = statement.server_name();
    server.egress.push_own(tools.rings, |ring| {
        emit::message(ring, Some(b'D'), |body| {
            body.bytes(b"S");
            body.text(server_name.as_bytes());
        })
    })?;
    drop(body);
    server.pipeline.expect(Request::Describe, Action::Forward);
    server.activity = Activity::Busy;
    client.inbox.skip(bytes);
    Ok(())
}
