//! `-R`: one process after the other, and nobody who is connected notices.

mod common;

use common::raw::{self, Startup, tags};
use common::{Lease, PATIENCE, Postgres, Raw, account, sys, temp_dir, wait_for, wait_for_some};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

/// A directory with a configuration, and the processes that run on it one after the other.
struct Stage {
    dir: PathBuf,
    lease: Lease,
    started: Vec<Child>,
}

impl Stage {
    fn new(lines: &str) -> Stage {
        let dir = temp_dir(&Postgres::shared().socket_dir, "takeover");
        let stage = Stage { dir, lease: Lease::take(), started: Vec::new() };
        stage.configure("app = ", lines);
        stage
    }

    /// Pid file and Unix socket in our directory, these databases and these lines.
    fn configure(&self, databases: &str, lines: &str) {
        let dir = self.dir.display();
        let (port, server) = (self.lease.port, Postgres::shared().port);
        let databases: String = databases
            .lines()
            .map(|line| format!("{line} host=127.0.0.1 port={server} dbname=app\n"))
            .collect();
        let text = format!(
            "[databases]\n{databases}[pgbouncer]\nauth_type = trust\nauth_file = {dir}/users\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {dir}\n\
             pidfile = {dir}/pid\npool_mode = transaction\nadmin_users = postgres\n\
             max_prepared_statements = 100\n{lines}\n"
        );
        fs::write(self.dir.join("ini"), text).expect("write the configuration");
        let users = "\"alice\" \"secret\"\n\"bob\" \"secret\"\n\"postgres\" \"secret\"\n";
        fs::write(self.dir.join("users"), users).expect("write the user list");
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(format!(".s.PGSQL.{}", self.lease.port))
    }

    fn command_of(&self, program: &Path, options: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(options).arg(self.dir.join("ini")).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("JOURNAL_STREAM");
        let log = self.dir.join(format!("log{}", self.started.len()));
        command.stderr(fs::File::create(log).expect("create a file"));
        if let Some(account) = account() {
            command.uid(account.uid).gid(account.gid);
        }
        sys::die_with_parent(&mut command);
        command
    }

    fn command(&self, options: &[&str]) -> Command {
        self.command_of(&common::pooler::binary(), options)
    }

    /// Starts the next process, and returns when the pid file is its own.
    fn start_as(&mut self, mut command: Command) {
        let mut child = command.spawn().expect("start the pooler");
        let number = self.started.len();
        wait_for("the pooler to come up", || {
            if let Some(status) = child.try_wait().expect("try_wait") {
                panic!("it ended: {status}\n{}", self.log(number));
            }
            self.pid() == Some(child.id()) && self.log(number).contains("process up")
        });
        self.started.push(child);
    }

    fn start(&mut self, options: &[&str]) {
        self.start_as(self.command(options));
    }

    /// Waits until the last but one has ended by itself.
    fn predecessor_ends(&mut self) -> ExitStatus {
        let at = self.started.len() - 2;
        let child = &mut self.started[at];
        wait_for_some("the old process to end", || child.try_wait().expect("try_wait"))
    }

    fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.dir.join("pid")).ok()?.trim().parse().ok()
    }

    fn log(&self, number: usize) -> String {
        fs::read_to_string(self.dir.join(format!("log{number}"))).unwrap_or_default()
    }

    fn last_log(&self) -> String {
        self.log(self.started.len() - 1)
    }

    fn raw(&self, user: &str, database: &str) -> Raw {
        let mut raw = Raw::connect(self.lease.port);
        raw.log_in(&Startup::v3().param("user", user).param("database", database));
        raw
    }

    fn unix_client(&self) -> postgres::Client {
        let mut config = postgres::Config::new();
        config.host_path(&self.dir).port(self.lease.port).user("alice").dbname("app");
        config.connect(postgres::NoTls).expect("connect over the Unix socket")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in &mut self.started {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for number in 0..=self.started.len() {
                eprintln!("--- log {number} ---\n{}", self.log(number));
            }
        }
        for number in 0..self.started.len() {
            assert!(std::thread::panicking() || !self.log(number).contains("panicked at"));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// In the order of the contract; others may stand between them.
fn assert_in_order(log: &str, lines: &[&str]) {
    let mut rest = log;
    for line in lines {
        let at = rest.find(line).unwrap_or_else(|| panic!("no {line:?} there in\n{log}"));
        rest = &rest[at + line.len()..];
    }
}

#[test]
fn who_is_connected_goes_on_where_he_was() {
    let mut stage = Stage::new("");
    stage.start(&[]);
    let first = stage.pid();
    let mut idle = stage.raw("alice", "app");
    assert_eq!(tags(&idle.query("SET DateStyle = 'German, DMY'")), "CSZ");
    let mut open = stage.raw("alice", "app");
    assert_eq!(tags(&open.query("BEGIN")), "CZ");
    let backend = open.backend_pid();
    let mut named = stage.raw("alice", "app");
    named.send(&[raw::parse("s", "SELECT 7"), raw::sync()].concat());
    assert_eq!(tags(&named.until_ready()), "1Z");
    let mut local = stage.unix_client();
    let prepared = local.prepare("SELECT $1::int4 + 1").unwrap();
    assert_eq!(local.query_one(&prepared, &[&41]).unwrap().get::<_, i32>(0), 42);
    // Two queries at once: when the answer to the first comes, the server is not free.
    let mut busy = stage.raw("alice", "app");
    busy.send(&[raw::query("SELECT pg_sleep(0.5)"), raw::query("SELECT 'second'")].concat());
    let mut copying = stage.raw("alice", "app");
    assert_eq!(tags(&copying.query("CREATE TEMP TABLE taken (n int)")), "CZ");
    drop(copying);
    let mut console = stage.raw("postgres", "pgbouncer");
    wait_for("the queries to run", || {
        let rows = console.query("SHOW SERVERS");
        rows.iter().filter(|m| m.tag == b'D' && m.columns()[4] == "active").count() == 2
    });
    for _ in 0..2 {
        stage.start(&["-R"]);
        assert!(stage.predecessor_ends().success());
    }
    console.expect_end();
    assert_ne!(stage.pid(), first);
    let (port, dir) = (stage.lease.port, stage.dir.clone());
    let tcp = format!("got pooler socket: 127.0.0.1:{port}");
    let unix = format!("got pooler socket: unix:{port}");
    assert_in_order(
        &stage.log(1),
        &[
            "WARNING Online restart is deprecated, use so_reuseport instead",
            "LOG takeover_init: launching connection",
            &format!(": pgbouncer/pgbouncer@unix:{port} new connection to server"),
            ": pgbouncer/pgbouncer@unix:",
            " login OK, sending SUSPEND",
            "LOG SUSPEND finished, sending SHOW FDS",
            &tcp,
            &unix,
            "login attempt: db=app user=alice",
            "LOG SHOW FDS finished",
            "LOG disko over, going background",
            "LOG kernel file descriptor limit",
            "LOG sending SHUTDOWN;",
            "closing because: disko over (age=0s)",
            "LOG waiting for old pidfile to go away",
            "LOG old process killed, resuming work",
            "LOG process up: ",
        ],
    );
    assert!(!stage.log(1).contains("listening on"));
    assert_in_order(
        &stage.log(0),
        &["pgbouncer access from unix socket", "SUSPEND command issued"],
    );
    assert!(stage.log(0).contains("SHUTDOWN command issued"));
    assert_eq!(tags(&busy.until_ready()), "TDCZ");
    assert_eq!(busy.until_ready()[1].columns(), ["second"]);
    assert_eq!(open.backend_pid(), backend, "its transaction goes on");
    assert_eq!(tags(&open.query("COMMIT")), "CZ");
    assert_eq!(idle.value("SHOW DateStyle"), "German, DMY");
    let again = [raw::bind("s", &[]), raw::execute(0), raw::sync()].concat();
    named.send(&again);
    assert_eq!(tags(&named.until_ready()), "2DCZ");
    assert_eq!(local.query_one(&prepared, &[&1]).unwrap().get::<_, i32>(0), 2);
    // Whoever comes now is let in at both doors, and their names are removed in the end.
    assert_eq!(stage.raw("bob", "app").value("SELECT 1"), "1");
    stage.unix_client();
    let last = stage.started.len() - 1;
    sys::kill(stage.started[last].id(), libc::SIGQUIT);
    let child = &mut stage.started[last];
    assert!(wait_for_some("the end", || child.try_wait().unwrap()).success());
    assert!(!stage.socket().exists() && !dir.join("pid").exists());
}

#[test]
fn the_key_to_cancel_with_still_fits() {
    let mut stage = Stage::new("");
    stage.start(&[]);
    let mut client = stage.raw("alice", "app");
    client.send(&raw::query("SELECT pg_sleep(60)"));
    let mut console = stage.raw("postgres", "pgbouncer");
    wait_for("the query to run", || {
        let rows = console.query("SHOW SERVERS");
        rows.iter().any(|m| m.tag == b'D' && m.columns()[4] == "active")
    });
    stage.start(&["-R"]);
    let mut cancel = Raw::connect(stage.lease.port);
    cancel.send(&raw::untagged(80_877_102, &client.cancel_key()));
    let answer = client.until_ready();
    assert_eq!((tags(&answer).as_str(), answer[0].tag), ("TEZ", b'T'));
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_copy_goes_on() {
    let mut stage = Stage::new("");
    stage.start(&[]);
    let mut client = stage.raw("alice", "app");
    assert_eq!(tags(&client.query("BEGIN")), "CZ");
    assert_eq!(tags(&client.query("CREATE TEMP TABLE taken (n int)")), "CZ");
    client.send(&raw::query("COPY taken FROM STDIN"));
    assert_eq!(client.message().tag, b'G');
    client.send(&raw::copy_data(b"1\n"));
    stage.start(&["-R"]);
    client.send(&[raw::copy_data(b"2\n3\n"), raw::copy_done()].concat());
    assert_eq!(tags(&client.until_ready()), "CZ");
    assert_eq!(client.value("SELECT count(*) FROM taken"), "3");
    assert_eq!(tags(&client.query("ROLLBACK")), "CZ");
}

#[test]
fn under_load_not_one_query_fails() {
    // While pgbench prepares it waits for one client alone: each needs a server of its own then.
    for (pool_mode, protocol, size) in
        [("transaction", "prepared", 8), ("transaction", "extended", 3), ("session", "simple", 20)]
    {
        let lines = format!("pool_mode = {pool_mode}\ndefault_pool_size = {size}");
        let mut stage = Stage::new(&lines);
        stage.start(&[]);
        let script = "BEGIN;\nSELECT :client_id;\nSELECT repeat('x', 20000);\nEND;\nSELECT 1;\n";
        fs::write(stage.dir.join("script.sql"), script).unwrap();
        let mut pgbench = Command::new(common::postgresql::bin_dir().join("pgbench"));
        pgbench.current_dir(&stage.dir).env_clear().env("PGSSLMODE", "disable");
        pgbench.args(["-n", "-M", protocol, "-h", "127.0.0.1", "-U", "alice", "-f", "script.sql"]);
        pgbench.args(["-c", "8", "-T", "3", "-p", &stage.lease.port.to_string(), "app"]);
        pgbench.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = pgbench.spawn().expect("start pgbench");
        let mut takeovers = 0;
        while running.try_wait().unwrap().is_none() {
            stage.start(&["-R"]);
            assert!(stage.predecessor_ends().success());
            takeovers += 1;
        }
        let output = running.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{pool_mode}, {protocol}: {said}");
        assert!(takeovers >= 3, "{takeovers} take-overs");
        let first = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(first.contains("number of failed transactions: 0"), "{first}");
    }
}

#[test]
fn passwords_are_known_to_the_next_process_too() {
    for auth_type in ["md5", "scram-sha-256"] {
        let mut stage = Stage::new(&format!("auth_type = {auth_type}"));
        stage.start(&[]);
        let connect = |stage: &Stage, password: &str| {
            let mut config = postgres::Config::new();
            config.host("127.0.0.1").port(stage.lease.port).user("alice").dbname("app");
            config.password(password).connect(postgres::NoTls)
        };
        let mut client = connect(&stage, "secret").expect("log in");
        stage.start(&["-R"]);
        assert_eq!(client.query_one("SELECT 1", &[]).unwrap().get::<_, i32>(0), 1);
        assert!(connect(&stage, "secret").is_ok());
        assert!(connect(&stage, "wrong").is_err());
    }
}

#[test]
fn a_database_that_is_gone_takes_its_clients_along() {
    let mut stage = Stage::new("");
    stage.configure("app = \nold = ", "");
    stage.start(&[]);
    let (mut stays, mut idle, mut open) =
        (stage.raw("alice", "app"), stage.raw("alice", "old"), stage.raw("alice", "old"));
    assert_eq!(tags(&open.query("BEGIN")), "CZ");
    assert_eq!(idle.value("SELECT 1"), "1");
    stage.configure("app = ", "");
    stage.start(&["-R"]);
    idle.expect_end();
    open.expect_end();
    assert_eq!(stays.value("SELECT 1"), "1");
}

#[test]
fn without_an_old_process_it_starts_as_ever() {
    let mut stage = Stage::new("");
    stage.start(&["-R"]);
    assert_in_order(
        &stage.last_log(),
        &["Online restart is deprecated", "LOG old process not found, try to continue normally"],
    );
    assert_eq!(stage.raw("alice", "app").value("SELECT 1"), "1");
}

/// Runs to its end: exit status and log.
fn run(stage: &Stage, options: &[&str]) -> (Option<i32>, String) {
    let mut child = stage.command(options).spawn().expect("start the pooler");
    let start = Instant::now();
    let status = wait_for_some("it to refuse", || {
        let status = child.try_wait().expect("try_wait");
        if status.is_none() && start.elapsed() > PATIENCE / 2 {
            let _ = child.kill();
        }
        status
    });
    (status.code(), stage.log(stage.started.len()))
}

#[test]
fn it_is_refused_where_there_is_no_socket_to_find_the_old_process_by() {
    let stage = Stage::new("unix_socket_dir =");
    let (code, log) = run(&stage, &["-R"]);
    assert_eq!(code, Some(1));
    assert!(log.contains("FATAL cannot reboot if unix dir not configured"), "{log}");
    let stage = Stage::new("unix_socket_dir = @nowhere");
    let (code, log) = run(&stage, &["-R"]);
    assert_eq!(code, Some(1));
    assert!(log.contains("FATAL cannot reboot with abstract Unix socket"), "{log}");
}

/// Plays an old process that says these things, one for each that is asked, and then goes.
fn pretend(stage: &Stage, answers: Vec<Vec<u8>>) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(stage.socket()).expect("bind");
    if let Some(account) = account() {
        std::os::unix::fs::chown(stage.socket(), Some(account.uid), Some(account.gid)).unwrap();
    }
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut bytes = [0; 4096];
        for answer in answers {
            assert!(stream.read(&mut bytes).expect("read") > 0);
            stream.write_all(&answer).expect("write");
        }
    })
}

