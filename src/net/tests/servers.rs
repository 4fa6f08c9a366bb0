//! Connections that we open.

use super::echo::Outcome;
use super::*;
use crate::engine::io::ServerAddress;
use crate::keys::Conn;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::Path;

fn event_loop() -> EventLoop<Echo> {
    EventLoop::new(Echo::new(loopback())).unwrap()
}

/// Connects, and checks that bytes go both ways.
fn connect_and_echo<S: Read + Write + Send + 'static>(
    to: ServerAddress,
    accept: impl FnOnce() -> S + Send + 'static,
) -> Option<SocketAddr> {
    let mut event_loop = event_loop();
    let server = event_loop.engine.connect(to);
    event_loop.engine.peer_mut(Conn::Server(server)).unwrap().say(b"hello");
    let thread = std::thread::spawn(move || {
        let mut stream = accept();
        let mut words = [0; 5];
        stream.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"hello");
        stream.write_all(b"world").unwrap();
        stream.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"world");
    });
    turn_while(&mut event_loop, thread);
    turn_until(&mut event_loop, |echo| echo.servers.is_empty());
    match event_loop.engine.outcomes.pop() {
        Some((key, Outcome::Connected(local))) if key == server => local,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_over_tcp() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(any) else {
            continue;
        };
        let to = ServerAddress::Tcp(listener.local_addr().unwrap());
        let local = connect_and_echo(to, move || listener.accept().unwrap().0).unwrap();
        assert!(local.ip().is_loopback());
    }
}

#[test]
fn a_server_at_a_socket_file() {
    let directory = Directory::new();
    let path = directory.path(".s.PGSQL.5432");
    let listener = UnixListener::bind(&path).unwrap();
    let local = connect_and_echo(ServerAddress::Unix(path), move || listener.accept().unwrap().0);
    assert_eq!(local, None);
}

#[test]
fn a_server_at_an_abstract_name() {
    let name = format!("ringbouncer-{}/.s.PGSQL.5432", std::process::id());
    let address = UnixAddress::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let to = ServerAddress::Unix(format!("@{name}").into());
    connect_and_echo(to, move || listener.accept().unwrap().0);
}

#[test]
fn nobody_listens_there() {
    let mut event_loop = event_loop();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let later = event_loop.engine.connect(ServerAddress::Tcp(address));
    turn_until(&mut event_loop, |echo| echo.servers.is_empty());
    let at_once = event_loop.engine.connect(ServerAddress::Unix(Path::new("/nowhere").into()));
    turn_until(&mut event_loop, |echo| echo.servers.is_empty());
    let words = Some("No such file or directory".to_string());
    assert_eq!(
        event_loop.engine.outcomes,
        [(later, Outcome::Failed(None)), (at_once, Outcome::Failed(words))]
    );
}

#[test]
fn a_refused_option_fails_the_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut event_loop = event_loop();
    event_loop.engine.settings.tcp_keepidle = -1;
    let server = event_loop.engine.connect(ServerAddress::Tcp(listener.local_addr().unwrap()));
    turn_until(&mut event_loop, |echo| echo.servers.is_empty());
    let words = Some("Invalid argument".to_string());
    assert_eq!(event_loop.engine.outcomes, [(server, Outcome::Failed(words))]);
}

#[test]
fn a_connect_can_be_given_up_while_it_hangs() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut event_loop = event_loop();
    let to = ServerAddress::Tcp(listener.local_addr().unwrap());
    let server = event_loop.engine.connect(to);
    event_loop.engine.close(Conn::Server(server));
    turn_until(&mut event_loop, |echo| echo.servers.is_empty());
    assert!(event_loop.engine.outcomes.is_empty());
}

#[test]
fn host_names_are_looked_up_beside_the_loop() {
    let mut event_loop = event_loop();
    event_loop.engine.resolve("localhost");
    event_loop.engine.resolve("no such host");
    turn_until(&mut event_loop, |echo| echo.resolved.len() == 2);
    let mut resolved = event_loop.engine.resolved.clone();
    resolved.sort();
    let [(here, addresses), nowhere] = &resolved[..] else {
        panic!("two answers, not {resolved:?}");
    };
    assert_eq!(*nowhere, ("no such host".to_string(), Vec::new()));
    assert_eq!(here, "localhost");
    assert!(addresses.iter().any(|address| address.is_loopback()), "{addresses:?}");
}
