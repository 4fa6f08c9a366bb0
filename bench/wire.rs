//! A client that speaks just enough of the protocol to log in, run a statement and count the bytes it throws away.
//!
//! It owns no buffer, so thousands of idle ones cost little: the caller lends a [`Scratch`] for each conversation.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::failure::{Context, Failure, Outcome};

/// No answer of ours takes this long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const SCRATCH_BYTES: usize = 256 * 1024;
const HEADER_BYTES: usize = 5;

/// The one role of the throw-away cluster.
pub const USER: &str = "postgres";

pub struct Scratch(Box<[u8]>);

impl Scratch {
    pub fn new() -> Self {
        Scratch(vec![0; SCRATCH_BYTES].into_boxed_slice())
    }
}

/// What one statement brought.
#[derive(Debug)]
pub struct Reply {
    /// The command tag, such as `SELECT 200000`.
    pub tag: String,
    pub bytes: u64,
}

pub struct Client {
    stream: TcpStream,
}

impl Client {
    pub fn login(port: u16, database: &str, scratch: &mut Scratch) -> Outcome<Client> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Client { stream };
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        for word in ["user", USER, "database", database, ""] {
            body.extend_from_slice(word.as_bytes());
            body.push(0);
        }
        let mut packet = length_of(body.len()).to_vec();
        packet.extend_from_slice(&body);
        client.stream.write_all(&packet)?;
        client.read_until(b'Z', scratch).context(|| "login".to_owned())?;
        Ok(client)
    }

    /// Runs `sql` as a simple query and discards what it returns.
    pub fn run(&mut self, sql: &str, scratch: &mut Scratch) -> Outcome<Reply> {
        self.send_query(sql)?;
        self.read_until(b'Z', scratch).context(|| sql.to_owned())
    }

    /// Runs `sql`, a `COPY … FROM STDIN`, and feeds it `times` × `chunk`, which holds whole CopyData messages.
    pub fn copy_in(
        &mut self,
        sql: &str,
        chunk: &[u8],
        times: u64,
        scratch: &mut Scratch,
    ) -> Outcome<Reply> {
        self.send_query(sql)?;
        self.read_until(b'G', scratch).context(|| sql.to_owned())?;
        for _ in 0..times {
            self.stream.write_all(chunk).context(|| "sending CopyData".to_owned())?;
        }
        self.stream.write_all(&message(b'c', &[]))?;
        let reply = self.read_until(b'Z', scratch).context(|| sql.to_owned())?;
        Ok(Reply { tag: reply.tag, bytes: times * chunk.len() as u64 })
    }

    fn send_query(&mut self, sql: &str) -> Outcome<()> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        Ok(self.stream.write_all(&message(b'Q', &body))?)
    }

    /// Reads messages up to and including the first with tag `last`, which must be the end of what was sent.
    fn read_until(&mut self, last: u8, scratch: &mut Scratch) -> Outcome<Reply> {
        let buffer = &mut scratch.0;
        let (mut start, mut end) = (0, 0);
        let mut reply = Reply { tag: String::new(), bytes: 0 };
        loop {
            while let Some((tag, total)) = peek(&buffer[start..end])? {
                let here = end - start;
                if tag == b'D' || tag == b'd' {
                    // Rows are skipped by length, without waiting for the whole of one.
                    if total > here {
                        self.skip(total - here, &mut buffer[..])?;
                        reply.bytes += (total - here) as u64;
                        start = end;
                        break;
                    }
                } else if total > here {
                    break;
                }
                let body = &buffer[start + HEADER_BYTES..start + total];
                start += total;
                match tag {
                    b'E' => return Err(Failure::new(error_text(body))),
                    b'C' => {
                        reply.tag = String::from_utf8_lossy(body).trim_end_matches('\0').to_owned();
                    }
                    _ => {}
                }
                if tag == last {
                    return match end - start {
                        0 => Ok(reply),
                        more => Err(Failure::new(format!("{more} bytes after the last message"))),
                    };
                }
            }
            if start == end {
                (start, end) = (0, 0);
            } else if start > 0 {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
            }
            if end == buffer.len() {
                return Err(Failure::new("a message larger than the buffer"));
            }
            let count = self.stream.read(&mut buffer[end..])?;
            if count == 0 {
                return Err(Failure::new("connection closed by the peer"));
            }
            reply.bytes += count as u64;
            end += count;
        }
    }

    /// Called with all of `buffer` already used up.
    fn skip(&mut self, mut count: usize, buffer: &mut [u8]) -> Outcome<()> {
        while count > 0 {
            let part = count.min(buffer.len());
            self.stream.read_exact(&mut buffer[..part])?;
            count -= part;
        }
        Ok(())
    }
}

/// One message with its header.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&length_of(body.len()));
    bytes.extend_from_slice(body);
    bytes
}

fn length_of(body_bytes: usize) -> [u8; 4] {
    u32::try_from(body_bytes + 4).expect("our own messages are short").to_be_bytes()
}

/// Tag and total length of the message at the front, once its header is there.
fn peek(bytes: &[u8]) -> Outcome<Option<(u8, usize)>> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let [tag, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    if length < 4 {
        return Err(Failure::new(format!("message {:?} says its length is {length}", tag as char)));
    }
    Ok(Some((tag, length + 1)))
}

fn error_text(body: &[u8]) -> String {
    let fields = body.split(|&byte| byte == 0).filter_map(|field| field.split_first());
    let words: Vec<_> = fields
        .filter(|(code, _)| matches!(code, b'C' | b'M'))
        .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
        .collect();
    format!("error from the server: {}", words.join(" "))
}
