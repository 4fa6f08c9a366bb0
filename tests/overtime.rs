//! Queries that nobody waits for any more: what limits of time leave running in PostgreSQL, and how
//! the limits on servers are kept meanwhile.

mod common;

use common::desk::Desk;
use common::own_postgresql::OwnPostgres;
use common::raw::query;
use common::{Pooler, Postgres, Startup, wait_for};
use ringbouncer::engine::io::Input;
use ringbouncer::keys::Conn;
use ringbouncer::pool::mode::Awaited;
use ringbouncer::session::server::{Leave, State};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// A client that takes too long is told so, and with `server_rescue_timeout` its server stays: the
/// query is cancelled, the transaction is rolled back, and the next client has the same server.
#[test]
fn with_a_rescue_a_limit_of_time_costs_the_client_and_not_the_server() {
    let table = format!("overtime_{}", std::process::id());
    let mut direct = Postgres::shared().client("app");
    direct.batch_execute(&format!("CREATE TABLE {table} (n int)")).expect("a table");
    let cases = [
        ("query_timeout", "SELECT pg_sleep(1041)", "query timeout"),
        ("idle_transaction_timeout", "SELECT 1", "idle transaction timeout"),
        ("transaction_timeout", "SELECT pg_sleep(1042)", "transaction timeout"),
    ];
    std::thread::scope(|scope| {
        for (setting, sql, words) in cases {
            let table = &table;
            scope.spawn(move || {
                let pooler = Pooler::start(|ini| {
                    ini.set("default_pool_size", "1").set("server_rescue_timeout", "60");
                    ini.set(setting, "0.5");
                });
                let mut client = pooler.raw("alice");
                let pid = client.backend_pid();
                client.send(&query(&format!("BEGIN; INSERT INTO {table} VALUES (1)")));
                client.expect_tags("CCZ");
                client.send(&query(sql));
                let last = client.until_end();
                let told = last.last().map(|message| message.field('M'));
                assert_eq!(told.as_deref(), Some(words), "{setting}: {last:?}");
                assert_eq!(pooler.raw("alice").backend_pid(), pid, "{setting}");
            });
        }
    });
    let left = direct.query_one(&format!("SELECT count(*) FROM {table}"), &[]).expect("a count");
    assert_eq!(left.get::<_, i64>(0), 0, "what was not committed is undone");
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query IN ($1, $2)";
    let left = direct.query_one(running, &[&cases[0].1, &cases[2].1]).expect("a count");
    assert_eq!(left.get::<_, i64>(0), 0, "no query is left behind");
}

/// Without it PostgreSQL finishes what it was asked, as with PgBouncer: nobody's query is cancelled
/// because its client did not wait for the answer.
#[test]
fn by_default_an_abandoned_query_is_finished() {
    let table = format!("finished_{}", std::process::id());
    let mut direct = Postgres::shared().client("app");
    direct.batch_execute(&format!("CREATE TABLE {table} (n int)")).expect("a table");
    let pooler = Pooler::start(|ini| _ = ini.set("query_timeout", "0.3"));
    for is_patient in [true, false] {
        let mut client = pooler.raw("alice");
        let sql = format!("INSERT INTO {table} SELECT 1 FROM pg_sleep(1.04) /* {is_patient} */");
        client.send(&query(&sql));
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = $1 AND state = 'active'";
        wait_for("the query to run", || {
            let row = direct.query_one(running, &[&sql]).expect("a count");
            row.get::<_, i64>(0) > 0
        });
        if is_patient {
            client.expect_fatal("query timeout");
        }
    }
    wait_for("both rows", || {
        let count = direct.query_one(&format!("SELECT count(*) FROM {table}"), &[]);
        count.expect("a count").get::<_, i64>(0) == 2
    });
}

/// A query that its client has abandoned runs for long, and others are served meanwhile: PostgreSQL
/// never has more backends than the limit, for nobody waits for long.
#[test]
fn a_limit_holds_while_an_abandoned_query_runs() {
    let own = OwnPostgres::start();
    own.client("postgres").batch_execute("CREATE ROLE bob LOGIN").expect("a role");
    std::thread::scope(|scope| {
        scope.spawn(|| holds_while_a_query_runs(&own, "alice", "default_pool_size"));
        scope.spawn(|| holds_while_a_query_runs(&own, "bob", "max_db_connections"));
    });
}

