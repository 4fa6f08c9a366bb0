//! Listeners that a service manager has opened for us (socket activation): it hands them over as
//! file descriptors from 3 on, says how many in `LISTEN_FDS`, and for whom in `LISTEN_PID`.

use super::bind::{ListenError, set_defer_accept};
use super::options::TcpOptions;
use crate::config::settings::{self, Settings};
use crate::sys;
use mio::net::{TcpListener, UnixListener};
use socket2::Socket;
use std::env;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// The first descriptor behind the standard streams.
const FIRST: i32 = 3;
/// More are not meant seriously.
const MOST: i32 = 1024;

/// A listener that was handed to us. Its file, if it has one, is not ours to remove.
pub enum Inherited {
    /// One for TCP.
    Tcp(TcpListener),
    /// One for Unix sockets.
    Unix(UnixListener),
}

/// The descriptors that are meant for this very process: not for a parent that went to the
/// background.
pub fn descriptors() -> Range<i32> {
    let number = |name: &str| env::var(name).ok()?.parse::<i64>().ok();
    let is_ours = number("LISTEN_PID") == Some(i64::from(std::process::id()));
    let count = number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0);
    let count = i32::try_from(count.clamp(0, i64::from(MOST))).unwrap_or(0);
    FIRST..FIRST + count
}

/// Takes all that were handed to us. What the settings say of addresses does not count then.
pub fn listeners(settings: &Settings) -> Result<Vec<Inherited>, ListenError> {
    let descriptors = descriptors();
    if descriptors.is_empty() {
        return Ok(Vec::new());
    }
    if !settings.listen_addr.as_str().is_empty() {
        log::warn!("sockets passed from service manager, cf_listen_addr ignored");
    }
    let usual = settings::find("unix_socket_dir").and_then(|setting| setting.default);
    let directory = &settings.unix_socket_dir;
    if !directory.is_empty() && Some(directory.as_str()) != usual {
        log::warn!("sockets passed from service manager, cf_unix_socket_dir ignored");
    }
    descriptors
        .map(|descriptor| {
            log::info!("socket passed from service manager (fd {descriptor})");
            let adopted = sys::adopt(descriptor);
            adopted.and_then(|descriptor| listener(descriptor, settings)).map_err(|error| {
                log::error!("fd {descriptor}: {}", sys::error_text(&error));
                ListenError::Inherited(descriptor)
            })
        })
        .collect()
}

/// Takes one that somebody else has opened.
pub fn listener(descriptor: OwnedFd, settings: &Settings) -> io::Result<Inherited> {
    let socket = Socket::from(descriptor);
    socket.set_cloexec(true)?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    if !socket.is_listener()? {
        return Err(io::Error::other("not a listening socket"));
    }
    if address.is_unix() {
        return Ok(Inherited::Unix(UnixListener::from_std(socket.into())));
    }
    if address.as_socket().is_none() {
        return Err(io::Error::other("neither TCP nor Unix"));
    }
    if let Err(refused) = TcpOptions::from(settings).apply(&socket) {
        log::warn!("{refused}");
        return Err(refused.into_error());
    }
    set_defer_accept(&socket, settings.tcp_defer_accept.is_on());
    Ok(Inherited::Tcp(TcpListener::from_std(socket.into())))
}
