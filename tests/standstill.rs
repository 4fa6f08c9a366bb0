//! PostgreSQL stands still, and goes on: never are there more backends than a limit allows, those
//! included that nobody is connected to any more.

mod common;

use common::desk::Desk;
use common::own_postgresql::OwnPostgres;
use common::raw::query;
use common::{Pooler, Raw, Startup, wait_for};
use ringbouncer::engine::io::Input;
use ringbouncer::keys::Conn;
use ringbouncer::pool::queues::ServerStanding;
use ringbouncer::session::server::{Leave, State};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Counts the backends of each user, again and again.
struct Sampler {
    most: Arc<Mutex<BTreeMap<String, i64>>>,
    samples: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    fn start(own: &OwnPostgres) -> Sampler {
        let most = Arc::new(Mutex::new(BTreeMap::new()));
        let (samples, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut direct = own.client("postgres");
        let counted = "SELECT usename::text, count(*) FROM pg_stat_activity \
                       WHERE datname = 'app' GROUP BY 1";
        let counted = direct.prepare(counted).expect("a statement");
        let (top, count, end) = (most.clone(), samples.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Acquire) {
                for row in direct.query(&counted, &[]).expect("rows") {
                    let mut top = top.lock().expect("the lock");
                    let user = top.entry(row.get(0)).or_insert(0);
                    *user = (*user).max(row.get(1));
                }
                count.fetch_add(1, Ordering::AcqRel);
            }
        });
        Sampler { most, samples, is_over, thread: Some(thread) }
    }

    /// The most that there were of each, after some more samples.
    fn most(&mut self) -> BTreeMap<String, i64> {
        let until = self.samples.load(Ordering::Acquire) + 20;
        wait_for("some samples", || self.samples.load(Ordering::Acquire) >= until);
        self.most.lock().expect("the lock").clone()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A pooler with a limit, and its clients.
struct House {
    user: &'static str,
    most: i64,
    pooler: Pooler,
    clients: Vec<Raw>,
}

impl House {
    fn new(own: &OwnPostgres, user: &'static str, setting: &str, most: i64) -> House {
        let pooler = Pooler::start(|ini| {
            ini.set("pool_mode", "transaction").set("default_pool_size", "0");
            ini.set("server_login_retry", "0.2").set("server_connect_timeout", "0.7");
            ini.set("query_timeout", "0.6").set("query_wait_notify", "0");
            ini.set(setting, &most.to_string()).known(user);
            ini.database("own", &format!("host=127.0.0.1 port={} dbname=app", own.port));
        });
        House { user, most, pooler, clients: Vec::new() }
    }

    fn client(&self) -> Raw {
        let startup = Startup::v3().param("user", self.user).param("database", "own");
        self.pooler.raw_with(startup)
    }

    fn all_ask(&mut self, sql: &str) {
        self.clients.iter_mut().for_each(|client| client.send(&query(sql)));
    }

    /// Whether PostgreSQL was asked more often than there are servers to ask about.
    fn has_probed_in_vain(&mut self) -> bool {
        if self.clients.len() < 20 {
            let mut client = self.client();
            client.send(&query("SELECT 1"));
            self.clients.push(client);
        }
        let probes = self.pooler.log().matches("does its PostgreSQL stand still?").count();
        i64::try_from(probes).expect("a few") > self.most
    }

    fn serves(&self) -> bool {
        let mut client = self.client();
        client.send(&query("SELECT pg_sleep(0.05)"));
        client.message().tag == b'T'
    }
}

/// What was told goodbye, what was cut off, and who was logging in: all of them are still there
/// when PostgreSQL goes on.
#[test]
fn no_limit_is_exceeded_when_postgresql_goes_on() {
    let own = OwnPostgres::start();
    let mut houses = [
        ("one", "default_pool_size", 1),
        ("three", "default_pool_size", 3),
        ("two", "max_db_connections", 2),
        ("four", "max_user_connections", 2),
    ]
    .map(|(user, setting, most)| {
        let role = format!("CREATE ROLE {user} LOGIN");
        own.client("postgres").batch_execute(&role).expect("a role");
        House::new(&own, user, setting, most)
    });
    for house in &mut houses {
        house.clients = (0..6).map(|_| house.client()).collect();
        house.all_ask("BEGIN; SELECT pg_sleep(0.05); COMMIT");
        house.clients.iter_mut().for_each(|client| _ = client.until_ready());
    }
    let mut sampler = Sampler::start(&own);
    own.freeze();
    for house in &mut houses {
        house.all_ask("SELECT 1");
    }
    for house in &mut houses {
        for mut client in house.clients.drain(..) {
            // A limit, or the server's end.
            assert_eq!(client.until_end().last().expect("last words").tag, b'E');
        }
    }
    for house in &mut houses {
        wait_for("probes in vain", || house.has_probed_in_vain());
    }
    own.thaw();
    for house in &houses {
        wait_for("somebody to be served", || house.serves());
    }
    let seen = sampler.most();
    for House { user, most, .. } in &houses {
        assert!(seen[*user] <= *most, "{user}: {} backends, {most} allowed", seen[*user]);
    }
}

fn desk(more: &str) -> Desk {
    Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\nlist = host=127.0.0.1,127.0.0.2\n\
         [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 1\nserver_connect_timeout = 5\n\
         server_login_retry = 1\nserver_check_delay = 0\nserver_check_query =\n{more}"
    ))
}

