//! What a transaction costs in this pooler, beside PgBouncer and a relay that does not parse, in one run.
//!
//! Measured is the pooler's own CPU for each unit of work, because that ratio holds on a busy machine; see
//! `bench/README.md`. Exit code 1: a limit was missed; 2: no trustworthy comparison could be made.

mod candidate;
mod failure;
mod knocking;
mod loads;
mod options;
mod probes;
mod process;
mod report;
mod stand;
mod storm;
mod sys;
mod wire;

use std::fs;
use std::process::ExitCode;

use crate::candidate::{Candidate, Kind};
use crate::failure::{Context, Outcome};
use crate::loads::{Case, Sample};
use crate::options::{Mode, Options};
use crate::report::{Table, median, spread};
use crate::stand::Ground;

/// Whom the ratios are to.
const BASELINE: Kind = Kind::Pgbouncer;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("\nno comparison: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Whether every limit was kept.
fn run() -> Outcome<bool> {
    let Some(options) = Options::from_environment()? else {
        return Ok(true);
    };
    process::stop_all_on_signals()?;
    let files = options.most_clients() as u64 + 1000;
    sys::raise_open_files(files)
        .context(|| format!("cannot allow {files} open files; see `ulimit -n`"))?;
    eprintln!("preparing PostgreSQL");
    let mut ground = Ground::prepare()?;
    if let Mode::Idle(clients) = options.mode {
        probes::idle(&options, &mut ground, clients)?;
        return Ok(true);
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    for &kind in &options.kinds {
        let taken = candidates.iter().filter(|candidate| candidate.kind == kind).count();
        candidates.push(Candidate::start(kind, taken, &ground, options.most_clients())?);
    }
    print_circumstances(&candidates);
    match options.mode {
        Mode::Syscalls => probes::syscalls(&options, &mut ground, &mut candidates).map(|()| true),
        Mode::Latency => probes::latency(&options, &mut ground, &mut candidates).map(|()| true),
        Mode::Storm => storm::run(&options, &mut ground, &mut candidates),
        Mode::Compare | Mode::Idle(_) => compare(&options, &mut ground, &mut candidates),
    }
}

fn print_circumstances(candidates: &[Candidate]) {
    for candidate in candidates {
        println!("{}: {}", candidate.name(), candidate.version);
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    println!("{cores} cores, Linux {}, load average at start {load}", kernel.trim());
    let ours = candidates.iter().any(|candidate| candidate.kind == Kind::Ringbouncer);
    if ours && cfg!(debug_assertions) && std::env::var_os("RINGBOUNCER_BENCH_BINARY").is_none() {
        println!("WARNING: ringbouncer is a debug build; its numbers say nothing");
    }
    println!();
}

fn compare(options: &Options, ground: &mut Ground, candidates: &mut [Candidate]) -> Outcome<bool> {
    let mut table = Table::new(&[
        "load",
        "candidate",
        "clients",
        "CPU",
        "spread",
        "unit",
        "rate",
        "unit",
        "ratio",
        "spread",
        "limit",
        "verdict",
    ]);
    let mut all_kept = true;
    for case in options.cases() {
        let samples = measure_rounds(options, case, ground, candidates)?;
        all_kept &= add_case(&mut table, options, case, candidates, &samples);
    }
    for candidate in candidates.iter() {
        candidate.cross_check_cpu()?;
    }
    println!(
        "CPU of the pooler itself, median of {} rounds of {} s; ratio: to {} in the same round, median\n",
        options.rounds,
        options.seconds,
        BASELINE.name()
    );
    table.print();
    Ok(all_kept)
}

/// Samples by candidate, in the order of rounds. Each round asks every candidate once, and each begins with another.
fn measure_rounds(
    options: &Options,
    case: Case,
    ground: &mut Ground,
    candidates: &mut [Candidate],
) -> Outcome<Vec<Vec<Sample>>> {
    let mut samples: Vec<Vec<Sample>> = candidates.iter().map(|_| Vec::new()).collect();
    let count = candidates.len();
    for round in 0..options.rounds {
        for index in (0..count).map(|offset| (round + offset) % count) {
            let candidate = &mut candidates[index];
            if !candidate.can_run(case) {
                continue;
            }
            let sample = loads::measure(case, candidate, ground, options.window())?;
            let (cost_unit, rate_unit) = case.load.units();
            eprintln!(
                "{} {}, round {}, {}: {:.3} {cost_unit}, {:.2} {rate_unit}",
                case.load.name(),
                case.clients,
                round + 1,
                candidate.name(),
                sample.cost,
                sample.rate
            );
            samples[index].push(sample);
        }
    }
    Ok(samples)
}

/// Whether our limit for this case was kept.
fn add_case(
    table: &mut Table,
    options: &Options,
    case: Case,
    candidates: &[Candidate],
    samples: &[Vec<Sample>],
) -> bool {
    let baseline = candidates.iter().position(|candidate| candidate.kind == BASELINE);
    let mut kept = true;
    for (candidate, own) in candidates.iter().zip(samples) {
        let costs: Vec<f64> = own.iter().map(|sample| sample.cost).collect();
        let rates: Vec<f64> = own.iter().map(|sample| sample.rate).collect();
        let base = baseline.map_or(&[][..], |index| &samples[index]);
        let ratios: Vec<f64> =
            own.iter().zip(base).map(|(own, base)| own.cost / base.cost).collect();
        let limit = options.limit(case).filter(|_| candidate.kind == Kind::Ringbouncer);
        let ratio = (!ratios.is_empty()).then(|| median(&ratios));
        let verdict = match (ratio, limit) {
            (Some(ratio), Some(limit)) if ratio <= limit => "kept",
            (Some(_), Some(_)) => {
                kept = false;
                "MISSED"
            }
            _ => "–",
        };
        let mut cells = vec![
            case.load.name().to_owned(),
            candidate.name().to_owned(),
            case.clients.to_string(),
        ];
        if own.is_empty() {
            cells.extend(["–"; 9].map(str::to_owned));
        } else {
            let (cost_unit, rate_unit) = case.load.units();
            let dash = || "–".to_owned();
            cells.extend([
                format!("{:.2}", median(&costs)),
                spread(&costs, 2),
                cost_unit.to_owned(),
                if rate_unit == "tx/s" {
                    format!("{:.0}", median(&rates))
                } else {
                    format!("{:.2}", median(&rates))
                },
                rate_unit.to_owned(),
                ratio.map_or_else(dash, |ratio| format!("{ratio:.2}")),
                if ratios.is_empty() { dash() } else { spread(&ratios, 2) },
                limit.map_or_else(dash, |limit| format!("{limit:.2}")),
                verdict.to_owned(),
            ]);
        }
        table.add(cells);
    }
    kept
}
