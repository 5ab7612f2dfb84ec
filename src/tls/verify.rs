//! Who the other end of a connection is: its chain leads to an authority that is trusted, its certificate is valid now
//! and keeps the rules of SPIFFE, and its identity is one that is expected.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, RootCertStore,
    SignatureScheme,
};

use super::leaf::Leaf;
use super::metrics::{ConnectionMetrics, Refused};
use super::names::Names;
use crate::config::Identity;
use crate::telemetry::log::LogThrottle;

/// What is counted and said about peers that are refused for what their certificate says. rustls knows no reason for
/// that, so it is noted where it is found.
#[derive(Debug)]
pub struct Refusals {
    metrics: ConnectionMetrics,
    lines: LogThrottle,
}

impl Refusals {
    /// Returns the refusals of one side.
    pub fn new(metrics: ConnectionMetrics) -> Self {
        Self { metrics, lines: LogThrottle::default() }
    }

    /// Returns the error that ends the handshake; the peer gets the alert `access_denied`.
    fn refuse(&self, reason: Refused, peer: &dyn std::fmt::Display, want: &str) -> Error {
        self.metrics.refuse(reason);
        if let Some(times) = self.lines.note() {
            let reason = reason.name();
            tracing::warn!(%peer, want, reason, times, "a peer is refused for its certificate");
        }
        CertificateError::ApplicationVerificationFailure.into()
    }

    /// Reads the certificate of a peer whose chain was verified, and checks the rules of SPIFFE.
    fn read(&self, certificate: &CertificateDer<'_>) -> Result<Leaf, Error> {
        let leaf = Leaf::read(certificate)
            .map_err(|fault| self.refuse(Refused::Leaf, &fault, "a certificate that can be read"))?;
        match leaf.check() {
            Ok(()) => Ok(leaf),
            Err(fault) => {
                Err(self.refuse(Refused::Leaf, &format_args!("{leaf}: {fault}"), "a certificate of SPIFFE"))
            }
        }
    }
}

/// Verifies the callers of a service.
#[derive(Debug)]
pub struct CallerVerifier {
    /// `None` while no authority is trusted: then nobody is.
    chain: Option<Arc<dyn ClientCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
    allowed: Arc<[Identity]>,
    refusals: Arc<Refusals>,
}

impl CallerVerifier {
    /// Returns one that takes callers with one of these identities. Without an authority it takes none.
    ///
    /// # Errors
    /// When the authorities cannot be used.
    pub fn new(
        authorities: Arc<RootCertStore>,
        allowed: Arc<[Identity]>,
        refusals: Arc<Refusals>,
    ) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let chain = if authorities.is_empty() {
            None
        } else {
            let chain = WebPkiClientVerifier::builder_with_provider(authorities, provider).build();
            Some(chain.map_err(|error| error.to_string())?)
        };
        Ok(Self { chain, algorithms, allowed, refusals })
    }

    /// Checks a caller again, without counting what is wrong with it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn recheck(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.check_chain(leaf, rest, now)?;
        recheck_holder(leaf, |holder| self.is_allowed(holder))
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = self.chain.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        chain.verify_client_cert(leaf, rest, now)
    }

    fn is_allowed(&self, leaf: &Leaf) -> bool {
        self.allowed.iter().any(|identity| leaf.is(identity))
    }
}

/// Checks again who the holder of a certificate is: which identity is meant may have changed since it was shown.
fn recheck_holder(certificate: &CertificateDer<'_>, is_meant: impl Fn(&Leaf) -> bool) -> Result<(), Error> {
    let leaf = Leaf::read(certificate).ok().filter(|leaf| leaf.check().is_ok());
    if leaf.is_some_and(|leaf| is_meant(&leaf)) {
        return Ok(());
    }
    Err(CertificateError::ApplicationVerificationFailure.into())
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.as_ref().map_or(&[], |chain| chain.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.check_chain(end_entity, intermediates, now)?;
        let leaf = self.refusals.read(end_entity)?;
        if self.is_allowed(&leaf) {
            return Ok(verified);
        }
        Err(self.refusals.refuse(Refused::Identity, &leaf, "an identity of grpc.allow"))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies the services that are called. The server name of a connection is the name of the service that is meant.
#[derive(Debug)]
pub struct ServiceVerifier {
    authorities: Arc<RootCertStore>,
    names: Arc<Names>,
    algorithms: WebPkiSupportedAlgorithms,
    refusals: Arc<Refusals>,
}

impl ServiceVerifier {
    /// Returns one that knows services by these names.
    pub fn new(authorities: Arc<RootCertStore>, names: Arc<Names>, refusals: Arc<Refusals>) -> Self {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Self { authorities, names, algorithms, refusals }
    }

    /// Checks an instance of a service again, without counting what is wrong with it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn recheck(&self, service: &str, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.check_chain(leaf, rest, now)?;
        let wanted = self.names.of_service(service);
        recheck_holder(leaf, |holder| wanted.is_some_and(|wanted| holder.is(wanted)))
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.authorities, rest, now, self.algorithms.all)
    }
}

impl ServerCertVerifier for ServiceVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_chain(end_entity, intermediates, now)?;
        let leaf = self.refusals.read(end_entity)?;
        let wanted = self.names.of_service(&server_name.to_str());
        if wanted.is_some_and(|wanted| leaf.is(wanted)) {
            return Ok(ServerCertVerified::assertion());
        }
        let wanted = wanted.map_or_else(|| format!("a service {server_name:?}"), ToString::to_string);
        Err(self.refusals.refuse(Refused::Identity, &leaf, &wanted))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
