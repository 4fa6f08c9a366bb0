//! TLS as its settings and files have it: directly towards servers, key exchanges, and files that
//! are of no use.

mod common;

use common::fake::{FakeServer, one_row, welcome};
use common::raw::query;
use common::tls::{Certs, Secured};
use common::{Pooler, wait_for_some};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, NamedGroup, ServerConfig, ServerConnection, StreamOwned};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

/// What a server of the kind that is spoken to without asking has seen of us.
#[derive(Default)]
struct Seen {
    name: Option<String>,
    protocol: Option<Vec<u8>>,
}

fn server_config(certs: &Certs, name: &str) -> Arc<ServerConfig> {
    let file = |kind: &str| certs.path(&format!("{name}.{kind}"));
    let chain = CertificateDer::pem_file_iter(file("crt")).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Arc::new(config)
}

/// Reads one message, tagged or not, and forgets it.
fn skip(tls: &mut impl Read, is_tagged: bool) -> bool {
    let mut header = vec![0; 4 + usize::from(is_tagged)];
    if tls.read_exact(&mut header).is_err() {
        return false;
    }
    let length = u32::from_be_bytes(header[header.len() - 4..].try_into().unwrap());
    tls.read_exact(&mut vec![0; length as usize - 4]).is_ok()
}

/// As PostgreSQL 17: TLS from the first byte on, the protocol named, and the host told, even when
/// the certificate is not looked at.
#[test]
fn a_server_is_spoken_to_directly_and_told_its_name() {
    let certs = Certs::new();
    certs.issue("server", "localhost", &["localhost"]);
    let (config, seen) = (server_config(&certs, "server"), Arc::new(Mutex::new(Seen::default())));
    let noted = seen.clone();
    let server = FakeServer::start(move |visit| {
        let connection = ServerConnection::new(config.clone()).unwrap();
        let mut tls = StreamOwned::new(connection, visit.stream.try_clone().unwrap());
        // The Startup comes first in it: nobody has asked whether TLS is spoken.
        if !skip(&mut tls, false) {
            return;
        }
        *noted.lock().unwrap() = Seen {
            name: tls.conn.server_name().map(str::to_owned),
            protocol: tls.conn.alpn_protocol().map(<[u8]>::to_vec),
        };
        tls.write_all(&welcome()).unwrap();
        while skip(&mut tls, true) {
            tls.write_all(&one_row("direct")).unwrap();
        }
    });
    for mode in ["require", "verify-full"] {
        let pooler = Pooler::start(|ini| {
            ini.database(
                "app",
                &format!("host=localhost port={} dbname=x user=alice", server.port),
            );
            ini.set("server_tls_sslmode", mode).set("server_tls_direct", "1");
            ini.set("server_tls_ca_file", &certs.path("ca.crt"));
        });
        let mut client = pooler.raw("alice");
        client.send(&query("SELECT 1"));
        assert_eq!(client.until_ready()[1].columns(), ["direct"], "{mode}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.name.as_deref(), Some("localhost"), "{mode}");
        assert_eq!(seen.protocol.as_deref(), Some(&b"postgresql"[..]), "{mode}");
    }
}

/// The key exchange that quantum computers are said not to break, and one that they do.
#[test]
fn key_exchanges_can_be_chosen() {
    let certs = Certs::new();
    certs.issue("pooler", "localhost", &["localhost"]);
    let offer = |groups: &[NamedGroup]| {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = aws_lc_rs::ALL_KX_GROUPS.to_vec();
        provider.kx_groups.retain(|group| groups.contains(&group.name()));
        let config = ClientConfig::builder_with_provider(Arc::new(provider));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certs.path("ca.crt")).unwrap()).unwrap();
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    };
    use NamedGroup::{X25519, X25519MLKEM768, secp256r1};
    for (setting, group, other) in
        [("X25519MLKEM768", X25519MLKEM768, X25519), ("prime256v1", secp256r1, X25519)]
    {
        let pooler = Pooler::start(|ini| {
            ini.set("client_tls_sslmode", "require").set("client_tls_ecdhcurve", setting);
            ini.set("client_tls_cert_file", &certs.path("pooler.crt"));
            ini.set("client_tls_key_file", &certs.path("pooler.key"));
        });
        let mut client = Secured::ask(pooler.port, offer(&[group])).expect("its answer");
        client.log_in();
        let used = client.tls.conn.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(used, Some(group));
        let refused = Secured::ask(pooler.port, offer(&[other]));
        assert!(refused.is_err(), "{other:?} was not offered");
    }
}

