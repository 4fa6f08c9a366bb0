//! One step through a connection's messages.

use crate::session::farewell::Reason;

/// What a message led to.
pub(super) enum Step {
    /// On to the next message.
    Next,
    /// Nothing more to do before something else happens.
    Wait,
    /// A client's message needs a server.
    NeedServer,
    /// The connection ends.
    Close(Reason),
}

/// Goes from message to message until there is nothing more to do.
#[inline]
pub(super) fn last_step(mut step: impl FnMut() -> Step) -> Step {
    loop {
        match step() {
            Step::Next => {}
            last => return last,
        }
    }
}
