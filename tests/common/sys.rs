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
    assert!(kill_if_there(pid, signal), "kill {pid}: it has gone");
}

/// The same, if that process is still there. Whether it is.
pub fn kill_if_there(pid: u32, signal: i32) -> bool {
    let pid = i32::try_from(pid).expect("a pid");
    assert!(pid > 1);
    // SAFETY: plain integers; the caller names a process it started.
    let result = unsafe { libc::kill(pid, signal) };
    let error = std::io::Error::last_os_error();
    assert!(result == 0 || error.raw_os_error() == Some(libc::ESRCH), "kill {pid}: {error}");
    result == 0
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

/// This thread, and no other, is this user from now on.
pub fn become_user(uid: u32) {
    // SAFETY: three numbers. The kernel knows a user for each thread; it is libc that changes all.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    assert_eq!(result, 0, "setresuid: {}", std::io::Error::last_os_error());
}

/// In the child this system call fails with this error number, as in a sandbox, or with a kernel that
/// has no such call.
pub fn deny(command: &mut Command, call: libc::c_long, error: i32) {
    let instruction = |code: u32, k: u32, otherwise: u8| libc::sock_filter {
        code: u16::try_from(code).expect("a code"),
        jt: 0,
        jf: otherwise,
        k,
    };
    let call = u32::try_from(call).expect("a number");
    let error = libc::SECCOMP_RET_ERRNO | error.cast_unsigned();
    // SAFETY: prctl is async-signal-safe, and the filter stays where it is until the kernel has read
    // it.
    unsafe {
        command.pre_exec(move || {
            let mut filter = [
                instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
                instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call, 1),
                instruction(libc::BPF_RET | libc::BPF_K, error, 0),
                instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
            ];
            let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
            let mode = libc::SECCOMP_MODE_FILTER;
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) != 0
            {
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
