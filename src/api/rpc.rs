//! The table of rpcs: what callers, servers and metrics need to know of each, and how each may be called.
//!
//! Every rpc of ours is idempotent: writes are upserts or deletes by key, so a repeat is harmless.

use std::time::Duration;

use crate::api::error::Code;

/// How a call may be made. What is not in the table is not done: a failure is the caller's to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// True if a repeat has the same effect as one call. Without it nothing is repeated that a handler
    /// may have seen, whatever [`Self::retry`] says.
    pub idempotent: bool,
    /// Codes after which another instance is tried. Not `Internal` (nor gRPC's UNKNOWN, which is read as
    /// that): the server has answered, and would again. `TooManyRequests` only if the server hinted when.
    pub retry: &'static [Code],
    /// True if one attempt may be given up before the deadline, so that another has time. Not for writes:
    /// they may still be done, and a store that is slow for one is slow for the next.
    pub attempt_timeout: bool,
    /// True if the last good answer may stand in for one that cannot be had.
    pub fallback: bool,
    /// Longest time for the whole call; none for `client.deadline_ms`.
    pub deadline: Option<Duration>,
}

impl Policy {
    /// Reads: repeated after anything that another instance may do better.
    pub const READ: Self = Self {
        idempotent: true,
        retry: &[Code::Unavailable, Code::Timeout, Code::TooManyRequests],
        attempt_timeout: true,
        fallback: true,
        deadline: None,
    };
    /// Writes by key. A timeout is not repeated: there is no time left.
    pub const WRITE: Self = Self {
        idempotent: true,
        retry: &[Code::Unavailable, Code::TooManyRequests],
        attempt_timeout: false,
        fallback: false,
        deadline: None,
    };
    /// What is asked of one certain instance: tried once.
    pub const ONCE: Self =
        Self { idempotent: false, retry: &[], attempt_timeout: false, fallback: false, deadline: None };

    /// Returns true if another attempt may follow a failure with this code.
    #[must_use]
    pub fn retries(&self, code: Code) -> bool {
        self.idempotent && self.retry.contains(&code)
    }
}

/// One rpc.
#[derive(Debug, PartialEq, Eq)]
pub struct Rpc {
    /// Its place in [`ALL`].
    pub index: usize,
    /// The registry's name of the service, `feed`.
    pub service: &'static str,
    /// The gRPC name of the service, `feed.Feed`; a metric label.
    pub grpc_service: &'static str,
    /// The method, `GetFeeds`; a metric label.
    pub method: &'static str,
    /// The HTTP/2 path, `/feed.Feed/GetFeeds`.
    pub path: &'static str,
    /// True if the call has one request and one answer and so falls under the default deadline.
    pub unary: bool,
    /// How it may be called.
    pub policy: Policy,
}

macro_rules! rpc {
    ($index:literal, $service:literal, $grpc:literal, $method:literal, $unary:literal, $policy:ident) => {
        Rpc {
            index: $index,
            service: $service,
            grpc_service: $grpc,
            method: $method,
            path: concat!("/", $grpc, "/", $method),
            unary: $unary,
            policy: Policy::$policy,
        }
    };
}

/// feed.Feed/GetFeeds.
pub const GET_FEEDS: &Rpc = &ALL[0];
/// feed.Feed/CreateFeed.
pub const CREATE_FEED: &Rpc = &ALL[1];
/// feed.Feed/DeleteFeed.
pub const DELETE_FEED: &Rpc = &ALL[2];
/// profile.Profile/GetProfile.
pub const GET_PROFILE: &Rpc = &ALL[3];
/// profile.Profile/PutProfile.
pub const PUT_PROFILE: &Rpc = &ALL[4];
/// topic.Topic/GetTopic.
pub const GET_TOPIC: &Rpc = &ALL[5];
/// topic.Topic/PutTopic.
pub const PUT_TOPIC: &Rpc = &ALL[6];
/// topic.Topic/ListTopics.
pub const LIST_TOPICS: &Rpc = &ALL[7];

/// Every rpc that a server of ours answers; the last one stands for all that it does not know.
pub static ALL: [Rpc; 12] = [
    rpc!(0, "feed", "feed.Feed", "GetFeeds", true, READ),
    rpc!(1, "feed", "feed.Feed", "CreateFeed", true, WRITE),
    rpc!(2, "feed", "feed.Feed", "DeleteFeed", true, WRITE),
    rpc!(3, "profile", "profile.Profile", "GetProfile", true, READ),
    rpc!(4, "profile", "profile.Profile", "PutProfile", true, WRITE),
    rpc!(5, "topic", "topic.Topic", "GetTopic", true, READ),
    rpc!(6, "topic", "topic.Topic", "PutTopic", true, WRITE),
    rpc!(7, "topic", "topic.Topic", "ListTopics", true, READ),
    rpc!(8, "", "grpc.health.v1.Health", "Check", true, ONCE),
    rpc!(9, "", "grpc.health.v1.Health", "Watch", false, ONCE),
    rpc!(10, "", "grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", false, ONCE),
    rpc!(11, "", "unknown", "unknown", true, ONCE),
];

/// Returns the rpc of a request path, or the one that stands for unknown ones.
#[must_use]
pub fn by_path(path: &str) -> &'static Rpc {
    let known = ALL.iter().find(|rpc| rpc.path == path);
    known.unwrap_or(&ALL[ALL.len() - 1])
}

/// Returns the rpcs of one of our services, by its registry name.
pub fn of_service(service: &str) -> impl Iterator<Item = &'static Rpc> {
    ALL.iter().filter(move |rpc| rpc.service == service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        for (index, rpc) in ALL.iter().enumerate() {
            assert_eq!(rpc.index, index);
            assert_eq!(by_path(rpc.path), rpc);
        }
        assert_eq!(by_path("/feed.Feed/Nothing").method, "unknown");
        assert_eq!((GET_FEEDS.path, LIST_TOPICS.path), ("/feed.Feed/GetFeeds", "/topic.Topic/ListTopics"));
    }

    #[test]
    fn the_policy_of_each_rpc_is_what_its_kind_allows() {
        for rpc in &ALL {
            let policy = rpc.policy;
            let reads = rpc.method.starts_with("Get") || rpc.method.starts_with("List");
            let ours = !rpc.service.is_empty();
            assert_eq!(policy.idempotent, ours, "{}", rpc.path);
            assert_eq!(policy.retries(Code::Unavailable), ours, "{}", rpc.path);
            // a late attempt would double nothing, but a fallback or a second try in time is for reads
            assert_eq!(policy.retries(Code::Timeout), reads, "{}", rpc.path);
            assert_eq!((policy.attempt_timeout, policy.fallback), (reads, reads), "{}", rpc.path);
            // the peer's own word that it failed, or that the caller did
            for code in [Code::Internal, Code::BadRequest, Code::NotFound] {
                assert!(!policy.retries(code), "{} {code:?}", rpc.path);
            }
        }
        let careless = Policy { idempotent: false, ..Policy::READ };
        assert!(!careless.retries(Code::Unavailable));
    }
}
