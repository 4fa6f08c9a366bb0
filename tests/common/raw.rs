//! A client that sends any bytes at all and reads messages one by one.

use super::PATIENCE;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

/// One message from the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// Fields of an ErrorResponse or NoticeResponse, in the order they came.
    pub fn fields(&self) -> Vec<(char, String)> {
        assert!(matches!(self.tag, b'E' | b'N'), "no fields in {self:?}");
        let (last, list) = self.body.split_last().expect("a terminator");
        assert_eq!(*last, 0, "the terminator of {self:?}");
        list.split_inclusive(|byte| *byte == 0)
            .map(|field| {
                let (letter, text) = field.split_first().expect("a field is not empty");
                let text = text.strip_suffix(b"\0").expect("a field ends in NUL");
                (char::from(*letter), String::from_utf8_lossy(text).into_owned())
            })
            .collect()
    }

    /// One field, empty if it is not there.
    pub fn field(&self, letter: char) -> String {
        let found = self.fields().into_iter().find(|(known, _)| *known == letter);
        found.map(|(_, text)| text).unwrap_or_default()
    }

    /// Name and value of a ParameterStatus.
    pub fn parameter(&self) -> (String, String) {
        assert_eq!(self.tag, b'S', "not a ParameterStatus: {self:?}");
        let texts = c_strings(&self.body);
        assert_eq!(texts.len(), 2, "{self:?}");
        (texts[0].clone(), texts[1].clone())
    }

    /// The columns of a DataRow as text, NULL as an empty one.
    pub fn columns(&self) -> Vec<String> {
        assert_eq!(self.tag, b'D', "not a DataRow: {self:?}");
        let mut rest = &self.body[2..];
        let mut columns = Vec::new();
        while !rest.is_empty() {
            let len = i32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
            let len = usize::try_from(len).unwrap_or(0);
            columns.push(String::from_utf8_lossy(&rest[4..4 + len]).into_owned());
            rest = &rest[4 + len..];
        }
        columns
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        message(self.tag, &self.body)
    }
}

/// The texts of a body made of NUL-terminated texts.
pub fn c_strings(body: &[u8]) -> Vec<String> {
    body.split_inclusive(|byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(text.strip_suffix(b"\0").expect("NUL")).into_owned())
        .collect()
}

/// The letters of some messages, `TDCZ` for instance.
pub fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// All ParameterStatus of some messages.
pub fn parameters(messages: &[Message]) -> Vec<(String, String)> {
    messages.iter().filter(|m| m.tag == b'S').map(Message::parameter).collect()
}

/// A tagged message.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(length(body.len() + 4));
    bytes.extend(body);
    bytes
}

/// An untagged first packet.
pub fn untagged(code: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = length(body.len() + 8).to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("a length fits").to_be_bytes()
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

pub const SSL_REQUEST: u32 = 80_877_103;
pub const GSSENC_REQUEST: u32 = 80_877_104;
pub const CANCEL_REQUEST: u32 = 80_877_102;

pub fn query(sql: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, sql);
    message(b'Q', &body)
}

pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, name);
    text(&mut body, sql);
    body.extend([0, 0]);
    message(b'P', &body)
}

/// Bind to the unnamed portal, all values as text.
pub fn bind(statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = vec![0];
    text(&mut body, statement);
    body.extend([0, 0]);
    body.extend(u16::try_from(values.len()).expect("few values").to_be_bytes());
    for value in values {
        body.extend(length(value.len()));
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// `kind` is `S` or `P`.
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    let mut body = vec![kind];
    text(&mut body, name);
    message(b'D', &body)
}

/// `kind` is `S` or `P`.
pub fn close(kind: u8, name: &str) -> Vec<u8> {
    let mut body = vec![kind];
    text(&mut body, name);
    message(b'C', &body)
}

/// Executes the unnamed portal; `rows` 0 means all.
pub fn execute(rows: u32) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(rows.to_be_bytes());
    message(b'E', &body)
}

pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}

pub fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

pub fn copy_data(data: &[u8]) -> Vec<u8> {
    message(b'd', data)
}

pub fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

pub fn copy_fail(why: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, why);
    message(b'f', &body)
}

