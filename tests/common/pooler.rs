//! One pooler process for one test: configured by a builder, watched while it lives, ended on drop.

use super::{Lease, PATIENCE, Postgres, Raw, Startup, account, postgresql, raw, sys, temp_dir};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

/// What goes into the configuration file and the user list.
#[derive(Clone, Debug)]
pub struct Ini {
    databases: Vec<(String, String)>,
    users: Vec<(String, String)>,
    peers: Vec<(String, String)>,
    settings: Vec<(String, String)>,
    /// Names and secrets of the user list.
    secrets: Vec<(String, String)>,
    /// What its environment has besides ours.
    environment: Vec<(String, String)>,
    /// System calls that fail, and how.
    denied: Vec<(libc::c_long, i32)>,
}

impl Ini {
    fn new(postgres: &Postgres) -> Ini {
        let mut ini = Ini {
            databases: Vec::new(),
            users: Vec::new(),
            peers: Vec::new(),
            settings: Vec::new(),
            secrets: Vec::new(),
            environment: Vec::new(),
            denied: Vec::new(),
        };
        for name in ["postgres", "alice", "bob", "carol"] {
            ini.known(name);
        }
        for name in ["app", "postgres"] {
            ini.database(name, &format!("host=127.0.0.1 port={} dbname={name}", postgres.port));
        }
        ini.set("listen_addr", "127.0.0.1").set("auth_type", "trust");
        ini.set("unix_socket_dir", "").set("pool_mode", "transaction");
        ini.set("admin_users", "postgres").set("ignore_startup_parameters", "extra_float_digits");
        ini
    }

    /// One setting of `[pgbouncer]`; a later value replaces an earlier one.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Ini {
        replace(&mut self.settings, name, value);
        self
    }

    /// A system call that always fails, with this error number.
    pub fn deny(&mut self, call: libc::c_long, error: i32) -> &mut Ini {
        self.denied.push((call, error));
        self
    }

    /// One variable of its environment.
    pub fn environment(&mut self, name: &str, value: &str) -> &mut Ini {
        replace(&mut self.environment, name, value);
        self
    }

    /// One line of `[databases]`; a later value replaces an earlier one.
    pub fn database(&mut self, name: &str, connect: &str) -> &mut Ini {
        replace(&mut self.databases, name, connect);
        self
    }

    /// One line of `[users]`.
    pub fn user(&mut self, name: &str, settings: &str) -> &mut Ini {
        replace(&mut self.users, name, settings);
        self
    }

    /// One line of `[peers]`; a later one of the same number replaces it.
    pub fn peer(&mut self, id: u16, connect: &str) -> &mut Ini {
        replace(&mut self.peers, &id.to_string(), connect);
        self
    }

    /// No such peer any more.
    pub fn forget_peer(&mut self, id: u16) -> &mut Ini {
        self.peers.retain(|(known, _)| *known != id.to_string());
        self
    }

    /// One more name in the user list; its password is `secret`.
    pub fn known(&mut self, name: &str) -> &mut Ini {
        self.secret(name, "secret")
    }

    /// One line of the user list; a later one of the same name replaces it.
    pub fn secret(&mut self, name: &str, secret: &str) -> &mut Ini {
        replace(&mut self.secrets, name, secret);
        self
    }

    /// A second line for a user.
    pub fn another_secret(&mut self, name: &str, secret: &str) -> &mut Ini {
        self.secrets.push((name.to_owned(), secret.to_owned()));
        self
    }

    /// No such name in the user list.
    pub fn forget_user(&mut self, name: &str) -> &mut Ini {
        self.secrets.retain(|(known, _)| known != name);
        self
    }

    /// No such database any more.
    pub fn forget_database(&mut self, name: &str) -> &mut Ini {
        self.databases.retain(|(known, _)| known != name);
        self
    }

    /// What a setting says.
    pub fn value(&self, name: &str) -> &str {
        let row = self.settings.iter().find(|(known, _)| known == name);
        row.map_or("", |(_, value)| value)
    }

    fn text(&self) -> String {
        let section = |name: &str, rows: &[(String, String)]| {
            let mut text = format!("[{name}]\n");
            for (key, value) in rows {
                text += &format!("{key} = {value}\n");
            }
            text
        };
        section("databases", &self.databases)
            + &section("users", &self.users)
            + &section("peers", &self.peers)
            + &section("pgbouncer", &self.settings)
    }
}

