//! Settings and the files they name ──▶ configurations of rustls.
//!
//! What clients meet is built at start and at each reload, whole or not at all. What servers meet
//! is built when one is connected to, from the files as they are then; a configuration is used
//! again as long as its settings and files stay the same.

use super::certificate::{Certificate, Validity};
use super::ciphers::{self, Protocols};
use super::verify::{self, Authorities};
use crate::config::settings::Settings;
use crate::config::tls::ServerTls;
use crate::config::values::{AuthType, SslMode};
use crate::sys::error_text;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};
use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The name of PostgreSQL's protocol in ALPN.
pub const PROTOCOL_NAME: &[u8] = b"postgresql";
/// So many configurations for servers are kept.
const MAX_KEPT: usize = 256;

/// Why TLS cannot be set up; a line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupError(String);

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn error<T>(text: impl Into<String>) -> Result<T, SetupError> {
    Err(SetupError(text.into()))
}

/// A file is missing or wrong.
fn file_error<T>(what: &str, file: &str, why: impl fmt::Display) -> Result<T, SetupError> {
    error(format!("TLS setup failed: failed to load {what} file \"{file}\": {why}"))
}

/// What clients meet.
#[derive(Clone, Debug)]
pub struct Side {
    /// The configuration.
    pub config: Arc<ServerConfig>,
    /// What SCRAM-SHA-256-PLUS binds to.
    pub end_point: Option<Arc<[u8]>>,
}

/// TLS on both sides.
#[derive(Debug, Default)]
pub struct Setup {
    clients: Option<Result<Side, String>>,
    servers: HashMap<ServerTls, Kept>,
}

#[derive(Debug)]
struct Kept {
    config: Arc<ClientConfig>,
    files: Vec<Option<Stamp>>,
}

/// What tells a file from what it was before.
type Stamp = (u64, u64, u64, i64, i64);

impl Setup {
    /// Checks the settings and builds what clients meet. Files for servers are looked at when they
    /// are needed.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        check_words(settings)?;
        let clients = match settings.client_tls_sslmode {
            SslMode::Disable => None,
            mode => Some(client_side(settings, mode)?),
        };
        Ok(Self { clients, servers: HashMap::new() })
    }

    /// What a client meets, or why it cannot be served.
    pub fn for_client(&self) -> Result<Side, String> {
        match &self.clients {
            Some(side) => side.clone(),
            None => Err("client_tls_sslmode is disable".to_owned()),
        }
    }

    /// What a server meets.
    pub fn for_server(&mut self, tls: &ServerTls) -> Result<Arc<ClientConfig>, String> {
        let files = [&tls.ca_file, &tls.cert_file, &tls.key_file].map(|file| stamp(file)).to_vec();
        if let Some(kept) = self.servers.get(tls).filter(|kept| kept.files == files) {
            return Ok(Arc::clone(&kept.config));
        }
        let config = Arc::new(server_side(tls)?);
        if self.servers.len() >= MAX_KEPT {
            self.servers.clear();
        }
        self.servers.insert(tls.clone(), Kept { config: Arc::clone(&config), files });
        Ok(config)
    }
}

