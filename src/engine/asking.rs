//! Asking a database who a client is (`auth_query`), while the client waits.
//!
//! The question goes through the pool of `auth_user` at the authentication database. Whoever asks
//! is not one of that pool's clients: it waits beside them (`Pool::askers`), is never linked to the
//! server that answers (`State::Asking`), and nothing that it has said gets there but its name, as
//! a bound parameter (reliability 5, 9). A server that has worked for clients forgets what they
//! have left, before it is asked.

use crate::auth::lookup::{self, Account, Asked, Next, Trouble};
use crate::config::CONSOLE;
use crate::engine::Engine;
use crate::engine::logins::Identity;
use crate::keys::{ClientKey, Conn, PoolKey, ServerKey};
use crate::pool::House;
use crate::pool::queues::End;
use crate::pool::stats::microseconds;
use crate::session::client;
use crate::session::client_login::Pending;
use crate::session::farewell::Reason;
use crate::session::relay;
use crate::session::server::{Activity, Server, State};
use crate::wire::frame::Peek;
use crate::wire::{backend, emit};
use std::time::Instant;

/// Who can be asked, about users of some database.
struct Oracle {
    pool: PoolKey,
    query: String,
}

impl Engine {
    /// Has a client wait until we know who it is: [`Engine::on_identity`] goes on with its login.
    /// Gives the login back if there is nobody to ask: then the user is unknown.
    pub(super) fn ask_about(
        &mut self,
        key: ClientKey,
        login: Pending,
        now: Instant,
    ) -> Result<Option<Pending>, Reason> {
        let Some(oracle) = self.oracle(&login)? else {
            return Ok(Some(login));
        };
        let pool = oracle.pool;
        let login = Pending { query: oracle.query, ..login };
        let Some(client) = self.house.clients.get_mut(key) else {
            return Ok(None);
        };
        client.login = Some(Box::new(login));
        let asking = client::State::AwaitingAccount { pool, server: None, since: now };
        self.house.set_client_state(key, asking);
        if let Some(server) = self.server_to_ask(pool, now) {
            self.ask(key, server, now);
            return Ok(None);
        }
        if self.house.mode.refuses_work() {
            return Err(Reason::SERVER_SHUTTING_DOWN);
        }
        let is_paused = self.is_paused(pool);
        let Some(entry) = self.house.pools.get_mut(pool) else {
            return Err(Reason::CONFIG_ERROR);
        };
        if let Some(cached) = entry.fails_fast().filter(|_| !is_paused) {
            let failing = Reason::login_failing(cached);
            self.try_again(pool, now);
            return Err(failing);
        }
        entry.askers.push_back(key);
        entry.unused_since = None;
        self.watch(Conn::Client(key), now);
        self.staff(pool, now);
        Ok(None)
    }

    /// Who can be asked about users of the database that is meant; `None`: nobody.
    fn oracle(&mut self, login: &Pending) -> Result<Option<Oracle>, Reason> {
        let settings = &self.config.settings;
        let database = login.database.as_ref();
        let asked_for = &login.startup.database;
        if database.is_none() && asked_for != CONSOLE {
            return Ok(None);
        }
        let user = database.and_then(|d| d.auth_user.as_ref()).or(settings.auth_user.as_ref());
        let Some(user) = user.filter(|user| !user.is_empty()).cloned() else {
            return Ok(None);
        };
        let query = database.and_then(|d| d.auth_query.as_ref()).unwrap_or(&settings.auth_query);
        let query = query.clone();
        let name = database.and_then(|d| d.auth_dbname.as_ref()).or(settings.auth_dbname.as_ref());
        // The console has no users of its own.
        let name = name.unwrap_or(database.map_or(asked_for, |database| &database.name)).clone();
        if name == CONSOLE {
            log::error!("cannot use the reserved \"{CONSOLE}\" database as an auth_dbname");
            return Err(Reason::CONFIG_ERROR);
        }
        if self.house.disabled_databases.contains(&name) {
            return Err(Reason::ToldOf(format!("authentication database \"{name}\" is disabled")));
        }
        let Some(entry) = self.entry(&name) else {
            log::error!("authentication database \"{name}\" is not configured");
            return Err(Reason::CONFIG_ERROR);
        };
        // A forced user of that entry serves its clients, not us.
        let pool = self.house.pool_as(&entry, &user, &self.config);
        Ok(Some(Oracle { pool, query }))
    }

