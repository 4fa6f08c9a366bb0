//! One TLS session between a socket and the rings: fill and drain, as for a plain socket.
//!
//! ```text
//! socket ──read──▶ scratch ──decrypt──▶ ring        what is left of a record waits in `incoming`,
//!                                                   what did not fit into the ring in `decrypted`
//! socket ◀─write── outgoing ◀─encrypt── rings       the rings' bytes count as sent when all of
//!                                                   `outgoing` is
//! ```
//!
//! [`Scratch`] is shared by all sessions, so an idle one owns no buffer at all.

use super::certificate::{Certificate, Validity};
use super::ciphers;
use super::records::{Next, Records, Room, goodbye, seal, take};
use super::setup::{PROTOCOL_NAME, Side};
use crate::config::values::SslMode;
use crate::session::line::Secured;
use crate::sys::uninterrupted;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::UnbufferedServerConnection;
use rustls::{CertificateError, ClientConfig, CommonState, Error, ProtocolVersion};
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

/// The longest record: header, content, and what encryption may add to it.
const MAX_RECORD_BYTES: usize = 5 + 16 * 1024 + 2048;
/// So much is encrypted at once: four full records.
const MAX_BATCH_BYTES: usize = 64 * 1024;
/// So much of what came in is looked at at once. No message of a handshake is longer than 64 KiB.
const SCRATCH_BYTES: usize = 64 * 1024 + MAX_RECORD_BYTES;
/// What encryption adds to a batch at most, with a change of keys before it.
const BATCH_OVERHEAD_BYTES: usize = 1024;

/// Memory for one session at a time.
pub struct Scratch {
    incoming: Box<[u8]>,
    plain: Vec<u8>,
    sealed: Box<[u8]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            incoming: vec![0; SCRATCH_BYTES].into(),
            plain: Vec::with_capacity(MAX_BATCH_BYTES),
            sealed: vec![0; MAX_BATCH_BYTES + BATCH_OVERHEAD_BYTES].into(),
        }
    }
}

enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What must be true of the peer besides what rustls has verified.
enum Demands {
    /// The peer is a client.
    Client { end_point: Option<Arc<[u8]>> },
    /// The peer is a server, `name` the host that its certificate must be for.
    Server { name: Option<String>, protocol: bool },
}

/// How far a handshake came.
#[derive(Debug)]
pub enum Shaken {
    /// The peer's turn.
    NotYet,
    /// Done.
    Done(Box<Secured>),
    /// The peer has left.
    Left,
    /// It failed; the words for the log.
    Failed(String),
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes are in the ring; 0: none yet, for a record is not whole.
    Bytes(usize),
    /// Nothing can be read just now.
    Blocked,
    /// Nothing more will come, and so many bytes did before that.
    Closed(usize),
}

/// What a write took.
#[derive(Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything; so many bytes of the rings have now left.
    All(usize),
    /// A part of it: the socket takes no more.
    Blocked,
    /// The write failed.
    Closed,
}

/// See the module's page.
pub struct Session {
    connection: Connection,
    demands: Demands,
    is_handshaking: bool,
    /// Whether it stands in the queue of handshakes.
    pub is_queued: bool,
    /// Whether `incoming` holds records that nobody has looked at.
    has_unread: bool,
    is_closed: bool,
    /// Whether something was wrong: rustls is not spoken to any more.
    is_broken: bool,
    incoming: Vec<u8>,
    decrypted: Vec<u8>,
    outgoing: Vec<u8>,
    /// So much of `outgoing` has been written.
    written: usize,
    /// So many bytes of the rings are in `outgoing`.
    in_flight: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("is_handshaking", &self.is_handshaking).finish()
    }
}

impl Session {
    /// With a client: `answer` goes out first, as it is; `received` came in already.
    pub fn with_client(side: Side, answer: &[u8], received: Vec<u8>) -> Result<Self, String> {
        let connection = UnbufferedServerConnection::new(side.config);
        let connection = Connection::Server(Box::new(connection.map_err(|why| why.to_string())?));
        let demands = Demands::Client { end_point: side.end_point };
        Ok(Self::new(connection, demands, answer, received))
    }

    /// With a server. Its name is always told, if it has one.
    pub fn with_server(
        config: Arc<ClientConfig>,
        host: &str,
        mode: SslMode,
    ) -> Result<Self, String> {
        let protocol = !config.alpn_protocols.is_empty();
        // A host that is no name of the DNS is told to nobody.
        let name = ServerName::try_from(host.to_owned());
        let name = name.or_else(|_| ServerName::try_from("postgresql.invalid"));
        let name = name.map_err(|why| why.to_string())?;
        let connection = UnbufferedClientConnection::new(config, name);
        let connection = Connection::Client(Box::new(connection.map_err(|why| why.to_string())?));
        let name = (mode == SslMode::VerifyFull).then(|| host.to_owned());
        Ok(Self::new(connection, Demands::Server { name, protocol }, &[], Vec::new()))
    }

