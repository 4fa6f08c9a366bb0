//! A client that speaks just enough of the protocol to log in, run a statement and count the bytes it throws away.
//!
//! It owns no buffer, so thousands of idle ones cost little: the caller lends a [`Scratch`] for each conversation.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::failure::{Context, Failure, Outcome};

/// No answer of ours takes this long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const SCRATCH_BYTES: usize = 256 * 1024;
const HEADER_BYTES: usize = 5;

/// The packet that asks for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

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

/// Whether a client speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    Tls,
}

impl Security {
    /// In libpq's words.
    pub fn mode(self) -> &'static str {
        match self {
            Security::Plain => "disable",
            Security::Tls => "require",
        }
    }
}

/// Bytes to and from a pooler.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

pub struct Client {
    stream: Box<dyn Stream>,
}

impl Client {
    pub fn login(port: u16, database: &str, scratch: &mut Scratch) -> Outcome<Client> {
        Client::greet(Box::new(connect(port)?), database, scratch)
    }

    /// As [`Client::login`], through TLS.
    pub fn login_secured(port: u16, database: &str, scratch: &mut Scratch) -> Outcome<Client> {
        let mut stream = connect(port)?;
        stream.write_all(&SSL_REQUEST)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer != *b"S" {
            return Err(Failure::new("the pooler speaks no TLS"));
        }
        let config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_no_client_auth();
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let tls = ClientConnection::new(Arc::new(config), name).context(|| "TLS".to_owned())?;
        Client::greet(Box::new(StreamOwned::new(tls, stream)), database, scratch)
    }

    fn greet(stream: Box<dyn Stream>, database: &str, scratch: &mut Scratch) -> Outcome<Client> {
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

fn connect(port: u16) -> Outcome<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Believes every pooler: we have started it.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
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
