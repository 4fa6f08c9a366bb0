//! client.md §0.2, §1, §8, §9.5: lines of the log and their order, the order of decisions about a
//! Startup, and words of the console.

mod common;

use common::fake::FakeServer;
use common::pooler::Ini;
use common::raw::{self, GSSENC_REQUEST, SSL_REQUEST, message, query, tags, untagged};
use common::{Pooler, Postgres, Raw, Startup, wait_for};

fn alice() -> Startup {
    Startup::v3().param("user", "alice").param("database", "app")
}

fn console(pooler: &Pooler) -> Raw {
    pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"))
}

/// A connection that has sent these bytes.
fn send(pooler: &Pooler, bytes: &[u8]) -> Raw {
    let mut raw = pooler.unnamed();
    raw.send(bytes);
    raw
}

fn logged(pooler: &Pooler, words: &str) {
    wait_for(words, || pooler.log().contains(words));
}

/// Where this stands in the log, after this place.
fn place(pooler: &Pooler, from: usize, words: &str) -> usize {
    logged(pooler, words);
    let log = pooler.log();
    from + log[from..].find(words).unwrap_or_else(|| panic!("{words} not behind {from} in {log}"))
}

/// §0.2: reason first, then what the client was told; whose end it was comes first of two.
#[test]
fn lines_of_an_end_have_their_order() {
    let pooler = Pooler::start(|ini| _ = ini.set("auth_type", "plain").secret("alice", "right"));
    let mut wrong = send(&pooler, &alice().bytes());
    assert_eq!(wrong.message().tag, b'R');
    // The attempt is logged before a password is checked.
    let attempt = place(&pooler, 0, "login attempt: db=app user=alice tls=no replication=no");
    assert!(!pooler.log().contains("closing because"));
    wrong.send(&message(b'p', b"wrong\0"));
    wrong.expect_fatal("password authentication failed");
    let reason = place(&pooler, attempt, "closing because: password authentication failed (age=");
    place(&pooler, reason, "pooler error: password authentication failed");

    let log_in = |pooler: &Pooler| {
        let mut client = send(pooler, &alice().bytes());
        assert_eq!(client.message().tag, b'R');
        client.send(&message(b'p', b"right\0"));
        client.until_ready();
        client.query("BEGIN");
        client
    };
    // Its server dies: the server's line, then the client's, then the word to it.
    let mut client = log_in(&pooler);
    let pid = client.backend_pid();
    let mut direct = Postgres::shared().client("app");
    direct.execute("SELECT pg_terminate_backend($1)", &[&pid]).expect("its end");
    client.until_end();
    let crashed = "closing because: server conn crashed? (age=";
    let told = place(&pooler, reason, "pooler error: server conn crashed?");
    let log = pooler.log();
    let sides: Vec<char> = log[reason..told]
        .lines()
        .filter(|line| line.contains(crashed))
        .map(|line| if line.contains(" S-0x") { 'S' } else { 'C' })
        .collect();
    assert_eq!(sides, ['S', 'C'], "{log}");
    // It leaves: its line, then its server's.
    let mut client = log_in(&pooler);
    client.send(&raw::terminate());
    client.expect_end();
    let left = place(&pooler, told, "closing because: client close request (age=");
    place(&pooler, left, "closing because: client disconnect while server was not ready (age=");
}

/// §0.2: who goes before he has proven who he is leaves no line; one who is sent away does.
#[test]
fn who_goes_before_his_login_is_not_worth_a_line() {
    let pooler = Pooler::start(|ini| _ = ini.set("auth_type", "plain").secret("alice", "right"));
    drop(pooler.unnamed());
    drop(send(&pooler, &alice().bytes()[..20]));
    drop(send(&pooler, &untagged(SSL_REQUEST, b"")));
    let mut asked = send(&pooler, &alice().bytes());
    asked.message();
    drop(asked);
    let mut refused = send(&pooler, &raw::query("SELECT 1"));
    refused.expect_end();
    logged(&pooler, "closing because: bad packet (age=");
    wait_for("nobody to be left", || {
        let answer = {
            let mut client = send(
                &pooler,
                &Startup::v3().param("user", "postgres").param("database", "pgbouncer").bytes(),
            );
            client.message();
            client.send(&message(b'p', b"\0"));
            client.until_end()
        };
        answer.last().is_some_and(|last| last.tag == b'E')
    });
    assert!(!pooler.log().contains("unexpected eof"), "{}", pooler.log());
}

