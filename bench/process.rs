//! Child processes that never outlive the comparison.
//!
//! Law: every child stands in `KEPT` from before it runs until it is reaped, and so does the temporary directory. Three
//! things clear it: dropping a [`Process`], a signal (the watcher thread of [`stop_all_on_signals`]), and, should we be
//! killed outright, the kernel (`sys::end_with_parent`).

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use signal_hook_mio::v1_0::Signals;

use crate::failure::{Context, Failure, Outcome};
use crate::sys;

/// How long a process may take to end after it has been asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How often a condition that the kernel does not report to us is looked at again.
pub const LOOK_AGAIN: Duration = Duration::from_millis(5);

struct Kept {
    children: Vec<(u32, i32)>,
    directory: Option<PathBuf>,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { children: Vec::new(), directory: None });

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running child. Dropping it stops it.
pub struct Process {
    pub name: String,
    child: Child,
    log: Option<PathBuf>,
    stop_signal: i32,
}

impl Process {
    /// Starts `command`, whose standard streams the caller has arranged; `log` is where its words end up, if anywhere.
    pub fn start(
        name: &str,
        command: &mut Command,
        log: Option<PathBuf>,
        stop_signal: i32,
    ) -> Outcome<Process> {
        // A group of its own: Ctrl-C on the terminal is for us alone, who then stop the children in good order.
        command.process_group(0);
        sys::end_with_parent(command, stop_signal);
        let mut kept = kept();
        let child = command.spawn().context(|| format!("cannot start {name}"))?;
        kept.children.push((child.id(), stop_signal));
        Ok(Process { name: name.to_owned(), child, log, stop_signal })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// An error that quotes the end of its log, if the process has ended.
    pub fn expect_alive(&mut self) -> Outcome<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                Err(Failure::new(format!("{} has ended ({status}){}", self.name, self.log_tail())))
            }
        }
    }

    /// Awaits its end; a process that is still there after `patience` is stopped, and that is an error.
    pub fn wait(&mut self, patience: Duration) -> Outcome<ExitStatus> {
        match self.wait_until(Instant::now() + patience)? {
            Some(status) => Ok(status),
            None => Err(Failure::new(format!("{} has not ended in {patience:?}", self.name))),
        }
    }

    pub fn signal(&self, signal: i32) {
        sys::kill(self.pid(), signal);
    }

    pub fn log_tail(&self) -> String {
        let text = self.log.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            return "; it has logged nothing".to_owned();
        }
        format!("; the end of its log:\n  {}", lines[lines.len().saturating_sub(15)..].join("\n  "))
    }

    fn wait_until(&mut self, deadline: Instant) -> Outcome<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Taken first: once the watcher thread has begun to stop everything, we wait here for the end.
        let mut kept = kept();
        let ended = self.child.try_wait();
        if !matches!(ended, Ok(Some(_))) {
            self.signal(self.stop_signal);
            if !matches!(self.wait_until(Instant::now() + STOP_PATIENCE), Ok(Some(_))) {
                eprintln!("{} does not stop; killing it", self.name);
                self.signal(libc::SIGKILL);
                let _ = self.child.wait();
            }
        }
        let pid = self.pid();
        kept.children.retain(|&(child, _)| child != pid);
    }
}

/// A directory that is removed when dropped.
pub struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    pub fn create() -> Outcome<Self> {
        let path = std::env::temp_dir().join(format!("ringbouncer-bench-{}", std::process::id()));
        let mut kept = kept();
        fs::create_dir(&path).context(|| format!("cannot create {}", path.display()))?;
        kept.directory = Some(path.clone());
        Ok(TemporaryDirectory(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let mut kept = kept();
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
        kept.directory = None;
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP stop every child, remove the temporary directory and end this process.
pub fn stop_all_on_signals() -> Outcome<()> {
    let mut signals = Signals::new([libc::SIGINT, libc::SIGTERM, libc::SIGHUP])?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut signals, Token(0), Interest::READABLE)?;
    thread::spawn(move || {
        let mut events = Events::with_capacity(1);
        loop {
            let _ = poll.poll(&mut events, None);
            if let Some(signal) = signals.pending().next() {
                eprintln!("\nsignal {signal}: stopping everything");
                stop_all();
                std::process::exit(128 + signal);
            }
        }
    });
    Ok(())
}

/// Holds the lock to the end of the process, so that the main thread can neither start nor stop a child meanwhile.
fn stop_all() {
    let mut kept = std::mem::ManuallyDrop::new(kept());
    let mut children = std::mem::take(&mut kept.children);
    for &(pid, signal) in &children {
        sys::kill(pid, signal);
    }
    let deadline = Instant::now() + STOP_PATIENCE;
    while !children.is_empty() {
        children.retain(|&(pid, _)| !sys::try_reap(pid));
        if Instant::now() >= deadline {
            children.iter().for_each(|&(pid, _)| sys::kill(pid, libc::SIGKILL));
        }
        thread::sleep(LOOK_AGAIN);
    }
    if let Some(directory) = kept.directory.take() {
        let _ = fs::remove_dir_all(directory);
    }
}
