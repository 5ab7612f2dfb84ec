//! TLS between the parts of the system: both ends show a certificate, and each checks who the other one is.
//!
//! TLS 1.3 only: both ends are ours. No session is resumed: a resumed handshake would skip the check of the client's
//! certificate.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, Error, ServerConfig};
use tokio_rustls::{TlsConnector, client};

use super::files::{Files, Material};
use super::metrics::{ConnectionMetrics, Metrics, Purpose, Refused, Side};
use super::names::Names;
use super::outcome;
use super::reload::Reloading;
use super::validity::Validity;
use super::verify::{CallerVerifier, Refusals, ServiceVerifier};
use crate::config::{self, Role, TlsMode};
use crate::credentials::{Source, Unusable};

/// The protocol that is spoken over TLS.
const ALPN: &[u8] = b"h2";

/// The certificate of this process, and how it verifies others. Cheap to clone.
#[derive(Clone)]
pub struct Mutual {
    current: Arc<Reloading<Sides>>,
    mode: TlsMode,
    server: ConnectionMetrics,
    client: ConnectionMetrics,
}

/// What is made of the files.
struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    callers: Arc<CallerVerifier>,
    services: Arc<ServiceVerifier>,
}

impl Mutual {
    /// Reads the files of the settings and begins to watch them; `None` if `grpc.tls` is off. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// The first file that cannot be used, or why the certificate is not one of this role.
    pub fn start(
        role: Role,
        tls: &config::Tls,
        grpc: &config::Grpc,
        metrics: &Metrics,
    ) -> Result<Option<Self>, Unusable> {
        let (Some(certificate), Some(key), Some(ca)) = (&tls.cert_file, &tls.key_file, &tls.ca_file) else {
            return Ok(None);
        };
        if grpc.tls == TlsMode::Off {
            return Ok(None);
        }
        let directory = crate::credentials::directory();
        let source = |key, path| Source::new(key, path, directory.as_deref());
        let files = Files {
            certificate: source("tls.cert_file", certificate),
            key: source("tls.key_file", key),
            authorities: Some(source("tls.ca_file", ca)),
        };
        let server = metrics.of_connections(Purpose::Grpc, Side::Server);
        let client = metrics.of_connections(Purpose::Grpc, Side::Client);
        let build = Build {
            certificate: files.certificate.clone(),
            role,
            tls: tls.clone(),
            allow: grpc.allow.clone(),
            callers: Arc::new(Refusals::new(server.clone())),
            services: Arc::new(Refusals::new(client.clone())),
        };
        let files_metrics = metrics.of_files(Purpose::Grpc);
        let current = Reloading::start(files, files_metrics, move |material| build.sides(material))?;
        Ok(Some(Self { current: Arc::new(current), mode: grpc.tls, server, client }))
    }

    /// Returns whether plaintext is taken and spoken as well.
    #[must_use]
    pub fn is_permissive(&self) -> bool {
        self.mode == TlsMode::Permissive
    }

