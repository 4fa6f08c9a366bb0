//! What the console asks of the shell: addresses and descriptors, which the engine does not know.

use super::listen::Listeners;
use super::sockets::Sockets;
use crate::console::{ListenerFacts, Outside};
use crate::keys::Conn;
use std::net::SocketAddr;

/// The parts of the shell that know.
pub struct Shell<'a> {
    /// The sockets of connections.
    pub sockets: &'a Sockets,
    /// The listeners.
    pub listeners: &'a Listeners,
}

impl Outside for Shell<'_> {
    fn local_address(&self, conn: Conn) -> Option<SocketAddr> {
        self.sockets.get(conn)?.stream.local_addr()
    }

    fn descriptor(&self, conn: Conn) -> Option<i32> {
        Some(self.sockets.get(conn)?.stream.descriptor())
    }

    fn listeners(&self) -> Vec<ListenerFacts> {
        self.listeners.facts()
    }
}
