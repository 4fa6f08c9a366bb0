//! Who is let in: a client's first packets, who it says it is, and its welcome.

use crate::auth::challenge::Claim;
use crate::auth::lookup::Account;
use crate::auth::secret::Known;
use crate::config::CONSOLE;
use crate::config::entries::Database;
use crate::config::values::AuthType;
use crate::engine::Engine;
use crate::engine::io::Effect;
use crate::keys::{ClientKey, Conn, PoolKey};
use crate::pool::peers::own_id;
use crate::pool::{House, Pool, Welcome, client_address};
use crate::ring::{Ring, Rings};
use crate::session::cancel_key::Tail;
use crate::session::client::{Client, ClientAddress, Counted, State};
use crate::session::client_login::{
    self, Goal, MAX_USER_BYTES, Pending, Replication, Rules, Startup,
};
use crate::session::farewell::Reason;
use crate::session::params::Parameters;
use crate::sys;
use crate::wire::backend::TxStatus;
use crate::wire::emit::{self, Full};
use crate::wire::startup::{self, First};
use std::sync::Arc;
use std::time::Instant;

/// What is known of who a client says it is.
pub(super) enum Identity {
    /// He is in the file of users, or it does not matter who he is.
    Listed,
    /// A database knows him.
    Asked(Account),
    /// Nobody knows him.
    Unknown,
}

impl Engine {
    /// Bytes came from a client that has not logged in.
    pub(super) fn login_received(&mut self, key: ClientKey, now: Instant) {
        if self.begins_with_tls(key) {
            return;
        }
        while let Some(first) = self.first_packet(key) {
            let outcome = match first {
                First::NeedMore => break,
                First::SslRequest => self.on_ssl_request(key),
                First::GssEncRequest => self.decline(key, Reason::DATA_AFTER_GSSENC),
                First::CancelRequest(bytes) if !startup::CANCEL_BYTES.contains(&bytes) => {
                    Err(Reason::BAD_CANCEL_REQUEST)
                }
                First::CancelRequest(bytes) if !self.has_come_in(key, bytes) => break,
                First::CancelRequest(bytes) => self.on_cancel_request(key, bytes, now),
                First::Startup { bytes, .. } if !self.has_come_in(key, bytes) => break,
                First::Startup { minor, bytes } => self.on_startup(key, minor, bytes, now),
                First::OldStartup => Err(Reason::OLD_PROTOCOL),
                First::Tagged(b'p') => Err(Reason::PASSWORD_BEFORE_STARTUP),
                First::Tagged(_) => Err(Reason::BAD_PACKET),
                First::Bad => Err(self.bad_header(key)),
            };
            if let Err(reason) = outcome {
                self.close_client(key, reason, now);
                return;
            }
        }
        let House { clients, rings, .. } = &mut self.house;
        if let Some(client) = clients.get_mut(key) {
            client.inbox.tidy(None, rings);
            // A client may send its first query together with its Startup.
            match client.state {
                State::Idle => self.client_goes_on(key, now),
                State::Proving(_) => self.proof_received(key, now),
                State::Console { .. } => self.effects.push_back(Effect::Attend { client: key }),
                _ => {}
            }
        }
    }

    /// `None`: it is not logging in any more.
    fn first_packet(&self, key: ClientKey) -> Option<First> {
        let client = self.house.clients.get(key)?;
        let is_new = matches!(client.state, State::LoggingIn) && !client.line.is_starting();
        if is_new { self.peek_first(key) } else { None }
    }

    /// The untagged packet that comes next, or what comes instead.
    pub(super) fn peek_first(&self, key: ClientKey) -> Option<First> {
        let client = self.house.clients.get(key)?;
        let ring = client.inbox.ring()?;
        Some(startup::peek(ring, client.inbox.judged(), self.config.settings.max_packet_size))
    }

    fn has_come_in(&self, key: ClientKey, bytes: u64) -> bool {
        self.house.clients.get(key).is_some_and(|client| client.inbox.has(bytes))
    }

    pub(super) fn bad_header(&self, key: ClientKey) -> Reason {
        let hex = self.house.clients.get(key).map(|client| client.inbox.hex());
        Reason::bad_header(&hex.unwrap_or_default())
    }

