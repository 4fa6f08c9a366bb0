//! The engine without sockets: each byte comes when the test says so, so that messages can be cut
//! where it hurts.

mod common;

use common::fake::{one_row, ready, welcome};
use common::raw::{self, Startup, message, query, sync};
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::Config;
use ringbouncer::engine::Engine;
use ringbouncer::engine::io::{ClientAddress, Effect, Handshake, Input};
use ringbouncer::keys::{Conn, ServerKey};
use ringbouncer::pool::mode::Awaited;
use ringbouncer::session::server::{Server, State};
use std::io::IoSlice;
use std::time::{Duration, Instant};

/// An engine, and what it has asked for.
struct World {
    engine: Engine,
    now: Instant,
    /// Servers whose sockets are to be opened.
    dialled: Vec<ServerKey>,
    /// Names to be looked up.
    asked: Vec<String>,
    /// Whose handshakes are to begin, and how.
    shaking: Vec<(Conn, Handshake)>,
    /// Who was closed, and the last bytes for each.
    closed: Vec<(Conn, Vec<u8>)>,
}

fn config(settings: &str, database: &str) -> Config {
    let text = format!(
        "[databases]\n{database}\n[pgbouncer]\nauth_type = trust\nserver_tls_sslmode = disable\n{settings}\n"
    );
    Config::parse_text("engine.ini", &text).unwrap()
}

fn userlist() -> Userlist {
    Userlist::parse(b"\"alice\" \"\"\n").0
}

const APP: &str = "app = host=127.0.0.1";

impl World {
    fn new(settings: &str) -> World {
        World::with(config(settings, APP))
    }

    fn with(config: Config) -> World {
        let now = Instant::now();
        World {
            engine: Engine::new(config, userlist(), now),
            now,
            dialled: Vec::new(),
            asked: Vec::new(),
            shaking: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// One transaction pool with one server.
    fn narrow() -> World {
        World::new("pool_mode = transaction\ndefault_pool_size = 1")
    }

    fn handle(&mut self, input: Input) {
        self.engine.handle(input, self.now);
    }

    /// The end of a turn.
    fn perform(&mut self) {
        self.handle(Input::Tick);
        self.perform_effects();
        // PostgreSQL goes when it is told goodbye.
        while let Some(conn) = self.next_leaving() {
            self.handle(Input::ReadClosed { conn });
            self.perform_effects();
        }
        self.engine.check();
    }

    fn next_leaving(&self) -> Option<Conn> {
        let mut servers = self.engine.house().servers.iter();
        let is_leaving = |server: &Server| matches!(server.state, State::Leaving(_));
        let (key, _) = servers.find(|(_, server)| is_leaving(server))?;
        Some(Conn::Server(key))
    }

    fn perform_effects(&mut self) {
        while let Some(effect) = self.engine.next_effect() {
            match effect {
                Effect::Connect { server, .. } => self.dialled.push(server),
                Effect::Resolve { host } => self.asked.push(host),
                Effect::AskSerial { .. } => panic!("zones are not watched"),
                Effect::StartTls { conn, handshake } => self.shaking.push((conn, handshake)),
                Effect::Derive { conn, derivation } => {
                    let keys = Some(derivation.run());
                    self.engine.handle(Input::Derived { conn, derivation, keys }, self.now);
                }
                Effect::Consult { .. } => panic!("nobody else is asked"),
                Effect::Attend { .. } | Effect::CancelAttendance { .. } => {
                    panic!("nobody is on the console")
                }
                Effect::Report(_) => {}
                Effect::HangUp { .. } => {}
                Effect::Close { conn } => {
                    let last = self.outgoing(conn);
                    self.closed.push((conn, last));
                    self.engine.forget(conn);
                }
            }
        }
    }

    fn after(&mut self, time: Duration) {
        self.now += time;
        self.perform();
    }

    /// Bytes arrive from a peer, as far as it is read.
    fn feed(&mut self, conn: Conn, mut bytes: &[u8]) -> usize {
        let mut fed = 0;
        while !bytes.is_empty() && self.engine.wants_read(conn) {
            let [first, second] = self.engine.inbox_room(conn).expect("it is there");
            let mut taken = 0;
            for (place, byte) in first.iter_mut().chain(second).zip(bytes) {
                *place = *byte;
                taken += 1;
            }
            bytes = &bytes[taken..];
            fed += taken;
            self.handle(Input::Received { conn, bytes: taken });
        }
        fed
    }

    fn outgoing(&self, conn: Conn) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 200];
        let used = self.engine.outgoing(conn, &mut slices);
        slices[..used].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    /// The peer takes so many bytes at most.
    fn take_some(&mut self, conn: Conn, at_most: usize) -> Vec<u8> {
        let mut bytes = self.outgoing(conn);
        bytes.truncate(at_most);
        if !bytes.is_empty() {
            self.handle(Input::Sent { conn, bytes: bytes.len() });
        }
        bytes
    }

    fn take(&mut self, conn: Conn) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let bytes = self.take_some(conn, usize::MAX);
            if bytes.is_empty() {
                return all;
            }
            all.extend(bytes);
        }
    }

    fn accept(&mut self) -> Conn {
        let from = ClientAddress::Unix { pid: 0, uid: None };
        let secret = u64::try_from(self.engine.house().clients.len()).unwrap().to_be_bytes();
        Conn::Client(self.engine.accept(from, secret, self.now))
    }

    /// A client that has sent its Startup.
    fn client(&mut self) -> Conn {
        self.client_with(&startup())
    }

    fn client_with(&mut self, startup: &Startup) -> Conn {
        let client = self.accept();
        self.feed(client, &startup.bytes());
        self.perform();
        client
    }

    /// The server dialled last connects and welcomes us.
    fn server(&mut self) -> Conn {
        let server = self.dialled.pop().expect("a server was dialled");
        self.handle(Input::Connected { server, local: None });
        let server = Conn::Server(server);
        assert!(!self.take(server).is_empty(), "a Startup");
        self.feed(server, &welcome());
        self.perform();
        server
    }

    /// A client that has been welcomed, and the first server of its pool.
    fn client_and_server(&mut self) -> (Conn, Conn) {
        let client = self.client();
        let server = self.server();
        self.take(client);
        (client, server)
    }

    fn is_closed(&self, conn: Conn) -> bool {
        self.closed.iter().any(|(closed, _)| *closed == conn)
    }

    fn last_bytes(&self, conn: Conn) -> &[u8] {
        let found = self.closed.iter().find(|(closed, _)| *closed == conn);
        &found.expect("it was closed").1
    }
}