fn ready() -> Vec<u8> {
    raw::message(b'Z', b"I")
}

#[test]
fn an_old_process_that_refuses_or_goes_is_fatal() {
    let welcome = [raw::message(b'R', &[0; 4]), ready()].concat();
    let error = |severity: &str, text: &str| {
        raw::message(b'E', format!("S{severity}\0C08P01\0M{text}\0\0").as_bytes())
    };
    let done = |tag: &str| [raw::message(b'C', format!("{tag}\0").as_bytes()), ready()].concat();
    let row = raw::message(b'D', b"\0\x02\0\0\0\x017\0\0\0\x06pooler");
    let refused = [error("ERROR", "already suspended/paused"), ready()].concat();
    let unknown = [error("ERROR", "invalid command"), ready()].concat();
    for (answers, last_words) in [
        (vec![error("FATAL", "not allowed")], "old process said: not allowed"),
        (vec![welcome.clone(), refused], "old process said: already suspended/paused"),
        (vec![welcome.clone()], "takeover failed: the old process has gone"),
        (vec![welcome.clone(), done("SUSPEND")], "takeover failed: the old process has gone"),
        (vec![welcome.clone(), done("SUSPEND"), unknown, row], "got row without fd info"),
    ] {
        let stage = Stage::new("");
        let old = pretend(&stage, answers);
        let (code, log) = run(&stage, &["-R"]);
        old.join().expect("the old process");
        assert_eq!(code, Some(1));
        assert!(log.contains(&format!("FATAL {last_words}")), "{last_words}: {log}");
        assert!(stage.socket().exists(), "it was not ours to remove");
        let mut stage = stage;
        stage.start(&[]);
        assert_eq!(stage.raw("alice", "app").value("SELECT 1"), "1");
    }
}

