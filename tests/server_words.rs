//! What the log says of servers: their names, their beginnings and their ends (server.md §0.2, §0.3,
//! §1.9, §2.1, §2.2), and which of it can be turned off.

mod common;

use common::fake::FakeServer;
use common::own_postgresql::OwnPostgres;
use common::pooler::Ini;
use common::{Lease, Pooler, Raw, Startup, raw, wait_for};

fn client(pooler: &Pooler, database: &str) -> Raw {
    pooler.raw_with(Startup::v3().param("user", "alice").param("database", database))
}

/// The lines with this text, from the word in front of it on that names a connection.
fn lines(pooler: &Pooler, text: &str) -> Vec<String> {
    let log = pooler.log();
    let found = log.lines().filter(|line| line.contains(text));
    found.map(|line| line.split_once("] ").expect("a process").1.to_owned()).collect()
}

fn one_line(pooler: &Pooler, text: &str) -> String {
    wait_for(text, || !lines(pooler, text).is_empty());
    let mut found = lines(pooler, text);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Takes the identity out of a name: `S-0x1f: app/…` is `S: app/…`.
fn without_identity(line: &str) -> String {
    let (head, rest) = line.split_once("-0x").expect("an identity");
    let hex = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
    assert!(hex > 0 && !rest[..hex].bytes().any(|byte| byte.is_ascii_uppercase()), "{line}");
    format!("{head}{}", &rest[hex..])
}

#[test]
fn a_server_is_named_by_where_it_is() {
    let mut own = OwnPostgres::start();
    let directory = common::temp_dir(&std::env::temp_dir(), "ringbouncer-words");
    own.stop();
    own.configure(&format!(
        "unix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1, ::1'",
        directory.display()
    ));
    own.start_again();
    let port = own.port;
    let pooler = Pooler::start(|ini| {
        ini.database("four", &format!("host=127.0.0.1 port={port} dbname=app"));
        ini.database("six", &format!("host=::1 port={port} dbname=app"));
        ini.database("unix", &format!("host={} port={port} dbname=app", directory.display()));
    });
    for database in ["four", "six", "unix"] {
        assert_eq!(client(&pooler, database).value("SELECT 1"), "1");
    }
    let begun = |database: &str| {
        let begun = lines(&pooler, "new connection to server");
        let own = begun.iter().find(|line| line.contains(database)).expect("a line").clone();
        without_identity(&own)
    };
    let four = begun("four/");
    let (front, local) = four.split_once("(from ").expect("its own address");
    assert_eq!(front, format!("LOG S: four/alice@127.0.0.1:{port} new connection to server "));
    let local: std::net::SocketAddr = local.trim_end_matches(')').parse().expect("an address");
    assert!(local.ip().is_loopback() && local.is_ipv4());
    let six = begun("six/");
    let (front, local) = six.split_once("(from ").expect("its own address");
    assert_eq!(front, format!("LOG S: six/alice@[::1]:{port} new connection to server "));
    let local: std::net::SocketAddr = local.trim_end_matches(')').parse().expect("an address");
    assert!(local.is_ipv6());
    let unix = begun("unix/");
    assert_eq!(unix, format!("LOG S: unix/alice@unix:{port} new connection to server"));
    drop(pooler);
    own.stop();
    let _ = std::fs::remove_dir_all(directory);
}

#[test]
fn without_the_settings_nothing_is_said() {
    let server = FakeServer::start(|visit| visit.welcome());
    let pooler = Pooler::start(|ini| {
        ini.database("fake", &server.connect_string()).set("log_connections", "0");
        ini.set("log_disconnections", "0").set("log_pooler_errors", "0");
    });
    let mut client = client(&pooler, "fake");
    client.send(&raw::query("SELECT 1"));
    client.expect_fatal("server conn crashed?");
    for text in ["new connection to server", "closing because", "pooler error", "login attempt"] {
        assert!(lines(&pooler, text).is_empty(), "{text}");
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_told_of_in_these_words() {
    let closed = Lease::take();
    let port = closed.port;
    let pooler = Pooler::start(|ini| {
        ini.set("unix_socket_dir", "").set("server_login_retry", "60");
        ini.set("client_login_timeout", "1");
        ini.database("nowhere", "dbname=app");
        ini.database("named", &format!("host=no-such-host.invalid port={port}"));
        ini.database("missing", "host=/no/such/directory port=77");
        ini.database("refused", &format!("host=127.0.0.1 port={port}"));
    });
    let databases = ["nowhere", "named", "missing", "refused"];
    let clients = databases.map(|database| {
        let mut client = pooler.unnamed();
        let startup = Startup::v3().param("user", "alice").param("database", database);
        client.send(&startup.bytes());
        client
    });
    for mut client in clients {
        client.expect_fatal("client_login_timeout (server down)");
    }
    let end = |reason: &str| without_identity(&one_line(&pooler, &format!("because: {reason} (")));
    assert_eq!(
        one_line(&pooler, "unix socket dir not configured"),
        "ERROR unix socket dir not configured: nowhere"
    );
    assert!(end("cannot connect").starts_with("LOG S: nowhere/alice@"));
    assert_eq!(
        end("server DNS lookup failed"),
        "LOG S: named/alice@(bad-af):0 closing because: server DNS lookup failed (age=0s)"
    );
    let failed = one_line(&pooler, "sbuf_connect failed to connect to");
    assert!(
        failed.starts_with("WARNING ") && failed.ends_with(": No such file or directory"),
        "{failed}"
    );
    let ends = lines(&pooler, "because: connect failed (");
    assert_eq!(ends.len(), 2, "{ends:?}");
    let refused = ends.iter().find(|line| line.contains("refused/")).expect("a line");
    assert_eq!(
        without_identity(refused),
        format!("LOG S: refused/alice@127.0.0.1:{port} closing because: connect failed (age=0s)")
    );
}

#[test]
fn the_reserve_is_touched_with_a_word() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("reserve_pool_size", "1");
        ini.set("reserve_pool_timeout", "0.3");
    });
    let (mut first, mut second) = (pooler.raw("alice"), pooler.raw("alice"));
    first.query("BEGIN");
    assert_eq!(second.value("SELECT 1"), "1");
    let line = one_line(&pooler, "taking connection from reserve_pool");
    let line = without_identity(&line);
    let address = second.local_address();
    assert_eq!(line, format!("WARNING C: app/alice@{address} taking connection from reserve_pool"));
}

#[test]
fn a_pool_that_shrinks_or_goes_is_told_of() {
    let mut pooler = Pooler::start(|ini| _ = ini.set("pool_idle_timeout", "1"));
    let mut clients = [pooler.raw("alice"), pooler.raw("alice")];
    clients.iter_mut().for_each(|client| _ = client.query("BEGIN"));
    clients.iter_mut().for_each(|client| _ = client.query("COMMIT"));
    let change = |ini: &mut Ini| {
        ini.set("default_pool_size", "1").set("server_idle_timeout", "1");
    };
    pooler.rewrite(change);
    pooler.signal(libc::SIGHUP);
    let line = without_identity(&one_line(&pooler, "too many servers in the pool"));
    assert!(line.starts_with("LOG S: app/alice@127.0.0.1:"), "{line}");
    drop(clients);
    let line = one_line(&pooler, "cleaning up idle pool");
    assert_eq!(
        line,
        "LOG cleaning up idle pool for user alice on db app because: pool idle timeout (age= 1s)"
    );
    pooler.assert_serves();
}
