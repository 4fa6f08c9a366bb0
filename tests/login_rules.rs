//! Rules of logging in, line by line as the contract has them (§2.2 to §2.8), and what is done instead
//! of PgBouncer's defects there (§11).

mod common;

use common::fake::{FakeServer, welcome};
use common::pooler::Ini;
use common::prover::{Prover, Said, derive_one, desk};
use common::raw::{Message, message};
use common::{Pooler, Postgres, Raw, Startup, account, temp_dir, wait_for};
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::Config;
use ringbouncer::keys::Conn;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const PASSWORD: &str = "password authentication failed";

fn knock(pooler: &Pooler, user: &str, database: &str) -> Raw {
    let mut raw = pooler.unnamed();
    raw.send(&Startup::v3().param("user", user).param("database", database).bytes());
    raw
}

fn tell(raw: &mut Raw, password: &str) {
    raw.send(&message(b'p', format!("{password}\0").as_bytes()));
}

fn logged(pooler: &Pooler, words: &str) {
    wait_for(words, || pooler.log().contains(words));
}

fn app(more: &str) -> String {
    format!("host=127.0.0.1 port={} dbname=app {more}", Postgres::shared().port)
}

/// `peer` is a word of rules alone.
#[test]
fn methods_are_those_of_the_contract() {
    let read = |method: &str| {
        let text = format!(
            "[databases]\n[pgbouncer]\nauth_type = {method}\nauth_file = /x\n\
             client_tls_sslmode = verify-full\nclient_tls_ca_file = /x\n"
        );
        Config::parse_text("x.ini", &text).is_ok()
    };
    for method in ["any", "trust", "plain", "md5", "cert", "hba", "ldap", "pam", "scram-sha-256"] {
        assert!(read(method), "{method}");
    }
    for method in ["peer", "password", "reject", "scram", "gss"] {
        assert!(!read(method), "{method}");
    }
}

/// What server-first says: nonce, salt and rounds.
fn server_first(desk: &mut common::desk::Desk, user: &str) -> (usize, String, String) {
    let conn = desk.client(user, "app");
    desk.take(conn);
    let first = "n,,n=,r=abc";
    let length = u32::try_from(first.len()).expect("short").to_be_bytes();
    desk.feed(conn, &message(b'p', &[b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat()));
    let words = desk.take(conn);
    let words = String::from_utf8(words[9..].to_vec()).expect("text");
    let parts: Vec<&str> = words.split(',').collect();
    let nonce = parts[0].strip_prefix("r=abc").expect("our nonce");
    (nonce.len(), parts[1].to_owned(), parts[2].to_owned())
}

/// Reliability 8: what is told to somebody unknown is what is told to everybody else, and the same
/// each time.
#[test]
fn the_salt_of_somebody_unknown_looks_like_any_other() {
    let mut desk = desk("scram-sha-256");
    let mut salts = Vec::new();
    for user in ["plain", "md5", "none", "nobody", "nobody else"] {
        let (nonce, salt, rounds) = server_first(&mut desk, user);
        assert_eq!((nonce, salt.len(), rounds.as_str()), (24, "s=".len() + 24, "i=8"), "{user}");
        assert_eq!(server_first(&mut desk, user).1, salt, "{user}: stable");
        salts.push(salt);
    }
    salts.sort();
    salts.dedup();
    assert_eq!(salts.len(), 5, "nobody has another one's");
}

/// D9: an empty secret is opened by nothing, not even by an empty password; and who has been taken
/// out of the file is out after the reload, whatever was known of him.
#[test]
fn empty_secrets_and_removed_users_open_nothing() {
    let mut desk = desk("scram-sha-256");
    let mut try_in = |user: &str, password: &str, users: Option<&str>| {
        if let Some(users) = users {
            let users = Userlist::parse(users.as_bytes()).0;
            let config = desk.engine.config().clone();
            let now = desk.now;
            desk.engine.reload(config, Some(users.into()), now);
            desk.perform();
        }
        let mut prover = Prover::knock(&mut desk, user, "app", password);
        prover.go_on(&mut desk);
        derive_one(&mut desk);
        prover.go_on(&mut desk)
    };
    let failed = Said::Refused("SASL authentication failed".to_owned());
    assert_eq!(try_in("none", "", None), failed);
    assert_eq!(try_in("known", "right", None), Said::Welcome);
    assert_eq!(try_in("known", "right", Some("\"other\" \"right\"")), failed);
    assert_eq!(try_in("other", "right", None), Said::Welcome);
    assert_eq!(try_in("other", "right", Some("\"other\" \"new\"")), failed);
    assert_eq!(try_in("other", "new", None), Said::Welcome);
}

/// D17: a second Startup is refused, whoever has sent the first one; and D13: nobody may send more
/// than a login needs before he has proven who he is.
#[test]
fn a_login_is_no_place_for_anything_else() {
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "plain");
    });
    for user in ["alice", "nobody"] {
        for database in ["app", "nowhere"] {
            let mut raw = knock(&pooler, user, database);
            assert_eq!(raw.message().body, [0, 0, 0, 3]);
            raw.send(&Startup::v3().param("user", user).bytes());
            raw.expect_fatal("client re-sent startup pkt");
            // The header of a message that is too long is enough.
            let mut raw = knock(&pooler, user, database);
            assert_eq!(raw.message().body, [0, 0, 0, 3]);
            raw.send(&[b'p', 0, 0x10, 0, 0]);
            raw.expect_end();
        }
    }
}

