//! What a client is told when it comes in (client.md §1.6), whatever the server reports and the
//! client wants, against a model: nothing is missing, nothing twice, nothing of another client's.

mod common;

use common::Random;
use common::desk::Desk;
use common::fake::ready;
use common::raw::{Message, Startup, message, parameters, tags};
use ringbouncer::engine::io::ClientAddress;
use ringbouncer::keys::Conn;

/// What every pooler tracks, in the order of the welcome.
const TRACKED: [&str; 5] =
    ["DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings", "application_name"];
const EXTRA: [&str; 4] = ["IntervalStyle", "search_path", "lc_Messages", "Statement_timeout"];
/// A ring, into which a welcome has to fit.
const RING_BYTES: usize = 65_536;

/// Names and values, in order.
type Values = Vec<(String, String)>;

fn one_of<'a>(random: &mut Random, all: &[&'a str]) -> &'a str {
    all[random.below(all.len())]
}

fn value(random: &mut Random, are_long: bool) -> String {
    match random.below(20) {
        0 => String::new(),
        1..=6 if are_long => "v".repeat(random.below(40_000)),
        n => format!("value {}", n % 7),
    }
}

fn in_some_case(random: &mut Random, name: &str) -> String {
    match random.below(3) {
        0 => name.to_uppercase(),
        1 => name.to_lowercase(),
        _ => name.to_owned(),
    }
}

fn set(values: &mut Values, name: &str, value: &str) {
    match values.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value.to_owned(),
        None => values.push((name.to_owned(), value.to_owned())),
    }
}

fn get(values: &Values, name: &str) -> Option<String> {
    values.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

/// A pooler whose server has its own ideas.
struct House {
    desk: Desk,
    random: Random,
    tracked: Vec<&'static str>,
    untracked: Values,
    defaults: Values,
    notice: bool,
    /// Some values are so long that not all of them fit.
    are_long: bool,
}

impl House {
    fn new(seed: u64) -> House {
        let mut random = Random::new(seed);
        let mut extra: Vec<&str> = EXTRA.iter().copied().filter(|_| random.below(2) == 0).collect();
        if random.below(2) == 0 {
            extra.reverse();
        }
        let notice = random.below(2) == 0;
        let lines = format!(
            "[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n\
             track_extra_parameters = {}\nlogin_notify_message = {}\n",
            extra.join(","),
            if notice { "hello" } else { "" }
        );
        let tracked = TRACKED.into_iter().chain(extra).collect();
        let (untracked, defaults) = (Values::new(), Values::new());
        let are_long = random.below(5) == 0;
        House { desk: Desk::new(&lines), random, tracked, untracked, defaults, notice, are_long }
    }

    /// The first server says what it has to say. A tracked value counts as it was told last.
    fn server_comes(&mut self) {
        let server = self.desk.connect();
        self.desk.feed(server, &message(b'R', &[0; 4]));
        for number in 0..self.random.below(12) {
            let (name, value) = match self.random.below(3) {
                0 => (format!("untracked_{number}"), format!("v{number}")),
                _ => {
                    let name = one_of(&mut self.random, &self.tracked);
                    let value = value(&mut self.random, self.are_long);
                    set(&mut self.defaults, name, &value);
                    (in_some_case(&mut self.random, name), value)
                }
            };
            if name.starts_with("untracked") {
                self.untracked.push((name.clone(), value.clone()));
            }
            self.desk.feed(server, &message(b'S', format!("{name}\0{value}\0").as_bytes()));
        }
        self.desk.feed(server, &[message(b'K', &[7; 8]), ready()].concat());
    }

    /// A client with wishes of its own, and those.
    fn client_comes(&mut self) -> (Conn, Values, usize) {
        let version = [0x3_0000, 0x3_0002][self.random.below(2)];
        let mut startup = Startup::version(version).param("user", "alice").param("database", "app");
        let mut wishes = Values::new();
        for _ in 0..self.random.below(5) {
            let name = one_of(&mut self.random, &self.tracked);
            let value = value(&mut self.random, self.are_long);
            let spelt = in_some_case(&mut self.random, name);
            let longer = startup.clone().param(&spelt, &value);
            if longer.bytes().len() <= 65_535 {
                set(&mut wishes, name, &value);
                startup = longer;
            }
        }
        let from = ClientAddress::Unix { pid: 0, uid: None };
        let secret = self.random.next().to_be_bytes();
        let client = Conn::Client(self.desk.engine.accept(from, secret, self.desk.now));
        for piece in startup.bytes().chunks(30_000) {
            self.desk.feed(client, piece);
        }
        (client, wishes, if version == 0x3_0000 { 8 } else { 36 })
    }

    fn check(&mut self, client: Conn, wishes: &Values, key_bytes: usize) -> bool {
        let mut expected = self.untracked.clone();
        for name in &self.tracked {
            if let Some(value) = get(wishes, name).or_else(|| get(&self.defaults, name)) {
                expected.push(((*name).to_owned(), value));
            }
        }
        let notice =
            if self.notice { message(b'N', b"SNOTICE\0C00000\0Mhello\0\0").len() } else { 0 };
        let told: usize = expected.iter().map(|(name, value)| name.len() + value.len() + 7).sum();
        let whole = 9 + told + 5 + key_bytes + notice + 6;
        if whole > RING_BYTES {
            let words = self.desk.last_words(client);
            assert_eq!(words.as_deref(), Some("failed to prepare welcome message"), "{whole}");
            return false;
        }
        let bytes = self.desk.take(client);
        assert_eq!(bytes.len(), whole);
        let welcome = messages(&bytes);
        let statuses = "S".repeat(expected.len());
        let notice = if self.notice { "N" } else { "" };
        assert_eq!(tags(&welcome), format!("R{statuses}K{notice}Z"));
        assert_eq!(parameters(&welcome), expected);
        true
    }
}

fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut all = Vec::new();
    while let [tag, a, b, c, d, rest @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4;
        all.push(Message { tag: *tag, body: rest[..length].to_vec() });
        bytes = &rest[length..];
    }
    all
}

#[test]
fn a_welcome_says_what_the_server_said_and_the_client_wants() {
    let (mut welcomed, mut refused) = (0, 0);
    for seed in 1..=200 {
        let mut house = House::new(seed);
        // Some wait for the server to come, some come later.
        let early: Vec<_> = (0..1 + house.random.below(3)).map(|_| house.client_comes()).collect();
        house.server_comes();
        let check = |house: &mut House, (client, wishes, key_bytes): (Conn, Values, usize)| {
            let was_welcomed = house.check(client, &wishes, key_bytes);
            (welcomed += usize::from(was_welcomed), refused += usize::from(!was_welcomed))
        };
        let mut check = check;
        for one in early {
            check(&mut house, one);
        }
        for _ in 0..5 {
            let one = house.client_comes();
            check(&mut house, one);
        }
    }
    assert!(welcomed > 500 && refused > 5, "{welcomed} {refused}");
}
