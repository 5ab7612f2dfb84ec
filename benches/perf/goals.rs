//! What must come out, in one place.

use super::headline::{Measure, Results};
use super::kit::ab::Comparison;

/// A measure of a side.
type Term = (&'static str, Measure);

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The first over the second, each a sum of terms.
    Ratio,
    /// The first less the second.
    Difference,
    /// The first.
    Value,
}

#[derive(Clone, Copy, Debug)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// A goal. The peer `go` is whatever runs under that name.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub about: &'static str,
    pub form: Form,
    pub of: &'static [Term],
    pub over: &'static [Term],
    pub bound: Bound,
}

impl Goal {
    const fn ratio(about: &'static str, of: &'static [Term], over: &'static [Term], bound: Bound) -> Self {
        Self { about, form: Form::Ratio, of, over, bound }
    }
}

use Bound::{AtLeast, AtMost};
use Measure::{AllCpu, GatewayCpu, Median, Memory, Peak, Tail};

pub const GOALS: &[Goal] = &[
    Goal::ratio("CPU a request, bare / go", &[("bare", AllCpu)], &[("go", AllCpu)], AtMost(0.30)),
    Goal::ratio("CPU a request, everything / go", &[("everything", AllCpu)], &[("go", AllCpu)], AtMost(0.40)),
    Goal::ratio(
        "p99 at 70 % of go's peak, everything / go",
        &[("everything", Tail)],
        &[("go", Tail)],
        AtMost(0.33),
    ),
    Goal::ratio("requests/s, bare / go", &[("bare", Peak)], &[("go", Peak)], AtLeast(2.5)),
    Goal::ratio("gateway CPU, bare / envoy", &[("bare", GatewayCpu)], &[("envoy", GatewayCpu)], AtMost(0.33)),
    Goal::ratio(
        "gateway CPU, everything / envoy",
        &[("everything", GatewayCpu)],
        &[("envoy", GatewayCpu)],
        AtMost(0.40),
    ),
    Goal::ratio("requests/s, bare / envoy", &[("bare", Peak)], &[("envoy", Peak)], AtLeast(2.4)),
    Goal::ratio("requests/s, layers-off / warp", &[("layers-off", Peak)], &[("warp", Peak)], AtLeast(0.40)),
    Goal::ratio("requests/s, everything / warp", &[("everything", Peak)], &[("warp", Peak)], AtLeast(0.30)),
    Goal::ratio("requests/s, layers-off / tonic", &[("layers-off", Peak)], &[("tonic", Peak)], AtLeast(0.70)),
    Goal::ratio(
        "CPU, layers-off / warp + tonic server and client",
        &[("layers-off", AllCpu)],
        &[("warp", AllCpu), ("tonic", AllCpu)],
        AtMost(1.25),
    ),
    Goal::ratio("calls/s, client / tonic", &[("client", Peak)], &[("tonic", Peak)], AtLeast(0.95)),
    Goal {
        about: "p50 at the fixed rate, client - tonic, us",
        form: Form::Difference,
        of: &[("client", Median)],
        over: &[("tonic", Median)],
        bound: AtMost(20.0),
    },
    Goal::ratio("requests/s, everything / bare", &[("everything", Peak)], &[("bare", Peak)], AtLeast(0.95)),
    Goal::ratio("requests/s, traces-all / bare", &[("traces-all", Peak)], &[("bare", Peak)], AtLeast(0.65)),
    Goal {
        about: "memory of the gateway at 2000 requests/s, MB",
        form: Form::Value,
        of: &[("everything", Memory)],
        over: &[],
        bound: AtMost(16.0),
    },
];

/// What became of a goal.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub goal: Goal,
    /// `None` if a side was not there, or no round of it counts.
    pub found: Option<Comparison>,
}

impl Verdict {
    /// Returns whether the median is within the bound.
    pub fn met(&self) -> Option<bool> {
        let found = self.found.as_ref()?;
        Some(match self.goal.bound {
            AtMost(bound) => found.median <= bound,
            AtLeast(bound) => found.median >= bound,
        })
    }
}

/// Compares results with every goal, round by round.
pub fn judge(results: &Results) -> Vec<Verdict> {
    GOALS.iter().map(|goal| Verdict { goal: *goal, found: compare(goal, results) }).collect()
}

fn compare(goal: &Goal, results: &Results) -> Option<Comparison> {
    let sum = |terms: &[Term], round: usize| {
        terms.iter().map(|(side, measure)| results.value(side, *measure, round)).sum::<Option<f64>>()
    };
    let rounds = (0..results.rounds).filter_map(|round| {
        let of = sum(goal.of, round)?;
        Some(match goal.form {
            Form::Ratio => of / sum(goal.over, round)?,
            Form::Difference => of - sum(goal.over, round)?,
            Form::Value => of,
        })
    });
    let values: Vec<f64> = rounds.collect();
    (!values.is_empty()).then(|| Comparison::of(values, results.others))
}