    /// Returns the configuration of a server, as the files are now.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current.current().server.clone()
    }

    /// Returns the metrics of the connections that are accepted.
    #[must_use]
    pub fn server_metrics(&self) -> &ConnectionMetrics {
        &self.server
    }

    /// Returns the metrics of the connections that are opened.
    #[must_use]
    pub fn client_metrics(&self) -> &ConnectionMetrics {
        &self.client
    }

    /// Returns how long a connection with a caller that has shown this chain may live.
    #[must_use]
    pub fn validity_of_caller(&self, chain: &[CertificateDer<'_>]) -> Validity {
        self.validity(chain, |sides, chain, now| sides.callers.recheck(chain, now))
    }

    fn validity(
        &self,
        chain: &[CertificateDer<'_>],
        recheck: impl Fn(&Sides, &[CertificateDer<'_>], UnixTime) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Validity {
        let current = self.current.clone();
        Validity::new(chain, self.current.changed(), move |chain, now| {
            recheck(&current.current(), chain, now)
        })
    }

    /// Begins TLS with an instance of a service. Counts and returns why there is none.
    ///
    /// # Errors
    /// [`Failed::NoTls`] if the peer has not answered in TLS, else what went wrong.
    ///
    /// *Cancellation*: the connection is closed.
    pub async fn connect(
        &self,
        service: &str,
        tcp: TcpStream,
    ) -> Result<(client::TlsStream<TcpStream>, Validity), Failed> {
        let name =
            ServerName::try_from(service.to_owned()).map_err(|e| Failed::Other(io::Error::other(e)))?;
        // taken before the handshake: a change during it counts
        let changed = self.current.changed();
        let connector = TlsConnector::from(self.current.current().client.clone());
        match connector.connect(name, tcp).await {
            Ok(stream) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let service = service.to_owned();
                let mut validity = self
                    .validity(chain, move |sides, chain, now| sides.services.recheck(&service, chain, now));
                validity.watch(changed);
                Ok((stream, validity))
            }
            Err(error) => {
                let reason = outcome::reason(&error);
                let no_tls = matches!(reason, Some(Refused::Plaintext | Refused::Broken));
                if no_tls && self.is_permissive() {
                    return Err(Failed::NoTls);
                }
                if let Some(reason) = reason {
                    self.client.refuse(reason);
                }
                Err(if reason == Some(Refused::Plaintext) { Failed::NoTls } else { Failed::Other(error) })
            }
        }
    }
}

/// Why there is no connection with TLS.
#[derive(Debug)]
pub enum Failed {
    /// The peer has answered in something else than TLS, or has closed the connection, as servers without TLS do.
    NoTls,
    /// The peer is not who it should be, or anything else.
    Other(io::Error),
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::NoTls => Self::other("the peer does not speak TLS"),
            Failed::Other(error) => error,
        }
    }
}

/// What both sides are made with.
struct Build {
    certificate: Source,
    role: Role,
    tls: config::Tls,
    allow: Vec<config::Caller>,
    callers: Arc<Refusals>,
    services: Arc<Refusals>,
}

impl Build {
    fn sides(&self, material: &Material) -> Result<Sides, Unusable> {
        let wrong = |error: &dyn std::fmt::Display| self.certificate.refuse(error);
        material.leaf.check().map_err(|fault| wrong(&fault))?;
        let is_called = Role::SERVICES.contains(&self.role);
        material.leaf.check_purposes(self.role.calls_services(), is_called).map_err(|fault| wrong(&fault))?;
        let names = Names::new(self.tls.trust_domain.as_ref(), &self.tls.names, &material.leaf);
        let names = Arc::new(names.map_err(|reason| wrong(&reason))?);
        let own = names.of_service(self.role.name()).filter(|own| !material.leaf.is(own));
        if let Some(own) = own {
            return Err(wrong(&format_args!(
                "is of {}, and others know this process as {own}",
                material.leaf
            )));
        }
        let (allowed, authorities) = (names.of_callers(&self.allow), material.authorities.valid.clone());
        let callers = CallerVerifier::new(authorities.clone(), allowed, self.callers.clone());
        let callers = Arc::new(callers.map_err(|reason| wrong(&reason))?);
        let services = Arc::new(ServiceVerifier::new(authorities, names, self.services.clone()));
        let provider = Arc::new(ring::default_provider());
        let own = Arc::new(SingleCertAndKey::from(material.own.clone()));

        let server = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
        let server = server.map_err(|error| wrong(&error))?;
        let mut server = server.with_client_cert_verifier(callers.clone()).with_cert_resolver(own.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
        let client = client.map_err(|error| wrong(&error))?;
        let client = client.dangerous().with_custom_certificate_verifier(services.clone());
        let mut client = client.with_client_cert_resolver(own);
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Sides { server: Arc::new(server), client: Arc::new(client), callers, services })
    }
}

impl Mutual {
    /// Returns a channel that changes with the certificates.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.current.changed()
    }
}
