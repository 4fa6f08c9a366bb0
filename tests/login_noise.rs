//! Logins among noise, on a desk: every message cut at every byte and changed at every byte, wrong
//! orders, words of others said again. Nobody gets in without the secret, nobody who has it is kept
//! out by the others, and when all have gone nothing is left of them.

mod common;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::Random;
use common::desk::Desk;
use common::fake::{one_row, ready, welcome};
use common::prover::{Prover, Said, derive_one, desk, refuse_one};
use common::raw::{self, Startup, message, untagged};
use ringbouncer::engine::io::ClientAddress;
use ringbouncer::keys::Conn;
use ringbouncer::session::client::State;
use std::time::Duration;

const METHODS: [&str; 3] = ["plain", "md5", "scram-sha-256"];
/// The first three know the password `right`.
const USERS: [&str; 5] = ["plain", "md5", "scram", "none", "nobody"];

/// Seeds to run with; `SIM_SEED` replays one, `SIM_SEEDS` says how many.
fn seeds(count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("SIM_SEEDS").unwrap_or(count)).collect(),
    }
}

/// Whether the engine has let this client in.
fn is_in(desk: &Desk, conn: Conn) -> bool {
    let Conn::Client(key) = conn else { panic!("no client") };
    desk.engine.house().clients.get(key).is_some_and(|client| match client.state {
        State::LoggingIn
        | State::Proving(_)
        | State::AwaitingAccount { .. }
        | State::AwaitingCancel { .. }
        | State::AwaitingPeer(_)
        | State::Cancelling { .. }
        | State::Closing => false,
        State::AwaitingWelcome { .. }
        | State::Idle
        | State::Waiting { .. }
        | State::Active { .. }
        | State::Console { .. } => true,
    })
}

fn all_keys(desk: &mut Desk) {
    while derive_one(desk) {}
}

/// One login of somebody who knows the password, whose messages to the pooler, but not the Startup,
/// are changed on the way; what came of it, and how many bytes there were.
fn changed(
    desk: &mut Desk,
    user: &str,
    mut change: impl FnMut(usize, &[u8]) -> Vec<u8>,
) -> (Prover, Said, usize) {
    let mut prover = Prover::knock(desk, user, "app", "right");
    let (mut said, mut so_far) = (Said::Nothing, 0);
    // The side thread may have to work twice.
    for _ in 0..3 {
        said = prover.go_on_with(desk, |desk, conn, bytes| {
            let changed = change(so_far, bytes);
            so_far += bytes.len();
            desk.feed_while_read(conn, &changed);
        });
        all_keys(desk);
    }
    (prover, said, so_far)
}

/// Reliability 14: whichever byte is the last one that has come, the login goes on with the next,
/// and ends without a trace if there is none.
#[test]
fn logins_cut_at_every_byte() {
    for method in METHODS {
        let mut desk = desk(method);
        let whole = |_: usize, bytes: &[u8]| bytes.to_vec();
        for user in ["plain", "md5", "scram"] {
            let (prover, said, length) = changed(&mut desk, user, whole);
            let gets_in = (method, user) != ("scram-sha-256", "md5");
            assert_eq!(said == Said::Welcome, gets_in, "{method} {user}: {said:?}");
            desk.leave(prover.conn);
            for cut in 0..length {
                // In two pieces.
                let mut prover = Prover::knock(&mut desk, user, "app", "right");
                let (mut said, mut so_far) = (Said::Nothing, 0);
                for _ in 0..3 {
                    said = prover.go_on_with(&mut desk, |desk, conn, bytes| {
                        let at = cut.saturating_sub(so_far).min(bytes.len());
                        so_far += bytes.len();
                        desk.feed(conn, &bytes[..at]);
                        desk.feed(conn, &bytes[at..]);
                    });
                    all_keys(&mut desk);
                }
                assert_eq!(said == Said::Welcome, gets_in, "{method} {user}, {cut}: {said:?}");
                desk.leave(prover.conn);
                // The second piece never comes.
                let (prover, said, _) = changed(&mut desk, user, |so_far, bytes| {
                    bytes[..cut.saturating_sub(so_far).min(bytes.len())].to_vec()
                });
                assert_ne!(said, Said::Welcome, "{method} {user}, {cut}");
                desk.leave(prover.conn);
                desk.closed.clear();
            }
        }
        assert_eq!(desk.engine.house().clients.len(), 1, "the first one");
    }
}

