//! Verbs → what the operator does to the house.

use super::parse::{Command, Probe};
use super::session::{Desk, Waiting};
use super::show::Topic;
use super::table::{Column, Type};
use super::{Answer, Order};
use crate::config::CONSOLE;
use crate::engine::Engine;
use crate::engine::operate::End;
use crate::keys::Key;
use crate::pool::mode::Mode;
use crate::session::farewell::Reason;

/// What came of a command.
pub enum Outcome {
    /// This is the tag.
    Done(String),
    /// This is why not.
    Failed(String),
    /// A table.
    Show(Topic),
    /// What a driver asked for.
    Probe(Probe),
    /// A driver's SET.
    SetIgnored,
    /// What the next process is told.
    HandOver,
    /// Answered when this has come true.
    Wait(Waiting),
    /// Answered when the daemon has done this.
    Order(Order),
}

/// The one column of a probe.
pub fn probe_columns(probe: Probe) -> [Column; 1] {
    [(probe.name, Type::Text)]
}

const PAUSED_ALREADY: &str = "already suspended/paused";

/// Runs a command of somebody who may.
pub fn run(command: Command, desk: &mut Desk<'_>) -> Outcome {
    let now = desk.moment.now;
    match command {
        Command::Show(topic) => Outcome::Show(topic),
        Command::Probe(probe) => Outcome::Probe(probe),
        Command::SetProbe => Outcome::SetIgnored,
        Command::Set { key, value } => Outcome::Order(Order::Set { key, value }),
        Command::Reload => {
            log::info!("RELOAD command issued");
            Outcome::Order(Order::Reload)
        }
        Command::Pause(name) => pause(desk, name),
        Command::Resume(name) => resume(desk, name.as_deref()),
        Command::Disable(name) => enable(desk, name, ("DISABLE", "disable"), false),
        Command::Enable(name) => enable(desk, name, ("ENABLE", "enable"), true),
        Command::Reconnect(name) => {
            if let Err(refused) = issue(desk, "RECONNECT", "cannot reconnect admin db", &name, true)
            {
                return refused;
            }
            desk.engine.reconnect(name.as_deref(), now);
            done("RECONNECT")
        }
        Command::Kill(name) => kill(desk, name.as_deref()),
        Command::KillClient(id) => kill_client(desk, id.as_deref()),
        Command::Suspend => suspend(desk),
        Command::HandOver if hands_over(desk) => Outcome::HandOver,
        Command::HandOver => failed("only the next process is told that, when we are suspended"),
        Command::Shutdown(end) => {
            let how = match end {
                End::AtOnce => "",
                End::Servers => " WAIT_FOR_SERVERS",
                End::Clients => " WAIT_FOR_CLIENTS",
            };
            log::info!("SHUTDOWN{how} command issued");
            Outcome::Order(Order::Shutdown(end))
        }
        Command::WaitClose(name) => {
            if let Err(refused) = issue(desk, "WAIT_CLOSE", "cannot wait in admin db", &name, true)
            {
                return refused;
            }
            match desk.engine.has_servers(name.as_deref()) {
                true => Outcome::Wait(Waiting::Closed(name)),
                false => done("WAIT_CLOSE"),
            }
        }
    }
}

fn done(tag: &str) -> Outcome {
    Outcome::Done(tag.to_owned())
}

fn failed(text: &str) -> Outcome {
    Outcome::Failed(text.to_owned())
}

/// Logs the command and looks whether its database is there and no other than a real one. With
/// `may_create`, `*` makes any name a database.
fn issue(
    desk: &Desk<'_>,
    verb: &str,
    not_the_console: &str,
    name: &Option<String>,
    may_create: bool,
) -> Result<(), Outcome> {
    let Some(name) = name else {
        log::info!("{verb} command issued");
        return Ok(());
    };
    log::info!("{verb} '{name}' command issued");
    if name == CONSOLE {
        return Err(Outcome::Failed(format!("{not_the_console}: {name}")));
    }
    if desk.engine.knows_database(name, may_create, desk.client) {
        Ok(())
    } else {
        Err(Outcome::Failed(format!("no such database: {name}")))
    }
}

fn pause(desk: &mut Desk<'_>, name: Option<String>) -> Outcome {
    if desk.engine.house().mode.is_held() {
        return failed(PAUSED_ALREADY);
    }
    if let Err(refused) = issue(desk, "PAUSE", "cannot pause admin db", &name, true) {
        return refused;
    }
    match &name {
        Some(name) => desk.engine.pause_database(name, desk.moment.now),
        None => desk.engine.pause(desk.moment.now),
    }
    Outcome::Wait(Waiting::Paused(name))
}

