//! Which traces are sampled if the caller has not decided.

use opentelemetry::trace::TraceId;

/// Samples a share of all traces, chosen by their ids, so that every hop with the same ratio decides alike.
///
/// *Source*: the rule of OpenTelemetry's `TraceIdRatioBased`: the low 63 bits of the id are below a bound.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// 0 to 2^63.
    bound: u64,
}

impl Ratio {
    /// Returns the sampler for a ratio, 0 to 1.
    pub fn new(ratio: f64) -> Self {
        const ALL: f64 = 9_223_372_036_854_775_808.0; // 2^63
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the ratio is 0 to 1")]
        let bound = (ratio * ALL) as u64;
        Self { bound }
    }

    /// Returns whether a trace is sampled.
    pub fn samples(self, id: TraceId) -> bool {
        let low = u64::try_from(u128::from_be_bytes(id.to_bytes()) & u128::from(u64::MAX >> 1));
        low.is_ok_and(|low| low < self.bound)
    }
}