    /// "No" to a request for encryption. What stands behind it in the same read was sent by a
    /// client that did not wait for the answer, or by somebody in between.
    pub(super) fn decline(&mut self, key: ClientKey, trailing: Reason) -> Result<(), Reason> {
        let House { clients, rings, .. } = &mut self.house;
        let client = clients.get_mut(key).ok_or(Reason::BAD_PACKET)?;
        if client.inbox.unjudged() > startup::HEADER_BYTES {
            return Err(trailing);
        }
        client.inbox.skip(startup::HEADER_BYTES);
        client.inbox.tidy(None, rings);
        let told = self.tell_client(key, |ring| ring.push(b"N").then_some(()).ok_or(Full));
        told.map_err(|Full| Reason::BAD_PACKET)
    }

    fn on_startup(
        &mut self,
        key: ClientKey,
        minor: u16,
        bytes: u64,
        now: Instant,
    ) -> Result<(), Reason> {
        if self.lacks_tls(key) {
            return Err(Reason::SSL_REQUIRED);
        }
        let mut startup = self.read_startup(key, bytes)?;
        if let Some(client) = self.house.clients.get_mut(key) {
            // The client holds them from now on: what nobody holds may be collected.
            let unset = self.house.tracked.unset();
            client.parameters = std::mem::replace(&mut startup.parameters, unset);
            // As PgBouncer: on the console it means nothing.
            client.replicator = startup.replicator().filter(|_| startup.database != CONSOLE);
        }
        let settings = &self.config.settings;
        let limit = usize::try_from(settings.max_client_conn).unwrap_or(0);
        if startup.database != CONSOLE && self.house.open_clients() > limit {
            return Err(Reason::TOO_MANY_CLIENTS);
        }
        self.negotiate(key, minor, &startup.protocol_options)?;
        if startup.database == CONSOLE {
            return self.on_console_startup(key, startup, now);
        }
        self.identify(key, startup, now)
    }

    /// Tells a client what we do not speak of that which it asks for, if there is anything; and has
    /// it get the key that goes with its version.
    fn negotiate(&mut self, key: ClientKey, asked: u16, options: &[Vec<u8>]) -> Result<(), Reason> {
        let spoken =
            startup::spoken_minor(asked, self.config.settings.max_protocol_version.minor());
        if let Some(client) = self.house.clients.get_mut(key) {
            let is_longer = spoken >= startup::LONGER_KEYS_SINCE;
            client.secret_tail = is_longer.then(|| Box::new(Tail::random()));
        }
        if asked == spoken && options.is_empty() {
            return Ok(());
        }
        let options: Vec<&[u8]> = options.iter().map(Vec::as_slice).collect();
        self.tell_client(key, |ring| emit::negotiate_protocol_version(ring, spoken, &options))
            .map_err(|Full| Reason::WELCOME_FAILED)
    }

    fn read_startup(&mut self, key: ClientKey, bytes: u64) -> Result<Startup, Reason> {
        let settings = &self.config.settings;
        let House { clients, values, tracked, .. } = &mut self.house;
        let client = clients.get_mut(key).ok_or(Reason::BAD_PACKET)?;
        let body = client.inbox.copy(startup::HEADER_BYTES as usize, bytes);
        client.inbox.skip(bytes);
        let add_host = settings.application_name_add_host.is_on();
        let rules = Rules {
            tracked,
            ignored: &|name| settings.ignore_startup_parameters.contains(name),
            add_host: add_host.then(|| address_with_host(client.from, settings.listen_port)),
        };
        client_login::read(&body, &rules, values).map_err(|refused| {
            if let Some(warning) = refused.warning {
                log::warn!("{} {warning}", self.house.client_name(key, &self.config.settings));
            }
            refused.reason
        })
    }

