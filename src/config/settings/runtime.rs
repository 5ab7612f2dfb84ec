//! The section `runtime`.

use super::{EVERY_ROLE, Kind, Role};

section! {
    /// How a process uses the cores of its machine.
    Runtime as runtime, read by EVERY_ROLE, defaults of role:

    /// Threads that serve requests. Each has its own connections to services, balancer and breakers; the limits of this
    /// page hold for the process, however many there are, except `client.connections`. 0 is one for each core that the
    /// process may use. More than one pays off where one is busy: then `rate(process_cpu_seconds_total[1m])` is near 1.
    "runtime.threads" => threads: usize = 1, Kind::number(0, 256);
}
