//! What the poolers have to carry, and what it costs them.
//!
//! ```text
//! logins, first second (warm-up) │ window: CPU clock and transactions, both between two lines of progress │ logout
//! ```
//! pgbench prints, once a second and from the thread that makes the load, the time and the rate since the last line. As
//! each line arrives the pooler's CPU clock is read, so neither logins nor the warm-up are in the result.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::candidate::{Candidate, PLAIN_USER, SCRAM_DATABASE};
use crate::failure::{Context, Failure, Outcome};
use crate::knocking::{Keys, Knocking, log_in};
use crate::process::Process;
use crate::stand::{Ground, bulk_rows};
use crate::sys::CpuClock;
use crate::wire::{self, Client, Scratch, Security, USER};

/// Longer than this without a transaction, and something hangs. Logins of many clients come before the first.
const SILENCE: Duration = Duration::from_secs(30);
/// After this long without a transaction we look who has died.
const LOOK_AROUND: Duration = Duration::from_secs(2);
/// CopyData messages sent in one write.
const COPY_ROWS_PER_WRITE: u64 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    Simple,
    Extended,
    Prepared,
    /// A new connection for each transaction.
    Reconnect,
    /// The same, each with a login by SCRAM; the pooler keeps a secret.
    Scram,
    /// The same; the pooler keeps the password in clear.
    ScramPlain,
    /// As `Scram`, of clients that keep their keys, so that the pooler is kept busy.
    ScramKeys,
    /// As `ScramPlain`, of such clients.
    ScramPlainKeys,
    /// 200 000 rows of 100 bytes, again and again.
    Bulk,
    CopyOut,
    CopyIn,
    /// As `Simple`, the clients through TLS.
    TlsSimple,
    /// As `Bulk`, the client through TLS.
    TlsBulk,
}

