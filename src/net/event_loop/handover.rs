//! Sockets that go to another process, and those that come from one.

use super::EventLoop;
use crate::engine::Engine;
use crate::engine::io::Input;
use crate::keys::{ClientKey, Conn};
use crate::net::bind::ListenError;
use crate::net::readiness::Latches;
use crate::net::sockets::Stream;
use crate::sys::{self, descriptors, uninterrupted};
use mio::net::{TcpStream, UnixStream};
use socket2::{SockRef, Socket};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// The next process takes what it has asked for at once, or it is none.
const PATIENCE: Duration = Duration::from_secs(10);

impl EventLoop<Engine> {
    /// Sends rows to a client of the console, each in a message of its own and with a descriptor.
    // As PgBouncer: everything stands still meanwhile. (It does so anyway: we are suspended.)
    pub fn hand_over(
        &mut self,
        client: ClientKey,
        head: &[u8],
        rows: &[(i32, Vec<u8>)],
    ) -> io::Result<()> {
        let conn = Conn::Client(client);
        let no_socket = || io::Error::from(io::ErrorKind::NotConnected);
        let socket = self.sockets.get_mut(conn).ok_or_else(no_socket)?;
        let Stream::Unix(stream) = &mut socket.stream else {
            return Err(no_socket());
        };
        SockRef::from(&*stream).set_write_timeout(Some(PATIENCE))?;
        SockRef::from(&*stream).set_nonblocking(false)?;
        let done = send_rows((conn, stream), head, rows, (&mut self.engine, self.now));
        // Whatever has come of it: from now on nobody waits for this one again.
        SockRef::from(&*stream).set_nonblocking(true)?;
        SockRef::from(&*stream).set_write_timeout(None)?;
        done
    }

    /// Takes a listener of another process.
    pub fn adopt_listener(&mut self, descriptor: OwnedFd) -> Result<(), ListenError> {
        self.listeners.adopt(descriptor, self.engine.settings(), self.poll.registry())
    }

    /// Takes the socket of a connection that the engine knows already.
    pub fn adopt(&mut self, conn: Conn, descriptor: OwnedFd) -> io::Result<()> {
        let socket = Socket::from(descriptor);
        socket.set_nonblocking(true)?;
        let mut stream = match socket.local_addr()?.is_unix() {
            true => Stream::Unix(UnixStream::from_std(socket.into())),
            false => Stream::Tcp(TcpStream::from_std(socket.into())),
        };
        if let Stream::Tcp(stream) = &stream {
            // The other process may have waited for much at once (`net/bulk`).
            sys::set_receive_low_water(stream.as_fd(), 1)?;
        }
        stream.register(self.poll.registry(), conn)?;
        let mut latches = Latches::connected();
        latches.expect_data();
        self.sockets.insert(conn, stream, latches);
        Ok(())
    }
}

fn send_rows(
    (conn, stream): (Conn, &mut UnixStream),
    head: &[u8],
    rows: &[(i32, Vec<u8>)],
    (engine, now): (&mut Engine, Instant),
) -> io::Result<()> {
    // What it has been told before comes before.
    loop {
        let mut slices = [IoSlice::new(&[])];
        if engine.outgoing(conn, &mut slices) == 0 {
            break;
        }
        let bytes = stream.write(&slices[0])?;
        engine.handle(Input::Sent { conn, bytes }, now);
    }
    stream.write_all(head)?;
    for (descriptor, row) in rows {
        let sent = uninterrupted(|| descriptors::send(stream.as_fd(), row, *descriptor))?;
        stream.write_all(&row[sent..])?;
    }
    Ok(())
}