/// `log_connections`, `log_disconnections`, `log_pooler_errors`.
#[test]
fn what_is_not_to_be_logged_is_not() {
    let pooler = Pooler::start(|ini| {
        ini.set("log_connections", "0").set("log_disconnections", "0");
        ini.set("log_pooler_errors", "0");
    });
    let mut client = pooler.raw("alice");
    assert_eq!(client.value("SELECT 1"), "1");
    client.send(&message(b'~', b""));
    client.expect_fatal("unknown pkt");
    drop(pooler.raw("alice"));
    let mut console = console(&pooler);
    assert_eq!(console.query("NONSENSE")[0].tag, b'E');
    let log = pooler.log();
    for words in ["login attempt", "new connection", "closing because", "pooler error"] {
        assert!(!log.contains(words), "{words}: {log}");
    }
    assert_eq!(tags(&console.query("SET log_disconnections = 1")), "CZ");
    drop(pooler.raw("alice"));
    logged(&pooler, "closing because: client unexpected eof (age=0s)");
}

/// §1.1: a client may ask for encryption at any time before it has proven who it is.
#[test]
fn encryption_is_declined_in_the_middle_of_a_login() {
    let pooler = Pooler::start(|ini| _ = ini.set("auth_type", "plain").secret("alice", "right"));
    let mut client = send(&pooler, &alice().bytes());
    assert_eq!(client.message().body, [0, 0, 0, 3]);
    for code in [SSL_REQUEST, GSSENC_REQUEST, SSL_REQUEST] {
        client.send_slowly(&untagged(code, b""));
        assert_eq!(client.byte(), Some(b'N'));
    }
    client.send(&message(b'p', b"right\0"));
    assert_eq!(client.until_ready().last().map(|last| last.tag), Some(b'Z'));
    // Other first packets have their words there, too (as PgBouncer 1.26.1 was seen to say them).
    let behind = "received unencrypted data after";
    for (bytes, words) in [
        (Startup::v3().param("user", "alice").bytes(), "client re-sent startup pkt".to_owned()),
        (untagged(0x2_0000, b"x"), "old V2 protocol not supported".to_owned()),
        (untagged(0x4_0000, b"x"), "bad packet header: '0000000900040000'".to_owned()),
        (
            [0, 0, 0, 4, 4, 0xd2, 0x16, 0x2f].to_vec(),
            "bad packet header: '0000000404d2162f'".into(),
        ),
        ([&untagged(SSL_REQUEST, b"")[..], b"x"].concat(), format!("{behind} SSL request")),
        (
            [&untagged(GSSENC_REQUEST, b"")[..], &message(b'p', b"right\0")].concat(),
            format!("{behind} GSSAPI encryption request"),
        ),
        (untagged(raw::CANCEL_REQUEST, &[7; 8]), String::new()),
    ] {
        let mut client = send(&pooler, &alice().bytes());
        assert_eq!(client.message().tag, b'R');
        client.send(&bytes);
        if words.is_empty() { client.expect_end() } else { client.expect_fatal(&words) }
    }
}

