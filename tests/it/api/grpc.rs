//! The services as other gRPC clients see them: their calls, health, reflection, input checks.

use std::net::SocketAddr;

use microservice_app::api::proto::{feed, profile, topic};
use microservice_app::config::Role;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::kit::SOON;
use crate::kit::app::App;
use crate::kit::grpc::{call, channel};

/// Sends a request over HTTP/2 as it stands; returns the status of HTTP, and that of gRPC if there is one.
async fn bare(addr: SocketAddr, request: http::request::Builder, body: &[u8]) -> (u16, Option<Code>) {
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = request.body(()).unwrap();
    let (answer, mut send) = sender.ready().await.unwrap().send_request(request, body.is_empty()).unwrap();
    if !body.is_empty() {
        send.send_data(bytes::Bytes::copy_from_slice(body), true).unwrap();
    }
    let answer = tokio::time::timeout(SOON, answer).await.unwrap().unwrap();
    let (head, mut body) = answer.into_parts();
    let in_head = Status::from_header_map(&head.headers).map(|status| status.code());
    while let Some(part) = body.data().await {
        let _ = body.flow_control().release_capacity(part.unwrap().len());
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    (head.status.as_u16(), in_head.or_else(|| Status::from_header_map(&trailers).map(|status| status.code())))
}

/// A message of a call: `ListTopics` with the defaults.
const EMPTY: &[u8] = &[0; 5];

#[tokio::test]
async fn what_is_no_grpc_call_is_answered_with_a_status_of_http() {
    let app = App::start().await;
    let addr = app.addresses.of(Role::Topic).unwrap();
    let list = format!("http://{addr}/topic.Topic/ListTopics");
    let post = |kind: &'static str| http::Request::post(&list).header("content-type", kind);
    for right in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
        assert_eq!(bare(addr, post(right), EMPTY).await, (200, Some(Code::Ok)), "{right}");
    }
    for wrong in ["text/plain", "application/json", "application/grpc+json", "application/grpc-web", ""] {
        assert_eq!(bare(addr, post(wrong), EMPTY).await, (415, None), "{wrong}");
    }
    assert_eq!(bare(addr, http::Request::post(&list), EMPTY).await, (415, None), "no content type");
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "FROB"] {
        let request =
            http::Request::builder().method(method).uri(&list).header("content-type", "application/grpc");
        assert_eq!(bare(addr, request, b"").await, (405, None), "{method}");
    }
    // health and reflection are gRPC too, and so is what nobody serves
    for path in
        ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/x/Y"]
    {
        let uri = format!("http://{addr}{path}");
        assert_eq!(bare(addr, http::Request::get(&uri), b"").await, (405, None), "{path}");
        assert_eq!(bare(addr, http::Request::post(&uri), EMPTY).await, (415, None), "{path}");
    }
    let unknown =
        http::Request::post(format!("http://{addr}/x/Y")).header("content-type", "application/grpc");
    assert_eq!(bare(addr, unknown, EMPTY).await, (200, Some(Code::Unimplemented)));
    // RFC 9113, 8.3.1
    let host = |name: &'static str| post("application/grpc").header("host", name);
    assert_eq!(bare(addr, host("other.example"), EMPTY).await, (400, None));
    let same = post("application/grpc").header("host", addr.to_string());
    assert_eq!(bare(addr, same, EMPTY).await, (200, Some(Code::Ok)));
}

#[tokio::test]
async fn a_timeout_that_cannot_be_read_is_refused() {
    let app = App::start().await;
    let addr = app.addresses.of(Role::Topic).unwrap();
    let timeouts = |values: &[&'static str]| {
        let request = http::Request::post(format!("http://{addr}/topic.Topic/ListTopics"));
        let request = request.header("content-type", "application/grpc");
        values.iter().fold(request, |request, value| request.header("grpc-timeout", *value))
    };
    for wrong in [&["1.5S"][..], &["5"], &["-1m"], &["123456789m"], &["soon"], &[""], &["5S", "5S"]] {
        assert_eq!(bare(addr, timeouts(wrong), EMPTY).await, (200, Some(Code::InvalidArgument)), "{wrong:?}");
    }
    assert_eq!(bare(addr, timeouts(&["99999999H"]), EMPTY).await, (200, Some(Code::Ok)));
}

