//! The log: lines that look like PgBouncer's, to stderr and to a file.
//!
//! ```text
//! 2026-11-21 00:10:56.680 UTC [19846] LOG listening on 127.0.0.1:6432
//! ```
//!
//! | `log` | here |
//! |---|---|
//! | `error!` of target [`FATAL`] | `FATAL` |
//! | `error!` `warn!` `info!` `debug!` `trace!` | `ERROR` `WARNING` `LOG` `DEBUG` `NOISE` |
//!
//! simplelog combines the sinks, but ours is our own: its writers know neither these names of
//! levels, nor the zone's abbreviation, nor the process id, and cannot open their file again. Stderr
//! and file are one sink, so that a line is made once and reads the same in both.

use crate::config::LogFormat;
use crate::sys::{self, Account, LocalTime};
use log::{Level, LevelFilter, Metadata, Record};
use simplelog::{CombinedLogger, Config, SharedLogger};
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The target that makes FATAL of an error.
pub const FATAL: &str = "fatal";

/// Longer messages are cut.
const MESSAGE_BYTES: usize = 2047;

/// Whether lines are JSON objects.
static JSON: AtomicBool = AtomicBool::new(false);

/// The log file, if there is one.
static LOGFILE: Mutex<Option<Logfile>> = Mutex::new(None);

struct Logfile {
    path: PathBuf,
    /// `None`: no line has needed it yet.
    file: Option<File>,
}

impl Logfile {
    fn open(&mut self) -> Result<&mut File, LogfileError> {
        match &mut self.file {
            Some(file) => Ok(file),
            empty => Ok(empty.insert(open(&self.path)?)),
        }
    }
}

/// Starts to log to stderr, unless quiet. Call it once, before anything is logged.
pub fn start(quiet: bool, verbosity: i32) {
    // It fails if there is a logger already; then that one stays, which is as good.
    let _ = CombinedLogger::init(vec![Box::new(LineSink { quiet })]);
    set_verbosity(verbosity);
}

/// Sets how much is logged: 0 up to LOG, 1 adds DEBUG, 2 and more add NOISE.
pub fn set_verbosity(verbosity: i32) {
    log::set_max_level(match verbosity {
        ..=0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        2.. => LevelFilter::Trace,
    });
}

/// Sets the form of the lines that follow.
pub fn set_format(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

/// A log file that cannot be opened: fatal at start, later the old one stays.
#[derive(Debug)]
pub struct LogfileError {
    path: PathBuf,
    error: io::Error,
}

impl fmt::Display for LogfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, why) = (self.path.display(), sys::error_text(&self.error));
        write!(f, "Cannot open logfile: '{path}': {why}")
    }
}

impl std::error::Error for LogfileError {}

impl LogfileError {
    /// Tells stderr, quiet or not, since there is no log to tell.
    pub fn report(&self) {
        write_to_stderr(&line(Level::Error, FATAL, &self.to_string()));
    }
}

/// Names the log file; none if the name is empty. As with PgBouncer the first line opens it: not
/// before we are the user whom the file is to belong to, if all goes well.
pub fn name_logfile(path: &str) {
    let named = |path| Logfile { path: PathBuf::from(path), file: None };
    *logfile() = Some(path).filter(|path| !path.is_empty()).map(named);
}

/// Opens the log file, if there is one and no line has done so.
pub fn open_logfile() -> Result<(), LogfileError> {
    logfile().as_mut().map_or(Ok(()), |logfile| logfile.open().map(|_| ()))
}

/// Gives the log file to the user that we are about to become, who will have to open it again.
pub fn give_logfile_to(account: Account) {
    if let Some(file) = logfile().as_ref().and_then(|logfile| logfile.file.as_ref()) {
        // It may be on a disk that knows no users; then there is no need to.
        let _ = std::os::unix::fs::fchown(file, Some(account.uid), Some(account.gid));
    }
}

/// Logs to this file from now on; to none if the name is empty. If it cannot be opened all stays
/// as it is.
pub fn set_logfile(path: &str) -> Result<(), LogfileError> {
    let opened = match path {
        "" => None,
        path => Some(Logfile { path: PathBuf::from(path), file: Some(open(Path::new(path))?) }),
    };
    *logfile() = opened;
    Ok(())
}

/// Logs why the process ends. To end it is up to the caller.
pub fn fatal(message: impl fmt::Display) {
    log::error!(target: FATAL, "{message}");
}

fn open(path: &Path) -> Result<File, LogfileError> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| LogfileError { path: path.to_owned(), error })
}

fn logfile() -> MutexGuard<'static, Option<Logfile>> {
    // The file is whole whatever the thread that panicked did.
    LOGFILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes each line to the log file and to stderr.
struct LineSink {
    quiet: bool,
}

impl log::Log for LineSink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The crates below us log, too, in words that no operator of a pooler knows.
        let target = metadata.target();
        let ours = target == FATAL || target.starts_with(env!("CARGO_CRATE_NAME"));
        ours && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let mut logfile = logfile();
        if !self.enabled(record.metadata()) || (self.quiet && logfile.is_none()) {
            return;
        }
        let line = line(record.level(), record.target(), &record.args().to_string());
        if let Some(Ok(file)) = logfile.as_mut().map(Logfile::open) {
            // A full disk must not stop the pooler, and there is nobody left to tell.
            let _ = file.write_all(line.as_bytes());
        }
        if !self.quiet {
            write_to_stderr(&line);
        }
    }

    fn flush(&self) {}
}

