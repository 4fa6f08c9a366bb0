//! Clients that replicate: PostgreSQL's own programs through the pooler, and the contract's rules.

mod common;

use common::own_postgresql::OwnPostgres;
use common::pooler::Ini;
use common::postgresql::bin_dir;
use common::raw::{self, tags};
use common::{Pooler, Raw, Startup, account, temp_dir, wait_for, wait_for_some};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

fn postgres() -> OwnPostgres {
    OwnPostgres::start_with(
        "max_wal_senders = 20\nwal_level = logical\nmax_replication_slots = 10\n",
    )
}

fn pooler(postgres: &OwnPostgres, change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        let port = postgres.port;
        // PostgreSQL's programs ask for this name when it is not about one database.
        for name in ["app", "replication"] {
            ini.database(name, &format!("host=127.0.0.1 port={port} dbname=app"));
        }
        ini.set("query_wait_timeout", "60");
        change(ini);
    })
}

fn startup(kind: &str) -> Startup {
    Startup::v3().param("user", "alice").param("database", "app").param("replication", kind)
}

/// A program of PostgreSQL's, which must succeed.
fn run(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(bin_dir().join(program));
    command.args(args).stdin(Stdio::null());
    if let Some(account) = account() {
        command.uid(account.uid).gid(account.gid);
    }
    let output = command.output().expect("run it");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn console(pooler: &Pooler) -> Raw {
    pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"))
}

/// `replication`, `state` and whether there is a link, of each row that is not of the console.
fn shown(pooler: &Pooler, what: &str) -> Vec<[String; 3]> {
    let rows = console(pooler).query(&format!("SHOW {what}"));
    let rows = rows.iter().filter(|message| message.tag == b'D').map(raw::Message::columns);
    let rows = rows.filter(|row| row[2] != "pgbouncer");
    rows.map(|row| [row[3].clone(), row[4].clone(), (!row[15].is_empty()).to_string()]).collect()
}

fn row(replication: &str, state: &str, is_linked: bool) -> [String; 3] {
    [replication.into(), state.into(), is_linked.to_string()]
}

/// reads up to the CopyBothResponse.
fn start_streaming(client: &mut Raw) {
    let identity = client.query("IDENTIFY_SYSTEM");
    let columns = identity.iter().find(|m| m.tag == b'D').expect("a row").columns();
    let sql = format!("START_REPLICATION PHYSICAL {} TIMELINE {}", columns[2], columns[1]);
    client.send(&raw::query(&sql));
    assert_eq!(client.message().tag, b'W');
}

#[test]
fn postgresqls_own_programs_replicate_through_us() {
    let postgres = postgres();
    let pooler = pooler(&postgres, |ini| {
        // None of these is for a connection that works.
        ini.set("client_idle_timeout", "1").set("server_idle_timeout", "1");
        ini.set("idle_transaction_timeout", "1").set("server_lifetime", "1");
    });
    let mut direct = postgres.client("app");
    direct.batch_execute("CREATE TABLE t (n int PRIMARY KEY, words text)").expect("a table");
    let fill = "INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n";
    direct.batch_execute(fill).expect("rows");
    let dir = temp_dir(&std::env::temp_dir(), "ringbouncer-replication");
    let (base, wal) = (dir.join("base"), dir.join("wal"));
    let connect = format!("host=127.0.0.1 port={} user=alice", pooler.port);
    let app = format!("{connect} dbname=app");

    // Two connections at once: one that carries files, and one that carries WAL meanwhile.
    let base = base.to_str().expect("text");
    run("pg_basebackup", &["-d", &app, "-D", base, "-X", "stream", "-c", "fast", "-N"]);
    run("pg_verifybackup", &[base]);

    let end: String = direct.query_one("SELECT pg_current_wal_lsn()::text", &[]).unwrap().get(0);
    direct.batch_execute("SELECT pg_switch_wal()").expect("a new file");
    std::fs::create_dir(&wal).expect("a directory");
    if let Some(account) = account() {
        std::os::unix::fs::chown(&wal, Some(account.uid), Some(account.gid)).expect("chown");
    }
    let wal = wal.to_str().expect("text");
    run("pg_receivewal", &["-d", &app, "--slot", "w", "--create-slot"]);
    direct.batch_execute("SELECT pg_create_physical_replication_slot('r', true)").expect("a slot");
    direct.batch_execute("INSERT INTO t VALUES (0, 'kept')").expect("a row");
    let last: String = direct.query_one("SELECT pg_current_wal_lsn()::text", &[]).unwrap().get(0);
    assert!(last != end);
    direct.batch_execute("SELECT pg_switch_wal()").expect("a new file");
    run("pg_receivewal", &["-d", &app, "-D", wal, "--slot", "r", "-E", &last, "-n"]);
    assert!(std::fs::read_dir(wal).expect("the directory").count() > 0);

    run("pg_recvlogical", &["-d", &app, "--slot", "l", "--create-slot", "-P", "test_decoding"]);
    direct.batch_execute("INSERT INTO t VALUES (-1, 'told')").expect("a row");
    let last: String = direct.query_one("SELECT pg_current_wal_lsn()::text", &[]).unwrap().get(0);
    let args = ["-d", &app, "--slot", "l", "--start", "-f", "-", "-E", &last, "-n"];
    let told = run("pg_recvlogical", &args);
    assert!(told.contains("n[integer]:-1 words[text]:'told'"), "{told}");

    // A subscription: its first copies come through connections of their own.
    direct.batch_execute("CREATE PUBLICATION p FOR TABLE t").expect("a publication");
    direct.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").expect("s");
    postgres.client("postgres").batch_execute("CREATE DATABASE other").expect("a database");
    let mut other = postgres.client("other");
    other.batch_execute("CREATE TABLE t (n int PRIMARY KEY, words text)").expect("a table");
    let subscribe = format!(
        "CREATE SUBSCRIPTION u CONNECTION '{app}' PUBLICATION p \
         WITH (create_slot = false, slot_name = 's')"
    );
    other.batch_execute(&subscribe).expect("a subscription");
    let count = "SELECT count(*) FROM t";
    wait_for("the copy", || other.query_one(count, &[]).unwrap().get::<_, i64>(0) == 20002);
    direct.batch_execute("INSERT INTO t VALUES (-2, 'streamed')").expect("a row");
    wait_for("a change", || other.query_one(count, &[]).unwrap().get::<_, i64>(0) == 20003);
    wait_for("its rows", || {
        shown(&pooler, "CLIENTS").contains(&row("logical", "active", true))
            && shown(&pooler, "SERVERS").contains(&row("logical", "active", true))
    });
    other.batch_execute("ALTER SUBSCRIPTION u DISABLE").expect("its end");
    other.batch_execute("ALTER SUBSCRIPTION u SET (slot_name = NONE)").expect("no slot");
    other.batch_execute("DROP SUBSCRIPTION u").expect("it is gone");
    let log = pooler.log();
    assert!(log.contains("login attempt: db=app user=alice tls=no replication=database"), "{log}");
    assert!(log.contains("login attempt: db=replication user=alice tls=no replication=yes"));
    wait_for("all to be gone", || shown(&pooler, "SERVERS").iter().all(|row| row[0] == "none"));
    pooler.assert_serves();
    std::fs::remove_dir_all(dir).expect("remove the directory");
}

/// Client.md §7, line by line.
#[test]
fn a_client_that_replicates_has_a_server_of_its_own() {
    let postgres = postgres();
    let pooler = pooler(&postgres, |ini| {
        ini.set("default_pool_size", "2").set("server_login_retry", "0.1");
    });
    // The replication server provides the welcome, and for its own client alone.
    let startup_of = |kind: &str| startup(kind).param("application_name", "copy");
    let mut physical = pooler.raw_with(startup_of("true"));
    assert_eq!(shown(&pooler, "CLIENTS"), [row("physical", "active", true)]);
    assert_eq!(shown(&pooler, "SERVERS"), [row("physical", "active", true)]);
    let answer = physical.query("SHOW application_name");
    assert_eq!(answer[1].columns(), ["copy"]);
    // What PostgreSQL refuses is passed on.
    let answer = physical.query("SELECT 1");
    assert_eq!(tags(&answer), "EZ");
    physical.send(&[raw::parse("", "SELECT 1"), raw::sync()].concat());
    let refused = physical.until_ready();
    assert!(refused[0].field('M').contains("extended query protocol not supported"));

    let mut normal = pooler.raw("alice");
    assert_eq!(normal.parameter("server_encoding").as_deref(), Some("UTF8"));
    let pid = normal.backend_pid();
    // The pool is full: the idle server makes room, once a client replicates that has a message.
    let logical = startup("database").param("options", "-c work_mem=1MB -c search_path=there");
    let mut logical = pooler.raw_with(logical);
    assert_eq!(logical.value("SHOW search_path"), "there");
    assert_eq!(logical.value("SHOW work_mem"), "1MB");
    assert_ne!(logical.backend_pid(), pid);
    assert!(pooler.log().contains("closing because: evicted"));
    let shown_now = shown(&pooler, "SERVERS");
    assert_eq!(shown_now, [row("physical", "active", true), row("logical", "active", true)]);
    // Now nobody else gets one, until one of them has gone.
    normal.send(&raw::query("SELECT 7"));
    wait_for("it to wait", || shown(&pooler, "CLIENTS").contains(&row("none", "waiting", false)));
    start_streaming(&mut physical);
    drop(physical);
    assert_eq!(tags(&normal.until_ready()), "TDCZ");
    // Nobody got the other one's server; a clean end is named.
    assert_ne!(normal.backend_pid(), logical.backend_pid());
    logical.send(&raw::terminate());
    logical.expect_end();
    wait_for("its server to end", || {
        pooler.log().contains("closing because: replication client was closed")
    });
    // A free server does not pass to who replicates while another normal client waits behind.
    let mut third = pooler.raw_with(startup("yes"));
    assert_eq!(tags(&third.query("IDENTIFY_SYSTEM")), "TDCZ");

    // CopyBoth, ended by the client, and then the next command.
    start_streaming(&mut third);
    third.send(&raw::copy_done());
    let end = wait_for_some("the end of the stream", || {
        let message = third.message();
        (message.tag != b'd').then_some(message)
    });
    assert_eq!(end.tag, b'c');
    let rest = third.until_ready();
    assert_eq!(rest.last().map(|m| m.tag), Some(b'Z'));
    assert_eq!(tags(&third.query("IDENTIFY_SYSTEM")), "TDCZ");
    start_streaming(&mut third);
    // RECONNECT hits it at once, in the middle of a stream.
    console(&pooler).query("RECONNECT");
    let fatal = wait_for_some("its end", || {
        let message = third.message();
        (message.tag == b'E').then_some(message)
    });
    assert_eq!(fatal.field('M'), "database configuration changed");
    pooler.assert_serves();
}

#[test]
fn trouble_with_replication_hits_nobody_else() {
    let mut postgres = postgres();
    let pooler = pooler(&postgres, |ini| {
        ini.set("server_login_retry", "0.2").set("client_login_timeout", "60");
        let port = postgres.port;
        ini.database("none", &format!("host=127.0.0.1 port={port} dbname=none"));
    });
    let mut normal = pooler.raw("alice");
    normal.value("SELECT 1");
    // What is no boolean is ignored; on the console all of it is.
    let mut plain = pooler.raw_with(startup("nonsense"));
    assert_eq!(plain.value("SELECT 1"), "1");
    let on_console = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
    let mut on_console = pooler.raw_with(on_console.param("replication", "database"));
    assert_eq!(on_console.query("SHOW VERSION").last().map(|m| m.tag), Some(b'Z'));
    let mut wrong = pooler.unnamed();
    wrong.send(&startup("yes").param("work_mem", "1MB").bytes());
    wrong.expect_fatal("unsupported startup parameter: work_mem");

    // Refused by the server: this client alone is told, and not much.
    let mut refused = pooler.unnamed();
    let startup_packet = startup("database").param("options", "-c nonsense=1").bytes();
    // The welcome is known: the server is opened for the first message.
    refused.send(&[startup_packet, raw::query("SELECT 1")].concat());
    refused.until_ready();
    refused.expect_fatal("login failed");
    let log = pooler.log();
    assert!(log.contains("S: login failed: FATAL: unrecognized configuration parameter"), "{log}");
    assert_eq!(normal.value("SELECT 2"), "2");

    // A pause keeps it waiting, and its wait ends with it.
    console(&pooler).query("PAUSE app");
    let mut waiting = pooler.raw_with(startup("yes"));
    waiting.send(&raw::query("IDENTIFY_SYSTEM"));
    wait_for("it to wait", || {
        shown(&pooler, "CLIENTS").contains(&row("physical", "waiting", false))
    });
    console(&pooler).query("RESUME app");
    assert_eq!(tags(&waiting.until_ready()), "TDCZ");
    start_streaming(&mut waiting);
    // KILL ends it, in the middle of its stream.
    console(&pooler).query("KILL app");
    let fatal = wait_for_some("its end", || {
        let message = waiting.message();
        (message.tag == b'E').then_some(message)
    });
    assert_eq!(fatal.field('M'), "database removed");
    console(&pooler).query("RESUME app");

    // The server dies.
    let mut client = pooler.raw_with(startup("yes"));
    start_streaming(&mut client);
    postgres.crash();
    let last = client.until_end();
    let last = last.last().expect("some words");
    assert_eq!((last.tag, last.field('M').as_str()), (b'E', "server conn crashed?"));
    postgres.start_again();
    wait_for("a new one", || pooler.log().contains("server conn crashed?"));
    let mut client = pooler.raw_with(startup("yes"));
    assert_eq!(tags(&client.query("IDENTIFY_SYSTEM")), "TDCZ");
    drop(client);
    pooler.assert_serves();
}

/// Config.md §2: `all` does not count for physical replication, and for logical it does.
#[test]
fn rules_for_replication_are_rules_of_their_own() {
    let dir = temp_dir(&std::env::temp_dir(), "ringbouncer-hba");
    let hba = dir.join("hba");
    let rules = "host all alice 127.0.0.1/32 trust\nhost replication bob 127.0.0.1/32 trust\n";
    std::fs::write(&hba, rules).expect("write the rules");
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "hba").set("auth_hba_file", hba.to_str().expect("text"));
        ini.set("client_login_timeout", "60");
    });
    let try_in = |user: &str, kind: &str| {
        let mut client = pooler.unnamed();
        let startup = Startup::v3().param("user", user).param("database", "app");
        client.send(&startup.param("replication", kind).bytes());
        let answer = client.until_ready();
        let error = answer.iter().find(|message| message.tag == b'E');
        error.map_or("in".to_owned(), |error| error.field('M'))
    };
    // The shared server has no room for any: who gets as far as that was let in by us.
    assert_eq!(try_in("alice", "yes"), "no authentication method is found");
    assert_eq!(try_in("bob", "database"), "no authentication method is found");
    assert_eq!(try_in("alice", "database"), "login failed");
    assert_eq!(try_in("bob", "yes"), "login failed");
    std::fs::remove_dir_all(dir).expect("remove the directory");
}
