//! Clients that speak TLS with us, by every mode and with every kind of certificate.

mod common;

use common::pooler::Ini;
use common::raw::{self, SSL_REQUEST, untagged};
use common::tls::{Certs, Secured, client_config, psql_value};
use common::{PATIENCE, Pooler, Postgres, Startup, temp_dir, wait_for};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// An authority, our certificate, and some clients'.
fn certs() -> Certs {
    let certs = Certs::new();
    certs
        .issue("pooler", "pooler.test", &["localhost", "127.0.0.1"])
        .issue("alice", "alice", &[])
        .issue("other", "nobody", &["ALICE"])
        .issue_expired("late", "alice", &[]);
    certs
}

fn secure(ini: &mut Ini, certs: &Certs, mode: &str) {
    ini.set("client_tls_sslmode", mode)
        .set("client_tls_cert_file", &certs.path("pooler.crt"))
        .set("client_tls_key_file", &certs.path("pooler.key"))
        .set("client_tls_ca_file", &certs.path("ca.crt"));
}

fn start(certs: &Certs, mode: &str) -> Pooler {
    Pooler::start(|ini| secure(ini, certs, mode))
}

fn connect(pooler: &Pooler, rest: &str) -> String {
    format!("host=127.0.0.1 port={} user=alice dbname=app {rest}", pooler.port)
}

fn ask(pooler: &Pooler, rest: &str) -> Result<String, String> {
    psql_value(&connect(pooler, rest), "SELECT 42")
}

fn identity(certs: &Certs, name: &str) -> String {
    let (cert, key) = (format!("{name}.crt"), format!("{name}.key"));
    format!("sslmode=require sslcert={} sslkey={}", certs.path(&cert), certs.path(&key))
}

#[test]
fn psql_speaks_tls_by_every_mode() {
    let certs = certs();
    let ca = certs.path("ca.crt");
    for mode in ["allow", "prefer", "require"] {
        let pooler = start(&certs, mode);
        let is_plain_welcome = mode != "require";
        assert_eq!(ask(&pooler, "sslmode=disable").is_ok(), is_plain_welcome, "{mode}");
        for rest in ["sslmode=prefer", "sslmode=require"] {
            assert_eq!(ask(&pooler, rest).as_deref(), Ok("42"), "{mode} {rest}");
        }
        for rest in ["sslmode=verify-ca", "sslmode=verify-full"] {
            let rest = format!("{rest} sslrootcert={ca}");
            assert_eq!(ask(&pooler, &rest).as_deref(), Ok("42"), "{mode} {rest}");
        }
        assert_eq!(ask(&pooler, &identity(&certs, "alice")).as_deref(), Ok("42"), "{mode}");
        // A certificate that nobody asked for must be a good one all the same.
        assert!(ask(&pooler, &identity(&certs, "late")).is_err(), "{mode}");
        let foreign = Certs::new();
        foreign.issue("alice", "alice", &[]);
        assert!(ask(&pooler, &identity(&foreign, "alice")).is_err(), "{mode}");
        wait_for("the failures in the log", || {
            pooler.log().matches("WARNING C-0x").count() >= 2
                && pooler.log().contains("TLS handshake error: invalid peer certificate: ")
        });
        let tls =
            "login attempt: db=app user=alice tls=TLSv1.3/TLS_AES_256_GCM_SHA384 replication=no";
        assert!(pooler.log().contains(tls), "{}", pooler.log());
    }
}

#[test]
fn without_tls_who_must_have_it_is_refused() {
    let certs = certs();
    let pooler = start(&certs, "require");
    let mut client = pooler.unnamed();
    // Before any parameter is looked at.
    client.send(&Startup::v3().param("nonsense", "1").bytes());
    client.expect_fatal("SSL required");
    let error = ask(&pooler, "sslmode=disable").unwrap_err();
    assert!(error.contains("SSL required"), "{error}");
}

#[test]
fn the_verifying_modes_let_nobody_in_without_a_good_certificate() {
    let certs = certs();
    for mode in ["verify-ca", "verify-full"] {
        let pooler = start(&certs, mode);
        assert_eq!(ask(&pooler, &identity(&certs, "alice")).as_deref(), Ok("42"), "{mode}");
        // Who it names does not matter here: that is what `cert` authentication looks at.
        assert_eq!(ask(&pooler, &identity(&certs, "other")).as_deref(), Ok("42"), "{mode}");
        assert!(ask(&pooler, "sslmode=require").is_err(), "{mode}");
        assert!(ask(&pooler, &identity(&certs, "late")).is_err(), "{mode}");
        let foreign = Certs::new();
        foreign.issue("alice", "alice", &[]);
        assert!(ask(&pooler, &identity(&foreign, "alice")).is_err(), "{mode}");
        assert!(ask(&pooler, "sslmode=disable").unwrap_err().contains("SSL required"));
        wait_for("the reasons in the log", || {
            let log = pooler.log();
            log.contains("TLS handshake error: peer sent no certificates")
                && log
                    .contains("TLS handshake error: invalid peer certificate: certificate expired")
                && log.contains("TLS handshake error: invalid peer certificate: UnknownIssuer")
        });
    }
}

