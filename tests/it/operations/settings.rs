//! The definitions of the settings against what reads them: the loader, the command line, the pages, the NixOS
//! modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use microservice_app::cli;
use microservice_app::config::settings::{self, SECTIONS, Setting};
use microservice_app::config::{
    self, AccessRule, Caller, Collector, HostName, HostPort, Kind, Link, ListenAddr, Network, Role, Settings,
};
use microservice_app::config::{NamedRole, Source, StoreUrl, Unit};
use microservice_app::gateway::openapi;

/// With these, each other key can have any value of its range or form.
const BASE: &str = r#"
[tls]
cert_file = "cert"
key_file = "key"
ca_file = "ca"

[registry]
ttl_s = 3600
keepalive_ms = 100
endpoints = ["https://etcd.example:2379"]
ca_file = "ca"
cert_file = "cert"
key_file = "key"
user = "name"
password_file = "password"

[store]
url = "postgres://app@db.example/msa"
ca_file = "ca"
cert_file = "cert"
key_file = "key"

[http.tls]
cert_file = "cert"
key_file = "key"

[http.auth]
jwks_file = "keys"
issuer = "issuer"
audience = ["audience"]
"#;

/// Loads the settings of a role that reads `setting`, with [`BASE`] in the file and `value` in the environment.
fn load(setting: &Setting, value: &str) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("app.toml");
    std::fs::write(&file, BASE).unwrap();
    let env = [(setting.variable(), value.to_owned())];
    let source = Source { file: Some(file), env: Some(env.into()), ..Source::default() };
    config::load(setting.roles[0], &source).map_err(|error| error.to_string())
}

/// Returns a value that is accepted, and is neither a default nor in [`BASE`].
fn sample(setting: &Setting) -> String {
    let text = match setting.kind {
        Kind::Integer { max, .. } => return max.to_string(),
        Kind::Ratio => "0.25",
        Kind::Choice { names } => names.last().unwrap(),
        Kind::List { form: Network::FORM } => "10.1.0.0/16",
        Kind::List { form: AccessRule::FORM } => "put_topic=public",
        Kind::List { form: Caller::FORM } => "topic",
        Kind::List { form: NamedRole::FORM } => "feed=dns:feed.example",
        Kind::List { form: HostName::FORM } => "api.example",
        Kind::List { .. } => "https://other.example:2379",
        Kind::Text { form } => match form {
            ListenAddr::FORM => "127.0.0.1:1234",
            HostPort::FORM => "host.example:0",
            Collector::FORM => "http://zipkin.example:9411",
            Link::FORM => "https://grafana.example/d/msa",
            StoreUrl::FORM => "postgresql://app@other.example:5432/msa",
            config::log_filter::FORM => "debug",
            "begins and ends with `/`, or has none and ends with `-`, `.` or `_`" => "other-",
            // if the loader refuses this, the form wants a line above
            _ => "other",
        },
    };
    text.to_owned()
}

/// Returns the text of a file of the project.
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn numbers() -> impl Iterator<Item = (&'static Setting, u64, u64)> {
    settings::all().filter_map(|setting| match setting.kind {
        Kind::Integer { min, max, .. } => Some((setting, min, max)),
        _ => None,
    })
}

#[test]
fn the_generated_files_are_fresh() {
    for (path, wanted) in [
        ("docs/configuration.md", cli::markdown()),
        ("nixos/modules/settings.json", cli::json()),
        ("docs/openapi.json", openapi::text().to_owned()),
    ] {
        assert!(read(path) == wanted, "{path} is stale; rewrite it with: make generate");
    }
}

#[test]
fn the_program_prints_the_generated_files() {
    for (args, wanted) in [
        (&["settings"][..], cli::markdown()),
        (&["settings", "--format", "json"], cli::json()),
        (&["openapi"], openapi::text().to_owned()),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_microservice-app")).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), wanted, "{args:?}");
    }
}

