//! A client: what it is doing, and what its next message asks for.

use crate::keys::{ClientKey, PoolKey, ServerKey};
use crate::session::call_off::CallOff;
use crate::session::cancel_key::{self, Tail};
use crate::session::client_login::{Pending, Proving, Replicator};
use crate::session::egress::Egress;
use crate::session::farewell::Reason;
use crate::session::inbox::Inbox;
use crate::session::line::Line;
use crate::session::params::Parameters;
use crate::session::prepared::{Carried, ClientStatements};
use crate::session::server::Turn;
use crate::wire::frame::{HEADER_BYTES, Header, Peek};
use crate::wire::frontend::{self, Message, Request};
use std::time::{Duration, Instant};

/// What a client is doing. Each value makes sense in its state alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Connected; has not said yet, or not proven, who it is. Leaves to `AwaitingAccount`,
    /// `Proving`, `AwaitingWelcome`, `Idle`, `AwaitingCancel`, `Closing`.
    LoggingIn,
    /// Has said who it is, and has to prove it. Leaves to `LoggingIn`, `AwaitingWelcome`, `Idle`,
    /// `Closing`.
    Proving(Box<Proving>),
    /// Has said who it is, and a database is being asked about that (`auth_query`). Not read.
    /// Leaves to `LoggingIn`, `Closing`.
    AwaitingAccount {
        /// The pool through which we ask.
        pool: PoolKey,
        /// The server that was asked; `None`: it waits for its turn.
        server: Option<ServerKey>,
        /// Since when.
        since: Instant,
    },
    /// May log in, but its pool has no server yet from which to learn the welcome. Queued, not
    /// read. Leaves to `Idle`, `Closing`.
    AwaitingWelcome {
        /// Since when.
        since: Instant,
    },
    /// Logged in, without a server. Leaves to `Active`, `Waiting`, `Closing`.
    Idle,
    /// Its next message needs a server and there is none. Queued, not read. Leaves to `Active`,
    /// `Closing`.
    Waiting {
        /// Since when.
        since: Instant,
        /// Whether it has been told that it waits.
        is_told: bool,
    },
    /// A server works for it. Leaves to `Idle`, `Closing`.
    Active {
        /// Which one.
        server: ServerKey,
        /// Whether it may send CopyData: since CopyInResponse, until it sends the end of it.
        copying_in: bool,
    },
    /// It asked to cancel what this server is doing, and that waits for a connection to carry the
    /// request. Not read. Leaves to `Cancelling`, `Closing`.
    AwaitingCancel {
        /// Whose query is to be cancelled.
        target: ServerKey,
        /// The connection being opened to carry the request.
        carrier: Option<ServerKey>,
        /// Since when.
        since: Instant,
    },
    /// It asked to cancel what only another pooler knows of, and that waits for a connection to
    /// carry the request there. Not read. Leaves to `Cancelling`, `Closing`.
    AwaitingPeer(Box<Forward>),
    /// Its request is on the way. Leaves to `Closing`.
    Cancelling {
        /// The connection that carries it.
        carrier: ServerKey,
        /// The pooler that it is meant for, if not PostgreSQL.
        peer: Option<u16>,
    },
    /// On the admin console. Its messages are the console's business: see
    /// `Effect::Attend`. Leaves to `Closing`.
    Console {
        /// What it may do there.
        rights: Rights,
    },
    /// Gone at the end of the turn.
    Closing,
}

/// A CancelRequest that is to be handed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The number of the pooler that it is meant for.
    pub peer: u16,
    /// The key, one hop further than it came.
    pub key: Box<[u8]>,
    /// The connection being opened to carry it.
    pub carrier: Option<ServerKey>,
    /// Since when it has waited.
    pub since: Instant,
}

/// Which limits a client is counted for. Changed by `pool::groups` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counted {
    /// None yet, or none any more.
    #[default]
    Nowhere,
    /// That of its user: its database does not exist.
    User,
    /// Those of its user and of the console.
    Console,
    /// Those of its user and of its pool's database.
    Pool,
}

/// What somebody may do on the admin console; see `console::rights` for the verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rights {
    /// Look at most of it.
    Stats,
    /// Everything.
    Admin,
}

/// Where a connection stands in the queue it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook<K> {
    /// Who is before it.
    pub previous: Option<K>,
    /// Who is behind it.
    pub next: Option<K>,
}

impl<K> Default for Hook<K> {
    fn default() -> Self {
        Self { previous: None, next: None }
    }
}

