//! The map of the house.

pub mod auth;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod keys;
pub mod net;
pub mod pool;
pub mod ring;
pub mod session;
pub mod sys;
pub mod wire;
