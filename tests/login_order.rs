//! In which order it is decided whether somebody may come in (the contract's §2.1), and who may come
//! to the console (§2.10).

mod common;

use common::pooler::Ini;
use common::raw::{Message, message};
use common::{Pooler, Postgres, Raw, Startup, wait_for};

const DB_LIMIT: &str = "client connections exceeded (max_db_client_connections)";
const USER_LIMIT: &str = "client connections exceeded (max_user_client_connections)";
const PASSWORD: &str = "password authentication failed";

fn pooler(change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.set("auth_type", "plain").secret("alice", "right").secret("postgres", "right");
        change(ini);
    })
}

/// A client that has sent its Startup.
fn knock(pooler: &Pooler, user: &str, database: &str) -> Raw {
    let mut raw = pooler.unnamed();
    raw.send(&Startup::v3().param("user", user).param("database", database).bytes());
    raw
}

/// The same, and it was asked for its password.
fn asked(pooler: &Pooler, user: &str, database: &str) -> Raw {
    let mut raw = knock(pooler, user, database);
    let request = raw.message();
    assert_eq!((request.tag, &request.body[..]), (b'R', &[0, 0, 0, 3][..]), "{request:?}");
    raw
}

fn tell(raw: &mut Raw, password: &str) {
    raw.send(&message(b'p', format!("{password}\0").as_bytes()));
}

fn refused(pooler: &Pooler, user: &str, database: &str, password: &str, words: &str) {
    let mut raw = asked(pooler, user, database);
    tell(&mut raw, password);
    raw.expect_fatal(words);
}

fn let_in(pooler: &Pooler, user: &str, database: &str, password: &str) -> Raw {
    let mut raw = asked(pooler, user, database);
    tell(&mut raw, password);
    assert_eq!(raw.until_ready().last().map(|last| last.tag), Some(b'Z'), "{user}");
    raw
}

fn logged(pooler: &Pooler, words: &str) {
    wait_for(words, || pooler.log().contains(words));
}

/// Database and user of each pool.
fn pools(console: &mut Raw) -> Vec<(String, String)> {
    let rows = console.query("SHOW POOLS");
    let rows = rows.iter().filter(|m| m.tag == b'D').map(Message::columns);
    rows.map(|row| (row[0].clone(), row[1].clone())).collect()
}

#[test]
fn any_makes_the_forced_user_of_whoever_comes() {
    let forced = format!("host=127.0.0.1 port={} dbname=app user=carol", Postgres::shared().port);
    let pooler = pooler(|ini| {
        ini.set("auth_type", "any").database("forced", &forced);
    });
    for database in ["app", "no such"] {
        knock(&pooler, "whoever", database).expect_fatal("bouncer config error");
    }
    let mut raw = knock(&pooler, "whoever", "forced");
    raw.until_ready();
    assert_eq!(raw.value("SELECT current_user"), "carol");
    logged(&pooler, "login attempt: db=forced user=carol tls=no replication=no");
}

#[test]
fn a_name_that_is_too_long_is_looked_up_nowhere() {
    let pooler = pooler(|_| ());
    let long = "x".repeat(128);
    for database in ["app", "no such", "pgbouncer"] {
        knock(&pooler, &long, database).expect_fatal("username too long");
        logged(&pooler, &format!("login failed: db={database} user={long}"));
    }
    refused(&pooler, &long[1..], "app", "wrong", PASSWORD);
    assert!(!pooler.log().contains(&format!("no such user: {long}")), "not looked up");
}

#[test]
fn limits_count_those_who_have_not_proven_anything_yet() {
    let pooler = pooler(|ini| {
        ini.database(
            "one",
            &format!(
                "host=127.0.0.1 port={} dbname=app max_db_client_connections=1",
                Postgres::shared().port
            ),
        );
        ini.user("bob", "max_user_client_connections=1");
        ini.user("stranger", "max_user_client_connections=1");
    });
    let waiting = asked(&pooler, "alice", "one");
    knock(&pooler, "carol", "one").expect_fatal(DB_LIMIT);
    drop(waiting);
    let free = |user: &str| {
        wait_for("a place", || knock(&pooler, user, "one").message().body == [0, 0, 0, 3]);
    };
    free("carol");
    // Before the user's own limit comes that of the database.
    free("bob");
    let bob = asked(&pooler, "bob", "app");
    knock(&pooler, "bob", "app").expect_fatal(USER_LIMIT);
    // Nor does it help to name a database that is none: his password could be guessed there.
    knock(&pooler, "bob", "no such").expect_fatal(USER_LIMIT);
    drop(bob);
    let carol = asked(&pooler, "carol", "one");
    let bob = asked(&pooler, "bob", "no such");
    knock(&pooler, "bob", "one").expect_fatal(DB_LIMIT);
    knock(&pooler, "bob", "app").expect_fatal(USER_LIMIT);
    // (Or else it would show that he is nobody.)
    knock(&pooler, "nobody", "one").expect_fatal(DB_LIMIT);
    drop((bob, carol));
    // Whoever is nobody does not count, unless `[users]` knows his name.
    free("nobody");
    let nobodies = [(); 3].map(|()| asked(&pooler, "nobody", "one"));
    let stranger = asked(&pooler, "stranger", "app");
    knock(&pooler, "stranger", "app").expect_fatal(USER_LIMIT);
    drop((nobodies, stranger));
    wait_for("everybody to have left", || {
        knock(&pooler, "stranger", "app").message().body == [0, 0, 0, 3]
    });
}

