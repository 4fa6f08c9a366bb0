//! The real engine in a seeded world: scripted clients, model servers, a virtual clock, and a
//! shell that deals in pieces of bytes. Nothing here knows sockets; a seed replays a run exactly.
//!
//! - `SIM_SEED=n` replays one run and prints all its events, the engine's log lines among them.
//! - `SIM_SEEDS=n` sets how many seeds the sweep runs, `SIM_FIRST=n` with which it begins.

mod backend;
mod book;
mod client;
mod directed;
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

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use world::World;

const SEEDS: u64 = 50;
const STEPS: usize = 8000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs a world to its end; on failure says how to see it again.
fn run(seed: u64, prints: bool) -> (u64, u64, u64) {
    trace::begin(prints);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed);
        trace::note(|| format!("{:?} {:?}", world.faults, world.town));
        for _ in 0..STEPS {
            world.step();
        }
        world.heal_and_settle();
        let rescued = world.shell.engine.house().rescues.kept;
        (world.book.executed, world.book.cancelled, rescued)
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
        run(seed, true);
        return;
    }
    let first = number("SIM_FIRST").unwrap_or(1);
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let (mut executed, mut cancelled, mut rescued) = (0, 0, 0);
    for seed in first..first + seeds {
        let (queries, cancels, rescues) = run(seed, false);
        executed += queries;
        cancelled += cancels;
        rescued += rescues;
    }
    eprintln!(
        "{seeds} seeds: {executed} queries, {cancelled} cancelled, {rescued} servers rescued"
    );
    assert!(rescued > seeds || seeds < 20, "servers are rescued");
    assert!(executed > 100 * seeds || seeds < 20, "the world is busy");
}
