//! The table of routes, which dispatch, metrics, `Allow` and the documentation read.

use futures_util::future::BoxFuture;
use http::Method;
use warp::reply::Response;

use super::problem::Problem;
use super::request::Fields;
use super::{feed, profile, topic};
use crate::client::Client;
use crate::context::Context;

/// Answers a request: its input is the members of the JSON body of a PUT, the query of any other method.
pub type Handler = fn(Client, Fields, Context) -> BoxFuture<'static, Result<Response, Problem>>;

/// One route.
pub struct Route {
    /// The whole path. No two routes have the same.
    pub path: &'static str,
    /// The method. GET implies HEAD.
    pub method: Method,
    /// What it does, one line of Markdown.
    pub description: &'static str,
    /// Answers its requests.
    pub(super) handler: Handler,
}

/// The methods of all routes, and OPTIONS of the server itself, as the header `Allow` lists them.
pub const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PUT";

/// Every route.
pub static ROUTES: [Route; 8] = [
    Route {
        path: "/api/feed/create_feed",
        method: Method::PUT,
        description: "Stores a feed, in place of the one with its ids if there is one.",
        handler: |client, input, context| Box::pin(feed::create(client, input, context)),
    },
    Route {
        path: feed::GET_FEEDS,
        method: Method::GET,
        description: "Returns the newest feeds of a user, in ascending order of their ids.",
        handler: |client, input, context| Box::pin(feed::get(client, input, context)),
    },
    Route {
        path: "/api/feed/delete_feed",
        method: Method::DELETE,
        description: "Deletes a feed.",
        handler: |client, input, context| Box::pin(feed::delete(client, input, context)),
    },
    Route {
        path: "/api/profile/put_profile",
        method: Method::PUT,
        description: "Stores a profile, in place of the user's earlier one.",
        handler: |client, input, context| Box::pin(profile::put(client, input, context)),
    },
    Route {
        path: "/api/profile/get_profile",
        method: Method::GET,
        description: "Returns a profile with the user's 20 newest feeds.",
        handler: |client, input, context| Box::pin(profile::get(client, input, context)),
    },
    Route {
        path: "/api/topic/put_topic",
        method: Method::PUT,
        description: "Stores a topic, in place of the one with its id if there is one.",
        handler: |client, input, context| Box::pin(topic::put(client, input, context)),
    },
    Route {
        path: "/api/topic/view",
        method: Method::GET,
        description: "Returns a topic.",
        handler: |client, input, context| Box::pin(topic::view(client, input, context)),
    },
    Route {
        path: "/api/topic/list",
        method: Method::GET,
        description: "Returns ids and subjects of topics, in ascending order of their ids.",
        handler: |client, input, context| Box::pin(topic::list(client, input, context)),
    },
];

impl Route {
    /// Returns the route of a path.
    #[must_use]
    pub fn find(path: &str) -> Option<&'static Self> {
        ROUTES.iter().find(|route| route.path == path)
    }

    /// Returns true if requests may have this method.
    #[must_use]
    pub fn takes(&self, method: &Method) -> bool {
        *method == self.method || self.method == Method::GET && *method == Method::HEAD
    }

    /// Returns the methods that requests may have, as the header `Allow` lists them.
    #[must_use]
    pub fn allow(&'static self) -> &'static str {
        if self.method == Method::GET { "GET, HEAD" } else { self.method.as_str() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_one_route() {
        for route in &ROUTES {
            let found = Route::find(route.path).unwrap();
            assert!(std::ptr::eq(found, route), "{} is there twice", route.path);
            assert!(route.takes(&route.method), "{}", route.path);
            for method in route.allow().split(", ") {
                assert!(route.takes(&method.parse().unwrap()), "{} {method}", route.path);
                assert!(METHODS.split(", ").any(|known| known == method), "{method}");
            }
        }
        assert!(Route::find("/api/feed/get_feeds/").is_none());
    }
}
