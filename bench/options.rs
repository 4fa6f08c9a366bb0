//! What the person asked for: flags, after those in `RINGBOUNCER_BENCH_ARGS`.

use std::env;
use std::time::Duration;

use getopts::Options as Grammar;

use crate::candidate::Kind;
use crate::failure::{Context, Failure, Outcome};
use crate::loads::{Case, Load};
use crate::storm;

/// The ratios to PgBouncer that must not be exceeded, unless `--limit` says otherwise.
const LIMITS: [(Load, usize, f64); 11] = [
    (Load::Simple, 16, 0.92),
    (Load::Simple, 500, 0.92),
    (Load::Extended, 16, 0.92),
    (Load::Extended, 500, 0.92),
    (Load::Scram, 16, 0.85),
    (Load::ScramPlain, 16, 0.85),
    (Load::ScramKeys, 16, 0.85),
    (Load::ScramPlainKeys, 16, 0.85),
    (Load::Bulk, 1, 0.55),
    (Load::TlsSimple, 16, 0.95),
    (Load::TlsBulk, 1, 0.60),
];
const IDLE_CLIENTS: usize = 5000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CPU per unit of work, for every case.
    Compare,
    /// System calls per transaction.
    Syscalls,
    /// Resident memory per idle client, of this many.
    Idle(usize),
    /// Distribution of latencies with many clients on a small pool.
    Latency,
    /// The same of busy clients, while others log in.
    Storm,
}

#[derive(Debug)]
pub struct Options {
    pub mode: Mode,
    pub kinds: Vec<Kind>,
    pub loads: Vec<Load>,
    pub clients: Vec<usize>,
    pub rounds: usize,
    pub seconds: u64,
    limits: Vec<(Load, usize, f64)>,
}

impl Options {
    /// `None`: there is nothing to do, and the person has been told so.
    pub fn from_environment() -> Outcome<Option<Options>> {
        let mut words: Vec<String> = env::var("RINGBOUNCER_BENCH_ARGS")
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        words.extend(env::args().skip(1));
        let grammar = grammar();
        if words.is_empty() {
            // `cargo test --all-targets` runs us like this; only `cargo bench` passes `--bench`.
            println!("not measuring: run `cargo bench --bench compare`");
            return Ok(None);
        }
        let given = grammar.parse(&words).context(|| "bad arguments".to_owned())?;
        if given.opt_present("help") {
            println!("{}", grammar.usage("Usage: cargo bench --bench compare -- [flags]"));
            return Ok(None);
        }
        if let Some(stray) = given.free.first() {
            return Err(Failure::new(format!("stray argument {stray:?}")));
        }
        let quick = given.opt_present("quick");
        let (rounds, seconds) = if quick { (3, 1) } else { (5, 3) };
        let number = |name: &str, default: u64| match given.opt_str(name) {
            None => Ok(default),
            Some(text) => match text.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(Failure::new(format!("--{name} takes a number above 0, not {text:?}"))),
            },
        };
        let rounds = usize::try_from(number("rounds", rounds)?).context(|| "--rounds".into())?;
        Ok(Some(Options {
            mode: mode(&given)?,
            kinds: list(given.opt_str("candidates"), &Kind::ALL, Kind::parse)?,
            loads: list(given.opt_str("only"), &Load::ALL, Load::parse)?,
            clients: list(given.opt_str("clients"), &[1, 16, 500], parse_clients)?,
            rounds,
            seconds: number("seconds", seconds)?,
            limits: limits(&given.opt_strs("limit"))?,
        }))
    }

    pub fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &load in &self.loads {
            match load.fixed_clients() {
                Some(clients) => cases.push(Case { load, clients }),
                None => cases.extend(self.clients.iter().map(|&clients| Case { load, clients })),
            }
        }
        cases
    }

    pub fn limit(&self, case: Case) -> Option<f64> {
        let found = self.limits.iter().rev().find(|l| l.0 == case.load && l.1 == case.clients);
        found.map(|&(_, _, ratio)| ratio)
    }

    /// The most clients any part of this run will connect through one pooler.
    pub fn most_clients(&self) -> usize {
        let idle = if let Mode::Idle(clients) = self.mode { clients } else { 0 };
        let storm = if self.mode == Mode::Storm { storm::LOGINS + storm::BUSY } else { 0 };
        self.clients.iter().copied().chain([idle, storm, 500]).max().unwrap_or(idle)
    }
}