/// A server that works for somebody who goes away; the server that takes no notice.
fn abandoned(desk: &mut Desk, database: &str) -> Conn {
    desk.servers_stay = true;
    let client = desk.client("alice", database);
    let server = desk.server();
    desk.take(client);
    desk.ask(client);
    desk.take(server);
    desk.leave(client);
    server
}

fn leave_of(desk: &Desk, server: Conn) -> Option<Leave> {
    let Conn::Server(key) = server else { panic!("a server") };
    match desk.engine.house().servers.get(key)?.state {
        State::Leaving(leave) => Some(leave),
        _ => None,
    }
}

fn waiting_client(desk: &mut Desk, database: &str) -> Conn {
    let client = desk.client("alice", database);
    desk.take(client);
    desk.ask(client);
    client
}

fn silent_probe(desk: &mut Desk) -> Conn {
    let (key, _) = *desk.dialled.front().expect("a probe is dialled");
    assert!(desk.engine.house().servers.get(key).expect("it is there").is_probe());
    desk.dialled.pop_front();
    desk.handle(Input::Connected { server: key, local: None });
    assert_eq!(desk.take(Conn::Server(key)), [0, 0, 0, 8, 4, 210, 22, 47], "an SSLRequest");
    Conn::Server(key)
}

#[test]
fn a_place_is_held_for_as_long_as_postgresql_stands_still() {
    let mut desk = desk("");
    let server = abandoned(&mut desk, "app");
    let client = waiting_client(&mut desk, "app");
    desk.after(SECOND / 2);
    assert!(desk.dialled.is_empty(), "it has a moment to go");
    desk.after(SECOND);
    for _ in 0..5 {
        // No answer: another probe, and nothing else.
        silent_probe(&mut desk);
        assert_eq!(leave_of(&desk, server), Some(Leave::Overdue));
        desk.after(SECOND * 6);
    }
    // Who asks now is told, as after any login that failed.
    let probe = silent_probe(&mut desk);
    desk.feed(probe, b"N");
    assert!(desk.is_closed(probe));
    assert_eq!(leave_of(&desk, server), Some(Leave::Last));
    assert!(desk.dialled.is_empty(), "it has a second to go");
    desk.leave(server);
    let next = desk.server();
    desk.answer(next);
    assert!(!desk.is_closed(client));
}

#[test]
fn a_backend_that_is_busy_holds_its_place_for_a_moment_only() {
    let mut desk = desk("");
    let server = abandoned(&mut desk, "app");
    let client = waiting_client(&mut desk, "app");
    desk.after(SECOND);
    let probe = silent_probe(&mut desk);
    desk.feed(probe, b"S");
    desk.after(SECOND);
    assert!(desk.is_closed(server) && desk.is_closed(probe));
    let next = desk.server();
    desk.answer(next);
    assert!(!desk.is_closed(client));
    // One that goes on sending is alive without a question.
    let server = abandoned_again(&mut desk, client, next);
    waiting_client(&mut desk, "app");
    desk.after(SECOND * 9 / 10);
    desk.feed(server, b"D\0\0\0\x06\0\0");
    desk.after(SECOND / 10);
    assert!(desk.is_closed(server));
    desk.server();
}

fn abandoned_again(desk: &mut Desk, client: Conn, server: Conn) -> Conn {
    desk.ask(client);
    desk.take(server);
    desk.leave(client);
    server
}

#[test]
fn a_place_is_free_where_nobody_listens_any_more() {
    let mut desk = desk("");
    let server = abandoned(&mut desk, "app");
    waiting_client(&mut desk, "app");
    desk.after(SECOND);
    desk.refuse();
    assert!(desk.is_closed(server));
    assert_eq!(desk.dialled.len(), 1, "an attempt that shows what is the matter");
}

/// There the next attempt is made at the other host, which must not wait for this one.
#[test]
fn with_several_hosts_a_place_is_held_for_a_second() {
    let mut desk = desk("");
    let server = abandoned(&mut desk, "list");
    waiting_client(&mut desk, "list");
    desk.after(SECOND);
    assert!(desk.is_closed(server));
    let (next, _) = *desk.dialled.front().expect("the other host");
    assert!(!desk.engine.house().servers.get(next).expect("it is there").is_probe());
    desk.server();
}

/// A login that takes too long may succeed when PostgreSQL goes on, and count.
#[test]
fn a_login_that_was_given_up_keeps_its_place() {
    let mut desk = desk("");
    desk.servers_stay = true;
    desk.client("alice", "app");
    let server = desk.connect();
    desk.after(SECOND * 5);
    let (_, pool) = desk.pool("app", "alice").expect("it is there");
    assert_eq!(pool.servers.count(ServerStanding::Leaving), 1);
    assert_eq!(desk.hung_up, [server], "it is not told, but sees the end of the line");
    assert!(pool.fails_fast().is_some_and(|cached| cached == "connect timeout"));
}
