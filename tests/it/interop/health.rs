//! Health as grpc.health.v1 describes it.

use std::net::SocketAddr;
use std::time::Duration;

use microservice_app::config::Role;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::kit::SOON;
use crate::kit::app::App;
use crate::kit::grpc::channel;

async fn watch(addr: SocketAddr, service: &str) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel(addr).await).watch(request).await.expect("a stream").into_inner()
}

/// Returns the next message of a watch; `None` when it has ended without an error.
async fn next(watch: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let message = tokio::time::timeout(SOON, watch.message()).await.expect("a message soon");
    message.expect("no error").map(|answer| answer.status())
}

/// A client may ask before the service is there: gRPC's own clients then wait on the stream, and one that ends is
/// opened again and again.
#[tokio::test]
async fn a_watch_of_an_unknown_service_says_so_and_stays_open() {
    let app = App::start().await;
    let addr = app.addresses.of(Role::Feed).unwrap();
    let mut unknown = watch(addr, "topic.Topic").await;
    assert_eq!(next(&mut unknown).await, Some(ServingStatus::ServiceUnknown));
    let more = tokio::time::timeout(Duration::from_millis(500), unknown.message()).await;
    assert!(more.is_err(), "it stays open and is silent: {more:?}");

    let request = HealthCheckRequest { service: "topic.Topic".to_owned() };
    let refused = HealthClient::new(channel(addr).await).check(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "a check has no other way to say it");

    app.stop.cancel();
    assert_eq!(next(&mut unknown).await, None, "it does not outlive the server");
}

/// A watch tells each change once, and the drain before the stream ends.
#[tokio::test]
async fn a_watch_tells_the_drain_and_ends() {
    let app = App::start().await;
    for (role, name) in
        [(Role::Feed, "feed.Feed"), (Role::Profile, "profile.Profile"), (Role::Topic, "topic.Topic")]
    {
        let addr = app.addresses.of(role).unwrap();
        for service in ["", name] {
            assert_eq!(
                next(&mut watch(addr, service).await).await,
                Some(ServingStatus::Serving),
                "{service}"
            );
        }
    }
    let addr = app.addresses.of(Role::Topic).unwrap();
    let mut watches = [watch(addr, "").await, watch(addr, "topic.Topic").await];
    for watch in &mut watches {
        assert_eq!(next(watch).await, Some(ServingStatus::Serving));
    }
    app.stop.cancel();
    for watch in &mut watches {
        assert_eq!(next(watch).await, Some(ServingStatus::NotServing));
        assert_eq!(next(watch).await, None);
    }
}
