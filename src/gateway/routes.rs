//! The table of routes, which dispatch, metrics, `Allow` and the documentation read.

use futures_util::future::BoxFuture;
use http::Method;
use warp::reply::Response;

use super::parameter::Parameter;
use super::problem::Problem;
use super::request::Fields;
use super::{feed, profile, topic};
use crate::api::validate::MIN_ID;
use crate::client::Client;
use crate::config::Access;
use crate::context::Context;

/// Answers a request: its input is the members of the JSON body of a PUT, the query of any other method.
pub type Handler = fn(Client, Fields, Context) -> BoxFuture<'static, Result<Response, Problem>>;

/// One route.
pub struct Route {
    /// The whole path. No two routes have the same.
    pub path: &'static str,
    /// The method. GET implies HEAD.
    pub method: Method,
    /// Its name among the operations of the API: that of the rpc that it calls.
    pub name: &'static str,
    /// What it does, one line of Markdown.
    pub description: &'static str,
    /// What it takes: the members of the body of a PUT, the query of any other method.
    pub input: &'static [Parameter],
    /// The body of its answer.
    pub answer: Answer,
    /// Who may use it if callers need tokens and `http.auth.policy` has no rule for it.
    pub access: Access,
    /// Answers its requests.
    pub(super) handler: Handler,
}

/// The body of a successful answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An object without members: what was asked for is done.
    Done,
    /// A page of feeds.
    Feeds,
    /// A profile with feeds.
    Profile,
    /// A topic.
    Topic,
    /// A page of topics.
    Topics,
}

/// The id of a user.
const USER_ID: Parameter = Parameter::id("user_id", "The user.", 123);
/// The id of a topic.
const TOPIC_ID: Parameter = Parameter::id("topic_id", "The topic.", 1);

/// The methods of all routes, and OPTIONS of the server itself, as the header `Allow` lists them.
pub const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PUT";

/// The methods of what can only be read.
pub const READ_METHODS: &str = "GET, HEAD, OPTIONS";

/// Every route.
pub static ROUTES: [Route; 8] = [
    Route {
        path: "/api/feed/create_feed",
        method: Method::PUT,
        name: "create_feed",
        description: "Stores a feed, in place of the one with its ids if there is one.",
        input: &[
            Parameter::id("id", "The feed, unique among those of its user.", 100),
            USER_ID,
            Parameter::content("The text of the feed.", "hello world"),
        ],
        answer: Answer::Done,
        access: Access::Owner,
        handler: |client, input, context| Box::pin(feed::create(client, input, context)),
    },
    Route {
        path: feed::GET_FEEDS,
        method: Method::GET,
        name: "get_feeds",
        description: "Returns the newest feeds of a user, in ascending order of their ids.",
        input: &[
            USER_ID,
            Parameter::size("How many feeds at most."),
            Parameter::bound(
                "before",
                "Only feeds with a lower id: the first id of the page before.",
                MIN_ID,
                101,
            ),
        ],
        answer: Answer::Feeds,
        access: Access::Token,
        handler: |client, input, context| Box::pin(feed::get(client, input, context)),
    },
    Route {
        path: "/api/feed/delete_feed",
        method: Method::DELETE,
        name: "delete_feed",
        description: "Deletes a feed.",
        input: &[USER_ID, Parameter::id("id", "The feed.", 100)],
        answer: Answer::Done,
        access: Access::Owner,
        handler: |client, input, context| Box::pin(feed::delete(client, input, context)),
    },
    Route {
        path: "/api/profile/put_profile",
        method: Method::PUT,
        name: "put_profile",
        description: "Stores a profile, in place of the user's earlier one.",
        input: &[
            USER_ID,
            Parameter::name("name", "The name of the user.", "Ada"),
            Parameter::name("company", "Whom the user works for.", "Acme"),
            Parameter::name("title", "What the user does there.", "engineer"),
        ],
        answer: Answer::Done,
        access: Access::Owner,
        handler: |client, input, context| Box::pin(profile::put(client, input, context)),
    },
    Route {
        path: "/api/profile/get_profile",
        method: Method::GET,
        name: "get_profile",
        description: "Returns a profile with the user's 20 newest feeds.",
        input: &[USER_ID],
        answer: Answer::Profile,
        access: Access::Token,
        handler: |client, input, context| Box::pin(profile::get(client, input, context)),
    },
    Route {
        path: "/api/topic/put_topic",
        method: Method::PUT,
        name: "put_topic",
        description: "Stores a topic, in place of the one with its id if there is one.",
        input: &[
            TOPIC_ID,
            Parameter::name("subject", "What the topic is about.", "rust"),
            Parameter::content("The text of the topic.", "a language"),
        ],
        answer: Answer::Done,
        access: Access::Token,
        handler: |client, input, context| Box::pin(topic::put(client, input, context)),
    },
    Route {
        path: "/api/topic/view",
        method: Method::GET,
        name: "get_topic",
        description: "Returns a topic.",
        input: &[TOPIC_ID],
        answer: Answer::Topic,
        access: Access::Token,
        handler: |client, input, context| Box::pin(topic::view(client, input, context)),
    },
    Route {
        path: "/api/topic/list",
        method: Method::GET,
        name: "list_topics",
        description: "Returns ids and subjects of topics, in ascending order of their ids.",
        input: &[
            Parameter::bound("after", "Only topics with a higher id: `next` of the page before.", 0, 1),
            Parameter::size("How many topics at most."),
        ],
        answer: Answer::Topics,
        access: Access::Token,
        handler: |client, input, context| Box::pin(topic::list(client, input, context)),
    },
];

impl Route {
    /// Returns the route of a path.
    #[must_use]
    pub fn find(path: &str) -> Option<&'static Self> {
        ROUTES.iter().find(|route| route.path == path)
    }

    /// Returns true if a handler answers this method.
    #[must_use]
    pub fn takes(&self, method: &Method) -> bool {
        *method == self.method || self.method == Method::GET && *method == Method::HEAD
    }

    /// Returns the methods that requests may have, as the header `Allow` lists them.
    #[must_use]
    pub fn allow(&'static self) -> &'static str {
        match self.method {
            Method::GET => READ_METHODS,
            Method::PUT => "OPTIONS, PUT",
            Method::DELETE => "DELETE, OPTIONS",
            // there is no such route
            _ => METHODS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::access::OPERATIONS;

    #[test]
    fn each_path_is_one_route() {
        for route in &ROUTES {
            let found = Route::find(route.path).unwrap();
            assert!(std::ptr::eq(found, route), "{} is there twice", route.path);
            assert!(route.takes(&route.method), "{}", route.path);
            for method in route.allow().split(", ").filter(|method| *method != "OPTIONS") {
                assert!(route.takes(&method.parse().unwrap()), "{} {method}", route.path);
                assert!(METHODS.split(", ").any(|known| known == method), "{method}");
            }
        }
        assert!(Route::find("/api/feed/get_feeds/").is_none());
    }

    #[test]
    fn the_policy_knows_every_operation() {
        let user = |route: &Route| {
            route.input.iter().any(|parameter| parameter.name == "user_id" && parameter.required)
        };
        let there: Vec<_> = ROUTES.iter().map(|route| (route.name, user(route))).collect();
        assert_eq!(there, OPERATIONS);
        for route in ROUTES.iter().filter(|route| route.method != Method::GET) {
            assert_eq!(route.access == Access::Owner, user(route), "{}", route.name);
        }
    }
}
