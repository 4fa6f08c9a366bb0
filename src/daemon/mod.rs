//! What makes a service of the pooler: flags, log, pid file, signals.

pub mod background;
pub mod cli;
pub mod limits;
pub mod logging;
pub mod pidfile;
pub mod privileges;
pub mod service;
