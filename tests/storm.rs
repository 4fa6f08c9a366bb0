//! The engine in a storm: many clients and servers of a model, bytes cut anywhere, small socket
//! buffers, edge-triggered readiness as the kernel's, peers that leave. Each reply must belong to
//! its query, and when the storm is over everybody must be served.

mod common;

use common::Random;
use common::fake::welcome;
use common::raw::{self, Message, Startup, message};
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::Config;
use ringbouncer::engine::Engine;
use ringbouncer::engine::io::{ClientAddress, Effect, Input};
use ringbouncer::keys::{Conn, ServerKey};
use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::time::{Duration, Instant};

/// What fits into a socket's buffers, each way.
const SOCKET_BYTES: usize = 40_000;

/// Both directions of one socket, and what the pump knows of them.
#[derive(Default)]
struct Socket {
    to_us: VecDeque<u8>,
    from_us: VecDeque<u8>,
    has_ended: bool,
    may_read: bool,
    may_write: bool,
}

/// Bytes of a peer on their way to its socket, and those it has not understood yet.
#[derive(Default)]
struct Wire {
    unsent: VecDeque<u8>,
    unread: Vec<u8>,
}

impl Wire {
    fn messages(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut at = 0;
        while let Some(head) = self.unread.get(at..at + 5) {
            let len = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize + 1;
            let Some(whole) = self.unread.get(at..at + len) else {
                break;
            };
            messages.push(Message { tag: whole[0], body: whole[5..].to_vec() });
            at += len;
        }
        self.unread.drain(..at);
        messages
    }
}

#[derive(Default)]
struct Client {
    wire: Wire,
    name: String,
    asked: usize,
    expected: VecDeque<String>,
    welcomed: bool,
    told: Option<String>,
}

#[derive(Default)]
struct Server {
    wire: Wire,
    has_started: bool,
    application: String,
    parsed: String,
    in_transaction: bool,
    skips: bool,
}

struct Storm {
    engine: Engine,
    now: Instant,
    random: Random,
    sockets: BTreeMap<String, (Conn, Socket)>,
    clients: BTreeMap<String, Client>,
    servers: BTreeMap<String, Server>,
    dialled: Vec<ServerKey>,
    named: usize,
    crashes: usize,
    answered: usize,
}

