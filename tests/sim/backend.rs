//! A model of one PostgreSQL session: small, but faithful where a pooler could go wrong. It holds
//! everything that it receives against the book, and enters there everything that it answers.

use crate::book::{Book, Mode, Pool};
use crate::guard::{Guard, Verdict};
use crate::params::{self, Params};
use crate::prng::Prng;
use crate::socket::{End, Pipe, Socket};
use crate::wire;
use std::collections::{BTreeMap, VecDeque};

/// What it does next for the request it is working on.
pub enum Act {
    Send(Vec<u8>),
    /// A row of so many bytes at least; the number.
    Row(usize, u32),
    /// Takes so many steps, and can be cancelled meanwhile.
    Work(u32),
    Statement(String),
    CopyIn(u32),
    Flush,
    /// The end of a simple query.
    EndQuery,
}

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    None,
    Simple,
    Extended,
    /// A query of the pooler's own.
    Own,
}

/// A COPY that fails before it reads anything.
pub const AT_ONCE: u32 = 99;

/// A COPY from the client.
pub struct CopyIn {
    /// The server fails at this one; 0 is never.
    pub fails_at: u32,
    pub received: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Startup,
    /// Finds out who it is.
    Guarded,
    Ready,
    /// Brought a CancelRequest, which has been carried out; ends after so many steps.
    Carrier(u32),
    Dead,
}

/// Where another pooler listens.
pub const PEERS_PORT: u16 = 7000;

/// What a session's first packet asks for.
pub enum First {
    Nothing,
    Cancel(Vec<u8>),
}

/// See the module's page.
pub struct Backend {
    pub phase: Phase,
    /// While it finds out who it is.
    guard: Option<Guard>,
    /// Where in the world's list its socket is.
    pub socket: usize,
    pub port: u16,
    pub pool: Pool,
    pub key: Vec<u8>,
    /// Up to which byte of its input the engine wrote while linked to whom.
    pub claims: VecDeque<(u64, Option<usize>)>,
    /// It logs nobody in.
    pub rejects: Option<&'static str>,
    /// It does nothing for now.
    pub hangs: bool,
    /// The entry that it was opened with has changed; only this client may go on using it.
    pub retired: Option<Option<usize>>,
    /// It belongs to one client, whose own words it was opened with.
    replicates: bool,
    /// It is new, and is to be asked this first.
    greeting: Option<&'static str>,
    received: u64,
    input: Pipe,
    out: Pipe,
    may_flush: bool,
    reports_late: bool,
    pub(crate) params: Params,
    at_login: Params,
    reported: Params,
    pub(crate) undo: Option<Params>,
    pub(crate) tx: u8,
    pub(crate) exchange: Exchange,
    pub(crate) plan: VecDeque<Act>,
    pub(crate) copy: Option<CopyIn>,
    skipping: bool,
    /// For whom it works, up to the end of the exchange and the transaction.
    pub owner: Option<usize>,
    pub(crate) unit: u32,
    last_owner: Option<usize>,
    is_reset: bool,
    pub(crate) statements: BTreeMap<String, String>,
    pub(crate) portals: BTreeMap<String, (String, u32)>,
}

impl Backend {
    pub fn new(socket: usize, port: u16, key: Vec<u8>) -> Self {
        let defaults = Params::defaults(port);
        Self {
            phase: Phase::Startup,
            guard: None,
            socket,
            port,
            pool: Pool::default(),
            key,
            claims: VecDeque::new(),
            rejects: None,
            hangs: false,
            retired: None,
            replicates: false,
            greeting: None,
            received: 0,
            input: Pipe::default(),
            out: Pipe::default(),
            may_flush: false,
            reports_late: port % 4 < 2,
            params: defaults.clone(),
            at_login: defaults.clone(),
            reported: defaults,
            undo: None,
            tx: b'I',
            exchange: Exchange::None,
            plan: VecDeque::new(),
            copy: None,
            skipping: false,
            owner: None,
            unit: 0,
            last_owner: None,
            is_reset: true,
            statements: BTreeMap::new(),
            portals: BTreeMap::new(),
        }
    }

