//! Prepared statements that follow a client from server to server.
//!
//! Equal statements (query text and parameter types) are one [`Statement`], whoever prepares them,
//! and have one name on all servers. A client's own names mean such statements; a server has those
//! that were prepared on it, least recently used first. What a client names and its server does
//! not have is prepared there ahead of the client's message.

mod packing;

use crate::keys::ServerKey;
use crate::session::pipeline::Lost;
use lru::LruCache;
use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::sync::Arc;

/// What all names on servers begin with.
// As PgBouncer: dashboards and logs of servers show these names.
const NAME_PREFIX: &[u8] = b"PGBOUNCER_";
/// Prefix and the longest number.
const MAX_NAME_BYTES: usize = 30;

/// A query text with its parameter types, prepared by somebody.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    id: u64,
    /// A Parse message from the query on: text, NUL, number of types, types.
    body: Box<[u8]>,
}

impl Statement {
    /// Its number. No other statement ever had it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What follows the name in a Parse message.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Its name on servers.
    pub fn server_name(&self) -> ServerName {
        let mut name = ServerName { bytes: [0; MAX_NAME_BYTES], len: NAME_PREFIX.len() };
        name.bytes[..name.len].copy_from_slice(NAME_PREFIX);
        let mut rest = &mut name.bytes[NAME_PREFIX.len()..];
        write!(rest, "{}", self.id).expect("the largest number fits");
        name.len = MAX_NAME_BYTES - rest.len();
        name
    }
}

/// A statement's name on servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerName {
    bytes: [u8; MAX_NAME_BYTES],
    len: usize,
}

impl ServerName {
    /// Without the NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Finds a statement by its body.
#[derive(Debug)]
struct ByBody(Arc<Statement>);

impl Borrow<[u8]> for ByBody {
    fn borrow(&self) -> &[u8] {
        self.0.body()
    }
}

impl Hash for ByBody {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.body().hash(state);
    }
}

impl PartialEq for ByBody {
    fn eq(&self, other: &Self) -> bool {
        self.0.body() == other.0.body()
    }
}

impl Eq for ByBody {}

/// Every statement that some client or server knows. Shared ownership, for a statement is never
/// changed and belongs to no connection: its text is stored once, whoever refers to it.
#[derive(Debug, Default)]
pub struct Statements {
    known: HashSet<ByBody>,
    namings: HashSet<ByKey>,
    last_id: u64,
}

impl Statements {
    /// The statement with this body; a new one if nobody knows it.
    pub fn intern(&mut self, body: &[u8]) -> Arc<Statement> {
        if let Some(ByBody(statement)) = self.known.get(body) {
            return statement.clone();
        }
        self.last_id += 1;
        let statement = Arc::new(Statement { id: self.last_id, body: body.into() });
        self.known.insert(ByBody(statement.clone()));
        statement
    }

    /// A name for the statement with this body: the same one for all clients that call it so.
    pub fn name(&mut self, name: &[u8], body: &[u8]) -> Arc<Naming> {
        let statement = self.intern(body);
        self.name_it(name, statement)
    }

    /// A name for this statement.
    pub fn name_it(&mut self, name: &[u8], statement: Arc<Statement>) -> Arc<Naming> {
        let mut key = Vec::with_capacity(ID_BYTES + name.len());
        key.extend_from_slice(&statement.id.to_be_bytes());
        key.extend_from_slice(name);
        if let Some(ByKey(naming)) = self.namings.get(&key[..]) {
            return naming.clone();
        }
        let naming = Arc::new(Naming { key: key.into(), statement });
        self.namings.insert(ByKey(naming.clone()));
        naming
    }

