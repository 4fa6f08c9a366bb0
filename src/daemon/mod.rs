//! What makes a service of the pooler: flags, log, pid file, signals.

pub mod cli;
pub mod logging;
pub mod pidfile;
pub mod service;
