//! Work that may block or take long, on side threads: one makes keys of passwords, one asks PAM and
//! some directories about passwords, and each name of a host has one while it is looked up. A name
//! server that does not answer holds up no login and no other name, and a storm of logins no name.
//!
//! Jobs go there over bounded queues, answers come back over another, and a waker ends the sleep
//! of the loop. A thread starts with its first job. How many names are looked up at once is limited
//! by the engine.

use super::dns::Resolver;
use super::heart::Heart;
use super::oracles;
use super::token::Token;
use crate::auth::derivation::Derivation;
use crate::auth::outside::{Oracle, Question};
use crate::engine::io::Input;
use crate::keys::{ClientKey, Conn};
use mio::{Registry, Waker};
use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// So many keys may wait to be made: some seconds of work.
const MAX_KEYS: usize = 4096;
/// So many clients may wait until PAM, or a directory, has looked at their passwords. Those that
/// come last in such a queue are mostly out of time before it is their turn.
const MAX_QUESTIONS: usize = 256;
/// A look-up needs little room.
const LOOK_UP_STACK_BYTES: usize = 256 * 1024;
/// So many directories are asked at once: one that has nothing to say takes seconds.
const DIRECTORY_THREADS: usize = 4;

/// Something that a side thread does.
trait Job: Send + 'static {
    /// Whether it is pure work, which must not take the processor from those who serve queries.
    const IS_PATIENT: bool = false;

    /// Does it, however long that takes.
    fn run(self) -> Input;
}

struct Key {
    conn: Conn,
    derivation: Derivation,
}

impl Job for Key {
    const IS_PATIENT: bool = true;

    fn run(self) -> Input {
        let Key { conn, derivation } = self;
        let keys = Some(derivation.run());
        Input::Derived { conn, derivation, keys }
    }
}

struct Consultation {
    client: ClientKey,
    question: Question,
}

impl Job for Consultation {
    fn run(self) -> Input {
        let Consultation { client, question } = self;
        // A module that was stuck for a minute is not asked about a minute's crowd of clients that
        // have long gone.
        let is_late = question.until.is_some_and(|until| until <= Instant::now());
        let answer = match is_late {
            true => Err("nobody waits for the answer any more".to_owned()),
            false => oracles::ask(&question),
        };
        Input::Consulted { client, answer }
    }
}

/// Our end of one side thread.
struct Lane<J> {
    /// The thread's name, and what waits for it.
    name: &'static str,
    limit: usize,
    threads: usize,
    jobs: Option<SyncSender<J>>,
}

/// Where all answers arrive.
struct Replies {
    waker: Arc<Waker>,
    there: Sender<Input>,
    here: Receiver<Input>,
}

/// Our end of the side threads.
pub struct Helper {
    replies: Replies,
    resolver: Resolver,
    keys: Lane<Key>,
    pam: Lane<Consultation>,
    directories: Lane<Consultation>,
    has_answers: bool,
}

impl Helper {
    /// Nothing runs yet. `resolv_conf` is the setting.
    pub fn new(registry: &Registry, resolv_conf: &str) -> io::Result<Self> {
        let waker = Arc::new(Waker::new(registry, Token::Waker.into())?);
        let (there, here) = channel();
        Ok(Self {
            replies: Replies { waker, there, here },
            resolver: Resolver::new(resolv_conf),
            keys: Lane::new("keys", MAX_KEYS, 1),
            // Not every module of PAM is made for more than one thread.
            pam: Lane::new("PAM logins", MAX_QUESTIONS, 1),
            directories: Lane::new("LDAP logins", MAX_QUESTIONS, DIRECTORY_THREADS),
            has_answers: false,
        })
    }

    /// Asks for the addresses of a host; false if that is not possible now, which is logged.
    #[must_use]
    pub fn resolve(&mut self, host: &str) -> bool {
        let (resolver, host) = (self.resolver.clone(), host.to_owned());
        self.look_up(move || {
            let addresses = resolver.addresses(&host);
            Input::Resolved { host, addresses }
        })
    }

    /// Asks for the serial of a zone; false if that is not possible now, which is logged.
    #[must_use]
    pub fn ask_serial(&mut self, zone: &str) -> bool {
        let (resolver, zone) = (self.resolver.clone(), zone.to_owned());
        self.look_up(move || {
            let serial = resolver.serial(&zone);
            Input::Serial { zone, serial }
        })
    }

    fn look_up(&self, find: impl FnOnce() -> Input + Send + 'static) -> bool {
        let (answers, waker) = (self.replies.there.clone(), Arc::clone(&self.replies.waker));
        let thread = std::thread::Builder::new();
        let thread = thread.name("look-up".to_owned()).stack_size(LOOK_UP_STACK_BYTES);
        let started = thread.spawn(move || {
            // If the loop has gone, nobody wants to know.
            if answers.send(find()).is_ok() {
                let _ = waker.wake();
            }
        });
        if let Err(error) = &started {
            let why = crate::sys::error_text(error);
            log::error!("could not start the helper thread for a name: {why}");
        }
        started.is_ok()
    }

