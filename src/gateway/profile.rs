//! /api/profile/*.

use std::sync::Arc;

use prost::Message as _;
use serde::Serialize;
use warp::reply::Response;

use super::App;
use super::feed::Feed;
use super::reply::{self, Problem};
use super::request::Request;
use crate::api::proto::feed::FeedRecord;
use crate::api::proto::profile::{GetProfileRequest, GetProfileResponse, OkResponse, PutProfileRequest};
use crate::api::rpc::Rpc;
use crate::client::Reply;

/// PUT `{"user_id","name","company","title"}`: `{}`.
pub const PUT: &str = "/api/profile/put_profile";
/// GET `?user_id`: `{"user_id","name","company","title","feeds":[...]}`.
pub const GET: &str = "/api/profile/get_profile";

#[derive(Serialize)]
struct Profile {
    user_id: i64,
    name: String,
    company: String,
    title: String,
    feeds: Vec<Feed>,
}

pub async fn put(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let (mut body, context) = request.json(&app).await?;
    let profile = PutProfileRequest {
        user_id: body.integer("user_id")?,
        name: body.text("name")?,
        company: body.text("company")?,
        title: body.text("title")?,
    };
    body.finish()?;
    let reply: Reply<OkResponse> = app.client.call(Rpc::PutProfile, &profile, &context).await?;
    Ok(reply::mark(reply::empty(), &reply.headers))
}

pub async fn get(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut query = request.query()?;
    let user_id = query.integer("user_id")?;
    query.finish()?;
    let asked = GetProfileRequest { user_id };
    let reply: Reply<GetProfileResponse> = app.client.call(Rpc::GetProfile, &asked, &request.context).await?;
    let profile = reply.message;
    let feeds = profile.feeds.iter().map(|feed| FeedRecord::decode(feed.as_slice()).map(Feed::from));
    let body = Profile {
        user_id: profile.user_id,
        name: profile.name,
        company: profile.company,
        title: profile.title,
        feeds: feeds.collect::<Result<_, _>>().map_err(|_| reply::garbled("profile"))?,
    };
    Ok(reply::mark(reply::json(&body), &reply.headers))
}
