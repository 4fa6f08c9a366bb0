//! The same client twice: through the pooler, and beside it.

use crate::Counts;
use crate::common::raw::{self, Message, tags};
use crate::common::{Pooler, Postgres, Random, Raw, Startup};
use crate::words::{self, Manners, Talk, readable};
use std::sync::atomic::Ordering;

/// Batches that one client sends in one run.
const BATCHES: usize = 12;

pub struct Twins<'a> {
    pooler: &'a Pooler,
    database: &'a str,
    manners: Manners,
    counts: &'a Counts,
    direct: Raw,
    pooled: Raw,
    talk: Talk,
}

impl<'a> Twins<'a> {
    pub fn new(
        pooler: &'a Pooler,
        database: &'a str,
        manners: Manners,
        counts: &'a Counts,
    ) -> Twins<'a> {
        let (direct, pooled) = (connect_directly(database), pooler.raw("alice"));
        let talk = Talk::new(manners);
        Twins { pooler, database, manners, counts, direct, pooled, talk }
    }

    /// One run: from a fresh start to a clean end.
    pub fn run(&mut self, seed: u64) {
        self.direct.query("DISCARD ALL");
        self.pooled = self.pooler.raw("alice");
        self.talk = Talk::new(self.manners);
        let mut random = Random::new(seed);
        for number in 0..BATCHES {
            if random.below(4) == 0 {
                self.converse(&format!("{seed} conversation {number}"), &mut random);
            }
            if random.below(8) == 0 {
                self.vanish(&words::copy_and_more(&mut random).concat(), &mut random);
            }
            let names = self.talk.names();
            let batch = self.talk.batch(&mut random);
            match random.below(32) {
                0 | 1 => {
                    self.vanish(&batch.concat(), &mut random);
                    self.talk.go_back_to(names);
                }
                2 => self.take_leave(&format!("{seed} leave {number}"), batch, &mut random),
                _ => self.compare(&format!("{seed} {number}"), batch, &mut random),
            }
        }
        self.pooled.send(&raw::terminate());
        self.pooled.expect_end();
    }

    fn reconnect(&mut self) {
        self.direct = connect_directly(self.database);
        self.pooled = self.pooler.raw("alice");
        self.talk = Talk::new(self.manners);
    }

    fn send(&mut self, batch: &[Vec<u8>], random: &mut Random) {
        let bytes = batch.concat();
        self.counts.sent.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.direct.send(&bytes);
        send_in_pieces(&mut self.pooled, &bytes, random);
    }

    fn agree(&self, seen: &[Message], expected: &[Message]) {
        self.counts.received.fetch_add(seen.len() as u64, Ordering::Relaxed);
        assert_eq!(tags(seen), tags(expected));
        for (seen, expected) in seen.iter().zip(expected) {
            assert_eq!(comparable(seen), comparable(expected));
        }
    }

    fn compare(&mut self, name: &str, mut batch: Vec<Vec<u8>>, random: &mut Random) {
        // Whatever state that has led to, this ends it: a COPY, an error, a transaction.
        let mark = format!("end of {name}");
        batch.extend([raw::copy_fail("enough"), raw::sync()]);
        batch.push(raw::query(&format!("ROLLBACK; SELECT '{mark}'")));
        let _told = Told(format!("{name}: {}", readable(&batch)));
        self.send(&batch, random);
        let (expected, is_whole) = until_mark(&mut self.direct, &mark);
        let is_thrown_out = !is_whole;
        self.pooled.lenient = is_thrown_out;
        let (seen, _) = until_mark(&mut self.pooled, &mark);
        if is_thrown_out {
            // PostgreSQL gives up on who asks for something in the middle of a COPY. Through the
            // pooler its last word is followed by the pooler's own.
            // (Its kernel may throw away the last of it, on either way.)
            let (seen, whole) = (tags(&seen), tags(&expected));
            let passed_on = seen.strip_suffix('E').unwrap_or(&seen);
            let agree = whole.starts_with(passed_on) || passed_on.starts_with(&whole);
            assert!(agree, "{whole} {seen}");
            self.reconnect();
            return;
        }
        self.agree(&seen, &expected);
    }

    /// Each side waits for the other.
    fn converse(&mut self, name: &str, random: &mut Random) {
        let sayings = words::conversation(random, self.manners);
        let all: Vec<_> = sayings.iter().flat_map(|saying| saying.messages.clone()).collect();
        let _told = Told(format!("{name}: {}", readable(&all)));
        let mut skips = false;
        let count = sayings.len();
        for (saying, place) in sayings.into_iter().zip(1..) {
            if skips && place < count {
                continue;
            }
            self.send(&saying.messages, random);
            let expected = until_one_of(&mut self.direct, saying.until);
            let seen = until_one_of(&mut self.pooled, saying.until);
            self.agree(&seen, &expected);
            skips = expected.last().is_some_and(|last| last.tag == b'E');
        }
    }

    /// A Terminate anywhere: what is read before the end is the beginning of what PostgreSQL has to
    /// say.
    fn take_leave(&mut self, name: &str, mut batch: Vec<Vec<u8>>, random: &mut Random) {
        batch.insert(random.below(batch.len() + 1), raw::terminate());
        let _told = Told(format!("{name}: {}", readable(&batch)));
        self.pooled.lenient = true;
        self.send(&batch, random);
        let [expected, seen] = [&mut self.direct, &mut self.pooled].map(|side| {
            let all = side.until_end();
            all.into_iter().filter(|message| message.tag != b'S').collect::<Vec<_>>()
        });
        let length = seen.len().min(expected.len());
        self.agree(&seen[..length], &expected[..length]);
        self.reconnect();
    }

    /// A third client sends a part of this, cut at any byte, and is gone.
    fn vanish(&self, bytes: &[u8], random: &mut Random) {
        let mut client = self.pooler.raw("alice");
        let cut = match random.below(3) {
            0 => bytes.len(),
            _ => random.below(bytes.len() + 1),
        };
        client.send(&bytes[..cut]);
        match random.below(4) {
            0 => client.send(&raw::terminate()),
            1 => client.finish_sending(),
            // It has read some of it.
            2 => _ = client.is_quiet_for(std::time::Duration::from_millis(2)),
            _ => {}
        }
    }
}

