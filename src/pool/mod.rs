//! Who works for whom.
//!
//! The [`House`] holds all clients, servers and pools. [`queues`] is the one place that moves a
//! connection from one state to another, [`link`] brings a client and a server together and takes
//! them apart, [`sizing`] decides when to open another server, [`groups`] counts what limits of
//! databases and users are about, [`hosts`] knows which of them fail, [`names`] where those are that have names, [`zones`] when that may have changed, [`alarms`] when to look at a pool again, [`cancel`] pairs CancelRequests
//! with their targets, [`peers`] are where the others go, [`limits`] says how long what may take, [`watch`] whom to look at next, [`janitor`] whose time is up, [`stats`] counts. [`replication`] whose servers nobody else gets. [`mode`] is what the operator has
//! ordered for all of it.

pub mod alarms;
pub mod cancel;
pub mod causes;
pub mod groups;
pub mod hosts;
pub mod janitor;
pub mod limits;
pub mod link;
pub mod mode;
pub mod names;
pub mod peers;
pub mod queues;
pub mod replication;
pub mod sizing;
pub mod stats;
pub mod times;
pub mod watch;
pub mod zones;

use crate::auth::digest::KEY_BYTES;
use crate::config::entries::Database;
use crate::config::values::{PoolMode, Secret};
use crate::config::{CONSOLE, Config, settings::Settings};
use crate::keys::{ClientKey, Conn, GroupKey, Keyed, PoolKey, ServerKey};
use crate::ring::Rings;
use crate::session::client::{Client, ClientAddress};
use crate::session::params::{Parameters, Tracked, Values};
use crate::session::prepared::Statements;
use crate::session::server::{Server, ServerAddress};
use crate::session::statuses::Statuses;
use alarms::Alarms;
use cancel::Keyring;
use causes::{Endings, Rescues, Waits};
use groups::{Groups, Kind};
use hashbrown::{Equivalent, HashMap};
use hosts::Hosts;
use limits::WorkLimits;
use mode::Mode;
use names::Names;
use peers::PeerPools;
use queues::{Queue, ServerQueues};
use stats::{Periods, Stats};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use times::Times;
use watch::Watches;
use zones::Zones;

/// All connections, and the pools that they belong to.
pub struct House {
    /// Whether we serve, pause or come to an end.
    pub mode: Mode,
    /// Everybody who connected to us.
    pub clients: Keyed<ClientKey, Client>,
    /// Every connection that we opened.
    pub servers: Keyed<ServerKey, Server>,
    /// Every pool that was ever asked for.
    pub pools: Keyed<PoolKey, Pool>,
    /// Clients that have not said or proven who they are, oldest first.
    pub logging_in: Queue<ClientKey>,
    /// Where rings come from.
    pub rings: Rings,
    /// The texts of tracked parameters.
    pub values: Values,
    /// The names of tracked parameters.
    pub tracked: Tracked,
    /// The prepared statements of everybody.
    pub statements: Statements,
    /// Who may cancel with which key.
    pub keyring: Keyring,
    /// Clients that are closed at the end of the turn.
    pub closing_clients: usize,
    /// Clients that wait to replicate, in all pools.
    pub replicators_waiting: usize,
    /// Databases that the operator has paused by name.
    pub paused_databases: BTreeSet<String>,
    /// Databases that nobody new is let into.
    pub disabled_databases: BTreeSet<String>,
    /// Clients on the admin console.
    pub console_clients: usize,
    /// Over which times averages go.
    pub periods: Periods,
    /// The number of the connection that came last.
    pub last_serial: u32,
    /// Why connections have ended.
    pub endings: Endings,
    /// What became of servers whose clients went in the middle of something.
    pub rescues: Rescues,
    /// What was done on the console.
    pub console_stats: Stats,
    /// What limits of databases and users count.
    pub groups: Groups,
    /// Hosts that fail.
    pub hosts: Hosts,
    /// The names of hosts, and their addresses.
    pub names: Names,
    /// The zones of those names.
    pub zones: Zones,
    /// Cancel requests on their way to other poolers.
    pub peer_pools: PeerPools,
    /// When to look at which pool again.
    pub alarms: Alarms,
    /// When to look at which connection again.
    pub watches: Watches,
    by_name: HashMap<PoolName, PoolKey>,
}

