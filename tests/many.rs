//! Thousands of clients that do next to nothing cost next to nothing.

mod common;

use common::{Pooler, Raw, Startup, raw, sys, wait_for};

const FEW: usize = 500;
const BYTES_PER_CLIENT: u64 = 1000;

/// How many clients the limit on open files lets us have, up to 2500.
fn many() -> usize {
    let files = sys::raise_open_files();
    let many = usize::try_from(files.saturating_sub(200)).map_or(2500, |files| files.min(2500));
    assert!(many >= 1000, "a limit of {files} open files is too low for this test");
    many
}

fn crowd_pooler(mode: &str) -> Pooler {
    Pooler::start(|ini| {
        ini.set("pool_mode", mode).set("max_client_conn", "5000");
        ini.set("default_pool_size", "5").set("log_connections", "0");
        ini.set("log_disconnections", "0");
    })
}

fn join(pooler: &Pooler, clients: &mut Vec<Raw>, until: usize) {
    while clients.len() < until {
        let name = format!("client {}", clients.len());
        let startup = Startup::v3().param("user", "alice").param("database", "app");
        clients.push(pooler.raw_with(startup.param("application_name", &name)));
    }
}

#[test]
fn an_idle_client_costs_less_than_a_kilobyte() {
    let many = many();
    let pooler = crowd_pooler("transaction");
    let mut clients = Vec::new();
    join(&pooler, &mut clients, FEW);
    let before = pooler.resident_bytes();
    join(&pooler, &mut clients, many);
    let growth = pooler.resident_bytes().saturating_sub(before);
    let each = growth / u64::try_from(many - FEW).expect("a count");
    assert!(each <= BYTES_PER_CLIENT, "{each} bytes for each of {} idle clients", many - FEW);
    assert_eq!(clients[many - 1].value("SELECT 42"), "42");
}

#[test]
fn a_client_that_has_worked_costs_no_more_than_before() {
    let many = many();
    let pooler = crowd_pooler("transaction");
    let mut clients = Vec::new();
    join(&pooler, &mut clients, FEW);
    for client in &mut clients {
        client.query("SELECT repeat('x', 5000)");
    }
    let before = pooler.resident_bytes();
    join(&pooler, &mut clients, many);
    for client in &mut clients {
        assert_eq!(client.value("SELECT repeat('x', 5000)").len(), 5000);
    }
    let growth = pooler.resident_bytes().saturating_sub(before);
    let each = growth / u64::try_from(many - FEW).expect("a count");
    assert!(each <= BYTES_PER_CLIENT, "{each} bytes for each of {} clients", many - FEW);
}

/// Reliability 18: descriptors far beyond 1024 are like any other.
#[test]
fn all_of_a_crowd_are_served_at_once() {
    let many = many();
    let pooler = crowd_pooler("transaction");
    let mut clients = Vec::new();
    join(&pooler, &mut clients, many);
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&raw::query(&format!("SELECT {number}")));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = client.expect_tags("TDCZ");
        assert_eq!(answer[1].columns(), [number.to_string()]);
    }
}

#[test]
fn places_of_a_crowd_are_used_again() {
    let many = many();
    let pooler = crowd_pooler("transaction");
    let mut clients = Vec::new();
    join(&pooler, &mut clients, many);
    let before = pooler.resident_bytes();
    for _ in 0..3 {
        clients.clear();
        let files = || {
            let list = std::fs::read_dir(format!("/proc/{}/fd", pooler.pid()));
            list.expect("the pooler's open files").count()
        };
        wait_for("the pooler to see them leave", || files() < 100);
        join(&pooler, &mut clients, many);
    }
    let growth = pooler.resident_bytes().saturating_sub(before);
    assert!(growth < 1 << 20, "three crowds left {growth} bytes behind");
}
