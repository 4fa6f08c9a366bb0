//! How many servers there are, for whom, and who is refused.

mod common;

use common::desk::{Desk, config};
use common::fake::welcome;
use common::raw;
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::keys::Conn;
use ringbouncer::pool::queues::ServerStanding;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn desk(settings: &str) -> Desk {
    Desk::new(&format!(
        "[databases]\napp = host=127.0.0.1\nother = host=127.0.0.1\n\
         [pgbouncer]\npool_mode = transaction\n{settings}"
    ))
}

/// A client that has its welcome, of a pool that gets a server for that if it has none yet.
fn client(desk: &mut Desk, user: &str, database: &str) -> Conn {
    let client = desk.client(user, database);
    if !desk.dialled.is_empty() {
        desk.server();
    }
    assert!(!desk.take(client).is_empty(), "a welcome");
    client
}

/// Clients that all want to work at once.
fn crowd(desk: &mut Desk, user: &str, database: &str, number: usize) -> Vec<Conn> {
    let clients: Vec<Conn> = (0..number).map(|_| client(desk, user, database)).collect();
    clients.iter().for_each(|client| desk.ask(*client));
    clients
}

/// Lets all servers that are dialled come. How many there were, one login after the other.
fn staff(desk: &mut Desk) -> usize {
    let mut opened = 0;
    while !desk.dialled.is_empty() {
        assert_eq!(desk.dialled.len(), 1, "one login at a time");
        desk.server();
        opened += 1;
    }
    opened
}

fn servers(desk: &Desk, database: &str, user: &str) -> usize {
    desk.pool(database, user).map_or(0, |(_, pool)| pool.servers.total())
}

fn server_of(desk: &Desk, client: Conn) -> Conn {
    let Conn::Client(client) = client else { panic!("a client") };
    let server = desk.engine.house().clients.get(client).and_then(|client| client.server());
    Conn::Server(server.expect("it is served"))
}

fn reload(desk: &mut Desk, text: &str) {
    let users: Option<Userlist> = None;
    desk.engine.reload(config(text), users.map(Into::into), desk.now);
    desk.perform();
}

#[test]
fn a_pool_is_as_large_as_its_user_its_database_or_the_default_says() {
    let text = "[databases]\napp = host=h pool_size=3\nother = host=127.0.0.1\n\
                plain = host=127.0.0.1\nforced = host=127.0.0.1 user=bob\n\
                [users]\nbob = pool_size=4\ncarol = pool_size=0\n\
                [pgbouncer]\npool_mode = transaction\ndefault_pool_size = 2";
    let text = text.replace("host=h ", "host=127.0.0.1 ");
    for (user, database, most) in [
        ("alice", "plain", 2),
        ("alice", "app", 3),
        ("bob", "app", 4),
        ("alice", "forced", 4),
        ("carol", "app", 10),
    ] {
        let mut desk = Desk::new(&text);
        crowd(&mut desk, user, database, 10);
        staff(&mut desk);
        let pool_user = if database == "forced" { "bob" } else { user };
        assert_eq!(servers(&desk, database, pool_user), most, "{user}@{database}");
    }
}

#[test]
fn the_reserve_is_touched_when_somebody_has_waited_long_enough() {
    let mut desk = desk("default_pool_size = 2\nreserve_pool_size = 2\nreserve_pool_timeout = 3");
    let clients = crowd(&mut desk, "alice", "app", 6);
    staff(&mut desk);
    assert_eq!(servers(&desk, "app", "alice"), 2);
    desk.after(SECOND * 2);
    assert!(desk.dialled.is_empty(), "nobody has waited for three seconds");
    desk.after(SECOND);
    assert_eq!(staff(&mut desk), 2);
    desk.after(SECOND * 5);
    assert!(desk.dialled.is_empty(), "that was all of it");
    assert_eq!(servers(&desk, "app", "alice"), 4);
    // What came from the reserve stays.
    for client in &clients[..4] {
        let server = server_of(&desk, *client);
        desk.answer(server);
    }
    desk.after(SECOND);
    assert_eq!(servers(&desk, "app", "alice"), 4);
}

#[test]
fn no_reserve_without_a_time() {
    let mut desk = desk("default_pool_size = 1\nreserve_pool_size = 2\nreserve_pool_timeout = 0");
    crowd(&mut desk, "alice", "app", 3);
    desk.after(SECOND * 100);
    assert_eq!((staff(&mut desk), servers(&desk, "app", "alice")), (0, 1));
}

