//! Settings: a TOML file, the environment and flags.

use microservice_app::config::settings::all;
use microservice_app::config::{Kind, Role, Source, load};

/// Three parts, each ends with a line of `---`: the file, lines `NAME=VALUE` of the environment, lines `key=value` of flags.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parts = text.split("\n---\n");
    let (toml, env, flags) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let pairs = |text: Option<&'_ str>| -> Vec<(String, String)> {
        let lines = text.unwrap_or_default().lines().take(64);
        lines.filter_map(|line| line.split_once('=')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    };
    // a flag exists for known keys only
    let flags = pairs(flags).into_iter().filter_map(|(name, value)| {
        let setting = all().find(|setting| setting.key == name)?;
        Some((setting.key, "--flag", value))
    });
    let file = file();
    let source = Source {
        file: Some(file.clone()),
        flags: flags.collect(),
        env: Some(pairs(env).into_iter().collect()),
    };
    for role in Role::ALL {
        std::fs::write(&file, toml).expect("a file");
        match load(role, &source) {
            Ok(settings) => {
                // what a setting prints is what a file takes
                let printed: Vec<_> = all().map(|setting| (setting, setting.print(&settings))).collect();
                let given = printed.iter().filter(|(setting, text)| *text != setting.default(role));
                let lines = given.map(|(setting, text)| match setting.kind {
                    Kind::Text { .. } | Kind::Choice { .. } => {
                        format!("{} = {}\n", setting.key, quoted(text))
                    }
                    _ => format!("{} = {text}\n", setting.key),
                });
                std::fs::write(&file, lines.collect::<String>()).expect("a file");
                let again = Source { file: Some(file.clone()), env: Some([].into()), ..Source::default() };
                let again = load(role, &again).unwrap_or_else(|error| panic!("{role:?}: {error}"));
                for (setting, text) in &printed {
                    assert_eq!(&setting.print(&again), text, "{}", setting.key);
                }
            }
            Err(error) => {
                let error = error.to_string();
                assert!(!error.is_empty());
                let control = error.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
                assert_eq!(control, None, "{error:?} would change a terminal");
            }
        }
    }
}

/// Returns a text as TOML's basic string.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

fn file() -> std::path::PathBuf {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
    }
    DIR.with(|dir| dir.path().join("settings.toml"))
}
