//! What the operator has ordered for the whole house.

use std::time::Instant;

/// See the module's page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Everybody is served. Leaves to `Paused`, `Suspended`, `ShuttingDown`.
    #[default]
    Running,
    /// Who needs a server waits, and servers that become free are closed. Leaves to `Running`,
    /// `ShuttingDown`.
    Paused,
    /// Who waits is still served, and then nothing moves any more: no byte lies with us, so that
    /// another process can take over. Leaves to `Running`, `ShuttingDown`.
    Suspended {
        /// How far that is.
        phase: Phase,
        /// Who is still logging in is closed then; `None`: that is done.
        logins_end: Option<Instant>,
        /// Who holds it up is closed then; `None`: never.
        deadline: Option<Instant>,
    },
    /// Nobody new is let in over TCP, nor in at all but to the console. Leaves to other ways of
    /// shutting down, and to the end of the process.
    ShuttingDown {
        /// Whom we wait for.
        awaited: Awaited,
        /// Whether it is a pause, too; nothing ends it any more.
        is_paused: bool,
    },
}

/// How far a suspension is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Clients finish what they have begun to say; those that wait are served.
    Clients,
    /// No client has anything with us; servers finish what they have begun to say.
    Servers,
    /// Nothing moves.
    Quiet,
}

/// With whose last connection the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Those that are in work on as ever.
    Clients,
    /// Those that work finish; who needs a server is refused.
    Servers,
}

impl Mode {
    /// Whether nobody gets a server.
    pub fn is_paused(self) -> bool {
        match self {
            Self::Running | Self::Suspended { .. } => false,
            Self::Paused => true,
            Self::ShuttingDown { is_paused, .. } => is_paused,
        }
    }

    /// Whether clients are held back in either way.
    pub fn is_held(self) -> bool {
        self.is_paused() || self.is_suspended()
    }

    /// Whether it is a suspension, complete or not.
    pub fn is_suspended(self) -> bool {
        matches!(self, Self::Suspended { .. })
    }

    /// Whether nothing moves.
    pub fn is_quiet(self) -> bool {
        matches!(self, Self::Suspended { phase: Phase::Quiet, .. })
    }

    /// Whether no server is opened any more.
    pub fn opens_none(self) -> bool {
        let has_served_all =
            matches!(self, Self::Suspended { phase, .. } if phase > Phase::Clients);
        has_served_all || self.is_paused()
    }

    /// Whether the process is going to end.
    pub fn is_shutting_down(self) -> bool {
        matches!(self, Self::ShuttingDown { .. })
    }

    /// Whether who needs a server is refused rather than queued.
    pub fn refuses_work(self) -> bool {
        matches!(self, Self::ShuttingDown { awaited: Awaited::Servers, .. })
    }

    /// The order to pause.
    #[must_use]
    pub fn paused(self) -> Self {
        match self {
            Self::Running | Self::Paused | Self::Suspended { .. } => Self::Paused,
            Self::ShuttingDown { awaited, .. } => Self::ShuttingDown { awaited, is_paused: true },
        }
    }

    /// The order to shut down, which replaces an earlier one; a pause stays.
    #[must_use]
    pub fn shutting_down(self, awaited: Awaited) -> Self {
        let is_paused = self.is_paused() || awaited == Awaited::Servers;
        Self::ShuttingDown { awaited, is_paused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_outlives_the_orders_to_shut_down() {
        let down = |awaited, is_paused| Mode::ShuttingDown { awaited, is_paused };
        let clients = Mode::Running.shutting_down(Awaited::Clients);
        assert_eq!(clients, down(Awaited::Clients, false));
        assert_eq!(clients.paused(), down(Awaited::Clients, true));
        assert_eq!(clients.shutting_down(Awaited::Servers), down(Awaited::Servers, true));
        let servers = Mode::Running.shutting_down(Awaited::Servers);
        assert_eq!(servers.shutting_down(Awaited::Clients), down(Awaited::Clients, true));
        assert_eq!(Mode::Paused.shutting_down(Awaited::Clients), down(Awaited::Clients, true));
        assert!(servers.refuses_work() && !clients.refuses_work() && !Mode::Paused.refuses_work());
    }
}
