//! Peers that mean harm, on either side: the pooler lives on, in bounded memory, and serves others.

mod common;

use common::fake::{self, FakeServer, Visit};
use common::raw::{self, message, tags};
use common::{Pooler, Random, Raw, Startup, wait_for};
use std::io::Write;
use std::time::Duration;

const BOUND_BYTES: u64 = 32 << 20;

fn alice() -> Startup {
    Startup::v3().param("user", "alice").param("database", "app")
}

/// Serves others, and has not grown by more than the bound since.
fn assert_well(pooler: &Pooler, resident_before: u64) {
    pooler.assert_serves();
    let growth = pooler.resident_bytes().saturating_sub(resident_before);
    assert!(growth < BOUND_BYTES, "grown by {growth} bytes");
}

/// Seeds to run with; `SIM_SEED` replays one.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=count).collect(),
    }
}

/// Sends all, says that no more comes, and reads to the end, whatever it is.
fn throw(client: &mut Raw, bytes: &[u8]) {
    client.send(bytes);
    client.finish_sending();
    client.until_end();
}

#[test]
fn random_bytes_before_login_are_survived() {
    // reliability.md 1: lengths that wrap, in the very first packet.
    let pooler = Pooler::start(|_| ());
    let before = pooler.resident_bytes();
    for seed in seeds(300) {
        let mut random = Random::new(seed);
        let len = 1 + random.below(300);
        let mut noise = random.bytes(len);
        if seed % 3 == 0 {
            // A head that is believed, so that the noise is looked at.
            let head = [&u32::try_from(len + 8).expect("short").to_be_bytes()[..], &[0, 3, 0, 0]];
            noise.splice(0..0, head.concat());
        }
        throw(&mut pooler.unnamed(), &noise);
    }
    assert_well(&pooler, before);
}

#[test]
fn damaged_startup_packets_are_survived() {
    let pooler = Pooler::start(|_| ());
    let before = pooler.resident_bytes();
    let good = alice().param("options", "-c timezone=UTC").param("_pq_.x", "1").bytes();
    for seed in seeds(300) {
        let mut random = Random::new(seed);
        let mut packet = good.clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(packet.len());
            packet[at] = random.bytes(1)[0];
        }
        throw(&mut pooler.unnamed(), &packet);
    }
    assert_well(&pooler, before);
}

#[test]
fn long_startup_packets_are_taken_or_refused_but_not_hoarded() {
    let pooler = Pooler::start(|ini| {
        ini.set("max_client_conn", "1000");
    });
    let before = pooler.resident_bytes();
    let longest = alice().param("application_name", &"n".repeat(65_000)).bytes();
    assert!(longest.len() <= 65_535);
    throw(&mut pooler.unnamed(), &longest);
    let half = &longest[..longest.len() / 2];
    let mut slow: Vec<Raw> = (0..300).map(|_| pooler.unnamed()).collect();
    for client in &mut slow {
        client.send(half);
    }
    assert_well(&pooler, before);
}

