//! SHOW CLIENTS, SERVERS, SOCKETS, ACTIVE_SOCKETS and FDS: a row for each connection.

use super::{View, pointer};
use crate::auth::secret::Kind;
use crate::config::CONSOLE;
use crate::console::table::{Cell, Column, Row, Type::Int, Type::Text};
use crate::keys::{Conn, Key};
use crate::pool::queues::{ClientStanding, ServerStanding, client_standing, server_standing};
use crate::session::client::{self, Client, ClientAddress};
use crate::session::client_login::Replication;
use crate::session::egress::Egress;
use crate::session::inbox::{Inbox, Rest};
use crate::session::line::{Line, Secured};
use crate::session::params::APPLICATION_NAME;
use crate::session::server::{self, Server, ServerAddress};
use crate::sys;
use std::time::{Duration, Instant};

pub const COLUMNS: [Column; 21] = [
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int),
    ("local_addr", Text),
    ("local_port", Int),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int),
    ("wait_us", Int),
    ("close_needed", Int),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int),
    ("id", Int),
];

const BUFFER_COLUMNS: [Column; 7] = [
    ("recv_pos", Int),
    ("pkt_pos", Int),
    ("pkt_remain", Int),
    ("send_pos", Int),
    ("send_remain", Int),
    ("pkt_avail", Int),
    ("send_avail", Int),
];

pub fn socket_columns() -> Vec<Column> {
    [&COLUMNS[..], &BUFFER_COLUMNS[..]].concat()
}

/// Where a connection stands among the rows: its pool's names, then a rank within it.
type Place<'a> = (Part<'a>, u8);

/// The parts of a table, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    /// A pool, by its database and user.
    Pool(&'a str, &'a str),
    /// What is on its way to a peer.
    Peer(u16),
    /// Clients that log in.
    LoggingIn,
}

/// All clients that are logged in, pool by pool.
pub fn clients(view: &View<'_>) -> Vec<Conn> {
    let rank = |client: &Client| match client_standing(&client.state) {
        ClientStanding::Active | ClientStanding::Console => Some(0),
        ClientStanding::Waiting => Some(1),
        ClientStanding::AwaitingCancel
        | ClientStanding::CancelDialled
        | ClientStanding::AwaitingPeer => Some(3),
        ClientStanding::Gone if matches!(client.state, client::State::Cancelling { .. }) => Some(2),
        ClientStanding::LoggingIn | ClientStanding::Gone => None,
    };
    sorted(client_places(view, rank))
}

/// All servers, pool by pool.
pub fn servers(view: &View<'_>) -> Vec<Conn> {
    let rank = |server: &Server| {
        Some(match server_standing(&server.state)? {
            ServerStanding::Active => 0,
            ServerStanding::Idle => 1,
            ServerStanding::Used => 2,
            ServerStanding::Tested | ServerStanding::Rescued => 3,
            ServerStanding::Login => 4,
            ServerStanding::Carrier => {
                if server.is_connecting() {
                    4
                } else {
                    5
                }
            }
            ServerStanding::Held => 6,
            ServerStanding::Leaving => return None,
        })
    };
    sorted(server_places(view, rank))
}

/// Both, without those that have to do with cancel requests; at the end those that log in.
pub fn sockets(view: &View<'_>) -> Vec<Conn> {
    let client_rank = |client: &Client| match client_standing(&client.state) {
        ClientStanding::Active | ClientStanding::Console => Some(0),
        ClientStanding::Waiting => Some(1),
        ClientStanding::LoggingIn => Some(9),
        ClientStanding::AwaitingCancel
        | ClientStanding::CancelDialled
        | ClientStanding::AwaitingPeer
        | ClientStanding::Gone => None,
    };
    let server_rank = |server: &Server| match server_standing(&server.state)? {
        ServerStanding::Active => Some(2),
        ServerStanding::Idle => Some(3),
        ServerStanding::Used => Some(4),
        ServerStanding::Tested | ServerStanding::Rescued => Some(5),
        ServerStanding::Login => Some(6),
        ServerStanding::Carrier | ServerStanding::Held | ServerStanding::Leaving => None,
    };
    let mut places = client_places(view, client_rank);
    places.extend(server_places(view, server_rank));
    sorted(places)
}