fn startup() -> Startup {
    Startup::v3().param("user", "alice").param("database", "app")
}

/// A NotificationResponse whose payload looks like messages.
fn notification() -> Vec<u8> {
    message(b'A', &[&[0, 0, 0, 1][..], b"c\0", &one_row("forged"), b"\0"].concat())
}

/// The server has not taken all of the query when its client leaves: a Terminate would become the
/// end of it, and the server run what nobody asked for.
#[test]
fn a_query_cut_short_is_not_made_whole_by_our_terminate() {
    let sql = query("DELETE FROM t WHERE id = 12");
    for taken in 1..sql.len() {
        let mut world = World::narrow();
        let (client, server) = world.client_and_server();
        world.feed(client, &sql);
        assert_eq!(world.take_some(server, taken), sql[..taken]);
        world.handle(Input::ReadClosed { conn: client });
        world.perform();
        assert_eq!(world.last_bytes(server), b"", "after {taken} bytes");
    }
    // The other half never came from the client.
    let mut world = World::narrow();
    let (client, server) = world.client_and_server();
    world.feed(client, &sql[..20]);
    world.take(server);
    world.handle(Input::ReadClosed { conn: client });
    world.perform();
    assert_eq!(world.last_bytes(server), b"");
    // All of it has arrived: the server is told.
    let mut world = World::narrow();
    let (client, server) = world.client_and_server();
    world.feed(client, &sql);
    world.take(server);
    world.handle(Input::ReadClosed { conn: client });
    world.perform();
    assert_eq!(world.last_bytes(server), raw::terminate());
}

