//! Taking over from a running process (`-R`): its sockets come to us while nothing moves there,
//! then it ends, and we go on.
//!
//! ```text
//! find ─ login, SUSPEND, SHOW FDS ─▶ Taken ─ send_off: SHUTDOWN, end of file, pid file ─▶ resume
//! ```
//!
//! Up to SHUTDOWN nothing is lost if we fail: the other process sees that we have gone, and goes
//! on. It may be a PgBouncer. That cannot tell which replies its servers still owe: of those that
//! work for a client, we take neither.

use crate::config::CONSOLE;
use crate::config::settings::Settings;
use crate::engine::Engine;
use crate::engine::handover::{Kind, Passed};
use crate::engine::io::{ClientAddress, ServerAddress};
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::net::{is_abstract, unix_socket_path};
use crate::session::prepared::Statement;
use crate::sys::{self, descriptors};
use socket2::SockRef;
use std::collections::{HashMap, VecDeque};
use std::env;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// So often we look whether the other's pid file has gone.
const PIDFILE_PERIOD: Duration = Duration::from_millis(100);
/// So much is read at once.
const READ_BYTES: usize = 64 * 1024;
/// No message of the other process is longer.
const MOST_MESSAGE_BYTES: usize = 256 << 20;

/// Why we cannot take over. All are fatal.
#[derive(Debug)]
pub enum TakeoverError {
    /// There is no place where the other process could be.
    NoSocket,
    /// Its name is no file.
    Abstract,
    /// A service manager started us, and watches the other process.
    Managed,
    /// Talking to it failed.
    Io(io::Error),
    /// It has gone.
    Gone,
    /// It said no.
    Refused(String),
    /// It did not send what belongs to a row.
    NoDescriptor,
    /// It said what we do not understand.
    Nonsense(&'static str),
}

impl fmt::Display for TakeoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSocket => f.write_str("cannot reboot if unix dir not configured"),
            Self::Abstract => f.write_str("cannot reboot with abstract Unix socket"),
            Self::Managed => f.write_str("cannot reboot under service manager"),
            Self::Io(error) => write!(f, "takeover failed: {}", sys::error_text(error)),
            Self::Gone => f.write_str("takeover failed: the old process has gone"),
            Self::Refused(text) => write!(f, "old process said: {text}"),
            Self::NoDescriptor => f.write_str("got row without fd info"),
            Self::Nonsense(what) => write!(f, "takeover failed: {what}"),
        }
    }
}

impl std::error::Error for TakeoverError {}

impl From<io::Error> for TakeoverError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Gone,
            _ => Self::Io(error),
        }
    }
}

type Cells = Vec<Option<Vec<u8>>>;
/// Takes a row, and of the descriptors that have come those that belong to it.
type OnRow<'a> = dyn FnMut(Cells, &mut VecDeque<OwnedFd>) -> Result<(), TakeoverError> + 'a;

/// The other process, on its console.
pub struct Old {
    stream: UnixStream,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    port: i32,
    since: Instant,
}

/// What it has given us.
pub struct Taken {
    old: Old,
    /// Listeners.
    pub listeners: Vec<OwnedFd>,
    /// Clients and servers, which the engine knows already.
    pub connections: Vec<(Conn, OwnedFd)>,
}

/// Connects to the other process. `None`: there is none.
pub fn find(settings: &Settings) -> Result<Option<Old>, TakeoverError> {
    if settings.unix_socket_dir.is_empty() {
        return Err(TakeoverError::NoSocket);
    }
    let path = unix_socket_path(&settings.unix_socket_dir, settings.listen_port);
    if is_abstract(&path) {
        return Err(TakeoverError::Abstract);
    }
    if env::var_os("NOTIFY_SOCKET").is_some() {
        return Err(TakeoverError::Managed);
    }
    let Ok(stream) = UnixStream::connect(&path) else {
        return Ok(None);
    };
    log::info!("takeover_init: launching connection");
    let old = Old {
        stream,
        received: Vec::new(),
        descriptors: VecDeque::new(),
        port: settings.listen_port,
        since: Instant::now(),
    };
    log::info!("{} new connection to server", old.name());
    Ok(Some(old))
}

impl Old {
    fn name(&self) -> impl fmt::Display {
        format!("S-0x0: {CONSOLE}/{CONSOLE}@unix:{}", self.port)
    }

