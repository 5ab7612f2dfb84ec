//! Traces as a real Zipkin shows them, and what a collector is sent.

use std::collections::{BTreeMap, BTreeSet};

use ::http::Request;
use http_body_util::Full;
use serde_json::Value;

use crate::kit::collector::{Collector, Manner};
use crate::kit::etcd::Etcd;
use crate::kit::fake::{Behaviour, Fake};
use crate::kit::process::{Process, curl};
use crate::kit::system::Role;
use crate::kit::zipkin::{Zipkin, tag};
use crate::kit::{SOON, http, wait_for};

const PROFILE: &str = "/api/profile/get_profile?user_id=7";
const TOPICS: &str = "/api/topic/list?size=1";

/// A gateway and one instance of each service as processes over etcd, which trace into `collector`.
struct System {
    _etcd: Etcd,
    gateway: Role,
    services: BTreeMap<&'static str, Role>,
}

impl System {
    async fn start(collector: &str, ratio: &str) -> Self {
        let etcd = Etcd::start().await;
        let addr = etcd.addr.to_string();
        let env = [("MSA__TRACE__ZIPKIN_ADDR", collector), ("MSA__TRACE__SAMPLE_RATIO", ratio)];
        let start = |role| Role::start(&addr, role, "127.0.0.1:0", &env);
        let services = ["feed", "profile", "topic"].map(|role| (role, start(role)));
        let gateway = start("apigateway");
        for (service, _) in &services {
            gateway.wait_for_certain(service, 1).await;
        }
        let system = Self { _etcd: etcd, gateway, services: services.into() };
        // the profile service calls feed
        system.services["profile"].wait_for_certain("feed", 1).await;
        system
    }

    /// Writes profile 7 with one feed, untraced.
    async fn fill(&self) {
        let profile = r#"{"user_id":7,"name":"n","company":"c","title":"t"}"#;
        let feed = r#"{"id":1,"user_id":7,"content":"x"}"#;
        for (path, body) in [("/api/profile/put_profile", profile), ("/api/feed/create_feed", feed)] {
            let request = with(http::request("PUT", path, body), &[("b3", "0")]);
            assert_eq!(http::send(self.gateway.addr, request).await.unwrap().status, 200);
        }
    }

    /// Makes a request with these headers; returns the id of its trace.
    async fn get(&self, path: &str, headers: &[(&'static str, &str)]) -> String {
        let request = with(http::request("GET", path, ""), headers);
        let answer = http::send(self.gateway.addr, request).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.header("x-b3-traceid").to_owned()
    }
}

type Outgoing = Request<Full<bytes::Bytes>>;

fn with(mut request: Outgoing, headers: &[(&'static str, &str)]) -> Outgoing {
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Returns the spans of one kind in a service.
fn of<'a>(spans: &'a [Value], service: &str, kind: &str) -> Vec<&'a Value> {
    let fits = |span: &&Value| span["localEndpoint"]["serviceName"] == service && span["kind"] == kind;
    spans.iter().filter(fits).collect()
}

fn one<'a>(spans: &'a [Value], service: &str, kind: &str) -> &'a Value {
    let found = of(spans, service, kind);
    assert_eq!(found.len(), 1, "{kind} spans of {service} in {spans:#?}");
    found[0]
}

fn port(endpoint: &Value) -> u64 {
    endpoint["port"].as_u64().unwrap_or_default()
}

#[tokio::test]
async fn the_original_curls_make_three_traces_and_up_shows_four_services() {
    let zipkin = Zipkin::shared().await;
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().display().to_string();
    // the original's address: version 1
    let v1 = zipkin.url().replace("v2", "v1");
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &dir, "--zipkin-addr", &v1]);
    up.wait_for_log("version 1", |line| line["message"].as_str().is_some_and(|m| m.contains("version 2")));
    let gateway = up.wait_for_roles()["apigateway"];
    crate::api::walkthrough::walk(gateway);
    let traces = wait_for("three traces of three spans", || async {
        let traces = zipkin.traces_of(gateway).await;
        (traces.len() >= 3 && traces.iter().all(|spans| spans.len() == 3)).then_some(traces)
    })
    .await;
    assert_eq!(traces.len(), 3);
    let names: BTreeSet<_> =
        traces.iter().map(|spans| one(spans, "apigateway", "SERVER")["name"].to_string()).collect();
    assert_eq!(names.len(), 2, "two writes and a read: {names:?}");

    let base = format!("http://{gateway}");
    let profile = r#"{"user_id":7,"name":"n","company":"c","title":"t"}"#;
    curl(&["-XPUT", &format!("{base}/api/profile/put_profile"), "-d", profile]);
    curl(&[&format!("{base}{TOPICS}")]);
    wait_for("four services", || async {
        let mut seen = BTreeSet::new();
        for span in zipkin.traces_of(gateway).await.concat() {
            seen.insert(span["localEndpoint"]["serviceName"].as_str().unwrap_or_default().to_owned());
        }
        (seen.len() == 4).then_some(())
    })
    .await;
    let known = zipkin.services().await;
    for service in ["apigateway", "feed", "profile", "topic"] {
        assert!(known.contains(service), "{service} is not in {known:?}");
    }
}

