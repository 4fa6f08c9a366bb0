//! A scripted client: sends what its script says, reads as fast or slowly as it likes, and holds
//! every byte that it receives against the book.

use crate::book::{Book, Entry, Mode, Pool};
use crate::params::{self, Params, TRACKED, UNTRACKED};
use crate::prng::Prng;
use crate::socket::{End, Pipe, Socket};
use crate::wire;
use ringbouncer::keys::ClientKey;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Has asked for encryption; the Startup follows.
    Encryption,
    Login,
    Ready,
    /// Has said Terminate.
    Leaving,
    /// Its connection has ended, from whichever side.
    Over,
}

/// What the script goes on with.
pub enum Planned {
    Message {
        unit: u32,
        bytes: Vec<u8>,
        /// Not sent if the COPY has failed meanwhile.
        in_copy: bool,
    },
    /// Waits for CopyInResponse, or the unit's failure. Then CopyData is not sent.
    AwaitCopy(u32),
    /// Waits for any answer.
    AwaitAnswer(u32),
}

/// How it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appetite {
    Everything,
    /// So many bytes at a time.
    Few(usize),
    /// Nothing for so many steps.
    Nothing(u32),
}

/// What the pooler says to who cancels while waiting for a server. (To a Sync, just that it is
/// ready.)
const CALLED_OFF: &str = "canceling statement due to user request";

/// See the module's page.
pub struct Client {
    pub id: usize,
    pub key: ClientKey,
    pub socket: usize,
    pub pool: Pool,
    pub mode: Mode,
    pub phase: Phase,
    pub planned: VecDeque<Planned>,
    pub outstanding: VecDeque<u32>,
    pub next_unit: u32,
    /// Where the script is.
    pub in_tx: bool,
    /// So many units may be under way.
    pub depth: usize,
    pub appetite: Appetite,
    /// What it asked for in its Startup.
    pub asked: Vec<(usize, String)>,
    pub secret: Option<Vec<u8>>,
    /// The pooler's last words.
    pub farewell: Option<String>,
    /// The pooler has cancelled what it waited for. What it had sent behind that is not in the book,
    /// so it leaves.
    called_off: bool,
    /// It has done what it cannot expect to survive.
    pub is_naughty: bool,
    /// The oldest time since which it has waited without an answer.
    pub waits_since: Option<u64>,
    /// It has no more to ask.
    pub has_finished: bool,
    /// It has sent data of a COPY, or will.
    pub copies: bool,
    pub largest: usize,
    /// As whom it has logged in.
    pub login: String,
    /// So many parameters follow it.
    pub tracked: usize,
    welcome: Vec<(String, String)>,
    startup: Vec<u8>,
    outbox: Pipe,
    inbox: Pipe,
    copying: Option<u32>,
    status: u8,
    answered: u32,
    failed: Option<u32>,
    has_said_finale: bool,
    /// Ends the connection itself after Terminate.
    is_brisk: bool,
}

impl Client {
    pub fn new(
        id: usize,
        key: ClientKey,
        socket: usize,
        pool: Pool,
        mode: Mode,
        (login, replicates): (&str, bool),
        asked: Vec<(usize, String)>,
    ) -> Self {
        let mut pairs = vec![("user".into(), login.into()), ("database".into(), pool.0.clone())];
        pairs.extend(replicates.then(|| ("replication".into(), "database".into())));
        pairs.extend(asked.iter().map(|(index, value)| (TRACKED[*index].into(), value.clone())));
        Self {
            id,
            key,
            socket,
            pool,
            mode,
            phase: Phase::Encryption,
            planned: VecDeque::new(),
            outstanding: VecDeque::new(),
            next_unit: 1,
            in_tx: false,
            depth: 1,
            appetite: Appetite::Everything,
            asked,
            secret: None,
            farewell: None,
            called_off: false,
            is_naughty: false,
            waits_since: None,
            has_finished: false,
            copies: false,
            largest: 3000,
            login: login.to_string(),
            tracked: 5,
            welcome: Vec::new(),
            startup: wire::startup(&pairs),
            outbox: Pipe::default(),
            inbox: Pipe::default(),
            copying: None,
            status: b'I',
            answered: 0,
            failed: None,
            has_said_finale: false,
            is_brisk: true,
        }
    }