fn client_places<'a>(
    view: &View<'a>,
    rank: impl Fn(&Client) -> Option<u8>,
) -> Vec<(Place<'a>, Conn)> {
    let house = view.engine.house();
    let place = |client: &'a Client| {
        let rank = rank(client)?;
        let pool = client.pool.and_then(|pool| house.pools.get(pool));
        let part = match (pool, house.peer_of(client)) {
            _ if client.state == client::State::LoggingIn => Part::LoggingIn,
            (_, Some(peer)) => Part::Peer(peer),
            (Some(pool), None) => Part::Pool(&pool.database.name, &pool.user),
            (None, None) => Part::Pool(CONSOLE, CONSOLE),
        };
        Some((part, rank))
    };
    let clients = house.clients.iter();
    clients.filter_map(|(key, client)| Some((place(client)?, Conn::Client(key)))).collect()
}

fn server_places<'a>(
    view: &View<'a>,
    rank: impl Fn(&Server) -> Option<u8>,
) -> Vec<(Place<'a>, Conn)> {
    let house = view.engine.house();
    let place = |server: &Server| {
        let part = match server.state.peer() {
            Some(peer) => Part::Peer(peer),
            None => {
                let pool = house.pools.get(server.pool)?;
                Part::Pool(&pool.database.name, &pool.user)
            }
        };
        Some((part, rank(server)?))
    };
    let servers = house.servers.iter();
    servers.filter_map(|(key, server)| Some((place(server)?, Conn::Server(key)))).collect()
}

fn sorted(mut places: Vec<(Place<'_>, Conn)>) -> Vec<Conn> {
    places.sort_by(|a, b| a.0.cmp(&b.0));
    places.into_iter().map(|(_, conn)| conn).collect()
}

/// What the row of a connection is made of.
struct Facts<'a> {
    letter: &'static str,
    user: &'a str,
    database: &'a str,
    replication: &'static str,
    state: &'static str,
    /// Remote, then ours.
    ends: [(String, i32); 2],
    connected_at: Instant,
    spoke_at: Instant,
    wait: Duration,
    close_needed: bool,
    link: Option<Conn>,
    remote_pid: i32,
    application_name: String,
    statements: usize,
    serial: u32,
    line: &'a Line,
    inbox: &'a Inbox,
    egress: &'a Egress,
}

/// The row of a connection, if that is still there.
pub fn row(view: &View<'_>, conn: Conn, with_buffers: bool) -> Option<Row> {
    let facts = facts(view, conn, with_buffers)?;
    let time = |at: Instant| Cell::text(time_text(view, at));
    let [remote, local] = facts.ends;
    let mut row = vec![
        facts.letter.into(),
        Cell::text(facts.user),
        Cell::text(facts.database),
        facts.replication.into(),
        facts.state.into(),
        Cell::text(remote.0),
        Cell::Int(remote.1),
        Cell::text(local.0),
        Cell::Int(local.1),
        time(facts.connected_at),
        time(facts.spoke_at),
        Cell::count(usize::try_from(facts.wait.as_secs()).unwrap_or(usize::MAX)),
        Cell::count(facts.wait.subsec_micros() as usize),
        Cell::Int(i32::from(facts.close_needed)),
        Cell::text(pointer(conn)),
        Cell::text(facts.link.map(pointer).unwrap_or_default()),
        Cell::Int(facts.remote_pid),
        Cell::text(facts.line.secured().map(Secured::to_string).unwrap_or_default()),
        Cell::text(facts.application_name),
        Cell::count(facts.statements),
        Cell::Int(facts.serial.cast_signed()),
    ];
    if with_buffers {
        row.extend(buffers(facts.inbox, facts.egress));
    }
    Some(row)
}

