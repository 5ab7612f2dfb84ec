//! What is done for a request whose caller hangs up: its future is dropped, and nothing after the next `await`
//! runs.

/// Does something when it is dropped, unless [`Self::answered`] was called before.
pub struct Unanswered<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Unanswered<F> {
    /// Returns a guard over `note`.
    pub fn new(note: F) -> Self {
        Self(Some(note))
    }

    /// The request has its answer.
    pub fn answered(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for Unanswered<F> {
    fn drop(&mut self) {
        if let Some(note) = self.0.take() {
            note();
        }
    }
}
