//! Tracked parameters: each line of the contract's section on them. What is seen on the wire towards
//! a server is seen by a server of ours, what it means by PostgreSQL.

mod common;

use common::desk::Desk;
use common::fake::{self, FakeServer, Visit};
use common::raw::{self, Message, message, parameters, tags};
use common::{Pooler, Postgres, Raw, Startup, wait_for, wait_for_some};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn startup(database: &str) -> Startup {
    Startup::v3().param("user", "alice").param("database", database)
}

/// One server for everybody, in transaction pooling.
fn pool_of_one() -> Pooler {
    Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
    })
}

fn status(name: &str, value: &str) -> Vec<u8> {
    message(b'S', format!("{name}\0{value}\0").as_bytes())
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.body).trim_end_matches('\0').to_owned()
}

/// What a server was asked, in order.
type Heard = Arc<Mutex<Vec<String>>>;

/// Notes each Query; accepts every SET as it is, reports it, and answers all else with a row.
fn attentive(heard: &Heard, welcome: &'static [(&'static str, &'static str)]) -> FakeServer {
    let heard = heard.clone();
    FakeServer::start(move |visit| {
        visit.startup();
        let mut words = message(b'R', &[0; 4]);
        welcome.iter().for_each(|(name, value)| words.extend(status(name, value)));
        words.extend(message(b'K', &[1; 8]));
        visit.send(&[words, fake::ready()].concat());
        while let Some(question) = visit.message() {
            let sql = text(&question);
            heard.lock().expect("no panic").push(sql.clone());
            visit.send(&answer(&sql));
        }
    })
}

fn answer(sql: &str) -> Vec<u8> {
    if !sql.starts_with("SET ") {
        return fake::one_row("served");
    }
    let mut words = Vec::new();
    for set in sql.split(';').filter_map(|set| set.strip_prefix("SET ")) {
        let (name, value) = set.split_once('=').expect("a name and a value");
        words.extend(message(b'N', b"SNOTICE\0C00000\0Mby the way\0\0"));
        words.extend(message(b'C', b"SET\0"));
        let value = value.trim_start_matches('E').trim_matches('\'');
        words.extend(status(name, if value == "german" { "German, DMY" } else { value }));
    }
    [words, fake::ready()].concat()
}

const USUAL: &[(&str, &str)] = &[
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("server_version", "15.0"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "UTC"),
    ("search_path", "public"),
];

fn in_front_of(server: &FakeServer, change: impl FnOnce(&mut common::pooler::Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.database("fake", &server.connect_string()).set("default_pool_size", "1");
        ini.set("server_tls_sslmode", "disable");
        change(ini);
    })
}

fn heard_since(heard: &Heard, before: usize) -> Vec<String> {
    heard.lock().expect("no panic")[before..].to_vec()
}

