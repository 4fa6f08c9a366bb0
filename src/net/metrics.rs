//! The door for monitoring systems (`metrics_listen`): a small HTTP server in the same loop.
//!
//! A guest asks one thing with GET, gets one answer, and the connection closes. Everything has a
//! limit: how many guests there are, how long a question is, how long one may take. What is shown
//! is written whole when it is asked for, and sent as the guest takes it.

use super::bind::ListenError;
use super::sockets::Stream;
use super::token::Token;
use super::unix_address;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry};
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// So many guests at once; others are turned away.
/// After trouble with letting guests in.
const REST: Duration = Duration::from_secs(5);
const MAX_GUESTS: usize = 16;
const MAX_QUESTION_BYTES: usize = 8 * 1024;
/// From the knock to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 16;
/// So often what a guest still says is read, and thrown away.
const MAX_DRAINS: u32 = 16;

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

struct Guest {
    stream: Stream,
    serial: u32,
    question: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
    leaves_at: Instant,
    is_ready: bool,
}

/// What a guest asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// Without what follows a question mark.
    pub path: &'a str,
    /// Whether it understands OpenMetrics.
    pub open_metrics: bool,
}

/// What it is answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Like `200 OK`.
    pub status: &'static str,
    /// Of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Reply {
    /// A word or two.
    pub fn plain(status: &'static str, body: &str) -> Self {
        let content_type = "text/plain; charset=utf-8";
        Self { status, content_type, body: format!("{body}\n") }
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { status, content_type, body } = self;
        let allow = if status.starts_with("405") { "Allow: GET\r\n" } else { "" };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             {allow}Connection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// See the module's page.
#[derive(Default)]
pub struct Metrics {
    door: Option<Door>,
    knocked: bool,
    /// Nobody could be let in, for lack of descriptors perhaps: it is tried again then.
    rests_until: Option<Instant>,
    guests: Vec<Option<Guest>>,
    next_serial: u32,
}

impl Metrics {
    /// Opens the door that the setting names: `addr:port`, or the path of a Unix socket.
    pub fn open(&mut self, at: &str, registry: &Registry) -> Result<(), ListenError> {
        if at.is_empty() {
            return Ok(());
        }
        let failed = |error: io::Error| ListenError::Metrics(at.to_owned(), error);
        let mut door = match at.starts_with(['/', '@']) {
            true => open_unix(at).map_err(failed)?,
            false => open_tcp(at).map_err(failed)?,
        };
        let token = Token::MetricsDoor.into();
        match &mut door {
            Door::Tcp(listener) => registry.register(listener, token, Interest::READABLE),
            Door::Unix(listener, _) => registry.register(listener, token, Interest::READABLE),
        }
        .map_err(ListenError::Register)?;
        log::info!("metrics on {at}");
        self.door = Some(door);
        self.knocked = true;
        Ok(())
    }

    /// Somebody knocks.
    pub fn mark_door(&mut self) {
        self.knocked = true;
    }

    /// An event of a guest came.
    pub fn mark_guest(&mut self, slot: u32, serial: u32) {
        if let Some(Some(guest)) = self.guests.get_mut(slot as usize)
            && guest.serial == serial
        {
            guest.is_ready = true;
        }
    }

    /// When the next guest has to leave.
    pub fn deadline(&self) -> Option<Instant> {
        let guests = self.guests.iter().flatten().map(|guest| guest.leaves_at);
        guests.chain(self.rests_until).min()
    }

    /// Whether anybody is there to be served.
    pub fn has_work(&self) -> bool {
        self.knocked || self.rests_until.is_some() || !self.guests.is_empty()
    }

    /// Lets guests in, and serves those that are there.
    pub fn serve(
        &mut self,
        registry: &Registry,
        now: Instant,
        mut answer: impl FnMut(&Question<'_>) -> Reply,
    ) {
        let has_rested = self.rests_until.take_if(|until| *until <= now).is_some();
        if std::mem::take(&mut self.knocked) || has_rested {
            self.let_in(registry, now);
        }
        for place in &mut self.guests {
            let Some(guest) = place else {
                continue;
            };
            let is_done = guest.leaves_at <= now
                || (std::mem::take(&mut guest.is_ready) && guest.go_on(&mut answer).is_err());
            if is_done {
                *place = None;
            }
        }
        while self.guests.last().is_some_and(Option::is_none) {
            self.guests.pop();
        }
    }

    fn let_in(&mut self, registry: &Registry, now: Instant) {
        loop {
            let accepted = match &self.door {
                None => return,
                Some(Door::Tcp(listener)) => {
                    listener.accept().map(|(stream, _)| Stream::Tcp(stream))
                }
                Some(Door::Unix(listener, _)) => {
                    listener.accept().map(|(stream, _)| Stream::Unix(stream))
                }
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    log::warn!("metrics: accept() failed: {}", crate::sys::error_text(&error));
                    self.rests_until = Some(now + REST);
                    return;
                }
            };
            self.admit(stream, registry, now);
        }
    }

    fn admit(&mut self, mut stream: Stream, registry: &Registry, now: Instant) {
        let free = self.guests.iter().position(Option::is_none).unwrap_or(self.guests.len());
        if free >= MAX_GUESTS {
            return;
        }
        self.next_serial = self.next_serial.wrapping_add(1);
        let (slot, serial) = (free as u32, self.next_serial);
        if let Err(error) = stream.register_as(registry, Token::MetricsGuest { slot, serial }) {
            log::warn!("metrics: epoll_ctl() failed: {}", crate::sys::error_text(&error));
            return;
        }
        let guest = Guest {
            stream,
            serial,
            question: Vec::new(),
            answer: Vec::new(),
            sent: 0,
            leaves_at: now + PATIENCE,
            is_ready: true,
        };
        if free == self.guests.len() {
            self.guests.push(None);
        }
        self.guests[free] = Some(guest);
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some(Door::Unix(_, path)) = &self.door
            && !super::is_abstract(path)
        {
            // Whoever has removed it before us wanted the same.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The guest leaves: it got its answer, or lost its patience.
struct Leaves;

impl From<io::Error> for Leaves {
    fn from(_: io::Error) -> Self {
        Leaves
    }
}

impl Guest {
    fn go_on(&mut self, answer: &mut impl FnMut(&Question<'_>) -> Reply) -> Result<(), Leaves> {
        while self.answer.is_empty() {
            let mut bytes = [0; 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Leaves),
                Ok(count) => self.question.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if let Some(reply) = reply_to(&self.question, answer) {
                self.answer = reply.bytes();
            }
        }
        while self.sent < self.answer.len() {
            match self.stream.write(&self.answer[self.sent..]) {
                Ok(0) => return Err(Leaves),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.stream.shutdown_write();
        // Words left unread would have the kernel take the answer back.
        let mut rest = [0; MAX_QUESTION_BYTES];
        for _ in 0..MAX_DRAINS {
            match self.stream.read(&mut rest) {
                Ok(count) if count > 0 => {}
                _ => break,
            }
        }
        Err(Leaves)
    }
}

/// `None`: the question has not come in as a whole.
fn reply_to(bytes: &[u8], answer: &mut impl FnMut(&Question<'_>) -> Reply) -> Option<Reply> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        let is_long = bytes.len() > MAX_QUESTION_BYTES;
        return is_long.then(|| Reply::plain("431 Request Header Fields Too Large", "too long"));
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version)) = (method, target, version) else {
        return Some(Reply::plain("400 Bad Request", "bad request"));
    };
    if !version.starts_with("HTTP/1.") || words.next().is_some() {
        return Some(Reply::plain("400 Bad Request", "bad request"));
    }
    if method != "GET" {
        return Some(Reply::plain("405 Method Not Allowed", "only GET is served"));
    }
    let accepts = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or_default();
        name.eq_ignore_ascii_case("accept") && value.contains("application/openmetrics-text")
    };
    let path = target.split('?').next().unwrap_or_default();
    Some(answer(&Question { path, open_metrics: lines.any(accepts) }))
}

fn open_tcp(at: &str) -> io::Result<Door> {
    let invalid = || io::Error::new(ErrorKind::InvalidInput, "not an address and a port");
    let address: SocketAddr = match at.strip_prefix("*:") {
        Some(port) => SocketAddr::from(([0, 0, 0, 0], port.parse().map_err(|_| invalid())?)),
        None => at.parse().map_err(|_| invalid())?,
    };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Door::Tcp(TcpListener::from_std(socket.into())))
}

fn open_unix(at: &str) -> io::Result<Door> {
    let path = PathBuf::from(at);
    let address = unix_address(&path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if let Err(error) = socket.bind(&address) {
        // A socket file that nobody listens at any more is not in the way.
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        if super::is_abstract(&path) || probe.connect(&address).is_ok() {
            return Err(error);
        }
        std::fs::remove_file(&path)?;
        socket.bind(&address)?;
    }
    socket.listen(BACKLOG)?;
    Ok(Door::Unix(UnixListener::from_std(socket.into()), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(text: &str) -> Option<String> {
        let mut answer = |asked: &Question<'_>| {
            Reply::plain("200 OK", &format!("{} {}", asked.path, asked.open_metrics))
        };
        reply_to(text.as_bytes(), &mut answer)
            .map(|reply| format!("{} {}", reply.status, reply.body))
    }

    #[test]
    fn questions_are_read_whole_or_not_at_all() {
        let whole = "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\nACCEPT: a, application/openmetrics-text; q=1\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(ask(&whole[..cut]), None);
        }
        assert_eq!(ask(whole).as_deref(), Some("200 OK /metrics true\n"));
        assert_eq!(ask("GET / HTTP/1.0\r\n\r\n").as_deref(), Some("200 OK / false\n"));
        for (text, status) in [
            ("POST / HTTP/1.1\r\n\r\n", "405"),
            ("\r\n\r\n", "400"),
            ("GET /\r\n\r\n", "400"),
            ("GET / SPDY/1\r\n\r\n", "400"),
            ("GET / HTTP/1.1 x\r\n\r\n", "400"),
        ] {
            assert!(ask(text).unwrap().starts_with(status), "{text:?}");
        }
        assert!(ask(&"x".repeat(MAX_QUESTION_BYTES + 1)).unwrap().starts_with("431"));
    }
}