impl Load {
    pub const ALL: [Load; 13] = [
        Load::Simple,
        Load::Extended,
        Load::Prepared,
        Load::Reconnect,
        Load::Scram,
        Load::ScramPlain,
        Load::ScramKeys,
        Load::ScramPlainKeys,
        Load::Bulk,
        Load::CopyOut,
        Load::CopyIn,
        Load::TlsSimple,
        Load::TlsBulk,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Load::Simple => "simple",
            Load::Extended => "extended",
            Load::Prepared => "prepared",
            Load::Reconnect => "reconnect",
            Load::Scram => "scram",
            Load::ScramPlain => "scram-plain",
            Load::ScramKeys => "scram-keys",
            Load::ScramPlainKeys => "scram-plain-keys",
            Load::Bulk => "bulk",
            Load::CopyOut => "copy-out",
            Load::CopyIn => "copy-in",
            Load::TlsSimple => "tls-simple",
            Load::TlsBulk => "tls-bulk",
        }
    }

    pub fn parse(word: &str) -> Option<Load> {
        Load::ALL.into_iter().find(|load| load.name() == word)
    }

    /// The client count of loads that are measured with one only.
    pub fn fixed_clients(self) -> Option<usize> {
        match self {
            Load::Simple | Load::Extended | Load::Prepared | Load::TlsSimple => None,
            Load::Reconnect
            | Load::Scram
            | Load::ScramPlain
            | Load::ScramKeys
            | Load::ScramPlainKeys => Some(16),
            Load::Bulk | Load::CopyOut | Load::CopyIn | Load::TlsBulk => Some(1),
        }
    }

    /// Whether each of its transactions has a connection of its own.
    pub fn reconnects(self) -> bool {
        self == Load::Reconnect || self.database() == SCRAM_DATABASE
    }

    /// Whether its clients speak TLS.
    pub fn is_secured(self) -> bool {
        matches!(self, Load::TlsSimple | Load::TlsBulk)
    }

    /// The database that its clients ask for.
    pub fn database(self) -> &'static str {
        match self {
            Load::Scram | Load::ScramPlain | Load::ScramKeys | Load::ScramPlainKeys => {
                SCRAM_DATABASE
            }
            _ => "bench",
        }
    }

    /// What cost and rate are counted in.
    pub fn units(self) -> (&'static str, &'static str) {
        match self {
            Load::Simple
            | Load::Extended
            | Load::Prepared
            | Load::Reconnect
            | Load::Scram
            | Load::ScramPlain
            | Load::ScramKeys
            | Load::ScramPlainKeys
            | Load::TlsSimple => ("µs/tx", "tx/s"),
            Load::Bulk | Load::CopyOut | Load::CopyIn | Load::TlsBulk => ("s/GB", "GB/s"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub load: Load,
    pub clients: usize,
}

/// One measurement, in [`Load::units`].
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The pooler's own CPU for each unit of work.
    pub cost: f64,
    /// Work done in a second: mostly tells how fast the load and PostgreSQL were.
    pub rate: f64,
}

/// Measures once; whatever is wrong with candidate, load or server is an error, never a number.
pub fn measure(
    case: Case,
    candidate: &mut Candidate,
    ground: &mut Ground,
    window: Duration,
) -> Outcome<Sample> {
    let what = format!("{} with {} clients, {}", case.load.name(), case.clients, candidate.name());
    let result = match case.load {
        Load::Simple
        | Load::Extended
        | Load::Prepared
        | Load::Reconnect
        | Load::Scram
        | Load::ScramPlain
        | Load::TlsSimple => measure_transactions(case, candidate, ground, window),
        Load::ScramKeys | Load::ScramPlainKeys => measure_logins(case, candidate, window),
        Load::Bulk | Load::CopyOut | Load::CopyIn | Load::TlsBulk => {
            measure_bytes(case.load, candidate, window)
        }
    };
    // Who has died explains more than what its clients saw of it.
    candidate.expect_alive().context(|| what.clone())?;
    ground.expect_alive().context(|| what.clone())?;
    let sample = result.context(|| what.clone())?;
    if sample.cost.is_finite() && sample.cost > 0.0 && sample.rate > 0.0 {
        Ok(sample)
    } else {
        Err(Failure::new(format!("{what}: nothing was measured ({sample:?})")))
    }
}

fn measure_transactions(
    case: Case,
    candidate: &mut Candidate,
    ground: &mut Ground,
    window: Duration,
) -> Outcome<Sample> {
    let mut words = match case.load {
        Load::Extended => vec!["-M", "extended"],
        Load::Prepared => vec!["-M", "prepared"],
        _ => vec!["-M", "simple"],
    };
    if case.load.reconnects() {
        words.push("-C");
    }
    let plain_user = format!("{PLAIN_USER}0");
    if case.load == Load::ScramPlain {
        words.extend(["-U", &plain_user]);
    }
    // One second to warm up, one so that the last line of the window is never lost to the end of the run.
    let seconds = (window.as_secs() + 2).to_string();
    words.extend(["-T", &seconds]);
    let security = if case.load.is_secured() { Security::Tls } else { Security::Plain };
    words.push(case.load.database());
    let run = run_pgbench(ground, candidate, (case.clients, security), &words)?;
    let (first, last, transactions) = cut_window(&run.progress, window)?;
    let cpu = (last.cpu - first.cpu).as_secs_f64();
    // The clock is read a moment after each line was written; in a steady state CPU goes with time.
    let read_seconds = (last.read_at - first.read_at).as_secs_f64();
    let window_seconds = last.stamp - first.stamp;
    let cpu = cpu * window_seconds / read_seconds;
    // Counted twice: rates to one decimal cannot add up to more than was processed in all.
    if transactions > run.transactions as f64 * 1.01 {
        return Err(Failure::new(format!(
            "{transactions:.0} transactions in the window, {} in all",
            run.transactions
        )));
    }
    Ok(Sample { cost: cpu * 1e6 / transactions, rate: transactions / window_seconds })
}

/// First and last line of the window, and the transactions between them.
fn cut_window(progress: &[Progress], window: Duration) -> Outcome<(&Progress, &Progress, f64)> {
    let [first, rest @ ..] = progress else {
        return Err(Failure::new("pgbench has reported no progress"));
    };
    let wanted = window.as_secs_f64() - 0.1;
    let mut before = first;
    let mut transactions = 0.0;
    for line in rest {
        if line.rate <= 0.0 {
            return Err(Failure::new("a second without any transaction"));
        }
        transactions += line.rate * (line.stamp - before.stamp);
        before = line;
        if line.stamp - first.stamp >= wanted {
            return Ok((first, line, transactions));
        }
    }
    Err(Failure::new(format!("pgbench has reported progress {} times only", progress.len())))
}

/// A line of progress, and what we knew as it arrived.
#[derive(Debug)]
pub struct Progress {
    /// When it was written, in seconds since 1970.
    stamp: f64,
    /// Transactions per second since the line before.
    rate: f64,
    read_at: Instant,
    /// CPU of the pooler.
    cpu: Duration,
}

#[derive(Debug)]
pub struct Run {
    pub progress: Vec<Progress>,
    /// All transactions, also those outside any window.
    pub transactions: u64,
}

enum Said {
    Progress(Progress),
    Other(String),
}

/// Runs `pgbench -S` with these words, the last of which is the database, through the candidate to its end, and believes it only if it has nothing to complain about.
pub fn run_pgbench(
    ground: &mut Ground,
    candidate: &mut Candidate,
    (clients, security): (usize, Security),
    words: &[&str],
) -> Outcome<Run> {
    let clients = clients.to_string();
    let mut command = ground.client_command("pgbench", candidate.port, security);
    command.args(["-S", "-n", "-j", "1", "-P", "1", "--progress-timestamp", "-c", &clients]);
    command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut pgbench = Process::start("pgbench", &mut command, None, libc::SIGTERM)?;
    let pipes = (pgbench.child_mut().stderr.take(), pgbench.child_mut().stdout.take());
    let (Some(stderr), Some(mut stdout)) = pipes else {
        return Err(Failure::new("pgbench has no pipes"));
    };
    let (sender, receiver) = mpsc::channel();
    let clock = candidate.clock();
    // A thread of its own, so that silence can be noticed here.
    thread::spawn(move || listen(BufReader::new(stderr), clock, &sender));
    let mut progress = Vec::new();
    let mut complaints = Vec::new();
    let mut news_at = Instant::now();
    loop {
        match receiver.recv_timeout(LOOK_AROUND) {
            Ok(Said::Progress(line)) => {
                // While its clients hang, pgbench goes on to report that nothing happens.
                if line.rate > 0.0 {
                    news_at = Instant::now();
                }
                progress.push(line);
            }
            Ok(Said::Other(line)) => complaints.push(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if news_at.elapsed() >= LOOK_AROUND {
            candidate.expect_alive()?;
            ground.expect_alive()?;
        }
        if news_at.elapsed() >= SILENCE {
            return Err(Failure::new(format!("no transaction in {SILENCE:?}")));
        }
    }
    let mut summary = String::new();
    stdout.read_to_string(&mut summary)?;
    let status = pgbench.wait(SILENCE)?;
    if !status.success() || !complaints.is_empty() {
        complaints.truncate(10);
        return Err(Failure::new(format!("pgbench: {status}\n  {}", complaints.join("\n  "))));
    }
    let number = |label: &str| -> Option<u64> {
        let rest = summary.lines().find_map(|line| line.strip_prefix(label))?;
        rest.split(['/', ' ']).find(|word| !word.is_empty())?.parse().ok()
    };
    // Versions before 15 do not know failed transactions; there they end the run.
    match (
        number("number of transactions actually processed:"),
        number("number of failed transactions:").unwrap_or(0),
    ) {
        (Some(transactions), 0) if transactions > 0 => Ok(Run { progress, transactions }),
        _ => Err(Failure::new(format!("pgbench has failures, or nothing done:\n{summary}"))),
    }
}

fn listen(lines: impl BufRead, clock: CpuClock, sender: &mpsc::Sender<Said>) {
    for line in lines.lines() {
        let cpu = clock.read();
        let read_at = Instant::now();
        let Ok(line) = line else { return };
        let said = match (parse_progress(&line), cpu) {
            (Some((stamp, rate)), Ok(cpu)) => {
                Said::Progress(Progress { stamp, rate, read_at, cpu })
            }
            _ => Said::Other(line),
        };
        if sender.send(said).is_err() {
            return;
        }
    }
}

/// Time and rate of `progress: 1732151234.567 s, 23456.7 tps, lat 0.042 ms stddev 0.011, 0 failed`; a line that tells
/// of failures is not taken for progress.
fn parse_progress(line: &str) -> Option<(f64, f64)> {
    let mut parts = line.strip_prefix("progress: ")?.split(", ");
    let stamp = parts.next()?.strip_suffix(" s")?.parse().ok()?;
    let rate = parts.next()?.strip_suffix(" tps")?.parse().ok()?;
    let failed = parts.find_map(|part| part.strip_suffix(" failed"));
    failed.is_none_or(|count| count == "0").then_some((stamp, rate))
}

/// So many log in together, ask for one row each, and leave; CPU is read while the pooler has nothing to do.
fn measure_logins(case: Case, candidate: &Candidate, window: Duration) -> Outcome<Sample> {
    let user = match case.load {
        Load::ScramPlainKeys => format!("{PLAIN_USER}0"),
        _ => USER.to_owned(),
    };
    let mut keys = Keys::new();
    let mut once = || -> Outcome<()> {
        let users = (0..case.clients).map(|_| user.clone());
        let mut clients = log_in(users, candidate.port, &mut keys)?;
        clients.iter_mut().try_for_each(Knocking::ask)?;
        clients.into_iter().try_for_each(Knocking::take_leave)
    };
    once()?; // warm-up
    let before = candidate.cpu()?;
    let started = Instant::now();
    let mut logins = 0;
    while started.elapsed() < window {
        once()?;
        logins += case.clients;
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = (candidate.cpu()? - before).as_secs_f64();
    Ok(Sample { cost: cpu * 1e6 / logins as f64, rate: logins as f64 / seconds })
}

/// One connection, one statement after the other; CPU is read while the pooler has nothing to do.
fn measure_bytes(load: Load, candidate: &Candidate, window: Duration) -> Outcome<Sample> {
    let mut scratch = Scratch::new();
    let mut client = match load.is_secured() {
        true => Client::login_secured(candidate.port, "bench", &mut scratch)?,
        false => Client::login(candidate.port, "bench", &mut scratch)?,
    };
    let chunk = copy_rows(COPY_ROWS_PER_WRITE);
    let mut once = || -> Outcome<u64> {
        let reply = match load {
            Load::CopyOut => client.run("COPY bulk TO STDOUT", &mut scratch)?,
            Load::CopyIn => {
                // PostgreSQL parses the rows and stores none, so each repetition is like the first.
                let sql = "COPY bulk FROM STDIN WHERE false";
                client.copy_in(sql, &chunk, bulk_rows() / COPY_ROWS_PER_WRITE, &mut scratch)?
            }
            _ => client.run("SELECT line FROM bulk", &mut scratch)?,
        };
        let rows = if load == Load::CopyIn { 0 } else { bulk_rows() };
        let counted = reply.tag.rsplit(' ').next().and_then(|word| word.parse().ok());
        if counted != Some(rows) || reply.bytes < bulk_rows() * 100 {
            return Err(Failure::new(format!("not what was asked for: {reply:?}")));
        }
        Ok(reply.bytes)
    };
    once()?; // warm-up
    let before = candidate.cpu()?;
    let started = Instant::now();
    let mut bytes = 0;
    while started.elapsed() < window {
        bytes += once()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = (candidate.cpu()? - before).as_secs_f64();
    let gigabytes = bytes as f64 / 1e9;
    Ok(Sample { cost: cpu / gigabytes, rate: gigabytes / seconds })
}

/// Rows as psql sends them: a CopyData message each.
fn copy_rows(count: u64) -> Vec<u8> {
    let mut line = vec![b'x'; 100];
    line.push(b'\n');
    let row = wire::message(b'd', &line);
    (0..count).flat_map(|_| row.iter().copied()).collect()
}
