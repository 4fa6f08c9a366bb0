//! The sockets of all connections, found by key.
//!
//! The engine gives out the slots; here is a row of sockets beside its slabs, 16 bytes each in a
//! release build, with the serial checked so that a stale key finds nothing.

use super::readiness::Latches;
use super::token::Token;
use crate::keys::{Conn, Key};
use crate::sys;
use crate::tls::Session;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry};
use socket2::SockRef;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

/// The socket of one connection.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TCP, and there is a session of TLS in the row beside.
    Secured(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Asks for the events of both directions, once for the life of the socket.
    pub fn register(&mut self, registry: &Registry, conn: Conn) -> io::Result<()> {
        self.register_as(registry, Token::Conn(conn))
    }

    /// As above, for whatever the socket belongs to.
    pub fn register_as(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let (token, both) = (token.into(), Interest::READABLE | Interest::WRITABLE);
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => registry.register(stream, token, both),
            Stream::Unix(stream) => registry.register(stream, token, both),
        }
    }

    /// Says that we write nothing more. A failure only means that the peer was quicker.
    pub fn shutdown_write(&self) {
        let _ = match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// How our connect went: `None` if it is still under way.
    pub fn connect_result(&self) -> Option<io::Result<()>> {
        let (error, peer) = match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => {
                (stream.take_error(), stream.peer_addr().map(drop))
            }
            Stream::Unix(stream) => (stream.take_error(), stream.peer_addr().map(drop)),
        };
        match (error, peer) {
            (Ok(Some(error)) | Err(error), _) => Some(Err(error)),
            (Ok(None), Ok(())) => Some(Ok(())),
            (Ok(None), Err(error)) if error.kind() == io::ErrorKind::NotConnected => None,
            (Ok(None), Err(error)) => Some(Err(error)),
        }
    }

    /// Its number in this process.
    pub fn descriptor(&self) -> i32 {
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
        }
    }

    /// Writes bytes behind which more will come soon: the kernel may keep the last ones back until
    /// a packet is full. `None`: this kind of socket knows no packets.
    pub fn write_corked(&mut self, slices: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => {
                let more = sys::MORE_TO_COME;
                Some(
                    stream
                        .try_io(|| SockRef::from(&*stream).send_vectored_with_flags(slices, more)),
                )
            }
            Stream::Unix(_) => None,
        }
    }

    /// Sends off what the kernel keeps back.
    pub fn uncork(&self) {
        if let Stream::Tcp(stream) | Stream::Secured(stream) = self {
            // Setting it anew pushes what is pending. If it fails the connection is dead, and the
            // next read or write says why.
            let _ = stream.set_nodelay(true);
        }
    }

    /// The kernel shall not wake us for fewer bytes. False: it knows no such limit.
    pub fn wake_from(&self, bytes: i32) -> bool {
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => {
                sys::set_receive_low_water(stream.as_fd(), bytes).is_ok()
            }
            Stream::Unix(_) => false,
        }
    }

    /// Our own end of it; none for Unix sockets.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => stream.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => stream.read(bytes),
            Stream::Unix(stream) => stream.read(bytes),
        }
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => stream.read_vectored(slices),
            Stream::Unix(stream) => stream.read_vectored(slices),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) | Stream::Secured(stream) => stream.write_vectored(slices),
            Stream::Unix(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection's socket and what the pump remembers of it.
#[derive(Debug)]
pub struct Socket {
    serial: u32,
    fills_turn: u16,
    fills: u8,
    /// What is known of its readiness.
    pub latches: Latches,
    /// The socket itself.
    pub stream: Stream,
}

impl Socket {
    /// Counts a fill in this turn; false if the share of the turn was used up before.
    ///
    /// The turn's number wraps: a socket that slept for exactly 2¹⁶ turns may get a smaller share
    /// once, and the rest in the next turn.
    pub fn take_share(&mut self, turn: u16, limit: u8) -> bool {
        if self.fills_turn != turn {
            self.fills_turn = turn;
            self.fills = 0;
        }
        let has_share = self.fills < limit;
        self.fills += u8::from(has_share);
        has_share
    }
}

// An idle client shall cost little. (A debug build makes sockets larger.)
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Option<Socket>>() == 16);

/// A socket, with its session if it has one.
pub enum Found<'a> {
    /// Its bytes are what they seem to be.
    Plain(&'a mut Socket),
    /// They go through TLS.
    Secured(&'a mut Socket, &'a mut Session),
}

/// All of them. Who has no session pays nothing for those who have.
#[derive(Debug, Default)]
pub struct Sockets {
    clients: Row,
    servers: Row,
}

#[derive(Debug, Default)]
struct Row {
    sockets: Vec<Option<Socket>>,
    sessions: Vec<Option<Box<Session>>>,
}