#[test]
fn an_idle_server_is_evicted_for_another_user_of_its_database() {
    let mut desk = desk("max_db_connections = 2");
    let first = client(&mut desk, "alice", "app");
    desk.after(SECOND);
    let second = client(&mut desk, "bob", "app");
    desk.ask(first);
    let carol = desk.client("carol", "app");
    // Alice works, so it is Bob's server that goes.
    let closed: Vec<Conn> = desk.closed.iter().map(|(conn, _)| *conn).collect();
    assert_eq!(closed.len(), 1);
    assert!(desk.closed[0].1.ends_with(&raw::terminate()));
    assert_eq!(servers(&desk, "app", "bob"), 0);
    desk.server();
    assert!(!desk.take(carol).is_empty());
    // Now Bob evicts Carol's, and who works is left alone.
    desk.ask(second);
    assert_eq!(servers(&desk, "app", "carol"), 0);
    assert_eq!(servers(&desk, "app", "alice"), 1);
    desk.server();
    desk.answer(server_of(&desk, second));
    assert_eq!(desk.engine.house().servers.len(), 2);
}

#[test]
fn who_finds_a_full_database_gets_the_next_place() {
    let mut desk = desk("max_db_connections = 1\nquery_wait_timeout = 60");
    let alice = client(&mut desk, "alice", "app");
    let bob = desk.client("bob", "app");
    let evicted = desk.closed.len();
    assert_eq!(evicted, 1);
    desk.server();
    desk.take(bob);
    desk.ask(bob);
    desk.ask(alice);
    assert_eq!((desk.dialled.len(), servers(&desk, "app", "alice")), (0, 0), "Bob works");
    desk.answer(server_of(&desk, bob));
    assert_eq!(servers(&desk, "app", "bob"), 0, "it was idle for a moment");
    desk.server();
    desk.answer(server_of(&desk, alice));

    // As well if the one that works breaks.
    desk.ask(alice);
    desk.ask(bob);
    let server = server_of(&desk, alice);
    desk.leave(server);
    assert_eq!(desk.last_words(alice).as_deref(), Some("server conn crashed?"));
    desk.server();
    desk.answer(server_of(&desk, bob));
}

#[test]
fn a_user_has_no_more_servers_than_allowed_in_all_databases_together() {
    let mut desk = desk("max_user_connections = 3");
    crowd(&mut desk, "alice", "app", 5);
    staff(&mut desk);
    assert_eq!(servers(&desk, "app", "alice"), 3);
    let late = desk.client("alice", "other");
    assert!(desk.dialled.is_empty(), "all work");
    let bob = client(&mut desk, "bob", "other");
    desk.ask(bob);
    assert_eq!(servers(&desk, "other", "bob"), 1, "the limit is each user's own");
    let (_, pool) = desk.pool("app", "alice").expect("it is there");
    let waiting = pool.waiting.len();
    assert_eq!(waiting, 2);
    // The others of its own pool came first; none is idle until they are done.
    for _ in 0..waiting {
        let busy = desk.engine.house().servers.iter();
        let (key, _) = busy
            .filter(|(_, server)| server.client().is_some())
            .find(|(key, _)| desk.engine.wants_write(Conn::Server(*key)))
            .expect("one works");
        desk.answer(Conn::Server(key));
        assert!(desk.take(late).is_empty());
    }
    let (key, _) = desk
        .engine
        .house()
        .servers
        .iter()
        .find(|(key, _)| desk.engine.wants_write(Conn::Server(*key)))
        .expect("one works");
    desk.answer(Conn::Server(key));
    desk.server();
    assert!(!desk.take(late).is_empty());
}

#[test]
fn a_pool_that_is_always_busy_yields_to_one_that_is_kept_out() {
    let mut desk = desk("max_db_connections = 1\nquery_wait_timeout = 0");
    let busy: Vec<Conn> = (0..2).map(|_| client(&mut desk, "alice", "app")).collect();
    busy.iter().for_each(|client| desk.ask(*client));
    let bob = desk.client("bob", "app");
    let mut turns = 0;
    while desk.dialled.is_empty() {
        desk.after(SECOND / 10);
        let working = busy[turns % 2];
        desk.answer(server_of(&desk, working));
        desk.ask(working);
        turns += 1;
        assert!(turns < 100, "Bob waits for ever");
    }
    assert!(turns >= 10, "not without need: {turns}");
    desk.server();
    assert!(!desk.take(bob).is_empty());
    // Bob is idle now, so Alice has her server back at once.
    assert_eq!((servers(&desk, "app", "bob"), servers(&desk, "app", "alice")), (0, 1));
}