#[test]
fn the_extra_ones_are_tracked_in_the_order_and_spelling_of_the_configuration() {
    let heard = Heard::default();
    let server = attentive(&heard, USUAL);
    let pooler = in_front_of(&server, |ini| {
        // Twice, in other letters, and one that is always tracked: no harm done.
        ini.set("track_extra_parameters", "search_path, intervalstyle ,INTERVALSTYLE,,datestyle");
    });
    let client = pooler.raw_with(startup("fake").param("INTERVALSTYLE", "iso_8601"));
    let expected = [
        ("server_version", "15.0"),
        ("DateStyle", "ISO, MDY"),
        ("client_encoding", "UTF8"),
        ("TimeZone", "UTC"),
        ("standard_conforming_strings", "on"),
        ("application_name", ""),
        ("search_path", "public"),
        ("intervalstyle", "iso_8601"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(parameters(&client.welcome), expected);

    let mut all = pooler.raw_with(
        startup("fake")
            .param("intervalstyle", "sql_standard")
            .param("Search_Path", r#""$user", b"#)
            .param("APPLICATION_NAME", r"a'b\c")
            .param("standard_conforming_strings", "off")
            .param("timezone", "Europe/Rome")
            .param("Client_Encoding", "latin1")
            .param("datestyle", "german"),
    );
    assert_eq!(all.value("SELECT 1"), "served");
    // One Query, without blanks, in the order of the welcome; search_path as it is.
    let sets = r#"SET DateStyle='german';SET client_encoding='latin1';SET TimeZone='Europe/Rome';SET standard_conforming_strings='off';SET application_name=E'a''b\\c';SET search_path="$user", b;SET intervalstyle='sql_standard';"#;
    assert_eq!(heard_since(&heard, 0), [sets, "SELECT 1"]);
}

#[test]
fn options_is_never_tracked() {
    let pooler = Pooler::start(|ini| {
        ini.set("track_extra_parameters", "options");
    });
    let client = pooler.raw_with(startup("app").param("options", "-c timezone=CET"));
    assert_eq!(client.parameter("TimeZone").as_deref(), Some("CET"));
    assert_eq!(client.parameter("options"), None);
    let mut client = pooler.unnamed();
    client.send(&startup("app").param("Options", "x").bytes());
    client.expect_fatal("unsupported startup parameter: Options");
}

#[test]
fn the_list_is_read_at_the_start_only() {
    let mut pooler = pool_of_one();
    pooler.rewrite(|ini| {
        ini.set("track_extra_parameters", "search_path").set("ignore_startup_parameters", "geqo");
    });
    pooler.signal(libc::SIGHUP);
    // What to ignore is read anew: its effect shows when the reload is done.
    wait_for("the reload", || {
        let mut client = pooler.unnamed();
        client.send(&startup("app").param("geqo", "on").bytes());
        client.until_ready().last().is_some_and(|message| message.tag == b'Z')
    });
    let mut client = pooler.unnamed();
    client.send(&startup("app").param("search_path", "x").bytes());
    client.expect_fatal("unsupported startup parameter: search_path");
    let client = pooler.raw_with(startup("app").param("IntervalStyle", "iso_8601"));
    assert_eq!(client.parameter("IntervalStyle").as_deref(), Some("iso_8601"));
}

#[test]
fn what_suits_is_not_set() {
    let heard = Heard::default();
    let server = attentive(&heard, USUAL);
    let pooler = in_front_of(&server, |_| ());
    // Nothing asked for; the same in other letters.
    for client in
        [startup("fake"), startup("fake").param("datestyle", "iso, mdy").param("timezone", "utc")]
    {
        assert_eq!(pooler.raw_with(client).value("SELECT 1"), "served");
    }
    // Neither within a link that is kept.
    let mut client = pooler.raw_with(startup("fake").param("timezone", "CET"));
    for _ in 0..2 {
        client.value("SELECT 2");
    }
    let expected = ["SELECT 1", "SELECT 1", "SET TimeZone='CET';", "SELECT 2", "SELECT 2"];
    assert_eq!(heard_since(&heard, 0), expected);
    // But a program's name is its own.
    for name in ["job", "Job"] {
        pooler.raw_with(startup("fake").param("application_name", name)).value("SELECT 3");
    }
    let expected = [
        "SET TimeZone='UTC';SET application_name='job';",
        "SELECT 3",
        "SET application_name='Job';",
        "SELECT 3",
    ];
    assert_eq!(heard_since(&heard, 5), expected);
}

/// As PgBouncer: there is no way to know whether it differs.
#[test]
fn what_the_server_does_not_report_is_echoed_and_never_set() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
        ini.set("track_extra_parameters", "statement_timeout, search_path");
    });
    let asks = startup("app").param("Statement_Timeout", "7s").param("search_path", "nowhere");
    let mut client = pooler.raw_with(asks);
    assert_eq!(client.parameter("statement_timeout").as_deref(), Some("7s"));
    assert_eq!(client.parameter("search_path").as_deref(), Some("nowhere"));
    assert_eq!(client.value("SHOW statement_timeout"), "0");
    assert_eq!(client.value("SHOW search_path"), "\"$user\", public");
    let silent = pooler.raw_with(startup("app"));
    assert_eq!(silent.parameter("statement_timeout"), None, "nobody knows its value");
}

/// A server that shows which bytes come together.
fn pieces(visit: &mut Visit, pieces: &Mutex<Vec<String>>) {
    visit.welcome();
    loop {
        let bytes = visit.some_bytes();
        if bytes.is_empty() {
            return;
        }
        let words: Vec<String> = bytes
            .split(|byte| *byte == b'Q')
            .filter_map(|query| query.get(4..))
            .map(|sql| String::from_utf8_lossy(sql).trim_end_matches('\0').to_owned())
            .collect();
        words.iter().for_each(|sql| visit.send(&answer(sql)));
        pieces.lock().expect("no panic").push(words.join(" + "));
    }
}

