//! Minor versions of the protocol: who asks for 3.2 gets a key of 32 bytes to cancel with, everybody
//! else what he always got.

mod common;

use common::raw::{self, CANCEL_REQUEST, Startup, query, tags, untagged};
use common::sleep;
use common::{Pooler, Raw, wait_for};

fn alice(version: u32) -> Startup {
    Startup::version(version).param("user", "alice").param("database", "app")
}

fn cancel(pooler: &Pooler, key: &[u8]) {
    let mut canceller = pooler.unnamed();
    canceller.send(&untagged(CANCEL_REQUEST, key));
    canceller.expect_end();
}

/// What is asked for, and with which options; what we say that we speak, if anything.
#[test]
fn the_newest_version_that_both_know_is_spoken() {
    let pooler = Pooler::start(|_| ());
    for (asked, options, told) in [
        (0x3_0000, &[][..], None),
        (0x3_0000, &["_pq_.foo"], Some(0)),
        // There never was a 3.1.
        (0x3_0001, &[], Some(0)),
        (0x3_0002, &[], None),
        (0x3_0002, &["_pq_.foo"], Some(2)),
        (0x3_0003, &[], Some(2)),
        // libpq's, to see whether servers negotiate.
        (0x3_270f, &["_pq_.test_protocol_negotiation"], Some(2)),
        (0x3_ffff, &["_pq_.b", "_pq_.a", "_pq_.b"], Some(2)),
    ] {
        let mut startup = alice(asked);
        for name in options {
            startup = startup.param(name, "on");
        }
        let client = pooler.raw_with(startup);
        let first = &client.welcome[0];
        assert_eq!(tags(&client.welcome).matches('v').count(), usize::from(told.is_some()));
        if let Some(minor) = told {
            assert_eq!(first.tag, b'v', "NegotiateProtocolVersion comes before all else");
            let count = u8::try_from(options.len()).expect("few");
            let mut expected = vec![0, 3, 0, minor, 0, 0, 0, count];
            for name in options {
                expected.extend(name.as_bytes());
                expected.push(0);
            }
            assert_eq!(first.body, expected, "{asked:#x}");
        }
        let key_bytes = if asked < 0x3_0002 { 8 } else { 36 };
        assert_eq!(client.cancel_key().len(), key_bytes, "{asked:#x}");
    }
}

/// As long as one of the peers is a PgBouncer, which drops requests with long keys, everybody gets
/// a short one.
#[test]
fn the_newest_version_may_be_the_old_one() {
    let mut pooler = Pooler::start(|ini| _ = ini.set("max_protocol_version", "3.0"));
    for asked in [0x3_0002, 0x3_270f] {
        let client = pooler.raw_with(alice(asked));
        assert_eq!(
            (client.welcome[0].tag, &client.welcome[0].body[..4]),
            (b'v', &[0, 3, 0, 0][..])
        );
        assert_eq!(client.cancel_key().len(), 8);
    }
    let mut sleeper = Sleeper::new(&pooler, 0x3_0002);
    let mut console =
        pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"));
    pooler.rewrite(|ini| _ = ini.set("max_protocol_version", "3.2"));
    assert_eq!(tags(&console.query("RELOAD")), "CZ");
    let newer = pooler.raw_with(alice(0x3_0002));
    assert_eq!((newer.welcome[0].tag, newer.cancel_key().len()), (b'R', 36));
    cancel(&pooler, &sleeper.key);
    sleeper.expect_cancelled();
    let answer = console.query("SET max_protocol_version = '3.1'");
    assert_eq!(tags(&answer), "EZ", "there never was one");
}

/// Keys are nobody else's, and hardly a bit of them is the same in all.
#[test]
fn long_keys_are_random() {
    let pooler = Pooler::start(|_| ());
    let keys: Vec<Vec<u8>> =
        (0..40).map(|_| pooler.raw_with(alice(0x3_0002)).cancel_key()).collect();
    for at in 0..36 {
        let ones = keys.iter().fold(0, |all, key| all | key[at]);
        let zeroes = keys.iter().fold(0, |all, key| all | !key[at]);
        let expected = if at == 0 { 0x7f } else { 0xff };
        assert_eq!((ones, zeroes), (expected, 0xff), "byte {at}: a positive number first");
    }
}

struct Sleeper {
    client: Raw,
    key: Vec<u8>,
}

