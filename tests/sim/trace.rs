//! The last events of a run, printed when it fails.

use std::cell::RefCell;
use std::collections::VecDeque;

const KEPT: usize = 40;

#[derive(Default)]
struct Trace {
    events: VecDeque<String>,
    count: u64,
    prints: bool,
}

thread_local! {
    static TRACE: RefCell<Trace> = RefCell::default();
}

/// Forgets the last run. `prints`: every event is printed at once.
pub fn begin(prints: bool) {
    TRACE.with_borrow_mut(|trace| *trace = Trace { prints, ..Trace::default() });
}

/// Notes an event.
pub fn note(event: impl FnOnce() -> String) {
    let event = event();
    TRACE.with_borrow_mut(|trace| {
        trace.count += 1;
        let line = format!("{:6} {event}", trace.count);
        if trace.prints {
            eprintln!("{line}");
        }
        trace.events.push_back(line);
        if trace.events.len() > KEPT {
            trace.events.pop_front();
        }
    });
}

/// The last events, one a line.
pub fn last_events() -> String {
    TRACE.with_borrow(|trace| trace.events.iter().cloned().collect::<Vec<_>>().join("\n"))
}

/// Notes what the engine logs.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        note(|| format!("log: {}", record.args()));
    }
    fn flush(&self) {}
}

/// From now on the engine's log lines are events, too.
pub fn listen_to_log() {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
