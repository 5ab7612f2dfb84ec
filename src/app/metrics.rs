//! The metrics of a process: those of every layer, registered in one registry.

use prometheus::Registry;

use crate::telemetry::events::Events;
use crate::telemetry::{metrics, trace};
use crate::{admin, client, gateway, registry, server, store, tls};

/// The metrics of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Holds all of them.
    pub registry: Registry,
    /// The notable events of every layer.
    pub events: Events,
    /// Calls to services.
    pub client: client::metrics::Metrics,
    /// The view of the registry, and registrations.
    pub view: registry::metrics::Metrics,
    /// Requests and connections of servers.
    pub server: server::metrics::Metrics,
    /// The admin listener.
    pub admin: admin::metrics::Metrics,
    /// Tokens of callers.
    pub gateway: gateway::Metrics,
    /// Certificates, and connections with TLS.
    pub tls: tls::metrics::Metrics,
    /// Operations of stores.
    pub store: store::metrics::Metrics,
    /// Spans.
    pub trace: trace::metrics::Metrics,
}

impl Metrics {
    /// Registers the metrics of every layer in a new registry.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn register() -> prometheus::Result<Self> {
        let (registry, events) = (Registry::new(), Events::default());
        metrics::register_process(&registry)?;
        Ok(Self {
            client: client::metrics::Metrics::register(&registry)?.with_events(events.clone()),
            view: registry::metrics::Metrics::register(&registry)?,
            server: server::metrics::Metrics::register(&registry)?,
            admin: admin::metrics::Metrics::register(&registry)?,
            gateway: gateway::Metrics::register(&registry)?,
            tls: tls::metrics::Metrics::register(&registry)?,
            store: store::metrics::Metrics::register(&registry)?.with_events(events.clone()),
            trace: trace::metrics::Metrics::register(&registry)?,
            registry,
            events,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode};

    use super::*;
    use crate::api::rpc::Rpc;
    use crate::registry::Registered;

    static ROUTES: [(&str, Method); 1] = [("/api/x", Method::GET)];

    #[test]
    fn every_metric_can_be_registered_and_read() {
        let metrics = Metrics::register().unwrap();
        let requests = metrics.server.requests(&ROUTES);
        let target = requests.target(&Method::GET, "/api/x");
        requests.observe(target, StatusCode::OK, Duration::from_millis(3));
        requests.observe(requests.target(&Method::TRACE, "/zQ7"), StatusCode::IM_A_TEAPOT, Duration::ZERO);
        let calls = metrics.server.handled("feed");
        calls.observe(Rpc::GetFeeds, tonic::Code::Ok, Duration::from_micros(200));
        metrics.view.set_registrations([("feed", Registered::Up), ("feed", Registered::Up)].into_iter());
        let text = metrics::text(&metrics.registry);
        for line in [
            "http_server_request_duration_seconds_bucket{code=\"200\",method=\"GET\",route=\"/api/x\",le=\"0.005\"} 1",
            "http_server_request_duration_seconds_count{code=\"other\",method=\"other\",route=\"unknown\"} 1",
            "http_server_request_duration_seconds_count{code=\"503\",method=\"GET\",route=\"/api/x\"} 0",
            "grpc_server_handling_seconds_bucket{code=\"OK\",method=\"GetFeeds\",service=\"feed.Feed\",le=\"0.0001\"} 0",
            "grpc_server_handling_seconds_bucket{code=\"OK\",method=\"GetFeeds\",service=\"feed.Feed\",le=\"0.00025\"} 1",
            "grpc_server_handling_seconds_count{code=\"UNAVAILABLE\",method=\"CreateFeed\",service=\"feed.Feed\"} 0",
            "server_connections_cut_total{reason=\"flood\"} 0",
            "registry_registration_state{service=\"feed\",state=\"up\"} 2",
            "build_info{commit=",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("zQ7"), "a path is no label");
    }
}