/// A reload takes the database away, or moves it, while its host's name is being looked up.
#[test]
fn an_address_that_comes_too_late_is_nobodys() {
    let named = config("", "app = host=db.example");
    for database in ["other = host=127.0.0.1", "app = host=elsewhere.example"] {
        let mut world = World::with(named.clone());
        world.client();
        let host = world.asked.pop().expect("a look-up");
        let server = world.engine.house().servers.keys()[0];
        world.engine.reload(config("", database), Some(userlist().into()), world.now);
        world.handle(Input::Resolved { host, addresses: vec![[127, 0, 0, 1].into()] });
        world.perform();
        assert!(world.is_closed(Conn::Server(server)));
        assert!(world.dialled.is_empty(), "a socket for a server that has gone");
    }
}

/// The longest waiting client cannot have the server; the next one gets it.
#[test]
fn a_client_that_cannot_be_served_does_not_keep_a_server_from_the_others() {
    let mut world = World::narrow();
    let (first, server) = world.client_and_server();
    world.feed(first, &query("SELECT 1"));
    world.take(server);
    // Quoted, this name is longer than any message of ours can be.
    let second = world.client_with(&startup().param("application_name", &"'".repeat(50_000)));
    let third = world.client();
    for client in [second, third] {
        world.take(client);
        world.feed(client, &query("SELECT 3"));
    }
    world.feed(server, &one_row("1"));
    world.perform();
    assert!(world.is_closed(second));
    assert_eq!(world.take(server), query("SELECT 3"));
}

/// A limit that was lowered while they waited closes one after the other when a server is free.
#[test]
fn many_that_are_refused_at_once_do_not_exhaust_the_stack() {
    let settings = "pool_mode = transaction\ndefault_pool_size = 1\nmax_client_conn = 100000";
    let mut world = World::new(settings);
    let (first, server) = world.client_and_server();
    world.feed(first, &query("SELECT 1"));
    world.take(server);
    for _ in 0..20_000 {
        let client = world.accept();
        world.feed(client, &startup().bytes());
        world.feed(client, &query("SELECT 1"));
    }
    let refusing = config(&format!("{settings}\nmax_packet_size = 10"), APP);
    world.engine.reload(refusing, Some(userlist().into()), world.now);
    world.feed(server, &[message(b'C', b"x\0"), ready()].concat());
    world.perform();
    assert!(world.closed.len() >= 20_000);
}

/// The pause counts from the beginning of the attempt, and a pause of nothing is short, not endless.
#[test]
fn after_a_failure_the_next_attempt_is_made_in_time() {
    for (retry, passed, expected) in
        [("15", 10_000, 5_000), ("15", 14_000, 1_000), ("0", 0, 100), ("0.05", 10, 90)]
    {
        let settings = format!("server_login_retry = {retry}\nserver_connect_timeout = 100");
        let mut world = World::new(&settings);
        world.client();
        let server = world.dialled.pop().expect("an attempt");
        world.after(Duration::from_millis(passed));
        world.handle(Input::ConnectFailed { server, error: None });
        world.perform();
        assert!(world.dialled.is_empty());
        let pause = world.engine.next_deadline().map(|at| at - world.now);
        assert_eq!(pause, Some(Duration::from_millis(expected)), "{retry} {passed}");
        world.after(Duration::from_millis(expected));
        assert_eq!(world.dialled.len(), 1, "{retry} {passed}");
    }
}

/// A database's own limit counts for those that wait for the welcome, too, and for those behind
/// others that wait for a server.
#[test]
fn everybody_who_waits_too_long_is_told_in_time() {
    let text = |world: &World, conn| String::from_utf8_lossy(world.last_bytes(conn)).into_owned();
    let mut world = World::with(config("", "app = host=127.0.0.1 query_wait_timeout=1"));
    let client = world.client();
    let deadline = world.engine.next_deadline().expect("a deadline");
    assert_eq!(deadline - world.now, Duration::from_secs(1));
    world.after(Duration::from_secs(1));
    assert!(text(&world, client).contains("query_wait_timeout"));

    let settings = "pool_mode = transaction\ndefault_pool_size = 1\nclient_login_timeout = 5\n\
                    server_connect_timeout = 100";
    let mut world = World::new(settings);
    let (_, server) = world.client_and_server();
    let second = world.client();
    world.handle(Input::ReadClosed { conn: server });
    world.perform();
    world.dialled.clear();
    world.feed(second, &query("SELECT 1"));
    world.perform();
    // The database moves: its welcome has to be learned again.
    let moved = config(settings, "app = host=127.0.0.2");
    world.engine.reload(moved, Some(userlist().into()), world.now);
    world.perform();
    let third = world.client();
    world.after(Duration::from_secs(5));
    assert!(text(&world, third).contains("client_login_timeout (server down)"));
    assert!(!world.is_closed(second));
}

