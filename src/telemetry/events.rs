//! The last notable events of the process, for the page of the system: an instance that left, a breaker that opened, a
//! view that was reset. Who notices an event notes it here; nothing acts on them.
//!
//! A note costs a lock and a short text, so only what is rare is noted: never one request or one call.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Most events that are kept; the oldest are forgotten first.
pub const KEPT: usize = 64;
/// Longest text of an event, characters.
pub const LONGEST: usize = 200;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An instance joined or left the view.
    Instance,
    /// A breaker opened or closed.
    Breaker,
    /// The registry: a view that was reset, or nothing heard from it.
    Registry,
    /// The connection to a shared database.
    Database,
    /// Requests are refused because of overload.
    Overload,
}

impl Kind {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Breaker => "breaker",
            Self::Registry => "registry",
            Self::Database => "database",
            Self::Overload => "overload",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, seconds since 1970.
    pub at: u64,
    /// What it is about.
    pub kind: Kind,
    /// What happened, a short sentence.
    pub text: Cow<'static, str>,
}

/// The last events. Cheap to clone; all clones share them.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Mutex<VecDeque<Event>>>);

impl Events {
    /// Notes an event that happens now.
    pub fn note(&self, kind: Kind, text: String) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = if text.chars().nth(LONGEST).is_some() {
            text.chars().take(LONGEST - 1).chain(['…']).collect()
        } else {
            text
        };
        let mut events = self.lock();
        if events.len() >= KEPT {
            events.pop_front();
        }
        events.push_back(Event { at: now.as_secs(), kind, text: text.into() });
    }

    /// Returns the events, the newest first.
    #[must_use]
    pub fn latest(&self) -> Vec<Event> {
        self.lock().iter().rev().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_the_oldest_are_forgotten() {
        let events = Events::default();
        for number in 0..KEPT + 5 {
            events.clone().note(Kind::Instance, number.to_string());
        }
        events.note(Kind::Registry, "ä".repeat(LONGEST + 1));
        let latest = events.latest();
        assert_eq!(latest.len(), KEPT);
        assert_eq!(latest[0].text.chars().count(), LONGEST, "a long text is cut");
        assert_eq!((latest[1].text.as_ref(), latest[KEPT - 1].text.as_ref()), ("68", "6"));
        assert!(latest[0].at > 1_700_000_000);
    }
}
