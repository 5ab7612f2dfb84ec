//! topic.Topic: validates the request, asks the store, builds the answer.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};

use crate::api::error::Error;
use crate::api::proto::topic::{
    GetTopicRequest, GetTopicResponse, ListTopicsRequest, ListTopicsResponse, OkResponse, PutTopicRequest,
    topic_server,
};
use crate::api::validate::Validate as _;
use crate::context::Context;
use crate::store::TopicStore;

/// The service.
pub struct Topic {
    /// The store of its records.
    pub store: Arc<dyn TopicStore>,
}

#[async_trait]
impl topic_server::Topic for Topic {
    async fn get_topic(
        &self,
        request: Request<GetTopicRequest>,
    ) -> Result<Response<GetTopicResponse>, Status> {
        let request = request.into_inner();
        request.validate()?;
        let topic = self.store.get(request.topic_id).await?;
        let topic =
            topic.ok_or_else(|| Error::not_found(format!("there is no topic {}", request.topic_id)))?;
        Ok(Response::new(GetTopicResponse {
            topic_id: topic.topic_id,
            subject: topic.subject,
            content: topic.content,
        }))
    }

    async fn put_topic(&self, request: Request<PutTopicRequest>) -> Result<Response<OkResponse>, Status> {
        let deadline = Context::of(request.extensions()).deadline.into_std();
        let topic = request.into_inner();
        topic.validate()?;
        self.store.put(topic.into(), deadline).await?;
        Ok(Response::new(OkResponse {}))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let request = request.into_inner();
        request.validate()?;
        let size = u32::try_from(request.size).unwrap_or(0);
        let page = self.store.list(request.after, size).await?;
        Ok(Response::new(ListTopicsResponse { topics: page.topics, next: page.next }))
    }
}
