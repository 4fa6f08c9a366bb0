//! Handing the house over to another process, while it is suspended: what that is told of each
//! connection besides its row in SHOW FDS, and how it takes in what it is told.
//!
//! The rows of SHOW FDS are PgBouncer's, and say too little: not which replies a server still
//! owes, nor what its client has prepared. Without that a server could go to another client too
//! early. So between two of us there are more words, a row of [`Kind`] and bytes for each thing;
//! from any other process only clients without a server are taken over.

use crate::engine::Engine;
use crate::engine::io::{ClientAddress, ServerAddress};
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::queues::End;
use crate::pool::{House, Learned, Welcome};
use crate::session::cancel_key::Tail;
use crate::session::client::{self, Client};
use crate::session::client_login::{Replication, Replicator};
use crate::session::handover::{Packer, Unpacker, VERSION};
use crate::session::params::{Parameters, Tracked, Values};
use crate::session::pipeline::Pipeline;
use crate::session::prepared::{
    Carried, ClientStatements, ServerStatements, Statement, Statements,
};
use crate::session::server::{self, Activity, Purpose, Server};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The house; comes first.
    House,
    /// A prepared statement; they come before those who use them.
    Statement,
    /// A pool.
    Pool,
    /// A client.
    Client,
    /// A server.
    Server,
}

impl Kind {
    const ALL: [(Kind, &'static str); 5] = [
        (Kind::House, "house"),
        (Kind::Statement, "statement"),
        (Kind::Pool, "pool"),
        (Kind::Client, "client"),
        (Kind::Server, "server"),
    ];

    /// As the row names it.
    pub fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The other way round.
    pub fn find(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == word).map(|(kind, _)| kind)
    }
}

/// A client or a server as its row in SHOW FDS tells of it.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// A client's login name, or whom the server logged in as.
    pub user: String,
    /// The database's entry.
    pub database: String,
    /// The key to cancel with.
    pub cancel: u64,
    /// Names and values of tracked parameters.
    pub parameters: Vec<(&'static str, String)>,
    /// What one of us says of it besides.
    pub more: Option<Vec<u8>>,
}

/// All that is to be told, row by row.
pub type Rows = Vec<(Kind, Option<Conn>, Vec<u8>)>;

impl Engine {
    /// What the next process is told besides the rows of SHOW FDS.
    pub fn rows_to_hand_over(&self, now: Instant) -> Rows {
        let house = &self.house;
        let mut rows = vec![(Kind::House, None, self.pack_house())];
        for statement in house.statements.iter() {
            let mut packer = Packer::default();
            packer.number(statement.id());
            packer.text(statement.body());
            rows.push((Kind::Statement, None, packer.0));
        }
        for (_, pool) in house.pools.iter() {
            let mut packer = Packer::default();
            packer.text(pool.database.name.as_bytes());
            packer.text(pool.user.as_bytes());
            packer.flag(pool.welcome.is_some());
            if let Some(welcome) = &pool.welcome {
                packer.text(&welcome.untracked);
                pack_parameters(&mut packer, &welcome.defaults, (&house.tracked, &house.values));
            }
            packer.text(pool.learned.secret.as_ref().map_or(b"", |secret| secret.expose()));
            packer.text(pool.learned.client_key.as_ref().map_or(b"", |key| key));
            rows.push((Kind::Pool, None, packer.0));
        }
        for (key, client) in house.clients.iter().filter(|(_, client)| !client.on_console) {
            rows.push((Kind::Client, Some(Conn::Client(key)), self.pack_client(client, now)));
        }
        for (key, server) in house.servers.iter() {
            rows.push((Kind::Server, Some(Conn::Server(key)), self.pack_server(server, now)));
        }
        rows
    }

    fn pack_house(&self) -> Vec<u8> {
        let mut packer = Packer::default();
        packer.number(VERSION);
        packer.number(self.house.statements.last_id());
        packer.number(self.house.disabled_databases.len() as u64);
        for name in &self.house.disabled_databases {
            packer.text(name.as_bytes());
        }
        packer.0
    }

