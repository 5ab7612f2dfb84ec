//! /api/feed/*.

use std::sync::Arc;

use http::{HeaderValue, header};
use serde::Serialize;
use warp::reply::Response;

use super::App;
use super::reply::{self, Problem};
use super::request::Request;
use crate::api::error::Error;
use crate::api::proto::feed::{
    DeleteFeedRequest, DeleteFeedResponse, FeedRecord, GetFeedsRequest, GetFeedsResponse, OkResponse,
};
use crate::api::rpc::Rpc;
use crate::api::validate::DEFAULT_SIZE;
use crate::client::Reply;

/// PUT `{"id","user_id","content"}`: `{}`.
pub const CREATE: &str = "/api/feed/create_feed";
/// GET `?user_id&size&before`: `{"feeds":[{"id","user_id","content"}]}`.
pub const GET: &str = "/api/feed/get_feeds";
/// DELETE `?user_id&id`: `{}`.
pub const DELETE: &str = "/api/feed/delete_feed";

/// A feed as callers see it, here and inside a profile.
#[derive(Serialize)]
pub struct Feed {
    id: i64,
    user_id: i64,
    content: String,
}

impl From<FeedRecord> for Feed {
    fn from(record: FeedRecord) -> Self {
        Self { id: record.id, user_id: record.user_id, content: record.content }
    }
}

#[derive(Serialize)]
struct Feeds {
    feeds: Vec<Feed>,
}

pub async fn create(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let (mut body, context) = request.json(&app).await?;
    let feed = FeedRecord {
        id: body.integer("id")?,
        user_id: body.integer("user_id")?,
        content: body.text("content")?,
    };
    body.finish()?;
    let reply: Reply<OkResponse> = app.client.call(Rpc::CreateFeed, &feed, &context).await?;
    Ok(reply::mark(reply::empty(), &reply.headers))
}

pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut query = request.query()?;
    let user_id = query.integer("user_id")?;
    let size = query.optional_integer("size")?.unwrap_or(DEFAULT_SIZE);
    let before = query.optional_integer("before")?;
    query.finish()?;
    if before.is_some_and(|before| before <= 0) {
        // over gRPC 0 stands for no bound; a caller here leaves it out
        return Err(Error::bad("before", "must be an integer from 1 to 9223372036854775807").into());
    }
    let page = GetFeedsRequest { user_id, size, before: before.unwrap_or(0) };
    let reply: Reply<GetFeedsResponse> = app.client.call(Rpc::GetFeeds, &page, &request.context).await?;
    let shortened = reply.message.shortened;
    let feeds: Vec<Feed> = reply.message.feeds.into_iter().map(Feed::from).collect();
    let next = feeds.first().filter(|_| shortened).map(|first| first.id);
    let mut response = reply::mark(reply::json(&Feeds { feeds }), &reply.headers);
    if let Some(before) = next {
        let link = format!("<{GET}?user_id={user_id}&size={size}&before={before}>; rel=\"next\"");
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    Ok(response)
}

pub async fn delete(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut query = request.query()?;
    let feed = DeleteFeedRequest { user_id: query.integer("user_id")?, id: query.integer("id")? };
    query.finish()?;
    let reply: Reply<DeleteFeedResponse> = app.client.call(Rpc::DeleteFeed, &feed, &request.context).await?;
    // an earlier attempt may have deleted it
    if !reply.message.deleted && !reply.repeated {
        let detail = format!("user {} has no feed {}", feed.user_id, feed.id);
        return Err(Error::not_found(detail).into());
    }
    Ok(reply::mark(reply::empty(), &reply.headers))
}
