//! The flags of the roles: which flag sets which key. What a flag says in `--help`, its default and its choices
//! come from the definition of the key.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use crate::config::{Kind, Role, Source, settings};

/// A flag that sets one key.
#[derive(Debug)]
pub struct Flag {
    /// The flag with its dashes.
    pub name: &'static str,
    /// The key that it sets.
    pub key: &'static str,
    /// Placeholder for the value in `--help`.
    value: &'static str,
    /// Another name, without dashes, that is accepted and not shown.
    alias: Option<&'static str>,
}

const fn flag(name: &'static str, key: &'static str, value: &'static str) -> Flag {
    Flag { name, key, value, alias: None }
}

impl Flag {
    const fn alias(self, alias: &'static str) -> Self {
        Self { alias: Some(alias), ..self }
    }
}

// the aliases are names that the Go original had
const EVERY_ROLE: &[Flag] = &[
    flag("--debug-addr", "admin.addr", "ADDR").alias("admin-addr"),
    flag("--etcd-addr", "registry.endpoints", "ADDR,..."),
    flag("--zipkin-addr", "trace.zipkin_addr", "URL"),
    flag("--log-level", "log.level", "LEVEL"),
    flag("--log-format", "log.format", "FORMAT"),
];
const GATEWAY: &[Flag] = &[flag("--http-addr", "http.addr", "ADDR").alias("addr")];
const SERVICE: &[Flag] = &[
    flag("--addr", "grpc.addr", "ADDR"),
    flag("--advertise-addr", "grpc.advertise_addr", "HOST:PORT"),
    flag("--store", "store.url", "URL"),
];
const UP: &[Flag] = &[flag("--http-addr", "http.addr", "ADDR"), flag("--data-dir", "up.data_dir", "DIR")];

/// Sets `up.feed_replicas`, `up.profile_replicas` or `up.topic_replicas`.
const REPLICAS: &str = "--replicas";
/// The settings that `--replicas` sets, with the service that its value names.
const REPLICAS_OF: [(&str, &str); 3] =
    [("feed", "up.feed_replicas"), ("profile", "up.profile_replicas"), ("topic", "up.topic_replicas")];
/// Sets each of [`LISTENERS`] that no other flag sets to [`FREE_PORT`].
const FREE_PORTS: &str = "--free-ports";
/// The listeners of `up`.
const LISTENERS: [&str; 5] = ["http.addr", "admin.addr", "up.feed_addr", "up.profile_addr", "up.topic_addr"];
const FREE_PORT: &str = "127.0.0.1:0";

/// Returns the flags of a role that set one key each.
pub fn flags(role: Role) -> impl Iterator<Item = &'static Flag> {
    let own = match role {
        Role::Apigateway => GATEWAY,
        Role::Feed | Role::Profile | Role::Topic => SERVICE,
        Role::Up => UP,
    };
    own.iter().chain(EVERY_ROLE)
}

/// Returns the flag that sets a key, as one writes it: `--addr`, `--replicas feed=N`.
#[must_use]
pub fn flag_of(key: &str) -> Option<String> {
    let replicas = REPLICAS_OF.iter().find(|(_, sets)| *sets == key);
    if let Some((service, _)) = replicas {
        return Some(format!("{REPLICAS} {service}=N"));
    }
    let flag = Role::ALL.into_iter().flat_map(flags).find(|flag| flag.key == key);
    flag.map(|flag| flag.name.to_owned())
}

/// Returns the arguments of a role's command.
pub(super) fn args(role: Role) -> Vec<Arg> {
    let mut args: Vec<Arg> = flags(role).map(|flag| arg(flag, role)).collect();
    if role == Role::Up {
        args.push(
            new(REPLICAS)
                .value_name("SERVICE=N")
                .action(ArgAction::Append)
                .value_parser(replicas)
                .help(format!("Instances of feed, profile or topic [default: {}]", default(REPLICAS_OF[0].1, role)))
                .long_help(format!(
                    "Instances of a service: `feed=2`. May be given several times. The instances after the first \
                     take free ports. Sets `up.feed_replicas`, `up.profile_replicas` or `up.topic_replicas`. \
                     [default: {}]",
                    default(REPLICAS_OF[0].1, role)
                )),
        );
        args.push(
            new(FREE_PORTS)
                .action(ArgAction::SetTrue)
                .help("Take free ports for every listener that no other flag names"),
        );
    }
    args.push(config());
    args
}

/// Returns the argument that names the file.
pub(super) fn config() -> Arg {
    new("--config")
        .value_name("FILE")
        .value_parser(value_parser!(std::path::PathBuf))
        .help("Settings file (TOML)")
}

/// Returns the layers that the arguments of a role's command name.
pub(super) fn source(role: Role, matches: &ArgMatches) -> Source {
    let mut given: Vec<(&str, &str, String)> = Vec::new();
    for flag in flags(role) {
        if let Some(value) = matches.get_one::<String>(flag.name) {
            given.push((flag.key, flag.name, value.clone()));
        }
    }
    if role == Role::Up {
        for (key, count) in matches.get_many::<(&str, String)>(REPLICAS).into_iter().flatten() {
            given.push((key, REPLICAS, count.clone()));
        }
        if matches.get_flag(FREE_PORTS) {
            let free = LISTENERS.into_iter().filter(|key| !given.iter().any(|(name, _, _)| name == key));
            let free: Vec<_> = free.map(|key| (key, FREE_PORTS, FREE_PORT.to_owned())).collect();
            given.extend(free);
        }
    }
    Source { file: file(matches), flags: given, env: None }
}

/// Returns the file that `--config` names.
pub(super) fn file(matches: &ArgMatches) -> Option<std::path::PathBuf> {
    matches.get_one("--config").cloned()
}

fn new(name: &'static str) -> Arg {
    Arg::new(name).long(name.trim_start_matches('-'))
}

fn arg(flag: &Flag, role: Role) -> Arg {
    let mut arg = new(flag.name).value_name(flag.value).alias(flag.alias);
    // a test finds the setting of each flag
    let Some(setting) = settings::find(flag.key) else {
        return arg;
    };
    if let Kind::Choice { names } = setting.kind {
        arg = arg.value_parser(PossibleValuesParser::new(names));
    }
    let default = match (default(flag.key, role), setting.kind) {
        (list, Kind::List { .. }) => list.replace(['[', ']', '"', ' '], ""),
        (value, _) => value,
    };
    let default = if default.is_empty() { "none" } else { &default };
    let meaning = setting.meaning();
    let first = meaning.split_inclusive(". ").next().unwrap_or(meaning).trim_end().trim_end_matches('.');
    let form = match setting.kind {
        Kind::Text { form } => format!(" Values: {form}."),
        Kind::List { form } => format!(" Values, separated by commas: {form}."),
        // clap lists the names
        Kind::Choice { .. } | Kind::Integer { .. } | Kind::Ratio => String::new(),
    };
    arg.help(format!("{first} [default: {default}]"))
        .long_help(format!("{meaning}{form} Sets `{}`. [default: {default}]", flag.key))
}

fn default(key: &str, role: Role) -> String {
    settings::find(key).map_or_else(String::new, |setting| setting.default(role))
}

fn replicas(text: &str) -> Result<(&'static str, String), String> {
    let wrong = || format!("`{text}`: want feed=N, profile=N or topic=N");
    let (name, count) = text.split_once('=').ok_or_else(wrong)?;
    let (_, key) = REPLICAS_OF.into_iter().find(|(service, _)| *service == name).ok_or_else(wrong)?;
    let count: usize = count.parse().map_err(|_| wrong())?;
    Ok((key, count.to_string()))
}
