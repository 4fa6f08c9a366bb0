//! What the pooler says to a server in the name of a client that has gone
//! (`server_rescue_timeout`). It may do so for nobody else.

use crate::backend::{Act, Backend, Exchange};
use crate::book::Book;
use crate::wire;

/// The batch that takes back what has not been committed.
const BATCH: [(u8, &[u8]); 3] =
    [(b'P', b"\0ROLLBACK\0\0\0"), (b'B', &[0; 8]), (b'E', b"\0\0\0\0\0")];

impl Backend {
    /// Whether these words, said while the server belonged to this client, are the pooler's.
    pub(crate) fn is_poolers(&self, client: usize, bytes: &[u8], book: &Book) -> bool {
        if is_doubtful(bytes) {
            return true;
        }
        let is_like_it = bytes[5..] == *b"client disconnected\0"
            || BATCH.iter().any(|(tag, body)| bytes[0] == *tag && bytes[5..] == **body);
        let account = &book.accounts[client];
        is_like_it && account.has_left && !book.may_arrive(client, bytes, self.copy.is_some())
    }

    /// Words of the pooler's own for a client that has sent a Sync in a COPY, or data where there may
    /// have been none: the client must not notice them.
    pub(crate) fn on_question(&mut self, client: usize, bytes: &[u8], book: &mut Book) {
        match bytes[0] {
            b'H' => self.set_flush(),
            b'f' => assert!(self.copy.is_none(), "our clients end their COPYs themselves"),
            b'C' => {
                assert!(!self.is_skipping(), "it would not be heard");
                book.questions.0 += 1;
                self.say_own(&wire::message(b'3', b""));
            }
            _ => {
                assert!(self.copy.is_none(), "a COPY does not answer that");
                assert!(book.accounts[client].copies, "nobody is in doubt");
                // As if nobody had ended it.
                book.accounts[client].skips_to_sync |= self.is_skipping();
                self.ready_for_pooler(book);
            }
        }
    }

    /// Those words.
    pub(crate) fn on_poolers(&mut self, bytes: &[u8], book: &mut Book) {
        if self.copy.is_some() {
            self.on_copy_message(bytes, book);
            return;
        }
        match bytes[0] {
            b'f' => {}
            b'C' if is_doubtful(bytes) => {
                book.questions.1 += 1;
                self.say_own(&wire::message(b'3', b""));
            }
            b'S' => self.on_request(bytes, book),
            _ if self.is_skipping() => {}
            b'P' => self.on_request(&wire::parse("", "/*own*/rollback"), book),
            _ => self.on_request(bytes, book),
        }
    }

    /// The pooler undoes what is left of a transaction.
    pub(crate) fn on_rollback(&mut self, client: usize, book: &mut Book) {
        assert!(book.accounts[client].has_left, "client {client} is rolled back and still there");
        assert!(self.exchange == Exchange::None && !self.is_skipping() && self.copy.is_none());
        self.exchange = Exchange::Own;
        if let Some(undo) = self.undo.take() {
            self.params = undo;
        }
        self.tx = b'I';
        self.plan.push_back(Act::Work(1));
        self.plan.push_back(Act::Send(wire::complete("ROLLBACK")));
        self.plan.push_back(Act::EndQuery);
    }
}

/// Whether these are words of the pooler's that find out which Syncs have counted.
fn is_doubtful(bytes: &[u8]) -> bool {
    match bytes[0] {
        // Clients say whose theirs are.
        b'S' | b'H' => bytes.len() == 5,
        b'C' => bytes[5..] == *b"Sringbouncer_no_statement\0",
        b'f' => bytes[5..].starts_with(b"the client went on"),
        _ => false,
    }
}