    /// Whether it is in the middle of saying something.
    pub fn has_unsent(&self) -> bool {
        !self.outbox.is_empty() || !self.planned.is_empty()
    }

    /// Begins its login; `asks` for encryption first, or sends the Startup at once.
    pub fn log_in(&mut self, asks: bool) {
        if asks {
            self.outbox.push(&wire::ssl_request());
        } else {
            self.outbox.push(&self.startup);
            self.phase = Phase::Login;
        }
    }

    /// Reads, thinks, writes. Says whether anything moved.
    pub fn step(
        &mut self,
        socket: &mut Socket,
        book: &mut Book,
        rng: &mut Prng,
        closing: bool,
        now: u64,
    ) -> bool {
        if self.phase == Phase::Over {
            return false;
        }
        if closing {
            self.appetite = Appetite::Everything;
        }
        let mut moved = self.read(socket, book, now);
        if self.called_off && self.phase == Phase::Ready {
            self.leave(socket, book, None, true);
        }
        if socket.is_over() {
            self.on_end(socket, book);
            return true;
        }
        if self.phase == Phase::Ready {
            moved |= self.think(rng, closing);
        }
        // The first query may follow the Startup at once.
        if self.phase != Phase::Encryption {
            self.go_on(book, rng);
        }
        if !self.outbox.is_empty() && self.waits_since.is_none() {
            self.waits_since = Some(now);
        }
        let most = if closing { usize::MAX } else { rng.size(100_000) };
        let bytes = self.outbox.bytes();
        let sent = socket.send(&bytes[..bytes.len().min(most)]);
        self.outbox.skip(sent);
        moved |= sent > 0;
        if self.phase == Phase::Leaving && self.outbox.is_empty() && self.is_brisk {
            socket.close(End::Orderly);
            self.phase = Phase::Over;
            moved = true;
        }
        moved
    }

    fn read(&mut self, socket: &mut Socket, book: &mut Book, now: u64) -> bool {
        let most = match &mut self.appetite {
            Appetite::Everything => usize::MAX,
            Appetite::Few(bytes) => *bytes,
            Appetite::Nothing(0) => {
                self.appetite = Appetite::Everything;
                0
            }
            Appetite::Nothing(steps) => {
                *steps -= 1;
                0
            }
        };
        let bytes = socket.take(most);
        if bytes.is_empty() {
            return false;
        }
        self.inbox.push(&bytes);
        if self.phase == Phase::Encryption {
            if self.inbox.bytes()[0] == b'N' {
                self.inbox.skip(1);
                self.outbox.push(&self.startup);
            }
            self.phase = Phase::Login;
        }
        while let Some(length) = wire::whole(self.inbox.bytes()) {
            let message = self.inbox.take(length);
            assert_eq!(self.farewell, None, "after the last words: {}", wire::show(&message));
            match self.phase {
                Phase::Login => self.on_login_message(&message, book),
                _ => self.on_message(&message, book),
            }
            let waits = !self.outstanding.is_empty() || self.phase == Phase::Login;
            self.waits_since = waits.then_some(now);
        }
        self.check_part(book);
        true
    }

    /// A message that is not there as a whole must be the one that is expected, too.
    fn check_part(&self, book: &Book) {
        let part = self.inbox.bytes();
        if self.called_off
            || matches!(self.phase, Phase::Encryption | Phase::Login)
            || part.len() > 4096
        {
            return;
        }
        let expected = book.accounts[self.id].expected.front();
        let is_expected = expected.is_some_and(|entry| entry.bytes.starts_with(part));
        let unasked = matches!(part.first(), None | Some(b'N' | b'A' | b'S' | b'E'))
            || book.accounts[self.id].was_cancelled && part.first() == Some(&b'Z');
        assert!(is_expected || unasked, "client {} got a part {}", self.id, wire::show(part));
    }

