//! A connection to PostgreSQL: what it is doing, and what its next message means.

use crate::auth::lookup::Asked;
use crate::config::values::PoolMode;
use crate::keys::{ClientKey, PoolKey, ServerKey};
use crate::ring::Rings;
use crate::session::client::Hook;
use crate::session::egress::Egress;
use crate::session::farewell::Reason;
use crate::session::inbox::Inbox;
use crate::session::line::Line;
use crate::session::params::Parameters;
use crate::session::pipeline::{Action, Pipeline};
use crate::session::prepared::ServerStatements;
use crate::session::rescue::Rescue;
use crate::session::server_login::ServerLogin;
use crate::wire::backend::{self, Message, Reply, TxStatus};
use crate::wire::emit::{self, Full};
use crate::wire::frame::{self, HEADER_BYTES, Peek, Run};
use crate::wire::frontend::Request;
use std::path::PathBuf;
use std::time::Instant;

/// What a server connection is doing.
#[derive(Debug)]
pub enum State {
    /// A name is being looked up, or the socket is being connected. Leaves to `AskingForTls`,
    /// `StartingTls`, `LoggingIn`, `CarryingCancel`, `Closing`.
    Connecting(Purpose),
    /// Sent an SSLRequest, to which the answer is one byte. Leaves to `StartingTls`, `LoggingIn`,
    /// `CarryingCancel`, `Closing`.
    AskingForTls(Purpose),
    /// The handshake is under way, in the shell. Leaves to `LoggingIn`, `CarryingCancel`,
    /// `Closing`.
    StartingTls(Purpose),
    /// Our login is under way. Leaves to `Idle`, `Closing`.
    LoggingIn(Box<ServerLogin>),
    /// Free. Leaves to `Active`, `Asking`, `Used`, `Closing`.
    Idle {
        /// Since when.
        since: Instant,
    },
    /// Free, but nobody has heard of it for so long that it is tried out before it serves again.
    /// Leaves to `Idle`, `Checking`, `Closing`.
    Used {
        /// Since when it has been free.
        since: Instant,
    },
    /// Works for a client. Leaves to `Unlinked`, `Rescuing`.
    Active {
        /// Which one.
        client: ClientKey,
    },
    /// Is asked about a user (`auth_query`). Leaves to `Unlinked`, `Closing`.
    Asking {
        /// Who waits for the answer. They are not linked: none of its bytes gets here.
        client: ClientKey,
        /// What was answered so far.
        asked: Box<Asked>,
    },
    /// Its client has just left, and whoever took them apart decides at once what comes next.
    /// Leaves to `Idle`, `Used`, `Resetting`, `HeldForCancel`, `Closing`.
    Unlinked {
        /// Whether it has got a part of the client's last message only. Leaves to `Closing` then.
        cut_off: bool,
    },
    /// Its client has gone in the middle of something, and it is brought to where it can serve
    /// another. Leaves to `Idle`, `Closing`.
    Rescuing(Box<Rescue>),
    /// Runs the reset query. Leaves to `Idle`, `HeldForCancel`, `Closing`.
    Resetting {
        /// Since when.
        since: Instant,
    },
    /// Is asked whether it is still there. Leaves to `Idle`, `Closing`.
    Checking {
        /// Since when.
        since: Instant,
    },
    /// Could be free, but a CancelRequest for it is still on its way and would hit the next
    /// client's query. Leaves to `Idle`, `Resetting`, `Closing`.
    HeldForCancel,
    /// Carries one CancelRequest, then ends. Leaves to `Closing`.
    CarryingCancel {
        /// Whose query is being cancelled.
        target: ServerKey,
        /// Who asked; `None`: we did, for its client has gone.
        requester: Option<ClientKey>,
    },
    /// Carries one CancelRequest to another pooler, whose client is meant, then ends. Leaves to
    /// `Closing`.
    Forwarding {
        /// The other pooler's number.
        peer: u16,
        /// Who asked.
        requester: ClientKey,
        /// Since when.
        since: Instant,
    },
    /// We have ended the connection, and it keeps its place among those that a limit counts until it
    /// has gone. See `engine::departures`. Leaves to `Closing`.
    Leaving(Leave),
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
        /// Who asked; `None`: we did, for its client has gone.
        requester: Option<ClientKey>,
    },
    /// To carry one CancelRequest to another pooler.
    Forward {
        /// The other pooler's number.
        peer: u16,
        /// Who asked.
        requester: ClientKey,
    },
    /// To find out whether PostgreSQL stands still.
    Probe {
        /// The server that has not ended when it was told to.
        overdue: ServerKey,
    },
}