#[test]
fn definitions_are_well_formed() {
    let keys: BTreeSet<_> = settings::all().map(|setting| setting.key).collect();
    assert_eq!(keys.len(), settings::all().count(), "a key is defined twice");
    for section in SECTIONS {
        assert!(section.about().ends_with('.'), "{}: {:?}", section.name, section.about());
        for setting in section.settings {
            let (key, meaning) = (setting.key, setting.meaning());
            assert_eq!(key.split_once('.').unwrap().0, section.name, "{key}");
            assert!(!setting.roles.is_empty(), "{key}: no role reads it");
            let is_sentence = meaning.ends_with(['.', ')']) && meaning.starts_with(char::is_alphabetic);
            assert!(
                is_sentence && !meaning.contains(['|', '\n']) && !meaning.contains("  "),
                "{key}: {meaning:?}"
            );
            // the unit is in the key
            let unit = match setting.kind {
                Kind::Integer { unit, .. } => unit,
                _ => Unit::One,
            };
            for (suffix, means) in [
                ("_ms", Unit::Milliseconds),
                ("_s", Unit::Seconds),
                ("_kib", Unit::Kibibytes),
                ("_percent", Unit::Percent),
            ] {
                assert_eq!(key.ends_with(suffix), unit == means, "{key} counts {unit:?}");
            }
        }
    }
}

#[test]
fn the_bounds_of_every_number_are_accepted_and_one_beyond_is_refused() {
    for (setting, min, max) in numbers() {
        let key = setting.key;
        for value in [min, max] {
            // a number that is refused names its key; one that does not fit another key's value names that key
            let refused = load(setting, &value.to_string()).err();
            let names = |error: &String| error.contains(&format!("`{key}`"));
            assert!(!refused.as_ref().is_some_and(names), "{key} = {value}: {refused:?}");
        }
        let below = min.checked_sub(1).map_or_else(|| "-1".to_owned(), |below| below.to_string());
        for value in [below, (max + 1).to_string()] {
            let error = load(setting, &value).expect_err(key);
            let variable = setting.variable();
            let want = format!(
                "`{key}` in the environment variable {variable}: {value} is out of range, want {min} to {max}"
            );
            assert_eq!(error, want);
        }
        for value in ["1.5", "many", ""] {
            assert!(load(setting, value).is_err(), "{key} = {value:?} is accepted");
        }
    }
    assert!(numbers().count() > 40, "{}", numbers().count());
}

#[test]
fn a_lease_is_renewed_at_least_twice_in_its_life() {
    let load = |ttl: u64, keepalive: u64| {
        let env = [("TTL_S", ttl), ("KEEPALIVE_MS", keepalive)];
        let env = env.map(|(name, value)| (format!("MSA__REGISTRY__{name}"), value.to_string()));
        let source = Source { env: Some(env.into()), ..Source::default() };
        config::load(Role::Feed, &source).map(|_| ()).map_err(|error| error.to_string())
    };
    for ttl in [1, 3, 3600] {
        load(ttl, 500 * ttl).unwrap();
    }
    let error = load(3, 1501).unwrap_err();
    let origin = "the environment variable MSA__REGISTRY__KEEPALIVE_MS";
    assert_eq!(error, format!("`registry.keepalive_ms` in {origin}: 1501 is out of range, want 100 to 1500"));
}

#[test]
fn the_environment_sets_every_key() {
    for setting in settings::all() {
        let (key, sample) = (setting.key, sample(setting));
        let loaded = load(setting, &sample).unwrap_or_else(|error| panic!("{key} = {sample}: {error}"));
        let wanted = match setting.kind {
            Kind::List { .. } => format!("[{sample:?}]"),
            _ => sample,
        };
        assert_ne!(setting.default(setting.roles[0]), wanted, "{key}: the sample is the default");
        assert_eq!(setting.print(&loaded), wanted, "{key}");
    }
}

