//! The real engine in a seeded world: scripted clients, model servers, a virtual clock, and a
//! shell that deals in pieces of bytes. Nothing here knows sockets; a seed replays a run exactly.
//!
//! - `SIM_SEED=n` replays one run and prints all its events, the engine's log lines among them.
//! - `SIM_SEEDS=n` sets how many seeds the sweep runs, `SIM_FIRST=n` with which it begins.

mod backend;
mod book;
mod client;
mod customs;
mod directed;
mod directed_rescue;
mod directed_times;
mod faults;
mod guard;
mod laws;
mod params;
mod prng;
mod requests;
mod rescue;
mod script;
mod settle;
mod shell;
mod socket;
mod town;
mod trace;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use world::World;

const SEEDS: u64 = 50;
const STEPS: usize = 8000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// What many worlds have seen.
#[derive(Default)]
struct Seen {
    executed: u64,
    cancelled: u64,
    rescued: u64,
    /// New servers asked their `connect_query`, servers whose address had gone, turns in which all
    /// was quiet.
    greeted: u64,
    moved: u64,
    quiet: u64,
    replicators: u64,
    forwarded: u64,
    questions: (u64, u64),
    /// Writes to several at once.
    batched: u64,
    /// Why connections ended.
    endings: BTreeMap<String, u64>,
}

impl Seen {
    fn add(&mut self, world: &World) {
        self.executed += world.book.executed;
        self.cancelled += world.book.cancelled;
        self.greeted += world.book.greeted;
        self.moved += world.shell.moved;
        self.quiet += world.shell.quiet;
        self.replicators += world.book.replicators;
        self.forwarded += world.book.forwarded;
        self.batched += world.shell.batched;
        self.questions.0 += world.book.questions.0;
        self.questions.1 += world.book.questions.1;
        self.rescued += world.shell.engine.house().rescues.kept;
        for (_, cause, count) in world.shell.engine.house().endings.iter() {
            *self.endings.entry(cause.to_owned()).or_default() += count;
        }
    }
}

/// Limits that some worlds have, and how connections end for them.
const LIMITS: [&str; 15] = [
    "suspend_timeout",
    "close unsafe file descriptors on suspend",
    "query_timeout",
    "query timeout",
    "idle transaction timeout",
    "transaction timeout",
    "client_idle_timeout",
    "query_wait_timeout",
    "server idle timeout",
    "server lifetime over",
    "database configuration changed",
    "server conn crashed?",
    "client connections exceeded (max_db_client_connections)",
    "client connections exceeded (max_user_client_connections)",
    "no more connections allowed (max_client_conn)",
];

/// Runs a world to its end; on failure says how to see it again.
fn run(seed: u64, prints: bool, seen: &mut Seen) {
    trace::begin(prints);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed);
        trace::note(|| format!("{:?} {:?}", world.faults, world.town));
        for _ in 0..STEPS {
            world.step();
        }
        world.heal_and_settle();
        seen.add(&world);
    }));
    outcome.unwrap_or_else(|panic| {
        eprintln!("the last events of SIM_SEED={seed}:\n{}", trace::last_events());
        eprintln!("SIM_SEED={seed} replays this run");
        resume_unwind(panic)
    })
}

#[test]
fn no_reply_ever_reaches_another_client() {
    if let Some(seed) = number("SIM_SEED") {
        trace::listen_to_log();
        run(seed, true, &mut Seen::default());
        return;
    }
    let first = number("SIM_FIRST").unwrap_or(1);
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let mut seen = Seen::default();
    for seed in first..first + seeds {
        run(seed, false, &mut seen);
    }
    let Seen { executed, cancelled, rescued, greeted, moved, quiet, .. } = seen;
    let Seen { replicators, forwarded, questions, batched, endings, .. } = seen;
    let rare = [greeted, quiet, replicators, forwarded, questions.0, batched];
    eprintln!("{questions:?} questions, {moved} moved");
    eprintln!(
        "{rare:?} greeted, quiet turns, replicators, forwarded, questions, writes to several"
    );
    let are_busy = moved > 0 && rare.into_iter().all(|count| count > seeds);
    assert!(are_busy || seeds < SEEDS, "{moved} moved, {rare:?}");
    eprintln!("{seeds} seeds: {executed} queries, {cancelled} of them cancelled, {endings:#?}");
    assert!(rescued > seeds || seeds < SEEDS, "{rescued} servers rescued");
    assert!(executed > 100 * seeds || seeds < 20, "the world is busy");
    for limit in LIMITS {
        assert!(endings.contains_key(limit) || seeds < SEEDS, "nobody has met {limit}");
    }
}