impl State {
    /// The other pooler that it is a connection to.
    pub fn peer(&self) -> Option<u16> {
        match *self {
            State::Connecting(Purpose::Forward { peer, .. })
            | State::AskingForTls(Purpose::Forward { peer, .. })
            | State::StartingTls(Purpose::Forward { peer, .. })
            | State::Forwarding { peer, .. } => Some(peer),
            _ => None,
        }
    }
}

/// How far it is with a server that has to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It has been told, and is expected to go at once. Leaves to `Overdue`, `Busy`, or the end.
    Told {
        /// When.
        since: Instant,
    },
    /// It did not go: whether PostgreSQL stands still is being found out. Leaves to `Last`,
    /// `Busy`, or the end.
    Overdue,
    /// PostgreSQL lives. It is waited for once more. Leaves to `Busy`, or the end.
    Last,
    /// It has a query to finish. Its place is held as long as nobody has need of it.
    Busy,
}

/// For how long a client that asks one thing after the other may go on. A client is never stopped
/// in the middle of a transaction, nor between messages that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// As long as it likes.
    Unlimited,
    /// Others would have to wait if they came: it has at most so many queries under way.
    Window(u32),
    /// Others wait: after so many it gives the server back.
    Shared(u32),
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

impl ServerAddress {
    /// That of TCP, or the one that the socket file is named after.
    pub fn port(&self) -> u16 {
        match self {
            ServerAddress::Tcp(to) => to.port(),
            ServerAddress::Unix(path) => {
                let port = path.extension().and_then(|port| port.to_str()?.parse().ok());
                port.unwrap_or(0)
            }
        }
    }
}

