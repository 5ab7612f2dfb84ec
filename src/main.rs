//! The program: command line, settings, log, then [`run`] and the exit status.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use microservice_app::app::run::run;
use microservice_app::cli::{CheckConfig, Cli, Command};
use microservice_app::config::{self, Role, Source};
use microservice_app::telemetry::log;

/// Exit status for wrong flags or settings, as clap's for wrong flags.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let (role, source) = match Cli::parse().command {
        Command::Apigateway(flags) => (Role::Apigateway, flags.source()),
        Command::Feed(flags) => (Role::Feed, flags.source()),
        Command::Profile(flags) => (Role::Profile, flags.source()),
        Command::Topic(flags) => (Role::Topic, flags.source()),
        Command::Up(flags) => (Role::Up, flags.source()),
        Command::CheckConfig(flags) => return check_config(&flags),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "microservice-app", &mut script);
            return print(&script);
        }
        Command::Man => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            return rendered.map_or_else(|error| exit(Err(error.into())), |()| print(&page));
        }
    };
    let settings = match config::load(role, &source) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    let level = match log::init(&settings.log) {
        Ok(level) => level,
        Err(error) => return refuse(&error),
    };
    // one thread: on two cores it serves more requests than a pool of threads, and with less variance
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    exit(
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(role, settings, level))),
    )
}

fn check_config(flags: &CheckConfig) -> ExitCode {
    let source = Source { file: flags.config.clone(), ..Source::default() };
    match config::load(flags.role.into(), &source) {
        Ok(settings) => {
            let rows = config::rows(&settings).into_iter().filter(|_| flags.show);
            let lines: Vec<_> =
                rows.map(|(key, value)| [key, " = ".to_owned(), value, "\n".to_owned()]).collect();
            print(lines.concat().concat().as_bytes())
        }
        Err(error) => refuse(&error),
    }
}

/// Writes to standard output. It is no failure if the reader, such as `head`, has closed it.
fn print(bytes: &[u8]) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => exit(Err(error.into())),
        _ => ExitCode::SUCCESS,
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the log may not exist yet, and this is for the person at the terminal"
)]
fn refuse(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("microservice-app: {error}");
    ExitCode::from(USAGE)
}

#[expect(clippy::print_stderr, reason = "the person at the terminal sees the reason too")]
fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "failed");
            eprintln!("microservice-app: {error:#}");
            ExitCode::FAILURE
        }
    }
}
