//! Cross-origin requests: which pages of other origins may call the gateway by their scripts (the Fetch standard, CORS).
//! Nothing here is done, and nothing sent, unless `http.cors_origins` names an origin.

use http::{HeaderMap, HeaderValue, header};
use warp::reply::Response;

use super::headers::{ANSWER_HEADERS, REQUEST_HEADERS};
use crate::config::Origin;

/// How long a browser may remember what a route takes, seconds. A browser's own limit is 2 hours or more; this is how long
/// it goes on after an origin has been taken out of the setting.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const VARY: HeaderValue = HeaderValue::from_static("origin");

/// The origins that may call.
pub struct Cors {
    origins: Box<[HeaderValue]>,
    /// The headers that scripts may send.
    accepted: HeaderValue,
    /// The headers of answers that scripts may read.
    exposed: HeaderValue,
}

impl Cors {
    /// Returns the rules for these origins; none if there are none. With `auth`, scripts may send a token.
    pub fn new(origins: &[Origin], auth: bool) -> Option<Self> {
        let origins: Box<[_]> =
            origins.iter().filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok()).collect();
        let trace =
            ["tracestate", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"];
        let accepted = REQUEST_HEADERS.iter().map(|header| header.name.as_str());
        let accepted = accepted.chain(trace).chain([header::CONTENT_TYPE.as_str()]);
        // `*` would not name it (the Fetch standard)
        let accepted = accepted.chain(auth.then_some(header::AUTHORIZATION.as_str()));
        let exposed = ANSWER_HEADERS.iter().map(|header| header.name.as_str());
        let cors = Self { origins, accepted: list(accepted), exposed: list(exposed) };
        (!cors.origins.is_empty()).then_some(cors)
    }

    /// Returns the origin of a request if it may call.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let given = headers.get(header::ORIGIN)?;
        self.origins.iter().find(|origin| *origin == given).cloned()
    }

    /// Marks an answer: a page of `origin`, if that is one that may call, can read it.
    pub fn mark(&self, response: &mut Response, origin: Option<HeaderValue>) {
        let headers = response.headers_mut();
        // also without an origin: a cache must not give the answer to another one
        headers.append(header::VARY, VARY);
        if let Some(origin) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, self.exposed.clone());
        }
    }

    /// Adds to the answer to OPTIONS what a browser asks before it lets a script call: methods and headers.
    pub fn permit(&self, response: &mut Response, methods: &'static str) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, self.accepted.clone());
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    }
}

/// Returns names as the value of one header.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> HeaderValue {
    let names: Vec<_> = names.collect();
    // names are visible ASCII
    HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""))
}