/// Servers for one database and user, and the clients that share them.
#[derive(Debug)]
pub struct Pool {
    /// The database's entry, as last loaded.
    pub database: Arc<Database>,
    /// Who its servers log in as.
    pub user: String,
    /// When a server goes back.
    pub mode: PoolMode,
    /// How long things took here.
    pub times: Times,
    /// Why clients waited here.
    pub waits: Waits,
    /// The entry of its database forced this user, and forces another now: nobody works on as him.
    pub has_lost_user: bool,
    /// Whether its database is paused; changed together with `House::paused_databases`.
    pub is_paused: bool,
    /// How many servers at most; `None`: no limit.
    pub size: Option<usize>,
    /// How many more in need.
    pub reserve: usize,
    /// How many are kept open.
    pub min_size: usize,
    /// How long its servers may work for one client.
    pub limits: WorkLimits,
    /// How long its servers may be free before they are tried out; `None`: for ever.
    pub check_after: Option<Duration>,
    /// How old its servers may be; zero: they are used once.
    pub lifetime: Duration,
    /// When the last one ended that was too old.
    pub retired_at: Option<Instant>,
    /// Its database's group and its user's.
    pub groups: [GroupKey; 2],
    /// The group that is full while its clients wait.
    pub blocked_by: Option<GroupKey>,
    /// Until when a place in its other group is kept for it meanwhile.
    pub claims_until: Option<Instant>,
    /// How many clients count as its own, those that are still logging in included.
    pub members: usize,
    /// Since when nobody has needed it, if that is so.
    pub unused_since: Option<Instant>,
    /// When it is looked at again.
    alarm: Option<Instant>,
    /// Its servers, by what they are doing.
    pub servers: ServerQueues,
    /// Clients that wait for a server, or for the welcome; longest first.
    pub waiting: Queue<ClientKey>,
    /// How many of those replicate: each waits for a server of its own.
    pub replicators_waiting: usize,
    /// Clients of any database that wait for a server of this pool to tell who they are; longest
    /// first.
    pub askers: VecDeque<ClientKey>,
    /// Cancel requests for which no connection is being opened yet, oldest first.
    pub cancels: Queue<ClientKey>,
    /// Servers whose clients have gone, and whose queries are to be cancelled.
    pub own_cancels: VecDeque<ServerKey>,
    /// Cancel requests for which one is.
    pub dialled_cancels: Queue<ClientKey>,
    /// Clients that are logged in and do not wait.
    pub active_clients: usize,
    /// What clients are welcomed with, once a server has told us.
    pub welcome: Option<Welcome>,
    /// What became of the last attempts to open a server.
    pub attempts: Attempts,
    /// What its clients have brought to log in to servers with.
    pub learned: Learned,
    /// What it has done.
    pub stats: Stats,
}

/// What clients have brought that proved who they are, and their servers accept as well.
#[derive(Default)]
pub struct Learned {
    /// A password, or what is kept instead of one.
    pub secret: Option<Secret>,
    /// The ClientKey of SCRAM.
    pub client_key: Option<[u8; KEY_BYTES]>,
}

impl fmt::Debug for Learned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Learned(****)")
    }
}

/// The name of a database's entry, and of the user who logs in to its servers.
#[derive(Debug, PartialEq, Eq, Hash)]
struct PoolName(String, String);

/// Looked up at each login, which need not make a copy of both for that.
impl Equivalent<PoolName> for (&str, &str) {
    fn equivalent(&self, PoolName(database, user): &PoolName) -> bool {
        *self == (database.as_str(), user.as_str())
    }
}

/// What the first server of a pool told us.
#[derive(Debug)]
pub struct Welcome {
    /// ParameterStatus messages, ready to be sent.
    pub untracked: Vec<u8>,
    /// Its values of the tracked parameters: the defaults of clients that ask for no other.
    pub defaults: Parameters,
    /// The same as messages: most clients ask for nothing else but an `application_name`.
    pub statuses: Statuses,
}

impl Welcome {
    /// Of a server that has these values.
    pub fn new(
        untracked: Vec<u8>,
        defaults: Parameters,
        (tracked, values): (&Tracked, &Values),
    ) -> Self {
        let statuses = Statuses::new(&defaults, tracked, values);
        Self { untracked, defaults, statuses }
    }
}

