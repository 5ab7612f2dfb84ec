//! Tools for pages: escaping, times, numbers, and the small lines of what has been.

use std::fmt::{self, Display, Formatter, Write as _};

use crate::admin::history::KEPT;

/// A text that is shown in a page: what is markup in it is escaped.
pub struct Text<T>(pub T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(Escape(f), "{}", self.0)
    }
}

struct Escape<'a, 'b>(&'a mut Formatter<'b>);

impl fmt::Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            let (before, found) = rest.split_at(at);
            self.0.write_str(before)?;
            self.0.write_str(match found.as_bytes().first() {
                Some(b'&') => "&amp;",
                Some(b'<') => "&lt;",
                Some(b'>') => "&gt;",
                Some(b'"') => "&quot;",
                _ => "&#39;",
            })?;
            rest = found.get(1..).unwrap_or_default();
        }
        self.0.write_str(rest)
    }
}

/// A moment, seconds since 1970, shown as `2026-11-26 17:05:09 UTC`.
#[derive(Clone, Copy)]
pub struct Moment(pub u64);

impl Display for Moment {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0 / 86_400, self.0 % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// Returns year, month and day of a number of days since 1970, in the Gregorian calendar.
///
/// *Source*: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
const fn date(days: u64) -> (u64, u64, u64) {
    // days since the first of March of the year 0
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

/// A time in milliseconds, shown as `4.9 ms` or `1.2 s`.
pub struct Millis(pub f64);

impl Display for Millis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms >= 1000.0 => write!(f, "{:.1} s", ms / 1000.0),
            ms if ms >= 100.0 => write!(f, "{ms:.0} ms"),
            ms => write!(f, "{ms:.1} ms"),
        }
    }
}

/// A number per second, shown with a digit behind the point if it is small.
pub struct Rate(pub f64);

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 >= 100.0 { write!(f, "{:.0}", self.0) } else { write!(f, "{:.1}", self.0) }
    }
}

/// A share, 0 to 1, shown in percent: `0 %`, `0.5 %`, `12 %`. What is not nothing is not shown as nothing.
pub struct Share(pub f64);

impl Display for Share {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 * 100.0 {
            percent if percent <= 0.0 => f.write_str("0 %"),
            percent if percent < 0.1 => f.write_str("< 0.1 %"),
            percent if percent < 10.0 => write!(f, "{percent:.1} %"),
            percent => write!(f, "{percent:.0} %"),
        }
    }
}

/// Returns a number of things.
pub fn number(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Appends a row of a list that counts what is not shown.
pub fn rest(out: &mut String, count: usize, what: &str) {
    if count > 0 {
        let _ = write!(out, "<li class=\"dim\">and {count} {}</li>", Text(what));
    }
}

/// Width of a line between two samples, and the height of all lines; units of the picture.
const STEP: usize = 2;
const HEIGHT: f64 = 24.0;

/// Appends a picture of what has been: a line of numbers, and one of those of them that are failures. It says nothing
/// that the numbers beside it do not say, so screen readers pass over it.
pub fn line(out: &mut String, all: &[f64], failed: &[f64]) {
    let most = all.iter().copied().fold(1.0, f64::max);
    let width = (KEPT - 1) * STEP;
    let _ = write!(
        out,
        "<svg aria-hidden=\"true\" viewBox=\"0 0 {width} {HEIGHT}\" preserveAspectRatio=\"none\">"
    );
    points(out, "", all, most);
    if failed.iter().any(|rate| *rate > 0.0) {
        points(out, " class=\"failed\"", failed, most);
    }
    out.push_str("</svg>");
}

fn points(out: &mut String, class: &str, values: &[f64], most: f64) {
    let _ = write!(out, "<polyline{class} points=\"");
    let height = |value: f64| (HEIGHT - 1.0) - (HEIGHT - 2.0) * value / most;
    let first = KEPT.saturating_sub(values.len());
    for (at, value) in values.iter().enumerate() {
        // of equal numbers in a row only the first and the last are points
        let same = |other: Option<&f64>| other.is_some_and(|other| other.to_bits() == value.to_bits());
        if at > 0 && same(values.get(at - 1)) && same(values.get(at + 1)) {
            continue;
        }
        let _ = write!(out, "{},{:.1} ", (first + at) * STEP, height(*value));
    }
    out.push_str("\"/>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped() {
        let evil = "</script><img src=x onerror='a()'>&amp;\"é";
        assert_eq!(
            Text(evil).to_string(),
            "&lt;/script&gt;&lt;img src=x onerror=&#39;a()&#39;&gt;&amp;amp;&quot;é"
        );
    }

    #[test]
    fn moments_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_200, "2024-03-01 00:00:00 UTC"),
            (1_795_369_975, "2026-11-22 17:52:55 UTC"),
            (4_102_444_799, "2099-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(Moment(seconds).to_string(), text);
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([4.94, 140.2, 1234.0].map(|ms| Millis(ms).to_string()), ["4.9 ms", "140 ms", "1.2 s"]);
        assert_eq!([0.25, 99.0, 1234.5].map(|rate| Rate(rate).to_string()), ["0.2", "99.0", "1234"]);
        let shares = [0.0, 0.000_3, 0.012, 0.5].map(|share| Share(share).to_string());
        assert_eq!(shares, ["0 %", "< 0.1 %", "1.2 %", "50 %"]);
    }

    #[test]
    fn a_line_has_a_point_where_it_bends() {
        let mut out = String::new();
        line(&mut out, &[0.0, 0.0, 0.0, 10.0], &[0.0; 4]);
        assert!(out.contains("points=\"112,23.0 116,23.0 118,1.0 \""), "{out}");
        assert_eq!(out.matches("polyline").count(), 1, "nothing failed");
    }
}