    fn new(connection: Connection, demands: Demands, answer: &[u8], received: Vec<u8>) -> Self {
        Self {
            // A client begins by itself.
            has_unread: !received.is_empty() || matches!(connection, Connection::Client(_)),
            connection,
            demands,
            is_handshaking: true,
            is_queued: false,
            is_closed: false,
            is_broken: false,
            incoming: received,
            decrypted: Vec::new(),
            outgoing: answer.to_vec(),
            written: 0,
            in_flight: 0,
        }
    }

    /// Whether the handshake is not over.
    pub fn is_handshaking(&self) -> bool {
        self.is_handshaking
    }

    /// Whether there is something to look at without reading the socket.
    pub fn has_unread(&self) -> bool {
        self.has_unread || !self.decrypted.is_empty() || self.is_closed
    }

    /// Whether something of ours waits for the socket.
    pub fn has_unsent(&self) -> bool {
        self.written < self.outgoing.len()
    }

    /// One step of the handshake: one read, what follows from it, one write. Also whether the read
    /// came back short.
    pub fn shake_hands(
        &mut self,
        stream: &mut (impl Read + Write),
        may_read: bool,
        scratch: &mut Scratch,
    ) -> (Shaken, io::Result<bool>) {
        if self.is_broken {
            return (Shaken::NotYet, Ok(false));
        }
        let mut read = Ok(0);
        let held = self.load(scratch);
        let mut filled = held;
        if may_read && held < SCRATCH_BYTES {
            read = uninterrupted(|| stream.read(&mut scratch.incoming[held..]));
            filled += *read.as_ref().unwrap_or(&0);
        }
        let has_left = match &read {
            Ok(bytes) => may_read && held < SCRATCH_BYTES && *bytes == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        let mut decrypted = std::mem::take(&mut self.decrypted);
        // Who has said who it is may have sent more.
        let step = self.process(&mut scratch.incoming[..filled], &mut |bytes| {
            decrypted.extend_from_slice(bytes);
        });
        self.decrypted = decrypted;
        let step = match step {
            // There is never more of a handshake than we can hold.
            Ok(()) if self.is_handshaking && self.incoming.len() >= SCRATCH_BYTES => {
                Err(Error::General("the handshake is too long".to_owned()))
            }
            step => step,
        };
        // What it cannot take yet goes out later; the peer has hardly sent us this much unasked.
        let flushed = self.flush(stream);
        let shaken = match step {
            Err(error) => Shaken::Failed(error.to_string()),
            Ok(()) if !self.is_handshaking => match self.secured() {
                Ok(secured) => Shaken::Done(Box::new(secured)),
                Err(words) => Shaken::Failed(words),
            },
            Ok(()) if has_left || self.is_closed || flushed == Drained::Closed => Shaken::Left,
            Ok(()) => Shaken::NotYet,
        };
        (shaken, read.map(|bytes| bytes < SCRATCH_BYTES - held))
    }

    /// Reads once and puts what it decrypts into the room.
    pub fn fill(
        &mut self,
        stream: &mut impl Read,
        may_read: bool,
        room: [&mut [u8]; 2],
        scratch: &mut Scratch,
    ) -> (Filled, bool) {
        let mut room = Room::new(room);
        if !self.decrypted.is_empty() {
            let taken = room.take(&self.decrypted);
            self.decrypted.drain(..taken);
            if self.decrypted.is_empty() {
                self.decrypted = Vec::new();
            }
            return (Filled::Bytes(taken), false);
        }
        if self.is_closed {
            return (Filled::Closed(0), false);
        }
        let held = self.load(scratch);
        // What comes in is hardly more than what comes out of it, so that all of it has room.
        let limit = room.free().clamp(MAX_RECORD_BYTES, SCRATCH_BYTES);
        let mut filled = held;
        let mut read = Ok(0);
        let is_due = may_read && !self.has_unread && held < limit;
        if is_due {
            read = uninterrupted(|| stream.read(&mut scratch.incoming[held..limit]));
            filled += *read.as_ref().unwrap_or(&0);
        }
        let is_short = is_due && filled < limit;
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return (Filled::Blocked, true);
        }
        let mut decrypted = std::mem::take(&mut self.decrypted);
        let result = self.process(&mut scratch.incoming[..filled], &mut |bytes| {
            let taken = room.take(bytes);
            decrypted.extend_from_slice(&bytes[taken..]);
        });
        self.decrypted = decrypted;
        // What is left is less than a record, or a part of a message of the handshake. Those that
        // come behind it are short.
        let result = match self.incoming.len() >= MAX_RECORD_BYTES {
            true => result.and(Err(Error::General("a message of TLS is too long".to_owned()))),
            false => result,
        };
        let has_ended = is_due && (matches!(read, Ok(0)) || read.is_err());
        if let Err(error) = &result {
            log::warn!("TLS error: {error}");
        }
        let is_over = result.is_err() || has_ended || self.is_closed;
        self.is_closed = is_over;
        // Its end is told when all before it has been taken.
        match is_over && self.decrypted.is_empty() {
            true => (Filled::Closed(room.taken()), is_short),
            false => (Filled::Bytes(room.taken()), is_short),
        }
    }