#[test]
fn every_flag_sets_a_key_that_its_role_reads_and_says_what_the_definition_says() {
    let command = cli::command();
    for role in Role::ALL {
        let sub = command.find_subcommand(role.name()).unwrap();
        let mut keys = BTreeSet::new();
        for flag in cli::flags(role) {
            let name = format!("{} {}", role.name(), flag.name);
            let setting = settings::find(flag.key).unwrap_or_else(|| panic!("{name} sets {}", flag.key));
            assert!(setting.roles.contains(&role), "{name} sets {}, which the role ignores", flag.key);
            assert!(keys.insert(flag.key), "{name}: a second flag for {}", flag.key);
            // it sets the key
            let value = sample(setting);
            let args = ["microservice-app", role.name(), flag.name, &value];
            let (_, source) = cli::parse_from(args).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(source.flags, [(flag.key, flag.name, value)], "{name}");
            // and its help is the definition
            let arg = sub.get_arguments().find(|arg| arg.get_id() == flag.name).unwrap();
            let (short, long) =
                (arg.get_help().unwrap().to_string(), arg.get_long_help().unwrap().to_string());
            assert!(long.starts_with(setting.meaning()), "{name}: {long}");
            assert!(long.contains(&format!("`{}`", flag.key)), "{name}: {long}");
            if let Kind::Text { form } | Kind::List { form } = setting.kind {
                assert!(long.contains(form), "{name}: {long}");
            }
            let begin = short.split(" [default: ").next().unwrap();
            assert!(begin.len() > 10 && setting.meaning().starts_with(begin), "{name}: {short}");
            let default = setting.default(role);
            let default = match setting.kind {
                Kind::List { .. } => default.trim_matches(['[', ']', '"']),
                _ => default.trim_matches('"'),
            };
            let default = format!("[default: {}]", if default.is_empty() { "none" } else { default });
            assert!(short.ends_with(&default) && long.ends_with(&default), "{name}: {short}; {long}");
            assert!(cli::flag_of(flag.key).is_some_and(|flag| flag.starts_with("--")), "{name}");
        }
        assert!(keys.len() > 5, "{keys:?}");
    }
}

#[test]
fn up_sets_replicas_and_free_ports() {
    let args = "microservice-app up --replicas feed=2 --replicas topic=0 --http-addr :1 --free-ports";
    let (_, source) = cli::parse_from(args.split(' ')).unwrap();
    let set: BTreeMap<_, _> =
        source.flags.iter().map(|(key, flag, value)| (*key, (*flag, value.as_str()))).collect();
    let free = ("--free-ports", "127.0.0.1:0");
    let wanted = [
        ("up.feed_replicas", ("--replicas", "2")),
        ("up.topic_replicas", ("--replicas", "0")),
        ("http.addr", ("--http-addr", ":1")),
        ("admin.addr", free),
        ("up.feed_addr", free),
        ("up.profile_addr", free),
        ("up.topic_addr", free),
    ];
    assert_eq!(set, wanted.into());
    assert!(set.keys().all(|key| settings::find(key).is_some()), "{set:?}");
    assert_eq!(cli::flag_of("up.profile_replicas").as_deref(), Some("--replicas profile=N"));
    for wrong in ["feed", "feed=x", "gateway=1"] {
        assert!(cli::parse_from(["microservice-app", "up", "--replicas", wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn the_nixos_modules_describe_keys_that_exist() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("nixos/modules");
    let files = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ext| ext == "nix")).collect();
    let mut described = BTreeSet::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for after in text.split("describe \"").skip(1) {
            let key = after.split('"').next().unwrap();
            for listen in ["http", "grpc"] {
                let key = key.replace("${listen}", listen);
                assert!(settings::find(&key).is_some(), "{}: describe {key:?}", path.display());
                described.insert(key);
            }
        }
        let files = text.split("FileOption \"").skip(1).map(|after| after.split('"').nth(2).unwrap());
        for key in files {
            assert!(settings::find(key).is_some(), "{}: file option of {key:?}", path.display());
            described.insert(key.to_owned());
        }
    }
    for access in ["registry", "store"] {
        for file in ["ca_file", "cert_file", "key_file", "password_file"] {
            assert!(described.contains(&format!("{access}.{file}")), "{access}.{file} has no option");
        }
    }
    assert!(described.len() > 10, "only {described:?} take their description from the definitions");
}