    /// Finds out who a client says it is. That may take asking a database.
    fn identify(
        &mut self,
        key: ClientKey,
        mut startup: Startup,
        now: Instant,
    ) -> Result<(), Reason> {
        let (user, name) = (&startup.user, &startup.database);
        let database = self.database(key, name);
        if let Some(client) = self.house.clients.get_mut(key) {
            client.user = Some(user.as_str().into());
        }
        self.check_name(key, user, name)?;
        let auth_type = self.config.settings.auth_type;
        let is_known = match auth_type {
            AuthType::Any => {
                // The name that was asked for is nobody's.
                let forced = database.as_ref().and_then(|database| database.user.clone());
                startup.user = forced.ok_or(Reason::CONFIG_ERROR)?;
                true
            }
            _ => {
                let (name, replication) = (name.clone(), startup.replication);
                let goal = Goal::Database { name, pool: None, replication };
                let is_for_others = self.is_for_others(key, user, &goal);
                // As PgBouncer: two who know the users of a database are one too many.
                if is_for_others && database.as_ref().is_some_and(|d| d.auth_user.is_some()) {
                    return Err(Reason::CONFIG_ERROR);
                }
                is_for_others || self.access.userlist.contains(user)
            }
        };
        let login = Pending { startup, database, query: String::new() };
        if is_known {
            return self.on_identity(key, login, Identity::Listed, now);
        }
        match self.ask_about(key, login, now)? {
            Some(login) => self.on_identity(key, login, Identity::Unknown, now),
            None => Ok(()),
        }
    }

    /// Names that are too long are nobody's.
    pub(super) fn check_name(&self, key: ClientKey, user: &str, name: &str) -> Result<(), Reason> {
        if user.len() > MAX_USER_BYTES {
            log::info!("{} login failed: db={name} user={user}", self.name_of(key));
            return Err(Reason::USERNAME_TOO_LONG);
        }
        Ok(())
    }

    /// Decides whether a client is who it says. Whether its database exists is told only to
    /// somebody who has proven that.
    pub(super) fn on_identity(
        &mut self,
        key: ClientKey,
        login: Pending,
        identity: Identity,
        now: Instant,
    ) -> Result<(), Reason> {
        let Pending { startup, database, .. } = login;
        let (is_known, user, asked) = match identity {
            Identity::Listed => (true, startup.user, None),
            Identity::Unknown => (false, startup.user, None),
            // As PgBouncer: the name that the database tells is the session's.
            Identity::Asked(account) => (true, account.user, Some(account.secret)),
        };
        let secrets = match &asked {
            Some(secret) => Arc::new(secret.iter().cloned().map(Known::from).collect()),
            None => self.access.userlist.secrets(&user),
        };
        if let Some(client) = self.house.clients.get_mut(key) {
            client.user = Some(user.as_str().into());
        }
        if !is_known {
            log::info!("{} no such user: {user}", self.name_of(key));
        }
        let claim = Claim { user, secrets };
        if startup.database == CONSOLE {
            return self.on_console_identity(key, startup.replication, (claim, is_known), now);
        }
        let Claim { user, secrets } = claim;
        let Startup { database: name, replication, .. } = startup;
        let mut goal = Goal::Database { name, pool: None, replication };
        if let Some(database) = &database {
            // Whoever is nobody does not count there; but if he were let through where others are
            // not, that would tell that he is.
            self.admit_to_database(key, database, &goal, &user)?;
        }
        let known_pool = match database.filter(|_| is_known) {
            Some(database) => Some(self.find_pool(key, &database, &user)?),
            None => {
                self.admit_user(key, &user)?;
                None
            }
        };
        if let (Some(pool), Some(secret)) = (known_pool, asked) {
            self.learn_secret((pool, &user), secret);
        }
        self.log_login_attempt(key, goal.name(), &user, replication);
        if let Goal::Database { pool, .. } = &mut goal {
            *pool = known_pool;
        }
        self.have_proven(key, (Claim { user, secrets }, is_known), goal, now)
    }

    fn admit_to_database(
        &self,
        key: ClientKey,
        database: &Database,
        goal: &Goal,
        user: &str,
    ) -> Result<(), Reason> {
        let own = database.max_db_client_connections;
        match self.house.database_admits(&database.name, own, &self.config) {
            // As PgBouncer: for a directory's users there is no limit by database.
            Err(full) if !self.is_for_directory(key, user, goal) => Err(full),
            _ => Ok(()),
        }
    }

