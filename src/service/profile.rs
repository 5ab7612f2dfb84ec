//! profile.Profile: the profile comes from the store, the user's newest feeds from the feed service. If feed cannot
//! answer, the profile has earlier feeds or none, and the metadata of the answer says so.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use tokio::time::Instant;
use tonic::{Request, Response, Status, async_trait};

use crate::api::error::{Code, Error};
use crate::api::headers::DEGRADED;
use crate::api::proto::feed::GetFeedsRequest;
use crate::api::proto::profile::{
    GetProfileRequest, GetProfileResponse, OkResponse, PutProfileRequest, profile_server,
};
use crate::api::received::EncodedFeeds;
use crate::api::rpc::Rpc;
use crate::api::validate::{PROFILE_FEEDS, Validate as _};
use crate::client::{Client, Reply};
use crate::context::Context;
use crate::store::ProfileStore;
use crate::telemetry::log::LogThrottle;

/// The value of `x-degraded` for a profile without its feeds.
const FEEDS_UNAVAILABLE: HeaderValue = HeaderValue::from_static("feeds_unavailable");

/// The service.
pub struct Profile {
    /// The store of its records.
    pub store: Arc<dyn ProfileStore>,
    /// Calls feed.
    pub client: Client,
    /// Logs that feed could not answer.
    pub without_feeds: LogThrottle,
}

#[async_trait]
impl profile_server::Profile for Profile {
    async fn get_profile(
        &self,
        request: Request<GetProfileRequest>,
    ) -> Result<Response<GetProfileResponse>, Status> {
        let context = Context::of(request.extensions());
        let request = request.into_inner();
        request.validate()?;
        let profile = self.store.get(request.user_id).await?;
        let profile =
            profile.ok_or_else(|| Error::not_found(format!("there is no profile {}", request.user_id)))?;
        let (feeds, marks) = self.feeds(request.user_id, &context).await;
        let mut response = Response::new(GetProfileResponse {
            user_id: profile.user_id,
            name: profile.name,
            company: profile.company,
            title: profile.title,
            feeds,
        });
        if !marks.is_empty() {
            let metadata = std::mem::take(response.metadata_mut());
            let mut headers = metadata.into_headers();
            headers.extend(marks);
            *response.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
        }
        Ok(response)
    }

    async fn put_profile(&self, request: Request<PutProfileRequest>) -> Result<Response<OkResponse>, Status> {
        let deadline = Context::of(request.extensions()).deadline.into_std();
        let profile = request.into_inner();
        profile.validate()?;
        self.store.put(profile.into(), deadline).await?;
        Ok(Response::new(OkResponse {}))
    }
}

impl Profile {
    /// Returns the newest feeds, encoded; none for a user without feeds. If they are those of an earlier answer, or
    /// missing, the headers say how the profile is degraded.
    async fn feeds(&self, user_id: i64, context: &Context) -> (Vec<Bytes>, HeaderMap) {
        let request = GetFeedsRequest { user_id, size: PROFILE_FEEDS, before: 0 };
        // so little that the profile itself is still in time without them
        let context = context.with_deadline(Instant::now() + context.remaining() / 5);
        let reply: Result<Reply<EncodedFeeds>, Error> =
            self.client.call_best_effort(Rpc::GetFeeds, &request, &context).await;
        let mut marks = HeaderMap::new();
        match reply {
            Ok(reply) => {
                for name in [DEGRADED, header::AGE] {
                    if let Some(value) = reply.headers.get(&name) {
                        marks.insert(name, value.clone());
                    }
                }
                (reply.message.feeds, marks)
            }
            Err(error) if error.code == Code::NotFound => (Vec::new(), marks),
            Err(error) => {
                let (request_id, trace_id) = context.ids();
                // while feed cannot answer, every profile comes here
                if let Some(times) = self.without_feeds.note() {
                    tracing::info!(times, %error, request_id, %trace_id, "profiles without feeds");
                } else {
                    tracing::debug!(%error, request_id, %trace_id, "profile without feeds");
                }
                marks.insert(DEGRADED, FEEDS_UNAVAILABLE);
                (Vec::new(), marks)
            }
        }
    }
}
