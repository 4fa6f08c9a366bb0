//! Every libc call, made safe: the one place where `unsafe` is allowed.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::sync::Once;
use std::time::{SystemTime, UNIX_EPOCH};

/// The system's words for an error, without the number that Rust adds.
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(code) => text
            .trim_end_matches(&format!(" (os error {code})"))
            .to_owned(),
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
        unsafe { CStr::from_ptr(parts.tm_zone) }
            .to_string_lossy()
            .into_owned()
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

/// Whether a process of this id runs; one that we may not signal does.
pub fn process_exists(pid: i32) -> bool {
    // SAFETY: kill takes two numbers, and signal 0 only asks.
    let sent = unsafe { libc::kill(pid, 0) } == 0;
    sent || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
