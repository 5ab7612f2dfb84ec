//! Our roles as processes that show each other certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use microservice_app::tls::unverified::Anybody;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion, version};

use super::authority::{Authority, replace};
use super::etcd::Etcd;
use super::system::Role;

/// A life that outlives every test.
pub const HOUR: Duration = Duration::from_hours(1);
/// The roles that have a certificate.
pub const ROLES: [&str; 4] = ["apigateway", "feed", "profile", "topic"];

/// An authority, an etcd, and the certificate of each role in a directory.
pub struct Mesh {
    pub etcd: Etcd,
    pub dir: tempfile::TempDir,
    pub authority: Authority,
}

impl Mesh {
    pub async fn start() -> Self {
        let (etcd, dir) = (Etcd::start().await, tempfile::tempdir().expect("a directory"));
        let mesh = Self { etcd, dir, authority: Authority::new("one") };
        replace(&mesh.dir.path().join("ca.pem"), &mesh.authority.pem());
        mesh.issue_all(&mesh.authority, HOUR);
        mesh
    }

    /// Writes a new certificate of every role.
    pub fn issue_all(&self, authority: &Authority, life: Duration) {
        for role in ROLES {
            self.issue(authority, role, life);
        }
    }

    /// Writes a new certificate of a role.
    pub fn issue(&self, authority: &Authority, role: &str, life: Duration) {
        authority.issue_identity(self.path(), role, &uri(role), life, |_| {});
    }

    /// Lets every role trust these authorities.
    pub fn trust(&self, authorities: &[&Authority]) {
        let text: String = authorities.iter().map(|authority| authority.pem()).collect();
        replace(&self.path().join("ca.pem"), &text);
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the settings of a role, with the certificate `name`.
    pub fn env(&self, name: &str, mode: &str) -> Vec<(&'static str, String)> {
        let file = |name: &str| self.path().join(name).display().to_string();
        vec![
            ("MSA__GRPC__TLS", mode.to_owned()),
            ("MSA__TLS__CERT_FILE", file(&format!("{name}.pem"))),
            ("MSA__TLS__KEY_FILE", file(&format!("{name}.key"))),
            ("MSA__TLS__CA_FILE", file("ca.pem")),
        ]
    }

    /// Starts a role with its certificate and waits until it serves. A service keeps its records in memory.
    pub fn role(&self, role: &'static str, mode: &str, more: &[(&str, &str)]) -> Role {
        self.role_at(role, "127.0.0.1:0", mode, more)
    }

    /// As [`Self::role`], at an address.
    pub fn role_at(&self, role: &'static str, addr: &str, mode: &str, more: &[(&str, &str)]) -> Role {
        let env = self.env(role, mode);
        let mut env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        if role != "apigateway" {
            env.push(("MSA__STORE__URL", "memory:"));
        }
        env.extend(more);
        Role::start(&self.etcd.addr.to_string(), role, addr, &env)
    }
}

/// Returns the identity of a role.
pub fn uri(role: &str) -> String {
    format!("spiffe://test.example/{role}")
}

/// Returns a client that shows the certificate `NAME.pem` of a directory, or none. Who the server is is not what the tests
/// with it ask.
pub fn client(
    dir: &Path,
    name: Option<&str>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(&[version]).expect("a version");
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match name {
        Some(name) => {
            let (chain, key) = pair(dir, name);
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Returns a server that shows the certificate `NAME.pem` of a directory, and asks for none.
pub fn acceptor(dir: &Path, name: &str, alpn: &[u8]) -> TlsAcceptor {
    let (chain, key) = pair(dir, name);
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("a version");
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).expect("a pair");
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

fn pair(dir: &Path, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(dir.join(format!("{name}.pem"))).expect("a file");
    let chain = chain.collect::<Result<_, _>>().expect("certificates");
    (chain, PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).expect("a key"))
}

/// Returns a client with TLS 1.3.
pub fn client13(dir: &Path, name: &str) -> Arc<ClientConfig> {
    client(dir, Some(name), &version::TLS13)
}

/// Opens a connection with TLS.
pub async fn connect(
    addr: std::net::SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, String> {
    let tcp = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from("any.example").expect("a name");
    tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.map_err(|e| e.to_string())
}

/// Asks for the health over a new connection; an error tells why there is no answer.
pub async fn ask(addr: std::net::SocketAddr, config: Arc<ClientConfig>) -> Result<(), String> {
    let stream = connect(addr, config).await?;
    ask_over(stream).await
}

/// Asks for the health over a stream.
pub async fn ask_over(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> Result<(), String> {
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let asked = async {
        let request = http::Request::post("http://any.example/grpc.health.v1.Health/Check")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = request.body(()).expect("a request");
        let (answer, mut body) = sender.send_request(request, false).map_err(|e| e.to_string())?;
        body.send_data(Bytes::from_static(&[0; 5]), true).map_err(|e| e.to_string())?;
        let answer = answer.await.map_err(|e| e.to_string())?;
        assert_eq!(answer.status(), 200);
        Ok(())
    };
    let asked: Result<(), String> =
        tokio::time::timeout(Duration::from_secs(10), asked).await.expect("an end");
    if asked.is_ok() {
        driver.abort();
        return Ok(());
    }
    // the connection knows more: the alert of the server
    let ended =
        tokio::time::timeout(Duration::from_secs(10), driver).await.expect("an end").expect("no panic");
    ended.map_err(|e| e.to_string()).and(asked)
}