/// Reliability 11: as long as the request may still arrive, its server runs nobody else's query.
#[test]
fn a_server_whose_cancel_got_lost_serves_nobody_else() {
    for is_answered in [true, false] {
        let settings = "pool_mode = transaction\ndefault_pool_size = 1\nserver_connect_timeout = 5";
        let mut world = World::new(settings);
        let (first, server) = world.client_and_server();
        let second = world.client();
        world.take(second);
        world.feed(first, &query("SELECT 1"));
        world.take(server);
        let requester = world.accept();
        world.feed(requester, &raw::untagged(raw::CANCEL_REQUEST, &0_u64.to_be_bytes()));
        world.perform();
        let carrier = world.dialled.pop().expect("a carrier");
        world.handle(Input::Connected { server: carrier, local: None });
        let carrier = Conn::Server(carrier);
        assert_eq!(world.take(carrier).len(), 16, "the request");
        world.feed(second, &query("SELECT 2"));
        world.feed(server, &one_row("1"));
        world.perform();
        assert_eq!(world.take(server), b"", "held back");
        match is_answered {
            true => world.handle(Input::ReadClosed { conn: carrier }),
            false => world.now += Duration::from_secs(5),
        }
        world.perform();
        assert!(world.is_closed(carrier) && world.is_closed(requester));
        assert_eq!(world.is_closed(server), !is_answered);
        assert_eq!(world.take(server) == query("SELECT 2"), is_answered);
    }
}

/// A COPY and another query, all sent before the CopyInResponse is here.
#[test]
fn a_query_behind_a_copy_is_owed_its_reply() {
    let copy = [query("COPY t FROM STDIN"), raw::copy_data(b"1\n"), raw::copy_done()].concat();
    let copied = [message(b'C', b"COPY 1\0"), ready()].concat();
    let asked = |leaves: bool| {
        let mut world = World::narrow();
        let (first, server) = world.client_and_server();
        let second = world.client();
        world.take(second);
        world.feed(first, &[&copy[..], &query("SELECT 'theirs'")].concat());
        world.take(server);
        world.feed(server, &message(b'G', &[0, 0, 0]));
        world.feed(server, &copied);
        world.feed(second, &query("SELECT 'mine'"));
        if leaves {
            world.handle(Input::ReadClosed { conn: first });
        }
        world.feed(server, &one_row("theirs"));
        world.perform();
        assert_eq!(world.take(second), b"");
        assert_eq!(world.is_closed(server), leaves);
        (world, first, server)
    };
    asked(true);
    let (mut world, first, server) = asked(false);
    let replies = [message(b'G', &[0, 0, 0]), copied.clone(), one_row("theirs")].concat();
    assert_eq!(world.take(first), replies);
    assert_eq!(world.take(server), query("SELECT 'mine'"), "it goes on to the next client");
}

/// A client that was told that its COPY has failed need not send the end of it.
#[test]
fn a_failed_copy_is_over_with_the_next_query() {
    let mut world = World::narrow();
    let (first, server) = world.client_and_server();
    let second = world.client();
    world.take(second);
    world.feed(first, &query("COPY t FROM STDIN"));
    world.feed(server, &message(b'G', &[0, 0, 0]));
    world.feed(server, &[message(b'E', b"SERROR\0\0"), ready()].concat());
    world.feed(second, &query("SELECT 2"));
    world.take(server);
    world.feed(first, &query("SELECT 1"));
    assert_eq!(world.take(server), query("SELECT 1"), "late CopyData might have come");
    world.feed(server, &one_row("1"));
    assert_eq!(world.take(server), query("SELECT 2"));
}

