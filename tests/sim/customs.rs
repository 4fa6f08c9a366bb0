//! What is not like everywhere: settings of single databases and users, databases made from `*`,
//! what each server is asked when it is new, and which parameters follow a client.

use crate::faults::Limits;
use crate::prng::Prng;
use crate::town::House;
use ringbouncer::config::PoolMode;

/// What is said of one database or user; `None`: as for all. Milliseconds where it is time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    size: Option<u32>,
    reserve: Option<u32>,
    most_servers: Option<u32>,
    /// Of a user.
    mode: Option<PoolMode>,
    query: Option<u64>,
    idle_transaction: Option<u64>,
    transaction: Option<u64>,
    client_idle: Option<u64>,
    /// Of a database.
    least: Option<u32>,
    lifetime: Option<u64>,
    /// Of either. A user's 0 is for ever.
    query_wait: Option<u64>,
    most_clients: Option<u32>,
}

/// See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Customs {
    /// `connect_query`
    pub greeting: Option<&'static str>,
    /// `autodb_idle_timeout`, where the last database is made from `*`.
    pub autodb: Option<u32>,
    /// Some clients replicate.
    pub replicates: bool,
    /// `peer_id` is 1, and 2 is another pooler.
    pub has_peer: bool,
    /// `track_extra_parameters`; `None`: as it is without.
    extra: Option<&'static str>,
    databases: Vec<(&'static str, Own)>,
    users: Vec<(&'static str, Own)>,
}

impl Own {
    fn of_database(rng: &mut Prng) -> Self {
        Self {
            reserve: *rng.pick(&[None, None, Some(0), Some(2)]),
            most_servers: *rng.pick(&[None, None, Some(1), Some(3)]),
            least: *rng.pick(&[None, None, Some(0), Some(2)]),
            lifetime: *rng.pick(&[None, None, Some(5_000)]),
            query_wait: *rng.pick(&[None, None, Some(5_000)]),
            most_clients: *rng.pick(&[None, None, Some(2), Some(0)]),
            ..Self::default()
        }
    }

    fn of_user(rng: &mut Prng) -> Self {
        Self {
            size: *rng.pick(&[None, None, Some(1), Some(3)]),
            reserve: *rng.pick(&[None, None, Some(1)]),
            most_servers: *rng.pick(&[None, None, Some(1), Some(2)]),
            mode: *rng.pick(&[None, None, None, Some(PoolMode::Session)]),
            query: *rng.pick(&[None, None, Some(5_000)]),
            idle_transaction: *rng.pick(&[None, None, Some(2_000)]),
            transaction: *rng.pick(&[None, None, Some(8_000)]),
            client_idle: *rng.pick(&[None, None, Some(5_000)]),
            query_wait: *rng.pick(&[None, None, Some(0), Some(4_000)]),
            most_clients: *rng.pick(&[None, None, Some(3), Some(0)]),
            ..Self::default()
        }
    }

    /// As words behind an entry.
    fn words(&self, is_user: bool) -> String {
        let seconds = |millis: Option<u64>| millis.map(|millis| (millis / 1000).to_string());
        let number = |number: Option<u32>| number.map(|number| number.to_string());
        let mode = self.mode.map(|_| "session".to_string());
        let (most_servers, most_clients) = match is_user {
            true => ("max_user_connections", "max_user_client_connections"),
            false => ("max_db_connections", "max_db_client_connections"),
        };
        let all = [
            ("pool_size", number(self.size)),
            ("reserve_pool_size", number(self.reserve)),
            (most_servers, number(self.most_servers)),
            ("pool_mode", mode),
            ("query_timeout", seconds(self.query)),
            ("idle_transaction_timeout", seconds(self.idle_transaction)),
            ("transaction_timeout", seconds(self.transaction)),
            ("client_idle_timeout", seconds(self.client_idle)),
            ("min_pool_size", number(self.least)),
            ("server_lifetime", seconds(self.lifetime)),
            ("query_wait_timeout", seconds(self.query_wait)),
            (most_clients, number(self.most_clients)),
        ];
        let said = all.into_iter().filter_map(|(name, value)| Some((name, value?)));
        said.map(|(name, value)| format!(" {name}={value}")).collect()
    }
}

impl Customs {
    pub fn draw(rng: &mut Prng, houses: &[House], is_hasty: bool) -> Self {
        if rng.per_mille(300) {
            return Self::default();
        }
        let greeting = *rng.pick(&[None, None, Some("select 3"), Some("fail"), Some("notice")]);
        let autodb = rng.per_mille(300).then(|| *rng.pick(&[0, 1, 5]));
        let (replicates, has_peer) = (rng.per_mille(400), rng.per_mille(400));
        let extra = *rng.pick(&[None, None, Some(""), Some("intervalstyle, search_path")]);
        let (mut databases, mut users) = (Vec::new(), Vec::new());
        for house in houses {
            if rng.per_mille(400) {
                let own = Own::of_database(rng);
                databases.push((house.name, if is_hasty { own } else { own.patient() }));
            }
        }
        for user in ["ann", "bob", "boss"] {
            if rng.per_mille(400) {
                let own = Own::of_user(rng);
                users.push((user, if is_hasty { own } else { own.patient() }));
            }
        }
        Self { greeting, autodb, replicates, has_peer, extra, databases, users }
    }

    fn database(&self, name: &str) -> Own {
        let own = self.databases.iter().find(|(known, _)| *known == name);
        own.map(|(_, own)| *own).unwrap_or_default()
    }

    fn user(&self, name: &str) -> Own {
        let own = self.users.iter().find(|(known, _)| *known == name);
        own.map(|(_, own)| *own).unwrap_or_default()
    }

    /// How the servers of this user are pooled there.
    pub fn mode(&self, house: PoolMode, pool_user: &str) -> PoolMode {
        self.user(pool_user).mode.unwrap_or(house)
    }

    /// So many of the parameters that a model knows follow a client.
    pub fn tracked(&self) -> usize {
        match self.extra {
            None => 6,
            Some("") => 5,
            Some(_) => 7,
        }
    }

    /// The limits of this client's time, by who goes before whom.
    pub fn limits(&self, all: Limits, login: &str, pool: &(String, String)) -> Limits {
        let (client, server) = (self.user(login), self.user(&pool.1));
        let wait = client.query_wait.or(self.database(&pool.0).query_wait);
        Limits {
            query_wait: wait.map_or(all.query_wait, |wait| if wait == 0 { u64::MAX } else { wait }),
            query: server.query.unwrap_or(all.query),
            idle_transaction: server.idle_transaction.unwrap_or(all.idle_transaction),
            transaction: server.transaction.unwrap_or(all.transaction),
            client_idle: client.client_idle.unwrap_or(all.client_idle),
            ..all
        }
    }

    /// Whether a client may be told that there are too many like it.
    pub fn excuses(&self, text: &str, login: &str, database: &str) -> bool {
        let is_limit = |own: Own| own.most_clients.is_some_and(|most| most > 0);
        match text {
            "client connections exceeded (max_db_client_connections)" => {
                is_limit(self.database(database))
            }
            "client connections exceeded (max_user_client_connections)" => {
                is_limit(self.user(login))
            }
            _ => false,
        }
    }

    /// What is said of a database behind the rest of its entry.
    pub fn of_database(&self, name: &str) -> String {
        let greeting = match self.greeting {
            Some(greeting) => format!(" connect_query='{greeting}'"),
            None => String::new(),
        };
        greeting + &self.database(name).words(false)
    }

    /// The section of users, and lines for `[pgbouncer]`.
    pub fn sections(&self) -> (String, String) {
        let line = |(name, own): &(&str, Own)| format!("{name} ={}\n", own.words(true));
        let users: String = self.users.iter().map(line).collect();
        let idle = self.autodb.unwrap_or(3600);
        let extra = self.extra.map(|extra| format!("track_extra_parameters = {extra}\n"));
        let settings = format!("autodb_idle_timeout = {idle}\n{}", extra.unwrap_or_default());
        let (peers, own_id) = match self.has_peer {
            true => ("[peers]\n2 = host=10.0.1.2 port=7000 pool_size=2\n", "peer_id = 1\n"),
            false => ("", ""),
        };
        (format!("[users]\n{users}{peers}"), settings + own_id)
    }
}

impl Own {
    /// In a world that is in no hurry nobody's limits of time are short.
    fn patient(self) -> Self {
        Self { query_wait: None, client_idle: None, ..self }
    }
}
