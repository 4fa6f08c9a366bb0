//! The shell with an engine that merely echoes, over real sockets.

mod clients;
mod echo;
mod limits;
mod listeners;
mod servers;

use super::{EventLoop, Flow, Heart, Signal};
use crate::config::settings::Settings;
use echo::Echo;
use std::net::{SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Far more than any of these tests needs, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Settings that listen on a free port of the loopback interface and nowhere else.
fn loopback() -> Settings {
    Settings {
        listen_addr: "127.0.0.1".into(),
        listen_port: 0,
        unix_socket_dir: String::new(),
        ..Settings::default()
    }
}

/// A loop that listens, with the address of its first listener.
fn echo_server(settings: Settings) -> (EventLoop<Echo>, SocketAddr) {
    let mut event_loop = EventLoop::new(Echo::new(settings)).unwrap();
    event_loop.listen().unwrap();
    let address = event_loop.listeners().tcp_addresses()[0];
    (event_loop, address)
}

/// A client whose calls fail instead of hanging for ever.
fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Turns the loop until the condition holds.
fn turn_until(event_loop: &mut EventLoop<Echo>, mut holds: impl FnMut(&mut Echo) -> bool) {
    let start = Instant::now();
    while !holds(&mut event_loop.engine) {
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        event_loop.turn().unwrap();
    }
}

/// Turns the loop until that thread is done.
fn turn_while<T>(event_loop: &mut EventLoop<Echo>, thread: JoinHandle<T>) -> T {
    turn_until(event_loop, |_| thread.is_finished());
    thread.join().unwrap()
}

/// An empty directory of this test's own; goes with the value.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringbouncer-net-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn as_str(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_signal_ends_the_run() {
    let (mut event_loop, _) = echo_server(loopback());
    let pid = std::process::id().to_string();
    let killed = std::process::Command::new("kill").args(["-USR2", &pid]).status().unwrap();
    assert!(killed.success());
    let mut seen = Vec::new();
    event_loop
        .run(|_, flow| {
            seen.push(flow.clone());
            match flow {
                Flow::Signal(Signal::User2) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
        .unwrap();
    assert_eq!(seen, [Flow::Signal(Signal::User2)]);
}
