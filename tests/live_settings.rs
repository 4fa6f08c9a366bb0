//! Client.md §4: whether we look at prepared statements is looked up for each message, so a reload
//! counts for clients that have statements, and for servers that have them prepared.

mod common;

use common::pooler::Ini;
use common::raw::{self, Message, tags};
use common::{Pooler, Raw, Startup};

/// One server for everybody, so that all statements are on it.
fn pooler(most: &str) -> Pooler {
    Pooler::start(|ini| {
        ini.set("default_pool_size", "1").set("max_prepared_statements", most);
    })
}

fn reload(pooler: &mut Pooler, change: impl FnOnce(&mut Ini)) {
    pooler.rewrite(change);
    let console = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
    assert_eq!(tags(&pooler.raw_with(console).query("RELOAD")), "CZ");
}

/// All messages up to the next ReadyForQuery.
fn exchange(client: &mut Raw, messages: &[Vec<u8>]) -> Vec<Message> {
    client.send(&messages.concat());
    client.until_ready()
}

fn prepare(client: &mut Raw, name: &str, sql: &str) {
    assert_eq!(tags(&exchange(client, &[raw::parse(name, sql), raw::sync()])), "1Z", "{name}");
}

/// What the statement gives, or the SQLSTATE of the error.
fn run(client: &mut Raw, name: &str) -> String {
    let answer = exchange(client, &[raw::bind(name, &[]), raw::execute(0), raw::sync()]);
    match tags(&answer).as_str() {
        "2DCZ" => answer[1].columns().swap_remove(0),
        "EZ" => answer[0].field('C'),
        other => panic!("{name}: {other}"),
    }
}

/// The texts of the statements on the server, by its own account, and whether their names are ours.
fn on_server(client: &mut Raw) -> Vec<(String, bool)> {
    let sql = "SELECT statement, name LIKE 'PGBOUNCER\\_%' FROM pg_prepared_statements ORDER BY 1";
    let answer = client.query(sql);
    let rows = answer.iter().filter(|message| message.tag == b'D').map(Message::columns);
    rows.map(|row| (row[0].clone(), row[1] == "t")).collect()
}

fn ours(numbers: &[u32]) -> Vec<(String, bool)> {
    numbers.iter().map(|number| (format!("SELECT {number}"), true)).collect()
}

/// §4.4: what is too much now goes with the next statement that comes, and not before.
#[test]
fn fewer_statements_are_kept_once_another_comes() {
    let mut pooler = pooler("10");
    let mut client = pooler.raw("alice");
    for number in 1..=5 {
        prepare(&mut client, &format!("s{number}"), &format!("SELECT {number}"));
    }
    reload(&mut pooler, |ini| {
        ini.set("max_prepared_statements", "2");
    });
    assert_eq!(on_server(&mut client), ours(&[1, 2, 3, 4, 5]));
    // Its use makes this one the youngest, and adds nothing.
    assert_eq!(run(&mut client, "s1"), "1");
    assert_eq!(on_server(&mut client), ours(&[1, 2, 3, 4, 5]));
    prepare(&mut client, "s6", "SELECT 6");
    assert_eq!(on_server(&mut client), ours(&[1, 6]));
    // The client's names are as good as ever.
    for number in 1..=6 {
        assert_eq!(run(&mut client, &format!("s{number}")), number.to_string());
    }
    assert_eq!(on_server(&mut client), ours(&[5, 6]));
    // More are kept at once.
    reload(&mut pooler, |ini| {
        ini.set("max_prepared_statements", "3");
    });
    assert_eq!(run(&mut client, "s1"), "1");
    assert_eq!(on_server(&mut client), ours(&[1, 5, 6]));
}

/// What is so while we do not look: names are the server's, and ours are left where they are.
fn nobody_looks(client: &mut Raw) {
    assert_eq!(run(client, "s"), "26000", "the client's name, as it is");
    let describe = [raw::describe(b'S', "s"), raw::sync()];
    assert_eq!(exchange(client, &describe)[0].field('C'), "26000");
    // Nothing is broken that only we would look into.
    let broken = exchange(client, &[raw::message(b'P', b"no end"), raw::sync()]);
    assert_eq!((tags(&broken).as_str(), broken[0].field('C').as_str()), ("EZ", "08P01"));
    // A name that the client has given already is free on the server, and is closed there.
    prepare(client, "s", "SELECT 'its own'");
    assert_eq!(run(client, "s"), "its own");
    let mut expected = vec![("SELECT 'its own'".to_owned(), false)];
    expected.extend(ours(&[1]));
    let mut found = on_server(client);
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(tags(&exchange(client, &[raw::close(b'S', "s"), raw::sync()])), "3Z");
    assert_eq!(on_server(client), ours(&[1]), "nothing was cleaned");
}

fn switched_off_and_on(off: (&str, &str), on: (&str, &str)) {
    let mut pooler = pooler("10");
    let mut client = pooler.raw("alice");
    prepare(&mut client, "s", "SELECT 1");
    assert_eq!(run(&mut client, "s"), "1");
    reload(&mut pooler, |ini| {
        ini.set(off.0, off.1);
    });
    nobody_looks(&mut client);
    reload(&mut pooler, |ini| {
        ini.set(on.0, on.1);
    });
    // The old map is valid again: as it was, whatever was done meanwhile.
    assert_eq!(run(&mut client, "s"), "1");
    assert_eq!(on_server(&mut client), ours(&[1]), "and its statement had never gone");
    client.send(&[raw::parse("s", "SELECT 2"), raw::sync()].concat());
    client.expect_fatal("prepared statement name is already in use");
    pooler.assert_serves();
}

/// §4.4: the setting is 0 for a while.
#[test]
fn without_statements_names_are_the_servers_until_there_are_some_again() {
    switched_off_and_on(("max_prepared_statements", "0"), ("max_prepared_statements", "10"));
}

/// §4.4: the pool is one of sessions for a while, and the client has its server all that time.
#[test]
fn in_a_session_names_are_the_servers_until_it_is_over() {
    switched_off_and_on(("pool_mode", "session"), ("pool_mode", "transaction"));
}

/// It is looked up for each message, not when a server is taken.
#[test]
fn a_reload_counts_within_a_transaction() {
    let mut pooler = pooler("10");
    let mut client = pooler.raw("alice");
    prepare(&mut client, "s", "SELECT 1");
    client.query("BEGIN");
    let mut set = |value: &str| {
        reload(&mut pooler, |ini| {
            ini.set("max_prepared_statements", value);
        });
    };
    set("0");
    client.query("SAVEPOINT here");
    assert_eq!(run(&mut client, "s"), "26000");
    client.query("ROLLBACK TO here");
    set("10");
    assert_eq!(run(&mut client, "s"), "1");
    assert_eq!(tags(&client.query("COMMIT")), "CZ");
    set("0");
    prepare(&mut client, "own", "SELECT 2");
    // Another client comes to the same server, with a map of its own.
    let mut other = pooler.raw("alice");
    assert_eq!(run(&mut other, "own"), "2", "names of servers are everybody's");
}
