//! The other questions: system calls per transaction, memory per idle client, latencies.

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::candidate::{Candidate, Kind};
use crate::failure::{Context, Failure, Outcome};
use crate::loads::run_pgbench;
use crate::options::Options;
use crate::process::{LOOK_AGAIN, Process};
use crate::report::{Table, median};
use crate::stand::{Ground, find_program};
use crate::wire::{Client, Scratch, Security};

const SYSCALL_CLIENTS: usize = 16;
const LATENCY_CLIENTS: usize = 500;
/// Clients already there when growth begins to count, so that what is allocated once is not taken for theirs.
const FIRST_CLIENTS: usize = 100;
const ATTACH_PATIENCE: Duration = Duration::from_secs(10);

/// System calls that are counted together, by what they are for.
const GROUPS: [(&str, &[&str]); 6] = [
    ("recv", &["recvfrom", "recvmsg", "recvmmsg", "read", "readv"]),
    ("send", &["sendto", "sendmsg", "sendmmsg", "write", "writev"]),
    ("many writes", &["io_submit", "io_getevents"]),
    ("splice", &["splice"]),
    ("epoll_wait", &["epoll_wait", "epoll_pwait", "epoll_pwait2"]),
    ("epoll_ctl", &["epoll_ctl"]),
];

/// Traced from before the clients log in until after they have left: so the count of transactions is exact, and a few
/// hundred calls of the logins are lost among hundreds of thousands.
pub fn syscalls(
    options: &Options,
    ground: &mut Ground,
    candidates: &mut [Candidate],
) -> Outcome<()> {
    let strace = find_program("strace")?;
    let mut heading = vec!["load", "candidate", "transactions"];
    heading.extend(GROUPS.map(|(name, _)| name));
    heading.extend(["other", "most frequent others"]);
    let mut table = Table::new(&heading);
    for (load, mode) in [("simple", "simple"), ("extended", "extended"), ("prepared", "prepared")] {
        let Some(&wanted) = options.loads.iter().find(|wanted| wanted.name() == load) else {
            continue;
        };
        let case = crate::loads::Case { load: wanted, clients: SYSCALL_CLIENTS };
        for candidate in candidates.iter_mut().filter(|candidate| candidate.can_run(case)) {
            let what = format!("system calls, {load}, {}", candidate.name());
            eprintln!("{what}");
            let warm_up = ["-M", mode, "-t", "100", "bench"];
            run_pgbench(ground, candidate, (SYSCALL_CLIENTS, Security::Plain), &warm_up)
                .context(|| what.clone())?;
            let summary = ground.path().join(format!("strace-{}", candidate.name()));
            let pid = candidate.pid().to_string();
            let mut command = std::process::Command::new(&strace);
            command.args(["-c", "-f", "-o"]).arg(&summary).args(["-p", &pid]);
            let mut tracer = ground.start_logged("strace", &mut command, libc::SIGINT)?;
            await_tracer(candidate, &mut tracer)?;
            let seconds = (options.seconds + 1).to_string();
            let words = ["-M", mode, "-T", &seconds, "bench"];
            let run = run_pgbench(ground, candidate, (SYSCALL_CLIENTS, Security::Plain), &words);
            let run = run.context(|| what.clone())?;
            tracer.signal(libc::SIGINT);
            tracer.wait(ATTACH_PATIENCE)?;
            drop(tracer);
            candidate.expect_alive()?;
            ground.expect_alive()?;
            let counts = parse_strace(&fs::read_to_string(&summary)?)?;
            table.add(syscall_cells(load, candidate, run.transactions, counts));
        }
    }
    println!("System calls per transaction, {SYSCALL_CLIENTS} clients, while traced:\n");
    table.print();
    Ok(())
}

fn syscall_cells(
    load: &str,
    candidate: &Candidate,
    transactions: u64,
    mut counts: HashMap<String, u64>,
) -> Vec<String> {
    let each = |count: u64| format!("{:.2}", count as f64 / transactions as f64);
    let mut cells = vec![load.into(), candidate.name().into(), transactions.to_string()];
    for (_, names) in GROUPS {
        let count = names.iter().filter_map(|&name| counts.remove(name)).sum();
        cells.push(each(count));
    }
    let mut others: Vec<(u64, String)> = counts.into_iter().map(|(name, n)| (n, name)).collect();
    others.sort_by(|left, right| right.cmp(left));
    cells.push(each(others.iter().map(|other| other.0).sum()));
    let most = others.iter().take(2).map(|(count, name)| format!("{name} {}", each(*count)));
    cells.push(most.collect::<Vec<_>>().join(", "));
    cells
}

