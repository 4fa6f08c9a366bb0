//! How long a server lives, whether it is still there when it is needed, and what it may say while
//! nobody listens. Time passes when the test says so; the last tests meet a real PostgreSQL.

mod common;

use common::desk::{Desk, config};
use common::fake::{one_row, ready};
use common::raw::{self, message};
use common::{Pooler, Postgres, Startup, wait_for};
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::keys::{Conn, ServerKey};
use ringbouncer::pool::queues::ServerStanding;
use ringbouncer::session::server::Server;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

/// One database `app` in transaction pooling.
fn ini(settings: &str) -> String {
    format!("[databases]\napp = host=127.0.0.1\n[pgbouncer]\npool_mode = transaction\n{settings}\n")
}

/// Servers live for ever there, unless the settings say otherwise.
fn desk(settings: &str) -> Desk {
    let eternal = "server_lifetime = 1000000\nserver_idle_timeout = 0\nserver_check_query =\n";
    Desk::new(&ini(&format!("{eternal}{settings}")))
}

fn reload(desk: &mut Desk, text: &str) {
    let users: Option<Userlist> = None;
    desk.engine.reload(config(text), users.map(Into::into), desk.now);
    desk.perform();
}

/// A client that has its welcome, of a pool that gets a server for that if it has none yet.
fn alice(desk: &mut Desk) -> Conn {
    let client = desk.client("alice", "app");
    if !desk.dialled.is_empty() {
        desk.server();
    }
    assert!(!desk.take(client).is_empty(), "a welcome");
    client
}

fn count(desk: &Desk, standing: ServerStanding) -> usize {
    desk.pool("app", "alice").map_or(0, |(_, pool)| pool.servers.count(standing))
}

fn server_of(desk: &Desk, client: Conn) -> Conn {
    let Conn::Client(client) = client else { panic!("a client") };
    let server = desk.engine.house().clients.get(client).and_then(|client| client.server());
    Conn::Server(server.expect("it is served"))
}

fn has_server(desk: &Desk, client: Conn) -> bool {
    let Conn::Client(client) = client else { panic!("a client") };
    let client = desk.engine.house().clients.get(client);
    client.is_some_and(|client| client.server().is_some())
}

fn servers(desk: &Desk) -> Vec<(ServerKey, &Server)> {
    desk.engine.house().servers.iter().collect()
}

/// So many clients work at once, and then nobody does: the pool has as many servers.
fn crowd(desk: &mut Desk, number: usize) -> Vec<Conn> {
    let clients: Vec<Conn> = (0..number).map(|_| alice(desk)).collect();
    clients.iter().for_each(|client| desk.ask(*client));
    while !desk.dialled.is_empty() {
        desk.server();
    }
    for client in &clients {
        let server = server_of(desk, *client);
        desk.answer(server);
    }
    assert_eq!(count(desk, ServerStanding::Idle), number);
    clients
}

/// The log is not seen here: what a server is told when it ends, and nothing else.
fn assert_told_goodbye(desk: &Desk, server: Conn) {
    let (_, last) = desk.closed.iter().find(|(conn, _)| *conn == server).expect("it has ended");
    assert_eq!(*last, raw::terminate());
}

/// Why servers have ended, as the log and SHOW ERRORS put it.
fn causes(desk: &Desk) -> Vec<&str> {
    let all = desk.engine.house().endings.iter();
    all.filter(|(side, ..)| side.word() == "server").map(|(_, cause, _)| cause).collect()
}

fn notice(text: &str) -> Vec<u8> {
    message(b'N', format!("SWARNING\0C01000\0M{text}\0\0").as_bytes())
}

fn error(text: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0C57P01\0M{text}\0\0").as_bytes())
}

#[test]
fn a_server_that_nobody_uses_ends_in_time() {
    let mut desk = desk("server_idle_timeout = 60");
    let clients = crowd(&mut desk, 2);
    desk.after(SECOND * 59);
    desk.ask(clients[0]);
    let used = server_of(&desk, clients[0]);
    desk.answer(used);
    desk.after(SECOND - MOMENT);
    assert_eq!(count(&desk, ServerStanding::Idle), 2);
    desk.after(MOMENT);
    assert_eq!(count(&desk, ServerStanding::Idle), 1, "the other one");
    let (ended, _) = desk.closed[0];
    assert_ne!(ended, used);
    assert_told_goodbye(&desk, ended);
    desk.after(SECOND * 60);
    assert!(servers(&desk).is_empty());
    assert!(desk.dialled.is_empty(), "nobody needs another");
    assert_eq!(causes(&desk), ["server idle timeout"]);
}