#[tokio::test]
async fn a_second_message_in_a_unary_call_is_an_error() {
    let app = App::start().await;
    let addr = app.addresses.of(Role::Topic).unwrap();
    let topic = topic::PutTopicRequest { topic_id: 5, subject: "s".to_owned(), content: String::new() };
    let message = prost::Message::encode_to_vec(&topic);
    let framed = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()], &message[..]].concat();
    let post = |path: &str| {
        let request = http::Request::post(format!("http://{addr}{path}"));
        request.header("content-type", "application/grpc")
    };
    let put = "/topic.Topic/PutTopic";
    let internal = (200, Some(Code::Internal));
    assert_eq!(bare(addr, post(put), &[&framed[..], &framed].concat()).await, internal);
    assert_eq!(bare(addr, post(put), &[&framed[..], b"x"].concat()).await, internal, "and a part of one");
    assert_eq!(bare(addr, post(put), b"").await, internal, "none");
    let asked = Request::new(topic::GetTopicRequest { topic_id: 5 });
    let found: Result<topic::GetTopicResponse, _> = call(addr, "/topic.Topic/GetTopic", asked).await;
    assert_eq!(found.unwrap_err().code(), Code::NotFound, "nothing was written");
    let (check, watch) = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch");
    for path in [check, watch] {
        assert_eq!(bare(addr, post(path), &[EMPTY, EMPTY].concat()).await, internal, "{path}");
    }
    assert_eq!(bare(addr, post(check), EMPTY).await, (200, Some(Code::Ok)));
    assert_eq!(bare(addr, post(put), &framed).await, (200, Some(Code::Ok)));
}

#[tokio::test]
async fn the_original_calls_work() {
    let app = App::start().await;
    let addr = app.addresses.of(Role::Feed).unwrap();
    let record = feed::FeedRecord { id: 1, user_id: 7, content: "x".to_owned() };
    let _: feed::OkResponse =
        call(addr, "/feed.Feed/CreateFeed", Request::new(record.clone())).await.unwrap();
    let page = feed::GetFeedsRequest { user_id: 7, size: 10, before: 0 };
    let found: feed::GetFeedsResponse = call(addr, "/feed.Feed/GetFeeds", Request::new(page)).await.unwrap();
    assert_eq!(found.feeds, std::slice::from_ref(&record));
    // size 0 means none over gRPC too
    let none = feed::GetFeedsRequest { size: 0, ..page };
    let found: feed::GetFeedsResponse = call(addr, "/feed.Feed/GetFeeds", Request::new(none)).await.unwrap();
    assert_eq!(found.feeds, []);

    let addr = app.addresses.of(Role::Profile).unwrap();
    let ada = profile::PutProfileRequest {
        user_id: 7,
        name: "Ada".to_owned(),
        company: "c".to_owned(),
        title: "t".to_owned(),
    };
    let _: profile::OkResponse = call(addr, "/profile.Profile/PutProfile", Request::new(ada)).await.unwrap();
    let asked = Request::new(profile::GetProfileRequest { user_id: 7 });
    let found: profile::GetProfileResponse = call(addr, "/profile.Profile/GetProfile", asked).await.unwrap();
    assert_eq!(found.feeds, [prost::Message::encode_to_vec(&record)]);
}

#[tokio::test]
async fn a_service_checks_its_input_itself() {
    let app = App::start().await;
    let addr = app.addresses.of(Role::Topic).unwrap();
    let wrong = topic::PutTopicRequest { topic_id: 1, subject: "a\0b".to_owned(), content: String::new() };
    let refused: Result<topic::OkResponse, _> =
        call(addr, "/topic.Topic/PutTopic", Request::new(wrong)).await;
    let status = refused.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("subject: "), "{}", status.message());
    let asked = Request::new(topic::GetTopicRequest { topic_id: 9 });
    let missing: Result<topic::GetTopicResponse, _> = call(addr, "/topic.Topic/GetTopic", asked).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    let asked = Request::new(topic::GetTopicRequest { topic_id: 9 });
    let unknown: Result<topic::GetTopicResponse, _> = call(addr, "/topic.Topic/Nothing", asked).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn every_service_offers_health_and_reflection() {
    let app = App::start().await;
    for (role, name) in
        [(Role::Feed, "feed.Feed"), (Role::Profile, "profile.Profile"), (Role::Topic, "topic.Topic")]
    {
        let channel = channel(app.addresses.of(role).unwrap()).await;
        for service in ["", name] {
            let service = service.to_owned();
            let answer =
                HealthClient::new(channel.clone()).check(HealthCheckRequest { service }).await.unwrap();
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        }
        let asked = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(channel);
        let stream = client.server_reflection_info(tonic::codegen::tokio_stream::once(asked)).await.unwrap();
        let answer: ServerReflectionResponse = stream.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}");
        };
        assert!(list.service.iter().any(|s| s.name == name), "{list:?}");
    }
}
