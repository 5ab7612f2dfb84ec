//! What a setting can hold: the kind with its unit and range, and how one value is read and printed.

use std::path::PathBuf;
use std::time::Duration;

use config::{Value, ValueKind};

use super::shown::shown;

/// What a whole number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things: connections, calls, instances.
    One,
    /// Milliseconds; the key ends with `_ms`.
    Milliseconds,
    /// Seconds; the key ends with `_s`.
    Seconds,
    /// 1024 bytes; the key ends with `_kib`.
    Kibibytes,
    /// Hundredths; the key ends with `_percent`.
    Percent,
    /// Things a second.
    PerSecond,
}

impl Unit {
    /// Returns what follows the number on a page; empty for [`Unit::One`].
    #[must_use]
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::One => "",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Kibibytes => "KiB",
            Self::Percent => "%",
            Self::PerSecond => "per second",
        }
    }
}

/// Which values a setting accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number.
    Integer {
        /// What it counts.
        unit: Unit,
        /// The smallest accepted number.
        min: u64,
        /// The largest accepted number.
        max: u64,
    },
    /// A number from 0 to 1.
    Ratio,
    /// A text.
    Text {
        /// The form that the text must have, for people: `host:port`.
        form: &'static str,
    },
    /// A list of texts. A variable or a flag separates them by commas.
    List {
        /// The form of each text.
        form: &'static str,
    },
    /// One of these names.
    Choice {
        /// The names.
        names: &'static [&'static str],
    },
}

/// Short constructors, so that a definition stays on one line.
impl Kind {
    pub(super) const fn number(min: u64, max: u64) -> Self {
        Self::Integer { unit: Unit::One, min, max }
    }
    pub(super) const fn milliseconds(min: u64, max: u64) -> Self {
        Self::Integer { unit: Unit::Milliseconds, min, max }
    }
    pub(super) const fn seconds(min: u64, max: u64) -> Self {
        Self::Integer { unit: Unit::Seconds, min, max }
    }
    pub(super) const fn kibibytes(min: u64, max: u64) -> Self {
        Self::Integer { unit: Unit::Kibibytes, min, max }
    }
    pub(super) const fn percent(min: u64, max: u64) -> Self {
        Self::Integer { unit: Unit::Percent, min, max }
    }
    pub(super) const fn per_second(min: u64, max: u64) -> Self {
        Self::Integer { unit: Unit::PerSecond, min, max }
    }
    pub(super) const fn text(form: &'static str) -> Self {
        Self::Text { form }
    }
    pub(super) const fn list(form: &'static str) -> Self {
        Self::List { form }
    }
    pub(super) const fn choice(names: &'static [&'static str]) -> Self {
        Self::Choice { names }
    }
}

/// A Rust type that a setting can have.
pub trait SettingType: Sized {
    /// Reads a value of a file, a variable or a flag.
    ///
    /// # Errors
    /// What is wrong with it and what is wanted; without the key, which the caller adds.
    fn read(value: Value, kind: Kind) -> Result<Self, String>;

    /// Returns the value as a file would have it, without quotes; empty for none.
    fn print(&self, kind: Kind) -> String;
}

/// Returns the error for a number outside its range.
pub(super) fn out_of_range(value: impl std::fmt::Display, min: u64, max: u64) -> String {
    format!("{value} is out of range, want {min} to {max}")
}

/// Returns what is wrong, without the key and the origin, which the caller adds.
pub(super) fn reason_of(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::Type { unexpected, expected, .. } => {
            format!("{} is not {expected}", shown(&unexpected.to_string()))
        }
        config::ConfigError::At { error, .. } => reason_of(error),
        other => other.to_string(),
    }
}

fn text(value: Value) -> Result<String, String> {
    value.into_string().map_err(|error| reason_of(&error))
}

