//! The routes below `/api/topic/`.

use warp::reply::Response;

use super::answers;
use super::problem::Problem;
use super::reply;
use super::request::Fields;
use crate::api::proto::topic::{GetTopicRequest, ListTopicsRequest, OkResponse, PutTopicRequest};
use crate::api::received::{Topic, Topics};
use crate::api::rpc::Rpc;
use crate::api::validate::DEFAULT_SIZE;
use crate::client::{Client, Reply};
use crate::context::Context;

/// `{"topic_id","subject","content"}`: `{}`.
pub async fn put(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let topic = PutTopicRequest {
        topic_id: input.integer("topic_id")?,
        subject: input.text("subject")?,
        content: input.text("content")?,
    };
    input.finish()?;
    let reply: Reply<OkResponse> = client.call(Rpc::PutTopic, &topic, &context).await?;
    Ok(reply::mark(reply::empty(), &reply.headers))
}

/// `?topic_id`: `{"topic_id","subject","content"}`.
pub async fn view(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let topic_id = input.integer("topic_id")?;
    input.finish()?;
    let asked = GetTopicRequest { topic_id };
    let reply: Reply<Topic> = client.call(Rpc::GetTopic, &asked, &context).await?;
    Ok(reply::mark(reply::json(answers::topic(&reply.message)), &reply.headers))
}

/// `?after&size`: `{"topics":[{"topic_id","subject"}],"next":id or null}`.
pub async fn list(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let page = ListTopicsRequest {
        after: input.optional_integer("after")?.unwrap_or(0),
        size: input.optional_integer("size")?.unwrap_or(DEFAULT_SIZE),
    };
    input.finish()?;
    let reply: Reply<Topics> = client.call(Rpc::ListTopics, &page, &context).await?;
    Ok(reply::mark(reply::json(answers::topics(&reply.message)), &reply.headers))
}
