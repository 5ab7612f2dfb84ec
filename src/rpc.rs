//! The table of rpcs: what callers, servers and metrics need to know of each.
//!
//! Every rpc of ours is idempotent: writes are upserts or deletes by key, so a repeat is harmless.

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
}

macro_rules! rpc {
    ($index:literal, $service:literal, $grpc:literal, $method:literal, $unary:literal) => {
        Rpc {
            index: $index,
            service: $service,
            grpc_service: $grpc,
            method: $method,
            path: concat!("/", $grpc, "/", $method),
            unary: $unary,
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
    rpc!(0, "feed", "feed.Feed", "GetFeeds", true),
    rpc!(1, "feed", "feed.Feed", "CreateFeed", true),
    rpc!(2, "feed", "feed.Feed", "DeleteFeed", true),
    rpc!(3, "profile", "profile.Profile", "GetProfile", true),
    rpc!(4, "profile", "profile.Profile", "PutProfile", true),
    rpc!(5, "topic", "topic.Topic", "GetTopic", true),
    rpc!(6, "topic", "topic.Topic", "PutTopic", true),
    rpc!(7, "topic", "topic.Topic", "ListTopics", true),
    rpc!(8, "", "grpc.health.v1.Health", "Check", true),
    rpc!(9, "", "grpc.health.v1.Health", "Watch", false),
    rpc!(10, "", "grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", false),
    rpc!(11, "", "unknown", "unknown", true),
];

/// Returns the rpc of a request path, or the one that stands for unknown ones.
#[must_use]
pub fn by_path(path: &str) -> &'static Rpc {
    let known = ALL.iter().find(|rpc| rpc.path == path);
    known.unwrap_or(&ALL[ALL.len() - 1])
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
}