/// §1.1: no TLS over a Unix socket, whatever the mode, and nobody is asked for it there. Its requests
/// are answered as where there is no TLS at all.
#[test]
fn over_a_unix_socket_nobody_needs_tls() {
    let certs = certs();
    for mode in ["allow", "prefer", "require", "verify-ca", "verify-full"] {
        let directory = temp_dir(&Postgres::shared().socket_dir, "plain");
        let pooler = Pooler::start(|ini| {
            secure(ini, &certs, mode);
            ini.set("unix_socket_dir", &directory.to_string_lossy());
        });
        let path = directory.join(format!(".s.PGSQL.{}", pooler.port));
        wait_for("the socket", || UnixStream::connect(&path).is_ok());
        let startup = Startup::v3().param("user", "alice").param("database", "app").bytes();
        for requests in [0, 1, 3] {
            let mut socket = UnixStream::connect(&path).expect("connect");
            socket.set_read_timeout(Some(PATIENCE)).expect("read timeout");
            let mut byte = [0];
            for _ in 0..requests {
                socket.write_all(&untagged(SSL_REQUEST, b"")).expect("send");
                socket.read_exact(&mut byte).expect("an answer");
                assert_eq!(byte, *b"N", "{mode}");
            }
            socket.write_all(&[&startup[..], &raw::terminate()].concat()).expect("send");
            let mut welcome = Vec::new();
            socket.read_to_end(&mut welcome).expect("a welcome");
            assert!(welcome.starts_with(b"R\0\0\0\x08\0\0\0\0"), "{mode}: {welcome:?}");
            assert!(welcome.ends_with(b"Z\0\0\0\x05I"), "{mode}: {welcome:?}");
        }
        // The first byte of TLS is the type of a message there, one that has no place in a login.
        let mut socket = UnixStream::connect(&path).expect("connect");
        socket.set_read_timeout(Some(PATIENCE)).expect("read timeout");
        socket.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).expect("send");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("an end");
        assert_eq!(answer, b"", "{mode}");
        assert!(pooler.log().contains("closing because: bad packet (age="), "{}", pooler.log());
        // With this very pooler, TCP is another matter.
        let is_plain_welcome = ["allow", "prefer"].contains(&mode);
        assert_eq!(ask(&pooler, "sslmode=disable").is_ok(), is_plain_welcome, "{mode}");
    }
}

/// Reliability 7: what is said in the clear before the handshake never counts as said through TLS.
#[test]
fn bytes_behind_an_ssl_request_are_refused() {
    let certs = certs();
    let pooler = start(&certs, "prefer");
    for code in [SSL_REQUEST, raw::GSSENC_REQUEST] {
        let what = if code == SSL_REQUEST { "SSL request" } else { "GSSAPI encryption request" };
        let mut client = pooler.unnamed();
        let startup = Startup::v3().param("user", "alice").bytes();
        client.send(&[untagged(code, b""), startup].concat());
        client.expect_fatal(&format!("received unencrypted data after {what}"));
    }
    let mut client = pooler.unnamed();
    client.send(&[untagged(SSL_REQUEST, b""), vec![0x16, 3, 1]].concat());
    client.expect_fatal("received unencrypted data after SSL request");
}

#[test]
fn tls_may_begin_without_asking() {
    let certs = certs();
    let pooler = start(&certs, "require");
    for alpn in [&[][..], &["postgresql"], &["http/1.1", "postgresql"]] {
        let mut client = Secured::direct(pooler.port, client_config(None, alpn)).unwrap();
        client.log_in();
        assert_eq!(client.value("SELECT 42"), "42", "{alpn:?}");
    }
    // Who means another protocol has not come to us.
    for alpn in [&["http/1.1"][..], &["postgres"]] {
        let refused = Secured::direct(pooler.port, client_config(None, alpn)).err().unwrap();
        assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
        assert!(Secured::ask(pooler.port, client_config(None, alpn)).is_err(), "{alpn:?}");
    }
    // Where there is no TLS, that is no packet.
    let pooler = Pooler::start(|_| ());
    assert!(Secured::direct(pooler.port, client_config(None, &[])).is_err());
    let mut client = pooler.unnamed();
    client.send(&untagged(SSL_REQUEST, b""));
    assert_eq!(client.byte(), Some(b'N'));
}

#[test]
fn tls_within_tls_is_refused() {
    let certs = certs();
    let pooler = start(&certs, "require");
    let mut client = Secured::ask(pooler.port, client_config(None, &[])).unwrap();
    client.send(&untagged(SSL_REQUEST, b""));
    assert_eq!(client.message(), None);
    wait_for("the reason", || pooler.log().contains("closing because: SSL req inside SSL"));
}