/// Reliability 19: whoever is refused leaves nothing behind, however many come.
#[test]
fn the_words_of_refused_clients_are_forgotten() {
    let mut world = World::new("");
    for number in 0..500 {
        let name = format!("{number}{}", "n".repeat(60_000));
        let client = world.accept();
        let stranger = Startup::v3().param("user", "mallory").param("application_name", &name);
        world.feed(client, &stranger.bytes());
        world.perform();
        assert!(world.is_closed(client));
        world.closed.clear();
        let kept = world.engine.house().values.bytes();
        assert!(kept < 8 << 20, "{kept} bytes after {number} clients");
    }
}

/// Reliability 2: a server that never ends its welcome is not listened to for ever.
#[test]
fn an_endless_welcome_is_refused() {
    let mut world = World::new("");
    world.client();
    let server = world.dialled.pop().expect("an attempt");
    world.handle(Input::Connected { server, local: None });
    let server = Conn::Server(server);
    world.take(server);
    world.feed(server, &message(b'R', &[0; 4]));
    let parameter = message(b'S', &[&[b'x'; 1000][..], b"\0y\0"].concat());
    let fed = (0..200).take_while(|_| world.feed(server, &parameter) > 0).count();
    assert!(fed < 100, "{fed} kilobytes of welcome");
    world.perform();
    assert!(world.is_closed(server));
}

// A server behind its last ReadyForQuery is ready, and may still be in the middle of a message.

#[test]
fn a_server_in_the_middle_of_a_notification_stays_with_its_client() {
    let notification = notification();
    let last = [message(b'C', b"LISTEN\0"), ready()].concat();
    for cut in 1..notification.len() {
        let mut world = World::narrow();
        let (first, server) = world.client_and_server();
        let second = world.client();
        world.take(second);
        world.feed(first, &query("LISTEN c"));
        world.take(server);
        world.feed(second, &query("SELECT 1"));
        world.feed(server, &[&last[..], &notification[..cut]].concat());
        let seen = world.take(first);
        world.feed(server, &notification[cut..]);
        world.perform();
        let seen = [seen, world.take(first)].concat();
        assert_eq!(seen, [&last[..], &notification].concat(), "cut at {cut}");
        assert_eq!(world.take(server), query("SELECT 1"), "cut at {cut}");
        world.feed(server, &one_row("1"));
        assert_eq!(world.take(second), one_row("1"), "cut at {cut}");
    }
}

/// A client that leaves while it is being notified takes its server with it, or leaves it whole.
#[test]
fn the_rest_of_a_notification_is_nobodys_message() {
    let notification = notification();
    for (pool_mode, cut) in [("session", 5), ("session", 30), ("transaction", 30)] {
        let mut world = World::new(&format!("pool_mode = {pool_mode}\ndefault_pool_size = 1"));
        let (first, server) = world.client_and_server();
        world.feed(first, &query("LISTEN c"));
        world.take(server);
        let answer = [message(b'C', b"LISTEN\0"), ready()].concat();
        world.feed(server, &[&answer[..], &notification[..cut]].concat());
        world.handle(Input::ReadClosed { conn: first });
        world.perform();
        world.feed(server, &notification[cut..]);
        world.perform();
        let second = world.client();
        world.feed(second, &query("SELECT 1"));
        let served = String::from_utf8_lossy(&world.take(second)).into_owned();
        assert!(!served.contains("forged"), "{pool_mode}, cut at {cut}");
    }
}

#[test]
fn a_server_that_awaits_the_rest_of_a_message_stays_with_its_client() {
    for tag in [b'd', b'H'] {
        let mut world = World::narrow();
        let (first, server) = world.client_and_server();
        let second = world.client();
        world.take(second);
        let late = message(tag, b"0123456789");
        let (head, tail) = late.split_at(7);
        world.feed(first, &[&sync(), head].concat());
        world.feed(second, &query("SELECT 'secret'"));
        assert_eq!(world.take(server), [&sync(), head].concat());
        world.feed(server, &ready());
        world.perform();
        assert_eq!(world.take(server), b"", "the second client's query is no CopyData");
        world.feed(first, tail);
        assert_eq!(world.take(server), [tail, &query("SELECT 'secret'")].concat());
    }
}

