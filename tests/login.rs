//! Clients prove who they are: by each method, with each kind of secret, right and wrong.

mod common;

use common::pooler::Ini;
use common::raw::message;
use common::{Pooler, Postgres, Raw, Startup, temp_dir, wait_for};
use ringbouncer::auth::derivation::Derivation;
use ringbouncer::auth::digest;
use std::path::{Path, PathBuf};

const PASSWORD: &str = "open sesame";

/// What PostgreSQL would keep for this password.
fn verifier(password: &str) -> String {
    let sql = format!(
        "SET password_encryption = 'scram-sha-256'; DROP ROLE IF EXISTS keeper_{0}; CREATE ROLE keeper_{0} PASSWORD '{password}'",
        std::process::id()
    );
    let mut client = Postgres::shared().client("postgres");
    client.batch_execute(&sql).expect("create a role");
    let name = format!("keeper_{}", std::process::id());
    let row = client.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[&name]);
    row.expect("pg_authid").get(0)
}

fn md5(user: &str, password: &str) -> String {
    let digits = digest::md5_hex(&[password.as_bytes(), user.as_bytes()]);
    format!("md5{}", String::from_utf8_lossy(&digits))
}

/// Three users with the same password, each kept in another way, and one without.
fn users(ini: &mut Ini) {
    ini.secret("plain", PASSWORD).secret("md5", &md5("md5", PASSWORD));
    ini.secret("scram", &verifier(PASSWORD)).secret("none", "");
    // PostgreSQL trusts; it must only know them.
    ini.database("app", &format!("{} user=alice", app()));
}

fn app() -> String {
    format!("host=127.0.0.1 port={} dbname=app", Postgres::shared().port)
}

fn pooler(auth_type: &str) -> Pooler {
    Pooler::start(|ini| {
        users(ini);
        ini.set("auth_type", auth_type);
    })
}

/// Logs in as the `postgres` crate does; what the server said, or "in".
fn log_in(pooler: &Pooler, user: &str, database: &str, password: &str) -> String {
    match pooler.config(user, database).password(password).connect(postgres::NoTls) {
        Ok(mut client) => {
            client.simple_query("SELECT 1").expect("a query");
            "in".to_owned()
        }
        Err(error) => error.as_db_error().map_or(error.to_string(), |error| {
            assert_eq!((error.severity(), error.code().code()), ("FATAL", "08P01"));
            error.message().to_owned()
        }),
    }
}

#[test]
fn every_method_lets_in_whoever_knows_the_password() {
    let password = "password authentication failed";
    let sasl = "SASL authentication failed";
    for (method, user, outcome, wrong) in [
        ("plain", "plain", "in", password),
        ("plain", "md5", "in", password),
        ("plain", "scram", "in", password),
        ("plain", "none", password, password),
        ("plain", "nobody", password, password),
        ("md5", "plain", "in", password),
        ("md5", "md5", "in", password),
        ("md5", "scram", "in", sasl),
        ("md5", "none", password, password),
        ("md5", "nobody", password, password),
        ("scram-sha-256", "plain", "in", sasl),
        ("scram-sha-256", "md5", sasl, sasl),
        ("scram-sha-256", "scram", "in", sasl),
        ("scram-sha-256", "none", sasl, sasl),
        ("scram-sha-256", "nobody", sasl, sasl),
        ("trust", "none", "in", "in"),
        ("trust", "nobody", "\"trust\" authentication failed", "\"trust\" authentication failed"),
    ] {
        let pooler = pooler(method);
        assert_eq!(log_in(&pooler, user, "app", PASSWORD), outcome, "{method} {user}");
        assert_eq!(log_in(&pooler, user, "app", "wrong"), wrong, "{method} {user}, wrong");
        assert!(!pooler.log().contains(PASSWORD), "no secret reaches the log (reliability 17)");
    }
}

/// Reliability 8: only the right password shows whether there is such a database.
#[test]
fn a_wrong_password_hides_whether_the_database_exists() {
    for method in ["plain", "md5", "scram-sha-256"] {
        let pooler = pooler(method);
        let wrong = log_in(&pooler, "plain", "app", "wrong");
        assert_eq!(log_in(&pooler, "plain", "nowhere", "wrong"), wrong);
        assert_eq!(log_in(&pooler, "nobody", "nowhere", "wrong"), wrong);
        assert_eq!(log_in(&pooler, "plain", "nowhere", PASSWORD), "no such database: nowhere");
        let log = pooler.log();
        assert!(log.contains("login failed: db=nowhere user=plain"), "{log}");
        assert!(log.contains("no such user: nobody"), "{log}");
    }
}

#[test]
fn one_of_two_passwords_will_do_while_they_are_changed() {
    for method in ["plain", "md5", "scram-sha-256"] {
        let pooler = Pooler::start(|ini| {
            users(ini);
            ini.set("auth_type", method).secret("turning", "old");
            ini.another_secret("turning", "new");
        });
        for password in ["old", "new"] {
            assert_eq!(log_in(&pooler, "turning", "app", password), "in", "{method} {password}");
        }
        assert_ne!(log_in(&pooler, "turning", "app", "older"), "in");
    }
}