/// The pool is there even if the password is wrong, but not for people and databases that are not.
#[test]
fn a_pool_is_made_for_whom_there_can_be_one() {
    let pooler = pooler(|_| ());
    let mut console = let_in(&pooler, "postgres", "pgbouncer", "right");
    refused(&pooler, "alice", "app", "wrong", PASSWORD);
    refused(&pooler, "nobody", "app", "wrong", PASSWORD);
    refused(&pooler, "alice", "no such", "wrong", PASSWORD);
    refused(&pooler, "alice", "no such", "right", "no such database: no such");
    let named = |database: &str, user: &str| (database.to_owned(), user.to_owned());
    assert_eq!(pools(&mut console), [named("app", "alice"), named("pgbouncer", "pgbouncer")]);
    // A name longer than any database's is cut where it is told.
    let long = "d".repeat(70);
    refused(&pooler, "alice", &long, "right", &format!("no such database: {}", &long[..63]));
}

/// Where `*` stands for any database, names that somebody without a password makes up are not kept.
#[test]
fn a_pool_of_a_made_up_name_goes_with_whoever_made_it_up() {
    let port = Postgres::shared().port;
    let pooler = pooler(|ini| {
        ini.database("*", &format!("host=127.0.0.1 port={port}")).set("max_client_conn", "1000");
    });
    let mut console = let_in(&pooler, "postgres", "pgbouncer", "right");
    let own = ("pgbouncer".to_owned(), "pgbouncer".to_owned());
    let mut strangers: Vec<Raw> =
        (0..50).map(|n| asked(&pooler, "alice", &format!("made up {}", n % 10))).collect();
    assert_eq!(pools(&mut console).len(), 10 + 1);
    for stranger in strangers.iter_mut().step_by(2) {
        tell(stranger, "wrong");
        stranger.expect_fatal(PASSWORD);
    }
    drop(strangers);
    wait_for("all of them to be forgotten", || pools(&mut console) == [own.clone()]);
    // That of somebody who was let in stays, as long as `autodb_idle_timeout` says.
    drop(let_in(&pooler, "alice", "template1", "right"));
    refused(&pooler, "alice", "template1", "wrong", PASSWORD);
    let used = ("template1".to_owned(), "alice".to_owned());
    assert!(pools(&mut console).contains(&used));
}

/// What is told to whoever has proven who he is, and to nobody else.
#[test]
fn a_good_password_comes_before_every_other_refusal() {
    let mut pooler = pooler(|_| ());
    let mut console = let_in(&pooler, "postgres", "pgbouncer", "right");
    console.query("DISABLE app");
    refused(&pooler, "alice", "app", "wrong", PASSWORD);
    refused(&pooler, "alice", "app", "right", "database \"app\" is disabled");
    // Those who are asked while we begin to end.
    let mut nowhere = asked(&pooler, "alice", "no such");
    let mut disabled = asked(&pooler, "alice", "app");
    let mut wrong = asked(&pooler, "alice", "postgres");
    let mut late = asked(&pooler, "alice", "postgres");
    let mut admin = asked(&pooler, "postgres", "pgbouncer");
    // Somebody has to be waited for.
    let mut busy = let_in(&pooler, "alice", "postgres", "right");
    busy.query("BEGIN");
    console.query("SHUTDOWN WAIT_FOR_SERVERS");
    tell(&mut nowhere, "right");
    nowhere.expect_fatal("no such database: no such");
    tell(&mut disabled, "right");
    disabled.expect_fatal("database \"app\" is disabled");
    tell(&mut wrong, "wrong");
    wrong.expect_fatal(PASSWORD);
    tell(&mut late, "right");
    late.expect_fatal("pooler is shutting down");
    tell(&mut admin, "right");
    admin.until_ready();
    busy.query("COMMIT");
    assert!(pooler.wait_for_exit().success());
}

