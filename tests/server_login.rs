//! How the pooler logs in to servers that ask who it is: PostgreSQL with each method, and servers
//! that do not mean well.

mod common;

use common::fake::{FakeServer, Visit, ready};
use common::pooler::Ini;
use common::raw::{Message, message};
use common::{Pooler, Postgres, Random, Raw, Startup, wait_for};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A new role that has to prove itself by this method, one of `password`, `md5`, `scram`.
fn role(method: &str, password: &str, encryption: &str) -> String {
    static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("server_login_{}_{serial}", std::process::id());
    let mut client = Postgres::shared().client("postgres");
    let sql = format!(
        "DROP ROLE IF EXISTS {name}; SET password_encryption = '{encryption}'; \
         CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE by_{method}"
    );
    client.batch_execute(&sql).expect("create a role");
    name
}

/// What PostgreSQL keeps for a role.
fn stored(role: &str) -> String {
    let mut client = Postgres::shared().client("postgres");
    let row = client.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[&role]);
    row.expect("pg_authid").get(0)
}

fn app(more: &str) -> String {
    format!("host=127.0.0.1 port={} dbname=app {more}", Postgres::shared().port)
}

/// A pooler that trusts this user, and has this secret for him.
fn pooler(user: &str, secret: &str) -> Pooler {
    Pooler::start(|ini: &mut Ini| {
        ini.secret(user, secret);
    })
}

/// Logs in, and tells who the server takes us for.
fn served_as(pooler: &Pooler, user: &str) -> String {
    pooler.raw(user).value("SELECT current_user")
}

/// Tries to log in; the last words are an error with this text and SQLSTATE.
fn refused(pooler: &Pooler, user: &str, text: &str, code: &str) {
    let mut raw = pooler.unnamed();
    raw.send(&Startup::v3().param("user", user).param("database", "app").bytes());
    let error = raw.message();
    let expected = [('S', "FATAL"), ('C', code), ('M', text)];
    assert_eq!(error.fields(), expected.map(|(letter, text)| (letter, text.to_owned())));
    raw.expect_end();
}

#[test]
fn a_plain_password_opens_servers_of_every_method() {
    for (method, encryption) in [
        ("password", "md5"),
        ("password", "scram-sha-256"),
        ("md5", "md5"),
        ("md5", "scram-sha-256"),
        ("scram", "scram-sha-256"),
    ] {
        // A soft hyphen and a Roman numeral: SASLprep makes them nothing and `IX`.
        let password = if encryption == "md5" { "open sesame" } else { "ses\u{ad}ame \u{2168}" };
        let user = role(method, password, encryption);
        let pooler = pooler(&user, password);
        assert_eq!(served_as(&pooler, &user), user, "{method} {encryption}");
    }
}

#[test]
fn the_servers_words_reach_who_waits_with_a_wrong_password() {
    for (method, encryption) in [("password", "md5"), ("md5", "md5"), ("scram", "scram-sha-256")] {
        let user = role(method, "right", encryption);
        let pooler = pooler(&user, "wrong");
        let text = format!("password authentication failed for user \"{user}\"");
        refused(&pooler, &user, &text, "28P01");
        let log = pooler.log();
        assert!(log.contains(&format!("WARNING server login failed: FATAL {text}")), "{log}");
    }
}

#[test]
fn stored_secrets_open_what_they_can() {
    let user = role("md5", "hush", "md5");
    let hashed = pooler(&user, &stored(&user));
    assert_eq!(served_as(&hashed, &user), user);
    let wrong_type = "server login failed: wrong password type";

    let scram = role("scram", "hush", "scram-sha-256");
    let hash = format!("md5{}", "0".repeat(32));
    let pooler = pooler(&scram, &hash);
    refused(&pooler, &scram, wrong_type, "08P01");
    assert!(pooler.log().contains("cannot do SCRAM authentication: wrong password type"));

    let without_keys = self::pooler(&scram, &stored(&scram));
    refused(&without_keys, &scram, wrong_type, "08P01");
    let words = "cannot do SCRAM authentication: password is SCRAM secret but client \
                 authentication did not provide SCRAM keys";
    assert!(without_keys.log().contains(words), "{}", without_keys.log());

    let verifier = stored(&scram);
    let for_md5 = self::pooler(&user, &verifier);
    refused(&for_md5, &user, wrong_type, "08P01");
    assert!(for_md5.log().contains("cannot do MD5 authentication: wrong password type"));
}

