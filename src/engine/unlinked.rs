//! Servers that work for nobody: what they say, and whether they are still there.
//!
//! Notices, parameters and notifications are welcome at any time: a reload of PostgreSQL's
//! configuration must not cost us every idle connection. After anything else nobody knows what the
//! server is about: it is dirty, and ends when it should serve, or soon.
//!
//! A server that has been free for `server_check_delay` is [`State::Used`]: before it serves again it
//! has to answer `server_check_query`.

use crate::engine::Engine;
use crate::engine::servers::store_parameter;
use crate::keys::{Conn, PoolKey, ServerKey};
use crate::pool::House;
use crate::pool::queues::{End, ServerStanding};
use crate::session::farewell::Reason;
use crate::session::params::{Tracked, Values};
use crate::session::relay;
use crate::session::server::{Activity, Note, Server, State, Verdict};
use crate::wire::backend::{ErrorFields, TxStatus};
use crate::wire::emit;
use crate::wire::frame::HEADER_BYTES;
use std::time::Instant;

/// Something that a server said and nobody had asked for.
struct Stray {
    tag: u8,
    /// Its text, if it is a report that has come in as a whole.
    text: Option<String>,
}

/// What came of looking at a server's next message.
enum Heard {
    /// There is none, or not enough of it.
    Nothing,
    /// It was for us, and has been dealt with.
    OurOwn,
    /// Nobody asked for it.
    Stray(Stray),
    /// The connection ends.
    End(Reason),
}

impl Engine {
    /// Judges all messages that can be judged now; the reason, if that ends the connection.
    pub(super) fn judge_unlinked(&mut self, key: ServerKey, now: Instant) -> Option<Reason> {
        let max_packet_bytes = self.config.settings.max_packet_size;
        loop {
            let House { servers, pools, values, tracked, .. } = &mut self.house;
            let server = servers.get_mut(key)?;
            let pool = pools.get_mut(server.pool).expect("a server's pool outlives it");
            let sent_bytes = &mut pool.stats.total.sent_bytes;
            match hear(server, max_packet_bytes, sent_bytes, (tracked, values)) {
                Heard::Nothing => return None,
                Heard::OurOwn => {}
                Heard::Stray(stray) => {
                    if let Some(reason) = self.on_stray(key, &stray, now) {
                        return Some(reason);
                    }
                }
                Heard::End(reason) => return Some(reason),
            }
        }
    }

    fn on_stray(&mut self, key: ServerKey, stray: &Stray, now: Instant) -> Option<Reason> {
        let name = self.house.server_name(key).to_string();
        let tag = char::from(stray.tag);
        match &stray.text {
            Some(text) => {
                log::warn!("{name} got packet '{tag}' from server when not linked: {text}");
            }
            None => log::warn!("{name} got packet '{tag}' from server when not linked"),
        }
        let server = self.house.servers.get_mut(key)?;
        let is_welcome = matches!(stray.tag, b'A' | b'N');
        if is_welcome || server.activity != Activity::Ready {
            return None;
        }
        // What is worse may come: the end of the connection, for which this was the reason.
        let state = match server.state {
            State::Idle { .. } => State::Idle { since: now },
            State::Used { .. } => State::Used { since: now },
            _ => return Some(Reason::IDLE_GOT_DIRTY),
        };
        server.activity = Activity::Busy;
        self.house.set_server_state(key, state, End::Back);
        self.watch(Conn::Server(key), now);
        None
    }

    /// A server is free, to be tried out before it serves again.
    pub(super) fn server_is_used(&mut self, key: ServerKey, now: Instant) {
        let Some(server) = self.house.servers.get(key) else {
            return;
        };
        let pool = server.pool;
        let since = match server.state {
            State::Idle { since } => since.max(server.spoke_at),
            _ => now,
        };
        self.house.set_server_state(key, State::Used { since }, End::Front);
        self.watch(Conn::Server(key), now);
        if self.house.groups.blocked_pools > 0 {
            self.place_is_free(pool, now);
        }
        self.staff(pool, now);
    }

