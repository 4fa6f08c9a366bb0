//! resolv.conf: which name servers are asked, and for which names.
//!
//! Lines as everybody knows them: `nameserver`, `domain`, `search`, `options ndots:n timeout:n
//! attempts:n rotate use-vc`. Ours: a `nameserver` may have a port, `127.0.0.1:5353` or
//! `[::1]:5353`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const PORT: u16 = 53;
const MAX_SERVERS: usize = 8;
const MAX_DOMAINS: usize = 16;
const MAX_NAME_BYTES: usize = 253;

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// Whom to ask, in this order.
    pub servers: Vec<SocketAddr>,
    /// Where names are searched that are not whole.
    pub search: Vec<String>,
    /// A name with so many dots is tried as it stands first.
    pub ndots: usize,
    /// How long a server has to answer.
    pub timeout: Duration,
    /// How often each of them is asked.
    pub attempts: u32,
    /// Whether they take turns.
    pub rotates: bool,
    /// Whether only TCP is spoken.
    pub uses_tcp: bool,
}

impl ResolvConf {
    /// `own_domain` is searched if the text does not say where.
    pub(super) fn parse(text: &str, own_domain: &str) -> Self {
        let mut conf = Self {
            servers: Vec::new(),
            search: vec![own_domain.to_owned()],
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotates: false,
            uses_tcp: false,
        };
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().and_then(server)),
                Some("domain") => {
                    conf.search = words.next().map(str::to_owned).into_iter().collect()
                }
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|option| conf.option(option)),
                _ => {}
            }
        }
        conf.servers.truncate(MAX_SERVERS);
        conf.search.truncate(MAX_DOMAINS);
        if conf.servers.is_empty() {
            conf.servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
        }
        conf
    }

    fn option(&mut self, option: &str) {
        let (name, value) = option.split_once(':').unwrap_or((option, ""));
        let number = value.parse::<u32>().ok();
        match (name, number) {
            ("ndots", Some(dots)) => self.ndots = usize::try_from(dots.min(15)).unwrap_or(15),
            ("timeout", Some(seconds)) => {
                self.timeout = Duration::from_secs(seconds.clamp(1, 30).into());
            }
            ("attempts", Some(attempts)) => self.attempts = attempts.clamp(1, 5),
            ("rotate", _) => self.rotates = true,
            ("use-vc", _) => self.uses_tcp = true,
            _ => {}
        }
    }

    /// The whole names that a name may stand for, in the order in which they are tried.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        if name.is_empty() || name.starts_with('.') {
            return Vec::new();
        }
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let dots = name.bytes().filter(|byte| *byte == b'.').count();
        let searched = self.search.iter().map(|domain| domain.trim_matches('.'));
        let searched = searched.filter(|domain| !domain.is_empty());
        let mut names: Vec<String> = searched.map(|domain| format!("{name}.{domain}")).collect();
        let place = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(place, name.to_owned());
        names.retain(|name| name.len() <= MAX_NAME_BYTES);
        names
    }
}

fn server(word: &str) -> Option<SocketAddr> {
    let alone = word.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT));
    let server = alone.or_else(|| word.parse().ok());
    if server.is_none() {
        log::debug!("resolv.conf: nameserver {word} is not an address");
    }
    server
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let conf = ResolvConf::parse(
            "# a comment\nnameserver 10.0.0.1 # first\nnameserver 127.0.0.1:5353\n\
             nameserver [::1]:53\nnameserver nonsense\ndomain a.test\nsearch b.test c.test ;x\n\
             options ndots:2 timeout:3 attempts:4 rotate\noptions use-vc nonsense:7 timeout:x\n",
            "own.test",
        );
        let servers: Vec<String> = conf.servers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "127.0.0.1:5353", "[::1]:53"]);
        assert_eq!(conf.search, ["b.test", "c.test"]);
        let numbers = (conf.ndots, conf.timeout.as_secs(), conf.attempts);
        assert_eq!(numbers, (2, 3, 4));
        assert!(conf.rotates && conf.uses_tcp);
    }

    #[test]
    fn nothing_is_the_server_on_this_machine() {
        let conf = ResolvConf::parse("", "own.test");
        assert_eq!(conf.servers, ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!((&conf.search[..], conf.ndots), (&["own.test".to_owned()][..], 1));
    }

    #[test]
    fn everything_has_a_limit() {
        let text = "nameserver 10.0.0.1\n".repeat(1000)
            + "options ndots:4000000000 timeout:4000000000 attempts:4000000000\n"
            + &format!("search {}\n", "a.test ".repeat(1000));
        let conf = ResolvConf::parse(&text, "");
        assert_eq!((conf.servers.len(), conf.search.len()), (MAX_SERVERS, MAX_DOMAINS));
        let numbers = (conf.ndots, conf.timeout.as_secs(), conf.attempts);
        assert_eq!(numbers, (15, 30, 5));
    }

    #[test]
    fn search_domains_apply_to_names_that_are_not_whole() {
        let conf = ResolvConf::parse("search a.test .b.test. .\n", "");
        assert_eq!(conf.candidates("db"), ["db.a.test", "db.b.test", "db"]);
        assert_eq!(conf.candidates("db.x"), ["db.x", "db.x.a.test", "db.x.b.test"]);
        assert_eq!(conf.candidates("db."), ["db"]);
        assert_eq!(conf.candidates(""), [""; 0]);
        assert_eq!(conf.candidates(&"x".repeat(250)), ["x".repeat(250)]);
        assert_eq!(ResolvConf::parse("", "").candidates("db"), ["db"]);
    }
}
