//! Names of hosts: the resolver, what is kept of its answers, and servers whose address has gone.

mod common;

use common::names::{NameServer, Says};
use common::pooler::Ini;
use common::{Lease, Pooler, Postgres, Raw, Startup, wait_for};
use std::net::{TcpListener, TcpStream};

/// A pooler whose database `named` is at the host of this name, and knows this name server only.
fn pooler(names: &NameServer, host: &str, change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        let port = Postgres::shared().port;
        ini.database("named", &format!("host={host} port={port} dbname=app"));
        ini.set("resolv_conf", &names.resolv_conf());
        ini.set("dns_max_ttl", "1000").set("dns_nxdomain_ttl", "1000");
        change(ini);
    })
}

fn startup() -> Startup {
    Startup::v3().param("user", "alice").param("database", "named")
}

/// The addresses of the servers of `named`, sorted.
fn servers(pooler: &Pooler) -> Vec<String> {
    let rows = pooler.table("SHOW SERVERS");
    let own = rows.into_iter().filter(|row| row["database"] == "named");
    let mut addresses: Vec<String> = own.map(|row| row["addr"].clone()).collect();
    addresses.sort();
    addresses
}

/// The same PostgreSQL at another address of the loopback.
fn second_address() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let port = Postgres::shared().port;
        let listener = TcpListener::bind(("127.0.0.2", port)).expect("another address");
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let Ok(to) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (mut from, mut to) in [
                    (from.try_clone().unwrap(), to.try_clone().unwrap()),
                    (to.try_clone().unwrap(), from.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
    });
}

fn begin(client: &mut Raw) {
    client.query("BEGIN");
}

#[test]
fn addresses_take_turns_and_one_look_up_is_enough() {
    second_address();
    let names = NameServer::start();
    names.addresses("db.zone.test", &[[127, 0, 0, 1], [127, 0, 0, 2]]);
    let pooler = pooler(&names, "db.zone.test", |_| {});
    let mut clients: Vec<Raw> = (0..4).map(|_| pooler.raw_with(startup())).collect();
    clients.iter_mut().for_each(begin);
    assert_eq!(servers(&pooler), ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]);
    // The TTL of the records is zero, and does not count.
    assert_eq!(names.asked("db.zone.test"), 1);
    let hosts = pooler.table("SHOW DNS_HOSTS");
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0]["hostname"], "db.zone.test");
    assert_eq!(hosts[0]["addrs"], "127.0.0.1:0,127.0.0.2:0");
    let ttl: u32 = hosts[0]["ttl"].parse().unwrap();
    assert!((1..1000).contains(&ttl), "{ttl}");
    let zones = pooler.table("SHOW DNS_ZONES");
    let zone = ["zonename", "serial", "count"].map(|column| zones[0][column].clone());
    assert_eq!(zone, ["zone.test", "0", "1"]);
    let lists = pooler.table("SHOW LISTS");
    let items = |list: &str| lists.iter().find(|row| row["list"] == list).unwrap()["items"].clone();
    assert_eq!(["dns_names", "dns_zones", "dns_queries"].map(items), ["1", "1", "0"]);
}

#[test]
fn failures_are_kept_and_logged_once() {
    let names = NameServer::start();
    let pooler = pooler(&names, "gone.test", |ini| {
        ini.set("server_login_retry", "0");
    });
    let mut client = pooler.unnamed();
    client.send(&startup().bytes());
    let count = |text: &str| pooler.log().matches(text).count();
    wait_for("several attempts", || count("closing because: server DNS lookup failed") >= 3);
    assert_eq!(count("DNS lookup failed: gone.test: result=0"), 1);
    assert_eq!((names.asked("gone.test"), names.asked("gone.test.searched.test")), (1, 1));
    assert_eq!(pooler.table("SHOW DNS_HOSTS")[0]["addrs"], "");
    pooler.assert_serves();
}

#[test]
fn servers_whose_address_has_gone_end_when_they_are_free() {
    second_address();
    let names = NameServer::start();
    names.addresses("db.test", &[[127, 0, 0, 1]]);
    let pooler = pooler(&names, "db.test", |ini| {
        ini.set("dns_max_ttl", "0");
    });
    let (mut first, mut second) = (pooler.raw_with(startup()), pooler.raw_with(startup()));
    begin(&mut first);
    assert_eq!(servers(&pooler), ["127.0.0.1"]);
    names.addresses("db.test", &[[127, 0, 0, 2]]);
    begin(&mut second);
    // The transaction goes on where it is.
    assert_eq!(servers(&pooler), ["127.0.0.1", "127.0.0.2"]);
    assert_eq!(first.value("SELECT 7"), "7");
    first.query("COMMIT");
    wait_for("the old server to end", || servers(&pooler) == ["127.0.0.2"]);
    assert_eq!(first.value("SELECT 8"), "8");
    assert!(pooler.log().contains("closing because: close_needed"));
}

