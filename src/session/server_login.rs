//! Our login at a server, from the Startup to its first ReadyForQuery.

use crate::auth::answer::{Answer, Credentials, Refusal, Step};
use crate::auth::derivation::{Derivation, ScramKeys};
use crate::session::farewell::Reason;
use crate::session::params::{Parameters, Tracked, Values};
use crate::wire::backend::{self, ErrorFields, TxStatus};

/// So much of a welcome is kept: many times what PostgreSQL sends, and it must fit into one message
/// ring together with what is tracked.
const MAX_UNTRACKED_BYTES: usize = 32 * 1024;

/// What reading a message depends on.
pub struct Tools<'a> {
    /// With what we log in.
    pub credentials: Credentials<'a>,
    /// Whether the database has a `connect_query`.
    pub has_connect_query: bool,
    /// The server's tracked parameters.
    pub parameters: &'a mut Parameters,
    /// Their names.
    pub tracked: &'a Tracked,
    /// Their texts.
    pub values: &'a mut Values,
}

/// Where our login stands. Each message is taken by [`ServerLogin::step`].
#[derive(Debug)]
pub struct ServerLogin {
    phase: Phase,
    /// What clients are welcomed with: every ParameterStatus that is not tracked, as it came.
    untracked: Vec<u8>,
}

#[derive(Debug)]
enum Phase {
    /// Sent the Startup. Leaves to `Settling`.
    Authenticating(Answer),
    /// Accepted; parameters follow. Leaves to `ConnectQuery`, or the login is done.
    Settling,
    /// Sent the database's `connect_query`. When it has ended the login is done.
    ConnectQuery,
}

/// What a message of the server leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The login goes on.
    Go(ServerLoginEvent),
    /// The login is done; this is the part of a welcome that is not tracked.
    Done(Vec<u8>),
    /// The login failed.
    Failed(Failure),
}

/// What the engine has to do besides waiting for the next message.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerLoginEvent {
    /// Nothing.
    None,
    /// Send this in a `p` message.
    Answer(Vec<u8>),
    /// Have this worked out: [`ServerLogin::derived`] takes the result.
    Derive(Derivation),
    /// Send the connect query.
    SendConnectQuery,
    /// Remember the key to cancel queries with.
    CancelKey(Vec<u8>),
    /// Log that the connect query failed; it does not matter otherwise.
    ConnectQueryFailed(ErrorFields),
}

/// Why a login failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server said so.
    Refused(ErrorFields),
    /// We cannot authenticate as it wants, or it cannot. Some of this waiting clients are told.
    NotAnswered(Refusal),
    /// Something else: only the log is told.
    Other(Reason),
}

impl Default for ServerLogin {
    fn default() -> Self {
        Self { phase: Phase::Authenticating(Answer::Start), untracked: Vec::new() }
    }
}

impl ServerLogin {
    /// Takes one message: its tag, and all of it.
    pub fn step(&mut self, message: &[u8], tools: Tools<'_>) -> Next {
        let (tag, body) = (message[0], &message[5..]);
        match (&self.phase, tag) {
            (Phase::Authenticating(_), b'R') => self.on_authentication(body, tools.credentials),
            (Phase::ConnectQuery, b'E') => {
                Next::Go(ServerLoginEvent::ConnectQueryFailed(ErrorFields::parse(body)))
            }
            (_, b'E') => Next::Failed(Failure::Refused(ErrorFields::parse(body))),
            (_, b'N') => Next::Go(ServerLoginEvent::None),
            (_, b'S') => self.on_parameter_status(message, tools),
            (Phase::Settling, b'K') if body.len() >= 8 => {
                Next::Go(ServerLoginEvent::CancelKey(body[..8].to_vec()))
            }
            (Phase::Settling, b'K') => fail(Reason::BAD_CANCEL_KEY),
            (Phase::Settling, b'Z') if tools.has_connect_query => {
                self.phase = Phase::ConnectQuery;
                Next::Go(ServerLoginEvent::SendConnectQuery)
            }
            (Phase::Settling | Phase::ConnectQuery, b'Z') => self.on_ready(body),
            // Its results are nobody's.
            (Phase::ConnectQuery, _) => Next::Go(ServerLoginEvent::None),
            (Phase::Authenticating(_) | Phase::Settling, _) => {
                log::error!("unknown pkt from server: '{}'", tag.escape_ascii());
                fail(Reason::UNKNOWN_PACKET_FROM_SERVER)
            }
        }
    }

