//! The command line: what each flag sets, and help texts that teach. Flags are the uppermost layer of
//! the settings; everything else is set in the file or the environment.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::build_info::VERSION;
use crate::config::{LogFormat, Role, Source};

/// A microservice system in one binary: three gRPC services, a gateway, a registry client.
#[derive(Debug, Parser)]
#[command(name = "microservice-app", version = VERSION, about, long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

const LONG_ABOUT: &str = "\
A microservice system in one binary. `feed`, `profile` and `topic` are gRPC services that register in \
etcd; `apigateway` finds them there and offers them over HTTP; `up` runs all of them in one process, \
with no etcd needed.";

const AFTER_HELP: &str = "\
Settings come in layers, the later wins: defaults, the TOML file of --config, environment variables
MSA__SECTION__KEY (MSA__CLIENT__DEADLINE_MS=500), flags. `check-config` reads them and stops there.

Try it:
  microservice-app up
  curl -XPUT http://localhost:8080/api/feed/create_feed -d '{\"id\":100,\"user_id\":123,\"content\":\"hello world\"}'
  curl \"http://localhost:8080/api/feed/get_feeds?user_id=123&size=2\"

Exit status: 0 after a stop by signal, 1 when running failed, 2 for wrong flags or settings.";

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the HTTP gateway.
    #[command(long_about = "Run the HTTP gateway: it finds the services in etcd and offers them on \
        :8080. Under systemd socket activation it serves the sockets it is handed instead of binding \
        --http-addr.")]
    Apigateway(Gateway),
    /// Run the feed service.
    Feed(Service),
    /// Run the profile service (which calls the feed service).
    Profile(Service),
    /// Run the topic service.
    Topic(Service),
    /// Run every role in one process on loopback.
    #[command(long_about = "Run every role in one process on loopback, with a registry inside the \
        process and SQLite files below --data-dir. It prints the addresses and three curl commands to \
        try. With --etcd-addr the instances register in a real etcd instead.")]
    Up(Up),
    /// Read the settings as a role would, report the first error, and stop.
    #[command(long_about = "Read the settings as a role would (defaults, file, environment), report the \
        first error with its key and origin, and stop. Opens no socket, database or secret. Exit status \
        0 if all is well, else 2.")]
    CheckConfig(CheckConfig),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff).
    Man,
}

/// Flags of every role.
#[derive(Debug, Default, Args)]
pub struct Common {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address of the admin listener: /metrics, /livez, /readyz, /status [default: loopback, port 606x]
    #[arg(long, value_name = "ADDR", alias = "admin-addr")]
    pub debug_addr: Option<String>,
    /// etcd's client addresses, separated by commas [default: 127.0.0.1:2379; `up`: none]
    #[arg(long, value_name = "ADDR,...")]
    pub etcd_addr: Option<String>,
    /// Zipkin's collector URL; the original's `/api/v1/spans` is taken as v2.
    #[arg(long, value_name = "URL")]
    pub zipkin_addr: Option<String>,
    /// Level (off, error, warn, info, debug, trace), or module=level,... [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Form of a log line, on standard error [default: logfmt]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// Flags of the gateway.
#[derive(Debug, Default, Args)]
pub struct Gateway {
    /// Address to listen on for HTTP [default: :8080]
    #[arg(long, value_name = "ADDR", alias = "addr")]
    pub http_addr: Option<String>,
    /// What every role has.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of a service.
#[derive(Debug, Default, Args)]
pub struct Service {
    /// Address to listen on for gRPC [default: :8082 feed, :8083 profile, :8084 topic]
    #[arg(long, value_name = "ADDR")]
    pub addr: Option<String>,
    /// Address that others are told to call; port 0 stands for the bound port [default: derived]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,
    /// Where the records are: `memory:` or `sqlite:PATH` [default: memory:]
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// What every role has.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `up`.
#[derive(Debug, Default, Args)]
pub struct Up {
    /// Address to listen on for HTTP [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub http_addr: Option<String>,
    /// Instances of a service; may be given several times. Those after the first take free ports.
    #[arg(long, value_name = "SERVICE=N", value_parser = replicas)]
    pub replicas: Vec<(Role, usize)>,
    /// Directory of the SQLite files [default: data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Take free ports for every listener that no flag names.
    #[arg(long)]
    pub free_ports: bool,
    /// What every role has.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfig {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The role that is to read them.
    #[arg(long, default_value = "up")]
    pub role: RoleName,
    /// Print every key with its value after layering.
    #[arg(long)]
    pub show: bool,
}

/// A role on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum RoleName {
    Apigateway,
    Feed,
    Profile,
    Topic,
    Up,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Apigateway => Self::Apigateway,
            RoleName::Feed => Self::Feed,
            RoleName::Profile => Self::Profile,
            RoleName::Topic => Self::Topic,
            RoleName::Up => Self::Up,
        }
    }
}

fn replicas(text: &str) -> Result<(Role, usize), String> {
    let wrong = || format!("`{text}`: want feed=N, profile=N or topic=N");
    let (name, count) = text.split_once('=').ok_or_else(wrong)?;
    let role = Role::SERVICES.into_iter().find(|role| role.name() == name).ok_or_else(wrong)?;
    Ok((role, count.parse().map_err(|_| wrong())?))
}

impl Common {
    fn source(&self, own: &[(&'static str, &'static str, &Option<String>)]) -> Source {
        let format = self.log_format.and_then(|f| f.to_possible_value());
        let format = format.map(|f| f.get_name().to_owned());
        let common = [
            ("admin.addr", "--debug-addr", &self.debug_addr),
            ("registry.endpoints", "--etcd-addr", &self.etcd_addr),
            ("trace.zipkin_addr", "--zipkin-addr", &self.zipkin_addr),
            ("log.level", "--log-level", &self.log_level),
            ("log.format", "--log-format", &format),
        ];
        let flags = common.iter().chain(own);
        Source {
            file: self.config.clone(),
            flags: flags.filter_map(|(key, flag, value)| Some((*key, *flag, (*value).clone()?))).collect(),
            env: None,
        }
    }
}

impl Gateway {
    /// Returns the flags as a layer of the settings.
    #[must_use]
    pub fn source(&self) -> Source {
        self.common.source(&[("http.addr", "--http-addr", &self.http_addr)])
    }
}

impl Service {
    /// Returns the flags as a layer of the settings.
    #[must_use]
    pub fn source(&self) -> Source {
        self.common.source(&[
            ("grpc.addr", "--addr", &self.addr),
            ("grpc.advertise_addr", "--advertise-addr", &self.advertise_addr),
            ("store.url", "--store", &self.store),
        ])
    }
}

impl Up {
    /// Returns the flags as a layer of the settings.
    #[must_use]
    pub fn source(&self) -> Source {
        let mut source = self.common.source(&[
            ("http.addr", "--http-addr", &self.http_addr),
            ("up.data_dir", "--data-dir", &self.data_dir),
        ]);
        for (role, count) in &self.replicas {
            let key = match role {
                Role::Feed => "up.feed_replicas",
                Role::Profile => "up.profile_replicas",
                _ => "up.topic_replicas",
            };
            source.flags.push((key, "--replicas", count.to_string()));
        }
        if self.free_ports {
            let listeners = ["http.addr", "admin.addr", "up.feed_addr", "up.profile_addr", "up.topic_addr"];
            for key in listeners {
                if !source.flags.iter().any(|(name, _, _)| *name == key) {
                    source.flags.push((key, "--free-ports", "127.0.0.1:0".to_owned()));
                }
            }
        }
        source
    }
}
