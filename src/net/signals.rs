//! Signals as events of the loop. What one means is decided by `daemon`.

use super::token::Token;
use mio::{Interest, Registry};
use std::io;

/// A signal that users steer us with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: reload.
    Hangup,
    /// SIGINT: shut down when the servers are free.
    Interrupt,
    /// SIGQUIT: shut down at once.
    Quit,
    /// SIGTERM: shut down when the clients have gone.
    Terminate,
    /// SIGUSR1: pause.
    User1,
    /// SIGUSR2: resume.
    User2,
}

const SIGNALS: [(i32, Signal); 6] = [
    (libc::SIGHUP, Signal::Hangup),
    (libc::SIGINT, Signal::Interrupt),
    (libc::SIGQUIT, Signal::Quit),
    (libc::SIGTERM, Signal::Terminate),
    (libc::SIGUSR1, Signal::User1),
    (libc::SIGUSR2, Signal::User2),
];

/// Those that came and have not been handed out yet.
pub struct Signals {
    source: signal_hook_mio::v1_0::Signals,
    /// One bit for each row of [`SIGNALS`]: as in the kernel, a signal that comes twice before
    /// anyone looks counts once.
    pending: u8,
}

impl Signals {
    /// From now on the signals do not end the process.
    pub fn new(registry: &Registry) -> io::Result<Self> {
        let mut source = signal_hook_mio::v1_0::Signals::new(SIGNALS.map(|(number, _)| number))?;
        registry.register(&mut source, Token::Signals.into(), Interest::READABLE)?;
        Ok(Self { source, pending: 0 })
    }

    /// The event came.
    pub fn collect(&mut self) {
        for number in self.source.pending() {
            if let Some(bit) = SIGNALS.iter().position(|&(known, _)| known == number) {
                self.pending |= 1 << bit;
            }
        }
    }

    /// Whether one waits.
    pub fn is_pending(&self) -> bool {
        self.pending != 0
    }

    /// Hands out one of them.
    pub fn take(&mut self) -> Option<Signal> {
        let (_, signal) = SIGNALS.get(self.pending.trailing_zeros() as usize)?;
        self.pending &= self.pending - 1;
        Some(*signal)
    }
}
