//! Which role to run: command line, settings, log, listeners, run, exit status.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use microservice_app::app::process::Process;
use microservice_app::app::{shutdown, up};
use microservice_app::cli::{self, CheckConfig, Command, Format};
use microservice_app::config::{self, Role, Settings, Source};
use microservice_app::registry::advertise;
use microservice_app::telemetry::log;

/// Longest wait for a route to the registry at the start of a service; then it gives up.
const ROUTE_LIMIT: Duration = Duration::from_secs(30);

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
    // one thread a process: on two cores this serves more and steadier than a pool of threads
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    exit(
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(role, settings, level))),
    )
}

async fn run(role: Role, settings: Settings, level: log::Level) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    raise_file_limit();
    let derived = settings.grpc.addr.0.ip().is_unspecified() && settings.grpc.advertise_addr.is_none();
    if derived && !matches!(role, Role::Up | Role::Apigateway) {
        // the address to advertise is the one that this route begins at
        let wait = advertise::wait_for_route(&settings.registry, ROUTE_LIMIT);
        if stop.run_until_cancelled(wait).await.is_none() {
            return Ok(());
        }
    }
    let mut process = match role {
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
    process.set_level(level);
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

/// Writes to standard output. A reader that has seen enough, such as `head`, is no failure.
fn print(bytes: &[u8]) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => exit(Err(error.into())),
        _ => ExitCode::SUCCESS,
    }
}

/// Each connection is a file descriptor; the soft limit is 1024 by custom, for the sake of programs that
/// use `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
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
