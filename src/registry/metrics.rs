//! The metrics of the registry: the registrations of this process, and its view.

use std::sync::{Arc, OnceLock};

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Registry};

use super::registration::Registered;
use super::view::ViewHandle;
use crate::telemetry::metrics::{counter, float_gauge, gauge, gauges};

/// The metrics of the registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    registrations: IntGaugeVec,
    /// Registered at the first call of [`Self::set_view`], so that a process that does not follow the registry exports
    /// none of them, not even with the value 0.
    view: Arc<OnceLock<ViewMetrics>>,
}

#[derive(Clone, Debug)]
struct ViewMetrics {
    age: prometheus::Gauge,
    revision: IntGauge,
    instances: IntGauge,
    limbo: IntGauge,
    ignored: IntGauge,
    resets: IntCounter,
    differences: IntCounter,
}

impl ViewMetrics {
    fn register(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            age: float_gauge(
                r,
                "registry_view_age_seconds",
                "Time since the registry last confirmed the view; -1 before the first time.",
            )?,
            revision: gauge(
                r,
                "registry_view_revision",
                "Revision of the view; grows within an epoch of the registry.",
            )?,
            instances: gauge(
                r,
                "registry_view_instances",
                "Instances in the view, including those in limbo.",
            )?,
            limbo: gauge(
                r,
                "registry_view_limbo",
                "Instances that the registry has lost but that are still called.",
            )?,
            ignored: gauge(r, "registry_view_ignored_keys", "Keys below the prefix that cannot be read.")?,
            resets: counter(
                r,
                "registry_view_resets_total",
                "How often the registry was another one or an older state of itself.",
            )?,
            differences: counter(
                r,
                "registry_view_differences_total",
                "Keys in which a periodic list differed from what the events had said.",
            )?,
        })
    }
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let registrations = gauges(
            registry,
            "registry_registration_state",
            "Registrations of this process, by state.",
            &["service", "state"],
        )?;
        Ok(Self { registry: registry.clone(), registrations, view: Arc::default() })
    }

    /// Counts registrations by state.
    pub fn set_registrations(&self, states: impl Iterator<Item = (&'static str, Registered)>) {
        self.registrations.reset();
        for (service, state) in states {
            for known in Registered::ALL {
                let count = self.registrations.with_label_values(&[service, known.name()]);
                count.add(i64::from(known == state));
            }
        }
    }

    /// Sets the gauges of the view.
    pub fn set_view(&self, view: &ViewHandle) {
        if self.view.get().is_none() {
            match ViewMetrics::register(&self.registry) {
                Ok(made) => drop(self.view.set(made)),
                Err(error) => tracing::error!(%error, "the metrics of the view cannot be registered"),
            }
        }
        let Some(metrics) = self.view.get() else { return };
        metrics.age.set(view.age().map_or(-1.0, |age| age.as_secs_f64()));
        let differences = view.differences();
        let view = view.get();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.revision.set(view.revision);
        metrics.instances.set(count(view.services.values().map(|instances| instances.len()).sum()));
        metrics.limbo.set(count(view.limbo.len()));
        metrics.ignored.set(count(view.ignored));
        // the view counts both; the counters follow it
        metrics.resets.inc_by(view.epoch.saturating_sub(metrics.resets.get()));
        let differences = u64::try_from(differences).unwrap_or(u64::MAX);
        metrics.differences.inc_by(differences.saturating_sub(metrics.differences.get()));
    }
}