/// One client connection. Idle, it owns no buffer.
#[derive(Debug)]
pub struct Client {
    /// Changed by `pool::queues` alone.
    pub state: State,
    /// What it has sent.
    pub inbox: Inbox,
    /// What it is owed.
    pub egress: Egress,
    /// Its tracked parameters.
    pub parameters: Parameters,
    /// Whether some server has accepted those values. Until then they are the client's raw words.
    pub parameters_proven: bool,
    /// The prepared statements that it has named.
    pub statements: Option<Box<ClientStatements>>,
    /// The one that it has given no name.
    pub unnamed: Carried,
    /// An error makes us ignore all that it says up to its next Sync.
    pub skips_to_sync: bool,
    /// What it has cancelled while no server worked for it.
    pub call_off: CallOff,
    /// Its login, while that waits for something.
    pub login: Option<Box<Pending>>,
    /// What it wants, if that is to replicate: then a server of its own.
    pub replicator: Option<Box<Replicator>>,
    /// Its pool, once its database and user are known.
    pub pool: Option<PoolKey>,
    /// What it counts for.
    pub counted: Counted,
    /// Whether it asked for the admin console, which is no pool.
    pub on_console: bool,
    /// Its login name, once known.
    pub user: Option<Box<str>>,
    /// What it waits for, or waited for last: a `pool::causes::Cause`.
    pub wait_cause: u8,
    /// Where it came from.
    pub from: ClientAddress,
    /// How its line is protected.
    pub line: Line,
    /// Its secret key for CancelRequests.
    pub secret: cancel_key::Short,
    /// The rest of that, from protocol 3.2 on.
    pub secret_tail: Option<Box<Tail>>,
    /// When it was accepted.
    pub connected_at: Instant,
    /// When it last sent something.
    pub spoke_at: Instant,
    /// Since when nothing has been under way for it: its login, or what its last server sent.
    pub served_at: Instant,
    /// How long it may wait for a server at most; zero: as long as it likes.
    pub patience: Duration,
    /// When `pool::watch` has it looked at.
    pub watched: Option<Instant>,
    /// When the query began that is not answered yet: with its first message, before a server was
    /// found.
    pub query_since: Option<Instant>,
    /// When the transaction began that is not over yet.
    pub transaction_since: Option<Instant>,
    /// Its place among those that wait.
    pub hook: Hook<ClientKey>,
    /// Whether it is on the list of connections with work to do.
    pub is_runnable: bool,
}

impl Client {
    /// A client that has just been accepted.
    pub fn new(
        from: ClientAddress,
        secret: cancel_key::Short,
        parameters: Parameters,
        now: Instant,
    ) -> Self {
        Self {
            state: State::LoggingIn,
            inbox: Inbox::default(),
            egress: Egress::default(),
            parameters,
            parameters_proven: false,
            statements: None,
            unnamed: Carried::default(),
            skips_to_sync: false,
            call_off: CallOff::Nothing,
            login: None,
            replicator: None,
            pool: None,
            counted: Counted::Nowhere,
            on_console: false,
            user: None,
            wait_cause: 0,
            from,
            line: Line::Plain,
            secret,
            secret_tail: None,
            connected_at: now,
            spoke_at: now,
            served_at: now,
            patience: Duration::ZERO,
            watched: None,
            query_since: None,
            transaction_since: None,
            hook: Hook::default(),
            is_runnable: false,
        }
    }

    /// Whether it has not proven yet who it is, and may speak.
    pub fn is_logging_in(&self) -> bool {
        matches!(self.state, State::LoggingIn | State::Proving(_))
    }

    /// The server that works for it.
    pub fn server(&self) -> Option<ServerKey> {
        match self.state {
            State::Active { server, .. } => Some(server),
            _ => None,
        }
    }

    /// Whether its socket is to be read. Who waits is not read, so that TCP holds it back.
    pub fn wants_read(&self) -> bool {
        let may_speak = match self.state {
            // During a handshake what comes in is the shell's business.
            State::LoggingIn => !self.line.is_starting(),
            State::Idle | State::Active { .. } | State::Console { .. } => true,
            State::Proving(ref proving) => proving.step.awaits_answer(),
            State::AwaitingAccount { .. }
            | State::AwaitingWelcome { .. }
            | State::Waiting { .. }
            | State::AwaitingCancel { .. }
            | State::AwaitingPeer(_)
            | State::Cancelling { .. }
            | State::Closing => false,
        };
        may_speak && self.inbox.has_room()
    }

    /// Whether there is something to write to its socket.
    pub fn wants_write(&self) -> bool {
        !self.egress.is_empty()
    }