    fn pack_client(&self, client: &Client, now: Instant) -> Vec<u8> {
        let mut packer = Packer::default();
        let names = (&self.house.tracked, &self.house.values);
        pack_parameters(&mut packer, &client.parameters, names);
        packer.flag(client.parameters_proven);
        packer.flag(client.is_copying_in());
        packer.flag(client.skips_to_sync);
        pack_age(&mut packer, client.connected_at, now);
        packer.flag(client.query_since.is_some());
        packer.flag(client.transaction_since.is_some());
        packer.flag(client.statements.is_some());
        if let Some(statements) = &client.statements {
            statements.pack(&mut packer);
        }
        pack_replicator(&mut packer, client.replicator.as_deref());
        packer.text(client.secret_tail.as_ref().map_or(&[], |tail| &tail.0));
        client.unnamed.pack(&mut packer);
        packer.0
    }

    fn pack_server(&self, server: &Server, now: Instant) -> Vec<u8> {
        let mut packer = Packer::default();
        let names = (&self.house.tracked, &self.house.values);
        pack_parameters(&mut packer, &server.parameters, names);
        packer.number(server.activity as u64);
        packer.text(&server.cancel_key);
        packer.flag(server.has_served);
        packer.flag(server.close_needed || server.may_be_hit);
        pack_age(&mut packer, server.connected_at, now);
        server.statements.pack(&mut packer);
        server.pipeline.pack(&mut packer);
        packer.flag(server.in_transaction);
        packer.flag(server.transaction_failed);
        packer.0
    }

    /// Takes in what is told of the whole. `None`: that is not for us, and nobody's state is.
    pub fn adopt_house(&mut self, told: &[u8]) -> Option<()> {
        let mut unpacker = Unpacker(told);
        if unpacker.number()? != VERSION {
            return None;
        }
        let last_id = unpacker.number()?;
        self.house.statements.continue_from(last_id);
        for _ in 0..unpacker.count()? {
            let name = String::from_utf8(unpacker.text()?.to_vec()).ok()?;
            self.house.disabled_databases.insert(name);
        }
        Some(())
    }

    /// Takes in a prepared statement.
    pub fn adopt_statement(
        &mut self,
        told: &[u8],
        known: &mut HashMap<u64, Arc<Statement>>,
    ) -> Option<()> {
        let mut unpacker = Unpacker(told);
        let id = unpacker.number()?;
        let statement = self.house.statements.restore(id, unpacker.text()?)?;
        known.insert(id, statement);
        Some(())
    }

    /// Takes in what is known of a pool. A database that there is no longer is left out.
    pub fn adopt_pool(&mut self, told: &[u8]) -> Option<()> {
        let mut unpacker = Unpacker(told);
        let name = str::from_utf8(unpacker.text()?).ok()?;
        let user = str::from_utf8(unpacker.text()?).ok()?;
        let database = self.entry(name)?;
        let House { tracked, values, .. } = &mut self.house;
        let welcome = match unpacker.flag()? {
            true => {
                let untracked = unpacker.text()?.to_vec();
                let defaults = unpack_parameters(&mut unpacker, (tracked, values))?;
                Some(Welcome::new(untracked, defaults, (tracked, values)))
            }
            false => None,
        };
        let secret = unpacker.text()?;
        let client_key = unpacker.text()?.try_into().ok();
        let secret = (!secret.is_empty()).then(|| crate::config::values::Secret::new(secret));
        let key = self.house.pool_as(&database, user, &self.config);
        let pool = self.house.pools.get_mut(key)?;
        pool.welcome = welcome;
        if !self.access.userlist.contains(user) || secret.is_none() {
            pool.learned = Learned { secret, client_key };
        }
        Some(())
    }

