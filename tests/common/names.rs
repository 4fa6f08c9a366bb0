//! A name server on the loopback, over UDP and TCP, that says what a test tells it.

use super::{Lease, PATIENCE, temp_dir};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const A: u16 = 1;
const SOA: u16 = 6;

/// What is said about a name.
#[derive(Clone, Debug)]
pub enum Says {
    /// It has these addresses.
    Addresses(Vec<Ipv4Addr>),
    /// Nothing at all.
    Nothing,
    /// Datagrams that are no answers, then these addresses.
    GarbageThen(Vec<Ipv4Addr>),
    /// Over UDP that it does not fit; over TCP these addresses.
    OverTcp(Vec<Ipv4Addr>),
    /// It is a zone with this serial.
    Zone(u32),
}

#[derive(Default)]
struct Book {
    says: HashMap<String, Says>,
    asked: HashMap<String, usize>,
    over_tcp: usize,
}

/// Answers until it is dropped. Names that it was not told of do not exist.
pub struct NameServer {
    book: Arc<Mutex<Book>>,
    closing: Arc<AtomicBool>,
    dir: PathBuf,
    lease: Lease,
}

impl NameServer {
    pub fn start() -> NameServer {
        let lease = Lease::take();
        let book = Arc::new(Mutex::new(Book::default()));
        let closing = Arc::new(AtomicBool::new(false));
        let udp = UdpSocket::bind(("127.0.0.1", lease.port)).expect("bind over UDP");
        let tcp = TcpListener::bind(("127.0.0.1", lease.port)).expect("bind over TCP");
        let (own, end) = (book.clone(), closing.clone());
        std::thread::spawn(move || serve_udp(&udp, &own, &end));
        let (own, end) = (book.clone(), closing.clone());
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                if end.load(Ordering::Acquire) {
                    break;
                }
                // Who asks may leave at any time.
                let _ = serve_tcp(stream, &own);
            }
        });
        let dir = temp_dir(&std::env::temp_dir(), "ringbouncer-names");
        let server = NameServer { book, closing, dir, lease };
        let text = format!("nameserver 127.0.0.1:{}\nsearch searched.test\n", server.lease.port);
        std::fs::write(server.resolv_conf(), text).expect("write resolv.conf");
        server
    }

    /// For the setting.
    pub fn resolv_conf(&self) -> String {
        self.dir.join("resolv.conf").display().to_string()
    }

    pub fn say(&self, name: &str, says: Says) {
        self.book.lock().unwrap().says.insert(name.to_owned(), says);
    }

    pub fn addresses(&self, name: &str, addresses: &[[u8; 4]]) {
        let addresses = addresses.iter().map(|address| Ipv4Addr::from(*address)).collect();
        self.say(name, Says::Addresses(addresses));
    }

    /// How often the address of a name was asked for (or the serial, for a zone).
    pub fn asked(&self, name: &str) -> usize {
        self.book.lock().unwrap().asked.get(name).copied().unwrap_or(0)
    }

    pub fn asked_over_tcp(&self) -> usize {
        self.book.lock().unwrap().over_tcp
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.lease.port));
        if let Ok(socket) = UdpSocket::bind(("127.0.0.1", 0)) {
            let _ = socket.send_to(b"", ("127.0.0.1", self.lease.port));
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn serve_udp(socket: &UdpSocket, book: &Mutex<Book>, closing: &AtomicBool) {
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        if closing.load(Ordering::Acquire) {
            return;
        }
        for answer in answers(&question[..length], &mut book.lock().unwrap(), false) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn serve_tcp(mut stream: TcpStream, book: &Mutex<Book>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(head))];
    stream.read_exact(&mut question)?;
    for answer in answers(&question, &mut book.lock().unwrap(), true) {
        // In two pieces: nobody may count on getting it at once.
        stream.write_all(&u16::try_from(answer.len()).expect("short").to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// What is sent for a question, one message after the other.
fn answers(question: &[u8], book: &mut Book, over_tcp: bool) -> Vec<Vec<u8>> {
    let Some((name, kind, end)) = asked(question) else {
        return Vec::new();
    };
    if kind == A || kind == SOA {
        *book.asked.entry(name.clone()).or_default() += 1;
        book.over_tcp += usize::from(over_tcp);
    }
    let asked = &question[..end];
    match book.says.get(&name) {
        None => vec![reply(asked, 3, &[])],
        Some(Says::Nothing) => Vec::new(),
        Some(Says::Addresses(found)) => vec![reply(asked, 0, &records(kind, found))],
        Some(Says::OverTcp(found)) if over_tcp => vec![reply(asked, 0, &records(kind, found))],
        Some(Says::OverTcp(_)) => {
            let mut short = reply(asked, 0, &[]);
            short[2] |= 2;
            vec![short]
        }
        Some(Says::GarbageThen(found)) => {
            let good = reply(asked, 0, &records(kind, found));
            let lie = records(kind, &[Ipv4Addr::new(127, 0, 0, 99)]);
            let mut foreign = reply(asked, 0, &lie);
            foreign[0] ^= 0x55;
            let mut other = reply(asked, 0, &lie);
            other[13] ^= 1;
            let cut = good[..good.len() - 1].to_vec();
            let noise = [&good[..2], &[0xff; 600][..]].concat();
            vec![Vec::new(), vec![0], noise, cut, foreign, other, good]
        }
        Some(Says::Zone(serial)) if kind == SOA => {
            let mut record = vec![0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 1, 0, 22, 0, 0];
            record.extend(serial.to_be_bytes());
            record.extend([0; 16]);
            vec![reply(asked, 0, &[record])]
        }
        Some(Says::Zone(_)) => vec![reply(asked, 0, &[])],
    }
}

/// The name, what is asked about it, and where the question ends.
fn asked(message: &[u8]) -> Option<(String, u16, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
    Some((labels.join("."), kind, at + 4))
}

fn records(kind: u16, addresses: &[Ipv4Addr]) -> Vec<Vec<u8>> {
    let addresses = addresses.iter().filter(|_| kind == A);
    // A TTL of zero: it does not count.
    let head = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4];
    addresses.map(|address| [&head[..], &address.octets()].concat()).collect()
}

fn reply(asked: &[u8], code: u8, answers: &[Vec<u8>]) -> Vec<u8> {
    let mut message = asked.to_vec();
    message[2] = 0x81;
    message[3] = 0x80 | code;
    message[6..8].copy_from_slice(&u16::try_from(answers.len()).expect("few").to_be_bytes());
    message[8..12].fill(0);
    message.extend(answers.concat());
    message
}
