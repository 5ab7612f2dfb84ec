//! What the end of a handshake means.

use std::io;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

use super::metrics::Refused;

/// Returns why a handshake failed; `None` if the verifier has counted and said it already.
pub fn reason(error: &io::Error) -> Option<Refused> {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return Some(match error.kind() {
            // a server without TLS closes the connection at the first bytes that it cannot read
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Refused::Broken
            }
            io::ErrorKind::TimedOut => Refused::Timeout,
            _ => Refused::Broken,
        });
    };
    Some(match tls {
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => return None,
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Refused::Expired,
        Error::InvalidCertificate(_) => Refused::Untrusted,
        Error::NoCertificatesPresented => Refused::NoCertificate,
        // the first bytes are no record of TLS
        Error::InvalidMessage(_) => Refused::Plaintext,
        Error::AlertReceived(
            AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate,
        ) => Refused::Ours,
        _ => Refused::Protocol,
    })
}