#[test]
fn the_catch_up_leaves_in_the_same_write_as_the_message() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let server = {
        let seen = seen.clone();
        FakeServer::start(move |visit| pieces(visit, &seen))
    };
    let pooler = in_front_of(&server, |_| ());
    let mut one = pooler.raw_with(startup("fake").param("application_name", "one"));
    let mut two = pooler.raw_with(startup("fake").param("application_name", "two"));
    for round in 0..3 {
        one.value(&format!("SELECT {round}"));
        two.value(&format!("SELECT {round}"));
    }
    // The words of a Startup are tried alone first: who is refused must not have run anything.
    let expected = [
        "SET application_name='one';",
        "SELECT 0",
        "SET application_name='two';",
        "SELECT 0",
        "SET application_name='one'; + SELECT 1",
        "SET application_name='two'; + SELECT 1",
        "SET application_name='one'; + SELECT 2",
        "SET application_name='two'; + SELECT 2",
    ];
    assert_eq!(*seen.lock().expect("no panic"), expected);
}

#[test]
fn the_client_sees_nothing_of_it() {
    let heard = Heard::default();
    let server = attentive(&heard, USUAL);
    let pooler = in_front_of(&server, |_| ());
    let mut one = pooler.raw_with(startup("fake").param("application_name", "one"));
    let mut two = pooler.raw_with(startup("fake").param("application_name", "two"));
    for _ in 0..3 {
        assert_eq!(tags(&one.query("SELECT 1")), "TDCZ");
        assert_eq!(tags(&two.query("SELECT 1")), "TDCZ");
    }
}

/// `german` is `German, DMY` to the server: it is set once, and later as the server says it.
#[test]
fn the_servers_spelling_is_taken_over() {
    let heard = Heard::default();
    let server = attentive(&heard, USUAL);
    let pooler = in_front_of(&server, |_| ());
    let mut german = pooler.raw_with(startup("fake").param("datestyle", "german"));
    let mut other = pooler.raw_with(startup("fake"));
    assert_eq!(german.parameter("DateStyle").as_deref(), Some("german"), "its own words");
    german.value("SELECT 1");
    german.value("SELECT 2");
    other.value("SELECT 3");
    german.value("SELECT 4");
    let expected = [
        "SET DateStyle='german';",
        "SELECT 1",
        "SELECT 2",
        "SET DateStyle='ISO, MDY';",
        "SELECT 3",
        "SET DateStyle='German, DMY';",
        "SELECT 4",
    ];
    assert_eq!(heard_since(&heard, 0), expected);
}

/// A Query is read in the encoding of whoever was served last, all of it.
#[test]
fn text_is_not_read_in_the_encoding_of_another_client() {
    let pooler = pool_of_one();
    let mut one = pooler.raw_with(startup("app").param("application_name", "é"));
    let mut two = pooler.raw_with(startup("app").param("client_encoding", "SJIS"));
    for _ in 0..3 {
        // PostgreSQL 15 puts a question mark for each byte of it that is not ASCII.
        let shown = one.value("SHOW application_name");
        assert!(["??", r"\xc3\xa9"].contains(&shown.as_str()), "{shown}");
        assert_eq!(one.value("SELECT length('é')"), "1");
        assert_eq!(two.value("SHOW client_encoding"), "SJIS");
        assert_eq!(two.value("SELECT length('\u{30}')"), "1");
    }
}

#[test]
fn what_a_linked_server_reports_is_passed_on_unchanged() {
    let pooler = pool_of_one();
    let mut client = pooler.raw("alice");
    for (sql, name, value) in [
        ("SET timezone = 'Asia/Tokyo'", "TimeZone", "Asia/Tokyo"),
        ("SET default_transaction_read_only = on", "default_transaction_read_only", "on"),
        ("RESET default_transaction_read_only", "default_transaction_read_only", "off"),
        ("SELECT set_config('datestyle', 'sql', false)", "DateStyle", "SQL, MDY"),
    ] {
        let told = parameters(&client.query(sql));
        assert_eq!(told, [(name.to_owned(), value.to_owned())], "{sql}");
    }
}

/// One Parse, Bind, Execute and Sync; what is shown.
fn extended(client: &mut Raw, name: &str, sql: &str) -> Vec<Message> {
    let whole =
        [raw::parse(name, sql), raw::bind(name, &[]), raw::execute(0), raw::sync()].concat();
    client.send(&whole);
    client.until_ready()
}

