//! The poolers under comparison: how each is found, configured and started, and how its CPU and memory are read.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ringbouncer::auth::derivation::Derivation;
use ringbouncer::auth::digest;

use crate::failure::{Context, Failure, Outcome};
use crate::loads::{Case, Load};
use crate::process::Process;
use crate::stand::{Ground, find_program, free_port};
use crate::sys::{self, CpuClock};
use crate::wire::USER;

/// Server connections of one pool, for all poolers.
pub const POOL_SIZE: usize = 20;
/// The database that asks for a password.
pub const SCRAM_DATABASE: &str = "scram";
pub const PASSWORD: &str = "open sesame";
/// So many users have their password in clear in the list; their names are this and a number.
pub const PLAIN_USERS: usize = 1000;
pub const PLAIN_USER: &str = "user";
/// Prepared statements are followed through a transaction pool since this version of PgBouncer.
const PGBOUNCER_WITH_PREPARED: (u32, u32) = (1, 21);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ringbouncer,
    Pgbouncer,
    /// Relays bytes without looking at them: one server connection for each client.
    Haproxy,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Ringbouncer, Kind::Pgbouncer, Kind::Haproxy];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Ringbouncer => "ringbouncer",
            Kind::Pgbouncer => "pgbouncer",
            Kind::Haproxy => "haproxy",
        }
    }

    pub fn parse(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == word)
    }

    fn program(self) -> Outcome<PathBuf> {
        match self {
            Kind::Ringbouncer => Ok(env::var_os("RINGBOUNCER_BENCH_BINARY")
                .map_or_else(|| env!("CARGO_BIN_EXE_ringbouncer").into(), PathBuf::from)),
            Kind::Pgbouncer => match env::var_os("RINGBOUNCER_BENCH_PGBOUNCER") {
                Some(path) => Ok(path.into()),
                None => find_program("pgbouncer"),
            },
            Kind::Haproxy => find_program("haproxy"),
        }
    }
}

/// A pooler that runs and lets clients through to PostgreSQL.
pub struct Candidate {
    pub kind: Kind,
    /// Its kind, and a number if the same kind takes part more than once.
    label: String,
    pub port: u16,
    /// The first line of what it says about its version.
    pub version: String,
    follows_prepared: bool,
    process: Process,
    clock: CpuClock,
}

impl Candidate {
    /// `taken` of the same kind have been started before: the comparison of a pooler with itself shows the noise.
    pub fn start(
        kind: Kind,
        taken: usize,
        ground: &Ground,
        most_clients: usize,
    ) -> Outcome<Candidate> {
        let label = match taken {
            0 => kind.name().to_owned(),
            _ => format!("{}-{}", kind.name(), taken + 1),
        };
        let name = label.as_str();
        // A copy: the one in the build directory may be out of reach for the user it runs as, or be rebuilt meanwhile.
        let program = ground.copy_program(&kind.program()?, name)?;
        let version = version_line(&program, kind)?;
        let follows_prepared = match kind {
            Kind::Ringbouncer | Kind::Haproxy => true,
            Kind::Pgbouncer => version_pair(&version) >= Some(PGBOUNCER_WITH_PREPARED),
        };
        let port = free_port()?;
        let config = ground.path().join(format!("{name}.conf"));
        let text = match kind {
            Kind::Ringbouncer | Kind::Pgbouncer => {
                pooler_config(ground, port, most_clients, follows_prepared)?
            }
            Kind::Haproxy => haproxy_config(ground, port, most_clients),
        };
        fs::write(&config, text)?;
        let mut command = ground.command(&program);
        if kind == Kind::Haproxy {
            command.args(["-db", "-f"]);
        }
        command.arg(&config);
        let mut process = ground.start_logged(name, &mut command, libc::SIGTERM)?;
        ground.await_login(&mut process, port)?;
        let clock = CpuClock::of(process.pid())?;
        Ok(Candidate { kind, label, port, version, follows_prepared, process, clock })
    }

