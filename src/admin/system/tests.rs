use std::collections::BTreeMap;

use super::*;
use crate::admin::health::Health;
use crate::admin::history::{KEPT, Line, Route};
use crate::admin::state::Links;
use crate::admin::status::{Endpoint, Registered, Registry, Role, Status};
use crate::client::status::Instance;
use crate::telemetry::events::{Event, Kind, LONGEST};

/// Returns an instance that is not well in every way that makes its row longer.
fn bad(addr: &str, error: &str) -> Endpoint {
    let method = |value: f64| BTreeMap::from([("GetFeeds".to_owned(), value)]);
    let seen = Instance {
        addr: addr.to_owned(),
        state: "down".to_owned(),
        ewma_ms: method(1234.5),
        failures: method(0.5),
        last_error: Some(error.to_owned()),
        why: Some("it cannot be connected to".to_owned()),
        ..Instance::default()
    };
    Endpoint::new(seen, true)
}

/// Returns a system with so many instances of each service, and as much of everything else as there can be.
fn large(instances: usize) -> (Status, BTreeMap<String, Line>) {
    let services = ["feed", "profile", "topic"];
    let addrs: Vec<_> = (0..instances).map(|n| format!("192.168.{}.{}:8082", n / 256, n % 256)).collect();
    let endpoints = || addrs.iter().map(|addr| bad(addr, &"x".repeat(5000))).collect();
    let listed = |addr: &String| Registered {
        addr: addr.clone(),
        version: "0.1.0 (1a2b3c4d5e6f)".to_owned(),
        admin: Some(addr.clone()),
        ..Registered::default()
    };
    let names: Vec<_> = (0..40).map(|n| format!("package.Service/SomeLongMethodName{n}")).collect();
    let routes = names.iter().map(|name| Route { name: name.clone(), ..Route::default() }).collect();
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let rates: Vec<_> = (0..KEPT).map(|n| (n * 7919 % 977) as f64).collect();
    let line = Line { answers: rates.clone(), failed: rates };
    let event = Event { at: 1_795_369_975, kind: Kind::Instance, text: "y".repeat(LONGEST).into() };
    let mut status = Status {
        clients: vec![services.map(|name| (name.to_owned(), endpoints())).into(); 2],
        registry: Some(Registry {
            services: services.map(|name| (name.to_owned(), addrs.iter().map(listed).collect())).into(),
            ..Registry::default()
        }),
        events: vec![event; 64],
        ..Status::default()
    };
    status.traffic.routes = routes;
    status.health = status.worst();
    (status, names.into_iter().map(|name| (name, line.clone())).collect())
}

#[test]
fn the_page_is_small_however_large_the_system_is() {
    let (status, lines) = large(1000);
    let page = render(&status, &lines, &Links::default());
    let all = page.len() + STYLE.len() + SCRIPT.len() + ICON.len();
    assert!(all <= 100_000, "{all} bytes, {} of them the page", page.len());
    assert!(page.contains("and 980 more: 980 fail"), "what is not shown is counted");
}

#[test]
fn what_others_have_chosen_is_text_in_the_page() {
    let evil = "<script>alert(1)</script>\"'><img src=x>";
    let seen = bad(evil, evil);
    let mut status = Status {
        version: evil.to_owned(),
        roles: vec![Role {
            name: evil.to_owned(),
            reasons: vec![evil.to_owned()],
            health: Health::Warn,
            ..Role::default()
        }],
        clients: vec![[(evil.to_owned(), vec![seen])].into()],
        best_effort: vec![[(evil.to_owned(), [(evil.to_owned(), evil.to_owned())].into())].into()],
        events: vec![Event { at: 0, kind: Kind::Instance, text: evil.into() }],
        ..Status::default()
    };
    let listed = |admin: &str| Registered {
        addr: evil.to_owned(),
        version: evil.to_owned(),
        admin: Some(admin.to_owned()),
        ..Registered::default()
    };
    let services =
        [(evil.to_owned(), vec![listed("javascript:alert(1)//")]), ("other".to_owned(), vec![listed(evil)])];
    status.registry =
        Some(Registry { services: services.into(), reasons: vec![evil.to_owned()], ..Registry::default() });
    status.traffic.routes = vec![Route { name: evil.to_owned(), ..Route::default() }];
    status.traffic.reasons = vec![evil.to_owned()];
    let page = render(&status, &BTreeMap::new(), &Links::default());
    assert_eq!(page.matches("<script").count(), 1, "its own: {page}");
    assert!(!page.contains("<img") && !page.contains("\"'>"), "{page}");
    assert!(!page.contains("href=\"javascript") && !page.contains("http://javascript"), "{page}");
    assert!(page.matches("&lt;script&gt;").count() > 8, "it is shown: {page}");
}

#[test]
fn an_instance_says_why_it_gets_no_calls() {
    let with = |change: fn(&mut Instance), limbo: bool| {
        let mut seen = Instance { addr: "a:1".to_owned(), state: "up".to_owned(), ..Instance::default() };
        change(&mut seen);
        let clients = vec![[("feed".to_owned(), vec![Endpoint::new(seen, limbo)])].into()];
        let status = Status { clients, ..Status::default() };
        let page = render(&status, &BTreeMap::new(), &Links::default());
        let (_, row) = page.split_once("<li id=\"feed-a:1\" class=\"").expect("its row");
        row.split_once("<span class=\"facts\">").expect("its facts").0.to_owned()
    };
    assert_eq!(with(|_| {}, false), "ok\"><span class=\"state\">up</span><strong>a:1</strong>");
    let open = |seen: &mut Instance| {
        seen.why = Some("breaker open for GetFeeds".to_owned());
        seen.breakers = BTreeMap::from([("GetFeeds".to_owned(), "open".to_owned())]);
        seen.breaker_seconds = BTreeMap::from([("GetFeeds".to_owned(), 3)]);
    };
    assert_eq!(
        with(open, false),
        "warn\"><span class=\"state\">breaker open</span><strong>a:1</strong> breaker open for GetFeeds, for 3 s"
    );
    let down = |seen: &mut Instance| {
        seen.state = "down".to_owned();
        seen.why = Some("it cannot be connected to".to_owned());
        seen.last_error = Some("connection refused".to_owned());
    };
    assert_eq!(
        with(down, false),
        "fail\"><span class=\"state\">down</span><strong>a:1</strong> it cannot be connected to; connection refused"
    );
    let silent = |seen: &mut Instance| {
        seen.state = "not_serving".to_owned();
        seen.why = Some("it says that it does not serve".to_owned());
    };
    assert!(with(silent, false).starts_with("fail\"><span class=\"state\">not serving</span>"));
    assert!(with(|_| {}, true).starts_with(
        "warn\"><span class=\"state\">limbo</span><strong>a:1</strong> the registry has lost it"
    ));
    let drains = |seen: &mut Instance| {
        (seen.draining, seen.why) = (true, Some("it is draining".to_owned()));
    };
    assert!(with(drains, false).contains("warn\"><span class=\"state\">draining</span>"));
}
