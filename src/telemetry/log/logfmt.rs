//! An event as one line of `key=value` pairs: `ts=2026-11-22T10:00:00.000000Z level=info
//! target=microservice_app::gateway msg=request route=/api/feed/get_feeds status=503 trace_id=463ac35c9f6413ad`.
//!
//! A value stands bare if it is printable and holds no blank, quote, equals sign or backslash; else it is quoted and
//! escaped as in JSON. A key holds no character that would end it. So every line can be parsed, whatever its values are.
//! Spans are not written; this program has none.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// Keys of every line. A field with the same name gets a prefix.
const OWN: [&str; 4] = ["ts", "level", "target", "msg"];

/// Formats events.
pub struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // events of crates that use `log` carry their origin in fields
        let normalized = event.normalized_metadata();
        let meta = normalized.as_ref().unwrap_or_else(|| event.metadata());
        out.write_str("ts=")?;
        SystemTime.format_time(&mut out)?;
        let level = match *meta.level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warn",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        write!(out, " level={level}")?;
        let mut line = Line { out, scratch: String::new(), result: Ok(()) };
        line.own("target", format_args!("{}", meta.target()));
        // the message first, wherever it stands among the fields
        event.record(&mut Message(&mut line));
        event.record(&mut Others(&mut line));
        line.result?;
        line.out.write_char('\n')
    }
}

struct Line<'a> {
    out: Writer<'a>,
    scratch: String,
    result: fmt::Result,
}

impl Line<'_> {
    /// Writes a pair with a key of [`OWN`].
    fn own(&mut self, key: &str, value: fmt::Arguments<'_>) {
        self.scratch.clear();
        // a value whose formatting fails is written as far as it got
        let _ = self.scratch.write_fmt(value);
        if self.result.is_ok() {
            self.result = write_pair(&mut self.out, key, &self.scratch);
        }
    }

    /// Writes a pair for a field.
    fn field(&mut self, name: &str, value: fmt::Arguments<'_>) {
        self.own(&key(name), value);
    }
}

struct Message<'a, 'b>(&'a mut Line<'b>);

