//! Layers the settings and checks them; every error names the key and where its value came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat, Map, Value, ValueKind};

use super::checks::check;
use super::role::Role;
use super::settings::{self, Setting, Settings};
use super::shown::{printable, shown};
use super::value::{Kind, reason_of};

/// Why settings were refused. The text names the key and the file, variable or flag that set it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing, unreadable or not TOML.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file as given.
        path: PathBuf,
        /// What was wrong, with line and column where it is known.
        reason: String,
    },
    /// The environment cannot be read.
    #[error("the environment: {reason}")]
    Environment {
        /// What was wrong.
        reason: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}` in {origin}{}", nearest.map_or_else(|| "; `microservice-app settings` lists all keys".to_owned(), |n| format!("; did you mean `{n}`?")))]
    UnknownKey {
        /// The dotted key.
        key: String,
        /// Where it was set.
        origin: String,
        /// The most similar key that exists.
        nearest: Option<&'static str>,
    },
    /// A value of the wrong type, form or range.
    #[error("`{key}` in {origin}: {reason}")]
    Value {
        /// The dotted key.
        key: &'static str,
        /// Where it was set.
        origin: String,
        /// What was wrong and what is wanted.
        reason: String,
    },
}

/// The layers above the defaults.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The TOML file, if one was named.
    pub file: Option<PathBuf>,
    /// `(dotted key, flag, value)` of each flag that was given.
    pub flags: Vec<(&'static str, &'static str, String)>,
    /// The environment to read `MSA__SECTION__KEY` from; `None` means that of the process.
    pub env: Option<Map<String, String>>,
}

/// Returns the settings of `role`, layered and checked.
///
/// # Errors
/// The first wrong key, see [`ConfigError`].
pub fn load(role: Role, source: &Source) -> Result<Settings, ConfigError> {
    let layers = Layers::read(source)?;
    layers.check_keys()?;
    let refuse = |key, reason| ConfigError::Value { key, origin: layers.origin(key), reason };
    let mut settings = Settings::for_role(role);
    for setting in settings::all() {
        if let Some(value) = layers.value(setting) {
            setting.set(&mut settings, value).map_err(|reason| refuse(setting.key, reason))?;
        }
    }
    check(role, &settings).map_err(|(key, reason)| refuse(key, reason))?;
    Ok(settings)
}

/// The layers, kept apart so that an error can say where a value came from. Each maps dotted keys to values.
struct Layers<'a> {
    source: &'a Source,
    file: BTreeMap<String, Value>,
    env: BTreeMap<String, Value>,
}

impl<'a> Layers<'a> {
    fn read(source: &'a Source) -> Result<Self, ConfigError> {
        let env = Environment::with_prefix("MSA").prefix_separator("__").separator("__");
        let env = Config::builder().add_source(env.source(source.env.clone())).build();
        let env = env.map_err(|error| ConfigError::Environment { reason: reason_of(&error) })?;
        let file = source.file.as_deref().map_or_else(|| Ok(Config::default()), read_file)?;
        Ok(Self { source, file: leaves(file.cache), env: leaves(env.cache) })
    }

    /// Returns the value of the uppermost layer that has one.
    fn value(&self, setting: &Setting) -> Option<Value> {
        let flag = self.source.flags.iter().rev().find(|(key, _, _)| *key == setting.key);
        let text = flag.map(|(_, _, text)| Value::new(None, text.clone()));
        if let Some(value) = text.or_else(|| self.env.get(setting.key).cloned()) {
            return Some(if matches!(setting.kind, Kind::List { .. }) { split(value) } else { value });
        }
        self.file.get(setting.key).cloned()
    }

    /// Returns where the value of `key` came from.
    fn origin(&self, key: &str) -> String {
        if let Some((_, flag, _)) = self.source.flags.iter().find(|(name, _, _)| *name == key) {
            return format!("flag {flag}");
        }
        if self.env.contains_key(key) {
            return format!("the environment variable {}", settings::variable(key));
        }
        match &self.source.file {
            Some(path) if self.file.contains_key(key) => path.display().to_string(),
            _ => "the defaults".to_owned(),
        }
    }

    fn check_keys(&self) -> Result<(), ConfigError> {
        let unknown = self.file.keys().chain(self.env.keys()).find(|key| settings::find(key).is_none());
        let Some(key) = unknown else {
            return Ok(());
        };
        let nearest = settings::all()
            .map(|setting| (strsim::jaro_winkler(setting.key, key), setting.key))
            .filter(|(score, _)| *score > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, name)| name);
        let (key, origin) = (printable(key).into_owned(), printable(&self.origin(key)).into_owned());
        Err(ConfigError::UnknownKey { key, origin, nearest })
    }
}

/// Splits the text of a variable or a flag at its commas.
fn split(value: Value) -> Value {
    let ValueKind::String(text) = &value.kind else {
        return value;
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    Value::new(None, parts.map(|part| Value::new(None, part)).collect::<Vec<_>>())
}

fn read_file(path: &Path) -> Result<Config, ConfigError> {
    let refuse = |reason: String| ConfigError::File { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path)
        .map_err(|e| refuse(format!("{e}; --config names a file that can be read")))?;
    Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).build().map_err(|e| {
        let reason = match e {
            config::ConfigError::FileParse { cause, .. } => cause.to_string(),
            other => other.to_string(),
        };
        // it quotes the line
        let lines = reason.lines().map(shown).collect::<Vec<_>>().join("\n");
        refuse(format!("{}\n`microservice-app settings` shows what a file may have", lines.trim_end()))
    })
}

/// Returns the leaves of a tree by their dotted keys, `section.key`.
fn leaves(tree: Value) -> BTreeMap<String, Value> {
    fn walk(at: &str, value: Value, out: &mut BTreeMap<String, Value>) {
        match value.kind {
            // an empty table in place of a value is a wrong value, an empty section is not
            ValueKind::Table(table) if !table.is_empty() || settings::find(at).is_none() => {
                for (key, inner) in table {
                    let path = if at.is_empty() { key } else { format!("{at}.{key}") };
                    walk(&path, inner, out);
                }
            }
            _ => {
                out.insert(at.to_owned(), value);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", tree, &mut out);
    out
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
