//! The whole stack, with servers that are too large for every run: `make test-stack`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use serde_json::Value;

use crate::kit::etcd::Etcd;
use crate::kit::http::{get, put};
use crate::kit::parts::{Cadvisor, Cgroup, Elasticsearch, link_spans};
use crate::kit::prometheus::Prometheus;
use crate::kit::system::Role;
use crate::kit::zipkin::Zipkin;
use crate::kit::{skip, wait_long_for};

/// Profiles that are asked for.
const CALLS: usize = 20;

/// Returns the day in UTC, `2026-11-22`.
fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let date =
        std::process::Command::new("date").args(["-u", "-d", &format!("@{now}"), "+%F"]).output().unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
#[ignore = "wants Elasticsearch and Zipkin's dependencies job: make test-stack"]
async fn the_dependencies_job_finds_who_calls_whom() {
    let elasticsearch = Elasticsearch::start().await;
    let url = elasticsearch.url();
    let storage = [
        ("STORAGE_TYPE", "elasticsearch"),
        ("ES_HOSTS", url.as_str()),
        ("ES_INDEX_REPLICAS", "0"),
        ("ES_INDEX_SHARDS", "1"),
    ];
    let zipkin = Zipkin::start_with(&storage).await;
    let etcd = Etcd::start().await;
    let collector = zipkin.url();
    let env = [("MSA__TRACE__ZIPKIN_ADDR", collector.as_str()), ("MSA__TRACE__SAMPLE_RATIO", "1")];
    let start = |role| Role::start(&etcd.addr.to_string(), role, "127.0.0.1:0", &env);
    let [feed, profile, gateway] = ["feed", "profile", "apigateway"].map(start);
    for role in ["feed", "profile"] {
        gateway.wait_for_certain(role, 1).await;
    }
    wait_long_for("profile calls feed", || async {
        profile.metric_above("client_endpoints{service=\"feed\",state=\"up\"}", 0.0).await.then_some(())
    })
    .await;

    let first_day = today();
    let content = "{\"id\":1,\"user_id\":7,\"content\":\"\"}";
    assert_eq!(put(gateway.addr, "/api/feed/create_feed", content).await.status, StatusCode::OK);
    let ada = "{\"user_id\":7,\"name\":\"Ada\",\"company\":\"\",\"title\":\"\"}";
    assert_eq!(put(gateway.addr, "/api/profile/put_profile", ada).await.status, StatusCode::OK);
    for _ in 0..CALLS {
        let answer = get(gateway.addr, "/api/profile/get_profile?user_id=7").await;
        assert_eq!((answer.status, answer.degraded()), (StatusCode::OK, ""));
    }
    // spans of a call: gateway, its client, profile, its client, feed
    let of = |spans: &[Value], name: &str| {
        spans.iter().filter(|s| s["localEndpoint"]["serviceName"] == name).count()
    };
    wait_long_for("every span is stored", || async {
        // an index that is being made answers with an error
        let answer = get(zipkin.addr, "/api/v2/traces?limit=1000&lookback=3600000").await;
        let traces = Some(answer).filter(|answer| answer.status == StatusCode::OK)?.json();
        let traces = traces.as_array()?;
        let whole = traces.iter().filter_map(Value::as_array).filter(|spans| {
            of(spans, "apigateway") == 2 && of(spans, "profile") == 2 && of(spans, "feed") == 1
        });
        (traces.len() == CALLS + 2 && whole.count() == CALLS).then_some(())
    })
    .await;
    drop((feed, profile, gateway));
    assert_eq!(zipkin.dependencies().await, BTreeMap::new(), "nobody has linked them yet");

    let days = std::collections::BTreeSet::from([first_day, today()]);
    for day in &days {
        link_spans(&elasticsearch, day);
    }
    let pair = |parent: &str, child: &str| (parent.to_owned(), child.to_owned());
    let calls = CALLS as u64;
    let want = BTreeMap::from([
        (pair("apigateway", "profile"), calls + 1),
        (pair("apigateway", "feed"), 1),
        (pair("profile", "feed"), calls),
    ]);
    let mut seen = BTreeMap::new();
    let linked = wait_long_for("links", || {
        let zipkin = &zipkin;
        async move {
            let found = zipkin.dependencies().await;
            (!found.is_empty()).then_some(found)
        }
    })
    .await;
    seen.extend(linked);
    assert_eq!(seen, want);
    assert_eq!(zipkin.services().await.into_iter().collect::<Vec<_>>(), ["apigateway", "feed", "profile"]);
}

/// Returns every query of the panels of a dashboard.
fn queries(panel: &Value, out: &mut Vec<String>) {
    match panel {
        Value::Object(members) => {
            out.extend(members.get("expr").and_then(Value::as_str).map(ToOwned::to_owned));
            members.values().for_each(|inner| queries(inner, out));
        }
        Value::Array(list) => list.iter().for_each(|inner| queries(inner, out)),
        _ => {}
    }
}

#[tokio::test]
#[ignore = "wants cAdvisor: make test-stack"]
async fn cadvisor_answers_the_containers_dashboard() {
    if let Some(reason) = Cadvisor::missing() {
        return skip("cAdvisor answers the containers dashboard", reason);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring/dashboards/containers.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut all = Vec::new();
    queries(&dashboard["panels"], &mut all);
    assert!(all.len() >= 5, "{all:?}");

    let cgroup = Cgroup::make();
    let cadvisor = Cadvisor::start().await;
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: cadvisor\n    static_configs:\n      \
         - targets: [ \"{}\" ]\n",
        cadvisor.addr
    );
    let prometheus = Prometheus::start(&config, &[]).await;
    let instance = cadvisor.addr.to_string();
    for expr in all {
        // every container, as the dashboard begins
        let expr =
            expr.replace("$__rate_interval", "15s").replace("$instance", &instance).replace("$id", ".+");
        assert!(!expr.contains('$'), "a variable that this test does not know: {expr}");
        let answer = prometheus.wait_for(&expr).await;
        assert!(answer.iter().all(|(_, value)| value.is_finite()), "{expr}: {answer:?}");
        println!("{} series, the first {:?}: {expr}", answer.len(), answer.first());
    }
    let cgroup = match cgroup {
        Ok(cgroup) => cgroup,
        Err(reason) => {
            return skip("cAdvisor sees a busy container", &reason);
        }
    };
    // a process that does nothing but run is seen to run
    let busy = format!("sum(rate(container_cpu_usage_seconds_total{{id=\"{}\"}}[10s])) > 0.1", cgroup.id);
    let answer = prometheus.wait_for(&busy).await;
    assert_eq!(answer.len(), 1, "{answer:?}");
    drop(cgroup);
    tokio::time::timeout(Duration::from_mins(1), async {
        while !prometheus.query(&busy).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("it is gone");
}