fn connect_directly(database: &str) -> Raw {
    let mut direct = Raw::connect(Postgres::shared().port);
    direct.lenient = true;
    direct.log_in(&Startup::v3().param("user", "alice").param("database", database));
    direct
}

fn send_in_pieces(client: &mut Raw, bytes: &[u8], random: &mut Random) {
    if bytes.len() < 600 && random.below(3) == 0 {
        client.send_slowly(bytes);
        return;
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let longest = if random.below(2) == 0 { 40 } else { 100_000 };
        let (piece, more) = rest.split_at(rest.len().min(1 + random.below(longest)));
        client.send(piece);
        rest = more;
    }
}

/// Everything up to the ReadyForQuery behind the row that says so, and whether it came to that. What
/// is told of parameters depends on who was on a server before.
fn until_mark(client: &mut Raw, mark: &str) -> (Vec<Message>, bool) {
    let (mut messages, mut found) = (Vec::new(), false);
    while let Some(message) = client.try_message() {
        found |= message.tag == b'D' && message.columns() == [mark];
        let is_last = found && message.tag == b'Z';
        if message.tag != b'S' {
            messages.push(message);
        }
        if is_last {
            return (messages, true);
        }
    }
    (messages, false)
}

/// Everything up to one of these; an error that no ReadyForQuery follows is the last, too.
fn until_one_of(client: &mut Raw, last: &[u8]) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    let is_last =
        |message: &Message| last.contains(&message.tag) || (message.tag == b'E' && last != b"Z");
    while !last.is_empty() && !messages.last().is_some_and(is_last) {
        let message = client.message();
        if message.tag != b'S' {
            messages.push(message);
        }
    }
    messages
}

/// Of an error what does not depend on the names that statements have on servers.
fn comparable(message: &Message) -> (u8, Vec<u8>) {
    match message.tag {
        // In a transaction that has failed our own Parse is refused in place of the client's Bind: in
        // the same words, but at another line of PostgreSQL's source.
        b'E' if message.field('C') == "25P02" => (b'E', message.field('M').into_bytes()),
        // It was out of step with our words for the client's, and these are ours for its own.
        b'E' if message.field('C') == "08P01" => (b'E', message.field('M').into_bytes()),
        b'E' | b'N' if message.field('M').contains("prepared statement \"") => {
            (message.tag, message.field('C').into_bytes())
        }
        tag => (tag, message.body.clone()),
    }
}

/// Says what was tried, should that fail or take too long.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("TRIED {}", self.0);
        }
    }
}
