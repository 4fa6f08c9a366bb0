//! Cancel requests that are meant for other poolers, on the desk: which key says what, where a
//! request goes, how long it may take, and what an operator's change does to it.

mod common;

use common::desk::{Desk, config};
use common::fake::one_row;
use common::raw::{self, query};
use ringbouncer::config::Config;
use ringbouncer::engine::io::{ClientAddress, Input, ServerAddress};
use ringbouncer::keys::Conn;
use ringbouncer::pool::peers::{Counts, PeerPool};
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

const PEERS: &str = "[peers]\n1 = host=127.0.0.1\n2 = host=10.0.0.2 port=7777 pool_size=2\n\
                     513 = host=/run/three\n";
const SECOND: Duration = Duration::from_secs(1);

fn text(peers: &str, lines: &str) -> String {
    format!(
        "[databases]\napp = host=127.0.0.1\n{peers}[pgbouncer]\npool_mode = transaction\n{lines}\n"
    )
}

/// A pooler with the number 1, whose servers are not its peers.
fn desk() -> Desk {
    Desk::new(&text(PEERS, "peer_id = 1"))
}

fn reload(desk: &mut Desk, peers: &str, lines: &str) {
    let config: Config = config(&text(peers, lines));
    let now = desk.now;
    desk.engine.reload(config, None, now);
    desk.perform();
}

/// The key that a client was told.
fn key(desk: &mut Desk, client: Conn) -> Vec<u8> {
    let welcome = desk.take(client);
    let at = welcome.windows(5).position(|head| head == b"K\0\0\0\x0c").expect("BackendKeyData");
    welcome[at + 5..at + 13].to_vec()
}

/// A client whose query a server works on, and its key.
fn working(desk: &mut Desk) -> (Conn, Conn, Vec<u8>) {
    let client = desk.client("alice", "app");
    let server = desk.server();
    let key = key(desk, client);
    desk.feed(client, &query("SELECT 1"));
    desk.take(server);
    (client, server, key)
}

/// Somebody sends this key to be cancelled.
fn cancel(desk: &mut Desk, key: &[u8]) -> Conn {
    let canceller = request(desk, key);
    desk.perform();
    canceller
}

/// The same, before the end of the turn.
fn request(desk: &mut Desk, key: &[u8]) -> Conn {
    let from = ClientAddress::Unix { pid: 0, uid: None };
    let canceller = Conn::Client(desk.engine.accept(from, [0x11; 8], desk.now));
    let request = raw::untagged(raw::CANCEL_REQUEST, key);
    let [room, _] = desk.engine.inbox_room(canceller).unwrap();
    room[..request.len()].copy_from_slice(&request);
    desk.handle(Input::Received { conn: canceller, bytes: request.len() });
    canceller
}

/// A key of the peer with this number, with so many hops left.
fn foreign(id: u16, hops: u8) -> Vec<u8> {
    let [low, high] = id.to_le_bytes();
    vec![0x21, low, high, 0x24, 0x25, 0x26, 0x27, 0b0111_1000 | hops]
}

/// The connection dialled first comes about. Who it is, and where; what it is told.
fn arrive(desk: &mut Desk) -> (Conn, ServerAddress, Vec<u8>) {
    let (server, to) = desk.dialled.pop_front().expect("a connection was dialled");
    desk.handle(Input::Connected { server, local: None });
    let conn = Conn::Server(server);
    let told = desk.take(conn);
    (conn, to, told)
}

fn leave(desk: &mut Desk, conn: Conn) {
    desk.handle(Input::ReadClosed { conn });
    desk.perform();
}

fn tcp(text: &str) -> ServerAddress {
    ServerAddress::Tcp(text.parse().unwrap())
}

fn counts(desk: &Desk, id: u16) -> Option<Counts> {
    let house = desk.engine.house();
    house.peer_pools.get(&id).map(|pool: &PeerPool| house.peer_counts(pool))
}

fn is_dropped(desk: &mut Desk, key: &[u8]) -> bool {
    let canceller = cancel(desk, key);
    desk.is_closed(canceller) && desk.dialled.is_empty() && desk.last_words(canceller).is_none()
}

