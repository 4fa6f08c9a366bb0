//! Five hundred clients on pools of 1, 2 and 20 while PostgreSQL is restarted, stands still, or lets
//! nobody in: limits hold at every moment, nobody waits for ever, and everybody gets the right words.

mod common;

use common::own_postgresql::OwnPostgres;
use common::pooler::Ini;
use common::{Pooler, Raw, Startup, raw, wait_for};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const CLIENTS: usize = 500;
const SIZES: [i64; 3] = [1, 2, 20];
/// A client asks this, and knows its answer from any other.
const QUESTION: &str = "SELECT 'for ";

fn pooler(own: &OwnPostgres, size: i64, change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.database("own", &format!("host=127.0.0.1 port={} dbname=app user=alice", own.port));
        ini.set("default_pool_size", &size.to_string()).set("max_client_conn", "2000");
        ini.set("server_login_retry", "1").set("query_wait_timeout", "60");
        ini.set("log_connections", "0")
            .set("log_disconnections", "0")
            .set("log_pooler_errors", "0");
        change(ini);
    })
}

fn startup() -> Startup {
    Startup::v3().param("user", "alice").param("database", "own")
}

/// Counts alice's backends every few milliseconds, whenever PostgreSQL tells.
struct Watch {
    ends: Arc<AtomicBool>,
    looks: Arc<AtomicI64>,
    thread: JoinHandle<i64>,
}

impl Watch {
    fn start(own: &OwnPostgres) -> Watch {
        let ends = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicI64::new(0));
        let (end, count, port) = (ends.clone(), looks.clone(), own.port);
        let thread = std::thread::spawn(move || {
            let mut config = postgres::Config::new();
            config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
            config.connect_timeout(common::PATIENCE);
            let (mut direct, mut most) = (None, 0);
            while !end.load(Ordering::Relaxed) {
                let Some(client) = &mut direct else {
                    direct = config.connect(postgres::NoTls).ok();
                    continue;
                };
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'alice'";
                match client.query_one(sql, &[]) {
                    Ok(row) => most = most.max(row.get::<_, i64>(0)),
                    Err(_) => direct = None,
                }
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        Watch { ends, looks, thread }
    }

    /// Until it has looked at least so often since it began.
    fn has_looked(&self, times: i64) {
        wait_for("the watch to look", || self.looks.load(Ordering::Relaxed) >= times);
    }

    fn end(self) -> i64 {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch")
    }
}

/// All of them; who was closed is replaced by a newcomer, who has to log in first.
struct Crowd<'a> {
    pooler: &'a Pooler,
    clients: Vec<Option<Raw>>,
    /// What they were told, and how often.
    told: BTreeMap<String, usize>,
}

impl<'a> Crowd<'a> {
    fn new(pooler: &'a Pooler) -> Crowd<'a> {
        let clients = (0..CLIENTS).map(|_| Some(pooler.raw_with(startup()))).collect();
        Crowd { pooler, clients, told: BTreeMap::new() }
    }

    /// Everybody asks at once. How many got their own answer.
    fn ask(&mut self) -> usize {
        for place in &mut self.clients {
            let client = place.get_or_insert_with(|| {
                let mut newcomer = self.pooler.unnamed();
                newcomer.send(&startup().bytes());
                newcomer
            });
            let address = client.local_address();
            client.send(&raw::query(&format!("{QUESTION}{address}'")));
        }
        self.listen()
    }

    /// Everybody waits for his answer; nobody for ever, or reading it panics.
    fn listen(&mut self) -> usize {
        let mut served = 0;
        for place in &mut self.clients {
            let client = place.as_mut().expect("everybody has asked");
            let own = format!("for {}", client.local_address());
            let answer = loop {
                let answer = client.until_ready();
                let is_welcome = answer.first().is_some_and(|message| message.tag == b'R');
                if !is_welcome {
                    break answer;
                }
            };
            for error in answer.iter().filter(|message| message.tag == b'E') {
                let words = format!("{} {}", error.field('C'), error.field('M'));
                *self.told.entry(words).or_default() += 1;
            }
            let rows: Vec<_> = answer.iter().filter(|message| message.tag == b'D').collect();
            rows.iter().for_each(|row| assert_eq!(row.columns(), [own.as_str()]));
            match answer.last().map(|message| message.tag) {
                Some(b'Z') => served += rows.len(),
                _ => *place = None,
            }
        }
        served
    }

    /// Whoever was told something was told one of these.
    fn was_told_only(&self, words: &[&str]) {
        let is_known = |told: &String| words.iter().any(|words| told.starts_with(words));
        assert!(self.told.keys().all(is_known), "{:?}", self.told);
    }
}

/// The pooler's words when a server has gone, or cannot be had.
const CRASHED: &str = "08P01 server conn crashed?";
const FAILING: &str = "08P01 server login has been failing, cached error: ";

#[test]
fn postgresql_is_restarted_under_a_crowd() {
    let mut own = OwnPostgres::start();
    for size in SIZES {
        let pooler = pooler(&own, size, |_| ());
        let watch = Watch::start(&own);
        let mut crowd = Crowd::new(&pooler);
        assert_eq!(crowd.ask(), CLIENTS);
        let is_back = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // They never stop asking.
                while !is_back.load(Ordering::Acquire) {
                    crowd.ask();
                }
            });
            // (From this thread: whom another one starts ends with it.)
            own.stop();
            own.start_again();
            own.crash();
            own.start_again();
            is_back.store(true, Ordering::Release);
        });
        wait_for("everybody to be served", || crowd.ask() == CLIENTS);
        crowd.was_told_only(&[
            CRASHED,
            FAILING,
            "08P01 server connection closed",
            "57P01 terminating connection due to administrator command",
            "57P01 terminating connection due to immediate shutdown command",
            "57P02 terminating connection because of crash of another server process",
        ]);
        let most = watch.end();
        assert!((1..=size).contains(&most), "{most} with a pool of {size}");
    }
}

