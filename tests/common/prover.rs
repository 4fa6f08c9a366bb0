//! A client on the desk that has to prove who it is.

use super::desk::Desk;
use super::raw::message;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ringbouncer::auth::answer::{Answer, Credentials, Step};
use ringbouncer::auth::derivation::Derivation;
use ringbouncer::auth::digest;
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::Config;
use ringbouncer::engine::io::Input;
use ringbouncer::keys::Conn;
use ringbouncer::wire::backend;

/// Of all that is derived here.
pub const ROUNDS: u32 = 8;

/// Answers whatever it is asked, with one secret.
pub struct Prover {
    pub conn: Conn,
    user: String,
    secret: String,
    answer: Answer,
    /// Whether it was welcomed.
    is_welcome: bool,
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
        Prover { conn, user, secret, answer: Answer::Start, is_welcome: false }
    }

    /// It answers until it is in, out, or nothing is asked.
    pub fn go_on(&mut self, desk: &mut Desk) -> Said {
        self.go_on_with(desk, |desk, conn, bytes| desk.feed(conn, bytes))
    }

    /// The same; its messages get to the pooler in this way.
    pub fn go_on_with(
        &mut self,
        desk: &mut Desk,
        mut send: impl FnMut(&mut Desk, Conn, &[u8]),
    ) -> Said {
        loop {
            let bytes = desk.take(self.conn);
            if bytes.is_empty() {
                let said = if self.is_welcome { Said::Welcome } else { Said::Nothing };
                let refused = desk.is_closed(self.conn).then(|| desk.last_words(self.conn));
                return refused.map_or(said, |words| Said::Refused(words.unwrap_or_default()));
            }
            let mut rest = &bytes[..];
            while let Some((tag, body)) = next(&mut rest) {
                match tag {
                    b'R' => {
                        if let Some(words) = self.answer_to(body) {
                            send(desk, self.conn, &message(b'p', &words));
                        }
                    }
                    b'Z' => self.is_welcome = true,
                    _ => {}
                }
            }
        }
    }

    /// What it answers to an Authentication message, if anything.
    fn answer_to(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        let request = backend::authentication(body).expect("a request");
        let credentials = Credentials {
            user: self.user.as_bytes(),
            secret: self.secret.as_bytes(),
            client_key: None,
            end_point: None,
        };
        let answer = std::mem::take(&mut self.answer);
        // It does not go on with somebody who cannot be the pooler any more.
        let (answer, step) = answer.step(request, credentials).ok()?;
        let (answer, step) = match step {
            Step::Derive(derivation) => answer.derived(&derivation.run()).expect("a key"),
            step => (answer, step),
        };
        self.answer = answer;
        match step {
            Step::Send(words) => Some(words),
            _ => None,
        }
    }

    /// Knocks, and answers the first questions.
    pub fn try_to_get_in(desk: &mut Desk, user: &str, database: &str, secret: &str) -> Prover {
        let mut prover = Prover::knock(desk, user, database, secret);
        assert_eq!(prover.go_on(desk), Said::Nothing, "somebody has to look at its answer");
        prover
    }
}

/// A SCRAM secret.
pub fn verifier(password: &str) -> String {
    let keys = Derivation::new(password.as_bytes(), b"salty", ROUNDS).run();
    let [salt, stored, server] = [&b"salty"[..], &keys.stored_key, &keys.server_key]
        .map(|bytes| BASE64_STANDARD.encode(bytes));
    format!("SCRAM-SHA-256${ROUNDS}:{salt}${stored}:{server}")
}

/// An MD5 secret.
pub fn md5(user: &str, password: &str) -> String {
    let digits = digest::md5_hex(&[password.as_bytes(), user.as_bytes()]);
    format!("md5{}", String::from_utf8_lossy(&digits))
}

/// A desk that lets in by this method, in front of one server whose welcome is known. Its users
/// have the same password, `right`, each kept in another way.
pub fn desk(method: &str) -> Desk {
    let text = format!(
        "[databases]\napp = host=127.0.0.1 user=carol\n[pgbouncer]\npool_mode = transaction\n\
         auth_type = {method}\nscram_iterations = {ROUNDS}\nserver_tls_sslmode = disable\n\
         unix_socket_dir =\nmax_client_conn = 10000\n"
    );
    let users = format!(
        "\"plain\" \"right\"\n\"known\" \"right\"\n\"md5\" \"{}\"\n\"scram\" \"{}\"\n\"none\" \"\"\n",
        md5("md5", "right"),
        verifier("right")
    );
    let mut desk = Desk::new("[databases]\napp = host=127.0.0.1\n[pgbouncer]");
    let config = Config::parse_text("desk.ini", &text).expect("a configuration");
    let users = Userlist::parse(users.as_bytes()).0;
    let now = desk.now;
    desk.engine.reload(config, Some(users.into()), now);
    desk.perform();
    // The welcome is known from here on.
    let mut first = Prover::knock(&mut desk, "known", "app", "right");
    first.go_on(&mut desk);
    derive_one(&mut desk);
    first.go_on(&mut desk);
    desk.server();
    assert_eq!(first.go_on(&mut desk), Said::Welcome);
    assert!(desk.derivations.is_empty());
    desk
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

/// Those who have waited together go on a few in each turn.
fn turns(desk: &mut Desk) {
    for _ in 0..=desk.engine.house().clients.len() / 16 {
        desk.perform();
    }
}

/// The side thread does the oldest job; false if there is none.
pub fn derive_one(desk: &mut Desk) -> bool {
    let Some((conn, derivation)) = desk.derivations.pop_front() else {
        return false;
    };
    let keys = Some(derivation.run());
    desk.handle(Input::Derived { conn, derivation, keys });
    turns(desk);
    true
}

/// The side thread has too much to do for the oldest job.
pub fn refuse_one(desk: &mut Desk) {
    let (conn, derivation) = desk.derivations.pop_front().expect("a key is asked for");
    desk.handle(Input::Derived { conn, derivation, keys: None });
    turns(desk);
}
