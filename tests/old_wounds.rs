//! Faults that other poolers have had, where no other file here is about them.

mod common;

use common::desk::{Desk, config};
use common::fake::one_row;
use common::raw::{self, Message};
use common::tls::{Certs, SecurePostgres};
use common::{Pooler, Postgres, Random, Raw, Startup, wait_for};
use ringbouncer::config::Config;
use ringbouncer::engine::io::{Input, ServerAddress};
use ringbouncer::keys::Conn;
use std::time::Duration;

/// Reliability 10: however long a list of hosts is, none of them becomes a Unix socket.
#[test]
fn a_list_of_hosts_of_any_length_stays_a_list_of_hosts() {
    for count in [1, 2, 100, 5000] {
        let hosts: Vec<String> =
            (0..count).map(|n| format!("10.{}.{}.1", n / 250, n % 250)).collect();
        let text = format!(
            "[databases]\napp = host={} port=5432\n[pgbouncer]\nserver_login_retry = 0.001",
            hosts.join(",")
        );
        let mut desk = Desk::new(&text);
        desk.client("alice", "app");
        for host in hosts.iter().take(300) {
            let to = desk.refuse();
            let expected = format!("{host}:5432");
            assert_eq!(to, ServerAddress::Tcp(expected.parse().expect("an address")));
            desk.after(Duration::from_secs(1));
            if desk.dialled.is_empty() {
                desk.client("alice", "app");
                desk.after(Duration::from_secs(1));
            }
        }
    }
}

/// Reliability 10: whatever stands in the file, reading it ends with a configuration or a complaint.
#[test]
fn a_file_of_noise_is_read_or_refused() {
    let whole = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/etc/all-settings.ini"));
    let whole = whole.expect("the reference");
    let mut random = Random::new(10);
    let pieces: [&[u8]; 10] =
        [b"host=", b",", b"/", b"@", b"'", b"\"", b"%include ", b"\n[databases]\n", b"\0", b"="];
    for _ in 0..1500 {
        let from = random.below(whole.len());
        let to = (from + random.below(3000)).min(whole.len());
        let mut text = [b"[databases]\n* = host=a,b,c\n[pgbouncer]\n", &whole[from..to]].concat();
        for _ in 0..random.below(6) {
            let place = random.below(text.len());
            match random.below(3) {
                0 => text[place] ^= 1 << random.below(8),
                1 => drop(text.splice(place..place, pieces[random.below(10)].iter().copied())),
                _ => drop(text.drain(place..(place + random.below(40)).min(text.len()))),
            }
        }
        // An %include of noise finds no file; names of files in the text are only names.
        let text = String::from_utf8_lossy(&text);
        let _ = Config::parse_text("noise.ini", &text);
    }
}

/// Reliability 15: reloads of anything, at any moment, while clients come, work and go. The laws of
/// the house, its counts among them, hold all the time.
#[test]
fn reloads_at_any_moment_keep_the_books_right() {
    for seed in 1..6 {
        let mut random = Random::new(seed);
        let text = |random: &mut Random| {
            let mut text = "[databases]\n".to_owned();
            for name in ["app", "other", "third"] {
                if random.below(4) > 0 {
                    let (host, size) = (random.below(2), random.below(3));
                    text += &format!("{name} = host=127.0.0.{} pool_size={size}", host + 1);
                    text += [" user=carol", " pool_mode=session", ""][random.below(3)];
                    text += "\n";
                }
            }
            text += ["", "* = host=127.0.0.9\n"][random.below(2)];
            text += "[users]\nbob = max_user_connections=1 pool_mode=statement\n[pgbouncer]\n";
            text + ["pool_mode = transaction", "max_db_connections = 2"][random.below(2)]
        };
        let first = text(&mut random);
        let mut desk = Desk::new(&first);
        let mut clients: Vec<Conn> = Vec::new();
        for _ in 0..600 {
            clients.retain(|conn| !desk.is_closed(*conn));
            match random.below(9) {
                0 => {
                    let new = config(&text(&mut random));
                    let now = desk.now;
                    desk.engine.reload(new, None, now);
                    desk.perform();
                }
                1 | 2 if clients.len() < 12 => {
                    let user = ["alice", "bob"][random.below(2)];
                    let database = ["app", "other", "third", "auto"][random.below(4)];
                    clients.push(desk.client(user, database));
                }
                3 | 4 if !clients.is_empty() => {
                    let conn = clients[random.below(clients.len())];
                    if desk.engine.wants_read(conn) {
                        desk.feed(conn, &raw::query("SELECT 1"));
                    }
                }
                5 if !clients.is_empty() => {
                    let conn = clients.swap_remove(random.below(clients.len()));
                    desk.handle(Input::ReadClosed { conn });
                    desk.perform();
                }
                6 if !desk.dialled.is_empty() => drop(desk.server()),
                7 => {
                    for key in desk.engine.house().servers.keys() {
                        let server = Conn::Server(key);
                        if !desk.take(server).is_empty() && desk.engine.wants_read(server) {
                            desk.feed(server, &one_row("1"));
                        }
                    }
                    clients.iter().for_each(|conn| drop(desk.take(*conn)));
                }
                _ => desk.after(Duration::from_millis(random.below(400) as u64)),
            }
        }
        for conn in clients {
            desk.handle(Input::ReadClosed { conn });
        }
        desk.perform();
        assert_eq!(desk.engine.house().open_clients(), 0);
        let counted: usize = desk.engine.house().groups.iter().map(|group| group.clients).sum();
        assert_eq!(counted, 0, "nobody counts who has gone");
    }
}

