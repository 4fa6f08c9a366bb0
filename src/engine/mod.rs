//! The heart: it is told what happened and what time it is, changes its own memory, and says what
//! it wants done. It knows no socket, no clock and no thread, so that everything it decides can be
//! tested in microseconds and replayed from a seed.
//!
//! | | |
//! |---|---|
//! | [`io`] | its border |
//! | [`clients`], [`servers`] | one function for each thing that can happen to one |
//! | `plain`, [`statements`], `unnamed` | messages that need no closer look; those that name prepared statements; statements without a name |
//! | [`logins`], `proving`, [`credentials`], [`asking`], `consulting`, `checking`, `newcomers` | who is let in, and when |
//! | `staffing`, [`openings`], `naming`, [`tls`] | when to open servers, how, where to, and under which protection |
//! | `unlinked`, `rescue`, `departures` | servers that work for nobody, that are brought back from clients that have gone, that have to leave |
//! | `cancels`, `forwarding` | requests to cancel, and those that are for other poolers |
//! | `replication` | clients that replicate |
//! | [`endings`] | the one place where a conversation ends |
//! | [`consoles`] | what those on the admin console need |
//! | [`operate`], [`databases`], [`suspension`], [`handover`] | what the operator does to the house, to a part of it, and at a restart |
//! | [`check`] | its laws |

pub mod asking;
mod cancels;
pub mod check;
mod checking;
pub mod clients;
pub mod consoles;
mod consulting;
pub mod credentials;
pub mod databases;
mod departures;
mod doubts;
pub mod endings;
mod forwarding;
pub mod handover;
pub mod io;
pub mod logins;
mod naming;
mod newcomers;
pub mod openings;
pub mod operate;
mod plain;
mod proving;
mod replication;
mod rescue;
pub mod servers;
mod staffing;
pub mod statements;
mod step;
pub mod suspension;
pub mod tls;
mod unlinked;
mod unnamed;

use crate::auth::access::Access;
use crate::auth::challenge::SaltSource;
use crate::auth::derivation::Derived;
use crate::config::Config;
use crate::config::settings::Settings;
use crate::config::tls::ServerTls;
use crate::config::values::SslMode;
use crate::engine::checking::Checks;
use crate::engine::newcomers::Newcomers;
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::House;
use crate::pool::janitor::Due;
use crate::pool::mode::Mode;
use crate::pool::stats::{Averages, Periods};
use crate::session::client::{Client, State};
use crate::session::params::Tracked;
use crate::session::server::Activity;
use io::{ClientAddress, Effect, Input, Sent, sooner};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

/// Rings are of this size unless `pkt_buf` asks for more. Measured: 16 to 64 KiB cost the least per
/// byte; and every packet of a login fits as a whole.
const RING_BYTES: usize = 64 * 1024;
/// How often unused rings are returned to the system.
const TRIM_PERIOD: Duration = Duration::from_secs(5);

/// See the module's page.
pub struct Engine {
    house: House,
    config: Config,
    access: Access,
    /// For the salts that clients are told.
    salts: SaltSource,
    /// Keys made of passwords.
    derived: Derived,
    /// Clients whose answers wait for such keys.
    checks: Checks,
    effects: VecDeque<Effect>,
    runnable: VecDeque<Conn>,
    /// The same, of clients that log in.
    newcomers: Newcomers,
    /// How much TLS is asked of clients; what the configuration said when it could be set up.
    client_tls: SslMode,
    /// The same for servers.
    server_tls: ServerTls,
    /// The server that is being handed to one waiting client after the other: a thousand that
    /// are refused must not be a thousand calls deep.
    serving: Option<ServerKey>,
    /// Servers that have been told goodbye, and when we close them in any case.
    leaving: VecDeque<(Instant, ServerKey)>,
    /// Clients of the console that have gone, and whether this turn is not that in which they did:
    /// the console attends to what they have said at its end.
    console_leavers: Vec<(ClientKey, bool)>,
    /// A turn is needed by then, for something has been queued outside of one.
    next_turn: Option<Instant>,
    next_trim: Instant,
}