    /// Has it stop, and takes all that it has.
    pub fn take(mut self, engine: &mut Engine) -> Result<Taken, TakeoverError> {
        self.log_in()?;
        log::info!("{} login OK, sending SUSPEND", self.name());
        self.ask("SUSPEND;", &mut |_, _| Ok(()))?;
        log::info!("SUSPEND finished, sending SHOW FDS");
        engine.begin_suspended();
        let mut arrivals = Arrivals::new(engine);
        match self.ask("SHOW HANDOVER;", &mut |cells, _| arrivals.on_words(&cells)) {
            // It is none of us.
            Err(TakeoverError::Refused(_)) => arrivals.is_of_ours = false,
            other => other?,
        }
        self.ask("SHOW FDS;", &mut |cells, descriptors| {
            let descriptor = descriptors.pop_front().ok_or(TakeoverError::NoDescriptor)?;
            arrivals.on_descriptor(&cells, descriptor)
        })?;
        let (listeners, connections) = arrivals.link();
        log::info!("SHOW FDS finished");
        log::info!("disko over, going background");
        Ok(Taken { old: self, listeners, connections })
    }

    fn log_in(&mut self) -> Result<(), TakeoverError> {
        let mut body = (3_u32 << 16).to_be_bytes().to_vec();
        for word in ["user", CONSOLE, "database", CONSOLE] {
            body.extend(word.as_bytes());
            body.push(0);
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).expect("a few words");
        self.stream.write_all(&[&length.to_be_bytes()[..], &body].concat())?;
        self.until_ready(&mut |_, _| Ok(()))
    }

    fn ask(&mut self, query: &str, on_row: &mut OnRow<'_>) -> Result<(), TakeoverError> {
        self.send(query)?;
        self.until_ready(on_row)
    }

    fn send(&mut self, query: &str) -> Result<(), TakeoverError> {
        let length = u32::try_from(query.len() + 5).expect("a few words");
        let message = [b"Q", &length.to_be_bytes()[..], query.as_bytes(), b"\0"].concat();
        Ok(self.stream.write_all(&message)?)
    }

