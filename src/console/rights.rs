//! Who may do what on the console: the one place that decides it (CVE-2026-6667 was a verb that
//! forgot to ask).

use super::parse::Command;
use crate::session::client::Rights;

/// What a command is refused with.
pub const NEEDED: &str = "admin access needed";

/// The least that somebody needs for a command.
pub fn needed(command: &Command) -> Rights {
    match command {
        Command::Show(topic) => topic.least_rights(),
        Command::Probe(_) | Command::SetProbe => Rights::Stats,
        Command::Set { .. }
        | Command::Reload
        | Command::Pause(_)
        | Command::Resume(_)
        | Command::Disable(_)
        | Command::Enable(_)
        | Command::Reconnect(_)
        | Command::Kill(_)
        | Command::KillClient(_)
        | Command::Suspend
        | Command::HandOver
        | Command::Shutdown(_)
        | Command::WaitClose(_) => Rights::Admin,
    }
}

/// Whether these rights are enough. `None`: not (any more) on the console.
pub fn may(rights: Option<Rights>, command: &Command) -> bool {
    match (rights, needed(command)) {
        (Some(Rights::Admin), _) | (Some(Rights::Stats), Rights::Stats) => true,
        (Some(Rights::Stats), Rights::Admin) | (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::parse::parse;
    use crate::console::show::Topic;

    /// Reliability 4 (CVE-2026-6667): every verb for each kind of rights.
    #[test]
    fn each_verb_needs_its_rights() {
        let shows =
            Topic::ALL.iter().map(|topic| (format!("SHOW {}", topic.word()), *topic != Topic::Fds));
        let others = [
            ("SHOW timezone", true),
            ("SET timezone = 'x'", true),
            ("SET verbose = 1", false),
            ("RELOAD", false),
            ("PAUSE", false),
            ("PAUSE app", false),
            ("RESUME", false),
            ("RESUME app", false),
            ("DISABLE app", false),
            ("DISABLE", false),
            ("ENABLE app", false),
            ("RECONNECT", false),
            ("RECONNECT app", false),
            ("KILL", false),
            ("KILL app", false),
            ("KILL_CLIENT 1", false),
            ("KILL_CLIENT", false),
            ("SUSPEND", false),
            ("SHOW HANDOVER", false),
            ("SHUTDOWN", false),
            ("SHUTDOWN WAIT_FOR_SERVERS", false),
            ("SHUTDOWN WAIT_FOR_CLIENTS", false),
            ("WAIT_CLOSE", false),
            ("WAIT_CLOSE app", false),
        ];
        let others = others.map(|(query, for_stats)| (query.to_owned(), for_stats));
        for (query, for_stats) in shows.chain(others) {
            let command = parse(&query).unwrap().remove(0);
            assert!(may(Some(Rights::Admin), &command), "{query}");
            assert_eq!(may(Some(Rights::Stats), &command), for_stats, "{query}");
            assert!(!may(None, &command), "{query}");
        }
    }
}
