//! The table of rpcs: what callers, servers and metrics need to know about each, and how each may be called.
//!
//! Every rpc of feed, profile and topic is idempotent: writes are upserts or deletes by key, so a repeat is harmless.

use std::ops::Index;
use std::time::Duration;

use crate::api::error::Code;

/// How an rpc may be called. The client does nothing that its policy does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// True if a repeat has the same effect as one call. If false, no call is repeated that a handler may have seen,
    /// whatever [`Self::retry`] says.
    pub idempotent: bool,
    /// Codes after which another instance is tried. Never `Internal` (to which gRPC's UNKNOWN is mapped): another
    /// instance would answer the same. `TooManyRequests` only with pushback from the server.
    pub retry: &'static [Code],
    /// True if another attempt may race a slow one. Not for writes: the one that loses may take effect later, after a
    /// newer write; and a store that is slow for one attempt is slow for the next.
    pub hedge: bool,
    /// True if the last good answer may replace one that fails.
    pub fallback: bool,
    /// Longest time for the whole call; `None` means `client.deadline_ms`.
    pub deadline: Option<Duration>,
}

impl Policy {
    /// Reads: repeated if another instance may succeed.
    pub const READ: Self = Self {
        idempotent: true,
        retry: &[Code::Unavailable, Code::Timeout, Code::TooManyRequests],
        hedge: true,
        fallback: true,
        deadline: None,
    };
    /// Writes by key. Not repeated after a timeout: no time is left.
    pub const WRITE: Self = Self {
        idempotent: true,
        retry: &[Code::Unavailable, Code::TooManyRequests],
        hedge: false,
        fallback: false,
        deadline: None,
    };
    /// Calls to one particular instance: one attempt.
    pub const ONCE: Self =
        Self { idempotent: false, retry: &[], hedge: false, fallback: false, deadline: None };

    /// Returns true if another attempt may follow a failure with this code.
    #[must_use]
    pub fn retries(&self, code: Code) -> bool {
        self.idempotent && self.retry.contains(&code)
    }
}

/// Every rpc that the servers of this system answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rpc {
    /// feed.Feed/GetFeeds
    GetFeeds,
    /// feed.Feed/CreateFeed
    CreateFeed,
    /// feed.Feed/DeleteFeed
    DeleteFeed,
    /// profile.Profile/GetProfile
    GetProfile,
    /// profile.Profile/PutProfile
    PutProfile,
    /// topic.Topic/GetTopic
    GetTopic,
    /// topic.Topic/PutTopic
    PutTopic,
    /// topic.Topic/ListTopics
    ListTopics,
    /// grpc.health.v1.Health/Check
    HealthCheck,
    /// grpc.health.v1.Health/Watch
    HealthWatch,
    /// grpc.reflection.v1.ServerReflection/ServerReflectionInfo
    Reflection,
    /// grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo
    ReflectionAlpha,
    /// Every other path.
    Unknown,
}

/// One row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Description {
    service: &'static str,
    grpc_service: &'static str,
    method: &'static str,
    path: &'static str,
    unary: bool,
    policy: Policy,
}

macro_rules! description {
    ($service:literal, $grpc:literal, $method:literal, $kind:ident, $policy:ident) => {
        Description {
            service: $service,
            grpc_service: $grpc,
            method: $method,
            path: concat!("/", $grpc, "/", $method),
            unary: description!($kind),
            policy: Policy::$policy,
        }
    };
    (unary) => {
        true
    };
    (stream) => {
        false
    };
}

impl Rpc {
    /// The number of rpcs.
    pub const COUNT: usize = Self::ALL.len();

    /// Every rpc, in the order of the enum.
    pub const ALL: [Self; 13] = [
        Self::GetFeeds,
        Self::CreateFeed,
        Self::DeleteFeed,
        Self::GetProfile,
        Self::PutProfile,
        Self::GetTopic,
        Self::PutTopic,
        Self::ListTopics,
        Self::HealthCheck,
        Self::HealthWatch,
        Self::Reflection,
        Self::ReflectionAlpha,
        Self::Unknown,
    ];

