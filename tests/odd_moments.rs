//! What PostgreSQL itself does at odd moments, and what a pooler may make of it: reliability 11, 12
//! and 13. Where it can be said on a desk: `odd_orders.rs`.
//!
//! From a Parse to its Execute the clock of `statement_timeout` runs, also while PostgreSQL waits for
//! the next message. If it goes off then, the next message is read, thrown away, and answered with the
//! error, whatever it is: a Flush, or the end of a COPY that there is not.

mod common;

use common::raw::{
    Message, bind, close, copy_data, copy_done, describe, execute, flush, parse, query, sync, tags,
};
use common::{Pooler, Postgres, Raw, Startup};
use std::time::Duration;

/// Transaction pooling with one server, and the name of the database.
fn house(settings: &[(&'static str, &'static str)]) -> (Pooler, String) {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    postgres.client(&database).batch_execute("CREATE TABLE target (a int)").expect("a table");
    let pooler = Pooler::start(|ini| {
        ini.set("pool_mode", "transaction").set("default_pool_size", "1");
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

fn run(name: &str) -> Vec<u8> {
    [bind(name, &[]), execute(0), sync()].concat()
}

/// Until `statement_timeout`, which is a tenth of that, has gone off in a backend that waits for us:
/// nothing can be seen of it.
fn let_it_go_off() {
    std::thread::sleep(Duration::from_millis(1000));
}

/// A client whose next words are thrown away, on a server where another one has left its unnamed
/// statement.
fn out_of_time() -> (Pooler, Raw) {
    let (pooler, _) = house(&[]);
    let (mut alice, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
    alice.query("SET statement_timeout = '100ms'");
    other.send(&[parse("", "SELECT 'not yours'"), sync()].concat());
    other.expect_tags("1Z");
    alice.send(&[parse("c", "SELECT 1"), flush()].concat());
    alice.expect_tags("1");
    let_it_go_off();
    (pooler, alice)
}

/// The answer to a long result ends anywhere in what is read at once.
#[test]
fn replies_of_ours_stand_between_those_of_the_server() {
    let (pooler, _) = house(&[]);
    let mut client = pooler.raw("alice");
    client.send(&[parse("a", "SELECT 1"), sync()].concat());
    client.expect_tags("1Z");
    for length in (1..70_000).step_by(13) {
        let value = "x".repeat(length);
        let words = [
            [parse("", "SELECT $1::text"), bind("", &[&value]), execute(0)].concat(),
            [parse("n", "SELECT 1"), close(b'S', "n"), sync()].concat(),
        ];
        client.send(&words.concat());
        assert_eq!(tags(&client.until_ready()), "12DC13Z", "{length}");
    }
}

#[test]
fn a_skipped_eviction_leaves_its_statement_usable() {
    let talk = |client: &mut Raw| {
        client.send(&[parse("a", "SELECT 'a'"), sync()].concat());
        client.expect_tags("1Z");
        let bad = [parse("b", "SELECT nonsense"), bind("b", &[]), execute(0)].concat();
        client.send(&[bad, run("a")].concat());
        client.expect_tags("EZ");
        [(); 3].map(|()| {
            client.send(&run("a"));
            tags(&client.until_ready())
        })
    };
    let (pooler, database) = house(&[("max_prepared_statements", "1")]);
    let expected = talk(&mut connect_directly(&database));
    assert_eq!(talk(&mut pooler.raw("alice")), expected);
}

/// Who is told that all went well has his row.
#[test]
fn no_commit_is_promised_that_nobody_makes() {
    let (pooler, database) = house(&[]);
    let mut client = pooler.raw("alice");
    client.send(&[parse("a", "SELECT 'a'"), sync()].concat());
    client.expect_tags("1Z");
    let insert = [parse("", "INSERT INTO target VALUES (1)"), bind("", &[]), execute(0), flush()];
    client.send(&insert.concat());
    client.expect_tags("12C");
    client.send(&query("DEALLOCATE a"));
    let is_done = tags(&client.until_ready()) == "CZ";
    let count = connect_directly(&database).value("SELECT count(*) FROM target");
    assert_eq!(count, if is_done { "1" } else { "0" });
}

#[test]
fn an_error_that_answers_a_flush_keeps_no_server() {
    let talk = |client: &mut Raw| {
        client.query("BEGIN; SET LOCAL statement_timeout = '100ms'");
        client.send(&[parse("", "SELECT 1"), flush()].concat());
        client.expect_tags("1");
        let_it_go_off();
        client.send(&flush());
        client.expect_tags("E");
        client.send(&run(""));
        let behind = tags(&client.until_ready());
        client.query("ROLLBACK");
        behind
    };
    let (pooler, database) = house(&[]);
    let expected = talk(&mut connect_directly(&database));
    let mut client = pooler.raw("alice");
    assert_eq!(talk(&mut client), expected);
    assert_eq!(pooler.raw("alice").value("SELECT 1"), "1");
}

/// A trigger may fail a COPY before it reads anything: then a Sync ahead of all data counts.
#[test]
fn an_answer_that_was_not_noted_reaches_its_client() {
    let trigger = "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS \
                   $$ BEGIN RAISE 'no'; END $$; CREATE TRIGGER no BEFORE INSERT ON target \
                   FOR EACH STATEMENT EXECUTE FUNCTION no()";
    let (pooler, database) = house(&[]);
    Postgres::shared().client(&database).batch_execute(trigger).expect("a trigger");
    let copy = [parse("", "COPY target FROM STDIN"), bind("", &[]), execute(0), sync()].concat();
    let end = [copy_data(b"1\n"), copy_done(), sync()].concat();
    let behind = [query("SELECT 1"), query("SELECT 'mark' FROM pg_sleep(0.3)")].concat();
    let talk = |client: &mut Raw| {
        client.send(&[&copy[..], &end, &behind].concat());
        let mut all: Vec<Message> = Vec::new();
        while !all.iter().any(|row| row.tag == b'D' && row.columns() == ["mark"]) {
            all.extend(client.until_ready());
        }
        tags(&all)
    };
    let expected = talk(&mut connect_directly(&database));
    assert_eq!(talk(&mut pooler.raw("alice")), expected);
    assert_eq!(pooler.raw("alice").value("SELECT 1"), "1");
}

#[test]
fn behind_a_copy_nobody_runs_what_another_has_left_unnamed() {
    let (pooler, _) = house(&[]);
    let (mut alice, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
    for (client, sql) in [(&mut alice, "SELECT 'mine'"), (&mut other, "SELECT 'not yours'")] {
        client.send(&[parse("", sql), describe(b'S', ""), sync()].concat());
        client.expect_tags("1tTZ");
    }
    let copy = [parse("c", "COPY target FROM STDIN"), bind("c", &[]), execute(0), flush()];
    alice.send(&copy.concat());
    alice.expect_tags("12G");
    alice.send(&[copy_data(b"1\n"), copy_done(), run("")].concat());
    let all = alice.until_ready();
    let row = all.iter().find(|message| message.tag == b'D').expect("a row");
    assert_eq!(row.columns(), ["mine"]);
}

/// PostgreSQL has not looked at the client's last words, and still has what another has left.
#[test]
fn behind_words_that_were_thrown_away_nobody_runs_what_another_has_left_unnamed() {
    for last in [[parse("", "SELECT 'mine'"), sync()].concat(), query("SELECT 'mine'")] {
        let (_pooler, mut alice) = out_of_time();
        alice.send(&last);
        assert_eq!(tags(&alice.until_ready()), "EZ");
        alice.send(&run(""));
        let answer = alice.until_ready();
        assert_eq!(answer[0].field('C'), "26000", "{}", tags(&answer));
    }
}

/// Nor does who does not wait for the answer before he goes on.
#[test]
fn nor_behind_a_query_that_was_thrown_away_in_the_same_write() {
    let (_pooler, mut alice) = out_of_time();
    alice.send(&[query("SELECT 'mine'"), run("")].concat());
    assert_eq!(tags(&alice.until_ready()), "EZ");
    let answer = alice.until_ready();
    assert_eq!(answer[0].field('C'), "26000", "{}", tags(&answer));
}

/// The server has nothing to forget any more, but the client has.
#[test]
fn who_forgets_all_may_give_a_name_again_at_once() {
    let (pooler, _) = house(&[]);
    let (mut one, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
    one.send(&[parse("a", "SELECT 1"), sync()].concat());
    one.expect_tags("1Z");
    other.query("DISCARD ALL");
    one.send(&[query("DISCARD ALL"), parse("a", "SELECT 2"), run("a")].concat());
    one.until_ready();
    assert_eq!(tags(&one.until_ready()), "12DCZ");
}

/// The end of a COPY that there is not is answered with a ReadyForQuery, too, and nothing is skipped
/// behind it: what comes then is not the next client's.
#[test]
fn what_comes_behind_words_that_were_thrown_away_is_nobody_elses() {
    let (pooler, _) = house(&[]);
    let (mut one, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
    one.query("SET statement_timeout = '100ms'");
    one.send(&[parse("", "SELECT 'mine' FROM pg_sleep(0.05)"), flush()].concat());
    one.expect_tags("1");
    let_it_go_off();
    one.send(&[copy_done(), run("")].concat());
    other.send(&query("SELECT 'other'"));
    let seen = other.until_ready();
    assert_eq!(tags(&seen), "TDCZ");
    assert_eq!(seen[1].columns(), ["other"]);
    assert_eq!(tags(&one.until_ready()), "EZ");
    assert_eq!(tags(&one.until_ready()), "2DCZ");
}
