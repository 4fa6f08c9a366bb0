//! Prepared statements in transaction pooling: they follow a client from server to server, and the
//! client cannot tell that from a connection of its own.

mod common;

use common::raw::{self, tags};
use common::{Pooler, Postgres, Random, Raw, Startup};

fn pooler(pool_size: u32, more: &[(&str, &str)]) -> Pooler {
    let port = Postgres::shared().port;
    Pooler::start(|ini| {
        ini.set("pool_mode", "transaction");
        ini.set("default_pool_size", &pool_size.to_string());
        for (name, value) in more {
            ini.set(name, value);
        }
        ini.database("app", &format!("host=127.0.0.1 port={port} dbname=app"));
    })
}

fn send(client: &mut Raw, messages: &[Vec<u8>]) {
    client.send(&messages.concat());
}

/// Sends, and gives the tags of everything up to the next ReadyForQuery.
fn exchange(client: &mut Raw, messages: &[Vec<u8>]) -> String {
    send(client, messages);
    tags(&client.until_ready())
}

fn run(name: &str) -> [Vec<u8>; 3] {
    [raw::bind(name, &[]), raw::execute(0), raw::sync()]
}

/// The statements on the server that this client gets, by the server's own account.
fn on_server(client: &mut Raw) -> Vec<String> {
    let sql = "SELECT coalesce(string_agg(statement, '|' ORDER BY statement), '') \
               FROM pg_prepared_statements WHERE name LIKE 'PGBOUNCER\\_%'";
    client.value(sql).split('|').map(str::to_string).filter(|text| !text.is_empty()).collect()
}

