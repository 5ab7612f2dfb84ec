//! One instance of a service, as it is registered.

use std::collections::BTreeMap;
use std::sync::Arc;

/// One registered instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The service's name, `feed`.
    pub service: String,
    /// Where to call it, `host:port`; unique within the service.
    pub addr: String,
    /// Distinguishes it from an earlier instance at the same address, 16 hex digits. Empty for an instance that
    /// registered its bare address only.
    pub id: String,
    /// The version of its program.
    pub version: String,
    /// Its availability zone.
    pub zone: Option<String>,
    /// Its share of calls relative to others, 1 to 1000.
    pub weight: u32,
    /// True once it has begun to stop: it finishes its calls, and callers send no new ones.
    pub draining: bool,
    /// Its admin listener, `host:port`, if others can reach it.
    pub admin: Option<String>,
    /// When it started, seconds since 1970.
    pub started_at: u64,
}

impl Instance {
    /// Returns an instance of which only the address is known.
    #[must_use]
    pub fn bare(service: &str, addr: &str) -> Self {
        Self {
            service: service.to_owned(),
            addr: addr.to_owned(),
            id: String::new(),
            version: String::new(),
            zone: None,
            weight: 100,
            draining: false,
            admin: None,
            started_at: 0,
        }
    }
}

/// The instances of one service by address.
pub type Instances = BTreeMap<String, Arc<Instance>>;
