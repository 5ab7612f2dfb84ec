//! The command line: commands, their flags and their help. The flags of a role are the uppermost layer of the
//! settings; everything else is set in the file or the environment.

mod copy;
mod flags;
mod page;
pub mod status;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::build_info::VERSION;
use crate::config::{ListenAddr, Role, Source};

pub use copy::CopyStore;
pub use flags::{Flag, flag_of, flags};
pub use page::{json, markdown};
pub use status::AskStatus;

/// A microservice system in one binary: three gRPC services, a gateway, a registry client.
#[derive(Debug, Parser)]
#[command(name = "microservice-app", version = VERSION, about, long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
struct Cli {
    /// What to run.
    #[command(subcommand)]
    command: Command,
}

const LONG_ABOUT: &str = "\
A microservice system in one binary. `feed`, `profile` and `topic` are gRPC services that register in \
etcd; `apigateway` finds them there and offers them over HTTP; `up` runs all of them in one process, \
with no etcd needed.";

const AFTER_HELP: &str = "\
Settings have four layers, the later wins: defaults, the TOML file of --config, environment variables
MSA__SECTION__KEY (MSA__CLIENT__DEADLINE_MS=500), flags. `check-config` reads them and stops.
`settings` lists all of them.

Try it:
  microservice-app up
  curl -XPUT http://localhost:8080/api/feed/create_feed -d '{\"id\":100,\"user_id\":123,\"content\":\"hello world\"}'
  curl \"http://localhost:8080/api/feed/get_feeds?user_id=123&size=2\"

Exit status: 0 after a stop by signal, 1 when running failed, 2 for wrong flags or settings, 130 after a second signal.";

/// What to run. [`command`] adds the flags of the roles.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the HTTP gateway.
    #[command(long_about = "Run the HTTP gateway: it finds the services in etcd and offers them on \
        :8080. Under systemd socket activation it serves the sockets it is handed instead of binding \
        --http-addr.")]
    Apigateway,
    /// Run the feed service.
    Feed,
    /// Run the profile service (which calls the feed service).
    Profile,
    /// Run the topic service.
    Topic,
    /// Run every role in one process on loopback.
    #[command(long_about = "Run every role in one process on loopback, with a registry inside the \
        process and SQLite files below --data-dir. It prints the addresses and three curl commands to \
        try. With --etcd-addr the instances register in a real etcd instead.")]
    Up,
    /// Read the settings as a role would, report the first error, and stop.
    #[command(long_about = "Read the settings as a role would (defaults, file, environment), report the \
        first error with its key and origin, and stop. Opens no socket, database or secret. Exit status \
        0 if all is well, else 2.")]
    CheckConfig(CheckConfig),
    /// Ask a process on this host whether it is ready, and stop.
    #[command(
        long_about = "Ask a process on this host whether it is ready, print its answer, and stop: the health \
        check of a container, which needs no other program. The process is found by the settings of its role \
        (defaults, file, environment) or by --addr. Exit status 0 if it is ready, 1 if it is not or does not \
        answer within 2 s, 2 for wrong flags or settings."
    )]
    CheckHealth(CheckHealth),
    /// Show the state of a running process and of what it calls.
    #[command(long_about = status::LONG_ABOUT, after_long_help = status::AFTER_HELP)]
    Status(AskStatus),
    /// Copy the records of one store to another, and check them.
    #[command(long_about = copy::LONG_ABOUT, after_long_help = copy::AFTER_HELP)]
    CopyStore(CopyStore),
    /// Print every setting: key, default, accepted values, meaning.
    Settings {
        /// As a page, or as an object by key.
        #[arg(long, value_enum, default_value = "markdown")]
        format: Format,
    },
    /// Print the description of the HTTP API (OpenAPI 3.1): docs/openapi.json.
    Openapi,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff).
    Man,
}

/// Flags of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfig {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The role whose settings are read.
    #[arg(long, value_enum, default_value = "up")]
    pub role: Role,
    /// Print every key with its value after layering.
    #[arg(long)]
    pub show: bool,
}

/// Flags of `check-health`.
#[derive(Debug, Args)]
pub struct CheckHealth {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The role whose admin address is asked.
    #[arg(long, value_enum, default_value = "up")]
    pub role: Role,
    /// The admin address to ask [default: `admin.addr` of the role].
    #[arg(long, value_name = "ADDR")]
    pub addr: Option<ListenAddr>,
    /// Ask whether it lives (`/livez`), not whether it is ready (`/readyz`).
    #[arg(long)]
    pub live: bool,
}

/// How the definitions of the settings are printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// A page: docs/configuration.md.
    Markdown,
    /// An object by key.
    Json,
}

impl ValueEnum for Role {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// Returns the definition of the whole command line.
#[must_use]
pub fn command() -> clap::Command {
    let command = Cli::command();
    Role::ALL
        .into_iter()
        .fold(command, |command, role| command.mut_subcommand(role.name(), |sub| sub.args(flags::args(role))))
}

/// Reads the command line of the process; see [`parse_from`]. Prints and ends the process if it is wrong, and for
/// `--help` and `--version`.
#[must_use]
pub fn parse() -> (Command, Source) {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Returns the command of a command line that begins with the program's name, and the layers of settings that the
/// flags of a role name.
///
/// # Errors
/// What is wrong, or the text that `--help` or `--version` asks for.
pub fn parse_from(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> clap::error::Result<(Command, Source)> {
    let matches = command().try_get_matches_from(args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    let of_role = matches.subcommand().and_then(|(name, flags)| {
        let role = Role::ALL.into_iter().find(|role| role.name() == name)?;
        Some(flags::source(role, flags))
    });
    Ok((cli.command, of_role.unwrap_or_default()))
}
