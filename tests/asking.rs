//! The engine on a desk: who has to be asked about, and keys that take time to make.

mod common;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::Random;
use common::desk::{Desk, config};
use common::fake::{one_row, welcome};
use common::oracle::{account, answer, name_in};
use common::raw::message;
use ringbouncer::auth::derivation::{Derivation, ScramKeys};
use ringbouncer::auth::digest;
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::engine::io::Input;
use ringbouncer::keys::{Conn, ServerKey};
use ringbouncer::session::client::State;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn authentication(method: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&method.to_be_bytes()[..], rest].concat())
}

/// The bytes behind the header of the one message that a server has been sent.
fn sent(desk: &mut Desk, server: Conn) -> Vec<u8> {
    let bytes = desk.take(server);
    assert_eq!(bytes.first(), Some(&b'p'), "one answer, got {bytes:?}");
    bytes[5..].to_vec()
}

/// A server's side of SCRAM, up to the challenge: what it has to remember.
struct Exchange {
    auth_message: String,
}

/// The server says hello and challenges; nothing is asked of the side thread yet.
fn challenge(desk: &mut Desk, server: Conn, salt: &[u8]) -> Exchange {
    desk.feed(server, &authentication(10, b"SCRAM-SHA-256\0\0"));
    let hello = sent(desk, server);
    let hello = String::from_utf8_lossy(&hello).into_owned();
    let bare = hello[hello.find("n=,r=").expect("a nonce")..].to_owned();
    let nonce = format!("{}server", &bare["n=,r=".len()..]);
    let first = format!("r={nonce},s={},i=7", BASE64_STANDARD.encode(salt));
    desk.feed(server, &authentication(11, first.as_bytes()));
    Exchange { auth_message: format!("{bare},{first},c=biws,r={nonce}") }
}

impl Exchange {
    /// Checks the proof, as PostgreSQL would, and lets us in.
    fn let_in(&self, desk: &mut Desk, server: Conn, keys: &ScramKeys) {
        let mut proof = digest::hmac(&keys.stored_key, self.auth_message.as_bytes());
        proof.iter_mut().zip(keys.client_key).for_each(|(byte, key)| *byte ^= key);
        let words = String::from_utf8(sent(desk, server)).expect("text");
        assert!(words.ends_with(&format!(",p={}", BASE64_STANDARD.encode(proof))), "{words}");
        let signature = digest::hmac(&keys.server_key, self.auth_message.as_bytes());
        let last = format!("v={}", BASE64_STANDARD.encode(signature));
        desk.feed(server, &authentication(12, last.as_bytes()));
        desk.feed(server, &welcome());
    }
}

const ONE: &str = "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction";

fn desk_of(secret: &str) -> Desk {
    let mut desk = Desk::new(ONE);
    let text = format!("\"alice\" \"{secret}\"");
    let users = Userlist::parse(text.as_bytes()).0;
    let now = desk.now;
    desk.engine.reload(config(ONE), Some(users.into()), now);
    desk.perform();
    desk
}

/// The key is made outside of the loop, once for each password, salt and number of rounds.
#[test]
fn keys_are_made_once_and_not_by_the_loop() {
    let mut desk = desk_of("secret");
    let first = desk.client("alice", "app");
    let server = desk.connect();
    let exchange = challenge(&mut desk, server, b"salt");
    let (conn, derivation) = desk.derivations.pop_front().expect("a key is asked for");
    assert_eq!((conn, derivation.iterations, &*derivation.salt), (server, 7, &b"salt"[..]));
    // Whatever the server says meanwhile waits.
    assert!(desk.take(server).is_empty());
    let keys = derivation.run();
    desk.handle(Input::Derived { conn, derivation, keys: Some(keys) });
    exchange.let_in(&mut desk, server, &keys);
    desk.ask(first);
    assert!(!desk.take(server).is_empty());
    let second = desk.client("alice", "app");
    desk.ask(second);
    let next = desk.connect();
    let exchange = challenge(&mut desk, next, b"salt");
    assert!(desk.derivations.is_empty(), "that key is known");
    exchange.let_in(&mut desk, next, &keys);
    assert!(!desk.take(next).is_empty(), "the second client's query");
    // Another salt is another key, and so is everything after a reload.
    let third = desk.client("alice", "app");
    desk.ask(third);
    let other = desk.connect();
    challenge(&mut desk, other, b"pepper");
    assert_eq!(desk.derivations.len(), 1);
    let now = desk.now;
    desk.handle(Input::ReadClosed { conn: other });
    desk.engine.reload(config(ONE), None, now);
    desk.after(Duration::from_secs(20));
    let last = desk.connect();
    challenge(&mut desk, last, b"salt");
    assert_eq!(desk.derivations.len(), 2);
}