/// A login in which any byte is another one is none.
#[test]
fn logins_changed_at_every_byte_let_nobody_in() {
    let mut random = Random::new(1);
    for method in METHODS {
        let mut desk = desk(method);
        for user in ["plain", "scram"] {
            let whole = |_: usize, bytes: &[u8]| bytes.to_vec();
            let (prover, _, length) = changed(&mut desk, user, whole);
            desk.leave(prover.conn);
            for place in 0..length {
                let bit = 1 << random.below(8);
                let (prover, said, _) = changed(&mut desk, user, |so_far, bytes| {
                    let mut bytes = bytes.to_vec();
                    if let Some(byte) =
                        place.checked_sub(so_far).and_then(|place| bytes.get_mut(place))
                    {
                        *byte ^= bit;
                    }
                    bytes
                });
                assert_ne!(said, Said::Welcome, "{method} {user}, bit {bit} of byte {place}");
                assert!(!is_in(&desk, prover.conn));
                desk.leave(prover.conn);
                desk.closed.clear();
            }
        }
    }
}

/// A Startup that is changed anywhere is one of somebody else, or none.
#[test]
fn startups_changed_at_every_byte_harm_nobody() {
    let whole = Startup::v3().param("user", "plain").param("database", "app").bytes();
    for method in METHODS {
        let mut desk = desk(method);
        for place in 0..whole.len() {
            for bit in 0..8 {
                let conn = accept(&mut desk, &mut Random::new(place as u64));
                let mut bytes = whole.clone();
                bytes[place] ^= 1 << bit;
                desk.feed_while_read(conn, &bytes);
                assert!(!is_in(&desk, conn));
                desk.leave(conn);
                all_keys(&mut desk);
                desk.closed.clear();
            }
        }
    }
}

fn accept(desk: &mut Desk, random: &mut Random) -> Conn {
    let from = ClientAddress::Unix { pid: 0, uid: None };
    let secret = random.next().to_be_bytes();
    Conn::Client(desk.engine.accept(from, secret, desk.now))
}