#[test]
fn text_of_other_protocols_is_survived() {
    let pooler = Pooler::start(|ini| {
        ini.set("client_login_timeout", "1");
    });
    let before = pooler.resident_bytes();
    let mut client = pooler.unnamed();
    client.send(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n");
    // It looks like a huge tagged packet. Nobody hoards it, and it does not last.
    for _ in 0..20 {
        client.send(&[b'x'; 100_000]);
    }
    client.until_end();
    assert_well(&pooler, before);
}

#[test]
fn hostile_lengths_after_login_are_refused() {
    let pooler = Pooler::start(|_| ());
    for tag in b"QFPBDCESHdcfXp~" {
        for len in [0_u32, 1, 3, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
            let mut client = pooler.raw("alice");
            let head = [&[*tag][..], &len.to_be_bytes()].concat();
            client.send(&head);
            let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
            client.expect_fatal(&format!("bad packet header: '{hex}'"));
        }
    }
    pooler.assert_serves();
}

#[test]
fn unknown_messages_after_login_are_refused() {
    let pooler = Pooler::start(|_| ());
    for tag in [b'p', b'~', b'Z', b'R', b'T', b'1', 1, 0x7f, 0x80, 0xff] {
        let mut client = pooler.raw("alice");
        client.send(&message(tag, b"\0\0\0\0"));
        client.expect_fatal("unknown pkt");
    }
    pooler.assert_serves();
}

#[test]
fn an_endless_query_does_not_fill_the_pooler() {
    let pooler = Pooler::start(|_| ());
    let mut client = pooler.raw("alice");
    let before = pooler.resident_bytes();
    client.send(b"Q\x7f\xff\xff\xfeSELECT '");
    for _ in 0..300 {
        client.send(&[b'x'; 100_000]);
    }
    assert_well(&pooler, before);
    drop(client);
    assert_well(&pooler, before);
}

#[test]
fn random_messages_after_login_are_survived() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "3");
    });
    let before = pooler.resident_bytes();
    for seed in seeds(150) {
        let mut random = Random::new(seed);
        let mut noise = Vec::new();
        for _ in 0..1 + random.below(20) {
            let tag = b"QPBDCESHdcfF"[random.below(12)];
            let len = random.below(60);
            let mut body = random.bytes(len);
            if random.below(2) == 0 {
                body.iter_mut().for_each(|byte| *byte &= 3);
            }
            noise.extend(message(tag, &body));
        }
        let cut = noise.len() - random.below(6);
        let mut client = pooler.raw("alice");
        throw(&mut client, &noise[..cut]);
    }
    assert_well(&pooler, before);
}

#[test]
fn conversations_cut_at_every_byte_leave_clean_servers() {
    // reliability.md 12: a client that leaves at any byte of a pipeline.
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
    });
    let talk = [
        raw::parse("", "SELECT $1::text"),
        raw::bind("", &["value"]),
        raw::describe(b'P', ""),
        raw::execute(0),
        raw::sync(),
        raw::query("SELECT 1"),
        raw::query("BEGIN"),
    ]
    .concat();
    let mut control = pooler.raw("bob");
    for cut in 0..=talk.len() {
        let mut client = pooler.raw("alice");
        client.send(&talk[..cut]);
        if cut % 2 == 0 {
            client.finish_sending();
        }
        drop(client);
        if cut % 8 == 0 {
            let mut next = pooler.raw("alice");
            assert_eq!(tags(&next.query("SELECT 'next'")), "TDCZ", "after a cut at {cut}");
            assert_eq!(control.value("SELECT 42"), "42");
        }
    }
    pooler.assert_serves();
}

/// A thread whose name stands in its panic.
fn named<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() + Send + 'scope,
) {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn_scoped(scope, work).expect("a thread");
}

/// Runs one client against a server with this script, then looks after the pooler.
fn against(name: &str, script: impl Fn(&mut Visit) + Send + Sync + 'static) {
    let server = FakeServer::start(script);
    let pooler = Pooler::start(|ini| {
        ini.database("fake", &server.connect_string());
        ini.set("client_login_timeout", "2").set("server_connect_timeout", "1");
        ini.set("server_login_retry", "1").set("query_timeout", "2");
    });
    let before = pooler.resident_bytes();
    let mut client = pooler.unnamed();
    // What the server announced and never sent, the pooler cannot make up.
    client.lenient = true;
    client.send(&Startup::v3().param("user", "alice").param("database", "fake").bytes());
    let login = client.until_ready();
    if login.last().is_some_and(|message| message.tag == b'Z') {
        client.send(&raw::query("SELECT 1"));
        // To the end of the answer or of the stream.
        client.until_ready();
    } else {
        // It was told why, or only saw the end.
        assert!(login.iter().all(|message| message.tag == b'E'), "{name}: {}", tags(&login));
    }
    assert!(server.visits() > 0, "{name}: nobody came");
    assert_well(&pooler, before);
}