#[test]
fn a_server_that_works_is_not_unused() {
    let mut desk = desk("server_idle_timeout = 10");
    let client = alice(&mut desk);
    desk.after(SECOND * 9);
    desk.ask(client);
    desk.after(SECOND * 1000);
    let server = server_of(&desk, client);
    desk.answer(server);
    desk.after(SECOND * 9);
    assert_eq!(count(&desk, ServerStanding::Idle), 1);
    desk.after(SECOND);
    assert!(servers(&desk).is_empty());
}

#[test]
fn the_last_ones_are_kept() {
    let mut desk = desk("server_idle_timeout = 60\nmin_pool_size = 2\ndefault_pool_size = 5");
    crowd(&mut desk, 4);
    desk.after(SECOND * 1000);
    assert_eq!(count(&desk, ServerStanding::Idle), 2);
    assert!(desk.dialled.is_empty(), "and none is opened in their place");
    // With others around them they are not the last ones any more.
    crowd(&mut desk, 3);
    desk.after(SECOND * 200);
    assert_eq!(count(&desk, ServerStanding::Idle), 2);
}

#[test]
fn servers_of_one_age_end_one_after_the_other() {
    let mut desk = desk("server_lifetime = 30\ndefault_pool_size = 3");
    crowd(&mut desk, 3);
    let ended = |desk: &Desk| desk.closed.len();
    desk.after(SECOND * 30 - MOMENT);
    assert_eq!(ended(&desk), 0);
    desk.after(MOMENT);
    assert_eq!(ended(&desk), 1);
    assert_told_goodbye(&desk, desk.closed[0].0);
    desk.after(SECOND * 10 - MOMENT);
    assert_eq!(ended(&desk), 1, "a third of the time later");
    desk.after(MOMENT);
    assert_eq!(ended(&desk), 2);
    desk.after(SECOND * 10);
    assert_eq!(ended(&desk), 3);
    assert_eq!(causes(&desk), ["server lifetime over"]);
}

#[test]
fn an_old_server_ends_when_it_is_free() {
    let mut desk = desk("server_lifetime = 30\ndefault_pool_size = 1");
    let (one, two) = (alice(&mut desk), alice(&mut desk));
    desk.ask(one);
    desk.ask(two);
    let server = server_of(&desk, one);
    desk.after(SECOND * 100);
    assert!(!desk.is_closed(server));
    desk.answer(server);
    assert!(desk.is_closed(server) && !desk.is_closed(one));
    desk.server();
    let server = server_of(&desk, two);
    desk.answer(server);
    desk.after(SECOND * 29);
    assert!(!desk.is_closed(server));
    assert_eq!(causes(&desk), ["server lifetime over"]);
}

#[test]
fn with_no_lifetime_a_server_is_used_once() {
    let mut desk = desk("server_lifetime = 0\ndefault_pool_size = 1");
    let client = alice(&mut desk);
    desk.after(SECOND * 100);
    assert!(desk.closed.is_empty(), "it has not been used");
    for _ in 0..3 {
        desk.ask(client);
        while !desk.dialled.is_empty() {
            desk.server();
        }
        let server = server_of(&desk, client);
        desk.answer(server);
        assert_told_goodbye(&desk, server);
    }
    assert!(!desk.is_closed(client));
    assert_eq!(causes(&desk), ["server lifetime over"]);
}

#[test]
fn a_database_has_its_own_lifetime() {
    let text = |lifetime: u32| {
        format!(
            "[databases]\napp = host=127.0.0.1 server_lifetime={lifetime}\n\
             [pgbouncer]\nserver_idle_timeout = 0\nserver_check_query =\nserver_lifetime = 1000\n"
        )
    };
    let mut desk = Desk::new(&text(50));
    alice(&mut desk);
    desk.after(SECOND * 49);
    reload(&mut desk, &text(70));
    desk.after(SECOND * 20);
    assert!(desk.closed.is_empty(), "longer now");
    desk.after(SECOND);
    assert_eq!(desk.closed.len(), 1);
    let mut desk = Desk::new(&text(0));
    alice(&mut desk);
    desk.after(SECOND * 999);
    assert!(desk.closed.is_empty(), "0 is that of all");
    desk.after(SECOND);
    assert_eq!(desk.closed.len(), 1);
}

/// What a server that is tried out is asked.
fn take_check(desk: &mut Desk) -> (Conn, Vec<u8>) {
    assert_eq!(count(desk, ServerStanding::Tested), 1);
    let (_, pool) = desk.pool("app", "alice").expect("the pool");
    let tested = pool.servers.of(ServerStanding::Tested).first().expect("one is tried out");
    let server = Conn::Server(tested);
    (server, desk.take(server))
}

