//! The map of the house.

pub mod engine;
pub mod keys;