impl Visit for Message<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.own("msg", format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

struct Others<'a, 'b>(&'a mut Line<'b>);

impl Visit for Others<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = field.name();
        // the origin of an event of `log` is already in the metadata
        if name != "message" && !name.starts_with("log.") {
            self.0.field(name, format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Returns the key for a field: no character that would end it, and none of [`OWN`].
fn key(name: &str) -> Cow<'_, str> {
    let name = name.strip_prefix("r#").unwrap_or(name);
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '=' | '"' | '\\');
    if !name.is_empty() && name.chars().all(fits) && !OWN.contains(&name) {
        return Cow::Borrowed(name);
    }
    let fitting = name.chars().map(|c| if fits(c) { c } else { '_' });
    Cow::Owned("field.".chars().chain(fitting).collect())
}

fn write_pair(out: &mut Writer<'_>, key: &str, value: &str) -> fmt::Result {
    write!(out, " {key}=")?;
    write_value(out, value)
}

/// Returns true for characters that a terminal or a log reader could interpret.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn write_value(out: &mut Writer<'_>, value: &str) -> fmt::Result {
    let bare = |c: char| !(c.is_whitespace() || matches!(c, '"' | '=' | '\\') || is_control(c));
    if !value.is_empty() && value.chars().all(bare) {
        return out.write_str(value);
    }
    out.write_char('"')?;
    for c in value.chars() {
        match c {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            // all of them are at most U+FFFF
            c if is_control(c) => write!(out, "\\u{:04x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::{self, MakeWriter};
    use tracing_subscriber::prelude::*;

    use super::{Logfmt, is_control};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// Returns what `log` writes, as logfmt and as JSON.
    fn written(log: impl Fn()) -> (String, String) {
        let (logfmt, json) = (Sink::default(), Sink::default());
        let subscriber = tracing_subscriber::registry()
            .with(fmt::layer().event_format(Logfmt).with_writer(logfmt.clone()))
            .with(fmt::layer().json().flatten_event(true).with_writer(json.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let text = |sink: Sink| String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        (text(logfmt), text(json))
    }

    /// Parses a line as a reader of logfmt does.
    fn pairs(line: &str) -> Vec<(String, String)> {
        let mut rest = line;
        let mut pairs = Vec::new();
        while !rest.is_empty() {
            let (key, after) =
                rest.split_once('=').unwrap_or_else(|| panic!("no pair in {rest:?} of {line:?}"));
            assert!(key.bytes().all(|b| b.is_ascii_graphic() && b != b'"'), "key {key:?} in {line:?}");
            let (value, after) = if after.starts_with('"') {
                let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
                let value = values.next().unwrap().unwrap_or_else(|e| panic!("{e}: {after:?}"));
                (value, &after[values.byte_offset()..])
            } else {
                let end = after.find(' ').unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            };
            assert!(after.is_empty() || after.starts_with(' '), "{after:?} in {line:?}");
            rest = after.strip_prefix(' ').unwrap_or(after);
            pairs.push((key.to_owned(), value));
        }
        pairs
    }

    #[test]
    fn every_value_comes_back_as_it_was_and_a_line_is_a_line() {
        let values = [
            "",
            "plain",
            "two words",
            "a=b",
            "say \"hi\"",
            "back\\slash",
            "\\n is no line end",
            "line\nbreak\r\n",
            "tab\t\0\u{7}\u{1b}[31m\u{7f}\u{9b}2J",
            "ünïcödé 日本",
            "\u{2028}\u{202e}\u{feff}",
            "level=error msg=forged",
            "\"",
            "'",
        ];
        for value in values {
            let (logfmt, json) = written(|| {
                tracing::info!(text = value, shown = %value, "{value}");
                tracing::info!(value);
            });
            assert_eq!(logfmt.lines().count(), 2, "{logfmt:?}");
            assert!(!logfmt.contains(is_control_but_newline), "{logfmt:?}");
            let first = pairs(logfmt.lines().next().unwrap());
            let keys: Vec<_> = first.iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(keys, ["ts", "level", "target", "msg", "text", "shown"], "{logfmt}");
            assert!(first[3..].iter().all(|(_, read)| read == value), "{value:?} became {first:?}");
            for line in json.lines() {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(line["text"] == value || line["value"] == value, "{line}");
            }
        }
    }

    fn is_control_but_newline(c: char) -> bool {
        is_control(c) && c != '\n'
    }

    #[test]
    fn keys_are_keys_whatever_a_field_is_called() {
        let (logfmt, json) = written(|| {
            tracing::warn!(r#type = 1, level = "loud", msg = "mine", ts = 0, target = 2, a.b = true, "said");
            tracing::warn!({ "two words=\"x\"" = 3.5, "" = 4 }, "odd");
            tracing::warn!(nan = f64::NAN, big = u128::MAX, bytes = ?b"\xff\"\n", none = Option::<u8>::None);
        });
        let lines: Vec<_> = logfmt.lines().map(pairs).collect();
        let of = |line: usize, key: &str| {
            let found: Vec<_> =
                lines[line].iter().filter(|(name, _)| name == key).map(|(_, v)| v.as_str()).collect();
            assert_eq!(found.len(), 1, "{key} in {:?}", lines[line]);
            found[0].to_owned()
        };
        for (key, value) in [
            ("level", "warn"),
            ("msg", "said"),
            ("field.level", "loud"),
            ("field.msg", "mine"),
            ("field.ts", "0"),
            ("field.target", "2"),
            ("type", "1"),
            ("a.b", "true"),
        ] {
            assert_eq!(of(0, key), value);
        }
        assert_eq!(of(1, "field.two_words__x_"), "3.5");
        assert_eq!(of(2, "nan"), "NaN");
        assert_eq!(of(2, "bytes"), "[255, 34, 10]");
        for line in json.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn lines_of_crates_that_use_log_have_their_own_origin() {
        let _ = tracing_log::LogTracer::init();
        let (logfmt, _) = written(|| tracing_log::log::warn!(target: "elsewhere", "two words"));
        let line = pairs(logfmt.trim_end());
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(line[1..], [pair("level", "warn"), pair("target", "elsewhere"), pair("msg", "two words")]);
    }
}