impl Sleeper {
    fn new(pooler: &Pooler, version: u32) -> Sleeper {
        let client = pooler.raw_with(alice(version));
        let key = client.cancel_key();
        let mut sleeper = Sleeper { client, key };
        sleeper.client.query("BEGIN");
        sleep::fall_asleep(&mut sleeper.client);
        sleeper
    }

    fn expect_cancelled(&mut self) {
        let answer = self.client.until_ready();
        assert_eq!(tags(&answer[answer.len() - 2..]), "EZ");
        assert_eq!(answer[answer.len() - 2].field('C'), "57014");
        self.client.query("ROLLBACK");
    }
}

/// The short part of a long key finds its client, and is not enough to cancel its query; nor is any
/// other key, shorter or longer.
#[test]
fn only_the_whole_key_cancels() {
    let pooler = Pooler::start(|_| ());
    let mut sleeper = Sleeper::new(&pooler, 0x3_0002);
    let key = sleeper.key.clone();
    let mut changed: Vec<Vec<u8>> = (8..36)
        .map(|at| {
            let mut key = key.clone();
            key[at] ^= 1;
            key
        })
        .collect();
    changed.extend([8, 9, 35].map(|len| key[..len].to_vec()));
    changed.push([&key[..], &[0]].concat());
    changed.push([&key[..], &[0; 224]].concat());
    let count = changed.len();
    changed.iter().for_each(|key| cancel(&pooler, key));
    wait_for("all of them to be refused", || {
        pooler.log().matches("closing because: failed cancel request").count() == count
    });
    for wrong in [&key[..7], &[&key[..], &[0; 225]].concat()] {
        cancel(&pooler, wrong);
    }
    wait_for("the others, too", || {
        pooler.log().matches("because: bad cancel request").count() == 2
    });
    cancel(&pooler, &key);
    sleeper.expect_cancelled();
    assert_eq!(sleeper.client.value("SELECT 1"), "1");
}

/// Old drivers see nothing of this: their eight bytes are all, and more than that is nobody's key.
#[test]
fn a_short_key_is_as_ever() {
    let pooler = Pooler::start(|_| ());
    let mut sleeper = Sleeper::new(&pooler, 0x3_0000);
    cancel(&pooler, &[&sleeper.key[..], &[0; 28]].concat());
    // All eight bytes count.
    for at in 0..8 {
        let mut key = sleeper.key.clone();
        key[at] ^= 1;
        cancel(&pooler, &key);
    }
    wait_for("all of them to be refused", || {
        pooler.log().matches("because: failed cancel request").count() == 9
    });
    cancel(&pooler, &sleeper.key);
    sleeper.expect_cancelled();
}

/// Through an online restart: keys of either kind hold, and no part of the long ones does.
#[test]
fn keys_of_either_kind_survive_a_takeover() {
    let directory = common::outside::temp();
    let mut pooler = Pooler::start(|ini| {
        ini.set("unix_socket_dir", &directory.to_string_lossy());
        ini.set("peer_id", "7").set("pidfile", &directory.join("pid").to_string_lossy());
    });
    let mut sleepers = [0x3_0000, 0x3_0002].map(|version| Sleeper::new(&pooler, version));
    assert!(pooler.take_over().success());
    cancel(&pooler, &sleepers[1].key[..8]);
    wait_for("it to be refused", || pooler.log().contains("because: failed cancel request"));
    for sleeper in &mut sleepers {
        assert_eq!(sleeper.key[1..3], [7, 0]);
        cancel(&pooler, &sleeper.key);
        sleeper.expect_cancelled();
    }
}

/// The admin console speaks it, too.
#[test]
fn a_wait_on_the_console_is_cancelled_with_a_long_key() {
    let pooler = Pooler::start(|_| ());
    let mut busy = pooler.raw("alice");
    busy.query("BEGIN");
    let startup =
        Startup::version(0x3_0002).param("user", "postgres").param("database", "pgbouncer");
    let mut console = pooler.raw_with(startup);
    let key = console.cancel_key();
    assert_eq!(key.len(), 36);
    console.send(&query("PAUSE"));
    wait_for("the pause to begin", || pooler.log().contains("PAUSE command issued"));
    cancel(&pooler, &key[..8]);
    cancel(&pooler, &key);
    let answer = console.until_ready();
    assert_eq!((tags(&answer), answer[0].field('C')), ("EZ".to_owned(), "57014".to_owned()));
    assert_eq!(raw::tags(&busy.query("COMMIT")), "CZ");
}