impl SharedLogger for LineSink {
    /// All: what counts is `log::max_level`, which can change.
    fn level(&self) -> LevelFilter {
        LevelFilter::Trace
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn as_log(self: Box<Self>) -> Box<dyn log::Log> {
        self
    }
}

/// Writes a line at once, so that lines of several processes do not mix.
fn write_to_stderr(line: &str) {
    // Nobody is left to tell if this fails.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

fn line(level: Level, target: &str, message: &str) -> String {
    let time = sys::local_time(SystemTime::now());
    let word = level_word(level, target);
    match JSON.load(Ordering::Relaxed) {
        true => json_line(&time, std::process::id(), word, message),
        false => text_line(&time, std::process::id(), word, message),
    }
}

fn level_word(level: Level, target: &str) -> &'static str {
    match level {
        Level::Error if target == FATAL => "FATAL",
        Level::Error => "ERROR",
        Level::Warn => "WARNING",
        Level::Info => "LOG",
        Level::Debug => "DEBUG",
        Level::Trace => "NOISE",
    }
}

fn timestamp(time: &LocalTime) -> String {
    let LocalTime { year, month, day, hour, minute, second, millisecond, zone } = time;
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millisecond:03} {zone}"
    )
}

fn text_line(time: &LocalTime, pid: u32, level: &str, message: &str) -> String {
    let message = cut(message);
    let time = timestamp(time);
    match message.contains('\n') {
        false => format!("{time} [{pid}] {level} {message}\n"),
        true => {
            let message = message.trim_ascii_end().replace('\n', "\n\t");
            format!("{time} [{pid}] {level} {message}\n")
        }
    }
}

fn json_line(time: &LocalTime, pid: u32, level: &str, message: &str) -> String {
    let time = json_string(&timestamp(time));
    let message = json_string(cut(message));
    format!("{{\"time\":{time},\"pid\":{pid},\"level\":\"{level}\",\"message\":{message}}}\n")
}

/// The part of a message that fits, without half a character at its end.
fn cut(message: &str) -> &str {
    let fits = |end: &usize| message.is_char_boundary(*end);
    let end = (0..=message.len().min(MESSAGE_BYTES)).rev().find(fits);
    &message[..end.unwrap_or(0)]
}

fn json_string(text: &str) -> String {
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
    use log::Log;

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
        let text = |message: &str| text_line(&time(), 19846, "LOG", message);
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
        let expected = "{\"time\":\"2026-11-02 00:01:05.068 UTC\",\"pid\":7,\"level\":\"ERROR\",\
            \"message\":\"a \\\"b\\\" \\\\ \\n\\u0001\"}\n";
        assert_eq!(json_line(&time(), 7, "ERROR", "a \"b\" \\ \n\x01"), expected);
    }

    #[test]
    fn levels_have_pgbouncers_names() {
        let cases = [
            (Level::Error, FATAL, "FATAL"),
            (Level::Error, "x", "ERROR"),
            (Level::Warn, FATAL, "WARNING"),
            (Level::Info, "x", "LOG"),
            (Level::Debug, "x", "DEBUG"),
            (Level::Trace, "x", "NOISE"),
        ];
        for (level, target, word) in cases {
            assert_eq!(level_word(level, target), word);
        }
    }

    #[test]
    fn only_our_own_lines_are_written() {
        let enabled = |target: &str| {
            let metadata = Metadata::builder().level(Level::Error).target(target).build();
            log::set_max_level(LevelFilter::Info);
            LineSink { quiet: false }.enabled(&metadata)
        };
        assert!(enabled(FATAL) && enabled("ringbouncer") && enabled("ringbouncer::pool"));
        assert!(!enabled("mio::poll"));
    }

    /// The log file is one for the process, so one test tells its whole story.
    #[test]
    fn the_file_can_be_changed_and_reopened() {
        let directory = std::env::temp_dir();
        let path = |name| directory.join(format!("ringbouncer-{}-{name}", std::process::id()));
        let (log, moved) = (path("a.log"), path("b.log"));
        let write = |message: &str| {
            let args = format_args!("{message}");
            let mut record = Record::builder();
            record.level(Level::Info).target("ringbouncer::pool");
            LineSink { quiet: true }.log(&record.args(args).build());
        };
        let content = |path: &Path| std::fs::read_to_string(path).unwrap();
        set_verbosity(0);
        name_logfile(log.to_str().unwrap());
        assert!(!log.exists(), "nothing has been said yet");
        write("one");
        std::fs::rename(&log, &moved).unwrap();
        write("two");
        set_logfile(log.to_str().unwrap()).unwrap();
        write("three");
        assert_eq!(content(&moved).lines().count(), 2);
        assert!(content(&log).ends_with(" LOG three\n"));

        let error = set_logfile("/nonexist/x.log").unwrap_err().to_string();
        let expected = "Cannot open logfile: '/nonexist/x.log': No such file or directory";
        assert_eq!(error, expected);
        write("four");
        set_logfile("").unwrap();
        write("five");
        assert_eq!(content(&log).lines().count(), 2);
        std::fs::remove_file(&log).unwrap();
        std::fs::remove_file(&moved).unwrap();
    }
}
