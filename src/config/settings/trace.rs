//! The section `trace`.

use super::super::types::Collector;
use super::{EVERY_ROLE, Kind, Role};

section! {
    /// Which requests are traced, and where their spans go.
    Trace as trace, read by EVERY_ROLE, defaults of role:

    /// Zipkin's collector. Without a path, or with that of version 1 (`/api/v1/spans`), spans go to
    /// `/api/v2/spans`. Without a collector, requests have ids and nothing is recorded.
    "trace.zipkin_addr" => zipkin_addr: Option<Collector> = None, Kind::text(Collector::FORM);

    /// Share of the requests that are traced, of those whose headers do not decide it. The default suits a few
    /// requests a second; use 0.01 on a busy system.
    "trace.sample_ratio" => sample_ratio: f64 = 1.0, Kind::Ratio;

    /// Most spans that wait to be sent, each below 1 KiB. Further spans are counted and dropped. The default is
    /// half a second of all spans of a gateway at 5000 requests/s.
    "trace.queue" => queue: usize = 8192, Kind::number(100, 1_000_000);
}