fn await_tracer(candidate: &Candidate, tracer: &mut Process) -> Outcome<()> {
    let deadline = Instant::now() + ATTACH_PATIENCE;
    let threads = format!("/proc/{}/task", candidate.pid());
    loop {
        tracer.expect_alive()?;
        let mut traced = true;
        for thread in fs::read_dir(&threads)? {
            let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
            traced &= line.is_some_and(|pid| pid.trim() != "0");
        }
        if traced {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format!("strace does not attach{}", tracer.log_tail())));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Calls by name, from the table of `strace -c`: `% time, seconds, usecs/call, calls, [errors,] syscall`.
fn parse_strace(text: &str) -> Outcome<HashMap<String, u64>> {
    let mut counts = HashMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, _, calls, .., name] = words[..]
            && let Ok(calls) = calls.parse::<u64>()
            && name != "total"
        {
            *counts.entry(name.to_owned()).or_default() += calls;
        }
    }
    if counts.is_empty() { Err(Failure::new("strace has counted nothing")) } else { Ok(counts) }
}

/// Each pooler is started afresh, so what an earlier load has left behind does not count.
pub fn idle(options: &Options, ground: &mut Ground, clients: usize) -> Outcome<()> {
    if clients <= FIRST_CLIENTS {
        return Err(Failure::new(format!("--idle takes more than {FIRST_CLIENTS} clients")));
    }
    let mut table = Table::new(&[
        "candidate",
        "version",
        "no client, KiB",
        "100 clients, KiB",
        "all clients, KiB",
        "bytes/client",
        "…after a query each",
    ]);
    for &kind in options.kinds.iter().filter(|&&kind| kind != Kind::Haproxy) {
        eprintln!("{clients} idle clients, {}", kind.name());
        let mut candidate = Candidate::start(kind, 0, ground, options.most_clients())?;
        let result = grow(&candidate, clients);
        candidate.expect_alive()?;
        ground.expect_alive()?;
        let [none, first, all, queried] = result.context(|| kind.name().to_owned())?;
        let growth = |end: u64| {
            let more = end as f64 - first as f64;
            format!("{:.0}", more / (clients - FIRST_CLIENTS) as f64)
        };
        let kibibytes = |bytes: u64| (bytes / 1024).to_string();
        table.add(vec![
            kind.name().to_owned(),
            candidate.version.clone(),
            kibibytes(none),
            kibibytes(first),
            kibibytes(all),
            growth(all),
            growth(queried),
        ]);
    }
    println!("Resident memory, {clients} idle clients (growth counted from {FIRST_CLIENTS} on):\n");
    table.print();
    Ok(())
}

/// Resident bytes without clients, with the first ones, with all, and after a query by each.
fn grow(candidate: &Candidate, clients: usize) -> Outcome<[u64; 4]> {
    let mut scratch = Scratch::new();
    let mut connected = Vec::with_capacity(clients);
    let none = candidate.resident_bytes()?;
    let mut connect = |count: usize| -> Outcome<Vec<Client>> {
        (0..count).map(|_| Client::login(candidate.port, "bench", &mut scratch)).collect()
    };
    connected.extend(connect(FIRST_CLIENTS)?);
    let first = candidate.resident_bytes()?;
    connected.extend(connect(clients - FIRST_CLIENTS)?);
    let all = candidate.resident_bytes()?;
    for client in &mut connected {
        client.run("SELECT 1", &mut scratch)?;
    }
    Ok([none, first, all, candidate.resident_bytes()?])
}

/// From the log pgbench keeps of every transaction.
struct Latencies {
    middle: f64,
    p99: f64,
    worst: f64,
    /// Transactions of the client that got least, relative to the mean of all.
    least_share: f64,
}