    /// What [`ServerLoginEvent::Derive`] asked for.
    pub fn derived(&mut self, keys: &ScramKeys) -> Next {
        match &mut self.phase {
            Phase::Authenticating(answer) => {
                let next = std::mem::take(answer).derived(keys);
                self.answered(next)
            }
            Phase::Settling | Phase::ConnectQuery => Next::Go(ServerLoginEvent::None),
        }
    }

    /// Whether the next message has to wait until the side thread has done its work.
    pub fn is_deriving(&self) -> bool {
        matches!(&self.phase, Phase::Authenticating(answer) if answer.is_deriving())
    }

    /// Whether a message of this kind is nobody's: a result of the connect query, of any size.
    pub fn skips(&self, tag: u8) -> bool {
        matches!(self.phase, Phase::ConnectQuery) && !matches!(tag, b'E' | b'S' | b'Z' | b'N')
    }

    fn on_authentication(&mut self, body: &[u8], credentials: Credentials<'_>) -> Next {
        let Phase::Authenticating(answer) = &mut self.phase else {
            return fail(Reason::UNKNOWN_PACKET_FROM_SERVER);
        };
        match backend::authentication(body) {
            Some(request) => {
                let next = std::mem::take(answer).step(request, credentials);
                self.answered(next)
            }
            None => fail(Reason::AUTHREQ_FAILED),
        }
    }

    fn answered(&mut self, next: Result<(Answer, Step), Refusal>) -> Next {
        let (answer, step) = match next {
            Ok(next) => next,
            Err(refusal) => return Next::Failed(Failure::NotAnswered(refusal)),
        };
        self.phase = Phase::Authenticating(answer);
        Next::Go(match step {
            Step::Send(words) => ServerLoginEvent::Answer(words),
            Step::Derive(derivation) => ServerLoginEvent::Derive(derivation),
            Step::Wait => ServerLoginEvent::None,
            Step::Accepted => {
                self.phase = Phase::Settling;
                ServerLoginEvent::None
            }
        })
    }

    fn on_parameter_status(&mut self, message: &[u8], tools: Tools<'_>) -> Next {
        let Some((name, value)) = backend::parameter_status(&message[5..]) else {
            return fail(Reason::BROKEN_PARAMETER_STATUS);
        };
        match tools.tracked.index_of(name) {
            Some(index) => tools.parameters.set(index, tools.values.intern(value)),
            None if self.untracked.len() + message.len() > MAX_UNTRACKED_BYTES => {
                return fail(Reason::UNSTORABLE_PARAMETER_STATUS);
            }
            None => self.untracked.extend(message),
        }
        Next::Go(ServerLoginEvent::None)
    }

    fn on_ready(&mut self, body: &[u8]) -> Next {
        match backend::ready_for_query(body) {
            Some(TxStatus::Idle) => Next::Done(std::mem::take(&mut self.untracked)),
            // A connect query that leaves a transaction open would be the first client's trouble.
            Some(_) => fail(Reason::CONNECT_QUERY_FAILED),
            None => fail(Reason::BAD_SERVER_HEADER),
        }
    }
}

