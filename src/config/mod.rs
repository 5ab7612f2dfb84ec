//! The settings of every role.
//!
//! [`settings`] defines each setting once: key, type, range, default and meaning. The structs that the other
//! modules read, the checks of [`load`], `check-config`, `--help`, docs/configuration.md and the descriptions
//! of the NixOS options come from these definitions.
//!
//! Layers, the later wins: defaults, the TOML file (`--config`), the environment (`MSA__SECTION__KEY`), flags.
//! Loading opens no socket, no database and no secret.

pub mod access;
mod checks;
mod host_name;
mod identity;
mod link;
mod load;
pub mod log_filter;
mod origin;
mod role;
pub mod settings;
mod shown;
mod store_url;
mod types;
mod value;

pub use access::{Access, AccessRule};
pub use checks::bare_endpoint;
pub use host_name::HostName;
pub use identity::{Caller, Identity, NamedRole, TrustDomain};
pub use link::Link;
pub use load::{ConfigError, Source, load};
pub use origin::Origin;
pub use role::Role;
pub use settings::{
    Admin, Client, Grpc, Http, Log, Registry, Runtime, Settings, Shutdown, Store, Tls, Trace, Up,
};
pub use store_url::{PostgresUrl, StoreUrl};
pub use types::{Balancer, Collector, HostPort, ListenAddr, LogFormat, Network, Switch, TlsMode};
pub use value::{Kind, Unit};
