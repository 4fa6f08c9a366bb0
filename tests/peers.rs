//! Several poolers in front of one PostgreSQL: a cancel request reaches the right query through any
//! of them, and whatever is wrong between them hurts nobody else.

mod common;

use common::fake::FakeServer;
use common::pooler::Ini;
use common::raw::{self, CANCEL_REQUEST, Message, query, tags, untagged};
use common::sleep;
use common::tls::{self, Certs, Secured};
use common::{Lease, Pooler, Raw, Startup, wait_for, wait_for_some};
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

/// So many poolers with the numbers 1, 2, …, which know one another over TCP.
fn poolers(count: u16) -> Vec<Pooler> {
    let mut poolers: Vec<Pooler> = (1..=count)
        .map(|id| {
            Pooler::start(|ini| {
                ini.set("peer_id", &id.to_string()).set("default_pool_size", "20");
            })
        })
        .collect();
    let ports: Vec<u16> = poolers.iter().map(|pooler| pooler.port).collect();
    for pooler in &mut poolers {
        configure(pooler, |ini| {
            for (id, port) in (1..).zip(&ports) {
                ini.peer(id, &format!("host=localhost port={port}"));
            }
        });
    }
    poolers
}

/// Changes the configuration and has it read.
fn configure(pooler: &mut Pooler, change: impl FnOnce(&mut Ini)) {
    pooler.rewrite(change);
    let answer = console(pooler).query("RELOAD");
    assert_eq!(tags(&answer), "CZ", "{}", pooler.log());
}

fn console(pooler: &Pooler) -> Raw {
    pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"))
}

type Row = BTreeMap<String, String>;

/// A table of the console, and the names of its columns in order.
fn table(pooler: &Pooler, sql: &str) -> (Vec<String>, Vec<Row>) {
    let answer = console(pooler).query(sql);
    let names = raw::column_names(&answer[0]);
    let types = raw::column_types(&answer[0]);
    let is_about_peers = sql.starts_with("SHOW PEER");
    for (name, kind) in names.iter().zip(types).filter(|_| is_about_peers) {
        let expected = if name == "host" { 25 } else { 23 };
        assert_eq!(kind, expected, "{name} is a text or a number of four bytes");
    }
    let rows = answer.iter().filter(|message| message.tag == b'D');
    let rows = rows.map(|row| names.iter().cloned().zip(row.columns()).collect()).collect();
    (names, rows)
}

/// Peer pools: number, active and waiting requests, connections that carry one or are being opened.
fn peer_pools(pooler: &Pooler) -> Vec<[i32; 5]> {
    let (names, rows) = table(pooler, "SHOW PEER_POOLS");
    let expected = [
        "peer_id",
        "cl_active_cancel_req",
        "cl_waiting_cancel_req",
        "sv_active_cancel",
        "sv_login",
    ];
    assert_eq!(names, expected);
    rows.iter().map(|row| expected.map(|name| row[name].parse().expect("a number"))).collect()
}

