//! What the service manager (systemd) is told: that we are up, how busy we are, that we read our
//! configuration again, or come to an end. A crate could do it; with `datagrams` it is these few lines.

use super::datagrams::Datagrams;
use crate::pool::stats::Averages;
use crate::sys;
use std::env;

/// Our way to the service manager, if there is one.
#[derive(Debug)]
pub struct Manager {
    datagrams: Option<Datagrams>,
}

impl Manager {
    /// Who is named by `NOTIFY_SOCKET`.
    pub fn from_environment() -> Self {
        let place = env::var("NOTIFY_SOCKET").ok().filter(|place| !place.is_empty());
        let datagrams = place.and_then(|place| match Datagrams::to(&place) {
            Ok(datagrams) => Some(datagrams),
            Err(error) => {
                log::warn!("cannot tell the service manager: {}", sys::error_text(&error));
                None
            }
        });
        Self { datagrams }
    }

    /// We serve.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// We read our configuration; [`Manager::ready`] follows.
    pub fn reloading(&self) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", sys::monotonic_microseconds()));
    }

    /// We come to an end, as soon as whom we wait for has gone.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// How busy we are.
    pub fn status(&self, averages: &Averages) {
        self.tell(&format!("STATUS={}", averages.status()));
    }

    fn tell(&self, words: &str) {
        let told = self.datagrams.as_ref().map(|datagrams| datagrams.send(words.as_bytes()));
        if let Some(Err(error)) = told {
            log::warn!("cannot tell the service manager: {}", sys::error_text(&error));
        }
    }
}