    /// Reads, works, writes. Says whether anything happened.
    pub fn step(&mut self, socket: &mut Socket, book: &mut Book, rng: &mut Prng) -> (bool, First) {
        let mut moved = false;
        let mut first = First::Nothing;
        if self.phase == Phase::Dead {
            return (false, first);
        }
        if self.input.len() < 70_000 || wire_wants_more(&self.input) {
            let bytes = socket.take(usize::MAX);
            moved |= !bytes.is_empty();
            self.received += bytes.len() as u64;
            self.input.push(&bytes);
        }
        if let Phase::Carrier(steps) = self.phase {
            match steps {
                0 => self.end(socket, End::Orderly),
                steps => self.phase = Phase::Carrier(steps - 1),
            }
            return (true, first);
        }
        for _ in 0..1 + rng.below(8) {
            if self.hangs || self.phase == Phase::Dead || self.out.len() > 64 * 1024 {
                break;
            }
            let (worked, asked) = self.work(socket, book, rng);
            moved |= worked;
            if let First::Cancel(_) = asked {
                first = asked;
            }
            if !worked {
                break;
            }
        }
        moved |= self.flush(socket);
        let is_in = matches!(self.phase, Phase::Startup | Phase::Guarded | Phase::Ready);
        // What it has not got whole will never be.
        let has_nothing_to_do = self.input.is_empty() || (!moved && !self.hangs);
        if is_in && socket.is_over() && has_nothing_to_do {
            self.end(socket, End::Orderly);
            moved = true;
        }
        (moved, first)
    }

    /// Whether it was opened for a CancelRequest.
    pub fn is_carrier(&self) -> bool {
        self.pool.0.is_empty()
    }

    fn flush(&mut self, socket: &mut Socket) -> bool {
        if !self.may_flush && self.out.len() < 8192 {
            return false;
        }
        let sent = socket.send(self.out.bytes());
        self.out.skip(sent);
        self.may_flush &= !self.out.is_empty();
        sent > 0
    }

    /// The connection ends, from this side.
    pub fn end(&mut self, socket: &mut Socket, how: End) {
        if how == End::Orderly {
            self.may_flush = true;
            self.flush(socket);
        }
        socket.close(how);
        self.phase = Phase::Dead;
    }

    /// Says why, then ends.
    pub fn shut_down(&mut self, socket: &mut Socket, book: &mut Book) {
        if self.phase == Phase::Ready {
            let text = format!("sim: shut down {}", book.next_serial());
            self.say(book, &wire::report(b'E', "FATAL", "57P01", &text));
        }
        self.end(socket, End::Orderly);
    }

    /// Something that nobody asked for: the client gets it for which it works, or anybody.
    pub fn say(&mut self, book: &mut Book, bytes: &[u8]) {
        match self.owner {
            Some(client) if self.exchange != Exchange::Own => {
                book.answered(client, self.unit, bytes);
            }
            _ => book
                .strays
                .push(crate::book::Stray { pool: self.pool.clone(), bytes: bytes.to_vec() }),
        }
        self.out.push(bytes);
        self.may_flush = true;
    }

    /// A notice, a notification or a parameter out of the blue.
    pub fn blurt(&mut self, book: &mut Book, rng: &mut Prng) {
        let serial = book.next_serial();
        let text = format!("sim: by the way {serial}");
        let is_bound = self.owner.is_some() && self.exchange != Exchange::Own;
        let bytes = match rng.below(4) {
            0 => wire::report(b'N', "NOTICE", "00000", &text),
            1 => wire::notification(&text),
            2 if is_bound => {
                // As when the server's configuration is read again.
                let value = format!("app {serial}");
                self.params.0[4].clone_from(&value);
                self.reported.0[4].clone_from(&value);
                if let Some(undo) = &mut self.undo {
                    undo.0[4].clone_from(&value);
                }
                self.note_params(book);
                wire::parameter_status("application_name", &value)
            }
            _ => wire::parameter_status("in_hot_standby", &text),
        };
        self.say(book, &bytes);
    }

    /// A reply to the request it is working on.
    pub(crate) fn reply(&mut self, book: &mut Book, bytes: &[u8]) {
        if let (Some(client), false) = (self.owner, self.exchange == Exchange::Own) {
            book.answered(client, self.unit, bytes);
        }
        self.out.push(bytes);
    }

    pub(crate) fn set_flush(&mut self) {
        self.may_flush = true;
    }

    /// The owner's session is what this server is now.
    pub(crate) fn note_params(&mut self, book: &mut Book) {
        if let (Some(client), false) = (self.owner, self.exchange == Exchange::Own) {
            book.accounts[client].desired = Some(self.params.clone());
        }
    }

    /// Reports what has changed.
    pub(crate) fn report(&mut self, book: &mut Book) {
        for (index, name) in params::TRACKED.iter().enumerate() {
            if self.params.0[index] != self.reported.0[index] {
                self.reported.0[index] = self.params.0[index].clone();
                let bytes = wire::parameter_status(name, &self.params.0[index]);
                self.reply(book, &bytes);
            }
        }
    }

