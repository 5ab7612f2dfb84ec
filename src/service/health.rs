//! What a service says of its health (grpc.health.v1), to checks and on watches.
//!
//! The messages are tonic-health's, its server is not: that ends a watch of an unknown service with NOT_FOUND. The
//! protocol wants SERVICE_UNKNOWN and an open stream, as a client may ask before the service is there.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::receive::MAX_STANDARD_MESSAGE;

/// What is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Serving,
    NotServing,
    /// As `NotServing`, and no watch is followed any longer.
    Ended,
}

/// The health of one service and of the whole server (`""`), which are the same. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    /// The gRPC name of the service.
    name: &'static str,
    report: watch::Sender<Report>,
}

impl Health {
    /// Returns the health of a service that does not serve yet.
    pub fn new(name: &'static str) -> Self {
        Self { name, report: watch::Sender::new(Report::NotServing) }
    }

    /// Returns the server that reports it.
    pub fn server(&self) -> HealthServer<Self> {
        HealthServer::new(self.clone()).max_decoding_message_size(MAX_STANDARD_MESSAGE)
    }

    /// Sets what checks and watches report.
    pub fn set_serving(&self, serving: bool) {
        self.report.send_replace(if serving { Report::Serving } else { Report::NotServing });
    }

    /// Ends the watches, so that a drain does not wait for them. Checks answer NOT_SERVING from then on.
    pub fn end_watches(&self) {
        self.report.send_replace(Report::Ended);
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || service == self.name
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.knows(&request.get_ref().service) {
            return Err(Status::not_found("there is no such service here"));
        }
        Ok(Response::new(answer(status(true, *self.report.borrow()))))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.knows(&request.get_ref().service);
        let changes =
            stream::unfold((self.report.subscribe(), None), move |(mut reports, last)| async move {
                loop {
                    let report = *reports.borrow_and_update();
                    let status = status(known, report);
                    if last != Some(status) {
                        return Some((Ok(answer(status)), (reports, Some(status))));
                    }
                    if report == Report::Ended || reports.changed().await.is_err() {
                        return None;
                    }
                }
            });
        Ok(Response::new(changes.boxed()))
    }
}

/// Returns what is said of a service; `known` is false for one that is not here.
const fn status(known: bool, report: Report) -> ServingStatus {
    match report {
        _ if !known => ServingStatus::ServiceUnknown,
        Report::Serving => ServingStatus::Serving,
        Report::NotServing | Report::Ended => ServingStatus::NotServing,
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[cfg(test)]
mod tests {
    use health_server::Health as _;

    use super::*;

    fn ask(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    async fn watched(health: &Health, service: &str) -> Vec<ServingStatus> {
        let stream = health.watch(ask(service)).await.unwrap().into_inner();
        stream.map(|answer| answer.unwrap().status()).collect().await
    }

    #[tokio::test]
    async fn the_last_part_of_a_drain_is_not_serving_and_holds_nobody() {
        let health = Health::new("feed.Feed");
        health.set_serving(true);
        assert_eq!(health.check(ask("")).await.unwrap().into_inner().status(), ServingStatus::Serving);
        health.end_watches();
        for service in ["", "feed.Feed"] {
            let checked = health.check(ask(service)).await.unwrap().into_inner();
            assert_eq!(checked.status(), ServingStatus::NotServing);
            assert_eq!(watched(&health, service).await, [ServingStatus::NotServing]);
        }
        assert_eq!(health.check(ask("feed")).await.unwrap_err().code(), tonic::Code::NotFound);
        assert_eq!(watched(&health, "feed").await, [ServingStatus::ServiceUnknown]);
    }
}