/// The log tells why, where the client is told only that.
#[test]
fn the_log_tells_more_than_the_client() {
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "scram-sha-256").secret("hashed", &format!("md5{}", "0".repeat(32)));
        ini.database("*", &app(""));
    });
    let refuse = |user: &str, first: &str, log: &str| {
        let mut raw = knock(&pooler, user, "app");
        assert_eq!(raw.message().tag, b'R');
        let length = u32::try_from(first.len()).expect("short").to_be_bytes();
        raw.send(&message(b'p', &[b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat()));
        let next = raw.message();
        if next.tag == b'R' {
            let words = String::from_utf8(next.body[4..].to_vec()).expect("text");
            let nonce = words.split(',').next().expect("a nonce");
            let proof = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
            raw.send(&message(b'p', format!("c=biws,{nonce},p={proof}").as_bytes()));
            raw.expect_fatal("SASL authentication failed");
        } else {
            assert_eq!(next.field('M'), "SASL authentication failed");
        }
        logged(&pooler, log);
    };
    refuse("hashed", "n,,n=,r=abc", "ERROR C-");
    refuse("hashed", "n,,n=,r=abc", "SCRAM authentication failed: user has MD5 secret");
    refuse("alice", "n,,n=,r=abc", " password authentication failed\n");
    refuse(
        "alice",
        "p=tls-unique,,n=,r=abc",
        "client requires SCRAM channel binding, but it is not supported",
    );
    logged(&pooler, "LOG C-");
    let mut raw = knock(&pooler, "alice", "made up");
    assert_eq!(raw.message().tag, b'R');
    logged(&pooler, "(nodb)/(nouser)@127.0.0.1:");
    logged(&pooler, "registered new auto-database: made up");
}

/// D10: `transaction_timeout` is for transactions of clients.
#[test]
fn a_slow_auth_query_is_no_long_transaction() {
    let pooler = Pooler::start(|ini| {
        ini.set("auth_user", "carol").forget_user("alice").set("transaction_timeout", "0.2");
        ini.set("auth_query", "SELECT 'alice', $1 FROM pg_sleep(1)");
    });
    let mut raw = knock(&pooler, "alice", "app");
    assert_eq!(raw.until_ready().last().map(|last| last.tag), Some(b'Z'), "{}", pooler.log());
}

/// D15: a server's words are passed on however many they are.
#[test]
fn a_long_refusal_of_a_server_is_passed_on() {
    let long = "no ".repeat(400);
    let said = long.clone();
    let server = FakeServer::start(move |visit| {
        visit.startup();
        let body = [b"SFATAL\0C28000\0M", said.as_bytes(), b"\0\0"].concat();
        visit.send(&message(b'E', &body));
    });
    let pooler = Pooler::start(|ini| {
        ini.database("app", &server.connect_string());
    });
    let error = knock(&pooler, "alice", "app").message();
    assert_eq!((error.field('C').as_str(), error.field('M')), ("28000", long));
}

