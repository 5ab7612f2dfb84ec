//! feed.Feed: validates the request, asks the store, builds the answer.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};

use crate::api::error::Error;
use crate::api::proto::feed::{
    DeleteFeedRequest, DeleteFeedResponse, FeedRecord, GetFeedsRequest, GetFeedsResponse, OkResponse,
    feed_server,
};
use crate::api::validate::Validate as _;
use crate::context::Context;
use crate::store::FeedStore;

/// The service.
pub struct Feed {
    /// The store of its records.
    pub store: Arc<dyn FeedStore>,
}

#[async_trait]
impl feed_server::Feed for Feed {
    async fn get_feeds(
        &self,
        request: Request<GetFeedsRequest>,
    ) -> Result<Response<GetFeedsResponse>, Status> {
        let request = request.into_inner();
        request.validate()?;
        let size = u32::try_from(request.size).unwrap_or(0);
        let page = self.store.newest(request.user_id, size, request.before).await;
        let page = page?.ok_or_else(|| Error::not_found(format!("user {} has no feeds", request.user_id)))?;
        Ok(Response::new(GetFeedsResponse { feeds: page.feeds, shortened: page.shortened }))
    }

    async fn create_feed(&self, request: Request<FeedRecord>) -> Result<Response<OkResponse>, Status> {
        let deadline = Context::of(request.extensions()).deadline.into_std();
        let feed = request.into_inner();
        feed.validate()?;
        self.store.create(feed, deadline).await?;
        Ok(Response::new(OkResponse {}))
    }

    async fn delete_feed(
        &self,
        request: Request<DeleteFeedRequest>,
    ) -> Result<Response<DeleteFeedResponse>, Status> {
        let deadline = Context::of(request.extensions()).deadline.into_std();
        let request = request.into_inner();
        request.validate()?;
        let deleted = self.store.delete(request.user_id, request.id, deadline).await?;
        Ok(Response::new(DeleteFeedResponse { deleted }))
    }
}