fn shown(client: &mut Raw, name: &str) -> String {
    let answer = extended(client, "", &format!("SHOW {name}"));
    let row = answer.iter().find(|message| message.tag == b'D');
    row.unwrap_or_else(|| panic!("{answer:?}")).columns().remove(0)
}

/// Whatever way a client changes a parameter, it is what it says itself, and nobody else's.
#[test]
fn every_way_of_setting_follows_the_client_and_reaches_nobody_else() {
    for mode in ["transaction", "statement"] {
        let pooler = Pooler::start(|ini| {
            ini.set("default_pool_size", "1").set("pool_mode", mode);
        });
        let mut other = pooler.raw_with(startup("app").param("timezone", "CET"));
        let ways: [(&str, &str); 6] = [
            ("SET timezone = 'Asia/Tokyo'", "Asia/Tokyo"),
            ("SET SESSION TimeZone TO 'America/Lima'", "America/Lima"),
            ("SELECT set_config('TimeZone', 'Asia/Tokyo', false)", "Asia/Tokyo"),
            ("SELECT set_config('TimeZone', 'America/Lima', true)", "Asia/Tokyo"),
            ("RESET timezone", "UTC"),
            ("SET TIME ZONE 'Europe/Rome'", "Europe/Rome"),
        ];
        let mut client = pooler.raw("alice");
        for (index, (sql, zone)) in ways.into_iter().enumerate() {
            assert_eq!(shown(&mut other, "timezone"), "CET");
            match index % 2 {
                0 => client.query(sql),
                _ => extended(&mut client, &format!("s{index}"), sql),
            };
            assert_eq!(other.value("SHOW timezone"), "CET", "{mode}: {sql}");
            assert_eq!(client.value("SHOW timezone"), zone, "{mode}: {sql}");
            assert_eq!(shown(&mut other, "timezone"), "CET", "{mode}: {sql}");
            assert_eq!(shown(&mut client, "timezone"), zone, "{mode}: {sql}");
        }
    }
}

#[test]
fn what_a_transaction_sets_ends_as_the_transaction_does() {
    let pooler = pool_of_one();
    let mut client = pooler.raw_with(startup("app").param("timezone", "Asia/Tokyo"));
    let mut other = pooler.raw("alice");
    let set = "SET timezone = 'America/Lima'";
    let cases: [(&[&str], &str); 7] = [
        (&["BEGIN", set, "ROLLBACK"], "Asia/Tokyo"),
        (&["BEGIN", "SET LOCAL timezone = 'America/Lima'", "COMMIT"], "Asia/Tokyo"),
        (&["BEGIN", set, "SELECT 1/0", "COMMIT"], "Asia/Tokyo"),
        (&["BEGIN", "SAVEPOINT a", set, "ROLLBACK TO a", "COMMIT"], "Asia/Tokyo"),
        (&["SET timezone = 'America/Lima'; SELECT 1/0"], "Asia/Tokyo"),
        (&["BEGIN", "SAVEPOINT a", set, "RELEASE a", "COMMIT"], "America/Lima"),
        (&["BEGIN", "RESET timezone", "COMMIT"], "UTC"),
    ];
    for (statements, zone) in cases {
        for sql in statements {
            client.query(sql);
        }
        assert_eq!(other.value("SHOW timezone"), "UTC", "{statements:?}");
        assert_eq!(client.value("SHOW timezone"), zone, "{statements:?}");
    }
}

/// `RESET ALL` and `DISCARD ALL` lead to the server's own values, as it reports them.
#[test]
fn a_reset_of_everything_is_one_clients_reset() {
    let pooler = pool_of_one();
    for sql in ["RESET ALL", "DISCARD ALL"] {
        let asks = |name: &str, zone: &str| {
            startup("app").param("application_name", name).param("timezone", zone)
        };
        let mut one = pooler.raw_with(asks("one", "Asia/Tokyo").param("DateStyle", "german"));
        let mut two = pooler.raw_with(asks("two", "CET"));
        assert_eq!(one.value("SHOW DateStyle"), "German, DMY");
        assert_eq!(two.value("SHOW DateStyle"), "ISO, MDY");
        one.query(sql);
        for _ in 0..2 {
            assert_eq!(two.value("SHOW application_name"), "two", "{sql}");
            assert_eq!(two.value("SHOW timezone"), "CET", "{sql}");
            assert_eq!(one.value("SHOW DateStyle"), "ISO, MDY", "{sql}");
            assert_eq!(one.value("SHOW timezone"), "UTC", "{sql}");
            assert_eq!(one.value("SHOW application_name"), "", "{sql}");
        }
    }
}