    fn until_ready(&mut self, on_row: &mut OnRow<'_>) -> Result<(), TakeoverError> {
        let mut refusal = None;
        loop {
            let (tag, body) = self.message()?;
            match tag {
                b'D' => {
                    let cells = cells(&body).ok_or(TakeoverError::Nonsense("bad row"))?;
                    on_row(cells, &mut self.descriptors)?;
                }
                b'E' => {
                    let text = error_text(&body);
                    if body.windows(6).any(|bytes| bytes == b"FATAL\0") {
                        return Err(TakeoverError::Refused(text));
                    }
                    refusal = Some(text);
                }
                b'R' if body != [0; 4] => {
                    return Err(TakeoverError::Nonsense("it asks for a password"));
                }
                b'Z' => return refusal.map_or(Ok(()), |text| Err(TakeoverError::Refused(text))),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>), TakeoverError> {
        loop {
            if let Some(([tag, length @ ..], rest)) = self.received.split_first_chunk::<5>() {
                let length = u32::from_be_bytes(*length) as usize;
                if !(4..MOST_MESSAGE_BYTES).contains(&length) {
                    return Err(TakeoverError::Nonsense("bad header"));
                }
                if let Some((body, _)) = rest.split_at_checked(length - 4) {
                    let message = (*tag, body.to_vec());
                    self.received.drain(..=length);
                    return Ok(message);
                }
            }
            if self.receive()? == 0 {
                return Err(TakeoverError::Gone);
            }
        }
    }

    fn receive(&mut self) -> Result<usize, TakeoverError> {
        let mut bytes = vec![0; READ_BYTES];
        let mut descriptors = Vec::new();
        let got = loop {
            match descriptors::receive(self.stream.as_fd(), &mut bytes, &mut descriptors) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.received.extend(&bytes[..got]);
        self.descriptors.extend(descriptors);
        Ok(got)
    }
}

impl Taken {
    /// Has the other process end, and waits until its pid file has gone.
    pub fn send_off(mut self, pidfile: Option<&Path>) -> Result<(), TakeoverError> {
        log::info!("sending SHUTDOWN;");
        match self.old.ask("SHUTDOWN;", &mut |_, _| Ok(())) {
            // It has ended, however: everything is ours.
            Err(TakeoverError::Gone) => {}
            Ok(()) => return Err(TakeoverError::Nonsense("the old process does not end")),
            Err(error) => return Err(error),
        }
        let age = self.old.since.elapsed().as_secs();
        log::info!("{} closing because: disko over (age={age}s)", self.old.name());
        if let Some(path) = pidfile {
            log::info!("waiting for old pidfile to go away");
            while names_running_process(path) {
                thread::park_timeout(PIDFILE_PERIOD);
            }
        }
        log::info!("old process killed, resuming work");
        Ok(())
    }
}

/// A process that was killed leaves its file, which stands in nobody's way.
fn names_running_process(pidfile: &Path) -> bool {
    let Ok(text) = fs::read_to_string(pidfile) else {
        return false;
    };
    let pid = text.trim().parse().ok().filter(|pid| *pid > 0);
    pid.is_some_and(sys::process_exists)
}

/// A socket that has come, and whom its partner was there.
struct Arrived<K> {
    key: K,
    descriptor: OwnedFd,
    partner: i32,
}

/// What has come so far. Sockets are called by their numbers in the other process.
struct Arrivals<'a> {
    engine: &'a mut Engine,
    now: Instant,
    is_of_ours: bool,
    words: HashMap<i32, Vec<u8>>,
    statements: HashMap<u64, Arc<Statement>>,
    listeners: Vec<OwnedFd>,
    clients: HashMap<i32, Arrived<(ClientKey, bool)>>,
    servers: HashMap<i32, Arrived<ServerKey>>,
}

impl<'a> Arrivals<'a> {
    fn new(engine: &'a mut Engine) -> Self {
        Self {
            engine,
            now: Instant::now(),
            is_of_ours: true,
            words: HashMap::new(),
            statements: HashMap::new(),
            listeners: Vec::new(),
            clients: HashMap::new(),
            servers: HashMap::new(),
        }
    }

    /// A row of SHOW HANDOVER.
    fn on_words(&mut self, cells: &[Option<Vec<u8>>]) -> Result<(), TakeoverError> {
        let nonsense = || TakeoverError::Nonsense("bad row of SHOW HANDOVER");
        let kind = text(cells, 0).and_then(|word| Kind::find(&word)).ok_or_else(nonsense)?;
        let told = text(cells, 2).and_then(|text| from_hex(&text)).ok_or_else(nonsense)?;
        match kind {
            // It speaks as another version of ours does.
            Kind::House if self.engine.adopt_house(&told).is_none() => self.is_of_ours = false,
            _ if !self.is_of_ours => {}
            Kind::House => {}
            Kind::Statement => {
                self.engine.adopt_statement(&told, &mut self.statements).ok_or_else(nonsense)?;
            }
            Kind::Pool => {
                // One of a database that we do not have.
                let _ = self.engine.adopt_pool(&told);
            }
            Kind::Client | Kind::Server => {
                let number = number(cells, 1).ok_or_else(nonsense)?;
                self.words.insert(number, told);
            }
        }
        Ok(())
    }

    /// A row of SHOW FDS.
    fn on_descriptor(
        &mut self,
        cells: &[Option<Vec<u8>>],
        descriptor: OwnedFd,
    ) -> Result<(), TakeoverError> {
        let nonsense = || TakeoverError::Nonsense("bad row of SHOW FDS");
        let at = number(cells, 0).ok_or_else(nonsense)?;
        let partner = number(cells, 7).unwrap_or(0);
        let task = text(cells, 1).ok_or_else(nonsense)?;
        if task == "pooler" {
            let address = text(cells, 4).unwrap_or_default();
            log::info!("got pooler socket: {address}:{}", number(cells, 5).unwrap_or(0));
            self.listeners.push(descriptor);
            return Ok(());
        }
        let (Some(user), Some(database)) = (text(cells, 2), text(cells, 3)) else {
            // It was logging in.
            return Ok(());
        };
        let names = ["client_encoding", "standard_conforming_strings", "DateStyle", "TimeZone"];
        let parameters = names.into_iter().enumerate();
        let parameters =
            parameters.filter_map(|(index, name)| Some((name, text(cells, 8 + index)?)));
        let cancel = text(cells, 6).and_then(|text| text.parse::<i128>().ok()).unwrap_or(0);
        let passed = Passed {
            user,
            database,
            // Signed or not: it is the same eight bytes.
            cancel: cancel as u64,
            parameters: parameters.collect(),
            more: self.words.remove(&at).filter(|_| self.is_of_ours),
        };
        match task.as_str() {
            "client" if partner == 0 || passed.more.is_some() => {
                if let Some(key) = self.client(&passed, &descriptor) {
                    self.clients.insert(at, Arrived { key, descriptor, partner });
                }
            }
            "server" if passed.more.is_some() => {
                if let Some(key) = self.server(&passed, &descriptor) {
                    self.servers.insert(at, Arrived { key, descriptor, partner });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn client(&mut self, passed: &Passed, descriptor: &OwnedFd) -> Option<(ClientKey, bool)> {
        let peer = SockRef::from(descriptor).peer_addr().ok()?;
        let from = match peer.as_socket() {
            Some(address) => ClientAddress::Tcp(address),
            None => match sys::peer_credentials(descriptor.as_fd()) {
                Ok((pid, uid)) => ClientAddress::Unix { pid, uid: Some(uid) },
                Err(_) => ClientAddress::Unix { pid: 0, uid: None },
            },
        };
        self.engine.adopt_client(passed, from, &self.statements, self.now)
    }

    fn server(&mut self, passed: &Passed, descriptor: &OwnedFd) -> Option<ServerKey> {
        let peer = SockRef::from(descriptor).peer_addr().ok()?;
        let address = match peer.as_socket() {
            Some(address) => ServerAddress::Tcp(address),
            None => ServerAddress::Unix(peer.as_pathname()?.to_owned()),
        };
        self.engine.adopt_server(passed, address, &self.statements, self.now)
    }

    /// All have come: who worked for whom does so again. Half a pair is of no use.
    fn link(mut self) -> (Vec<OwnedFd>, Vec<(Conn, OwnedFd)>) {
        let mut connections = Vec::new();
        for (at, server) in self.servers {
            let client = match server.partner {
                0 if self.engine.is_adopted_well(server.key) => {
                    connections.push((Conn::Server(server.key), server.descriptor));
                    continue;
                }
                0 => None,
                partner => self.clients.remove(&partner).filter(|client| client.partner == at),
            };
            match client {
                Some(client) if self.engine.adopt_link(client.key, server.key, self.now) => {
                    connections.push((Conn::Server(server.key), server.descriptor));
                    connections.push((Conn::Client(client.key.0), client.descriptor));
                }
                client => {
                    self.engine.give_up(Conn::Server(server.key), self.now);
                    let client = client.map(|client| client.key.0);
                    client.into_iter().for_each(|key| {
                        self.engine.give_up(Conn::Client(key), self.now);
                    });
                }
            }
        }
        for client in self.clients.into_values() {
            let conn = Conn::Client(client.key.0);
            match client.partner {
                0 => connections.push((conn, client.descriptor)),
                _ => self.engine.give_up(conn, self.now),
            }
        }
        (self.listeners, connections)
    }
}

/// The cells of a DataRow.
fn cells(body: &[u8]) -> Option<Cells> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut cells = Vec::new();
    for _ in 0..i16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (cell, behind) = behind.split_at_checked(length)?;
                cells.push(Some(cell.to_vec()));
                rest = behind;
            }
            Err(_) => {
                cells.push(None);
                rest = behind;
            }
        }
    }
    Some(cells)
}

/// What is not there is NULL.
fn text(cells: &[Option<Vec<u8>>], index: usize) -> Option<String> {
    let cell = cells.get(index)?.as_ref()?;
    Some(String::from_utf8_lossy(cell).into_owned())
}

fn number(cells: &[Option<Vec<u8>>], index: usize) -> Option<i32> {
    text(cells, index)?.parse().ok()
}

/// `\x…`
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect()
}

/// The message of an ErrorResponse.
fn error_text(body: &[u8]) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let message = fields.find(|field| field.first() == Some(&b'M'));
    String::from_utf8_lossy(message.map_or(b"", |field| &field[1..])).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_nonsense_is_not() {
        let row = [0, 2, 0, 0, 0, 1, b'7', 255, 255, 255, 255];
        let read = cells(&row).unwrap();
        assert_eq!((number(&read, 0), text(&read, 1), text(&read, 9)), (Some(7), None, None));
        for cut in 0..row.len() {
            assert_eq!(cells(&row[..cut]), None);
        }
        assert_eq!(from_hex("\\x00ff"), Some(vec![0, 255]));
        assert_eq!(from_hex("\\x0g"), None);
        assert_eq!(from_hex("00"), None);
        assert_eq!(error_text(b"SERROR\0C08P01\0Mno way\0\0"), "no way");
    }
}
