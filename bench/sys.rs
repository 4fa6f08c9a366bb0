//! The libc calls of the comparison, made safe: the only file here with `unsafe`.

#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// The CPU clock of another process: user and system time of all its threads, also of those that have ended.
///
/// Chosen over the files in `/proc`: `PID/stat` counts in ticks of 10 ms, and `PID/task/*/schedstat` forgets threads
/// that have ended and, for a thread that is running at the moment, lags by up to one timer tick. The kernel brings
/// this clock up to date as it is read, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut id: libc::clockid_t = 0;
        // SAFETY: `id` is a valid place for the result; the call has no other effect on our memory.
        match unsafe { libc::clock_getcpuclockid(pid_t(pid), &mut id) } {
            0 => Ok(CpuClock(id)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Fails when the process has gone.
    pub fn read(self) -> io::Result<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid place for the result.
        check(unsafe { libc::clock_gettime(self.0, &mut time) })?;
        let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
        let nanos = u32::try_from(time.tv_nsec).map_err(io::Error::other)?;
        Ok(Duration::new(seconds, nanos))
    }
}

/// Timer ticks in a second, the unit of the times in `/proc/PID/stat`.
pub fn ticks_per_second() -> f64 {
    // SAFETY: `sysconf` only takes a number and gives one.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

pub fn effective_uid() -> u32 {
    // SAFETY: always succeeds, takes nothing.
    unsafe { libc::geteuid() }
}

pub fn kill(pid: u32, signal: i32) {
    // SAFETY: plain numbers. A process that has gone is no error to us: gone is what we wanted.
    unsafe { libc::kill(pid_t(pid), signal) };
}

/// Whether this child of ours has ended; it is reaped if so.
pub fn try_reap(pid: u32) -> bool {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let reaped = unsafe { libc::waitpid(pid_t(pid), &mut status, libc::WNOHANG) };
    reaped != 0
}

/// Lets this process, and the children it starts from now on, open at least `wanted` files.
pub fn raise_open_files(wanted: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    if limit.rlim_cur >= wanted {
        return Ok(());
    }
    limit.rlim_cur = wanted;
    limit.rlim_max = limit.rlim_max.max(wanted);
    // SAFETY: `limit` is initialised and only read.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
}

/// Makes the kernel send `signal` to the child when the thread that starts it ends, so that even a comparison that is
/// killed outright leaves nothing behind. Children must therefore be started from the main thread.
pub fn end_with_parent(command: &mut Command, signal: i32) {
    // SAFETY: the closure runs between fork and exec and makes one system call, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || check(libc::prctl(libc::PR_SET_PDEATHSIG, signal)));
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn pid_t(pid: u32) -> libc::pid_t {
    libc::pid_t::try_from(pid).expect("the kernel gave us this pid as a pid_t")
}