    /// Whether its next message may be looked at. Not before it has taken what a former server
    /// left for it: so at most one such ring is held for it, and a client that reads nothing stops
    /// only itself.
    pub fn may_go_on(&self) -> bool {
        match self.state {
            State::Idle => !self.egress.has_kept(),
            State::Active { .. } => true,
            _ => false,
        }
    }

    /// Whether it has given names to statements.
    pub fn has_named(&self) -> bool {
        self.statements.as_ref().is_some_and(|statements| !statements.is_empty())
    }

    /// Whether it may send CopyData.
    pub fn is_copying_in(&self) -> bool {
        matches!(self.state, State::Active { copying_in: true, .. })
    }
}

/// What to do with a client's next message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has not come in far enough.
    NeedMore,
    /// Pass it on to the linked server, which owes a reply if it is a request.
    Relay {
        /// The whole message.
        bytes: u64,
        /// What is owed for it.
        request: Option<Request>,
    },
    /// A server is needed before it can be judged.
    NeedServer,
    /// It names a prepared statement and has come in as far as we must see it.
    Named {
        /// The whole message.
        bytes: u64,
        /// Parse, Bind, Describe or Close.
        request: Request,
    },
    /// It is nothing but `DEALLOCATE name`, and the name is one that we follow.
    Deallocate {
        /// The whole message.
        bytes: u64,
    },
    /// A Parse that must be seen whole and fits no ring.
    Collect {
        /// The whole message.
        bytes: u64,
    },
    /// The rest of a COPY that is over: nobody wants it.
    Drop {
        /// The whole message.
        bytes: u64,
    },
    /// The conversation ends.
    Close(Reason),
}

/// The settings that judging depends on.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// `max_packet_size`
    pub max_packet_bytes: u32,
    /// `disable_pqexec`
    pub disable_pqexec: bool,
    /// For how long it may go on asking.
    pub turn: Turn,
    /// Whether it gives its server back before it leaves: not in session pooling, nor if it
    /// replicates.
    pub gives_back: bool,
    /// Whether prepared statements follow the client: only if it gives its server back.
    pub tracks_statements: bool,
}

impl Client {
    /// Judges the next message of a client that has logged in.
    pub fn judge(&self, rules: Rules) -> Verdict {
        let header = match self.inbox.peek(rules.max_packet_bytes) {
            Peek::NeedMore => return Verdict::NeedMore,
            Peek::Bad => return Verdict::Close(Reason::bad_header(&self.inbox.hex())),
            Peek::Header(header) => header,
        };
        let message = frontend::classify(header.tag);
        match message {
            Message::Unknown => {
                log::error!("unknown pkt from client: {0}/0x{0:x}", header.tag);
                return Verdict::Close(Reason::UNKNOWN_PACKET);
            }
            Message::Terminate => return Verdict::Close(Reason::CLIENT_CLOSE_REQUEST),
            Message::Request(Request::Query) if rules.disable_pqexec => {
                log::error!("client used \"Query\" packet type");
                return Verdict::Close(Reason::PQEXEC_DISALLOWED);
            }
            Message::Request(Request::Query) if rules.tracks_statements => {
                if let Some(verdict) = self.judge_forgetting(header.bytes) {
                    return verdict;
                }
            }
            Message::Request(request) if rules.tracks_statements => {
                if let Some(verdict) = self.judge_named(request, header.bytes) {
                    return verdict;
                }
            }
            _ => {}
        }
        match self.state {
            State::Active { .. } => relay(header, message),
            State::Idle => without_server(header, message),
            _ => Verdict::NeedMore,
        }
    }
}

impl Client {
    /// Whether its next message, a simple query, may be `DEALLOCATE ALL` or the like. Behind that
    /// nobody knows what the server has until it has answered: what the client says next waits for
    /// it. `None`: too little of the query has come in.
    pub fn may_forget_statements(&self, bytes: u64) -> Option<bool> {
        let head = HEADER_BYTES as u64;
        let here = bytes.min(self.inbox.unjudged());
        let first = self.inbox.ring().filter(|_| here > head)?;
        let [first] = first.array::<1>(self.inbox.judged() + head)?;
        if frontend::is_harmless(first) {
            return Some(false);
        }
        let begin = self.inbox.window(head, here.min(head + frontend::FIRST_WORDS_BYTES as u64));
        frontend::may_forget_statements(&begin, here == bytes)
    }

    /// Whether its next message, a Parse of the unnamed statement, is of a command that may.
    pub fn parses_what_forgets(&self, bytes: u64) -> bool {
        let head = HEADER_BYTES as u64 + 1;
        let here = bytes.min(self.inbox.unjudged()).min(head + frontend::FIRST_WORDS_BYTES as u64);
        here > head
            && frontend::may_forget_statements(&self.inbox.window(head, here), true) == Some(true)
    }