fn stamp(file: &str) -> Option<Stamp> {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

/// The checks of the contract, in its order.
fn check_words(settings: &Settings) -> Result<(), SetupError> {
    let mode = settings.client_tls_sslmode;
    let has_no_ca = settings.client_tls_ca_file.is_empty();
    let has_no_key = settings.client_tls_key_file.is_empty();
    if mode != SslMode::Disable && (has_no_key || settings.client_tls_cert_file.is_empty()) {
        return error(
            "To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file \
             must be set.",
        );
    }
    if settings.auth_type == AuthType::Cert && mode != SslMode::VerifyFull {
        return error("auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL");
    }
    if settings.auth_type == AuthType::Cert && has_no_ca {
        return error("auth_type=cert requires client_tls_ca_file");
    }
    if mode == SslMode::VerifyFull && has_no_ca {
        return error("client_tls_sslmode requires client_tls_ca_file");
    }
    if settings.server_tls_sslmode != SslMode::Disable {
        let tls = ServerTls::new(settings);
        let protocols = read_words("server_tls", &tls.protocols, &tls.ciphers, &tls.tls13_ciphers)?;
        warn_if_too_old("server_tls_protocols", protocols.0);
    }
    Ok(())
}

/// Protocols and suites, or which setting cannot be read.
fn read_words(
    prefix: &str,
    protocols: &str,
    ciphers: &str,
    tls13_ciphers: &str,
) -> Result<(Protocols, Vec<SupportedCipherSuite>), SetupError> {
    let invalid =
        |setting: &str, text: &str| SetupError(format!("invalid {prefix}{setting}: {text}"));
    let read = ciphers::protocols(protocols).ok_or_else(|| invalid("_protocols", protocols))?;
    let mut suites = Vec::new();
    if read.v13 {
        let new = ciphers::tls13(tls13_ciphers);
        suites.extend(new.ok_or_else(|| invalid("13_ciphers", tls13_ciphers))?);
    }
    suites.extend(ciphers::tls12(ciphers).ok_or_else(|| invalid("_ciphers", ciphers))?);
    Ok((read, suites))
}

fn warn_if_too_old(setting: &str, protocols: Protocols) {
    if protocols.too_old {
        log::warn!("{setting}: TLS 1.0 and 1.1 do not exist here, only 1.2 and 1.3 can be used");
    }
}

fn versions(protocols: Protocols) -> Vec<&'static SupportedProtocolVersion> {
    let new = protocols.v13.then_some(&rustls::version::TLS13);
    let old = protocols.v12.then_some(&rustls::version::TLS12);
    new.into_iter().chain(old).collect()
}

fn provider(
    suites: Vec<SupportedCipherSuite>,
    groups: Option<Vec<&'static dyn SupportedKxGroup>>,
) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = suites;
    if let Some(groups) = groups {
        provider.kx_groups = groups;
    }
    Arc::new(provider)
}

/// Why no handshake can succeed.
fn nothing_left(setting: &str, text: &str) -> String {
    format!("{setting} is \"{text}\", which leaves no protocol that exists here (tlsv1.2, tlsv1.3)")
}