    /// Returns the row of the table.
    const fn describe(self) -> &'static Description {
        match self {
            Self::GetFeeds => &description!("feed", "feed.Feed", "GetFeeds", unary, READ),
            Self::CreateFeed => &description!("feed", "feed.Feed", "CreateFeed", unary, WRITE),
            Self::DeleteFeed => &description!("feed", "feed.Feed", "DeleteFeed", unary, WRITE),
            Self::GetProfile => &description!("profile", "profile.Profile", "GetProfile", unary, READ),
            Self::PutProfile => &description!("profile", "profile.Profile", "PutProfile", unary, WRITE),
            Self::GetTopic => &description!("topic", "topic.Topic", "GetTopic", unary, READ),
            Self::PutTopic => &description!("topic", "topic.Topic", "PutTopic", unary, WRITE),
            Self::ListTopics => &description!("topic", "topic.Topic", "ListTopics", unary, READ),
            Self::HealthCheck => &description!("", "grpc.health.v1.Health", "Check", unary, ONCE),
            Self::HealthWatch => &description!("", "grpc.health.v1.Health", "Watch", stream, ONCE),
            Self::Reflection => {
                &description!("", "grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", stream, ONCE)
            }
            Self::ReflectionAlpha => &description!(
                "",
                "grpc.reflection.v1alpha.ServerReflection",
                "ServerReflectionInfo",
                stream,
                ONCE
            ),
            Self::Unknown => &description!("", "unknown", "unknown", unary, ONCE),
        }
    }

    /// Returns the name of the service in the registry, `feed`; empty for health, reflection and unknown rpcs.
    #[must_use]
    pub const fn service(self) -> &'static str {
        self.describe().service
    }

    /// Returns the gRPC name of the service, `feed.Feed`; a metric label.
    #[must_use]
    pub const fn grpc_service(self) -> &'static str {
        self.describe().grpc_service
    }

    /// Returns the method, `GetFeeds`; a metric label.
    #[must_use]
    pub const fn method(self) -> &'static str {
        self.describe().method
    }

    /// Returns the HTTP/2 path, `/feed.Feed/GetFeeds`.
    #[must_use]
    pub const fn path(self) -> &'static str {
        self.describe().path
    }

    /// Returns true if a call has one request and one answer. Such calls have a default deadline.
    #[must_use]
    pub const fn is_unary(self) -> bool {
        self.describe().unary
    }

    /// Returns true for the rpcs of feed, profile and topic; false for health, reflection and unknown ones.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        !self.service().is_empty()
    }

    /// Returns true if the rpc changes something.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self, Self::CreateFeed | Self::DeleteFeed | Self::PutProfile | Self::PutTopic)
    }

    /// Returns how the rpc may be called.
    #[must_use]
    pub const fn policy(self) -> Policy {
        self.describe().policy
    }

    /// Returns the rpc of an HTTP/2 path, [`Rpc::Unknown`] if there is none.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        let known = Self::ALL.into_iter().find(|rpc| rpc.path() == path);
        known.unwrap_or(Self::Unknown)
    }

    /// Returns the rpcs of one of our services, by its registry name.
    pub fn of_service(service: &str) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |rpc| rpc.is_ours() && rpc.service() == service)
    }
}

/// One value for each rpc.
#[derive(Clone, Debug)]
pub struct PerRpc<T>([T; Rpc::COUNT]);

impl<T> PerRpc<T> {
    /// Returns the values that `value` returns for each rpc.
    pub fn from_fn(value: impl FnMut(Rpc) -> T) -> Self {
        Self(Rpc::ALL.map(value))
    }

    /// Returns each rpc with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Rpc, &T)> {
        Rpc::ALL.into_iter().zip(&self.0)
    }
}

impl<T: Default> Default for PerRpc<T> {
    fn default() -> Self {
        Self::from_fn(|_| T::default())
    }
}

impl<T> Index<Rpc> for PerRpc<T> {
    type Output = T;

    fn index(&self, rpc: Rpc) -> &T {
        // the discriminants are 0 to COUNT - 1: a test compares the enum with ALL
        &self.0[rpc as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        let numbers = PerRpc::from_fn(|rpc| rpc as usize);
        for (index, rpc) in Rpc::ALL.into_iter().enumerate() {
            assert_eq!((rpc as usize, numbers[rpc]), (index, index));
            assert_eq!(Rpc::of_path(rpc.path()), rpc);
        }
        assert_eq!(Rpc::of_path("/feed.Feed/Nothing"), Rpc::Unknown);
        assert_eq!(Rpc::ListTopics.path(), "/topic.Topic/ListTopics");
        assert_eq!(Rpc::of_service("feed").count(), 3);
        assert_eq!(Rpc::of_service("").count(), 0);
    }

    #[test]
    fn the_policy_of_each_rpc_is_what_its_kind_allows() {
        for rpc in Rpc::ALL {
            assert_eq!(rpc.is_write(), rpc.policy() == Policy::WRITE, "{rpc:?}");
            let policy = rpc.policy();
            let reads = rpc.method().starts_with("Get") || rpc.method().starts_with("List");
            let ours = rpc.is_ours();
            assert_eq!(policy.idempotent, ours, "{}", rpc.path());
            assert_eq!(policy.retries(Code::Unavailable), ours, "{}", rpc.path());
            // hedges and fallbacks are for reads
            assert_eq!(policy.retries(Code::Timeout), reads, "{}", rpc.path());
            assert_eq!((policy.hedge, policy.fallback), (reads, reads), "{}", rpc.path());
            // the answer would be the same: a bug of the server, or wrong input
            for code in [Code::Internal, Code::BadRequest, Code::NotFound] {
                assert!(!policy.retries(code), "{} {code:?}", rpc.path());
            }
        }
        let careless = Policy { idempotent: false, ..Policy::READ };
        assert!(!careless.retries(Code::Unavailable));
    }
}