/// Reliability 15: a reload that changes nothing drops no server, those through TLS among them.
#[test]
fn a_reload_of_the_same_files_keeps_the_servers() {
    let certs = Certs::new();
    certs.issue("server", "localhost", &["localhost"]);
    let postgres = SecurePostgres::start(&certs, "server", "", "hostssl all all all trust\n");
    let pooler = Pooler::start(|ini| {
        ini.database("app", &postgres.connect_string()).set("server_tls_sslmode", "require");
    });
    let mut client = pooler.raw("alice");
    let backend = client.backend_pid();
    for round in 1..4 {
        pooler.signal(libc::SIGHUP);
        wait_for("the reload", || pooler.log().matches("re-reading config").count() >= round);
        assert_eq!(client.backend_pid(), backend, "the same server");
    }
    assert!(!pooler.log().contains("database configuration changed"), "{}", pooler.log());
}

/// Reliability 16: whatever a client leaves in its session, the next one finds none of it.
#[test]
fn nothing_of_a_session_reaches_the_next_client() {
    let database = Postgres::shared().fresh_database();
    let connect = format!("host=127.0.0.1 port={} dbname={database}", Postgres::shared().port);
    let pooler = Pooler::start(|ini| {
        ini.database("db", &connect).set("pool_mode", "session").set("default_pool_size", "1");
    });
    let come = |parameters: &[(&str, &str)]| {
        let mut startup = Startup::v3().param("user", "postgres").param("database", "db");
        for (name, value) in parameters {
            startup = startup.param(name, value);
        }
        pooler.raw_with(startup)
    };
    let looks = |raw: &mut Raw| {
        [
            "SELECT current_user || session_user",
            "SHOW search_path",
            "SHOW statement_timeout",
            "SHOW TimeZone",
            "SHOW application_name",
            "SHOW default_transaction_isolation",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
            "SELECT count(*) FROM pg_class WHERE relname = 'left_behind'",
            "SELECT count(*) FROM pg_listening_channels()",
            "SELECT count(*) FROM pg_prepared_statements",
            "SELECT count(*) FROM pg_cursors",
        ]
        .map(|sql| raw.value(sql))
    };
    let mut first = come(&[]);
    let (before, backend) = (looks(&mut first), first.backend_pid());
    drop(first);
    let mut messy = come(&[("TimeZone", "CET"), ("application_name", "messy")]);
    for sql in [
        "SET SESSION AUTHORIZATION alice",
        "SET ROLE alice",
        "SET search_path = pg_catalog",
        "SET statement_timeout = '1h'",
        "SET default_transaction_isolation = 'serializable'",
        "SELECT pg_advisory_lock(7)",
        "CREATE TEMP TABLE left_behind (a int)",
        "LISTEN left_behind",
        "PREPARE left_behind AS SELECT 1",
        "BEGIN; DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    ] {
        let answer = messy.query(sql);
        assert!(answer.iter().all(|message| message.tag != b'E'), "{sql}: {answer:?}");
    }
    assert_ne!(looks(&mut messy), before);
    messy.send(&raw::terminate());
    let mut next = come(&[]);
    assert_eq!(next.backend_pid(), backend, "the same server");
    assert_eq!(looks(&mut next), before);
    // Nor does a message that was meant for the one who listened.
    let mut direct = Postgres::shared().client(&database);
    direct.batch_execute("NOTIFY left_behind").expect("a statement");
    let answer: Vec<Message> = next.query("SELECT 1");
    assert!(answer.iter().all(|message| message.tag != b'A'), "{answer:?}");
}