#[test]
fn a_statement_known_to_the_server_is_not_parsed_again() {
    let pooler = pooler(1, &[]);
    let (mut alice, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
    let parse = raw::parse("mine", "SELECT 1");
    assert_eq!(exchange(&mut alice, &[parse, raw::sync()]), "1Z");
    let parse = raw::parse("theirs", "SELECT 1");
    assert_eq!(exchange(&mut other, &[parse, raw::sync()]), "1Z");
    assert_eq!(exchange(&mut other, &run("theirs")), "2DCZ");
    assert_eq!(exchange(&mut alice, &run("mine")), "2DCZ");
    assert_eq!(on_server(&mut alice), ["SELECT 1"]);
    let describe = [raw::parse("again", "SELECT 1"), raw::describe(b'S', "again"), raw::sync()];
    assert_eq!(exchange(&mut other, &describe), "1tTZ");
}

#[test]
fn a_statement_is_prepared_on_every_server_that_needs_it() {
    let pooler = pooler(2, &[]);
    let (mut client, mut holder) = (pooler.raw("alice"), pooler.raw("alice"));
    let parse = raw::parse("s", "SELECT pg_backend_pid()::text");
    assert_eq!(exchange(&mut client, &[parse, raw::sync()]), "1Z");
    // The holder takes the server that has the statement: the client is sent to the other.
    let held = holder.value("BEGIN; SELECT pg_backend_pid()::text");
    send(&mut client, &run("s"));
    let replies = client.until_ready();
    assert_eq!(tags(&replies), "2DCZ", "no trace of our own Parse");
    assert_ne!(replies[1].columns(), [held]);
    let describe = [raw::describe(b'S', "s"), raw::sync()];
    assert_eq!(exchange(&mut client, &describe), "tTZ");
}

#[test]
fn a_close_is_answered_without_a_server() {
    let pooler = pooler(1, &[]);
    let (mut client, mut holder) = (pooler.raw("alice"), pooler.raw("alice"));
    assert_eq!(exchange(&mut client, &[raw::parse("s", "SELECT 1"), raw::sync()]), "1Z");
    holder.query("BEGIN");
    client.send(&raw::close(b'S', "s"));
    client.expect_tags("3");
    client.send(&raw::close(b'S', "never there"));
    client.expect_tags("3");
    holder.query("COMMIT");
    let batch = [
        raw::close(b'S', "a"),
        raw::close(b'S', "b"),
        raw::parse("", "SELECT 1"),
        raw::bind("", &[]),
        raw::execute(0),
        raw::close(b'S', "c"),
        raw::sync(),
    ];
    assert_eq!(exchange(&mut client, &batch), "3312DC3Z");
    client.send(&run("s").concat());
    client.expect_fatal("prepared statement did not exist");
}

/// D5 and D6: a reply of our making comes at once if nothing is owed, and never out of its turn.
#[test]
fn made_up_replies_come_at_once_and_in_order() {
    let pooler = pooler(1, &[]);
    let mut client = pooler.raw("alice");
    assert_eq!(exchange(&mut client, &[raw::parse("a", "SELECT 1"), raw::sync()]), "1Z");
    send(&mut client, &[raw::parse("b", "SELECT 1"), raw::flush()]);
    client.expect_tags("1");
    client.send(&raw::sync());
    client.expect_tags("Z");
    let batch = [raw::parse("c", "SELECT 1"), raw::close(b'S', "c"), raw::sync()];
    assert_eq!(exchange(&mut client, &batch), "13Z");
    let batch = [
        raw::parse("", "SELECT 2"),
        raw::parse("d", "SELECT 1"),
        raw::close(b'S', "d"),
        raw::bind("", &[]),
        raw::execute(0),
        raw::sync(),
    ];
    assert_eq!(exchange(&mut client, &batch), "1132DCZ");
}

#[test]
fn errors_skip_to_the_sync_and_leave_names_usable() {
    let pooler = pooler(1, &[]);
    let mut client = pooler.raw("alice");
    let failing = raw::parse("bad", "SELECT nothing_like_this");
    assert_eq!(exchange(&mut client, &[failing.clone(), raw::sync()]), "EZ");
    assert_eq!(exchange(&mut client, &run("bad")), "EZ", "prepared anew, fails anew");
    // D11: the name is not taken by the Parse that failed.
    assert_eq!(exchange(&mut client, &[raw::parse("bad", "SELECT 7"), raw::sync()]), "1Z");
    assert_eq!(exchange(&mut client, &run("bad")), "2DCZ");
    // A Parse that is skipped because of an error before it is made up for when it is needed.
    let batch =
        [raw::parse("worse", "SELECT nothing"), raw::parse("later", "SELECT 8"), raw::sync()];
    assert_eq!(exchange(&mut client, &batch), "EZ");
    assert_eq!(exchange(&mut client, &run("later")), "2DCZ");
    let batch = [
        raw::parse("", "SELECT nothing"),
        raw::bind("", &[]),
        raw::execute(0),
        raw::query("SELECT 1"),
        raw::sync(),
        raw::query("SELECT 2"),
    ];
    assert_eq!(exchange(&mut client, &batch), "EZ");
    assert_eq!(tags(&client.until_ready()), "TDCZ");
}

#[test]
fn all_statements_go_with_deallocate_all() {
    for forget in ["DEALLOCATE ALL", "DISCARD ALL", "SELECT 1; DEALLOCATE ALL"] {
        let pooler = pooler(1, &[]);
        let (mut client, mut other) = (pooler.raw("alice"), pooler.raw("alice"));
        for client in [&mut client, &mut other] {
            assert_eq!(exchange(client, &[raw::parse("s", "SELECT 1"), raw::sync()]), "1Z");
        }
        client.query(forget);
        assert!(on_server(&mut client).is_empty());
        assert_eq!(exchange(&mut other, &run("s")), "2DCZ", "{forget}: not the other's names");
        client.send(&run("s").concat());
        client.expect_fatal("prepared statement did not exist");
    }
}

#[test]
fn the_oldest_statement_makes_room() {
    let pooler = pooler(1, &[("max_prepared_statements", "2")]);
    let mut client = pooler.raw("alice");
    for number in [1, 2, 3] {
        let parse = raw::parse(&format!("s{number}"), &format!("SELECT {number}"));
        assert_eq!(exchange(&mut client, &[parse, raw::sync()]), "1Z");
    }
    assert_eq!(on_server(&mut client), ["SELECT 2", "SELECT 3"]);
    assert_eq!(exchange(&mut client, &run("s2")), "2DCZ");
    assert_eq!(exchange(&mut client, &run("s1")), "2DCZ", "evicted, and prepared anew");
    assert_eq!(on_server(&mut client), ["SELECT 1", "SELECT 2"]);
    // D2: an eviction's Close before a Parse that is answered by us.
    let batch = [raw::parse("n", "SELECT 9"), raw::parse("m", "SELECT 9"), raw::sync()];
    assert_eq!(exchange(&mut client, &batch), "11Z");
    assert_eq!(client.value("SELECT 'still in step'"), "still in step");
}

#[test]
fn statements_and_parameters_may_be_larger_than_a_ring() {
    let pooler = pooler(1, &[]);
    let mut client = pooler.raw("alice");
    let (padding, value) = ("x".repeat(300_000), "y".repeat(2_000_000));
    let sql = format!("SELECT length($1::text) + length('{padding}')");
    assert_eq!(exchange(&mut client, &[raw::parse("large", &sql), raw::sync()]), "1Z");
    client.query("DEALLOCATE ALL; SELECT 1");
    drop(client);
    let mut client = pooler.raw("alice");
    send(&mut client, &[raw::parse("large", &sql), raw::bind("large", &[&value])]);
    send(&mut client, &[raw::execute(0), raw::sync()]);
    let replies = client.until_ready();
    assert_eq!(tags(&replies), "12DCZ");
    assert_eq!(replies[2].columns(), ["2300000"]);
}

#[test]
fn misused_names_and_broken_packets_end_the_conversation() {
    let long_name = "n".repeat(70_000);
    let cases: [(&[Vec<u8>], &str); 13] = [
        (
            &[raw::parse("s", "SELECT 1"), raw::parse("s", "SELECT 2"), raw::sync()],
            "prepared statement name is already in use",
        ),
        (&[raw::describe(b'S', "no")], "prepared statement did not exist"),
        (&[raw::message(b'P', b"")], "failed to parse packet"),
        (&[raw::message(b'P', b"name")], "failed to parse packet"),
        (&[raw::message(b'P', b"name\0SELECT 1\0")], "broken Parse packet"),
        (&[raw::message(b'B', b"portal")], "failed to parse packet"),
        (&[raw::message(b'B', b"portal\0name")], "failed to parse packet"),
        (&[raw::message(b'B', b"")], "failed to parse packet"),
        (&[raw::message(b'D', b"Sname")], "failed to parse packet"),
        (&[raw::message(b'D', b"")], "failed to parse packet"),
        (&[raw::message(b'C', b"Sname")], "failed to parse packet"),
        (&[raw::message(b'D', b"Sname\0x")], "broken Describe packet"),
        (&[raw::message(b'C', b"Sname\0x")], "broken Close packet"),
    ];
    let pooler = pooler(1, &[]);
    for (messages, text) in cases {
        let mut client = pooler.raw("alice");
        send(&mut client, messages);
        let last = client.until_end().pop().expect("a last word");
        assert_eq!((last.tag, last.field('M')), (b'E', text.to_string()));
    }
    let mut client = pooler.raw("alice");
    send(&mut client, &[raw::bind(&long_name, &[])]);
    client.expect_fatal("broken Bind packet");
    pooler.assert_serves();
}

/// A Parse that PostgreSQL skips gives no name, so that may be given again: in the next batch, whether
/// its client has read of the error by then or not.
#[test]
fn a_name_that_a_skipped_parse_gave_may_be_given_again() {
    let pooler = pooler(1, &[]);
    let mut other = pooler.raw("alice");
    let known = |name: &str| raw::parse(name, "SELECT 'known to the server'");
    assert_eq!(exchange(&mut other, &[known("other"), raw::sync()]), "1Z");
    let bad = raw::parse("", "SELECT nothing_of_the_kind");
    let again = |name: &str| {
        let [bind, execute, sync] = run(name);
        [raw::parse(name, "SELECT 'again'"), bind, execute, sync].concat()
    };
    for (name, first) in [("new", raw::parse("new", "SELECT 1")), ("known", known("known"))] {
        let mut client = pooler.raw("alice");
        assert_eq!(exchange(&mut client, &[bad.clone(), first.clone(), raw::sync()]), "EZ");
        assert_eq!(exchange(&mut client, &[again(name)]), "12DCZ", "{name}");
        // At once.
        let name = &format!("{name} at once");
        let first =
            if name.starts_with("new") { raw::parse(name, "SELECT 2") } else { known(name) };
        send(&mut client, &[bad.clone(), first, raw::sync(), again(name)]);
        assert_eq!(tags(&client.until_ready()) + &tags(&client.until_ready()), "EZ12DCZ");
        // Behind the error, ahead of the Sync.
        client.send(&[bad.clone(), raw::flush()].concat());
        client.expect_tags("E");
        let name = &format!("{name}, late");
        assert_eq!(exchange(&mut client, &[raw::parse(name, "SELECT 3"), raw::sync()]), "Z");
        assert_eq!(exchange(&mut client, &[again(name)]), "12DCZ", "{name}");
    }
}

#[test]
fn without_tracking_names_are_the_servers() {
    for settings in [[("max_prepared_statements", "0")], [("pool_mode", "session")]] {
        let pooler = pooler(1, &settings);
        let mut client = pooler.raw("alice");
        assert_eq!(exchange(&mut client, &[raw::parse("own", "SELECT 1"), raw::sync()]), "1Z");
        let name = client.value("SELECT name FROM pg_prepared_statements");
        assert_eq!(name, "own");
        assert_eq!(exchange(&mut client, &run("unknown")), "EZ");
    }
}

/// Reliability 12: whatever is asked in whatever order, the transcript is a direct server's.
#[test]
fn random_pipelines_read_like_a_direct_connection() {
    let pooler = pooler(2, &[("max_prepared_statements", "3")]);
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut direct = Raw::connect(Postgres::shared().port);
        direct.log_in(&Startup::v3().param("user", "alice").param("database", "app"));
        let mut pooled = pooler.raw("alice");
        let mut other = pooler.raw("alice");
        let mut names: Vec<String> = Vec::new();
        for _ in 0..12 {
            let (batch, syncs) = random_batch(&mut random, &mut names);
            // Another client takes a server, so that this one changes servers.
            let busy = random.below(2) == 0;
            if busy {
                other.query("BEGIN");
            }
            send(&mut direct, &batch);
            send(&mut pooled, &batch);
            for _ in 0..syncs {
                let (expected, seen) = (direct.until_ready(), pooled.until_ready());
                assert_eq!(tags(&seen), tags(&expected), "seed {seed}: {batch:?}");
                for (seen, expected) in seen.iter().zip(&expected).filter(|(m, _)| m.tag != b'E') {
                    assert_eq!(seen.body, expected.body, "seed {seed}");
                }
            }
            if busy {
                other.query("COMMIT");
            }
        }
    }
}

