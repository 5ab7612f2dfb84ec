//! /api/topic/*.

use std::sync::Arc;

use serde::Serialize;
use warp::reply::Response;

use super::App;
use super::reply::{self, Problem};
use super::request::Request;
use crate::api::proto::topic::{
    GetTopicRequest, GetTopicResponse, ListTopicsRequest, ListTopicsResponse, OkResponse, PutTopicRequest,
};
use crate::api::rpc::Rpc;
use crate::api::validate::DEFAULT_SIZE;
use crate::client::Reply;

/// PUT `{"topic_id","subject","content"}`: `{}`.
pub const PUT: &str = "/api/topic/put_topic";
/// GET `?topic_id`: `{"topic_id","subject","content"}`.
pub const VIEW: &str = "/api/topic/view";
/// GET `?after&size`: `{"topics":[{"topic_id","subject"}],"next":id or null}`.
pub const LIST: &str = "/api/topic/list";

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

pub async fn put(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let (mut body, context) = request.json(&app).await?;
    let topic = PutTopicRequest {
        topic_id: body.integer("topic_id")?,
        subject: body.text("subject")?,
        content: body.text("content")?,
    };
    body.finish()?;
    let reply: Reply<OkResponse> = app.client.call(Rpc::PutTopic, &topic, &context).await?;
    Ok(reply::mark(reply::empty(), &reply.headers))
}

pub async fn view(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut query = request.query()?;
    let topic_id = query.integer("topic_id")?;
    query.finish()?;
    let asked = GetTopicRequest { topic_id };
    let reply: Reply<GetTopicResponse> = app.client.call(Rpc::GetTopic, &asked, &request.context).await?;
    let body = Topic {
        topic_id: reply.message.topic_id,
        subject: reply.message.subject,
        content: reply.message.content,
    };
    Ok(reply::mark(reply::json(&body), &reply.headers))
}

pub async fn list(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut query = request.query()?;
    let page = ListTopicsRequest {
        after: query.optional_integer("after")?.unwrap_or(0),
        size: query.optional_integer("size")?.unwrap_or(DEFAULT_SIZE),
    };
    query.finish()?;
    let reply: Reply<ListTopicsResponse> = app.client.call(Rpc::ListTopics, &page, &request.context).await?;
    let topics = reply
        .message
        .topics
        .into_iter()
        .map(|topic| Summary { topic_id: topic.topic_id, subject: topic.subject });
    let body = Topics { topics: topics.collect(), next: Some(reply.message.next).filter(|next| *next > 0) };
    Ok(reply::mark(reply::json(&body), &reply.headers))
}
