//! Of a host with addresses of both families one family is used: the one whose best address a
//! program would try first (RFC 6724, as far as it tells the families apart). As PgBouncer.

use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Drops the family that is second best; IPv6 if both are as good.
pub(super) fn only_one(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    chosen(addresses, source)
}

fn chosen(addresses: Vec<IpAddr>, source: impl Fn(IpAddr) -> Option<IpAddr>) -> Vec<IpAddr> {
    let (newer, older): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.into_iter().partition(IpAddr::is_ipv6);
    if newer.is_empty() || older.is_empty() {
        return if newer.is_empty() { older } else { newer };
    }
    let best = |family: &[IpAddr]| family.iter().map(|to| merit(*to, source(*to))).max();
    if best(&newer) >= best(&older) { newer } else { older }
}

/// Whether there is a way there, whether our own address there is of the same kind, and the rank of
/// that kind.
fn merit(to: IpAddr, source: Option<IpAddr>) -> (bool, bool, u8) {
    let (rank, kind) = policy(to);
    (source.is_some(), source.is_some_and(|from| policy(from).1 == kind), rank)
}

/// The address from which packets would go there. Nothing is sent.
fn source(to: IpAddr) -> Option<IpAddr> {
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(SocketAddr::new(to, 53)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Precedence and label of the default policy table.
fn policy(address: IpAddr) -> (u8, u8) {
    let IpAddr::V6(address) = address else {
        return (35, 4);
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => (50, 0),
        [0, 0, 0, 0, 0, 0xffff, ..] => (35, 4),
        [0x2002, ..] => (30, 2),
        [0x2001, 0, ..] => (5, 5),
        [first, ..] if first & 0xfe00 == 0xfc00 => (3, 13),
        [0, 0, 0, 0, 0, 0, ..] => (1, 3),
        [first, ..] if first & 0xffc0 == 0xfec0 => (1, 11),
        [0x3ffe, ..] => (1, 12),
        _ => (40, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(addresses: &[&str], sources: &[(&str, &str)], expected: &[&str]) {
        let ip = |text: &&str| text.parse::<IpAddr>().unwrap();
        let source = |to: IpAddr| {
            let found = sources.iter().find(|(known, _)| ip(known) == to);
            found.map(|(_, from)| ip(from))
        };
        let chosen = chosen(addresses.iter().map(ip).collect(), source);
        assert_eq!(chosen, expected.iter().map(ip).collect::<Vec<_>>());
    }

    #[test]
    fn the_family_that_a_program_would_try_first() {
        let both = ["10.0.0.1", "2001:db8::1", "10.0.0.2", "2001:db8::2"];
        let (v4, v6) = (["10.0.0.1", "10.0.0.2"], ["2001:db8::1", "2001:db8::2"]);
        let way4 = ("10.0.0.1", "10.0.0.9");
        let way6 = ("2001:db8::2", "2001:db8::9");
        check(&both, &[way4, way6], &v6);
        check(&both, &[way4], &v4);
        check(&both, &[way6], &v6);
        check(&both, &[], &v6);
        // We have an address of our own house only, and the host one of the Internet.
        check(&both, &[way4, ("2001:db8::2", "fd00::9")], &v4);
        check(&["fd00::1", "10.0.0.1"], &[way4, ("fd00::1", "fd00::9")], &["10.0.0.1"]);
        check(&["10.0.0.1"], &[], &["10.0.0.1"]);
        check(&["2001:db8::2"], &[], &["2001:db8::2"]);
        check(&[], &[], &[]);
        check(&["127.0.0.1", "::1"], &[("127.0.0.1", "127.0.0.1"), ("::1", "::1")], &["::1"]);
    }
}