#[test]
fn a_server_that_was_unused_for_long_is_tried_out_first() {
    for (query, sql) in [("", ""), ("server_check_query = select 1", "select 1")] {
        let query = if query.is_empty() { "server_check_query = <empty>" } else { query };
        let mut desk = desk(&format!("server_check_delay = 30\n{query}"));
        let client = alice(&mut desk);
        desk.after(SECOND * 30 - MOMENT);
        assert_eq!(count(&desk, ServerStanding::Idle), 1);
        desk.after(MOMENT);
        assert_eq!(
            (count(&desk, ServerStanding::Idle), count(&desk, ServerStanding::Used)),
            (0, 1)
        );
        desk.after(SECOND * 1000);
        desk.ask(client);
        assert!(desk.dialled.is_empty(), "none is opened while one is tried out");
        let (server, asked) = take_check(&mut desk);
        assert_eq!(asked, raw::query(sql));
        // Whether it succeeds does not matter, only that it is answered.
        desk.feed(server, &[error("what?"), notice("hm"), ready()].concat());
        assert_eq!(server_of(&desk, client), server);
        assert_eq!(desk.take(server), raw::query("SELECT 1"));
        desk.feed(server, &one_row("1"));
        assert_eq!(desk.take(client), one_row("1"), "of the check it hears nothing");
        assert_eq!(count(&desk, ServerStanding::Idle), 1);
    }
}

#[test]
fn a_server_that_is_used_again_and_again_is_not_tried_out() {
    let mut desk = desk("server_check_delay = 30\nserver_check_query = select 1");
    let client = alice(&mut desk);
    for _ in 0..20 {
        desk.after(SECOND * 29);
        desk.ask(client);
        let server = server_of(&desk, client);
        desk.answer(server);
    }
}

#[test]
fn without_a_delay_each_use_is_preceded_by_a_check() {
    let mut desk =
        desk("server_check_delay = 0\nserver_check_query = select 1\ndefault_pool_size=1");
    let clients = [(); 3].map(|()| alice(&mut desk));
    assert_eq!(count(&desk, ServerStanding::Used), 1);
    clients.iter().for_each(|client| desk.ask(*client));
    for client in clients {
        let (server, asked) = take_check(&mut desk);
        assert_eq!(asked, raw::query("select 1"));
        desk.feed(server, &one_row("1"));
        assert_eq!(server_of(&desk, client), server);
        desk.answer(server);
    }
    assert_eq!(count(&desk, ServerStanding::Used), 1);
    assert!(desk.closed.is_empty() && desk.dialled.is_empty());
}

/// One check for each client that waits, and a new server only for those for whom there is none.
#[test]
fn as_many_are_tried_out_as_clients_wait() {
    let mut desk = desk("server_check_delay = 30\nserver_check_query = select 1");
    let clients = crowd(&mut desk, 3);
    let more = [alice(&mut desk), alice(&mut desk)];
    desk.after(SECOND * 30);
    assert_eq!(count(&desk, ServerStanding::Used), 3);
    desk.ask(clients[0]);
    desk.ask(clients[1]);
    assert_eq!((count(&desk, ServerStanding::Tested), count(&desk, ServerStanding::Used)), (2, 1));
    desk.ask(clients[2]);
    assert!(desk.dialled.is_empty());
    desk.ask(more[0]);
    desk.ask(more[1]);
    assert_eq!((count(&desk, ServerStanding::Tested), desk.dialled.len()), (3, 1));
    let tested: Vec<Conn> = servers(&desk)
        .iter()
        .filter(|(_, s)| !s.egress.is_empty())
        .map(|(k, _)| Conn::Server(*k))
        .collect();
    for server in tested {
        desk.take(server);
        desk.feed(server, &one_row("1"));
    }
    assert!(clients.iter().all(|client| has_server(&desk, *client)), "in their order");
}

#[test]
fn a_dead_server_is_found_before_it_is_handed_out() {
    let mut desk = desk("server_check_delay = 30\nserver_check_query = select 1");
    let clients = crowd(&mut desk, 2);
    desk.after(SECOND * 30);
    desk.ask(clients[0]);
    let (server, _) = take_check(&mut desk);
    desk.leave(server);
    let (other, _) = take_check(&mut desk);
    assert_ne!(other, server);
    desk.leave(other);
    desk.server();
    let server = server_of(&desk, clients[0]);
    desk.answer(server);
    assert!(!desk.is_closed(clients[0]), "it has felt nothing of that");
    assert_eq!(causes(&desk), ["server conn crashed?"]);
}