    /// Judges a simple query. `None`: it forgets no name that we know of, or all of them.
    fn judge_forgetting(&self, bytes: u64) -> Option<Verdict> {
        let is_whole = self.inbox.unjudged() >= bytes;
        match self.may_forget_statements(bytes) {
            // What it may do to statements has to be seen from its beginning.
            None => (!is_whole).then_some(Verdict::NeedMore),
            Some(false) => None,
            Some(true) => {
                let statements = self.statements.as_ref().filter(|known| !known.is_empty())?;
                if bytes > (HEADER_BYTES + frontend::DEALLOCATE_BYTES) as u64 {
                    return None;
                }
                if !is_whole {
                    return Some(Verdict::NeedMore);
                }
                let name = self.deallocated_name(bytes)?;
                statements.find(&name)?;
                Some(Verdict::Deallocate { bytes })
            }
        }
    }

    /// The name in a simple query that is nothing but `DEALLOCATE name`.
    pub fn deallocated_name(&self, bytes: u64) -> Option<Vec<u8>> {
        frontend::deallocated_name(&self.inbox.window(HEADER_BYTES as u64, bytes))
    }

    /// Judges a message that may name a prepared statement. `None`: it does not.
    fn judge_named(&self, request: Request, bytes: u64) -> Option<Verdict> {
        let here = bytes.min(self.inbox.unjudged());
        let body = self.inbox.window(HEADER_BYTES as u64, here);
        let broken = match request {
            Request::Parse if bytes == HEADER_BYTES as u64 => Reason::UNPARSABLE_PACKET,
            Request::Parse => {
                return match body.first() {
                    None => Some(Verdict::NeedMore),
                    // Nobody knows yet whether its text will be needed again.
                    Some(0) if here < bytes && self.inbox.can_hold(bytes) => {
                        Some(Verdict::NeedMore)
                    }
                    Some(0) => None,
                    Some(_) if !self.inbox.can_hold(bytes) => Some(Verdict::Collect { bytes }),
                    Some(_) if here < bytes => Some(Verdict::NeedMore),
                    Some(_) => Some(Verdict::Named { bytes, request }),
                };
            }
            Request::Bind => match frontend::bind_names(&body) {
                Some((_, [])) => return None,
                Some(_) => return Some(Verdict::Named { bytes, request }),
                None if here == bytes => Reason::UNPARSABLE_PACKET,
                // (What a slow server has not taken may fill the rest of the ring for now.)
                None if !self.inbox.can_hold(here + 1) => Reason::BROKEN_BIND,
                None => return Some(Verdict::NeedMore),
            },
            Request::Describe | Request::Close => {
                let broken = match request {
                    Request::Describe => Reason::BROKEN_DESCRIBE,
                    _ => Reason::BROKEN_CLOSE,
                };
                match body.first() {
                    Some(kind) if *kind != b'S' => return None,
                    _ if here < bytes && self.inbox.can_hold(bytes) => {
                        return Some(Verdict::NeedMore);
                    }
                    _ => match frontend::target(&body) {
                        Ok((_, [])) => return None,
                        Ok(_) => return Some(Verdict::Named { bytes, request }),
                        Err(frontend::Broken) if here == bytes && !ends_a_name(&body) => {
                            Reason::UNPARSABLE_PACKET
                        }
                        Err(frontend::Broken) => broken,
                    },
                }
            }
            _ => return None,
        };
        Some(Verdict::Close(broken))
    }
}

fn relay(header: Header, message: Message) -> Verdict {
    let request = match message {
        Message::Request(request) | Message::CopyEnd(request) => Some(request),
        _ => None,
    };
    Verdict::Relay { bytes: header.bytes, request }
}

fn without_server(header: Header, message: Message) -> Verdict {
    match message {
        Message::CopyData | Message::CopyEnd(_) => Verdict::Drop { bytes: header.bytes },
        _ => Verdict::NeedServer,
    }
}

/// Where a client came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddress {
    /// Over TCP.
    Tcp(std::net::SocketAddr),
    /// Over our Unix socket; what the kernel says of the peer.
    Unix {
        /// Its process, 0 if unknown.
        pid: u32,
        /// Its user, if known.
        uid: Option<u32>,
    },
}

/// Whether there is the end of a name in a Describe or a Close.
fn ends_a_name(body: &[u8]) -> bool {
    body.iter().skip(1).any(|byte| *byte == 0)
}