/// client.md 6.1: the number's low byte first, three hops, a positive process id.
#[test]
fn a_key_tells_whose_client_it_is() {
    let mut desk = Desk::new(&text(PEERS, "peer_id = 513"));
    let (mut one, mut other) = (desk.client("alice", "app"), desk.client("bob", "app"));
    desk.server();
    desk.server();
    for client in [&mut one, &mut other] {
        let key = key(&mut desk, *client);
        assert_eq!((key[0] & 0x80, &key[1..3], key[7] & 3), (0, &[1, 2][..], 3), "{key:?}");
    }
    let mut alone = Desk::new(&text("", ""));
    let client = alone.client("alice", "app");
    alone.server();
    assert_eq!(key(&mut alone, client), [0; 8], "without peers a key is what chance says");
}

/// Two keys that are the same by chance would let one client cancel the other's queries.
#[test]
fn no_two_clients_have_one_key() {
    let mut desk = desk();
    let from = ClientAddress::Unix { pid: 0, uid: None };
    let startup = raw::Startup::v3().param("user", "alice").param("database", "app");
    let mut keys = Vec::new();
    for _ in 0..3 {
        let client = Conn::Client(desk.engine.accept(from, [7; 8], desk.now));
        desk.feed(client, &startup.bytes());
        if !desk.dialled.is_empty() {
            desk.server();
        }
        keys.push(key(&mut desk, client));
    }
    assert_eq!(keys[0], [7, 1, 0, 7, 7, 7, 7, 7]);
    assert_ne!(keys[1], keys[0]);
    assert!(keys[2] != keys[0] && keys[2] != keys[1]);
    assert!(keys.iter().all(|key| key[1..3] == [1, 0] && key[7] & 3 == 3 && key[0] < 0x80));
}

#[test]
fn a_foreign_request_goes_to_its_peer_with_one_hop_fewer() {
    let mut desk = desk();
    let canceller = cancel(&mut desk, &foreign(2, 3));
    assert_eq!(counts(&desk, 2), Some(Counts { waiting: 1, opening: 1, sent: 0 }));
    assert!(!desk.engine.wants_read(canceller));
    let (peer, to, told) = arrive(&mut desk);
    assert_eq!(to, tcp("10.0.0.2:7777"));
    assert_eq!(told, raw::untagged(raw::CANCEL_REQUEST, &foreign(2, 2)));
    assert_eq!(counts(&desk, 2), Some(Counts { waiting: 0, opening: 0, sent: 1 }));
    // Whatever a peer says, nobody hears it.
    desk.feed(peer, b"S");
    assert!(!desk.is_closed(canceller), "who asked waits until the peer is done");
    leave(&mut desk, peer);
    assert!(desk.is_closed(canceller) && desk.is_closed(peer));
    assert_eq!(desk.take(canceller), b"", "no word to who asked");
    assert_eq!(counts(&desk, 2), Some(Counts::default()), "the pool stays, as SHOW shows it");
}

/// Requests as PgBouncer 1.26.1 was seen to hand them on, with our number for its: not a bit but the
/// hops is different, whatever else is in the key.
#[test]
fn a_request_is_handed_on_as_pgbouncer_does_it() {
    let head = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e];
    for (told, handed_on) in [
        ([0x1f, 2, 0, 0x22, 0, 0x67, 0xe6, 0x53], [0x1f, 2, 0, 0x22, 0, 0x67, 0xe6, 0x52]),
        ([0xff, 2, 0, 0x22, 0, 0x67, 0xe6, 0x55], [0xff, 2, 0, 0x22, 0, 0x67, 0xe6, 0x54]),
    ] {
        let mut desk = desk();
        cancel(&mut desk, &told);
        let (_, _, bytes) = arrive(&mut desk);
        assert_eq!(bytes, [head, handed_on].concat());
    }
}

