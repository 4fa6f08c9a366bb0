//! What a line of the log looks like.
//!
//! ```text
//! 2026-11-21 00:10:56.680 UTC [19846] LOG listening on 127.0.0.1:6432
//! {"time":"2026-11-21 00:10:56.680 UTC","pid":19846,"level":"LOG","message":"listening on …"}
//! ```

use crate::sys::LocalTime;
use log::Level;
use std::fmt::Write as _;

/// The target that makes FATAL of an error.
pub const FATAL: &str = "fatal";

/// Longer messages are cut.
const MESSAGE_BYTES: usize = 2047;

/// How loud a line is.
///
/// | `log` | here |
/// |---|---|
/// | `error!` of target [`FATAL`] | `Fatal` |
/// | `error!` `warn!` `info!` `debug!` `trace!` | `Error` `Warning` `Log` `Debug` `Noise` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loudness {
    /// The process ends.
    Fatal,
    /// Something has failed.
    Error,
    /// Something may be wrong.
    Warning,
    /// What operators want to know.
    Log,
    /// What only those want to know who look for a fault.
    Debug,
    /// The same, every packet of it.
    Noise,
}

impl Loudness {
    /// Of a record with this level and target.
    pub fn of(level: Level, target: &str) -> Self {
        match level {
            Level::Error if target == FATAL => Self::Fatal,
            Level::Error => Self::Error,
            Level::Warn => Self::Warning,
            Level::Info => Self::Log,
            Level::Debug => Self::Debug,
            Level::Trace => Self::Noise,
        }
    }

    /// The word in the line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fatal => "FATAL",
            Self::Error => "ERROR",
            Self::Warning => "WARNING",
            Self::Log => "LOG",
            Self::Debug => "DEBUG",
            Self::Noise => "NOISE",
        }
    }

    /// As syslog and the journal count it.
    pub fn severity(self) -> u8 {
        match self {
            Self::Fatal => 2,
            Self::Error => 3,
            Self::Warning => 4,
            Self::Log => 6,
            Self::Debug | Self::Noise => 7,
        }
    }
}

fn timestamp(time: &LocalTime) -> String {
    let LocalTime { year, month, day, hour, minute, second, millisecond, zone } = time;
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millisecond:03} {zone}"
    )
}

/// As PgBouncer writes it.
pub fn text(time: &LocalTime, pid: u32, loudness: Loudness, message: &str) -> String {
    let message = cut(message);
    let (time, level) = (timestamp(time), loudness.word());
    match message.contains('\n') {
        false => format!("{time} [{pid}] {level} {message}\n"),
        true => {
            let message = message.trim_ascii_end().replace('\n', "\n\t");
            format!("{time} [{pid}] {level} {message}\n")
        }
    }
}

/// One object. What is about a connection names its parts, and its kind of event if that is a
/// usual one.
pub fn json(time: &LocalTime, pid: u32, loudness: Loudness, message: &str) -> String {
    let mut line = format!(
        "{{\"time\":{},\"pid\":{pid},\"level\":\"{}\"",
        quoted(&timestamp(time)),
        loudness.word(),
    );
    let mut add = |name: &str, value: &str| {
        write!(line, ",\"{name}\":{}", quoted(value)).expect("a String takes all");
    };
    let message = cut(message);
    let connection = Connection::at_start_of(message);
    let said = connection.as_ref().map_or(message, |connection| connection.said);
    if let Some(event) = event(said) {
        add("event", event);
    }
    if let Some(Connection { id, database, user, address, .. }) = connection {
        let parts = [("connection", id), ("database", database), ("user", user)];
        parts.into_iter().chain([("address", address)]).for_each(|(name, value)| add(name, value));
    }
    add("message", said);
    line + "}\n"
}

/// A connection that a line is about, as `House::client_name` and `House::server_name` write it.
struct Connection<'a> {
    id: &'a str,
    database: &'a str,
    user: &'a str,
    address: &'a str,
    said: &'a str,
}

impl<'a> Connection<'a> {
    fn at_start_of(message: &'a str) -> Option<Self> {
        if !message.starts_with("C-0x") && !message.starts_with("S-0x") {
            return None;
        }
        let (id, rest) = message.split_once(": ")?;
        let (database, rest) = rest.split_once('/')?;
        // A user's name may be anything, but what follows it ends in a port.
        let parts = rest.match_indices('@').filter_map(|(at, _)| {
            let (address, said) = rest[at + 1..].split_once(' ')?;
            let port = address.rsplit_once(':')?.1;
            port.parse::<u32>().ok()?;
            Some(Self { id, database, user: &rest[..at], address, said })
        });
        parts.into_iter().next()
    }
}