#[test]
fn servers_are_kept_open_where_somebody_may_need_them() {
    let mut desk = Desk::new(
        "[databases]\napp = host=127.0.0.1\nforced = host=127.0.0.1 user=carol min_pool_size=2\n\
         [pgbouncer]\nmin_pool_size = 3\ndefault_pool_size = 10",
    );
    desk.after(Duration::ZERO);
    // The entry with a forced user has its two before anybody comes.
    assert_eq!(staff(&mut desk), 1, "one at a time");
    desk.after(SECOND);
    assert_eq!(staff(&mut desk), 1);
    desk.after(SECOND * 5);
    assert!(desk.dialled.is_empty());
    assert_eq!(servers(&desk, "forced", "carol"), 2);
    // Others, when they have a client.
    let alice = client(&mut desk, "alice", "app");
    desk.after(SECOND);
    assert_eq!(staff(&mut desk), 2);
    assert_eq!(servers(&desk, "app", "alice"), 3);
    desk.after(SECOND * 5);
    assert!(desk.dialled.is_empty());
    // One that is lost is replaced, but not when nobody is there any more.
    let lose = |desk: &mut Desk| {
        let (_, pool) = desk.pool("app", "alice").expect("it is there");
        let idle = pool.servers.of(ServerStanding::Idle).first().expect("one is idle");
        desk.handle(ringbouncer::engine::io::Input::ReadClosed { conn: Conn::Server(idle) });
        desk.after(SECOND);
    };
    lose(&mut desk);
    assert_eq!(staff(&mut desk), 1);
    desk.feed(alice, &raw::terminate());
    lose(&mut desk);
    assert!(desk.dialled.is_empty());
}

#[test]
fn upkeep_takes_no_place_from_others_and_keeps_within_the_pool() {
    let mut desk = desk("min_pool_size = 5\ndefault_pool_size = 2\nmax_db_connections = 3");
    desk.after(SECOND * 3);
    staff(&mut desk);
    client(&mut desk, "alice", "app");
    desk.after(SECOND * 3);
    staff(&mut desk);
    desk.after(SECOND * 3);
    assert_eq!((servers(&desk, "app", "alice"), desk.dialled.len()), (2, 0));
    client(&mut desk, "bob", "app");
    desk.after(SECOND * 30);
    assert_eq!((servers(&desk, "app", "bob"), desk.dialled.len()), (1, 0));
    assert_eq!(desk.closed.len(), 0, "nobody is evicted for upkeep");
}

#[test]
fn clients_are_counted_by_database_and_by_user() {
    let text = "[databases]\napp = host=127.0.0.1 max_db_client_connections=2\n\
                other = host=127.0.0.1\n[users]\nbob = max_user_client_connections=1\n\
                [pgbouncer]\nmax_user_client_connections = 3\nmax_db_client_connections = 5";
    let mut desk = Desk::new(text);
    let database = Some("client connections exceeded (max_db_client_connections)");
    let user = Some("client connections exceeded (max_user_client_connections)");
    let first = desk.client("alice", "app");
    desk.client("alice", "app");
    let third = desk.client("alice", "app");
    assert_eq!(desk.last_words(third).as_deref(), database, "waiting for the welcome counts");
    desk.feed(first, b"");
    desk.server();
    desk.take(first);
    desk.feed(first, &raw::terminate());
    let fourth = desk.client("bob", "app");
    assert_eq!(desk.last_words(fourth), None, "who has left is not counted");
    let fifth = desk.client("bob", "other");
    assert_eq!(desk.last_words(fifth).as_deref(), user);
    desk.client("alice", "other");
    desk.client("alice", "other");
    let last = desk.client("alice", "other");
    assert_eq!(desk.last_words(last).as_deref(), user);
}

#[test]
fn less_than_no_client_connections_refuses_all() {
    let mut desk = desk("max_user_client_connections = -1\nmax_db_client_connections = -1");
    let client = desk.client("alice", "app");
    let refusal = "client connections exceeded (max_user_client_connections)";
    assert_eq!(desk.last_words(client).as_deref(), Some(refusal));
}

#[test]
fn the_last_used_server_is_used_first_unless_all_are_to_be_used_in_turn() {
    for (setting, in_turn) in [("server_round_robin = 0", false), ("server_round_robin = 1", true)]
    {
        let mut desk = desk(setting);
        let clients = crowd(&mut desk, "alice", "app", 3);
        staff(&mut desk);
        let all: Vec<Conn> = clients.iter().map(|client| server_of(&desk, *client)).collect();
        all.iter().for_each(|server| desk.answer(*server));
        let mut used = Vec::new();
        for _ in 0..3 {
            desk.ask(clients[0]);
            used.push(server_of(&desk, clients[0]));
            desk.answer(used[used.len() - 1]);
        }
        let expected = if in_turn { all.clone() } else { vec![all[2]; 3] };
        assert_eq!(used, expected, "{setting}");
    }
}

