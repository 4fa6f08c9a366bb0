//! Bringing a server back whose client has gone in the middle of something, or was thrown out for
//! taking too long.
//!
//! PostgreSQL would go on with the query until it notices, and a new connection costs a fork and a
//! login. With `server_rescue_timeout` the query is cancelled, what is left of its answer is read,
//! the transaction is rolled back, the session reset, and the server serves the next client. All
//! states are in [`crate::session::rescue`].

use crate::engine::servers::{store_parameter, take_note};
use crate::engine::step::{Step, last_step};
use crate::engine::{Engine, doubts};
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::House;
use crate::ring::Ring;
use crate::session::farewell::Reason;
use crate::session::params::{Tracked, Values};
use crate::session::pipeline::{Action, Pipeline};
use crate::session::relay;
use crate::session::rescue::{self, CANCEL_AGAIN, Cancel, Remains, Rescue};
use crate::session::server::{Activity, Note, Server, State, Verdict};
use crate::wire::backend::{Reply, TxStatus};
use crate::wire::emit::{self, Full};
use crate::wire::frontend::Request;
use std::time::Instant;

/// What PostgreSQL's log gets to know about a COPY whose client has gone.
const COPY_GIVEN_UP: &[u8] = b"client disconnected";

/// What a server needs next that is being brought back.
enum Need {
    /// To say more.
    Nothing,
    /// The same, and it may be a query that takes long.
    Cancel,
    /// The end of a COPY that nobody else will send.
    CopyEnd,
    /// To be asked for what it has to say: PostgreSQL keeps the answers to a batch back until then.
    Flush,
    /// The end of a batch that nobody else will send.
    Sync,
    /// To be asked which Syncs it has counted.
    Answer,
    /// To be closed: nobody knows what it will say.
    End,
    /// To undo what it has begun.
    Rollback,
    /// The reset query.
    Reset,
    /// Nothing any more: it is as good as new.
    Freedom,
}

impl Engine {
    /// Whether the server of a client that goes for this reason is worth the trouble.
    pub(super) fn may_rescue(&self, key: ServerKey, reason: &Reason) -> bool {
        !self.config.settings.server_rescue_timeout.is_zero()
            && *reason != Reason::DATABASE_REMOVED
            && self.house.can_take_back(key, reason)
    }

    /// A server's time is up. Where it is its client who has kept it for too long, that one goes, and
    /// the server stays, if that is wanted.
    pub(super) fn server_is_late(&mut self, key: ServerKey, reason: Reason, now: Instant) {
        let is_clients = [
            Reason::QUERY_TIMED_OUT,
            Reason::IDLE_TRANSACTION_TIMEOUT,
            Reason::TRANSACTION_TIMEOUT,
        ]
        .contains(&reason);
        let client = self.house.servers.get(key).and_then(Server::client);
        match client.filter(|_| is_clients && self.may_rescue(key, &reason)) {
            Some(client) => self.close_client(client, reason, now),
            None => self.close_server(key, reason, now),
        }
    }

    /// Takes a server from its client.
    pub(super) fn take_back(&mut self, key: ServerKey, client: ClientKey, now: Instant) -> Remains {
        // What is still to be written may be the query itself: it must be there to be cancelled.
        let server = self.house.servers.get(key);
        let is_sent = server.is_some_and(|server| server.egress.is_empty());
        let cancel = Cancel::NotBefore(if is_sent { now } else { now + CANCEL_AGAIN });
        let limit = self.config.settings.server_rescue_timeout;
        let step = rescue::Step::Draining;
        let rescue = Rescue { client, since: now, limit, step, cancel, has_flushed: false };
        self.house.take_back(key, rescue)
    }