fn metrics_page(port: u16) -> String {
    let mut raw = Raw::connect(port);
    raw.send(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n");
    let bytes: Vec<u8> = std::iter::from_fn(|| raw.byte()).collect();
    String::from_utf8(bytes).expect("text")
}

/// A request for the query of whoever has this key.
fn request(port: u16, key: &[u8]) -> Raw {
    let mut canceller = Raw::connect(port);
    canceller.send(&untagged(CANCEL_REQUEST, key));
    canceller
}

fn cancel(pooler: &Pooler, key: &[u8]) {
    request(pooler.port, key).expect_end();
}

/// A client whose query does not end by itself, and works already.
struct Sleeper {
    client: Raw,
    key: Vec<u8>,
}

impl Sleeper {
    fn new(pooler: &Pooler) -> Sleeper {
        Self::of(pooler, 0x3_0000)
    }

    fn of(pooler: &Pooler, version: u32) -> Sleeper {
        let startup = Startup::version(version).param("user", "alice").param("database", "app");
        let mut client = pooler.raw_with(startup);
        client.query("BEGIN");
        sleep::fall_asleep(&mut client);
        let key = client.cancel_key();
        Sleeper { client, key }
    }

    fn answer(&mut self) -> Vec<Message> {
        let answer = self.client.until_ready();
        let error = &answer[answer.len() - 2];
        assert_eq!((error.tag, error.field('C')), (b'E', "57014".to_owned()));
        self.client.query("ROLLBACK");
        answer
    }

    /// It has not been hit.
    fn still_sleeps(&mut self) {
        assert!(self.client.is_quiet_for(Duration::from_millis(20)));
    }
}

/// Each of several queries on two poolers is cancelled through the other one, and no other with it.
#[test]
fn a_request_at_the_wrong_pooler_stops_the_right_query() {
    let poolers = poolers(2);
    let mut sleepers: Vec<(usize, Sleeper)> =
        [0x3_0000, 0x3_0000, 0x3_0000, 0x3_0002, 0x3_0002, 0x3_0002]
            .into_iter()
            .enumerate()
            .map(|(number, version)| (number % 2, Sleeper::of(&poolers[number % 2], version)))
            .collect();
    for (at, sleeper) in &sleepers {
        assert_eq!(usize::from(sleeper.key[1]), at + 1);
        assert_eq!(sleeper.key[7] & 3, 3);
    }
    assert_eq!([sleepers[0].1.key.len(), sleepers[5].1.key.len()], [8, 36]);
    while let Some((at, mut sleeper)) = sleepers.pop() {
        cancel(&poolers[1 - at], &sleeper.key);
        sleeper.answer();
        for (_, other) in &mut sleepers {
            other.still_sleeps();
        }
    }
    for (own, other) in [(0, 2), (1, 1)] {
        let connected = format!(": peer-{other}@127.0.0.1:{} new", poolers[1 - own].port);
        assert_eq!(poolers[own].log().matches(&connected).count(), 3, "as PgBouncer says it");
        assert_eq!(peer_pools(&poolers[own]), [[other, 0, 0, 0, 0]], "only the other was asked");
    }
}

/// The same through a third one that knows only one of the two: hop by hop.
#[test]
fn a_request_may_take_several_hops() {
    let mut poolers = poolers(3);
    let second = poolers[1].port;
    // The third one believes that the first is where the second is.
    configure(&mut poolers[2], |ini| {
        ini.forget_peer(2).forget_peer(3).peer(1, &format!("host=127.0.0.1 port={second}"));
    });
    let mut sleeper = Sleeper::new(&poolers[0]);
    cancel(&poolers[2], &sleeper.key);
    sleeper.answer();
    let sent = "closing because: successfully sent cancel request";
    for pooler in &poolers {
        wait_for("the log", || pooler.log().contains(sent));
    }
    // Two hops to it, and there it is itself again: three hops are left for the next request.
    assert_eq!(peer_pools(&poolers[2]), [[1, 0, 0, 0, 0]]);
    assert_eq!(peer_pools(&poolers[1]), [[1, 0, 0, 0, 0]]);
    assert!(peer_pools(&poolers[0]).is_empty());
}

/// Poolers that send a request in a circle let go of it after three hops.
#[test]
fn a_circle_of_peers_ends() {
    let mut poolers = poolers(3);
    let ports: Vec<u16> = poolers.iter().map(|pooler| pooler.port).collect();
    for (at, pooler) in poolers.iter_mut().enumerate() {
        let next = ports[(at + 1) % 3];
        configure(pooler, |ini| _ = ini.peer(9, &format!("host=127.0.0.1 port={next}")));
    }
    let exhausted =
        "closing because: failed to forward cancel request because its TTL was exhausted";
    cancel(&poolers[0], &[1, 9, 0, 4, 5, 6, 7, 0xff]);
    // First, second, third, and the first again.
    wait_for("the end of it", || poolers[0].log().contains(exhausted));
    for (pooler, visits) in poolers.iter().zip([1, 0, 0]) {
        assert_eq!(pooler.log().matches(exhausted).count(), visits);
        assert_eq!(peer_pools(pooler), [[9, 0, 0, 0, 0]]);
        pooler.assert_serves();
    }
    cancel(&poolers[1], &[1, 9, 0, 4, 5, 6, 7, 0xfc]);
    wait_for("the log", || poolers[1].log().contains(exhausted));
    cancel(&poolers[1], &[1, 77, 0, 4, 5, 6, 7, 0xff]);
    let unknown = "closing because: could not find peer to forward request to";
    wait_for("the log", || poolers[1].log().contains(unknown));
    assert!(!poolers[2].log().contains(exhausted));
}

/// As `so_reuseport` is meant to be used: nobody knows at which process his request arrives.
#[test]
fn processes_on_one_port_reach_one_another_through_unix_sockets() {
    let directories = [common::outside::temp(), common::outside::temp()];
    let mut first = Pooler::start(|ini| {
        ini.set("unix_socket_dir", &directories[0].to_string_lossy());
        ini.set("so_reuseport", "1").set("default_pool_size", "50");
    });
    let port = first.port;
    let know_both = |ini: &mut Ini| {
        for (id, directory) in (1..).zip(&directories) {
            ini.peer(id, &format!("host={} port={port}", directory.display()));
        }
    };
    let mut second = Stopped(first.start_with(|ini| {
        ini.set("unix_socket_dir", &directories[1].to_string_lossy()).set("peer_id", "2");
        know_both(ini);
    }));
    wait_for("the second one", || first.log().matches("process up").count() == 2);
    first.rewrite(|ini| {
        ini.set("peer_id", "1");
        know_both(ini);
    });
    first.signal(1);
    wait_for("the first one to know its number", || first.raw("alice").cancel_key()[1] == 1);
    wait_for("requests to cross both ways", || {
        let mut sleeper = Sleeper::new(&first);
        request(port, &sleeper.key).expect_end();
        sleeper.answer();
        let log = first.log();
        [1, 2].iter().all(|id| log.contains(&format!(": peer-{id}@unix:{port} closing because:")))
    });
    // A rolling restart: one of them takes nobody new, and ends when its last client has left.
    let mut busy = loop {
        let sleeper = Sleeper::new(&first);
        if sleeper.key[1] == 2 {
            break sleeper;
        }
        request(port, &sleeper.key).expect_end();
    };
    common::sys::kill(second.0.id(), 15);
    wait_for("the second one to close its socket", || {
        first.log().contains("got SIGTERM, shutting down, waiting for all clients disconnect")
    });
    for _ in 0..30 {
        assert_eq!(first.raw("alice").cancel_key()[1], 1);
    }
    request(port, &busy.key).expect_end();
    busy.answer();
    drop(busy);
    let status = wait_for_some("its end", || second.0.try_wait().expect("try_wait"));
    assert!(status.success(), "{status}");
}

/// Ends a process, whatever happens.
struct Stopped(std::process::Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Requests are never encrypted, and every pooler takes them like that.
#[test]
fn a_peer_that_demands_tls_takes_requests_without() {
    let certs = Certs::new();
    certs.issue("pooler", "localhost", &[]);
    let mut poolers = poolers(2);
    configure(&mut poolers[0], |ini| {
        ini.set("client_tls_sslmode", "require");
        ini.set("client_tls_key_file", &certs.path("pooler.key"));
        ini.set("client_tls_cert_file", &certs.path("pooler.crt"));
    });
    let config = tls::client_config(None, &[]);
    let mut client = Secured::ask(poolers[0].port, config).expect("TLS");
    let welcome = client.log_in();
    let key = welcome.iter().find(|message| message.tag == b'K').expect("a key").body.clone();
    let pid = client.value("SELECT pg_backend_pid()");
    client.send(&query("SELECT pg_sleep(600)"));
    sleep::until_asleep(&pid);
    cancel(&poolers[1], &key);
    let answer = client.until_ready();
    let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
    assert_eq!(error.field('C'), "57014");
}

/// What SHOW and the log tell of requests on their way; all of it is gone with the peer.
#[test]
fn what_is_on_its_way_is_shown_until_its_peer_is_removed() {
    let (told, heard) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let hangs = FakeServer::start(move |visit| {
        let _ = told.lock().expect("nobody panics").send(visit.first_packet());
        visit.silence();
    });
    let metrics = Lease::take();
    let mut pooler = Pooler::start(|ini| {
        ini.set("peer_id", "1").set("cancel_wait_timeout", "0");
        ini.set("metrics_listen", &format!("127.0.0.1:{}", metrics.port));
        ini.peer(1, "host=127.0.0.1 port=1");
        ini.peer(2, &format!("host=127.0.0.1 port={} pool_size=2", hangs.port));
        ini.peer(300, "host=/nowhere");
    });
    let (names, rows) = table(&pooler, "SHOW PEERS");
    assert_eq!(names, ["peer_id", "host", "port", "pool_size"]);
    let peers: Vec<String> = rows
        .iter()
        .map(|row| names.iter().map(|name| row[name].clone()).collect::<Vec<_>>().join(" "))
        .collect();
    let second = format!("2 127.0.0.1 {} 2", hangs.port);
    assert_eq!(peers, ["1 127.0.0.1 1 20", second.as_str(), "300 /nowhere 6432 20"]);
    assert!(peer_pools(&pooler).is_empty(), "nobody has needed one");

    let key = [1, 2, 0, 4, 5, 6, 7, 0b11];
    let mut cancellers: Vec<Raw> = (0..5).map(|_| request(pooler.port, &key)).collect();
    wait_for("two to be sent", || peer_pools(&pooler) == [[2, 2, 3, 2, 0]]);
    let page = metrics_page(metrics.port);
    for (peer, state, number) in
        [(2, "waiting", 3), (2, "connecting", 0), (2, "sent", 2), (300, "sent", 0)]
    {
        let sample =
            format!("\nringbouncer_peer_requests{{peer=\"{peer}\",state=\"{state}\"}} {number}\n");
        assert!(page.contains(&sample), "{sample} in {page}");
    }
    for _ in 0..2 {
        let packet = heard.recv_timeout(common::PATIENCE).expect("a request");
        assert_eq!(
            packet,
            [&CANCEL_REQUEST.to_be_bytes()[..], &[1, 2, 0, 4, 5, 6, 7, 0b10]].concat()
        );
    }
    for (sql, states, address) in [
        ("SHOW CLIENTS", vec!["active_cancel_req", "waiting_cancel_req"], "127.0.0.1"),
        ("SHOW SERVERS", vec!["active_cancel"], "127.0.0.1"),
    ] {
        let (_, rows) = table(&pooler, sql);
        let rows: Vec<&Row> = rows.iter().filter(|row| row["database"] == "(nodb)").collect();
        let mut seen: Vec<&str> = rows.iter().map(|row| row["state"].as_str()).collect();
        seen.dedup();
        assert_eq!(seen, states, "{sql}");
        assert!(rows.iter().all(|row| row["user"] == "(nouser)" && row["addr"] == address));
    }
    let (_, lists) = table(&pooler, "SHOW LISTS");
    let items =
        |list: &str| lists.iter().find(|row| row["list"] == list).expect("a list")["items"].clone();
    assert_eq!([items("peers"), items("peer_pools")], ["3", "1"]);
    for sql in ["SHOW POOLS", "SHOW SOCKETS", "SHOW ACTIVE_SOCKETS", "SHOW DATABASES"] {
        let (_, rows) = table(&pooler, sql);
        assert!(
            rows.iter().all(|row| row.get("database").is_none_or(|name| name != "(nodb)")),
            "{sql}"
        );
    }

    let (_, rows) = table(&pooler, "SHOW CLIENTS");
    let last = rows.iter().rfind(|row| row["state"] == "waiting_cancel_req");
    let id = &last.expect("somebody waits")["id"];
    assert_eq!(tags(&console(&pooler).query(&format!("KILL_CLIENT {id}"))), "CZ");
    wait_for("one to be gone", || peer_pools(&pooler) == [[2, 2, 2, 2, 0]]);
    configure(&mut pooler, |ini| _ = ini.forget_peer(2));
    cancellers.iter_mut().for_each(Raw::expect_end);
    assert!(peer_pools(&pooler).is_empty());
    let log = pooler.log();
    assert!(log.contains("WARNING dropping peer 2 as it does not exist anymore"), "{log}");
    let ends: Vec<&str> =
        log.lines().filter(|line| line.contains("because: peer removed")).collect();
    let prefix =
        |letter: char| ends.iter().filter(|line| line.contains(&format!(" {letter}-0x"))).count();
    assert_eq!((prefix('C'), prefix('S')), (4, 2), "{log}");
    let server = format!(": peer-2@127.0.0.1:{} closing", hangs.port);
    assert_eq!(ends.iter().filter(|line| line.contains(&server)).count(), 2, "{log}");
    assert!(ends.iter().all(|line| line.contains(": peer-2@127.0.0.1:")), "{log}");
    pooler.assert_serves();
}

/// A peer that nobody listens for, one that cannot be found, and one that takes requests for
/// ever: their own requests end, without a word, and nothing else is touched.
#[test]
fn a_peer_in_trouble_costs_its_own_requests_only() {
    let closed = Lease::take();
    let hangs = FakeServer::start(|visit| visit.silence());
    let pooler = Pooler::start(|ini| {
        ini.set("peer_id", "1").set("cancel_wait_timeout", "1").set("server_connect_timeout", "1");
        ini.peer(2, &format!("host=127.0.0.1 port={}", closed.port));
        ini.peer(3, "host=/nowhere");
        ini.peer(4, &format!("host=127.0.0.1 port={} pool_size=1", hangs.port));
    });
    let mut sleeper = Sleeper::new(&pooler);
    let keys = [2, 3, 4, 4].map(|id| [1, id, 0, 4, 5, 6, 7, 0b11]);
    let mut cancellers = keys.map(|key| request(pooler.port, &key));
    pooler.assert_serves();
    cancellers.iter_mut().for_each(Raw::expect_end);
    let log = pooler.log();
    for (id, reason, count) in [
        (2, "connect failed", 1),
        (2, "failed to send cancel request", 1),
        (3, "connect failed", 1),
        (3, "failed to send cancel request", 1),
        (4, "cancel_wait_timeout", 2),
        (4, "successfully sent cancel request", 1),
    ] {
        let is_it = |line: &&str| {
            line.contains(&format!(": peer-{id}@"))
                && line.contains(&format!("because: {reason} ("))
        };
        assert_eq!(log.lines().filter(is_it).count(), count, "{id} {reason}\n{log}");
    }
    wait_for("nobody to be left", || {
        peer_pools(&pooler) == [[2, 0, 0, 0, 0], [3, 0, 0, 0, 0], [4, 0, 0, 0, 0]]
    });
    sleeper.still_sleeps();
    cancel(&pooler, &sleeper.key);
    sleeper.answer();
}

/// A reload that fails changes no peers (server.md 9, defect 5); one that succeeds does, and keys
/// that were told before hold whatever our number is.
#[test]
fn a_reload_that_fails_drops_no_peers() {
    let mut poolers = poolers(2);
    let port = poolers[0].port;
    let mut sleeper = Sleeper::new(&poolers[0]);
    for (id, connect, words) in [
        (0, "host=127.0.0.1", "ids of peers must be a number larger than 0 and at most 65536"),
        (3, "port=1", "host was not provided for peer 3"),
        (3, "host=127.0.0.1 port=0", "invalid port: 0"),
        (3, "host=127.0.0.1 dbname=x", "unrecognized connection parameter: dbname"),
        (3, "host=127.0.0.1 port", "syntax error in connection string"),
    ] {
        poolers[1].rewrite(|ini| _ = ini.forget_peer(1).peer(id, connect));
        let answer = console(&poolers[1]).query("RELOAD");
        assert_eq!((tags(&answer), answer[0].field('C')), ("EZ".to_owned(), "F0000".to_owned()));
        assert!(poolers[1].log().contains(words), "{}", poolers[1].log());
        poolers[1].rewrite(|ini| _ = ini.forget_peer(id));
    }
    cancel(&poolers[1], &sleeper.key);
    sleeper.answer();
    sleeper.client.query("BEGIN");
    sleep::fall_asleep(&mut sleeper.client);
    configure(&mut poolers[0], |ini| _ = ini.set("peer_id", "9"));
    configure(&mut poolers[1], |ini| _ = ini.peer(1, &format!("host=127.0.0.1 port={port}")));
    cancel(&poolers[1], &sleeper.key);
    sleeper.answer();
    assert_eq!(poolers[0].raw("alice").cancel_key()[1..3], [9, 0]);
}

/// The next process is the same peer, and knows the keys of all whom it has taken over.
#[test]
fn a_takeover_keeps_the_keys_that_come_through_peers() {
    let mut poolers = poolers(2);
    let directory = common::outside::temp();
    let port = poolers[1].port;
    poolers[0] = Pooler::start(|ini| {
        ini.set("unix_socket_dir", &directory.to_string_lossy()).set("peer_id", "1");
        ini.set("pidfile", &directory.join("pid").to_string_lossy());
        ini.peer(2, &format!("host=127.0.0.1 port={port}"));
    });
    let moved = poolers[0].port;
    configure(&mut poolers[1], |ini| _ = ini.peer(1, &format!("host=127.0.0.1 port={moved}")));
    let mut sleepers = [0x3_0000, 0x3_0002].map(|version| Sleeper::of(&poolers[0], version));
    let mut other = Sleeper::new(&poolers[1]);
    assert!(poolers[0].take_over().success());
    for sleeper in &mut sleepers {
        cancel(&poolers[1], &sleeper.key);
        sleeper.answer();
    }
    other.still_sleeps();
    cancel(&poolers[0], &other.key);
    other.answer();
}