#[test]
fn who_goes_in_the_middle_leaves_a_process_that_goes_on() {
    let mut stage = Stage::new("");
    stage.start(&[]);
    let mut client = stage.raw("alice", "app");
    assert_eq!(client.value("SELECT 1"), "1");
    for killed_at in ["takeover_init", "SUSPEND finished", "SHOW FDS finished", "sending SHUTDOWN"]
    {
        let mut next = stage.command(&["-R"]).spawn().expect("start the pooler");
        let number = stage.started.len();
        let mut lived_on = false;
        wait_for("its line", || {
            lived_on = stage.log(number).contains("process up");
            stage.log(number).contains(killed_at) || lived_on
        });
        let _ = next.kill();
        let _ = next.wait();
        // Either the old one still is there and goes on, or it has ended and nothing stops another.
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(stage.lease.port).user("alice").dbname("app");
        config.connect_timeout(std::time::Duration::from_millis(500));
        let old = stage.started.last_mut().unwrap();
        let has_ended = wait_for_some("either", || match old.try_wait().unwrap() {
            Some(_) => Some(true),
            None => config.connect(postgres::NoTls).is_ok().then_some(false),
        });
        if has_ended {
            stage.start(&[]);
            client = stage.raw("alice", "app");
        }
        assert_eq!(client.value("SELECT 2"), "2", "killed at {killed_at}");
    }
}