#[test]
fn a_peer_may_be_at_a_unix_socket_or_in_a_list() {
    let mut desk = Desk::new(&text(
        "[peers]\n2 = host=10.0.0.2,::1\n3 = host=/run/three\n4 = host=@four port=7\n",
        "peer_id = 1",
    ));
    let unix = |path: &str| ServerAddress::Unix(Path::new(path).to_owned());
    for (id, expected) in [
        (2, tcp("10.0.0.2:6432")),
        (2, tcp("[::1]:6432")),
        (2, tcp("10.0.0.2:6432")),
        (3, unix("/run/three/.s.PGSQL.6432")),
        (4, unix("@four/.s.PGSQL.7")),
    ] {
        cancel(&mut desk, &foreign(id, 1));
        let (_, to, told) = arrive(&mut desk);
        assert_eq!((to, told.len()), (expected, 16));
    }
}

/// client.md 6.2: no hops left, or nobody of that number; without a word.
#[test]
fn what_cannot_be_handed_on_is_dropped() {
    let mut desk = desk();
    assert!(is_dropped(&mut desk, &foreign(2, 0)));
    assert!(is_dropped(&mut desk, &foreign(3, 3)), "no peer has this number");
    assert!(is_dropped(&mut desk, &foreign(1, 3)), "our own, and nobody's");
    assert!(is_dropped(&mut desk, &foreign(0, 3)));
    assert!(is_dropped(&mut desk, &[0; 7]));
    assert!(is_dropped(&mut desk, &[0; 261]));
    let mut alone = Desk::new(&text(PEERS, ""));
    assert!(is_dropped(&mut alone, &foreign(2, 3)), "without a number we have no peers");
    assert!(desk.engine.house().peer_pools.is_empty());
}

/// A request for one of ours may have come through any number of others.
#[test]
fn our_own_are_found_however_far_the_request_has_come() {
    for hops in 0..4 {
        let mut desk = desk();
        let (client, server, key) = working(&mut desk);
        let mut short = key.clone();
        short[7] = short[7] & !3 | hops;
        let canceller = cancel(&mut desk, &short);
        let (carrier, to, told) = arrive(&mut desk);
        assert_eq!(to, tcp("127.0.0.1:5432"), "to PostgreSQL");
        assert_eq!(told.len(), 16);
        leave(&mut desk, carrier);
        assert!(desk.is_closed(canceller) && !desk.is_closed(client) && !desk.is_closed(server));
        assert!(desk.engine.house().peer_pools.is_empty());
    }
}

/// However the numbers of poolers change, clients cancel with the keys that they were told.
#[test]
fn a_key_holds_when_our_number_changes() {
    for (before, after) in
        [("", "peer_id = 2"), ("peer_id = 1", "peer_id = 2"), ("peer_id = 1", "")]
    {
        let mut desk = Desk::new(&text(PEERS, before));
        let (_, _, key) = working(&mut desk);
        reload(&mut desk, PEERS, after);
        let canceller = cancel(&mut desk, &key);
        assert_eq!(arrive(&mut desk).1, tcp("127.0.0.1:5432"), "{before} {after}");
        assert!(!desk.is_closed(canceller));
        // The next one is told a key of the new number.
        let next = desk.client("alice", "app");
        let told = self::key(&mut desk, next);
        assert_eq!(told[1..3] == [2, 0], after == "peer_id = 2");
    }
}

/// A peer's pool is as large as it says; who comes later waits, in order, and not for ever.
#[test]
fn a_peer_gets_so_many_connections_at_once() {
    let mut desk = desk();
    let cancellers: Vec<Conn> = (0..4).map(|_| cancel(&mut desk, &foreign(2, 3))).collect();
    assert_eq!(counts(&desk, 2), Some(Counts { waiting: 4, opening: 2, sent: 0 }));
    let (first, ..) = arrive(&mut desk);
    let (second, ..) = arrive(&mut desk);
    assert!(desk.dialled.is_empty());
    assert_eq!(counts(&desk, 2), Some(Counts { waiting: 2, opening: 0, sent: 2 }));
    leave(&mut desk, second);
    assert!(desk.is_closed(cancellers[1]) && !desk.is_closed(cancellers[0]));
    let (third, ..) = arrive(&mut desk);
    leave(&mut desk, third);
    assert!(desk.is_closed(cancellers[2]), "in the order in which they came");
    arrive(&mut desk);
    assert!(desk.dialled.is_empty());
    // Another peer has nothing to do with that.
    cancel(&mut desk, &foreign(513, 3));
    assert_eq!(desk.dialled.len(), 1);
    leave(&mut desk, first);
    assert!(desk.is_closed(cancellers[0]) && !desk.is_closed(cancellers[3]));
}

