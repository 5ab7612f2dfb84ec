//! `/`: the page of the system, for people. It asks for itself again every second while somebody looks at it; an entity tag
//! says whether anything has changed.
//!
//! The page and its parts are inside the program, and a strict Content-Security-Policy keeps everything else out.

mod html;
mod render;
mod services;

pub use render::render;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::Instant;
use warp::reply::Response;

use super::reply::text;
use super::state::State;
use crate::server::entity;

/// Time for which all readers get the same page: what many tabs cost is bounded.
const FRESH: Duration = Duration::from_millis(250);

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const ICON: &str = include_str!("icon.svg");

/// The pages of a process. Cheap to clone.
#[derive(Clone)]
pub struct SystemPage {
    state: Arc<State>,
    policy: HeaderValue,
    last: Arc<Mutex<Option<Page>>>,
}

/// A page, and when it was made.
#[derive(Clone)]
struct Page {
    made: Instant,
    body: Bytes,
    tag: HeaderValue,
}

impl SystemPage {
    /// Returns the pages of a process; none has been made yet.
    pub fn new(state: Arc<State>) -> Self {
        let policy = policy(&state);
        Self { state, policy, last: Arc::default() }
    }

    /// Answers with the page, or with 304 if the reader has it.
    pub fn answer(&self, headers: &HeaderMap) -> Response {
        let page = self.page();
        let is_known = entity::is_known(headers, &page.tag);
        let mut response = if is_known { Response::default() } else { Response::new(page.body.into()) };
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert(header::ETAG, page.tag);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        secure(headers);
        response
    }

    fn page(&self) -> Page {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = last.as_ref().filter(|page| page.made.elapsed() < FRESH) {
            return page.clone();
        }
        let body = render::render(&self.state.status(), &self.state.history.lines(), &self.state.links);
        let tag = entity::tag(&body);
        let page = Page { made: Instant::now(), body: body.into(), tag };
        *last = Some(page.clone());
        page
    }
}

/// Returns what the page may load: its own parts. Its form leads to Zipkin by a redirect, which browsers count as well.
fn policy(state: &State) -> HeaderValue {
    let zipkin = state.links.zipkin.as_ref().map_or_else(String::new, |link| format!(" {}", link.origin()));
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action \
         'self'{zipkin}; base-uri 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

fn secure(headers: &mut HeaderMap) {
    headers.extend(entity::HEADERS.map(|(name, value)| (Some(name), value)));
}

/// A part of the page.
#[derive(Clone, Copy)]
pub enum Part {
    /// How it looks.
    Style,
    /// What updates it.
    Script,
    /// What a browser shows in the tab.
    Icon,
}

impl Part {
    /// Answers with a part.
    pub fn answer(self) -> Response {
        let (kind, content) = match self {
            Self::Style => ("text/css; charset=utf-8", STYLE),
            Self::Script => ("text/javascript; charset=utf-8", SCRIPT),
            Self::Icon => ("image/svg+xml", ICON),
        };
        let mut response = Response::new(content.into());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        secure(response.headers_mut());
        response
    }
}

/// Leads to a trace in Zipkin: `/trace?id=...`, 16 or 32 hex digits. Only where the settings name Zipkin.
pub fn trace(state: &State, query: &str) -> Response {
    let Some(zipkin) = &state.links.zipkin else {
        return text(StatusCode::NOT_IMPLEMENTED, "admin.zipkin_url is not set\n".to_owned());
    };
    let id = query.split('&').find_map(|pair| pair.strip_prefix("id=")).unwrap_or_default();
    if ![16, 32].contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return text(StatusCode::BAD_REQUEST, "id: want 16 or 32 hex digits\n".to_owned());
    }
    let target = zipkin.below(&format!("/zipkin/traces/{}", id.to_ascii_lowercase()));
    let Ok(target) = HeaderValue::try_from(target) else {
        return text(StatusCode::NOT_FOUND, "admin.zipkin_url cannot be used\n".to_owned());
    };
    let mut response = text(StatusCode::SEE_OTHER, String::new());
    response.headers_mut().insert(header::LOCATION, target);
    response
}

#[cfg(test)]
mod tests;
