//! Clients of the admin console, as far as the engine has to do with them: who is let in, the
//! welcome, and their messages one by one.
//!
//! The console itself (`console/`) stands above the engine: it reads the house and operates on it.
//! So when there is something for it, the engine says [`Effect::Attend`], and whoever performs
//! that lets the console ask for the next message here and answer it. At most one ring of replies
//! waits for a client; the console keeps its place and goes on when there is room.

use crate::auth::challenge::Claim;
use crate::config::CONSOLE;
use crate::config::values::AuthType;
use crate::engine::Engine;
use crate::engine::io::Effect;
use crate::engine::logins::{Identity, greet};
use crate::keys::{ClientKey, Conn};
use crate::pool::House;
use crate::pool::peers::own_id;
use crate::ring::Ring;
use crate::session::client::{ClientAddress, Counted, Rights, State};
use crate::session::client_login::{Goal, Pending, Replication, Startup};
use crate::session::farewell::Reason;
use crate::session::statuses::Statuses;
use crate::sys;
use crate::wire::emit::{self, Full};
use crate::wire::frame::{HEADER_BYTES, Peek};
use std::time::Instant;

/// How somebody gets to the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// At once: the very account that we run as, over the Unix socket.
    Owner,
    /// At once: `auth_type` is `any`.
    Anybody(Rights),
    /// When he has proven who he is.
    Listed(Rights),
    /// Not at all; said before any password is asked for.
    Refused,
}

/// A message of a console client.
#[derive(Debug, PartialEq, Eq)]
pub struct ConsoleMessage {
    /// Its type byte.
    pub tag: u8,
    /// All behind the length.
    pub body: Vec<u8>,
}

impl Engine {
    /// What this client may do on the console under this name.
    pub fn console_access(&self, from: ClientAddress, user: &str) -> Access {
        let settings = &self.config.settings;
        let own = sys::effective_user();
        if user == CONSOLE
            && matches!(from, ClientAddress::Unix { uid: Some(uid), .. } if uid == own)
        {
            return Access::Owner;
        }
        let is_admin = settings.admin_users.contains(user);
        match settings.auth_type {
            AuthType::Any if is_admin => Access::Anybody(Rights::Admin),
            AuthType::Any => Access::Anybody(Rights::Stats),
            _ if is_admin => Access::Listed(Rights::Admin),
            _ if settings.stats_users.contains(user) => Access::Listed(Rights::Stats),
            _ => Access::Refused,
        }
    }

    /// Whether a client of the console is the very account that we run as.
    pub fn is_owner(&self, key: ClientKey) -> bool {
        let own = sys::effective_user();
        self.house.clients.get(key).is_some_and(|client| {
            let is_own_account =
                matches!(client.from, ClientAddress::Unix { uid: Some(uid), .. } if uid == own);
            is_own_account && client.user.as_deref() == Some(CONSOLE)
        })
    }

    /// Somebody asks for the console.
    pub(super) fn on_console_startup(
        &mut self,
        key: ClientKey,
        startup: Startup,
        now: Instant,
    ) -> Result<(), Reason> {
        let Some(client) = self.house.clients.get_mut(key) else {
            return Ok(());
        };
        client.on_console = true;
        let from = client.from;
        let (user, replication) = (&startup.user, startup.replication);
        let access = self.console_access(from, user);
        // As PgBouncer: under `any` a name is nobody's.
        let name = match access {
            Access::Anybody(_) => CONSOLE,
            _ => user,
        };
        if let Some(client) = self.house.clients.get_mut(key) {
            client.user = Some(name.into());
        }
        let rights = match access {
            Access::Owner => Some(Rights::Admin),
            Access::Anybody(rights) => Some(rights),
            Access::Listed(_) | Access::Refused => None,
        };
        if let Some(rights) = rights {
            self.log_login_attempt(key, CONSOLE, user, replication);
            if access == Access::Owner {
                log::info!("{} pgbouncer access from unix socket", self.name_of(key));
            }
            return self.enter_console(key, rights);
        }
        self.check_name(key, user, CONSOLE)?;
        let is_known = self.access.userlist.contains(user)
            // Whoever knows the passwords, it is our lists that say who may come to the console.
            || self.is_for_others(key, user, &Goal::Console { rights: Rights::Stats });
        let login = Pending { startup, database: None, query: String::new() };
        if is_known {
            return self.on_identity(key, login, Identity::Listed, now);
        }
        match self.ask_about(key, login, now)? {
            Some(login) => self.on_identity(key, login, Identity::Unknown, now),
            None => Ok(()),
        }
    }

    /// It is known what can be known of somebody who asks for the console. Whether he may come
    /// there is told before a password is asked for, unless he is nobody: then he is asked as
    /// everybody else is, and fails in the end.
    pub(super) fn on_console_identity(
        &mut self,
        key: ClientKey,
        replication: Replication,
        (claim, is_known): (Claim, bool),
        now: Instant,
    ) -> Result<(), Reason> {
        let Some(from) = self.house.clients.get(key).map(|client| client.from) else {
            return Ok(());
        };
        let access = self.console_access(from, &claim.user);
        match is_known {
            true => self.count_on_console(key, &claim.user, access)?,
            false => self.admit_user(key, &claim.user)?,
        }
        self.log_login_attempt(key, CONSOLE, &claim.user, replication);
        let rights = match access {
            Access::Listed(rights) => rights,
            Access::Owner | Access::Anybody(_) | Access::Refused if is_known => {
                return Err(Reason::NOT_ALLOWED);
            }
            Access::Owner | Access::Anybody(_) | Access::Refused => Rights::Stats,
        };
        self.have_proven(key, (claim, is_known), Goal::Console { rights }, now)
    }