fn initial(first: &str) -> Vec<u8> {
    let length = u32::try_from(first.len()).expect("short").to_be_bytes();
    message(b'p', &[b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat())
}

/// The last message of somebody who does not know the secret.
fn proof(nonce: &str, guess: u64) -> Vec<u8> {
    let guess = BASE64_STANDARD.encode([guess.to_be_bytes(); 4].concat());
    message(b'p', format!("c=biws,r={nonce},p={guess}").as_bytes())
}

/// Everybody at once, by chance.
struct Town {
    desk: Desk,
    random: Random,
    /// Who does not know the password, and the nonce that each was told last.
    strangers: Vec<(Conn, String)>,
    /// Who does.
    honest: Vec<Prover>,
    /// What honest clients have said at their logins, less passwords in clear: strangers say it, too.
    overheard: Vec<Vec<u8>>,
    is_clear: bool,
    logins: usize,
}

impl Town {
    fn new(method: &str, seed: u64) -> Town {
        Town {
            desk: desk(method),
            random: Random::new(seed),
            strangers: Vec::new(),
            honest: Vec::new(),
            overheard: Vec::new(),
            is_clear: method == "plain",
            logins: 0,
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0 | 1 => self.stranger_comes(),
            2..=8 => self.stranger_speaks(),
            9 => self.stranger_leaves(),
            10 => self.honest_comes(),
            11..=13 => self.honest_goes_on(),
            14 => self.honest_leaves(),
            15 | 16 => drop(derive_one(&mut self.desk)),
            17 if !self.desk.derivations.is_empty() && self.random.below(8) == 0 => {
                refuse_one(&mut self.desk);
            }
            18 => self.server_speaks(),
            _ => {
                let time = Duration::from_millis(self.random.below(3000) as u64);
                self.desk.after(time);
            }
        }
        self.check();
    }

    fn check(&mut self) {
        for (stranger, _) in &self.strangers {
            assert!(!is_in(&self.desk, *stranger), "{stranger:?} is in");
        }
        if self.desk.closed.len() > 500 {
            let Town { desk, strangers, honest, .. } = self;
            strangers.retain(|(conn, _)| !desk.is_closed(*conn));
            honest.retain(|prover| !desk.is_closed(prover.conn));
            desk.closed.clear();
        }
    }

    fn stranger_comes(&mut self) {
        if self.strangers.len() > 50 {
            return self.stranger_leaves();
        }
        let conn = accept(&mut self.desk, &mut self.random);
        self.strangers.push((conn, String::new()));
        // Most of them begin as one should.
        if self.random.below(8) > 0 {
            let startup = self.startup();
            self.desk.feed_while_read(conn, &startup);
        }
    }

    fn startup(&mut self) -> Vec<u8> {
        let user = USERS[self.random.below(USERS.len())];
        let database = ["app", "app", "nowhere", "pgbouncer"][self.random.below(4)];
        let version = [0x3_0000, 0x3_0000, 0x3_0002, 0x3_270f][self.random.below(4)];
        let startup = Startup::version(version).param("user", user).param("database", database);
        match self.random.below(8) {
            0 => startup.param("_pq_.x", "y").param("timezone", "CET").bytes(),
            1 => startup.param("replication", "database").param("options", "-d 5").bytes(),
            2 => startup.param("application_name", &"a".repeat(self.random.below(20_000))).bytes(),
            _ => startup.bytes(),
        }
    }

    fn stranger_speaks(&mut self) {
        if self.strangers.is_empty() {
            return;
        }
        let place = self.random.below(self.strangers.len());
        let conn = self.strangers[place].0;
        let asked = String::from_utf8_lossy(&self.desk.take(conn)).into_owned();
        if let Some((_, nonce)) = asked.split_once("r=") {
            self.strangers[place].1 = nonce.split(',').next().unwrap_or_default().to_owned();
        }
        let nonce = self.strangers[place].1.clone();
        // Half of them say what comes next, as well as they can.
        let mut words = match (self.random.below(2), nonce.is_empty()) {
            (0, _) => self.words(&nonce),
            (_, true) => initial("n,,n=,r=fyko+d2lbbFgONRv9qkxdawL"),
            (_, false) => proof(&nonce, self.random.next()),
        };
        for _ in 0..self.random.below(8).saturating_sub(5) {
            words.extend(self.words(&nonce));
        }
        match self.random.below(8) {
            0 => words.truncate(self.random.below(words.len() + 1)),
            1 if !words.is_empty() => {
                let place = self.random.below(words.len());
                words[place] ^= 1 << self.random.below(8);
            }
            2 => {
                let place = self.random.below(words.len() + 1);
                let noise = self.random.below(20);
                let noise = self.random.bytes(noise);
                words.splice(place..place, noise);
            }
            _ => {}
        }
        self.desk.feed_while_read(conn, &words);
    }

    /// Something that is said at logins, or is not.
    fn words(&mut self, nonce: &str) -> Vec<u8> {
        match self.random.below(18) {
            0 => message(b'p', b"wrong\0"),
            1 => message(b'p', b"\0"),
            2 => message(b'p', b"md5\0"),
            3 => message(b'p', format!("md5{:032x}\0", self.random.next()).as_bytes()),
            4 | 5 => initial("n,,n=,r=fyko+d2lbbFgONRv9qkxdawL"),
            6 => initial("y,,r=x"),
            7 => initial("p=tls-server-end-point,,n=,r=x"),
            8 | 9 => proof(nonce, self.random.next()),
            10 if !self.overheard.is_empty() => {
                self.overheard[self.random.below(self.overheard.len())].clone()
            }
            11 => self.startup(),
            12 => untagged([raw::SSL_REQUEST, raw::GSSENC_REQUEST][self.random.below(2)], b""),
            13 => untagged(raw::CANCEL_REQUEST, &self.random.next().to_be_bytes()),
            14 => raw::query("SELECT 1"),
            15 => message(b'R', &[0; 4]),
            16 => {
                let length = self.random.below(300);
                self.random.bytes(length)
            }
            _ => raw::terminate(),
        }
    }

    fn stranger_leaves(&mut self) {
        if !self.strangers.is_empty() {
            let place = self.random.below(self.strangers.len());
            let (conn, _) = self.strangers.swap_remove(place);
            self.desk.leave(conn);
        }
    }

    fn honest_comes(&mut self) {
        if self.honest.len() < 20 {
            let user = USERS[self.random.below(3)];
            self.honest.push(Prover::knock(&mut self.desk, user, "app", "right"));
        }
    }

    fn honest_goes_on(&mut self) {
        if self.honest.is_empty() {
            return;
        }
        let place = self.random.below(self.honest.len());
        let Town { desk, honest, overheard, is_clear, .. } = self;
        let said = honest[place].go_on_with(desk, |desk, conn, bytes| {
            if !*is_clear && overheard.len() < 100 {
                overheard.push(bytes.to_vec());
            }
            desk.feed_while_read(conn, bytes);
        });
        match said {
            Said::Nothing => {}
            Said::Welcome => {
                self.logins += 1;
                let conn = self.honest.swap_remove(place).conn;
                if self.random.below(2) == 0 {
                    self.desk.feed(conn, &raw::query("SELECT 1"));
                }
                self.desk.leave(conn);
            }
            Said::Refused(words) => {
                let no_fault_of_his = [
                    "too many passwords are being checked, try again later",
                    "client_login_timeout",
                    "SASL authentication failed",
                ];
                assert!(no_fault_of_his.contains(&words.as_str()), "{words}");
                self.honest.swap_remove(place);
            }
        }
    }

    fn honest_leaves(&mut self) {
        if self.honest.len() > 10 {
            let place = self.random.below(self.honest.len());
            let conn = self.honest.swap_remove(place).conn;
            self.desk.leave(conn);
        }
    }

    fn server_speaks(&mut self) {
        if !self.desk.dialled.is_empty() {
            let server = self.desk.connect();
            let words = server_words(&mut self.random);
            self.desk.feed_while_read(server, &words);
            return;
        }
        let servers = self.desk.engine.house().servers.keys();
        if !servers.is_empty() {
            let server = Conn::Server(servers[self.random.below(servers.len())]);
            self.desk.take(server);
            let words = server_words(&mut self.random);
            self.desk.feed_while_read(server, &words);
        }
    }
}

/// What a server may say at its login, in no order.
fn server_words(random: &mut Random) -> Vec<u8> {
    let whole = [
        welcome(),
        message(b'R', &[0; 4]),
        message(b'R', &[0, 0, 0, 3]),
        message(b'R', b"\0\0\0\x05salt"),
        message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
        message(b'R', b"\0\0\0\x0br=nonce,s=c2FsdA==,i=9"),
        message(b'R', b"\0\0\0\x0cv=AAAA"),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'K', &[7; 8]),
        message(b'E', b"SFATAL\0C28000\0Mno\0\0"),
        message(b'N', b"SNOTICE\0C00000\0Mwell\0\0"),
        ready(),
        one_row("1"),
    ];
    let mut words = Vec::new();
    for _ in 0..1 + random.below(4) {
        let mut piece = whole[random.below(whole.len())].clone();
        match random.below(8) {
            0 => piece.truncate(random.below(piece.len())),
            1 => {
                let place = random.below(piece.len());
                piece[place] ^= 1 << random.below(8);
            }
            _ => {}
        }
        words.extend(piece);
    }
    words
}

