//! What the clients of one caller share. Each thread has a client with its own connections, balancer, breakers and budget;
//! the limits hold for all of them together.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::client::balance::in_flight::InFlightLimits;
use crate::client::policy::cache::Cache;
use crate::client::policy::retry_policy::Reserves;
use crate::client::transport::connection::Connector;
use crate::config;
use crate::registry::ViewHandle;

/// What the clients of one caller, one on each thread, share.
pub struct Shared {
    /// Settings of all calls.
    pub settings: Arc<config::Client>,
    /// The prefix of the keys in the registry.
    pub prefix: String,
    /// The view of the registry.
    pub view: ViewHandle,
    /// Opens connections.
    pub connector: Connector,
    /// The last good answers, as the first thread has them.
    pub cache: Cache,
    /// The limits of each service that is called.
    pub limits: BTreeMap<&'static str, Limits>,
}

/// The limits of the calls to one service.
pub struct Limits {
    /// Calls in flight at each instance.
    pub in_flight: Arc<InFlightLimits>,
    /// The fixed parts of the budgets.
    pub reserves: Reserves,
}

impl Shared {
    /// Returns what clients on so many threads share that call `services`; the other parameters are those of
    /// [`crate::client::Client::new`].
    #[must_use]
    pub fn new(
        services: &[&'static str],
        settings: &config::Client,
        prefix: &str,
        view: &ViewHandle,
        connector: &Connector,
        threads: usize,
    ) -> Arc<Self> {
        let limits = || Limits {
            in_flight: InFlightLimits::new(settings.max_in_flight),
            reserves: Reserves::new(settings),
        };
        Arc::new(Self {
            cache: Cache::divided(settings.fallback_kib * 1024, settings.fallback_age, threads),
            settings: Arc::new(settings.clone()),
            prefix: prefix.to_owned(),
            view: view.clone(),
            connector: connector.clone(),
            limits: services.iter().map(|name| (*name, limits())).collect(),
        })
    }
}
