//! Thousands of pools with a server each, in which nobody does anything, cost no CPU, and little
//! memory. `RINGBOUNCER_POOLS=10000` makes it so many; see `bench/README.md`.

mod common;

use common::fake::welcome;
use common::{Pooler, Startup, sys, wait_for};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const FEW: usize = 300;
/// A pool, its server and what both are found by.
const BYTES_PER_POOL: u64 = 8 * 1024;
const IDLE_FOR: Duration = Duration::from_secs(2);
/// In that time statistics are added up twice, of all pools at once. (By a build without
/// optimization. Otherwise nobody looks at them.)
const CPU_PER_POOL: Duration = Duration::from_micros(10);

fn number_of_pools() -> usize {
    let wanted = std::env::var("RINGBOUNCER_POOLS").map(|number| number.parse().expect("a number"));
    let wanted = wanted.unwrap_or(1200);
    let files = usize::try_from(sys::raise_open_files()).unwrap_or(usize::MAX);
    let most = files.saturating_sub(200);
    assert!(most > 3 * FEW, "a limit of {files} open files is too low for this test");
    wanted.min(most)
}

/// A server that welcomes everybody, one after the other, and then says nothing more.
fn start_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let mut kept: Vec<TcpStream> = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4];
            stream.read_exact(&mut head).expect("a Startup");
            let rest = usize::try_from(u32::from_be_bytes(head)).expect("a length fits") - 4;
            stream.read_exact(&mut vec![0; rest]).expect("a whole Startup");
            stream.write_all(&welcome()).expect("a welcome");
            kept.push(stream);
        }
    });
    port
}

/// The CPU that a process has used.
fn cpu(pooler: &Pooler) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pooler.pid())).expect("its threads");
    let used = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.expect("a thread").path().join("schedstat"));
        let text = text.expect("what it used");
        text.split(' ').next().expect("a number").parse::<u64>().expect("nanoseconds")
    };
    Duration::from_nanos(tasks.map(used).sum())
}

#[test]
fn pools_in_which_nothing_happens_cost_nothing() {
    let many = number_of_pools();
    let port = start_server();
    let pooler = Pooler::start(|ini| {
        ini.database("*", &format!("host=127.0.0.1 port={port}"));
        ini.set("server_idle_timeout", "0").set("autodb_idle_timeout", "0");
        ini.set("server_tls_sslmode", "disable").set("stats_period", "1").set("log_stats", "0");
        ini.set("log_connections", "0").set("log_disconnections", "0");
        // All limits that might make somebody look at all pools.
        ini.set("query_timeout", "1").set("transaction_timeout", "1");
        ini.set("idle_transaction_timeout", "1").set("client_idle_timeout", "1000");
    });
    let join = |number: usize| {
        let name = format!("database{number}");
        drop(pooler.raw_with(Startup::v3().param("user", "alice").param("database", &name)));
    };
    (0..FEW).for_each(join);
    let before = pooler.resident_bytes();
    (FEW..many).for_each(join);
    let growth = pooler.resident_bytes().saturating_sub(before);
    let each = growth / u64::try_from(many - FEW).expect("a count");
    wait_for("the last clients to be gone", || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", pooler.pid()));
        files.expect("its open files").count() < many + 50
    });
    let (used, since) = (cpu(&pooler), Instant::now());
    std::thread::sleep(IDLE_FOR);
    let (used, time) = (cpu(&pooler) - used, since.elapsed());
    eprintln!("{many} pools: {each} bytes for each, {used:?} of CPU in {time:?}");
    assert!(each <= BYTES_PER_POOL, "{each} bytes for each of {many} pools");
    let most = CPU_PER_POOL * u32::try_from(many).expect("a count");
    assert!(used < most, "{used:?} of CPU in {time:?} for {many} idle pools");
}
