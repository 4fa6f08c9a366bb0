//! Certificates made for the moment, clients that speak TLS, and a PostgreSQL that does.

use super::raw::{Message, SSL_REQUEST, untagged};
use super::{Lease, PATIENCE, Postgres, Startup, account, postgresql, sys, temp_dir, wait_for};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory with an authority's certificate in `ca.crt`, and `NAME.crt` and `NAME.key` of
/// whomever it certifies. Removed with the shared PostgreSQL.
pub struct Certs {
    pub dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Certs {
    /// A new authority.
    pub fn new() -> Certs {
        let dir = temp_dir(&Postgres::shared().socket_dir, "certs");
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let mut params = params(&format!("Test Authority {serial}"), &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let certs = Certs { dir, issuer: Issuer::new(params, key) };
        certs.write("ca.crt", &certificate.pem());
        certs
    }

    /// Certifies somebody: the subject's CN, and other names.
    pub fn issue(&self, name: &str, common_name: &str, others: &[&str]) -> &Certs {
        self.sign(name, params(common_name, others))
    }

    /// As [`Certs::issue`], of long ago.
    pub fn issue_expired(&self, name: &str, common_name: &str, others: &[&str]) -> &Certs {
        let mut params = params(common_name, others);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.sign(name, params)
    }

    /// As [`Certs::issue`], with a key that is slow to sign with.
    pub fn issue_slow(&self, name: &str, common_name: &str) -> &Certs {
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_4096);
        self.sign_key(name, params(common_name, &[]), key.expect("a key"))
    }

    fn sign(&self, name: &str, params: CertificateParams) -> &Certs {
        self.sign_key(name, params, KeyPair::generate().expect("a key"))
    }

    fn sign_key(&self, name: &str, params: CertificateParams, key: KeyPair) -> &Certs {
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        self.write(&format!("{name}.crt"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
        self
    }

    /// Writes a file that its reader alone can read.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        fs::write(&path, text).expect("write a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        if let Some(account) = account() {
            std::os::unix::fs::chown(&path, Some(account.uid), Some(account.gid)).expect("chown");
        }
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}

fn params(common_name: &str, others: &[&str]) -> CertificateParams {
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(others).expect("names");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(2019, 1, 1);
    params.not_after = date_time_ymd(2090, 1, 1);
    params
}

/// What `psql` says to this connection string and query; not even `~/.postgresql` helps it.
pub fn psql(connect: &str, sql: &str) -> Output {
    let mut command = Command::new("psql");
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
    command.args(["-X", "-A", "-t", "-w", "-c", sql, "-d", connect]);
    command.stdin(Stdio::null()).output().expect("run psql")
}

/// What it prints, less the line break; a failure is shown.
pub fn psql_value(connect: &str, sql: &str) -> Result<String, String> {
    let output = psql(connect, sql);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// Believes every server.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client's configuration: the certificate it shows, and the protocols it offers.
pub fn client_config(identity: Option<(&Certs, &str)>, alpn: &[&str]) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certs, name)) => {
            let read = |end: &str| fs::read(certs.dir.join(format!("{name}.{end}"))).expect("read");
            let chain = CertificateDer::from_pem_slice(&read("crt")).expect("a certificate");
            let key = PrivateKeyDer::from_pem_slice(&read("key")).expect("a key");
            builder.with_client_auth_cert(vec![chain], key).expect("a pair")
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A raw client through TLS.
pub struct Secured {
    pub tls: StreamOwned<ClientConnection, TcpStream>,
}

impl Secured {
    /// Asks for TLS first, and shakes hands.
    pub fn ask(port: u16, config: Arc<ClientConfig>) -> std::io::Result<Secured> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
        stream.write_all(&untagged(SSL_REQUEST, b""))?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        assert_eq!(answer, *b"S", "the answer to SSLRequest");
        Secured::shake(stream, config)
    }

    /// Begins with TLS at once.
    pub fn direct(port: u16, config: Arc<ClientConfig>) -> std::io::Result<Secured> {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
        Secured::shake(stream, config)
    }

    fn shake(mut stream: TcpStream, config: Arc<ClientConfig>) -> std::io::Result<Secured> {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut connection = ClientConnection::new(config, name).expect("a connection");
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Secured { tls: StreamOwned::new(connection, stream) })
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.tls.write_all(bytes).and_then(|()| self.tls.flush());
    }