/// How opening servers went lately.
#[derive(Debug, Default)]
pub struct Attempts {
    /// When the last one began.
    pub last: Option<Instant>,
    /// Why the last one failed; `None`: it did not.
    pub failure: Option<String>,
    /// Whether that says something about the host.
    pub is_of_host: bool,
    /// How many failed in a row.
    pub failures: u32,
    /// Before this there is no other.
    pub retry_at: Option<Instant>,
    /// Which host of a list comes next.
    pub host: usize,
}

impl House {
    /// An empty house.
    pub fn new(ring_bytes: usize, tracked: Tracked, periods: Periods) -> Self {
        Self {
            mode: Mode::default(),
            clients: Keyed::default(),
            servers: Keyed::default(),
            pools: Keyed::default(),
            logging_in: Queue::default(),
            rings: Rings::new(ring_bytes),
            values: Values::default(),
            tracked,
            statements: Statements::default(),
            keyring: Keyring::default(),
            closing_clients: 0,
            replicators_waiting: 0,
            paused_databases: BTreeSet::new(),
            disabled_databases: BTreeSet::new(),
            console_clients: 0,
            periods,
            last_serial: 0,
            endings: Endings::default(),
            rescues: Rescues::default(),
            console_stats: Stats::default(),
            groups: Groups::default(),
            hosts: Hosts::default(),
            names: Names::default(),
            zones: Zones::default(),
            peer_pools: PeerPools::default(),
            alarms: Alarms::default(),
            watches: Watches::default(),
            by_name: HashMap::new(),
        }
    }

    /// The pool of this database and user; a new one if nobody asked for it yet.
    pub fn pool(&mut self, database: &Arc<Database>, login: &str, config: &Config) -> PoolKey {
        self.pool_as(database, database.user.as_deref().unwrap_or(login), config)
    }

    /// The pool of this database and this very user, whomever the database's entry forces.
    pub fn pool_as(&mut self, database: &Arc<Database>, user: &str, config: &Config) -> PoolKey {
        if let Some(key) = self.by_name.get(&(database.name.as_str(), user)) {
            return *key;
        }
        let groups =
            [self.groups.join(Kind::Database, &database.name), self.groups.join(Kind::User, user)];
        let mut pool = Pool {
            database: database.clone(),
            user: user.to_string(),
            mode: PoolMode::Session,
            times: Times::default(),
            waits: Waits::default(),
            has_lost_user: false,
            is_paused: self.paused_databases.contains(&database.name),
            size: None,
            reserve: 0,
            min_size: 0,
            limits: WorkLimits::default(),
            check_after: None,
            lifetime: Duration::ZERO,
            retired_at: None,
            groups,
            blocked_by: None,
            claims_until: None,
            members: 0,
            unused_since: None,
            alarm: None,
            servers: ServerQueues::default(),
            waiting: Queue::default(),
            replicators_waiting: 0,
            askers: VecDeque::new(),
            cancels: Queue::default(),
            own_cancels: VecDeque::new(),
            dialled_cancels: Queue::default(),
            active_clients: 0,
            welcome: None,
            attempts: Attempts::default(),
            learned: Learned::default(),
            stats: Stats::default(),
        };
        pool.configure(config);
        let key = self.pools.insert(pool);
        self.groups.add_pool(groups, key);
        self.by_name.insert(PoolName(database.name.clone(), user.to_string()), key);
        key
    }

    /// Forgets a pool in which nobody is any more.
    pub fn remove_pool(&mut self, key: PoolKey) {
        self.unblock(key);
        self.set_alarm(key, None);
        if let Some(pool) = self.pools.remove(key) {
            assert_eq!(pool.servers.total(), 0, "a pool with servers stays");
            self.groups.remove_pool(pool.groups, key);
            self.by_name.remove(&(pool.database.name.as_str(), pool.user.as_str()));
        }
    }

    /// Forgets the texts that no connection and no pool uses any more, when it is time to.
    pub fn collect_values(&mut self) {
        if self.values.wants_collect() {
            let clients = self.clients.iter().map(|(_, client)| &client.parameters);
            let servers = self.servers.iter().map(|(_, server)| &server.parameters);
            let welcomes = self.pools.iter().filter_map(|(_, pool)| pool.welcome.as_ref());
            let defaults = welcomes.map(|welcome| &welcome.defaults);
            self.values.collect(clients.chain(servers).chain(defaults));
        }
    }

    /// A pool of this database, if somebody has asked for it before.
    pub fn pool_of(&self, database: &str) -> Option<&Pool> {
        self.pools.get(*self.groups.database(database)?.pools.first()?)
    }