/// All five and one more, in every mode, whoever comes after whom.
#[test]
fn two_clients_that_want_nothing_in_common_take_turns() {
    let one = [
        ("DateStyle", "German, DMY"),
        ("client_encoding", "LATIN1"),
        ("TimeZone", "Asia/Tokyo"),
        ("standard_conforming_strings", "off"),
        ("application_name", r"o'n\e"),
        ("IntervalStyle", "iso_8601"),
    ];
    let two = [
        ("DateStyle", "SQL, DMY"),
        ("client_encoding", "SJIS"),
        ("TimeZone", "America/Lima"),
        ("standard_conforming_strings", "on"),
        ("application_name", "two"),
        ("IntervalStyle", "sql_standard"),
    ];
    let plain = [
        ("DateStyle", "ISO, MDY"),
        ("client_encoding", "UTF8"),
        ("TimeZone", "UTC"),
        ("standard_conforming_strings", "on"),
        ("application_name", ""),
        ("IntervalStyle", "postgres"),
    ];
    let asks = |values: &[(&str, &str)]| {
        values.iter().fold(startup("app"), |all, (name, value)| all.param(name, value))
    };
    for mode in ["session", "transaction", "statement"] {
        let pooler = Pooler::start(|ini| {
            ini.set("default_pool_size", "1").set("pool_mode", mode);
        });
        if mode == "session" {
            for round in 0..6 {
                let values = [&one, &two, &plain][round % 3];
                let startup = if round % 3 == 2 { startup("app") } else { asks(values) };
                let mut client = pooler.raw_with(startup);
                for (name, value) in values {
                    assert_eq!(shown(&mut client, name), *value, "{mode}");
                }
                client.send(&raw::terminate());
                client.expect_end();
            }
            continue;
        }
        let mut clients = [
            (pooler.raw_with(asks(&one)), one),
            (pooler.raw_with(asks(&two)), two),
            (pooler.raw_with(startup("app")), plain),
        ];
        for round in 0..6 {
            for index in 0..6 {
                for (client, values) in &mut clients {
                    let (name, value) = values[index];
                    let shown = match round % 2 {
                        0 => client.value(&format!("SHOW {name}")),
                        _ => shown(client, name),
                    };
                    assert_eq!(shown, value, "{mode}: {name}");
                }
            }
        }
    }
}

#[test]
fn the_first_message_may_be_any() {
    let pooler = pool_of_one();
    let asks = |name: &str| startup("app").param("application_name", name);
    let batch = |sql: &str| [raw::parse("", sql), raw::bind("", &[]), raw::execute(0)].concat();
    let mut one = pooler.raw_with(asks("one"));
    let mut two = pooler.raw_with(asks("two"));
    // Tried alone at first, in one write with the rest later.
    for _ in 0..3 {
        one.send(&raw::sync());
        one.expect_tags("Z");
        two.send(&[batch("SHOW application_name"), raw::flush()].concat());
        assert_eq!(two.expect_tags("12DC")[2].columns(), ["two"]);
        two.send(&raw::sync());
        two.expect_tags("Z");
        one.send(&[batch("SHOW application_name"), raw::sync(), raw::query("BEGIN")].concat());
        assert_eq!(one.expect_tags("12DCZCZ")[2].columns(), ["one"]);
        one.query("COMMIT");
        two.send(&[raw::query("SHOW application_name"), raw::query("SELECT 1/0")].concat());
        assert_eq!(two.expect_tags("TDCZEZ")[1].columns(), ["two"]);
    }
}

/// The prepared statements of a client know nothing of what the server was told before.
#[test]
fn prepared_statements_run_under_the_clients_own_parameters() {
    let pooler = pool_of_one();
    let mut one = pooler.raw_with(startup("app").param("DateStyle", "german"));
    let mut two = pooler.raw_with(startup("app").param("timezone", "Asia/Tokyo"));
    let sql = "SELECT '2026-11-21 00:00:00+00'::text::timestamptz::text";
    for client in [&mut one, &mut two] {
        client.send(&[raw::parse("same", sql), raw::sync()].concat());
        client.expect_tags("1Z");
    }
    for _ in 0..3 {
        for (client, time) in
            [(&mut one, "21.11.2026 00:00:00 UTC"), (&mut two, "2026-11-21 09:00:00+09")]
        {
            client.send(&[raw::bind("same", &[]), raw::execute(0), raw::sync()].concat());
            assert_eq!(client.expect_tags("2DCZ")[1].columns(), [time]);
        }
    }
}