    /// Forgets the statements that no client and no server refers to.
    pub fn collect(&mut self) {
        self.namings.retain(|ByKey(naming)| Arc::strong_count(naming) > 1);
        if self.namings.capacity() > 4 * self.namings.len() + 64 {
            self.namings.shrink_to_fit();
        }
        self.known.retain(|ByBody(statement)| Arc::strong_count(statement) > 1);
        if self.known.capacity() > 4 * self.known.len() + 64 {
            self.known.shrink_to_fit();
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

const ID_BYTES: usize = size_of::<u64>();

/// A name and what it means. Clients of one program give the same names to the same statements:
/// they share them, and each has but a pointer. So a thousand clients with two hundred statements
/// each stay within a few megabytes.
#[derive(Debug)]
pub struct Naming {
    /// The statement's number and the name.
    key: Box<[u8]>,
    statement: Arc<Statement>,
}

impl Naming {
    /// The name.
    pub fn name(&self) -> &[u8] {
        &self.key[ID_BYTES..]
    }

    /// What it means.
    pub fn statement(&self) -> &Arc<Statement> {
        &self.statement
    }
}

/// Finds a naming by statement and name.
#[derive(Debug)]
struct ByKey(Arc<Naming>);

impl Borrow<[u8]> for ByKey {
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

/// What is known of a client's unnamed statement while no server works for it. (While one does, that
/// server's pipeline knows.)
#[derive(Debug, Default)]
pub struct Carried {
    /// What it is, if the client may bind it when another server works for it.
    pub kept: Option<Arc<Statement>>,
    /// Which server it used last: that one may still have it.
    pub last_at: Option<ServerKey>,
}

/// The names that one client has given.
#[derive(Debug, Default)]
pub struct ClientStatements {
    names: HashSet<Named>,
    last_serial: u32,
    /// A Parse too large for a ring, while it comes in and until a server has it.
    pub collected: Vec<u8>,
}

/// Found by its name.
#[derive(Debug)]
struct Named {
    naming: Arc<Naming>,
    /// Tells this naming from earlier ones of the same name.
    serial: u32,
    /// The Parse that gave the name has failed.
    failed: bool,
}

impl Borrow<[u8]> for Named {
    fn borrow(&self) -> &[u8] {
        self.naming.name()
    }
}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.naming.name().hash(state);
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.naming.name() == other.naming.name()
    }
}

impl Eq for Named {}

impl ClientStatements {
    /// What a name means.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.names.get(name).map(|named| &named.naming.statement)
    }

    /// Gives a name; `None` if it is in use. The number is for [`ClientStatements::take_back`].
    pub fn give(&mut self, naming: Arc<Naming>) -> Option<u32> {
        if self.is_in_use(naming.name()) {
            return None;
        }
        self.last_serial = self.last_serial.wrapping_add(1);
        let serial = self.last_serial;
        // An old one of this name, which failed, gives way.
        self.names.replace(Named { naming, serial, failed: false });
        Some(serial)
    }

    /// Whether the name may not be given again.
    pub fn is_in_use(&self, name: &[u8]) -> bool {
        self.naming_in_use(name).is_some()
    }

    /// The number of what the name was given to, and may not be given again.
    pub fn naming_in_use(&self, name: &[u8]) -> Option<u32> {
        self.names.get(name).filter(|named| !named.failed).map(|named| named.serial)
    }

    /// The name means nothing any more.
    pub fn close(&mut self, name: &[u8]) {
        self.names.remove(name);
    }

    /// The Parses that gave these names have failed, or were skipped: the names may be given again.
    /// Until then they mean what they should have meant, and a Parse that fails does so again when
    /// its name is used.
    // Better than PgBouncer, where a second Parse of that name is fatal.
    pub fn take_back(&mut self, mut serials: Vec<u32>) {
        if serials.is_empty() {
            return;
        }
        serials.sort_unstable();
        let is_one = |named: &&Named| serials.binary_search(&named.serial).is_ok();
        let failed = |named: &Named| Named { naming: named.naming.clone(), failed: true, ..*named };
        let all: Vec<Named> = self.names.iter().filter(is_one).map(failed).collect();
        for named in all {
            self.names.replace(named);
        }
    }

    /// No name means anything any more, but those that were given so.
    pub fn close_all_but(&mut self, serials: &[u32]) {
        self.names.retain(|named| serials.contains(&named.serial));
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// The statements that one server has, by use.
#[derive(Debug)]
pub struct ServerStatements(LruCache<u64, Arc<Statement>>);

impl Default for ServerStatements {
    fn default() -> Self {
        Self(LruCache::unbounded())
    }
}

impl ServerStatements {
    /// Whether the server has it. Being asked for is no use.
    pub fn has(&self, statement: &Statement) -> bool {
        self.0.contains(&statement.id)
    }

    /// Whether the server has it; if so it is the youngest from now on.
    pub fn touch(&mut self, statement: &Statement) -> bool {
        self.0.get(&statement.id).is_some()
    }

    /// It is prepared there now, as the youngest.
    pub fn add(&mut self, statement: Arc<Statement>) {
        self.0.put(statement.id, statement);
    }

    /// The oldest, which has to go when there are more than `limit`.
    pub fn evict(&mut self, limit: usize) -> Option<Arc<Statement>> {
        if self.0.len() <= limit {
            return None;
        }
        self.0.pop_lru().map(|(_, statement)| statement)
    }

    /// The name of the one that was used last.
    pub fn last_used(&self) -> Option<String> {
        let (_, statement) = self.0.iter().next()?;
        Some(String::from_utf8_lossy(statement.server_name().as_bytes()).into_owned())
    }

    /// Nothing is prepared there any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Nothing is prepared there any more but these.
    pub fn clear_all_but(&mut self, ids: &[u64]) {
        for id in self.0.iter().map(|(id, _)| *id).collect::<Vec<u64>>() {
            if !ids.contains(&id) {
                self.0.pop(&id);
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was asked of the server and never carried out, because of an error before.
    pub fn undo(&mut self, lost: &Lost) {
        match lost {
            Lost::Naming { .. } => {}
            Lost::Parse { statement, .. } => {
                self.0.pop(&statement.id);
            }
            Lost::Close { statement } => self.add(statement.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statements_are_one_while_anybody_knows_them() {
        let mut statements = Statements::default();
        let first = statements.intern(b"SELECT 1\0\0\0");
        let again = statements.intern(b"SELECT 1\0\0\0");
        assert!(Arc::ptr_eq(&first, &again));
        let other = statements.intern(b"SELECT 1\0\0\x01\0\0\0\x17");
        assert_ne!(first.id(), other.id(), "other types, another statement");
        assert_eq!(first.server_name().as_bytes(), b"PGBOUNCER_1");
        drop((first, again));
        statements.collect();
        assert_eq!(statements.len(), 1);
        assert_eq!(statements.intern(b"SELECT 1\0\0\0").id(), 3, "numbers are never used again");
        let name = Statement { id: u64::MAX, body: Box::default() }.server_name();
        assert_eq!(name.as_bytes(), b"PGBOUNCER_18446744073709551615");
    }

    #[test]
    fn a_failed_parse_frees_its_name_and_no_other() {
        let (mut statements, mut client) = (Statements::default(), ClientStatements::default());
        let [a, b] = [b"a", b"b"].map(|name| statements.name(name, b"x"));
        let first = client.give(a.clone()).unwrap();
        let second = client.give(b.clone()).unwrap();
        assert_eq!(client.give(a.clone()), None, "in use");
        client.take_back(vec![second]);
        assert!(client.is_in_use(b"a") && !client.is_in_use(b"b"));
        assert!(client.find(b"b").is_some(), "it fails again when it is used");
        client.close(b"a");
        let third = client.give(a.clone()).unwrap();
        client.take_back(vec![first]);
        assert!(client.is_in_use(b"a"), "a later naming of the same name stays");
        client.take_back(vec![third]);
        assert!(client.give(a).is_some());
        assert_eq!(client.len(), 2);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let (mut statements, mut server) = (Statements::default(), ServerStatements::default());
        let [a, b, c] = [b"a", b"b", b"c"].map(|body| statements.intern(body));
        for statement in [&a, &b, &c] {
            server.add(statement.clone());
        }
        assert!(server.touch(&a));
        assert!(server.has(&b), "which makes it no younger");
        assert_eq!(server.evict(2), Some(b.clone()));
        assert_eq!(server.evict(2), None);
        server.undo(&Lost::Close { statement: b.clone() });
        server.undo(&Lost::Parse { statement: c.clone(), serial: None });
        assert!(server.has(&b) && !server.has(&c));
    }
}