fn suspend(desk: &mut Desk<'_>) -> Outcome {
    let house = desk.engine.house();
    if house.mode.is_held() {
        return failed(PAUSED_ALREADY);
    }
    if !house.paused_databases.is_empty() {
        return failed("cannot suspend with paused databases");
    }
    if house.mode.is_shutting_down() {
        // Ours: nothing must hold up an end that has been ordered.
        return failed("pooler is shutting down");
    }
    log::info!("SUSPEND command issued");
    desk.engine.suspend(desk.moment.now);
    Outcome::Wait(Waiting::Suspended)
}

/// Whether descriptors go to whoever asks for them: over the Unix socket, to the account that we
/// run as, and when nothing moves any more.
pub fn hands_over(desk: &Desk<'_>) -> bool {
    desk.engine.house().mode.is_quiet() && desk.engine.is_owner(desk.client)
}

fn resume(desk: &mut Desk<'_>, name: Option<&str>) -> Outcome {
    let Some(name) = name else {
        log::info!("RESUME command issued");
        let mode = desk.engine.house().mode;
        return match mode {
            Mode::ShuttingDown { .. } => failed("pooler is shutting down"),
            Mode::Running => failed("pooler is not paused/suspended"),
            Mode::Paused | Mode::Suspended { .. } => {
                desk.engine.resume(desk.moment.now);
                done("RESUME")
            }
        };
    };
    log::info!("RESUME '{name}' command issued");
    if name != CONSOLE && !desk.engine.knows_database(name, false, desk.client) {
        return Outcome::Failed(format!("no such database: {name}"));
    }
    if desk.engine.resume_database(name, desk.moment.now) {
        done("RESUME")
    } else {
        Outcome::Failed(format!("database {name} is not paused"))
    }
}

fn enable(
    desk: &mut Desk<'_>,
    name: Option<String>,
    (verb, what): (&str, &str),
    on: bool,
) -> Outcome {
    if name.is_none() {
        return failed("a database is required");
    }
    let not_the_console = format!("cannot {what} admin db");
    if let Err(refused) = issue(desk, verb, &not_the_console, &name, !on) {
        return refused;
    }
    desk.engine.set_enabled(&name.unwrap_or_default(), on);
    done(verb)
}

fn kill(desk: &mut Desk<'_>, name: Option<&str>) -> Outcome {
    if desk.engine.house().mode.is_held() {
        return failed(PAUSED_ALREADY);
    }
    let owned = name.map(str::to_owned);
    if let Err(refused) = issue(desk, "KILL", "cannot kill admin db", &owned, true) {
        return refused;
    }
    desk.engine.kill_database(name, desk.moment.now);
    done("KILL")
}

fn kill_client(desk: &mut Desk<'_>, id: Option<&str>) -> Outcome {
    let digits: String = id.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    let Ok(id) = digits.parse::<u64>() else {
        return failed("invalid client pointer supplied");
    };
    let clients = desk.engine.house().clients.iter();
    let is_in = |client: &crate::session::client::Client| {
        use crate::session::client::State;
        !matches!(client.state, State::LoggingIn | State::Closing)
    };
    let mut found = clients.filter(|(key, client)| u64::from(key.serial()) == id && is_in(client));
    let key = found.next().map(|(key, _)| key);
    drop(found);
    let Some(key) = key else {
        return failed("client not found");
    };
    desk.engine.end_console(key, Reason::ADMIN_DISCONNECT, desk.moment.now);
    done("KILL_CLIENT")
}

/// Whether what somebody waits for has come true, or never will.
pub fn has_come_true(engine: &Engine, what: &Waiting) -> Option<Answer> {
    match what {
        Waiting::Suspended => {
            let mode = engine.house().mode;
            if !mode.is_suspended() {
                let text = "the suspension was ended before it was complete".to_owned();
                return Some(Answer::Failed { code: "57014", text });
            }
            mode.is_quiet().then(|| Answer::Done("SUSPEND".to_owned()))
        }
        Waiting::Paused(name) => {
            let house = engine.house();
            let still_paused = match name {
                None => house.mode.is_paused(),
                Some(name) => house.paused_databases.contains(name) || house.mode.is_paused(),
            };
            if !still_paused {
                let text = "the pause was ended before it was complete".to_owned();
                return Some(Answer::Failed { code: "57014", text });
            }
            let is_quiet = !engine.has_working_servers(name.as_deref());
            is_quiet.then(|| Answer::Done("PAUSE".to_owned()))
        }
        Waiting::Closed(name) => {
            let is_done = !engine.has_servers_to_close(name.as_deref());
            is_done.then(|| Answer::Done("WAIT_CLOSE".to_owned()))
        }
    }
}