#[tokio::test]
async fn a_profile_is_one_trace_over_three_services() {
    let zipkin = Zipkin::shared().await;
    let system = System::start(&zipkin.url(), "1").await;
    system.fill().await;
    let before = zipkin.dependencies().await;
    let id = system.get(PROFILE, &[]).await;
    let spans = zipkin.wait_for_trace(&id, 5).await;
    assert_eq!(spans.len(), 5, "{spans:#?}");

    let edge = one(&spans, "apigateway", "SERVER");
    let to_profile = one(&spans, "apigateway", "CLIENT");
    let profile = one(&spans, "profile", "SERVER");
    let to_feed = one(&spans, "profile", "CLIENT");
    let feed = one(&spans, "feed", "SERVER");
    assert_eq!(edge.get("parentId"), None, "{edge:#}");
    for (child, parent) in [(to_profile, edge), (profile, to_profile), (to_feed, profile), (feed, to_feed)] {
        assert_eq!(child["parentId"], parent["id"], "{child:#} below {parent:#}");
        let (inner, outer) = (child["duration"].as_u64(), parent["duration"].as_u64());
        assert!(inner <= outer, "{child:#} took longer than {parent:#}");
    }
    let (gateway, services) = (&system.gateway, &system.services);
    for (span, role) in [(edge, gateway), (profile, &services["profile"]), (feed, &services["feed"])] {
        assert_eq!(port(&span["localEndpoint"]), u64::from(role.addr.port()), "{span:#}");
        assert_eq!(span["localEndpoint"]["ipv4"], "127.0.0.1");
        assert_eq!(span["remoteEndpoint"]["ipv4"], "127.0.0.1", "who called");
    }
    for (span, service) in [(to_profile, "profile"), (to_feed, "feed")] {
        let remote = &span["remoteEndpoint"];
        assert_eq!(remote["serviceName"], service);
        assert_eq!(port(remote), u64::from(services[service].addr.port()));
        assert_eq!((tag(span, "attempt"), tag(span, "grpc.status_code")), ("1", "OK"));
    }
    let instance = gateway.id_of("profile", services["profile"].addr).await;
    assert_eq!([tag(to_profile, "instance"), tag(profile, "instance")], [&instance, &instance]);
    assert_eq!((tag(edge, "http.route"), tag(edge, "http.status_code")), ("/api/profile/get_profile", "200"));
    assert_eq!(edge["name"], "get /api/profile/get_profile");
    // what is left of two seconds falls from hop to hop; feed gets a fifth
    let left = |span| tag(span, "deadline_ms").parse::<u64>().unwrap();
    assert!(left(edge) == 2000 && left(profile) <= 2000 && left(feed) <= 400, "{spans:#?}");
    assert!(spans.iter().all(|span| tag(span, "error").is_empty()), "{spans:#?}");

    wait_for("the graph", || async {
        let after = zipkin.dependencies().await;
        let grew = |parent: &str, child: &str| {
            let link = (parent.to_owned(), child.to_owned());
            after.get(&link).copied().unwrap_or(0) > before.get(&link).copied().unwrap_or(0)
        };
        (grew("apigateway", "profile") && grew("profile", "feed")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_form_of_headers_is_joined() {
    let zipkin = Zipkin::shared().await;
    let system = System::start(&zipkin.url(), "0").await;
    let span = "e457b5a2e4d86bd1";
    let fresh = || format!("{:032x}", rand::random::<u128>());
    let (single, multi, w3c, short) = (fresh(), fresh(), fresh(), format!("{:016x}", rand::random::<u64>()));
    let (b3, traceparent) = (format!("{single}-{span}-1"), format!("00-{w3c}-{span}-01"));
    let b3_short = format!("{short}-{span}-1");
    system.get(TOPICS, &[("b3", &b3)]).await;
    system.get(TOPICS, &[("x-b3-traceid", &multi), ("x-b3-spanid", span), ("x-b3-sampled", "1")]).await;
    system.get(TOPICS, &[("traceparent", &traceparent)]).await;
    system.get(TOPICS, &[("b3", &b3_short)]).await;
    for id in [&single, &multi, &w3c, &short] {
        let spans = zipkin.wait_for_trace(id, 3).await;
        assert_eq!(one(&spans, "apigateway", "SERVER")["parentId"], span);
        assert_eq!(one(&spans, "topic", "SERVER")["parentId"], one(&spans, "apigateway", "CLIENT")["id"]);
    }
    // nobody asked for this one, and the ratio is 0
    let id = system.get(TOPICS, &[]).await;
    system.get(TOPICS, &[("b3", &format!("{}-{span}-1", fresh()))]).await;
    wait_for("the one after it", || async {
        (zipkin.traces_of(system.gateway.addr).await.len() == 5).then_some(())
    })
    .await;
    assert_eq!(http::get(zipkin.addr, &format!("/api/v2/trace/{id}")).await.status, 404);
}

#[tokio::test]
async fn another_attempt_is_a_sibling() {
    let (etcd, zipkin) = (Etcd::start().await, Zipkin::shared().await);
    let url = zipkin.url();
    let env = [("MSA__TRACE__ZIPKIN_ADDR", &*url)];
    let gateway = Role::start(&etcd.addr.to_string(), "apigateway", "127.0.0.1:0", &env);
    let failing = Behaviour { failing: 1.0, code: tonic::Code::Unavailable, ..Behaviour::default() };
    let fakes = [Fake::start_with(failing, 64).await, Fake::start().await];
    for fake in &fakes {
        let key = format!("/services/topic/{}", fake.addr);
        etcd.client().await.put(key, fake.addr.to_string(), None).await.unwrap();
    }
    gateway.wait_for_certain("topic", 2).await;
    let spans = wait_for("a call that meets the failing one first", || async {
        let before = fakes[0].calls();
        let answer = http::get(gateway.addr, TOPICS).await;
        assert_eq!(answer.status, 200);
        (fakes[0].calls() > before).then(|| answer.header("x-b3-traceid").to_owned())
    })
    .await;
    let spans = zipkin.wait_for_trace(&spans, 3).await;
    let edge = one(&spans, "apigateway", "SERVER");
    let mut attempts = of(&spans, "apigateway", "CLIENT");
    attempts.sort_by_key(|span| tag(span, "attempt").to_owned());
    // usually two; on a busy machine the failing one may be met twice
    let (last, failed) = attempts.split_last().expect("attempts");
    assert!(!failed.is_empty(), "{spans:#?}");
    for (number, attempt) in (1..).zip(&attempts) {
        assert_eq!((&attempt["parentId"], tag(attempt, "attempt")), (&edge["id"], &*number.to_string()));
    }
    for (attempts, fake, error) in [(failed, &fakes[0], "UNAVAILABLE"), (&[*last][..], &fakes[1], "")] {
        for attempt in attempts {
            assert_eq!(port(&attempt["remoteEndpoint"]), u64::from(fake.addr.port()), "{attempt:#}");
            assert_eq!(tag(attempt, "error"), error);
        }
    }
    assert_eq!(tag(edge, "error"), "");
}

#[tokio::test]
async fn the_last_span_before_a_stop_arrives() {
    let zipkin = Zipkin::shared().await;
    let mut system = System::start(&zipkin.url(), "1").await;
    let id = system.get(TOPICS, &[]).await;
    system.gateway.process.stop(SOON);
    system.services.get_mut("topic").unwrap().process.stop(SOON);
    assert_eq!(zipkin.wait_for_trace(&id, 3).await.len(), 3);
}

#[tokio::test]
async fn the_share_of_traced_requests_is_the_ratio() {
    let collector = Collector::start(Manner::Keep);
    let mut system = System::start(&collector.url(), "0.2").await;
    let mut connection = http::Connection::open(system.gateway.addr).await.unwrap();
    for _ in 0..1000 {
        assert_eq!(connection.get(TOPICS).await.unwrap().status, 200);
    }
    // a stop sends what is left
    system.gateway.process.stop(SOON);
    system.services.get_mut("topic").unwrap().process.stop(SOON);
    let mut traces = BTreeMap::<_, Vec<Value>>::new();
    for span in collector.spans() {
        traces.entry(span["traceId"].as_str().unwrap().to_owned()).or_default().push(span);
    }
    // of 1000 with 0.2: five standard deviations
    assert!((137..=263).contains(&traces.len()), "{} of 1000 requests, ratio 0.2", traces.len());
    // a trace is whole or not at all; on a busy machine an attempt may be given up for another
    for spans in traces.values() {
        one(spans, "apigateway", "SERVER");
        let attempts = of(spans, "apigateway", "CLIENT").len();
        let served = of(spans, "topic", "SERVER").len();
        assert!(attempts >= 1 && (1..=attempts).contains(&served), "{spans:#?}");
    }
}

#[tokio::test]
async fn health_checks_make_no_traces() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let collector = Collector::start(Manner::Keep);
    let mut system = System::start(&collector.url(), "1").await;
    let topic = system.services.get_mut("topic").unwrap();
    let mut health = HealthClient::new(crate::kit::grpc::channel(topic.addr).await);
    health.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    drop(health);
    system.get(TOPICS, &[]).await;
    // a stop sends what is left
    system.services.get_mut("topic").unwrap().process.stop(SOON);
    let names: BTreeSet<_> =
        of(&collector.spans(), "topic", "SERVER").iter().map(|span| span["name"].to_string()).collect();
    assert_eq!(names, BTreeSet::from(["\"topic.Topic/ListTopics\"".to_owned()]));
}
