//! Why a connection ends: the words for the log and for the peer, and the SQLSTATE.
//!
//! These texts are interface: people and scripts search for them. Each stands in the contract.

use crate::wire::sqlstate::{self, SqlState};
use std::borrow::Cow;

/// Texts that we make up are cut to this many bytes.
const MAX_TEXT_BYTES: usize = 127;
/// The part of a cached login error that is repeated to clients.
pub const MAX_CACHED_BYTES: usize = 99;

/// Why a client or server connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A reason that is just its text, told to the client before it is closed.
    Told(&'static str),
    /// A reason that only the log gets to know.
    Silent(&'static str),
    /// As `Told`, with something inserted.
    ToldOf(String),
    /// The server's own error, passed on.
    ServerSays {
        /// Its SQLSTATE, if it sent one.
        code: SqlState,
        /// Its message.
        text: String,
    },
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $kind:ident($text:literal);)+) => {
        impl Reason {
            $($(#[$doc])* pub const $name: Reason = Reason::$kind($text);)+
        }
    };
}

reasons! {
    /// Terminate.
    CLIENT_CLOSE_REQUEST = Silent("client close request");
    /// The client's socket ended without Terminate.
    CLIENT_UNEXPECTED_EOF = Silent("client unexpected eof");
    /// Writing to the client failed.
    UNEXPECTED_EOF = Silent("unexpected eof");
    /// A message that has no place in a login.
    BAD_PACKET = Silent("bad packet");
    /// A CancelRequest of the wrong length.
    BAD_CANCEL_REQUEST = Silent("bad cancel request");
    /// A CancelRequest with a key of nobody.
    FAILED_CANCEL_REQUEST = Silent("failed cancel request");
    /// A CancelRequest for a client that has no server.
    CANCEL_FOR_IDLE_CLIENT = Silent("cancel request for idle client");
    /// A CancelRequest for a client of the admin console.
    CANCEL_FOR_CONSOLE = Silent("cancel request for console client");
    /// A CancelRequest for a client that waited for a server.
    CANCEL_OF_WAITING = Silent("successfully cancelled query that waited for a server");
    /// A CancelRequest while parameters are being set.
    CANCEL_WHILE_SETTING = Silent("ignoring cancel request for server that is setting vars");
    /// The query to be cancelled ended before the request could be sent.
    CANCEL_TOO_LATE = Silent("not sending cancel request for client that is now idle");
    /// A probe was answered: PostgreSQL does not stand still.
    PROBE_ANSWERED = Silent("PostgreSQL is alive");
    /// The request could not be sent.
    CANCEL_NOT_SENT = Silent("failed to send cancel request");
    /// The server has taken the request.
    CANCEL_SENT = Silent("successfully sent cancel request");
    /// The request waited too long.
    CANCEL_WAIT_TIMEOUT = Silent("cancel_wait_timeout");
    /// The carrying connection is not needed any more.
    CANCEL_GIVEN_UP =
        Silent("client gave up on cancel request, so we also give up forwarding to server");

    /// A CancelRequest that has gone from pooler to pooler too often.
    CANCEL_TOO_MANY_HOPS =
        Silent("failed to forward cancel request because its TTL was exhausted");
    /// A CancelRequest for a pooler that is not among our peers.
    CANCEL_WITHOUT_PEER = Silent("could not find peer to forward request to");
    /// The operator has taken away the pooler that the request was meant for.
    PEER_REMOVED = Silent("peer removed");

    /// An SSLRequest through TLS.
    SSL_INSIDE_SSL = Silent("SSL req inside SSL");
    /// The answer to an SSLRequest cannot be sent.
    SSL_NOT_ANSWERED = Silent("failed to ack SSL");

    /// A Startup without TLS, where that is required.
    SSL_REQUIRED = Told("SSL required");
    /// Bytes behind an SSLRequest (reliability 7).
    DATA_AFTER_SSL = Told("received unencrypted data after SSL request");
    /// Bytes behind a GSSENCRequest (reliability 7).
    DATA_AFTER_GSSENC = Told("received unencrypted data after GSSAPI encryption request");
    /// A Startup of protocol 2.
    OLD_PROTOCOL = Told("old V2 protocol not supported");
    /// A PasswordMessage that nobody asked for yet.
    PASSWORD_BEFORE_STARTUP = Told("client password pkt before startup packet");
    /// `options` is not a list of settings.
    BAD_OPTIONS = Told(
        "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed"
    );
    /// The Startup does not end as it must.
    BAD_STARTUP_LAYOUT =
        Told("invalid startup packet layout: expected terminator as last byte");
    /// No `user` in the Startup.
    NO_USERNAME = Told("no username supplied");
    /// More than 127 bytes.
    USERNAME_TOO_LONG = Told("username too long");
    /// `max_client_conn` is reached.
    TOO_MANY_CLIENTS = Told("no more connections allowed (max_client_conn)");
    /// `max_db_client_connections` is reached.
    TOO_MANY_DATABASE_CLIENTS = Told("client connections exceeded (max_db_client_connections)");
    /// `max_user_client_connections` is reached.
    TOO_MANY_USER_CLIENTS = Told("client connections exceeded (max_user_client_connections)");
    /// `auth_type` is `trust` and the user is not known.
    TRUST_FAILED = Told("\"trust\" authentication failed");
    /// The rule that counts for him says so.
    LOGIN_REJECTED = Told("login rejected");
    /// No rule counts for him.
    NO_METHOD = Told("no authentication method is found");
    /// The user of this system at the other end is somebody else.
    PEER_REJECTED = Told("unix socket login rejected");
    /// No certificate, or that of somebody else.
    CERTIFICATE_FAILED = Told("certificate authentication failed");
    /// A Startup behind a Startup.
    STARTUP_AGAIN = Told("client re-sent startup pkt");
    /// The side thread has more to do than it will get done in time.
    TOO_MANY_PROOFS = Told("too many passwords are being checked, try again later");
    /// `auth_type` is `ldap`, without a word about how.
    NO_LDAP_OPTIONS = Told("auth_ldap_options is null");
    /// The directory does not know this password, or cannot be asked.
    LDAP_FAILED = Told("LDAP authentication failed");
    /// `auth_type` is `any` and the database has no forced user; and the like.
    CONFIG_ERROR = Told("bouncer config error");
    /// `auth_query` knows nobody of this name.
    NO_SUCH_USER = Told("no such user");
    /// Login took too long.
    CLIENT_LOGIN_TIMEOUT = Told("client_login_timeout");
    /// Login took too long because no server could be reached.
    CLIENT_LOGIN_TIMEOUT_SERVER_DOWN = Told("client_login_timeout (server down)");
    /// Waited too long for a server.
    QUERY_WAIT_TIMEOUT = Told("query_wait_timeout");
    /// Waited for a server for as long as a query may take.
    QUERY_TIMEOUT = Told("query_timeout");
    /// Was silent for too long, without a server.
    CLIENT_IDLE_TIMEOUT = Told("client_idle_timeout");
    /// The welcome does not fit.
    WELCOME_FAILED = Told("failed to prepare welcome message");
    /// Neither in `admin_users` nor in `stats_users`.
    NOT_ALLOWED = Told("not allowed");
    /// A message to the console that no command can be.
    QUERY_TOO_LONG = Told("query too long");
    /// Terminate, on the console.
    CONSOLE_CLOSE_REQUEST = Silent("close req");
    /// Somebody on the console takes nothing more.
    DEAD_ADMIN = Silent("dead admin");
    /// Somebody on the console wants it so.
    ADMIN_DISCONNECT = Told("admin forced disconnect");
    /// `disable_pqexec` is on.
    PQEXEC_DISALLOWED = Told("PQexec disallowed");
    /// A name in a Parse, Bind, Describe or Close that does not end.
    UNPARSABLE_PACKET = Told("failed to parse packet");
    /// A Parse without its types.
    BROKEN_PARSE = Told("broken Parse packet");
    /// A Bind without its names.
    BROKEN_BIND = Told("broken Bind packet");
    /// A Describe that does not end where its name does.
    BROKEN_DESCRIBE = Told("broken Describe packet");
    /// A Close that does not end where its name does.
    BROKEN_CLOSE = Told("broken Close packet");
    /// A Parse of a name that means something already.
    STATEMENT_NAME_IN_USE = Told("prepared statement name is already in use");
    /// Something else in the middle of a COPY. PostgreSQL's words.
    OUT_OF_STEP = Told("terminating connection because protocol synchronization was lost");
    /// A name that means nothing.
    NO_SUCH_STATEMENT = Told("prepared statement did not exist");
    /// A server is needed, and we wait for the last server to end.
    SERVER_SHUTTING_DOWN = Told("server shutting down");
    /// Who logs in now comes too late.
    POOLER_SHUTTING_DOWN = Told("pooler is shutting down");
    /// A type byte that the protocol does not know.
    UNKNOWN_PACKET = Told("unknown pkt");

    /// The server's socket ended.
    SERVER_CRASHED = Told("server conn crashed?");
    /// Writing to the server failed.
    SERVER_CONNECTION_CLOSED = Told("server connection closed");
    /// Statement pooling does not do transactions.
    TRANSACTION_IN_STATEMENT_MODE =
        Told("transaction blocks not allowed in statement pooling mode");
    /// A tracked parameter could not be set.
    INVALID_SERVER_PARAMETER = Told("invalid server parameter");
    /// The database's entry changed.
    DATABASE_CHANGED = Told("database configuration changed");
    /// The database's entry has gone.
    DATABASE_REMOVED = Told("database removed");
    /// It is free, and nobody may get it.
    PAUSE_MODE = Told("pause mode");
    /// It held up a suspension for too long.
    SUSPEND_TIMEOUT = Told("suspend_timeout");
    /// What a suspended process cannot hand over.
    UNSAFE_ON_SUSPEND = Told("close unsafe file descriptors on suspend");
    /// A header that cannot be.
    BAD_SERVER_HEADER = Told("bad pkt header");
    /// A ParameterStatus that is none.
    BROKEN_PARAMETER_STATUS = Told("broken ParameterStatus packet");
    /// A ParameterStatus too large to be kept.
    UNSTORABLE_PARAMETER_STATUS = Told("failed to store ParameterStatus");
    /// A message that has no place in a server's login.
    UNKNOWN_PACKET_FROM_SERVER = Told("unknown pkt from server");
    /// A BackendKeyData that is too short.
    BAD_CANCEL_KEY = Told("bad cancel key");
    /// We cannot do what the server asks for.
    AUTHREQ_FAILED = Told("failed to answer authreq");
    /// The server does not speak TLS, which is required.
    SERVER_REFUSED_SSL = Told("server refused SSL");
    /// Neither yes nor no to our SSLRequest.
    BAD_SSL_ANSWER = Told("bad sslreq answer");
    /// Bytes behind a server's answer to our SSLRequest (reliability 7).
    DATA_AFTER_SSL_ANSWER = Told("received unencrypted data after SSL response");
    /// TLS with servers cannot be set up.
    SSL_SETUP_FAILED = Told("sslreq processing failed");
    /// The question about a user does not fit.
    AUTH_QUERY_UNSENT = Told("unable to send auth_query");
    /// The Startup to the server does not fit.
    STARTUP_FAILED = Told("startup pkt failed");
    /// No connection.
    CONNECT_FAILED = Told("connect failed");
    /// No connection, or no login, in time.
    CONNECT_TIMEOUT = Told("connect timeout");
    /// No address to connect to.
    CANNOT_CONNECT = Told("cannot connect");
    /// No address for the name.
    DNS_FAILED = Told("server DNS lookup failed");
    /// The entry changed while we were logging in.
    CONNECT_STRING_CHANGED = Told("connect string changed");
    /// A query took too long. Spelt unlike that of a client that waits.
    QUERY_TIMED_OUT = Told("query timeout");
    /// Nothing was asked inside of a transaction for too long.
    IDLE_TRANSACTION_TIMEOUT = Told("idle transaction timeout");
    /// A transaction took too long.
    TRANSACTION_TIMEOUT = Told("transaction timeout");
    /// The client left in mid-query or mid-transaction.
    CLIENT_LEFT_NOT_READY = Told("client disconnect while server was not ready");
    /// The client left with replies owed.
    CLIENT_LEFT_IN_PROGRESS = Told("client disconnected with query in progress");
    /// The client left with its messages not all sent.
    CLIENT_LEFT_UNSENT = Told("client disconnect before everything was sent to the server");
    /// Marked for closing, and now free.
    CLOSE_NEEDED = Told("close_needed");
    /// Marked for closing, found when it should serve.
    OBSOLETE = Told("obsolete connection");
    /// Said something while idle that it must not, found when it should serve.
    IDLE_GOT_DIRTY = Told("idle server got dirty");
    /// Its client went in the middle of something, and it could not be brought back in time.
    RESCUE_TIMEOUT = Told("server rescue timeout");
    /// The same, and it would not roll back or be reset.
    RESCUE_FAILED = Told("server rescue failed");
    /// The same, found before.
    SV_IDLE_GOT_DIRTY = Told("SV_IDLE server got dirty");
    /// The same of one that was to be tried out.
    SV_USED_GOT_DIRTY = Told("SV_USED server got dirty");
    /// Has been free for too long.
    SERVER_IDLE_TIMEOUT = Told("server idle timeout");
    /// Is too old.
    SERVER_LIFETIME_OVER = Told("server lifetime over");
    /// The query that checks it could not be sent, or was not answered.
    TEST_QUERY_FAILED = Told("test query failed");
    /// It refused to let a client in that wants to replicate.
    LOGIN_FAILED = Told("login failed");
    /// Its client, for whom it replicated, has gone.
    REPLICATION_CLIENT_CLOSED = Told("replication client was closed");
    /// So it has, while we were logging in.
    REPLICATION_CLIENT_DISCONNECTED = Told("replication client disconnected");
    /// It is idle, and its place is needed for a server of another pool.
    EVICTED = Told("evicted");
    /// The pool has become smaller.
    TOO_MANY_SERVERS = Told("too many servers in the pool");
    /// The reset query could not be sent.
    RESET_FAILED = Told("reset query failed");
    /// The connect query could not be sent.
    CONNECT_QUERY_FAILED = Told("exec_on_connect query failed");
}

impl Reason {
    /// `no such database: …`; the name is cut to what a name may have.
    pub fn no_such_database(name: &str) -> Self {
        Reason::ToldOf(format!("no such database: {}", cut(name, 63)))
    }

    /// `bad packet header: '…'`
    pub fn bad_header(hex: &str) -> Self {
        Reason::ToldOf(format!("bad packet header: '{hex}'"))
    }

    /// `server login has been failing, …`
    pub fn login_failing(cached: &str) -> Self {
        let cached = cut(cached, MAX_CACHED_BYTES);
        Reason::ToldOf(format!(
            "server login has been failing, cached error: {cached} (server_login_retry)"
        ))
    }

    /// The text, cut as the contract cuts it. A server's own words are passed on whole.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Reason::Told(text) | Reason::Silent(text) => Cow::Borrowed(text),
            Reason::ToldOf(text) => Cow::Borrowed(cut(text, MAX_TEXT_BYTES)),
            Reason::ServerSays { text, .. } => Cow::Borrowed(text),
        }
    }

    /// The SQLSTATE that goes with it.
    pub fn code(&self) -> SqlState {
        match self {
            Reason::ServerSays { code, .. } => *code,
            _ => sqlstate::PROTOCOL_VIOLATION,
        }
    }

    /// Whether the client is told before its connection closes.
    pub fn is_told(&self) -> bool {
        !matches!(self, Reason::Silent(_))
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

/// The first `bytes` of a text, less if that would cut a character in two.
pub fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_as_the_contract_says() {
        let long = Reason::ToldOf(format!("unsupported startup parameter: {}", "x".repeat(200)));
        assert_eq!(long.text().len(), 127);
        assert!(Reason::no_such_database(&"d".repeat(99)).text().len() == 18 + 63);
        let failing = Reason::login_failing(&"e".repeat(200));
        assert_eq!(failing.text().len(), 127);
        assert_eq!(cut("aé", 2), "a");
        let server = Reason::ServerSays { code: *b"3D000", text: "t".repeat(600) };
        assert_eq!(server.text().len(), 600, "D15: a server's words are not lost for their length");
    }
}