    pub(crate) fn report_soon(&mut self, book: &mut Book) {
        if !self.reports_late {
            self.report(book);
        }
    }

    pub(crate) fn reset_params(&mut self) {
        self.params = self.at_login.clone();
    }

    /// ReadyForQuery.
    pub(crate) fn ready(&mut self, book: &mut Book) {
        self.report(book);
        self.note_params(book);
        let status = self.tx;
        self.reply(book, &wire::ready(status));
        self.end_exchange();
    }

    /// ReadyForQuery to a Sync of the pooler's own, of which the client learns nothing.
    pub(crate) fn ready_for_pooler(&mut self, book: &mut Book) {
        self.report(book);
        self.note_params(book);
        let status = self.tx;
        self.say_own(&wire::ready(status));
        self.end_exchange();
    }

    /// For the pooler.
    pub(crate) fn say_own(&mut self, bytes: &[u8]) {
        self.out.push(bytes);
    }

    fn end_exchange(&mut self) {
        self.may_flush = true;
        self.skipping = false;
        self.exchange = Exchange::None;
        if self.tx == b'I' {
            self.undo = None;
            self.owner = None;
            self.portals.clear();
        }
    }

    /// What it was asked fails.
    pub(crate) fn fail(&mut self, book: &mut Book, code: &str, text: &str) {
        self.plan.clear();
        self.copy = None;
        if self.tx == b'I'
            && let Some(undo) = self.undo.clone()
        {
            self.params = undo;
            self.note_params(book);
            self.report_soon(book);
        }
        self.reply(book, &wire::report(b'E', "ERROR", code, text));
        self.may_flush = true;
        if self.tx == b'T' {
            self.tx = b'E';
        }
        match self.exchange {
            Exchange::Extended => self.skipping = true,
            _ => self.plan.push_back(Act::EndQuery),
        }
    }

    /// Whether it ignores everything up to the next Sync.
    pub(crate) fn is_skipping(&self) -> bool {
        self.skipping
    }

    pub fn is_busy(&self) -> bool {
        !self.plan.is_empty() || self.copy.is_some()
    }

    /// A CancelRequest with its key has come. What happens to a connection that the engine has
    /// closed is nobody's concern.
    pub fn cancel(&mut self, socket: &Socket, book: &mut Book) {
        if !self.is_busy() || self.phase != Phase::Ready || socket.is_closed {
            return;
        }
        assert!(self.exchange != Exchange::Own, "a cancel hit a query of the pooler's own");
        // Without an owner it is the pooler that takes something back for one who has gone.
        let client = self.owner.unwrap_or_default();
        if self.owner.is_some() {
            book.hit(client);
        }
        let text = format!("sim: cancelled c{client} q{}", self.unit);
        self.fail(book, "57014", &text);
    }

    fn work(&mut self, socket: &mut Socket, book: &mut Book, rng: &mut Prng) -> (bool, First) {
        let nothing = (false, First::Nothing);
        if self.copy.is_none()
            && let Some(act) = self.plan.pop_front()
        {
            self.perform(act, book);
            return (true, First::Nothing);
        }
        if self.phase == Phase::Startup {
            let Some(length) = wire::whole_packet(self.input.bytes()) else {
                return nothing;
            };
            let packet = self.input.take(length);
            return (true, self.on_first_packet(&packet, socket, book, rng));
        }
        let Some(length) = wire::whole(self.input.bytes()) else {
            return nothing;
        };
        let start = self.received - self.input.len() as u64;
        let bytes = self.input.take(length);
        let claim = self.claimed(start, start + length as u64);
        if self.phase == Phase::Guarded {
            assert_eq!(claim, None, "a client's message before the login");
            self.on_answer(&bytes);
            return (true, First::Nothing);
        }
        self.on_message(&bytes, claim, socket, book);
        (true, First::Nothing)
    }

    /// For whom the engine wrote these bytes.
    fn claimed(&mut self, start: u64, end: u64) -> Option<usize> {
        while self.claims.front().is_some_and(|(until, _)| *until <= start) {
            self.claims.pop_front();
        }
        let (_, first) = self.claims.front().copied().unwrap_or_default();
        let until = self.claims.iter().take_while(|(_, client)| *client == first).last();
        let until = until.map_or(0, |(until, _)| *until);
        assert!(
            until >= end,
            "two clients' bytes in one message: {start} to {end} of {}, {:?}",
            self.socket,
            self.claims
        );
        first
    }

