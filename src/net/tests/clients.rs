//! What clients see: their bytes, in order, whatever their pace.

use super::echo::RING_BYTES;
use super::*;
use crate::config::values::Switch;
use crate::keys::Conn;
use std::io::{Read, Write};
use std::net::Shutdown;

/// Bytes whose order matters.
fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed) as u8).collect()
}

/// Sends it all while another thread reads it back.
fn send_and_compare(client: TcpStream, sent: Vec<u8>) {
    let mut writer = client.try_clone().unwrap();
    let expected = sent.clone();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        (&client).read_to_end(&mut got).unwrap();
        assert!(got == expected, "{} of {} bytes came back", got.len(), expected.len());
    });
    writer.write_all(&sent).unwrap();
    writer.shutdown(Shutdown::Write).unwrap();
    reader.join().unwrap();
}

#[test]
fn a_megabyte_comes_back_through_a_ring_of_64_kib() {
    for defer in [0, 1] {
        let settings = Settings { tcp_defer_accept: Switch::from(defer != 0), ..loopback() };
        let (mut event_loop, address) = echo_server(settings);
        let client = connect(address);
        let thread = std::thread::spawn(move || send_and_compare(client, pattern(1 << 20, 0)));
        turn_while(&mut event_loop, thread);
        turn_until(&mut event_loop, |echo| echo.clients.is_empty());
    }
}

#[test]
fn many_clients_get_their_own_bytes() {
    let (mut event_loop, address) = echo_server(loopback());
    let threads: Vec<_> = (0..100)
        .map(|seed| {
            let client = connect(address);
            std::thread::spawn(move || send_and_compare(client, pattern(50_000, seed)))
        })
        .collect();
    for thread in threads {
        turn_while(&mut event_loop, thread);
    }
    turn_until(&mut event_loop, |echo| echo.clients.is_empty());
    let mut secrets: Vec<_> =
        event_loop.engine.accepted.iter().map(|accepted| accepted.2).collect();
    secrets.sort_unstable();
    secrets.dedup();
    assert_eq!(secrets.len(), 100, "each client has its own secret");
}

#[test]
fn a_slow_reader_gets_everything_and_holds_up_nobody() {
    let (mut event_loop, address) = echo_server(loopback());
    let mut slow = connect(address);
    let sent = pattern(8 << 20, 5);
    let expected = sent.clone();
    let mut slow_writer = slow.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        slow_writer.write_all(&sent).unwrap();
        slow_writer.shutdown(Shutdown::Write).unwrap();
    });
    // Turns until the slow client's ring is full and the kernel takes nothing more for it.
    turn_until(&mut event_loop, |echo| {
        echo.clients.iter().any(|(key, _)| {
            let conn = Conn::Client(key);
            echo.wants_write(conn) && !echo.wants_read(conn)
        })
    });
    let quick = connect(address);
    let thread = std::thread::spawn(move || send_and_compare(quick, pattern(200_000, 6)));
    turn_while(&mut event_loop, thread);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        slow.read_to_end(&mut got).unwrap();
        assert!(got == expected);
    });
    turn_while(&mut event_loop, reader);
    writer.join().unwrap();
}

#[test]
fn an_idle_loop_sleeps() {
    let (mut event_loop, address) = echo_server(loopback());
    let mut client = connect(address);
    client.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    turn_until(&mut event_loop, |echo| echo.reads.iter().any(Option::is_some));
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    // The deadline of the echo is 10 ms: 20 turns that sleep take 200 ms.
    let start = Instant::now();
    for _ in 0..20 {
        event_loop.turn().unwrap();
    }
    assert!(start.elapsed() > Duration::from_millis(100), "{:?}", start.elapsed());
    // One read brought the five bytes; no second one was spent on finding that there are no more.
    assert_eq!(event_loop.engine.nothing_read, 0);
}

#[test]
fn the_end_is_noticed_behind_the_last_bytes() {
    let (mut event_loop, address) = echo_server(loopback());
    for _ in 0..20 {
        let mut client = connect(address);
        client.write_all(b"bye").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        turn_until(&mut event_loop, |echo| {
            echo.clients.is_empty() && echo.reads.iter().any(Option::is_some)
        });
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"bye");
        event_loop.engine.reads.clear();
    }
}

