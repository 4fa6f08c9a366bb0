//! Whether the peer's certificate is good.
//!
//! webpki decides about chains. Two kinds of certificate that it refuses are common among
//! PostgreSQL servers, and OpenSSL takes them: one that is itself in the file of authorities (made
//! by `openssl req -x509`, hence marked as an authority), and one of version 1 that an authority
//! signed directly. Those two are decided here.
//!
//! Names are not looked at here: see [`super::stream`].

use super::certificate::{Certificate, Validity};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use std::sync::Arc;

fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

/// Whom we believe: the certificates of a CA file.
#[derive(Debug)]
pub struct Authorities {
    roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// Those of a file; what is no certificate is refused. Of those that webpki cannot use only
    /// the two cases above remain.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Option<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            Certificate::parse(certificate)?;
            // One of version 1 is no root to webpki.
            let _ = roots.add(certificate.clone());
        }
        Some(Self { roots: Arc::new(roots), certificates })
    }

    /// Decides what webpki cannot; `None`: it can.
    fn judge_exception(&self, end_entity: &[u8], now: UnixTime) -> Option<Result<(), Error>> {
        let is_listed = self.certificates.iter().any(|listed| listed.as_ref() == end_entity);
        let certificate = Certificate::parse(end_entity)?;
        if !is_listed && !certificate.is_v1 {
            return None;
        }
        let fault = match certificate.validity(now.as_secs()) {
            Validity::Now if is_listed || self.have_signed(&certificate) => return Some(Ok(())),
            Validity::Now => CertificateError::UnknownIssuer,
            Validity::Expired => CertificateError::Expired,
            Validity::NotYet => CertificateError::NotValidYet,
        };
        Some(Err(fault.into()))
    }

    fn have_signed(&self, certificate: &Certificate<'_>) -> bool {
        let issuers = self.certificates.iter().filter_map(|der| Certificate::parse(der));
        issuers.filter(|issuer| issuer.subject == certificate.issuer).any(|issuer| {
            let fits = algorithms().all.iter().filter(|algorithm| {
                algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
                    && algorithm.public_key_alg_id().as_ref() == issuer.key_algorithm
            });
            let signature = certificate.signature;
            fits.into_iter().any(|algorithm| {
                algorithm.verify_signature(issuer.key, certificate.signed, signature).is_ok()
            })
        })
    }
}

/// The proof that the peer has its certificate's key; also for version 1, which webpki does not
/// read.
fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    is_tls13: bool,
) -> Result<HandshakeSignatureValid, Error> {
    let old = Certificate::parse(certificate).filter(|certificate| certificate.is_v1);
    match (old, is_tls13) {
        (None, true) => verify_tls13_signature(message, certificate, signature, &algorithms()),
        (None, false) => verify_tls12_signature(message, certificate, signature, &algorithms()),
        (Some(old), true) => {
            let key = SubjectPublicKeyInfoDer::from(old.key_info);
            verify_tls13_signature_with_raw_key(message, &key, signature, &algorithms())
        }
        (Some(old), false) => {
            let scheme =
                algorithms().mapping.iter().find(|(scheme, _)| *scheme == signature.scheme);
            let fits = scheme.into_iter().flat_map(|(_, algorithms)| algorithms.iter());
            let mut fits = fits.filter(|one| one.public_key_alg_id().as_ref() == old.key_algorithm);
            let is_good = |one: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| -> bool {
                one.verify_signature(old.key, message, signature.signature()).is_ok()
            };
            match fits.any(is_good) {
                true => Ok(HandshakeSignatureValid::assertion()),
                false => Err(CertificateError::BadSignature.into()),
            }
        }
    }
}

/// Verifies servers: their chain, if there are authorities to ask; in any case that they have
/// their key.
#[derive(Debug)]
pub struct Servers {
    /// `None`: any certificate will do.
    pub authorities: Option<Authorities>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(authorities) = &self.authorities {
            match authorities.judge_exception(end_entity, now) {
                Some(judged) => judged?,
                None => verify_server_cert_signed_by_trust_anchor(
                    &ParsedCertificate::try_from(end_entity)?,
                    &authorities.roots,
                    intermediates,
                    now,
                    algorithms().all,
                )?,
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Verifies clients. All are asked for a certificate; who shows one must show a good one.
#[derive(Debug)]
pub struct Clients {
    authorities: Option<Authorities>,
    webpki: Option<Arc<dyn ClientCertVerifier>>,
    is_mandatory: bool,
}

impl Clients {
    /// `None` for authorities: nobody is believed.
    pub fn new(authorities: Option<Authorities>, is_mandatory: bool) -> Self {
        let roots = authorities.as_ref().map(|authorities| Arc::clone(&authorities.roots));
        let webpki = roots.filter(|roots| !roots.is_empty()).and_then(|roots| {
            let provider = Arc::new(aws_lc_rs::default_provider());
            WebPkiClientVerifier::builder_with_provider(roots, provider).build().ok()
        });
        Self { authorities, webpki, is_mandatory }
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.as_ref().map_or(&[], |webpki| webpki.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let exception = self
            .authorities
            .as_ref()
            .and_then(|authorities| authorities.judge_exception(end_entity, now));
        match (exception, &self.webpki) {
            (Some(judged), _) => judged.map(|()| ClientCertVerified::assertion()),
            (None, Some(webpki)) => webpki.verify_client_cert(end_entity, intermediates, now),
            (None, None) => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