#[test]
fn servers_that_fail_in_login_are_survived() {
    let raw_length = |len: u32| [&b"R"[..], &len.to_be_bytes(), &[0; 4]].concat();
    let lines: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("one byte", b"R".to_vec()),
        ("half a header", b"R\0\0".to_vec()),
        ("length 0", raw_length(0)),
        ("length 3", raw_length(3)),
        ("length -1", raw_length(u32::MAX)),
        ("length of 2 GB", raw_length(0x7fff_ffff)),
        ("empty authentication", message(b'R', b"")),
        ("unknown authentication", message(b'R', &[0, 0, 0, 99])),
        ("md5 without salt", message(b'R', &[0, 0, 0, 5])),
        ("sasl without a list", message(b'R', &[0, 0, 0, 10])),
        ("sasl with an endless name", message(b'R', &[&[0, 0, 0, 10], &[b'x'; 5000][..]].concat())),
        ("sasl final before start", message(b'R', &[0, 0, 0, 12, 118, 61])),
        ("ready before authentication", fake::ready()),
        ("query answer in login", fake::one_row("x")),
        ("unknown message", message(b'~', b"what")),
        ("error without fields", message(b'E', b"\0")),
        ("error without terminator", message(b'E', b"SFATAL")),
        ("error without a body", message(b'E', b"")),
        ("error without a code", message(b'E', b"SFATAL\0Mno\0\0")),
        (
            "error of 5000 bytes",
            message(b'E', &[&b"SFATAL\0C28000\0M"[..], &[b'x'; 5000], &[0, 0]].concat()),
        ),
        ("notice without end", message(b'N', b"Mx")),
        ("parameter without value", [message(b'R', &[0; 4]), message(b'S', b"name\0")].concat()),
        ("parameter without NUL", [message(b'R', &[0; 4]), message(b'S', b"name")].concat()),
        ("short key", [message(b'R', &[0; 4]), message(b'K', &[1, 2]), fake::ready()].concat()),
        ("ssl answer", b"N".to_vec()),
        ("text", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
    ];
    // Each ends with the end of the stream; a handful at a time, for some wait for their timeout.
    for some in lines.chunks(9) {
        std::thread::scope(|scope| {
            for (name, line) in some.iter().cloned() {
                let script = move |visit: &mut Visit| {
                    visit.startup();
                    visit.send(&line);
                };
                named(scope, name, move || against(name, script));
            }
        });
    }
}

#[test]
fn servers_that_fall_silent_in_login_are_left() {
    std::thread::scope(|scope| {
        for spoken in [0, 1, 5, 9, 40] {
            scope.spawn(move || {
                against("silence", move |visit| {
                    visit.startup();
                    visit.send(&fake::welcome()[..spoken]);
                    visit.silence();
                });
            });
        }
        scope.spawn(|| against("end at once", |_| ()));
        scope.spawn(|| {
            against("endless notices", |visit| {
                visit.startup();
                let notice = message(b'N', &[&b"Mx"[..], &[b'y'; 1000], &[0, 0]].concat());
                for _ in 0..20_000 {
                    visit.send(&notice);
                }
            });
        });
        scope.spawn(|| {
            against("endless parameters", |visit| {
                visit.startup();
                visit.send(&message(b'R', &[0; 4]));
                for number in 0..20_000 {
                    let body = format!("name{number}\0{}\0", "v".repeat(1000));
                    visit.send(&message(b'S', body.as_bytes()));
                }
            });
        });
    });
}

