//! No server to be had: who waits, who is told, and how all goes on when it is back.

mod common;

use common::fake::{self, FakeServer, Visit};
use common::{Lease, Pooler, Raw, Startup, raw, wait_for};
use std::net::TcpStream;
use std::time::Duration;

fn pooler(port: u16, login_timeout: &str) -> Pooler {
    Pooler::start(|ini| {
        ini.database("fake", &format!("host=127.0.0.1 port={port} dbname=fake"));
        ini.set("client_login_timeout", login_timeout);
        ini.set("server_login_retry", "1");
        ini.set("default_pool_size", "1");
    })
}

fn startup() -> Startup {
    Startup::v3().param("user", "alice").param("database", "fake")
}

/// Answers every query until it is told to die by a query that says so.
fn mortal(visit: &mut Visit) {
    visit.welcome();
    while let Some(message) = visit.message() {
        if message.body.starts_with(b"die") {
            return;
        }
        visit.send(&fake::one_row("served"));
    }
}

/// Ends the listener and waits until nobody answers at its port.
fn stop(server: FakeServer) {
    let port = server.port;
    drop(server);
    wait_for("the port to be closed", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_login_without_a_server_ends_in_time() {
    let lease = Lease::take();
    let pooler = pooler(lease.port, "2");
    let mut client = pooler.unnamed();
    client.send(&startup().bytes());
    client.expect_fatal("client_login_timeout (server down)");
    pooler.assert_serves();
}

#[test]
fn a_login_waits_for_the_server_to_come() {
    let lease = Lease::take();
    let pooler = pooler(lease.port, "60");
    let mut client = pooler.unnamed();
    client.send(&startup().bytes());
    assert!(client.is_quiet_for(Duration::from_millis(300)));
    let _server = FakeServer::start_on(lease.port, mortal);
    assert_eq!(client.until_ready().last().expect("a welcome").tag, b'Z');
    assert_eq!(client.value("SELECT 1"), "served");
}

#[test]
fn a_login_waits_for_a_server_that_is_starting_up() {
    let lease = Lease::take();
    let pooler = pooler(lease.port, "60");
    let visits = std::sync::atomic::AtomicUsize::new(0);
    let server = FakeServer::start_on(lease.port, move |visit| {
        if visits.fetch_add(1, std::sync::atomic::Ordering::AcqRel) > 0 {
            return mortal(visit);
        }
        visit.startup();
        let words = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0";
        visit.send(&raw::message(b'E', words));
    });
    let mut client = pooler.raw_with(startup());
    assert_eq!(client.value("SELECT 1"), "served");
    assert!(server.visits() > 1);
}

#[test]
fn queries_are_refused_while_the_server_is_known_to_be_down() {
    let lease = Lease::take();
    let pooler = pooler(lease.port, "60");
    let server = FakeServer::start_on(lease.port, mortal);
    let mut first = pooler.raw_with(startup());
    let mut second = pooler.raw_with(startup());
    assert_eq!(first.value("SELECT 1"), "served");
    stop(server);
    let mut killer = pooler.raw_with(startup());
    killer.send(&raw::query("die"));
    killer.expect_fatal("server conn crashed?");

    // The first one asks before anybody knows: it stays in the queue.
    first.send(&raw::query("SELECT 1"));
    wait_for("the failure to be known", || pooler.log().contains("connect failed"));
    let refusal =
        "server login has been failing, cached error: connect failed (server_login_retry)";
    second.send(&raw::query("SELECT 2"));
    second.expect_fatal(refusal);
    // The welcome is known, so a login passes; its query does not.
    let mut late: Raw = pooler.raw_with(startup());
    late.send(&raw::query("SELECT 3"));
    late.expect_fatal(refusal);
    assert!(first.is_quiet_for(Duration::from_millis(100)));

    let _server = FakeServer::start_on(lease.port, mortal);
    first.expect_tags("TDCZ");
    assert_eq!(pooler.raw_with(startup()).value("SELECT 4"), "served");
}

#[test]
fn an_outage_of_one_database_is_not_felt_in_another() {
    let lease = Lease::take();
    let pooler = pooler(lease.port, "60");
    let mut waiting: Vec<Raw> = (0..50).map(|_| pooler.unnamed()).collect();
    for client in &mut waiting {
        client.send(&startup().bytes());
    }
    for _ in 0..20 {
        pooler.assert_serves();
    }
}
