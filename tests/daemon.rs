//! The process: how it starts, what it refuses, where it runs, what it leaves behind.

mod common;

use common::{Lease, PATIENCE, Postgres, account, sys, temp_dir, wait_for, wait_for_some};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A directory with a configuration, and the processes started with it.
struct Stage {
    dir: PathBuf,
    lease: Lease,
    started: Vec<Child>,
}

impl Stage {
    fn new() -> Stage {
        let dir = temp_dir(&Postgres::shared().socket_dir, "daemon");
        let stage = Stage { dir, lease: Lease::take(), started: Vec::new() };
        stage.configure("");
        stage
    }

    fn port(&self) -> u16 {
        self.lease.port
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path(&format!(".s.PGSQL.{}", self.port()))
    }

    /// Writes the configuration: pid file and Unix socket in our directory, and these lines.
    fn configure(&self, lines: &str) {
        let dir = self.dir.display();
        let (port, server) = (self.port(), Postgres::shared().port);
        let text = format!(
            "[databases]\napp = host=127.0.0.1 port={server}\n[pgbouncer]\nauth_type = trust\n\
             auth_file = {dir}/users\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir = {dir}\npidfile = {dir}/pid\n{lines}\n"
        );
        fs::write(self.path("ini"), text).expect("write the configuration");
        fs::write(self.path("users"), "\"alice\" \"\"\n").expect("write the user list");
    }

    /// A command with these options and our configuration, as the account of the servers.
    fn command(&self, options: &[&str]) -> Command {
        let mut command = self.command_as_we_are(options);
        if let Some(account) = account() {
            command.uid(account.uid).gid(account.gid);
        }
        sys::die_with_parent(&mut command);
        command
    }

    fn command_as_we_are(&self, options: &[&str]) -> Command {
        let mut command = Command::new(common::pooler::binary());
        command.args(options).arg(self.path("ini")).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("JOURNAL_STREAM");
        command.stderr(fs::File::create(self.path("stderr")).expect("create a file"));
        command
    }

    /// Starts it, and returns when it is up.
    fn start(&mut self, command: &mut Command) {
        let child = command.spawn().expect("start the pooler");
        self.started.push(child);
        let mut child = self.started.pop().expect("just pushed");
        wait_for("the pooler to come up", || {
            if let Some(status) = child.try_wait().expect("try_wait") {
                panic!("it ended: {status}\n{}", self.stderr());
            }
            self.pid() == Some(child.id())
        });
        self.started.push(child);
    }

    /// Runs it to its end; its status and its log.
    fn run(&self, options: &[&str]) -> (ExitStatus, String) {
        self.run_command(&mut self.command(options))
    }

