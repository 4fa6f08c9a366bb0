//! The ground everything stands on: a temporary directory, the user servers run as, and a throw-away PostgreSQL.

use std::env;
use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::candidate::PASSWORD;
use crate::failure::{Context, Failure, Outcome};
use crate::process::{LOOK_AGAIN, Process, TemporaryDirectory};
use crate::sys;
use crate::wire::{Client, Scratch, Security, USER};

/// PostgreSQL and the poolers refuse to run as root; this user then runs them.
const UNPRIVILEGED: &str = "postgres";
const START_PATIENCE: Duration = Duration::from_secs(60);
const BULK_ROWS: u64 = 200_000;
const PGBENCH_SCALE: &str = "10";

/// Field order is drop order: PostgreSQL stops before its directory goes.
pub struct Ground {
    server: Option<Process>,
    server_port: u16,
    programs: PathBuf,
    run_as: Option<(u32, u32)>,
    directory: TemporaryDirectory,
}

impl Ground {
    /// Starts PostgreSQL and fills the database `bench`.
    pub fn prepare() -> Outcome<Ground> {
        let run_as = if sys::effective_uid() == 0 { Some(account(UNPRIVILEGED)?) } else { None };
        let programs = postgresql_programs()?;
        let directory = TemporaryDirectory::create()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        if let Some((uid, gid)) = run_as {
            chown(directory.path(), Some(uid), Some(gid))?;
        }
        let server_port = free_port()?;
        let mut ground = Ground { server: None, server_port, programs, run_as, directory };
        ground.start_postgresql()?;
        ground.fill_database()?;
        Ok(ground)
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn server_port(&self) -> u16 {
        self.server_port
    }

    pub fn expect_alive(&mut self) -> Outcome<()> {
        self.server.as_mut().map_or(Ok(()), Process::expect_alive)
    }

    /// A command that will run as the unprivileged user, in the temporary directory, with no words on the terminal.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).stdin(Stdio::null());
        if let Some((uid, gid)) = self.run_as {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// A client program of PostgreSQL, aimed at `port`; the person's own `PG…` settings are kept out.
    pub fn client_command(&self, name: &str, port: u16, security: Security) -> Command {
        let mut command = self.command(&self.programs.join(name));
        for (variable, _) in env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        command.env("PGHOST", "127.0.0.1").env("PGPORT", port.to_string()).env("PGUSER", USER);
        command.env("PGPASSWORD", PASSWORD);
        // Nor does it see what it would find at home.
        command.env("PGSSLMODE", security.mode()).env("HOME", self.path());
        command
    }

    pub fn start_logged(
        &self,
        name: &str,
        command: &mut Command,
        stop_signal: i32,
    ) -> Outcome<Process> {
        let log = self.path().join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        Process::start(name, command, Some(log), stop_signal)
    }

    /// Files with a certificate and its key, for poolers; made when the first one asks.
    pub fn certificate(&self) -> Outcome<(PathBuf, PathBuf)> {
        let (certificate, key) = (self.path().join("pooler.crt"), self.path().join("pooler.key"));
        if !key.exists() {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
            let made = made.context(|| "a certificate".to_owned())?;
            fs::write(&certificate, made.cert.pem())?;
            fs::write(&key, made.signing_key.serialize_pem())?;
            fs::set_permissions(&key, Permissions::from_mode(0o600))?;
            if let Some((uid, gid)) = self.run_as {
                chown(&key, Some(uid), Some(gid))?;
            }
        }
        Ok((certificate, key))
    }

    pub fn copy_program(&self, program: &Path, name: &str) -> Outcome<PathBuf> {
        let copy = self.path().join(format!("bin-{name}"));
        fs::copy(program, &copy).context(|| format!("cannot copy {}", program.display()))?;
        fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
        Ok(copy)
    }

    /// Returns once a client gets through `port` to the database `bench`.
    pub fn await_login(&self, process: &mut Process, port: u16) -> Outcome<()> {
        self.await_database(process, port, "bench")
    }

    fn await_database(&self, process: &mut Process, port: u16, database: &str) -> Outcome<()> {
        let mut scratch = Scratch::new();
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let attempt = Client::login(port, database, &mut scratch)
                .and_then(|mut client| client.run("SELECT 1", &mut scratch));
            process.expect_alive()?;
            match attempt {
                Ok(_) => return Ok(()),
                Err(failure) if Instant::now() >= deadline => {
                    return Err(Failure::new(format!(
                        "{} lets nobody in: {failure}{}",
                        process.name,
                        process.log_tail()
                    )));
                }
                Err(_) => thread::sleep(LOOK_AGAIN),
            }
        }
    }

    fn start_postgresql(&mut self) -> Outcome<()> {
        let data = self.path().join("data");
        let mut initdb = self.command(&self.programs.join("initdb"));
        initdb
            .args(["-A", "trust", "-U", USER, "-E", "UTF8", "--no-locale", "-N", "-D"])
            .arg(&data);
        self.run_logged("initdb", &mut initdb)?;
        let mut postgres = self.command(&self.programs.join("postgres"));
        postgres.arg("-D").arg(&data);
        let settings = [
            ("port", self.server_port.to_string()),
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("unix_socket_directories", self.path().display().to_string()),
            ("fsync", "off".to_owned()),
            ("shared_buffers", "128MB".to_owned()),
            ("max_connections", "200".to_owned()),
            // Nothing of its own accord in the middle of a measurement.
            ("autovacuum", "off".to_owned()),
            ("max_wal_size", "4GB".to_owned()),
        ];
        for (name, value) in settings {
            postgres.arg("-c").arg(format!("{name}={value}"));
        }
        // SIGQUIT: at once; nothing in it is worth a checkpoint.
        let mut server = self.start_logged("postgresql", &mut postgres, libc::SIGQUIT)?;
        self.await_database(&mut server, self.server_port, "postgres")?;
        self.server = Some(server);
        Ok(())
    }

    fn fill_database(&mut self) -> Outcome<()> {
        let mut scratch = Scratch::new();
        let mut client = Client::login(self.server_port, "postgres", &mut scratch)?;
        client.run("CREATE DATABASE bench", &mut scratch)?;
        let mut pgbench = self.client_command("pgbench", self.server_port, Security::Plain);
        pgbench.args(["-i", "-q", "-s", PGBENCH_SCALE, "bench"]);
        self.run_logged("pgbench -i", &mut pgbench)?;
        let mut client = Client::login(self.server_port, "bench", &mut scratch)?;
        for sql in [
            format!(
                "CREATE TABLE bulk AS SELECT repeat('x', 100) AS line \
                 FROM generate_series(1, {BULK_ROWS})"
            ),
            "VACUUM (FREEZE, ANALYZE) bulk".to_owned(),
            "CHECKPOINT".to_owned(),
        ] {
            client.run(&sql, &mut scratch)?;
        }
        Ok(())
    }

    /// Runs to the end; an error quotes what the program said.
    fn run_logged(&self, name: &str, command: &mut Command) -> Outcome<()> {
        let mut process = self.start_logged(name, command, libc::SIGTERM)?;
        let status = process.wait(START_PATIENCE)?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(format!("{name}: {status}{}", process.log_tail())))
    }
}

