//! Asks name servers until one of them has answered: over UDP, and over TCP what did not fit.
//!
//! Ids are random and so are ports (each attempt has a socket of its own, for which the kernel
//! chooses one), the socket takes datagrams of the asked server only, and what does not answer the
//! question is passed over: whoever wants to lie to us has to guess all of that within one timeout.

use super::message::{Question, Verdict};
use super::resolv_conf::ResolvConf;
use crate::sys;
use hickory_proto::rr::{Name, RecordType};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// As much as anybody sends who was not told that we take more; and then some.
const MAX_DATAGRAM_BYTES: usize = 4096;
/// So many datagrams that are no answers are passed over. Who sends so many wants no good.
const MAX_STRAYS: usize = 256;

/// Where the next look-up begins that has its servers take turns.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// The serial of a zone.
    pub serial: Option<u32>,
}

/// Why nothing is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Nobody can be asked for such a name.
    BadName,
    /// The system gave us no random number.
    NoRandom,
    /// No server has answered in time.
    Silence,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadName => "such a name cannot be asked for",
            Self::NoRandom => "no random numbers",
            Self::Silence => "no name server has answered",
        })
    }
}

/// One name and what is asked about it.
pub(super) struct Exchange<'a> {
    /// Whom to ask.
    pub conf: &'a ResolvConf,
    /// About what.
    pub name: &'a Name,
    /// What; all at once.
    pub kinds: &'a [RecordType],
    /// Not longer than that.
    pub until: Instant,
}

/// The questions of one attempt, and the answers so far.
struct Attempt<'a> {
    questions: Vec<Question<'a>>,
    answers: Vec<Option<Verdict>>,
    server: SocketAddr,
    until: Instant,
}

impl Exchange<'_> {
    /// `None`: there is nothing of that name.
    pub(super) fn run(&self) -> Result<Option<Found>, Unanswered> {
        let servers = &self.conf.servers;
        let first = if self.conf.rotates { TURN.fetch_add(1, Ordering::Relaxed) } else { 0 };
        for round in 0..self.conf.attempts as usize * servers.len() {
            let now = Instant::now();
            if now >= self.until {
                break;
            }
            let server = servers[first.wrapping_add(round) % servers.len()];
            let mut attempt = Attempt {
                questions: self.questions()?,
                answers: self.kinds.iter().map(|_| None).collect(),
                server,
                until: self.until.min(now + self.conf.timeout),
            };
            // A server that cannot be reached is like one that does not answer, only faster.
            if let Err(error) = attempt.make(self.conf.uses_tcp) {
                log::debug!("name server {server}: {}", sys::error_text(&error));
            }
            if let Some(outcome) = attempt.outcome() {
                return Ok(outcome);
            }
        }
        Err(Unanswered::Silence)
    }

    fn questions(&self) -> Result<Vec<Question<'_>>, Unanswered> {
        let mut questions: Vec<Question<'_>> = Vec::new();
        for kind in self.kinds {
            let mut id = [0; 2];
            sys::fill_random(&mut id).map_err(|_| Unanswered::NoRandom)?;
            let question = Question { id: u16::from_be_bytes(id), name: self.name, kind: *kind };
            question.bytes().ok_or(Unanswered::BadName)?;
            questions.push(question);
        }
        Ok(questions)
    }
}

impl Attempt<'_> {
    fn make(&mut self, uses_tcp: bool) -> io::Result<()> {
        match uses_tcp {
            true => self.answers.fill_with(|| Some(Verdict::Truncated)),
            false => self.over_udp()?,
        }
        for index in 0..self.questions.len() {
            if self.answers[index] == Some(Verdict::Truncated) {
                self.answers[index] = None;
                self.answers[index] = over_tcp(&self.questions[index], self.server, self.until)?;
            }
        }
        Ok(())
    }

    fn over_udp(&mut self) -> io::Result<()> {
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(self.server)?;
        for question in &self.questions {
            socket.send(&question.bytes().unwrap_or_default())?;
        }
        let mut datagram = [0; MAX_DATAGRAM_BYTES];
        for _ in 0..MAX_STRAYS {
            if self.is_over() {
                return Ok(());
            }
            socket.set_read_timeout(Some(time_left(self.until)?))?;
            let length = match socket.recv(&mut datagram) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let judged =
                self.questions.iter().enumerate().find_map(|(index, question)| {
                    Some((index, question.judge(&datagram[..length])?))
                });
            if let Some((index, verdict)) = judged
                && self.answers[index].is_none()
            {
                self.answers[index] = Some(verdict);
            }
        }
        Ok(())
    }

    /// Whether nothing that could still come changes anything.
    fn is_over(&self) -> bool {
        self.answers.contains(&Some(Verdict::NoSuchName))
            || self.answers.iter().all(Option::is_some)
    }

    /// `None`: somebody else has to be asked.
    fn outcome(self) -> Option<Option<Found>> {
        let mut found = Found::default();
        let mut knows_all = true;
        for answer in self.answers {
            match answer {
                Some(Verdict::Addresses(addresses)) => found.addresses.extend(addresses),
                Some(Verdict::Serial(serial)) => found.serial = serial,
                // There is no such name, whatever is asked about it.
                Some(Verdict::NoSuchName) => return Some(None),
                Some(Verdict::Truncated | Verdict::Refused) | None => knows_all = false,
            }
        }
        // The addresses of one family are enough to go on with.
        match found != Found::default() {
            true => Some(Some(found)),
            false => knows_all.then_some(None),
        }
    }
}

fn time_left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    // To wait for no time at all would be to wait for ever.
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// `None`: what came is no answer.
fn over_tcp(
    question: &Question<'_>,
    server: SocketAddr,
    until: Instant,
) -> io::Result<Option<Verdict>> {
    let mut stream = TcpStream::connect_timeout(&server, time_left(until)?)?;
    stream.set_write_timeout(Some(time_left(until)?))?;
    let bytes = question.bytes().unwrap_or_default();
    let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(bytes);
    stream.write_all(&framed)?;
    let mut head = [0; 2];
    read_all(&mut stream, &mut head, until)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(head))];
    read_all(&mut stream, &mut answer, until)?;
    // An answer that claims not to fit here either is none.
    Ok(question.judge(&answer).filter(|verdict| *verdict != Verdict::Truncated))
}

/// As `read_exact`, with an end for who sends byte by byte.
fn read_all(stream: &mut TcpStream, mut place: &mut [u8], until: Instant) -> io::Result<()> {
    while !place.is_empty() {
        stream.set_read_timeout(Some(time_left(until)?))?;
        match stream.read(place) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => place = &mut place[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
