//! What rustls wants done with the records of one session, step by step, and the room for what it
//! decrypts.

use rustls::Error;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

/// What both kinds of rustls's connections can do.
pub(super) trait Records {
    type Data;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

pub(super) enum Next {
    /// Something was dealt with: there may be more.
    Again,
    /// Nothing more to do before more comes in.
    Quiet,
    /// The peer says that nothing follows.
    Closed,
}

/// Deals with what rustls wants next: how many bytes it has taken for good, and how to go on.
pub(super) fn take<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut dyn FnMut(&[u8]),
    outgoing: &mut Vec<u8>,
) -> (usize, Result<Next, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let state = match state {
        Ok(state) => state,
        Err(error) => return (discard, Err(error)),
    };
    let next = match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        plain(record.payload);
                    }
                    Err(error) => return (discard, Err(error)),
                }
            }
            Next::Again
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let start = outgoing.len();
            let mut written = data.encode(&mut []);
            if let Err(EncodeError::InsufficientSize(size)) = &written {
                outgoing.resize(start + size.required_size, 0);
                written = data.encode(&mut outgoing[start..]);
            }
            outgoing.truncate(start + written.unwrap_or(0));
            Next::Again
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Next::Again
        }
        ConnectionState::PeerClosed | ConnectionState::Closed => Next::Closed,
        // Early data is never offered. What a later version adds is none of our doing.
        _ => Next::Quiet,
    };
    (discard, Ok(next))
}

/// Encrypts `plain`; how many bytes that makes. `None`: it cannot be done any more.
///
/// `incoming` is what came in and rustls has not taken, as part of a message: it remembers how far
/// it has looked into that, and must be shown the same bytes each time.
pub(super) fn seal<T: Records>(
    tls: &mut T,
    plain: &[u8],
    sealed: &mut [u8],
    (incoming, outgoing): (&mut Vec<u8>, &mut Vec<u8>),
) -> Option<usize> {
    // Before that it may have to say something itself, in a few steps.
    for _ in 0..16 {
        let status = tls.process(incoming);
        let (discard, next) = match status {
            UnbufferedStatus { discard, state: Ok(ConnectionState::WriteTraffic(mut traffic)) } => {
                match traffic.encrypt(plain, sealed) {
                    Ok(bytes) => return Some(bytes),
                    // A change of keys that is ready to be sent takes room, too.
                    Err(EncryptError::InsufficientSize(_)) => (discard, Ok(Next::Again)),
                    Err(EncryptError::EncryptExhausted) => return None,
                }
            }
            status => take(status, &mut |_| {}, outgoing),
        };
        incoming.drain(..discard);
        next.ok()?;
    }
    None
}

/// Writes close_notify; how many bytes that took.
pub(super) fn goodbye<Data>(status: UnbufferedStatus<'_, '_, Data>, room: &mut [u8]) -> usize {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            traffic.queue_close_notify(room).unwrap_or(0)
        }
        _ => 0,
    }
}

/// The free part of a ring.
pub(super) struct Room<'a> {
    parts: [&'a mut [u8]; 2],
    taken: usize,
}

impl<'a> Room<'a> {
    pub(super) fn new(parts: [&'a mut [u8]; 2]) -> Self {
        Self { parts, taken: 0 }
    }

    pub(super) fn free(&self) -> usize {
        self.parts[0].len() + self.parts[1].len() - self.taken
    }

    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Copies as much as fits; how much that is.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.free());
        let first = self.parts[0].len();
        let (mut at, mut left) = (self.taken, &bytes[..taken]);
        if at < first {
            let here = left.len().min(first - at);
            self.parts[0][at..at + here].copy_from_slice(&left[..here]);
            (at, left) = (at + here, &left[here..]);
        }
        if !left.is_empty() {
            self.parts[1][at - first..][..left.len()].copy_from_slice(left);
        }
        self.taken += taken;
        taken
    }
}