    fn on_first_packet(
        &mut self,
        packet: &[u8],
        socket: &mut Socket,
        book: &mut Book,
        rng: &mut Prng,
    ) -> First {
        if packet[4..8] == 80_877_102u32.to_be_bytes() {
            self.phase = Phase::Carrier(rng.below(4) as u32);
            if self.port == PEERS_PORT {
                let wanted = book.to_forward.iter().position(|key| *key == packet[8..]);
                book.to_forward.remove(wanted.expect("somebody asked for that"));
                book.forwarded += 1;
            }
            return First::Cancel(packet[8..].to_vec());
        }
        if packet == wire::ssl_request() {
            self.out.push(b"N");
            self.may_flush = true;
            return First::Nothing;
        }
        assert_eq!(packet[4..8], 0x3_0000u32.to_be_bytes(), "a Startup");
        let texts = wire::split_texts(&packet[8..]);
        for pair in texts.chunks_exact(2) {
            match pair[0].as_str() {
                "user" => self.pool.1.clone_from(&pair[1]),
                "database" => self.pool.0.clone_from(&pair[1]),
                "replication" => self.replicates = pair[1] == "database",
                name => {
                    assert!(self.replicates, "a parameter that is in no entry: {name}");
                    let index = params::Params::index(name).expect("a tracked one");
                    self.params.0[index] = params::canonical(&pair[1]).to_string();
                }
            }
        }
        self.at_login = self.params.clone();
        self.reported = self.params.clone();
        if self.params.0.iter().any(|value| params::is_refused(value)) {
            self.out.push(&wire::report(b'E', "FATAL", "22023", "sim: no such value"));
            self.end(socket, End::Orderly);
            return First::Nothing;
        }
        if let Some(text) = self.rejects {
            self.out.push(&wire::report(b'E', "FATAL", "53300", text));
            self.end(socket, End::Orderly);
            return First::Nothing;
        }
        self.greeting = book.greeting;
        match Guard::at(self.port) {
            None => self.let_in(),
            Some((guard, request)) => {
                self.phase = Phase::Guarded;
                self.guard = Some(guard);
                self.out.push(&request);
                self.may_flush = true;
            }
        }
        First::Nothing
    }

    fn on_answer(&mut self, message: &[u8]) {
        let guard = self.guard.take().expect("somebody asked");
        match guard.hear(&self.pool.1, message) {
            Verdict::Ask(guard, request) => {
                self.guard = Some(guard);
                self.out.push(&request);
                self.may_flush = true;
            }
            Verdict::LetIn(last) => {
                self.out.push(&last);
                self.let_in();
            }
        }
    }

    fn let_in(&mut self) {
        self.phase = Phase::Ready;
        self.out.push(&wire::message(b'R', &[0; 4]));
        for (name, value) in params::UNTRACKED {
            self.out.push(&wire::parameter_status(name, value));
        }
        for (name, value) in params::TRACKED.iter().zip(&self.params.0) {
            self.out.push(&wire::parameter_status(name, value));
        }
        self.out.push(&wire::message(b'K', &self.key));
        self.out.push(&wire::ready(b'I'));
        self.may_flush = true;
    }

    fn on_message(
        &mut self,
        bytes: &[u8],
        claim: Option<usize>,
        socket: &mut Socket,
        book: &mut Book,
    ) {
        crate::trace::note(|| format!("backend@{} {claim:?} {}", self.socket, wire::show(bytes)));
        if bytes[0] == b'X' {
            assert!(self.copy.is_none() || claim.is_none(), "a client's Terminate was relayed");
            self.end(socket, End::Orderly);
            return;
        }
        if bytes[0] == b'Q' && !bytes[5..].starts_with(b"/*") {
            self.on_own_query(&String::from_utf8_lossy(&bytes[5..bytes.len() - 1]), claim, book);
            return;
        }
        let client = claim.expect("a client's message, written while linked to it");
        if self.is_poolers(client, bytes, book) {
            match book.accounts[client].has_left {
                true => self.on_poolers(bytes, book),
                false => self.on_question(client, bytes, book),
            }
            return;
        }
        let unit = book.arrived(client, bytes, self.copy.is_some());
        let is_late_copy = self.copy.is_none() && matches!(bytes[0], b'd' | b'c' | b'f');
        if let Some(owner) = self.owner {
            assert_eq!(owner, client, "client {client} in the middle of another's work");
        } else if !is_late_copy {
            self.begin(client, book);
        }
        if is_late_copy {
            return;
        }
        // A Sync in a COPY is nothing that is worked on.
        if self.copy.is_none() || bytes[0] != b'S' {
            self.unit = unit;
        }
        if self.copy.is_some() {
            self.on_copy_message(bytes, book);
        } else if !self.skipping || bytes[0] == b'S' {
            self.on_request(bytes, book);
        }
    }