fn holds_while_a_query_runs(own: &OwnPostgres, user: &str, setting: &str) {
    let pooler = Pooler::start(|ini| {
        ini.database("own", &format!("host=127.0.0.1 port={} dbname=app", own.port)).known(user);
        ini.set("default_pool_size", "0").set(setting, "2");
    });
    let client = || pooler.raw_with(Startup::v3().param("user", user).param("database", "own"));
    let mut abandoned = client();
    let mut others = [client(), client(), client()];
    let mut direct = own.client("postgres");
    let count = "SELECT count(*) FILTER (WHERE query LIKE '%sleep(3)%'), count(*) \
                 FROM pg_stat_activity WHERE usename = $1";
    let mut look = || {
        let row = direct.query_one(count, &[&user]).expect("a count");
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    abandoned.send(&query("SELECT pg_sleep(3)"));
    wait_for("the query to run", || look().0 == 1);
    let began = Instant::now();
    drop(abandoned);
    let mut seen = 0;
    // They ask all the time, and are served by the one server that is left.
    while look().0 == 1 {
        others.iter_mut().for_each(|client| client.send(&query("SELECT 1")));
        others.iter_mut().for_each(|client| _ = client.expect_tags("TDCZ"));
        seen = seen.max(look().1);
    }
    assert!(seen <= 2, "{setting}: {seen} backends");
    assert!(began.elapsed() > SECOND * 2, "the query was finished");
}

/// A server with a long query that was abandoned, at the end of our patience.
fn busy(more: &str) -> (Desk, Conn) {
    let mut desk = Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
         default_pool_size = 1\nserver_check_delay = 0\nserver_check_query =\n{more}"
    ));
    desk.servers_stay = true;
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    desk.ask(client);
    desk.take(server);
    desk.leave(client);
    desk.after(SECOND);
    let (probe, _) = desk.dialled.pop_front().expect("whether PostgreSQL lives");
    desk.handle(Input::Connected { server: probe, local: None });
    desk.take(Conn::Server(probe));
    desk.feed(Conn::Server(probe), b"N");
    desk.after(SECOND);
    (desk, server)
}

fn is_busy(desk: &Desk, server: Conn) -> bool {
    let Conn::Server(key) = server else { panic!("a server") };
    let server = desk.engine.house().servers.get(key);
    server.is_some_and(|server| matches!(server.state, State::Leaving(Leave::Busy)))
}

#[test]
fn a_busy_backend_keeps_its_place_until_somebody_has_waited_for_it() {
    let (mut desk, server) = busy("");
    desk.after(SECOND * 1000);
    assert!(is_busy(&desk, server), "nobody has come");
    let client = desk.client("alice", "app");
    desk.take(client);
    desk.ask(client);
    desk.after(SECOND * 9 / 10);
    assert!(is_busy(&desk, server) && desk.dialled.is_empty(), "it may be served in a moment");
    desk.after(SECOND * 2);
    assert!(desk.is_closed(server), "nobody waits for a query that nobody waits for");
    let next = desk.server();
    desk.answer(next);
    assert!(!desk.is_closed(client));
}

#[test]
fn the_place_of_a_busy_backend_is_free_when_it_has_gone() {
    let (mut desk, server) = busy("");
    let client = desk.client("alice", "app");
    desk.take(client);
    desk.ask(client);
    // The rest of its answer is for nobody.
    desk.feed(server, b"D\0\0\0\x06\0\0C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I");
    assert!(desk.dialled.is_empty());
    desk.leave(server);
    let next = desk.server();
    desk.answer(next);
    assert!(!desk.is_closed(client));
}

/// Clients whose patience is shorter than ours get the place while they are still there.
#[test]
fn who_cannot_wait_for_a_second_gets_the_place_sooner() {
    let (mut desk, server) = busy("query_wait_timeout = 0.8\n");
    let mut told = 0;
    while is_busy(&desk, server) {
        assert!(told < 6, "nobody is served while the query runs");
        let client = desk.client("alice", "app");
        desk.take(client);
        desk.ask(client);
        desk.after(SECOND * 7 / 10);
        desk.after(SECOND * 2 / 10);
        told += usize::from(desk.is_closed(client));
    }
    desk.server();
}

/// Whoever waits for servers to be gone does not wait for a query that nobody waits for.
#[test]
fn a_busy_backend_holds_up_neither_an_end_nor_a_change() {
    let (mut desk, server) = busy("");
    desk.engine.reconnect(None, desk.now);
    desk.perform();
    assert!(is_busy(&desk, server) && !desk.engine.has_servers_to_close(None));
    desk.engine.shut_down(Awaited::Servers, desk.now);
    desk.perform();
    assert!(desk.is_closed(server) && desk.engine.is_over());
}