    /// Asks for a key; gives the question back if that is not possible now, which is logged.
    pub fn derive(&mut self, conn: Conn, derivation: Derivation) -> Result<(), Derivation> {
        let submitted = self.keys.submit(Key { conn, derivation }, &self.replies);
        submitted.map_err(|key| key.derivation)
    }

    /// Asks somebody else about a client's password; false if that is not possible now, which is
    /// logged.
    #[must_use]
    pub fn consult(&mut self, client: ClientKey, question: Question) -> bool {
        let lane = match question.oracle {
            Oracle::Pam { .. } => &mut self.pam,
            Oracle::Ldap(_) => &mut self.directories,
        };
        lane.submit(Consultation { client, question }, &self.replies).is_ok()
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
        for answer in self.replies.here.try_iter() {
            engine.handle(answer, now);
        }
    }
}

impl<J: Job> Lane<J> {
    fn new(name: &'static str, limit: usize, threads: usize) -> Self {
        Self { name, limit, threads, jobs: None }
    }

    fn submit(&mut self, job: J, replies: &Replies) -> Result<(), J> {
        let jobs = match self.jobs.take().map_or_else(|| self.start(replies), Ok) {
            Ok(jobs) => self.jobs.insert(jobs),
            Err(error) => {
                let (name, why) = (self.name, crate::sys::error_text(&error));
                log::error!("could not start the helper thread for {name}: {why}");
                return Err(job);
            }
        };
        jobs.try_send(job).map_err(|error| {
            log::warn!("too many {} at once, {} are waiting", self.name, self.limit);
            match error {
                TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
            }
        })
    }

    fn start(&self, replies: &Replies) -> io::Result<SyncSender<J>> {
        let (jobs, jobs_there) = sync_channel(self.limit);
        let jobs_there = Arc::new(Mutex::new(jobs_there));
        for _ in 0..self.threads {
            let (answers, waker) = (replies.there.clone(), Arc::clone(&replies.waker));
            let jobs_there = Arc::clone(&jobs_there);
            std::thread::Builder::new()
                .name(self.name.to_string())
                .spawn(move || work(&jobs_there, &answers, &waker))?;
        }
        Ok(jobs)
    }
}

/// A side thread's life: ends when the loop has gone.
fn work<J: Job>(jobs: &Mutex<Receiver<J>>, answers: &Sender<Input>, waker: &Waker) {
    if J::IS_PATIENT
        && let Err(error) = crate::sys::yield_to_others()
    {
        log::warn!("setpriority() failed: {}", crate::sys::error_text(&error));
    }
    // Whoever holds the lock waits for the next job, the others for the lock.
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
    while let Ok(job) = next() {
        if answers.send(job.run()).is_err() || waker.wake().is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Key as _, ServerKey};

    #[test]
    fn a_full_queue_refuses() {
        let poll = mio::Poll::new().unwrap();
        let mut helper = Helper::new(poll.registry(), "").unwrap();
        let server = ServerKey::new(0, 1);
        let derivation = Derivation::new(b"secret", b"salt", 2);
        helper.derive(Conn::Server(server), derivation.clone()).unwrap();
        let answer = helper.replies.here.recv().unwrap();
        let Input::Derived { keys: Some(keys), .. } = answer else {
            panic!("a key, not {answer:?}");
        };
        assert_eq!(keys, derivation.run());
        let ours = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let expected = (niceness(&ours) + 5).min(19);
        assert_eq!(niceness(&stat_of_thread("keys")), expected, "others go first");
        // A side thread that is busy with something else.
        let (jobs, _jobs_there) = sync_channel(1);
        helper.keys.jobs = Some(jobs);
        assert_eq!(helper.derive(Conn::Server(server), derivation.clone()), Ok(()));
        let refused = helper.derive(Conn::Server(server), derivation.clone());
        assert_eq!(refused, Err(derivation));
    }

    fn niceness(stat: &str) -> i32 {
        let fields = stat.rsplit_once(')').unwrap().1;
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    fn stat_of_thread(name: &str) -> String {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let stats = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")));
        stats.flatten().find(|stat| stat.contains(&format!("({name})"))).unwrap()
    }

    #[test]
    fn nobody_is_asked_about_who_has_no_time_left() {
        let question = Question {
            user: "anybody".to_owned(),
            password: crate::config::Secret::new(*b"secret"),
            oracle: Oracle::Pam { remote_host: "unix".to_owned() },
            until: Some(Instant::now()),
        };
        let late = Consultation { client: ClientKey::new(0, 1), question };
        let Input::Consulted { answer, .. } = late.run() else { panic!("an answer") };
        assert_eq!(answer, Err("nobody waits for the answer any more".to_owned()));
    }
}
