//! Compares two candidates on a machine that is never quite quiet: both run in every round, one after
//! the other and the order turned round every time, so whatever else goes on meets both alike. The
//! result is the median of the rounds' ratios with its 95 % bootstrap interval.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::cpu::Others;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// The outcome of a comparison. A ratio is candidate over base, round by round.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The ratio of each round, in order.
    pub ratios: Vec<f64>,
    pub median: f64,
    /// 95 % interval of the median.
    pub low: f64,
    pub high: f64,
    /// Share of the cores that other processes took; over a fifth the comparison is void, see
    /// [`Others::disturbed`].
    pub others: f64,
}

/// Measures both sides in each of so many rounds. A side returns one positive number: requests a second,
/// a p99, processor time.
pub async fn compare(
    rounds: usize,
    mut base: impl AsyncFnMut() -> f64,
    mut candidate: impl AsyncFnMut() -> f64,
) -> Comparison {
    let others = Others::watch();
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let (a, b) = if round % 2 == 0 {
            let a = base().await;
            (a, candidate().await)
        } else {
            let b = candidate().await;
            (base().await, b)
        };
        ratios.push(b / a);
    }
    Comparison::of(ratios, others.share())
}

/// Measures single works of both sides in turn, so that a disk that is now quick, now slow meets both alike. Each work
/// returns its time, seconds; a round lasts `round` and gives the ratio of the medians, candidate over base. Returns the
/// comparison and the two medians of the last round.
pub async fn in_turn(
    rounds: u32,
    round: Duration,
    mut base: impl AsyncFnMut() -> f64,
    mut candidate: impl AsyncFnMut() -> f64,
) -> (Comparison, [f64; 2]) {
    let others = Others::watch();
    let (mut ratios, mut medians) = (Vec::new(), [0.0; 2]);
    for _ in 0..rounds {
        let (begun, mut times) = (Instant::now(), [Vec::new(), Vec::new()]);
        while begun.elapsed() < round || times[1].is_empty() {
            if times[0].len() % 2 == 0 {
                times[0].push(base().await);
                times[1].push(candidate().await);
            } else {
                times[1].push(candidate().await);
                times[0].push(base().await);
            }
        }
        medians = times.map(|mut times| median(&mut times));
        ratios.push(medians[1] / medians[0]);
    }
    (Comparison::of(ratios, others.share()), medians)
}

impl Comparison {
    /// Returns what the ratios of the rounds say; panics if there are none.
    pub fn of(ratios: Vec<f64>, others: f64) -> Self {
        let (low, high) = interval(&ratios);
        Self { median: median(&mut ratios.clone()), low, high, others, ratios }
    }
}

/// Returns the median; panics if there are no values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) }
}

/// Returns the middle 95 % of the medians of resamples with replacement; a fixed seed repeats it.
fn interval(ratios: &[f64]) -> (f64, f64) {
    let mut random = StdRng::seed_from_u64(95);
    let mut medians: Vec<_> = (0..RESAMPLES)
        .map(|_| {
            let mut sample: Vec<_> =
                ratios.iter().map(|_| ratios[random.random_range(0..ratios.len())]).collect();
            median(&mut sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_known_ratio_is_found_within_its_interval_and_both_sides_take_turns() {
        let mut random = StdRng::seed_from_u64(1);
        let order = std::cell::RefCell::new(String::new());
        let noise = std::cell::RefCell::new(move || random.random_range(0.9..1.1));
        let found = compare(
            20,
            async || {
                order.borrow_mut().push('a');
                100.0 * noise.borrow_mut()()
            },
            async || {
                order.borrow_mut().push('b');
                130.0 * noise.borrow_mut()()
            },
        )
        .await;
        assert!(found.low <= 1.3 && 1.3 <= found.high, "{found:?}");
        assert!(found.low > 1.15 && found.high < 1.45, "{found:?}");
        assert!((found.low..=found.high).contains(&found.median), "{found:?}");
        assert!(order.borrow().starts_with("abbaabba"), "{}", order.borrow());
    }
    #[tokio::test]
    async fn single_works_in_turn_give_a_known_ratio() {
        let order = std::cell::RefCell::new(String::new());
        let work = async |name, time| {
            order.borrow_mut().push(name);
            tokio::task::yield_now().await;
            time
        };
        let (found, medians) = in_turn(
            3,
            Duration::from_millis(20),
            async || work('a', 2.0).await,
            async || work('b', 3.0).await,
        )
        .await;
        assert_eq!((found.ratios, medians), (vec![1.5; 3], [2.0, 3.0]));
        assert!(order.borrow().starts_with("abbaabba"), "{}", order.borrow());
    }
}
