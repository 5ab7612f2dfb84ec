//! The in-flight limits of the instances of one service. Callers on several threads have connections of their own to an
//! instance, and share its limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::limit::Limit;
use crate::registry::Instance;

/// Limits up to which those that nobody uses any more are not looked for.
const FEW: usize = 16;

/// The limits, by address and id.
#[derive(Debug)]
pub struct InFlightLimits {
    /// Calls in flight at one instance.
    max: usize,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    limits: HashMap<(String, String), Weak<Limit>>,
    /// The number of limits at which those that nobody uses are forgotten.
    clean_at: usize,
}

impl InFlightLimits {
    /// Returns limits of `max` calls in flight at each instance.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, known: Mutex::new(Known { limits: HashMap::new(), clean_at: FEW }) })
    }

    /// Returns the limit of an instance. A new process at an old address has a limit of its own.
    pub fn of(&self, instance: &Instance) -> Arc<Limit> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.limits.len() >= known.clean_at {
            known.limits.retain(|_, limit| limit.strong_count() > 0);
            known.clean_at = (known.limits.len() * 2).max(FEW);
        }
        let key = (instance.addr.clone(), instance.id.clone());
        let entry = known.limits.entry(key).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let limit = Limit::new(self.max, None);
            *entry = Arc::downgrade(&limit);
            limit
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_one_limit_as_long_as_somebody_uses_it() {
        let limits = InFlightLimits::new(2);
        let instance = Instance { id: "1".to_owned(), ..Instance::bare("feed", "a:1") };
        let (one, other) = (limits.of(&instance), limits.of(&instance));
        let held = (one.try_acquire(1), other.try_acquire(1));
        assert!(held.0.is_some() && held.1.is_some() && one.try_acquire(1).is_none());
        let restarted = Instance { id: "2".to_owned(), ..instance.clone() };
        assert_eq!(limits.of(&restarted).used(), 0);
        drop((held, one, other));
        assert_eq!(limits.of(&instance).used(), 0);
        for port in 0..1000 {
            drop(limits.of(&Instance::bare("feed", &format!("a:{port}"))));
        }
        assert!(limits.known.lock().unwrap().limits.len() <= FEW, "they are forgotten");
    }
}
