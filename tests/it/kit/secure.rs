//! A gateway with TLS, and clients that know its authority.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use microservice_app::config::Settings;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::app::App;
use super::authority::Authority;

/// Life of the certificates.
pub const LIFE: Duration = Duration::from_hours(1);

/// The whole application in process; its gateway has a certificate for `localhost`.
pub struct Secure {
    pub app: App,
    pub authority: Authority,
    pub dir: tempfile::TempDir,
}

impl Secure {
    pub async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let (authority, dir) = (Authority::new("edge"), tempfile::tempdir().unwrap());
        authority.issue(dir.path(), "gateway", &["localhost", "127.0.0.1"], LIFE);
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let app = App::start_with(|settings| {
            settings.http.tls_cert_file = Some(dir.path().join("gateway.pem"));
            settings.http.tls_key_file = Some(dir.path().join("gateway.key"));
            change(settings);
        })
        .await;
        Self { app, authority, dir }
    }

    pub fn addr(&self) -> SocketAddr {
        self.app.gateway()
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.addr().port())
    }

    pub fn ca(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    /// Runs curl with the authority; returns what it prints.
    pub async fn curl(&self, args: &[&str]) -> Output {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--cacert", &self.ca()]).args(args);
        output(command).await
    }

    pub fn connector(&self, alpn: &[&[u8]]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    pub async fn connect(&self, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.addr()).await?;
        self.connector(alpn).connect(ServerName::try_from("localhost").unwrap(), tcp).await
    }
}

/// Runs a program to its end.
pub async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Returns what a program has printed.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}
