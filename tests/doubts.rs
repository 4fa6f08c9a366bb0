//! A Sync between the data of a COPY (issue 6): PostgreSQL ignores it, unless the COPY has failed
//! before. What the client reads is what PostgreSQL itself would say, whatever it sent meanwhile.

mod common;

use common::raw::{
    Message, bind, copy_data, copy_done, copy_fail, execute, parse, query, sync, tags,
};
use common::{Pooler, Postgres, Raw, Startup};

const COPY: &str = "COPY target FROM STDIN";

/// A pooler, and the name of a database with a table to copy into.
fn house(settings: &[(&'static str, &'static str)]) -> (Pooler, String) {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    postgres.client(&database).batch_execute("CREATE TABLE target (a int)").expect("a table");
    let pooler = Pooler::start(|ini| {
        ini.set("pool_mode", "transaction").set("default_pool_size", "1");
        // The second of two statements drives the first one out.
        ini.set("max_prepared_statements", "1");
        ini.database("app", &format!("host=127.0.0.1 port={} dbname={database}", postgres.port));
        for (name, value) in settings {
            ini.set(name, value);
        }
    });
    (pooler, database)
}

fn connect_directly(database: &str) -> Raw {
    let mut direct = Raw::connect(Postgres::shared().port);
    direct.log_in(&Startup::v3().param("user", "alice").param("database", database));
    direct
}

fn begin(kind: &str) -> Vec<u8> {
    let extended = [parse("", COPY), bind("", &[]), execute(0)].concat();
    match kind {
        "simple" => query(COPY),
        "extended" => extended,
        _ => [extended, sync()].concat(),
    }
}

/// `.` is a row, `!` a bad one, `S` a Sync.
fn data(script: &str) -> Vec<Vec<u8>> {
    let message = |letter| match letter {
        '.' => copy_data(b"1\n"),
        '!' => copy_data(b"nonsense\n"),
        'S' => sync(),
        'c' => copy_done(),
        _ => copy_fail("enough"),
    };
    script.chars().map(message).collect()
}

/// What clients may say behind it.
fn more(kind: &str) -> Vec<u8> {
    match kind {
        // Its Parse is ours to send: the server has forgotten it.
        "forgotten" => [bind("old", &[]), execute(0), sync()].concat(),
        "known" => [bind("new", &[]), execute(0), sync()].concat(),
        "named" => {
            let round = [parse("third", "SELECT 3"), bind("third", &[]), execute(0), sync()];
            [round.concat(), parse("fourth", "SELECT 4"), sync()].concat()
        }
        "again" => [parse("same", "SELECT 'new'"), sync(), bind("same", &[]), sync()].concat(),
        "simple" => query("SELECT 'simple'"),
        _ => Vec::new(),
    }
}

/// Two statements, of which the server has the newer one.
fn prepare(client: &mut Raw) {
    for (name, sql) in [("old", "SELECT 'old'"), ("new", "SELECT 'new'")] {
        client.send(&[parse(name, sql), sync()].concat());
        client.expect_tags("1Z");
    }
}

/// All that comes, up to the end of the last query.
fn until_mark(client: &mut Raw) -> Vec<Message> {
    client.send(&[sync(), query("ROLLBACK; SELECT 'mark'")].concat());
    let mut messages: Vec<Message> = Vec::new();
    let mut is_marked = false;
    while !(is_marked && messages.last().is_some_and(|last| last.tag == b'Z')) {
        messages.extend(client.until_ready());
        is_marked = messages.iter().any(|row| row.tag == b'D' && row.columns() == ["mark"]);
    }
    messages
}

/// How the same words reach the server: at once, or the last of them when the error is known.
fn converse(client: &mut Raw, first: &[u8], last: &[u8], waits_for_error: bool) -> String {
    prepare(client);
    client.send(first);
    let mut before = Vec::new();
    while waits_for_error && before.last().is_none_or(|last: &Message| last.tag != b'E') {
        before.push(client.message());
    }
    client.send(last);
    before.extend(until_mark(client));
    tags(&before)
}

#[test]
fn syncs_between_data_count_as_postgresql_counts_them() {
    for mode in ["transaction", "session"] {
        every_combination(&house(&[("pool_mode", mode)]));
    }
}