/// When the old process has gone, what does not work any more is no reason to give all clients up.
#[test]
fn what_fails_when_the_old_process_has_gone_costs_no_client() {
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = busy.local_addr().expect("its address").port();
    let mut stage = Stage::new("");
    stage.start(&[]);
    let mut client = stage.raw("alice", "app");
    assert_eq!(client.value("SELECT 1"), "1");
    let nowhere = format!("metrics_listen = 127.0.0.1:{port}\npidfile = /nonexistent/pid");
    stage.configure("app = ", &nowhere);
    let child = stage.command(&["-R"]).spawn().expect("start the pooler");
    stage.started.push(child);
    wait_for("it to come up", || stage.last_log().contains("process up"));
    stage.predecessor_ends();
    assert_eq!(client.value("SELECT 2"), "2");
    for trouble in ["metrics_listen", "/nonexistent/pid"] {
        let log = stage.last_log();
        let told = log.lines().any(|line| line.contains("ERROR") && line.contains(trouble));
        assert!(told, "{trouble}: {log}");
    }
}

/// Who asks for our sockets and does not take them is given up, and no one else waits for him.
#[test]
fn who_takes_no_sockets_keeps_nobody_for_ever() {
    let mut stage = Stage::new("max_client_conn = 1000");
    stage.start(&[]);
    let clients: Vec<Raw> = (0..400).map(|_| stage.raw("alice", "app")).collect();
    // Only who runs as the same user may do that.
    let path = stage.socket();
    let taker = std::thread::spawn(move || {
        account().inspect(|account| sys::become_user(account.uid));
        UnixStream::connect(path).expect("connect")
    });
    let mut taker = taker.join().expect("a connection");
    let startup = Startup::v3().param("user", "pgbouncer").param("database", "pgbouncer");
    for words in [startup.bytes(), raw::query("SUSPEND")] {
        taker.write_all(&words).expect("words");
        let mut answer = Vec::new();
        while !answer.ends_with(&ready()) {
            let mut part = [0; 4096];
            let count = taker.read(&mut part).expect("an answer");
            assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend(&part[..count]);
        }
    }
    // It goes on talking, but does not listen.
    let words = [raw::query("SHOW FDS"), raw::query("SHOW VERSION")].concat();
    taker.write_all(&words).expect("words");
    wait_for("it to be given up", || stage.last_log().contains("handing sockets over failed"));
    for mut client in clients {
        assert_eq!(client.value("SELECT 1"), "1");
    }
}