impl Sockets {
    /// Takes the socket of a new connection.
    pub fn insert(&mut self, conn: Conn, stream: Stream, latches: Latches) {
        let (row, slot, serial) = self.row(conn);
        if row.sockets.len() <= slot {
            row.sockets.resize_with(slot + 1, || None);
        }
        // Two connections in one slot would swap their bytes.
        assert!(row.sockets[slot].is_none(), "a slot is free before it is given out again");
        row.sockets[slot] = Some(Socket { serial, fills_turn: 0, fills: 0, latches, stream });
    }

    /// `None` if that connection has gone or has no socket yet.
    pub fn get_mut(&mut self, conn: Conn) -> Option<&mut Socket> {
        let (row, slot, serial) = self.row(conn);
        row.sockets.get_mut(slot)?.as_mut().filter(|socket| socket.serial == serial)
    }

    /// The socket, and what stands between it and the rings.
    #[inline]
    pub fn find(&mut self, conn: Conn) -> Option<Found<'_>> {
        let (row, slot, serial) = self.row(conn);
        let Row { sockets, sessions } = row;
        let socket = sockets.get_mut(slot)?.as_mut().filter(|socket| socket.serial == serial)?;
        if !matches!(socket.stream, Stream::Secured(_)) {
            return Some(Found::Plain(socket));
        }
        let session = sessions[slot].as_mut().expect("a secured socket has its session");
        Some(Found::Secured(socket, session))
    }

    /// From now on its bytes go through this session. A Unix socket's never do.
    pub fn secure(&mut self, conn: Conn, session: Session) {
        let (row, slot, serial) = self.row(conn);
        let Some(entry) = row.sockets.get_mut(slot) else {
            return;
        };
        let Some(Socket { stream: Stream::Tcp(_), .. }) = entry else {
            return;
        };
        if let Some(mut socket) = entry.take_if(|socket| socket.serial == serial) {
            if let Stream::Tcp(stream) = socket.stream {
                socket.stream = Stream::Secured(stream);
            }
            *entry = Some(socket);
            if row.sessions.len() <= slot {
                row.sessions.resize_with(slot + 1, || None);
            }
            row.sessions[slot] = Some(Box::new(session));
        }
    }

    /// Hands the socket out for good, with its session if it has one.
    pub fn remove(&mut self, conn: Conn) -> Option<(Socket, Option<Box<Session>>)> {
        let (row, slot, serial) = self.row(conn);
        let socket = row.sockets.get_mut(slot)?.take_if(|socket| socket.serial == serial)?;
        let session = row.sessions.get_mut(slot).and_then(Option::take);
        Some((socket, session))
    }

    /// The socket of a connection, to look at.
    pub fn get(&self, conn: Conn) -> Option<&Socket> {
        let (row, slot, serial) = match conn {
            Conn::Client(key) => (&self.clients, key.slot(), key.serial()),
            Conn::Server(key) => (&self.servers, key.slot(), key.serial()),
        };
        row.sockets.get(slot as usize)?.as_ref().filter(|socket| socket.serial == serial)
    }

    fn row(&mut self, conn: Conn) -> (&mut Row, usize, u32) {
        match conn {
            Conn::Client(key) => (&mut self.clients, key.slot() as usize, key.serial()),
            Conn::Server(key) => (&mut self.servers, key.slot() as usize, key.serial()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{ClientKey, ServerKey};

    fn stream() -> Stream {
        Stream::Unix(UnixStream::pair().unwrap().0)
    }

    #[test]
    fn a_stale_key_finds_no_socket() {
        let mut sockets = Sockets::default();
        let old = Conn::Client(ClientKey::new(3, 1));
        let new = Conn::Client(ClientKey::new(3, 2));
        sockets.insert(old, stream(), Latches::connected());
        assert!(sockets.get_mut(new).is_none());
        assert!(sockets.get_mut(Conn::Server(ServerKey::new(3, 1))).is_none());
        assert!(sockets.remove(old).is_some());
        sockets.insert(new, stream(), Latches::connected());
        assert!(sockets.get_mut(old).is_none());
        assert!(sockets.remove(old).is_none());
        assert!(sockets.get_mut(new).is_some());
    }

    #[test]
    fn a_share_is_per_turn() {
        let mut sockets = Sockets::default();
        let conn = Conn::Client(ClientKey::new(0, 1));
        sockets.insert(conn, stream(), Latches::connected());
        let socket = sockets.get_mut(conn).unwrap();
        for turn in 1..3 {
            assert!(socket.take_share(turn, 2));
            assert!(socket.take_share(turn, 2));
            assert!(!socket.take_share(turn, 2));
        }
    }
}
