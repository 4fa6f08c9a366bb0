//! Limits as PostgreSQL sees them: a crowd of clients, counted in `pg_stat_activity` all the time.

mod common;

use common::{Pooler, Postgres, Raw, raw, wait_for};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A database of this test alone, so that its connections can be told from others.
fn database() -> String {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = format!("crowd_{}_{serial}", std::process::id());
    let mut direct = direct();
    direct.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).expect("create");
    name
}

fn direct() -> postgres::Client {
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(Postgres::shared().port).user("postgres").dbname("postgres");
    config.connect(postgres::NoTls).expect("connect to PostgreSQL")
}

/// Counts connections of each user to a database every few milliseconds; the most at one time, with
/// the sum of all as the user `""`.
struct Watch {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<String, i64>>,
}

impl Watch {
    fn start(database: &str) -> Watch {
        let ends = Arc::new(AtomicBool::new(false));
        let (end, database) = (ends.clone(), database.to_owned());
        let thread = std::thread::spawn(move || {
            let (mut direct, mut most) = (direct(), BTreeMap::new());
            while !end.load(Ordering::Relaxed) {
                let sql = "SELECT usename::text, count(*) FROM pg_stat_activity \
                           WHERE datname = $1 GROUP BY 1";
                let rows = direct.query(sql, &[&database]).expect("look");
                let counts = rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1)));
                let counts: Vec<_> = counts.collect();
                let sum = counts.iter().map(|(_, count)| count).sum();
                for (user, count) in counts.into_iter().chain([(String::new(), sum)]) {
                    let seen = most.entry(user).or_default();
                    *seen = count.max(*seen);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        Watch { ends, thread }
    }

    fn end(self) -> BTreeMap<String, i64> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch")
    }
}

/// All clients ask at once, again and again, and every one of them is answered.
fn work(clients: &mut [Raw], rounds: usize) {
    for round in 0..rounds {
        for client in clients.iter_mut() {
            client.send(&raw::query(&format!("SELECT {round}")));
        }
        for client in clients.iter_mut() {
            assert_eq!(client.expect_tags("TDCZ")[1].columns(), [round.to_string()]);
        }
    }
}

#[test]
fn five_hundred_clients_share_a_pool_of_any_size() {
    for size in [1, 2, 20] {
        let database = database();
        let port = Postgres::shared().port;
        let pooler = Pooler::start(|ini| {
            ini.database("app", &format!("host=127.0.0.1 port={port} dbname={database}"));
            ini.set("default_pool_size", &size.to_string()).set("max_client_conn", "1000");
            ini.set("log_connections", "0").set("log_disconnections", "0");
        });
        let watch = Watch::start(&database);
        let mut clients: Vec<Raw> = (0..500).map(|_| pooler.raw("alice")).collect();
        work(&mut clients, 4);
        let most = watch.end();
        assert!(most[""] <= size, "{most:?} with a pool of {size}");
        assert!(size == 20 || most[""] == size, "all of them are used: {most:?}");
    }
}

#[test]
fn users_take_turns_in_a_database_with_few_connections() {
    let database = database();
    let port = Postgres::shared().port;
    let pooler = Pooler::start(|ini| {
        ini.database("app", &format!("host=127.0.0.1 port={port} dbname={database}"));
        ini.set("max_db_connections", "3").set("max_user_connections", "2");
        ini.set("query_wait_timeout", "60");
    });
    let watch = Watch::start(&database);
    let users = ["alice", "bob", "carol", "postgres"];
    let mut clients: Vec<Raw> =
        (0..40).map(|number| pooler.raw(users[number % users.len()])).collect();
    work(&mut clients, 5);
    let most = watch.end();
    assert!(most[""] <= 3, "{most:?}");
    assert!(most.values().all(|count| *count <= 3), "{most:?}");
    assert!(users.iter().all(|user| most.get(*user).is_none_or(|count| *count <= 2)), "{most:?}");
    assert!(pooler.log().contains("closing because: evicted"));
}

#[test]
fn the_place_of_a_client_that_dies_in_a_transaction_is_free_when_its_server_is_gone() {
    let database = database();
    let port = Postgres::shared().port;
    let pooler = Pooler::start(|ini| {
        ini.database("app", &format!("host=127.0.0.1 port={port} dbname={database}"));
        ini.set("default_pool_size", "2").set("max_client_conn", "1000");
    });
    let watch = Watch::start(&database);
    for _ in 0..15 {
        let mut dying: Vec<Raw> = (0..2).map(|_| pooler.raw("alice")).collect();
        let mut waiting: Vec<Raw> = (0..4).map(|_| pooler.raw("alice")).collect();
        for client in &mut dying {
            client.query("BEGIN");
        }
        for client in &mut waiting {
            client.send(&raw::query("SELECT 1"));
        }
        drop(dying);
        for client in &mut waiting {
            client.expect_tags("TDCZ");
        }
    }
    let most = watch.end();
    assert!(most[""] <= 2, "{most:?}");
    wait_for("the log to tell", || {
        pooler.log().contains("client disconnect while server was not ready")
    });
}
