//! Every libc call that no safe crate offers, made safe: the one place where `unsafe` is allowed.
//! Each block stands under a `// SAFETY:` line.
#![allow(unsafe_code)]

pub mod descriptors;
#[cfg(feature = "pam")]
pub mod pam;
pub mod together;

use std::ffi::{CStr, CString};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Once;
use std::time::{SystemTime, UNIX_EPOCH};

/// Room for what the system knows of a user or group.
const NAME_BUFFER_BYTES: usize = 64 * 1024;

/// The system's words for an error, without the number that Rust adds.
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(code) => text.trim_end_matches(&format!(" (os error {code})")).to_owned(),
        None => text,
    }
}

/// A moment on the clocks of this place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Like 2026.
    pub year: i32,
    /// 1 to 12.
    pub month: i32,
    /// 1 to 31.
    pub day: i32,
    /// 0 to 23.
    pub hour: i32,
    /// 0 to 59.
    pub minute: i32,
    /// 0 to 60.
    pub second: i32,
    /// 0 to 999.
    pub millisecond: u32,
    /// The zone's abbreviation, like `CET`.
    pub zone: String,
}

impl LocalTime {
    /// `2026-01-31 23:59:59 CET`
    pub fn to_seconds(&self) -> String {
        let Self { year, month, day, hour, minute, second, zone, .. } = self;
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} {zone}")
    }
}

/// What local clocks say at this moment.
pub fn local_time(at: SystemTime) -> LocalTime {
    static READ_ZONE: Once = Once::new();
    READ_ZONE.call_once(|| {
        unsafe extern "C" {
            fn tzset();
        }
        // SAFETY: tzset has no arguments; `Once` keeps it from running twice at a time.
        unsafe { tzset() }
    });
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or(libc::time_t::MAX);
    // SAFETY: all-zero bytes are a valid `tm`: numbers and a null pointer.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type; the result is one of them or null.
    let known = unsafe { !libc::localtime_r(&seconds, &mut parts).is_null() };
    let zone = if known && !parts.tm_zone.is_null() {
        // SAFETY: localtime_r lets `tm_zone` point to a string that lives as long as the zone is
        // not read again, and only the `Once` above, which is over, reads it.
        unsafe { CStr::from_ptr(parts.tm_zone) }.to_string_lossy().into_owned()
    } else {
        "UTC".to_owned()
    };
    LocalTime {
        year: parts.tm_year.saturating_add(1900),
        month: parts.tm_mon + 1,
        day: parts.tm_mday,
        hour: parts.tm_hour,
        minute: parts.tm_min,
        second: parts.tm_sec,
        millisecond: since.subsec_millis(),
        zone,
    }
}

/// Has the allocator take blocks of this size and larger from the system, and give them back to it
/// when they are freed. Without this, rings that were needed once stay ours for ever.
pub fn return_large_blocks(bytes: usize) {
    let threshold = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: mallopt takes two numbers; whether it knows the first one makes no difference to us.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, threshold) };
}

/// The name of this machine; empty if it has none.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the pointer and the length describe `name`, of which the last byte is kept for a NUL.
    let result = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let name = CStr::from_bytes_until_nul(&name).ok().filter(|_| result == 0);
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether root runs us.
pub fn is_root() -> bool {
    // SAFETY: getuid has no arguments and cannot fail.
    unsafe { libc::getuid() == 0 }
}

/// A user of this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's number.
    pub uid: u32,
    /// The number of the user's own group.
    pub gid: u32,
}

/// The user of this name; `None` if there is no such user.
pub fn account(name: &str) -> Option<Account> {
    let name = CString::new(name).ok()?;
    let mut buffer: Vec<libc::c_char> = vec![0; NAME_BUFFER_BYTES];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to locals that live through the call, and the length is the
    // buffer's. The library fills `entry` before it sets `found`.
    let result = unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if result != 0 || found.is_null() {
        return None;
    }
    // SAFETY: `found` is not null, hence `entry` has been filled; the numbers need no pointer.
    let entry = unsafe { entry.assume_init_ref() };
    Some(Account { uid: entry.pw_uid, gid: entry.pw_gid })
}

/// The name of the user with this number, if there is one.
pub fn user_name(uid: u32) -> Option<String> {
    let mut buffer: Vec<libc::c_char> = vec![0; NAME_BUFFER_BYTES];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to locals that live through the call, and the length is the
    // buffer's. The library fills `entry` before it sets `found`.
    let result = unsafe {
        libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found)
    };
    if result != 0 || found.is_null() {
        return None;
    }
    // SAFETY: `found` is not null, hence `entry` has been filled, and its name is a C string that
    // lies in `buffer`, which is still there.
    let name = unsafe { CStr::from_ptr(entry.assume_init_ref().pw_name) };
    name.to_str().ok().map(str::to_owned)
}

