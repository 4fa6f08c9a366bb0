//! A PostgreSQL of a test's own, to be stopped, frozen, crashed and started again.

use super::postgresql::{bin_dir, lock_dir};
use super::{Lease, PATIENCE, Postgres, account, sys, temp_dir, wait_for, wait_for_some};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The user `postgres` and the superuser `alice` need no password; the database `app` exists.
pub struct OwnPostgres {
    pub port: u16,
    root: PathBuf,
    postmaster: Option<Child>,
    _lease: Lease,
}

impl OwnPostgres {
    pub fn start() -> OwnPostgres {
        OwnPostgres::start_with("")
    }

    /// With these lines in its configuration file, which win over ours.
    pub fn start_with(lines: &str) -> OwnPostgres {
        let root = temp_dir(&std::env::temp_dir(), "ringbouncer-own-postgresql");
        let lease = Lease::take();
        let mut own = OwnPostgres { port: lease.port, root, postmaster: None, _lease: lease };
        let mut copy = as_account(Command::new("cp"));
        copy.arg("-a").arg(template()).arg(own.root.join("data"));
        assert!(copy.status().expect("run cp").success(), "cp, in {}", own.root.display());
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\n\
             max_wal_senders = 0\nwal_level = minimal\nshared_buffers = 16MB\nfsync = off\n\
             autovacuum = off\ntimezone = 'UTC'\nsuperuser_reserved_connections = 0\n",
            own.port
        );
        own.configure(&(settings + lines));
        own.start_again();
        let mut client = own.client("postgres");
        client.batch_execute("CREATE ROLE alice LOGIN SUPERUSER").expect("a role");
        client.batch_execute("CREATE DATABASE app").expect("a database");
        own
    }

    fn command(&self, program: &str) -> Command {
        let mut command = as_account(Command::new(bin_dir().join(program)));
        command.arg("-D").arg(self.root.join("data")).current_dir(&self.root);
        command
    }

    /// Adds lines to its configuration file.
    pub fn configure(&self, lines: &str) {
        let path = self.root.join("data/postgresql.conf");
        let text = fs::read_to_string(&path).expect("the configuration") + "\n" + lines;
        fs::write(&path, text).expect("write the configuration");
    }

    pub fn start_again(&mut self) {
        let mut command = self.command("postgres");
        sys::die_with_parent(&mut command);
        self.postmaster = Some(command.spawn().expect("start PostgreSQL"));
        wait_for("PostgreSQL to answer", || {
            let mut config = self.config("postgres");
            config.connect_timeout(PATIENCE);
            config.connect(postgres::NoTls).is_ok()
        });
    }

    fn config(&self, database: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname(database);
        config.ssl_mode(postgres::config::SslMode::Disable);
        config
    }

    /// A connection that does not pass the pooler.
    pub fn client(&self, database: &str) -> postgres::Client {
        self.config(database).connect(postgres::NoTls).expect("direct connection")
    }

    fn pid(&self) -> u32 {
        self.postmaster.as_ref().expect("it runs").id()
    }

    pub fn reload(&self) {
        sys::kill(self.pid(), libc::SIGHUP);
    }

    /// Everybody is told, and thrown out (`pg_ctl stop -m fast`).
    pub fn stop(&mut self) {
        self.end(libc::SIGINT);
    }

    /// Everybody is gone at once (`pg_ctl stop -m immediate`).
    pub fn crash(&mut self) {
        self.end(libc::SIGQUIT);
    }

    fn end(&mut self, signal: i32) {
        let mut postmaster = self.postmaster.take().expect("it runs");
        sys::kill(postmaster.id(), signal);
        wait_for_some("PostgreSQL to end", || postmaster.try_wait().expect("try_wait"));
    }

    /// It and all its backends stand still: first the one that makes the others.
    pub fn freeze(&self) {
        sys::kill(self.pid(), libc::SIGSTOP);
        self.signal_backends(libc::SIGSTOP);
    }

    /// They go on.
    pub fn thaw(&self) {
        self.signal_backends(libc::SIGCONT);
        sys::kill(self.pid(), libc::SIGCONT);
    }

    fn signal_backends(&self, signal: i32) {
        let pid = self.pid();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(path).expect("its children");
        for child in children.split_ascii_whitespace() {
            // Some end by themselves, just now.
            sys::kill_if_there(child.parse().expect("a process id"), signal);
        }
    }
}

fn as_account(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    if let Some(account) = account() {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// A data directory that has never been used: made once in a run of tests, for it takes a second,
/// and removed with the shared PostgreSQL.
fn template() -> PathBuf {
    let template = Postgres::shared().socket_dir.join("template");
    let lock = fs::File::create(lock_dir().join("template")).expect("create a lock file");
    sys::lock(&lock, true);
    if !template.exists() {
        let partial = template.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        let mut initdb = as_account(Command::new(bin_dir().join("initdb")));
        initdb.arg("-D").arg(&partial);
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        // Small files of WAL are quickly written, copied and thrown away.
        initdb.arg("--wal-segsize=1");
        assert!(initdb.status().expect("run initdb").success(), "initdb in {}", partial.display());
        fs::rename(&partial, &template).expect("rename the template");
    }
    template
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        let is_alive = |child: &mut Child| child.try_wait().is_ok_and(|status| status.is_none());
        if self.postmaster.as_mut().is_some_and(is_alive) {
            self.thaw();
            self.crash();
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}
