//! `auth_query`: users whom only the database knows.

mod common;

use common::fake::{FakeServer, ready, welcome};
use common::pooler::Ini;
use common::raw::{Message, message};
use common::{Pooler, Postgres, Raw, Startup, wait_for};

/// A database with a table of users, and a pooler that asks it. Its users need not be roles:
/// whoever they are, the pooler's servers are `carol`'s unless the test says otherwise.
struct Stage {
    database: String,
    pooler: Pooler,
}

const QUERY: &str = "SELECT name, secret FROM users WHERE name = $1";

impl Stage {
    fn new(change: impl FnOnce(&mut Ini, &str)) -> Stage {
        let database = Postgres::shared().fresh_database();
        let mut direct = Postgres::shared().client(&database);
        direct.batch_execute("CREATE TABLE users (name text, secret text)").expect("create");
        let pooler = Pooler::start(|ini| {
            ini.database("db", &connect(&database, "")).set("auth_user", "carol");
            ini.set("auth_query", QUERY);
            change(ini, &database);
        });
        let stage = Stage { database, pooler };
        stage.run("INSERT INTO users VALUES ('alice', 'from the table')");
        stage
    }

    fn run(&self, sql: &str) {
        Postgres::shared().client(&self.database).batch_execute(sql).expect("a statement");
    }

    /// Sends a Startup; what comes is for the caller to see.
    fn knock(&self, user: &str) -> Raw {
        knock(&self.pooler, user)
    }

    fn sees(&self, user: &str) -> String {
        let mut raw = self.knock(user);
        raw.until_ready();
        raw.value("SELECT current_user")
    }

    fn log_has(&self, words: &str) {
        wait_for(words, || self.pooler.log().contains(words));
    }
}

fn connect(database: &str, more: &str) -> String {
    format!("host=127.0.0.1 port={} dbname={database} {more}", Postgres::shared().port)
}

fn knock(pooler: &Pooler, user: &str) -> Raw {
    let mut raw = pooler.unnamed();
    raw.send(&Startup::v3().param("user", user).param("database", "db").bytes());
    raw
}

fn expect_error(mut raw: Raw, code: &str, text: &str) {
    let error = raw.message();
    let expected = [('S', "FATAL"), ('C', code), ('M', text)];
    assert_eq!(error.fields(), expected.map(|(letter, text)| (letter, text.to_owned())));
    raw.expect_end();
}

/// Only the database knows alice here.
fn ask_about_alice(ini: &mut Ini, _: &str) {
    ini.forget_user("alice");
}

#[test]
fn who_is_only_in_the_database_is_let_in() {
    let stage = Stage::new(ask_about_alice);
    assert_eq!(stage.sees("alice"), "alice");
    stage.knock("nobody").expect_fatal("no such user");
    stage.log_has("login failed: db=db");
    stage.knock("").expect_fatal("no username supplied");
    // Listed users are not asked about.
    assert_eq!(stage.sees("bob"), "bob");
}

/// The last row counts, and its name is the session's.
#[test]
fn the_answer_names_the_user() {
    let stage = Stage::new(|ini, _| {
        ini.set("auth_query", "VALUES ('alice', $1), ('bob', 'x')").forget_user("bob");
    });
    assert_eq!(stage.sees("anybody"), "bob");
    stage.log_has("login attempt: db=db user=bob tls=no replication=no");
}

/// Each login asks anew, and what is answered opens the servers from then on.
#[test]
fn answers_are_fresh_and_open_servers() {
    let role = format!("asked_{}", std::process::id());
    let stage = Stage::new(|ini, _| {
        ini.set("server_login_retry", "0.1");
    });
    stage.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'right' IN ROLE by_scram"));
    stage.run(&format!("INSERT INTO users VALUES ('{role}', 'wrong')"));
    let text = format!("password authentication failed for user \"{role}\"");
    expect_error(stage.knock(&role), "28P01", &text);
    stage.run(&format!("UPDATE users SET secret = 'right' WHERE name = '{role}'"));
    wait_for("the right password to be used", || {
        stage.knock(&role).until_ready().last().is_some_and(|last| last.tag == b'Z')
    });
    assert_eq!(stage.sees(&role), role);
    stage.run(&format!("DELETE FROM users WHERE name = '{role}'"));
    stage.knock(&role).expect_fatal("no such user");
    stage.run(&format!("DROP ROLE {role}"));
}