    /// The pool of a client, for which it counts from now on.
    fn find_pool(
        &mut self,
        key: ClientKey,
        database: &Arc<Database>,
        user: &str,
    ) -> Result<PoolKey, Reason> {
        self.house.user_admits(user, &self.config)?;
        let login = database.user.as_deref().unwrap_or(user);
        let pool = self.house.pool(database, login, &self.config);
        self.house.join_pool(key, pool);
        Ok(pool)
    }

    /// Somebody has left this pool. If it is made up, it goes with the last of them: or else memory
    /// would grow with each name that somebody without a password thinks of. (If it has tried to
    /// open a server, that is remembered for as long as it takes to the next attempt.)
    pub(super) fn forget_if_made_up(&mut self, key: PoolKey) {
        let Some(pool) = self.house.pools.get(key) else {
            return;
        };
        let is_needed =
            pool.members > 0 || pool.servers.total() > 0 || pool.attempts.last.is_some();
        if !is_needed && pool.askers.is_empty() && self.is_made_up(pool) {
            self.house.remove_pool(key);
        }
    }

    /// Whether nobody has ever been let into this pool, by us or by a server, and its name or that of
    /// its user is one that anybody can make up.
    pub(super) fn is_made_up(&self, pool: &Pool) -> bool {
        let was_used = pool.welcome.is_some() || pool.stats.total.client_logins > 0;
        let user_is_listed = pool.database.user.is_some()
            || self.access.userlist.contains(&pool.user)
            || self.config.users.contains_key(&pool.user);
        let is_listed = user_is_listed && self.config.databases.contains_key(&pool.database.name);
        !was_used && !is_listed
    }

    /// Somebody who will not get to any database counts all the same, if his name is one that we
    /// know from anywhere: or else guessing his password would not have his limit.
    pub(super) fn admit_user(&mut self, key: ClientKey, user: &str) -> Result<(), Reason> {
        if self.access.userlist.contains(user) || self.config.users.contains_key(user) {
            self.house.user_admits(user, &self.config)?;
            self.house.count(key, Counted::User);
        }
        Ok(())
    }

    pub(super) fn log_login_attempt(
        &self,
        key: ClientKey,
        name: &str,
        user: &str,
        replication: Replication,
    ) {
        if self.config.settings.log_connections.is_on() {
            let client = self.name_of(key);
            let replication = match replication {
                Replication::No => "no",
                Replication::Logical => "database",
                Replication::Physical => "yes",
            };
            let tls = self.tls_text(key);
            log::info!(
                "{client} login attempt: db={name} user={user} tls={tls} replication={replication}"
            );
        }
    }

    pub(super) fn name_of(&self, key: ClientKey) -> impl std::fmt::Display {
        self.house.client_name(key, &self.config.settings)
    }

    /// The entry of this name, one made from `*`, or none.
    pub(super) fn database(&mut self, key: ClientKey, name: &str) -> Option<Arc<Database>> {
        if let Some(database) = self.config.databases.get(name) {
            return Some(database.clone());
        }
        // What `*` makes of a name is the same until the next reload, which tells all pools.
        if let Some(pool) = self.house.pool_of(name) {
            return Some(pool.database.clone());
        }
        let database = match self.config.auto(name)? {
            Ok(database) => Arc::new(database),
            Err(error) => {
                error.log();
                return None;
            }
        };
        log::info!("{} registered new auto-database: {name}", self.name_of(key));
        Some(database)
    }

    /// Somebody has proven who he is: he is welcomed, as soon as we know with which words.
    pub(super) fn let_in(
        &mut self,
        key: ClientKey,
        pool: PoolKey,
        now: Instant,
    ) -> Result<(), Reason> {
        let database = self.house.pools.get(pool).map(|pool| pool.database.name.as_str());
        if let Some(name) = database.filter(|name| self.house.disabled_databases.contains(*name)) {
            return Err(Reason::ToldOf(format!("database \"{name}\" is disabled")));
        }
        if self.house.mode.is_shutting_down() {
            return Err(Reason::POOLER_SHUTTING_DOWN);
        }
        if let Some(pool) = self.house.pools.get_mut(pool) {
            pool.stats.total.client_logins += 1;
        }
        self.house.set_patience(key, &self.config);
        self.tend(pool, now);
        if self.house.pools.get(pool).is_some_and(|pool| pool.welcome.is_some()) {
            self.welcome(key, pool, None)?;
            self.house.note_login(key, now);
            self.watch(Conn::Client(key), now);
            return Ok(());
        }
        self.house.set_client_state(key, State::AwaitingWelcome { since: now });
        self.watch(Conn::Client(key), now);
        self.staff(pool, now);
        self.house.note_cause(key);
        Ok(())
    }

