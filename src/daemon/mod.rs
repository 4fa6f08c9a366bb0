//! What makes a service of the pooler: flags, log, pid file, signals.

pub mod background;
pub mod check;
pub mod cli;
pub mod datagrams;
pub mod journal;
pub mod limits;
pub mod line;
pub mod logging;
pub mod manager;
pub mod orders;
pub mod pidfile;
pub mod privileges;
pub mod service;
pub mod syslog;
pub mod takeover;
