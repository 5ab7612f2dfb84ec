//! The API over HTTP end to end: bodies, pages, headers.

use microservice_app::api::validate::{MAX_ANSWER, MAX_CONTENT};
use serde_json::json;

use crate::kit::app::App;
use crate::kit::http::{get, put, request, send};

async fn create(app: &App, user_id: i64, id: i64, content: &str) {
    let body = json!({"id": id, "user_id": user_id, "content": content}).to_string();
    let answer = put(app.gateway(), "/api/feed/create_feed", &body).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "{}"));
}

async fn ids(app: &App, query: &str) -> Vec<i64> {
    let answer = get(app.gateway(), &format!("/api/feed/get_feeds?{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let feeds = body["feeds"].as_array().expect("feeds");
    feeds.iter().map(|feed| feed["id"].as_i64().expect("an id")).collect()
}

#[tokio::test]
async fn feeds_come_in_pages_from_the_newest() {
    let app = App::start().await;
    for id in [30, 10, 50, 20, 40] {
        create(&app, 7, id, "x").await;
    }
    assert_eq!(ids(&app, "user_id=7").await, [10, 20, 30, 40, 50]);
    assert_eq!(ids(&app, "user_id=7&size=2").await, [40, 50]);
    assert_eq!(ids(&app, "user_id=7&size=2&before=40").await, [20, 30]);
    assert_eq!(ids(&app, "user_id=7&size=2&before=10").await, [0_i64; 0]);
    assert_eq!(ids(&app, "user_id=7&size=0").await, [0_i64; 0]);
    assert_eq!(ids(&app, "size=1&&user_id=7&").await, [50]);
    let empty = get(app.gateway(), "/api/feed/get_feeds?user_id=7&size=0").await;
    assert_eq!(empty.body, "{\n    \"feeds\": []\n}");
}

#[tokio::test]
async fn a_user_is_unknown_until_the_first_feed_and_after_the_last() {
    let app = App::start().await;
    create(&app, 7, 1, "x").await;
    create(&app, 7, 1, "y").await;
    let delete = || send(app.gateway(), request("DELETE", "/api/feed/delete_feed?user_id=7&id=1", ""));
    let answer = delete().await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "{}"));
    assert_eq!(delete().await.unwrap().status, 404);
    for query in ["user_id=7", "user_id=7&size=0", "user_id=7&before=5"] {
        assert_eq!(get(app.gateway(), &format!("/api/feed/get_feeds?{query}")).await.status, 404);
    }
}

#[tokio::test]
async fn a_page_over_2_mib_is_shortened_and_links_to_the_rest() {
    let app = App::start().await;
    let fits = i64::try_from(MAX_ANSWER / MAX_CONTENT).unwrap();
    for id in 1..=fits + 1 {
        create(&app, 7, id, &"x".repeat(MAX_CONTENT)).await;
    }
    let page = get(app.gateway(), "/api/feed/get_feeds?user_id=7&size=1000").await;
    let next = page.header("link");
    assert_eq!(next, "</api/feed/get_feeds?user_id=7&size=1000&before=2>; rel=\"next\"");
    assert_eq!(page.json()["feeds"].as_array().unwrap().len(), usize::try_from(fits).unwrap());
    let target = next.trim_start_matches('<').split('>').next().unwrap();
    let rest = get(app.gateway(), target).await;
    assert_eq!(rest.json()["feeds"][0]["id"], 1);
    assert!(!rest.headers.contains_key("link"), "{rest:?}");
}

#[tokio::test]
async fn profiles_and_topics_are_written_and_read() {
    let app = App::start().await;
    let profile = r#"{"user_id":7,"name":"Ada","company":"é","title":""}"#;
    assert_eq!(put(app.gateway(), "/api/profile/put_profile", profile).await.body, "{}");
    let answer = get(app.gateway(), "/api/profile/get_profile?user_id=7").await;
    let expected = "{\n    \"user_id\": 7,\n    \"name\": \"Ada\",\n    \"company\": \"é\",\n    \"title\": \"\",\n    \"feeds\": []\n}";
    assert_eq!(answer.body, expected);
    assert_eq!(answer.degraded(), "");
    for id in 1..=25 {
        create(&app, 7, id, "x").await;
    }
    let feeds = get(app.gateway(), "/api/profile/get_profile?user_id=7").await.json()["feeds"].clone();
    let page = get(app.gateway(), "/api/feed/get_feeds?user_id=7").await.json()["feeds"].clone();
    assert_eq!(feeds.as_array().unwrap().len(), 20);
    assert_eq!(feeds, page);

    for id in [2, 1, 3] {
        let topic = json!({"topic_id": id, "subject": format!("s{id}"), "content": "c"}).to_string();
        assert_eq!(put(app.gateway(), "/api/topic/put_topic", &topic).await.status, 200);
    }
    let topic = get(app.gateway(), "/api/topic/view?topic_id=2").await.json();
    assert_eq!(topic, json!({"topic_id": 2, "subject": "s2", "content": "c"}));
    let list = get(app.gateway(), "/api/topic/list?size=2").await.json();
    let summary = |id: i64| json!({"topic_id": id, "subject": format!("s{id}")});
    assert_eq!(list, json!({"topics": [summary(1), summary(2)], "next": 2}));
    let rest = get(app.gateway(), "/api/topic/list?size=2&after=2").await.json();
    assert_eq!(rest, json!({"topics": [summary(3)], "next": null}));
}

#[tokio::test]
async fn every_answer_carries_its_ids() {
    let app = App::start().await;
    let mut asked = request("GET", "/api/topic/list", "");
    asked.headers_mut().insert("x-request-id", "mine-1".parse().unwrap());
    asked.headers_mut().insert("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1".parse().unwrap());
    let answer = send(app.gateway(), asked).await.unwrap();
    assert_eq!(answer.header("x-request-id"), "mine-1");
    assert_eq!(answer.header("x-b3-traceid"), "80f198ee56343ba864fe8b2a57d3eff7");
    let fresh = get(app.gateway(), "/nowhere").await;
    assert_eq!(fresh.header("x-request-id").len(), 16);
    assert_eq!(fresh.header("x-b3-traceid"), fresh.json()["trace_id"]);
    let head = send(app.gateway(), request("HEAD", "/api/topic/list", "")).await.unwrap();
    assert_eq!((head.status.as_u16(), head.body.as_str()), (200, ""));
}
