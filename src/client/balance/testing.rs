//! Instances that only look connected, for tests: nothing may yield to the tasks that would connect.

use std::sync::Arc;

use http::HeaderValue;
use tokio::sync::Notify;

use crate::api::rpc::Rpc;
use crate::client::balance::ejection::EjectionLimit;
use crate::client::balance::endpoint::{Endpoint, ServiceContext};
use crate::client::balance::in_flight::InFlightLimits;
use crate::client::metrics::Metrics;
use crate::client::transport::connection::{Connector, Dialer};
use crate::client::transport::state::ConnectionState;
use crate::config;
use crate::registry::Instance;

/// Returns so many instances of topic that look connected.
pub fn endpoints(count: usize, change: impl FnOnce(&mut config::Client)) -> Vec<Arc<Endpoint>> {
    let mut settings = config::Client::default();
    change(&mut settings);
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap().service("topic").endpoint;
    let context = ServiceContext {
        service: "topic",
        dialer: Dialer {
            connector: Connector::default(),
            settings: Arc::new(settings.clone()),
            identity: HeaderValue::from_static("/services/topic"),
            service: "topic".into(),
        },
        ejection: Arc::new(EjectionLimit::unbounded(metrics.breaker_refused.clone())),
        in_flight: InFlightLimits::new(settings.max_in_flight),
        metrics,
        changed: Arc::new(Notify::new()),
    };
    let open = |port| {
        let endpoint =
            Endpoint::open(Arc::new(Instance::bare("topic", &format!("127.0.0.1:{port}"))), &context);
        endpoint.pretend(ConnectionState::Up);
        Arc::new(endpoint)
    };
    (0..count).map(open).collect()
}

/// Opens the breaker of [`Rpc::ListTopics`].
pub fn trip(endpoint: &Endpoint) {
    while let Some(permit) = endpoint.breakers.admit(Rpc::ListTopics, false) {
        endpoint.breakers.record(&permit, true, None);
    }
}