    /// How many clients there are, less those that are about to be closed.
    pub fn open_clients(&self) -> usize {
        self.clients.len() - self.closing_clients
    }

    /// The clients of a pool.
    pub fn clients_of(&self, pool: PoolKey) -> Vec<ClientKey> {
        let members = self.clients.iter().filter(|(_, client)| client.pool == Some(pool));
        members.map(|(key, _)| key).collect()
    }

    /// The servers of a pool, less those that are about to be closed.
    pub fn servers_of(&self, pool: PoolKey) -> Vec<ServerKey> {
        let is_member = |server: &Server| {
            server.pool == pool && queues::server_standing(&server.state).is_some()
        };
        let members = self.servers.iter().filter(|(_, server)| is_member(server));
        members.map(|(key, _)| key).collect()
    }

    /// How a client is named in the log.
    pub fn client_name(&self, key: ClientKey, settings: &Settings) -> impl fmt::Display {
        let client = self.clients.get(key);
        let pool = client.and_then(|client| self.pools.get(client.pool?));
        let on_console = client.is_some_and(|client| client.on_console);
        let nowhere = if on_console { CONSOLE } else { "(nodb)" };
        let database = pool.map_or(nowhere, |pool| &pool.database.name);
        let user = client.and_then(|client| client.user.as_deref()).unwrap_or("(nouser)");
        let from = client.map(|client| client_address(client.from, settings.listen_port));
        let from = from.unwrap_or_default();
        match client.and_then(|client| self.peer_of(client)) {
            Some(peer) => format!("{}: peer-{peer}@{from}", Conn::Client(key)),
            None => format!("{}: {database}/{user}@{from}", Conn::Client(key)),
        }
    }

    /// How a server is named in the log.
    pub fn server_name(&self, key: ServerKey) -> impl fmt::Display {
        let server = self.servers.get(key);
        let pool = server.and_then(|server| self.pools.get(server.pool));
        let database = pool.map_or("(nodb)", |pool| &pool.database.name);
        let user = pool.map_or("(nouser)", |pool| &pool.user);
        let address = match server.and_then(|server| server.address.as_ref()) {
            Some(ServerAddress::Tcp(address)) => address.to_string(),
            Some(address @ ServerAddress::Unix(_)) => format!("unix:{}", address.port()),
            None => "(bad-af):0".to_string(),
        };
        if let Some(peer) = server.and_then(|server| server.state.peer()) {
            return format!("{}: peer-{peer}@{address}", Conn::Server(key));
        }
        format!("{}: {database}/{user}@{address}", Conn::Server(key))
    }
}

/// `ip:port`, or `unix(pid):listen_port`.
pub fn client_address(from: ClientAddress, listen_port: i32) -> String {
    match from {
        ClientAddress::Tcp(address) => address.to_string(),
        ClientAddress::Unix { pid: 0, .. } => format!("unix:{listen_port}"),
        ClientAddress::Unix { pid, .. } => format!("unix({pid}):{listen_port}"),
    }
}

impl Pool {
    /// Takes what the configuration says of this database and user.
    pub fn configure(&mut self, config: &Config) {
        let user = config.users.get(&self.user);
        let settings = &config.settings;
        self.mode = user
            .and_then(|user| user.pool_mode)
            .or(self.database.pool_mode)
            .unwrap_or(settings.pool_mode);
        let size = user
            .and_then(|user| user.pool_size)
            .or(self.database.pool_size)
            .unwrap_or(settings.default_pool_size);
        self.size = usize::try_from(size).ok().filter(|size| *size > 0);
        let reserve = user
            .and_then(|user| user.reserve_pool_size)
            .or(self.database.reserve_pool_size)
            .unwrap_or(settings.reserve_pool_size);
        self.reserve = usize::try_from(reserve).unwrap_or(0);
        let min_size = self.database.min_pool_size.unwrap_or(settings.min_pool_size);
        self.min_size = usize::try_from(min_size).unwrap_or(0);
        self.limits = WorkLimits::new(&self.user, config);
        self.check_after = settings.check_after();
        self.lifetime = self.database.server_lifetime.unwrap_or(settings.server_lifetime);
    }

    /// How many cancel requests have not been sent yet.
    pub fn waiting_cancels(&self) -> usize {
        self.cancels.len() + self.dialled_cancels.len()
    }

    /// Whether anybody waits for a server.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.askers.is_empty()
    }
}
