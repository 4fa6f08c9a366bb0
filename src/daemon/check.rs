//! `--check`: reads everything that a start would read, shows what comes of it, and starts nothing.

use super::service;
use crate::auth::userlist::Userlist;
use crate::config::Config;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// Prints the configuration as a start would have it. What is wrong with it is in the log, which
/// goes to stderr.
pub fn run(path: &Path) -> ExitCode {
    let Ok(config) = service::load(path) else {
        return ExitCode::FAILURE;
    };
    let (access, has_all) = service::load_access(&config, Userlist::default());
    let has_tls = service::set_up_tls(&config.settings).is_ok();
    print!("{}", report(&config, access.userlist.len()));
    if has_all && has_tls { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(config: &Config, users: usize) -> String {
    let mut text = config.to_string();
    let file = config.settings.auth_file.as_deref().unwrap_or("");
    writeln!(text, "\n; auth_file {file}: {users} users").expect("a String takes all");
    text
}
