//! Logins of users who are known to a database alone (`auth_query`), among noise on both sides, on a
//! desk: the client's messages and the database's answers cut and changed at every byte, and everything
//! in any order. Nobody gets in without the secret that the database tells, and in the end nothing is
//! left of all that.

mod common;

use common::Random;
use common::desk::Desk;
use common::oracle::{account, answer, questions};
use common::prover::{Prover, ROUNDS, Said, derive_one, md5, verifier};
use common::raw::{self, Startup, message};
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::Config;
use ringbouncer::engine::io::ClientAddress;
use ringbouncer::keys::Conn;
use ringbouncer::session::client::State;
use std::time::Duration;

const METHODS: [&str; 3] = ["plain", "md5", "scram-sha-256"];
/// The first three have the password `right`, each kept in another way. Nobody gets in as one of the
/// others.
const USERS: [&str; 6] = ["plain", "md5", "scram", "null", "empty", "nobody"];
/// When a client has waited for so long it is gone.
const A_WHILE: Duration = Duration::from_secs(60);

/// Seeds to run with; `SIM_SEED` replays one.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=count).collect(),
    }
}

/// What the database says of somebody.
fn word_of(name: &str) -> Vec<u8> {
    let secret = match name {
        "plain" => Some("right".to_owned()),
        "md5" => Some(md5("md5", "right")),
        "scram" => Some(verifier("right")),
        "null" => None,
        "empty" => Some(String::new()),
        _ => return answer(None),
    };
    answer(Some(account(name, secret.as_deref())))
}

/// Whether somebody with the password `right` is let in.
fn gets_in(method: &str, user: &str) -> bool {
    match user {
        "plain" | "scram" => true,
        // A digest is of no use for SCRAM.
        "md5" => method != "scram-sha-256",
        _ => false,
    }
}

/// A desk that knows no user but the one it asks as. Its only server works for all.
fn desk(method: &str) -> Desk {
    let text = format!(
        "[databases]\napp = host=127.0.0.1 user=carol\n[pgbouncer]\npool_mode = transaction\n\
         auth_type = {method}\nauth_user = carol\nscram_iterations = {ROUNDS}\n\
         server_tls_sslmode = disable\nunix_socket_dir =\nmax_client_conn = 10000\n\
         default_pool_size = 1\nclient_login_timeout = 7\nserver_login_retry = 0.1\n"
    );
    let mut desk = Desk::new("[databases]\n[pgbouncer]");
    let config = Config::parse_text("desk.ini", &text).expect("a configuration");
    let users = Userlist::parse(b"\"carol\" \"x\"\n").0;
    let now = desk.now;
    desk.engine.reload(config, Some(users.into()), now);
    desk.perform();
    desk
}

fn is_in(desk: &Desk, conn: Conn) -> bool {
    let Conn::Client(key) = conn else { panic!("no client") };
    desk.engine.house().clients.get(key).is_some_and(|client| {
        matches!(
            client.state,
            State::AwaitingWelcome { .. }
                | State::Idle
                | State::Waiting { .. }
                | State::Active { .. }
                | State::Console { .. }
        )
    })
}

/// Everybody does what there is to do, with the client's messages and the database's answers changed
/// on their way; what came of it, and how many bytes there were of each.
fn log_in(
    desk: &mut Desk,
    prover: &mut Prover,
    mut to_pooler: impl FnMut(usize, &[u8]) -> Vec<u8>,
    mut from_database: impl FnMut(usize, &[u8]) -> Vec<u8>,
) -> (Said, [usize; 2]) {
    let (mut said, mut lengths) = (Said::Nothing, [0; 2]);
    for _ in 0..5 {
        said = prover.go_on_with(desk, |desk, conn, bytes| {
            let changed = to_pooler(lengths[0], bytes);
            lengths[0] += bytes.len();
            desk.feed_while_read(conn, &changed);
        });
        for (server, name, before) in questions(desk) {
            let words = word_of(&name);
            let changed = from_database(lengths[1], &words);
            lengths[1] += words.len();
            desk.feed_while_read(server, &[before, changed].concat());
        }
        while derive_one(desk) {}
    }
    (said, lengths)
}