/// A Startup packet in the making.
#[derive(Clone, Debug)]
pub struct Startup {
    version: u32,
    body: Vec<u8>,
    end: Vec<u8>,
}

impl Startup {
    pub fn v3() -> Startup {
        Startup::version(0x3_0000)
    }

    pub fn version(version: u32) -> Startup {
        Startup { version, body: Vec::new(), end: vec![0] }
    }

    pub fn param(mut self, name: &str, value: &str) -> Startup {
        text(&mut self.body, name);
        text(&mut self.body, value);
        self
    }

    /// Other bytes than the one terminating NUL.
    pub fn end(mut self, end: &[u8]) -> Startup {
        self.end = end.to_vec();
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        untagged(self.version, &[&self.body[..], &self.end].concat())
    }
}

/// A connection to a pooler or to PostgreSQL.
#[derive(Debug)]
pub struct Raw {
    pub stream: TcpStream,
    inbox: Vec<u8>,
    taken: usize,
    /// What the peer said between Startup and the first ReadyForQuery.
    pub welcome: Vec<Message>,
    /// The stream may end within a message.
    pub lenient: bool,
}

impl Raw {
    pub fn connect(port: u16) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        Raw::over(stream)
    }

    pub fn over(stream: TcpStream) -> Raw {
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("write timeout");
        Raw { stream, inbox: Vec::new(), taken: 0, welcome: Vec::new(), lenient: false }
    }

    /// Our end of the connection.
    pub fn local_address(&self) -> std::net::SocketAddr {
        self.stream.local_addr().expect("a connected socket")
    }

    /// Sends the Startup and reads the welcome of a peer that asks for no password.
    pub fn log_in(&mut self, startup: &Startup) {
        self.send(&startup.bytes());
        let welcome = self.until_ready();
        assert!(welcome.iter().all(|m| m.tag != b'E'), "refused: {}", last_words(&welcome));
        self.welcome = welcome;
    }

    /// Sends all of it; a peer that no longer reads is noticed when we read.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(e) = self.stream.write_all(bytes) {
            assert!(e.kind() != ErrorKind::WouldBlock, "the peer does not read");
        }
    }

    /// Sends byte by byte, each in a packet of its own.
    pub fn send_slowly(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(std::slice::from_ref(byte));
        }
    }

    /// We will send nothing more.
    pub fn finish_sending(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn fill(&mut self, at_most: usize) -> bool {
        if self.taken == self.inbox.len() || self.taken > 1 << 20 {
            self.inbox.drain(..self.taken);
            self.taken = 0;
        }
        let old = self.inbox.len();
        self.inbox.resize(old + at_most, 0);
        let result = self.stream.read(&mut self.inbox[old..]);
        let len = match result {
            Ok(len) => len,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => 0,
            Err(e) => {
                panic!("nothing to read in {PATIENCE:?}: {e}; inbox {:?}", &self.inbox[..old])
            }
        };
        self.inbox.truncate(old + len);
        len > 0
    }

    fn unread(&self) -> &[u8] {
        &self.inbox[self.taken..]
    }

    /// One byte, as in the answer to SSLRequest. `None` at the end of the stream.
    pub fn byte(&mut self) -> Option<u8> {
        while self.unread().is_empty() {
            if !self.fill(1) {
                return None;
            }
        }
        let byte = self.unread()[0];
        self.taken += 1;
        Some(byte)
    }

    /// The next message; `None` at the end of the stream.
    pub fn try_message(&mut self) -> Option<Message> {
        self.message_by(64 * 1024)
    }

    fn message_by(&mut self, read_bytes: usize) -> Option<Message> {
        loop {
            let unread = self.unread();
            if unread.len() >= 5 {
                let len = u32::from_be_bytes(unread[1..5].try_into().expect("four bytes"));
                let end = usize::try_from(len).expect("a length fits") + 1;
                if unread.len() >= end {
                    let message = Message { tag: unread[0], body: unread[5..end].to_vec() };
                    self.taken += end;
                    return Some(message);
                }
            }
            if !self.fill(read_bytes) {
                let whole = self.unread().is_empty() || self.lenient;
                assert!(whole, "cut in a message: {:?}", self.unread());
                return None;
            }
        }
    }

    /// The next message, which must come.
    pub fn message(&mut self) -> Message {
        self.try_message().expect("a message, not the end of the stream")
    }

    /// The next message, read from the socket byte by byte.
    pub fn message_slowly(&mut self) -> Message {
        self.message_by(1).expect("a message, not the end of the stream")
    }

    /// All messages up to and including ReadyForQuery, or up to the end of the stream.
    pub fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.try_message() {
            let ready = message.tag == b'Z';
            messages.push(message);
            if ready {
                break;
            }
        }
        messages
    }

    /// All messages up to the end of the stream.
    pub fn until_end(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.try_message()).collect()
    }

    /// Sends a simple Query and reads everything up to its ReadyForQuery.
    pub fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(&query(sql));
        self.until_ready()
    }

    /// The first column of the first row of a query's answer.
    pub fn value(&mut self, sql: &str) -> String {
        let answer = self.query(sql);
        let row = answer.iter().find(|message| message.tag == b'D');
        let row = row.unwrap_or_else(|| panic!("{sql}: no row but {}", last_words(&answer)));
        row.columns().swap_remove(0)
    }

    /// The process that serves us just now.
    pub fn backend_pid(&mut self) -> i32 {
        self.value("SELECT pg_backend_pid()").parse().expect("a pid")
    }

    /// Reads exactly these messages.
    pub fn expect_tags(&mut self, expected: &str) -> Vec<Message> {
        let messages: Vec<Message> = expected.bytes().map_while(|_| self.try_message()).collect();
        assert_eq!(tags(&messages), expected, "{}", last_words(&messages));
        messages
    }

    /// Reads one ErrorResponse in the pooler's own form, exactly three fields, then the end.
    pub fn expect_fatal(&mut self, text: &str) {
        let error = self.try_message();
        let error = error.unwrap_or_else(|| panic!("the end of the stream instead of: {text}"));
        assert_eq!(error.tag, b'E', "expected {text}, got {error:?}");
        let expected = [('S', "FATAL"), ('C', "08P01"), ('M', text)];
        let expected = expected.map(|(letter, text)| (letter, text.to_owned())).to_vec();
        assert_eq!(error.fields(), expected);
        self.expect_end();
    }

    /// The peer closes and says nothing more.
    pub fn expect_end(&mut self) {
        let more = self.try_message();
        assert_eq!(more, None, "expected the end of the stream");
    }

    /// The key of our BackendKeyData.
    pub fn cancel_key(&self) -> Vec<u8> {
        let key = self.welcome.iter().find(|message| message.tag == b'K').expect("BackendKeyData");
        key.body.clone()
    }

    /// What the welcome said about parameters; the last word on each.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let all: BTreeMap<String, String> = parameters(&self.welcome).into_iter().collect();
        all.get(name).cloned()
    }

    /// Whether something to read arrives within this time.
    pub fn is_quiet_for(&mut self, time: std::time::Duration) -> bool {
        if !self.unread().is_empty() {
            return false;
        }
        self.stream.set_read_timeout(Some(time)).expect("read timeout");
        let result = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
        result.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    }
}

fn last_words(messages: &[Message]) -> String {
    match messages.iter().find(|message| message.tag == b'E') {
        Some(error) => format!("{} with error {:?}", tags(messages), error.fields()),
        None => tags(messages),
    }
}

/// The names in a RowDescription.
pub fn column_names(description: &Message) -> Vec<String> {
    columns(description).into_iter().map(|(name, _)| name).collect()
}

/// The types in a RowDescription.
pub fn column_types(description: &Message) -> Vec<u32> {
    columns(description).into_iter().map(|(_, oid)| oid).collect()
}

fn columns(description: &Message) -> Vec<(String, u32)> {
    let mut columns = Vec::new();
    let mut rest = &description.body[2..];
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == 0).expect("a name ends");
        let oid = rest[end + 7..end + 11].try_into().expect("four bytes");
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        columns.push((name, u32::from_be_bytes(oid)));
        rest = &rest[end + 19..];
    }
    columns
}
