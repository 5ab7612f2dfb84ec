//! Files that the gateway serves beside its routes: the description of the API, and the page that is made from it in the
//! browser. The page is one of ours, and everything that it loads comes from here.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use warp::reply::Response;

use super::openapi;
use super::problem::Problem;
use super::request;
use super::routes::READ_METHODS;
use crate::server::entity;

/// One file.
pub struct Page {
    /// The whole path.
    pub path: &'static str,
    /// What it is, one line of Markdown.
    pub description: &'static str,
    content_type: HeaderValue,
    text: fn() -> &'static str,
    /// Its version, for `if-none-match`.
    tag: LazyLock<HeaderValue, fn() -> HeaderValue>,
}

/// The Content-Security-Policy of the files: nothing from another host, no script and no style inside of a page, no frame.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

macro_rules! pages {
    ($($path:expr, $description:literal, $content_type:literal, $text:expr;)+) => {
        /// Every file.
        pub static PAGES: [Page; 5] = [$(Page {
            path: $path,
            description: $description,
            content_type: HeaderValue::from_static($content_type),
            text: $text,
            tag: LazyLock::new(|| entity::tag(($text)())),
        }),+];
    };
}

pages! {
    openapi::PATH, "The description of this API, OpenAPI 3.1.", "application/json", openapi::text;
    "/docs", "The page of this API: what there is, and a form to try it.", "text/html; charset=utf-8",
        || include_str!("docs.html");
    "/docs/page.js", "The script of the page.", "text/javascript; charset=utf-8", || include_str!("page.js");
    "/docs/page.css", "The style of the page.", "text/css; charset=utf-8", || include_str!("page.css");
    "/docs/icon.svg", "The icon of the page.", "image/svg+xml", || include_str!("icon.svg");
}

/// A description of the API that is made at the start.
pub struct Described {
    text: Bytes,
    tag: HeaderValue,
}

impl Described {
    /// Takes its text.
    pub fn new(text: String) -> Self {
        Self { tag: entity::tag(&text), text: text.into() }
    }
}

impl Page {
    /// Returns the file of a path.
    pub fn find(path: &str) -> Option<&'static Self> {
        PAGES.iter().find(|page| page.path == path)
    }

    /// Answers a request for this file whose method is not OPTIONS. `described` is the description of the API if it is not
    /// that of the defaults.
    ///
    /// # Errors
    /// 405 for what does not read, 400 for a query.
    pub fn answer<B>(
        &self,
        request: &http::Request<B>,
        described: Option<&Described>,
    ) -> Result<Response, Problem> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Problem::method_not_allowed(READ_METHODS));
        }
        request::query(request.uri().query().unwrap_or_default())?.finish()?;
        let described = described.filter(|_| self.path == openapi::PATH);
        let tag = described.map_or_else(|| &*self.tag, |described| &described.tag);
        let mut response = Response::default();
        let headers = response.headers_mut();
        headers.extend(entity::HEADERS.map(|(name, value)| (Some(name), value)));
        headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
        headers.insert(header::ETAG, tag.clone());
        if entity::is_known(request.headers(), tag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            headers.insert(header::CONTENT_TYPE, self.content_type.clone());
            *response.body_mut() = match described {
                Some(described) => described.text.clone().into(),
                None => (self.text)().into(),
            };
        }
        Ok(response)
    }
}
