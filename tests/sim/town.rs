//! The databases of a world, and the configuration that says so.

use crate::customs::Customs;
use crate::faults::Limits;
use crate::guard;
use crate::prng::Prng;
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::{Config, PoolMode};

/// One database.
#[derive(Clone, Debug)]
pub struct House {
    pub name: &'static str,
    pub host: &'static str,
    pub port: u16,
    pub mode: PoolMode,
    pub size: usize,
    /// All its servers log in as this user.
    pub user: Option<&'static str>,
    /// Whether the configuration names it now.
    pub is_listed: bool,
}

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Town {
    pub houses: Vec<House>,
    pub limits: Limits,
    pub round_robin: bool,
    /// Per database and per user; 0 is no limit.
    pub most_servers: [u32; 2],
    /// What pools keep open.
    pub least_servers: u32,
    /// The reset query runs after every transaction, too.
    pub always_resets: bool,
    /// `server_rescue_timeout`, in seconds.
    pub rescues_for: u32,
    pub life: Life,
    pub means: Means,
    pub customs: Customs,
}

/// What there is besides, in seconds where it is time.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// So many servers more, after so long.
    pub reserve: (usize, u32),
    /// Between two attempts, and the first of them (0: the same).
    pub retry: (u32, u32),
    /// One host of a list until it fails, not all in turn.
    pub stays: bool,
    /// How long addresses hold, and that there are none; how often zones are asked for.
    pub names: (u32, u32, u32),
    /// 0 is for ever.
    pub pool_idle: u32,
    pub cancel_wait: u32,
    pub depth: u32,
    /// Per database, per user and in all; 0 is no limit.
    pub most_clients: [u32; 3],
}

impl Means {
    fn plain() -> Self {
        Self {
            reserve: (0, 5),
            retry: (15, 0),
            stays: false,
            names: (15, 15, 0),
            pool_idle: 0,
            cancel_wait: 10,
            depth: 16,
            most_clients: [0; 3],
        }
    }

    fn draw(rng: &mut Prng) -> Self {
        let plain = Self::plain();
        if rng.per_mille(300) {
            return plain;
        }
        Self {
            reserve: (*rng.pick(&[0, 1, 3]), *rng.pick(&[0, 1, 5])),
            retry: (*rng.pick(&[15, 0, 1]), *rng.pick(&[0, 0, 1])),
            stays: rng.per_mille(500),
            names: (*rng.pick(&[15, 0, 1]), *rng.pick(&[15, 0, 1]), *rng.pick(&[0, 1, 5])),
            pool_idle: *rng.pick(&[0, 0, 1, 5]),
            cancel_wait: *rng.pick(&[10, 1]),
            depth: *rng.pick(&[16, 0, 1, 2]),
            most_clients: [*rng.pick(&[0, 0, 3]), *rng.pick(&[0, 0, 5]), *rng.pick(&[0, 0, 8])],
        }
    }

    fn settings(&self) -> String {
        let Self { reserve, retry, names, most_clients, .. } = self;
        let in_all = if most_clients[2] == 0 { 10_000 } else { most_clients[2] };
        format!(
            "reserve_pool_size = {}\nreserve_pool_timeout = {}\nserver_login_retry = {}\n\
             server_login_retry_min = {}\ndns_max_ttl = {}\ndns_nxdomain_ttl = {}\n\
             dns_zone_check_period = {}\npool_idle_timeout = {}\ncancel_wait_timeout = {}\n\
             max_pipeline_depth = {}\nmax_db_client_connections = {}\n\
             max_user_client_connections = {}\nmax_client_conn = {in_all}\n",
            reserve.0,
            reserve.1,
            retry.0,
            retry.1,
            names.0,
            names.1,
            names.2,
            self.pool_idle,
            self.cancel_wait,
            self.depth,
            most_clients[0],
            most_clients[1],
        )
    }

    /// What a client is told that is one too many.
    pub fn excuses(&self, text: &str) -> bool {
        let words = [
            "client connections exceeded (max_db_client_connections)",
            "client connections exceeded (max_user_client_connections)",
            "no more connections allowed (max_client_conn)",
        ];
        let mut limits = self.most_clients.iter().zip(words);
        limits.any(|(limit, words)| *limit > 0 && text == words)
    }
}

/// How long servers live, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// 0 is one use.
    pub lifetime: u32,
    /// 0 is for ever.
    pub unused: u32,
    /// Before they are tried out; 0 is each time.
    pub check_delay: u32,
    pub check_query: &'static str,
    /// Outdated ones of session pooling end early.
    pub ends_fast: bool,
    /// When clients are told that they wait.
    pub notify: u32,
}

impl Life {
    /// For ever, and nobody looks.
    pub fn eternal() -> Self {
        Self {
            lifetime: 1_000_000,
            unused: 0,
            check_delay: 30,
            check_query: "",
            ends_fast: false,
            notify: 5,
        }
    }

    fn draw(rng: &mut Prng) -> Self {
        let eternal = Self::eternal();
        if rng.per_mille(300) {
            return eternal;
        }
        Self {
            lifetime: *rng.pick(&[eternal.lifetime, eternal.lifetime, 0, 5, 20]),
            unused: *rng.pick(&[0, 0, 2, 10]),
            check_delay: *rng.pick(&[30, 0, 1, 5]),
            check_query: *rng.pick(&["", "<empty>", "select 1", "fail"]),
            ends_fast: rng.per_mille(500),
            notify: *rng.pick(&[0, 1, 5]),
        }
    }
}