fn every_combination((pooler, database): &(Pooler, String)) {
    for kind in ["simple", "extended", "extended, a Sync ahead"] {
        for script in [
            "!S.c", ".S!c", ".S.c", "!SS.c", ".SS!c", ".S!S.c", "!S.S.f", ".S.S!f", ".S.f", "!S",
            ".S!", "!S.", ".S.S!S", "SS!c",
        ] {
            for next in ["forgotten", "known", "named", "again", "simple", "nothing"] {
                for waits_for_error in [false, script.contains('!')] {
                    let first = [begin(kind), data(script).concat()].concat();
                    let last = [sync(), more(next)].concat();
                    let last = if kind == "simple" { more(next) } else { last };
                    let seen = converse(&mut pooler.raw("alice"), &first, &last, waits_for_error);
                    let mut direct = connect_directly(database);
                    let expected = converse(&mut direct, &first, &last, waits_for_error);
                    assert_eq!(seen, expected, "{kind} {script} {next} {waits_for_error}");
                }
            }
        }
    }
}

/// Whoever asks finds out, so the server need not end.
#[test]
fn a_server_that_was_in_doubt_serves_on() {
    let (pooler, _) = house(&[]);
    let mut other = pooler.raw("alice");
    let backend = other.backend_pid();
    for kind in ["simple", "extended", "extended, a Sync ahead"] {
        for script in ["!S.c", ".S!c", "!SS", ".S!", "!"] {
            let first = [begin(kind), data(script).concat()].concat();
            let mut client = pooler.raw("alice");
            converse(&mut client, &first, &[], true);
            assert_eq!(other.backend_pid(), backend, "{kind} {script}");
        }
    }
}

/// Our words must not stand in the middle of the client's.
#[test]
fn a_message_is_not_cut_by_our_question() {
    let (pooler, database) = house(&[]);
    let half = copy_data(&b"2\n".repeat(1000));
    let (head, tail) = half.split_at(100);
    for kind in ["simple", "extended"] {
        let first = [&begin(kind)[..], &data("!S").concat(), head].concat();
        let last = [tail, &data("c").concat(), &more("named")].concat();
        let seen = converse(&mut pooler.raw("alice"), &first, &last, true);
        let expected = converse(&mut connect_directly(&database), &first, &last, true);
        assert_eq!(seen, expected, "{kind}");
    }
}

/// PostgreSQL throws out who speaks of something else in the middle of a COPY, and so do we where
/// we have found out that it was in one.
#[test]
fn whoever_breaks_off_a_copy_is_thrown_out() {
    let (pooler, _) = house(&[]);
    for (kind, word, tag) in
        [("simple", query("SELECT 1"), "51"), ("extended", parse("", "SELECT 1"), "50")]
    {
        let mut client = pooler.raw("alice");
        client.send(&[begin(kind), data(".S.").concat(), word].concat());
        client.lenient = true;
        let messages = client.until_end();
        let errors: Vec<_> = messages.iter().filter(|message| message.tag == b'E').collect();
        let said = errors.iter().map(|error| ['S', 'C', 'M'].map(|letter| error.field(letter)));
        let error = format!("unexpected message type 0x{tag} during COPY from stdin");
        let last = "terminating connection because protocol synchronization was lost";
        assert!(said.eq([["ERROR", "08P01", &error], ["FATAL", "08P01", last]]));
        assert_eq!(pooler.raw("alice").value("SELECT count(*) FROM target"), "0");
    }
}

/// Nobody is left to ask for.
#[test]
fn who_leaves_in_doubt_harms_nobody() {
    for rescue in ["0", "10"] {
        let (pooler, _) = house(&[("server_rescue_timeout", rescue)]);
        for script in ["!S", ".S!", ".S.", ".S.c", "!S.c", "!S.f"] {
            for kind in ["simple", "extended"] {
                let mut client = pooler.raw("alice");
                prepare(&mut client);
                client.send(&[begin(kind), data(script).concat(), more("named")].concat());
                drop(client);
                let mut next = pooler.raw("alice");
                prepare(&mut next);
                next.send(&more("forgotten"));
                next.expect_tags("2DCZ");
            }
        }
    }
}
