//! The log: where its lines go. What they look like is [`mod@super::line`]'s business.
//!
//! ```text
//! log::info!(…) ──▶ Sink ──┬─▶ stderr, or the journal if that reads it   (unless quiet)
//!                          ├─▶ the log file                              (`logfile`)
//!                          └─▶ syslog                                    (`syslog`)
//! ```
//!
//! simplelog combines the sinks, but ours is our own: its writers know neither these names of
//! levels, nor the zone's abbreviation, nor the process id, and cannot open their file again. All
//! are one sink, so that a line is made once and reads the same everywhere.

use super::journal::Journal;
use super::line::{self, Loudness};
use super::syslog::Syslog;
use crate::config::LogFormat;
use crate::config::settings::Settings;
use crate::sys::{self, Account};
use log::{LevelFilter, Metadata, Record};
use simplelog::{CombinedLogger, Config, SharedLogger};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

pub use super::line::FATAL;

/// Whether lines are JSON objects.
static JSON: AtomicBool = AtomicBool::new(false);

/// Where lines go besides stderr.
static SINKS: Mutex<Sinks> = Mutex::new(Sinks { logfile: None, syslog: None });

struct Sinks {
    logfile: Option<Logfile>,
    syslog: Option<Syslog>,
}

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
    let journal = Journal::behind_stderr();
    let _ = CombinedLogger::init(vec![Box::new(Sink { quiet, journal })]);
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

/// Takes what the settings say of the log, but for the file; `-v` counts where they say nothing.
pub fn configure(settings: &Settings, verbosity: i32) {
    set_verbosity(settings.verbose.unwrap_or(verbosity));
    JSON.store(settings.log_format == LogFormat::Json, Ordering::Relaxed);
    let syslog = Syslog::from(settings);
    let (syslog, error) = syslog.map_or_else(|error| (None, Some(error)), |syslog| (syslog, None));
    sinks().syslog = syslog;
    if let Some(error) = error {
        log::error!("could not open syslog: {}", sys::error_text(&error));
    }
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
        let (time, pid) = (sys::local_time(SystemTime::now()), std::process::id());
        write_to_stderr(&format_line(&time, pid, Loudness::Fatal, &self.to_string()));
    }
}

/// Names the log file; none if the name is empty. As with PgBouncer the first line opens it: not
/// before we are the user whom the file is to belong to, if all goes well.
pub fn name_logfile(path: &str) {
    let named = |path| Logfile { path: PathBuf::from(path), file: None };
    sinks().logfile = Some(path).filter(|path| !path.is_empty()).map(named);
}

/// Opens the log file, if there is one and no line has done so.
pub fn open_logfile() -> Result<(), LogfileError> {
    sinks().logfile.as_mut().map_or(Ok(()), |logfile| logfile.open().map(|_| ()))
}

/// Gives the log file to the user that we are about to become, who will have to open it again.
pub fn give_logfile_to(account: Account) {
    if let Some(file) = sinks().logfile.as_ref().and_then(|logfile| logfile.file.as_ref()) {
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
    sinks().logfile = opened;
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

fn sinks() -> MutexGuard<'static, Sinks> {
    // They are whole whatever the thread that panicked did.
    SINKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes each line to all that are to get it.
struct Sink {
    quiet: bool,
    journal: Option<Journal>,
}

impl log::Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The crates below us log, too, in words that no operator of a pooler knows.
        let target = metadata.target();
        let ours = target == FATAL || target.starts_with(env!("CARGO_CRATE_NAME"));
        ours && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let mut sinks = sinks();
        let Sinks { logfile, syslog } = &mut *sinks;
        let is_heard = !self.quiet || logfile.is_some() || syslog.is_some();
        if !is_heard || !self.enabled(record.metadata()) {
            return;
        }
        let (time, pid) = (sys::local_time(SystemTime::now()), std::process::id());
        let loudness = Loudness::of(record.level(), record.target());
        let message = record.args().to_string();
        let line = format_line(&time, pid, loudness, &message);
        if let Some(Ok(file)) = logfile.as_mut().map(Logfile::open) {
            // A full disk must not stop the pooler, and there is nobody left to tell.
            let _ = file.write_all(line.as_bytes());
        }
        if let Some(syslog) = syslog {
            syslog.write(&time, pid, loudness, &message);
        }
        let in_journal = || {
            let journal = self.journal.as_ref();
            journal.is_some_and(|journal| journal.write(loudness, &message))
        };
        if !self.quiet && !in_journal() {
            write_to_stderr(&line);
        }
    }

    fn flush(&self) {}
}

impl SharedLogger for Sink {
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

fn format_line(time: &sys::LocalTime, pid: u32, loudness: Loudness, message: &str) -> String {
    match JSON.load(Ordering::Relaxed) {
        true => line::json(time, pid, loudness, message),
        false => line::text(time, pid, loudness, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::{Level, Log};

    #[test]
    fn only_our_own_lines_are_written() {
        let enabled = |target: &str| {
            let metadata = Metadata::builder().level(Level::Error).target(target).build();
            log::set_max_level(LevelFilter::Info);
            Sink { quiet: false, journal: None }.enabled(&metadata)
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
            Sink { quiet: true, journal: None }.log(&record.args(args).build());
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