/// §1.2, §1.3: parameters, layout, name, the limit on clients, the version, the user, the password.
#[test]
fn a_startup_is_judged_in_the_order_of_the_contract() {
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "plain").secret("alice", "right").set("max_client_conn", "2");
    });
    // With a version and an option of which we know nothing: where the answer to that has its place.
    let new = |user: &str| {
        let startup = Startup::version(0x3_0003).param("user", user).param("_pq_.x", "");
        startup.param("database", "nowhere")
    };
    let first = |startup: Startup| {
        let answer = send(&pooler, &startup.bytes()).message();
        (answer.tag, if answer.tag == b'E' { answer.field('M') } else { String::new() })
    };
    let error = |text: &str| (b'E', text.to_owned());
    let unknown = "unsupported startup parameter: geqo";
    assert_eq!(first(new("").param("geqo", "").end(b"x")), error(unknown));
    let layout = "invalid startup packet layout: expected terminator as last byte";
    assert_eq!(first(new("").end(b"x")), error(layout));
    assert_eq!(first(new("")), error("no username supplied"));
    let mut others: Vec<Raw> = (0..2).map(|_| pooler.unnamed()).collect();
    for other in &mut others {
        // It has been accepted.
        other.send(&untagged(GSSENC_REQUEST, b""));
        assert_eq!(other.byte(), Some(b'N'));
    }
    let full = "no more connections allowed (max_client_conn)";
    assert_eq!(first(new("")), error("no username supplied"));
    assert_eq!(first(new(&"u".repeat(128))), error(full));
    drop(others);
    wait_for("places", || first(new("alice")) == (b'v', String::new()));
    for (user, next) in [("alice", None), ("nobody", None), ("", Some("username too long"))] {
        let long = "u".repeat(128);
        let user = if user.is_empty() { &long } else { user };
        let mut client = send(&pooler, &new(user).bytes());
        assert_eq!(client.message().tag, b'v', "{user}");
        match next {
            Some(words) => client.expect_fatal(words),
            None => assert_eq!(client.message().body, [0, 0, 0, 3], "asked for a password"),
        }
    }
}

/// §1.3: `replication` is read like a boolean of PostgreSQL, and counts wherever it stands.
#[test]
fn replication_is_found_anywhere_and_read_as_postgresql_does() {
    let pooler = Pooler::start(|_| ());
    let kind = |values: &[&str]| {
        let mut startup = Startup::v3().param("options", "");
        startup = startup.param("user", "nobody").param("database", "app");
        for value in values {
            startup = startup.param("replication", value);
        }
        let from = pooler.log().len();
        send(&pooler, &startup.bytes()).expect_fatal("\"trust\" authentication failed");
        let at = place(&pooler, from, "replication=") + "replication=".len();
        wait_for("the line", || pooler.log()[at..].contains('\n'));
        pooler.log()[at..].lines().next().unwrap_or_default().to_owned()
    };
    for (value, expected) in [
        ("database", "database"),
        ("Database", "no"),
        ("databas", "no"),
        ("true", "yes"),
        ("t", "yes"),
        ("TrU", "yes"),
        ("yes", "yes"),
        ("Y", "yes"),
        ("on", "yes"),
        ("ON", "yes"),
        ("1", "yes"),
        ("o", "no"),
        ("truer", "no"),
        ("2", "no"),
        ("11", "no"),
        ("", "no"),
        (" on", "no"),
        ("off", "no"),
        ("of", "no"),
        ("false", "no"),
        ("n", "no"),
        ("0", "no"),
        ("maybe", "no"),
    ] {
        assert_eq!(kind(&[value]), expected, "{value:?}");
    }
    assert_eq!(kind(&["on", "off"]), "no", "the last one counts");
    assert_eq!(kind(&["off", "database"]), "database");
    // Before it or behind it, `options` of who replicates are his server's affair.
    for swapped in [false, true] {
        let base = Startup::v3().param("user", "nobody").param("database", "app");
        let startup = match swapped {
            false => base.param("replication", "on").param("options", "-d 5"),
            true => base.param("options", "-d 5").param("replication", "on"),
        };
        send(&pooler, &startup.bytes()).expect_fatal("\"trust\" authentication failed");
    }
}

