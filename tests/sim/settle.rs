//! The end of a run: faults off, everybody finishes and goes home, and nothing is left behind.

use crate::book::Mode;
use crate::client::Phase;
use crate::laws::check_home;
use crate::shell::{DialFaults, Fate};
use crate::socket::End;
use crate::trace;
use crate::world::World;
use std::time::Duration;

/// Longer than anything that the engine waits for.
const LONG: Duration = Duration::from_secs(30);

impl World {
    /// Faults off: all clients finish, all servers come home.
    pub fn heal_and_settle(&mut self) {
        trace::note(|| "healing".to_string());
        self.resume_all();
        self.shell.is_calm = true;
        self.shell.dial_faults = DialFaults::default();
        for socket in &mut self.shell.sockets {
            socket.widen(1 << 18);
        }
        for backend in &mut self.shell.backends {
            (backend.hangs, backend.rejects) = (false, None);
        }
        self.settle("finish", |world| {
            world.clients.iter().all(|client| client.phase == Phase::Over || client.has_finished)
        });
        self.check_rest();
        self.dismiss();
        for client in &mut self.clients {
            let how = if client.id % 2 == 0 { None } else { Some(End::Orderly) };
            let socket = &mut self.shell.sockets[client.socket];
            client.leave(socket, &mut self.book, how, client.id % 3 == 0);
        }
        self.settle("leave", |world| {
            let nobody = world.shell.engine.house().clients.is_empty();
            nobody && world.clients.iter().all(|client| client.phase == Phase::Over)
        });
        self.settle("come home", |_| false);
        check_home(&self.shell.engine);
        assert!(self.shell.engine.house().clients.is_empty());
    }

    /// Runs without faults until `is_done` or nothing moves any more, whatever time passes.
    pub fn settle(&mut self, what: &str, is_done: impl Fn(&World) -> bool) {
        let (mut idle_rounds, mut moved_at) = (0, self.shell.now);
        // Where servers end and are opened again for ever, there is always something to do.
        let until = self.shell.now + Duration::from_secs(60);
        for _ in 0..20_000 {
            if is_done(self) {
                return;
            }
            if what == "come home" && self.shell.now > until {
                self.come_to_rest();
                return;
            }
            let mut moved = self.round();
            moved |= self.sessions_end(what);
            idle_rounds = if moved { 0 } else { idle_rounds + 1 };
            if moved {
                moved_at = self.shell.now;
            }
            // Somebody may be looked at every second, and another attempt comes much later.
            if idle_rounds > 30 && self.shell.now > moved_at + LONG {
                break;
            }
            if idle_rounds > 2 {
                let at = self.shell.engine.next_deadline().unwrap_or(self.shell.now);
                self.shell.now = self.shell.now.max(at) + Duration::from_millis(1);
            }
        }
        if what == "come home" {
            return;
        }
        let open = self.clients.iter().filter(|c| c.phase != Phase::Over && !c.has_finished);
        let open: Vec<String> = open
            .map(|c| {
                let state = self.shell.engine.house().clients.get(c.key).map(|c| &c.state);
                format!("client {} {:?} open {:?} {state:?}", c.id, c.phase, c.outstanding)
            })
            .collect();
        let house = self.shell.engine.house();
        let left: Vec<String> =
            house.clients.iter().map(|(_, client)| format!("{:?}", client.state)).collect();
        assert!(is_done(self), "they do not {what}: {open:#?}\nin the house: {left:#?}");
    }

    /// What is under way comes to its end, and no time passes.
    fn come_to_rest(&mut self) {
        let mut idle_rounds = 0;
        for _ in 0..10_000 {
            idle_rounds = if self.round() { 0 } else { idle_rounds + 1 };
            if idle_rounds > 5 {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Everybody does what he can.
    pub fn round(&mut self) -> bool {
        let before = self.moved_bytes();
        let mut moved = false;
        for id in 0..self.clients.len() {
            moved |= self.client_acts(id, !self.is_directed);
        }
        moved |= self.network_acts(true);
        self.turn();
        moved |= self.servers_act(true);
        moved |= self.network_acts(true);
        self.turn();
        let dials = self.shell.dials.iter().any(|dial| dial.fate != Fate::Hangs);
        moved || dials || !self.shell.keys.is_empty() || before != self.moved_bytes()
    }

    fn moved_bytes(&self) -> u64 {
        self.shell.sockets.iter().map(|socket| socket.read + socket.written).sum()
    }

    /// In session pooling others get on only when somebody goes.
    fn sessions_end(&mut self, what: &str) -> bool {
        let mut moved = false;
        for client in &mut self.clients {
            let in_session = client.mode == Mode::Session;
            if what == "finish" && in_session && client.has_finished && client.phase == Phase::Ready
            {
                let socket = &mut self.shell.sockets[client.socket];
                client.leave(socket, &mut self.book, None, false);
                moved = true;
            }
        }
        moved
    }

    /// All have finished, and those of transaction and statement pooling are still there: they
    /// hold nothing.
    fn check_rest(&mut self) {
        self.settle("come home", |_| false);
        let book = &self.book;
        for client in &self.clients {
            let account = &book.accounts[client.id];
            if client.phase == Phase::Ready && client.farewell.is_none() {
                let (sent, due) = (account.sent.len(), account.expected.len());
                let late = account.sent.iter().all(|e| matches!(e.bytes[0], b'd' | b'c' | b'f'));
                assert!(late, "client {}: {sent} messages went nowhere", client.id);
                assert_eq!(due, 0, "client {}: all answers came", client.id);
            }
        }
        check_home(&self.shell.engine);
    }
}