/// Reliability 9: a name is never SQL.
#[test]
fn a_name_is_a_parameter() {
    let stage = Stage::new(ask_about_alice);
    for name in [
        "x'; DROP TABLE users; --",
        "' OR '1'='1",
        "$1",
        "alice' --",
        "\"",
        "\\",
        "%u",
        "alice\u{0435}",
    ] {
        stage.knock(name).expect_fatal("no such user");
    }
    assert_eq!(stage.sees("alice"), "alice");
}

/// Reliability 5: nothing that the client says of its session gets to the connection that asks.
#[test]
fn the_question_is_asked_without_the_clients_parameters() {
    let stage = Stage::new(|ini, _| {
        ini.set("track_extra_parameters", "IntervalStyle, search_path")
            .set("default_pool_size", "1");
        ini.set(
            "auth_query",
            "SELECT 'alice', '' WHERE current_setting('search_path') = '\"$user\", public' \
             AND current_setting('application_name') = '' \
             AND current_setting('DateStyle') = 'ISO, MDY' \
             AND current_setting('IntervalStyle') = 'postgres' \
             AND current_setting('client_encoding') = 'UTF8' \
             AND current_setting('TimeZone') = 'UTC' AND $1 = 'somebody'",
        );
    });
    for _ in 0..3 {
        let mut raw = stage.pooler.unnamed();
        let startup = Startup::v3()
            .param("user", "somebody")
            .param("database", "db")
            .param("options", "-c search_path=evil --application_name=evil")
            .param("DateStyle", "german")
            .param("IntervalStyle", "iso_8601")
            .param("client_encoding", "LATIN1")
            .param("TimeZone", "CET");
        raw.log_in(&startup);
        assert_eq!(raw.parameter("application_name").as_deref(), Some("evil"));
        assert_eq!(raw.value("SHOW DateStyle"), "German, DMY");
    }
}

/// Reliability 5: who works on the connections that ask, leaves nothing there that could answer.
#[test]
fn clients_of_the_same_pool_cannot_forge_an_answer() {
    let stage = Stage::new(|ini, database| {
        ini.database("db", &connect(database, "user=carol")).set("default_pool_size", "1");
    });
    let mut clerk = stage.knock("bob");
    clerk.until_ready();
    let forged = "CREATE TEMP TABLE users AS SELECT 'mallory' AS name, 'x' AS secret";
    clerk.query(forged);
    clerk.query("CREATE SCHEMA evil");
    clerk.query("CREATE TABLE evil.users AS SELECT 'trudy' AS name, 'x' AS secret");
    clerk.query("SET search_path = evil, public");
    assert_eq!(clerk.value("SELECT name FROM users"), "mallory");
    stage.knock("mallory").expect_fatal("no such user");
    stage.knock("trudy").expect_fatal("no such user");
    stage.sees("alice");
    // The clerk's next query finds a connection that is as good as new.
    assert_eq!(clerk.value("SHOW search_path"), "\"$user\", public");
}

#[test]
fn answers_that_are_none_are_a_configuration_error() {
    for (query, words) in [
        ("SELECT $1", "closing because: expected 2 columns from auth_query, not 1"),
        ("SELECT $1, 'x', 'y'", "closing because: expected 2 columns from auth_query, not 3"),
        ("SELECT NULL, $1", "closing because: auth_query response contained null user name"),
        (
            "SELECT nothing FROM nowhere WHERE $1",
            "S: error in auth_query: ERROR: relation \"nowhere\" does not exist",
        ),
        ("SELECT 1/(length($1) - 1), 'x'", "closing because: error response from auth_query"),
        ("SELECT 'no', 'parameter'", "closing because: error response from auth_query"),
        ("BEGIN", "closing because: error response from auth_query"),
    ] {
        let stage = Stage::new(|ini, _| {
            ini.set("auth_query", query);
        });
        stage.knock("x").expect_fatal("bouncer config error");
        stage.log_has(words);
        stage.pooler.assert_serves();
    }
}