    /// A new piece of work for a client.
    fn begin(&mut self, client: usize, book: &mut Book) {
        let account = &book.accounts[client];
        assert_eq!(self.greeting, None, "a new server has not been asked its connect_query");
        assert_eq!(self.pool, account.pool, "a client is served by its own pool");
        assert_eq!(self.replicates, account.replicates, "who replicates has its own kind");
        let is_first = self.last_owner.is_none_or(|last| last == client);
        assert!(is_first || !self.replicates, "a server for replication got another client");
        // Who asks before it has read its welcome does not know yet what it has.
        if let Some(desired) = &account.desired {
            assert!(
                self.params.suits(desired),
                "client {client} wants {desired:?}, the server has {:?}",
                self.params
            );
        }
        if let Some(heir) = self.retired {
            assert_eq!(heir, Some(client), "a server on its way out got another client");
        }
        if let Some(last) = self.last_owner.filter(|last| *last != client) {
            let in_session = account.mode == Mode::Session;
            assert!(!in_session || self.is_reset, "a session was not reset after client {last}");
            assert!(!in_session || book.accounts[last].has_left, "client {last} is still there");
        }
        self.owner = Some(client);
        self.last_owner = Some(client);
        self.is_reset = false;
    }

    /// `connect_query`: whatever becomes of it, nobody hears of it.
    fn on_greeting(&mut self, text: &str, book: &mut Book) {
        self.plan.push_back(Act::Work(2));
        match text {
            "fail" => self.fail(book, "42601", "sim: connect_query"),
            "notice" => {
                let notice = wire::report(b'N', "NOTICE", "00000", "sim: connect_query");
                self.plan.push_back(Act::Send(notice));
                self.plan.push_back(Act::Send(wire::complete("DO")));
                self.plan.push_back(Act::EndQuery);
            }
            _ => {
                self.plan.push_back(Act::Send(wire::row_description()));
                self.plan.push_back(Act::Row(10, 0));
                self.plan.push_back(Act::Send(wire::complete("SELECT 1")));
                self.plan.push_back(Act::EndQuery);
            }
        }
    }

    fn on_own_query(&mut self, text: &str, claim: Option<usize>, book: &mut Book) {
        if let (Some(client), "ROLLBACK") = (claim, text) {
            self.on_rollback(client, book);
            return;
        }
        assert!(self.owner.is_none(), "the pooler's query in the middle of a client's: {text}");
        assert!(self.exchange == Exchange::None && self.tx == b'I' && self.copy.is_none());
        self.exchange = Exchange::Own;
        if let Some(greeting) = self.greeting.take() {
            assert_eq!((text, claim), (greeting, None), "the connect_query comes first");
            book.greeted += 1;
            self.on_greeting(greeting, book);
            return;
        }
        if text == "DISCARD ALL" {
            let is_free = claim.is_none_or(|client| book.accounts[client].has_left);
            assert!(is_free, "the reset runs when the client has gone");
            self.is_reset = true;
            self.statements.clear();
            self.reset_params();
            self.plan.push_back(Act::Work(3));
            self.plan.push_back(Act::Send(wire::complete("DISCARD ALL")));
            self.plan.push_back(Act::EndQuery);
            return;
        }
        if let "" | "select 1" | "fail" = text {
            assert_eq!(claim, None, "a server is tried out when it works for nobody");
            self.plan.push_back(Act::Work(2));
            match text {
                "" => self.plan.push_back(Act::Send(wire::message(b'I', b""))),
                "fail" => {
                    self.plan.clear();
                    self.fail(book, "42601", "sim: what?");
                    return;
                }
                _ => self.plan.push_back(Act::Send(wire::complete("SELECT 1"))),
            }
            self.plan.push_back(Act::EndQuery);
            return;
        }
        assert!(claim.is_some(), "catching up happens for a client: {text}");
        let before = self.params.clone();
        self.plan.push_back(Act::Work(1));
        for (index, value) in params::read_sets(text) {
            if params::is_refused(&value) {
                self.params = before;
                self.fail(book, "22023", "sim: no such value");
                return;
            }
            self.params.0[index] = params::canonical(&value).to_string();
            self.plan.push_back(Act::Send(wire::complete("SET")));
        }
        self.plan.push_back(Act::EndQuery);
    }
}

/// Whether the message at the start is larger than what is usually read ahead.
fn wire_wants_more(input: &Pipe) -> bool {
    input.len() >= 5 && wire::whole(input.bytes()).is_none()
}