#[test]
fn a_name_server_that_says_nothing_holds_up_nobody_else() {
    let names = NameServer::start();
    names.say("silent.test", Says::Nothing);
    names.addresses("db.test", &[[127, 0, 0, 1]]);
    let pooler = pooler(&names, "silent.test", |ini| {
        let port = Postgres::shared().port;
        ini.database("other", &format!("host=db.test port={port} dbname=app"));
        ini.set("server_connect_timeout", "1").set("client_login_timeout", "3");
    });
    let mut client = pooler.unnamed();
    client.send(&startup().bytes());
    wait_for("the question", || names.asked("silent.test") > 0);
    pooler.assert_serves();
    let mut other =
        pooler.raw_with(Startup::v3().param("user", "alice").param("database", "other"));
    assert_eq!(other.value("SELECT 1"), "1");
    client.expect_fatal("client_login_timeout (server down)");
    assert!(pooler.log().contains("closing because: connect timeout"), "{}", pooler.log());
}

#[test]
fn what_does_not_fit_comes_over_tcp_and_garbage_is_passed_over() {
    let names = NameServer::start();
    let here = vec![[127, 0, 0, 1].into()];
    names.say("long.test", Says::OverTcp(here.clone()));
    names.say("garbage.test", Says::GarbageThen(here.clone()));
    names.say("short.searched.test", Says::Addresses(here));
    for host in ["long.test", "garbage.test", "short"] {
        let pooler = pooler(&names, host, |_| {});
        assert_eq!(pooler.raw_with(startup()).value("SELECT 1"), "1", "{host}");
        assert_eq!(pooler.table("SHOW DNS_HOSTS")[0]["addrs"], "127.0.0.1:0", "{host}");
    }
    assert_eq!(names.asked_over_tcp(), 1);
}

#[test]
fn a_zone_whose_serial_grows_has_its_names_looked_up() {
    let names = NameServer::start();
    names.addresses("db.zone.test", &[[127, 0, 0, 1]]);
    names.say("zone.test", Says::Zone(5));
    let pooler = pooler(&names, "db.zone.test", |ini| {
        ini.set("dns_zone_check_period", "1");
    });
    assert_eq!(pooler.raw_with(startup()).value("SELECT 1"), "1");
    wait_for("the first serial", || {
        pooler.log().contains("zone 'zone.test' serial changed: old=0 new=5")
    });
    wait_for("a second look-up", || names.asked("db.zone.test") == 2);
    assert_eq!(servers(&pooler), ["127.0.0.1"], "it is still there");
    names.addresses("db.zone.test", &[[127, 0, 0, 2]]);
    names.say("zone.test", Says::Zone(6));
    wait_for("the idle server to end", || servers(&pooler).is_empty());
    assert!(pooler.log().contains("zone 'zone.test' serial changed: old=5 new=6"));
    assert_eq!(pooler.table("SHOW DNS_ZONES")[0]["serial"], "6");
}

#[test]
fn show_hosts_tells_how_each_host_is() {
    let names = NameServer::start();
    names.addresses("db.test", &[[127, 0, 0, 1]]);
    let nobody = Lease::take();
    let pooler = pooler(&names, "db.test", |ini| {
        ini.database("dead", &format!("host=127.0.0.3 port={}", nobody.port));
        ini.database("local", &format!("host=/nowhere,@abstract port={}", nobody.port));
    });
    assert_eq!(pooler.raw_with(startup()).value("SELECT 1"), "1");
    let mut client = pooler.unnamed();
    client.send(&Startup::v3().param("user", "alice").param("database", "dead").bytes());
    let host = |name: &str| {
        let rows = pooler.table("SHOW HOSTS");
        rows.into_iter().find(|row| row["host"] == name).expect("it is listed")
    };
    wait_for("the failure", || host("127.0.0.3")["state"] == "failing");
    let dead = host("127.0.0.3");
    assert_eq!((dead["failures"].as_str(), dead["error"].as_str()), ("1", "connect failed"));
    assert!(dead["retry_in_us"].parse::<u64>().unwrap() > 0);
    let well = host("db.test");
    let well = ["state", "address", "servers", "failures"].map(|column| well[column].clone());
    assert_eq!(well, ["healthy", "127.0.0.1", "1", "0"]);
    let path = format!("@abstract/.s.PGSQL.{}", nobody.port);
    assert_eq!(host("@abstract")["address"], path);
    assert_eq!(host("/nowhere")["state"], "healthy");
}