fn grammar() -> Grammar {
    let mut grammar = Grammar::new();
    grammar
        .optflag("h", "help", "show this")
        .optflag("", "bench", "ignored; cargo bench passes it")
        .optflag("", "quick", "3 rounds of 1 second")
        .optopt("", "rounds", "rounds per case (default 5)", "N")
        .optopt("", "seconds", "length of one measurement (default 3)", "N")
        .optopt("", "candidates", "of ringbouncer,pgbouncer,haproxy (default: all)", "LIST")
        .optopt(
            "",
            "only",
            "loads, of simple,extended,prepared,reconnect,scram,scram-plain,scram-keys,scram-plain-keys,bulk,copy-out,\
             copy-in,tls-simple,tls-bulk \
             (default: all)",
            "LIST",
        )
        .optopt("", "clients", "client counts of the pgbench loads (default 1,16,500)", "LIST")
        .optmulti("", "limit", "highest ratio allowed, e.g. simple:16=0.92", "LOAD[:CLIENTS]=RATIO")
        .optflag("", "syscalls", "instead: system calls per transaction, by strace")
        .optflagopt("", "idle", "instead: resident bytes per idle client (default 5000)", "N")
        .optflag("", "latency", "instead: latencies and fairness at 500 clients")
        .optflag("", "storm", "instead: latencies of 100 clients while 1000 log in");
    grammar
}

fn mode(given: &getopts::Matches) -> Outcome<Mode> {
    let mut modes = Vec::new();
    if given.opt_present("syscalls") {
        modes.push(Mode::Syscalls);
    }
    if given.opt_present("latency") {
        modes.push(Mode::Latency);
    }
    if given.opt_present("storm") {
        modes.push(Mode::Storm);
    }
    if given.opt_present("idle") {
        let clients = given.opt_str("idle").map_or(Ok(IDLE_CLIENTS), |text| text.parse());
        modes.push(Mode::Idle(clients.context(|| "--idle".into())?));
    }
    match modes[..] {
        [] => Ok(Mode::Compare),
        [mode] => Ok(mode),
        _ => Err(Failure::new("--syscalls, --idle, --latency and --storm exclude each other")),
    }
}

fn list<T: Clone>(
    text: Option<String>,
    default: &[T],
    parse: fn(&str) -> Option<T>,
) -> Outcome<Vec<T>> {
    let Some(text) = text else {
        return Ok(default.to_vec());
    };
    let words = text.split(',').map(str::trim);
    words
        .map(|word| parse(word).ok_or_else(|| Failure::new(format!("{word:?} is unknown"))))
        .collect()
}

fn parse_clients(word: &str) -> Option<usize> {
    word.parse().ok().filter(|&clients| clients > 0)
}

fn limits(given: &[String]) -> Outcome<Vec<(Load, usize, f64)>> {
    let mut limits = LIMITS.to_vec();
    for text in given {
        let limit = parse_limit(text);
        let limit = limit.ok_or_else(|| Failure::new(format!("--limit {text:?}: not a limit")))?;
        limits.extend(limit);
    }
    Ok(limits)
}

/// Without a client count the limit holds for each of the usual ones.
fn parse_limit(text: &str) -> Option<Vec<(Load, usize, f64)>> {
    let (what, ratio) = text.split_once('=')?;
    let ratio = ratio.parse().ok()?;
    let (load, clients) = match what.split_once(':') {
        Some((load, clients)) => (Load::parse(load)?, vec![clients.parse().ok()?]),
        None => {
            let load = Load::parse(what)?;
            (load, load.fixed_clients().map_or(vec![1, 16, 500], |clients| vec![clients]))
        }
    };
    Some(clients.into_iter().map(|clients| (load, clients, ratio)).collect())
}
