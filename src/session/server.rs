//! A connection to PostgreSQL: what it is doing, and what its next message means.

use crate::keys::{ClientKey, PoolKey, ServerKey};
use crate::session::client::Hook;
use crate::session::egress::Egress;
use crate::session::farewell::Reason;
use crate::session::inbox::Inbox;
use crate::session::params::Parameters;
use crate::session::pipeline::Pipeline;
use crate::session::server_login::ServerLogin;
use crate::wire::backend::{self, Message, Reply, TxStatus};
use crate::wire::frame::Peek;
use std::path::PathBuf;
use std::time::Instant;

/// What a server connection is doing.
#[derive(Debug)]
pub enum State {
    /// A name is being looked up, or the socket is being connected. Leaves to `LoggingIn`,
    /// `CarryingCancel`, `Closing`.
    Connecting(Purpose),
    /// Our login is under way. Leaves to `Idle`, `Closing`.
    LoggingIn(Box<ServerLogin>),
    /// Free. Leaves to `Active`, `Closing`.
    Idle {
        /// Since when.
        since: Instant,
    },
    /// Works for a client. Leaves to `Unlinked`.
    Active {
        /// Which one.
        client: ClientKey,
    },
    /// Its client has just left, and whoever took them apart decides at once what comes next.
    /// Leaves to `Idle`, `Resetting`, `HeldForCancel`, `Closing`.
    Unlinked,
    /// Runs the reset query. Leaves to `Idle`, `HeldForCancel`, `Closing`.
    Resetting,
    /// Could be free, but a CancelRequest for it is still on its way and would hit the next
    /// client's query. Leaves to `Idle`, `Resetting`, `Closing`.
    HeldForCancel,
    /// Carries one CancelRequest, then ends. Leaves to `Closing`.
    CarryingCancel {
        /// Whose query is being cancelled.
        target: ServerKey,
        /// Who asked.
        requester: ClientKey,
    },
    /// Gone at the end of the turn.
    Closing,
}

/// What a connection is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To serve.
    Serve,
    /// To carry one CancelRequest.
    Cancel {
        /// Whose query is to be cancelled.
        target: ServerKey,
        /// Who asked.
        requester: ClientKey,
    },
}

/// How far the server's last exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Its last word was ReadyForQuery, outside of a transaction.
    Ready,
    /// Its last word was ReadyForQuery, in a transaction, which may have failed.
    InTransaction,
    /// Anything else.
    Busy,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// Over TCP.
    Tcp(std::net::SocketAddr),
    /// A socket file, or with a leading `@` a name in the abstract namespace.
    Unix(PathBuf),
}

/// One connection to PostgreSQL.
#[derive(Debug)]
pub struct Server {
    /// Changed by `pool::queues` alone.
    pub state: State,
    /// What it has sent.
    pub inbox: Inbox,
    /// What it is owed.
    pub egress: Egress,
    /// The replies it owes.
    pub pipeline: Pipeline,
    /// Its tracked parameters, as it reported them.
    pub parameters: Parameters,
    /// Whose it is.
    pub pool: PoolKey,
    /// See [`Activity`].
    pub activity: Activity,
    /// The key to cancel its queries with.
    pub cancel_key: Vec<u8>,
    /// How many CancelRequests for it are on their way.
    pub cancels_in_flight: u32,
    /// The last message to it was cut off when its client left: whatever else we said would be
    /// taken for the rest of that.
    pub is_cut_off: bool,
    /// To be closed as soon as it is free: what it was opened with holds no more.
    pub close_needed: bool,
    /// Where it is connected to, once known.
    pub address: Option<ServerAddress>,
    /// When it was begun.
    pub connected_at: Instant,
    /// Its place among those in the same state.
    pub hook: Hook<ServerKey>,
    /// Whether it is on the list of connections with work to do.
    pub is_runnable: bool,
}

