//! File descriptors: none left, and none for our children. (Reliability, 18.)

use super::*;
use crate::engine::io::ServerAddress;
use crate::sys;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Command;

const CHILD: &str = "RINGBOUNCER_TEST_FEW_FILES";

/// Reliability 18.
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
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{words}");
}

/// Reliability 18.
#[test]
fn no_descriptor_outlives_an_exec() {
    let before = inheritable_descriptors();
    let (mut event_loop, address) = echo_server(loopback());
    let mut client = connect(address);
    client.write_all(b"x").unwrap();
    event_loop.engine.connect(ServerAddress::Tcp(address));
    turn_until(&mut event_loop, |echo| echo.clients.len() == 2 && echo.outcomes.len() == 1);
    assert_eq!(inheritable_descriptors(), before);
}

/// The descriptors that a child of this process would find open.
fn inheritable_descriptors() -> BTreeSet<i32> {
    let entries = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    let inheritable = entries.filter_map(|entry| {
        let path = entry.unwrap().path();
        // Other tests come and go meanwhile.
        let info = std::fs::read_to_string(&path).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        let number = path.file_name()?.to_str()?.parse().unwrap();
        (flags & libc::O_CLOEXEC == 0).then_some(number)
    });
    inheritable.collect()
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
    assert!(start.elapsed() > Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!(event_loop.engine.clients.len(), 4);
    // The four that came in are served.
    for client in &mut clients[..4] {
        client.read_exact(&mut [0]).unwrap();
    }
    clients.drain(..4);
    // No event will come for those who wait: the end of the rest lets them in.
    turn_until(&mut event_loop, |echo| echo.accepted.len() == 10);
    assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
}
