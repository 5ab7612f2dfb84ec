//! Browsers as callers: OPTIONS, pages of other origins, and what caches may keep.

use http::Method;
use microservice_app::gateway::{PAGES, ROUTES};

use crate::kit::app::App;
use crate::kit::http::{Answer, raw, request, send};

const ALLOWED: &str = "https://app.example";
const OTHER: &str = "https://evil.example";

async fn ask(app: &App, method: &str, path: &str, headers: &[(&'static str, &str)]) -> Answer {
    let mut asked = request(method, path, "");
    for (name, value) in headers {
        asked.headers_mut().insert(*name, value.parse().unwrap());
    }
    send(app.gateway(), asked).await.unwrap()
}

fn has_cors(answer: &Answer) -> bool {
    answer.headers.keys().any(|name| name.as_str().starts_with("access-control-") || name == "vary")
}

async fn with_origins(change: impl FnOnce(&mut microservice_app::config::Settings)) -> App {
    App::start_with(|settings| {
        settings.http.cors_origins = vec![ALLOWED.parse().unwrap(), "http://localhost:3000".parse().unwrap()];
        change(settings);
    })
    .await
}

#[tokio::test]
async fn options_answers_with_the_methods_of_a_route() {
    let app = App::start().await;
    for route in &ROUTES {
        let answer = ask(&app, "OPTIONS", route.path, &[]).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""), "{}", route.path);
        let wanted = match route.method {
            Method::GET => "GET, HEAD, OPTIONS",
            Method::PUT => "OPTIONS, PUT",
            _ => "DELETE, OPTIONS",
        };
        assert_eq!(answer.header("allow"), wanted, "{}", route.path);
        // what OPTIONS says is what 405 says
        let refused = ask(&app, "PATCH", route.path, &[]).await;
        assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, wanted), "{}", route.path);
    }
    assert_eq!(ask(&app, "OPTIONS", "/api/topic/list?size=2", &[]).await.status, 200);
    assert_eq!(ask(&app, "OPTIONS", "/nothing", &[]).await.status, 404);
    let body = send(app.gateway(), request("OPTIONS", "/api/topic/list", "{}")).await.unwrap();
    assert_eq!((body.status.as_u16(), body.json()["field"].as_str()), (400, Some("body")));
}

#[tokio::test]
async fn without_origins_nothing_of_cors_is_sent() {
    let app = App::start().await;
    for (method, path) in
        [("GET", "/api/topic/list"), ("OPTIONS", "/api/topic/put_topic"), ("GET", "/docs"), ("GET", "/x")]
    {
        let asks = [("origin", ALLOWED), ("access-control-request-method", "PUT")];
        let answer = ask(&app, method, path, &asks).await;
        assert!(!has_cors(&answer), "{method} {path}: {answer:?}");
    }
}

