//! Opens connections with TLS, on which both ends show a certificate.

use std::io;

use crate::client::transport::connection::{Connect, Target, Tcp};
use crate::tls::mutual::Failed;
use crate::tls::{Mutual, Stream, Validity};

/// Connects by TLS over TCP. Where plaintext is still allowed it tries TLS first: then nothing has to be known of the
/// peer, which may be restarted with another setting at any time. Plaintext follows only on an answer that is no TLS; a
/// peer that speaks TLS and is somebody else gets no second try.
pub struct Secured(Mutual);

impl Secured {
    /// Returns one with the certificate of this process.
    #[must_use]
    pub const fn new(mutual: Mutual) -> Self {
        Self(mutual)
    }
}

impl Connect for Secured {
    type Stream = Stream;

    async fn connect(&self, target: Target<'_>) -> io::Result<(Stream, Option<Validity>)> {
        let tcp = Tcp::open(target.addr).await?;
        let Some(service) = target.service else {
            return Ok((Stream::Plain(tcp), None));
        };
        match self.0.connect(service, tcp).await {
            Ok((tls, validity)) => {
                drop(self.0.client_metrics().open(true));
                Ok((Stream::Tls(Box::new(tls.into())), Some(validity)))
            }
            Err(Failed::NoTls) if self.0.is_permissive() => {
                let tcp = Tcp::open(target.addr).await?;
                drop(self.0.client_metrics().open(false));
                Ok((Stream::Plain(tcp), None))
            }
            Err(failed) => Err(failed.into()),
        }
    }
}
