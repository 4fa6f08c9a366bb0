//! What a storm of logins does to those who are busy.
//!
//! 100 clients of pgbench work all the time. Meanwhile 1000 others log in by SCRAM, each step of all of them at once:
//! first all connect, then all say hello, then all prove who they are. Compared is the p99 of the transactions that
//! ended during such storms with that of a run without any.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::candidate::{Candidate, Kind, PLAIN_USER};
use crate::failure::{Context, Failure, Outcome};
use crate::knocking::{Keys, log_in};
use crate::loads::run_pgbench;
use crate::options::Options;
use crate::probes::take_log;
use crate::report::{Table, median};
use crate::stand::Ground;
use crate::wire::{Security, USER};

pub const LOGINS: usize = 1000;
pub const BUSY: usize = 100;
/// The highest ratio to the quiet p99 that we allow ourselves.
const LIMIT: f64 = 2.0;
/// Between two storms.
const REST: Duration = Duration::from_millis(200);
/// Who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Storm {
    /// Nobody.
    None,
    /// One user, whose SCRAM secret is kept.
    Kept,
    /// 1000 users whose passwords are kept in clear: their keys have to be made, the first time.
    Plain,
}

impl Storm {
    const ALL: [Storm; 3] = [Storm::None, Storm::Kept, Storm::Plain];

    fn name(self) -> &'static str {
        match self {
            Storm::None => "quiet",
            Storm::Kept => "one user, SCRAM secret",
            Storm::Plain => "1000 users, passwords in clear",
        }
    }

    fn user(self, number: usize) -> String {
        match self {
            Storm::Plain => format!("{PLAIN_USER}{number}"),
            Storm::None | Storm::Kept => USER.to_owned(),
        }
    }
}

/// One run beside which there were storms.
struct Seen {
    middle: f64,
    p99: f64,
    worst: f64,
    /// How long one storm took, in milliseconds.
    storm: f64,
}

/// Whether the limit was kept.
pub fn run(options: &Options, ground: &mut Ground, candidates: &mut [Candidate]) -> Outcome<bool> {
    let mut table = Table::new(&[
        "candidate",
        "beside",
        "p50 ms",
        "p99 ms",
        "max ms",
        "storm ms",
        "p99/quiet",
        "limit",
        "verdict",
    ]);
    let mut all_kept = true;
    for candidate in candidates.iter_mut().filter(|candidate| candidate.kind != Kind::Haproxy) {
        let mut quiet = f64::NAN;
        for storm in Storm::ALL {
            let mut seen = Vec::new();
            for round in 0..options.rounds {
                let what = format!("{}, {}", candidate.name(), storm.name());
                eprintln!("{what}, round {}", round + 1);
                seen.push(beside(storm, options.window(), ground, candidate).context(|| what)?);
            }
            let middle =
                |value: fn(&Seen) -> f64| median(&seen.iter().map(value).collect::<Vec<_>>());
            let p99 = middle(|seen| seen.p99);
            let is_quiet = storm == Storm::None;
            if is_quiet {
                quiet = p99;
            }
            let is_judged = candidate.kind == Kind::Ringbouncer && !is_quiet;
            let is_kept = p99 <= LIMIT * quiet;
            all_kept &= is_kept || !is_judged;
            let dash = || "–".to_owned();
            let only = |shown: bool, text: String| if shown { text } else { dash() };
            table.add(vec![
                candidate.name().to_owned(),
                storm.name().to_owned(),
                format!("{:.2}", middle(|seen| seen.middle)),
                format!("{p99:.2}"),
                format!("{:.2}", middle(|seen| seen.worst)),
                only(!is_quiet, format!("{:.0}", middle(|seen| seen.storm))),
                only(!is_quiet, format!("{:.2}", p99 / quiet)),
                only(is_judged, format!("{LIMIT:.2}")),
                only(is_judged, if is_kept { "kept" } else { "MISSED" }.to_owned()),
            ]);
        }
    }
    println!(
        "Latency of a transaction, simple, {BUSY} clients, beside storms of {LOGINS} logins, median of {} rounds:\n",
        options.rounds
    );
    table.print();
    Ok(all_kept)
}

/// Keeps pgbench busy, and has storms come meanwhile.
fn beside(
    storm: Storm,
    window: Duration,
    ground: &mut Ground,
    candidate: &mut Candidate,
) -> Outcome<Seen> {
    let port = candidate.port;
    let prefix = format!("{}/storm-{}", ground.path().display(), candidate.name());
    // One second to warm up, one at the end.
    let seconds = (window.as_secs() + 2).to_string();
    let words = ["-M", "simple", "-T", &seconds, "-l", "--log-prefix", &prefix, "bench"];
    if storm == Storm::Plain {
        // Keys that were made before are forgotten.
        candidate.reload();
    }
    let storms = thread::spawn(move || weather(storm, window, port));
    let run = run_pgbench(ground, candidate, (BUSY, Security::Plain), &words);
    let storms = storms.join().map_err(|_| Failure::new("the storm has panicked"))??;
    candidate.expect_alive()?;
    ground.expect_alive()?;
    run?;
    let during = |end: f64| storms.iter().any(|(from, to)| (*from..*to).contains(&end));
    let log = take_log(&prefix)?;
    let mut latencies: Vec<f64> =
        log.iter().filter(|t| during(t.end)).map(|t| t.milliseconds).collect();
    latencies.sort_by(f64::total_cmp);
    let Some(&worst) = latencies.last() else {
        return Err(Failure::new("no transaction during the storm"));
    };
    let lengths: Vec<f64> = storms.iter().map(|(from, to)| (to - from) * 1e3).collect();
    Ok(Seen {
        middle: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
        worst,
        storm: median(&lengths),
    })
}

/// Begins and ends of the storms, in seconds since 1970.
fn weather(storm: Storm, window: Duration, port: u16) -> Outcome<Vec<(f64, f64)>> {
    thread::sleep(Duration::from_secs(1));
    let from = now();
    if storm == Storm::None {
        thread::sleep(window);
        return Ok(vec![(from, now())]);
    }
    let mut storms = Vec::new();
    let mut keys = Keys::new();
    while now() - from < window.as_secs_f64() {
        let begin = now();
        log_in_all(storm, port, &mut keys)?;
        storms.push((begin, now()));
        if storm == Storm::Plain {
            // The second one would find all keys made.
            break;
        }
        thread::sleep(REST);
    }
    Ok(storms)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn log_in_all(storm: Storm, port: u16, keys: &mut Keys) -> Outcome<()> {
    log_in((0..LOGINS).map(|number| storm.user(number)), port, keys).map(drop)
}
