//! A server whose client has gone in the middle of something, on its way back to its pool
//! (`server_rescue_timeout`).
//!
//! ```text
//!             nothing owed        ROLLBACK answered       reset query answered
//! Draining ───────────────▶ RollingBack ─────▶ Resetting ─────▶ free
//!     └── nothing to undo ───────────────────────▲
//! ```
//!
//! What the server says meanwhile is for nobody. A CancelRequest may be under way as long as it
//! drains, and only then: it must hit nothing else.

use crate::keys::ClientKey;
use std::time::{Duration, Instant};

/// A query that has not ended so long after it was cancelled is cancelled again: the request may
/// have come a moment before the query.
pub const CANCEL_AGAIN: Duration = Duration::from_secs(1);

/// Longer rests of CopyData are not made up.
pub const MAX_PADDING_BYTES: u64 = 32 * 1024;

/// See the module's page.
#[derive(Debug)]
pub struct Rescue {
    /// Who has gone.
    pub client: ClientKey,
    /// When.
    pub since: Instant,
    /// How long all of it may take.
    pub limit: Duration,
    /// How far it is.
    pub step: Step,
    /// What becomes of the query that may be running.
    pub cancel: Cancel,
    /// Whether the server was asked for the answers to a batch that its client did not end.
    pub has_flushed: bool,
}

impl Rescue {
    /// When the query is cancelled if it still runs, and is not being cancelled.
    pub fn cancel_at(&self) -> Option<Instant> {
        match (self.step, self.cancel) {
            (Step::Draining, Cancel::NotBefore(at)) => Some(at),
            _ => None,
        }
    }
}

/// How far a rescue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What the client had asked for is being answered. Leaves to `RollingBack`, `Resetting`, or
    /// the end.
    Draining,
    /// Was told to roll back. Leaves to `Resetting`, or the end.
    RollingBack {
        /// Whether it has said that it did. A ReadyForQuery ahead of that would be one too many.
        is_done: bool,
    },
    /// Runs the reset query. Leaves to the end.
    Resetting,
}

impl Step {
    /// As SHOW HOLDERS prints it.
    pub fn word(self) -> &'static str {
        match self {
            Step::Draining => "rescue: draining",
            Step::RollingBack { .. } => "rescue: rolling back",
            Step::Resetting => "rescue: resetting",
        }
    }
}

/// What becomes of the query that may be running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// It is left alone until then. Leaves to `Wanted`.
    NotBefore(Instant),
    /// It is to be cancelled, as soon as there is room for a connection that carries the request.
    /// Leaves to `UnderWay`.
    Wanted,
    /// That connection is there. Leaves to `NotBefore`.
    UnderWay,
}

/// What a client has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remains {
    /// So many bytes of a CopyData that has begun are missing.
    pub missing_bytes: u64,
}