/// The name of an event, by how its message begins.
fn event(said: &str) -> Option<&'static str> {
    const EVENTS: [(&str, &str); 9] = [
        ("login attempt: ", "login_attempt"),
        ("login failed: ", "login_failed"),
        ("no such user: ", "no_such_user"),
        ("new connection to server", "server_connected"),
        ("closing because: ", "closed"),
        ("pooler error: ", "pooler_error"),
        ("server login failed", "server_login_failed"),
        ("process up: ", "started"),
        ("got SIG", "signal"),
    ];
    EVENTS.iter().find(|(start, _)| said.starts_with(start)).map(|(_, event)| *event)
}

/// The part of a message that fits, without half a character at its end.
pub fn cut(message: &str) -> &str {
    let fits = |end: &usize| message.is_char_boundary(*end);
    let end = (0..=message.len().min(MESSAGE_BYTES)).rev().find(fits);
    &message[..end.unwrap_or(0)]
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if u32::from(c) < 0x20 => {
                write!(quoted, "\\u{:04x}", u32::from(c)).expect("a String takes all");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time() -> LocalTime {
        LocalTime {
            year: 2026,
            month: 11,
            day: 2,
            hour: 0,
            minute: 1,
            second: 5,
            millisecond: 68,
            zone: "UTC".to_owned(),
        }
    }

    #[test]
    fn lines_look_like_pgbouncers() {
        let text = |message: &str| text(&time(), 19846, Loudness::Log, message);
        let expected = "2026-11-02 00:01:05.068 UTC [19846] LOG listening on 127.0.0.1:21001\n";
        assert_eq!(text("listening on 127.0.0.1:21001"), expected);
        let head = "2026-11-02 00:01:05.068 UTC [19846] LOG ";
        assert_eq!(text("a\nb \n"), format!("{head}a\n\tb\n"));
        assert_eq!(text("a "), format!("{head}a \n"));
        assert_eq!(text(&"x".repeat(3000)), format!("{head}{}\n", "x".repeat(2047)));
        assert_eq!(text(&"é".repeat(2000)), format!("{head}{}\n", "é".repeat(1023)));
    }

    #[test]
    fn json_lines_are_json() {
        let line = |message: &str| {
            let line = json(&time(), 7, Loudness::Error, message);
            let start = "{\"time\":\"2026-11-02 00:01:05.068 UTC\",\"pid\":7,\"level\":\"ERROR\"";
            line.strip_prefix(start).expect("the same start").to_owned()
        };
        let expected = ",\"message\":\"a \\\"b\\\" \\\\ \\n\\u0001\"}\n";
        assert_eq!(line("a \"b\" \\ \n\x01"), expected);
        let expected = ",\"event\":\"closed\",\"connection\":\"C-0x10000\",\"database\":\"d\",\
            \"user\":\"a@b /c\",\"address\":\"[::1]:5\",\"message\":\"closing because: x@y:1 (age=0s)\"}\n";
        assert_eq!(line("C-0x10000: d/a@b /c@[::1]:5 closing because: x@y:1 (age=0s)"), expected);
        let expected = ",\"connection\":\"S-0x1\",\"database\":\"(nodb)\",\"user\":\"(nouser)\",\
            \"address\":\"unix(3):6432\",\"message\":\"hm\"}\n";
        assert_eq!(line("S-0x1: (nodb)/(nouser)@unix(3):6432 hm"), expected);
        assert_eq!(line("C-0x1: odd"), ",\"message\":\"C-0x1: odd\"}\n");
    }

    #[test]
    fn levels_have_pgbouncers_names_and_syslogs_numbers() {
        let cases = [
            (Level::Error, FATAL, "FATAL", 2),
            (Level::Error, "x", "ERROR", 3),
            (Level::Warn, FATAL, "WARNING", 4),
            (Level::Info, "x", "LOG", 6),
            (Level::Debug, "x", "DEBUG", 7),
            (Level::Trace, "x", "NOISE", 7),
        ];
        for (level, target, word, severity) in cases {
            let loudness = Loudness::of(level, target);
            assert_eq!((loudness.word(), loudness.severity()), (word, severity));
        }
    }
}