    /// Takes in a client, as one who has nothing to do with a server; and whether it may send
    /// CopyData. `None`: its database is not there any more, or what is told of it makes no sense.
    pub fn adopt_client(
        &mut self,
        passed: &Passed,
        from: ClientAddress,
        known: &HashMap<u64, Arc<Statement>>,
        now: Instant,
    ) -> Option<(ClientKey, bool)> {
        let database = self.entry(&passed.database)?;
        let House { tracked, values, statements, .. } = &mut self.house;
        let parameters = named_parameters(&passed.parameters, (tracked, values));
        let mut client = Client::new(from, passed.cancel.to_be_bytes(), parameters, now);
        let copying_in = match &passed.more {
            Some(told) => {
                let known = (known, statements);
                unpack_client(&mut client, told, (tracked, values), known, now)?
            }
            None => false,
        };
        client.user = Some(passed.user.as_str().into());
        let replication = client.replicator.as_ref().map_or(Replication::No, |own| own.kind);
        let key = self.house.admit_client(client);
        let login = database.user.as_deref().unwrap_or(&passed.user);
        let pool = self.house.pool(&database, login, &self.config);
        self.house.join_pool(key, pool);
        self.log_login_attempt(key, &passed.database, &passed.user, replication);
        self.house.set_client_state(key, client::State::Idle);
        self.house.set_patience(key, &self.config);
        self.watch(Conn::Client(key), now);
        Some((key, copying_in))
    }

    /// Takes in a server, as one that is free.
    pub fn adopt_server(
        &mut self,
        passed: &Passed,
        address: ServerAddress,
        known: &HashMap<u64, Arc<Statement>>,
        now: Instant,
    ) -> Option<ServerKey> {
        let database = self.entry(&passed.database)?;
        let pool = self.house.pool_as(&database, &passed.user, &self.config);
        let House { tracked, values, .. } = &mut self.house;
        let mut server = Server::new(Purpose::Serve, pool, tracked.unset(), now);
        unpack_server(&mut server, passed.more.as_ref()?, (tracked, values), known, now)?;
        server.address = Some(address);
        let key = self.house.admit_server(server);
        self.house.set_server_state(key, server::State::Idle { since: now }, End::Back);
        self.watch(Conn::Server(key), now);
        Some(key)
    }

    /// Brings together again who belongs together. `false`: they do not, here.
    pub fn adopt_link(
        &mut self,
        (client, copying_in): (ClientKey, bool),
        server: ServerKey,
        now: Instant,
    ) -> bool {
        let House { clients, servers, .. } = &self.house;
        let (Some(one), Some(other)) = (clients.get(client), servers.get(server)) else {
            return false;
        };
        let is_free = one.state == client::State::Idle
            && matches!(other.state, server::State::Idle { .. })
            && one.pool == Some(other.pool);
        if !is_free {
            return false;
        }
        let replicates = one.replicator.is_some();
        // Who replicates keeps the server that was opened for it, and nobody else ever gets that.
        if let Some(server) = self.house.servers.get_mut(server) {
            server.replicates_for = replicates.then_some(client);
            server.last_client = Some(client);
        }
        self.house.set_client_state(client, client::State::Active { server, copying_in });
        self.house.set_server_state(server, server::State::Active { client }, End::Back);
        self.watch(Conn::Server(server), now);
        true
    }

    /// Whether a server that has come without a client may serve one.
    pub fn is_adopted_well(&self, server: ServerKey) -> bool {
        self.house.servers.get(server).is_some_and(Server::is_done)
    }

    /// Nobody can take this one in after all.
    pub fn give_up(&mut self, conn: Conn, now: Instant) {
        use crate::session::farewell::Reason;
        match conn {
            Conn::Client(key) => self.close_client(key, Reason::CLIENT_UNEXPECTED_EOF, now),
            Conn::Server(key) => self.close_server(key, Reason::SERVER_CRASHED, now),
        }
    }
}

const REPLICATIONS: [Replication; 3] =
    [Replication::No, Replication::Logical, Replication::Physical];

fn pack_replicator(packer: &mut Packer, replicator: Option<&Replicator>) {
    packer.number(replicator.map_or(Replication::No, |own| own.kind) as u64);
    let options = replicator.and_then(|own| own.options.as_deref());
    packer.flag(options.is_some());
    packer.text(options.unwrap_or_default());
}

/// An older process says nothing about it.
fn unpack_replicator(unpacker: &mut Unpacker<'_>) -> Option<Option<Box<Replicator>>> {
    if unpacker.0.is_empty() {
        return Some(None);
    }
    let kind = *REPLICATIONS.get(usize::try_from(unpacker.number()?).ok()?)?;
    let (has_options, options) = (unpacker.flag()?, unpacker.text()?);
    let options = has_options.then(|| options.into());
    Some((kind != Replication::No).then(|| Box::new(Replicator { kind, options })))
}

