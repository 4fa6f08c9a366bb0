//! The stage for tests of the real binary: a shared PostgreSQL, a pooler per test, a raw client.
//!
//! ```text
//! test ── raw::Raw / postgres::Client ──▶ Pooler (own process, own temp dir) ──▶ Postgres (shared)
//! ```
//!
//! The pooler under test is `RINGBOUNCER_TEST_BINARY` if that is set, else the one cargo built.
//! Nothing here sleeps for a fixed time to let something happen: see [`wait_for`].

#![allow(dead_code)] // Each test file uses its own part of the stage.
#![allow(missing_docs)] // Names say it; rustdoc does not build tests.

pub mod desk;
pub mod fake;
pub mod names;
pub mod oracle;
pub mod outside;
pub mod own_postgresql;
pub mod pooler;
pub mod postgresql;
pub mod prover;
pub mod raw;
pub mod sleep;
pub mod sys;
pub mod tls;

#[allow(unused_imports)] // As above.
pub use pooler::Pooler;
pub use postgresql::Postgres;
pub use raw::{Raw, Startup};

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything that must happen may take on a crowded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until the condition holds; panics with `what` when patience is at its end.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for_some(what, || condition().then_some(()));
}

/// As [`wait_for`], for a condition that brings a value.
pub fn wait_for_some<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port of the loopback for a server that we start, ours alone as long as this lives.
///
/// It is none of those the kernel gives away by itself. An abstract Unix socket named after it keeps
/// other tests off, in whatever process, between our look at the port and the server's bind.
pub struct Lease {
    pub port: u16,
    _claim: UnixListener,
}

impl Lease {
    pub fn take() -> Lease {
        static TURN: AtomicU32 = AtomicU32::new(0);
        let turn = u64::from(TURN.fetch_add(1, Ordering::Relaxed));
        let mut random = Random::new(u64::from(std::process::id()) << 20 | turn);
        wait_for_some("a free port", || {
            let port = u16::try_from(10_000 + random.below(22_000)).expect("below 2^16");
            let name = SocketAddr::from_abstract_name(format!("ringbouncer-port-{port}"));
            let claim = UnixListener::bind_addr(&name.expect("a short name")).ok()?;
            TcpListener::bind(("127.0.0.1", port)).ok()?;
            Some(Lease { port, _claim: claim })
        })
    }
}

/// A new directory that belongs to the account the servers run as.
pub fn temp_dir(parent: &Path, kind: &str) -> PathBuf {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::UNIX_EPOCH.elapsed().expect("clock after 1970").subsec_nanos();
    let name = format!("{kind}-{}-{serial}-{nanos}", std::process::id());
    let path = parent.join(name);
    std::fs::create_dir(&path).expect("create a temporary directory");
    if let Some(account) = account() {
        std::os::unix::fs::chown(&path, Some(account.uid), Some(account.gid)).expect("chown");
    }
    path
}

/// The account that PostgreSQL and the pooler run as.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

/// `postgres` when we are root, which both servers refuse to be; else `None`: ourselves.
pub fn account() -> Option<Account> {
    static ACCOUNT: std::sync::OnceLock<Option<Account>> = std::sync::OnceLock::new();
    *ACCOUNT.get_or_init(|| {
        if sys::effective_uid() != 0 {
            return None;
        }
        let id = |flag: &str| -> u32 {
            let output = Command::new("id").args([flag, "postgres"]).output().expect("run id");
            let text = String::from_utf8_lossy(&output.stdout);
            text.trim().parse().expect("an account `postgres` exists (Debian package postgresql)")
        };
        Some(Account { uid: id("-u"), gid: id("-g") })
    })
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("process status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS in status");
    let kilobytes: u64 = line
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number of kB");
    kilobytes * 1024
}

/// A small generator with a seed (xorshift), so that a failing run can be repeated.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 16).expect("48 bits fit") % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}