    pub fn name(&self) -> &str {
        &self.label
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Has it read its files again.
    pub fn reload(&self) {
        self.process.signal(libc::SIGHUP);
    }

    /// CPU it has used so far, in user and system mode, by all its threads.
    pub fn cpu(&self) -> Outcome<Duration> {
        self.clock.read().context(|| format!("reading the CPU clock of {}", self.name()))
    }

    pub fn clock(&self) -> CpuClock {
        self.clock
    }

    pub fn expect_alive(&mut self) -> Outcome<()> {
        self.process.expect_alive()
    }

    /// Whether the case means for this candidate what it means for PgBouncer.
    pub fn can_run(&self, case: Case) -> bool {
        let needs_pooling = case.clients > POOL_SIZE || case.load.reconnects();
        let needs_following = case.load == Load::Prepared;
        (self.kind != Kind::Haproxy || !needs_pooling && !case.load.is_secured())
            && (self.follows_prepared || !needs_following)
    }

    /// Resident bytes, counted page by page: `VmRSS` may be off by some dozens of pages for each CPU.
    pub fn resident_bytes(&self) -> Outcome<u64> {
        let pid = self.pid();
        for (file, label) in [("smaps_rollup", "Rss:"), ("status", "VmRSS:")] {
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/{file}")) else {
                continue;
            };
            let line = text.lines().find_map(|line| line.strip_prefix(label));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            if let Some(kibibytes) = number {
                return Ok(kibibytes * 1024);
            }
        }
        Err(Failure::new(format!("no resident size of {} in /proc", self.name())))
    }

    /// Two ways of reading the same time must agree, or the numbers mean nothing: the clock against `/proc/PID/stat`.
    pub fn cross_check_cpu(&self) -> Outcome<()> {
        let by_clock = self.cpu()?.as_secs_f64();
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        // Fields 14 and 15 of the line; the first two ended with the parenthesis.
        let ticks: f64 =
            fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let by_stat = ticks / sys::ticks_per_second();
        if (by_clock - by_stat).abs() > 0.05 + 0.05 * by_clock {
            return Err(Failure::new(format!(
                "CPU of {}: {by_clock:.3} s by its clock, {by_stat:.3} s by /proc/PID/stat",
                self.name()
            )));
        }
        Ok(())
    }
}

fn version_line(program: &Path, kind: Kind) -> Outcome<String> {
    let flag = if kind == Kind::Haproxy { "-v" } else { "--version" };
    let output = Command::new(program).arg(flag).output();
    let output = output.context(|| format!("cannot run {}", kind.name()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or("(says no version)").to_owned())
}

fn version_pair(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().nth(1)?.split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn pooler_config(
    ground: &Ground,
    port: u16,
    most_clients: usize,
    follows_prepared: bool,
) -> Outcome<String> {
    let file = |name: &str| ground.path().join(format!("{name}-{port}.txt"));
    let (users, rules) = (file("userlist"), file("hba"));
    let mut list = format!("\"{USER}\" \"{}\"\n", verifier(PASSWORD));
    for number in 0..PLAIN_USERS {
        list += &format!("\"{PLAIN_USER}{number}\" \"{PASSWORD}\"\n");
    }
    fs::write(&users, list)?;
    let rule =
        |database: &str, method: &str| format!("host {database} all 127.0.0.1/32 {method}\n");
    fs::write(&rules, rule("bench", "trust") + &rule(SCRAM_DATABASE, "scram-sha-256"))?;
    let (certificate, key) = ground.certificate()?;
    let prepared = if follows_prepared { "max_prepared_statements = 100\n" } else { "" };
    Ok(format!(
        "[databases]
bench = host=127.0.0.1 port={server_port} dbname=bench
{SCRAM_DATABASE} = host=127.0.0.1 port={server_port} dbname=bench user={USER}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
listen_backlog = 1024
auth_type = hba
auth_hba_file = {rules}
auth_file = {users}
pool_mode = transaction
default_pool_size = {POOL_SIZE}
max_client_conn = {max_clients}
log_connections = 0
log_disconnections = 0
client_tls_sslmode = allow
client_tls_cert_file = {certificate}
client_tls_key_file = {key}
{prepared}",
        server_port = ground.server_port(),
        users = users.display(),
        rules = rules.display(),
        certificate = certificate.display(),
        key = key.display(),
        max_clients = most_clients + 100,
    ))
}

/// What is kept of a password for SCRAM.
fn verifier(password: &str) -> String {
    const ROUNDS: u32 = 4096;
    let salt: [u8; 16] = digest::random();
    let keys = Derivation::new(password.as_bytes(), &salt, ROUNDS).run();
    let [salt, stored, server] =
        [&salt[..], &keys.stored_key, &keys.server_key].map(|bytes| BASE64_STANDARD.encode(bytes));
    format!("SCRAM-SHA-256${ROUNDS}:{salt}${stored}:{server}")
}

/// One thread, as the poolers have; no time limit that a run could meet.
fn haproxy_config(ground: &Ground, port: u16, most_clients: usize) -> String {
    format!(
        "global
  nbthread 1
  maxconn {maxconn}
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
listen bench
  bind 127.0.0.1:{port}
  server postgresql 127.0.0.1:{server_port}
",
        maxconn = most_clients + 100,
        server_port = ground.server_port(),
    )
}