/// A client's key opens a server that keeps the same secret: nobody has to store a password.
#[test]
fn a_scram_secret_is_passed_through_to_the_server() {
    let name = format!("through_{}", std::process::id());
    let mut admin = Postgres::shared().client("postgres");
    let sql = format!(
        "SET password_encryption = 'scram-sha-256'; DROP ROLE IF EXISTS {name}; \
         CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' IN ROLE by_scram"
    );
    admin.batch_execute(&sql).expect("create a role");
    let row = admin.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[&name]);
    let secret: String = row.expect("pg_authid").get(0);
    let pooler = Pooler::start(|ini| {
        ini.secret(&name, &secret).database("app", &app()).set("auth_type", "scram-sha-256");
    });
    assert_eq!(log_in(&pooler, &name, "app", PASSWORD), "in");
    assert_eq!(log_in(&pooler, &name, "app", "wrong"), "SASL authentication failed");
}

#[test]
fn long_passwords_pass_and_longer_ones_end_the_login() {
    let long = "x".repeat(65_530);
    let pooler = Pooler::start(|ini| {
        users(ini);
        ini.set("auth_type", "plain").secret("long", &long);
    });
    assert_eq!(log_in(&pooler, "long", "app", &long), "in");
    let mut raw = asked(&pooler, "long");
    raw.send(&message(b'p', &vec![b'x'; 70_000]));
    raw.expect_end();
    assert_eq!(log_in(&pooler, "long", "app", &long), "in");
}

/// A client that has been asked for something.
fn asked(pooler: &Pooler, user: &str) -> Raw {
    let mut raw = pooler.unnamed();
    raw.send(&Startup::v3().param("user", user).param("database", "app").bytes());
    assert_eq!(raw.message().tag, b'R');
    raw
}

#[test]
fn what_has_no_place_in_a_login_ends_it() {
    let pooler = pooler("plain");
    for (bytes, words) in [
        (message(b'Q', b"SELECT 1\0"), None),
        (message(b'X', b""), None),
        (message(b'p', b"\0"), Some("empty password returned by client")),
        (message(b'p', b"wrong\0"), Some("password authentication failed")),
        (Startup::v3().param("user", "plain").bytes(), Some("client re-sent startup pkt")),
    ] {
        let mut raw = asked(&pooler, "plain");
        raw.send(&bytes);
        match words {
            Some(words) => raw.expect_fatal(words),
            None => raw.expect_end(),
        }
    }
    // D19: as PostgreSQL, without its end it is no password.
    let mut raw = asked(&pooler, "plain");
    raw.send(&message(b'p', PASSWORD.as_bytes()));
    raw.expect_fatal("invalid password packet size");
    // Reliability 14: a password may come byte by byte.
    let mut raw = asked(&pooler, "plain");
    raw.send_slowly(&message(b'p', format!("{PASSWORD}\0nobody reads this").as_bytes()));
    raw.until_ready();
}

#[test]
fn sasl_messages_that_will_not_do() {
    let pooler = pooler("scram-sha-256");
    let initial = |mechanism: &str, data: &[u8]| {
        let len = u32::try_from(data.len()).expect("short").to_be_bytes();
        message(b'p', &[mechanism.as_bytes(), b"\0", &len, data].concat())
    };
    let failed = "SASL authentication failed";
    for (bytes, words) in [
        (
            initial("SCRAM-SHA-256-PLUS", b"n,,n=,r=abc"),
            "client selected an invalid SASL authentication mechanism",
        ),
        // Just a password.
        (
            message(b'p', format!("{PASSWORD}\0").as_bytes()),
            "client selected an invalid SASL authentication mechanism",
        ),
        (initial("SCRAM-SHA-256", b"p=tls-server-end-point,,n=,r=abc"), failed),
        (initial("SCRAM-SHA-256", b"n,a=postgres,n=,r=abc"), failed),
        (initial("SCRAM-SHA-256", b"n,,m=x,r=abc"), failed),
    ] {
        let mut raw = asked(&pooler, "plain");
        raw.send(&bytes);
        raw.expect_fatal(words);
    }
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = temp_dir(&Postgres::shared().socket_dir, "rules").join(name);
    std::fs::write(&path, text).expect("write the rules");
    path
}

fn by_rules(rules: &Path, more: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        users(ini);
        ini.set("auth_type", "hba").set("auth_hba_file", &rules.to_string_lossy());
        more(ini);
    })
}

