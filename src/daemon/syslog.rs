//! Lines for syslog, in the form that libc gives them:
//!
//! ```text
//! <30>Nov  2 00:01:05 pgbouncer[19846]: listening on 127.0.0.1:6432
//! ```

use super::datagrams::Datagrams;
use super::line::{self, Loudness};
use crate::config::settings::Settings;
use crate::sys::LocalTime;
use std::io;

/// Where the system's log daemon listens.
const PLACE: &str = "/dev/log";

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Our way to syslog.
#[derive(Debug)]
pub struct Syslog {
    datagrams: Datagrams,
    ident: String,
    facility: u8,
}

impl Syslog {
    /// `None`: it is switched off.
    pub fn from(settings: &Settings) -> io::Result<Option<Self>> {
        settings.syslog.is_on().then(|| Self::at(PLACE, settings)).transpose()
    }

    fn at(place: &str, settings: &Settings) -> io::Result<Self> {
        Ok(Self {
            datagrams: Datagrams::to(place)?,
            ident: settings.syslog_ident.clone(),
            facility: facility(&settings.syslog_facility),
        })
    }

    /// Sends a line, if it is one for syslog.
    pub fn write(&self, time: &LocalTime, pid: u32, loudness: Loudness, message: &str) {
        // As PgBouncer: never.
        if matches!(loudness, Loudness::Debug | Loudness::Noise) {
            return;
        }
        let message = line::cut(message);
        let priority = self.facility * 8 + loudness.severity();
        let LocalTime { day, hour, minute, second, month, .. } = time;
        let month = usize::try_from(month - 1).ok().and_then(|month| MONTHS.get(month));
        let month = month.unwrap_or(&MONTHS[0]);
        let ident = &self.ident;
        let text = format!(
            "<{priority}>{month} {day:2} {hour:02}:{minute:02}:{second:02} {ident}[{pid}]: {message}"
        );
        // The log cannot tell that the log is not heard.
        let _ = self.datagrams.send(text.as_bytes());
    }
}

/// As PgBouncer: an unknown word is `daemon`.
fn facility(word: &str) -> u8 {
    match word {
        "user" => 1,
        "auth" => 4,
        "authpriv" => 10,
        "local0" => 16,
        "local1" => 17,
        "local2" => 18,
        "local3" => 19,
        "local4" => 20,
        "local5" => 21,
        "local6" => 22,
        "local7" => 23,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn lines_have_libcs_form() {
        let place = std::env::temp_dir().join(format!("ringbouncer-{}.syslog", std::process::id()));
        let settings = |facility: &str| Settings {
            syslog: true.into(),
            syslog_ident: "pooler".to_owned(),
            syslog_facility: facility.to_owned(),
            ..Settings::default()
        };
        let syslog = Syslog::at(place.to_str().unwrap(), &settings("daemon")).unwrap();
        let time = LocalTime {
            year: 2026,
            month: 11,
            day: 2,
            hour: 0,
            minute: 1,
            second: 5,
            millisecond: 68,
            zone: "UTC".to_owned(),
        };
        // Nobody listens yet.
        syslog.write(&time, 7, Loudness::Log, "unheard");
        let daemon = UnixDatagram::bind(&place).unwrap();
        syslog.write(&time, 7, Loudness::Debug, "never");
        syslog.write(&time, 7, Loudness::Log, "up");
        let local = Syslog::at(place.to_str().unwrap(), &settings("local7")).unwrap();
        local.write(&time, 7, Loudness::Fatal, &"x".repeat(3000));
        let mut buffer = [0; 4096];
        let mut heard = || {
            let len = daemon.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        assert_eq!(heard(), "<30>Nov  2 00:01:05 pooler[7]: up");
        let expected = format!("<186>Nov  2 00:01:05 pooler[7]: {}", "x".repeat(2047));
        assert_eq!(heard(), expected);
        std::fs::remove_file(place).unwrap();
    }

    #[test]
    fn facilities_are_known_by_exact_words() {
        let cases = [("daemon", 3), ("auth", 4), ("local0", 16), ("Local0", 3), ("kern", 3)];
        for (word, number) in cases {
            assert_eq!(facility(word), number);
        }
        assert!(Syslog::from(&Settings::default()).unwrap().is_none());
    }
}
