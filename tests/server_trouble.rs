//! PostgreSQL is stopped, crashed, frozen and reloaded behind the pooler: who has nothing to do with
//! that feels nothing of it, and nobody waits for ever.

mod common;

use common::own_postgresql::OwnPostgres;
use common::pooler::Ini;
use common::raw::query;
use common::{Pooler, Raw, Startup, wait_for};

fn pooler(own: &OwnPostgres, change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.set("pool_mode", "transaction").set("server_login_retry", "1");
        ini.database("own", &format!("host=127.0.0.1 port={} dbname=app", own.port));
        change(ini);
    })
}

fn client(pooler: &Pooler) -> Raw {
    pooler.raw_with(Startup::v3().param("user", "alice").param("database", "own"))
}

fn wait_for_log(pooler: &Pooler, line: &str) {
    wait_for(line, || pooler.log().contains(line));
}

/// So many servers, all idle.
fn crowd(pooler: &Pooler, number: usize) -> Vec<Raw> {
    let mut clients: Vec<Raw> = (0..number).map(|_| client(pooler)).collect();
    clients.iter_mut().for_each(|client| _ = client.query("BEGIN"));
    clients.iter_mut().for_each(|client| _ = client.query("COMMIT"));
    clients
}

/// The pooler stands still while a client asks and its server ends, in that order: when it goes on,
/// it learns of both at once.
#[test]
fn a_server_that_has_ended_is_not_handed_out() {
    let own = OwnPostgres::start();
    let pooler = pooler(&own, |_| {});
    let mut client = client(&pooler);
    let mut direct = own.client("postgres");
    for _ in 0..5 {
        let pid = client.backend_pid();
        pooler.signal(libc::SIGSTOP);
        let path = format!("/proc/{}/stat", pooler.pid());
        wait_for("the pooler to stand still", || {
            std::fs::read_to_string(&path).expect("its state").contains(") T ")
        });
        client.send(&query("SELECT pg_backend_pid()"));
        direct.batch_execute(&format!("SELECT pg_terminate_backend({pid})")).expect("terminate");
        let alive = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
        wait_for("it to end", || {
            direct.query_one(&alive, &[]).expect("a row").get::<_, i64>(0) == 0
        });
        pooler.signal(libc::SIGCONT);
        client.expect_tags("TDCZ");
    }
}

#[test]
fn idle_clients_survive_a_restart_of_postgresql() {
    let mut own = OwnPostgres::start();
    let pooler = pooler(&own, |_| {});
    for how in [OwnPostgres::stop, OwnPostgres::crash] {
        let mut clients = crowd(&pooler, 5);
        let mut busy = client(&pooler);
        busy.query("BEGIN");
        how(&mut own);
        let words = busy.until_end();
        let last = words.last().expect("last words");
        assert_eq!(last.field('M'), "server conn crashed?");
        own.start_again();
        for client in &mut clients {
            assert_eq!(client.value("SELECT 1"), "1");
        }
    }
}

/// Every client that PostgreSQL stands still under gets the contract's words in the end, and those
/// who had nothing to do are served when it goes on.
#[test]
fn nobody_waits_for_ever_for_a_frozen_postgresql() {
    let own = OwnPostgres::start();
    let pooler = pooler(&own, |ini| {
        ini.set("default_pool_size", "2").set("query_timeout", "6");
        ini.set("server_connect_timeout", "1").set("server_check_delay", "0");
        ini.set("server_check_query", "select 1").set("query_wait_notify", "0");
    });
    let mut clients = crowd(&pooler, 2);
    let (mut working, mut later) = (client(&pooler), client(&pooler));
    working.query("BEGIN");
    own.freeze();
    working.send(&query("SELECT 1"));
    // Those find a server that does not answer when it is tried out.
    clients.iter_mut().for_each(|client| client.send(&query("SELECT 1")));
    working.expect_fatal("query timeout");
    for client in &mut clients {
        client.expect_fatal("query_timeout");
    }
    wait_for_log(&pooler, "closing because: test query failed");
    wait_for_log(&pooler, "closing because: connect timeout");
    own.thaw();
    wait_for("the pool to be well", || {
        let mut client = client(&pooler);
        client.send(&query("SELECT 1"));
        client.message().tag == b'T'
    });
    assert_eq!(later.value("SELECT 2"), "2");
}

/// Not even one that changes parameters which it reports.
#[test]
fn a_reload_of_postgresql_costs_no_connection() {
    let own = OwnPostgres::start();
    let pooler = pooler(&own, |_| {});
    let mut clients = crowd(&pooler, 3);
    let pids = |pooler: &Pooler| -> Vec<i32> {
        let mut clients: Vec<Raw> = (0..3).map(|_| client(pooler)).collect();
        clients.iter_mut().for_each(|client| _ = client.query("BEGIN"));
        let mut pids: Vec<i32> = clients.iter_mut().map(Raw::backend_pid).collect();
        clients.iter_mut().for_each(|client| _ = client.query("COMMIT"));
        pids.sort_unstable();
        pids
    };
    let before = pids(&pooler);
    own.configure("timezone = 'Asia/Tokyo'\nDateStyle = 'german'");
    own.reload();
    wait_for("PostgreSQL to have read it", || {
        let row = own.client("app").query_one("SHOW timezone", &[]).expect("a row");
        row.get::<_, String>(0) == "Asia/Tokyo"
    });
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1"), "1");
    }
    assert_eq!(pids(&pooler), before);
    assert!(!pooler.log().contains("got dirty"));
}