    /// Administrators always find a place.
    fn count_on_console(
        &mut self,
        key: ClientKey,
        user: &str,
        access: Access,
    ) -> Result<(), Reason> {
        if access != Access::Listed(Rights::Admin) {
            self.house.database_admits(CONSOLE, None, &self.config)?;
            self.house.user_admits(user, &self.config)?;
        }
        self.house.count(key, Counted::Console);
        Ok(())
    }

    /// Somebody has proven who he is, and may.
    pub(super) fn enter_console(&mut self, key: ClientKey, rights: Rights) -> Result<(), Reason> {
        self.house.settle_key(key, own_id(&self.config.settings));
        let House { clients, rings, values, tracked, .. } = &mut self.house;
        let Some(client) = clients.get_mut(key) else {
            return Ok(());
        };
        let settings = &self.config.settings;
        let banner = settings.compat_version.banner();
        let version = format!("{}/bouncer", banner.rsplit(' ').next().unwrap_or(banner));
        let fixed = [
            ("server_version", version.as_str()),
            ("client_encoding", "UTF8"),
            ("server_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "GMT"),
            ("standard_conforming_strings", "on"),
            ("is_superuser", "on"),
        ];
        let notice = settings.login_notify_message.as_bytes();
        greet(client, rings, notice, |ring, parameters| {
            fixed.iter().try_for_each(|(name, value)| {
                emit::parameter_status(ring, name.as_bytes(), value.as_bytes())
            })?;
            // And what it has asked for itself.
            let none = tracked.unset();
            Statuses::new(&none, tracked, values).write(
                ring,
                (parameters, &none),
                (tracked, values),
            )
        })?;
        self.house.console_stats.total.client_logins += 1;
        self.house.set_client_state(key, State::Console { rights });
        self.make_runnable(Conn::Client(key));
        Ok(())
    }

    /// What a client may do on the console. `None`: it is not there (any more).
    pub fn console_rights(&self, key: ClientKey) -> Option<Rights> {
        match self.house.clients.get(key)?.state {
            State::Console { rights } => Some(rights),
            _ => None,
        }
    }

    /// Takes the next message of a console client, if it has come in as a whole. A longer one than
    /// a ring holds ends the conversation: no command is that long.
    pub fn next_console_message(&mut self, key: ClientKey, now: Instant) -> Option<ConsoleMessage> {
        self.console_rights(key)?;
        let limit = self.config.settings.max_packet_size;
        let House { clients, rings, .. } = &mut self.house;
        let client = clients.get_mut(key)?;
        let reason = match client.inbox.peek(limit) {
            Peek::NeedMore => {
                client.inbox.tidy(None, rings);
                return None;
            }
            Peek::Bad => Reason::bad_header(&client.inbox.hex()),
            Peek::Header(header) if client.inbox.has(header.bytes) => {
                let body = client.inbox.copy(HEADER_BYTES, header.bytes);
                client.inbox.skip(header.bytes);
                client.inbox.tidy(None, rings);
                // As PgBouncer: what comes later on this connection does not count.
                if client.query_since.replace(now).is_none() {
                    self.house.console_stats.total.transactions += 1;
                    self.house.console_stats.total.queries += 1;
                }
                // There is room to read again.
                self.make_runnable(Conn::Client(key));
                return Some(ConsoleMessage { tag: header.tag, body });
            }
            Peek::Header(header) if client.inbox.can_hold(header.bytes) => return None,
            Peek::Header(_) => Reason::QUERY_TOO_LONG,
        };
        self.end_console(key, reason, now);
        None
    }

    /// Appends as many of these bytes to what a console client is owed as there is room for, and
    /// says how many. The console is attended to again when there is room for more.
    pub fn tell_console(&mut self, key: ClientKey, bytes: &[u8]) -> usize {
        if self.console_rights(key).is_none() || bytes.is_empty() {
            // Whoever has heard the last word is told nothing more.
            return bytes.len();
        }
        let House { clients, rings, .. } = &mut self.house;
        let Some(client) = clients.get_mut(key) else {
            return bytes.len();
        };
        let mut taken = 0;
        let pushed = client.egress.push_own(rings, |ring: &mut Ring| {
            taken = bytes.len().min(ring.free_bytes());
            ring.push(&bytes[..taken]).then_some(()).ok_or(Full)
        });
        if pushed.is_err() {
            taken = 0;
        }
        self.make_runnable(Conn::Client(key));
        taken
    }

    /// A console client's conversation ends.
    pub fn end_console(&mut self, key: ClientKey, reason: Reason, now: Instant) {
        self.close_client(key, reason, now);
    }

    /// Who has gone is closed one turn after that: what it said before has been carried out then.
    pub(super) fn let_console_leavers_go(&mut self, now: Instant) {
        let leavers = std::mem::take(&mut self.console_leavers);
        for (key, was_attended) in leavers {
            if was_attended {
                self.close_client(key, Reason::CLIENT_UNEXPECTED_EOF, now);
            } else {
                self.console_leavers.push((key, true));
                self.next_turn = Some(now);
            }
        }
    }

    /// Has the console look after a client once more in this turn.
    pub fn attend_again(&mut self, key: ClientKey) {
        self.effects.push_back(Effect::Attend { client: key });
    }
}
