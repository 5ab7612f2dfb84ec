//! When calls are made, and what is noted of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::callers::Caller;
use super::timer::Timer;
use super::{Amount, Load, Outcome};

/// Most calls in flight of an open loop; what is due beyond them fails.
const MAX_IN_FLIGHT: usize = 8192;
/// How long a call may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Notes what happens to calls.
struct Notes {
    begin: Instant,
    end: Instant,
    offered: u64,
    answered: u64,
    failed: u64,
    in_flight: usize,
    /// Microseconds.
    latencies: Vec<f64>,
    late: Vec<f64>,
    error: String,
}

impl Notes {
    fn counts(&self, due: Instant) -> bool {
        (self.begin..self.end).contains(&due)
    }

    fn ended(&mut self, due: Instant, sent: Instant, result: Result<(), String>) {
        let now = Instant::now();
        self.answered += u64::from(result.is_ok() && self.counts(now));
        if !self.counts(due) {
            return;
        }
        match result {
            Ok(()) => {
                self.latencies.push((now - due).as_secs_f64() * 1e6);
                self.late.push((sent - due).as_secs_f64() * 1e6);
            }
            Err(error) => {
                self.failed += 1;
                self.error = error;
            }
        }
    }

    fn outcome(&mut self) -> Outcome {
        let mean = self.latencies.iter().sum::<f64>() / self.latencies.len().max(1) as f64;
        Outcome {
            offered: self.offered,
            answered: self.answered,
            failed: self.failed,
            mean,
            p50: quantile(&mut self.latencies, 0.5),
            p99: quantile(&mut self.latencies, 0.99),
            late_p50: quantile(&mut self.late, 0.5),
            late_p99: quantile(&mut self.late, 0.99),
            error: std::mem::take(&mut self.error),
        }
    }
}

/// Returns a quantile; 0 of nothing.
fn quantile(values: &mut [f64], quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    values.get((last * quantile).ceil() as usize).copied().unwrap_or(0.0)
}

/// Drives a load and says what came of it.
pub async fn drive(load: &Load, caller: Rc<dyn Caller>) -> Outcome {
    let begin = Instant::now() + Duration::from_secs_f64(load.warm_up);
    let end = begin + Duration::from_secs_f64(load.seconds);
    let notes = Rc::new(RefCell::new(Notes {
        begin,
        end,
        offered: 0,
        answered: 0,
        failed: 0,
        in_flight: 0,
        latencies: Vec::new(),
        late: Vec::new(),
        error: String::new(),
    }));
    let marks = tokio::task::spawn_local(async move {
        let timer = Timer::new();
        for (mark, at) in [("begin", begin), ("end", end)] {
            timer.sleep_until(at).await;
            println!("{mark}");
        }
    });
    match load.amount {
        Amount::Rate(rate) => open(rate, &caller, &notes).await,
        Amount::Calls(calls) => {
            let tasks: Vec<_> =
                (0..calls).map(|_| tokio::task::spawn_local(closed(caller.clone(), notes.clone()))).collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        }
    }
    marks.await.expect("no panic");
    // what is still in flight has its time
    let mut left = 200;
    while notes.borrow().in_flight > 0 && left > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        left -= 1;
    }
    let mut notes = notes.borrow_mut();
    notes.failed += notes.in_flight as u64;
    notes.outcome()
}

/// Calls at random times (Poisson), at a mean rate.
async fn open(rate: f64, caller: &Rc<dyn Caller>, notes: &Rc<RefCell<Notes>>) {
    let (timer, mut random) = (Timer::new(), StdRng::seed_from_u64(17));
    let end = notes.borrow().end;
    let mut due = Instant::now();
    loop {
        due += Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / rate);
        if due >= end {
            return;
        }
        timer.sleep_until(due).await;
        let full = {
            let mut notes = notes.borrow_mut();
            let counts = notes.counts(due);
            notes.offered += u64::from(counts);
            let full = notes.in_flight >= MAX_IN_FLIGHT;
            notes.failed += u64::from(full && counts);
            notes.in_flight += usize::from(!full);
            full
        };
        if full {
            continue;
        }
        let (caller, notes) = (caller.clone(), notes.clone());
        tokio::task::spawn_local(async move {
            let sent = Instant::now();
            let result = limited(caller.as_ref()).await;
            let mut notes = notes.borrow_mut();
            notes.in_flight -= 1;
            notes.ended(due, sent, result);
        });
    }
}

/// One call after the other.
async fn closed(caller: Rc<dyn Caller>, notes: Rc<RefCell<Notes>>) {
    loop {
        let now = Instant::now();
        if now >= notes.borrow().end {
            return;
        }
        let result = limited(caller.as_ref()).await;
        let mut notes = notes.borrow_mut();
        notes.offered += u64::from(notes.counts(now));
        notes.ended(now, now, result);
    }
}

async fn limited(caller: &dyn Caller) -> Result<(), String> {
    let result = tokio::time::timeout(PATIENCE, caller.call()).await;
    result.unwrap_or_else(|_| Err(format!("no answer in {PATIENCE:?}")))
}