/// §8: what an idle server says is for nobody, and leaves it as it is.
#[test]
fn a_notification_for_nobody_is_logged_and_dropped() {
    let pooler = Pooler::start(|ini| _ = ini.set("default_pool_size", "1"));
    let mut client = pooler.raw("alice");
    let pid = client.backend_pid();
    client.query("LISTEN ringbouncer_lines");
    let mut direct = Postgres::shared().client("app");
    direct.execute("NOTIFY ringbouncer_lines", &[]).expect("told");
    logged(&pooler, "got packet 'A' from server when not linked");
    let log = pooler.log();
    let line = log.lines().find(|line| line.contains("got packet 'A'")).expect("the line");
    assert!(line.contains(" WARNING S-0x"), "{line}");
    assert_eq!(client.backend_pid(), pid, "the same server goes on");
    // In a transaction it is the client's own.
    client.query("BEGIN");
    direct.execute("NOTIFY ringbouncer_lines", &[]).expect("told");
    let mut answer = client.query("COMMIT");
    answer.retain(|message| message.tag == b'A');
    assert_eq!(answer.len(), 1, "{}", pooler.log());
    client.query("UNLISTEN *");
}

/// §9.4: TLS with servers that cannot even be set up, for want of a file that is looked at then.
#[test]
fn tls_with_servers_that_cannot_be_set_up_has_its_words() {
    let server = FakeServer::start(|visit| {
        visit.first_packet();
        visit.send(b"S");
        visit.silence();
    });
    let pooler = Pooler::start(|ini| {
        ini.database("fake", &server.connect_string()).set("client_login_timeout", "1");
        ini.set("server_tls_sslmode", "verify-ca").set("server_tls_ca_file", "/nowhere");
    });
    let startup = Startup::v3().param("user", "alice").param("database", "fake");
    let mut client = send(&pooler, &startup.bytes());
    client.expect_fatal("client_login_timeout (server down)");
    logged(&pooler, "closing because: sslreq processing failed (age=");
}

/// §9.5: words of the console that are about the protocol.
#[test]
fn the_console_has_words_for_what_it_does_not_take() {
    let pooler = Pooler::start(|ini: &mut Ini| _ = ini);
    let mut operator = console(&pooler);
    for name in [
        "client_encoding",
        "default_transaction_isolation",
        "standard_conforming_strings",
        "DateStyle",
        "timezone",
    ] {
        let answer = operator.query(&format!("SET {name} = 'x'"));
        assert_eq!(tags(&answer), "NCZ", "{name}");
        let fields = ['S', 'C', 'M'].map(|letter| answer[0].field(letter));
        assert_eq!(fields, ["NOTICE", "00000", "SET ignored"]);
    }
    let answer = operator.query("SET server_tls_protocols = 'nonsense'");
    let words: Vec<String> =
        answer.iter().filter(|m| m.tag != b'C' && m.tag != b'Z').map(|m| m.field('M')).collect();
    assert_eq!(words, ["TLS settings could not be applied, still using old configuration"]);
    assert_eq!(tags(&answer), "NCZ");
    operator.send(&message(b'F', b"\0\0\0\0"));
    let answer = operator.until_end();
    assert_eq!(tags(&answer), "EZE");
    assert_eq!(answer[0].field('M'), "unsupported packet type for admin console: 70");
    assert_eq!((answer[2].field('S'), answer[2].field('M')), ("FATAL".into(), "bad packet".into()));
    // No command is that long.
    let mut operator = console(&pooler);
    operator.send(&query(&"x".repeat(100_000))[..50_000]);
    operator.expect_fatal("query too long");
    pooler.assert_serves();
}

/// §9.2: a rule may ask for what this build does not have; then it lets nobody in, and says why.
#[cfg(not(feature = "ldap"))]
#[test]
fn a_build_without_directories_says_so() {
    let directory = common::outside::temp();
    let rules = directory.join("hba");
    std::fs::write(&rules, "host all all all ldap ldapserver=nowhere ldapprefix=x\n")
        .expect("rules");
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "hba").set("auth_hba_file", &rules.to_string_lossy());
    });
    let mut client = send(&pooler, &alice().bytes());
    client.expect_fatal("ldap is not supported by this build");
}