#[test]
fn servers_that_fail_in_a_query_are_survived() {
    let row = fake::one_row("value");
    let raw_length = |tag: u8, len: u32| [&[tag][..], &len.to_be_bytes(), &[0; 4]].concat();
    let mut lines: Vec<(&str, Vec<u8>)> = vec![
        ("length 0", raw_length(b'D', 0)),
        ("length 3", raw_length(b'T', 3)),
        ("length -1", raw_length(b'D', u32::MAX)),
        ("2 GB announced", raw_length(b'D', 0x7fff_fffe)),
        ("unknown message", message(b'~', b"what")),
        ("authentication again", message(b'R', &[0, 0, 0, 3])),
        ("key again", message(b'K', &[0; 8])),
        ("empty ready", message(b'Z', b"")),
        ("long ready", message(b'Z', b"II")),
        ("odd ready", message(b'Z', b"?")),
        ("ready for nothing", [fake::ready(), fake::ready(), fake::ready()].concat()),
        ("answers nobody asked for", [row.clone(), row.clone(), row.clone()].concat()),
        ("extended answers", [message(b'1', b""), message(b'2', b""), message(b'3', b"")].concat()),
        ("copy nobody asked for", message(b'G', &[0, 0, 0])),
        ("copy both", message(b'W', &[0, 0, 0])),
        ("error without fields", [message(b'E', b"\0"), fake::ready()].concat()),
        ("error without a body", [message(b'E', b""), fake::ready()].concat()),
        ("error without terminator", [message(b'E', b"SERROR"), fake::ready()].concat()),
        ("parameter without NUL", [message(b'S', b"DateStyle"), fake::ready()].concat()),
        ("parameter without value", [message(b'S', b"DateStyle\0"), fake::ready()].concat()),
        ("empty parameter", [message(b'S', b""), fake::ready()].concat()),
        (
            "huge parameter",
            [message(b'S', &[&b"DateStyle\0"[..], &[b'x'; 100_000], &[0]].concat()), fake::ready()]
                .concat(),
        ),
    ];
    lines.extend((0..row.len()).step_by(7).map(|cut| ("cut answer", row[..cut].to_vec())));
    for some in lines.chunks(9) {
        std::thread::scope(|scope| {
            for (name, line) in some.iter().cloned() {
                let script = move |visit: &mut Visit| {
                    visit.welcome();
                    if visit.message().is_some() {
                        visit.send(&line);
                    }
                };
                named(scope, name, move || against(name, script));
            }
        });
    }
}

#[test]
fn servers_that_send_noise_are_survived() {
    for some in seeds(24).chunks(8) {
        std::thread::scope(|scope| {
            for seed in some.iter().copied() {
                scope.spawn(move || {
                    against(&format!("noise {seed}"), move |visit| {
                        let mut random = Random::new(seed);
                        if seed % 2 == 0 {
                            visit.startup();
                        } else {
                            visit.welcome();
                            visit.message();
                        }
                        for _ in 0..random.below(20) {
                            let len = random.below(50);
                            let tag = b"RSKZTDCEN123AntsIGHWcdV~"[random.below(24)];
                            let body = random.bytes(len);
                            visit.send(&message(tag, &body));
                        }
                        let len = random.below(100);
                        visit.send(&random.bytes(len));
                    });
                });
            }
        });
    }
}

#[test]
fn a_server_that_speaks_unasked_is_not_handed_out() {
    // What an idle server says can only be meant for a client that has gone.
    let server = FakeServer::start(|visit| {
        visit.welcome();
        let mut first = true;
        while visit.message().is_some() {
            visit.send(&fake::one_row("asked"));
            if std::mem::take(&mut first) {
                std::thread::sleep(Duration::from_millis(100));
                visit.send(&fake::one_row("unasked"));
            }
        }
    });
    let pooler = Pooler::start(|ini| {
        ini.database("fake", &server.connect_string()).set("default_pool_size", "1");
    });
    let fake = Startup::v3().param("user", "alice").param("database", "fake");
    let mut client = pooler.raw_with(fake);
    for _ in 0..3 {
        assert_eq!(client.value("SELECT 1"), "asked");
        assert!(client.is_quiet_for(Duration::from_millis(300)), "an answer nobody asked for");
    }
    pooler.assert_serves();
}

