//! Bytes ⇄ messages of PostgreSQL's protocol 3, without any state.
//!
//! [`frame`] finds where a message begins and ends, [`startup`] reads the untagged first packets,
//! [`frontend`] and [`backend`] know what each tag asks of us, [`emit`] writes the messages that
//! are our own, [`sqlstate`] names error codes.

pub mod backend;
pub mod emit;
pub mod frame;
pub mod frontend;
pub mod sqlstate;
pub mod startup;