fn facts<'a>(view: &View<'a>, conn: Conn, as_lists: bool) -> Option<Facts<'a>> {
    match conn {
        Conn::Client(key) => {
            client_facts(view, conn, view.engine.house().clients.get(key)?, as_lists)
        }
        Conn::Server(key) => {
            server_facts(view, conn, view.engine.house().servers.get(key)?, as_lists)
        }
    }
}

fn client_facts<'a>(
    view: &View<'a>,
    conn: Conn,
    client: &'a Client,
    as_lists: bool,
) -> Option<Facts<'a>> {
    use client::State;
    let house = view.engine.house();
    let pool = client.pool.and_then(|pool| house.pools.get(pool));
    let nowhere = if client.on_console { CONSOLE } else { "(nodb)" };
    let state = match (&client.state, as_lists) {
        (State::LoggingIn | State::Proving(_), _) => "cl_login",
        (State::AwaitingAccount { .. }, true) => "cl_waiting",
        (State::AwaitingAccount { .. }, false) => "waiting",
        (State::Active { .. } | State::Idle | State::Console { .. }, true) => "cl_active",
        (State::Waiting { .. } | State::AwaitingWelcome { .. }, true) => "cl_waiting",
        (State::Active { .. }, false) => "active",
        (State::Idle | State::Console { .. }, false) => "idle",
        (State::Waiting { .. } | State::AwaitingWelcome { .. }, false) => "waiting",
        (State::Cancelling { .. }, _) => "active_cancel_req",
        (State::AwaitingCancel { .. } | State::AwaitingPeer(_), _) => "waiting_cancel_req",
        (State::Closing, _) => return None,
    };
    // A command of the console takes no time.
    let since = client.query_since.filter(|_| !client.on_console);
    let wait = since.map_or(Duration::ZERO, |at| view.moment.now.saturating_duration_since(at));
    let port = view.engine.settings().listen_port;
    let (remote, remote_pid) = match client.from {
        ClientAddress::Tcp(address) => ((address.ip().to_string(), i32::from(address.port())), 0),
        ClientAddress::Unix { pid, .. } => (("unix".to_owned(), port), pid.cast_signed()),
    };
    let Conn::Client(key) = conn else {
        return None;
    };
    Some(Facts {
        letter: "C",
        user: client.user.as_deref().unwrap_or("(nouser)"),
        database: pool.map_or(nowhere, |pool| &pool.database.name),
        replication: replication(Some(client)),
        state,
        ends: [remote, local_end(view, conn)],
        connected_at: client.connected_at,
        spoke_at: client.spoke_at,
        wait,
        close_needed: false,
        link: client.server().or_else(|| house.opened_for(key)).map(Conn::Server),
        remote_pid,
        application_name: application_name(view, &client.parameters),
        statements: client.statements.as_ref().map_or(0, |statements| statements.len()),
        serial: key.serial(),
        line: &client.line,
        inbox: &client.inbox,
        egress: &client.egress,
    })
}

fn replication(client: Option<&Client>) -> &'static str {
    match client.and_then(|client| client.replicator.as_ref()).map(|replicator| replicator.kind) {
        None | Some(Replication::No) => "none",
        Some(Replication::Logical) => "logical",
        Some(Replication::Physical) => "physical",
    }
}