/// `invalid server parameter`: nothing of the client runs, its server ends, and others go on.
#[test]
fn a_value_that_the_server_refuses_costs_its_client_and_its_server() {
    let pooler = pool_of_one();
    let mut other = pooler.raw_with(startup("app").param("DateStyle", "german"));
    other.query("CREATE TABLE IF NOT EXISTS tracked_refused (n int)");
    let before = other.backend_pid();
    for first in [
        raw::query("INSERT INTO tracked_refused VALUES (1)"),
        [
            raw::parse("", "INSERT INTO tracked_refused VALUES (1)"),
            raw::bind("", &[]),
            raw::execute(0),
            raw::sync(),
        ]
        .concat(),
    ] {
        // What comes before the bad one is not kept either.
        let asks = startup("app").param("DateStyle", "sql").param("client_encoding", "no such");
        let mut client = pooler.raw_with(asks);
        client.send(&first);
        client.expect_fatal("invalid server parameter");
    }
    assert_eq!(other.value("SELECT count(*) FROM tracked_refused"), "0");
    assert_eq!(other.value("SHOW DateStyle"), "German, DMY");
    assert_ne!(other.backend_pid(), before);
    other.query("DROP TABLE tracked_refused");
    let log = pooler.log();
    assert!(log.contains("varcache_apply failed: ERROR: invalid value for parameter"), "{log}");
    assert!(log.contains("closing because: invalid server parameter"), "{log}");
}

/// A fake server that takes a SET and says nothing until it is told to.
fn reluctant(may_answer: &Arc<Mutex<()>>) -> FakeServer {
    let may_answer = may_answer.clone();
    FakeServer::start(move |visit| {
        visit.welcome();
        while let Some(question) = visit.message() {
            let _turn = may_answer.lock().expect("no panic");
            visit.send(&answer(&text(&question)));
        }
    })
}

#[test]
fn a_cancel_during_the_catch_up_is_dropped() {
    let gate = Arc::new(Mutex::new(()));
    let server = reluctant(&gate);
    let pooler = in_front_of(&server, |_| ());
    let mut client = pooler.raw_with(startup("fake").param("timezone", "CET"));
    let closed = gate.lock().expect("no panic");
    client.send(&raw::query("SELECT 1"));
    wait_for("the client to be linked", || holders(&pooler) == 1);
    let mut cancel = pooler.unnamed();
    cancel.send(&raw::untagged(raw::CANCEL_REQUEST, &client.cancel_key()));
    cancel.expect_end();
    wait_for("the log", || {
        pooler.log().contains("ignoring cancel request for server that is setting vars")
    });
    drop(closed);
    client.expect_tags("TDCZ");
}

/// How many servers work for a client.
fn holders(pooler: &Pooler) -> usize {
    let console = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
    let answer = pooler.raw_with(console).query("SHOW HOLDERS");
    answer.iter().filter(|message| message.tag == b'D').count()
}

/// What was set for a client that has gone is not found by the next one.
#[test]
fn a_client_that_leaves_during_the_catch_up_takes_the_server_along() {
    let gate = Arc::new(Mutex::new(()));
    let server = reluctant(&gate);
    let pooler = in_front_of(&server, |_| ());
    let mut client = pooler.raw_with(startup("fake").param("timezone", "CET"));
    let closed = gate.lock().expect("no panic");
    client.send(&raw::query("SELECT 1"));
    wait_for("the client to be linked", || holders(&pooler) == 1);
    drop(client);
    wait_for("the server to be closed", || {
        pooler.log().contains("closing because: client disconnect while server was not ready")
    });
    drop(closed);
    assert_eq!(pooler.raw_with(startup("fake")).value("SELECT 1"), "served");
    assert_eq!(server.visits(), 2);
}

