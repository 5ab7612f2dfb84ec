//! Whether something is well. The health of a whole is the worst of its parts: there is no other rule, and the page, `/status`
//! and the exit status of `microservice-app status` all take it from here.

use serde::{Deserialize, Serialize};

/// Whether something is well, from the best to the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All is well.
    #[default]
    Ok,
    /// Something is not as it should be, and the system copes with it.
    Warn,
    /// Something does not work.
    Fail,
}

impl Health {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    /// Returns the health of a whole: that of its worst part, and [`Self::Ok`] if it has no parts.
    #[must_use]
    pub fn worst(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_part_decides() {
        use Health::{Fail, Ok, Warn};
        for (parts, whole) in
            [(&[][..], Ok), (&[Ok, Ok], Ok), (&[Ok, Warn, Ok], Warn), (&[Warn, Fail, Ok], Fail)]
        {
            assert_eq!(Health::worst(parts.iter().copied()), whole, "{parts:?}");
        }
        for health in [Ok, Warn, Fail] {
            assert_eq!(serde_json::to_value(health).unwrap(), health.name());
        }
    }
}