fn client_side(settings: &Settings, mode: SslMode) -> Result<Result<Side, String>, SetupError> {
    let (protocols, suites) = read_words(
        "client_tls",
        &settings.client_tls_protocols,
        &settings.client_tls_ciphers,
        settings.client_tls13_ciphers.as_deref().unwrap_or_default(),
    )?;
    let dheparams = settings.client_tls_dheparams.as_str();
    if !["none", "auto"].iter().any(|word| dheparams.eq_ignore_ascii_case(word)) {
        return error(format!("invalid client_tls_dheparams: {dheparams}"));
    }
    let curve = settings.client_tls_ecdhcurve.as_str();
    // As PgBouncer: the word in the message has an e more than the setting.
    let groups = ciphers::groups(curve)
        .ok_or_else(|| SetupError(format!("invalid client_tls_ecdhecurve: {curve}")))?;
    let ca_file = settings.client_tls_ca_file.as_str();
    let authorities = match ca_file {
        "" => None,
        file => Some(load_authorities(file)?),
    };
    let key = load_key(&settings.client_tls_cert_file, &settings.client_tls_key_file)?;
    warn_if_too_old("client_tls_protocols", protocols);
    let end_point = key.cert.first().and_then(|der| Certificate::parse(der)?.end_point());
    let is_mandatory = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let versions = versions(protocols);
    if versions.is_empty() {
        let text = &settings.client_tls_protocols;
        return Ok(Err(nothing_left("client_tls_protocols", text)));
    }
    let builder = ServerConfig::builder_with_provider(provider(suites, Some(groups)))
        .with_protocol_versions(&versions)
        .map_err(|why| SetupError(format!("TLS setup failed: {why}")))?;
    let mut config = builder
        .with_client_cert_verifier(Arc::new(verify::Clients::new(authorities, is_mandatory)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![PROTOCOL_NAME.to_vec()];
    config.ticketer =
        Ticketer::new().map_err(|why| SetupError(format!("TLS setup failed: {why}")))?;
    config.send_tls13_tickets = 1;
    Ok(Ok(Side { config: Arc::new(config), end_point }))
}

fn server_side(tls: &ServerTls) -> Result<ClientConfig, String> {
    let text = |error: SetupError| error.to_string();
    let (protocols, suites) =
        read_words("server_tls", &tls.protocols, &tls.ciphers, &tls.tls13_ciphers).map_err(text)?;
    let versions = versions(protocols);
    if versions.is_empty() {
        return Err(nothing_left("server_tls_protocols", &tls.protocols));
    }
    // As PgBouncer: without verify- the file of authorities is not even looked at.
    let authorities = match tls.sslmode {
        SslMode::VerifyCa | SslMode::VerifyFull if tls.ca_file.is_empty() => {
            return Err(format!("server_tls_sslmode {} needs server_tls_ca_file", tls.sslmode));
        }
        SslMode::VerifyCa | SslMode::VerifyFull => {
            Some(load_authorities(&tls.ca_file).map_err(text)?)
        }
        _ => None,
    };
    let builder = ClientConfig::builder_with_provider(provider(suites, None))
        .with_protocol_versions(&versions)
        .map_err(|why| format!("TLS setup failed: {why}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::Servers { authorities }));
    let mut config = match (tls.cert_file.as_str(), tls.key_file.as_str()) {
        ("", _) | (_, "") => builder.with_no_client_auth(),
        (cert_file, key_file) => {
            let key = load_key(cert_file, key_file).map_err(text)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    if tls.direct {
        config.alpn_protocols = vec![PROTOCOL_NAME.to_vec()];
    }
    Ok(config)
}

fn load_authorities(file: &str) -> Result<Authorities, SetupError> {
    let certificates = load_certificates("CA", file)?;
    match Authorities::new(certificates) {
        Some(authorities) => Ok(authorities),
        None => file_error("CA", file, "a certificate in it cannot be read"),
    }
}

fn load_certificates(what: &str, file: &str) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let text = std::fs::read(file).or_else(|why| file_error(what, file, error_text(&why)))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => {
            file_error(what, file, "no certificate is in it")
        }
        Ok(certificates) => Ok(certificates),
        Err(why) => file_error(what, file, why),
    }
}

/// A certificate and its key, which must belong together.
fn load_key(cert_file: &str, key_file: &str) -> Result<CertifiedKey, SetupError> {
    let chain = load_certificates("certificate", cert_file)?;
    let Some(certificate) = Certificate::parse(&chain[0]) else {
        return file_error("certificate", cert_file, "the certificate in it cannot be read");
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match certificate.validity(now) {
        Validity::Now => {}
        Validity::Expired => {
            return file_error("certificate", cert_file, "the certificate has expired");
        }
        Validity::NotYet => {
            return file_error("certificate", cert_file, "the certificate is not valid yet");
        }
    }
    let what = "private key";
    let text =
        std::fs::read(key_file).or_else(|why| file_error(what, key_file, error_text(&why)))?;
    let Ok(key) = PrivateKeyDer::from_pem_slice(&text) else {
        return file_error(what, key_file, "no private key is in it that can be read");
    };
    warn_if_open_to_all(key_file);
    let Ok(key) = aws_lc_rs::sign::any_supported_type(&key) else {
        return file_error(what, key_file, "the key is of a kind that cannot be used");
    };
    let fits = key.public_key().is_none_or(|public| public.as_ref() == certificate.key_info);
    if !fits {
        let why = format!("the key does not belong to the certificate in \"{cert_file}\"");
        return file_error(what, key_file, why);
    }
    Ok(CertifiedKey::new(chain, key))
}

fn warn_if_open_to_all(file: &str) {
    let mode = std::fs::metadata(file).map_or(0, |meta| meta.mode());
    if mode & 0o007 != 0 {
        log::warn!(
            "private key file \"{file}\" can be read by everybody (mode {:04o})",
            mode & 0o7777
        );
    }
}
