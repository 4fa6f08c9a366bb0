//! The map of the house.

pub mod engine;
pub mod keys;
pub mod net;
pub mod sys;
