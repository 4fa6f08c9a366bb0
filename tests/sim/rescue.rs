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
        let is_like_it = matches!(bytes[0], b'S' | b'H')
            || bytes[5..] == *b"client disconnected\0"
            || BATCH.iter().any(|(tag, body)| bytes[0] == *tag && bytes[5..] == **body);
        let account = &book.accounts[client];
        is_like_it && account.has_left && !book.may_arrive(client, bytes, self.copy.is_some())
    }

    /// Those words.
    pub(crate) fn on_poolers(&mut self, bytes: &[u8], book: &mut Book) {
        if self.copy.is_some() {
            self.on_copy_message(bytes, book);
            return;
        }
        match bytes[0] {
            b'f' => {}
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
