//! The shell: sockets, clock and randomness around the engine, deciding nothing.
//!
//! ```text
//!   listen ──▶ sockets ◀── connect        token      whose event it is
//!                │ ▲                      readiness  what is known of a socket
//!         fill   ▼ │  drain               options    what users may set on one
//!               pump ◀──▶ heart (engine)  helper     what may block, elsewhere; dns: names
//!            dispatch: many writes at once; secured: the same through TLS
//!                ▲                        signals    the operator's wishes
//!           event_loop: one turn after the other; inherit: sockets handed to us
//!           outside: what the console asks of all this; metrics: the door for monitoring
//! ```

pub mod bind;
mod bulk;
pub mod connect;
mod dispatch;
pub mod dns;
pub mod event_loop;
pub mod heart;
pub mod helper;
pub mod inherit;
pub mod listen;
pub mod metrics;
pub mod options;
pub mod oracles;
pub mod outside;
pub mod pump;
pub mod readiness;
pub mod secrets;
mod secured;
pub mod signals;
pub mod sockets;
pub mod token;

#[cfg(test)]
mod tests;

pub use event_loop::{EventLoop, Flow};
pub use heart::Heart;
pub use signals::Signal;

use socket2::SockAddr;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The longest path that fits into a Unix socket's address.
const MAX_UNIX_PATH_BYTES: usize = 107;

/// The socket file for a port in a directory, or with a leading `@` the abstract name.
// As PgBouncer: a path that is too long is cut without a word.
pub fn unix_socket_path(directory: &str, port: i32) -> PathBuf {
    let mut path = format!("{directory}/.s.PGSQL.{port}").into_bytes();
    path.truncate(MAX_UNIX_PATH_BYTES);
    PathBuf::from(OsStr::from_bytes(&path))
}

/// Whether the path names no file.
pub fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_bytes().first() == Some(&b'@')
}

/// A path as the kernel wants it: an abstract name starts with a zero byte instead of `@`.
fn unix_address(path: &Path) -> io::Result<SockAddr> {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    if is_abstract(path) {
        bytes[0] = 0;
    }
    bytes.truncate(MAX_UNIX_PATH_BYTES);
    SockAddr::unix(OsStr::from_bytes(&bytes))
}
