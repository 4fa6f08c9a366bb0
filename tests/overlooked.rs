//! What could be overlooked when several things happen at once: a reload while somebody logs in, a pause
//! while others wait, a place that becomes free for the wrong one. Reliability 15 and 21, on a desk.

mod common;

use common::desk::{Desk, config};
use common::oracle::{account, answer, questions};
use common::raw::{self, message};
use common::{Pooler, Startup};
use ringbouncer::engine::io::ServerAddress;
use ringbouncer::keys::Conn;
use ringbouncer::session::server::State;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn reload(desk: &mut Desk, text: &str) {
    desk.engine.reload(config(text), None, desk.now);
    desk.perform();
}

fn pause(desk: &mut Desk, database: Option<&str>) {
    let now = desk.now;
    match database {
        Some(name) => desk.engine.pause_database(name, now),
        None => desk.engine.pause(now),
    }
    desk.perform();
}

fn resume(desk: &mut Desk, database: Option<&str>) {
    let now = desk.now;
    match database {
        Some(name) => _ = desk.engine.resume_database(name, now),
        None => _ = desk.engine.resume(now),
    }
    desk.perform();
}

fn client(desk: &mut Desk, user: &str, database: &str) -> Conn {
    let client = desk.client(user, database);
    if !desk.dialled.is_empty() {
        desk.server();
    }
    assert!(!desk.take(client).is_empty(), "a welcome");
    client
}

fn server_of(desk: &Desk, client: Conn) -> Conn {
    let Conn::Client(client) = client else { panic!("a client") };
    let client = desk.engine.house().clients.get(client).expect("it is there");
    Conn::Server(client.server().expect("it is served"))
}

/// Users are asked for in another database.
fn asking(app: &str, settings: &str) -> String {
    format!(
        "[databases]\n{app}\nusers = host=127.0.0.9\n[pgbouncer]\npool_mode = transaction\n\
         auth_user = carol\nauth_dbname = users\n{settings}"
    )
}

fn known() -> Vec<u8> {
    answer(Some(account("dave", Some("x"))))
}

/// The entry that was there before the question is not the one that counts.
#[test]
fn a_reload_during_a_login_counts_for_it() {
    let mut desk = Desk::new(&asking("app = host=127.0.0.1", ""));
    desk.client("dave", "app");
    let (server, ..) = questions(&mut desk).pop().expect("a question");
    reload(&mut desk, &asking("app = host=127.0.0.2", ""));
    desk.feed(server, &known());
    let (_, to) = desk.dialled.front().cloned().expect("a server");
    assert_eq!(to, ServerAddress::Tcp("127.0.0.2:5432".parse().unwrap()));

    let mut desk = Desk::new(&asking("app = host=127.0.0.1", ""));
    let dave = desk.client("dave", "app");
    let (server, ..) = questions(&mut desk).pop().expect("a question");
    reload(&mut desk, &asking("other = host=127.0.0.1", ""));
    desk.feed(server, &known());
    assert!(desk.dialled.is_empty() && desk.is_closed(dave), "that database is gone");
}

/// Alice's place is put off for somebody who has waited longer, and then cannot use it.
#[test]
fn a_place_that_somebody_has_no_use_for_is_for_the_next() {
    let mut desk = Desk::new(
        "[databases]\na = host=127.0.0.1\nb = host=127.0.0.2\nc = host=127.0.0.3\n[pgbouncer]\n\
         pool_mode = transaction\nmax_user_connections = 1\nquery_wait_timeout = 0\n",
    );
    let [a, b, c] = ["a", "b", "c"].map(|name| client(&mut desk, "alice", name));
    desk.ask(c);
    let busy = server_of(&desk, c);
    pause(&mut desk, Some("b"));
    desk.ask(b);
    desk.after(SECOND / 10);
    desk.ask(a);
    desk.after(SECOND / 10);
    resume(&mut desk, Some("b"));
    desk.after(SECOND / 10);
    pause(&mut desk, Some("b"));
    desk.after(SECOND * 10);
    desk.leave(busy);
    desk.after(SECOND * 600);
    assert_eq!(desk.dialled.len(), 1, "a waits, and a place is free");
}

/// It is another limit that keeps him out now.
#[test]
fn who_waits_stands_in_the_line_of_the_limit_that_keeps_him_out() {
    let text = |own: &str, settings: &str| {
        format!(
            "[databases]\na = host=127.0.0.1 {own}\nb = host=127.0.0.1\n[pgbouncer]\n\
             pool_mode = transaction\nquery_wait_timeout = 0\n{settings}\n"
        )
    };
    let mut desk = Desk::new(&text("max_db_connections=1", ""));
    let waits = client(&mut desk, "bob", "a");
    let alice = client(&mut desk, "alice", "a");
    desk.ask(alice);
    let bob = client(&mut desk, "bob", "b");
    desk.ask(bob);
    let busy = server_of(&desk, bob);
    desk.ask(waits);
    desk.after(SECOND * 10);
    reload(&mut desk, &text("", "max_user_connections = 1"));
    desk.leave(busy);
    desk.after(SECOND * 600);
    assert_eq!(desk.dialled.len(), 1, "bob may have a server, and waits for one");
}