    fn is_paused(&self, pool: PoolKey) -> bool {
        let is_paused = self.house.pools.get(pool).is_some_and(|pool| pool.is_paused);
        is_paused || self.house.mode.is_paused()
    }

    /// A free server that can be asked at once.
    fn server_to_ask(&mut self, pool: PoolKey, now: Instant) -> Option<ServerKey> {
        if self.is_paused(pool) {
            return None;
        }
        loop {
            let server = self.house.first_idle(pool)?;
            let candidate = self.house.servers.get(server)?;
            let pool = self.house.pools.get(pool)?;
            match candidate.why_stale() {
                Some(reason) => self.close_server(server, reason, now),
                None if pool.has_rested(candidate, now) => self.server_is_used(server, now),
                None => return Some(server),
            }
        }
    }

    /// Puts the question to a server that is free.
    pub(super) fn ask(&mut self, key: ClientKey, server_key: ServerKey, now: Instant) {
        let House { clients, servers, pools, rings, .. } = &mut self.house;
        let (Some(client), Some(server)) = (clients.get_mut(key), servers.get_mut(server_key))
        else {
            return;
        };
        let (Some(login), client::State::AwaitingAccount { pool, server: place, since }) =
            (&client.login, &mut client.state)
        else {
            return;
        };
        assert!(server.is_done(), "only a server that owes nothing is asked");
        *place = Some(server_key);
        if let Some(pool) = pools.get_mut(*pool) {
            pool.stats.total.assignments += 1;
            pool.stats.total.wait_us += microseconds(*since, now);
        }
        // Clients of this pool may have left a search_path, or a temporary table of users.
        server.has_worked = true;
        let asked = Asked::new(std::mem::take(&mut server.has_served));
        let (query, name) = (&login.query, &login.startup.user);
        let written = server.egress.push_own(rings, |ring| {
            if asked.is_cleaning() {
                server.statements.clear();
                emit::query(ring, b"DISCARD ALL")?;
            }
            lookup::ask(ring, query, name)
        });
        server.activity = Activity::Busy;
        server.pipeline.unnamed.on_own_parse();
        let asking = State::Asking { client: key, asked: Box::new(asked) };
        self.house.set_server_state(server_key, asking, End::Back);
        match written {
            Ok(()) => self.make_runnable(Conn::Server(server_key)),
            Err(emit::Full) => {
                self.close_server(server_key, Reason::AUTH_QUERY_UNSENT, now);
            }
        }
    }

    /// The longest waiting client asks a server that has just become free.
    pub(super) fn serve_asker(&mut self, key: ClientKey, server: ServerKey, now: Instant) {
        self.forget_asker(key);
        self.ask(key, server, now);
    }

    /// A part of the answer came.
    pub(super) fn answer_received(&mut self, key: ServerKey, now: Instant) {
        loop {
            match self.answer_step(key) {
                None => break,
                Some(Ok(Next::Wait)) => {}
                Some(Ok(Next::Done(account))) => {
                    self.answered(key, account, now);
                    return;
                }
                Some(Err(trouble)) => {
                    if let Trouble::Error(error) = &trouble {
                        log::error!("S: error in auth_query: {}", error.with_colon());
                    }
                    self.close_server(key, Reason::ToldOf(trouble.to_string()), now);
                    return;
                }
            }
        }
        let House { servers, rings, .. } = &mut self.house;
        if let Some(server) = servers.get_mut(key) {
            server.inbox.tidy(None, rings);
        }
    }

