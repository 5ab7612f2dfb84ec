//! The routes below `/api/topic/`.

use serde::Serialize;
use warp::reply::Response;

use super::problem::Problem;
use super::reply;
use super::request::Fields;
use crate::api::proto::topic::{
    GetTopicRequest, GetTopicResponse, ListTopicsRequest, ListTopicsResponse, OkResponse, PutTopicRequest,
};
use crate::api::rpc::Rpc;
use crate::api::validate::DEFAULT_SIZE;
use crate::client::{Client, Reply};
use crate::context::Context;

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the API's name")]
struct Topic {
    topic_id: i64,
    subject: String,
    content: String,
}

#[derive(Serialize)]
struct Summary {
    topic_id: i64,
    subject: String,
}

#[derive(Serialize)]
struct Topics {
    topics: Vec<Summary>,
    next: Option<i64>,
}

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
    let reply: Reply<GetTopicResponse> = client.call(Rpc::GetTopic, &asked, &context).await?;
    let body = Topic {
        topic_id: reply.message.topic_id,
        subject: reply.message.subject,
        content: reply.message.content,
    };
    Ok(reply::mark(reply::json(&body), &reply.headers))
}

/// `?after&size`: `{"topics":[{"topic_id","subject"}],"next":id or null}`.
pub async fn list(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let page = ListTopicsRequest {
        after: input.optional_integer("after")?.unwrap_or(0),
        size: input.optional_integer("size")?.unwrap_or(DEFAULT_SIZE),
    };
    input.finish()?;
    let reply: Reply<ListTopicsResponse> = client.call(Rpc::ListTopics, &page, &context).await?;
    let topics = reply
        .message
        .topics
        .into_iter()
        .map(|topic| Summary { topic_id: topic.topic_id, subject: topic.subject });
    let body = Topics { topics: topics.collect(), next: Some(reply.message.next).filter(|next| *next > 0) };
    Ok(reply::mark(reply::json(&body), &reply.headers))
}
