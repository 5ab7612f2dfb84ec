//! The section `shutdown`.

use std::time::Duration;

use super::{EVERY_ROLE, Kind, Role};

section! {
    /// How a process stops.
    Shutdown as shutdown, read by EVERY_ROLE, defaults of role:

    /// Time after SIGTERM for requests in progress to end. Then they are cancelled.
    "shutdown.grace_ms" => grace: Duration = Duration::from_secs(10), Kind::milliseconds(0, 600_000);

    /// Time between announcing `draining` and deleting the key in etcd, in which callers turn to other instances.
    "shutdown.announce_ms" => announce: Duration = Duration::from_millis(50), Kind::milliseconds(0, 10_000);
}