#[test]
fn old_ciphers_and_versions_can_be_chosen() {
    let certs = certs();
    let pooler = Pooler::start(|ini| {
        secure(ini, &certs, "require");
        ini.set("client_tls_protocols", "tlsv1.2").set("client_tls_ecdhcurve", "prime256v1");
        ini.set("client_tls_ciphers", "HIGH:!AES256:!CHACHA20");
    });
    assert_eq!(ask(&pooler, "sslmode=require").as_deref(), Ok("42"));
    let tls = "tls=TLSv1.2/ECDHE-ECDSA-AES128-GCM-SHA256/ECDH=prime256v1 replication=no";
    assert!(pooler.log().contains(tls), "{}", pooler.log());
    let too_new = ask(&pooler, "sslmode=require ssl_min_protocol_version=TLSv1.3");
    assert!(too_new.unwrap_err().contains("protocol version"));
}

#[test]
fn where_no_protocol_is_left_the_log_says_why() {
    let certs = certs();
    let pooler = Pooler::start(|ini| {
        secure(ini, &certs, "prefer");
        ini.set("client_tls_protocols", "tlsv1.0,tlsv1.1");
    });
    assert!(pooler.log().contains("WARNING client_tls_protocols: TLS 1.0 and 1.1 do not exist"));
    assert_eq!(ask(&pooler, "sslmode=disable").as_deref(), Ok("42"));
    assert!(ask(&pooler, "sslmode=require").is_err());
    let why = "TLS handshake error: client_tls_protocols is \"tlsv1.0,tlsv1.1\", which leaves no \
               protocol that exists here (tlsv1.2, tlsv1.3)";
    wait_for("the reason", || pooler.log().contains(why));
}

#[test]
fn large_results_and_large_copies_pass_unchanged() {
    let certs = certs();
    let pooler = start(&certs, "require");
    let rows = "SELECT md5(string_agg(md5(i::text), '')) FROM generate_series(1, 200000) i";
    let all = "SELECT md5(i::text) FROM generate_series(1, 200000) i";
    let connect = connect(&pooler, "sslmode=require");
    let expected = psql_value(&connect, rows).unwrap();
    let text = psql_value(&connect, all).unwrap().replace('\n', "");
    assert_eq!(text.len(), 200_000 * 32);
    let mut client = Secured::ask(pooler.port, client_config(None, &[])).unwrap();
    client.log_in();
    // All of it in one message, there and back.
    client.send(&raw::query(&format!("SELECT md5('{text}'), '{text}'")));
    let answer = client.until_ready();
    let row = answer.iter().find(|message| message.tag == b'D').expect("a row").columns();
    assert_eq!(row[0], expected);
    assert!(row[1] == text, "6 MB come back as they went");
}

/// `cert`: the certificate names the user, by CN or another name, in capitals or not; or by a map.
#[test]
fn a_certificate_proves_who_a_client_is() {
    let certs = certs();
    certs.write("ident", "staff nobody alice\n");
    certs.write(
        "hba",
        "hostssl app alice 127.0.0.1/32 cert\nhostssl postgres all all cert map=staff\n",
    );
    let pooler = Pooler::start(|ini| {
        secure(ini, &certs, "verify-full");
        ini.set("auth_type", "cert");
    });
    for name in ["alice", "other"] {
        assert_eq!(ask(&pooler, &identity(&certs, name)).as_deref(), Ok("42"), "{name}");
    }
    let mapped = Pooler::start(|ini| {
        secure(ini, &certs, "verify-full");
        ini.set("auth_type", "hba").set("auth_hba_file", &certs.path("hba"));
        ini.set("auth_ident_file", &certs.path("ident"));
    });
    let of = |name: &str, user: &str, database: &str| {
        let rest = identity(&certs, name);
        let port = mapped.port;
        let connect = format!("host=127.0.0.1 port={port} user={user} dbname={database} {rest}");
        psql_value(&connect, "SELECT 42")
    };
    assert_eq!(of("alice", "alice", "app").as_deref(), Ok("42"));
    assert_eq!(of("other", "alice", "postgres").as_deref(), Ok("42"), "by the map");
    for (name, user, database) in [("alice", "alice", "postgres"), ("other", "bob", "postgres")] {
        let error = of(name, user, database).unwrap_err();
        assert!(error.contains("certificate authentication failed"), "{name} {user}: {error}");
    }
}

#[test]
fn scram_is_bound_to_the_channel() {
    let certs = certs();
    let pooler = Pooler::start(|ini| {
        secure(ini, &certs, "prefer");
        ini.set("auth_type", "scram-sha-256");
    });
    let ask = |rest: &str| ask(&pooler, &format!("password=secret {rest}"));
    for rest in ["channel_binding=require", "channel_binding=prefer", "channel_binding=disable"] {
        assert_eq!(ask(&format!("sslmode=require {rest}")).as_deref(), Ok("42"), "{rest}");
    }
    assert!(ask("sslmode=disable channel_binding=require").is_err());
    assert_eq!(ask("sslmode=disable").as_deref(), Ok("42"));
}
