//! Which token opens which route, and what a caller without one is told.

use http::Method;
use microservice_app::gateway::ROUTES;
use serde_json::{Value, json};

use super::{Secured, refusal};
use crate::kit::app::App;
use crate::kit::fake::Fake;
use crate::kit::http::{get, request, send};
use crate::kit::token::{Signer, claims, with};
use crate::kit::wait_for;

const REALM: &str = "Bearer realm=\"microservice-app\"";

/// A request for each route, in their order, about user 123.
const REQUESTS: [(&str, &str); 8] = [
    ("/api/feed/create_feed", r#"{"id":1,"user_id":123,"content":"x"}"#),
    ("/api/feed/get_feeds?user_id=123", ""),
    ("/api/feed/delete_feed?user_id=123&id=1", ""),
    ("/api/profile/put_profile", r#"{"user_id":123,"name":"a","company":"b","title":"c"}"#),
    ("/api/profile/get_profile?user_id=123", ""),
    ("/api/topic/put_topic", r#"{"topic_id":1,"subject":"a","content":"b"}"#),
    ("/api/topic/view?topic_id=1", ""),
    ("/api/topic/list", ""),
];

#[tokio::test]
async fn without_a_key_set_nobody_is_asked() {
    let app = App::start().await;
    for authorization in ["Bearer x", "Basic eDp5", ""] {
        let mut asked = request("GET", "/api/topic/list", "");
        asked.headers_mut().insert("authorization", authorization.parse().unwrap());
        assert_eq!(send(app.gateway(), asked).await.unwrap().status, 200, "{authorization}");
    }
    let description = get(app.gateway(), "/openapi.json").await.json();
    assert!(description["components"]["securitySchemes"].is_null());
    assert!(!description.to_string().contains("Unauthorized"));
    assert!(!get(app.addresses.admin, "/metrics").await.body.contains("http_auth_refused_total{"));
}

#[tokio::test]
async fn every_route_needs_a_token_and_writes_that_of_their_user() {
    let key = Signer::es256("a");
    let secured = Secured::start(&[&key], |_| {}).await;
    let (own, other) = (format!("bearer {}", key.token("123")), format!("Bearer {}", key.token("124")));
    for (route, (path, body)) in ROUTES.iter().zip(REQUESTS) {
        let method = route.method.as_str();
        let none = secured.ask(method, path, body, &[]).await;
        assert_eq!(refusal(&none), (401, "unauthorized".to_owned(), REALM.to_owned()), "{path}");
        let writes = body.contains("user_id") || route.method == Method::DELETE;
        let others = secured.ask(method, path, body, &[&other]).await;
        if writes {
            let (status, kind, challenge) = refusal(&others);
            assert_eq!((status, kind.as_str()), (403, "forbidden"), "{path}");
            let error =
                "error=\"insufficient_scope\", error_description=\"the token belongs to another user\"";
            assert_eq!(challenge, format!("{REALM}, {error}"));
        } else {
            assert!(![401, 403].contains(&others.status.as_u16()), "{path}: {others:?}");
        }
        // in an order in which each finds what it asks for
        assert_eq!(secured.ask(method, path, body, &[&own]).await.status, 200, "{path}");
        // the form of a request comes first, and there is no token for what is not there
        let unknown = secured.ask("PATCH", path, "", &[]).await;
        assert_eq!(unknown.status, 405, "{path}");
        assert_eq!(secured.ask("OPTIONS", path, "", &[]).await.status, 200, "{path}");
    }
    assert_eq!(secured.ask("HEAD", "/api/topic/list", "", &[]).await.status, 401);
    assert_eq!(secured.ask("HEAD", "/api/topic/list", "", &[&own]).await.status, 200);
    assert_eq!(secured.ask("GET", "/nothing", "", &[]).await.status, 404);
    for path in ["/docs", "/openapi.json"] {
        assert_eq!(secured.ask("GET", path, "", &[]).await.status, 200, "{path}");
    }
    assert!(secured.refused("owner").await >= 3.0 && secured.refused("missing").await >= 8.0);
}

/// An id has several notations in JSON, and the handler must not read another one than the check.
#[tokio::test]
async fn an_owner_is_compared_with_what_is_written() {
    let key = Signer::eddsa("a");
    let secured = Secured::start(&[&key], |_| {}).await;
    let put = |user: &str| format!(r#"{{"id":1,"user_id":{user},"content":"x"}}"#);
    for (sub, body, status) in [
        ("123", put("123"), 200),
        ("123", put("123.0"), 200),
        ("123", put("1.23e2"), 200),
        ("123", put("124"), 403),
        ("123", put("-123"), 403),
        ("0123", put("123"), 403),
        ("+123", put("123"), 403),
        ("123 ", put("123"), 403),
        ("ada", put("123"), 403),
        ("123", put("\"123\""), 400),
        ("123", put("null"), 400),
        ("123", put("123,\"user_id\":124"), 400),
        ("124", put("123,\"user_id\":124"), 400),
        ("123", r#"{"id":1,"content":"x"}"#.to_owned(), 400),
    ] {
        let token = format!("Bearer {}", key.token(sub));
        let answer = secured.ask("PUT", "/api/feed/create_feed", &body, &[&token]).await;
        assert_eq!(answer.status, status, "{sub} {body}: {answer:?}");
        if status == 400 {
            assert_eq!(answer.json()["field"], "user_id", "{body}");
        }
    }
    let token = format!("Bearer {}", key.token("123"));
    for (query, status) in [
        ("user_id=124&id=1", 403),
        ("user_id=%31%32%34&id=1", 403),
        ("user_id=123&user_id=124&id=1", 400),
        ("user_id=124&user_id=123&id=1", 400),
        ("%75ser_id=123&id=1", 200),
    ] {
        let path = format!("/api/feed/delete_feed?{query}");
        assert_eq!(secured.ask("DELETE", &path, "", &[&token]).await.status, status, "{query}");
    }
}

#[tokio::test]
async fn a_policy_opens_and_closes_routes() {
    let key = Signer::es256("a");
    let rules =
        ["list_topics=public", "put_topic=scope:topics.write", "get_feeds=owner", "create_feed=token"];
    let secured = Secured::start(&[&key], |settings| {
        settings.http.auth_policy = rules.map(|rule| rule.parse().unwrap()).to_vec();
        settings.http.cors_origins = vec!["https://app.example".parse().unwrap()];
    })
    .await;
    // public: nobody looks at the token
    for authorization in [&[][..], &["Bearer x"], &["a", "b"]] {
        assert_eq!(secured.ask("GET", "/api/topic/list", "", authorization).await.status, 200);
    }
    let (path, body) = REQUESTS[5];
    let scoped = |members: Value| format!("Bearer {}", key.sign(&key.head(), &with(claims("ada"), &members)));
    for members in
        [json!({}), json!({"scope": "topics"}), json!({"scope": "topics.write.all"}), json!({"scp": []})]
    {
        let (status, kind, challenge) = refusal(&secured.ask("PUT", path, body, &[&scoped(members)]).await);
        assert_eq!((status, kind.as_str()), (403, "forbidden"));
        let error =
            "error=\"insufficient_scope\", error_description=\"the token lacks the scope of this operation\"";
        assert_eq!(challenge, format!("{REALM}, {error}, scope=\"topics.write\""));
    }
    let none = refusal(&secured.ask("PUT", path, body, &[]).await);
    assert_eq!(none, (401, "unauthorized".to_owned(), format!("{REALM}, scope=\"topics.write\"")));
    for members in [json!({"scope": "a topics.write"}), json!({"scp": ["topics.write"]})] {
        assert_eq!(secured.ask("PUT", path, body, &[&scoped(members)]).await.status, 200);
    }
    let ada = scoped(json!({}));
    assert_eq!(secured.ask("PUT", REQUESTS[0].0, REQUESTS[0].1, &[&ada]).await.status, 200);
    assert_eq!(secured.ask("GET", REQUESTS[1].0, "", &[&ada]).await.status, 403);

    let mut preflight = request("OPTIONS", path, "");
    preflight.headers_mut().insert("origin", "https://app.example".parse().unwrap());
    preflight.headers_mut().insert("access-control-request-method", "PUT".parse().unwrap());
    let answer = send(secured.app.gateway(), preflight).await.unwrap();
    assert!(answer.header("access-control-allow-headers").split(", ").any(|name| name == "authorization"));
    assert!(
        answer.header("access-control-expose-headers").split(", ").any(|name| name == "www-authenticate")
    );
    check_description(&get(secured.app.gateway(), "/openapi.json").await.json());
}

/// The description says what the policy does.
fn check_description(description: &Value) {
    let scheme = &description["components"]["securitySchemes"]["bearer"];
    assert_eq!((scheme["type"].as_str(), scheme["scheme"].as_str()), (Some("http"), Some("bearer")));
    let operation = |path: &str, method: &str| &description["paths"][path][method];
    let public = operation("/api/topic/list", "get");
    assert!(public["security"].is_null() && public["responses"]["401"].is_null());
    for (path, method, scopes, forbidden) in [
        ("/api/topic/put_topic", "put", json!(["topics.write"]), true),
        ("/api/feed/get_feeds", "get", json!([]), true),
        ("/api/feed/create_feed", "put", json!([]), false),
        ("/api/topic/view", "get", json!([]), false),
    ] {
        let operation = operation(path, method);
        assert_eq!(operation["security"], json!([{"bearer": scopes}]), "{path}");
        assert_eq!(operation["responses"]["401"]["$ref"], "#/components/responses/Unauthorized", "{path}");
        assert_eq!(!operation["responses"]["403"].is_null(), forbidden, "{path}");
    }
    let challenge = &description["components"]["responses"]["Forbidden"]["headers"]["www-authenticate"];
    assert_eq!(challenge["$ref"], "#/components/headers/WwwAuthenticate");
}

/// A service learns who asked, from the token and from nobody else.
#[tokio::test]
async fn a_service_is_told_who_asked() {
    let key = Signer::es256("a");
    let fake = Fake::start().await;
    let secured = Secured::start(&[&key], |settings| {
        settings.up.topic_replicas = 1;
        settings.http.auth_policy = vec!["get_topic=public".parse().unwrap()];
    })
    .await;
    let _registration = secured.app.register("topic", fake.addr);
    let list = |token: String| {
        let mut asked = request("GET", "/api/topic/list", "");
        asked.headers_mut().insert("x-msa-subject", "admin".parse().unwrap());
        asked.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        send(secured.app.gateway(), asked)
    };
    wait_for("the fake gets calls", || async {
        let status = list(key.token("a b%\u{e9}")).await.unwrap().status;
        (status == 200 && fake.calls() > 0).then_some(())
    })
    .await;
    let seen = fake.seen();
    assert!(seen.iter().all(|call| call.subject.as_deref() == Some("a%20b%25%C3%A9")), "{seen:?}");
    // nobody is asked for a token: nobody is named
    let known = seen.len();
    wait_for("the fake gets calls without a token", || async {
        let mut asked = request("GET", "/api/topic/view?topic_id=1", "");
        asked.headers_mut().insert("x-msa-subject", "admin".parse().unwrap());
        send(secured.app.gateway(), asked).await.unwrap();
        (fake.calls() > known).then_some(())
    })
    .await;
    assert!(fake.seen().iter().skip(known).all(|call| call.subject.is_none()), "{:?}", fake.seen());
}
