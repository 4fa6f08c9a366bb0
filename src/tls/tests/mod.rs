//! Settings that can be used, and what is said of those that cannot.

use super::Setup;
use super::certificate::{Certificate, Validity};
use crate::config::Config;
use crate::config::tls::ServerTls;
use crate::session::line::CertificateNames;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of this test's own, removed at its end.
struct Files(PathBuf);

impl Files {
    fn new() -> Files {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringbouncer-tls-{}-{serial}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Files(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// A certificate and its key.
    fn issue(&self, name: &str, until: i32) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.test".into(), "::1".into()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "käthe");
        params.not_before = date_time_ymd(2019, 2, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        certificate.der().to_vec()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn set_up(lines: &str) -> Result<Setup, String> {
    let text = format!("[pgbouncer]\n{lines}\n");
    let config = Config::parse_text("test.ini", &text).unwrap();
    Setup::new(&config.settings).map_err(|error| error.to_string())
}

#[test]
fn settings_that_cannot_be_are_refused_with_the_known_words() {
    let files = Files::new();
    files.issue("good", 2090);
    let pair = format!(
        "client_tls_cert_file = {}\nclient_tls_key_file = {}\n",
        files.path("good.crt"),
        files.path("good.key")
    );
    let ca = format!("client_tls_ca_file = {}\n", files.path("good.crt"));
    let need_files = "To allow TLS connections from clients, client_tls_key_file and \
                      client_tls_cert_file must be set.";
    let cases = [
        ("client_tls_sslmode = prefer", need_files),
        ("client_tls_sslmode = require\nclient_tls_cert_file = x", need_files),
        ("auth_type = cert", "auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL"),
        (
            &format!("auth_type = cert\nclient_tls_sslmode = verify-full\n{pair}"),
            "auth_type=cert requires client_tls_ca_file",
        ),
        (
            &format!("client_tls_sslmode = verify-full\n{pair}"),
            "client_tls_sslmode requires client_tls_ca_file",
        ),
        ("server_tls_protocols = foo", "invalid server_tls_protocols: foo"),
        ("server_tls_ciphers = foo", "invalid server_tls_ciphers: foo"),
        ("server_tls13_ciphers = foo", "invalid server_tls13_ciphers: foo"),
    ];
    for (lines, words) in cases {
        assert_eq!(set_up(lines).err().as_deref(), Some(words), "{lines}");
    }
    for (setting, words) in [
        ("client_tls_protocols = foo", "invalid client_tls_protocols: foo"),
        ("client_tls_ciphers = foo", "invalid client_tls_ciphers: foo"),
        ("client_tls13_ciphers = foo", "invalid client_tls13_ciphers: foo"),
        ("client_tls_dheparams = legacy", "invalid client_tls_dheparams: legacy"),
        ("client_tls_ecdhcurve = foo", "invalid client_tls_ecdhecurve: foo"),
    ] {
        let lines = format!("client_tls_sslmode = prefer\n{pair}{setting}");
        assert_eq!(set_up(&lines).err().as_deref(), Some(words), "{setting}");
        // Nobody looks at what is not used.
        assert!(set_up(setting).is_ok(), "{setting}");
    }
    assert!(
        set_up(&format!("auth_type = cert\nclient_tls_sslmode = verify-full\n{pair}{ca}")).is_ok()
    );
    assert!(set_up("server_tls_sslmode = disable\nserver_tls_ciphers = foo").is_ok());
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    let files = Files::new();
    files.issue("good", 2090);
    files.issue("other", 2090);
    files.issue("late", 2020);
    fs::write(files.path("empty"), "").unwrap();
    fs::write(files.path("broken"), "-----BEGIN CERTIFICATE-----\n%%\n").unwrap();
    let missing = "No such file or directory";
    let expired = "the certificate has expired";
    let none = "no certificate is in it";
    let belongs =
        format!("the key does not belong to the certificate in \"{}\"", files.path("good.crt"));
    for (cert, key, what, file, why) in [
        ("missing", "good.key", "certificate", "missing", missing),
        ("good.crt", "missing", "private key", "missing", missing),
        ("empty", "good.key", "certificate", "empty", none),
        ("good.key", "good.key", "certificate", "good.key", none),
        ("good.crt", "empty", "private key", "empty", "no private key is in it that can be read"),
        ("late.crt", "late.key", "certificate", "late.crt", expired),
        ("good.crt", "other.key", "private key", "other.key", &belongs),
    ] {
        let lines = format!(
            "client_tls_sslmode = prefer\nclient_tls_cert_file = {}\nclient_tls_key_file = {}",
            files.path(cert),
            files.path(key)
        );
        let path = files.path(file);
        let words = format!("TLS setup failed: failed to load {what} file \"{path}\": {why}");
        assert_eq!(set_up(&lines).err(), Some(words), "{cert} {key}");
    }
    let lines = format!(
        "client_tls_sslmode = prefer\nclient_tls_cert_file = {0}.crt\nclient_tls_key_file = {0}.key\n\
         client_tls_ca_file = {1}",
        files.path("good"),
        files.path("broken")
    );
    let error = set_up(&lines).err().unwrap();
    let words = format!("TLS setup failed: failed to load CA file \"{}\": ", files.path("broken"));
    assert!(error.starts_with(&words), "{error}");
}

#[test]
fn files_for_servers_are_read_when_they_are_needed_and_again_when_they_change() {
    let files = Files::new();
    let mut setup =
        set_up("server_tls_sslmode = verify-full\nserver_tls_ca_file = missing").unwrap();
    let tls = ServerTls {
        sslmode: crate::config::values::SslMode::VerifyCa,
        protocols: "secure".into(),
        ciphers: "default".into(),
        ca_file: files.path("ca.crt"),
        ..ServerTls::default()
    };
    let error = setup.for_server(&tls).err().unwrap();
    assert!(error.contains("failed to load CA file") && error.contains("ca.crt"), "{error}");
    files.issue("ca", 2090);
    let first = setup.for_server(&tls).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &setup.for_server(&tls).unwrap()));
    files.issue("new", 2090);
    fs::rename(files.path("new.crt"), files.path("ca.crt")).unwrap();
    assert!(!std::sync::Arc::ptr_eq(&first, &setup.for_server(&tls).unwrap()));
}

#[test]
fn a_certificate_is_taken_apart() {
    let files = Files::new();
    let der = files.issue("good", 2090);
    let certificate = Certificate::parse(&der).unwrap();
    let names = CertificateNames {
        common_name: Some("käthe".into()),
        dns: vec!["a.test".into()],
        addresses: vec!["::1".parse().unwrap()],
    };
    assert_eq!(certificate.names(), names);
    assert!(!certificate.is_v1);
    let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    assert_eq!(certificate.end_point().as_deref(), Some(expected.as_ref()));
    let february = 1_548_979_200; // 2019-02-01
    assert_eq!(certificate.validity(february - 1), Validity::NotYet);
    assert_eq!(certificate.validity(february), Validity::Now);
    assert_eq!(certificate.validity(3_786_912_001), Validity::Expired);
    // Cut or changed anywhere it is refused or read as something else, without harm.
    for at in 0..der.len() {
        if let Some(cut) = Certificate::parse(&der[..at]) {
            cut.names();
        }
        for bit in 0..8 {
            let mut changed = der.clone();
            changed[at] ^= 1 << bit;
            if let Some(changed) = Certificate::parse(&changed) {
                changed.names();
                changed.end_point();
                changed.validity(0);
            }
        }
    }
}
