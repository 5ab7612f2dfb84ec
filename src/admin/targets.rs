//! `/sd/targets`: what Prometheus has to scrape, in the form of its HTTP service discovery. It is made from the view of
//! the registry.
//!
//! *Shape*: `[{"targets":["10.0.0.1:6062"],"labels":{"__meta_msa_service":"feed",...}}]`, one group for
//! each admin address, in the order of addresses. The scrape configuration chooses among the labels, since Prometheus
//! drops labels that begin with `__`:
//!
//! - `__meta_msa_service`: `feed`, `apigateway`, ...; `up` if several roles have the same address
//! - `__meta_msa_state`: `up`, `draining` (at least one of the instances), or `gone`: none of them is in the
//!   registry, and they vanished without `draining` within the last 10 minutes
//! - `__meta_msa_id`, `_version`, `_zone`, `_addr`: as registered, at most 128 bytes; left out if none is
//!   registered or if the instances with the address differ
//!
//! An instance that was `draining` leaves with its entry. One that vanished stays, so that its failing scrape is seen,
//! until another instance has the same admin address.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use warp::reply::Response;

use super::reply::{self, text};
use crate::registry::{Instance, View, ViewHandle};

/// Longest value of a label, bytes. Others may have written the entry.
const MAX_VALUE: usize = 128;

/// Answers with the targets, if this process follows the registry and has read it.
pub fn answer(view: Option<&ViewHandle>) -> Response {
    let Some(view) = view else {
        let elsewhere = "this process does not follow the registry: ask a gateway\n";
        return text(StatusCode::NOT_FOUND, elsewhere.to_owned());
    };
    let view = view.get();
    if !view.is_known() {
        // an error and not an empty list: then Prometheus keeps the targets that it has
        let unknown = "the registry has not been read yet\n";
        return text(StatusCode::SERVICE_UNAVAILABLE, unknown.to_owned());
    }
    reply::json(&groups(&view, Instant::now()))
}

/// Returns the target groups of a view.
fn groups(view: &View, now: Instant) -> Value {
    let mut behind: BTreeMap<&str, (bool, Vec<&Instance>)> = BTreeMap::new();
    for (admin, instances) in view.vanished.iter(now) {
        behind.insert(admin, (true, instances.iter().map(Arc::as_ref).collect()));
    }
    for instance in view.services.values().flat_map(|instances| instances.values()) {
        let Some(admin) = instance.admin.as_deref() else { continue };
        let (gone, instances) = behind.entry(admin).or_default();
        if std::mem::take(gone) {
            // an instance is registered at this address: those that vanished no longer answer there
            instances.clear();
        }
        instances.push(instance.as_ref());
    }
    let groups = behind.into_iter().filter(|(admin, _)| is_address(admin));
    groups.map(|(admin, (gone, instances))| group(admin, gone, &instances)).collect()
}

fn group(admin: &str, gone: bool, instances: &[&Instance]) -> Value {
    let service = common(instances, |i| Some(&i.service)).unwrap_or("up");
    let state = match gone {
        true => "gone",
        false if instances.iter().any(|i| i.draining) => "draining",
        false => "up",
    };
    let labels = [
        ("service", Some(service)),
        ("state", Some(state)),
        ("id", common(instances, |i| Some(&i.id))),
        ("version", common(instances, |i| Some(&i.version))),
        ("zone", common(instances, |i| i.zone.as_deref())),
        ("addr", common(instances, |i| Some(&i.addr))),
    ];
    let labels = labels.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| !value.is_empty())?;
        Some((format!("__meta_msa_{name}"), Value::from(shortened(value))))
    });
    json!({"targets": [admin], "labels": labels.collect::<Map<_, _>>()})
}

/// Returns a value that all instances share.
fn common<'a>(instances: &[&'a Instance], of: impl Fn(&'a Instance) -> Option<&'a str>) -> Option<&'a str> {
    let (first, others) = instances.split_first()?;
    let value = of(first)?;
    others.iter().all(|other| of(other) == Some(value)).then_some(value)
}

fn shortened(value: &str) -> &str {
    let cut = (0..=MAX_VALUE).rev().find(|at| value.is_char_boundary(*at));
    cut.and_then(|cut| value.get(..cut)).unwrap_or(value)
}