impl Server {
    /// A connection that is about to be opened.
    pub fn new(purpose: Purpose, pool: PoolKey, parameters: Parameters, now: Instant) -> Self {
        Self {
            state: State::Connecting(purpose),
            inbox: Inbox::default(),
            egress: Egress::default(),
            pipeline: Pipeline::default(),
            parameters,
            pool,
            activity: Activity::Busy,
            cancel_key: Vec::new(),
            cancels_in_flight: 0,
            is_cut_off: false,
            close_needed: false,
            address: None,
            connected_at: now,
            hook: Hook::default(),
            is_runnable: false,
        }
    }

    /// The client that it works for.
    pub fn client(&self) -> Option<ClientKey> {
        match self.state {
            State::Active { client } => Some(client),
            _ => None,
        }
    }

    /// Whether its socket is to be read.
    pub fn wants_read(&self) -> bool {
        match self.state {
            State::Connecting(_) | State::Closing => false,
            _ => self.inbox.has_room(),
        }
    }

    /// Whether there is something to write to its socket.
    pub fn wants_write(&self) -> bool {
        !self.egress.is_empty() && !matches!(self.state, State::Connecting(_))
    }

    /// Whether everything asked of it has been answered, and all of that passed on.
    pub fn is_done(&self) -> bool {
        self.activity == Activity::Ready
            && self.pipeline.is_empty()
            && self.egress.is_empty()
            && self.inbox.unjudged() == 0
            && !self.inbox.is_mid_message()
    }

    /// Whether it is sending us its replies to our own query before the client's.
    pub fn is_catching_up(&self) -> bool {
        self.pipeline.is_swallowing()
    }
}

/// What to do with a server's next message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has not come in far enough.
    NeedMore,
    /// Pass it on to the linked client, or drop it if we asked for it.
    Pass {
        /// The whole message.
        bytes: u64,
        /// What it tells us.
        note: Note,
    },
    /// A ParameterStatus: note the value, then pass it on or drop it.
    Parameter {
        /// The whole message.
        bytes: u64,
    },
    /// The connection ends.
    Close(Reason),
}

/// What a message tells us, apart from its being passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Nothing.
    Nothing,
    /// A request may be answered.
    Reply(Reply),
    /// The server expects CopyData.
    CopyIn,
    /// Something failed.
    Error,
    /// Somebody notified; leaves the server as ready as it was.
    Notification,
    /// An exchange is over.
    Ready(TxStatus),
}

impl Server {
    /// Judges the next message of a server that has logged in.
    pub fn judge(&self, max_packet_bytes: u32) -> Verdict {
        let header = match self.inbox.peek(max_packet_bytes) {
            Peek::NeedMore => return Verdict::NeedMore,
            Peek::Bad => return Verdict::Close(Reason::BAD_SERVER_HEADER),
            Peek::Header(header) => header,
        };
        let bytes = header.bytes;
        let note = match backend::classify(header.tag) {
            Message::Plain | Message::CopyOut => Note::Nothing,
            Message::Reply(reply) => Note::Reply(reply),
            Message::CopyIn => Note::CopyIn,
            Message::Error => Note::Error,
            Message::Notification => Note::Notification,
            Message::ParameterStatus if !self.inbox.can_hold(bytes) => {
                return Verdict::Close(Reason::UNSTORABLE_PARAMETER_STATUS);
            }
            Message::ParameterStatus if !self.inbox.has(bytes) => return Verdict::NeedMore,
            Message::ParameterStatus => return Verdict::Parameter { bytes },
            Message::ReadyForQuery if bytes == 6 && !self.inbox.has(bytes) => {
                return Verdict::NeedMore;
            }
            Message::ReadyForQuery => match self.ready_status(bytes) {
                Some(status) => Note::Ready(status),
                None => return Verdict::Close(Reason::BAD_SERVER_HEADER),
            },
            Message::Unknown => return Verdict::Close(Reason::UNKNOWN_PACKET),
        };
        Verdict::Pass { bytes, note }
    }

    fn ready_status(&self, bytes: u64) -> Option<TxStatus> {
        let ring = self.inbox.ring().filter(|_| bytes == 6)?;
        backend::ready_for_query(&ring.array::<1>(self.inbox.judged() + 5)?)
    }
}
