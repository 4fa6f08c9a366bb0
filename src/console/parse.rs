//! The grammar of the console.
//!
//! ```text
//! query   := command [ ";" [ command … ] ]           commands are parsed all, then run in order
//! command := word [ word ]
//! set     := "SET" word ( "=" | "TO" ) ( word | string )
//! word    := A-Z a-z 0-9 _ …  |  " … "               doubled quotes stand for one
//! string  := ' … '
//! ```
//!
//! Keywords and topics may be written in any case and quoted; names are exact. PgBouncer takes one
//! command per query; here several may stand in one, and if one of them cannot be read none runs.

use super::show::Topic;
use crate::engine::operate::End;

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// SHOW or SELECT a table.
    Show(Topic),
    /// SHOW of a parameter that drivers ask for.
    Probe(Probe),
    /// SET of such a parameter, without effect.
    SetProbe,
    /// SET of a setting.
    Set {
        /// Its name, as given.
        key: String,
        /// Its value, without quotes.
        value: String,
    },
    /// RELOAD
    Reload,
    /// PAUSE, of one database or all.
    Pause(Option<String>),
    /// RESUME
    Resume(Option<String>),
    /// DISABLE; the name is required, but rights are looked at first.
    Disable(Option<String>),
    /// ENABLE
    Enable(Option<String>),
    /// RECONNECT
    Reconnect(Option<String>),
    /// KILL
    Kill(Option<String>),
    /// KILL_CLIENT
    KillClient(Option<String>),
    /// SUSPEND
    Suspend,
    /// `SHOW HANDOVER`: for the next process, not for people.
    HandOver,
    /// SHUTDOWN
    Shutdown(End),
    /// WAIT_CLOSE
    WaitClose(Option<String>),
}

/// A parameter that drivers ask for when they connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name, also that of the column.
    pub name: &'static str,
    /// What we say.
    pub value: &'static str,
}

/// All of them.
pub const PROBES: [Probe; 5] = [
    Probe { name: "client_encoding", value: "UTF-8" },
    Probe { name: "default_transaction_isolation", value: "read committed" },
    Probe { name: "standard_conforming_strings", value: "on" },
    Probe { name: "datestyle", value: "ISO" },
    Probe { name: "timezone", value: "GMT" },
];

fn probe(name: &str) -> Option<Probe> {
    PROBES.into_iter().find(|probe| probe.name.eq_ignore_ascii_case(name))
}

/// Why a query is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It says nothing that we know.
    Invalid,
    /// A word in it is too long.
    BadArguments,
}

impl Refusal {
    /// What the client is told.
    pub fn text(self, query: &str) -> String {
        match self {
            Refusal::Invalid => format!("invalid command '{query}', use SHOW HELP;"),
            Refusal::BadArguments => "bad arguments".to_owned(),
        }
    }
}

/// So many commands in one query at most.
const MAX_COMMANDS: usize = 100;
const MAX_VERB_BYTES: usize = 15;
const MAX_ARGUMENT_BYTES: usize = 63;
const MAX_VALUE_BYTES: usize = 255;

/// Reads a query.
pub fn parse(query: &str) -> Result<Vec<Command>, Refusal> {
    let mut commands = Vec::new();
    let mut rest = skip_space(query);
    loop {
        let (command, after) = statement(rest)?;
        commands.push(command);
        if after.is_empty() {
            return Ok(commands);
        }
        if commands.len() == MAX_COMMANDS {
            return Err(Refusal::Invalid);
        }
        rest = after;
    }
}