#[test]
fn a_key_that_comes_too_late_or_never_does_no_harm() {
    let mut desk = desk_of("secret");
    desk.client("alice", "app");
    let server = desk.connect();
    challenge(&mut desk, server, b"salt");
    let (conn, derivation) = desk.derivations.pop_front().expect("a key is asked for");
    desk.leave(server);
    let keys = Some(derivation.run());
    desk.handle(Input::Derived { conn, derivation, keys });
    desk.after(Duration::from_secs(20));
    // The next one finds too many jobs waiting.
    let server = desk.connect();
    challenge(&mut desk, server, b"pepper");
    let (conn, derivation) = desk.derivations.pop_front().expect("a key is asked for");
    desk.handle(Input::Derived { conn, derivation, keys: None });
    desk.perform();
    assert!(desk.is_closed(server));
    // A key for a server that did not ask for one.
    desk.after(Duration::from_secs(20));
    let server = desk.server();
    challenge_in_vain(&mut desk, server);
}

/// A server that has let us in asks again.
fn challenge_in_vain(desk: &mut Desk, server: Conn) {
    desk.feed(server, &authentication(10, b"SCRAM-SHA-256\0\0"));
    assert!(desk.is_closed(server));
}

/// Pass-through: a key that a client has proven opens servers, until the secret is another one.
#[test]
fn a_clients_key_opens_the_servers_of_its_secret() {
    let keys = Derivation::new(b"secret", b"salt", 7).run();
    let [salt, stored_key, server_key] = [&b"salt"[..], &keys.stored_key, &keys.server_key]
        .map(|bytes| BASE64_STANDARD.encode(bytes));
    let mut desk = desk_of(&format!("SCRAM-SHA-256$7:{salt}${stored_key}:{server_key}"));
    desk.client("alice", "app");
    let (pool, _) = desk.pool("app", "alice").expect("her pool");
    // D8: what another login has proven is not hers.
    desk.engine.client_proved_key((pool, "bob"), [1; 32]);
    desk.engine.client_proved_key((pool, "alice"), keys.client_key);
    let server = desk.connect();
    let exchange = challenge(&mut desk, server, b"other salt");
    assert!(desk.derivations.is_empty(), "there is no password to make a key of");
    exchange.let_in(&mut desk, server, &keys);
    let now = desk.now;
    let other = format!("SCRAM-SHA-256$7:{salt}${server_key}:{server_key}");
    let users = Userlist::parse(format!("\"alice\" \"{other}\"").as_bytes()).0;
    desk.engine.reload(config(ONE), Some(users.into()), now);
    desk.handle(Input::ReadClosed { conn: server });
    desk.after(Duration::from_secs(20));
    let waiting = desk.client("alice", "app");
    desk.ask(waiting);
    let server = desk.connect();
    desk.feed(server, &authentication(10, b"SCRAM-SHA-256\0\0"));
    assert!(desk.is_closed(server), "the old key is of no use any more");
}

const TOWN: &str = "[databases]\napp = host=127.0.0.1\nother = host=127.0.0.1 auth_dbname=app\n\
    [pgbouncer]\npool_mode = transaction\nauth_user = carol\ndefault_pool_size = 2\n\
    client_login_timeout = 7\nquery_wait_timeout = 5\nserver_login_retry = 1\n\
    server_connect_timeout = 3";

/// Whatever happens in whatever order: only those about whom somebody was found are let in, and
/// nobody waits for ever.
struct Town {
    desk: Desk,
    chance: Random,
    /// Clients by their names, of which each has its own.
    clients: BTreeMap<String, Conn>,
    found: BTreeSet<String>,
    let_in: usize,
    /// Parts of answers that are still to be sent.
    unsent: Vec<(Conn, Vec<u8>)>,
}

impl Town {
    fn new(seed: u64) -> Town {
        Town {
            desk: Desk::new(TOWN),
            chance: Random::new(seed),
            clients: BTreeMap::new(),
            found: BTreeSet::new(),
            let_in: 0,
            unsent: Vec::new(),
        }
    }

    fn servers(&self) -> Vec<ServerKey> {
        self.desk.engine.house().servers.keys()
    }

