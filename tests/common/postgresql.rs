//! One PostgreSQL for all test processes of a run.
//!
//! Each test process holds a shared lock on `users` for its whole life. Who comes first starts a
//! keeper (`postgresql.sh`) under the exclusive lock `start`; the keeper ends PostgreSQL and removes
//! its directory a few seconds after the last process has let go of `users`, however it ended. So
//! nextest's process per test and cargo's process per file share a server all the same.

use super::{Lease, PATIENCE, account, sys, temp_dir, wait_for_some};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the shared server listens. The user `postgres` needs no password; so do the superusers
/// `alice`, `bob` and `carol`; the databases `postgres` and `app` exist. Members of the roles
/// `by_password`, `by_md5` and `by_scram` have to log in by that method.
#[derive(Clone, Debug)]
pub struct Postgres {
    pub port: u16,
    /// Directory of its Unix socket.
    pub socket_dir: PathBuf,
    _hold: std::sync::Arc<File>,
}

impl Postgres {
    /// The shared server, started if nobody has yet.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| join_or_start(&lock_dir()))
    }

    /// A connection that does not pass the pooler.
    pub fn client(&self, database: &str) -> postgres::Client {
        self.config("postgres", database).connect(postgres::NoTls).expect("direct connection")
    }

    /// As the `postgres` crate wants it.
    pub fn config(&self, user: &str, database: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(user).dbname(database);
        config.ssl_mode(postgres::config::SslMode::Disable);
        config
    }

    /// A new database that no other test knows.
    pub fn fresh_database(&self) -> String {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("fresh_{}_{serial}", std::process::id());
        let mut client = self.client("postgres");
        client.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).expect("drop database");
        client.batch_execute(&format!("CREATE DATABASE {name}")).expect("create database");
        name
    }
}

/// A directory for locks that all test processes of this checkout agree on.
pub fn lock_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared-postgresql");
    fs::create_dir_all(&dir).expect("create the lock directory");
    dir
}

fn open_lock(path: &Path) -> File {
    File::options().create(true).append(true).open(path).expect("open a lock file")
}

fn join_or_start(locks: &Path) -> Postgres {
    let start = open_lock(&locks.join("start"));
    sys::lock(&start, true);
    // The keeper takes `users` alone only while it holds `start`, so this does not wait.
    let users = open_lock(&locks.join("users"));
    sys::lock(&users, false);
    let hold = std::sync::Arc::new(users);
    if let Some(running) = read_address(locks, &hold)
        && answers(&running)
    {
        return running;
    }
    let root = temp_dir(&std::env::temp_dir(), "ringbouncer-postgresql");
    let lease = Lease::take();
    let server = Postgres { port: lease.port, socket_dir: root.clone(), _hold: hold };
    let mut keeper = start_keeper(locks, &root, server.port);
    wait_for_some("PostgreSQL to answer", || {
        let gone = keeper.try_wait().expect("ask for the keeper's state");
        assert!(gone.is_none(), "no PostgreSQL: {gone:?}, see {}", root.display());
        answers(&server).then_some(())
    });
    create_roles(&server);
    let address = format!("{}\n{}\n", server.port, root.display());
    fs::write(locks.join("address"), address).expect("write the address file");
    server
}

fn read_address(locks: &Path, hold: &std::sync::Arc<File>) -> Option<Postgres> {
    let text = fs::read_to_string(locks.join("address")).ok()?;
    let (port, root) = text.split_once('\n')?;
    Some(Postgres {
        port: port.parse().ok()?,
        socket_dir: PathBuf::from(root.trim()),
        _hold: hold.clone(),
    })
}

fn answers(server: &Postgres) -> bool {
    // Another server may have taken the port of one that is gone: ask for our own socket, too.
    let mut config = server.config("postgres", "postgres");
    config.connect_timeout(PATIENCE);
    let Ok(mut client) = config.connect(postgres::NoTls) else {
        return false;
    };
    let Ok(row) = client.query_one("SHOW unix_socket_directories", &[]) else {
        return false;
    };
    row.get::<_, String>(0) == server.socket_dir.to_string_lossy()
}

fn create_roles(server: &Postgres) {
    let mut client = server.client("postgres");
    for role in ["alice", "bob", "carol"] {
        client
            .batch_execute(&format!("CREATE ROLE {role} LOGIN SUPERUSER"))
            .expect("create a role");
    }
    for role in ["by_password", "by_md5", "by_scram"] {
        client.batch_execute(&format!("CREATE ROLE {role}")).expect("create a role");
    }
    client.batch_execute("CREATE DATABASE app").expect("create the database app");
}

fn start_keeper(locks: &Path, root: &Path, port: u16) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/postgresql.sh");
    let mut command = Command::new("sh");
    command.arg(script).arg(bin_dir()).arg(locks).arg(root).arg(port.to_string());
    if account().is_some() {
        command.args(["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]);
    } else {
        command.arg("env");
    }
    // A group of its own, and no pipe of ours: it outlives this process and nobody waits for it.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start the keeper of PostgreSQL")
}

/// The directory of `initdb` and `postgres`: Debian's newest, else what `pg_config` says.
pub fn bin_dir() -> PathBuf {
    let version = |path: &Path| -> u32 {
        path.file_name().and_then(|name| name.to_str()).and_then(|s| s.parse().ok()).unwrap_or(0)
    };
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = debian
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(|path| version(path));
    if let Some(path) = newest {
        return path.join("bin");
    }
    let output = Command::new("pg_config").arg("--bindir").output();
    let output = output.expect("PostgreSQL is installed (make test installs it)");
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}