#[test]
fn default_pool_size_is_for_peers_too() {
    let mut desk =
        Desk::new(&text("[peers]\n2 = host=::1\n", "peer_id = 1\ndefault_pool_size = 3"));
    (0..5).for_each(|_| _ = cancel(&mut desk, &foreign(2, 3)));
    assert_eq!(desk.dialled.len(), 3);
    reload(&mut desk, "[peers]\n2 = host=::1 pool_size=0\n", "peer_id = 1");
    assert_eq!(desk.dialled.len(), 5, "no limit, at once");
}

/// server.md 1.9: a request waits for `cancel_wait_timeout`, and so does a connection for it.
#[test]
fn a_peer_that_hangs_holds_up_nobody_for_ever() {
    let mut desk = desk();
    let cancellers: Vec<Conn> = (0..3).map(|_| cancel(&mut desk, &foreign(2, 3))).collect();
    desk.after(9 * SECOND);
    assert!(cancellers.iter().all(|canceller| !desk.is_closed(*canceller)));
    desk.after(2 * SECOND);
    assert!(cancellers.iter().all(|canceller| desk.is_closed(*canceller)));
    assert!(desk.dialled.is_empty());
    assert_eq!(counts(&desk, 2), Some(Counts::default()));
    // A connection may be limited more tightly.
    reload(&mut desk, PEERS, "peer_id = 1\nserver_connect_timeout = 3");
    let canceller = cancel(&mut desk, &foreign(2, 3));
    desk.after(4 * SECOND);
    assert!(desk.is_closed(canceller));
    // Where the request has arrived, it may wait for as long as here, and then be carried on.
    let canceller = cancel(&mut desk, &foreign(2, 3));
    let (peer, ..) = arrive(&mut desk);
    desk.after(12 * SECOND);
    assert!(!desk.is_closed(canceller));
    desk.after(2 * SECOND);
    assert!(desk.is_closed(canceller) && desk.is_closed(peer));
    assert_eq!(counts(&desk, 2), Some(Counts::default()));
}

/// No other request waits for `server_login_retry` on its account, and no client at all.
#[test]
fn a_peer_that_is_down_costs_its_own_requests_only() {
    let mut desk = desk();
    let cancellers: Vec<Conn> = (0..3).map(|_| cancel(&mut desk, &foreign(2, 3))).collect();
    assert_eq!(desk.refuse(), tcp("10.0.0.2:7777"));
    assert!(desk.is_closed(cancellers[0]) && !desk.is_closed(cancellers[1]));
    assert_eq!(desk.dialled.len(), 2, "the third one has its turn at once");
    desk.refuse();
    let (peer, ..) = arrive(&mut desk);
    leave(&mut desk, peer);
    assert!(cancellers.iter().all(|canceller| desk.is_closed(*canceller)));
    let (client, server, _) = working(&mut desk);
    desk.feed(server, &one_row("1"));
    assert_eq!(desk.take(client), one_row("1"));
}

/// server.md 5: what is under way to a peer that is removed ends; other changes are for the next.
#[test]
fn a_reload_takes_peers_away_and_brings_others() {
    let mut desk = desk();
    let cancellers: Vec<Conn> = (0..4).map(|_| cancel(&mut desk, &foreign(2, 3))).collect();
    let other = cancel(&mut desk, &foreign(513, 3));
    let (peer, ..) = arrive(&mut desk);
    let moved = PEERS.replace("10.0.0.2", "10.0.0.9");
    reload(&mut desk, &moved, "peer_id = 1");
    assert!(cancellers.iter().all(|canceller| !desk.is_closed(*canceller)));
    let to: VecDeque<ServerAddress> = desk.dialled.iter().map(|(_, to)| to.clone()).collect();
    assert_eq!(to[0], tcp("10.0.0.2:7777"), "what was dialled goes on");
    leave(&mut desk, peer);
    assert_eq!(desk.dialled[2].1, tcp("10.0.0.9:7777"));
    reload(&mut desk, "[peers]\n513 = host=/run/three\n4 = host=::1\n", "peer_id = 1");
    assert!(cancellers.iter().all(|canceller| desk.is_closed(*canceller)));
    assert!(!desk.is_closed(other));
    assert_eq!(counts(&desk, 2), None, "its pool has gone with it");
    assert!(is_dropped_beside(&mut desk, &foreign(2, 3)));
    cancel(&mut desk, &foreign(4, 3));
    assert_eq!(desk.dialled.back().unwrap().1, tcp("[::1]:6432"));
}