/// All of us were asleep, the pooler too, and the first thing that happens is a query.
#[test]
fn a_server_is_tried_out_after_we_have_slept_ourselves() {
    for round_robin in [0, 1] {
        let mut desk = desk(&format!(
            "server_check_delay = 30\nserver_check_query = select 1\n\
             server_round_robin = {round_robin}"
        ));
        let clients = crowd(&mut desk, 2);
        desk.now += SECOND * 3600;
        desk.ask(clients[0]);
        assert!(!has_server(&desk, clients[0]));
        let (server, asked) = take_check(&mut desk);
        assert_eq!(asked, raw::query("select 1"));
        desk.feed(server, &one_row("1"));
        desk.answer(server);
    }
}

/// PgBouncer would wait for `server_idle_timeout`: ten minutes.
#[test]
fn a_check_that_is_not_answered_does_not_take_for_ever() {
    let mut desk = desk(
        "server_check_delay = 30\nserver_check_query = select 1\nserver_connect_timeout = 15\n\
         default_pool_size = 1",
    );
    let client = alice(&mut desk);
    desk.after(SECOND * 30);
    desk.ask(client);
    let (server, _) = take_check(&mut desk);
    desk.after(SECOND * 15 - MOMENT);
    assert!(!desk.is_closed(server));
    desk.after(MOMENT);
    assert!(desk.is_closed(server));
    desk.server();
    let server = server_of(&desk, client);
    desk.answer(server);
    assert_eq!(causes(&desk), ["test query failed"]);
}

#[test]
fn a_check_that_begins_a_transaction_is_none() {
    let mut desk = desk("server_check_delay = 1\nserver_check_query = begin");
    let client = alice(&mut desk);
    desk.after(SECOND);
    desk.ask(client);
    let (server, _) = take_check(&mut desk);
    desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
    assert!(desk.is_closed(server));
    assert_eq!(desk.dialled.len(), 1);
    assert_eq!(causes(&desk), ["test query failed"]);
}

#[test]
fn settings_that_have_changed_need_no_check() {
    let text = |query: &str| {
        ini(&format!(
            "server_idle_timeout = 0\nserver_lifetime = 100000\nserver_check_query = {query}"
        ))
    };
    let mut desk = Desk::new(&text("select 1"));
    let client = alice(&mut desk);
    desk.after(SECOND * 30);
    reload(&mut desk, &text(""));
    assert_eq!(count(&desk, ServerStanding::Used), 1);
    desk.ask(client);
    let server = server_of(&desk, client);
    desk.answer(server);
}

/// A reload of PostgreSQL's configuration must not cost every idle connection.
#[test]
fn what_an_idle_server_may_say_leaves_it_usable() {
    for used in [false, true] {
        let mut desk = desk("server_check_delay = 30\nserver_check_query = select 1");
        let client = alice(&mut desk);
        let other = desk.client("alice", "app");
        desk.take(other);
        if used {
            desk.after(SECOND * 30);
        }
        let (key, _) = servers(&desk)[0];
        let server = Conn::Server(key);
        let words = [
            notice("a warning"),
            message(b'S', b"TimeZone\0Europe/Rome\0"),
            message(b'S', b"in_hot_standby\0on\0"),
            message(b'A', b"\0\0\0\x07news\0\0"),
        ];
        for bytes in words.concat().chunks(3) {
            desk.feed(server, bytes);
        }
        desk.after(SECOND * 10);
        assert!(!desk.is_closed(server));
        desk.ask(client);
        if used {
            desk.take(server);
            desk.feed(server, &one_row("1"));
        }
        assert_eq!(server_of(&desk, client), server);
        // We know of its time zone: the client, which has another, gets its own.
        let asked = String::from_utf8_lossy(&desk.take(server)).into_owned();
        assert!(asked.contains("SET TimeZone='UTC';"), "{asked}");
    }
}

#[test]
fn after_anything_else_it_ends_soon() {
    let words =
        [error("terminating"), ready(), message(b'C', b"SELECT 1\0"), message(b'D', b"\0\0")];
    for (words, used) in words.iter().flat_map(|words| [(words, false), (words, true)]) {
        let mut desk = desk("server_check_delay = 30\nserver_check_query = select 1");
        alice(&mut desk);
        if used {
            desk.after(SECOND * 30);
        }
        let (key, _) = servers(&desk)[0];
        let server = Conn::Server(key);
        desk.feed(server, words);
        assert!(!desk.is_closed(server), "it may tell us that it has gone");
        desk.after(SECOND / 2);
        assert_told_goodbye(&desk, server);
        let cause = if used { "SV_USED server got dirty" } else { "SV_IDLE server got dirty" };
        assert_eq!(causes(&desk), [cause]);
    }
}