/// Returns whether a registered admin address can be scraped. Others may have written anything.
fn is_address(admin: &str) -> bool {
    let parsed = admin.parse::<crate::config::HostPort>();
    admin.len() <= 255 && parsed.is_ok_and(|parsed| parsed.port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Instances, Vanished};

    fn instance(service: &str, addr: &str, admin: &str) -> Instance {
        Instance {
            id: format!("id-{addr}"),
            version: "0.1.0".to_owned(),
            admin: Some(admin.to_owned()),
            ..Instance::bare(service, addr)
        }
    }

    fn view(instances: Vec<Instance>, gone: Vec<Instance>) -> View {
        let mut view = View::default();
        for instance in instances {
            let service = view.services.entry(instance.service.clone()).or_default();
            let service: &mut Instances = Arc::make_mut(service);
            service.insert(instance.addr.clone(), Arc::new(instance));
        }
        let mut vanished = Vanished::default();
        for instance in gone {
            vanished.remember(Arc::new(instance), Instant::now());
        }
        View { vanished: Arc::new(vanished), ..view }
    }

    fn groups_now(view: &View) -> Value {
        groups(view, Instant::now())
    }

    #[test]
    fn a_target_has_what_its_instance_registered() {
        let feed =
            Instance { zone: Some("b".to_owned()), ..instance("feed", "10.0.0.1:8082", "10.0.0.1:6062") };
        let hidden = Instance { admin: None, ..instance("feed", "10.0.0.2:8082", "") };
        let wanted = json!([{"targets": ["10.0.0.1:6062"], "labels": {
            "__meta_msa_service": "feed", "__meta_msa_state": "up", "__meta_msa_id": "id-10.0.0.1:8082",
            "__meta_msa_version": "0.1.0", "__meta_msa_zone": "b", "__meta_msa_addr": "10.0.0.1:8082",
        }}]);
        assert_eq!(groups_now(&view(vec![feed, hidden], vec![])), wanted);
        assert_eq!(groups_now(&View::default()), json!([]));
    }

    #[test]
    fn several_roles_behind_one_address_are_one_target() {
        let roles = ["feed", "topic", "apigateway"];
        let mut roles: Vec<_> = roles.iter().map(|role| instance(role, role, "h:6060")).collect();
        let wanted = |state| {
            json!([{"targets": ["h:6060"], "labels": {
                "__meta_msa_service": "up", "__meta_msa_state": state, "__meta_msa_version": "0.1.0",
            }}])
        };
        assert_eq!(groups_now(&view(roles.clone(), vec![])), wanted("up"));
        assert_eq!(groups_now(&view(vec![], roles.clone())), wanted("gone"));
        roles[1].draining = true;
        assert_eq!(groups_now(&view(roles.clone(), vec![])), wanted("draining"));
        // a service with two instances there is still that service
        let two = vec![instance("feed", "a:1", "h:6062"), instance("feed", "a:2", "h:6062")];
        assert_eq!(groups_now(&view(two, vec![]))[0]["labels"]["__meta_msa_service"], "feed");
    }

    #[test]
    fn vanished_instances_are_gone_unless_their_address_is_in_use() {
        let gone = vec![instance("feed", "a:1", "h:1"), instance("feed", "a:2", "h:2")];
        let states = |view: &View| -> Vec<_> {
            let groups = groups_now(view);
            let groups = groups.as_array().unwrap().iter();
            groups.map(|g| format!("{} {}", g["targets"][0], g["labels"]["__meta_msa_state"])).collect()
        };
        assert_eq!(states(&view(vec![], gone.clone())), ["\"h:1\" \"gone\"", "\"h:2\" \"gone\""]);
        let back = vec![instance("topic", "a:9", "h:1")];
        let view = view(back, gone);
        assert_eq!(states(&view), ["\"h:1\" \"up\"", "\"h:2\" \"gone\""]);
        assert_eq!(groups_now(&view)[0]["labels"]["__meta_msa_service"], "topic");
    }

    #[test]
    fn values_of_others_stay_values() {
        let evil = "x\",\"job\":\"etcd\n\u{0}";
        let strange = Instance {
            version: "é".repeat(100),
            id: evil.to_owned(),
            zone: Some(String::new()),
            ..instance("feed", "a:1", "h:1")
        };
        let text = groups_now(&view(vec![strange], vec![])).to_string();
        let labels = &serde_json::from_str::<Value>(&text).unwrap()[0]["labels"];
        assert_eq!(labels["__meta_msa_id"], evil);
        assert_eq!(labels["__meta_msa_version"], "é".repeat(64));
        let names: Vec<_> =
            labels.as_object().unwrap().keys().map(|name| name.replace("__meta_msa_", "")).collect();
        assert_eq!(names, ["addr", "id", "service", "state", "version"]);
        for admin in ["h", "h:0", "http://h:1", "h:1/metrics", "h h:1", "a:1,b:1", ""] {
            assert_eq!(groups_now(&view(vec![instance("feed", "a:1", admin)], vec![])), json!([]), "{admin}");
        }
    }
}
