//! The socket options that users can set, for listeners, clients and servers over TCP.

use crate::config::settings::Settings;
use crate::sys::error_text;
use socket2::{SockRef, TcpKeepalive};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

/// A copy of those settings, to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    keepalive: bool,
    keepcnt: i32,
    keepidle: i32,
    keepintvl: i32,
    socket_buffer: i32,
    user_timeout: i32,
}

impl From<&Settings> for TcpOptions {
    fn from(settings: &Settings) -> Self {
        Self {
            keepalive: settings.tcp_keepalive.is_on(),
            keepcnt: settings.tcp_keepcnt,
            keepidle: settings.tcp_keepidle,
            keepintvl: settings.tcp_keepintvl,
            socket_buffer: settings.tcp_socket_buffer,
            user_timeout: settings.tcp_user_timeout,
        }
    }
}

/// The kernel refused an option. Values are not checked when they are set.
#[derive(Debug)]
pub struct Refused {
    call: &'static str,
    fd: RawFd,
    error: io::Error,
}

impl Refused {
    /// The kernel's error.
    pub fn into_error(self) -> io::Error {
        self.error
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}) failed: {}", self.call, self.fd, error_text(&self.error))
    }
}

impl TcpOptions {
    /// Sets them all on a socket; the first refusal ends it.
    pub fn apply(&self, socket: &impl AsFd) -> Result<(), Refused> {
        let fd = socket.as_fd().as_raw_fd();
        let socket = SockRef::from(socket);
        let refused = |call| move |error| Refused { call, fd, error };
        self.set_keepalive(&socket).map_err(refused("socket_set_keepalive"))?;
        if self.user_timeout != 0 {
            let milliseconds = positive(self.user_timeout);
            milliseconds
                .and_then(|ms| socket.set_tcp_user_timeout(Some(Duration::from_millis(ms))))
                .map_err(refused("setsockopt/TCP_USER_TIMEOUT"))?;
        }
        if self.socket_buffer != 0 {
            // The kernel takes an int and caps it; a negative one counts as very large.
            let bytes = self.socket_buffer as u32 as usize;
            socket.set_send_buffer_size(bytes).map_err(refused("setsockopt/SO_SNDBUF"))?;
            socket.set_recv_buffer_size(bytes).map_err(refused("setsockopt/SO_RCVBUF"))?;
        }
        socket.set_tcp_nodelay(true).map_err(refused("setsockopt/TCP_NODELAY"))
    }

    fn set_keepalive(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if !self.keepalive {
            return socket.set_keepalive(false);
        }
        if self.keepidle == 0 && self.keepintvl == 0 && self.keepcnt <= 0 {
            return socket.set_keepalive(true);
        }
        let mut keepalive = TcpKeepalive::new();
        if self.keepidle != 0 {
            keepalive = keepalive.with_time(Duration::from_secs(positive(self.keepidle)?));
        }
        if self.keepintvl != 0 {
            keepalive = keepalive.with_interval(Duration::from_secs(positive(self.keepintvl)?));
        }
        if let Ok(retries @ 1..) = u32::try_from(self.keepcnt) {
            keepalive = keepalive.with_retries(retries);
        }
        socket.set_tcp_keepalive(&keepalive)
    }
}

/// The kernel would refuse a negative number; the types on the way there cannot even say it.
fn positive(value: i32) -> io::Result<u64> {
    u64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::Switch;
    use std::net::TcpListener;

    fn settings() -> Settings {
        Settings {
            tcp_keepidle: 30,
            tcp_keepintvl: 4,
            tcp_keepcnt: 2,
            tcp_user_timeout: 1500,
            tcp_socket_buffer: 20_000,
            ..Settings::default()
        }
    }

    #[test]
    fn options_reach_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpOptions::from(&settings()).apply(&listener).unwrap();
        let socket = SockRef::from(&listener);
        assert!(socket.keepalive().unwrap());
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(4));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 2);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(socket.send_buffer_size().unwrap(), 40_000);
    }

    #[test]
    fn keepalive_can_be_off() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings { tcp_keepalive: Switch::from(false), ..settings() };
        TcpOptions::from(&settings).apply(&listener).unwrap();
        assert!(!SockRef::from(&listener).keepalive().unwrap());
    }

    #[test]
    fn a_refused_option_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = listener.as_raw_fd();
        let refusal = |settings: &Settings| {
            TcpOptions::from(settings).apply(&listener).unwrap_err().to_string()
        };
        for keepidle in [-1, 1_000_000] {
            let settings = Settings { tcp_keepidle: keepidle, ..Settings::default() };
            let words = format!("socket_set_keepalive({fd}) failed: Invalid argument");
            assert_eq!(refusal(&settings), words);
        }
        let settings = Settings { tcp_user_timeout: -1, ..Settings::default() };
        let words = format!("setsockopt/TCP_USER_TIMEOUT({fd}) failed: Invalid argument");
        assert_eq!(refusal(&settings), words);
    }
}