fn pack_age(packer: &mut Packer, since: Instant, now: Instant) {
    let age = now.saturating_duration_since(since).as_millis();
    packer.number(u64::try_from(age).unwrap_or(u64::MAX));
}

fn unpack_age(unpacker: &mut Unpacker<'_>, now: Instant) -> Option<Instant> {
    let age = Duration::from_millis(unpacker.number()?);
    Some(now.checked_sub(age).unwrap_or(now))
}

fn pack_parameters(
    packer: &mut Packer,
    parameters: &Parameters,
    (tracked, values): (&Tracked, &Values),
) {
    let names = tracked.names().iter().enumerate();
    let set = names.filter_map(|(index, name)| {
        values.text(parameters.value(index)).map(|value| (name.as_bytes(), value))
    });
    let set: Vec<(&[u8], &[u8])> = set.collect();
    packer.number(set.len() as u64);
    for (name, value) in set {
        packer.text(name);
        packer.text(value);
    }
}

/// Names that are not tracked any more are left out.
fn unpack_parameters(
    unpacker: &mut Unpacker<'_>,
    (tracked, values): (&Tracked, &mut Values),
) -> Option<Parameters> {
    let mut parameters = tracked.unset();
    for _ in 0..unpacker.count()? {
        let (name, value) = (unpacker.text()?, unpacker.text()?);
        if let Some(index) = tracked.index_of(name) {
            parameters.set(index, values.intern(value));
        }
    }
    Some(parameters)
}

fn named_parameters(
    named: &[(&str, String)],
    (tracked, values): (&Tracked, &mut Values),
) -> Parameters {
    let mut parameters = tracked.unset();
    for (name, value) in named {
        if let Some(index) = tracked.index_of(name.as_bytes()) {
            parameters.set(index, values.intern(value.as_bytes()));
        }
    }
    parameters
}

fn unpack_client(
    client: &mut Client,
    told: &[u8],
    names: (&Tracked, &mut Values),
    (known, all): (&HashMap<u64, Arc<Statement>>, &mut Statements),
    now: Instant,
) -> Option<bool> {
    let mut unpacker = Unpacker(told);
    client.parameters = unpack_parameters(&mut unpacker, names)?;
    client.parameters_proven = unpacker.flag()?;
    let copying_in = unpacker.flag()?;
    client.skips_to_sync = unpacker.flag()?;
    client.connected_at = unpack_age(&mut unpacker, now)?;
    client.query_since = unpacker.flag()?.then_some(now);
    client.transaction_since = unpacker.flag()?.then_some(now);
    let statement = |id| known.get(&id).cloned();
    if unpacker.flag()? {
        let statements = ClientStatements::unpack(&mut unpacker, &statement, all)?;
        client.statements = Some(Box::new(statements));
    }
    client.replicator = unpack_replicator(&mut unpacker)?;
    client.secret_tail = match unpacker.text()? {
        [] => None,
        tail => Some(Box::new(Tail(tail.try_into().ok()?))),
    };
    client.unnamed = Carried::unpack(&mut unpacker, &statement)?;
    Some(copying_in)
}

fn unpack_server(
    server: &mut Server,
    told: &[u8],
    names: (&Tracked, &mut Values),
    known: &HashMap<u64, Arc<Statement>>,
    now: Instant,
) -> Option<()> {
    let mut unpacker = Unpacker(told);
    let statement = |id| known.get(&id).cloned();
    server.parameters = unpack_parameters(&mut unpacker, names)?;
    server.activity = match unpacker.number()? {
        0 => Activity::Ready,
        1 => Activity::InTransaction,
        2 => Activity::Busy,
        _ => return None,
    };
    server.cancel_key = unpacker.text()?.to_vec();
    server.has_served = unpacker.flag()?;
    server.close_needed = unpacker.flag()?;
    server.connected_at = unpack_age(&mut unpacker, now)?;
    server.statements = ServerStatements::unpack(&mut unpacker, &statement)?;
    server.pipeline = Pipeline::unpack(&mut unpacker, &statement)?;
    server.in_transaction = unpacker.flag()?;
    server.transaction_failed = unpacker.flag()?;
    Some(())
}
