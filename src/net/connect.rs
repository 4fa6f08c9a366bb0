//! Opens connections to servers without waiting for them.

use super::heart::Heart;
use super::options::TcpOptions;
use super::sockets::{Socket, Stream};
use super::unix_address;
use crate::engine::io::{Input, ServerAddress};
use crate::keys::ServerKey;
use mio::net::{TcpStream, UnixStream};
use socket2::{Domain, SockAddr, Type};
use std::io;
use std::time::Instant;

/// How far a connect got at once.
#[derive(Debug)]
pub struct Started {
    /// The socket.
    pub stream: Stream,
    /// Whether it is connected already, as Unix sockets are.
    pub is_connected: bool,
}

/// Opens a socket and starts to connect it.
pub fn start(to: &ServerAddress, options: &TcpOptions) -> io::Result<Started> {
    let (domain, address) = match to {
        ServerAddress::Tcp(address) => (Domain::for_address(*address), SockAddr::from(*address)),
        ServerAddress::Unix(path) => (Domain::UNIX, unix_address(path)?),
    };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new_raw(domain, kind, None)?;
    if domain != Domain::UNIX {
        options.apply(&socket).map_err(|refused| {
            log::warn!("{refused}");
            refused.into_error()
        })?;
    }
    let is_connected = match socket.connect(&address) {
        Ok(()) => true,
        Err(error) if is_under_way(&error) => false,
        Err(error) => return Err(error),
    };
    let stream = if domain == Domain::UNIX {
        Stream::Unix(UnixStream::from_std(socket.into()))
    } else {
        Stream::Tcp(TcpStream::from_std(socket.into()))
    };
    Ok(Started { stream, is_connected })
}

/// An interrupted connect goes on in the background, as one that would block.
fn is_under_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR))
}

/// An event came for a socket that was being connected: tells the engine what became of it.
pub fn finish<E: Heart>(server: ServerKey, socket: &mut Socket, engine: &mut E, now: Instant) {
    match socket.stream.connect_result() {
        Some(Ok(())) => {
            socket.latches.now_connected();
            let local = socket.stream.local_addr();
            engine.handle(Input::Connected { server, local }, now);
        }
        Some(Err(_)) => engine.handle(Input::ConnectFailed { server, error: None }, now),
        None => socket.latches.short_write(),
    }
}