/// As whom we act.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Leaves all supplementary groups but this one.
pub fn set_groups(gid: u32) -> io::Result<()> {
    // SAFETY: the pointer is to one number that lives through the call.
    checked(unsafe { libc::setgroups(1, &raw const gid) })
}

/// Takes this group for good.
pub fn set_group(gid: u32) -> io::Result<()> {
    // SAFETY: setgid takes a number.
    checked(unsafe { libc::setgid(gid) })
}

/// Becomes this user for good.
pub fn set_user(uid: u32) -> io::Result<()> {
    // SAFETY: setuid takes a number.
    checked(unsafe { libc::setuid(uid) })
}

/// Which of the two processes that a fork leaves this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that was there before.
    Parent,
    /// The new one.
    Child,
}

/// Makes two processes of this one. For start-up, as long as there is one thread: of several, the
/// child would have but one, and the locks that the others held.
pub fn fork() -> io::Result<Side> {
    // SAFETY: fork has no arguments; with a single thread the child may do whatever we may.
    match unsafe { libc::fork() } {
        0 => Ok(Side::Child),
        pid => checked(pid).map(|()| Side::Parent),
    }
}

/// Leaves the session, and with it the terminal.
pub fn leave_session() -> io::Result<()> {
    // SAFETY: setsid has no arguments.
    checked(unsafe { libc::setsid() })
}