    /// Completes what the client has left undone, so that an answer to all of it will come.
    pub(super) fn begin_rescue(
        &mut self,
        key: ServerKey,
        remains: Remains,
        why: &Reason,
        now: Instant,
    ) {
        let Some(pool) = self.house.servers.get(key).map(|server| server.pool) else {
            return;
        };
        if self.config.settings.log_disconnections.is_on() {
            log::info!("{} rescuing because: {why}", self.house.server_name(key));
        }
        for late in self.house.stale_cancels(pool, key) {
            self.close_client(late, Reason::CANCEL_TOO_LATE, now);
        }
        let House { servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        // Nobody is left for whom to make up replies.
        while server.pipeline.next_made_up().is_some() {}
        let missing = usize::try_from(remains.missing_bytes).unwrap_or(usize::MAX);
        let is_padded = missing == 0
            || (server.egress.has_own_room(missing)
                && server.egress.push_own(rings, |ring| emit::padding(ring, missing)).is_ok());
        if !is_padded {
            self.close_server(key, why.clone(), now);
            return;
        }
        self.make_runnable(Conn::Server(key));
        self.rescue_goes_on(key, now);
    }

    /// Judges all messages that can be judged now; the reason, if that ends the connection.
    pub(super) fn judge_rescued(&mut self, key: ServerKey, now: Instant) -> Option<Reason> {
        let max_packet_bytes = self.config.settings.max_packet_size;
        let House { servers, pools, values, tracked, .. } = &mut self.house;
        let server = servers.get_mut(key)?;
        let pool = pools.get_mut(server.pool).expect("a server's pool outlives it");
        let sent_bytes = &mut pool.stats.total.sent_bytes;
        let next = || hear(server, max_packet_bytes, sent_bytes, (tracked, values), now);
        match last_step(next) {
            Step::Close(reason) => Some(reason),
            Step::Next | Step::Wait | Step::NeedServer => None,
        }
    }

    /// Goes on with a server, if it is being brought back.
    pub(super) fn rescue_goes_on(&mut self, key: ServerKey, now: Instant) {
        self.give_what_it_needs(key, now);
        let Some(rescue) = self.house.servers.get(key).and_then(Server::rescue) else {
            return;
        };
        if rescue.cancel_at().is_some_and(|at| at <= now) {
            // There is nothing to be cancelled, or it will end by itself.
            self.house.note_own_cancel(key, Cancel::NotBefore(now + CANCEL_AGAIN));
        }
        self.watch(Conn::Server(key), now);
    }

    fn give_what_it_needs(&mut self, key: ServerKey, now: Instant) {
        let Some(server) = self.house.servers.get(key) else {
            return;
        };
        let Some(rescue) = server.rescue() else {
            return;
        };
        let since = rescue.since;
        let reset_query = &self.config.settings.server_reset_query;
        match need(server, rescue, !reset_query.is_empty(), now) {
            Need::Nothing => {}
            Need::Cancel => self.cancel_ourselves(key, now),
            Need::CopyEnd => self.end_copy(key, now),
            Need::Flush => self.flush(key, now),
            Need::Sync => self.end_batch(key, now),
            Need::Answer => self.ask_about_syncs(key, now),
            Need::End => self.close_server(key, Reason::RESCUE_FAILED, now),
            Need::Rollback => {
                self.take_step(key, rescue::Step::RollingBack { is_done: false });
                self.say_ourselves(key, Request::Query, now, |ring| emit::query(ring, b"ROLLBACK"));
            }
            Need::Reset => {
                let sql = reset_query.clone();
                self.take_step(key, rescue::Step::Resetting);
                self.say_ourselves(key, Request::Query, now, |ring| {
                    emit::query(ring, sql.as_bytes())
                });
            }
            Need::Freedom => {
                self.house.rescues.kept += 1;
                if self.config.settings.log_disconnections.is_on() {
                    let took = now.saturating_duration_since(since).as_millis();
                    log::info!("{} rescued (in {took}ms)", self.house.server_name(key));
                }
                self.settle_down(key, false, now);
                self.watch(Conn::Server(key), now);
            }
        }
    }

    /// Finds out how many ReadyForQuery are still to come: see `doubts`.
    fn ask_about_syncs(&mut self, key: ServerKey, now: Instant) {
        let House { servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        server.activity = Activity::Busy;
        match server.egress.push_own(rings, doubts::question) {
            Ok(()) => {
                server.pipeline.on_asked();
                self.make_runnable(Conn::Server(key));
            }
            Err(Full) => self.close_server(key, Reason::RESCUE_FAILED, now),
        }
    }

    fn take_step(&mut self, key: ServerKey, step: rescue::Step) {
        let server = self.house.servers.get_mut(key);
        if let Some(State::Rescuing(rescue)) = server.map(|server| &mut server.state) {
            rescue.step = step;
        }
    }

    /// Asks for all answers that there are. Behind the client's last message that is done once.
    fn flush(&mut self, key: ServerKey, now: Instant) {
        let House { servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        if let State::Rescuing(rescue) = &mut server.state {
            rescue.has_flushed = true;
        }
        match server.egress.push_own(rings, emit::flush) {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(Full) => self.close_server(key, Reason::RESCUE_FAILED, now),
        }
    }

    /// Ends a COPY into the server badly. If it waits for a Sync then, it gets one when it has
    /// answered: it may have to be asked first which Syncs it has counted.
    fn end_copy(&mut self, key: ServerKey, now: Instant) {
        self.say_ourselves(key, Request::CopyFail, now, |ring| {
            emit::copy_fail(ring, COPY_GIVEN_UP)
        });
    }

    /// Ends a batch badly: its client might have taken it back, so a Sync must not commit it.
    fn end_batch(&mut self, key: ServerKey, now: Instant) {
        self.say_ourselves(key, Request::Parse, now, |ring| {
            emit::unnamed_statement(ring, b"ROLLBACK")
        });
        if let Some(server) = self.house.servers.get_mut(key) {
            server.pipeline.note_unnamed(None);
        }
        self.say_ourselves(key, Request::Bind, now, |_| Ok(()));
        self.say_ourselves(key, Request::Execute, now, |_| Ok(()));
        self.say_ourselves(key, Request::Sync, now, emit::sync);
    }

    /// Sends a message of our own, whose answer is for nobody.
    fn say_ourselves(
        &mut self,
        key: ServerKey,
        request: Request,
        now: Instant,
        write: impl FnOnce(&mut Ring) -> Result<(), Full>,
    ) {
        let House { servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        server.activity = Activity::Busy;
        server.pipeline.expect(request, Action::Swallow);
        match server.egress.push_own(rings, write) {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(Full) => self.close_server(key, Reason::RESCUE_FAILED, now),
        }
    }

    /// Has the query cancelled that keeps a server from being drained.
    fn cancel_ourselves(&mut self, key: ServerKey, now: Instant) {
        let Some(pool_key) = self.house.servers.get(key).map(|server| server.pool) else {
            return;
        };
        self.house.note_own_cancel(key, Cancel::Wanted);
        if let Some(pool) = self.house.pools.get_mut(pool_key) {
            pool.own_cancels.push_back(key);
        }
        self.staff(pool_key, now);
    }

    /// The connection that carried a request of ours has ended. Where it was of no use, there will
    /// be another.
    pub(super) fn own_cancel_ended(&mut self, target: ServerKey, now: Instant) {
        self.house.note_own_cancel(target, Cancel::NotBefore(now + CANCEL_AGAIN));
    }

    /// A server that is being closed, if it was on its way back.
    pub(super) fn note_lost_rescue(&mut self, key: ServerKey) {
        let is_lost = self.house.servers.get(key).is_some_and(|server| server.rescue().is_some());
        self.house.rescues.lost += u64::from(is_lost);
    }
}

/// What a server needs next.
fn need(server: &Server, rescue: &Rescue, has_reset_query: bool, now: Instant) -> Need {
    let has_said_all = server.activity != Activity::Busy
        && server.pipeline.is_empty()
        && server.egress.is_empty()
        && server.inbox.unjudged() == 0
        && !server.inbox.is_mid_message();
    let last = if has_reset_query { Need::Reset } else { Need::Freedom };
    match rescue.step {
        // What comes without being noted would be taken for the answer to words of ours.
        rescue::Step::Draining if server.pipeline.is_left_in_doubt() => Need::End,
        rescue::Step::Draining if server.pipeline.wants_answer() => Need::Answer,
        rescue::Step::Draining if !has_said_all => match rescue.cancel {
            _ if server.pipeline.awaits_copy_end() => Need::CopyEnd,
            _ if server.activity == Activity::Busy && server.pipeline.is_empty() => Need::Sync,
            // Once a COPY has begun, a Sync ahead of its end ends nothing.
            _ if !rescue.has_flushed && is_open(&server.pipeline) => Need::Flush,
            // Our own words to it take no time.
            Cancel::NotBefore(at) if at <= now && !server.pipeline.is_next_ours() => Need::Cancel,
            _ => Need::Nothing,
        },
        // What is on its way would hit the next thing that it does.
        rescue::Step::Draining if server.cancels_in_flight > 0 => Need::Nothing,
        rescue::Step::Draining if server.activity == Activity::Ready => last,
        rescue::Step::Draining => Need::Rollback,
        rescue::Step::RollingBack { is_done } if is_done && has_said_all => last,
        rescue::Step::Resetting if has_said_all => Need::Freedom,
        rescue::Step::RollingBack { .. } | rescue::Step::Resetting => Need::Nothing,
    }
}

/// Whether something is owed to a batch that its client did not end.
fn is_open(pipeline: &Pipeline) -> bool {
    !pipeline.is_empty() && pipeline.wants_sync()
}

/// Takes the next message of a server that is being brought back.
fn hear(
    server: &mut Server,
    max_packet_bytes: u32,
    sent_bytes: &mut u64,
    names: (&Tracked, &mut Values),
    now: Instant,
) -> Step {
    if !relay::rest(&mut server.inbox, None) {
        return Step::Wait;
    }
    match server.judge(max_packet_bytes) {
        Verdict::NeedMore => Step::Wait,
        Verdict::Close(reason) => Step::Close(reason),
        Verdict::Parameter { bytes } => {
            *sent_bytes += bytes;
            if let Err(reason) = store_parameter(server, None, bytes, names) {
                return Step::Close(reason);
            }
            server.activity = Activity::Busy;
            server.inbox.skip(bytes);
            Step::Next
        }
        Verdict::Pass { bytes, note } => {
            *sent_bytes += bytes;
            server.inbox.skip(bytes);
            on_note(server, note, now)
        }
    }
}

fn on_note(server: &mut Server, note: Note, now: Instant) -> Step {
    let State::Rescuing(rescue) = &mut server.state else {
        return Step::Wait;
    };
    match (&mut rescue.step, note) {
        (_, Note::Notification) => {}
        (rescue::Step::Draining, Note::Ready(_)) => {
            take_note(server, None, note);
            // If more is owed, another query of the client has just begun.
            let has_begun = !server.pipeline.is_empty() && !server.pipeline.is_next_ours();
            if let (true, State::Rescuing(rescue)) = (has_begun, &mut server.state)
                && let Cancel::NotBefore(at) = &mut rescue.cancel
            {
                *at = now;
            }
        }
        (rescue::Step::Draining, note) => {
            take_note(server, None, note);
        }
        (rescue::Step::RollingBack { is_done }, Note::Reply(Reply::Command)) => *is_done = true,
        (rescue::Step::Resetting, Note::Forgotten) => server.statements.clear(),
        (
            rescue::Step::RollingBack { is_done: true } | rescue::Step::Resetting,
            Note::Ready(TxStatus::Idle),
        ) => {
            take_note(server, None, note);
        }
        (_, Note::Ready(_) | Note::Error | Note::CopyIn) => {
            return Step::Close(Reason::RESCUE_FAILED);
        }
        (rescue::Step::RollingBack { .. } | rescue::Step::Resetting, _) => {}
    }
    // Replies that we would have made up for the client.
    while server.pipeline.next_made_up().is_some() {}
    Step::Next
}