fn replace(rows: &mut Vec<(String, String)>, name: &str, value: &str) {
    rows.retain(|(known, _)| known != name);
    rows.push((name.to_owned(), value.to_owned()));
}

/// A running pooler. Dropping it ends the process and fails the test if it had died before.
pub struct Pooler {
    child: Child,
    ini: Ini,
    dir: PathBuf,
    pub port: u16,
    _lease: Lease,
    ended: bool,
}

impl Pooler {
    /// Starts a pooler in front of the shared PostgreSQL: trust, transaction mode, `app` and
    /// `postgres`, unless `change` says otherwise. Returns once it accepts connections.
    pub fn start(change: impl FnOnce(&mut Ini)) -> Pooler {
        let mut ini = Ini::new(Postgres::shared());
        change(&mut ini);
        // The port is ours among tests; a stranger may take it all the same.
        for _ in 0..5 {
            if let Some(pooler) = Pooler::try_start(&ini) {
                return pooler;
            }
        }
        panic!("five times another process took the port first");
    }

    fn try_start(ini: &Ini) -> Option<Pooler> {
        let mut ini = ini.clone();
        // Within the directory of the shared PostgreSQL, for that is removed even if we are killed.
        let dir = temp_dir(&Postgres::shared().socket_dir, "pooler");
        let lease = Lease::take();
        let port = lease.port;
        ini.set("listen_port", &port.to_string());
        ini.set("auth_file", &dir.join("userlist.txt").to_string_lossy());
        write_files(&dir, &ini);
        let child = spawn(&dir, &ini, &[]);
        let mut pooler = Pooler { child, ini, dir, port, _lease: lease, ended: false };
        pooler.wait_until_up().then_some(pooler)
    }