#[test]
fn a_dirty_server_is_not_handed_out() {
    let mut desk = desk("");
    let client = alice(&mut desk);
    let (key, _) = servers(&desk)[0];
    desk.feed(Conn::Server(key), &error("terminating"));
    desk.ask(client);
    assert!(desk.is_closed(Conn::Server(key)));
    desk.server();
    let server = server_of(&desk, client);
    desk.answer(server);
    assert_eq!(causes(&desk), ["idle server got dirty"]);
}

#[test]
fn an_outdated_server_of_a_session_ends_early_if_so_configured() {
    let text = |port: u16, fast: u8| {
        format!(
            "[databases]\napp = host=127.0.0.1 port={port}\n[pgbouncer]\npool_mode = session\n\
             server_check_query =\nserver_fast_close = {fast}\n"
        )
    };
    for fast in [0, 1] {
        let mut desk = Desk::new(&text(5432, fast));
        let (idle, busy) = (alice(&mut desk), alice(&mut desk));
        for client in [idle, busy] {
            desk.ask(client);
            while !desk.dialled.is_empty() {
                desk.server();
            }
            let server = server_of(&desk, client);
            desk.answer(server);
        }
        desk.feed(busy, &raw::query("BEGIN"));
        let server = server_of(&desk, busy);
        desk.take(server);
        desk.feed(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
        desk.take(busy);
        reload(&mut desk, &text(5433, fast));
        desk.after(SECOND);
        let told = |desk: &Desk, client| desk.last_words(client);
        let words = (fast == 1).then(|| "database configuration changed".to_owned());
        assert_eq!(told(&desk, idle), words);
        assert_eq!(told(&desk, busy), None, "in the middle of a transaction");
        desk.feed(busy, &raw::query("COMMIT"));
        desk.take(server);
        desk.feed(server, &[message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat());
        assert_eq!(desk.take(busy), [message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat());
        desk.after(SECOND);
        assert_eq!(told(&desk, busy), words);
    }
}

#[test]
fn who_makes_room_for_others_is_the_one_unused_for_longest() {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1 max_db_connections=2\n[pgbouncer]\n\
         pool_mode = transaction\nserver_check_delay = 5\nserver_check_query = select 1\n",
    );
    crowd(&mut desk, 2);
    desk.after(SECOND * 10);
    assert_eq!(count(&desk, ServerStanding::Used), 2);
    let bob = desk.client("bob", "app");
    assert_eq!(desk.dialled.len(), 1, "one that is to be tried out is evicted");
    desk.server();
    assert!(!desk.take(bob).is_empty());
}

fn wait_for_log(pooler: &Pooler, line: &str) {
    wait_for(line, || pooler.log().contains(line));
}

#[test]
fn an_idle_server_that_is_terminated_is_replaced() {
    let pooler = Pooler::start(|ini| {
        ini.set("pool_mode", "transaction");
    });
    let mut client = pooler.raw("alice");
    let pid = client.backend_pid();
    let kill = format!("SELECT pg_terminate_backend({pid})");
    Postgres::shared().client("postgres").batch_execute(&kill).expect("terminate it");
    wait_for_log(
        &pooler,
        "got packet 'E' from server when not linked: FATAL: \
         terminating connection due to administrator command",
    );
    wait_for_log(&pooler, "closing because: server conn crashed? (age=");
    assert_ne!(client.backend_pid(), pid);
}

/// As SHOW tells it, and PostgreSQL itself.
#[test]
fn servers_are_tried_out_and_retired() {
    let pooler = Pooler::start(|ini| {
        ini.set("pool_mode", "transaction").set("server_check_delay", "1");
        ini.set("server_check_query", "select 1").set("server_idle_timeout", "3");
    });
    let mut client = pooler.raw("alice");
    let pid = client.backend_pid();
    let startup = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
    let mut console = pooler.raw_with(startup);
    let mut is_used = || {
        let rows = console.query("SHOW SERVERS");
        let mut rows = rows.iter().filter(|row| row.tag == b'D');
        rows.any(|row| row.columns().contains(&"used".to_owned()))
    };
    wait_for("the server to be unused", &mut is_used);
    assert_eq!(client.backend_pid(), pid, "it is still there");
    wait_for_log(&pooler, "closing because: server idle timeout (age=");
    let alive = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    let mut direct = Postgres::shared().client("postgres");
    wait_for("PostgreSQL to see it off", || {
        direct.query_one(&alive, &[]).expect("a row").get::<_, i64>(0) == 0
    });
    assert_ne!(client.backend_pid(), pid);
}