#[test]
fn rules_decide_who_has_to_prove_himself_how() {
    let rules = file(
        "hba",
        "host app plain 127.0.0.1/32 trust\n\
         host app md5 127.0.0.1/32 md5\n\
         host app scram 127.0.0.1/32 scram-sha-256\n\
         host app none 127.0.0.1/32 reject\n\
         hostssl app all all trust\n\
         host postgres all 127.0.0.1/32 cert\n\
         nonsense\n",
    );
    let pooler = by_rules(&rules, |_| ());
    assert!(pooler.log().contains("WARNING could not parse hba config line 7"));
    for (user, database, password, outcome) in [
        ("plain", "app", "wrong", "in"),
        ("md5", "app", PASSWORD, "in"),
        ("md5", "app", "wrong", "password authentication failed"),
        ("scram", "app", PASSWORD, "in"),
        ("scram", "app", "wrong", "SASL authentication failed"),
        ("none", "app", PASSWORD, "login rejected"),
        ("plain", "postgres", PASSWORD, "certificate authentication failed"),
        ("nobody", "app", PASSWORD, "no authentication method is found"),
    ] {
        assert_eq!(log_in(&pooler, user, database, password), outcome, "{user} {database}");
    }
    // A reload reads them anew.
    std::fs::write(&rules, "host all all all reject\n").expect("write the rules");
    pooler.signal(libc::SIGHUP);
    wait_for("the new rules", || log_in(&pooler, "plain", "app", "") == "login rejected");
}

#[test]
fn over_the_unix_socket_the_system_says_who_it_is() {
    let rules = file("hba", "local app mapped peer map=m\nlocal all all peer\n");
    let me = std::process::Command::new("id").arg("-un").output().expect("id").stdout;
    let me = String::from_utf8(me).expect("a name").trim().to_owned();
    let maps = file("ident", &format!("m {me} mapped\n"));
    let directory = temp_dir(&Postgres::shared().socket_dir, "socket");
    let pooler = by_rules(&rules, |ini| {
        ini.set("auth_ident_file", &maps.to_string_lossy());
        ini.set("unix_socket_dir", &directory.to_string_lossy());
        ini.secret("mapped", "").secret(&me, "");
    });
    let connect = |user: &str| {
        let mut config = postgres::Config::new();
        config.host_path(&directory).port(pooler.port).user(user).dbname("app");
        config.connect(postgres::NoTls)
    };
    let socket = directory.join(format!(".s.PGSQL.{}", pooler.port));
    wait_for("the socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    for user in ["mapped", &me] {
        connect(user).expect("the system knows us").simple_query("SELECT 1").expect("a query");
    }
    for user in ["plain", "nobody"] {
        let error = connect(user).err().expect("we are somebody else");
        let error = error.as_db_error().expect("told").message().to_owned();
        assert_eq!(error, "unix socket login rejected");
    }
}

/// While one user's key is made, the others are served.
#[test]
fn a_storm_of_logins_leaves_the_others_alone() {
    let pooler = Pooler::start(|ini| {
        users(ini);
        ini.set("auth_type", "scram-sha-256").set("max_client_conn", "500");
        for number in 0..20 {
            ini.secret(&format!("user{number}"), PASSWORD);
        }
    });
    std::thread::scope(|scope| {
        for number in 0..60 {
            let pooler = &pooler;
            scope.spawn(move || {
                let user = format!("user{}", number % 20);
                let right = number % 3 > 0;
                let password = if right { PASSWORD } else { "wrong" };
                let outcome = log_in(pooler, &user, "app", password);
                assert_eq!(outcome == "in", right, "{outcome}");
            });
        }
    });
}

/// Nobody gets in who leaves out a step, repeats one, or says the right thing at the wrong time.
#[test]
fn no_order_of_messages_but_the_right_one_lets_in() {
    let pooler = pooler("scram-sha-256");
    let first = message(b'p', b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc");
    let proof = message(b'p', b"c=biws,r=abc,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    for messages in
        [vec![&proof], vec![&first, &first], vec![&first, &proof], vec![&proof, &first, &proof]]
    {
        let mut raw = asked(&pooler, "plain");
        for message in messages {
            raw.send(message);
        }
        raw.finish_sending();
        let words = raw.until_end();
        assert!(words.iter().all(|message| message.tag == b'R' || message.tag == b'E'));
        // 0 would be AuthenticationOk.
        let is_in = |body: &[u8]| body == [0; 4];
        assert!(!words.iter().any(|message| message.tag == b'R' && is_in(&message.body)));
    }
    // D19: an initial response that is none ends the login.
    for body in [&b"SCRAM-SHA-256"[..], b"", b"SCRAM-SHA-256\0\xff\xff\xff\xff"] {
        let mut raw = asked(&pooler, "plain");
        raw.send(&message(b'p', body));
        raw.expect_fatal("SASL authentication failed");
    }
}

/// What is worked out here is what everybody else works out.
#[test]
fn keys_are_those_of_postgresql() {
    let secret = verifier(PASSWORD);
    let kept = ringbouncer::auth::secret::Kind::of(secret.as_bytes());
    let ringbouncer::auth::secret::Kind::Scram(kept) = kept else { panic!("{kept:?}") };
    let keys = Derivation::new(PASSWORD.as_bytes(), &kept.salt, kept.iterations).run();
    assert!(ringbouncer::auth::scram::Keys::from(&*kept).come_from(&keys));
}
