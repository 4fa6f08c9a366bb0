//! Passing a message on: the bytes stay where they are, the other side's egress learns of them.

use crate::session::egress::Egress;
use crate::session::inbox::{Inbox, Rest};
use crate::wire::frame::Run;

/// Passes the next message on: what of it has come in at once, the rest as it comes.
pub fn message(from: &mut Inbox, to: &mut Egress, bytes: u64) {
    let here = bytes.min(from.unjudged());
    stretch(from, to, here);
    from.set_rest(Rest::Relay(bytes - here));
}

/// Passes on a run of messages, the last of which may still be coming in.
pub fn run(from: &mut Inbox, to: &mut Egress, run: Run) {
    stretch(from, to, run.bytes as u64);
    from.set_rest(Rest::Relay(run.body_left));
}

/// Passes on bytes that have all come in: a run of whole messages, or a part of one.
pub fn stretch(from: &mut Inbox, to: &mut Egress, bytes: u64) {
    let at = from.judged();
    from.advance(bytes);
    to.push_run(at, at + bytes);
}

/// Goes on with a message of which a part came in earlier. `false`: there is nothing to go on
/// with now.
pub fn rest(from: &mut Inbox, to: Option<&mut Egress>) -> bool {
    let (here, rest) = match from.rest() {
        Rest::None => return true,
        Rest::Relay(left) => (left.min(from.unjudged()), left),
        Rest::Skip(left) => (left.min(from.unjudged()), left),
        // Whoever collects goes on with it before anything is relayed.
        Rest::Collect(_) => return false,
    };
    if here == 0 {
        return false;
    }
    match (from.rest(), to) {
        (Rest::Relay(_), Some(egress)) => {
            stretch(from, egress, here);
            from.set_rest(Rest::Relay(rest - here));
        }
        // What was to be passed on, and has nobody left to go to, is dropped.
        _ => {
            from.advance(here);
            from.set_rest(Rest::Skip(rest - here));
        }
    }
    !from.is_mid_message()
}
