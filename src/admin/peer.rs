//! The caller of the admin listener.

use std::net::IpAddr;

use http::StatusCode;

use super::reply::Refusal;

/// The address that a request comes from.
#[derive(Clone, Copy)]
pub struct Peer(pub IpAddr);

impl Peer {
    /// Refuses callers on other hosts, whatever address the listener is bound to.
    ///
    /// # Errors
    /// The refusal.
    pub fn local(self) -> Result<(), Refusal> {
        if self.0.to_canonical().is_loopback() {
            return Ok(());
        }
        Err(Refusal(StatusCode::FORBIDDEN, "for callers on this host only".to_owned()))
    }
}
