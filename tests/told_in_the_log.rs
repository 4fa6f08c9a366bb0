//! Reasons that only the log tells, in the words of the contract (client.md §2.5, §3.1, §4.2).

mod common;

use common::raw::{self, Startup, message};
use common::{Pooler, Raw, wait_for};

/// The log has so many errors that end in these words.
fn logged(pooler: &Pooler, words: &str, count: usize) {
    let is_it = |line: &&str| line.contains("] ERROR ") && line.ends_with(words);
    wait_for(words, || pooler.log().lines().filter(is_it).count() == count);
}

#[test]
fn which_prepared_statement_it_was() {
    let pooler = Pooler::start(|_| ());
    for name in ["s", "a name with blanks", "it's", "%s %d", &"long".repeat(20)] {
        let mut client = pooler.raw("alice");
        client.send(&[raw::parse(name, "SELECT 1"), raw::sync()].concat());
        client.expect_tags("1Z");
        client.send(&raw::parse(name, "SELECT 2"));
        client.expect_fatal("prepared statement name is already in use");
        logged(&pooler, &format!("] ERROR prepared statement '{name}' was already prepared"), 1);
        for (message, count) in [(raw::bind(name, &[]), 1), (raw::describe(b'S', name), 2)] {
            let mut client = pooler.raw("alice");
            client.send(&message);
            client.expect_fatal("prepared statement did not exist");
            logged(&pooler, &format!("] ERROR prepared statement '{name}' not found"), count);
        }
    }
    // No client can make up a line of the log.
    let mut client = pooler.raw("alice");
    client.send(&raw::bind("x\n2026-01-01 00:00:00.000 UTC [1] LOG a lie", &[]));
    client.expect_fatal("prepared statement did not exist");
    logged(&pooler, "] ERROR prepared statement 'x", 1);
    assert!(!pooler.log().lines().any(|line| line.starts_with("2026-01-01")), "{}", pooler.log());
}

/// The type in decimal and in hex, whoever sends it and whether he has a server or not.
#[test]
fn which_message_nobody_knows() {
    let pooler = Pooler::start(|_| ());
    for tag in [b'p', b'~', b'a', 0x01, 0xff] {
        for (is_linked, count) in [(false, 1), (true, 2)] {
            let mut client = pooler.raw("alice");
            if is_linked {
                client.query("BEGIN");
            }
            client.send(&message(tag, b""));
            client.expect_fatal("unknown pkt");
            logged(&pooler, &format!("unknown pkt from client: {tag}/0x{tag:x}"), count);
        }
    }
    pooler.assert_serves();
}

/// Sends client-first; what server-first says.
fn server_first(client: &mut Raw, first: &str) -> String {
    let length = u32::try_from(first.len()).expect("short").to_be_bytes();
    client.send(&message(b'p', &[b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat()));
    let next = client.message();
    assert_eq!((next.tag, &next.body[..4]), (b'R', &[0, 0, 0, 11][..]), "{next:?}");
    String::from_utf8(next.body[4..].to_vec()).expect("text")
}

/// A nonce that is not the one we have sent: another one, a piece of it, more than it, the client's
/// own part.
#[test]
fn that_it_was_another_nonce() {
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "scram-sha-256");
    });
    let proof = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let others: [fn(&str) -> String; 4] = [
        |_| "r=abcdefghijklmnopqrstuvwxyz012".to_owned(),
        |nonce| nonce[..nonce.len() - 1].to_owned(),
        |nonce| format!("{nonce}x"),
        |_| "r=abc".to_owned(),
    ];
    for (count, other) in others.iter().enumerate() {
        let mut client = pooler.unnamed();
        client.send(&Startup::v3().param("user", "alice").param("database", "app").bytes());
        assert_eq!(client.message().tag, b'R');
        let first = server_first(&mut client, "n,,n=,r=abc");
        let nonce = first.split(',').next().expect("a nonce");
        client.send(&message(b'p', format!("c=biws,{},p={proof}", other(nonce)).as_bytes()));
        client.expect_fatal("SASL authentication failed");
        logged(&pooler, "invalid SCRAM response (nonce does not match)", count + 1);
    }
}