    /// Writes once: what waits, or else what the slices hold, encrypted.
    pub fn drain(
        &mut self,
        stream: &mut impl Write,
        slices: &[IoSlice<'_>],
        scratch: &mut Scratch,
    ) -> Drained {
        if !self.has_unsent() {
            let sealed = self.encrypt(slices, scratch);
            if !self.has_unsent() {
                return self.write_sealed(stream, &scratch.sealed[..sealed]);
            }
            self.outgoing.extend_from_slice(&scratch.sealed[..sealed]);
        }
        self.flush(stream)
    }

    /// Nearly always all of it leaves at once, and nothing has to be kept.
    fn write_sealed(&mut self, stream: &mut impl Write, sealed: &[u8]) -> Drained {
        if sealed.is_empty() {
            return if self.is_broken { Drained::Closed } else { Drained::All(0) };
        }
        let written = match uninterrupted(|| stream.write(sealed)) {
            Ok(0) => return Drained::Closed,
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return Drained::Closed,
        };
        if written == sealed.len() {
            return Drained::All(std::mem::take(&mut self.in_flight));
        }
        self.outgoing = sealed[written..].to_vec();
        Drained::Blocked
    }

    /// The last words, as far as they leave at once: what waits, the slices, and that nothing
    /// follows.
    pub fn close(&mut self, stream: &mut impl Write, slices: &[IoSlice<'_>]) {
        let scratch = &mut Scratch::default();
        let in_flight = self.in_flight;
        if self.has_unsent() && !matches!(self.flush(stream), Drained::All(_)) {
            return;
        }
        if !self.is_handshaking && !self.is_broken {
            // Its beginning may have been what was waiting.
            let mut skip = in_flight;
            let rest: Vec<IoSlice<'_>> = slices
                .iter()
                .map(|slice| {
                    let skipped = skip.min(slice.len());
                    skip -= skipped;
                    IoSlice::new(&slice[skipped..])
                })
                .collect();
            let sealed = self.encrypt(&rest, scratch);
            self.outgoing.extend_from_slice(&scratch.sealed[..sealed]);
            self.say_goodbye();
        }
        // Whether it worked makes no difference any more.
        let _ = self.flush(stream);
    }

    /// What was left from the last time, at the beginning of the scratch memory.
    fn load(&mut self, scratch: &mut Scratch) -> usize {
        let held = self.incoming.len().min(SCRATCH_BYTES);
        scratch.incoming[..held].copy_from_slice(&self.incoming[..held]);
        held
    }

    fn store(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            self.incoming = Vec::new();
        } else {
            self.incoming.clear();
            self.incoming.extend_from_slice(rest);
        }
    }

    /// Takes all records that are whole. What is left of `bytes` is kept.
    fn process(&mut self, bytes: &mut [u8], plain: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let mut at = 0;
        let result = loop {
            let rest = &mut bytes[at..];
            let outgoing = &mut self.outgoing;
            let (discard, next) = match &mut self.connection {
                Connection::Client(tls) => take(tls.process(rest), plain, outgoing),
                Connection::Server(tls) => take(tls.process(rest), plain, outgoing),
            };
            at += discard;
            match next {
                Ok(Next::Again) => {}
                Ok(Next::Quiet) => break Ok(()),
                Ok(Next::Closed) => {
                    self.is_closed = true;
                    break Ok(());
                }
                Err(error) => {
                    self.collect_alert(&mut bytes[at..]);
                    break Err(error);
                }
            }
        };
        self.is_handshaking = self.common().is_handshaking();
        self.has_unread = false;
        self.store(&bytes[at..]);
        result
    }

    /// The alert that tells the peer why, if there is one. `rest` is what rustls has not taken: it
    /// remembers how far it has looked into that, and must be shown the same bytes each time. What
    /// it has to send it gives out before it looks; once that is out it must not look again at what
    /// was wrong.
    fn collect_alert(&mut self, rest: &mut [u8]) {
        self.is_broken = true;
        while self.common().wants_write() {
            let outgoing = &mut self.outgoing;
            let (discard, next) = match &mut self.connection {
                Connection::Client(tls) => take(tls.process(rest), &mut |_| {}, outgoing),
                Connection::Server(tls) => take(tls.process(rest), &mut |_| {}, outgoing),
            };
            if discard > 0 || !matches!(next, Ok(Next::Again)) {
                break;
            }
        }
    }

    fn common(&self) -> &CommonState {
        match &self.connection {
            Connection::Client(tls) => tls,
            Connection::Server(tls) => tls,
        }
    }

    /// Encrypts the slices, as much of them as one batch takes; how many bytes that makes. What
    /// rustls has to say itself goes into `outgoing`, before that.
    fn encrypt(&mut self, slices: &[IoSlice<'_>], scratch: &mut Scratch) -> usize {
        let Scratch { plain, sealed, .. } = scratch;
        let plain = match slices {
            [] => return 0,
            [only] => &only[..only.len().min(MAX_BATCH_BYTES)],
            several => {
                plain.clear();
                for slice in several {
                    let room = MAX_BATCH_BYTES - plain.len();
                    plain.extend_from_slice(&slice[..slice.len().min(room)]);
                }
                &plain[..]
            }
        };
        if plain.is_empty() || self.is_broken {
            return 0;
        }
        let (incoming, outgoing) = (&mut self.incoming, &mut self.outgoing);
        let bytes = match &mut self.connection {
            Connection::Client(tls) => seal(&mut **tls, plain, sealed, (incoming, outgoing)),
            Connection::Server(tls) => seal(&mut **tls, plain, sealed, (incoming, outgoing)),
        };
        match bytes {
            Some(bytes) => {
                self.in_flight = plain.len();
                bytes
            }
            // The keys have been used up: nothing more can be said.
            None => {
                self.is_closed = true;
                self.is_broken = true;
                0
            }
        }
    }

    fn say_goodbye(&mut self) {
        let start = self.outgoing.len();
        self.outgoing.resize(start + BATCH_OVERHEAD_BYTES, 0);
        let room = &mut self.outgoing[start..];
        let written = match &mut self.connection {
            Connection::Client(tls) => goodbye(tls.process(&mut self.incoming), room),
            Connection::Server(tls) => goodbye(tls.process(&mut self.incoming), room),
        };
        self.outgoing.truncate(start + written);
    }

    /// One write of what is encrypted.
    fn flush(&mut self, stream: &mut impl Write) -> Drained {
        while self.has_unsent() {
            let rest = &self.outgoing[self.written..];
            let length = rest.len();
            match uninterrupted(|| stream.write(rest)) {
                Ok(0) => return Drained::Closed,
                Ok(bytes) => {
                    self.written += bytes;
                    if bytes < length {
                        return Drained::Blocked;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Drained::Blocked,
                Err(_) => return Drained::Closed,
            }
        }
        self.written = 0;
        self.outgoing = Vec::new();
        Drained::All(std::mem::take(&mut self.in_flight))
    }

    /// What has been agreed on, if the peer is whom we want.
    fn secured(&self) -> Result<Secured, String> {
        let state = self.common();
        let der = state.peer_certificates().and_then(|chain| chain.first());
        let peer = der.and_then(|der| Certificate::parse(der));
        let names = peer.as_ref().map(Certificate::names);
        let end_point = match &self.demands {
            Demands::Client { end_point } => {
                // A resumed session is not verified again.
                if peer.as_ref().is_some_and(|peer| peer.validity(now()) != Validity::Now) {
                    return Err(Error::from(CertificateError::Expired).to_string());
                }
                end_point.clone()
            }
            Demands::Server { name, protocol } => {
                if let Some(name) = name
                    && !names.as_ref().is_some_and(|names| names.is_server(name))
                {
                    return Err(format!("name `{name}' not present in server certificate"));
                }
                if *protocol && state.alpn_protocol() != Some(PROTOCOL_NAME) {
                    return Err("the server does not speak PostgreSQL's protocol".to_owned());
                }
                peer.as_ref().and_then(Certificate::end_point)
            }
        };
        let is_old = state.protocol_version() == Some(ProtocolVersion::TLSv1_2);
        let group = state.negotiated_key_exchange_group().map(|group| group.name());
        let suite = state.negotiated_cipher_suite().map(|suite| suite.suite());
        Ok(Secured {
            version: if is_old { "TLSv1.2" } else { "TLSv1.3" },
            cipher: suite.map_or("(NONE)", ciphers::suite_name),
            group: group.filter(|_| is_old).map(ciphers::group_name),
            peer: names,
            end_point,
        })
    }
}

fn now() -> u64 {
    UnixTime::now().as_secs()
}
