//! Which role to run: command line, settings, log, listeners, run, exit status.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use microservice_app::cli::{CheckConfig, Cli, Command};
use microservice_app::config::{self, Role, Settings, Source};
use microservice_app::process::Process;
use microservice_app::{shutdown, telemetry, up};

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
            clap_complete::generate(shell, &mut Cli::command(), "microservice-app", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        Command::Man => {
            let written = clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout());
            return exit(written.map_err(anyhow::Error::from));
        }
    };
    let settings = match config::load(role, &source) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = telemetry::init(&settings.log) {
        return refuse(&error);
    }
    // one thread a process: on two cores this serves more and steadier than a pool of threads
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    exit(runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(role, settings))))
}

async fn run(role: Role, settings: Settings) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    telemetry::note_tracing(&settings.trace);
    let process = match role {
        Role::Up => up::assemble(settings)?,
        Role::Apigateway => {
            let mut process = Process::new(settings)?;
            process.add_gateway()?;
            process
        }
        Role::Feed | Role::Profile | Role::Topic => {
            let (addr, store) = (settings.grpc.addr, settings.store.url.clone());
            let mut process = Process::new(settings)?;
            process.add_service(role, addr, &store)?;
            process
        }
    };
    let addresses = process.addresses();
    process
        .run(stop, || {
            if role == Role::Up && up::greet(&addresses, std::io::stdout()).is_err() {
                tracing::debug!("nobody reads standard output");
            }
            shutdown::ready();
        })
        .await
}

#[expect(clippy::print_stdout, reason = "printing is what it was asked for")]
fn check_config(flags: &CheckConfig) -> ExitCode {
    let source = Source { file: flags.config.clone(), ..Source::default() };
    match config::load(flags.role.into(), &source) {
        Ok(settings) => {
            for (key, value) in config::rows(&settings).into_iter().filter(|_| flags.show) {
                println!("{key} = {value}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error),
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the log may not be there yet, and this is for the person at the terminal"
)]
fn refuse(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("microservice-app: {error}");
    ExitCode::from(USAGE)
}

#[expect(clippy::print_stderr, reason = "the last word of a process goes to the person at the terminal too")]
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
