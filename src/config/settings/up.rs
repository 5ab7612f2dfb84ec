//! The section `up`.

use std::path::PathBuf;

use super::super::types::ListenAddr;
use super::{Kind, Role, UP};

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
