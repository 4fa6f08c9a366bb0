//! Out of file descriptors, in a process of its own.

use super::*;
use crate::sys;
use std::io::{Read, Write};
use std::process::Command;

const CHILD: &str = "RINGBOUNCER_TEST_FEW_FILES";

#[test]
fn without_file_descriptors_the_listener_rests_and_recovers() {
    let this_test = "net::tests::limits::without_file_descriptors_the_listener_rests_and_recovers";
    if std::env::var_os(CHILD).is_some() {
        return run_out_of_files();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", this_test, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{words}"
    );
}

fn run_out_of_files() {
    let (mut event_loop, address) = echo_server(loopback());
    let mut clients: Vec<_> = (0..10).map(|_| connect(address)).collect();
    let first_free = std::fs::File::open("/dev/null").unwrap();
    let in_use = std::os::fd::AsRawFd::as_raw_fd(&first_free) as u64;
    drop(first_free);
    sys::limit_open_files(in_use + 4).unwrap();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
    }
    turn_until(&mut event_loop, |echo| echo.clients.len() == 4);
    // While it rests it sleeps: turns come from the echo's deadline of 10 ms only.
    let start = Instant::now();
    for _ in 0..20 {
        event_loop.turn().unwrap();
    }
    assert!(
        start.elapsed() > Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(event_loop.engine.clients.len(), 4);
    // The four that came in are served.
    for client in &mut clients[..4] {
        client.read_exact(&mut [0]).unwrap();
    }
    clients.drain(..4);
    // No event will come for those who wait: the end of the rest lets them in.
    turn_until(&mut event_loop, |echo| echo.accepted.len() == 10);
    assert!(
        start.elapsed() > Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}
