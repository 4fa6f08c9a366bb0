//! The words with which OpenSSL users name protocols, ciphers and curves, and what rustls has of them.

use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite};

/// A suite, its name as OpenSSL and SHOW print it, and the keywords that mean it among others.
struct Suite {
    suite: SupportedCipherSuite,
    name: &'static str,
    words: &'static [&'static str],
}

/// Those of TLS 1.2, the strongest first. All have forward secrecy and authenticate what they
/// encrypt; OpenSSL's others do not exist here.
static TLS12: [Suite; 6] = [
    Suite {
        suite: cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        name: "ECDHE-ECDSA-AES256-GCM-SHA384",
        words: &["aECDSA", "ECDSA", "AES", "AES256", "AESGCM", "SHA384", "SUITEB192"],
    },
    Suite {
        suite: cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        name: "ECDHE-RSA-AES256-GCM-SHA384",
        words: &["aRSA", "AES", "AES256", "AESGCM", "SHA384"],
    },
    Suite {
        suite: cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        name: "ECDHE-ECDSA-CHACHA20-POLY1305",
        words: &["aECDSA", "ECDSA", "CHACHA20", "SHA256"],
    },
    Suite {
        suite: cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        name: "ECDHE-RSA-CHACHA20-POLY1305",
        words: &["aRSA", "CHACHA20", "SHA256"],
    },
    Suite {
        suite: cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        name: "ECDHE-ECDSA-AES128-GCM-SHA256",
        words: &["aECDSA", "ECDSA", "AES", "AES128", "AESGCM", "SHA256"],
    },
    Suite {
        suite: cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        name: "ECDHE-RSA-AES128-GCM-SHA256",
        words: &["aRSA", "AES", "AES128", "AESGCM", "SHA256"],
    },
];

/// Keywords that mean every one of them.
const ALL_WORDS: [&str; 9] =
    ["ALL", "DEFAULT", "HIGH", "ECDHE", "EECDH", "kECDHE", "kEECDH", "TLSv1.2", "FIPS"];

