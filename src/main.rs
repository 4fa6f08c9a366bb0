//! The binary: flags in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = arguments.next().unwrap_or_else(|| "ringbouncer".to_string());
    let words: Vec<String> = arguments.collect();
    ringbouncer::daemon::service::run(&program, &words)
}