#[test]
fn a_forced_user_has_his_own_password() {
    let user = role("scram", "his own", "scram-sha-256");
    let own = Pooler::start(|ini| {
        ini.database("app", &app(&format!("user={user} password='his own'")));
        ini.secret(&user, "not this one");
    });
    assert_eq!(served_as(&own, "alice"), user);
    let listed = Pooler::start(|ini| {
        ini.database("app", &app(&format!("user={user}"))).secret(&user, "his own");
    });
    assert_eq!(served_as(&listed, "alice"), user);
    // A password without a user is nobody's.
    let nobodys = Pooler::start(|ini| {
        ini.database("app", &app("password='his own'")).secret(&user, "wrong");
    });
    let text = format!("password authentication failed for user \"{user}\"");
    refused(&nobodys, &user, &text, "28P01");
}

#[test]
fn a_changed_password_counts_from_the_reload_on() {
    let user = role("scram", "new", "scram-sha-256");
    let mut pooler = Pooler::start(|ini| {
        ini.secret(&user, "old").set("server_login_retry", "0.1");
    });
    let text = format!("password authentication failed for user \"{user}\"");
    refused(&pooler, &user, &text, "28P01");
    pooler.rewrite(|ini| {
        ini.secret(&user, "new");
    });
    pooler.signal(libc::SIGHUP);
    wait_for("the new password", || {
        let mut raw = pooler.unnamed();
        raw.send(&Startup::v3().param("user", &user).param("database", "app").bytes());
        raw.until_ready().last().is_some_and(|last| last.tag == b'Z')
    });
}

/// A server that asks for these, one after the other, with an answer between each two.
fn asking(requests: Vec<Vec<u8>>) -> FakeServer {
    FakeServer::start(move |visit: &mut Visit| {
        visit.startup();
        for (index, request) in requests.iter().enumerate() {
            if index > 0 && visit.message().is_none() {
                return;
            }
            visit.send(request);
        }
        visit.silence();
    })
}

fn authentication(method: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&method.to_be_bytes()[..], rest].concat())
}

fn in_front_of(server: &FakeServer) -> Pooler {
    Pooler::start(|ini| {
        ini.database("fake", &format!("{} password=secret", server.connect_string()));
        ini.set("server_login_retry", "60").set("client_login_timeout", "60");
    })
}

fn ask_for(pooler: &Pooler) -> Raw {
    let mut raw = pooler.unnamed();
    raw.send(&Startup::v3().param("user", "alice").param("database", "fake").bytes());
    raw
}

#[test]
fn who_waits_is_told_what_will_not_pass_by_itself() {
    let no_mechanism = "none of the server's SASL authentication mechanisms are supported";
    let server = asking(vec![authentication(10, b"SCRAM-SHA-256-PLUS\0\0")]);
    let pooler = in_front_of(&server);
    ask_for(&pooler).expect_fatal(&format!("server login failed: {no_mechanism}"));
    assert!(pooler.log().contains(no_mechanism), "{}", pooler.log());
}

/// Reliability 2, and everything else that a server may send instead of a login: refused, with the
/// contract's words in the log, and nobody who waits is hurt.
#[test]
fn hostile_servers_are_refused_without_harm() {
    let sasl = || authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let go_on = |text: &str| authentication(11, text.as_bytes());
    let huge = "x".repeat(1 << 20);
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (vec![authentication(2, b"")], "unknown/unsupported auth method: 2"),
        (vec![authentication(7, b"")], "unknown/unsupported auth method: 7"),
        (vec![authentication(9, b"x")], "unknown/unsupported auth method: 9"),
        (vec![authentication(5, b"sal")], "failed to answer authreq"),
        (vec![message(b'R', b"\0")], "failed to answer authreq"),
        (
            vec![go_on("r=x")],
            "protocol error: AuthenticationSASLContinue without prior AuthenticationSASL",
        ),
        (
            vec![authentication(12, b"v=")],
            "protocol error: AuthenticationSASLFinal without prior AuthenticationSASLContinue",
        ),
        (vec![sasl(), sasl()], "protocol error: duplicate AuthenticationSASL message from server"),
        (vec![sasl(), go_on("r=other,s=AAAA,i=1")], "invalid SCRAM response (nonce mismatch)"),
        // A megabyte does not even fit into a login.
        (vec![sasl(), go_on(&format!("r={huge},s=AAAA,i=1"))], "bad pkt header"),
        (vec![sasl(), go_on(&format!("r={}", &huge[..20_000]))], "malformed SCRAM message"),
        (vec![sasl(), go_on("e=no way")], "error received from server in SCRAM exchange: no way"),
        (
            vec![sasl(), authentication(0, b"")],
            "protocol error: AuthenticationOk in the middle of SCRAM",
        ),
        (vec![sasl(), authentication(3, b"")], "protocol error: second request for authentication"),
        (
            vec![authentication(5, b"salt"), authentication(3, b"")],
            "protocol error: second request for authentication",
        ),
    ];
    for (requests, words) in cases {
        let server = asking(requests);
        let pooler = in_front_of(&server);
        let mut waiting = ask_for(&pooler);
        wait_for(words, || pooler.log().contains(words));
        assert!(waiting.is_quiet_for(std::time::Duration::from_millis(1)), "{words}");
        pooler.assert_serves();
    }
}