    fn step(&mut self, serial: usize) {
        let now = self.desk.now;
        match self.chance.below(16) {
            0..=3 => {
                let database = ["app", "other"][self.chance.below(2)];
                let name = format!("user{serial}");
                let client = self.desk.client(&name, database);
                self.clients.insert(name, client);
            }
            4 | 5 if !self.desk.dialled.is_empty() => {
                self.desk.server();
            }
            6 if !self.desk.dialled.is_empty() => {
                self.desk.refuse();
            }
            7..=9 => self.serve(),
            10 => self.lose_somebody(),
            11 => self.desk.after(Duration::from_millis(self.chance.below(1500) as u64)),
            12 if self.chance.below(4) == 0 => self.desk.engine.pause(now),
            13 => {
                self.desk.engine.resume(now);
            }
            14 if self.chance.below(4) == 0 => {
                self.desk.engine.reload(config(TOWN), None, now);
            }
            _ => self.send_rest(),
        }
        self.desk.perform();
        self.look();
    }

    /// Each server answers what it has been asked, in part or as a whole, rightly or not.
    fn serve(&mut self) {
        for key in self.servers() {
            let conn = Conn::Server(key);
            if !self.desk.engine.wants_read(conn) {
                continue;
            }
            let bytes = self.desk.take(conn);
            let asker = self.desk.engine.house().servers.get(key).and_then(|s| s.asker());
            if asker.is_none() {
                if bytes.first() == Some(&b'Q') {
                    self.desk.feed(conn, &one_row("1"));
                }
                continue;
            }
            let Some(name) = name_in(&bytes) else {
                continue;
            };
            let cleans = bytes.first() == Some(&b'Q');
            let preamble = if cleans {
                [message(b'C', b"DISCARD ALL\0"), message(b'Z', b"I")].concat()
            } else {
                Vec::new()
            };
            let words = match self.chance.below(6) {
                0 => answer(None),
                1 => message(b'E', b"SERROR\0C42P01\0Mno\0\0"),
                2 => self.chance.bytes(20),
                _ => {
                    self.found.insert(name.clone());
                    answer(Some(account(&name, Some("x"))))
                }
            };
            self.unsent.push((conn, [preamble, words].concat()));
        }
        self.send_rest();
    }

    fn send_rest(&mut self) {
        for (conn, mut bytes) in std::mem::take(&mut self.unsent) {
            if !self.desk.engine.wants_read(conn) {
                continue;
            }
            let now = if self.chance.below(2) == 0 { bytes.len() } else { self.chance.below(9) };
            let rest = bytes.split_off(now.min(bytes.len()));
            self.desk.feed(conn, &bytes);
            if !rest.is_empty() {
                self.unsent.push((conn, rest));
            }
        }
    }

    fn lose_somebody(&mut self) {
        let clients: Vec<Conn> = self.clients.values().copied().collect();
        let servers: Vec<Conn> = self.servers().into_iter().map(Conn::Server).collect();
        let all = [clients, servers].concat();
        if all.is_empty() {
            return;
        }
        let conn = all[self.chance.below(all.len())];
        if self.desk.dialled.iter().all(|(server, _)| Conn::Server(*server) != conn) {
            self.desk.handle(Input::ReadClosed { conn });
        }
    }

    /// Whoever is welcome was found.
    fn look(&mut self) {
        let clients: Vec<(String, Conn)> =
            self.clients.iter().map(|(name, conn)| (name.clone(), *conn)).collect();
        for (name, conn) in clients {
            let bytes = self.desk.take(conn);
            if bytes.windows(6).any(|six| six == b"Z\0\0\0\x05I") {
                assert!(self.found.contains(&name), "{name} is nobody");
                self.let_in += 1;
                self.desk.ask(conn);
            }
            if self.desk.is_closed(conn) {
                self.clients.remove(&name);
            }
        }
    }
}

#[test]
fn only_who_was_found_is_let_in_and_nobody_waits_for_ever() {
    let mut let_in = 0;
    for seed in 0..30 {
        let mut town = Town::new(seed);
        for serial in 0..250 {
            town.step(serial);
        }
        let now = town.desk.now;
        town.desk.engine.resume(now);
        town.desk.after(Duration::from_secs(60));
        town.look();
        let waits = |state: &State| matches!(state, State::AwaitingAccount { .. });
        let house = town.desk.engine.house();
        assert!(!house.clients.iter().any(|(_, client)| waits(&client.state)), "seed {seed}");
        assert!(house.pools.iter().all(|(_, pool)| pool.askers.is_empty()), "seed {seed}");
        let_in += town.let_in;
    }
    assert!(let_in > 300, "only {let_in} were let in: the town is too hard a place");
}
