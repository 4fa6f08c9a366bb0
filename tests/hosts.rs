//! Lists of hosts, connected to for real: addresses and directories of Unix sockets, in turn or one
//! until it fails, and what metrics tell of each.

mod common;

use common::own_postgresql::OwnPostgres;
use common::{Lease, Pooler, Raw, Startup, temp_dir, wait_for};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

/// A PostgreSQL that listens on the loopback and in a directory.
struct Place {
    own: OwnPostgres,
    directory: PathBuf,
}

impl Place {
    fn new() -> Place {
        let directory = temp_dir(&std::env::temp_dir(), "ringbouncer-sockets");
        let mut own = OwnPostgres::start();
        own.stop();
        own.configure(&format!("unix_socket_directories = '{}'", directory.display()));
        own.start_again();
        Place { own, directory }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.own.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Clients that work at the same time, and how the server of each is connected to.
fn addresses(pooler: &Pooler, database: &str, number: usize) -> (Vec<Raw>, Vec<String>) {
    let startup = || Startup::v3().param("user", "alice").param("database", database);
    let mut clients: Vec<Raw> = (0..number).map(|_| pooler.raw_with(startup())).collect();
    let mut address = |client: &mut Raw| {
        client.query("BEGIN");
        client.value("SELECT coalesce(host(inet_server_addr()), 'unix')")
    };
    let addresses = clients.iter_mut().map(&mut address).collect();
    (clients, addresses)
}

#[test]
fn addresses_and_directories_of_a_list_are_all_connected_to() {
    let place = Place::new();
    let (port, directory) = (place.own.port, place.directory.display());
    let door = Lease::take();
    let pooler = Pooler::start(|ini| {
        ini.set("pool_mode", "transaction").set("server_login_retry", "0.1");
        ini.set("metrics_listen", &format!("127.0.0.1:{}", door.port));
        let list = |hosts: &str, more: &str| format!("host={hosts} port={port} dbname=app {more}");
        ini.database("turns", &list(&format!("{directory},127.0.0.1"), ""));
        let stays = "load_balance_hosts=disable";
        ini.database("first", &list(&format!("{directory},127.0.0.1"), stays));
        ini.database("other", &list(&format!("/nowhere,127.0.0.1,{directory}"), stays));
    });
    let (turns, seen) = addresses(&pooler, "turns", 4);
    assert_eq!(seen, ["unix", "127.0.0.1", "unix", "127.0.0.1"]);
    let (_first, seen) = addresses(&pooler, "first", 3);
    assert_eq!(seen, ["unix"; 3]);
    // It goes on to the next one when one fails, and stays there.
    let (_other, seen) = addresses(&pooler, "other", 3);
    assert_eq!(seen, ["127.0.0.1"; 3]);

    let page = metrics(&door);
    let sample = |name: &str, host: &str| {
        let line = format!("ringbouncer_{name}{{host=\"{host}\",port=\"{port}\"}} ");
        let found = page.lines().find_map(|found| found.strip_prefix(&line));
        found.unwrap_or_else(|| panic!("no {line}in {page}")).to_owned()
    };
    assert_eq!(sample("host_servers", &directory.to_string()), "5");
    assert_eq!(sample("host_servers", "127.0.0.1"), "5");
    assert_eq!(sample("host_servers", "/nowhere"), "0");
    let failing = ["127.0.0.1", "/nowhere"].map(|host| sample("host_failing", host));
    assert_eq!(failing, ["0", "1"]);
    assert_eq!(sample("host_failures", "/nowhere"), "1");
    assert_eq!(sample("host_failures", &directory.to_string()), "0");

    // One that is gone is passed over.
    drop(turns);
    let away = place.directory.with_extension("away");
    fs::rename(&place.directory, &away).expect("rename");
    wait_for("all to be at the address", || {
        let (_clients, seen) = addresses(&pooler, "turns", 6);
        seen.iter().filter(|address| *address != "unix").count() > 3
    });
    fs::rename(&away, &place.directory).expect("rename back");
}

fn metrics(door: &Lease) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", door.port)).expect("the door");
    stream.set_read_timeout(Some(common::PATIENCE)).expect("a time limit");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").expect("a question");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