/// A pause closes the server that was to serve, in whatever state, and that is not its host's fault:
/// the next one is opened as soon as the pause is over.
#[test]
fn a_pause_is_no_failure_of_the_server_that_it_ends() {
    for steps in 0..3 {
        let mut world = World::narrow();
        let client = world.client();
        let server = world.dialled.pop().expect("a server was dialled");
        if steps > 0 {
            world.handle(Input::Connected { server, local: None });
        }
        if steps > 1 {
            world.take(Conn::Server(server));
            world.feed(Conn::Server(server), &welcome()[..12]);
        }
        world.engine.pause(world.now);
        world.perform();
        assert!(world.is_closed(Conn::Server(server)));
        assert!(!world.is_closed(client), "it waits");
        world.after(Duration::from_secs(30));
        assert!(world.dialled.is_empty(), "nothing is opened in a pause");
        assert!(world.engine.resume(world.now));
        world.perform();
        let server = world.server();
        world.take(client);
        world.feed(client, &query("SELECT 1"));
        assert_eq!(world.take(server), query("SELECT 1"));
        assert!(!world.engine.resume(world.now), "there is no pause");
    }
}

/// A server that comes free in a pause goes, even if somebody waits for it; what it had to do is done.
#[test]
fn a_server_that_comes_free_in_a_pause_is_closed() {
    let mut world = World::narrow();
    let (first, server) = world.client_and_server();
    let second = world.client();
    world.take(second);
    world.feed(first, &query("SELECT 1"));
    world.take(server);
    world.engine.pause(world.now);
    world.feed(second, &query("SELECT 2"));
    world.feed(server, &[one_row("1"), ready()].concat());
    let answer = world.take(first);
    world.perform();
    assert_eq!(answer, [one_row("1"), ready()].concat());
    assert!(world.is_closed(server));
    assert_eq!(world.last_bytes(server), raw::terminate());
    assert!(!world.is_closed(second));
    world.engine.resume(world.now);
    world.perform();
    let server = world.server();
    assert_eq!(world.take(server), query("SELECT 2"));
}

#[test]
fn waiting_for_servers_ends_when_the_last_reply_has_been_taken() {
    let mut world = World::narrow();
    let (first, server) = world.client_and_server();
    let (second, unwelcomed) = (world.client(), world.accept());
    world.take(second);
    let reply = [one_row("1"), ready()].concat();
    world.feed(first, &query("SELECT 1"));
    world.take(server);
    world.feed(second, &query("SELECT 2"));
    world.engine.shut_down(Awaited::Servers, world.now);
    world.perform();
    assert!(world.is_closed(second), "it cannot be served any more");
    assert!(String::from_utf8_lossy(world.last_bytes(second)).contains("server shutting down"));
    world.feed(unwelcomed, &startup().bytes());
    world.perform();
    let last = String::from_utf8_lossy(world.last_bytes(unwelcomed)).into_owned();
    assert!(last.contains("pooler is shutting down"));
    assert!(!world.engine.is_over(), "a server works");
    world.feed(server, &reply);
    let taken = world.take_some(first, 10);
    world.perform();
    assert!(!world.engine.is_over(), "a reply is under way");
    assert_eq!([taken, world.take(first)].concat(), reply);
    world.perform();
    assert!(world.is_closed(server) && !world.is_closed(first));
    assert!(world.engine.is_over(), "who has no work is not waited for");
}

#[test]
fn waiting_for_clients_ends_with_the_last_of_them() {
    let mut world = World::narrow();
    let (first, server) = world.client_and_server();
    let hesitant = world.accept();
    world.engine.shut_down(Awaited::Clients, world.now);
    world.feed(first, &query("SELECT 1"));
    assert_eq!(world.take(server), query("SELECT 1"), "they work on");
    world.handle(Input::ReadClosed { conn: first });
    assert!(!world.engine.is_over(), "its socket is still open");
    world.perform();
    assert!(!world.engine.is_over(), "somebody is about to log in");
    world.handle(Input::ReadClosed { conn: hesitant });
    world.perform();
    assert!(world.engine.is_over());
}
