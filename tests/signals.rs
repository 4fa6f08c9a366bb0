//! What signals do: reload, and the ways to end.

mod common;

use common::{Pooler, Postgres, Startup, wait_for};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
fn users_stay_known_if_their_file_cannot_be_read() {
    let mut pooler = Pooler::start(|_| ());
    let mut kept = String::new();
    pooler.rewrite(|ini| {
        kept = ini.value("auth_file").to_owned();
        ini.set("auth_file", "/nonexist/users").database("added", &connect_string("app"));
    });
    pooler.signal(libc::SIGHUP);
    // The rest of the file counts.
    wait_for("the new database", || knows(&pooler, "added"));
    let log = pooler.log();
    let file = "ERROR could not open auth_file /nonexist/users: No such file or directory\n";
    assert!(log.contains(file), "{log}");
    assert!(log.contains("WARNING keeping the users known so far\n"), "{log}");
    pooler.rewrite(|ini| {
        ini.set("auth_file", &kept).known("erin");
    });
    pooler.signal(libc::SIGHUP);
    let refusal = || {
        let error = pooler.config("erin", "app").connect(postgres::NoTls).err().expect("a refusal");
        error.as_db_error().map(|error| error.message().to_owned())
    };
    let unknown_to_the_server = Some("role \"erin\" does not exist".to_owned());
    wait_for("the new user", || refusal() == unknown_to_the_server);
}

#[test]
fn tls_that_cannot_be_set_up_at_a_reload_stays_as_it_was() {
    let mut pooler = Pooler::start(|_| ());
    pooler.rewrite(|ini| {
        ini.set("client_tls_sslmode", "require").set("client_tls_key_file", "/no/such/key");
        ini.set("client_tls_cert_file", "/no/such/certificate");
    });
    pooler.signal(libc::SIGHUP);
    wait_for_line(&pooler, "TLS configuration could not be reloaded, keeping old configuration");
    // Nobody has to speak TLS yet.
    pooler.assert_serves();
}

#[test]
fn a_database_that_is_no_longer_listed_is_dropped_with_its_clients() {
    let mut pooler = Pooler::start(|ini| {
        ini.database("doomed", &connect_string("app")).database("unused", "host=127.0.0.1");
    });
    let startup = |user: &str| Startup::v3().param("user", user).param("database", "doomed");
    let mut clients = ["alice", "bob"].map(|user| pooler.raw_with(startup(user)));
    clients[0].query("BEGIN");
    let mut other = pooler.raw("alice");
    pooler.rewrite(|ini| {
        ini.forget_database("doomed").forget_database("unused");
    });
    pooler.signal(libc::SIGHUP);
    for client in &mut clients {
        client.expect_fatal("database removed");
    }
    assert!(!knows(&pooler, "doomed"));
    assert_eq!(other.value("SELECT 42"), "42");
    let log = pooler.log();
    for name in ["doomed", "unused"] {
        let line = format!("WARNING dropping database '{name}' as it does not exist anymore");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
    }
}

/// Runs queries until told to stop; how many.
fn query_until(is_over: &AtomicBool, config: &postgres::Config) -> usize {
    let connect = || config.connect(postgres::NoTls).expect("a connection");
    let (mut client, mut rounds) = (connect(), 0);
    while !is_over.load(Ordering::Relaxed) {
        let row = client.query_one("SELECT $1::int + 1", &[&41]).expect("a query");
        assert_eq!(row.get::<_, i32>(0), 42);
        let mut transaction = client.transaction().expect("a transaction");
        transaction.batch_execute("SELECT 1").expect("a query");
        transaction.commit().expect("a commit");
        rounds += 1;
        if rounds % 50 == 0 {
            client = connect();
        }
    }
    rounds
}

#[test]
fn reloads_under_load_cost_no_query() {
    let mut pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "3");
    });
    // What may change: limits, what names the server, and what cannot be loaded at all.
    let changes = [
        (" connect_query=select", "5", "transaction"),
        (" pool_size=2", "3", "transaction"),
        (" application_name=x", "1", "nonsense"),
        ("", "4", "transaction"),
    ];
    let (is_over, config) = (AtomicBool::new(false), pooler.config("alice", "app"));
    let rounds: Vec<usize> = std::thread::scope(|scope| {
        let work = || query_until(&is_over, &config);
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        for (entry, size, mode) in changes.into_iter().cycle().take(60) {
            pooler.rewrite(|ini| {
                ini.database("app", &(connect_string("app") + entry));
                ini.set("default_pool_size", size).set("pool_mode", mode);
            });
            pooler.signal(libc::SIGHUP);
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("no error")).collect()
    });
    assert!(rounds.iter().all(|rounds| *rounds > 0), "{rounds:?}");
    let log = pooler.log();
    // Signals that come while one is being dealt with are one.
    assert!(log.matches("got SIGHUP").count() > 10, "{log}");
    // A free server ends at once, one that works when it is done.
    let endings =
        ["closing because: database configuration changed", "closing because: close_needed"];
    assert!(endings.iter().any(|ending| log.contains(ending)), "servers were moved: {log}");
    assert!(log.contains("WARNING config file loading failed"));
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

