//! The program: command line, settings, log, then [`run`] and the exit status.

use std::io::Write as _;
use std::process::ExitCode;

use microservice_app::app::run::run;
use microservice_app::cli::{self, CheckConfig, Command, Format};
use microservice_app::config::{self, Role, Source};
use microservice_app::telemetry::log;

/// Exit status for wrong flags or settings, as clap's for wrong flags.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let (command, source) = cli::parse();
    let role = match command {
        Command::Apigateway => Role::Apigateway,
        Command::Feed => Role::Feed,
        Command::Profile => Role::Profile,
        Command::Topic => Role::Topic,
        Command::Up => Role::Up,
        Command::CheckConfig(flags) => return check_config(&flags),
        Command::Settings { format } => {
            let page = match format {
                Format::Markdown => cli::markdown(),
                Format::Json => cli::json(),
            };
            return print(page.as_bytes());
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command(), "microservice-app", &mut script);
            return print(&script);
        }
        Command::Man => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(cli::command()).render(&mut page);
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
    match config::load(flags.role, &source) {
        Ok(settings) => {
            let shown = config::settings::all().filter(|_| flags.show);
            let mut lines: Vec<_> =
                shown.map(|setting| format!("{} = {}\n", setting.key, setting.print(&settings))).collect();
            lines.sort();
            print(lines.concat().as_bytes())
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