fn server_facts<'a>(
    view: &View<'a>,
    conn: Conn,
    server: &'a Server,
    as_lists: bool,
) -> Option<Facts<'a>> {
    use server::State;
    let pool = view.engine.house().pools.get(server.pool);
    let state = match (&server.state, as_lists) {
        (
            State::Connecting(_)
            | State::AskingForTls(_)
            | State::StartingTls(_)
            | State::LoggingIn(_),
            true,
        ) => "sv_login",
        (State::Idle { .. }, true) => "sv_idle",
        (State::Used { .. }, true) => "sv_used",
        (State::Resetting { .. } | State::Checking { .. } | State::Rescuing(_), true) => {
            "sv_tested"
        }
        (State::Active { .. } | State::Asking { .. } | State::Unlinked { .. }, true) => "sv_active",
        (
            State::Connecting(_)
            | State::AskingForTls(_)
            | State::StartingTls(_)
            | State::LoggingIn(_),
            false,
        ) => "new",
        (State::Idle { .. }, false) => "idle",
        (State::Used { .. }, false) => "used",
        (State::Resetting { .. } | State::Checking { .. } | State::Rescuing(_), false) => "tested",
        (State::Active { .. } | State::Asking { .. } | State::Unlinked { .. }, false) => "active",
        (State::HeldForCancel, _) => "being_canceled",
        (State::CarryingCancel { .. } | State::Forwarding { .. }, _) => "active_cancel",
        (State::Leaving(_) | State::Closing, _) => return None,
    };
    let unconnected = || ("(bad-af)".to_owned(), 0);
    let (remote, local) = match &server.address {
        _ if server.is_connecting() => (unconnected(), unconnected()),
        None => (unconnected(), unconnected()),
        Some(ServerAddress::Tcp(address)) => {
            ((address.ip().to_string(), i32::from(address.port())), local_end(view, conn))
        }
        Some(address @ ServerAddress::Unix(_)) => {
            (("unix".to_owned(), i32::from(address.port())), local_end(view, conn))
        }
    };
    let own = server.replicates_for.and_then(|key| view.engine.house().clients.get(key));
    let first_four = server.cancel_key.first_chunk::<4>();
    let Conn::Server(key) = conn else {
        return None;
    };
    Some(Facts {
        letter: "S",
        user: pool.map_or("(nouser)", |pool| &pool.user),
        database: pool.map_or("(nodb)", |pool| &pool.database.name),
        replication: replication(own),
        state,
        ends: [remote, local],
        connected_at: server.connected_at,
        spoke_at: server.spoke_at,
        wait: Duration::ZERO,
        close_needed: server.close_needed || server.may_be_hit,
        link: server.client().or(server.replicates_for).map(Conn::Client),
        remote_pid: first_four.map_or(0, |bytes| i32::from_be_bytes(*bytes)),
        application_name: application_name(view, &server.parameters),
        statements: server.statements.len(),
        serial: key.serial(),
        line: &server.line,
        inbox: &server.inbox,
        egress: &server.egress,
    })
}

/// Our own end of a connection; of a Unix socket that is our port.
fn local_end(view: &View<'_>, conn: Conn) -> (String, i32) {
    match view.outside.local_address(conn) {
        Some(address) => (address.ip().to_string(), i32::from(address.port())),
        None => ("unix".to_owned(), view.engine.settings().listen_port),
    }
}

fn application_name(view: &View<'_>, parameters: &crate::session::params::Parameters) -> String {
    let name = view.engine.house().values.text(parameters.value(APPLICATION_NAME));
    name.map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default()
}

fn time_text(view: &View<'_>, at: Instant) -> String {
    let ago = view.moment.now.saturating_duration_since(at);
    let time = sys::local_time(view.moment.wall.checked_sub(ago).unwrap_or(view.moment.wall));
    time.to_seconds()
}

fn buffers(inbox: &Inbox, egress: &Egress) -> [Cell; 7] {
    let small = |bytes: u64| Cell::count(usize::try_from(bytes).unwrap_or(usize::MAX));
    let filled = inbox.ring().map_or(0, |ring| ring.len() as u64);
    let rest = match inbox.rest() {
        Rest::None => 0,
        Rest::Relay(bytes) | Rest::Skip(bytes) | Rest::Collect(bytes) => bytes,
    };
    [
        small(filled),
        small(filled - inbox.unjudged()),
        small(rest),
        Cell::Int(0),
        Cell::Int(0),
        small(inbox.unjudged()),
        small(egress.bytes()),
    ]
}

