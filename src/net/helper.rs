//! Work that may block or take long, on one side thread: looking up host names, making keys of
//! passwords.
//!
//! Jobs go there over a bounded queue, answers come back over another, and a waker ends the sleep
//! of the loop. The thread starts with the first job: who names servers by address has none.

use super::heart::Heart;
use super::token::Token;
use crate::auth::derivation::Derivation;
use crate::engine::io::Input;
use crate::keys::{Conn, ServerKey};
use mio::{Registry, Waker};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::Instant;

/// So many jobs may wait.
const MAX_JOBS: usize = 4096;

enum Job {
    Resolve { server: ServerKey, host: String },
    Derive { conn: Conn, derivation: Derivation },
}

struct Thread {
    jobs: SyncSender<Job>,
    answers: Receiver<Input>,
}

/// Our end of the side thread.
pub struct Helper {
    waker: Arc<Waker>,
    thread: Option<Thread>,
    has_answers: bool,
}

impl Helper {
    /// Nothing runs yet.
    pub fn new(registry: &Registry) -> io::Result<Self> {
        let waker = Arc::new(Waker::new(registry, Token::Waker.into())?);
        Ok(Self { waker, thread: None, has_answers: false })
    }

    /// Asks for the addresses of a host; false if that is not possible now, which is logged.
    #[must_use]
    pub fn resolve(&mut self, server: ServerKey, host: String) -> bool {
        self.submit(Job::Resolve { server, host }, "host names to look up").is_ok()
    }

    /// Asks for a key; gives the question back if that is not possible now, which is logged.
    pub fn derive(&mut self, conn: Conn, derivation: Derivation) -> Result<(), Derivation> {
        match self.submit(Job::Derive { conn, derivation }, "passwords to digest") {
            Err(Job::Derive { derivation, .. }) => Err(derivation),
            Ok(()) | Err(Job::Resolve { .. }) => Ok(()),
        }
    }

    fn submit(&mut self, job: Job, what: &str) -> Result<(), Job> {
        let thread = match self.thread.take().map_or_else(|| self.start(), Ok) {
            Ok(thread) => self.thread.insert(thread),
            Err(error) => {
                log::error!(
                    "could not start the helper thread: {}",
                    crate::sys::error_text(&error)
                );
                return Err(job);
            }
        };
        thread.jobs.try_send(job).map_err(|error| {
            log::warn!("too many {what} at once, {MAX_JOBS} jobs are waiting");
            match error {
                TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
            }
        })
    }

    /// The waker's event came.
    pub fn mark_ready(&mut self) {
        self.has_answers = true;
    }

    /// Hands the answers to the engine.
    pub fn deliver<E: Heart>(&mut self, engine: &mut E, now: Instant) {
        if !std::mem::take(&mut self.has_answers) {
            return;
        }
        let answers = self.thread.iter().flat_map(|thread| thread.answers.try_iter());
        for answer in answers {
            engine.handle(answer, now);
        }
    }

    fn start(&self) -> io::Result<Thread> {
        let (jobs, jobs_there) = sync_channel(MAX_JOBS);
        let (answers_there, answers) = channel();
        let waker = Arc::clone(&self.waker);
        std::thread::Builder::new()
            .name("helper".to_string())
            .spawn(move || work(&jobs_there, &answers_there, &waker))?;
        Ok(Thread { jobs, answers })
    }
}

/// The side thread's life: ends when the loop has gone.
fn work(jobs: &Receiver<Job>, answers: &Sender<Input>, waker: &Waker) {
    for job in jobs {
        let answer = match job {
            Job::Resolve { server, host } => {
                Input::Resolved { server, addresses: addresses_of(&host) }
            }
            Job::Derive { conn, derivation } => {
                let salted = Some(derivation.run());
                Input::Derived { conn, derivation, salted }
            }
        };
        if answers.send(answer).is_err() || waker.wake().is_err() {
            return;
        }
    }
}

fn addresses_of(host: &str) -> Vec<IpAddr> {
    match (host, 0).to_socket_addrs() {
        Ok(found) => {
            let mut addresses = Vec::new();
            for address in found.map(|address| address.ip()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            addresses
        }
        // The engine logs it with the words that users know.
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Key;

    #[test]
    fn a_full_queue_refuses() {
        let poll = mio::Poll::new().unwrap();
        let mut helper = Helper::new(poll.registry()).unwrap();
        // A side thread that is busy with something else.
        let (jobs, _jobs_there) = sync_channel(MAX_JOBS);
        let (_answers_there, answers) = channel();
        helper.thread = Some(Thread { jobs, answers });
        let server = ServerKey::new(0, 1);
        for _ in 0..MAX_JOBS {
            assert!(helper.resolve(server, "localhost".to_string()));
        }
        assert!(!helper.resolve(server, "localhost".to_string()));
    }

    #[test]
    fn literals_and_nonsense() {
        assert_eq!(addresses_of("127.0.0.1"), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses_of("no such host"), [] as [IpAddr; 0]);
    }
}
