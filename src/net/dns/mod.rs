//! Looks names of hosts up, and serials of zones: hosts file, search domains, name servers.
//!
//! ```text
//!  Resolver::addresses ─▶ hosts file ─▶ each candidate name ─▶ exchange ─▶ one family of addresses
//!                                      (search domains)      UDP, or TCP
//! ```
//!
//! This blocks, and runs on threads of its own, one for each look-up, of which the engine has a few
//! dozen under way at most: so a name server that does not answer holds up nobody but those that
//! need this very name, and what happens in a look-up can be read from top to bottom. Each ends in
//! bounded time. The format of messages is hickory's; who is asked what, how often, and what counts
//! as an answer is decided here. The system's own resolver is not used, for it does not tell
//! serials, cannot be given another configuration file, and reads its own when it likes.

mod exchange;
mod family;
mod hosts_file;
mod message;
mod resolv_conf;

use exchange::{Exchange, Found};
use hickory_proto::rr::{Name, RecordType};
use resolv_conf::ResolvConf;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the system's configuration says, unless `resolv_conf` names another file.
const SYSTEM_CONF: &str = "/etc/resolv.conf";
const HOSTS_FILE: &str = "/etc/hosts";
/// A look-up is given up after so long, however many servers and search domains there are.
const PATIENCE: Duration = Duration::from_secs(30);
/// So much of a configuration file is read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// How to look names up.
#[derive(Clone, Debug)]
pub struct Resolver {
    conf: PathBuf,
    hosts: PathBuf,
}

impl Resolver {
    /// `conf` is the setting `resolv_conf`; empty: the system's file.
    pub fn new(conf: &str) -> Self {
        let conf = if conf.is_empty() { SYSTEM_CONF } else { conf };
        Self { conf: conf.into(), hosts: HOSTS_FILE.into() }
    }

    /// The addresses of a host; none: they could not be found out.
    pub fn addresses(&self, host: &str) -> Vec<IpAddr> {
        if let Ok(literal) = host.parse() {
            return vec![literal];
        }
        let listed = hosts_file::addresses(&read(&self.hosts), host);
        if !listed.is_empty() {
            return family::only_one(listed);
        }
        // RFC 6761: nobody else is asked about ourselves.
        let bare = host.strip_suffix('.').unwrap_or(host);
        if bare.eq_ignore_ascii_case("localhost") {
            let here = [IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(Ipv4Addr::LOCALHOST)];
            return family::only_one(here.into());
        }
        let found = self.ask(host, &[RecordType::A, RecordType::AAAA]);
        family::only_one(found.map(|found| found.addresses).unwrap_or_default())
    }

    /// The serial of a zone.
    pub fn serial(&self, zone: &str) -> Option<u32> {
        self.ask(zone, &[RecordType::SOA])?.serial
    }

    fn ask(&self, name: &str, kinds: &[RecordType]) -> Option<Found> {
        let conf = ResolvConf::parse(&read(&self.conf), &own_domain());
        let until = Instant::now() + PATIENCE;
        for candidate in conf.candidates(name) {
            let Ok(mut candidate) = Name::from_ascii(&candidate) else {
                continue;
            };
            candidate.set_fqdn(true);
            match (Exchange { conf: &conf, name: &candidate, kinds, until }).run() {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {}
                Err(why) => {
                    log::debug!("look-up of {name}: {why}");
                    return None;
                }
            }
        }
        None
    }
}

/// A configuration file; one that cannot be read says nothing.
// As PgBouncer: a missing resolv_conf is no error.
fn read(path: &Path) -> String {
    use std::io::Read as _;
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map(|file| file.take(MAX_FILE_BYTES));
    if let Err(error) = file.and_then(|mut file| file.read_to_end(&mut text)) {
        log::debug!("{}: {}", path.display(), crate::sys::error_text(&error));
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// What follows the first dot of our own name: names are searched there unless the file says where.
fn own_domain() -> String {
    let own = crate::sys::host_name();
    own.split_once('.').map_or_else(String::new, |(_, domain)| domain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_ourselves_and_nonsense() {
        let resolver = Resolver::new("/no/such/file");
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(resolver.addresses("127.0.0.1"), [ip("127.0.0.1")]);
        assert_eq!(resolver.addresses("::1"), [ip("::1")]);
        for host in ["localhost", "LOCALHOST."] {
            let here = resolver.addresses(host);
            assert!(!here.is_empty() && here.iter().all(IpAddr::is_loopback), "{here:?}");
        }
        let long = "x".repeat(300);
        for host in ["", ".", "..", "a..b", "no such host", &long, "\u{fc}.test", "a\0b"] {
            assert_eq!(resolver.addresses(host), [] as [IpAddr; 0], "{host}");
        }
    }
}