    /// A pool has learned its welcome: everybody who waits for that is let in.
    pub(super) fn welcome_waiting(&mut self, pool: PoolKey, now: Instant) {
        let Some(waiting) = self.house.pools.get(pool).map(|pool| &pool.waiting) else {
            return;
        };
        for key in waiting.keys(&self.house.clients) {
            let state = self.house.clients.get(key).map(|client| &client.state);
            if !matches!(state, Some(State::AwaitingWelcome { .. })) {
                continue;
            }
            self.house.wait_ends(key, now);
            match self.welcome(key, pool, None) {
                Ok(()) => {
                    self.house.note_login(key, now);
                    self.watch(Conn::Client(key), now);
                    self.client_goes_on(key, now);
                }
                Err(reason) => self.close_client(key, reason, now),
            }
        }
    }

    /// With the words of its pool, or its `own`.
    pub(super) fn welcome(
        &mut self,
        key: ClientKey,
        pool_key: PoolKey,
        own: Option<&Welcome>,
    ) -> Result<(), Reason> {
        self.house.settle_key(key, own_id(&self.config.settings));
        let House { clients, pools, rings, values, tracked, .. } = &mut self.house;
        let welcome = own.or(pools.get(pool_key).and_then(|pool| pool.welcome.as_ref()));
        let (Some(client), Some(welcome)) = (clients.get_mut(key), welcome) else {
            return Err(Reason::CONFIG_ERROR);
        };
        client.parameters.fill_from(&welcome.defaults);
        // Nothing but the server's own words: they need not be tried.
        client.parameters_proven = client.parameters == welcome.defaults;
        let notice = self.config.settings.login_notify_message.as_bytes();
        greet(client, rings, notice, |ring, parameters| {
            ring.push(&welcome.untracked).then_some(()).ok_or(Full)?;
            let all = (parameters, &welcome.defaults);
            welcome.statuses.write(ring, all, (tracked, values))
        })?;
        self.house.set_client_state(key, State::Idle);
        self.make_runnable(Conn::Client(key));
        Ok(())
    }
}

/// Writes the welcome: all that the client is to know, as `statuses` puts it into the ring, its key,
/// and the operator's word.
pub(super) fn greet(
    client: &mut Client,
    rings: &mut Rings,
    notice: &[u8],
    statuses: impl FnOnce(&mut Ring, &Parameters) -> Result<(), Full>,
) -> Result<(), Reason> {
    let Client { egress, parameters, secret, secret_tail, .. } = client;
    let written = egress.push_own(rings, |ring| {
        let start = ring.filled();
        let whole = (|| {
            emit::authentication_ok(ring)?;
            statuses(ring, parameters)?;
            let rest = secret_tail.as_ref().map_or(&[][..], |tail| &tail.0);
            emit::backend_key_data(ring, secret, rest)?;
            if !notice.is_empty() {
                emit::notice(ring, notice)?;
            }
            emit::ready_for_query(ring, TxStatus::Idle)
        })();
        // A half welcome must not be sent.
        whole.inspect_err(|Full| ring.unfill(start))
    });
    written.map_err(|Full| Reason::WELCOME_FAILED)
}

/// A client's address as `application_name_add_host` shows it to servers, which may see clients of
/// several machines: for Unix sockets it names ours.
fn address_with_host(from: ClientAddress, listen_port: i32) -> String {
    match from {
        ClientAddress::Unix { pid, .. } if pid != 0 => {
            format!("unix({pid}@{}):{listen_port}", sys::host_name())
        }
        from => client_address(from, listen_port),
    }
}