    /// The next message; `None` at the end, be it orderly or not.
    pub fn message(&mut self) -> Option<Message> {
        let mut head = [0; 5];
        self.tls.read_exact(&mut head).ok()?;
        let len = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
        let mut body = vec![0; usize::try_from(len).expect("fits").saturating_sub(4)];
        self.tls.read_exact(&mut body).ok()?;
        Some(Message { tag: head[0], body })
    }

    /// All messages up to ReadyForQuery or the end.
    pub fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.message() {
            let is_last = message.tag == b'Z';
            messages.push(message);
            if is_last {
                break;
            }
        }
        messages
    }

    /// Logs in as alice to `app`; what came.
    pub fn log_in(&mut self) -> Vec<Message> {
        self.send(&Startup::v3().param("user", "alice").param("database", "app").bytes());
        self.until_ready()
    }

    /// The first value of a query's answer.
    pub fn value(&mut self, sql: &str) -> String {
        self.send(&super::raw::query(sql));
        let answer = self.until_ready();
        let row = answer.iter().find(|message| message.tag == b'D');
        row.unwrap_or_else(|| panic!("no row: {answer:?}")).columns().swap_remove(0)
    }
}

/// A PostgreSQL of one test's own that speaks TLS. It ends with the test.
pub struct SecurePostgres {
    child: Child,
    pub port: u16,
    pub dir: PathBuf,
    _lease: Lease,
}

impl SecurePostgres {
    /// Shows `server.crt` of these, and believes their authority; `settings` are lines of
    /// postgresql.conf, `hba` those of pg_hba.conf for TCP.
    pub fn start(certs: &Certs, server: &str, settings: &str, hba: &str) -> SecurePostgres {
        let dir = temp_dir(&Postgres::shared().socket_dir, "secure");
        let data = dir.join("data");
        let bin = postgresql::bin_dir();
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "-D"]).arg(&data);
        let made = as_account(&mut initdb).output().expect("run initdb");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let lease = Lease::take();
        let conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nfsync = off\n\
             shared_buffers = 16MB\nssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n\
             ssl_ca_file = '{}'\n{settings}\n",
            lease.port,
            dir.display(),
            certs.path(&format!("{server}.crt")),
            certs.path(&format!("{server}.key")),
            certs.path("ca.crt"),
        );
        fs::write(data.join("postgresql.conf"), conf).expect("write postgresql.conf");
        let hba = format!("local all all trust\n{hba}\n");
        fs::write(data.join("pg_hba.conf"), hba).expect("write pg_hba.conf");
        let log = fs::File::create(dir.join("log")).expect("create the log");
        let mut command = Command::new(bin.join("postgres"));
        command.arg("-D").arg(&data);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        sys::die_with_parent(as_account(&mut command));
        let child = command.spawn().expect("start postgres");
        let server = SecurePostgres { child, port: lease.port, dir, _lease: lease };
        let socket = server.dir.to_string_lossy().into_owned();
        let connect = format!("host={socket} port={} user=postgres dbname=postgres", server.port);
        wait_for("the secure PostgreSQL", || psql_value(&connect, "SELECT 1").is_ok());
        psql_value(&connect, "CREATE ROLE alice LOGIN SUPERUSER PASSWORD 'secret'").expect("alice");
        psql_value(&connect, "CREATE DATABASE app").expect("app");
        server
    }

    /// For `[databases]`.
    pub fn connect_string(&self) -> String {
        format!("host=127.0.0.1 port={} dbname=app user=alice", self.port)
    }
}

fn as_account(command: &mut Command) -> &mut Command {
    if let Some(account) = account() {
        command.uid(account.uid).gid(account.gid);
    }
    command.current_dir(Path::new("/"))
}

impl Drop for SecurePostgres {
    fn drop(&mut self) {
        // An orderly end, or its children go on for a while.
        sys::kill(self.child.id(), libc::SIGQUIT);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
