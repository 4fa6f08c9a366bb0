//! What makes a service of the pooler: flags, log, pid file.

pub mod cli;
pub mod logging;
pub mod pidfile;
