//! The heart: it is told what happened and what time it is, and says what it wants done.
//!
//! Until the real one lands, this stub has the face that the shell needs and does nothing.

use crate::keys::{ClientKey, Conn, Key};
use io::{ClientAddress, Effect, Input};
use std::io::IoSlice;
use std::time::Instant;

pub mod io;

/// An on/off setting, which is a number as users write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switch(pub i32);

impl Switch {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        self.0 != 0
    }
}

/// The settings that the shell reads.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the configuration file")]
pub struct Settings {
    pub listen_addr: String,
    pub listen_backlog: i32,
    pub listen_port: i32,
    pub sbuf_loopcnt: i32,
    pub so_reuseport: Switch,
    pub tcp_defer_accept: Switch,
    pub tcp_keepalive: Switch,
    pub tcp_keepcnt: i32,
    pub tcp_keepidle: i32,
    pub tcp_keepintvl: i32,
    pub tcp_socket_buffer: i32,
    pub tcp_user_timeout: i32,
    pub unix_socket_dir: String,
    pub unix_socket_group: String,
    pub unix_socket_mode: i32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen_addr: String::new(),
            listen_backlog: 128,
            listen_port: 6432,
            sbuf_loopcnt: 5,
            so_reuseport: Switch(0),
            tcp_defer_accept: Switch(1),
            tcp_keepalive: Switch(1),
            tcp_keepcnt: 0,
            tcp_keepidle: 0,
            tcp_keepintvl: 0,
            tcp_socket_buffer: 0,
            tcp_user_timeout: 0,
            unix_socket_dir: "/tmp".to_string(),
            unix_socket_group: String::new(),
            unix_socket_mode: 0o777,
        }
    }
}

/// Does nothing, with the right face.
#[derive(Default)]
pub struct Engine {
    settings: Settings,
}

#[expect(missing_docs, reason = "a stub, soon replaced")]
impl Engine {
    pub fn accept(&mut self, _: ClientAddress, _: [u8; 8], _: Instant) -> ClientKey {
        ClientKey::new(0, 0)
    }
    pub fn handle(&mut self, _: Input, _: Instant) {}
    pub fn next_effect(&mut self) -> Option<Effect> {
        None
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }
    pub fn next_runnable(&mut self) -> Option<Conn> {
        None
    }
    pub fn make_runnable(&mut self, _: Conn) {}
    pub fn has_runnable(&self) -> bool {
        false
    }
    pub fn wants_read(&self, _: Conn) -> bool {
        false
    }
    pub fn wants_write(&self, _: Conn) -> bool {
        false
    }
    pub fn inbox_room(&mut self, _: Conn) -> Option<[&mut [u8]; 2]> {
        None
    }
    pub fn nothing_read(&mut self, _: Conn) {}
    pub fn outgoing<'a>(&'a self, _: Conn, _: &mut [IoSlice<'a>]) -> usize {
        0
    }
    pub fn forget(&mut self, _: Conn) {}
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