/// Rows of the table `bulk`, each of 100 bytes.
pub fn bulk_rows() -> u64 {
    BULK_ROWS
}

/// A port nobody listens on now. Somebody may take it before we do: then the start fails, loudly.
pub fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Looks in `PATH` and where servers live that are not meant for everybody's.
pub fn find_program(name: &str) -> Outcome<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders =
        env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let mut candidates = folders.map(|folder| folder.join(name));
    candidates
        .find(|program| program.is_file())
        .ok_or_else(|| Failure::new(format!("{name} is not installed")))
}

/// The folder that holds `postgres`, `initdb` and `pgbench`: of the newest version, if not in `PATH`.
fn postgresql_programs() -> Outcome<PathBuf> {
    let complete = |folder: &PathBuf| {
        ["postgres", "initdb", "pgbench"].iter().all(|name| folder.join(name).is_file())
    };
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(folder) = env::split_paths(&path).find(complete) {
        return Ok(folder);
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let folder = entry.path().join("bin");
        complete(&folder).then_some((version, folder))
    });
    let newest = folders.max().map(|(_, folder)| folder);
    newest.ok_or_else(|| Failure::new("PostgreSQL (postgres, initdb, pgbench) is not installed"))
}

/// User and group number from the password file.
fn account(name: &str) -> Outcome<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd")?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let numbers = line.and_then(|line| {
        let mut fields = line.split(':').skip(2).map(|field| field.parse().ok());
        Some((fields.next()??, fields.next()??))
    });
    numbers.ok_or_else(|| Failure::new(format!("root needs a user {name} to run the servers as")))
}
