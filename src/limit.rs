//! A limit of what is in progress: a fixed number of permits, each taken at once or not at all. A request without a
//! permit is refused at a small cost (load shedding), so that accepted ones are answered in time.
//!
//! Nothing waits for a permit: a queue before a full server only makes every answer late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use prometheus::IntGauge;

/// A fixed number of permits, for requests or for bytes.
#[derive(Debug)]
pub struct Limit {
    max: usize,
    used: AtomicUsize,
    gauge: Option<IntGauge>,
}

impl Limit {
    /// Returns a limit of `max` permits. `gauge` shows how many are in use; limits may share one.
    #[must_use]
    pub fn new(max: usize, gauge: Option<IntGauge>) -> Arc<Self> {
        Arc::new(Self { max, used: AtomicUsize::new(0), gauge })
    }

    /// Returns true if no permit is left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used.load(Relaxed) >= self.max
    }

    /// Returns true if at least half of the permits are in use.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.used.load(Relaxed) >= self.max / 2
    }

    /// Returns how many permits are in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Takes `n` permits even if fewer are left: for what can no longer be refused.
    #[must_use]
    pub fn acquire(self: &Arc<Self>, n: usize) -> Permit {
        self.add(n);
        Permit { limit: self.clone(), n }
    }

    fn add(&self, n: usize) {
        self.used.fetch_add(n, Relaxed);
        if let Some(gauge) = &self.gauge {
            gauge.add(signed(n));
        }
    }

    /// Takes `n` permits. Returns `None`, and takes none, if fewer are left.
    #[must_use]
    pub fn try_acquire(self: &Arc<Self>, n: usize) -> Option<Permit> {
        self.take(n).then(|| Permit { limit: self.clone(), n })
    }

    fn take(&self, n: usize) -> bool {
        let fits = |used: usize| used.checked_add(n).filter(|sum| *sum <= self.max);
        let taken = self.used.fetch_update(Relaxed, Relaxed, fits).is_ok();
        if let Some(gauge) = self.gauge.as_ref().filter(|_| taken) {
            gauge.add(signed(n));
        }
        taken
    }

    fn give_back(&self, n: usize) {
        self.used.fetch_sub(n, Relaxed);
        if let Some(gauge) = &self.gauge {
            gauge.sub(signed(n));
        }
    }
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Permits in use; given back when this is dropped.
#[derive(Debug)]
pub struct Permit {
    limit: Arc<Limit>,
    n: usize,
}

impl Permit {
    /// Takes `n` more permits. Returns false, and takes none, if fewer are left.
    pub fn try_grow(&mut self, n: usize) -> bool {
        let taken = self.limit.take(n);
        if taken {
            self.n += n;
        }
        taken
    }

    /// Takes or gives back permits until it has `n`, even if fewer are left: for what can no longer be refused.
    pub fn resize(&mut self, n: usize) {
        self.limit.add(n.saturating_sub(self.n));
        self.shrink(self.n.saturating_sub(n));
        self.n = self.n.max(n);
    }

    /// Gives back `n` permits, or all if it has fewer.
    pub fn shrink(&mut self, n: usize) {
        let n = n.min(self.n);
        self.n -= n;
        self.limit.give_back(n);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limit.give_back(self.n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_come_back_however_they_end() {
        let gauge = IntGauge::new("x", "x").unwrap();
        let limit = Limit::new(2, Some(gauge.clone()));
        let (first, second) = (limit.try_acquire(1), limit.try_acquire(1));
        assert!(first.is_some() && second.is_some() && limit.is_full());
        assert!(limit.try_acquire(1).is_none());
        assert_eq!((limit.used(), gauge.get()), (2, 2));
        drop(first);
        assert!(limit.try_acquire(2).is_none() && limit.used() == 1, "all or none");
        drop(second);
        assert_eq!((limit.used(), gauge.get()), (0, 0));
    }

    #[test]
    fn a_permit_grows_up_to_the_limit() {
        let limit = Limit::new(10, None);
        let mut permit = limit.try_acquire(0).unwrap();
        assert!(permit.try_grow(7) && !permit.try_grow(4) && permit.try_grow(3));
        assert!(!permit.try_grow(usize::MAX), "no overflow");
        assert_eq!(limit.used(), 10);
        permit.shrink(4);
        assert_eq!(limit.used(), 6);
        for n in [20, 3, 3, 6] {
            permit.resize(n);
            assert_eq!(limit.used(), n);
        }
        let forced = limit.acquire(100);
        assert!(limit.is_full() && limit.try_acquire(1).is_none());
        drop((permit, forced));
        assert_eq!(limit.used(), 0);
    }
}
