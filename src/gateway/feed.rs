//! The routes below `/api/feed/`.

use http::{HeaderValue, header};
use warp::reply::Response;

use super::answers;
use super::problem::Problem;
use super::reply;
use super::request::Fields;
use crate::api::error::Error;
use crate::api::proto::feed::{
    DeleteFeedRequest, DeleteFeedResponse, FeedRecord, GetFeedsRequest, OkResponse,
};
use crate::api::received::Feeds;
use crate::api::rpc::Rpc;
use crate::api::validate::DEFAULT_SIZE;
use crate::client::{Client, Reply};
use crate::context::Context;

/// The path of [`get`], which a link to the next page repeats.
pub const GET_FEEDS: &str = "/api/feed/get_feeds";

/// `{"id","user_id","content"}`: `{}`.
pub async fn create(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let feed = FeedRecord {
        id: input.integer("id")?,
        user_id: input.integer("user_id")?,
        content: input.text("content")?,
    };
    input.finish()?;
    let reply: Reply<OkResponse> = client.call(Rpc::CreateFeed, &feed, &context).await?;
    Ok(reply::mark(reply::empty(), &reply.headers))
}

/// `?user_id&size&before`: `{"feeds":[{"id","user_id","content"}]}`.
pub async fn get(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let user_id = input.integer("user_id")?;
    let size = input.optional_integer("size")?.unwrap_or(DEFAULT_SIZE);
    let before = input.optional_integer("before")?;
    input.finish()?;
    if before.is_some_and(|before| before <= 0) {
        // over gRPC 0 means no bound; over HTTP the caller leaves it out
        return Err(Error::bad("before", "must be an integer from 1 to 9223372036854775807").into());
    }
    let page = GetFeedsRequest { user_id, size, before: before.unwrap_or(0) };
    let reply: Reply<Feeds> = client.call(Rpc::GetFeeds, &page, &context).await?;
    let next = reply.message.feeds.first().filter(|_| reply.message.shortened).map(|first| first.id);
    let mut response = reply::mark(reply::json(answers::feeds(&reply.message)), &reply.headers);
    if let Some(before) = next {
        let link = format!("<{GET_FEEDS}?user_id={user_id}&size={size}&before={before}>; rel=\"next\"");
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    Ok(response)
}

/// `?user_id&id`: `{}`.
pub async fn delete(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let feed = DeleteFeedRequest { user_id: input.integer("user_id")?, id: input.integer("id")? };
    input.finish()?;
    let reply: Reply<DeleteFeedResponse> = client.call(Rpc::DeleteFeed, &feed, &context).await?;
    // if the call was repeated, an earlier attempt may have deleted it
    if !reply.message.deleted && !reply.repeated {
        let detail = format!("user {} has no feed {}", feed.user_id, feed.id);
        return Err(Error::not_found(detail).into());
    }
    Ok(reply::mark(reply::empty(), &reply.headers))
}
