//! `-R`: a new process takes the place of the old one, and no client notices.

mod common;

use common::raw::{self, Startup};
use common::{Pooler, Postgres, Raw, temp_dir, wait_for, wait_for_some};
use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// A pooler with a Unix socket and a pid file, both in this directory.
struct House {
    pooler: Pooler,
    dir: PathBuf,
}

impl House {
    fn start(mode: &str, more: &[(&str, &str)]) -> House {
        let dir = temp_dir(&Postgres::shared().socket_dir, "takeover");
        let pooler = Pooler::start(|ini| {
            ini.set("unix_socket_dir", &dir.to_string_lossy()).set("pool_mode", mode);
            ini.set("pidfile", &dir.join("pid").to_string_lossy());
            ini.set("default_pool_size", "4").set("max_prepared_statements", "50");
            for (name, value) in more {
                ini.set(name, value);
            }
        });
        // It accepts over TCP a moment before its socket file and its pid file are there.
        wait_for("the pooler to be up", || pooler.log().contains("process up"));
        House { pooler, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(format!(".s.PGSQL.{}", self.pooler.port))
    }

    fn pid_in_file(&self) -> Option<u32> {
        fs::read_to_string(self.dir.join("pid")).ok()?.trim().parse().ok()
    }

    fn take_over(&mut self) {
        let status = self.pooler.take_over();
        assert!(status.success(), "{status}");
        assert_eq!(self.pid_in_file(), Some(self.pooler.pid()));
        UnixStream::connect(self.socket()).expect("the socket leads to the new process");
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// One statement prepared once and used ever after.
fn prepare(client: &mut Raw, name: &str, sql: &str) {
    client.send(&[raw::parse(name, sql), raw::sync()].concat());
    assert_eq!(raw::tags(&client.until_ready()), "1Z");
}

fn execute(client: &mut Raw, name: &str) -> String {
    client.send(&[raw::bind(name, &[]), raw::execute(0), raw::sync()].concat());
    let answer = client.until_ready();
    assert_eq!(raw::tags(&answer), "2DCZ", "{answer:?}");
    answer[1].columns().concat()
}

#[test]
fn work_goes_on_across_takeovers() {
    let mut house = House::start("transaction", &[]);
    let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
    let port = house.pooler.port;
    std::thread::scope(|scope| {
        for worker in 0..8_usize {
            let (stop, served) = (&stop, &served);
            scope.spawn(move || {
                let mut client = Raw::connect(port);
                let user = ["alice", "bob"][worker % 2];
                client.log_in(&Startup::v3().param("user", user).param("database", "app"));
                let own = format!("own-{worker}");
                prepare(&mut client, "s", &format!("SELECT '{own}'"));
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let wide = format!("{worker}-{number}-{}", "x".repeat(number * 41 % 5000));
                    match number % 3 {
                        0 => assert_eq!(client.value(&format!("SELECT '{wide}'")), wide),
                        1 => assert_eq!(execute(&mut client, "s"), own),
                        _ => {
                            client.query("BEGIN");
                            assert_eq!(client.value(&format!("SELECT '{wide}'")), wide);
                            client.query("COMMIT");
                        }
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            let before = served.load(Ordering::Relaxed);
            wait_for("some work", || served.load(Ordering::Relaxed) > before + 100);
            house.take_over();
        }
        stop.store(true, Ordering::Relaxed);
    });
    house.pooler.assert_serves();
    let log = house.pooler.log();
    for line in [
        "Online restart is deprecated, use so_reuseport instead",
        "takeover_init: launching connection",
        "login OK, sending SUSPEND",
        "SUSPEND finished, sending SHOW FDS",
        &format!("got pooler socket: 127.0.0.1:{port}"),
        &format!("got pooler socket: unix:{port}"),
        "SHOW FDS finished",
        "disko over, going background",
        "sending SHUTDOWN;",
        "closing because: disko over (age=0s)",
        "waiting for old pidfile to go away",
        "old process killed, resuming work",
    ] {
        assert_eq!(log.matches(line).count(), 3, "{line}\n{log}");
    }
    assert_eq!(log.matches("listening on").count(), 2, "by the first process alone\n{log}");
}

#[test]
fn what_is_under_way_arrives_at_the_new_process() {
    let mut house = House::start("transaction", &[]);
    let startup = Startup::v3().param("user", "alice").param("database", "app");
    let with_words = startup.param("application_name", "words").param("TimeZone", "Asia/Tokyo");
    let mut idle = house.pooler.raw_with(with_words);
    let mut open = house.pooler.raw("alice");
    open.query("BEGIN");
    let backend = open.backend_pid();
    let mut sleeper = house.pooler.raw("bob");
    sleeper.send(&raw::query("SELECT 'slept' FROM pg_sleep(1)"));
    let mut pipelined = house.pooler.raw("bob");
    let both = [raw::query("SELECT 'first' FROM pg_sleep(1)"), raw::query("SELECT 'second'")];
    pipelined.send(&both.concat());
    let mut copying = house.pooler.raw("alice");
    copying.query("CREATE TEMP TABLE t (a text)");
    copying.send(&raw::query("BEGIN; CREATE TEMP TABLE u (a text); COPY u FROM STDIN"));
    copying.expect_tags("CCG");
    copying.send(&raw::copy_data(b"one\n"));
    house.take_over();
    copying.send(&[raw::copy_data(b"two\n"), raw::copy_done()].concat());
    copying.until_ready();
    assert_eq!(copying.value("SELECT count(*) FROM u"), "2");
    assert_eq!(open.backend_pid(), backend, "in the same transaction");
    open.query("COMMIT");
    assert_eq!(sleeper.until_ready()[1].columns(), ["slept"]);
    assert_eq!(pipelined.until_ready()[1].columns(), ["first"]);
    assert_eq!(pipelined.until_ready()[1].columns(), ["second"]);
    assert_eq!(idle.value("SHOW application_name"), "words");
    assert_eq!(idle.value("SHOW TimeZone"), "Asia/Tokyo");
}

#[test]
fn a_session_stays_the_clients_own() {
    let mut house = House::start("session", &[]);
    let mut client = house.pooler.raw("alice");
    client.query("CREATE TEMP TABLE mine AS SELECT 'kept' AS a");
    house.take_over();
    assert_eq!(client.value("SELECT a FROM mine"), "kept");
    let mut other = house.pooler.raw("alice");
    assert_eq!(other.query("SELECT a FROM mine")[0].field('C'), "42P01");
    drop(client);
    house.pooler.assert_serves();
}

#[test]
fn keys_for_cancelling_stay_good() {
    let mut house = House::start("transaction", &[]);
    let mut client = house.pooler.raw("alice");
    let key = client.cancel_key();
    client.send(&raw::query("SELECT pg_sleep(60)"));
    let mut watcher = Postgres::shared().client("app");
    wait_for("the query to run", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'";
        watcher.query_one(sql, &[]).unwrap().get::<_, i64>(0) > 0
    });
    house.take_over();
    house.pooler.unnamed().send(&raw::untagged(80_877_102, &key));
    let answer = client.until_ready();
    let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
    assert_eq!(error.field('C'), "57014");
}

#[test]
fn without_an_old_process_it_is_an_ordinary_start() {
    let mut house = House::start("transaction", &[]);
    house.pooler.signal(libc::SIGKILL);
    house.pooler.wait_for_exit();
    let mut child = house.pooler.start_beside(&["-R"]);
    wait_for("the new process", || {
        assert_eq!(child.try_wait().unwrap(), None, "{}", house.pooler.log());
        house.pooler.log().matches("process up").count() == 2
    });
    let log = house.pooler.log();
    assert!(log.contains("old process not found, try to continue normally"), "{log}");
    assert!(log.contains("stale pidfile, removing"), "{log}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_old_process_that_hangs_or_refuses_ends_the_attempt() {
    let house = House::start("transaction", &[]);
    // Somebody else sits behind the socket now.
    fs::remove_file(house.socket()).unwrap();
    let listener = UnixListener::bind(house.socket()).unwrap();
    allow_everybody(&house.socket());
    let mut child = house.pooler.start_beside(&["-R"]);
    // Perhaps somebody looks first whether anybody is there. Then it introduces itself, and waits.
    let mut mute = listener.accept().unwrap().0;
    if matches!(mute.read(&mut [0; 8]), Ok(0)) {
        mute = listener.accept().unwrap().0;
        mute.read_exact(&mut [0; 8]).unwrap();
    }
    common::sys::kill(child.id(), libc::SIGTERM);
    let status = wait_for_some("its end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    let fatal = "FATAL takeover was in progress, going down immediately";
    assert!(house.pooler.log().contains(fatal), "{}", house.pooler.log());
    house.pooler.assert_serves();
}

#[test]
fn where_nothing_can_be_taken_over_it_is_refused() {
    let abstract_name = format!("@ringbouncer-{}", std::process::id());
    let cases = [
        ("", "cannot reboot if unix dir not configured"),
        (&abstract_name, "cannot reboot with abstract Unix socket"),
    ];
    for (directory, words) in cases {
        let house = House::start("transaction", &[("unix_socket_dir", directory)]);
        let mut child = house.pooler.start_beside(&["-R"]);
        let status = wait_for_some("its end", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(1));
        let log = house.pooler.log();
        assert!(log.contains(&format!("FATAL {words}")), "{log}");
        house.pooler.assert_serves();
    }
}

fn allow_everybody(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

/// A next process that dies in the middle leaves the old one as it was.
#[test]
fn a_new_process_that_is_killed_harms_nobody() {
    let house = House::start("transaction", &[]);
    let mut client = house.pooler.raw("alice");
    let mut half = house.pooler.raw("alice");
    // SUSPEND cannot end while this is so: the new process is stopped right there.
    half.send(&raw::query("SELECT 1")[..3]);
    let mut child = house.pooler.start_beside(&["-R"]);
    wait_for("the suspension", || house.pooler.log().contains("SUSPEND command issued"));
    client.send(&raw::query("SELECT 'waits'"));
    assert!(client.is_quiet_for(Duration::from_millis(100)));
    child.kill().unwrap();
    child.wait().unwrap();
    half.send(&raw::query("SELECT 1")[3..]);
    assert_eq!(client.until_ready()[1].columns(), ["waits"]);
    assert_eq!(half.until_ready()[1].columns(), ["1"]);
    assert!(house.pooler.log().contains("admin disappeared when suspended, doing RESUME"));
    assert_eq!(house.pid_in_file(), Some(house.pooler.pid()));
    house.pooler.assert_serves();
}