/// Waits for a line with this at its end.
fn wait_for_line(pooler: &Pooler, line: &str) {
    wait_for(line, || pooler.log().lines().any(|known| known.ends_with(line)));
}

/// A pooler with a Unix socket, too.
fn with_unix_socket(settings: &[(&str, &str)]) -> Pooler {
    Pooler::start(|ini| {
        ini.set("unix_socket_dir", &Postgres::shared().socket_dir.to_string_lossy());
        for (name, value) in settings {
            ini.set(name, value);
        }
    })
}

/// What a login over the Unix socket comes to.
fn unix_login(pooler: &Pooler) -> Result<postgres::Client, postgres::Error> {
    let mut config = postgres::Config::new();
    config.host_path(&Postgres::shared().socket_dir).port(pooler.port);
    config.user("alice").dbname("app").connect(postgres::NoTls)
}

fn refuses_tcp(pooler: &Pooler) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", pooler.port)).is_err()
}

fn expect_end_of(mut pooler: Pooler, line: &str) {
    let status = pooler.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{status}\n{}", pooler.log());
    let log = pooler.log();
    assert!(log.trim_end().ends_with(line), "not at the end: {line:?}\n{log}");
}

const WAITS_FOR_CLIENTS: &str =
    "LOG got SIGTERM, shutting down, waiting for all clients disconnect";
const WAITS_FOR_SERVERS: &str =
    "LOG got SIGINT, shutting down, waiting for all servers connections to be released";

#[test]
fn terminate_waits_until_all_clients_have_gone() {
    let pooler = with_unix_socket(&[("default_pool_size", "1")]);
    let (mut one, mut two) = (pooler.raw("alice"), pooler.raw("alice"));
    one.query("BEGIN");
    pooler.signal(libc::SIGTERM);
    wait_for_line(&pooler, WAITS_FOR_CLIENTS);
    wait_for("the TCP listener to close", || refuses_tcp(&pooler));
    // They work on, and even wait for each other.
    two.send(&common::raw::query("SELECT 1"));
    one.query("COMMIT");
    assert_eq!(two.until_ready().len(), 4);
    let error = unix_login(&pooler).err().expect("a refusal");
    let error = error.as_db_error().expect("from the pooler").clone();
    assert_eq!((error.code().code(), error.message()), ("08P01", "pooler is shutting down"));
    assert!(pooler.log().contains("login attempt: db=app user=alice"), "it is refused afterwards");
    drop(one);
    assert_eq!(two.value("SELECT 42"), "42");
    drop(two);
    expect_end_of(pooler, "LOG client connections dropped, exiting");
}

#[test]
fn interrupt_waits_until_all_servers_are_free() {
    let pooler = with_unix_socket(&[("default_pool_size", "2")]);
    let (mut busy, mut idle) = (pooler.raw("alice"), pooler.raw("alice"));
    let mut free = pooler.raw_with(Startup::v3().param("user", "bob").param("database", "app"));
    busy.query("BEGIN");
    // Bob's pool has an idle server; alice's second one is used and then idle.
    assert_eq!(free.value("SELECT 42"), "42");
    assert_eq!(idle.value("SELECT 42"), "42");
    pooler.signal(libc::SIGINT);
    wait_for_line(&pooler, WAITS_FOR_SERVERS);
    wait_for("the idle servers to be closed", || {
        pooler.log().matches("closing because: pause mode").count() == 2
    });
    wait_for("the TCP listener to close", || refuses_tcp(&pooler));
    let error = unix_login(&pooler).err().expect("a refusal");
    let error = error.as_db_error().expect("from the pooler").clone();
    assert_eq!(error.message(), "pooler is shutting down");
    // Who needs a server now is too late; who has one may finish.
    idle.send(&common::raw::query("SELECT 1"));
    idle.expect_fatal("server shutting down");
    assert_eq!(busy.value("SELECT 42"), "42");
    assert_eq!(busy.query("COMMIT").len(), 2);
    busy.expect_end();
    free.expect_end();
    expect_end_of(pooler, "LOG server connections dropped, exiting");
}

