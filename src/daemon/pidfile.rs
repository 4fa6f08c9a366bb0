//! The file that holds our process id, for scripts that send signals, and against a second start.

use crate::sys;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// More is not read: a process id is shorter.
const READ_BYTES: u64 = 128;

/// Why we cannot have the file. All are fatal.
#[derive(Debug)]
pub enum PidfileError {
    /// It is that of a process that runs, or may run.
    InUse(PathBuf),
    /// It cannot be opened or made.
    Open(PathBuf, io::Error),
    /// It cannot be read.
    Read(PathBuf, io::Error),
    /// It cannot be written.
    Write(PathBuf, io::Error),
    /// It is out of date, but cannot be removed.
    Remove(io::Error),
}

impl fmt::Display for PidfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, path, error) = match self {
            Self::InUse(path) => {
                let path = path.display();
                return write!(f, "pidfile '{path}' exists, another instance running?");
            }
            Self::Remove(error) => {
                let why = sys::error_text(error);
                return write!(f, "could not remove stale pidfile: {why}");
            }
            Self::Open(path, error) => ("open", path, error),
            Self::Read(path, error) => ("read", path, error),
            Self::Write(path, error) => ("write", path, error),
        };
        write!(f, "could not {verb} pidfile '{}': {}", path.display(), sys::error_text(error))
    }
}

impl std::error::Error for PidfileError {}

/// Looks whether another process holds the file; removes what a dead one left.
pub fn check(path: &Path) -> Result<(), PidfileError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| PidfileError::Open(path.to_owned(), error))?,
    };
    let mut text = Vec::new();
    let read = file.take(READ_BYTES).read_to_end(&mut text);
    read.map_err(|error| PidfileError::Read(path.to_owned(), error))?;
    // Our own id is not another process: in a container we often get the same one again.
    let runs = |pid| !is_ours(pid) && sys::process_exists(pid);
    if process_named(&text).is_none_or(runs) {
        return Err(PidfileError::InUse(path.to_owned()));
    }
    log::info!("stale pidfile, removing");
    fs::remove_file(path).map_err(PidfileError::Remove)
}

/// The process id at the start of the text; `None` if that is none.
fn process_named(text: &[u8]) -> Option<i32> {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&text[..digits]).ok()?.parse().ok().filter(|pid| *pid > 0)
}

fn is_ours(pid: i32) -> bool {
    u32::try_from(pid) == Ok(std::process::id())
}

/// A file that we have written. It goes when this goes.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
}

impl Pidfile {
    /// Makes the file, which must not exist yet. It comes with its content or not at all: an
    /// empty one, left by a process that was killed just then, would stop every later start.
    pub fn write(path: &Path) -> Result<Self, PidfileError> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(draft);
        // One of ours that was killed may have had the same number.
        let _ = fs::remove_file(&draft);
        let failed_open = |error| PidfileError::Open(path.to_owned(), error);
        let written = write_new(&draft).map_err(|step| step.at(path));
        // Not `rename`, which would replace the file of somebody else.
        let linked = written.and_then(|()| fs::hard_link(&draft, path).map_err(failed_open));
        let _ = fs::remove_file(&draft);
        match linked {
            // A disk that knows no links.
            Err(PidfileError::Open(_, error)) if has_no_links(&error) => {
                write_new(path).map_err(|step| step.at(path))?;
            }
            other => other?,
        }
        Ok(Self { path: path.to_owned() })
    }
}

/// What failed in making a file.
enum Step {
    Open(io::Error),
    Write(io::Error),
}

impl Step {
    fn at(self, path: &Path) -> PidfileError {
        match self {
            Self::Open(error) => PidfileError::Open(path.to_owned(), error),
            Self::Write(error) => PidfileError::Write(path.to_owned(), error),
        }
    }
}

/// Writes our process id into a file that must not exist yet.
fn write_new(path: &Path) -> Result<(), Step> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o644).open(path);
    let mut file = opened.map_err(Step::Open)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(Step::Write)
}

fn has_no_links(error: &io::Error) -> bool {
    let errors = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS];
    error.raw_os_error().is_some_and(|code| errors.contains(&code))
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // If it has gone already, that is as well.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ringbouncer-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_pidfile_is_written_checked_and_removed() {
        let path = scratch("written.pid");
        check(&path).unwrap();
        let pidfile = Pidfile::write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        let exists = format!("could not open pidfile '{}': File exists", path.display());
        assert_eq!(Pidfile::write(&path).unwrap_err().to_string(), exists);
        drop(pidfile);
        assert!(!path.exists());
    }

    #[test]
    fn a_pidfile_that_cannot_be_made_leaves_no_draft() {
        let directory = scratch("directory");
        fs::create_dir(&directory).unwrap();
        let path = directory.join("pid");
        fs::write(&path, "1\n").unwrap();
        assert!(matches!(Pidfile::write(&path), Err(PidfileError::Open(..))));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        let error = Pidfile::write(&directory.join("no/pid")).unwrap_err().to_string();
        assert!(error.ends_with("/no/pid': No such file or directory"), "{error}");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_pidfile_of_another_process_is_respected() {
        let path = scratch("other.pid");
        fs::write(&path, format!("{}\n", std::os::unix::process::parent_id())).unwrap();
        let in_use = format!("pidfile '{}' exists, another instance running?", path.display());
        assert_eq!(check(&path).unwrap_err().to_string(), in_use);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_a_dead_process_left_is_removed() {
        let path = scratch("stale.pid");
        fs::write(&path, "2147483647\n").unwrap();
        check(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, format!("{}\n", std::process::id())).unwrap();
        check(&path).unwrap();
        assert!(!path.exists());
        for text in ["", "x", "0", "-1", "99999999999"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(check(&path), Err(PidfileError::InUse(_))), "{text:?}");
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_directory_is_no_pidfile() {
        let path = std::env::temp_dir();
        let message = format!("could not read pidfile '{}': Is a directory", path.display());
        assert_eq!(check(&path).unwrap_err().to_string(), message);
    }
}
