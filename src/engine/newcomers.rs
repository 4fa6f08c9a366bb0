//! Clients that log in and have something to say. A login costs ten times what a query does, and a
//! thousand may come in the same moment: whoever is busy must not wait for all of them. So they are
//! served when everybody else has been, a few in each turn of the loop.

use crate::keys::Conn;
use std::collections::VecDeque;

/// About a hundred microseconds of work.
pub(super) const PER_TURN: usize = 8;

/// See the module's page.
pub(super) struct Newcomers {
    waiting: VecDeque<Conn>,
    /// How many more may be served in this turn.
    left: usize,
}

impl Default for Newcomers {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), left: PER_TURN }
    }
}

impl Newcomers {
    pub(super) fn push(&mut self, conn: Conn) {
        self.waiting.push_back(conn);
    }

    /// Whoever waits longest, if there is time for him in this turn.
    pub(super) fn next(&mut self) -> Option<Conn> {
        self.left = self.left.checked_sub(1)?;
        self.waiting.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn begin_turn(&mut self) {
        self.left = PER_TURN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{ClientKey, Key as _};

    #[test]
    fn a_crowd_is_spread_over_turns_in_its_order() {
        let mut newcomers = Newcomers::default();
        let crowd: Vec<Conn> =
            (0..3 * PER_TURN as u32 - 1).map(|n| Conn::Client(ClientKey::new(n, 1))).collect();
        crowd.iter().for_each(|conn| newcomers.push(*conn));
        let mut served = Vec::new();
        for turn in 1..4 {
            newcomers.begin_turn();
            served.extend(std::iter::from_fn(|| newcomers.next()));
            assert_eq!(served.len(), crowd.len().min(turn * PER_TURN));
        }
        assert!(newcomers.is_empty() && served == crowd);
    }
}