/// Reads a whole number and checks its range. A file may have it as a text too, as a variable does.
fn integer(value: &Value, kind: Kind) -> Result<u64, String> {
    let number = match &value.kind {
        ValueKind::I64(number) => i128::from(*number),
        ValueKind::U64(number) => i128::from(*number),
        ValueKind::String(text) => {
            text.trim().parse().map_err(|_| format!("string {:?} is not a whole number", shown(text)))?
        }
        _ => return Err("want a whole number".to_owned()),
    };
    let (min, max) = match kind {
        Kind::Integer { min, max, .. } => (min, max),
        _ => (0, u64::MAX),
    };
    let fits = u64::try_from(number).ok().filter(|number| (min..=max).contains(number));
    fits.ok_or_else(|| out_of_range(number, min, max))
}

macro_rules! integers {
    ($($type:ty),+) => {$(
        impl SettingType for $type {
            fn read(value: Value, kind: Kind) -> Result<Self, String> {
                let number = integer(&value, kind)?;
                number.try_into().map_err(|_| format!("{number} is too large"))
            }
            fn print(&self, _: Kind) -> String {
                self.to_string()
            }
        }
    )+};
}
integers!(u32, usize);

impl SettingType for Duration {
    fn read(value: Value, kind: Kind) -> Result<Self, String> {
        let number = integer(&value, kind)?;
        Ok(match kind {
            Kind::Integer { unit: Unit::Seconds, .. } => Self::from_secs(number),
            _ => Self::from_millis(number),
        })
    }
    fn print(&self, kind: Kind) -> String {
        match kind {
            Kind::Integer { unit: Unit::Seconds, .. } => self.as_secs().to_string(),
            _ => self.as_millis().to_string(),
        }
    }
}

impl SettingType for f64 {
    fn read(value: Value, _: Kind) -> Result<Self, String> {
        let number = match &value.kind {
            ValueKind::Boolean(_) => return Err("want a number".to_owned()),
            ValueKind::String(text) => {
                text.trim().parse().map_err(|_| format!("string {:?} is not a number", shown(text)))?
            }
            _ => value.into_float().map_err(|error| reason_of(&error))?,
        };
        if (0.0..=1.0).contains(&number) { Ok(number.abs()) } else { Err(out_of_range(number, 0, 1)) }
    }
    fn print(&self, _: Kind) -> String {
        self.to_string()
    }
}

impl SettingType for String {
    fn read(value: Value, _: Kind) -> Result<Self, String> {
        text(value)
    }
    fn print(&self, _: Kind) -> String {
        self.clone()
    }
}

impl SettingType for PathBuf {
    fn read(value: Value, _: Kind) -> Result<Self, String> {
        text(value).map(Self::from)
    }
    fn print(&self, _: Kind) -> String {
        self.display().to_string()
    }
}

/// `None` is a key that no layer has.
impl<T: SettingType> SettingType for Option<T> {
    fn read(value: Value, kind: Kind) -> Result<Self, String> {
        T::read(value, kind).map(Some)
    }
    fn print(&self, kind: Kind) -> String {
        self.as_ref().map_or_else(String::new, |value| value.print(kind))
    }
}

impl<T: SettingType> SettingType for Vec<T> {
    fn read(value: Value, kind: Kind) -> Result<Self, String> {
        let values = value.into_array().map_err(|error| reason_of(&error))?;
        values.into_iter().map(|value| T::read(value, kind)).collect()
    }
    fn print(&self, kind: Kind) -> String {
        let texts: Vec<String> = self.iter().map(|value| value.print(kind)).collect();
        format!("{texts:?}")
    }
}

/// Implements [`SettingType`] by `FromStr` and `Display`.
macro_rules! by_text {
    ($($type:ty),+ $(,)?) => {$(
        impl $crate::config::value::SettingType for $type {
            fn read(value: ::config::Value, _: $crate::config::value::Kind) -> Result<Self, String> {
                <String as $crate::config::value::SettingType>::read(value, $crate::config::value::Kind::text(""))?.parse()
            }
            fn print(&self, _: $crate::config::value::Kind) -> String {
                self.to_string()
            }
        }
    )+};
}
pub(super) use by_text;
