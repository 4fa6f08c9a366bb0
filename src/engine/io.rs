//! The border between the engine and the shell around it.
//!
//! The shell (`net/`, and in tests `tests/sim/`) owns sockets, clock and randomness and decides
//! nothing. It moves bytes between sockets and the engine's rings:
//!
//! ```text
//! socket ──read──▶ Engine::inbox_room(conn)  then  Input::Received { conn, bytes }
//! socket ◀─write── Engine::outgoing(conn)    then  Input::Sent { conn, bytes }
//! ```
//!
//! tells what else happened by an [`Input`], and afterwards performs each [`Effect`].

use crate::auth::derivation::{Derivation, ScramKeys};
use crate::auth::outside::{Answer, Question};
use crate::config::tls::ServerTls;
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::stats::Averages;
use crate::session::line::Secured;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

pub use crate::session::client::ClientAddress;
pub use crate::session::server::ServerAddress;

/// What one of several writes that were made together has brought.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Whose socket was written.
    pub conn: Conn,
    /// At least one.
    pub bytes: usize,
    /// Whether somebody waited for room behind them; `None`: that connection has gone.
    pub(super) was_stuck: Option<bool>,
}

impl Sent {
    /// So many bytes of [`super::Engine::outgoing`] went into that socket.
    pub fn new(conn: Conn, bytes: usize) -> Self {
        Self { conn, bytes, was_stuck: None }
    }
}

/// Something that happened outside. Everything refers to connections by key; a key whose
/// connection has gone is ignored.
#[derive(Debug)]
pub enum Input {
    /// So many bytes were read into the slices of [`super::Engine::inbox_room`].
    Received {
        /// Whose socket was read.
        conn: Conn,
        /// At least one.
        bytes: usize,
    },
    /// So many bytes of [`super::Engine::outgoing`] went into the socket.
    Sent {
        /// Whose socket was written.
        conn: Conn,
        /// At least one.
        bytes: usize,
    },
    /// The peer will send nothing more: end of file, or the read failed.
    ReadClosed {
        /// Whose.
        conn: Conn,
    },
    /// A write failed: the peer takes nothing more.
    WriteClosed {
        /// Whose.
        conn: Conn,
    },
    /// The socket of [`Effect::Connect`] is connected.
    Connected {
        /// Which.
        server: ServerKey,
        /// Our own end of it, for the log; none for Unix sockets.
        local: Option<SocketAddr>,
    },
    /// The socket of [`Effect::Connect`] will never be connected.
    ConnectFailed {
        /// Which.
        server: ServerKey,
        /// The system's words, for the log, if it refused at once. `None`: later.
        error: Option<String>,
    },
    /// The answer to [`Effect::Resolve`]; no addresses: the look-up failed.
    Resolved {
        /// The name.
        host: String,
        /// In the resolver's order.
        addresses: Vec<IpAddr>,
    },
    /// The answer to [`Effect::AskSerial`].
    Serial {
        /// The zone.
        zone: String,
        /// `None`: it could not be found out.
        serial: Option<u32>,
    },
    /// The handshake of [`Effect::StartTls`] is done.
    TlsReady {
        /// Whose.
        conn: Conn,
        /// What it agreed on.
        secured: Box<Secured>,
    },
    /// There will be no TLS on this line, nor anything else.
    TlsFailed {
        /// Whose.
        conn: Conn,
        /// Why, for the log.
        error: String,
        /// Whether it is our own fault: the handshake could not even begin.
        is_ours: bool,
    },
    /// The answer to [`Effect::Derive`].
    Derived {
        /// Who needed it.
        conn: Conn,
        /// What was asked.
        derivation: Derivation,
        /// `None`: there is too much of such work already.
        keys: Option<ScramKeys>,
    },
    /// The answer to [`Effect::Consult`].
    Consulted {
        /// Whose password it was about.
        client: ClientKey,
        /// Whether it is right.
        answer: Answer,
    },
    /// Time has passed: act on deadlines. Sent once a turn, after everything else.
    Tick,
}

/// Something that the engine wants done. Performed at the end of the turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Open a non-blocking socket for this server; answered by [`Input::Connected`] or
    /// [`Input::ConnectFailed`].
    Connect {
        /// For whom.
        server: ServerKey,
        /// Where to.
        to: ServerAddress,
    },
    /// Look a host name up without holding up the loop; answered by [`Input::Resolved`], in
    /// bounded time.
    Resolve {
        /// The name as configured.
        host: String,
    },
    /// Ask for the serial of a zone without holding up the loop; answered by [`Input::Serial`], in
    /// bounded time.
    AskSerial {
        /// The zone's name.
        zone: String,
    },
    /// Shake hands; answered by [`Input::TlsReady`] or [`Input::TlsFailed`]. Until then what comes
    /// in and goes out is the shell's business, and after that it goes through TLS.
    StartTls {
        /// With whom.
        conn: Conn,
        /// In which role.
        handshake: Handshake,
    },
    /// Make a key of a password without holding up the loop; answered by [`Input::Derived`].
    Derive {
        /// Who needs it.
        conn: Conn,
        /// Of what.
        derivation: Derivation,
    },
    /// Ask PAM or a directory about a client's password without holding up the loop; answered by
    /// [`Input::Consulted`].
    Consult {
        /// Whose password it is.
        client: ClientKey,
        /// What is asked.
        question: Question,
    },
    /// A client of the admin console has something for the console: a message, room for the rest
    /// of a reply. The console stands above the engine, so the shell brings them together.
    Attend {
        /// Who.
        client: ClientKey,
    },
    /// Somebody asked to cancel what this client of the admin console waits for.
    CancelAttendance {
        /// Who waits.
        client: ClientKey,
    },
    /// Tell the service manager how busy we are. What was done in the last `stats_period`.
    Report(Averages),
    /// Say on the socket of this server that nothing more will come, and keep it open: what the other
    /// side does about it is still of interest.
    HangUp {
        /// Whose.
        server: ServerKey,
    },
    /// Try once to write what [`super::Engine::outgoing`] still holds, close the socket (if there
    /// is one yet), then call [`super::Engine::forget`]. The only way a connection ends.
    Close {
        /// Whose.
        conn: Conn,
    },
}

/// How a handshake begins.
#[derive(Debug, PartialEq, Eq)]
pub enum Handshake {
    /// A client asked for it: it is told `S` first.
    Answer,
    /// A client began without asking; so much has come in already.
    Begun(Vec<u8>),
    /// We begin, with a server.
    Open {
        /// The host that it must be, or that it is told.
        host: String,
        /// What is asked of it.
        tls: ServerTls,
    },
}

/// The sooner of two moments, of which either may never come. Each turn asks for many of them.
pub fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}
