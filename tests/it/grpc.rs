//! The services as other gRPC clients see them: health, reflection, input checks, deadlines.

use std::net::SocketAddr;
use std::time::Duration;

use microservice_app::api::proto::{feed, profile, topic};
use microservice_app::config::Role;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::kit::app::App;
use crate::kit::{measured, peer};

pub async fn channel(addr: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    endpoint.timeout(Duration::from_secs(10)).connect().await.unwrap()
}

/// Makes a unary call as any client of the protos would.
async fn call<Q, A>(addr: SocketAddr, path: &'static str, request: Request<Q>) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel(addr).await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::default();
    let answer = grpc.unary(request, PathAndQuery::from_static(path), codec).await?;
    Ok(answer.into_inner())
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

#[tokio::test]
async fn a_health_watcher_sees_the_drain() {
    let app = App::start_with(|settings| settings.shutdown.announce = Duration::from_millis(300)).await;
    let mut client = HealthClient::new(channel(app.addresses.of(Role::Feed).unwrap()).await);
    let asked = HealthCheckRequest { service: "feed.Feed".to_owned() };
    let mut stream = client.watch(asked).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    app.stop.cancel();
    assert_eq!(stream.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn a_call_ends_at_its_grpc_timeout() {
    let app = App::launch(|settings| settings.up.feed_replicas = 0);
    let silent = peer::stalling().await;
    let _registered = app.register("feed", silent.addr);
    let addr = app.addresses.of(Role::Profile).unwrap();
    let ada = profile::PutProfileRequest { user_id: 7, ..Default::default() };
    let _: profile::OkResponse = call(addr, "/profile.Profile/PutProfile", Request::new(ada)).await.unwrap();
    // a fifth of the time is for feed; without the header it would be a fifth of the default 2 s
    measured("a profile without feeds in time", || async move {
        let mut asked = Request::new(profile::GetProfileRequest { user_id: 7 });
        asked.metadata_mut().insert("grpc-timeout", "1000m".parse().unwrap());
        let begun = tokio::time::Instant::now();
        let answer: Result<profile::GetProfileResponse, _> =
            call(addr, "/profile.Profile/GetProfile", asked).await;
        let took = begun.elapsed();
        let in_time = (Duration::from_millis(180)..Duration::from_millis(350)).contains(&took);
        if answer.is_ok() && in_time { Ok(()) } else { Err((answer, took)) }
    })
    .await;
}