#[test]
fn a_peer_that_vanishes_closes_both_ways() {
    let (mut event_loop, address) = echo_server(loopback());
    let mut client = connect(address);
    client.write_all(b"x").unwrap();
    turn_until(&mut event_loop, |echo| echo.reads.iter().any(Option::is_some));
    // Closing with the echo unread makes the kernel send a reset.
    client.peek(&mut [0]).unwrap();
    drop(client);
    turn_until(&mut event_loop, |echo| echo.clients.is_empty());
}

#[test]
fn no_connection_takes_more_than_its_share_of_a_turn() {
    let settings = Settings { sbuf_loopcnt: 2, ..loopback() };
    let (mut event_loop, address) = echo_server(settings);
    let threads: Vec<_> = (0..4)
        .map(|seed| {
            let client = connect(address);
            std::thread::spawn(move || send_and_compare(client, pattern(2 << 20, seed)))
        })
        .collect();
    for thread in threads {
        turn_while(&mut event_loop, thread);
    }
    let reads = &event_loop.engine.reads;
    let mut most = 0;
    for turn in reads.split(Option::is_none) {
        for conn in turn {
            most = most.max(turn.iter().filter(|&other| other == conn).count());
        }
    }
    assert_eq!(most, 2, "someone used the share up, nobody got more");
}

#[test]
fn a_farewell_arrives_even_if_the_peer_was_still_sending() {
    let (mut event_loop, address) = echo_server(loopback());
    let mut client = connect(address);
    client.write_all(b"first").unwrap();
    turn_until(&mut event_loop, |echo| echo.clients.len() == 1);
    event_loop.engine.is_deaf = true;
    client.read_exact(&mut [0; 5]).unwrap();
    client.write_all(&pattern(30_000, 1)).unwrap();
    for _ in 0..3 {
        event_loop.turn().unwrap();
    }
    let key = event_loop.engine.accepted[0].0;
    event_loop.engine.peer_mut(Conn::Client(key)).unwrap().say(b"go away");
    event_loop.engine.close(Conn::Client(key));
    turn_until(&mut event_loop, |echo| echo.clients.is_empty());
    let mut last_words = Vec::new();
    client.read_to_end(&mut last_words).unwrap();
    assert_eq!(last_words, b"go away");
}

#[test]
fn an_event_of_a_closed_socket_never_reaches_the_next_tenant() {
    let (mut event_loop, address) = echo_server(loopback());
    for round in 0..50u32 {
        let mut old = connect(address);
        old.write_all(b"old").unwrap();
        turn_until(&mut event_loop, |echo| echo.clients.len() == 1);
        let key = event_loop.engine.accepted.last().unwrap().0;
        event_loop.engine.close(Conn::Client(key));
        // In the turn that closes the old client, its events and the new client are both there.
        old.write_all(b"late").unwrap();
        let mut new = connect(address);
        new.write_all(b"new").unwrap();
        turn_until(&mut event_loop, |echo| {
            echo.accepted.last().unwrap().0 != key && echo.clients.len() == 1
        });
        let thread = std::thread::spawn(move || {
            let mut answer = [0; 3];
            new.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"new");
        });
        turn_while(&mut event_loop, thread);
        turn_until(&mut event_loop, |echo| echo.clients.is_empty());
        assert_eq!(event_loop.engine.accepted.len() as u32, 2 * (round + 1));
    }
}

#[test]
fn a_wrapped_ring_is_filled_and_drained_in_both_parts() {
    let (mut event_loop, address) = echo_server(loopback());
    let mut client = connect(address);
    let sent = pattern(3 * RING_BYTES, 9);
    for chunk in sent.chunks(RING_BYTES / 3 + 1) {
        client.write_all(chunk).unwrap();
        let mut reader = client.try_clone().unwrap();
        let expected = chunk.to_vec();
        let thread = std::thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            reader.read_exact(&mut got).unwrap();
            assert!(got == expected);
        });
        turn_while(&mut event_loop, thread);
    }
}