/// A pipeline, and how many ReadyForQuery it leads to. `names` are those in use; a name that may
/// have failed is not used again, because there we differ from a server on purpose.
fn random_batch(random: &mut Random, names: &mut Vec<String>) -> (Vec<Vec<u8>>, usize) {
    let (mut batch, mut syncs) = (Vec::new(), 0);
    let mut fails = false;
    for step in 0..1 + random.below(10) {
        let known = || names.get(step % names.len().max(1)).cloned();
        match random.below(9) {
            0 if !fails => {
                let name = format!("s{}", random.below(1 << 40));
                batch.push(raw::parse(&name, &format!("SELECT {}", random.below(6))));
                names.push(name);
            }
            1 | 2 => {
                let Some(name) = known() else { continue };
                batch.extend([raw::bind(&name, &[]), raw::execute(0)]);
            }
            3 => batch.extend(known().map(|name| raw::describe(b'S', &name))),
            4 if !fails => {
                if let Some(name) = names.pop() {
                    batch.push(raw::close(b'S', &name));
                }
            }
            5 => batch.extend([raw::parse("", "SELECT 'x'"), raw::bind("", &[]), raw::execute(1)]),
            6 if random.below(3) == 0 => {
                batch.push(raw::parse("", "SELECT nothing_of_the_kind"));
                fails = true;
            }
            7 if !fails => {
                batch.push(raw::query("SELECT 1; SELECT 2"));
                syncs += 1;
            }
            8 => {
                batch.push(raw::sync());
                (syncs, fails) = (syncs + 1, false);
            }
            _ => {}
        }
    }
    batch.push(raw::sync());
    (batch, syncs + 1)
}