fn whole(_: usize, bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// Up to this byte and no farther.
fn up_to(cut: usize) -> impl FnMut(usize, &[u8]) -> Vec<u8> {
    move |so_far, bytes| bytes[..cut.saturating_sub(so_far).min(bytes.len())].to_vec()
}

/// With one bit of this byte turned over.
fn turned(place: usize, bit: u8) -> impl FnMut(usize, &[u8]) -> Vec<u8> {
    move |so_far, bytes| {
        let mut bytes = bytes.to_vec();
        let place = place.checked_sub(so_far);
        if let Some(byte) = place.and_then(|place| bytes.get_mut(place)) {
            *byte ^= bit;
        }
        bytes
    }
}

fn knock(desk: &mut Desk, user: &str, password: &str) -> Prover {
    Prover::knock(desk, user, "app", password)
}

/// All have gone, and nothing is left of them.
fn assert_empty(desk: &mut Desk) {
    desk.after(A_WHILE);
    let house = desk.engine.house();
    assert_eq!(house.clients.len(), 0);
    assert!(house.servers.len() <= 1 && house.rings.in_use() <= 2 * house.servers.len());
    assert!(house.pools.iter().all(|(_, pool)| pool.askers.is_empty()));
    assert!(house.values.bytes() < 1 << 20);
    desk.closed.clear();
}

#[test]
fn who_knows_what_the_database_tells_gets_in_and_nobody_else() {
    for method in METHODS {
        let mut desk = desk(method);
        for user in USERS {
            // D1: neither NULL nor nothing is a password, and `md5` is none.
            for password in ["right", "wrong", "", "md5", "SCRAM-SHA-256"] {
                let mut prover = knock(&mut desk, user, password);
                let (said, _) = log_in(&mut desk, &mut prover, whole, whole);
                let expected = password == "right" && gets_in(method, user);
                assert_eq!(said == Said::Welcome, expected, "{method} {user} {password}: {said:?}");
                assert_eq!(is_in(&desk, prover.conn), expected);
                desk.leave(prover.conn);
            }
        }
        assert_empty(&mut desk);
    }
}

/// Reliability 14: whichever byte of whose message is the last that has come, the login goes on with
/// the next, and ends without a trace if there is none.
#[test]
fn logins_and_answers_cut_at_every_byte() {
    for method in METHODS {
        let mut desk = desk(method);
        for user in ["plain", "md5", "scram"] {
            let mut prover = knock(&mut desk, user, "right");
            let (said, [own, asked]) = log_in(&mut desk, &mut prover, whole, whole);
            let may_enter = gets_in(method, user);
            assert_eq!(said == Said::Welcome, may_enter, "{method} {user}: {said:?}");
            desk.leave(prover.conn);
            for cut in 0..own {
                let mut prover = knock(&mut desk, user, "right");
                let (said, _) = log_in(&mut desk, &mut prover, up_to(cut), whole);
                assert_ne!(said, Said::Welcome, "{method} {user}, {cut} of the client's bytes");
                desk.leave(prover.conn);
            }
            for cut in 0..asked {
                cut_answer(&mut desk, user, cut, may_enter);
            }
            assert_empty(&mut desk);
        }
    }
}

/// The rest of the answer comes later, or the client goes, or the server.
fn cut_answer(desk: &mut Desk, user: &str, cut: usize, may_enter: bool) {
    for end in ["the rest", "no client", "no server"] {
        let mut prover = knock(desk, user, "right");
        let (said, _) = log_in(desk, &mut prover, whole, up_to(cut));
        assert_eq!(said, Said::Nothing, "{user}, {cut} bytes of an answer");
        assert!(!is_in(desk, prover.conn));
        let servers = desk.engine.house().servers.keys();
        let &[server] = &servers[..] else { panic!("one server: {servers:?}") };
        match end {
            "the rest" => {
                desk.feed(Conn::Server(server), &word_of(user)[cut..]);
                let (said, _) = log_in(desk, &mut prover, whole, whole);
                assert_eq!(said == Said::Welcome, may_enter, "{user}, {cut}: {said:?}");
                desk.leave(prover.conn);
            }
            "no client" => desk.leave(prover.conn),
            _ => {
                desk.leave(Conn::Server(server));
                let refused = Said::Refused("bouncer config error".into());
                assert_eq!(prover.go_on(desk), refused, "{user}, {cut}");
            }
        }
        desk.closed.clear();
    }
}

/// Whatever one bit of an answer may be: a wrong password does not become right by it. And with the
/// right one nothing worse happens than that its owner is refused.
#[test]
fn answers_and_logins_changed_at_every_byte_let_nobody_in() {
    let mut random = Random::new(3);
    for method in METHODS {
        let mut desk = desk(method);
        for user in USERS {
            let mut prover = knock(&mut desk, user, "wrong");
            let (_, [own, asked]) = log_in(&mut desk, &mut prover, whole, whole);
            desk.leave(prover.conn);
            for place in 0..asked {
                for password in ["wrong", "right"] {
                    let bit = 1 << random.below(8);
                    let mut prover = knock(&mut desk, user, password);
                    let (said, _) = log_in(&mut desk, &mut prover, whole, turned(place, bit));
                    let is_right = password == "right" && gets_in(method, user);
                    let name = format!("{method} {user}, bit {bit} of byte {place}: {said:?}");
                    assert!(
                        is_right || (said != Said::Welcome && !is_in(&desk, prover.conn)),
                        "{name}"
                    );
                    desk.leave(prover.conn);
                }
                desk.closed.clear();
            }
            for place in 0..own {
                let bit = 1 << random.below(8);
                let mut prover = knock(&mut desk, user, "right");
                let (said, _) = log_in(&mut desk, &mut prover, turned(place, bit), whole);
                assert_ne!(said, Said::Welcome, "{method} {user}, bit {bit} of byte {place}");
                desk.leave(prover.conn);
                desk.closed.clear();
            }
        }
        assert_empty(&mut desk);
    }
}

/// Everybody at once, by chance.
struct Town {
    desk: Desk,
    random: Random,
    /// Who does not know any password.
    strangers: Vec<Conn>,
    honest: Vec<Prover>,
    /// Questions that have not been answered.
    open: Vec<(Conn, String, Vec<u8>)>,
    logins: usize,
}

impl Town {
    fn step(&mut self) {
        match self.random.below(18) {
            0 | 1 if self.strangers.len() < 40 => self.stranger_comes(),
            2..=6 => self.stranger_speaks(),
            7 => self.stranger_leaves(),
            8 if self.honest.len() < 20 => {
                let user = USERS[self.random.below(3)];
                self.honest.push(knock(&mut self.desk, user, "right"));
            }
            9 | 10 => self.honest_goes_on(),
            11 => drop(derive_one(&mut self.desk)),
            12..=15 => self.database_speaks(),
            16 if self.random.below(8) == 0 => self.server_goes(),
            _ => {
                let time = Duration::from_millis(self.random.below(600) as u64);
                self.desk.after(time);
            }
        }
        for stranger in &self.strangers {
            assert!(!is_in(&self.desk, *stranger), "{stranger:?} is in");
        }
        let Town { desk, strangers, honest, .. } = self;
        strangers.retain(|conn| !desk.is_closed(*conn));
        if desk.closed.len() > 200 {
            honest.retain(|prover| !desk.is_closed(prover.conn));
            desk.closed.clear();
        }
    }

    fn stranger_comes(&mut self) {
        let from = ClientAddress::Unix { pid: 0, uid: None };
        let secret = self.random.next().to_be_bytes();
        let conn = Conn::Client(self.desk.engine.accept(from, secret, self.desk.now));
        self.strangers.push(conn);
        if self.random.below(8) > 0 {
            let words = self.startup();
            self.desk.feed_while_read(conn, &words);
        }
    }

    fn startup(&mut self) -> Vec<u8> {
        let user = USERS[self.random.below(USERS.len())];
        let database = ["app", "app", "app", "nowhere", "pgbouncer"][self.random.below(5)];
        Startup::v3().param("user", user).param("database", database).bytes()
    }

    fn stranger_speaks(&mut self) {
        if self.strangers.is_empty() {
            return;
        }
        let conn = self.strangers[self.random.below(self.strangers.len())];
        self.desk.take(conn);
        let mut words = match self.random.below(12) {
            0 => message(b'p', b"wrong\0"),
            1 => message(b'p', b"\0"),
            2 => message(b'p', b"md5\0"),
            3 => message(b'p', format!("md5{:032x}\0", self.random.next()).as_bytes()),
            4 | 5 => message(b'p', b"SCRAM-SHA-256\0\0\0\0\x10n,,n=,r=123456789"),
            6 => message(b'p', b"c=biws,r=123456789,p=AAAA"),
            7 => self.startup(),
            // As if they were the database.
            8 => word_of(USERS[self.random.below(USERS.len())]),
            9 => raw::query("SELECT 1"),
            10 => {
                let length = self.random.below(200);
                self.random.bytes(length)
            }
            _ => raw::terminate(),
        };
        self.disturb(&mut words);
        self.desk.feed_while_read(conn, &words);
    }

    /// Now and then bytes are missing, too many, or others.
    fn disturb(&mut self, words: &mut Vec<u8>) {
        let place = self.random.below(words.len().max(1));
        match self.random.below(10) {
            0 => words.truncate(place),
            1 if !words.is_empty() => words[place] ^= 1 << self.random.below(8),
            2 if !words.is_empty() => {
                let noise = self.random.below(20);
                let noise = self.random.bytes(noise);
                words.splice(place..place, noise);
            }
            _ => {}
        }
    }

    fn stranger_leaves(&mut self) {
        if !self.strangers.is_empty() {
            let place = self.random.below(self.strangers.len());
            let conn = self.strangers.swap_remove(place);
            self.desk.leave(conn);
        }
    }

    fn honest_goes_on(&mut self) {
        if self.honest.is_empty() {
            return;
        }
        let place = self.random.below(self.honest.len());
        let said = self.honest[place].go_on_with(&mut self.desk, Desk::feed_while_read);
        if said == Said::Nothing {
            return;
        }
        let conn = self.honest.swap_remove(place).conn;
        if said == Said::Welcome {
            self.logins += 1;
            self.desk.feed(conn, &raw::query("SELECT 1"));
            self.desk.leave(conn);
        }
    }

    /// Somebody is answered: most of them rightly; or not, or with what is said to somebody else.
    fn database_speaks(&mut self) {
        self.open.extend(questions(&mut self.desk));
        let Some((server, name, before)) = self.open.pop() else {
            return;
        };
        let right = word_of(&name);
        let mut words = match self.random.below(12) {
            0 => message(b'E', b"SERROR\0C42P01\0Mno\0\0"),
            1 => answer(None),
            2 => answer(Some(account(&name, None))),
            3 => [right.clone(), right].concat(),
            4 => answer(Some([account(&name, Some("")), account(&name, None)].concat())),
            5 => {
                let length = self.random.below(60);
                self.random.bytes(length)
            }
            _ => right,
        };
        self.disturb(&mut words);
        self.desk.feed_while_read(server, &[before, words].concat());
    }

    fn server_goes(&mut self) {
        let servers = self.desk.engine.house().servers.keys();
        if let Some(server) = servers.first() {
            self.desk.leave(Conn::Server(*server));
        }
    }
}

/// Reliability 1, 3, 6, 8, 14.
#[test]
fn nobody_gets_in_without_the_secret_that_the_database_tells() {
    const STEPS: usize = 2500;
    for seed in seeds(4) {
        for method in METHODS {
            let mut town = Town {
                desk: desk(method),
                random: Random::new(seed),
                strangers: Vec::new(),
                honest: Vec::new(),
                open: Vec::new(),
                logins: 0,
            };
            for _ in 0..STEPS {
                town.step();
            }
            assert!(town.logins > 5, "{method} {seed}: {} honest logins", town.logins);
            // The noise ends: whoever knows the password gets in.
            let Town { mut desk, strangers, honest, .. } = town;
            for conn in strangers.into_iter().chain(honest.into_iter().map(|prover| prover.conn)) {
                desk.leave(conn);
            }
            while derive_one(&mut desk) {}
            questions(&mut desk);
            assert_empty(&mut desk);
            let mut last = knock(&mut desk, "plain", "right");
            let (said, _) = log_in(&mut desk, &mut last, whole, whole);
            assert_eq!(said, Said::Welcome, "{method} {seed}");
            desk.leave(last.conn);
        }
    }
}
