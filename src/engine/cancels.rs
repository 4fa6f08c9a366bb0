//! Requests to cancel: whom they are meant for, and what becomes of a client that has called off
//! what it waits for.

use crate::engine::Engine;
use crate::engine::io::Effect;
use crate::engine::statements::{self, Tools};
use crate::engine::step::Step;
use crate::keys::{ClientKey, Conn};
use crate::pool::cancel::Meant;
use crate::pool::peers::own_id;
use crate::pool::{House, Pool};
use crate::session::call_off::{Answer, CallOff};
use crate::session::cancel_key;
use crate::session::client::{Client, Rules, State};
use crate::session::farewell::Reason;
use crate::wire::backend::TxStatus;
use crate::wire::emit::{self, Full};
use crate::wire::{sqlstate, startup};
use std::time::Instant;

/// PostgreSQL's words to whoever has cancelled.
const CANCELLED: &[u8] = b"canceling statement due to user request";

impl Engine {
    /// Somebody wants something cancelled, and nothing else from us.
    pub(super) fn on_cancel_request(
        &mut self,
        key: ClientKey,
        bytes: u64,
        now: Instant,
    ) -> Result<(), Reason> {
        let client = self.house.clients.get_mut(key).ok_or(Reason::BAD_CANCEL_REQUEST)?;
        let body = client.inbox.copy(startup::HEADER_BYTES as usize, bytes);
        client.inbox.skip(bytes);
        let (short, tail) = body.split_first_chunk().ok_or(Reason::BAD_CANCEL_REQUEST)?;
        let own_id = own_id(&self.config.settings);
        let meant = self.house.meant_by((*short, tail), own_id);
        if meant == Err(Reason::FAILED_CANCEL_REQUEST)
            && own_id.is_some_and(|own_id| own_id != cancel_key::peer(*short))
        {
            return self.forward_cancel(key, (*short, tail), now);
        }
        let (target, pool) = match meant? {
            Meant::OnConsole(client) => {
                self.effects.push_back(Effect::CancelAttendance { client });
                return Err(Reason::CANCEL_FOR_CONSOLE);
            }
            // Better than PgBouncer, which lets it wait on.
            Meant::Waiting(client) => {
                self.call_off(client, now);
                return Err(Reason::CANCEL_OF_WAITING);
            }
            Meant::Working(target, pool) => (target, pool),
        };
        if let Some(client) = self.house.clients.get_mut(key) {
            client.pool = Some(pool);
        }
        let waiting = State::AwaitingCancel { target, carrier: None, since: now };
        self.house.set_client_state(key, waiting);
        self.watch(Conn::Client(key), now);
        self.staff(pool, now);
        Ok(())
    }

    /// A client that waits for a server does not want it any more.
    fn call_off(&mut self, key: ClientKey, now: Instant) {
        self.house.wait_ends(key, now);
        let House { clients, pools, .. } = &mut self.house;
        let Some(client) = clients.get_mut(key) else {
            return;
        };
        client.call_off = CallOff::Next;
        client.served_at = now;
        if let Some(pool) = client.pool.and_then(|pool| pools.get_mut(pool)) {
            let Pool { stats, times, .. } = pool;
            stats.total.request_ends(times, client, false, now);
        }
        self.house.set_client_state(key, State::Idle);
        self.client_goes_on(key, now);
        self.make_runnable(Conn::Client(key));
    }
}

/// A client without a server that has called something off: the answer to its next message.
pub(super) fn called_off_step(client: &mut Client, rules: Rules, tools: &mut Tools) -> Step {
    if statements::has_collected(client) {
        // A Parse that was collected while it waited.
        statements::forget_collected(client);
        client.call_off = CallOff::UpToSync;
        return told(tell(client, tools, Some(CANCELLED), false));
    }
    let (bytes, next, told_of, is_ready) =
        match client.judge_call_off(rules.max_packet_bytes, rules.disable_pqexec) {
            Answer::NeedMore if client.call_off == CallOff::UpToSync => return Step::Wait,
            // There is nothing left that it could have meant.
            Answer::NeedMore => {
                client.call_off = CallOff::Nothing;
                return Step::Wait;
            }
            Answer::Served => {
                client.call_off = CallOff::Nothing;
                return Step::Next;
            }
            Answer::Close(reason) => return Step::Close(reason),
            Answer::Ignored(bytes) => (bytes, client.call_off, None, false),
            Answer::Cancelled(bytes) => (bytes, CallOff::Nothing, Some(CANCELLED), true),
            Answer::Failed(bytes) => (bytes, CallOff::UpToSync, Some(CANCELLED), false),
            Answer::Ready(bytes) => {
                let next = match client.call_off {
                    CallOff::UpToSync => CallOff::Nothing,
                    other => other,
                };
                (bytes, next, None, true)
            }
        };
    tools.counters.received_bytes += bytes;
    client.inbox.skip(bytes);
    client.call_off = next;
    told(tell(client, tools, told_of, is_ready))
}

fn tell(
    client: &mut Client,
    tools: &mut Tools,
    error: Option<&[u8]>,
    is_ready: bool,
) -> Result<(), Full> {
    if let Some(text) = error {
        client
            .egress
            .push_own(tools.rings, |ring| emit::error(ring, sqlstate::QUERY_CANCELED, text))?;
    }
    match is_ready {
        true => {
            client.egress.push_own(tools.rings, |ring| emit::ready_for_query(ring, TxStatus::Idle))
        }
        false => Ok(()),
    }
}

fn told(result: Result<(), Full>) -> Step {
    match result {
        Ok(()) => Step::Next,
        // It reads none of its replies, and goes on asking.
        Err(Full) => Step::Close(Reason::UNEXPECTED_EOF),
    }
}