    fn on_login_message(&mut self, message: &[u8], book: &mut Book) {
        let body = &message[5..];
        match message[0] {
            b'R' => assert_eq!(body, [0; 4]),
            b'S' => {
                let texts = wire::split_texts(body);
                self.welcome.push((texts[0].clone(), texts[1].clone()));
            }
            b'K' => self.secret = Some(body.to_vec()),
            b'Z' => {
                assert_eq!(body, b"I");
                self.on_welcome(book);
                self.phase = Phase::Ready;
            }
            b'E' => self.farewell = Some(wire::report_text(message).1),
            tag => panic!("'{}' in a login", tag as char),
        }
    }

    fn on_welcome(&mut self, book: &mut Book) {
        let told = |name: &str| {
            let found = self.welcome.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone()).unwrap_or_else(|| panic!("no {name}"))
        };
        for (name, value) in UNTRACKED {
            assert!(name == "in_hot_standby" || told(name) == value, "{name}");
        }
        let values = Params(TRACKED.map(told));
        for (index, value) in &self.asked {
            assert!(params::same_value(&values.0[*index], value), "a Startup's {value}");
        }
        let desired = &mut book.accounts[self.id].desired;
        *desired = desired.take().or(Some(values));
    }

    fn on_message(&mut self, message: &[u8], book: &mut Book) {
        crate::trace::note(|| format!("client {} <- {}", self.id, wire::show(message)));
        if self.called_off {
            return;
        }
        let account = &mut book.accounts[self.id];
        if account.expected.front().is_some_and(|next| next.bytes == message) {
            let entry = account.expected.pop_front().expect("just seen");
            self.on_reply(&entry);
            return;
        }
        let tag = message[0];
        if matches!(tag, b'N' | b'A' | b'S' | b'E') && book.take_stray(&self.pool, message) {
            return;
        }
        let (severity, text) = wire::report_text(message);
        let is_queue_notice = tag == b'N' && text.contains("client being queued");
        if is_queue_notice {
            return;
        }
        let was_cancelled = book.accounts[self.id].was_cancelled;
        let is_own = tag == b'Z' || (severity.as_str(), text.as_str()) == ("ERROR", CALLED_OFF);
        if was_cancelled && is_own {
            self.called_off = true;
            return;
        }
        let expected = book.accounts[self.id].expected.front();
        let expected = expected.map(|entry| wire::show(&entry.bytes));
        assert!(
            tag == b'E' && severity == "FATAL",
            "client {} got {} instead of {expected:?}",
            self.id,
            wire::show(message),
        );
        crate::trace::note(|| format!("client {} is told: {text}", self.id));
        self.farewell = Some(text);
    }

    fn on_reply(&mut self, entry: &Entry) {
        let (unit, message) = (entry.unit, &entry.bytes);
        let oldest = self.outstanding.front().copied();
        let is_unasked = matches!(message[0], b'N' | b'A' | b'S' | b'E');
        assert!(
            is_unasked
                || oldest.is_some_and(|oldest| oldest <= unit) && self.outstanding.contains(&unit),
            "client {} got an answer to unit {unit}, open are {:?}",
            self.id,
            self.outstanding
        );
        self.answered = unit;
        match message[0] {
            b'D' => {
                let mark = format!("c{} q{unit} r", self.id);
                assert!(message[11..].starts_with(mark.as_bytes()), "a row of another query");
            }
            b'G' => self.copying = Some(unit),
            b'E' => {
                self.failed = Some(unit);
                self.copying = self.copying.filter(|copying| *copying != unit);
            }
            b'Z' => {
                self.status = message[5];
                while self.outstanding.front().is_some_and(|open| *open <= unit) {
                    self.outstanding.pop_front();
                }
            }
            _ => {}
        }
    }

    fn think(&mut self, rng: &mut Prng, closing: bool) -> bool {
        if closing {
            self.depth = 1;
            self.has_finished = self.has_said_finale && self.outstanding.is_empty();
        }
        let is_eager = closing || rng.per_mille(300);
        if self.planned.is_empty()
            && self.outstanding.len() < self.depth
            && is_eager
            && !self.has_finished
        {
            match (closing, self.status) {
                (false, _) => self.write_unit(rng),
                (true, b'I') => {
                    self.has_said_finale = true;
                    self.simple("rows 1 1");
                }
                (true, _) => _ = self.simple("rollback"),
            }
            return true;
        }
        false
    }

    /// Sends what of the script may be sent now.
    fn go_on(&mut self, book: &mut Book, rng: &mut Prng) {
        let limit = rng.size(50_000);
        while self.outbox.len() < limit && self.phase != Phase::Leaving {
            match self.planned.front() {
                None => return,
                Some(Planned::AwaitCopy(unit)) => {
                    let has_failed = self.failed == Some(*unit);
                    let is_over = has_failed || !self.outstanding.contains(unit);
                    if self.copying != Some(*unit) && !is_over {
                        return;
                    }
                    self.planned.pop_front();
                    if is_over {
                        self.drop_copy();
                    }
                    continue;
                }
                Some(Planned::AwaitAnswer(unit)) => {
                    if self.answered < *unit && self.outstanding.contains(unit) {
                        return;
                    }
                    self.planned.pop_front();
                    continue;
                }
                Some(Planned::Message { .. }) => {}
            }
            let Some(Planned::Message { unit, bytes, in_copy }) = self.planned.pop_front() else {
                unreachable!("the others were dealt with");
            };
            if in_copy && self.copying != Some(unit) {
                continue;
            }
            if matches!(bytes[0], b'c' | b'f') {
                self.copying = None;
            }
            crate::trace::note(|| format!("client {} q{unit} {}", self.id, wire::show(&bytes)));
            self.outbox.push(&bytes);
            let account = &mut book.accounts[self.id];
            account.copies |= self.copies;
            account.sent.push_back(Entry { unit, bytes });
        }
    }

    fn drop_copy(&mut self) {
        while let Some(Planned::Message { bytes, .. }) = self.planned.front() {
            if !matches!(bytes[0], b'd' | b'c' | b'f') {
                return;
            }
            self.planned.pop_front();
        }
    }

    /// Goes away: with Terminate, or just so.
    pub fn leave(&mut self, socket: &mut Socket, book: &mut Book, how: Option<End>, brisk: bool) {
        if matches!(self.phase, Phase::Leaving | Phase::Over) {
            return;
        }
        crate::trace::note(|| format!("client {} leaves: {how:?}", self.id));
        book.accounts[self.id].has_left = true;
        match how {
            Some(end) => {
                socket.close(end);
                self.phase = Phase::Over;
            }
            None if self.phase == Phase::Ready => {
                self.outbox.push(&wire::message(b'X', b""));
                self.phase = Phase::Leaving;
                self.is_brisk = brisk;
            }
            None => {
                socket.close(End::Orderly);
                self.phase = Phase::Over;
            }
        }
    }

    /// The engine has closed the connection, and everything has been read.
    fn on_end(&mut self, socket: &Socket, book: &mut Book) {
        let has_left = self.phase == Phase::Leaving;
        let was_cut_off = socket.is_cut_off || !self.inbox.is_empty();
        crate::trace::note(|| format!("client {} is closed: {:?}", self.id, self.farewell));
        assert!(
            has_left || was_cut_off || self.farewell.is_some(),
            "client {} was closed without a word",
            self.id
        );
        if let Some(part) = Some(self.inbox.bytes()).filter(|part| !part.is_empty()) {
            let expected = book.accounts[self.id].expected.front();
            let is_expected = expected.is_some_and(|entry| entry.bytes.starts_with(part));
            let is_unasked = matches!(part[0], b'N' | b'A' | b'S' | b'E')
                || book.accounts[self.id].was_cancelled && part[0] == b'Z';
            let is_excused = self.phase == Phase::Login || self.called_off;
            assert!(is_expected || is_unasked || is_excused, "a part {}", wire::show(part));
        }
        self.phase = Phase::Over;
        book.accounts[self.id].has_left = true;
    }
}