#[test]
fn interrupt_sends_waiting_clients_away() {
    let pooler = with_unix_socket(&[("default_pool_size", "1")]);
    let (mut busy, mut waiting) = (pooler.raw("alice"), pooler.raw("alice"));
    busy.query("BEGIN");
    waiting.send(&common::raw::query("SELECT 1"));
    assert!(waiting.is_quiet_for(Duration::from_millis(50)));
    pooler.signal(libc::SIGINT);
    waiting.expect_fatal("server shutting down");
    busy.query("COMMIT");
    expect_end_of(pooler, "LOG server connections dropped, exiting");
}

#[test]
fn interrupt_leaves_nobody_without_the_end_of_a_reply() {
    let pooler = Pooler::start(|_| ());
    let mut client = pooler.raw("alice");
    let sql = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)";
    client.send(&common::raw::query(sql));
    pooler.signal(libc::SIGINT);
    wait_for_line(&pooler, WAITS_FOR_SERVERS);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(client.until_ready().len(), 20_003);
    expect_end_of(pooler, "LOG server connections dropped, exiting");
}

#[test]
fn the_second_ending_signal_does_not_wait() {
    for (first, second, line) in [
        (libc::SIGTERM, libc::SIGTERM, "LOG got SIGTERM while shutting down, fast exit"),
        (libc::SIGTERM, libc::SIGINT, "LOG got SIGINT while shutting down, fast exit"),
        (libc::SIGINT, libc::SIGTERM, "LOG got SIGTERM while shutting down, fast exit"),
        (libc::SIGINT, libc::SIGINT, "LOG got SIGINT while shutting down, fast exit"),
        (libc::SIGTERM, libc::SIGQUIT, "LOG got SIGQUIT, fast exit"),
    ] {
        let pooler = Pooler::start(|_| ());
        let mut client = pooler.raw("alice");
        client.query("BEGIN");
        pooler.signal(first);
        wait_for("the first signal", || pooler.log().contains(", shutting down, "));
        pooler.signal(second);
        expect_end_of(pooler, line);
        client.expect_end();
    }
}

#[test]
fn user_signals_pause_and_resume() {
    let pooler = Pooler::start(|_| ());
    let (mut busy, mut client) = (pooler.raw("alice"), pooler.raw("alice"));
    busy.query("BEGIN");
    assert_eq!(client.value("SELECT 42"), "42");
    pooler.signal(libc::SIGUSR2);
    wait_for_line(&pooler, "LOG got SIGUSR2, but not paused/suspended");
    pooler.signal(libc::SIGUSR1);
    wait_for_line(&pooler, "LOG got SIGUSR1, pausing all activity");
    wait_for("the idle server to be closed", || {
        pooler.log().contains("closing because: pause mode")
    });
    assert_eq!(busy.value("SELECT 42"), "42", "what has begun may go on");
    client.send(&common::raw::query("SELECT 42"));
    // A login needs no server where the welcome is known already, else it waits.
    let mut late = pooler.raw("alice");
    late.send(&common::raw::query("SELECT 43"));
    let mut unwelcomed = pooler.unnamed();
    unwelcomed.send(&Startup::v3().param("user", "bob").param("database", "app").bytes());
    assert!(client.is_quiet_for(Duration::from_millis(100)));
    assert!(late.is_quiet_for(Duration::from_millis(10)));
    assert!(unwelcomed.is_quiet_for(Duration::from_millis(10)));
    busy.query("COMMIT");
    wait_for("the last server to be closed", || {
        pooler.log().matches("closing because: pause mode").count() == 2
    });
    pooler.signal(libc::SIGUSR1);
    wait_for_line(&pooler, "LOG got SIGUSR1, but already paused/suspended");
    pooler.signal(libc::SIGUSR2);
    wait_for_line(&pooler, "LOG got SIGUSR2, continuing from PAUSE");
    assert_eq!(client.until_ready().len(), 4);
    assert_eq!(late.until_ready().len(), 4);
    unwelcomed.welcome = unwelcomed.until_ready();
    assert_eq!(unwelcomed.value("SELECT current_user"), "bob");
    pooler.assert_serves();
    assert!(!pooler.log().contains("server_login_retry"));
}

#[test]
fn a_pause_is_kept_through_a_shutdown() {
    let pooler = Pooler::start(|ini| {
        ini.set("query_wait_timeout", "1");
    });
    let mut client = pooler.raw("alice");
    assert_eq!(client.value("SELECT 42"), "42");
    pooler.signal(libc::SIGUSR1);
    wait_for_line(&pooler, "LOG got SIGUSR1, pausing all activity");
    pooler.signal(libc::SIGTERM);
    wait_for_line(&pooler, WAITS_FOR_CLIENTS);
    pooler.signal(libc::SIGUSR2);
    wait_for_line(&pooler, "LOG got SIGUSR2 while shutting down, ignoring");
    client.send(&common::raw::query("SELECT 42"));
    client.expect_fatal("query_wait_timeout");
    expect_end_of(pooler, "LOG client connections dropped, exiting");
}
