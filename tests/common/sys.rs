//! The few system calls that `std` does not offer; the only `unsafe` of the tests.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Who we are.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

/// Waits for the file's lock, alone or shared; it is gone with the file descriptor.
pub fn lock(file: &File, exclusive: bool) {
    let operation = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: the descriptor is open as long as `file` is borrowed.
    let result = unsafe { libc::flock(file.as_raw_fd(), operation) };
    assert_eq!(result, 0, "flock: {}", std::io::Error::last_os_error());
}

/// Sends a signal to one process.
pub fn kill(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).expect("a pid");
    assert!(pid > 1);
    // SAFETY: plain integers; the caller names a process it started.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "kill {pid}: {}", std::io::Error::last_os_error());
}

/// The child dies with the thread that starts it, so a killed test leaves no pooler behind.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches nothing but the child's own flags.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// The child gets this descriptor as number 3, as from a service manager. Number 3 must be in use
/// here until the child has been started, so that nothing else of the child's gets it.
pub fn pass_as_third(command: &mut Command, descriptor: RawFd) {
    assert!(descriptor > 3, "the child's own copy of it must not be closed on exec");
    // SAFETY: dup2 is async-signal-safe and takes two numbers.
    unsafe {
        command.pre_exec(move || match libc::dup2(descriptor, 3) {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Raises the soft limit of open files to the hard one and returns it. Children inherit it.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
    limit.rlim_cur
}