fn is_dropped_beside(desk: &mut Desk, key: &[u8]) -> bool {
    let before = desk.dialled.len();
    let canceller = cancel(desk, key);
    desk.is_closed(canceller) && desk.dialled.len() == before
}

/// KILL_CLIENT may be about a request, too; its connection ends with it.
#[test]
fn who_is_ended_by_the_operator_takes_the_connection_along() {
    let mut desk = desk();
    for sent in [false, true] {
        let canceller = cancel(&mut desk, &foreign(2, 3));
        if sent {
            arrive(&mut desk);
        }
        let Conn::Client(key) = canceller else { panic!("a client") };
        let now = desk.now;
        desk.engine.end_console(key, ringbouncer::session::farewell::Reason::ADMIN_DISCONNECT, now);
        desk.perform();
        assert!(desk.is_closed(canceller) && desk.dialled.is_empty());
        assert_eq!(desk.last_words(canceller), None);
        assert_eq!(counts(&desk, 2), Some(Counts::default()));
    }
}

/// PAUSE, RECONNECT and KILL are about databases. SUSPEND waits until nothing is under way.
#[test]
fn what_is_done_to_databases_is_not_done_to_peers() {
    let mut desk = desk();
    let canceller = cancel(&mut desk, &foreign(2, 3));
    let now = desk.now;
    desk.engine.pause(now);
    desk.perform();
    let later = cancel(&mut desk, &foreign(2, 3));
    desk.engine.resume(now);
    desk.engine.reconnect(None, now);
    desk.engine.kill_database(Some("app"), now);
    desk.perform();
    let (peer, ..) = arrive(&mut desk);
    leave(&mut desk, peer);
    assert!(desk.is_closed(canceller) && !desk.is_closed(later));
    let (peer, ..) = arrive(&mut desk);
    desk.engine.suspend(now);
    desk.perform();
    assert!(!desk.is_closed(peer) && !desk.engine.house().mode.is_quiet());
    leave(&mut desk, peer);
    assert!(desk.is_closed(later));
}

/// A peer that nobody can be connected to any more lets go of a crowd at once, and not by as many
/// calls within one another.
#[test]
fn many_requests_for_nowhere_do_not_exhaust_the_stack() {
    let mut desk = Desk::new(&text("[peers]\n2 = host=10.0.0.2 pool_size=1\n", "peer_id = 1"));
    (0..20_000).for_each(|_| _ = request(&mut desk, &foreign(2, 3)));
    desk.perform();
    // No host at all, and the desk has no directory for sockets.
    reload(&mut desk, "[peers]\n2 = host=, pool_size=0\n", "peer_id = 1");
    let (peer, ..) = arrive(&mut desk);
    leave(&mut desk, peer);
    assert_eq!(desk.closed.len(), 2 * 20_000);
    assert_eq!(counts(&desk, 2), Some(Counts::default()));
}

/// Reliability 19: a crowd of requests for a peer that never answers leaves nothing behind.
#[test]
fn reliability_19_a_storm_for_a_peer_that_hangs_passes() {
    let mut desk = desk();
    for round in 0..10u8 {
        for number in 0..200u8 {
            let mut key = foreign(2, 3);
            key[4] = number;
            key[5] = round;
            cancel(&mut desk, &key);
        }
        assert!(desk.engine.house().servers.len() <= 2);
        desk.after(SECOND);
    }
    desk.after(30 * SECOND);
    let house = desk.engine.house();
    assert_eq!((house.clients.len(), house.servers.len()), (0, 0));
    assert_eq!(house.rings.in_use(), 0);
}