static TLS13: [(SupportedCipherSuite, &str); 3] = [
    (cipher_suite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
    (cipher_suite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
];

/// The words of `*_tls_ciphers` that leave the choice to the library.
const DEFAULT_WORDS: [&str; 4] = ["default", "secure", "normal", "fast"];

/// Which versions a setting of protocols allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocols {
    /// TLS 1.2
    pub v12: bool,
    /// TLS 1.3
    pub v13: bool,
    /// TLS 1.0 or 1.1, which rustls does not have.
    pub too_old: bool,
}

/// Reads `*_tls_protocols`; `None`: a word that there is not.
///
/// As PgBouncer: blanks before an item do not count, those behind it do.
pub fn protocols(text: &str) -> Option<Protocols> {
    const OLD: u8 = 0b0011;
    const V12: u8 = 0b0100;
    const V13: u8 = 0b1000;
    let mut allowed = 0;
    for item in text.split([',', ':']) {
        let item = item.trim_start_matches([' ', '\t']);
        let (removes, word) = match item.strip_prefix('!') {
            Some(word) => (true, word),
            None => (false, item),
        };
        let versions = match word.to_ascii_lowercase().as_str() {
            "" if text.is_empty() => V12 | V13,
            "all" | "tlsv1" => OLD | V12 | V13,
            "default" | "secure" => V12 | V13,
            "tlsv1.0" => 0b01,
            "tlsv1.1" => 0b10,
            "tlsv1.2" => V12,
            "tlsv1.3" => V13,
            _ => return None,
        };
        allowed = if removes { allowed & !versions } else { allowed | versions };
    }
    Some(Protocols {
        v12: allowed & V12 != 0,
        v13: allowed & V13 != 0,
        too_old: allowed & OLD != 0,
    })
}

/// Reads `*_tls_ciphers`, a list in OpenSSL's syntax: the suites of TLS 1.2 that it leaves, in
/// order. `None`: it leaves none.
pub fn tls12(text: &str) -> Option<Vec<SupportedCipherSuite>> {
    let mut chosen: Vec<&Suite> = Vec::new();
    let mut banned: Vec<&str> = Vec::new();
    if DEFAULT_WORDS.contains(&text) {
        chosen.extend(&TLS12);
    }
    for item in text.split([':', ',', ' ', ';']).filter(|item| !item.is_empty()) {
        if item == "@STRENGTH" {
            chosen.sort_by_key(|suite| TLS12.iter().position(|known| known.name == suite.name));
            continue;
        }
        // Security levels, too: what they forbid is not here.
        if item.starts_with('@') {
            continue;
        }
        let (operator, words) = match item.split_at_checked(1) {
            Some((operator @ ("!" | "-" | "+"), words)) => (operator, words),
            _ => ("", item),
        };
        let meant: Vec<&Suite> = TLS12.iter().filter(|suite| suite.is_meant(words)).collect();
        let is_meant = |suite: &&Suite| meant.iter().any(|meant| meant.name == suite.name);
        match operator {
            "!" => {
                chosen.retain(|suite| !is_meant(suite));
                banned.extend(meant.iter().map(|suite| suite.name));
            }
            "-" => chosen.retain(|suite| !is_meant(suite)),
            "+" => {
                let (moved, kept) = chosen.into_iter().partition::<Vec<_>, _>(is_meant);
                chosen = [kept, moved].concat();
            }
            _ => {
                for suite in meant {
                    let is_new = !chosen.iter().any(|known| known.name == suite.name);
                    if is_new && !banned.contains(&suite.name) {
                        chosen.push(suite);
                    }
                }
            }
        }
    }
    let suites: Vec<_> = chosen.iter().map(|suite| suite.suite).collect();
    (!suites.is_empty()).then_some(suites)
}

impl Suite {
    /// Whether `AESGCM+aRSA`, a keyword or a name means it.
    fn is_meant(&self, words: &str) -> bool {
        words.split('+').all(|word| {
            // `RSA` is the key exchange in OpenSSL, but for years it was the certificate, too.
            self.name == word || self.words.contains(&word) || ALL_WORDS.contains(&word)
        })
    }
}

/// Reads `*_tls13_ciphers`: names with colons between them; empty is all of them. `None`: a name
/// that there is not.
pub fn tls13(text: &str) -> Option<Vec<SupportedCipherSuite>> {
    if text.is_empty() {
        return Some(TLS13.iter().map(|(suite, _)| *suite).collect());
    }
    let find = |name: &str| TLS13.iter().find(|(_, known)| *known == name).map(|(suite, _)| *suite);
    text.split(':').map(find).collect()
}

/// Reads `client_tls_ecdhcurve`: the groups for key exchange, in order. `None`: a name that there
/// is not.
pub fn groups(text: &str) -> Option<Vec<&'static dyn SupportedKxGroup>> {
    // There is no key exchange without a group here: `none` leaves the choice to us, as `auto`.
    if ["auto", "none", ""].iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return Some(vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ]);
    }
    text.split([':', ',']).map(|name| group(name.trim())).collect()
}

fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    let is = |names: &[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is(&["X25519"]) {
        Some(kx_group::X25519)
    } else if is(&["prime256v1", "secp256r1", "P-256"]) {
        Some(kx_group::SECP256R1)
    } else if is(&["secp384r1", "P-384"]) {
        Some(kx_group::SECP384R1)
    } else if is(&["X25519MLKEM768"]) {
        Some(kx_group::X25519MLKEM768)
    } else if is(&["SecP256r1MLKEM768"]) {
        Some(kx_group::SECP256R1MLKEM768)
    } else {
        None
    }
}

/// A suite's name as OpenSSL prints it.
pub fn suite_name(suite: CipherSuite) -> &'static str {
    let old = TLS12.iter().find(|known| known.suite.suite() == suite).map(|known| known.name);
    let new = || TLS13.iter().find(|(known, _)| known.suite() == suite).map(|(_, name)| *name);
    old.or_else(new).unwrap_or("(NONE)")
}