#[test]
fn a_server_that_dies_during_the_catch_up_is_a_crashed_one() {
    let server = FakeServer::start(|visit| {
        visit.welcome();
        while let Some(question) = visit.message() {
            if text(&question).starts_with("SET ") {
                return;
            }
            visit.send(&fake::one_row("served"));
        }
    });
    let pooler = in_front_of(&server, |_| ());
    let mut client = pooler.raw_with(startup("fake").param("timezone", "CET"));
    client.send(&raw::query("SELECT 1"));
    client.expect_fatal("server conn crashed?");
    assert_eq!(pooler.raw_with(startup("fake")).value("SELECT 1"), "served");
}

/// Its last word is no verdict on a value: the client gets to read it.
#[test]
fn a_server_that_is_told_to_go_during_the_catch_up_says_so() {
    let server = FakeServer::start(|visit| {
        visit.welcome();
        while let Some(question) = visit.message() {
            if text(&question).starts_with("SET ") {
                visit.send(&raw::message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mgo\0\0"));
                return;
            }
            visit.send(&fake::one_row("served"));
        }
    });
    let pooler = in_front_of(&server, |_| ());
    let mut client = pooler.raw_with(startup("fake").param("timezone", "CET"));
    client.send(&raw::query("SELECT 1"));
    let last_word = client.message();
    assert_eq!((last_word.field('C').as_str(), last_word.field('M').as_str()), ("57P01", "go"));
    client.expect_fatal("server conn crashed?");
    assert!(!pooler.log().contains("varcache_apply failed"));
}

#[test]
fn the_clients_address_is_added_to_its_name() {
    let pooler = Pooler::start(|ini| {
        ini.set("application_name_add_host", "1").set("default_pool_size", "1");
    });
    let long = "n".repeat(500);
    for (sent, name) in
        [(None, "app"), (Some("psql"), "psql"), (Some(""), ""), (Some(&long), &long)]
    {
        let startup = startup("app");
        let startup = match sent {
            Some(name) => startup.param("application_name", name),
            None => startup,
        };
        let mut client = pooler.raw_with(startup);
        let mut whole = format!("{name} - {}", client.local_address());
        assert!(whole.len() < 399 || name.len() == 500);
        whole.truncate(399);
        assert_eq!(client.parameter("application_name"), Some(whole.clone()));
        whole.truncate(63);
        assert_eq!(client.value("SHOW application_name"), whole, "PostgreSQL keeps 63 bytes");
        client.query("SET application_name = 'own'");
        assert_eq!(client.value("SHOW application_name"), "own");
    }
}

/// Servers see clients of several machines: who came by our Unix socket names ours.
#[test]
fn a_client_on_this_machine_is_named_by_process_and_machine() {
    let directory = Postgres::shared().socket_dir.clone();
    let pooler = Pooler::start(|ini| {
        ini.set("application_name_add_host", "1");
        ini.set("unix_socket_dir", &directory.to_string_lossy());
    });
    let mut config = postgres::Config::new();
    config.host_path(&directory).port(pooler.port).user("alice").dbname("app");
    config.application_name("psql");
    let mut client = wait_for_some("the Unix socket", || config.connect(postgres::NoTls).ok());
    let shown: String = client.query_one("SHOW application_name", &[]).expect("show").get(0);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    let whole = format!("psql - unix({}@{}):{}", std::process::id(), host.trim(), pooler.port);
    assert_eq!(shown, whole.chars().take(63).collect::<String>());
}

/// Each word about a parameter counts, also when the server works for nobody.
#[test]
fn what_an_idle_server_reports_is_known_of_it() {
    let mut desk =
        Desk::new("[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n");
    let client = desk.client("alice", "app");
    let server = desk.server();
    desk.take(client);
    desk.ask(client);
    desk.answer(server);
    desk.feed(server, &status("TimeZone", "Asia/Tokyo"));
    desk.ask(client);
    let asked = desk.take(server);
    let set = raw::query("SET TimeZone='UTC';");
    assert_eq!(asked, [set, raw::query("SELECT 1")].concat());
}

/// Quiet for a moment: what a client does not wait for must not keep it waiting.
#[test]
fn nothing_is_done_before_the_first_message() {
    let heard = Heard::default();
    let server = attentive(&heard, USUAL);
    let pooler = in_front_of(&server, |_| ());
    let mut client = pooler.raw_with(startup("fake").param("timezone", "CET"));
    client.send(&[raw::close(b'S', "none")].concat());
    client.expect_tags("3");
    assert!(client.is_quiet_for(Duration::from_millis(50)));
    assert_eq!(holders(&pooler), 0);
    assert!(heard_since(&heard, 0).is_empty());
}