/// One connection to PostgreSQL, or to another pooler.
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
    /// The statements prepared on it.
    pub statements: ServerStatements,
    /// Its tracked parameters, as it reported them.
    pub parameters: Parameters,
    /// Whose it is; [`PoolKey::NONE`] if it leads to another pooler.
    pub pool: PoolKey,
    /// The client for whom it replicates. It serves nobody else, before or after.
    pub replicates_for: Option<ClientKey>,
    /// See [`Activity`].
    pub activity: Activity,
    /// Which client it worked for last, or works for.
    pub last_client: Option<ClientKey>,
    /// How many queries its client has asked since it got the server.
    pub asked: u32,
    /// Whether the last ReadyForQuery was one within a transaction.
    pub in_transaction: bool,
    /// Whether its last ReadyForQuery told of a transaction that has failed.
    pub transaction_failed: bool,
    /// The key to cancel its queries with.
    pub cancel_key: Vec<u8>,
    /// How many CancelRequests for it have not been sent yet.
    pub cancels_waiting: u32,
    /// How many CancelRequests for it are on their way.
    pub cancels_in_flight: u32,
    /// Whether a client has worked with it since it was opened, or since it was told to forget
    /// everything.
    pub has_served: bool,
    /// Whether anybody has been served by it at all.
    pub has_worked: bool,
    /// Whether it is older than `server_lifetime`, as far as anybody has looked.
    pub has_aged: bool,
    /// To be closed as soon as it is free: what it was opened with holds no more.
    pub close_needed: bool,
    /// A CancelRequest for it may still arrive: it serves its client on, and nobody after that one.
    pub may_be_hit: bool,
    /// The host that it was chosen for, as configured: the name that its certificate must bear.
    /// None for Unix sockets.
    pub tls_name: Option<Box<str>>,
    /// How its line is protected.
    pub line: Line,
    /// Where it is connected to, once known.
    pub address: Option<ServerAddress>,
    /// The host of the list that it is at, with the port.
    pub host: Option<Box<str>>,
    /// When it was begun.
    pub connected_at: Instant,
    /// When it last sent something.
    pub spoke_at: Instant,
    /// When `pool::watch` has it looked at.
    pub watched: Option<Instant>,
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
            statements: ServerStatements::default(),
            parameters,
            pool,
            replicates_for: None,
            activity: Activity::Busy,
            last_client: None,
            asked: 0,
            in_transaction: false,
            transaction_failed: false,
            cancel_key: Vec::new(),
            cancels_waiting: 0,
            cancels_in_flight: 0,
            has_served: false,
            has_worked: false,
            has_aged: false,
            close_needed: false,
            may_be_hit: false,
            tls_name: None,
            line: Line::Plain,
            address: None,
            host: None,
            connected_at: now,
            spoke_at: now,
            watched: None,
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

    /// The client about which it is asked.
    pub fn asker(&self) -> Option<ClientKey> {
        match self.state {
            State::Asking { client, .. } => Some(client),
            _ => None,
        }
    }

    /// How far it is on its way back from a client that has gone.
    pub fn rescue(&self) -> Option<&Rescue> {
        match &self.state {
            State::Rescuing(rescue) => Some(rescue),
            _ => None,
        }
    }

    /// Whether it has no connection yet.
    pub fn is_connecting(&self) -> bool {
        matches!(self.state, State::Connecting(_))
    }

    /// Whether its socket is to be read.
    pub fn wants_read(&self) -> bool {
        match self.state {
            State::Connecting(_) | State::StartingTls(_) | State::Closing => false,
            _ => self.inbox.has_room(),
        }
    }

    /// Whether there is something to write to its socket.
    pub fn wants_write(&self) -> bool {
        !self.egress.is_empty()
            && !matches!(self.state, State::Connecting(_) | State::StartingTls(_))
    }

    /// What to say if it takes too long to be opened. As PgBouncer: only a socket that is being
    /// connected has failed to connect.
    pub fn timeout_reason(&self) -> Reason {
        match self.state {
            State::Connecting(_) if self.address.is_some() => Reason::CONNECT_FAILED,
            _ => Reason::CONNECT_TIMEOUT,
        }
    }

    /// Whether it was opened to find out whether PostgreSQL stands still.
    pub fn is_probe(&self) -> bool {
        matches!(
            self.state,
            State::Connecting(Purpose::Probe { .. }) | State::AskingForTls(Purpose::Probe { .. })
        )
    }

    /// Whether it has to leave, and will do so soon, as far as we know.
    pub fn leaves_soon(&self) -> bool {
        matches!(self.state, State::Leaving(Leave::Told { .. } | Leave::Last))
    }

    /// Why, being free, it cannot serve any more; `None`: it can.
    pub fn why_stale(&self) -> Option<Reason> {
        if self.close_needed || self.may_be_hit {
            Some(Reason::OBSOLETE)
        } else if !self.is_done() {
            Some(Reason::IDLE_GOT_DIRTY)
        } else {
            None
        }
    }

    /// Whether everything asked of it has been answered, and all of that passed on. A notification
    /// may come behind the last answer: the rest of one belongs to whoever got its beginning.
    pub fn is_done(&self) -> bool {
        self.owes_nothing() && self.inbox.unjudged() == 0 && !self.inbox.is_mid_message()
    }

    /// Whether everything asked of it has been answered, though it may be saying something else.
    pub fn owes_nothing(&self) -> bool {
        self.activity == Activity::Ready && self.pipeline.is_empty() && self.egress.is_empty()
    }

    /// Puts a query of our own to it, of which nobody gets the answer.
    pub fn ask_ourselves(&mut self, rings: &mut Rings, sql: &[u8]) -> Result<(), Full> {
        self.activity = Activity::Busy;
        self.pipeline.expect(Request::Query, Action::Swallow);
        self.egress.push_own(rings, |ring| emit::query(ring, sql))
    }

    /// What its last ReadyForQuery told.
    pub fn status(&self) -> TxStatus {
        match (self.in_transaction, self.transaction_failed) {
            (_, true) => TxStatus::Failed,
            (true, false) => TxStatus::InTransaction,
            (false, false) => TxStatus::Idle,
        }
    }

    /// Takes note of what a ReadyForQuery tells.
    pub fn note_status(&mut self, status: TxStatus) {
        self.activity = Activity::after(status);
        self.in_transaction = self.activity == Activity::InTransaction;
        self.transaction_failed = status == TxStatus::Failed;
    }

    /// Whether its client has to be content for now with what it has asked: see [`Turn`].
    pub fn has_asked_enough(&self, turn: Turn) -> bool {
        let depth = match turn {
            Turn::Unlimited => return false,
            Turn::Window(depth) | Turn::Shared(depth) => depth,
        };
        if !self.pipeline.ends_a_round() {
            return false;
        }
        let is_over = matches!(turn, Turn::Shared(_))
            && self.asked >= depth
            && !self.in_transaction
            && (self.activity == Activity::Ready || !self.pipeline.is_empty());
        is_over || self.pipeline.rounds() >= depth as usize
    }

    /// Whether it is sending us its replies to our own query before the client's.
    pub fn is_catching_up(&self) -> bool {
        self.pipeline.is_swallowing()
    }
}

