//! The map of the house.

pub mod auth;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod keys;
pub mod sys;