impl Town {
    /// One database.
    pub fn single(mode: PoolMode, size: usize) -> Self {
        let house = House {
            name: "alpha",
            host: "10.0.0.1",
            port: 5000,
            mode,
            size,
            user: None,
            is_listed: true,
        };
        Self {
            houses: vec![house],
            limits: Limits::wide(),
            round_robin: false,
            always_resets: false,
            rescues_for: 0,
            most_servers: [0; 2],
            least_servers: 0,
            life: Life::eternal(),
            means: Means::plain(),
            customs: Customs::default(),
        }
    }

    pub fn draw(rng: &mut Prng, is_hasty: bool) -> Self {
        let hosts = *rng.pick(&[
            ["10.0.0.1", "/tmp", "db.sim", "10.0.0.4"],
            ["10.0.0.1,10.0.0.2", "/tmp,10.0.0.3", "db.sim,/tmp", "db.sim"],
            ["db.sim", "db.sim,10.0.0.3", "other.sim", "10.0.0.4"],
        ]);
        let names = ["alpha", "beta", "gamma", "delta"];
        let modes = [PoolMode::Transaction, PoolMode::Session, PoolMode::Statement];
        let houses = (0..rng.between(1, 4)).map(|index| House {
            name: names[index],
            host: hosts[index],
            port: 5000 + 10 * index as u16 + rng.below(4) as u16,
            mode: *rng.pick(&[&modes[..], &modes[..1]].concat()),
            size: *rng.pick(&[1, 2, 2, 20]),
            user: (index == 3).then_some("boss"),
            is_listed: true,
        });
        let houses: Vec<House> = houses.collect();
        let customs = Customs::draw(rng, &houses, is_hasty);
        Self {
            houses,
            limits: Limits::draw(rng, is_hasty),
            round_robin: rng.per_mille(300),
            always_resets: rng.per_mille(200),
            most_servers: [*rng.pick(&[0, 0, 1, 3]), *rng.pick(&[0, 0, 2, 3])],
            least_servers: *rng.pick(&[0, 0, 0, 2]),
            life: Life::draw(rng),
            rescues_for: *rng.pick(&[0, 2, 30]),
            means: Means::draw(rng),
            customs,
        }
    }

    /// The operator changes something.
    pub fn change(&mut self, rng: &mut Prng) {
        let index = rng.below(self.houses.len());
        // What is not listed is made from `*`, if that is there.
        let may_go = self.customs.autodb.is_none() || index + 1 == self.houses.len();
        let house = &mut self.houses[index];
        match rng.below(4) {
            _ if !house.is_listed => house.is_listed = true,
            0 if may_go => house.is_listed = false,
            1 => house.port ^= 1,
            2 => house.port ^= 2,
            _ => house.size = *rng.pick(&[1, 2, 5]),
        }
    }

    /// How long what may take, as settings.
    fn times(&self) -> String {
        let Life { lifetime, unused, check_delay, check_query, ends_fast, notify } = self.life;
        let Limits { query, idle_transaction, transaction, client_idle, connect, .. } = self.limits;
        let seconds = |millis: u64| millis / 1000;
        format!(
            "server_lifetime = {lifetime}\nserver_idle_timeout = {unused}\n\
             server_connect_timeout = {}\nserver_check_delay = {check_delay}\nserver_check_query = {check_query}\n\
             server_fast_close = {}\nquery_wait_notify = {notify}\nquery_timeout = {}\n\
             idle_transaction_timeout = {}\ntransaction_timeout = {}\nclient_idle_timeout = {}\n",
            seconds(connect),
            u8::from(ends_fast),
            seconds(query),
            seconds(idle_transaction),
            seconds(transaction),
            seconds(client_idle),
        )
    }

    pub fn config(&self) -> (Config, Userlist) {
        let mut text = String::from("[databases]\n");
        for house in self.houses.iter().filter(|house| house.is_listed) {
            let House { name, host, port, mode, size, user, .. } = house;
            let own = self.customs.of_database(name);
            let is_last = self.houses.last().is_some_and(|last| last.name == *name);
            let name = if is_last && self.customs.autodb.is_some() { "*" } else { *name };
            let mode = match mode {
                PoolMode::Session => "session",
                PoolMode::Transaction => "transaction",
                PoolMode::Statement => "statement",
            };
            let user = user.map(|user| format!(" user={user}")).unwrap_or_default();
            let stays = if self.means.stays { " load_balance_hosts=disable" } else { "" };
            text.push_str(&format!(
                "{name} = host={host} port={port} pool_mode={mode} pool_size={size}{user}{stays}{own}\n"
            ));
        }
        let (users, settings) = self.customs.sections();
        text.push_str(&users);
        text.push_str(&format!(
            "[pgbouncer]\nauth_type = trust\nadmin_users = boss\nsuspend_timeout = 2\n\
             server_tls_sslmode = disable\n\
             client_tls_sslmode = disable\nmax_prepared_statements = 0\n\
             query_wait_timeout = {}\n\
             server_round_robin = {}\nserver_reset_query_always = {}\n\
             max_db_connections = {}\nmax_user_connections = {}\nmin_pool_size = {}\n\
             server_rescue_timeout = {}\n",
            self.limits.query_wait / 1000,
            u8::from(self.round_robin),
            u8::from(self.always_resets),
            self.most_servers[0],
            self.most_servers[1],
            self.least_servers,
            self.rescues_for,
        ));
        text.push_str(&self.times());
        text.push_str(&self.means.settings());
        text.push_str(&settings);
        let config = Config::parse_text("sim.ini", &text).expect("a good configuration");
        let line = |user: &str| format!("\"{user}\" \"{}\"\n", guard::password(user));
        let lines = ["ann", "bob", "boss"].map(line).concat();
        let (userlist, complaint) = Userlist::parse(lines.as_bytes());
        assert_eq!(complaint, None);
        (config, userlist)
    }
}