/// A server's `57P03` is no refusal: it will let us in later, and who waits goes on waiting.
#[test]
fn a_server_that_starts_is_waited_for() {
    let is_up = std::sync::Arc::new(AtomicBool::new(false));
    let up = std::sync::Arc::clone(&is_up);
    let server = FakeServer::start(move |visit| {
        visit.startup();
        match up.swap(true, Ordering::Relaxed) {
            true => visit.send(&welcome()),
            false => visit.send(&message(b'E', b"SFATAL\0C57P03\0Mstarting\0\0")),
        }
        while visit.message().is_some() {}
    });
    let pooler = Pooler::start(|ini| {
        ini.database("app", &server.connect_string()).set("server_login_retry", "0.1");
    });
    let mut raw = knock(&pooler, "alice", "app");
    assert_eq!(raw.until_ready().last().map(|last| last.tag), Some(b'Z'));
    assert!(is_up.load(Ordering::Relaxed) && pooler.log().contains("server login failed"));
}

/// The very account that the pooler runs as comes to the console over the Unix socket under the name
/// `pgbouncer`, whatever `auth_type` says; nobody else does.
#[test]
fn the_pooler_s_own_account_is_let_in_over_the_unix_socket() {
    let directory = temp_dir(&Postgres::shared().socket_dir, "owner");
    let pooler = Pooler::start(|ini: &mut Ini| {
        ini.set("auth_type", "plain").set("unix_socket_dir", &directory.to_string_lossy());
        ini.set("unix_socket_mode", "0777").set("admin_users", "").forget_user("pgbouncer");
    });
    let socket = directory.join(format!(".s.PGSQL.{}", pooler.port));
    wait_for("the socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let ask = |user: &str, as_owner: bool| {
        let mut command = Command::new(common::postgresql::bin_dir().join("psql"));
        command.args(["-X", "-A", "-t", "-w", "-h"]).arg(&directory).current_dir("/");
        command.args(["-p", &pooler.port.to_string(), "-U", user, "-d", "pgbouncer"]);
        command.args(["-c", "ENABLE app"]).env_remove("PGPASSWORD").env("HOME", "/nonexistent");
        if let Some(account) = account().filter(|_| as_owner) {
            command.uid(account.uid).gid(account.gid);
        }
        let output = command.output().expect("run psql");
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    assert_eq!(ask("pgbouncer", true).trim(), "ENABLE");
    logged(&pooler, "pgbouncer access from unix socket");
    assert!(ask("postgres", true).contains("not allowed"));
    if account().is_some() {
        // We are root, and the pooler is not.
        assert!(ask("pgbouncer", false).contains("no password supplied"));
    }
    let mut over_tcp = knock(&pooler, "pgbouncer", "pgbouncer");
    assert_eq!(over_tcp.message().body, [0, 0, 0, 3]);
    tell(&mut over_tcp, "anything");
    over_tcp.expect_fatal(PASSWORD);
}

/// `auth_query` is asked for `trust`, too, and in every pool mode its server is free at once.
#[test]
fn a_server_that_was_asked_is_free_again() {
    for mode in ["session", "transaction", "statement"] {
        let pooler = Pooler::start(|ini| {
            ini.set("auth_user", "carol").forget_user("alice").set("default_pool_size", "1");
            ini.set("pool_mode", mode).set("auth_query", "SELECT 'alice', $1");
        });
        let crowd: Vec<Raw> = (0..5)
            .map(|_| {
                let mut raw = knock(&pooler, "alice", "app");
                raw.until_ready();
                raw
            })
            .collect();
        let mut console =
            pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"));
        // In session mode it is reset before.
        wait_for("the server to be free", || {
            let rows = console.query("SHOW POOLS");
            let mut rows = rows.iter().filter(|m| m.tag == b'D').map(Message::columns);
            let carol = rows.find(|row| row[1] == "carol").expect("the pool that is asked");
            carol[2] == "0" && carol[9] == "1"
        });
        drop(crowd);
    }
}

/// Nobody stays in the middle of a login for ever.
#[test]
fn who_is_asked_and_says_nothing_is_told_that_it_took_too_long() {
    let mut desk = desk("md5");
    let asked = desk.client("plain", "app");
    let silent = Conn::Client(desk.engine.accept(
        ringbouncer::engine::io::ClientAddress::Unix { pid: 0, uid: None },
        [1; 8],
        desk.now,
    ));
    desk.after(std::time::Duration::from_secs(59));
    assert!(!desk.is_closed(asked) && !desk.is_closed(silent));
    desk.after(std::time::Duration::from_secs(2));
    for conn in [asked, silent] {
        assert_eq!(desk.last_words(conn).as_deref(), Some("client_login_timeout"));
    }
}