#[test]
fn postgresql_stands_still_under_a_crowd() {
    let own = OwnPostgres::start();
    for size in SIZES {
        let pooler = pooler(&own, size, |ini| {
            ini.set("query_wait_timeout", "1");
        });
        let watch = Watch::start(&own);
        let mut crowd = Crowd::new(&pooler);
        // Pools of one may be slower than a second with so many on a slow machine.
        wait_for("everybody to be served", || crowd.ask() == CLIENTS);
        crowd.told.clear();
        own.freeze();
        let mut served = 0;
        std::thread::scope(|scope| {
            let own = &own;
            let pooler = &pooler;
            scope.spawn(move || {
                // All but those for whom a server works have given up.
                let waiting = || pool_row(pooler)["cl_waiting"] == "0";
                wait_for("the crowd to ask", || !waiting());
                wait_for("the crowd to give up", waiting);
                own.thaw();
            });
            served = crowd.ask();
        });
        let (told, size_used) = (crowd.told.clone(), usize::try_from(size).expect("small"));
        assert!((1..=size_used).contains(&served), "{served} served, {told:?}");
        let all_others =
            BTreeMap::from([("08P01 query_wait_timeout".to_owned(), CLIENTS - served)]);
        assert_eq!(told, all_others);
        wait_for("everybody to be served", || crowd.ask() == CLIENTS);
        watch.has_looked(10);
        let most = watch.end();
        assert!((1..=size).contains(&most), "{most} with a pool of {size}");
    }
}

/// The row of our pool in SHOW POOLS.
fn pool_row(pooler: &Pooler) -> BTreeMap<String, String> {
    let mut rows = pooler.table("SHOW POOLS").into_iter();
    rows.find(|row| row["database"] == "own").expect("the pool's row")
}

const TOO_MANY: &str = "53300 sorry, too many clients already";

#[test]
fn postgresql_has_few_places_for_a_crowd() {
    let mut own = OwnPostgres::start();
    own.stop();
    own.configure("max_connections = 6");
    own.start_again();
    for size in [2, 20] {
        let pooler = pooler(&own, size, |_| ());
        let watch = Watch::start(&own);
        watch.has_looked(1);
        {
            // With a few places all are served, one after the other, and nobody is told a word.
            let mut crowd = Crowd::new(&pooler);
            for _ in 0..2 {
                assert_eq!(crowd.ask(), CLIENTS);
            }
            crowd.was_told_only(&[]);
        }
        let most = watch.end();
        assert!((1..=size.min(5)).contains(&most), "{most} with a pool of {size}");
    }
}

#[test]
fn postgresql_has_no_place_for_a_crowd() {
    let mut own = OwnPostgres::start();
    own.stop();
    own.configure("max_connections = 3");
    own.start_again();
    for size in [1, 20] {
        let pooler = pooler(&own, size, |_| ());
        // (Connections of the round before may take a moment to go.)
        let mut others = Vec::new();
        wait_for("all places to be taken", || {
            others.extend((others.len()..3).map_while(|_| place(&own)));
            others.len() == 3
        });
        let mut crowd = Crowd {
            pooler: &pooler,
            clients: (0..CLIENTS).map(|_| None).collect(),
            told: BTreeMap::new(),
        };
        assert_eq!(crowd.ask(), 0);
        crowd.was_told_only(&[TOO_MANY]);
        assert_eq!(crowd.told[TOO_MANY], CLIENTS, "each has the server's own words");
        drop(others);
        wait_for("everybody to be served", || crowd.ask() == CLIENTS);
        crowd.was_told_only(&[TOO_MANY, FAILING]);
    }
}

fn place(own: &OwnPostgres) -> Option<postgres::Client> {
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(own.port).user("postgres").dbname("postgres");
    config.connect(postgres::NoTls).ok()
}