/// A server with which SCRAM comes as far as this: it takes our nonce, adds to it, and goes on.
fn scram_server(then: impl Fn(&str) -> Vec<Vec<u8>> + Send + Sync + 'static) -> FakeServer {
    FakeServer::start(move |visit: &mut Visit| {
        visit.startup();
        visit.send(&authentication(10, b"SCRAM-SHA-256\0\0"));
        let Some(Message { body, .. }) = visit.message() else {
            return;
        };
        let words = String::from_utf8_lossy(&body).into_owned();
        let nonce = words.rsplit("r=").next().unwrap_or_default();
        for request in then(nonce) {
            visit.send(&request);
            if request.get(8) == Some(&11) && visit.message().is_none() {
                return;
            }
        }
        visit.silence();
    })
}

/// Reliability 2: the count of rounds, the salt, and a signature that is none.
#[test]
fn hostile_challenges_are_refused_without_harm() {
    let cases: [(&'static str, &str); 5] = [
        ("x,s=AAAA,i=2147483648", "malformed SCRAM message (invalid iteration count)"),
        ("x,s=AAAA,i=2147483647", "malformed SCRAM message (invalid iteration count)"),
        ("x,s=AAAA,i=0", "malformed SCRAM message (invalid iteration count)"),
        ("x,s=&&&&,i=4096", "malformed SCRAM message (invalid salt)"),
        ("x,s=AAAA,i=4096,y=z", "malformed SCRAM message (garbage at end of server-first-message)"),
    ];
    for (rest, words) in cases {
        let server = scram_server(move |nonce| {
            vec![authentication(11, format!("r={nonce}{rest}").as_bytes())]
        });
        let pooler = in_front_of(&server);
        let mut waiting = ask_for(&pooler);
        wait_for(words, || pooler.log().contains(words));
        assert!(waiting.is_quiet_for(std::time::Duration::from_millis(1)), "{words}");
        pooler.assert_serves();
    }
}

/// Whoever sits between us and the server gets nothing out of us but a proof that he cannot use,
/// and no query.
#[test]
fn a_server_that_cannot_sign_is_left() {
    let wrong = format!("v={}=", "A".repeat(43));
    for (last, words) in [
        (wrong, "invalid server signature"),
        ("v=AAAA".to_string(), "failed to verify server signature"),
        ("x".to_string(), "failed to verify server signature"),
    ] {
        let server = scram_server(move |nonce| {
            let first = authentication(11, format!("r={nonce}x,s=AAAA,i=4096").as_bytes());
            let ok = [authentication(0, b""), ready()].concat();
            vec![first, [authentication(12, last.as_bytes()), ok].concat()]
        });
        let pooler = in_front_of(&server);
        ask_for(&pooler).expect_fatal(&format!("server login failed: {words}"));
        pooler.assert_serves();
    }
}

/// Reliability 3: an ErrorResponse in which fields are missing.
#[test]
fn an_error_without_its_fields_is_an_error() {
    for (fields, text, code) in [
        (&b"SFATAL\0Mgo away\0\0"[..], "go away", "08P01"),
        (b"SFATAL\0C28000\0Mgo away\0\0", "go away", "28000"),
        (b"SFATAL\0Cx\0Mgo away\0\0", "go away", "08P01"),
        (b"C28000\0\0", "server login failed", "28000"),
        (b"", "server login failed", "08P01"),
        (b"M", "server login failed", "08P01"),
    ] {
        let server = asking(vec![message(b'E', fields)]);
        let pooler = in_front_of(&server);
        let error = ask_for(&pooler).message();
        let expected = [('S', "FATAL"), ('C', code), ('M', text)];
        assert_eq!(error.fields(), expected.map(|(letter, text)| (letter, text.to_owned())));
        assert!(pooler.log().contains("server login failed"));
    }
}

/// Reliability 14: what a server says at its login, cut at every byte.
#[test]
fn a_login_cut_anywhere_is_a_login() {
    let server = FakeServer::start(|visit| {
        visit.startup();
        for byte in authentication(3, b"") {
            visit.send(&[byte]);
        }
        let password = visit.message().map(|message| message.body);
        assert_eq!(password.as_deref(), Some(&b"secret\0"[..]));
        for byte in common::fake::welcome() {
            visit.send(&[byte]);
        }
        while visit.message().is_some_and(|message| message.tag == b'Q') {
            visit.send(&common::fake::one_row("1"));
        }
    });
    let pooler = in_front_of(&server);
    let mut raw = ask_for(&pooler);
    raw.until_ready();
    assert_eq!(raw.value("SELECT 1"), "1");
}

/// One visit of a server that has lost its mind: messages of a login in any order, cut, changed,
/// with noise between them.
fn nonsense(random: &mut Random) -> Vec<Vec<u8>> {
    let whole = [
        authentication(0, b""),
        authentication(3, b""),
        authentication(5, b"salt"),
        authentication(10, b"SCRAM-SHA-256\0\0"),
        authentication(11, b"r=nonce,s=c2FsdA==,i=4096"),
        authentication(12, b"v=AAAA"),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'K', &[7; 8]),
        message(b'E', b"SFATAL\0C28000\0Mno\0\0"),
        message(b'N', b"SNOTICE\0C00000\0Mwell\0\0"),
        common::fake::welcome(),
        ready(),
    ];
    let mut pieces = Vec::new();
    for _ in 0..1 + random.below(6) {
        let mut piece = whole[random.below(whole.len())].clone();
        match random.below(6) {
            0 => piece.truncate(random.below(piece.len())),
            1 => {
                let place = random.below(piece.len());
                piece[place] ^= 1 << random.below(8);
            }
            2 => {
                let len = random.below(50);
                piece = random.bytes(len);
            }
            _ => {}
        }
        pieces.push(piece);
    }
    pieces
}