impl Engine {
    /// A house in which nobody is yet.
    pub fn new(config: Config, access: impl Into<Access>, now: Instant) -> Self {
        let pkt_buf = usize::try_from(config.settings.pkt_buf).unwrap_or(0);
        let ring_bytes = pkt_buf.next_power_of_two().max(RING_BYTES);
        let tracked = Tracked::new(config.settings.track_extra_parameters.items());
        let periods = Periods::new(config.settings.stats_period, now);
        let mut engine = Self {
            client_tls: config.settings.client_tls_sslmode,
            server_tls: ServerTls::new(&config.settings),
            house: House::new(ring_bytes, tracked, periods),
            config,
            access: access.into(),
            salts: SaltSource::default(),
            derived: Derived::default(),
            checks: Checks::default(),
            effects: VecDeque::new(),
            runnable: VecDeque::new(),
            newcomers: Newcomers::default(),
            serving: None,
            leaving: VecDeque::new(),
            console_leavers: Vec::new(),
            next_turn: None,
            next_trim: now + TRIM_PERIOD,
        };
        engine.open_kept_pools(now);
        engine
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who may come in.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Everybody who is in.
    pub fn house(&self) -> &House {
        &self.house
    }

    /// Somebody connected. `secret` is random: the key with which the client can cancel.
    pub fn accept(&mut self, from: ClientAddress, secret: [u8; 8], now: Instant) -> ClientKey {
        let client = Client::new(from, secret, self.house.tracked.unset(), now);
        let key = self.house.admit_client(client);
        self.watch(Conn::Client(key), now);
        key
    }

    /// Something happened.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Received { conn: Conn::Client(key), bytes } => {
                self.client_received(key, bytes, now);
            }
            Input::Received { conn: Conn::Server(key), bytes } => {
                self.server_received(key, bytes, now);
            }
            Input::Sent { conn, bytes } => self.sent(&mut [Sent::new(conn, bytes)], now),
            Input::ReadClosed { conn: Conn::Client(key) } => self.client_read_closed(key, now),
            Input::ReadClosed { conn: Conn::Server(key) } => self.server_read_closed(key, now),
            Input::WriteClosed { conn: Conn::Client(key) } => self.client_write_closed(key, now),
            Input::WriteClosed { conn: Conn::Server(key) } => self.server_write_closed(key, now),
            Input::Connected { server, local } => self.server_connected(server, local, now),
            Input::ConnectFailed { server, error } => {
                self.server_connect_failed(server, error.as_deref(), now);
            }
            Input::Resolved { host, addresses } => self.name_resolved(&host, addresses, now),
            Input::Serial { zone, serial } => self.zone_asked(&zone, serial, now),
            Input::TlsReady { conn, secured } => self.tls_ready(conn, secured, now),
            Input::TlsFailed { conn, error, is_ours } => {
                self.tls_failed(conn, &error, is_ours, now);
            }
            Input::Derived { conn, derivation, keys } => {
                self.on_derived(conn, (derivation, keys), now);
            }
            Input::Consulted { client, answer } => self.on_consulted(client, answer, now),
            Input::Tick => self.tick(now),
        }
    }

    /// These were written together. All of it is noted before anything follows from it: what follows
    /// for one may be the end of another, of whom it has to be known then what he has been told.
    pub fn sent(&mut self, all: &mut [Sent], now: Instant) {
        for sent in all.iter_mut() {
            sent.was_stuck = match sent.conn {
                Conn::Client(key) => self.note_client_sent(key, sent.bytes),
                Conn::Server(key) => self.note_server_sent(key, sent.bytes),
            };
        }
        for sent in all {
            match (sent.conn, sent.was_stuck) {
                (Conn::Client(key), Some(was_stuck)) => self.client_sent(key, was_stuck, now),
                (Conn::Server(key), Some(was_stuck)) => self.server_sent(key, was_stuck, now),
                (_, None) => {}
            }
        }
    }

    /// What the engine wants done next.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is needed at the latest, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let trim = self.house.rings.has_surplus().then_some(self.next_trim);
        let period = Some(self.house.periods.end());
        let alarm = self.house.alarms.next();
        let leaving = self.leaving.front().map(|(at, _)| *at);
        let watch = self.house.watches.next();
        // No time limit runs while nothing moves.
        let limits = match self.house.mode.is_suspended() {
            true => self.suspend_deadline(),
            false => sooner(sooner(alarm, watch), self.house.zones.deadline()),
        };
        sooner(sooner(self.next_turn, trim), sooner(sooner(period, leaving), limits))
    }

    /// A connection that may have work to do: its socket may be read, or written.
    pub fn next_runnable(&mut self) -> Option<Conn> {
        let conn = self.runnable.pop_front().or_else(|| self.newcomers.next())?;
        if let Some(flag) = self.runnable_flag(conn) {
            *flag = false;
        }
        Some(conn)
    }

    /// Whether there is any.
    pub fn has_runnable(&self) -> bool {
        !self.runnable.is_empty() || !self.newcomers.is_empty() || self.checks.has_ready()
    }

    /// Puts a connection on the list of those that may have work to do. An event, bytes for its
    /// peer, or room in its ring: all end here.
    pub fn make_runnable(&mut self, conn: Conn) {
        if let Some(flag) = self.runnable_flag(conn)
            && !std::mem::replace(flag, true)
        {
            self.runnable.push_back(conn);
        }
    }

    /// As above, when an event said so. A server that works for nobody comes first: perhaps it has
    /// gone, and then a client that asks in the same turn must not be given it. Clients that log in
    /// come last, and only some of them in each turn.
    pub fn wake(&mut self, conn: Conn) {
        match conn {
            Conn::Server(key) => {
                if let Some(server) = self.house.servers.get_mut(key)
                    && !std::mem::replace(&mut server.is_runnable, true)
                {
                    match server.client() {
                        Some(_) => self.runnable.push_back(conn),
                        None => self.runnable.push_front(conn),
                    }
                }
            }
            Conn::Client(key) => {
                if let Some(client) = self.house.clients.get_mut(key)
                    && !std::mem::replace(&mut client.is_runnable, true)
                {
                    match client.is_logging_in() {
                        true => self.newcomers.push(conn),
                        false => self.runnable.push_back(conn),
                    }
                }
            }
        }
    }

    fn runnable_flag(&mut self, conn: Conn) -> Option<&mut bool> {
        match conn {
            Conn::Client(key) => Some(&mut self.house.clients.get_mut(key)?.is_runnable),
            Conn::Server(key) => Some(&mut self.house.servers.get_mut(key)?.is_runnable),
        }
    }

    /// Whether its socket is to be read.
    pub fn wants_read(&self, conn: Conn) -> bool {
        if let Mode::Suspended { phase, .. } = self.house.mode
            && self.readable_when_suspended(conn, phase) == 0
        {
            return false;
        }
        match conn {
            Conn::Client(key) => self.house.clients.get(key).is_some_and(Client::wants_read),
            Conn::Server(key) => self.house.servers.get(key).is_some_and(|s| s.wants_read()),
        }
    }

    /// Whether it is a client that waits for a server: not read, but if it hangs up it waits no
    /// longer.
    pub fn minds_hang_up(&self, conn: Conn) -> bool {
        match conn {
            Conn::Client(key) => self.house.clients.get(key).is_some_and(|client| {
                matches!(client.state, State::Waiting { .. } | State::AwaitingWelcome { .. })
            }),
            Conn::Server(_) => false,
        }
    }

    /// Whether there is something to write to its socket.
    pub fn wants_write(&self, conn: Conn) -> bool {
        match conn {
            Conn::Client(key) => self.house.clients.get(key).is_some_and(Client::wants_write),
            Conn::Server(key) => self.house.servers.get(key).is_some_and(|s| s.wants_write()),
        }
    }

    /// Where to read to. `None`: that connection has gone.
    pub fn inbox_room(&mut self, conn: Conn) -> Option<[&mut [u8]; 2]> {
        let most = match self.house.mode {
            Mode::Suspended { phase, .. } => self.readable_when_suspended(conn, phase),
            _ => u64::MAX,
        };
        let House { clients, servers, rings, .. } = &mut self.house;
        let inbox = match conn {
            Conn::Client(key) => &mut clients.get_mut(key)?.inbox,
            Conn::Server(key) => &mut servers.get_mut(key)?.inbox,
        };
        let [first, second] = inbox.room(rings);
        if most == u64::MAX {
            return Some([first, second]);
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let (here, there) = (most.min(first.len()), most.saturating_sub(first.len()));
        let there = there.min(second.len());
        Some([&mut first[..here], &mut second[..there]])
    }

    /// The read found nothing: a ring taken for it goes back.
    pub fn nothing_read(&mut self, conn: Conn) {
        let House { clients, servers, rings, .. } = &mut self.house;
        let inbox = match conn {
            Conn::Client(key) => clients.get_mut(key).map(|client| &mut client.inbox),
            Conn::Server(key) => servers.get_mut(key).map(|server| &mut server.inbox),
        };
        if let Some(inbox) = inbox {
            inbox.give_back_if_empty(rings);
        }
    }

    /// What to write, in order; how many of the slices are in use.
    pub fn outgoing<'a>(&'a self, conn: Conn, slices: &mut [IoSlice<'a>]) -> usize {
        let House { clients, servers, .. } = &self.house;
        match conn {
            Conn::Client(key) => clients.get(key).map_or(0, |client| {
                let linked = client.server().and_then(|server| servers.get(server));
                client.egress.gather(linked.and_then(|server| server.inbox.ring()), slices)
            }),
            Conn::Server(key) => servers.get(key).map_or(0, |server| {
                let linked = server.client().and_then(|client| clients.get(client));
                server.egress.gather(linked.and_then(|client| client.inbox.ring()), slices)
            }),
        }
    }

    /// Whether what it has sent so far ends within a reply or a COPY, the rest of which will come.
    /// Only a hint: whoever keeps bytes back for its sake must not do so for long.
    pub fn has_more_to_say(&self, conn: Conn) -> bool {
        match conn {
            Conn::Client(key) => self.house.clients.get(key).is_some_and(|client| {
                client.is_copying_in()
                    || (client.server().is_some() && client.inbox.is_mid_message())
            }),
            Conn::Server(key) => self.house.servers.get(key).is_some_and(|server| {
                server.client().is_some() && server.activity == Activity::Busy
            }),
        }
    }

    /// The same of what [`Engine::outgoing`] holds for it.
    pub fn has_more_coming(&self, conn: Conn) -> bool {
        let House { clients, servers, .. } = &self.house;
        let linked = match conn {
            Conn::Client(key) => clients.get(key).and_then(Client::server).map(Conn::Server),
            Conn::Server(key) => servers.get(key).and_then(|s| s.client()).map(Conn::Client),
        };
        linked.is_some_and(|linked| self.has_more_to_say(linked))
    }

    /// Its socket is closed: the slot is free for another.
    pub fn forget(&mut self, conn: Conn) {
        let House { clients, servers, rings, closing_clients, watches, .. } = &mut self.house;
        let (inbox, egress) = match conn {
            Conn::Client(key) => match clients.remove(key) {
                Some(client) => {
                    *closing_clients -= 1;
                    watches.forget(conn, client.watched);
                    (client.inbox, client.egress)
                }
                None => return,
            },
            Conn::Server(key) => match servers.remove(key) {
                Some(server) => {
                    watches.forget(conn, server.watched);
                    (server.inbox, server.egress)
                }
                None => return,
            },
        };
        let (mut inbox, mut egress) = (inbox, egress);
        inbox.clear(rings);
        egress.clear(rings);
    }

    /// Somebody begins what may take only so long.
    fn watch(&mut self, conn: Conn, now: Instant) {
        self.house.watch_again(conn, &self.config, now);
    }

    fn tick(&mut self, now: Instant) {
        self.newcomers.begin_turn();
        self.settle_checks(now);
        if self.house.periods.end() <= now {
            self.end_period(now);
        }
        self.see_off(now);
        self.next_turn = None;
        self.let_console_leavers_go(now);
        if self.house.mode.is_suspended() {
            self.suspend_step(now);
        } else {
            if self.house.alarms.next().is_some_and(|at| at <= now) {
                self.answer_alarms(now);
            }
            if self.house.watches.next().is_some_and(|at| at <= now) {
                self.sweep(now);
            }
            if self.house.zones.deadline().is_some_and(|at| at <= now) {
                self.check_zones(now);
            }
        }
        self.house.collect_values();
        if self.next_trim <= now {
            self.house.rings.trim();
            self.house.statements.collect();
            self.next_trim = now + TRIM_PERIOD;
        }
    }

    fn end_period(&mut self, now: Instant) {
        let averages = self.house.end_period(now);
        // As PgBouncer: without the line in the log the service manager gets zeros.
        let averages = match self.config.settings.log_stats.is_on() {
            true => averages,
            false => Averages::default(),
        };
        if self.config.settings.log_stats.is_on() {
            log::info!("{averages}");
        }
        self.effects.push_back(Effect::Report(averages));
    }

    fn sweep(&mut self, now: Instant) {
        while let Some(due) = self.house.next_due(&self.config, now) {
            match due {
                Due::Client(key, reason) => self.close_client(key, reason, now),
                Due::Server(key, reason) => self.server_is_late(key, reason, now),
                Due::Query(key) => self.rescue_goes_on(key, now),
                Due::Unused(key) => self.server_is_used(key, now),
            }
        }
    }
}
