//! The process itself: its store, how it stops, its log and traces, and what `up` runs.

use std::path::PathBuf;
use std::time::Duration;

use super::super::log_filter;
use super::super::types::{Collector, ListenAddr, LogFormat, StoreUrl};
use super::{EVERY_ROLE, Kind, Role, SERVICES, UP};

section! {
    /// Where a service keeps its records.
    Store as store, read by SERVICES, defaults of role:

    /// Where the records are: `memory:` loses them when the process ends, `sqlite:PATH` keeps them. A file belongs
    /// to one service; the instances of that service on one machine share it. (`up` keeps `feed.db`, `profile.db`
    /// and `topic.db` in `up.data_dir`.)
    "store.url" => url: StoreUrl = match role {
        Role::Up => StoreUrl::Sqlite(PathBuf::from("data")),
        _ => StoreUrl::Memory,
    }, Kind::text(StoreUrl::FORM);
}

section! {
    /// How a process stops.
    Shutdown as shutdown, read by EVERY_ROLE, defaults of role:

    /// Time after SIGTERM for requests in progress to end. Then they are cancelled.
    "shutdown.grace_ms" => grace: Duration = Duration::from_secs(10), Kind::milliseconds(0, 600_000);

    /// Time between announcing `draining` and deleting the key in etcd, in which callers turn to other instances.
    "shutdown.announce_ms" => announce: Duration = Duration::from_millis(50), Kind::milliseconds(0, 10_000);
}

section! {
    /// What is logged, and how.
    Log as log, read by EVERY_ROLE, defaults of role:

    /// Level of the log lines, also for single modules: `info,microservice_app::client=debug`. It can be changed
    /// while the process runs.
    "log.level" => level: String = "info".to_owned(), Kind::text(log_filter::FORM);

    /// Form of the log lines, which go to standard error.
    "log.format" => format: LogFormat = LogFormat::Logfmt, Kind::choice(LogFormat::NAMES);

    /// Requests that take this long are logged at level info. Failed requests are always logged, all others at
    /// level debug.
    "log.slow_ms" => slow: Duration = Duration::from_secs(1), Kind::milliseconds(0, 600_000);
}

section! {
    /// Which requests are traced, and where their spans go.
    Trace as trace, read by EVERY_ROLE, defaults of role:

    /// Zipkin's collector. Without a path, or with that of version 1 (`/api/v1/spans`), spans go to
    /// `/api/v2/spans`. Without a collector, requests have ids and nothing is recorded.
    "trace.zipkin_addr" => zipkin_addr: Option<Collector> = None, Kind::text(Collector::FORM);

    /// Share of the requests that are traced, of those whose headers do not decide it. The default suits a few
    /// requests a second; a busy system wants 0.01.
    "trace.sample_ratio" => sample_ratio: f64 = 1.0, Kind::Ratio;

    /// Most spans that wait to be sent, each below 1 KiB. Further spans are counted and dropped. The default is
    /// half a second of all spans of a gateway at 5000 requests/s.
    "trace.queue" => queue: usize = 8192, Kind::number(100, 1_000_000);
}

section! {
    /// What `up` runs.
    Up as up, read by UP, defaults of role:

    /// Directory of the SQLite files `feed.db`, `profile.db` and `topic.db`. It is created if it is missing.
    "up.data_dir" => data_dir: PathBuf = PathBuf::from("data"), Kind::text("a path");

    /// Address of the first feed instance.
    "up.feed_addr" => feed_addr: ListenAddr = ListenAddr::loopback(8082), Kind::text(ListenAddr::FORM);

    /// Address of the first profile instance.
    "up.profile_addr" => profile_addr: ListenAddr = ListenAddr::loopback(8083), Kind::text(ListenAddr::FORM);

    /// Address of the first topic instance.
    "up.topic_addr" => topic_addr: ListenAddr = ListenAddr::loopback(8084), Kind::text(ListenAddr::FORM);

    /// Instances of feed. Those after the first take free ports.
    "up.feed_replicas" => feed_replicas: usize = 1, Kind::number(0, 64);

    /// Instances of profile. Those after the first take free ports.
    "up.profile_replicas" => profile_replicas: usize = 1, Kind::number(0, 64);

    /// Instances of topic. Those after the first take free ports.
    "up.topic_replicas" => topic_replicas: usize = 1, Kind::number(0, 64);
}
