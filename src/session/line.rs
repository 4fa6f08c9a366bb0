//! How a connection's line is protected, and what that tells us about the peer.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The line to a peer.
#[derive(Debug, Default)]
pub enum Line {
    /// Bytes as they are. Leaves to `Starting`.
    #[default]
    Plain,
    /// The handshake is under way, in the shell; nobody else reads or writes. Leaves to `Secured`.
    Starting,
    /// Everything goes through TLS, until the end.
    Secured(Box<Secured>),
}

/// What the handshake has agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secured {
    /// `TLSv1.3`
    pub version: &'static str,
    /// `TLS_AES_256_GCM_SHA384`
    pub cipher: &'static str,
    /// The group of the key exchange, where the cipher's name does not imply that there is a
    /// choice: with TLS 1.2.
    pub group: Option<&'static str>,
    /// Whom the peer's certificate names. Of a client: its certificate has been verified; `None`,
    /// it showed none. Of a server: what was verified depends on the mode.
    pub peer: Option<CertificateNames>,
    /// The hash of the server's certificate that SCRAM-SHA-256-PLUS binds to
    /// (`tls-server-end-point`); of our own certificate, if the peer is a client.
    pub end_point: Option<Arc<[u8]>>,
}

/// The names in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// The subject's CN, if it has exactly one.
    pub common_name: Option<String>,
    /// DNS names of the subjectAltName.
    pub dns: Vec<String>,
    /// IP addresses of the subjectAltName.
    pub addresses: Vec<IpAddr>,
}

impl Line {
    /// What the handshake agreed on, once it has.
    pub fn secured(&self) -> Option<&Secured> {
        match self {
            Line::Secured(secured) => Some(secured),
            Line::Plain | Line::Starting => None,
        }
    }

    /// Whether the handshake is under way.
    pub fn is_starting(&self) -> bool {
        matches!(self, Line::Starting)
    }
}

/// As `login attempt`, `SSL established` and the column `tls` show it.
impl fmt::Display for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.version, self.cipher)?;
        match self.group {
            Some(group) => write!(f, "/ECDH={group}"),
            None => Ok(()),
        }
    }
}

impl CertificateNames {
    /// Whether a client with this certificate is `name`: by an alternative name, else by the CN.
    pub fn is_client(&self, name: &str) -> bool {
        self.has_alternative(name) || self.has_common_name(name)
    }

    /// Whether a server with this certificate is `host`: by an alternative name; by the CN only if
    /// there is no alternative name at all.
    pub fn is_server(&self, host: &str) -> bool {
        let has_none = self.dns.is_empty() && self.addresses.is_empty();
        self.has_alternative(host) || has_none && self.has_common_name(host)
    }

    fn has_alternative(&self, name: &str) -> bool {
        match name.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains(&address),
            Err(_) => self.dns.iter().any(|pattern| matches(pattern, name)),
        }
    }

    fn has_common_name(&self, name: &str) -> bool {
        // An address is no domain: no wildcard stands for a part of one.
        let is_address = name.parse::<IpAddr>().is_ok();
        self.common_name.as_deref().is_some_and(|pattern| match is_address {
            true => pattern == name,
            false => matches(pattern, name),
        })
    }
}

/// Whether a name of a certificate is this one, in capitals or not; `*.a.b` is every `x.a.b`, and
/// nothing deeper.
fn matches(pattern: &str, name: &str) -> bool {
    if name.is_empty() {
        return false;
    }
    if pattern.eq_ignore_ascii_case(name) {
        return true;
    }
    let (Some(domain), Some((label, rest))) = (pattern.strip_prefix("*."), name.split_once('.'))
    else {
        return false;
    };
    // A certificate for a whole top-level domain is nobody's.
    let is_domain = domain.contains('.') && !domain.starts_with('.') && !domain.contains('*');
    is_domain && !label.is_empty() && domain.eq_ignore_ascii_case(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_as_the_contract_says() {
        let cases = [
            ("alice", "alice", true),
            ("ALICE", "alice", true),
            ("alice", "alicea", false),
            ("*.a.b", "x.a.b", true),
            ("*.A.b", "X.a.B", true),
            ("*.a.b", "a.b", false),
            ("*.a.b", ".a.b", false),
            ("*.a.b", "y.x.a.b", false),
            ("*.b", "a.b", false),
            ("*", "a", false),
            ("*.", "a.", false),
            ("x*.a.b", "xy.a.b", false),
            ("", "", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern:?} {name:?}");
        }
    }

    #[test]
    fn a_server_with_other_names_is_not_known_by_its_common_name() {
        let names = CertificateNames {
            common_name: Some("db.example.com".into()),
            dns: vec!["other.example.com".into()],
            addresses: vec!["127.0.0.1".parse().unwrap()],
        };
        assert!(names.is_client("db.example.com") && !names.is_server("db.example.com"));
        assert!(names.is_server("127.0.0.1") && !names.is_server("127.0.0.2"));
        let old = CertificateNames { dns: Vec::new(), addresses: Vec::new(), ..names };
        assert!(old.is_server("db.example.com") && !old.is_server("127.0.0.1"));
        let wild = CertificateNames { common_name: Some("*.0.0.1".into()), ..old };
        assert!(!wild.is_server("127.0.0.1"));
    }

    #[test]
    fn the_tls_string_is_that_of_show() {
        let mut secured =
            Secured { version: "TLSv1.3", cipher: "TLS_AES_256_GCM_SHA384", ..Secured::default() };
        assert_eq!(secured.to_string(), "TLSv1.3/TLS_AES_256_GCM_SHA384");
        secured.version = "TLSv1.2";
        secured.cipher = "ECDHE-RSA-AES256-GCM-SHA384";
        secured.group = Some("X25519");
        assert_eq!(secured.to_string(), "TLSv1.2/ECDHE-RSA-AES256-GCM-SHA384/ECDH=X25519");
    }
}
