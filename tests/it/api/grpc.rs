//! The services as other gRPC clients see them: their calls, health, reflection, input checks.

use microservice_app::api::proto::{feed, profile, topic};
use microservice_app::config::Role;
use tonic::{Code, Request};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::kit::app::App;
use crate::kit::grpc::{call, channel};

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