/// A private key that everybody can read is used, and the log says so.
#[test]
fn a_key_that_others_can_read_is_warned_of() {
    let certs = Certs::new();
    certs.issue("pooler", "localhost", &[]);
    let key = certs.path("pooler.key");
    for (mode, warned) in [(0o600, false), (0o644, true)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let pooler = Pooler::start(|ini| {
            ini.set("client_tls_sslmode", "allow").set("client_tls_key_file", &key);
            ini.set("client_tls_cert_file", &certs.path("pooler.crt"));
        });
        let said = pooler.log().lines().any(|line| line.contains("WARNING") && line.contains(&key));
        assert_eq!(said, warned, "{mode:o}\n{}", pooler.log());
    }
}

/// Files that are of no use: no start, with a word that names the file.
#[test]
fn useless_files_are_no_start() {
    let certs = Certs::new();
    certs.issue("pooler", "localhost", &[]).issue("other", "other", &[]);
    certs.write("noise.crt", "noise");
    let path = |name: &str| certs.path(name);
    let missing = path("missing.crt");
    let cases = [
        (path("pooler.crt"), path("other.key"), path("ca.crt"), path("other.key")),
        (missing.clone(), path("pooler.key"), path("ca.crt"), missing.clone()),
        (path("noise.crt"), path("pooler.key"), path("ca.crt"), path("noise.crt")),
        (path("pooler.crt"), path("noise.crt"), path("ca.crt"), path("noise.crt")),
        (path("pooler.crt"), path("pooler.key"), missing.clone(), missing),
    ];
    for (certificate, key, authority, named) in cases {
        let running = Pooler::start(|ini| {
            ini.set("client_tls_sslmode", "disable");
        });
        let mut child = running.start_with(|ini| {
            ini.set("client_tls_sslmode", "verify-full").set("client_tls_cert_file", &certificate);
            ini.set("client_tls_key_file", &key).set("client_tls_ca_file", &authority);
        });
        let status = wait_for_some("its end", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(1));
        let log = running.log();
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains(&named)), "{log}");
        assert!(log.contains("FATAL TLS setup failed"), "{log}");
    }
}

/// The log-in of a client that is told by hba that it comes the wrong way.
#[test]
fn hba_tells_lines_with_tls_from_those_without() {
    let certs = Certs::new();
    certs.issue("pooler", "localhost", &[]);
    certs.write("hba", "hostnossl app alice all trust\nhostssl app bob all trust\n");
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "hba").set("auth_hba_file", &certs.path("hba"));
        ini.set("client_tls_sslmode", "allow")
            .set("client_tls_key_file", &certs.path("pooler.key"));
        ini.set("client_tls_cert_file", &certs.path("pooler.crt"));
    });
    let connect = |user: &str, mode: &str| {
        let words =
            format!("host=127.0.0.1 port={} user={user} dbname=app sslmode={mode}", pooler.port);
        common::tls::psql_value(&words, "SELECT 42")
    };
    assert_eq!(connect("alice", "disable"), Ok("42".to_owned()));
    assert_eq!(connect("bob", "require"), Ok("42".to_owned()));
    assert!(connect("alice", "require").unwrap_err().contains("no authentication method is found"));
    assert!(connect("bob", "disable").unwrap_err().contains("no authentication method is found"));
}
