//! TLS for callers of the gateway, who show no certificate.
//!
//! TLS 1.2 and 1.3, with the cipher suites of rustls: all have forward secrecy and authenticate what they encrypt. HTTP/2 or
//! HTTP/1.1 is agreed on by ALPN; a caller that asks for neither is refused in the handshake, one that does not ask speaks
//! HTTP/1.1.

use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::accept::Acceptor;
use super::files::{Files, Material};
use super::metrics::{Metrics, Purpose, Side};
use super::reload::Reloading;
use crate::config::Http;
use crate::credentials::{self, Source, Unusable};

/// HTTP/2 over TLS, as ALPN names it.
pub const HTTP2: &[u8] = b"h2";
/// HTTP/1.1, as ALPN names it.
const HTTP1: &[u8] = b"http/1.1";

/// Reads the certificate of the gateway, and watches its files from then on; nothing without `http.tls.cert_file`. Must be
/// called inside a tokio runtime.
///
/// # Errors
/// The first file that cannot be used.
pub fn acceptor(settings: &Http, metrics: &Metrics) -> Result<Option<Acceptor>, Unusable> {
    let (Some(certificate), Some(key)) = (&settings.tls_cert_file, &settings.tls_key_file) else {
        return Ok(None);
    };
    let directory = credentials::directory();
    let source = |key, path| Source::new(key, path, directory.as_deref());
    let files = Files {
        certificate: source("http.tls.cert_file", certificate),
        key: source("http.tls.key_file", key),
        authorities: None,
    };
    let certificate = files.certificate.clone();
    let build = move |material: &Material| config(material).map_err(|error| certificate.refuse(error));
    let current = Reloading::start(files, metrics.of_files(Purpose::Http), build)?;
    let connections = metrics.of_connections(Purpose::Http, Side::Server);
    Ok(Some(Acceptor::server_only(move || current.current(), connections)))
}

fn config(material: &Material) -> Result<ServerConfig, tokio_rustls::rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(material.own.clone())));
    // every suite is good, but scanners want to see who chooses
    config.ignore_client_order = true;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Ok(config)
}