/// One command, and what follows its semicolon.
fn statement(text: &str) -> Result<(Command, &str), Refusal> {
    let (verb, rest) = word(text).ok_or(Refusal::Invalid)?;
    let spaced = skip_space(rest);
    if let Some(after) = end(spaced) {
        return Ok((command(&verb, None)?, after));
    }
    if spaced.len() == rest.len() {
        return Err(Refusal::Invalid);
    }
    let (argument, rest) = word(spaced).ok_or(Refusal::Invalid)?;
    let spaced = skip_space(rest);
    if let Some(after) = end(spaced) {
        return Ok((command(&verb, Some(argument))?, after));
    }
    if !verb.text.eq_ignore_ascii_case("SET") {
        return Err(Refusal::Invalid);
    }
    let is_spaced = spaced.len() != rest.len();
    let value_at = spaced.strip_prefix('=').or_else(|| {
        let (to, value_at) = spaced.split_at_checked(2)?;
        (is_spaced && to.eq_ignore_ascii_case("TO")).then_some(value_at)
    });
    let value_at = skip_space(value_at.ok_or(Refusal::Invalid)?);
    let (value, rest) = string(value_at).or_else(|| word(value_at)).ok_or(Refusal::Invalid)?;
    let after = end(skip_space(rest)).ok_or(Refusal::Invalid)?;
    let too_long = verb.raw_bytes > MAX_VERB_BYTES
        || argument.raw_bytes > MAX_ARGUMENT_BYTES
        || value.raw_bytes > MAX_VALUE_BYTES;
    if too_long {
        return Err(Refusal::BadArguments);
    }
    let set = match probe(&argument.text) {
        Some(_) => Command::SetProbe,
        None => Command::Set { key: argument.text, value: value.text },
    };
    Ok((set, after))
}

fn command(verb: &Word, argument: Option<Word>) -> Result<Command, Refusal> {
    let argument_bytes = argument.as_ref().map_or(0, |argument| argument.raw_bytes);
    if verb.raw_bytes > MAX_VERB_BYTES || argument_bytes > MAX_ARGUMENT_BYTES {
        return Err(Refusal::BadArguments);
    }
    // As PgBouncer: an empty name is none.
    let name = argument.map(|word| word.text).filter(|text| !text.is_empty());
    let alone = |command: Command| match name {
        None => Ok(command),
        Some(_) => Err(Refusal::Invalid),
    };
    Ok(match verb.text.to_ascii_uppercase().as_str() {
        "SHOW" | "SELECT" => return show(name.as_deref().unwrap_or_default()),
        "RELOAD" => return alone(Command::Reload),
        "SUSPEND" => return alone(Command::Suspend),
        "SHUTDOWN" => Command::Shutdown(kind_of_end(name.as_deref())?),
        "PAUSE" => Command::Pause(name),
        "RESUME" => Command::Resume(name),
        "DISABLE" => Command::Disable(name),
        "ENABLE" => Command::Enable(name),
        "RECONNECT" => Command::Reconnect(name),
        "KILL" => Command::Kill(name),
        "KILL_CLIENT" => Command::KillClient(name),
        "WAIT_CLOSE" => Command::WaitClose(name),
        _ => return Err(Refusal::Invalid),
    })
}

fn show(what: &str) -> Result<Command, Refusal> {
    if what.eq_ignore_ascii_case("HANDOVER") {
        return Ok(Command::HandOver);
    }
    match (Topic::find(what), probe(what)) {
        (Some(topic), _) => Ok(Command::Show(topic)),
        (None, Some(probe)) => Ok(Command::Probe(probe)),
        (None, None) => Err(Refusal::Invalid),
    }
}

fn kind_of_end(argument: Option<&str>) -> Result<End, Refusal> {
    match argument.map(str::to_ascii_uppercase).as_deref() {
        None => Ok(End::AtOnce),
        Some("WAIT_FOR_SERVERS") => Ok(End::Servers),
        Some("WAIT_FOR_CLIENTS") => Ok(End::Clients),
        Some(_) => Err(Refusal::Invalid),
    }
}

struct Word {
    text: String,
    /// As it stands there, quotes included.
    raw_bytes: usize,
}

fn skip_space(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\r', '\n'])
}

/// What follows the end of a command: nothing, or what stands behind a semicolon.
fn end(text: &str) -> Option<&str> {
    match text.strip_prefix(';') {
        Some(after) => Some(skip_space(after)),
        None => text.is_empty().then_some(text),
    }
}

fn word(text: &str) -> Option<(Word, &str)> {
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let is_end = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let length = text.find(is_end).unwrap_or(text.len());
    let (taken, rest) = text.split_at(length);
    (length > 0).then(|| (Word { text: taken.to_owned(), raw_bytes: length }, rest))
}