#[test]
fn each_database_may_have_its_own_oracle() {
    let stage = Stage::new(|ini, database| {
        let other = "host=127.0.0.1 port=1 dbname=nowhere";
        ini.forget_user("alice").set("auth_user", "").set("auth_query", "SELECT 'bob', $1");
        // Who is asked, what is asked, and where: each in its own place.
        ini.database(
            "db",
            &connect("app", &format!("auth_user=carol auth_dbname=users auth_query='{QUERY}'")),
        );
        ini.database("users", &connect(database, "user=alice"));
        ini.database("missing", &connect("app", "auth_user=carol auth_dbname=nope"));
        ini.database("own", &connect("app", "auth_user=carol auth_dbname=pgbouncer"));
        ini.database("nobody", &connect("app", ""));
        ini.database("global", &connect("app", "auth_user=carol"));
        ini.database("down", other);
    });
    assert_eq!(stage.sees("alice"), "alice");
    let knock = |database: &str, user: &str| {
        let mut raw = stage.pooler.unnamed();
        raw.send(&Startup::v3().param("user", user).param("database", database).bytes());
        raw
    };
    knock("missing", "alice").expect_fatal("bouncer config error");
    knock("own", "alice").expect_fatal("bouncer config error");
    stage.log_has("cannot use the reserved \"pgbouncer\" database as an auth_dbname");
    knock("nobody", "alice").expect_fatal("\"trust\" authentication failed");
    let mut raw = knock("global", "whoever");
    raw.until_ready();
    assert_eq!(raw.value("SELECT current_user"), "bob");
    // A database that is none has no oracle: it is not even told that it is none.
    knock("no such", "alice").expect_fatal("\"trust\" authentication failed");
}

#[test]
fn a_server_that_refuses_us_says_so_to_who_waits() {
    let role = format!("locked_{}", std::process::id());
    let mut direct = Postgres::shared().client("postgres");
    direct
        .batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x' IN ROLE by_scram"))
        .expect("create a role");
    let stage = Stage::new(|ini, _| {
        ini.set("auth_user", &role).secret(&role, "wrong").set("server_login_retry", "60");
    });
    let text = format!("password authentication failed for user \"{role}\"");
    expect_error(stage.knock("somebody"), "28P01", &text);
    let cached =
        format!("server login has been failing, cached error: {text} (server_login_retry)");
    let cut: String = cached.chars().take(127).collect();
    stage.knock("somebody").expect_fatal(&cut);
    direct.batch_execute(&format!("DROP ROLE {role}")).expect("drop");
}

/// One server has to answer them all.
#[test]
fn a_crowd_waits_its_turn() {
    for mode in ["session", "transaction", "statement"] {
        let stage = Stage::new(|ini, _| {
            ini.set("default_pool_size", "1").set("pool_mode", mode);
            ini.set("auth_query", "SELECT 'alice', $1 FROM pg_sleep(0.01)");
        });
        let mut crowd: Vec<Raw> = (0..30).map(|n| stage.knock(&format!("user{n}"))).collect();
        for raw in &mut crowd {
            assert_eq!(raw.until_ready().last().map(|m| m.tag), Some(b'Z'), "{mode}");
        }
        // Those who ask and the clients of the same pool take turns, too.
        let mut carol = stage.knock("carol");
        carol.until_ready();
        assert_eq!(carol.value("SELECT current_user"), "carol");
    }
}

/// A client that has waited too long takes its question with it.
#[test]
fn a_question_ends_with_its_client() {
    let stage = Stage::new(|ini, _| {
        ini.set("auth_query", "SELECT 'alice', $1 FROM pg_sleep(600)");
        ini.set("client_login_timeout", "1").set("default_pool_size", "1");
    });
    let (asking, waiting) = (stage.knock("first"), stage.knock("second"));
    for raw in [asking, waiting] {
        expect_error(raw, "08P01", "client_login_timeout");
    }
    stage.log_has("closing because: client disconnect while server was not ready");
}

#[test]
fn a_lost_server_is_a_configuration_error() {
    let stage = Stage::new(|ini, _| {
        ini.set("auth_query", "SELECT 'alice', $1 FROM pg_sleep(600)");
    });
    let raw = stage.knock("somebody");
    let mut direct = Postgres::shared().client("postgres");
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = $1 AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()";
    wait_for("the question to be killed", || {
        direct.query_one(kill, &[&stage.database]).expect("kill").get::<_, i64>(0) > 0
    });
    expect_error(raw, "08P01", "bouncer config error");
}

#[test]
fn who_asks_waits_out_a_pause() {
    let stage = Stage::new(ask_about_alice);
    stage.pooler.signal(libc::SIGUSR1);
    stage.log_has("pausing all activity");
    let mut raw = stage.knock("alice");
    stage.knock("nobody");
    stage.pooler.signal(libc::SIGUSR2);
    assert_eq!(raw.until_ready().last().map(|m| m.tag), Some(b'Z'));
}

