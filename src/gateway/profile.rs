//! The routes below `/api/profile/`.

use warp::reply::Response;

use super::answers;
use super::problem::Problem;
use super::reply;
use super::request::Fields;
use crate::api::proto::profile::{GetProfileRequest, OkResponse, PutProfileRequest};
use crate::api::received::Profile;
use crate::api::rpc::Rpc;
use crate::client::{Client, Reply};
use crate::context::Context;

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
    let reply: Reply<Profile> = client.call(Rpc::GetProfile, &asked, &context).await?;
    Ok(reply::mark(reply::json(answers::profile(&reply.message)?), &reply.headers))
}