fn string(text: &str) -> Option<(Word, &str)> {
    quoted(text, '\'')
}

fn quoted(text: &str, quote: char) -> Option<(Word, &str)> {
    let inner = text.strip_prefix(quote)?;
    let mut plain = String::new();
    let mut rest = inner;
    loop {
        let at = rest.find(quote)?;
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix(quote) {
            Some(more) => {
                plain.push(quote);
                rest = more;
            }
            None => {
                let raw_bytes = text.len() - rest.len();
                return Some((Word { text: plain, raw_bytes }, rest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(query: &str) -> Result<Command, Refusal> {
        parse(query).map(|mut commands| {
            assert_eq!(commands.len(), 1, "{query}");
            commands.remove(0)
        })
    }

    fn named(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    #[test]
    fn commands_are_read_in_any_case_and_dress() {
        let set = |key: &str, value: &str| Command::Set { key: key.into(), value: value.into() };
        for (query, expected) in [
            ("SHOW VERSION", Command::Show(Topic::Version)),
            ("  show\t\r\nversion ; \n", Command::Show(Topic::Version)),
            ("select \"Version\";", Command::Show(Topic::Version)),
            ("Reload;", Command::Reload),
            ("PAUSE", Command::Pause(None)),
            ("PAUSE \"\"", Command::Pause(None)),
            ("pause D1", Command::Pause(named("D1"))),
            ("pause \"a \"\"b\"\" ;c\"", Command::Pause(named("a \"b\" ;c"))),
            ("shutdown wait_FOR_servers", Command::Shutdown(End::Servers)),
            ("KILL_CLIENT 12", Command::KillClient(named("12"))),
            ("SET a=b", set("a", "b")),
            ("set a to b;", set("a", "b")),
            ("SET a = 'it''s ; so'", set("a", "it's ; so")),
            ("SET a=''", set("a", "")),
            ("SET x='-1'", set("x", "-1")),
            ("SET TimeZone = 'x'", Command::SetProbe),
            ("show TimeZone", Command::Probe(PROBES[4])),
        ] {
            assert_eq!(one(query), Ok(expected), "{query:?}");
        }
    }

    #[test]
    fn what_is_no_command_is_told_so() {
        for query in [
            "",
            ";",
            " ",
            "SHOW",
            "SHOW;;",
            "SHOW VERSION;;",
            "SHOW VERSION LISTS",
            "SHOW nothing",
            "-- SHOW VERSION",
            "SELECT 1",
            "SELECT version()",
            "RELOAD now",
            "SUSPEND x",
            "SHUTDOWN now",
            "SET x=-1",
            "SET x",
            "SET x=",
            "SET x='a",
            "PAUSE \"a",
            "BEGIN",
            "SHOW/**/VERSION",
            "SHOW VERSION; nonsense",
            "SHOW VERSION; ;",
            "ÄÖ",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        ] {
            assert_eq!(parse(query), Err(Refusal::Invalid), "{query:?}");
        }
        let long = |bytes: usize| "x".repeat(bytes);
        for query in [
            long(16),
            format!("PAUSE {}", long(64)),
            format!("SET {}=1", long(64)),
            format!("SET a={}", long(256)),
        ] {
            assert_eq!(parse(&query), Err(Refusal::BadArguments), "{query:?}");
        }
        assert!(one(&format!("PAUSE {}", long(63))).is_ok());
        assert!(one(&format!("SET a='{}'", long(253))).is_ok());
    }

    #[test]
    fn several_commands_in_one_query_run_in_order() {
        let both = [Command::Pause(named("a;b")), Command::Reload];
        assert_eq!(parse("PAUSE \"a;b\" ; RELOAD;"), Ok(both.to_vec()));
        assert_eq!(parse("PAUSE \"a;b\";RELOAD"), Ok(both.to_vec()));
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "\\PC*", words in "[SHOWET \"';=a-c]{0,40}") {
            let _ = (parse(&text), parse(&words), parse(&format!("SET {words}")));
        }
    }
}
