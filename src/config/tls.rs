//! What the settings say of TLS with servers, for one database.

use super::entries::Database;
use super::settings::Settings;
use super::values::SslMode;

/// Everything that decides how a server is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// How much TLS is asked for.
    pub sslmode: SslMode,
    /// `server_tls_protocols`
    pub protocols: String,
    /// `server_tls_ciphers`
    pub ciphers: String,
    /// `server_tls13_ciphers`
    pub tls13_ciphers: String,
    /// The authorities for the server's certificate.
    pub ca_file: String,
    /// Our certificate.
    pub cert_file: String,
    /// Its key.
    pub key_file: String,
    /// Whether TLS starts without asking first.
    pub direct: bool,
}

impl ServerTls {
    /// What the settings say for all databases.
    pub fn new(settings: &Settings) -> Self {
        Self {
            sslmode: settings.server_tls_sslmode,
            protocols: settings.server_tls_protocols.clone(),
            ciphers: settings.server_tls_ciphers.clone(),
            tls13_ciphers: settings.server_tls13_ciphers.clone().unwrap_or_default(),
            ca_file: settings.server_tls_ca_file.clone(),
            cert_file: settings.server_tls_cert_file.clone(),
            key_file: settings.server_tls_key_file.clone(),
            direct: settings.server_tls_direct.is_on(),
        }
    }

    /// The same for one database, whose entry may say otherwise.
    pub fn of(&self, database: &Database) -> Self {
        let own = |own: &Option<String>, all: &String| own.as_ref().unwrap_or(all).clone();
        Self {
            sslmode: database.tls_sslmode.unwrap_or(self.sslmode),
            ca_file: own(&database.tls_ca_file, &self.ca_file),
            cert_file: own(&database.tls_cert_file, &self.cert_file),
            key_file: own(&database.tls_key_file, &self.key_file),
            ..self.clone()
        }
    }

    /// Whether a server connected with the one is of no use for the other. As PgBouncer: names of
    /// files are compared, not what is in them, and the suites of TLS 1.3 count for new
    /// connections only.
    pub fn differs(&self, other: &Self) -> bool {
        Self { tls13_ciphers: String::new(), ..self.clone() }
            != Self { tls13_ciphers: String::new(), ..other.clone() }
    }
}