impl Server {
    /// Takes note of all messages at the front of the inbox that are passed on as they are: rows,
    /// and replies in which nothing of ours is involved. That is nearly everything that servers
    /// send, so it is done in one go, and they leave as one run. What needs a closer look, or has
    /// not come in as a whole, is left to [`Server::judge`].
    pub fn take_plain_run(&mut self, rules: Rules) -> Run {
        let Some(ring) = self.inbox.ring() else {
            return Run { bytes: 0, body_left: 0 };
        };
        let bytes = ring.stretch(self.inbox.judged());
        let mut done = 0;
        loop {
            let rows = frame::relay_run(&bytes[done..], &backend::RELAY, rules.max_packet_bytes);
            if rows.bytes > 0 {
                self.activity = Activity::Busy;
                done += rows.bytes;
            }
            if rows.body_left > 0 {
                return Run { bytes: done, body_left: rows.body_left };
            }
            let Some((tag, body)) = frame::whole(&bytes[done..], rules.max_packet_bytes) else {
                break;
            };
            if !self.pipeline.is_plain() {
                break;
            }
            match backend::classify(tag) {
                Message::Reply(reply)
                    if !(reply == Reply::Command && backend::forgets_statements(body)) =>
                {
                    self.pipeline.settle(reply);
                    self.activity = Activity::Busy;
                }
                Message::ReadyForQuery => match backend::ready_for_query(body) {
                    Some(status) if rules.allows(status) => {
                        self.pipeline.on_ready_for_query();
                        self.activity = Activity::after(status);
                        self.in_transaction = self.activity == Activity::InTransaction;
                        self.transaction_failed = status == TxStatus::Failed;
                    }
                    _ => break,
                },
                _ => break,
            }
            done += HEADER_BYTES + body.len();
        }
        Run { bytes: done, body_left: 0 }
    }
}

/// What judging a linked server's messages depends on.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// `max_packet_size`
    pub max_packet_bytes: u32,
    /// How it is shared. Statement pooling knows no transactions.
    pub mode: PoolMode,
}

impl Rules {
    /// Whether a server may report this at the end of an exchange.
    pub fn allows(self, status: TxStatus) -> bool {
        status == TxStatus::Idle || self.mode != PoolMode::Statement
    }
}

impl Activity {
    /// What a ReadyForQuery tells.
    pub fn after(status: TxStatus) -> Self {
        match status {
            TxStatus::Idle => Activity::Ready,
            TxStatus::InTransaction | TxStatus::Failed => Activity::InTransaction,
        }
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
    /// As `Reply(Reply::Command)`, of a command that forgets all prepared statements.
    Forgotten,
    /// The server expects CopyData.
    CopyIn,
    /// Something failed.
    Error,
    /// Somebody notified; leaves the server as ready as it was.
    Notification,
    /// An exchange is over.
    Ready(TxStatus),
}

/// Whether a CommandComplete of this length may tell of forgotten statements, and must be read.
fn may_be_forgotten(bytes: u64) -> bool {
    backend::FORGETTING_TAGS.iter().any(|tag| bytes == (HEADER_BYTES + tag.len()) as u64)
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
            Message::Reply(Reply::Command) if may_be_forgotten(bytes) => {
                if !self.inbox.has(bytes) {
                    return Verdict::NeedMore;
                }
                match backend::forgets_statements(&self.inbox.window(HEADER_BYTES as u64, bytes)) {
                    true => Note::Forgotten,
                    false => Note::Reply(Reply::Command),
                }
            }
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
            Message::Unknown => {
                log::error!("unknown pkt: '{}'", char::from(header.tag));
                return Verdict::Close(Reason::UNKNOWN_PACKET);
            }
        };
        Verdict::Pass { bytes, note }
    }

    fn ready_status(&self, bytes: u64) -> Option<TxStatus> {
        let ring = self.inbox.ring().filter(|_| bytes == 6)?;
        backend::ready_for_query(&ring.array::<1>(self.inbox.judged() + 5)?)
    }
}