/// Reliability 1, 8, 14.
#[test]
fn nobody_gets_in_without_the_secret_whatever_is_said() {
    const STEPS: usize = 2500;
    for seed in seeds(3) {
        for method in METHODS {
            let mut town = Town::new(method, seed);
            for _ in 0..STEPS {
                town.step();
            }
            assert!(town.logins > 5, "{method} {seed}: {} honest logins", town.logins);
            assert!(town.desk.engine.house().values.bytes() < 1 << 20);
            // The noise ends. Whoever knows the password gets in.
            let Town { mut desk, strangers, honest, .. } = town;
            let strangers = strangers.into_iter().map(|(conn, _)| conn);
            for conn in strangers.chain(honest.into_iter().map(|prover| prover.conn)) {
                desk.leave(conn);
            }
            all_keys(&mut desk);
            desk.after(Duration::from_secs(600));
            let mut last = Prover::knock(&mut desk, "plain", "app", "right");
            last.go_on(&mut desk);
            all_keys(&mut desk);
            assert_eq!(last.go_on(&mut desk), Said::Welcome, "{method} {seed}");
            desk.leave(last.conn);
            let house = desk.engine.house();
            let left = house.clients.iter().map(|(key, client)| (key, client.user.clone()));
            assert!(house.clients.len() <= 1, "{method} {seed}: {:?}", left.collect::<Vec<_>>());
            assert!(house.rings.in_use() <= 2 + 2 * house.servers.len(), "{method} {seed}");
        }
    }
}