pub fn latency(
    options: &Options,
    ground: &mut Ground,
    candidates: &mut [Candidate],
) -> Outcome<()> {
    let pooling: Vec<usize> =
        (0..candidates.len()).filter(|&i| candidates[i].kind != Kind::Haproxy).collect();
    let mut found: Vec<Vec<Latencies>> = candidates.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds {
        for &index in &pooling {
            let candidate = &mut candidates[index];
            eprintln!("latency, round {}, {}", round + 1, candidate.name());
            let prefix = format!("{}/latency-{}", ground.path().display(), candidate.name());
            let seconds = (options.seconds + 1).to_string();
            let words = ["-M", "simple", "-T", &seconds, "-l", "--log-prefix", &prefix, "bench"];
            let run = run_pgbench(ground, candidate, (LATENCY_CLIENTS, Security::Plain), &words);
            candidate.expect_alive()?;
            ground.expect_alive()?;
            run.context(|| format!("latency, {}", candidate.name()))?;
            found[index].push(read_latencies(&prefix)?);
        }
    }
    let mut table = Table::new(&[
        "candidate",
        "version",
        "p50 ms",
        "p99 ms",
        "p99/p50",
        "max ms",
        "least/mean",
    ]);
    for &index in &pooling {
        let middle = |value: fn(&Latencies) -> f64| {
            median(&found[index].iter().map(value).collect::<Vec<_>>())
        };
        table.add(vec![
            candidates[index].name().to_owned(),
            candidates[index].version.clone(),
            format!("{:.2}", middle(|l| l.middle)),
            format!("{:.2}", middle(|l| l.p99)),
            format!("{:.2}", middle(|l| l.p99 / l.middle)),
            format!("{:.2}", middle(|l| l.worst)),
            format!("{:.2}", middle(|l| l.least_share)),
        ]);
    }
    println!(
        "Latency of a transaction, simple, {LATENCY_CLIENTS} clients, median of {} rounds:\n",
        options.rounds
    );
    table.print();
    Ok(())
}

/// A line of pgbench's log of transactions.
pub struct Transaction {
    /// When it ended, in seconds since 1970.
    pub end: f64,
    pub milliseconds: f64,
    client: u32,
}

/// Takes the log away: lines are `client transaction latency_µs script epoch_s µs`.
pub fn take_log(prefix: &str) -> Outcome<Vec<Transaction>> {
    let (folder, name) = prefix.rsplit_once('/').unwrap_or((".", prefix));
    let mut transactions = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)) {
            continue;
        }
        for line in fs::read_to_string(&path)?.lines() {
            let parsed = (|| {
                let mut fields = line.split(' ');
                let client: u32 = fields.next()?.parse().ok()?;
                let latency: f64 = fields.nth(1)?.parse().ok()?;
                let seconds: f64 = fields.nth(1)?.parse().ok()?;
                let micros: f64 = fields.next()?.parse().ok()?;
                Some(Transaction {
                    end: seconds + micros / 1e6,
                    milliseconds: latency / 1e3,
                    client,
                })
            })();
            let parsed = parsed.ok_or_else(|| Failure::new(format!("log line {line:?}")))?;
            transactions.push(parsed);
        }
        fs::remove_file(&path)?;
    }
    Ok(transactions)
}

/// The first second is warm-up.
fn read_latencies(prefix: &str) -> Outcome<Latencies> {
    let mut transactions = take_log(prefix)?;
    let start = transactions.iter().map(|t| t.end).fold(f64::INFINITY, f64::min);
    transactions.retain(|t| t.end >= start + 1.0);
    let mut latencies: Vec<f64> = transactions.iter().map(|t| t.milliseconds).collect();
    latencies.sort_by(f64::total_cmp);
    let Some(&worst) = latencies.last() else {
        return Err(Failure::new("no transaction in the log of pgbench"));
    };
    let mut shares = vec![0_u32; LATENCY_CLIENTS];
    for transaction in &transactions {
        shares[transaction.client as usize] += 1;
    }
    let mean = transactions.len() as f64 / LATENCY_CLIENTS as f64;
    let least = shares.iter().min().copied().unwrap_or(0);
    Ok(Latencies {
        middle: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
        worst,
        least_share: f64::from(least) / mean,
    })
}
