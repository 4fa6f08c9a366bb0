//! What signals do: reload, and the ways to end.

mod common;

use common::{Pooler, Postgres, Startup, wait_for};

fn knows(pooler: &Pooler, database: &str) -> bool {
    pooler.config("alice", database).connect(postgres::NoTls).is_ok()
}

fn connect_string(database: &str) -> String {
    format!("host=127.0.0.1 port={} dbname={database}", Postgres::shared().port)
}

#[test]
fn hangup_makes_a_new_database_known() {
    let mut pooler = Pooler::start(|_| ());
    let mut client = pooler.raw("alice");
    assert_eq!(client.query("BEGIN").len(), 2);
    assert!(!knows(&pooler, "added"));
    pooler.rewrite(|ini| {
        ini.database("added", &connect_string("app"));
    });
    assert!(!knows(&pooler, "added"), "nobody has told the pooler");
    pooler.signal(libc::SIGHUP);
    wait_for("the new database", || knows(&pooler, "added"));
    assert_eq!(client.value("SELECT 42"), "42", "clients of before go on");
    let added = Startup::v3().param("user", "alice").param("database", "added");
    assert_eq!(pooler.raw_with(added).value("SELECT current_database()"), "app");
}

#[test]
fn hangup_makes_a_new_user_known() {
    let mut pooler = Pooler::start(|ini| {
        ini.database("app", &(connect_string("app") + " user=bob"));
    });
    assert!(pooler.config("erin", "app").connect(postgres::NoTls).is_err());
    pooler.rewrite(|ini| {
        ini.known("erin");
    });
    pooler.signal(libc::SIGHUP);
    wait_for("the new user", || pooler.config("erin", "app").connect(postgres::NoTls).is_ok());
}

#[test]
fn a_faulty_file_at_reload_changes_nothing() {
    let mut pooler = Pooler::start(|_| ());
    pooler.rewrite(|ini| {
        ini.set("pool_mode", "nonsense").database("added", &connect_string("app"));
    });
    pooler.signal(libc::SIGHUP);
    wait_for("a word in the log", || pooler.log().contains("nonsense"));
    pooler.assert_serves();
    pooler.rewrite(|ini| {
        ini.set("pool_mode", "transaction");
    });
    pooler.signal(libc::SIGHUP);
    wait_for("the new database", || knows(&pooler, "added"));
}

#[test]
fn each_ending_signal_ends_it_well() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT] {
        let mut pooler = Pooler::start(|_| ());
        pooler.assert_serves();
        pooler.signal(signal);
        let status = pooler.wait_for_exit();
        assert_eq!(status.code(), Some(0), "signal {signal}: {status}\n{}", pooler.log());
    }
}

#[test]
fn the_immediate_signal_waits_for_nobody() {
    let mut pooler = Pooler::start(|_| ());
    let mut client = pooler.raw("alice");
    client.query("BEGIN");
    pooler.signal(libc::SIGQUIT);
    let status = pooler.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(client.try_message().is_none_or(|message| message.tag == b'E'));
}