    /// False if its port was taken.
    fn wait_until_up(&mut self) -> bool {
        let start = Instant::now();
        loop {
            let exit = self.child.try_wait().expect("ask for the pooler's state");
            if let Some(status) = exit {
                self.ended = true;
                let log = self.log();
                let taken = log.contains("in use");
                assert!(taken, "the pooler ended while starting: {status}, its log:\n{log}");
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            assert!(start.elapsed() < PATIENCE, "the pooler does not listen:\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts a second process with these words on its command line, beside the first. It logs to
    /// the same file.
    pub fn start_beside(&self, words: &[&str]) -> Child {
        spawn(&self.dir, &self.ini, words)
    }

    /// Starts another process with other settings, which are in force for nobody else. It logs to
    /// the same file.
    pub fn start_with(&self, change: impl FnOnce(&mut Ini)) -> Child {
        let mut ini = self.ini.clone();
        change(&mut ini);
        write_files(&self.dir, &ini);
        spawn(&self.dir, &ini, &[])
    }

    /// Has a new process take over from this one, which ends; how.
    pub fn take_over(&mut self) -> ExitStatus {
        let ups = |pooler: &Pooler| pooler.log().matches("process up: ").count();
        let before = ups(self);
        let mut old = std::mem::replace(&mut self.child, spawn(&self.dir, &self.ini, &["-R"]));
        super::wait_for("the takeover", || {
            assert_eq!(self.child.try_wait().expect("try_wait"), None, "{}", self.log());
            ups(self) > before
        });
        super::wait_for_some("the old process to end", || old.try_wait().expect("try_wait"))
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Changes the configuration file, and tells nobody.
    pub fn rewrite(&mut self, change: impl FnOnce(&mut Ini)) {
        change(&mut self.ini);
        write_files(&self.dir, &self.ini);
    }

    pub fn signal(&self, signal: i32) {
        sys::kill(self.pid(), signal);
    }

    /// Waits for an end that the test has asked for.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        self.ended = true;
        super::wait_for_some("the pooler to end", || self.child.try_wait().expect("try_wait"))
    }

    /// A logged-in raw connection; database `app`.
    pub fn raw(&self, user: &str) -> Raw {
        self.raw_with(Startup::v3().param("user", user).param("database", "app"))
    }

    /// A raw connection that has seen the welcome for this startup packet.
    pub fn raw_with(&self, startup: Startup) -> Raw {
        let mut raw = Raw::connect(self.port);
        raw.log_in(&startup);
        raw
    }

    /// A raw connection that has said nothing yet.
    pub fn unnamed(&self) -> Raw {
        Raw::connect(self.port)
    }

    /// As the `postgres` crate wants it.
    pub fn config(&self, user: &str, database: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(user).dbname(database);
        config.ssl_mode(postgres::config::SslMode::Disable);
        config
    }

    /// A client of the `postgres` crate as `alice` on `app`.
    pub fn client(&self) -> postgres::Client {
        self.config("alice", "app").connect(postgres::NoTls).expect("connect through the pooler")
    }

    /// A table of the console: its rows by the names of the columns.
    pub fn table(&self, query: &str) -> Vec<BTreeMap<String, String>> {
        let console = Startup::v3().param("user", "postgres").param("database", "pgbouncer");
        let answer = self.raw_with(console).query(query);
        let names = raw::column_names(&answer[0]);
        let rows = answer.iter().filter(|message| message.tag == b'D');
        rows.map(|row| names.iter().cloned().zip(row.columns()).collect()).collect()
    }

    pub fn resident_bytes(&self) -> u64 {
        super::resident_bytes(self.pid())
    }

    /// It still takes a new client and its query; panics with the log otherwise.
    pub fn assert_serves(&self) {
        let mut client = match self.config("alice", "app").connect(postgres::NoTls) {
            Ok(client) => client,
            Err(e) => panic!("the pooler refuses a client: {e}\n{}", self.log()),
        };
        let row = client.query_one("SELECT 41 + 1", &[]).expect("a query through the pooler");
        assert_eq!(row.get::<_, i32>(0), 42);
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let early = if self.ended { None } else { self.child.try_wait().ok().flatten() };
        if !self.ended && early.is_none() {
            // Still our child and not waited for: the pid cannot have another owner.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let log = self.log();
        let _ = fs::remove_dir_all(&self.dir);
        if std::thread::panicking() {
            let state = early.map_or("alive".to_owned(), |status| status.to_string());
            eprintln!("--- log of the pooler ({state}) ---\n{log}");
            return;
        }
        if let Some(status) = early {
            panic!("the pooler died under the test: {status}, its log:\n{log}");
        }
        assert!(!log.contains("panicked at"), "the pooler panicked:\n{log}");
    }
}

fn spawn(dir: &Path, ini: &Ini, words: &[&str]) -> Child {
    let mut log = fs::OpenOptions::new();
    let log = log.create(true).append(true).open(dir.join("log")).expect("open the log");
    let mut command = Command::new(binary());
    command.args(words).arg(dir.join("pooler.ini")).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.envs(ini.environment.iter().map(|(name, value)| (name, value)));
    if let Some(account) = account() {
        command.uid(account.uid).gid(account.gid);
    }
    sys::die_with_parent(&mut command);
    for (call, error) in &ini.denied {
        sys::deny(&mut command, *call, *error);
    }
    command.spawn().unwrap_or_else(|e| panic!("start {}: {e}", binary().display()))
}

fn write_files(dir: &Path, ini: &Ini) {
    let line = |(name, secret): &(String, String)| format!("\"{name}\" \"{secret}\"\n");
    let list: String = ini.secrets.iter().map(line).collect();
    for (name, text) in [("userlist.txt", list), ("pooler.ini", ini.text())] {
        // As a whole: it may be read at any moment.
        let (path, new) = (dir.join(name), dir.join("new"));
        fs::write(&new, text).expect("write a configuration file");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).expect("chmod");
        fs::rename(&new, &path).expect("rename a configuration file");
    }
}

/// The program under test.
pub fn binary() -> PathBuf {
    static BINARY: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let find = || {
        let path = match std::env::var_os("RINGBOUNCER_TEST_BINARY") {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(env!("CARGO_BIN_EXE_ringbouncer")),
        };
        if account().is_none() || path.ancestors().skip(1).all(others_may_enter) {
            return path;
        }
        copy_for_others(&path)
    };
    BINARY.get_or_init(find).clone()
}

fn others_may_enter(dir: &Path) -> bool {
    fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 != 0)
}

/// A checkout below a home directory is closed to the account of the servers: run a copy, kept next
/// to the shared PostgreSQL and removed with it.
fn copy_for_others(path: &Path) -> PathBuf {
    let meta = fs::metadata(path).expect("the binary exists");
    let name = format!("pooler-{}-{}-{}", meta.mtime(), meta.mtime_nsec(), meta.len());
    let copy = Postgres::shared().socket_dir.join(name);
    let lock = fs::File::create(postgresql::lock_dir().join("copy")).expect("create a lock file");
    sys::lock(&lock, true);
    if !copy.exists() {
        let partial = copy.with_extension("partial");
        fs::copy(path, &partial).expect("copy the binary");
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::rename(&partial, &copy).expect("rename the copy");
    }
    copy
}