/// Makes stdin, stdout and stderr this file.
pub fn redirect_standard_streams(file: BorrowedFd<'_>) -> io::Result<()> {
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: dup2 takes two numbers; nobody owns the standard streams but the process.
        checked(unsafe { libc::dup2(file.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// How many files we may hold open now, and at most after asking for more.
pub fn open_files_limit() -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local that lives through the call.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Takes a descriptor that was open when this process began. For start-up, once for each.
pub fn adopt(descriptor: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes numbers, and only asks here.
    checked(unsafe { libc::fcntl(descriptor, libc::F_GETFD) })?;
    // SAFETY: it is open, and since we did not open it, nobody in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// From now on this thread lets others go first: what it does is not urgent. It has less of the
/// processor than they, and that in short slices, so that nobody who wakes up waits for the end of
/// a long one (Linux before 6.12 knows no slices and does not mind).
pub fn yield_to_others() -> io::Result<()> {
    const STEPS: i32 = 5;
    const LAST: i32 = 19;
    const SLICE_NANOSECONDS: u64 = 100_000;
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    // SAFETY: plain numbers, for which zeros are a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let at = &raw mut attributes;
    // SAFETY: 0 is the calling thread; the kernel writes no more than SIZE bytes.
    checked(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, at, SIZE, 0) })?;
    attributes.sched_nice = (attributes.sched_nice + STEPS).min(LAST);
    attributes.sched_runtime = SLICE_NANOSECONDS;
    // SAFETY: as above, and it reads no more than that.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// The clock that never jumps.
pub fn monotonic_microseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let whole = |number: i64| u64::try_from(number).unwrap_or(0);
    whole(time.tv_sec) * 1_000_000 + whole(time.tv_nsec) / 1000
}

fn checked(result: impl Into<i64>) -> io::Result<()> {
    let result: i64 = result.into();
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a process of this id runs; one that we may not signal does.
pub fn process_exists(pid: i32) -> bool {
    // SAFETY: kill takes two numbers, and signal 0 only asks.
    let sent = unsafe { libc::kill(pid, 0) } == 0;
    sent || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Fills `bytes` from the kernel's generator of unpredictable numbers.
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: the pointer and the length describe `rest`, which lives through the call.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// The process and the user at the other end of a Unix socket, as they were when it connected.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that live through the call, and `length` is the size of
    // what the first one points to; any bit pattern is a valid `ucred`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((credentials.pid.unsigned_abs(), credentials.uid))
}

/// Makes a call again for as long as only a signal came between.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Lets a listener report a connection only when its first bytes are there, waiting so many
/// seconds for them; 0 switches that off.
pub fn set_defer_accept(listener: BorrowedFd<'_>, seconds: i32) -> io::Result<()> {
    set_option(listener, (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT), seconds)
}

/// Lets a socket become readable only when so many bytes have come in, or the end.
pub fn set_receive_low_water(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_option(socket, (libc::SOL_SOCKET, libc::SO_RCVLOWAT), bytes)
}

/// The flags for a write behind which another will follow soon.
pub const MORE_TO_COME: i32 = libc::MSG_MORE | libc::MSG_NOSIGNAL;

fn set_option(socket: BorrowedFd<'_>, (level, name): (i32, i32), value: i32) -> io::Result<()> {
    // SAFETY: the value is an int that lives through the call, and the length is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of a group of this name; `None` if there is no such group.
pub fn group_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer: Vec<libc::c_char> = vec![0; NAME_BUFFER_BYTES];
    let mut group = std::mem::MaybeUninit::<libc::group>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to locals that live through the call, and the length is the
    // buffer's. The library fills `group` before it sets `found`.
    let result = unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            group.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if result != 0 || found.is_null() {
        return None;
    }
    // SAFETY: `found` is not null, hence `group` has been filled; the number needs no pointer.
    Some(unsafe { group.assume_init().gr_gid })
}

/// Why a name could not be resolved: the library's words and its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveError {
    /// As `gai_strerror` puts it.
    pub words: String,
    /// `EAI_…`, a negative number on Linux.
    pub code: i32,
}

/// Asks the system's resolver for the addresses to listen on. It blocks: for start-up only.
///
/// The standard library has this too, but hides the code, which is part of a log line.
pub fn addresses_to_bind(host: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
    let bad_name =
        |_| ResolveError { words: "Name or service not known".to_string(), code: libc::EAI_NONAME };
    let host = CString::new(host).map_err(bad_name)?;
    let service = CString::new(port.to_string()).map_err(bad_name)?;
    // SAFETY: all fields of this C structure may be zero; pointers are then null.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_flags = libc::AI_PASSIVE;
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut list = std::ptr::null_mut();
    // SAFETY: both strings end in a zero byte, and all pointers are to locals.
    let code = unsafe {
        libc::getaddrinfo(host.as_ptr(), service.as_ptr(), &raw const hints, &raw mut list)
    };
    if code != 0 {
        // SAFETY: the library returns a pointer to a constant string for every code.
        let words = unsafe { CStr::from_ptr(libc::gai_strerror(code)) };
        return Err(ResolveError { words: words.to_string_lossy().into_owned(), code });
    }
    let mut addresses = Vec::new();
    let mut next = list;
    // SAFETY: the call succeeded, so `list` is a chain of entries that ends in null and stays
    // ours until it is freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        addresses.extend(socket_address(entry));
        next = entry.ai_next;
    }
    // SAFETY: `list` came from `getaddrinfo` and no reference into it is left.
    unsafe { libc::freeaddrinfo(list) };
    Ok(addresses)
}

fn socket_address(entry: &libc::addrinfo) -> Option<SocketAddr> {
    let length = entry.ai_addrlen as usize;
    match entry.ai_family {
        libc::AF_INET if length >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: family and length say what the pointer points to; it may be unaligned.
            let address = unsafe { entry.ai_addr.cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(address.sin_port))))
        }
        libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above.
            let address = unsafe { entry.ai_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            let port = u16::from_be(address.sin6_port);
            Some(SocketAddrV6::new(ip, port, 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Lets this process hold only so many open files, to test what happens then.
#[cfg(test)]
pub fn limit_open_files(files: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
    // SAFETY: the pointer is to a local that lives through the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn errors_are_told_without_numbers() {
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(error_text(&error), "No such file or directory");
        assert_eq!(error_text(&io::Error::other("odd")), "odd");
    }

    #[test]
    fn local_time_has_a_zone_and_milliseconds() {
        let time = local_time(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123));
        assert_eq!((time.year, time.month, time.millisecond), (2023, 11, 123));
        assert!(!time.zone.is_empty());
    }

    #[test]
    fn our_own_process_exists() {
        assert!(process_exists(i32::try_from(std::process::id()).unwrap()));
        assert!(!process_exists(i32::MAX));
    }

    #[test]
    fn random_bytes_differ() {
        let (mut one, mut other) = ([0; 32], [0; 32]);
        fill_random(&mut one).unwrap();
        fill_random(&mut other).unwrap();
        assert_ne!(one, other);
    }

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (here, _there) = std::os::unix::net::UnixStream::pair().unwrap();
        let (pid, _uid) = peer_credentials(here.as_fd()).unwrap();
        assert_eq!(pid, std::process::id());
    }

    #[test]
    fn literals_resolve_and_nonsense_does_not() {
        let v4 = addresses_to_bind("127.0.0.1", 6432).unwrap();
        assert_eq!(v4, ["127.0.0.1:6432".parse().unwrap()]);
        let v6 = addresses_to_bind("::1", 6432).unwrap();
        assert_eq!(v6, ["[::1]:6432".parse().unwrap()]);
        let error = addresses_to_bind("127.0.0.1 ::1", 6432).unwrap_err();
        assert_eq!(error.code, libc::EAI_NONAME);
        assert_eq!(error.words, "Name or service not known");
    }

    #[test]
    fn the_user_root_is_number_zero() {
        assert_eq!(account("root"), Some(Account { uid: 0, gid: 0 }));
        assert_eq!(account("no such user"), None);
        assert_eq!(account("nul\0"), None);
    }

    #[test]
    fn some_files_may_be_open() {
        let (soft, hard) = open_files_limit().unwrap();
        assert!(0 < soft && soft <= hard);
    }

    #[test]
    fn the_group_root_is_number_zero() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no such group"), None);
    }
}
