//! What each client has asked and what servers have answered it, as the models saw it: the book
//! against which everything that passes through the engine is held.

use crate::params::Params;
use crate::wire;
use std::collections::VecDeque;

/// Bytes of one message, and which unit of its client's script it belongs to.
pub struct Entry {
    pub unit: u32,
    pub bytes: Vec<u8>,
}

/// How a database is pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Session,
    Transaction,
    Statement,
}

/// A database and the user that its servers log in as.
pub type Pool = (String, String);

/// One client's page.
pub struct Account {
    pub pool: Pool,
    pub mode: Mode,
    /// It has a server of its own.
    pub replicates: bool,
    /// What it has sent and no server has received yet.
    pub sent: VecDeque<Entry>,
    /// Parts of COPYs that were over: nobody needs to receive them.
    pub passed_over: Vec<Entry>,
    /// What servers have answered it and it has not received yet.
    pub expected: VecDeque<Entry>,
    /// The parameters that its session has.
    pub desired: Option<Params>,
    /// It sends data of COPYs.
    pub copies: bool,
    /// What it says up to its next Sync is ignored, in the server's place.
    pub skips_to_sync: bool,
    /// Somebody has asked to cancel what it waits for: some of that may never reach a server.
    pub was_cancelled: bool,
    /// It broke off, or was closed.
    pub has_left: bool,
}

/// Something a server said that nobody asked for.
pub struct Stray {
    pub pool: Pool,
    pub bytes: Vec<u8>,
}

/// A cancel that somebody asks for; gone when his connection is.
pub struct Cancel {
    /// Which socket he has.
    pub socket: usize,
    pub client: usize,
}

/// See the module's page.
#[derive(Default)]
pub struct Book {
    /// What a new server is asked first (`connect_query`).
    pub greeting: Option<&'static str>,
    pub greeted: u64,
    /// So many replicate; CancelRequests that another pooler has got from us, and those that it is
    /// to get.
    pub replicators: u64,
    pub forwarded: u64,
    pub to_forward: Vec<Vec<u8>>,
    /// So often a server was asked which Syncs counted; of these, for a client that had gone.
    pub questions: (u64, u64),
    pub cancels: Vec<Cancel>,
    pub accounts: Vec<Account>,
    pub strays: Vec<Stray>,
    /// Makes every unasked message different.
    pub serial: u32,
    /// Queries that servers have run; cancels that hit one.
    pub executed: u64,
    pub cancelled: u64,
}

impl Book {
    /// A server has received a message of this client: it must be the next that was sent.
    /// CopyData may be missing where the COPY is over. Which unit it is.
    pub fn arrived(&mut self, client: usize, bytes: &[u8], is_copying: bool) -> u32 {
        let account = &mut self.accounts[client];
        // A COPY's late end may be read when another server has got the next query already.
        let late = account.passed_over.iter().position(|entry| entry.bytes == bytes);
        if let Some(index) = late.filter(|_| !is_copying) {
            return account.passed_over.remove(index).unit;
        }
        loop {
            // A row that its client has not completed ends in nothing.
            if account.has_left && account.sent.front().is_some_and(|next| is_padded(next, bytes)) {
                return account.sent.pop_front().expect("just seen").unit;
            }
            let Some(next) = account.sent.pop_front() else {
                panic!("client {client} never sent {}", wire::show(bytes));
            };
            let skips = std::mem::take(&mut account.skips_to_sync);
            if next.bytes == bytes {
                assert!(!skips || bytes[0] == b'S', "to be ignored: {}", wire::show(bytes));
                return next.unit;
            }
            if skips && next.bytes[0] != b'S' {
                account.skips_to_sync = true;
                continue;
            }
            let is_end = matches!(next.bytes[0], b'd' | b'c' | b'f') && !is_copying;
            let may_miss = is_end || account.was_cancelled;
            assert!(
                may_miss,
                "client {client} sent {}, the server received {}",
                wire::show(&next.bytes),
                wire::show(bytes)
            );
            account.passed_over.push(next);
        }
    }

    /// Whether this message may be the next of this client.
    pub fn may_arrive(&self, client: usize, bytes: &[u8], is_copying: bool) -> bool {
        let account = &self.accounts[client];
        let may_miss = |entry: &&Entry| matches!(entry.bytes[0], b'd' | b'c' | b'f') && !is_copying;
        let next = account.sent.iter().find(|entry| entry.bytes == bytes || !may_miss(entry));
        let is_late = account.passed_over.iter().any(|entry| entry.bytes == bytes);
        next.is_some_and(|next| next.bytes == bytes) || is_late && !is_copying
    }

    pub fn answered(&mut self, client: usize, unit: u32, bytes: &[u8]) {
        self.accounts[client].expected.push_back(Entry { unit, bytes: bytes.to_vec() });
    }

    /// Somebody of this pool has received an unasked message: nobody else may.
    pub fn take_stray(&mut self, pool: &Pool, bytes: &[u8]) -> bool {
        let found =
            self.strays.iter().position(|stray| stray.pool == *pool && stray.bytes == bytes);
        found.map(|index| self.strays.remove(index)).is_some()
    }

    /// A cancel has hit a query of this client.
    pub fn hit(&mut self, client: usize) {
        let is_asked = self.cancels.iter().any(|cancel| cancel.client == client);
        // The pooler itself asks for it when the client has gone.
        assert!(
            is_asked || self.accounts[client].has_left,
            "a cancel hit client {client}, for whom nobody asked it"
        );
        self.cancelled += 1;
    }

    pub fn next_serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }
}

/// Whether this is the beginning of that CopyData, and zeros.
fn is_padded(entry: &Entry, bytes: &[u8]) -> bool {
    let common = entry.bytes.iter().zip(bytes).take_while(|(one, other)| one == other).count();
    bytes[0] == b'd'
        && entry.bytes.len() == bytes.len()
        && common > 4
        && bytes[common..].iter().all(|byte| *byte == 0)
}