/// Says so when it is dropped.
struct AtTheEnd<'a>(&'a AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reliability 1, 14: hundreds of logins of that kind cost nobody anything.
#[test]
fn a_server_that_talks_nonsense_harms_nobody() {
    const DATABASES: usize = 16;
    const VISITS: usize = 300;
    let serial = AtomicUsize::new(0);
    let server = FakeServer::start(move |visit| {
        let mut random = Random::new(serial.fetch_add(1, Ordering::Relaxed) as u64);
        visit.startup();
        for piece in nonsense(&mut random) {
            visit.send(&piece);
        }
        // Half of them leave, the others wait for an answer that may never come.
        if random.below(2) == 0 {
            visit.message();
        }
    });
    let pooler = Pooler::start(|ini| {
        for number in 0..DATABASES {
            let connect = format!("{} password=secret", server.connect_string());
            ini.database(&format!("fake{number}"), &connect);
        }
        ini.set("server_login_retry", "0.1").set("server_connect_timeout", "0.3");
        ini.set("log_connections", "0").set("log_disconnections", "0");
        ini.set("max_client_conn", "1000").set("query_wait_timeout", "5");
    });
    pooler.assert_serves();
    let before = pooler.resident_bytes();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..DATABASES {
            let (pooler, over) = (&pooler, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut raw = pooler.unnamed();
                    let name = format!("fake{number}");
                    raw.lenient = true;
                    raw.send(
                        &Startup::v3().param("user", "alice").param("database", &name).bytes(),
                    );
                    // Not before it is told something: who waits and leaves is not missed at
                    // once. Who is welcomed sends a query, and is told something again.
                    let mut is_told = || {
                        while raw.is_quiet_for(Duration::from_millis(20)) {
                            if over.load(Ordering::Relaxed) {
                                return false;
                            }
                        }
                        true
                    };
                    if is_told() && raw.until_ready().last().is_some_and(|m| m.tag == b'Z') {
                        raw.send(&common::raw::query("SELECT 1"));
                        while !over.load(Ordering::Relaxed)
                            && raw.is_quiet_for(Duration::from_millis(20))
                        {}
                    }
                }
            });
        }
        // They end however this ends.
        let _end = AtTheEnd(&over);
        wait_for("all those visits", || server.visits() >= VISITS);
    });
    pooler.assert_serves();
    let grown = pooler.resident_bytes().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more after {VISITS} visits");
}

/// Its error is told to the log, and is no reason not to serve.
#[test]
fn a_connect_query_that_fails_is_told_to_the_log_alone() {
    let pooler = Pooler::start(|ini| {
        let port = Postgres::shared().port;
        let entry =
            format!("host=127.0.0.1 port={port} dbname=app connect_query='SELECT nonsense'");
        ini.database("app", &entry);
    });
    assert_eq!(pooler.raw("alice").value("SELECT 42"), "42");
    let line =
        "ERROR S: error while executing exec_on_query: ERROR: column \"nonsense\" does not exist";
    assert!(pooler.log().contains(line), "{}", pooler.log());
}