    fn answer_step(&mut self, key: ServerKey) -> Option<Result<Next, Trouble>> {
        let max_packet_bytes = self.config.settings.max_packet_size;
        let House { servers, pools, values, tracked, .. } = &mut self.house;
        let server = servers.get_mut(key)?;
        if !relay::rest(&mut server.inbox, None) {
            return None;
        }
        let header = match server.inbox.peek(max_packet_bytes) {
            Peek::NeedMore => return None,
            // What does not fit into a ring is no answer.
            Peek::Header(header) if server.inbox.can_hold(header.bytes) => header,
            Peek::Header(_) | Peek::Bad => return Some(Err(Trouble::BadPacket)),
        };
        if !server.inbox.has(header.bytes) {
            return None;
        }
        let message = server.inbox.copy(0, header.bytes);
        let Server { state: State::Asking { asked, .. }, inbox, parameters, pool, .. } = server
        else {
            return None;
        };
        inbox.skip(header.bytes);
        if let Some(pool) = pools.get_mut(*pool) {
            pool.stats.total.sent_bytes += header.bytes;
        }
        let (tag, body) = (message[0], &message[5..]);
        if tag == b'S' {
            let Some((name, value)) = backend::parameter_status(body) else {
                return Some(Err(Trouble::BadPacket));
            };
            if let Some(index) = tracked.index_of(name) {
                parameters.set(index, values.intern(value));
            }
        }
        Some(asked.step(tag, body))
    }

    /// The answer is complete: the server goes back, and the client's login goes on.
    fn answered(&mut self, key: ServerKey, account: Option<Account>, now: Instant) {
        let House { servers, rings, .. } = &mut self.house;
        let Some(server) = servers.get_mut(key) else {
            return;
        };
        let State::Asking { client, .. } = server.state else {
            return;
        };
        server.activity = Activity::Ready;
        server.inbox.tidy(None, rings);
        self.house.set_server_state(key, State::Unlinked { cut_off: false }, End::Back);
        let login = self.house.clients.get_mut(client).and_then(|client| client.login.take());
        let Some(mut login) = login else {
            self.dismiss(key, now);
            return;
        };
        // A reload may have changed it, or removed it.
        if let Some(database) = login.database.take() {
            login.database = self.database(client, &database.name);
        }
        self.house.set_client_state(client, client::State::LoggingIn);
        self.dismiss(key, now);
        let outcome = match account {
            Some(account) => self.on_identity(client, *login, Identity::Asked(account), now),
            None => {
                let name = &login.startup.database;
                log::info!("{} login failed: db={name}", self.name_of(client));
                Err(Reason::NO_SUCH_USER)
            }
        };
        match outcome {
            Ok(()) => self.login_received(client, now),
            Err(reason) => self.close_client(client, reason, now),
        }
    }

    /// Who waits for his turn to ask through this pool.
    pub(super) fn askers_of(&self, pool: PoolKey) -> Vec<ClientKey> {
        let askers = self.house.pools.get(pool).map(|pool| pool.askers.iter().copied());
        askers.into_iter().flatten().collect()
    }

    /// A client that waits for its turn to ask ends. (The one that is asking ends its server, too.) The
    /// pool that it leaves.
    pub(super) fn forget_asker(&mut self, key: ClientKey) -> Option<PoolKey> {
        let client = self.house.clients.get(key)?;
        let client::State::AwaitingAccount { pool: key_of_pool, server: None, .. } = client.state
        else {
            return None;
        };
        if let Some(pool) = self.house.pools.get_mut(key_of_pool)
            // Nearly always the first one: who waits longest goes first.
            && let Some(place) = pool.askers.iter().position(|asker| *asker == key)
        {
            pool.askers.remove(place);
        }
        Some(key_of_pool)
    }
}
