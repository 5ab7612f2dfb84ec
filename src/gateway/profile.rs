//! The routes below `/api/profile/`.

use prost::Message as _;
use serde::Serialize;
use warp::reply::Response;

use super::feed::Feed;
use super::problem::Problem;
use super::reply;
use super::request::Fields;
use crate::api::proto::feed::FeedRecord;
use crate::api::proto::profile::{GetProfileRequest, GetProfileResponse, OkResponse, PutProfileRequest};
use crate::api::rpc::Rpc;
use crate::client::{Client, Reply};
use crate::context::Context;

#[derive(Serialize)]
struct Profile {
    user_id: i64,
    name: String,
    company: String,
    title: String,
    feeds: Vec<Feed>,
}

/// `{"user_id","name","company","title"}`: `{}`.
pub async fn put(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let profile = PutProfileRequest {
        user_id: input.integer("user_id")?,
        name: input.text("name")?,
        company: input.text("company")?,
        title: input.text("title")?,
    };
    input.finish()?;
    let reply: Reply<OkResponse> = client.call(Rpc::PutProfile, &profile, &context).await?;
    Ok(reply::mark(reply::empty(), &reply.headers))
}

/// `?user_id`: `{"user_id","name","company","title","feeds":[...]}`.
pub async fn get(client: Client, mut input: Fields, context: Context) -> Result<Response, Problem> {
    let user_id = input.integer("user_id")?;
    input.finish()?;
    let asked = GetProfileRequest { user_id };
    let reply: Reply<GetProfileResponse> = client.call(Rpc::GetProfile, &asked, &context).await?;
    let profile = reply.message;
    let feeds = profile.feeds.iter().map(|feed| FeedRecord::decode(feed.as_slice()).map(Feed::from));
    let body = Profile {
        user_id: profile.user_id,
        name: profile.name,
        company: profile.company,
        title: profile.title,
        feeds: feeds.collect::<Result<_, _>>().map_err(|_| Problem::malformed("profile"))?,
    };
    Ok(reply::mark(reply::json(&body), &reply.headers))
}