/// Whether nothing is in a connection's buffers, nor the rest of a message to come.
pub fn is_quiet(view: &View<'_>, conn: Conn) -> bool {
    let house = view.engine.house();
    let (inbox, egress) = match conn {
        Conn::Client(key) if Some(key) == view.asker => return false,
        Conn::Client(key) => match house.clients.get(key) {
            Some(client) => (&client.inbox, &client.egress),
            None => return true,
        },
        Conn::Server(key) => match house.servers.get(key) {
            Some(server) => (&server.inbox, &server.egress),
            None => return true,
        },
    };
    inbox.unjudged() == 0 && !inbox.is_mid_message() && egress.is_empty()
}

fn is_secured(view: &View<'_>, conn: Conn) -> bool {
    let house = view.engine.house();
    let line = match conn {
        Conn::Client(key) => house.clients.get(key).map(|client| &client.line),
        Conn::Server(key) => house.servers.get(key).map(|server| &server.line),
    };
    line.is_some_and(|line| !matches!(line, Line::Plain))
}

/// The row of SHOW FDS for a connection that a next process could take over.
pub fn fd_row(view: &View<'_>, conn: Conn) -> Option<Row> {
    let house = view.engine.house();
    let descriptor = view.outside.descriptor(conn)?;
    let facts = facts(view, conn, true)?;
    // The keys of TLS cannot be handed over, and half a link is of no use.
    if is_secured(view, conn) || facts.link.is_some_and(|link| is_secured(view, link)) {
        return None;
    }
    let (parameters, cancel, task) = match conn {
        Conn::Client(key) => {
            let client = house.clients.get(key).filter(|client| !client.on_console)?;
            (&client.parameters, client.secret.to_vec(), "client")
        }
        Conn::Server(key) => {
            let server = house.servers.get(key)?;
            (&server.parameters, server.cancel_key.clone(), "server")
        }
    };
    let known = |text: &str, none: &str| Cell::maybe((text != none).then_some(text));
    let parameter = |index: usize| {
        let text = house.values.text(parameters.value(index));
        Cell::maybe(text.map(|text| String::from_utf8_lossy(text).into_owned()))
    };
    let index = |name: &str| house.tracked.index_of(name.as_bytes()).unwrap_or(0);
    let cancel = cancel.first_chunk::<8>().map_or(0, |key| u64::from_be_bytes(*key));
    let [(address, port), _] = facts.ends;
    let mut row = vec![
        Cell::Int(descriptor),
        task.into(),
        known(facts.user, "(nouser)"),
        known(facts.database, "(nodb)"),
        Cell::text(address),
        Cell::Int(port),
        Cell::Big(cancel.cast_signed()),
        Cell::Int(facts.link.and_then(|conn| view.outside.descriptor(conn)).unwrap_or(0)),
    ];
    let names = ["client_encoding", "standard_conforming_strings", "DateStyle", "TimeZone"];
    row.extend(names.map(|name| parameter(index(name))));
    row.push(Cell::Null);
    row.extend(scram_keys(view, conn).unwrap_or([Cell::Null, Cell::Null]));
    Some(row)
}

/// The keys with which a pool's servers are logged in to without a password: for the next process
/// alone. (PgBouncer shows them to every administrator.)
fn scram_keys(view: &View<'_>, conn: Conn) -> Option<[Cell; 2]> {
    let house = view.engine.house();
    if !view.engine.is_owner(view.asker?) {
        return None;
    }
    let pool = match conn {
        Conn::Client(key) => house.clients.get(key)?.pool?,
        Conn::Server(key) => house.servers.get(key)?.pool,
    };
    let pool = house.pools.get(pool)?;
    let client_key = pool.learned.client_key?;
    let secret = view.engine.access().userlist.secret(&pool.user)?;
    let Kind::Scram(verifier) = Kind::of(secret.expose()) else {
        return None;
    };
    Some([Cell::Bytes(client_key.to_vec()), Cell::Bytes(verifier.server_key.to_vec())])
}