#[test]
fn the_console_is_for_those_who_are_listed() {
    let pooler = pooler(|ini| {
        ini.set("stats_users", "carol, ghost").secret("carol", "right").secret("bob", "right");
        ini.user("bob", "max_user_client_connections=1");
    });
    let no = "admin access needed";
    let error = |raw: &mut Raw, sql: &str| {
        let answer = raw.query(sql);
        answer.iter().find(|m| m.tag == b'E').map(|m| m.field('M')).unwrap_or_default()
    };
    let mut admin = let_in(&pooler, "postgres", "pgbouncer", "right");
    assert_eq!(error(&mut admin, "ENABLE app"), "");
    let mut stats = let_in(&pooler, "carol", "pgbouncer", "right");
    assert_eq!(
        (error(&mut stats, "SHOW POOLS").as_str(), error(&mut stats, "ENABLE app").as_str()),
        ("", no)
    );
    // Known, but not listed: told before a password is asked for, and after his limit.
    knock(&pooler, "bob", "pgbouncer").expect_fatal("not allowed");
    let _bob = asked(&pooler, "bob", "app");
    knock(&pooler, "bob", "pgbouncer").expect_fatal(USER_LIMIT);
    // Unknown, listed or not: asked, and refused in the end.
    for user in ["nobody", "ghost"] {
        refused(&pooler, user, "pgbouncer", "right", PASSWORD);
    }
    refused(&pooler, "postgres", "pgbouncer", "wrong", PASSWORD);
    refused(&pooler, "carol", "pgbouncer", "wrong", PASSWORD);
}

#[test]
fn limits_on_the_console_are_for_those_who_only_look() {
    let pooler = pooler(|ini| {
        ini.set("stats_users", "carol").secret("carol", "right");
        ini.set("max_db_client_connections", "2").set("max_user_client_connections", "3");
    });
    let admins = [(); 3].map(|()| let_in(&pooler, "postgres", "pgbouncer", "right"));
    // Administrators count, and are never kept out.
    knock(&pooler, "carol", "pgbouncer").expect_fatal(DB_LIMIT);
    knock(&pooler, "postgres", "app").expect_fatal(USER_LIMIT);
    let fourth = let_in(&pooler, "postgres", "pgbouncer", "right");
    drop((admins, fourth));
    wait_for("the console to be free", || {
        knock(&pooler, "carol", "pgbouncer").message().body == [0, 0, 0, 3]
    });
}

/// Users whom only a database knows come to the console, if it is said which database that is.
#[test]
fn the_console_asks_the_database_who_somebody_is() {
    let values = "VALUES ('boss', 'one'), ('looker', 'two'), ('bob', 'three'), ('none', NULL)";
    let query = format!("SELECT * FROM ({values}) AS users (name, secret) WHERE name = $1");
    let start = |where_to_ask: &str| {
        pooler(|ini| {
            ini.set("admin_users", "boss, alice").set("stats_users", "looker");
            ini.set("auth_user", "carol").set("auth_query", &query).forget_user("bob");
            if !where_to_ask.is_empty() {
                ini.set("auth_dbname", where_to_ask);
            }
        })
    };
    let asking = start("app");
    let mut boss = let_in(&asking, "boss", "pgbouncer", "one");
    assert!(boss.query("ENABLE app").iter().all(|m| m.tag != b'E'));
    logged(&asking, "pgbouncer/boss@127.0.0.1");
    logged(&asking, "login attempt: db=pgbouncer user=boss tls=no replication=no");
    let mut looker = let_in(&asking, "looker", "pgbouncer", "two");
    let answer = looker.query("ENABLE app");
    assert_eq!(answer[0].field('M'), "admin access needed");
    refused(&asking, "boss", "pgbouncer", "wrong", PASSWORD);
    refused(&asking, "looker", "pgbouncer", "one", PASSWORD);
    knock(&asking, "bob", "pgbouncer").expect_fatal("not allowed");
    knock(&asking, "nobody", "pgbouncer").expect_fatal("no such user");
    logged(&asking, "login failed: db=pgbouncer");
    knock(&asking, "none", "pgbouncer").expect_fatal("not allowed");
    // Who is in the file is not asked about.
    let_in(&asking, "alice", "pgbouncer", "right");
    // Nobody else's database is asked, nor the console itself.
    for (where_to_ask, log) in [
        ("", "cannot use the reserved \"pgbouncer\" database as an auth_dbname"),
        ("missing", "authentication database \"missing\" is not configured"),
    ] {
        let lost = start(where_to_ask);
        knock(&lost, "boss", "pgbouncer").expect_fatal("bouncer config error");
        logged(&lost, log);
        let_in(&lost, "alice", "pgbouncer", "right");
    }
}