#[test]
fn a_pool_that_becomes_smaller_ends_servers_as_they_become_idle() {
    let text = |size: u32| {
        format!(
            "[databases]\napp = host=127.0.0.1 pool_size={size}\n[pgbouncer]\n\
             pool_mode = transaction"
        )
    };
    let mut desk = Desk::new(&text(4));
    let clients = crowd(&mut desk, "alice", "app", 4);
    staff(&mut desk);
    desk.answer(server_of(&desk, clients[0]));
    reload(&mut desk, &text(2));
    desk.after(SECOND);
    assert_eq!(servers(&desk, "app", "alice"), 3, "the idle one has gone, the others work");
    for client in &clients[1..] {
        let server = server_of(&desk, *client);
        desk.answer(server);
    }
    desk.after(SECOND);
    assert_eq!(servers(&desk, "app", "alice"), 2);
}

#[test]
fn a_pool_that_nobody_uses_is_removed_in_time() {
    let mut desk = desk("pool_idle_timeout = 10");
    let alice = client(&mut desk, "alice", "app");
    desk.feed(alice, &raw::terminate());
    desk.after(SECOND * 20);
    assert!(desk.pool("app", "alice").is_some(), "it has a server");
    let (_, pool) = desk.pool("app", "alice").expect("it is there");
    let idle = pool.servers.of(ServerStanding::Idle).first().expect("one is idle");
    desk.handle(ringbouncer::engine::io::Input::ReadClosed { conn: Conn::Server(idle) });
    desk.after(SECOND * 9);
    assert!(desk.pool("app", "alice").is_some());
    desk.after(SECOND * 2);
    assert!(desk.pool("app", "alice").is_none());
    assert!(desk.engine.house().groups.user("alice").is_none(), "nothing is left of it");
    // Another one comes with the next client.
    client(&mut desk, "alice", "app");
    assert!(desk.pool("app", "alice").is_some());
}

#[test]
fn a_database_made_from_a_star_goes_with_all_its_pools() {
    let text = "[databases]\n* = host=127.0.0.1\n[pgbouncer]\nautodb_idle_timeout = 10";
    let mut desk = Desk::new(text);
    for user in ["alice", "bob"] {
        let client = desk.client(user, "made");
        desk.refuse();
        desk.after(SECOND);
        desk.leave(client);
    }
    desk.after(SECOND * 9);
    assert_eq!(desk.engine.house().pools.len(), 2, "the later one counts");
    assert!(desk.engine.house().pool_of("made").is_some());
    desk.after(SECOND * 2);
    assert_eq!(desk.engine.house().pools.len(), 0);
    assert!(desk.engine.house().pool_of("made").is_none());
}

/// Names that strangers make up are asked about in databases that `*` makes of them, and are not kept
/// for longer than an attempt is remembered.
#[test]
fn a_database_that_a_stranger_made_up_is_soon_forgotten() {
    let text = "[databases]\n* = host=127.0.0.1\n[pgbouncer]\nauth_user = bob\n\
                server_login_retry = 15\nautodb_idle_timeout = 0";
    let mut desk = Desk::new(text);
    for number in 0..30 {
        let stranger = desk.client("stranger", &format!("made up {number}"));
        let server = desk.connect();
        let refusal = b"SFATAL\0C3D000\0Mdatabase does not exist\0\0";
        desk.feed(server, &common::raw::message(b'E', refusal));
        assert!(desk.is_closed(stranger) && desk.is_closed(server));
    }
    assert_eq!(desk.engine.house().pools.len(), 30, "the next attempts have to wait");
    desk.after(SECOND * 16);
    assert_eq!(desk.engine.house().pools.len(), 0);
    assert!(desk.engine.house().alarms.is_empty());
}

#[test]
fn idle_pools_are_left_alone_however_many() {
    let mut text = String::from("[databases]\n* = host=127.0.0.1 pool_size=2\n[pgbouncer]\n");
    text += "autodb_idle_timeout = 0\nmax_client_conn = 100000\nstats_period = 60";
    text += "\nserver_idle_timeout = 0\nserver_lifetime = 100000";
    let mut desk = Desk::new(&text);
    for number in 0..60 {
        let client = desk.client("alice", &format!("database{number}"));
        let server = desk.connect();
        desk.feed(server, &welcome());
        desk.take(client);
    }
    assert!(desk.engine.house().alarms.is_empty(), "nobody has to look at any of them");
}
