//! The hosts file: an address and its names on each line.

use std::net::IpAddr;

/// The addresses of a host, in the order of the file.
pub(super) fn addresses(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        if words.any(|name| name.eq_ignore_ascii_case(host)) && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_behind_their_addresses() {
        let text = "# 9.9.9.9 db\n127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # db\n\
                    10.0.0.1 db.test DB\n10.0.0.2  x db\n10.0.0.1 db\nnonsense db\n10.0.0.4\n";
        let ips = |host: &str| -> Vec<String> {
            addresses(text, host).iter().map(IpAddr::to_string).collect()
        };
        assert_eq!(ips("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(ips("db"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips("Db.Test."), ["10.0.0.1"]);
        assert_eq!(ips("test"), [] as [&str; 0]);
        assert_eq!(ips(""), [] as [&str; 0]);
    }
}