    /// Has servers tried out, one for each client that waits.
    pub(super) fn try_out_for_waiting(&mut self, key: PoolKey, now: Instant) {
        loop {
            let house = &self.house;
            let pool = house.pools.get(key).filter(|p| !p.is_paused && !house.mode.is_paused());
            let Some(pool) = pool.filter(|pool| !pool.is_cared_for()) else {
                return;
            };
            let Some(server) = pool.servers.of(ServerStanding::Used).first() else {
                return;
            };
            self.try_out(server, now);
        }
    }

    fn try_out(&mut self, key: ServerKey, now: Instant) {
        if let Some(reason) = self.house.servers.get(key).and_then(Server::why_stale) {
            self.close_server(key, reason, now);
            return;
        }
        let settings = &self.config.settings;
        let delay = settings.server_check_delay;
        let server = self.house.servers.get(key);
        let rested = match server.map(|server| &server.state) {
            Some(State::Used { since }) => now.saturating_duration_since(*since),
            _ => return,
        };
        let is_fresh = !delay.is_zero() && rested < delay;
        let Some(sql) = settings.check_query().filter(|_| !is_fresh) else {
            // The settings have changed meanwhile.
            self.server_is_free(key, now);
            self.watch(Conn::Server(key), now);
            return;
        };
        self.house.set_server_state(key, State::Checking { since: now }, End::Back);
        let House { servers, rings, .. } = &mut self.house;
        let server = servers.get_mut(key).expect("just moved");
        match server.ask_ourselves(rings, sql.as_bytes()) {
            Ok(()) => self.make_runnable(Conn::Server(key)),
            Err(emit::Full) => {
                self.close_server(key, Reason::TEST_QUERY_FAILED, now);
                return;
            }
        }
        self.watch(Conn::Server(key), now);
    }
}

/// Takes the next message of a server that works for nobody.
fn hear(
    server: &mut Server,
    max_packet_bytes: u32,
    sent_bytes: &mut u64,
    names: (&Tracked, &mut Values),
) -> Heard {
    if !relay::rest(&mut server.inbox, None) {
        return Heard::Nothing;
    }
    let is_tested = matches!(server.state, State::Resetting { .. } | State::Checking { .. });
    match server.judge(max_packet_bytes) {
        Verdict::NeedMore => Heard::Nothing,
        Verdict::Close(reason) => Heard::End(reason),
        Verdict::Parameter { bytes } => {
            *sent_bytes += bytes;
            if let Err(reason) = store_parameter(server, None, bytes, names) {
                return Heard::End(reason);
            }
            server.inbox.skip(bytes);
            Heard::OurOwn
        }
        Verdict::Pass { bytes, note } => {
            *sent_bytes += bytes;
            let stray = (!is_tested).then(|| stray(server, bytes));
            server.inbox.skip(bytes);
            match (stray, note) {
                (Some(stray), _) => return Heard::Stray(stray),
                (None, Note::Ready(status)) => return own_query_ended(server, status),
                (None, Note::Forgotten) => server.statements.clear(),
                // As PgBouncer: whether such a query succeeds is not our concern.
                (None, _) => {}
            }
            Heard::OurOwn
        }
    }
}

fn stray(server: &Server, bytes: u64) -> Stray {
    let tag = server.inbox.peek_tag().unwrap_or(b'?');
    let is_report = matches!(tag, b'N' | b'E') && server.inbox.has(bytes);
    let report = || ErrorFields::parse(&server.inbox.copy(HEADER_BYTES, bytes)).with_colon();
    Stray { tag, text: is_report.then(report) }
}

/// A server has answered the reset query, or the one that checks it.
fn own_query_ended(server: &mut Server, status: TxStatus) -> Heard {
    let failure = match server.state {
        State::Checking { .. } => Reason::TEST_QUERY_FAILED,
        _ => Reason::RESET_FAILED,
    };
    match status {
        TxStatus::Idle => {
            server.pipeline.on_ready_for_query();
            server.activity = Activity::Ready;
            Heard::OurOwn
        }
        TxStatus::InTransaction | TxStatus::Failed => Heard::End(failure),
    }
}
