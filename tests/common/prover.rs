//! A client on the desk that has to prove who it is.

use super::desk::Desk;
use super::raw::message;
use ringbouncer::auth::answer::{Answer, Credentials, Step};
use ringbouncer::engine::io::Input;
use ringbouncer::keys::Conn;
use ringbouncer::wire::backend;

/// Answers whatever it is asked, with one secret.
pub struct Prover {
    pub conn: Conn,
    user: String,
    secret: String,
    answer: Answer,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing yet.
    Nothing,
    /// It may come in.
    Welcome,
    /// It may not: the last words.
    Refused(String),
}

impl Prover {
    /// A client that has sent its Startup.
    pub fn knock(desk: &mut Desk, user: &str, database: &str, secret: &str) -> Prover {
        let conn = desk.client(user, database);
        let (user, secret) = (user.to_owned(), secret.to_owned());
        Prover { conn, user, secret, answer: Answer::Start }
    }

    /// It answers until it is in, out, or nothing is asked.
    pub fn go_on(&mut self, desk: &mut Desk) -> Said {
        let mut said = Said::Nothing;
        loop {
            let bytes = desk.take(self.conn);
            if bytes.is_empty() {
                let refused = desk.is_closed(self.conn).then(|| desk.last_words(self.conn));
                return refused.map_or(said, |words| Said::Refused(words.unwrap_or_default()));
            }
            let mut rest = &bytes[..];
            while let Some((tag, body)) = next(&mut rest) {
                match tag {
                    b'R' => self.asked(desk, body),
                    b'Z' => said = Said::Welcome,
                    _ => {}
                }
            }
        }
    }

    fn asked(&mut self, desk: &mut Desk, body: &[u8]) {
        let request = backend::authentication(body).expect("a request");
        let credentials = Credentials {
            user: self.user.as_bytes(),
            secret: self.secret.as_bytes(),
            client_key: None,
            end_point: None,
        };
        let answer = std::mem::take(&mut self.answer);
        let (answer, step) = answer.step(request, credentials).expect("the pooler means well");
        let (answer, step) = match step {
            Step::Derive(derivation) => answer.derived(&derivation.run()).expect("a key"),
            step => (answer, step),
        };
        self.answer = answer;
        if let Step::Send(words) = step {
            desk.feed(self.conn, &message(b'p', &words));
        }
    }

    /// Knocks, and answers the first questions.
    pub fn try_to_get_in(desk: &mut Desk, user: &str, database: &str, secret: &str) -> Prover {
        let mut prover = Prover::knock(desk, user, database, secret);
        assert_eq!(prover.go_on(desk), Said::Nothing, "somebody has to look at its answer");
        prover
    }
}

/// Takes a message, which must be whole.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (tag, length) = rest.split_first_chunk::<5>().map(|(head, _)| {
        let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
        (head[0], usize::try_from(length).expect("it fits"))
    })?;
    let body = &rest[5..=length];
    *rest = &rest[length + 1..];
    Some((tag, body))
}

/// The side thread does the oldest job; false if there is none.
pub fn derive_one(desk: &mut Desk) -> bool {
    let Some((conn, derivation)) = desk.derivations.pop_front() else {
        return false;
    };
    let salted = Some(derivation.run());
    desk.handle(Input::Derived { conn, derivation, salted });
    desk.perform();
    true
}

/// The side thread has too much to do for the oldest job.
pub fn refuse_one(desk: &mut Desk) {
    let (conn, derivation) = desk.derivations.pop_front().expect("a key is asked for");
    desk.handle(Input::Derived { conn, derivation, salted: None });
    desk.perform();
}
