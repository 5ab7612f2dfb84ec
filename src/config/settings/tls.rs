//! The certificate of this process, for the calls between the gateway and the services.

use std::path::PathBuf;

use super::super::identity::{NamedRole, TrustDomain};
use super::{Kind, PARTS, Role};

/// Form of the keys that name a file.
const PATH: &str = "a path";

section! {
    /// The certificate that this process shows to the other parts of the system, and the authorities that it trusts. It
    /// is used where `grpc.tls` is not `off`. The files are watched and read again when they change; if they cannot be
    /// used, the certificate from before stays. A relative name is looked up in `$CREDENTIALS_DIRECTORY` if that is set,
    /// else in the working directory.
    Tls as tls, read by PARTS, defaults of role:

    /// File with the certificate chain (PEM) of this process.
    "tls.cert_file" => cert_file: Option<PathBuf> = None, Kind::text(PATH);

    /// File with the private key (PEM) of `tls.cert_file`.
    "tls.key_file" => key_file: Option<PathBuf> = None, Kind::text(PATH);

    /// File with the certificates (PEM) of the authorities that sign the certificates of the other parts. To change
    /// the authority, have the old and the new one in it.
    "tls.ca_file" => ca_file: Option<PathBuf> = None, Kind::text(PATH);

    /// Trust domain of the system. The certificate of a role has the URI name `spiffe://<domain>/<role>`, with the role
    /// apigateway, feed, profile or topic. Without it, the domain of the own certificate.
    "tls.trust_domain" => trust_domain: Option<TrustDomain> = None, Kind::text(TrustDomain::FORM);

    /// Roles whose certificates have another name, for authorities that give DNS names only: `feed=dns:feed.example`.
    "tls.names" => names: Vec<NamedRole> = Vec::new(), Kind::list(NamedRole::FORM);
}
