//! What a role registers about itself, and the names of its process.

use std::net::SocketAddr;
use std::time::SystemTime;

use crate::build_info;
use crate::config::Settings;
use crate::random;
use crate::registry::{Instance, advertise};

/// Returns the instance to register for a role that others call at `addr`, `host:port`, and warnings for operators.
/// `admin` is the bound address of the admin listener.
pub fn describe(
    settings: &Settings,
    service: &'static str,
    addr: String,
    admin: SocketAddr,
) -> (Instance, Vec<String>) {
    let registry = &settings.registry;
    let admin = advertise::admin(admin, settings.admin.advertise_addr.as_ref(), &addr, registry);
    let unreachable =
        admin.as_ref().err().map(|reason| format!("the admin address is not advertised: {reason}"));
    let warnings = Vec::from_iter(unreachable);
    let instance = Instance {
        service: service.to_owned(),
        addr,
        id: format!("{:016x}", random::id()),
        version: build_info::VERSION.to_owned(),
        zone: registry.zone.clone(),
        weight: registry.weight,
        draining: false,
        admin: admin.ok(),
        started_at: seconds_since_1970(),
    };
    (instance, warnings)
}

/// Returns the time, seconds since 1970.
pub fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Returns the names by which others know this process: that of its host, and those that it advertises.
pub fn names(settings: &Settings) -> Vec<String> {
    let advertised = [&settings.admin.advertise_addr, &settings.grpc.advertise_addr];
    let advertised = advertised.into_iter().flatten().map(|addr| addr.host.clone());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    advertised.chain([host]).filter(|name| !name.is_empty()).collect()
}