/// What the operator does to the authentication database.
#[test]
fn the_console_rules_over_the_database_that_is_asked() {
    let stage = Stage::new(|ini, database| {
        ini.database("users", &connect(database, "")).set("auth_dbname", "users");
        ini.forget_user("alice");
    });
    let startup = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
    let mut console = stage.pooler.raw_with(startup);
    console.query("DISABLE users");
    stage.knock("alice").expect_fatal("authentication database \"users\" is disabled");
    console.query("ENABLE users");
    console.query("PAUSE users");
    let mut waiting = stage.knock("alice");
    let row = |console: &mut Raw| {
        let answer = console.query("SHOW POOLS");
        let rows = answer.iter().filter(|m| m.tag == b'D').map(Message::columns);
        rows.into_iter().find(|row| row[0] == "users" && row[1] == "carol")
    };
    wait_for("alice to wait", || row(&mut console).is_some_and(|row| row[3] == "1"));
    console.query("RESUME users");
    assert_eq!(waiting.until_ready().last().map(|m| m.tag), Some(b'Z'));
    console.query("PAUSE users");
    let waiting = stage.knock("alice");
    wait_for("alice to wait", || row(&mut console).is_some_and(|row| row[3] == "1"));
    console.query("KILL users");
    expect_error(waiting, "08P01", "database removed");
    console.query("RESUME users");
    assert_eq!(stage.sees("alice"), "alice");
}

fn field(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0; 19]].concat()
}

/// An answer as PostgreSQL gives it.
fn answer() -> Vec<u8> {
    let head = [&[0, 2][..], &field("a"), &field("b")].concat();
    let row = [&[0, 2, 0, 0, 0, 5][..], b"alice", &[0, 0, 0, 3], b"abc"].concat();
    [
        message(b'1', b""),
        message(b'2', b""),
        message(b'T', &head),
        message(b'D', &row),
        message(b'C', b"SELECT 1\0"),
        ready(),
    ]
    .concat()
}

/// A server that welcomes the pooler and gives this answer to each question.
fn oracle(answers: impl Fn(usize) -> Vec<Vec<u8>> + Send + Sync + 'static) -> FakeServer {
    let count = std::sync::atomic::AtomicUsize::new(0);
    FakeServer::start(move |visit| {
        visit.startup();
        visit.send(&welcome());
        while let Some(Message { tag, .. }) = visit.message() {
            if tag == b'S' {
                let turn = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                for piece in answers(turn) {
                    visit.send(&piece);
                }
            }
        }
    })
}

fn in_front_of(server: &FakeServer) -> Pooler {
    Pooler::start(|ini| {
        ini.database("db", &format!("host=127.0.0.1 port={}", server.port));
        ini.set("auth_user", "carol").set("server_login_retry", "0.1");
    })
}

/// Reliability 14: an answer that comes byte by byte is an answer.
#[test]
fn an_answer_cut_anywhere_is_an_answer() {
    let server = oracle(|_| answer().iter().map(|byte| vec![*byte]).collect());
    let pooler = in_front_of(&server);
    assert_eq!(knock(&pooler, "alicia").until_ready().last().map(|m| m.tag), Some(b'Z'));
    assert!(pooler.log().contains("user=alice "), "{}", pooler.log());
}

/// An answer with one byte too few, one that is another, one too many: nobody is let in by a
/// broken answer, and nobody else is hurt.
#[test]
fn hostile_answers_let_nobody_in() {
    let broken: Vec<Vec<u8>> = {
        let row_at = answer().windows(5).position(|five| five == b"alice").expect("the row") - 11;
        let mut all = Vec::new();
        // Not the last two of the length: a longer message may still come.
        for place in 0..3 {
            let mut other = answer();
            other[row_at + place] ^= 0x40;
            all.push(other);
        }
        all.push(message(b'D', b""));
        all.push(message(b'D', &[0, 2, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0]));
        all.push(message(b'D', &[0, 2, 0x7f, 0xff, 0xff, 0xff]));
        all.push([b'D', 0x7f, 0xff, 0xff, 0xff].to_vec());
        all.push([b'D', 0, 0, 0, 3].to_vec());
        all.push(message(b'E', b""));
        all.push(message(b'Z', b"T"));
        all.push(message(b'Z', b""));
        all.push(message(b'G', b"\0\0\0"));
        all.push(message(b'R', &[0; 4]));
        all.push(message(b'S', b"broken"));
        all.push(vec![0; 5]);
        all
    };
    let count = broken.len();
    let server = oracle(move |turn| vec![broken[turn % broken.len()].clone()]);
    let pooler = in_front_of(&server);
    for turn in 0..count {
        let mut raw = knock(&pooler, "alicia");
        let error = raw.message();
        assert_eq!(error.tag, b'E', "{turn}: {error:?}");
        raw.expect_end();
    }
    pooler.assert_serves();
}