fn name_of(conn: Conn) -> String {
    conn.to_string()
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn row(value: &str) -> Vec<u8> {
    let len = u32::try_from(value.len()).unwrap().to_be_bytes();
    message(b'D', &[&[0, 1][..], &len, value.as_bytes()].concat())
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let mut random = Random::new(seed);
        let mode = ["transaction", "statement", "session"][random.below(3)];
        let size = 1 + random.below(3);
        let text = format!(
            "[databases]\napp = host=127.0.0.1\n[pgbouncer]\nauth_type = trust\nserver_tls_sslmode = disable\npool_mode = {mode}\n\
             default_pool_size = {size}\nquery_wait_timeout = 0\nserver_login_retry = 0.1\n"
        );
        let now = Instant::now();
        let config = Config::parse_text("storm.ini", &text).unwrap();
        let engine = Engine::new(config, Userlist::parse(b"\"alice\" \"\"\n").0, now);
        Storm {
            engine,
            now,
            random,
            sockets: BTreeMap::new(),
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            dialled: Vec::new(),
            named: 0,
            crashes: 0,
            answered: 0,
        }
    }

    fn mode(&self) -> &'static str {
        use ringbouncer::config::values::PoolMode::{Session, Statement, Transaction};
        match self.engine.settings().pool_mode {
            Session => "session",
            Transaction => "transaction",
            Statement => "statement",
        }
    }

    fn pick<T>(random: &mut Random, map: &BTreeMap<String, T>) -> Option<String> {
        let count = map.len();
        (count > 0).then(|| map.keys().nth(random.below(count)).cloned().unwrap())
    }

    // The peers.

    fn new_client(&mut self) {
        let from = ClientAddress::Unix { pid: 0, uid: None };
        self.named += 1;
        let conn = Conn::Client(self.engine.accept(from, [7; 8], self.now));
        let name = format!("app{}", self.named % 5);
        let startup = Startup::v3().param("user", "alice").param("database", "app");
        let startup = startup.param("application_name", &name).bytes();
        let mut client = Client { name, ..Client::default() };
        client.wire.unsent.extend(startup);
        self.sockets.insert(name_of(conn), (conn, Socket { may_write: true, ..Socket::default() }));
        self.clients.insert(name_of(conn), client);
    }

    fn ask(&mut self, key: &str) {
        let session = self.mode() != "statement";
        let Some(client) = self.clients.get_mut(key).filter(|c| c.expected.len() < 12) else {
            return;
        };
        client.asked += 1;
        let kind = self.random.below(7);
        let sizes = [0, 10, 300, 0, 10, 300, 0, 10, 300, 5000, 70_000, 150_000];
        let size = sizes[self.random.below(sizes.len())];
        let id = format!("{key}/{}/{}", client.asked, "q".repeat(self.random.below(2) * size));
        let answer = format!("{id}|{}|{}", client.name, size);
        let sql = format!("{size}:{id}");
        let (bytes, expected): (Vec<u8>, Vec<String>) = match kind {
            0 => {
                let fail = raw::query(&format!("fail {id}"));
                (fail, vec![format!("E{id}"), "Z".into()])
            }
            1 | 2 => {
                let steps = [raw::parse("", &sql), raw::bind("", &[]), raw::describe(b'P', "")];
                let late = [raw::execute(0), raw::sync(), raw::copy_data(&[b'Q'; 300])];
                ([steps.concat(), late.concat()].concat(), vec![format!("D{answer}"), "Z".into()])
            }
            3 => {
                let steps = [raw::parse("", &format!("fail {id}")), raw::bind("", &[])];
                let late = [raw::execute(0), raw::sync()];
                ([steps.concat(), late.concat()].concat(), vec![format!("E{id}"), "Z".into()])
            }
            4 if session => {
                let steps = [raw::query("BEGIN"), raw::query(&sql), raw::query("COMMIT")];
                let expected = ["Z".into(), format!("D{answer}"), "Z".into(), "Z".into()];
                (steps.concat(), expected.to_vec())
            }
            _ => (raw::query(&sql), vec![format!("D{answer}"), "Z".into()]),
        };
        client.wire.unsent.extend(bytes);
        client.expected.extend(expected);
    }

    fn client_hears(&mut self, key: &str) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        for heard in client.wire.messages() {
            let is_fatal = heard.tag == b'E' && heard.field('S') == "FATAL";
            let item = match heard.tag {
                b'Z' if !client.welcomed => {
                    client.welcomed = true;
                    continue;
                }
                _ if is_fatal => {
                    client.told = Some(heard.field('M'));
                    continue;
                }
                b'Z' => "Z".to_string(),
                b'E' => format!("E{}", heard.field('M')),
                b'D' => {
                    let row = heard.columns().swap_remove(0);
                    format!("D{}", row.trim_end_matches('.'))
                }
                b'R' | b'S' | b'K' | b'T' | b'C' | b'1' | b'2' | b'N' | b'A' => continue,
                tag => panic!("{key}: what is {:?}?", char::from(tag)),
            };
            let expected = client.expected.pop_front();
            assert_eq!(Some(item), expected, "{key} got another's reply");
            self.answered += 1;
        }
    }

    fn server_hears(&mut self, key: &str) {
        let Some(server) = self.servers.get_mut(key) else {
            return;
        };
        if !server.has_started {
            let Some(head) = server.wire.unread.get(..4) else {
                return;
            };
            let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
            if server.wire.unread.len() < len {
                return;
            }
            server.wire.unread.drain(..len);
            server.has_started = true;
            server.wire.unsent.extend(welcome());
        }
        for heard in server.wire.messages() {
            let mut answer = Vec::new();
            let body = text(&heard.body);
            match heard.tag {
                b'S' => {
                    server.skips = false;
                    answer.extend(server.ready());
                }
                _ if server.skips => {}
                b'Q' => {
                    answer.extend(server.query(&body));
                    answer.extend(server.ready());
                }
                b'P' => {
                    server.parsed = text(&heard.body[1..]);
                    if let Some(id) = server.parsed.strip_prefix("fail ") {
                        answer.extend(error(id));
                        server.skips = true;
                    } else {
                        answer.extend(message(b'1', b""));
                    }
                }
                b'B' => answer.extend(message(b'2', b"")),
                b'D' => answer.extend(message(b'T', &[0, 0])),
                b'E' => {
                    let parsed = server.parsed.clone();
                    answer.extend(server.rows(&parsed));
                }
                b'd' | b'X' | b'H' => {}
                tag => panic!("the server was sent {:?}", char::from(tag)),
            }
            if answer.ends_with(b"I") && self.random.below(4) == 0 {
                let forged = [row("forged"), message(b'Z', b"I")].concat();
                answer.extend(message(b'A', &[&[0, 0, 0, 9, b'c', 0][..], &forged].concat()));
            }
            server.wire.unsent.extend(answer);
        }
    }

    // The sockets.

    fn move_bytes(&mut self, key: &str, at_most: usize) {
        let Some((conn, socket)) = self.sockets.get_mut(key) else {
            return;
        };
        let wire = match conn {
            Conn::Client(_) => self.clients.get_mut(key).map(|client| &mut client.wire),
            Conn::Server(_) => self.servers.get_mut(key).map(|server| &mut server.wire),
        };
        let Some(wire) = wire.filter(|_| !socket.has_ended) else {
            return;
        };
        let room = SOCKET_BYTES - socket.to_us.len();
        let sent = wire.unsent.len().min(room).min(at_most);
        socket.to_us.extend(wire.unsent.drain(..sent));
        socket.may_read |= sent > 0;
        let was_full = socket.from_us.len() >= SOCKET_BYTES;
        let taken = socket.from_us.len().min(at_most);
        wire.unread.extend(socket.from_us.drain(..taken));
        socket.may_write |= was_full && taken > 0;
        if sent > 0 || was_full && taken > 0 {
            self.engine.make_runnable(*conn);
        }
        match conn {
            Conn::Client(_) => self.client_hears(key),
            Conn::Server(_) => self.server_hears(key),
        }
    }

    fn end(&mut self, key: &str) {
        if let Some((conn, socket)) = self.sockets.get_mut(key) {
            socket.has_ended = true;
            socket.may_read = true;
            self.engine.make_runnable(*conn);
            self.clients.remove(key);
            self.servers.remove(key);
        }
    }

    /// As `net::pump`.
    fn pump(&mut self, turns: usize) {
        for _ in 0..turns {
            let Some(conn) = self.engine.next_runnable() else {
                break;
            };
            let Some((_, mut socket)) = self.sockets.remove(&name_of(conn)) else {
                continue;
            };
            let moved = self.read(conn, &mut socket) | self.write(conn, &mut socket);
            let has_more = socket.may_read && self.engine.wants_read(conn)
                || socket.may_write && self.engine.wants_write(conn);
            if moved && has_more {
                self.engine.make_runnable(conn);
            }
            self.sockets.insert(name_of(conn), (conn, socket));
        }
    }

    fn read(&mut self, conn: Conn, socket: &mut Socket) -> bool {
        if !socket.may_read || !self.engine.wants_read(conn) {
            return false;
        }
        let [first, second] = self.engine.inbox_room(conn).expect("it is there");
        let room = first.len() + second.len();
        let bytes = room.min(socket.to_us.len());
        for (place, byte) in first.iter_mut().chain(second).zip(socket.to_us.drain(..bytes)) {
            *place = byte;
        }
        if bytes > 0 {
            socket.may_read = bytes == room || socket.has_ended;
            self.engine.handle(Input::Received { conn, bytes }, self.now);
            return true;
        }
        socket.may_read = false;
        self.engine.nothing_read(conn);
        if socket.has_ended {
            self.engine.handle(Input::ReadClosed { conn }, self.now);
        }
        socket.has_ended
    }

    fn write(&mut self, conn: Conn, socket: &mut Socket) -> bool {
        if !socket.may_write || !self.engine.wants_write(conn) {
            return false;
        }
        let mut slices = [IoSlice::new(&[]); 16];
        let used = self.engine.outgoing(conn, &mut slices);
        let offered: usize = slices[..used].iter().map(|slice| slice.len()).sum();
        let bytes = offered.min(SOCKET_BYTES - socket.from_us.len());
        let all = slices[..used].iter().flat_map(|slice| slice.iter());
        socket.from_us.extend(all.take(bytes));
        socket.may_write = bytes == offered;
        if bytes > 0 {
            self.engine.handle(Input::Sent { conn, bytes }, self.now);
        }
        bytes > 0
    }

    fn finish_turn(&mut self) {
        self.engine.handle(Input::Tick, self.now);
        while let Some(effect) = self.engine.next_effect() {
            match effect {
                Effect::Connect { server, .. } => self.dialled.push(server),
                Effect::Resolve { .. } | Effect::AskSerial { .. } => {
                    panic!("addresses are literals")
                }
                Effect::Derive { .. } => panic!("nobody has a password"),
                Effect::Consult { .. } => panic!("nobody else is asked"),
                Effect::StartTls { .. } => panic!("nobody asks for TLS"),
                Effect::Attend { .. } | Effect::CancelAttendance { .. } => {
                    panic!("nobody is on the console")
                }
                Effect::Report(_) => {}
                Effect::HangUp { .. } => {}
                Effect::Close { conn } => self.close(conn),
            }
        }
        self.engine.check();
    }

    fn close(&mut self, conn: Conn) {
        let mut slices = [IoSlice::new(&[]); 200];
        let used = self.engine.outgoing(conn, &mut slices);
        let last: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
        self.engine.forget(conn);
        let key = name_of(conn);
        if let Some((_, mut socket)) = self.sockets.remove(&key) {
            socket.from_us.extend(last);
            if let Some(client) = self.clients.get_mut(&key) {
                client.wire.unread.extend(socket.from_us.drain(..));
                self.client_hears(&key);
                let client = self.clients.remove(&key).unwrap();
                // Whoever is put out is told, or lost its server in the middle of a reply.
                let told = client.told.as_deref();
                let excused = self.crashes > 0 && told.is_none_or(|t| t.contains("server conn"));
                assert!(excused, "{key} was closed: {told:?}");
            }
        }
        self.servers.remove(&key);
        self.dialled.retain(|server| name_of(Conn::Server(*server)) != key);
    }

    fn connect(&mut self, fails: bool) {
        let Some(server) = self.dialled.pop() else {
            return;
        };
        if fails {
            self.engine.handle(Input::ConnectFailed { server, error: None }, self.now);
            return;
        }
        let conn = Conn::Server(server);
        self.sockets.insert(name_of(conn), (conn, Socket { may_write: true, ..Socket::default() }));
        self.servers.insert(name_of(conn), Server::default());
        self.engine.handle(Input::Connected { server, local: None }, self.now);
    }

    // The story.

    fn step(&mut self) {
        let amount = [1, 20, 60, 200, 5000, 50_000][self.random.below(6)];
        match self.random.below(40) {
            0 if self.clients.len() < 8 => self.new_client(),
            1..=6 => {
                if let Some(key) = Self::pick(&mut self.random, &self.clients) {
                    self.ask(&key);
                }
            }
            7 => self.connect(false),
            8 if self.random.below(60) == 0 => {
                if let Some(key) = Self::pick(&mut self.random, &self.clients) {
                    self.end(&key);
                }
            }
            9 if self.random.below(120) == 0 => {
                if let Some(key) = Self::pick(&mut self.random, &self.servers) {
                    self.crashes += 1;
                    self.end(&key);
                }
            }
            10 => self.finish_turn(),
            11..=17 => {
                let turns = 1 + self.random.below(10);
                self.pump(turns);
            }
            _ => {
                if let Some(key) = Self::pick(&mut self.random, &self.sockets) {
                    self.move_bytes(&key, amount);
                }
            }
        }
    }

    /// No more faults and no more questions: everybody gets what is owed.
    fn settle(&mut self) {
        for _ in 0..2000 {
            self.connect(false);
            for key in self.sockets.keys().cloned().collect::<Vec<_>>() {
                self.move_bytes(&key, usize::MAX);
            }
            self.pump(1000);
            self.finish_turn();
            self.now += Duration::from_millis(if self.dialled.is_empty() { 10 } else { 0 });
        }
        for (key, client) in &self.clients {
            let state =
                self.engine.house().clients.iter().find(|(k, _)| name_of(Conn::Client(*k)) == *key);
            assert!(
                client.expected.is_empty() || self.mode() == "session",
                "{key} still waits for {} replies: {:?}",
                client.expected.len(),
                state.map(|(_, client)| &client.state),
            );
        }
    }
}