#[test]
fn a_pool_that_somebody_asks_in_is_not_removed() {
    let settings = "pool_idle_timeout = 5\nserver_idle_timeout = 1\nclient_login_timeout = 0\n\
                    query_wait_timeout = 0\n";
    let mut desk = Desk::new(&asking("app = host=127.0.0.1", settings));
    let dave = desk.client("dave", "app");
    let (server, ..) = questions(&mut desk).pop().expect("a question");
    desk.feed(server, &known());
    desk.leave(dave);
    while !desk.dialled.is_empty() {
        desk.refuse();
    }
    desk.after(SECOND * 4);
    pause(&mut desk, None);
    desk.client("dave", "app");
    desk.after(SECOND * 60);
    resume(&mut desk, None);
    assert!(!questions(&mut desk).is_empty());
}

#[test]
fn pools_that_were_made_up_in_a_pause_go_with_their_clients() {
    let mut desk = Desk::new(
        "[databases]\n* = host=127.0.0.1\n[pgbouncer]\nauth_user = carol\n\
         autodb_idle_timeout = 60\nmax_client_conn = 1000\n",
    );
    pause(&mut desk, None);
    for number in 0..100 {
        let dave = desk.client("dave", &format!("d{number}"));
        desk.leave(dave);
    }
    desk.after(SECOND * 10_000);
    assert_eq!(desk.engine.house().pools.len(), 0);
}

/// Limits hold in PostgreSQL's eyes, too: its place is free when the server has gone.
#[test]
fn a_server_that_was_asked_in_vain_keeps_its_place_until_it_has_gone() {
    let mut desk = Desk::new(&asking("app = host=127.0.0.1", ""));
    desk.client("dave", "app");
    let (server, ..) = questions(&mut desk).pop().expect("a question");
    desk.servers_stay = true;
    desk.feed(server, &message(b'D', b"\0"));
    let Conn::Server(key) = server else { panic!("a server") };
    let server = desk.engine.house().servers.get(key).expect("it has not gone");
    assert!(matches!(server.state, State::Leaving(_)));
}

fn forced(user: &str, settings: &str) -> String {
    format!(
        "[databases]\napp = host=127.0.0.1 user={user} {settings}\n[pgbouncer]\n\
         pool_mode = transaction\ndefault_pool_size = 1\n"
    )
}

fn servers_of_alice(desk: &Desk) -> usize {
    desk.pool("app", "alice").map_or(0, |(_, pool)| pool.servers.total())
}

/// What has been begun is finished, and no more.
#[test]
fn nobody_works_on_as_a_user_that_is_forced_no_more() {
    let mut desk = Desk::new(&forced("alice", ""));
    let [idle, busy, waiting] = [(); 3].map(|()| client(&mut desk, "carol", "app"));
    desk.ask(busy);
    let server = server_of(&desk, busy);
    desk.ask(waiting);
    reload(&mut desk, &forced("bob", ""));
    assert!(desk.is_closed(waiting) && !desk.is_closed(busy) && !desk.is_closed(idle));
    desk.answer(server);
    assert!(!desk.is_closed(busy), "it has got its answer");
    for client in [idle, busy] {
        desk.ask(client);
        assert!(desk.is_closed(client));
    }
    assert!(desk.dialled.is_empty());
    assert_eq!(servers_of_alice(&desk), 0);
    client(&mut desk, "carol", "app");
    assert!(desk.pool("app", "bob").is_some());
}

#[test]
fn no_servers_are_kept_for_a_user_that_is_forced_no_more() {
    let mut desk = Desk::new(&forced("alice", "min_pool_size=1"));
    desk.after(SECOND);
    let carol = client(&mut desk, "carol", "app");
    desk.leave(carol);
    reload(&mut desk, &forced("bob", "min_pool_size=1"));
    for _ in 0..10 {
        desk.after(SECOND * 10);
        while !desk.dialled.is_empty() {
            desk.server();
        }
    }
    assert_eq!(servers_of_alice(&desk), 0);
}

/// An order that overtakes one that waits leaves that one's answer whole.
#[test]
fn each_of_several_orders_is_answered_to_its_end() {
    let pooler = Pooler::start(|ini| {
        ini.set("pool_mode", "transaction");
    });
    let mut busy = pooler.raw("alice");
    for second in ["RELOAD", "PAUSE postgres"] {
        busy.query("BEGIN");
        let console = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
        let mut console = pooler.raw_with(console);
        console.send(&raw::query("PAUSE app"));
        assert!(console.is_quiet_for(SECOND / 10));
        console.send(&raw::query(second));
        console.expect_tags("CZ");
        busy.query("COMMIT");
        console.expect_tags("CZ");
        for database in ["app", "postgres"] {
            console.query(&format!("RESUME {database}"));
        }
    }
}