#[test]
fn storms_of_connections_leave_nothing_behind() {
    // reliability.md 19: connect and say nothing, ask for TLS again and again, half-close.
    let pooler = Pooler::start(|ini| {
        ini.set("max_client_conn", "2000");
    });
    let storm = |round: usize| {
        let mut clients: Vec<Raw> = (0..300).map(|_| pooler.unnamed()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            match (number + round) % 4 {
                0 => {}
                1 => client.send(&raw::untagged(raw::SSL_REQUEST, b"")),
                2 => client.send(&raw::untagged(raw::CANCEL_REQUEST, &[9; 8])),
                _ => client.finish_sending(),
            }
        }
    };
    storm(0);
    pooler.assert_serves();
    let before = pooler.resident_bytes();
    for round in 1..6 {
        storm(round);
        pooler.assert_serves();
    }
    // What was needed in the worst moment is returned when nobody has needed it for a while.
    wait_for("the memory of the storms to be returned", || {
        pooler.resident_bytes().saturating_sub(before) < 1 << 20
    });
}

/// One of many that say their Startup byte by byte: it is never done with it.
struct Trickle {
    client: Raw,
    bytes: std::vec::IntoIter<u8>,
}

impl Trickle {
    /// Every other one asks for TLS first, and goes on without.
    fn begin(pooler: &Pooler, number: usize) -> Trickle {
        let mut client = pooler.unnamed();
        if number % 2 == 1 {
            client.send(&raw::untagged(raw::SSL_REQUEST, b""));
            assert_eq!(client.byte(), Some(b'N'));
        }
        let bytes = alice().param("application_name", &"n".repeat(9000)).bytes().into_iter();
        Trickle { client, bytes }
    }

    /// Says one byte more; false if nobody listens.
    fn go_on(&mut self) -> bool {
        let byte = self.bytes.next().expect("the timeout comes before the end");
        self.client.stream.write_all(&[byte]).is_ok()
    }
}

/// What SHOW LISTS counts.
fn listed(pooler: &Pooler, name: &str) -> usize {
    let rows = pooler.table("SHOW LISTS");
    let row = rows.iter().find(|row| row["list"] == name).expect("its row");
    row["items"].parse().expect("a number")
}

/// Reliability 19: slow-loris logins take a place each and little memory, keep nobody else waiting, and
/// give all of it back when their time is up: every byte they say does not make it longer.
#[test]
fn startups_that_trickle_in_end_in_time_and_leave_nothing_behind() {
    const MANY: usize = 300;
    let pooler = Pooler::start(|ini| {
        ini.set("max_client_conn", "2000").set("client_login_timeout", "3");
    });
    let storm = || {
        let mut clients: Vec<Trickle> = (0..MANY).map(|n| Trickle::begin(&pooler, n)).collect();
        clients.iter_mut().for_each(|client| assert!(client.go_on()));
        let logins = listed(&pooler, "login_clients");
        pooler.assert_serves();
        let mut most_bytes = 0;
        wait_for("all of them to be sent away", || {
            most_bytes = most_bytes.max(pooler.resident_bytes());
            clients.retain_mut(Trickle::go_on);
            clients.is_empty()
        });
        (logins, most_bytes)
    };
    // Whoever asks on the console is there, too, and has been let in.
    let is_calm = || (listed(&pooler, "used_clients"), listed(&pooler, "login_clients")) == (1, 0);
    storm();
    wait_for("their places to be free", is_calm);
    let before = pooler.resident_bytes();
    for round in 2..4 {
        let (logins, most_bytes) = storm();
        assert_eq!(logins, MANY);
        let grown = most_bytes.saturating_sub(before);
        assert!(grown < 8 << 20, "grew by {grown} bytes");
        wait_for("their places to be free", is_calm);
        let told = pooler.log().matches("closing because: client_login_timeout (age=").count();
        assert_eq!(told, round * MANY);
    }
    wait_for("the memory of the storms to be returned", || {
        pooler.resident_bytes().saturating_sub(before) < 1 << 20
    });
}