#[tokio::test]
async fn a_page_of_an_origin_that_is_named_may_call() {
    let app = with_origins(|_| {}).await;
    for origin in [ALLOWED, "http://localhost:3000"] {
        for route in &ROUTES {
            let method = route.method.as_str();
            let asks = [
                ("origin", origin),
                ("access-control-request-method", method),
                ("access-control-request-headers", "content-type,x-request-timeout-ms"),
            ];
            let answer = ask(&app, "OPTIONS", route.path, &asks).await;
            assert_eq!(answer.status, 200, "{}: {answer:?}", route.path);
            assert_eq!(answer.header("access-control-allow-origin"), origin);
            assert_eq!(answer.header("access-control-allow-methods"), answer.header("allow"));
            assert!(answer.header("access-control-allow-methods").split(", ").any(|known| known == method));
            let accepted: Vec<_> = answer.header("access-control-allow-headers").split(", ").collect();
            for name in
                ["content-type", "x-request-timeout-ms", "x-request-id", "traceparent", "b3", "x-b3-traceid"]
            {
                assert!(accepted.contains(&name), "{name}: {accepted:?}");
            }
            assert_eq!((answer.header("access-control-max-age"), answer.header("vary")), ("600", "origin"));
            assert!(!answer.headers.contains_key("access-control-allow-credentials"));
        }
        // the answers themselves, failures too
        for (method, path, status) in [
            ("GET", "/api/topic/list", 200),
            ("GET", "/api/topic/view?topic_id=9", 404),
            ("GET", "/api/topic/list?size=x", 400),
            ("PUT", "/api/topic/list", 405),
            ("GET", "/nothing", 404),
            ("GET", "/openapi.json", 200),
        ] {
            let answer = ask(&app, method, path, &[("origin", origin)]).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("access-control-allow-origin")),
                (status, origin),
                "{path}"
            );
            let exposed: Vec<_> = answer.header("access-control-expose-headers").split(", ").collect();
            for name in [
                "x-request-id",
                "x-b3-traceid",
                "x-msa-instance",
                "x-degraded",
                "age",
                "link",
                "retry-after",
                "etag",
            ] {
                assert!(exposed.contains(&name), "{name}: {exposed:?}");
            }
            assert!(!answer.headers.contains_key("access-control-allow-methods"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_page_of_any_other_origin_may_not() {
    let app = with_origins(|_| {}).await;
    let near = [
        "https://app.example:8443",
        "http://app.example",
        "https://app.example.evil.example",
        "https://x.app.example",
        "null",
        "HTTPS://APP.EXAMPLE",
    ];
    for origin in near.into_iter().chain([OTHER]) {
        for (method, path) in [("OPTIONS", "/api/topic/put_topic"), ("GET", "/api/topic/list"), ("GET", "/x")]
        {
            let asks = [("origin", origin), ("access-control-request-method", "PUT")];
            let answer = ask(&app, method, path, &asks).await;
            assert!(
                !answer.headers.keys().any(|name| name.as_str().starts_with("access-control-")),
                "{answer:?}"
            );
            // a cache must not give this answer to the origin that may
            assert_eq!(answer.header("vary"), "origin", "{answer:?}");
        }
    }
    let none = ask(&app, "GET", "/api/topic/list", &[]).await;
    assert_eq!((none.status.as_u16(), none.header("vary")), (200, "origin"));
}

#[tokio::test]
async fn preflights_count_against_the_limits() {
    let app = with_origins(|settings| (settings.http.rate_limit, settings.http.rate_burst) = (1, 2)).await;
    let asks = [("origin", ALLOWED), ("access-control-request-method", "PUT")];
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = ask(&app, "OPTIONS", "/api/topic/put_topic", &asks).await;
        // the script may read why
        assert_eq!(answer.header("access-control-allow-origin"), ALLOWED, "{answer:?}");
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
    let full = with_origins(|settings| settings.http.max_in_flight = 1).await;
    let _slow = crate::kit::http::small(full.gateway()).await;
    assert_eq!(ask(&full, "OPTIONS", "/api/topic/put_topic", &asks).await.status, 200);
}

/// Only files may be kept, and only if they are compared before they are used.
#[tokio::test]
async fn no_answer_of_a_route_may_be_kept() {
    let app = App::start().await;
    for (method, path) in [
        ("GET", "/api/topic/list"),
        ("GET", "/api/topic/view?topic_id=9"),
        ("GET", "/api/topic/list?size=x"),
        ("PUT", "/api/topic/put_topic"),
        ("DELETE", "/api/topic/list"),
        ("OPTIONS", "/api/topic/list"),
        ("GET", "/nothing"),
        ("GET", "/docs?x=1"),
    ] {
        let answer = ask(&app, method, path, &[]).await;
        assert_eq!(answer.header("cache-control"), "no-store", "{method} {path}");
    }
    for page in &PAGES {
        assert_eq!(
            ask(&app, "GET", page.path, &[]).await.header("cache-control"),
            "no-cache",
            "{}",
            page.path
        );
    }
}

/// RFC 9110, 9.3.2: the headers of GET, and no content.
#[tokio::test]
async fn head_is_get_without_its_body() {
    let app = App::start().await;
    let topic = r#"{"topic_id":1,"subject":"s","content":"c"}"#;
    assert_eq!(send(app.gateway(), request("PUT", "/api/topic/put_topic", topic)).await.unwrap().status, 200);
    let routes = [
        "/api/topic/list",
        "/api/topic/view?topic_id=1",
        "/api/topic/view?topic_id=9",
        "/api/topic/list?size=x",
        "/api/feed/get_feeds?user_id=7",
        "/api/profile/get_profile?user_id=7",
        "/api/topic/put_topic",
        "/nothing",
    ];
    for path in routes.into_iter().chain(PAGES.iter().map(|page| page.path)) {
        let (get, head) = (ask(&app, "GET", path, &[]).await, ask(&app, "HEAD", path, &[]).await);
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        for (name, value) in &get.headers {
            // each request has ids of its own
            let fresh = ["date", "x-request-id", "x-b3-traceid"].contains(&name.as_str());
            assert!(
                head.headers.get(name).is_some_and(|there| fresh || there == value),
                "{path} {name}: {head:?}"
            );
        }
        assert_eq!(head.headers.len(), get.headers.len(), "{path}: {head:?}");
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
    }
}

#[tokio::test]
async fn under_a_name_that_is_not_its_own_a_gateway_is_not_asked() {
    let app = App::start_with(|settings| settings.http.hosts = vec!["api.example".parse().unwrap()]).await;
    let list = "/api/topic/list";
    for host in ["api.example", "API.example.", "api.example:8080", "localhost", "127.0.0.1:80", "[::1]"] {
        assert_eq!(ask(&app, "GET", list, &[("host", host)]).await.status, 200, "{host}");
    }
    // a page of evil.example whose name was given the gateway's address
    let topic = r#"{"topic_id":7,"subject":"evil","content":""}"#;
    for host in ["evil.example", "evil.example:80", "api.example.evil.example", "x.api.example", "2130706433"]
    {
        for (method, path, body) in [
            ("GET", list, ""),
            ("PUT", "/api/topic/put_topic", topic),
            ("GET", "/docs", ""),
            ("OPTIONS", "*", ""),
        ] {
            let mut asked = request(method, path, body);
            asked.headers_mut().insert("host", host.parse().unwrap());
            let answer = send(app.gateway(), asked).await.unwrap();
            let problem = answer.json();
            assert_eq!(
                (answer.status.as_u16(), problem["field"].as_str()),
                (421, Some("host")),
                "{host} {path}"
            );
        }
    }
    // the target counts more than the field
    let asked = format!("GET http://evil.example{list} HTTP/1.1\r\nhost: api.example\r\n\r\n");
    let answer = raw(app.gateway(), asked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    let missing = ask(&app, "GET", "/api/topic/view?topic_id=7", &[]).await;
    assert_eq!(missing.status, 404, "nothing was written");
}