/// Killed as soon as something can be seen: nothing that is left stops the next start.
#[test]
fn killing_it_at_any_moment_leaves_nothing_that_stops_the_next_start() {
    let mut stage = Stage::new("");
    type Seen = fn(&Stage, usize) -> bool;
    let coming_up: [Seen; 7] = [
        |_, _| true,
        |stage, number| stage.log(number).contains("kernel file descriptor limit"),
        |stage, number| stage.log(number).contains("listening on 127.0.0.1"),
        |stage, _| stage.socket().exists(),
        |stage, number| stage.log(number).contains("listening on unix"),
        |stage, _| stage.dir.join("pid").exists(),
        |stage, number| stage.log(number).contains("process up"),
    ];
    for seen in coming_up {
        let mut child = stage.command(&[]).spawn().expect("start the pooler");
        let number = stage.started.len();
        // Without a pause: what is looked for may be there for microseconds.
        while !seen(&stage, number) && child.try_wait().unwrap().is_none() {}
        let _ = child.kill();
        child.wait().unwrap();
        assert!(!stage.log(number).contains("FATAL"), "{}", stage.log(number));
    }
    let going_down: [Seen; 4] = [
        |_, _| true,
        |stage, number| stage.log(number).contains("got SIGTERM"),
        |stage, _| !stage.dir.join("pid").exists(),
        |stage, _| !stage.socket().exists(),
    ];
    for seen in going_down {
        stage.start(&[]);
        let number = stage.started.len() - 1;
        sys::kill(stage.started[number].id(), libc::SIGTERM);
        let mut child = stage.started.pop().unwrap();
        while !seen(&stage, number) && child.try_wait().unwrap().is_none() {}
        let _ = child.kill();
        child.wait().unwrap();
    }
    stage.start(&[]);
    assert_eq!(stage.raw("alice", "app").value("SELECT 1"), "1");
}

/// Debian's PgBouncer, if it is there: it takes over from us, and we from it.
const PGBOUNCER: &str = "/usr/sbin/pgbouncer";

impl Stage {
    /// Settings that a PgBouncer of any age knows.
    fn plain() -> Stage {
        let stage = Stage::new("");
        let ini = stage.dir.join("ini");
        let text = fs::read_to_string(&ini).unwrap();
        fs::write(&ini, text.replace("max_prepared_statements = 100\n", "")).unwrap();
        stage
    }

    fn has_pgbouncer(what: &str) -> bool {
        let is_there = Path::new(PGBOUNCER).exists();
        if !is_there {
            eprintln!("SKIPPED, for there is no {PGBOUNCER}: {what}");
        }
        is_there
    }
}

#[test]
fn pgbouncer_takes_over_from_us() {
    if !Stage::has_pgbouncer("whether it takes over from us") {
        return;
    }
    let mut stage = Stage::plain();
    stage.start(&[]);
    let (mut idle, mut open) = (stage.raw("alice", "app"), stage.raw("bob", "app"));
    assert_eq!(idle.value("SELECT 1"), "1");
    assert_eq!(tags(&open.query("BEGIN")), "CZ");
    let backend = open.backend_pid();
    let command = stage.command_of(Path::new(PGBOUNCER), &["-R"]);
    stage.start_as(command);
    assert!(stage.predecessor_ends().success());
    assert_eq!(idle.value("SELECT 2"), "2");
    assert_eq!(open.backend_pid(), backend, "its transaction goes on");
    assert_eq!(tags(&open.query("COMMIT")), "CZ");
    assert_eq!(stage.raw("alice", "app").value("SELECT 3"), "3");
}

#[test]
fn we_take_over_from_pgbouncer() {
    if !Stage::has_pgbouncer("whether we take over from it") {
        return;
    }
    let mut stage = Stage::plain();
    let command = stage.command_of(Path::new(PGBOUNCER), &[]);
    stage.start_as(command);
    let (mut idle, mut open) = (stage.raw("alice", "app"), stage.raw("bob", "app"));
    assert_eq!(idle.value("SELECT 1"), "1");
    assert_eq!(tags(&open.query("BEGIN")), "CZ");
    stage.start(&["-R"]);
    assert!(stage.predecessor_ends().success());
    assert_eq!(idle.value("SELECT 2"), "2");
    // Nobody can tell us which replies its server owes.
    open.expect_end();
    assert_eq!(stage.raw("alice", "app").value("SELECT 3"), "3");
    assert_eq!(stage.raw("bob", "app").value("SELECT 4"), "4");
}