fn error(id: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0C12345\0M{id}\0\0").as_bytes())
}

impl Server {
    fn ready(&self) -> Vec<u8> {
        message(b'Z', if self.in_transaction { b"T" } else { b"I" })
    }

    fn query(&mut self, sql: &str) -> Vec<u8> {
        let complete = message(b'C', b"DONE\0");
        if let Some(id) = sql.strip_prefix("fail ") {
            return error(id);
        }
        match sql {
            "BEGIN" | "COMMIT" => {
                self.in_transaction = sql == "BEGIN";
                complete
            }
            _ if sql.starts_with("SET ") => {
                let value = sql.split_once("application_name='").map(|(_, rest)| rest);
                if let Some((value, _)) = value.and_then(|rest| rest.split_once('\'')) {
                    self.application = value.to_string();
                }
                let status = format!("application_name\0{}\0", self.application);
                [message(b'S', status.as_bytes()), complete].concat()
            }
            "DISCARD ALL" => {
                self.application.clear();
                [message(b'S', b"application_name\0\0"), complete].concat()
            }
            _ => [message(b'T', &[0, 0]), self.rows(sql)].concat(),
        }
    }

    fn rows(&self, sql: &str) -> Vec<u8> {
        let (size, id) = sql.split_once(':').expect("a query of ours");
        let fill = ".".repeat(size.parse().unwrap());
        let value = format!("{id}|{}|{size}{fill}", self.application);
        [row(&value), message(b'N', b"SNOTICE\0C00000\0Mn\0\0"), message(b'C', b"SELECT 1\0")]
            .concat()
    }
}

#[test]
fn no_reply_ever_reaches_another_client_and_nobody_is_forgotten() {
    // SIM_SEED=n replays one run, SIM_SEEDS=n makes more of them.
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("SIM_SEEDS").unwrap_or(20),
    };
    let mut answered = 0;
    for seed in seeds {
        println!("SIM_SEED={seed}");
        let mut storm = Storm::new(seed);
        for _ in 0..6000 {
            storm.step();
        }
        storm.settle();
        answered += storm.answered;
    }
    println!("{answered} replies");
}