    fn run_command(&self, command: &mut Command) -> (ExitStatus, String) {
        let mut child = command.spawn().expect("start the pooler");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("try_wait") {
                return (status, self.stderr());
            }
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
                panic!("it does not end:\n{}", self.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// It refuses to start, with this as its last line.
    fn refuses(&self, options: &[&str], line: &str) {
        let (status, log) = self.run(options);
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.trim_end().ends_with(line), "{line:?} is not at the end of:\n{log}");
    }

    fn stderr(&self) -> String {
        self.text("stderr")
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn pid(&self) -> Option<u32> {
        self.text("pid").trim().parse().ok()
    }

    fn wait_for_exit(&mut self) -> ExitStatus {
        let child = self.started.last_mut().expect("one was started");
        wait_for_some("the pooler to end", || child.try_wait().expect("try_wait"))
    }

    fn signal(&self, signal: i32) {
        sys::kill(self.pid().expect("a pid"), signal);
    }

    fn end_in_background(&self) {
        let pid = self.pid().expect("it has a pid file");
        sys::kill(pid, libc::SIGQUIT);
        wait_for("the end", || !Path::new(&format!("/proc/{pid}")).exists());
    }

    fn serves(&self) -> bool {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port()).user("alice").dbname("app");
        let Ok(mut client) = config.connect(postgres::NoTls) else { return false };
        client.query_one("SELECT 42", &[]).is_ok_and(|row| row.get::<_, i32>(0) == 42)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr ---\n{}", self.stderr());
            eprintln!("--- log ---\n{}", self.text("log"));
        }
        for child in &mut self.started {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The messages of a log, with their levels, without what varies.
fn messages(log: &str) -> Vec<String> {
    log.lines().filter_map(|line| Some(line.split_once("] ")?.1.to_owned())).collect()
}

#[test]
fn it_starts_in_the_known_order_and_leaves_nothing_behind() {
    let mut stage = Stage::new();
    let mut command = stage.command(&[]);
    stage.start(&mut command);
    assert!(stage.serves());
    let lines = messages(&stage.stderr());
    assert!(lines[0].starts_with("LOG kernel file descriptor limit: "), "{lines:?}");
    let files = "; max_client_conn: 100, max expected fd use: 152";
    assert!(lines[0].ends_with(files), "{lines:?}");
    assert_eq!(lines[1], format!("LOG listening on 127.0.0.1:{}", stage.port()));
    assert_eq!(lines[2], format!("LOG listening on unix:{}", stage.socket().display()));
    assert!(lines[3].starts_with("LOG process up: PgBouncer 1."), "{lines:?}");
    assert_eq!(fs::metadata(stage.path("pid")).expect("a pid file").mode() & 0o777, 0o644);
    stage.signal(libc::SIGQUIT);
    assert_eq!(stage.wait_for_exit().code(), Some(0));
    assert!(!stage.path("pid").exists());
    assert!(!stage.socket().exists());
}

#[test]
fn what_a_killed_process_left_does_not_stop_the_next() {
    let mut stage = Stage::new();
    let mut command = stage.command(&[]);
    stage.start(&mut command);
    stage.signal(libc::SIGKILL);
    stage.wait_for_exit();
    assert!(stage.path("pid").exists() && stage.socket().exists());
    let mut command = stage.command(&[]);
    stage.start(&mut command);
    wait_for("the new process to serve", || stage.serves());
    assert!(messages(&stage.stderr())[0].ends_with("stale pidfile, removing"));
}

#[test]
fn a_second_process_is_refused() {
    let mut stage = Stage::new();
    let mut command = stage.command(&[]);
    stage.start(&mut command);
    let pid = stage.text("pid");
    stage.refuses(&[], "FATAL unix socket is in use, cannot continue");
    stage.configure("unix_socket_dir =");
    let path = stage.path("pid");
    let exists = format!("FATAL pidfile '{}' exists, another instance running?", path.display());
    stage.refuses(&[], &exists);
    assert_eq!(stage.text("pid"), pid, "the first one's file stays");
    assert!(stage.socket().exists());
    assert!(stage.serves());
}

#[test]
fn a_restart_without_an_old_process_is_a_start() {
    let mut stage = Stage::new();
    let mut command = stage.command(&["-R"]);
    stage.start(&mut command);
    wait_for("it to serve", || stage.serves());
    let lines = messages(&stage.stderr());
    assert_eq!(lines[0], "WARNING Online restart is deprecated, use so_reuseport instead");
    assert_eq!(lines[1], "LOG old process not found, try to continue normally");
}

#[test]
fn faults_of_the_configuration_are_fatal() {
    let stage = Stage::new();
    stage.configure("nonsense = 1");
    stage.refuses(&[], "FATAL cannot load config file");
    stage.configure("logfile = /nonexist/x.log");
    let logfile = "FATAL Cannot open logfile: '/nonexist/x.log': No such file or directory";
    stage.refuses(&[], logfile);
    stage.refuses(&["-q"], logfile);
    stage.configure("listen_addr =\nunix_socket_dir =");
    stage.refuses(&[], "FATAL nowhere to listen on");
    stage.configure("pidfile =");
    stage.refuses(&["-d"], "FATAL daemon needs pidfile configured");
    stage.refuses(&["-u", "nobody.is.called.this"], "to switch to");
    stage.configure("user = nobody.is.called.this");
    stage.refuses(&[], "FATAL could not find user 'nobody.is.called.this' to switch to");
    stage.refuses(
        &["-u", "root"],
        "FATAL failed to assume identity of user 'root': Operation not permitted",
    );
    assert!(!stage.path("pid").exists());
}

#[test]
fn a_user_that_we_are_already_needs_no_rights() {
    let Some(_) = account() else { return };
    let mut stage = Stage::new();
    stage.configure("user = postgres");
    let mut command = stage.command(&[]);
    stage.start(&mut command);
    wait_for("it to serve", || stage.serves());
}

#[test]
fn root_is_refused_and_can_step_down() {
    let Some(account) = account() else { return };
    let mut stage = Stage::new();
    for options in [&[][..], &["-u", "root"], &["--user="]] {
        let (status, log) = stage.run_command(&mut stage.command_as_we_are(options));
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.ends_with("FATAL PgBouncer should not run as root\n"), "{log}");
    }
    // What is wrong before the step down goes to a log file that must be the user's afterwards.
    let log = stage.path("log");
    stage.configure(&format!("user = nobody.here\nlogfile = {}\nauth_file = /no", log.display()));
    let mut command = stage.command_as_we_are(&["-u", "postgres"]);
    stage.start(&mut command);
    wait_for("it to serve", || stage.stderr().contains("process up"));
    let status = fs::read_to_string(format!("/proc/{}/status", stage.pid().expect("a pid")));
    let status = status.expect("a status");
    let ids = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (uid, gid) = (account.uid.to_string(), account.gid.to_string());
    assert_eq!(ids("Uid:"), [uid.as_str(); 4]);
    assert_eq!(ids("Gid:"), [gid.as_str(); 4]);
    assert_eq!(ids("Groups:"), [gid.as_str()], "no group of root is left");
    assert_eq!(fs::metadata(log).expect("a log file").uid(), account.uid);
    assert!(stage.text("log").contains("ERROR could not open auth_file /no: "));
}

#[test]
fn in_the_background_it_has_no_parent_no_terminal_and_no_session_of_ours() {
    let stage = Stage::new();
    stage.configure("logfile = log");
    let (status, log) = stage.run(&["-d"]);
    assert_eq!((status.code(), log.as_str()), (Some(0), ""));
    wait_for("it to come up", || stage.pid().is_some() && stage.text("log").contains("process up"));
    assert!(stage.serves(), "{}", stage.text("log"));
    let pid = stage.pid().expect("a pid");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    assert_ne!(fields[1], std::process::id().to_string(), "its parent");
    assert_ne!(fields[3], pid.to_string(), "it does not lead its session, so it gets no terminal");
    assert_eq!(fields[4], "0", "its terminal");
    for stream in 0..3 {
        let link = fs::read_link(format!("/proc/{pid}/fd/{stream}")).expect("a stream");
        assert_eq!(link, Path::new("/dev/null"));
    }
    stage.end_in_background();
    assert!(!stage.path("pid").exists() && !stage.socket().exists());
}

#[test]
fn in_the_background_faults_are_told_to_the_log() {
    let stage = Stage::new();
    stage.configure("logfile = log\nunix_socket_dir = /nonexist");
    let (status, _) = stage.run(&["-d"]);
    assert_eq!(status.code(), Some(0), "the parent does not wait for the child");
    wait_for("the line", || stage.text("log").ends_with("FATAL failed to create unix socket\n"));
    assert!(!stage.path("pid").exists());
}

#[test]
fn quiet_is_quiet() {
    let mut stage = Stage::new();
    stage.configure("logfile = log");
    let mut command = stage.command(&["-q"]);
    stage.start(&mut command);
    wait_for("the log", || stage.text("log").contains("process up"));
    assert_eq!(stage.stderr(), "");
    stage.configure("nonsense = 1");
    let (status, log) = stage.run(&["-q"]);
    assert_eq!((status.code(), log.as_str()), (Some(1), ""));
}

#[test]
fn the_log_file_is_opened_again_on_hangup() {
    let mut stage = Stage::new();
    stage.configure("logfile = log");
    let mut command = stage.command(&[]);
    stage.start(&mut command);
    wait_for("it to be up", || stage.text("log").contains("process up"));
    let on_stderr = stage.stderr();
    assert_eq!(stage.text("log"), on_stderr, "one does not replace the other");
    fs::rename(stage.path("log"), stage.path("log.1")).expect("rename the log");
    stage.signal(libc::SIGHUP);
    wait_for("the new file", || stage.path("log").exists());
    stage.signal(libc::SIGUSR2);
    wait_for("a line", || stage.text("log").contains("got SIGUSR2"));
    assert!(stage.text("log.1").ends_with("LOG got SIGHUP, re-reading config\n"));
    // A file that cannot be opened costs nobody his connection: the old one stays.
    stage.configure("logfile = /nonexist/log");
    stage.signal(libc::SIGHUP);
    let line = "ERROR Cannot open logfile: '/nonexist/log': No such file or directory; \
                keeping the old one\n";
    wait_for("the complaint", || stage.text("log").ends_with(line));
    stage.configure("");
    stage.signal(libc::SIGHUP);
    wait_for("the line on stderr", || stage.stderr().matches("got SIGHUP").count() == 3);
    stage.signal(libc::SIGUSR2);
    wait_for("a line", || stage.stderr().matches("got SIGUSR2").count() == 2);
    assert_eq!(stage.text("log").matches("got SIGUSR2").count(), 1, "it is no longer written");
}

#[test]
fn json_lines_are_objects_with_the_parts_of_a_connection() {
    let mut stage = Stage::new();
    stage.configure("log_format = json");
    let mut command = stage.command(&[]);
    stage.start(&mut command);
    wait_for("it to serve", || stage.serves());
    wait_for("the end of a client", || stage.stderr().contains("client close request"));
    let mut judge = Postgres::shared().client("postgres");
    let mut events = Vec::new();
    for line in stage.stderr().lines() {
        let sql = "SELECT v->>'level', v->>'event', v->>'user', v->>'message', v->>'pid' \
                   FROM (SELECT $1::text::jsonb) AS t(v)";
        let row = judge.query_one(sql, &[&line]).expect("a JSON object");
        assert_eq!(row.get::<_, &str>(0), "LOG");
        assert_eq!(row.get::<_, &str>(4), stage.pid().expect("a pid").to_string());
        if let Some(event) = row.get::<_, Option<String>>(1) {
            let user: Option<String> = row.get(2);
            assert_eq!(user.is_some(), event != "started", "{line}");
            events.push(event);
        }
    }
    assert_eq!(events, ["started", "login_attempt", "server_connected", "closed"]);
}

#[test]
fn verbosity_comes_from_the_command_line_or_the_file() {
    for (options, line, is_verbose) in [
        (&["-v"][..], "", true),
        (&["-v"], "verbose = 0", false),
        (&[], "verbose = 1", true),
        (&[], "", false),
    ] {
        let mut stage = Stage::new();
        let secret = "auth_ldap_options = ldapserver=h ldapbasedn=b ldapbindpasswd=\"hush hush\"";
        stage.configure(&format!("{line}\n{secret}"));
        let mut command = stage.command(options);
        stage.start(&mut command);
        stage.signal(libc::SIGHUP);
        wait_for("the reload", || stage.stderr().contains("got SIGHUP"));
        stage.signal(libc::SIGUSR2);
        wait_for("a line behind it", || stage.stderr().contains("got SIGUSR2"));
        let log = stage.stderr();
        // Reliability 17.
        assert!(!log.contains("hush"), "{log}");
        let later = log.split_once("process up").expect("it is up").1;
        assert_eq!(later.contains("DEBUG parse_ini_file: "), is_verbose, "{options:?} {line}");
    }
}

#[test]
fn the_service_manager_is_told() {
    let mut stage = Stage::new();
    let manager = UnixDatagram::bind(stage.path("notify")).expect("bind a socket");
    fs::set_permissions(stage.path("notify"), fs::Permissions::from_mode(0o777)).expect("chmod");
    manager.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    let hear = || {
        let mut buffer = [0; 200];
        let len = manager.recv(&mut buffer).expect("a word");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let mut command = stage.command(&[]);
    command.env("NOTIFY_SOCKET", stage.path("notify"));
    stage.start(&mut command);
    assert_eq!(hear(), "READY=1");
    assert!(stage.stderr().contains("process up"));
    for lines in ["", "nonsense = 1"] {
        stage.configure(lines);
        stage.signal(libc::SIGHUP);
        let reloading = hear();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("a reload");
        assert!(time.parse::<u64>().expect("a number") > 0);
        assert_eq!(hear(), "READY=1", "even if it failed");
    }
    stage.signal(libc::SIGTERM);
    assert_eq!(hear(), "STOPPING=1");
    assert_eq!(stage.wait_for_exit().code(), Some(0));
}

#[test]
fn the_service_manager_is_told_how_busy_we_are() {
    let mut stage = Stage::new();
    let manager = UnixDatagram::bind(stage.path("notify")).expect("bind a socket");
    fs::set_permissions(stage.path("notify"), fs::Permissions::from_mode(0o777)).expect("chmod");
    manager.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    stage.configure("stats_period = 1");
    let mut command = stage.command(&[]);
    command.env("NOTIFY_SOCKET", stage.path("notify"));
    stage.start(&mut command);
    let words = ["READY=1", "STATUS=stats: 0 xacts/s, 0 queries/s, 0 client parses/s"];
    for word in words {
        let mut buffer = [0; 400];
        let len = manager.recv(&mut buffer).expect("a word");
        let heard = String::from_utf8_lossy(&buffer[..len]).into_owned();
        assert!(heard.starts_with(word), "{heard}");
        assert!(
            word == words[0] || heard.ends_with("query 0 \u{3bc}s, wait 0 \u{3bc}s"),
            "{heard}"
        );
    }
}

/// Runs the pooler as a service manager does: with a listener, and its own process id.
fn with_listener(stage: &Stage, listener: RawFd) -> Command {
    let mut command = Command::new("sh");
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$1\"";
    command.arg("-c").arg(script).arg(common::pooler::binary()).arg(stage.path("ini"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir(&stage.dir);
    command.stderr(fs::File::create(stage.path("stderr")).expect("create a file"));
    if let Some(account) = account() {
        command.uid(account.uid).gid(account.gid);
    }
    sys::pass_as_third(&mut command, listener);
    sys::die_with_parent(&mut command);
    command
}

/// Something at descriptor 3, so that what is opened later has a higher number.
fn occupy_third() -> Vec<fs::File> {
    (0..4).map(|_| fs::File::open("/dev/null").expect("open /dev/null")).collect()
}

#[test]
fn sockets_from_the_service_manager_are_used() {
    let _third = occupy_third();
    let mut stage = Stage::new();
    let path = stage.path("handed");
    let listener = UnixListener::bind(&path).expect("bind a socket");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("chmod");
    let mut command = with_listener(&stage, listener.as_raw_fd());
    stage.start(&mut command);
    drop(listener);
    let log = messages(&stage.stderr());
    assert_eq!(
        log[1..4],
        [
            "WARNING sockets passed from service manager, cf_listen_addr ignored",
            "WARNING sockets passed from service manager, cf_unix_socket_dir ignored",
            "LOG socket passed from service manager (fd 3)",
        ]
    );
    assert!(log[4].starts_with("LOG process up"), "{log:?}");
    let mut client = UnixStream::connect(&path).expect("connect");
    client.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).expect("ask for TLS");
    let mut answer = [0];
    client.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"N");
    drop(client);
    stage.signal(libc::SIGTERM);
    assert_eq!(stage.wait_for_exit().code(), Some(0));
    assert!(path.exists(), "its file is the service manager's");
}

#[test]
fn a_tcp_socket_from_the_service_manager_serves() {
    let _third = occupy_third();
    let mut stage = Stage::new();
    stage.configure("listen_addr =\nunix_socket_dir =");
    let listener = TcpListener::bind(("127.0.0.1", stage.port())).expect("bind");
    let mut command = with_listener(&stage, listener.as_raw_fd());
    stage.start(&mut command);
    drop(listener);
    assert!(stage.serves());
    assert!(!stage.stderr().contains("ignored"));
}

#[test]
fn a_descriptor_that_is_no_listener_is_fatal() {
    let _third = occupy_third();
    let stage = Stage::new();
    let file = fs::File::open("/dev/null").expect("open /dev/null");
    let mut command = with_listener(&stage, file.as_raw_fd());
    let (status, log) = stage.run_command(&mut command);
    assert_eq!(status.code(), Some(1));
    let line = "FATAL failed to set up socket passed from service manager (fd 3)\n";
    assert!(log.ends_with(line), "{log}");
}

#[test]
fn check_shows_the_configuration_and_starts_nothing() {
    let stage = Stage::new();
    stage.configure("logfile = log\nmax_client_conn = 0x10");
    let check = || {
        let output = stage.command(&["--check"]).stdout(Stdio::piped()).output().expect("run");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (status, shown) = check();
    assert_eq!(status, Some(0), "{}", stage.stderr());
    assert!(shown.starts_with("[pgbouncer]\n"), "{shown}");
    assert!(shown.contains("\nmax_client_conn = 16\n"), "{shown}");
    assert!(shown.contains("\napp = dbname=app host=127.0.0.1 "), "{shown}");
    assert!(shown.ends_with("users: 1 users\n"), "{shown}");
    assert!(!stage.path("log").exists() && !stage.path("pid").exists());
    assert_eq!(stage.stderr(), "");
    fs::write(stage.path("users"), "\"alice\" \"\"\nnonsense\n").expect("write the user list");
    assert_eq!(check().0, Some(1));
    assert!(stage.stderr().ends_with("ERROR broken auth file\n"));
    stage.configure("auth_hba_file = hba\nauth_ident_file = ident");
    fs::write(stage.path("hba"), "local all all peer map=m\n").expect("write the rules");
    fs::write(stage.path("ident"), "m root alice\n").expect("write the maps");
    assert_eq!(check().0, Some(0), "{}", stage.stderr());
    fs::write(stage.path("hba"), "local all all peer map=n\n").expect("write the rules");
    assert_eq!(check().0, Some(1));
    assert!(stage.stderr().ends_with("WARNING could not parse hba config line 1\n"));
    stage.configure("nonsense = 1");
    assert_eq!(check(), (Some(1), String::new()));
    assert!(stage.stderr().contains("ERROR unknown parameter: pgbouncer/nonsense\n"));
}

#[test]
fn killed_at_any_moment_it_leaves_nothing_that_stops_the_next_start() {
    let mut stage = Stage::new();
    let mut random = common::Random::new(u64::from(std::process::id()));
    let mut pause = |most: usize| {
        let time = u64::try_from(random.below(most)).expect("a small number");
        std::thread::sleep(Duration::from_micros(time));
    };
    for round in 0..60 {
        let mut child = stage.command(&[]).spawn().expect("start the pooler");
        // It needs a few milliseconds to come up, and less to end.
        pause(12_000);
        if round % 2 == 1 && stage.pid() == Some(child.id()) {
            sys::kill(child.id(), libc::SIGINT);
            pause(1_000);
        }
        child.kill().expect("kill the pooler");
        child.wait().expect("wait");
        assert!(!stage.stderr().contains("FATAL"), "round {round}");
    }
    let mut command = stage.command(&[]);
    stage.start(&mut command);
    assert!(stage.serves());
}
