//! The value of `log.level`: a level for this program, and levels for single modules.
//!
//! `debug` raises the level of this program only; other crates stay at `info`, because their lines would bury
//! ours. A crate that is named is logged up to `debug`: `info,h2=debug`. It is not logged at `trace`, where it
//! might print what users sent; the client of PostgreSQL does so at `debug` already, and stays at `info`.

use tracing_subscriber::filter::{LevelFilter, Targets};

use super::shown::shown;

/// The form of the text.
pub const FORM: &str = "off, error, warn, info, debug, trace, or module=level,...";

/// How the target of each of our lines begins.
const OURS: &str = "microservice_app";
const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];
/// Highest level of other crates that are not named.
const OTHERS: LevelFilter = LevelFilter::INFO;
/// Highest level of other crates that are named.
const NAMED: LevelFilter = LevelFilter::DEBUG;
/// A crate that prints the parameters of statements at debug.
const TELLS_CONTENTS: &str = "tokio_postgres";
/// Most parts of a text. Each part is compared with every place in the code that logs.
const MAX_PARTS: usize = 32;

/// Reads a level (`off`, `error`, `warn`, `info`, `debug`, `trace`) and `target=level` for single modules,
/// separated by commas: `info,microservice_app::client=debug`. If no part is a level alone, everything else is
/// at `error`.
///
/// # Errors
/// Which part is wrong, and what is wanted. Stricter than tracing-subscriber, which takes a misspelt level for
/// a module's name and then says nothing any more.
pub fn parse(text: &str) -> Result<Targets, String> {
    if text.split(',').count() > MAX_PARTS {
        return Err(format!("has more than {MAX_PARTS} parts"));
    }
    let mut general = None;
    let mut named = Vec::new();
    for part in text.split(',') {
        let part = part.trim();
        match part.split_once('=') {
            Some((target, word)) => {
                if !is_target(target) {
                    return Err(format!("{:?} is not the name of a module", shown(target)));
                }
                let cap = match target {
                    _ if is_within(target, OURS) => LevelFilter::TRACE,
                    _ if target.starts_with(TELLS_CONTENTS) => OTHERS,
                    _ => NAMED,
                };
                named.push((target.to_owned(), level(word)?.min(cap)));
            }
            None if general.replace(level(part)?).is_some() => {
                return Err(format!("{:?} is a second level for everything", shown(part)));
            }
            None => {}
        }
    }
    let general = general.unwrap_or(LevelFilter::ERROR);
    let targets = Targets::new()
        .with_default(general.min(OTHERS))
        .with_target("rpprof", general.min(LevelFilter::WARN)) // says at info that it begins and ends
        .with_target(TELLS_CONTENTS, general.min(OTHERS)) // also if `tokio` is named
        .with_target(OURS, general);
    Ok(targets.with_targets(named)) // a later directive for the same target wins
}

fn level(word: &str) -> Result<LevelFilter, String> {
    let known = LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    known.map(|(_, level)| *level).ok_or_else(|| format!("{:?} is not a level, want {FORM}", shown(word)))
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
}

fn is_within(target: &str, crate_name: &str) -> bool {
    target.strip_prefix(crate_name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_is_for_this_program_and_at_most_info_for_others() {
        let debug = parse("debug").unwrap();
        assert!(debug.would_enable("microservice_app::gateway", &Level::DEBUG));
        assert!(!debug.would_enable("microservice_app::gateway", &Level::TRACE));
        assert!(debug.would_enable("h2::codec", &Level::INFO));
        assert!(!debug.would_enable("h2::codec", &Level::DEBUG));
        let warn = parse(" WARN ").unwrap();
        assert!(!warn.would_enable("microservice_app", &Level::INFO));
        assert!(!warn.would_enable("h2", &Level::INFO));
        assert!(!parse("off").unwrap().would_enable("microservice_app", &Level::ERROR));
    }

    #[test]
    fn modules_have_levels_of_their_own() {
        let filter = parse("info, microservice_app::client=trace,h2=trace").unwrap();
        assert!(filter.would_enable("microservice_app::client::transport::pool", &Level::TRACE));
        assert!(!filter.would_enable("microservice_app::gateway", &Level::DEBUG));
        assert!(filter.would_enable("h2::codec", &Level::DEBUG));
        assert!(!filter.would_enable("h2::codec", &Level::TRACE), "nobody promises what it prints");
        assert!(
            !parse("microservice_app_evil=trace")
                .unwrap()
                .would_enable("microservice_app_evil", &Level::TRACE)
        );
        assert!(
            parse("info,microservice_app=debug").unwrap().would_enable("microservice_app", &Level::DEBUG)
        );
    }

    #[test]
    fn what_prints_contents_stays_at_info() {
        for text in ["debug,tokio_postgres=debug", "tokio_postgres::query=trace", "tokio=debug", "t=debug"] {
            let filter = parse(text).unwrap();
            assert!(!filter.would_enable("tokio_postgres::query", &Level::DEBUG), "{text}");
            assert!(!filter.would_enable("tokio_postgres", &Level::DEBUG), "{text}");
        }
        assert!(parse("tokio_postgres=debug").unwrap().would_enable("tokio_postgres", &Level::INFO));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("deubg", "\"deubg\" is not a level"),
            ("", "\"\" is not a level"),
            ("info,", "\"\" is not a level"),
            ("info,h2=loud", "\"loud\" is not a level"),
            ("info,h2=", "\"\" is not a level"),
            ("a=b=c", "\"b=c\" is not a level"),
            ("=info", "\"\" is not the name"),
            ("[span{x=1}]=info", "\"[span{x\" is not the name"),
            ("info,debug", "\"debug\" is a second level"),
            ("info,h 2=debug", "\"h 2\" is not the name"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text:?} gave {error:?}, want {named:?}");
        }
        assert!(parse(&["a=info"; 33].join(",")).unwrap_err().contains("32 parts"));
    }
}
