//! `--check`: reads everything that a start would read, shows what comes of it, and starts nothing.

use super::service;
use crate::auth::Notes;
use crate::auth::hba::Hba;
use crate::auth::ident::Ident;
use crate::config::Config;
use crate::config::settings::Settings;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// Prints the configuration as a start would have it. What is wrong with it is in the log, which
/// goes to stderr.
pub fn run(path: &Path) -> ExitCode {
    let Ok(config) = service::load(path) else {
        return ExitCode::FAILURE;
    };
    let (users, has_all_users) = service::load_userlist(&config);
    let has_all_rules = rules_are_whole(&config.settings);
    let has_tls = service::set_up_tls(&config.settings).is_ok();
    print!("{}", report(&config, users.len()));
    if has_all_users && has_all_rules && has_tls { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reads the files of rules, if there are any; tells whether nothing was left out.
fn rules_are_whole(settings: &Settings) -> bool {
    let mut all = Vec::new();
    let mut maps = Ident::default();
    if let Some(path) = &settings.auth_ident_file {
        let (read, notes) = Ident::load(path);
        maps = read;
        all.push(notes);
    }
    if !settings.auth_hba_file.is_empty() {
        all.push(Hba::load(&settings.auth_hba_file, &maps).1);
    }
    all.iter().for_each(Notes::log);
    all.iter().all(|notes| *notes == Notes::default())
}

fn report(config: &Config, users: usize) -> String {
    let mut text = config.to_string();
    let file = config.settings.auth_file.as_deref().unwrap_or("");
    writeln!(text, "\n; auth_file {file}: {users} users").expect("a String takes all");
    text
}
