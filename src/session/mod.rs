//! One conversation each: what a client or a server may say now, and what that leads to.
//!
//! [`inbox`] holds what came in and was not judged yet, [`egress`] what a peer is owed, and
//! [`relay`] moves messages from one to the other without copying them. [`client`] and [`server`]
//! judge messages, [`client_login`] and [`server_login`] the ones before that; [`pipeline`] keeps
//! the replies still owed, [`params`] the tracked parameters, [`line`](mod@line) how the bytes between us are protected, [`cancel_key`] is what a client cancels with, [`call_off`] what becomes of a query that is cancelled before a server has it, [`farewell`] why it
//! ended.

pub mod call_off;
pub mod cancel_key;
pub mod client;
pub mod client_login;
pub mod egress;
pub mod farewell;
pub mod handover;
pub mod inbox;
pub mod line;
pub mod params;
pub mod pipeline;
pub mod prepared;
pub mod relay;
pub mod rescue;
pub mod server;
pub mod server_login;
pub mod statuses;
