//! A PostgreSQL that does not mean well: a listener on the loopback that runs a script per connection.

use super::PATIENCE;
use super::raw::{Message, message};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Accepts until it is dropped, each connection on a thread of its own.
pub struct FakeServer {
    pub port: u16,
    visits: Arc<AtomicUsize>,
    closing: Arc<AtomicBool>,
}

impl FakeServer {
    /// The script gets each connection before anything is read from it.
    pub fn start(script: impl Fn(&mut Visit) + Send + Sync + 'static) -> FakeServer {
        FakeServer::start_on(0, script)
    }

    /// As [`FakeServer::start`], on a port that a test has leased.
    pub fn start_on(port: u16, script: impl Fn(&mut Visit) + Send + Sync + 'static) -> FakeServer {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind");
        let port = listener.local_addr().expect("address").port();
        let visits = Arc::new(AtomicUsize::new(0));
        let closing = Arc::new(AtomicBool::new(false));
        let (count, end, script) = (visits.clone(), closing.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::Acquire) {
                    break;
                }
                count.fetch_add(1, Ordering::AcqRel);
                let script = script.clone();
                std::thread::spawn(move || script(&mut Visit::new(stream)));
            }
        });
        FakeServer { port, visits, closing }
    }

    /// How many connections there were.
    pub fn visits(&self) -> usize {
        self.visits.load(Ordering::Acquire)
    }

    /// For `[databases]`.
    pub fn connect_string(&self) -> String {
        format!("host=127.0.0.1 port={} dbname=fake user=alice", self.port)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One connection from the pooler. Trouble with it is no fault: the pooler may leave at any time.
pub struct Visit {
    pub stream: TcpStream,
}

impl Visit {
    fn new(stream: TcpStream) -> Visit {
        stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("write timeout");
        Visit { stream }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The Startup packet, without its length; empty if the pooler leaves. We speak no TLS.
    pub fn startup(&mut self) -> Vec<u8> {
        let first = self.first_packet();
        if first != super::raw::SSL_REQUEST.to_be_bytes() {
            return first;
        }
        self.send(b"N");
        self.first_packet()
    }

    /// What the pooler says first, without its length.
    pub fn first_packet(&mut self) -> Vec<u8> {
        let mut head = [0; 4];
        if self.stream.read_exact(&mut head).is_err() {
            return Vec::new();
        }
        let len = usize::try_from(u32::from_be_bytes(head)).expect("a length fits");
        let mut body = vec![0; len.saturating_sub(4)];
        let _ = self.stream.read_exact(&mut body);
        body
    }

    /// Whatever comes next, as it comes.
    pub fn some_bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let length = self.stream.read(&mut bytes).unwrap_or(0);
        bytes.truncate(length);
        bytes
    }

    /// The pooler's next message; `None` when it has left.
    pub fn message(&mut self) -> Option<Message> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).ok()?;
        let len = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
        let mut body = vec![0; usize::try_from(len).expect("fits").saturating_sub(4)];
        self.stream.read_exact(&mut body).ok()?;
        // As PostgreSQL, which hangs up when it is told goodbye.
        (head[0] != b'X').then_some(Message { tag: head[0], body })
    }

    /// Reads the Startup packet and welcomes the pooler as PostgreSQL would.
    pub fn welcome(&mut self) {
        self.startup();
        self.send(&welcome());
    }

    /// Says nothing until the pooler leaves.
    pub fn silence(&mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }
}

/// What a server says after a good login.
pub fn welcome() -> Vec<u8> {
    let mut bytes = message(b'R', &[0; 4]);
    for (name, value) in [
        ("application_name", ""),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("server_version", "15.0"),
        ("standard_conforming_strings", "on"),
        ("TimeZone", "UTC"),
    ] {
        bytes.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    bytes.extend(message(b'K', &[1, 2, 3, 4, 5, 6, 7, 8]));
    bytes.extend(ready());
    bytes
}

pub fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

/// An answer to any simple query: one row with one column.
pub fn one_row(value: &str) -> Vec<u8> {
    let mut bytes = message(b'T', b"\0\x01c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    let mut row = vec![0, 1];
    row.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
    row.extend(value.as_bytes());
    bytes.extend(message(b'D', &row));
    bytes.extend(message(b'C', b"SELECT 1\0"));
    bytes.extend(ready());
    bytes
}
