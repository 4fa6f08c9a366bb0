//! Where clients may knock.

use super::*;
use crate::config::values::Switch;
use crate::engine::io::ClientAddress;
use crate::keys::Conn;
use crate::net::bind;
use crate::net::sockets::Stream;
use socket2::SockRef;
use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::Path;

fn only_unix(directory: &str) -> Settings {
    Settings {
        listen_addr: "".into(),
        unix_socket_dir: directory.to_string(),
        unix_socket_mode: 0o750,
        unix_socket_group: fs::metadata("/proc/self").unwrap().gid().to_string(),
        ..Settings::default()
    }
}

fn echo_once(event_loop: &mut EventLoop<Echo>, mut client: UnixStream) {
    let thread = std::thread::spawn(move || {
        client.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    });
    turn_while(event_loop, thread);
}

#[test]
fn a_socket_file_appears_with_its_mode_and_goes() {
    let directory = Directory::new();
    let settings = only_unix(directory.as_str());
    let path = directory.path(".s.PGSQL.6432");
    assert!(!bind::unix_socket_in_use(&settings));
    // A file that somebody left behind is in nobody's way.
    drop(UnixListener::bind(&path).unwrap());
    assert!(!bind::unix_socket_in_use(&settings));
    let mut event_loop = EventLoop::new(Echo::new(settings.clone())).unwrap();
    event_loop.listen().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o750);
    assert!(bind::unix_socket_in_use(&settings));
    echo_once(&mut event_loop, UnixStream::connect(&path).unwrap());
    let uid = fs::metadata("/proc/self").unwrap().uid();
    let from = ClientAddress::Unix { pid: std::process::id(), uid: Some(uid) };
    assert_eq!(event_loop.engine.accepted.last().unwrap().1, from);
    drop(event_loop);
    assert!(!path.exists());
}

#[test]
fn a_socket_file_stays_if_somebody_else_uses_it() {
    let directory = Directory::new();
    let settings = only_unix(directory.as_str());
    let mut event_loop = EventLoop::new(Echo::new(settings)).unwrap();
    event_loop.listen().unwrap();
    event_loop.listeners().leave_files();
    drop(event_loop);
    assert!(directory.path(".s.PGSQL.6432").exists());
}

#[test]
fn a_lock_file_keeps_us_away() {
    let directory = Directory::new();
    fs::write(directory.path(".s.PGSQL.6432.lock"), "").unwrap();
    let settings = only_unix(directory.as_str());
    let error = EventLoop::new(Echo::new(settings)).unwrap().listen().unwrap_err();
    assert_eq!(error.to_string(), "unix port 6432 is in use");
}

#[test]
fn a_missing_directory_is_fatal() {
    let error = EventLoop::new(Echo::new(only_unix("/no/such/directory"))).unwrap().listen();
    assert_eq!(error.unwrap_err().to_string(), "failed to create unix socket");
}

#[test]
fn nowhere_to_listen_is_fatal() {
    let settings = Settings { listen_addr: ", ,".into(), ..only_unix("") };
    let error = EventLoop::new(Echo::new(settings)).unwrap().listen().unwrap_err();
    assert_eq!(error.to_string(), "nowhere to listen on");
}

#[test]
fn an_unknown_group_is_fatal() {
    let directory = Directory::new();
    let group = "no such group".to_string();
    let settings = Settings { unix_socket_group: group, ..only_unix(directory.as_str()) };
    let error = EventLoop::new(Echo::new(settings)).unwrap().listen().unwrap_err();
    assert_eq!(error.to_string(), "could not find group 'no such group': Success");
}

#[test]
fn an_abstract_name_needs_no_file() {
    let directory = format!("@ringbouncer-listen-{}", std::process::id());
    let settings = only_unix(&directory);
    assert!(!bind::unix_socket_in_use(&settings));
    let mut event_loop = EventLoop::new(Echo::new(settings)).unwrap();
    event_loop.listen().unwrap();
    let name = format!("{}/.s.PGSQL.6432", &directory[1..]);
    let address = UnixAddress::from_abstract_name(name).unwrap();
    echo_once(&mut event_loop, UnixStream::connect_addr(&address).unwrap());
    assert!(!Path::new(&directory).exists());
}

#[test]
fn closed_tcp_listeners_refuse_while_clients_go_on() {
    let directory = Directory::new();
    let settings = Settings { unix_socket_dir: directory.as_str().to_string(), ..loopback() };
    let (mut event_loop, address) = echo_server(settings);
    let mut client = connect(address);
    client.write_all(b"x").unwrap();
    turn_until(&mut event_loop, |echo| echo.clients.len() == 1);
    event_loop.listeners().close_tcp();
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    echo_once(&mut event_loop, UnixStream::connect(directory.path(".s.PGSQL.0")).unwrap());
    let thread = std::thread::spawn(move || {
        client.write_all(b"y").unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
    });
    turn_while(&mut event_loop, thread);
}

#[test]
fn two_processes_can_share_a_port() {
    let settings = Settings { so_reuseport: Switch::from(true), ..loopback() };
    let (_first, address) = echo_server(settings.clone());
    let settings = Settings { listen_port: i32::from(address.port()), ..settings };
    let (_second, same_address) = echo_server(settings);
    assert_eq!(address, same_address);
}

#[test]
fn accepted_sockets_have_the_options_of_now() {
    let settings =
        Settings { tcp_defer_accept: Switch::from(false), tcp_keepidle: 77, ..loopback() };
    let (mut event_loop, address) = echo_server(settings);
    let _first = connect(address);
    turn_until(&mut event_loop, |echo| echo.clients.len() == 1);
    event_loop.engine.settings.tcp_keepidle = 78;
    event_loop.engine.settings.tcp_defer_accept = Switch::from(true);
    let _second = connect(address);
    turn_until(&mut event_loop, |echo| echo.clients.len() == 2);
    // The first was not set by a call: the kernel's inheritance is what is tested here.
    let keys = [event_loop.engine.accepted[0].0, event_loop.engine.accepted[1].0];
    let idle = keys.map(|key| {
        let Stream::Tcp(stream) = event_loop.stream(Conn::Client(key)) else { panic!("not TCP") };
        let socket = SockRef::from(stream);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        socket.tcp_keepalive_time().unwrap().as_secs()
    });
    assert_eq!(idle, [77, 78]);
}

#[test]
fn a_crowd_is_let_in_over_several_turns() {
    let settings = Settings { tcp_defer_accept: Switch::from(false), ..loopback() };
    let (mut event_loop, address) = echo_server(settings);
    let crowd: Vec<_> = (0..100).map(|_| connect(address)).collect();
    event_loop.turn().unwrap();
    assert_eq!(event_loop.engine.accepted.len(), 64);
    event_loop.turn().unwrap();
    assert_eq!(event_loop.engine.accepted.len(), crowd.len());
}