fn fail(reason: Reason) -> Next {
    Next::Failed(Failure::Other(reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    fn play(connect_query: bool, messages: &[(u8, &[u8])]) -> Next {
        let (tracked, mut values) = (Tracked::new([]), Values::default());
        let (mut login, mut parameters) = (ServerLogin::default(), tracked.unset());
        let mut last = Next::Go(ServerLoginEvent::None);
        for (tag, body) in messages {
            let tools = Tools {
                credentials: Credentials {
                    user: b"u",
                    secret: b"p",
                    client_key: None,
                    end_point: None,
                },
                has_connect_query: connect_query,
                parameters: &mut parameters,
                tracked: &tracked,
                values: &mut values,
            };
            last = login.step(&message(*tag, body), tools);
        }
        last
    }

    const OK: (u8, &[u8]) = (b'R', &[0, 0, 0, 0]);
    const READY: (u8, &[u8]) = (b'Z', b"I");

    #[test]
    fn a_login_collects_what_is_not_tracked() {
        let tracked = (b'S', &b"client_encoding\0UTF8\0"[..]);
        let other = (b'S', &b"server_version\x0015.1\0"[..]);
        let key = (b'K', &[1u8; 8][..]);
        let done = Next::Done(message(b'S', other.1));
        assert_eq!(play(false, &[OK, tracked, other, key, READY]), done);
        assert_eq!(play(true, &[OK, READY]), Next::Go(ServerLoginEvent::SendConnectQuery));
        let query = [OK, READY, (b'T', b""), (b'D', b""), (b'E', b"SERROR\0\0"), other, READY];
        assert_eq!(play(true, &query), done);
    }

    /// Reliability 2, 3: whatever a server answers, it is refused without harm.
    #[test]
    fn a_hostile_server_is_refused() {
        let other = |reason| Next::Failed(Failure::Other(reason));
        assert_eq!(play(false, &[(b'R', b"\0")]), other(Reason::AUTHREQ_FAILED));
        assert_eq!(play(false, &[(b'R', &[0, 0, 0, 5, 1])]), other(Reason::AUTHREQ_FAILED));
        assert_eq!(play(false, &[(b'Z', b"I")]), other(Reason::UNKNOWN_PACKET_FROM_SERVER));
        assert_eq!(play(false, &[OK, OK]), other(Reason::UNKNOWN_PACKET_FROM_SERVER));
        assert_eq!(play(false, &[OK, (b'K', b"short")]), other(Reason::BAD_CANCEL_KEY));
        assert_eq!(play(false, &[OK, (b'S', b"x")]), other(Reason::BROKEN_PARAMETER_STATUS));
        assert_eq!(play(false, &[OK, (b'Z', b"")]), other(Reason::BAD_SERVER_HEADER));
        let nameless = Next::Failed(Failure::Refused(ErrorFields::default()));
        assert_eq!(play(false, &[(b'E', b"")]), nameless);
    }

    proptest! {
        /// Reliability 14: every message cut at every byte, in any order, with noise behind it.
        /// Nobody is let in without an Ok and a ReadyForQuery.
        #[test]
        fn no_login_without_its_messages(
            steps in prop::collection::vec((0usize..9, 0usize..40, prop::collection::vec(any::<u8>(), 0..6)), 1..12),
            connect_query in any::<bool>()
        ) {
            let whole: [(u8, &[u8]); 9] = [
                OK,
                READY,
                (b'R', &[0, 0, 0, 3]),
                (b'R', b"\0\0\0\x05salt"),
                (b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
                (b'S', b"client_encoding\0UTF8\0"),
                (b'K', &[1; 8]),
                (b'E', b"SFATAL\0C28000\0Mno\0\0"),
                (b'?', b"x"),
            ];
            let mut messages: Vec<(u8, Vec<u8>)> = Vec::new();
            for (which, cut, noise) in steps {
                let (tag, body) = whole[which];
                messages.push((tag, [&body[..cut.min(body.len())], &noise].concat()));
            }
            let borrowed: Vec<(u8, &[u8])> =
                messages.iter().map(|(tag, body)| (*tag, body.as_slice())).collect();
            for end in 1..=borrowed.len() {
                let played = play(connect_query, &borrowed[..end]);
                if matches!(played, Next::Done(_)) {
                    prop_assert!(borrowed[..end].contains(&OK), "{borrowed:?}");
                    prop_assert!(borrowed[..end].contains(&READY), "{borrowed:?}");
                }
                if !matches!(played, Next::Go(_)) {
                    break;
                }
            }
        }
    }
}
