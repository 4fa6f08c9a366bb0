//! Datagrams to those who keep watch on this machine: syslog, the journal, the service manager.
//!
//! libc could talk to syslog, too, but waits for it: a daemon that has stopped reading would stop
//! every client. Here nobody is waited for, and what is not taken is lost.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A socket to send to one place.
#[derive(Debug)]
pub struct Datagrams {
    socket: UnixDatagram,
    to: SocketAddr,
}

impl Datagrams {
    /// To this path, or with a leading `@` to this abstract name. Whoever is to be there may come
    /// later.
    pub fn to(place: &str) -> io::Result<Self> {
        let to = match place.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(place)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, to })
    }

    /// Sends one, if it is taken at once.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_to_addr(bytes, &self.to).map(|_| ())
    }
}