/// A desk in front of a server that has not been seen yet, and a client that waits for it.
fn before_the_first_server() -> (Desk, Conn) {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1 password=secret user=carol\n[pgbouncer]\n\
         server_login_retry = 0.1\nclient_login_timeout = 0",
    );
    let waiting = desk.client("alice", "app");
    (desk, waiting)
}

/// Reliability 2, 14: a server that knows nothing is not taken for one that has let us in, and costs
/// nothing in the end.
#[test]
fn servers_that_talk_nonsense_are_not_used() {
    const VISITS: usize = 3000;
    let mut random = Random::new(7);
    let (mut desk, mut waiting) = before_the_first_server();
    let mut welcomes = 0;
    for _ in 0..VISITS {
        if desk.is_closed(waiting) {
            desk.closed.clear();
            waiting = desk.client("alice", "app");
        }
        desk.after(Duration::from_millis(100));
        if desk.dialled.is_empty() {
            continue;
        }
        let server = desk.connect();
        let mut heard: Vec<u8> = Vec::new();
        for _ in 0..1 + random.below(4) {
            let words = server_words(&mut random);
            heard.extend(&words);
            desk.feed_while_read(server, &words);
            desk.take(server);
            derive_one(&mut desk);
        }
        let is_welcome = desk.take(waiting).last() == Some(&b'I');
        if is_welcome {
            // Somebody must have said that we may come in, and that he is ready.
            let ok = message(b'R', &[0; 4]);
            assert!(heard.windows(ok.len()).any(|some| some == ok));
            assert!(heard.windows(ready().len()).any(|some| some == ready()));
        }
        desk.leave(server);
        all_keys(&mut desk);
        assert!(desk.engine.house().servers.len() <= 1, "the next one");
        assert!(desk.engine.house().rings.in_use() <= 2);
        if is_welcome {
            welcomes += 1;
            (desk, waiting) = before_the_first_server();
        }
    }
    assert!((10..VISITS / 2).contains(&welcomes), "{welcomes}: some of the noise is a login");
}
