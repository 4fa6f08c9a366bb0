//! Listeners, and who knocks at them.

use super::bind::{self, ListenError};
use super::inherit::{self, Inherited};
use super::options::TcpOptions;
use super::sockets::Stream;
use super::token::Token;
use crate::config::settings::Settings;
use crate::console::ListenerFacts;
use crate::engine::io::ClientAddress;
use crate::sys;
use crate::sys::error_text;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// So many new clients a turn; the others wait in the kernel's queue for the next.
const MAX_ACCEPTS_PER_TURN: u32 = 64;
/// So long no listener is touched after one failed, as when we run out of file descriptors.
const REST: Duration = Duration::from_secs(5);

/// Somebody who has just connected.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub stream: Stream,
    /// Where from.
    pub from: ClientAddress,
    /// Whether the first bytes are probably there already.
    pub expects_data: bool,
}

enum Door {
    Tcp {
        listener: TcpListener,
        /// What the listener was set to, and hence what accepted sockets inherit.
        options: TcpOptions,
        is_deferred: bool,
    },
    Unix {
        listener: UnixListener,
        file: Option<PathBuf>,
    },
}

struct Listener {
    door: Door,
    is_ready: bool,
}

/// All listeners, by the number in their token.
#[derive(Default)]
pub struct Listeners {
    row: Vec<Option<Listener>>,
    /// Whose turn it is to accept, so that a busy listener does not starve another.
    next: usize,
    accepts_left: u32,
    rests_until: Option<Instant>,
    leaves_files: bool,
    is_held: bool,
}

impl Listeners {
    /// Takes what the service manager has opened. If that is nothing, opens everything that is
    /// configured: TCP first, then the Unix socket.
    pub fn open(&mut self, settings: &Settings, registry: &Registry) -> Result<(), ListenError> {
        let options = TcpOptions::from(settings);
        let is_deferred = settings.tcp_defer_accept.is_on();
        for inherited in inherit::listeners(settings)? {
            let door = match inherited {
                Inherited::Tcp(listener) => Door::Tcp { listener, options, is_deferred },
                Inherited::Unix(listener) => Door::Unix { listener, file: None },
            };
            self.add(door, registry)?;
        }
        if !self.row.is_empty() {
            return Ok(());
        }
        for listener in bind::tcp(settings)? {
            self.add(Door::Tcp { listener, options, is_deferred }, registry)?;
        }
        if let Some((listener, file)) = bind::unix(settings)? {
            self.add(Door::Unix { listener, file }, registry)?;
        }
        if self.row.is_empty() { Err(ListenError::Nowhere) } else { Ok(()) }
    }

    /// Takes over the listener of another process; its file is ours from now on.
    pub fn adopt(
        &mut self,
        descriptor: OwnedFd,
        settings: &Settings,
        registry: &Registry,
    ) -> Result<(), ListenError> {
        let door = match inherit::listener(descriptor, settings).map_err(ListenError::Register)? {
            Inherited::Tcp(listener) => Door::Tcp {
                listener,
                options: TcpOptions::from(settings),
                is_deferred: settings.tcp_defer_accept.is_on(),
            },
            Inherited::Unix(listener) => {
                let address = listener.local_addr().ok();
                let file = address.and_then(|at| at.as_pathname().map(PathBuf::from));
                Door::Unix { listener, file }
            }
        };
        self.add(door, registry)
    }

    fn add(&mut self, mut door: Door, registry: &Registry) -> Result<(), ListenError> {
        let slot = u32::try_from(self.row.len()).expect("a handful of listeners");
        let token = Token::Listener(slot).into();
        match &mut door {
            Door::Tcp { listener, .. } => registry.register(listener, token, Interest::READABLE),
            Door::Unix { listener, .. } => registry.register(listener, token, Interest::READABLE),
        }
        .map_err(ListenError::Register)?;
        self.row.push(Some(Listener { door, is_ready: false }));
        Ok(())
    }