/// A group's name as OpenSSL prints it.
pub fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "prime256v1",
        NamedGroup::secp384r1 => "secp384r1",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::secp256r1MLKEM768 => "SecP256r1MLKEM768",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> String {
        let names = tls12(text).unwrap_or_default();
        let short = |name: &str| name.replace("ECDHE-", "").replace("POLY1305", "").to_lowercase();
        names.iter().map(|suite| short(suite_name(suite.suite()))).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn protocols_are_read_as_the_contract_says() {
        let cases = [
            ("secure", Some((true, true, false))),
            ("Default", Some((true, true, false))),
            ("", Some((true, true, false))),
            ("all", Some((true, true, true))),
            ("tlsv1", Some((true, true, true))),
            ("tlsv1.2", Some((true, false, false))),
            ("TLSv1.3", Some((false, true, false))),
            ("tlsv1.0:tlsv1.1", Some((false, false, true))),
            ("all,!tlsv1.0, !tlsv1.1", Some((true, true, false))),
            ("secure:!tlsv1.2:!tlsv1.3", Some((false, false, false))),
            ("tlsv1.2 ,tlsv1.3", None),
            ("legacy", None),
            ("foo", None),
            ("tlsv1.2,,tlsv1.3", None),
        ];
        for (text, expected) in cases {
            let read = protocols(text).map(|p| (p.v12, p.v13, p.too_old));
            assert_eq!(read, expected, "{text:?}");
        }
    }

    #[test]
    fn cipher_lists_are_those_of_openssl() {
        let all = "ecdsa-aes256-gcm-sha384 rsa-aes256-gcm-sha384 ecdsa-chacha20- rsa-chacha20- \
                   ecdsa-aes128-gcm-sha256 rsa-aes128-gcm-sha256";
        for text in ["default", "secure", "normal", "fast", "HIGH:MEDIUM:+3DES:!aNULL", "ALL"] {
            assert_eq!(names(text), all, "{text}");
        }
        for (text, expected) in [
            ("ECDHE-RSA-AES128-GCM-SHA256", "rsa-aes128-gcm-sha256"),
            ("AES256+aRSA:nonsense", "rsa-aes256-gcm-sha384"),
            ("CHACHA20:!aECDSA", "rsa-chacha20-"),
            ("!aECDSA:ECDHE+CHACHA20", "rsa-chacha20-"),
            ("CHACHA20:-aECDSA:ECDSA+CHACHA20", "rsa-chacha20- ecdsa-chacha20-"),
            ("aRSA+AES:+AES256", "rsa-aes128-gcm-sha256 rsa-aes256-gcm-sha384"),
            (
                "aRSA+AES128:aRSA:@STRENGTH",
                "rsa-aes256-gcm-sha384 rsa-chacha20- rsa-aes128-gcm-sha256",
            ),
            ("HIGH@SECLEVEL", ""),
            ("DEFAULT:@SECLEVEL=2:!AES:!aRSA", "ecdsa-chacha20-"),
            ("all", ""),
            ("legacy", ""),
            ("foo", ""),
            ("AES128-SHA", ""),
            ("", ""),
        ] {
            assert_eq!(names(text), expected, "{text}");
        }
    }

    #[test]
    fn suites_of_tls_13_and_groups_go_by_name() {
        assert_eq!(tls13("").unwrap().len(), 3);
        let read = tls13("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256").unwrap();
        assert_eq!(suite_name(read[0].suite()), "TLS_CHACHA20_POLY1305_SHA256");
        assert!(tls13("TLS_AES_128_GCM_SHA256:foo").is_none());
        for name in ["auto", "none", "X25519", "prime256v1", "P-384", "X25519MLKEM768:X25519"] {
            assert!(groups(name).is_some(), "{name}");
        }
        assert_eq!(groups("x25519mlkem768").unwrap()[0].name(), NamedGroup::X25519MLKEM768);
        assert!(groups("foo").is_none());
        assert!(groups("secp521r1").is_none());
    }
}
