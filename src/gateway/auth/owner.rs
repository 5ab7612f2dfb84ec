//! The right to what belongs to a user.

use std::sync::Arc;

use super::super::metrics::AuthMetrics;
use super::super::problem::Problem;
use super::refusal::Refusal;

/// The right of a caller to the records of one user, which is checked once the request has been read.
#[derive(Clone, Debug)]
pub struct Owner {
    user_id: Option<i64>,
    metrics: Arc<AuthMetrics>,
}

impl Owner {
    /// Returns the right that a token gives whose `sub` is this user; none if it belongs to no user.
    pub const fn new(user_id: Option<i64>, metrics: Arc<AuthMetrics>) -> Self {
        Self { user_id, metrics }
    }

    /// Checks that the user whose records a request names is this one.
    ///
    /// # Errors
    /// 403 if it is another one.
    pub fn check(&self, user_id: i64) -> Result<(), Problem> {
        if self.user_id == Some(user_id) {
            return Ok(());
        }
        self.metrics.refused(Refusal::Owner);
        Err(Problem::no_access(Refusal::Owner, None))
    }
}