    /// Where we listen over TCP.
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.row.iter().flatten().map(|listener| match &listener.door {
            Door::Tcp { listener, .. } => listener.local_addr().ok(),
            Door::Unix { .. } => None,
        });
        addresses.flatten().collect()
    }

    /// No new clients over TCP from now on; those that wait in the kernel's queue are reset.
    pub fn close_tcp(&mut self) {
        for entry in &mut self.row {
            entry.take_if(|listener| matches!(listener.door, Door::Tcp { .. }));
        }
    }

    /// The socket file stays when we go: somebody else may be using it by then.
    pub fn leave_files(&mut self) {
        self.leaves_files = true;
    }

    /// From now on the socket file is ours, and goes with us.
    pub fn own_files(&mut self) {
        self.leaves_files = false;
    }

    /// All of them, for the console.
    pub fn facts(&self) -> Vec<ListenerFacts> {
        let facts = |listener: &Listener| match &listener.door {
            Door::Tcp { listener, .. } => ListenerFacts {
                descriptor: listener.as_raw_fd(),
                address: listener.local_addr().map(|at| at.ip().to_string()).unwrap_or_default(),
            },
            Door::Unix { listener, .. } => {
                ListenerFacts { descriptor: listener.as_raw_fd(), address: "unix".to_owned() }
            }
        };
        self.row.iter().flatten().map(facts).collect()
    }

    /// An event came.
    pub fn mark_ready(&mut self, slot: u32) {
        if let Some(Some(listener)) = self.row.get_mut(slot as usize) {
            listener.is_ready = true;
        }
    }

    /// Starts the count of a new turn. `is_held`: nobody is let in.
    pub fn begin_turn(&mut self, is_held: bool, now: Instant) {
        self.is_held = is_held;
        self.accepts_left = MAX_ACCEPTS_PER_TURN;
        self.rests_until = self.rests_until.filter(|&until| now < until);
    }

    /// Whether the next poll must not sleep.
    pub fn has_work(&self) -> bool {
        !self.is_held
            && self.rests_until.is_none()
            && self.row.iter().flatten().any(|listener| listener.is_ready)
    }

    /// When the rest is over, if there is one.
    pub fn deadline(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Lets one client in; `None` if nobody knocks, or enough for this turn.
    pub fn accept(&mut self, settings: &Settings, now: Instant) -> Option<Accepted> {
        while self.accepts_left > 0 && self.has_work() {
            self.next = (self.next + 1) % self.row.len();
            let Some(listener) = &mut self.row[self.next] else {
                continue;
            };
            if !listener.is_ready {
                continue;
            }
            self.accepts_left -= 1;
            match listener.accept(settings) {
                Ok(Some(accepted)) => return Some(accepted),
                Ok(None) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => listener.is_ready = false,
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => {
                        // The listener stays ready, so it is tried again when the rest is over.
                        log::error!("accept() failed: {}", error_text(&error));
                        self.rests_until = Some(now + REST);
                    }
                },
            }
        }
        None
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        if self.leaves_files {
            return;
        }
        for listener in self.row.iter().flatten() {
            if let Door::Unix { file: Some(path), .. } = &listener.door {
                // It may have been removed already; there is nothing to be done about it.
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl Listener {
    /// `Ok(None)`: somebody came whose socket is of no use.
    fn accept(&mut self, settings: &Settings) -> io::Result<Option<Accepted>> {
        match &mut self.door {
            Door::Tcp { listener, options, is_deferred } => {
                if *is_deferred != settings.tcp_defer_accept.is_on() {
                    *is_deferred = !*is_deferred;
                    bind::set_defer_accept(listener, *is_deferred);
                }
                let (stream, address) = listener.accept()?;
                // On Linux an accepted socket inherits all of these options: calls are needed
                // only if a reload or SET has changed them since the listener was made.
                let current = TcpOptions::from(settings);
                let inherits = cfg!(target_os = "linux") && current == *options;
                if !inherits && let Err(refused) = current.apply(&stream) {
                    log::warn!("{refused}");
                    return Ok(None);
                }
                let from = ClientAddress::Tcp(address);
                let stream = Stream::Tcp(stream);
                Ok(Some(Accepted { stream, from, expects_data: *is_deferred }))
            }
            Door::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                let from = match sys::peer_credentials(stream.as_fd()) {
                    Ok((pid, uid)) => ClientAddress::Unix { pid, uid: Some(uid) },
                    Err(_) => ClientAddress::Unix { pid: 0, uid: None },
                };
                Ok(Some(Accepted { stream: Stream::Unix(stream), from, expects_data: false }))
            }
        }
    }
}
