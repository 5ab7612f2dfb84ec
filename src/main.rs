//! The program: command line, settings, log, then [`run`] and the exit status.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use microservice_app::app::run::run;
use microservice_app::app::{copy, health};
use microservice_app::cli::{self, AskStatus, CheckConfig, CheckHealth, Command, CopyStore, Format};
use microservice_app::config::{self, Role, Source};
use microservice_app::gateway;
use microservice_app::telemetry::log;

/// Takes a third of the instructions that the C library's allocator takes for a request's allocations, at the same
/// memory: docs/performance.md has the figures, those of jemalloc too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status for wrong flags or settings, as clap's for wrong flags.
const USAGE: u8 = 2;

/// Time between two pictures of `status --watch`.
const WATCH: Duration = Duration::from_secs(1);
/// Makes a terminal empty, with the cursor at its beginning.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Exit status of a copy that a signal has ended.
const STOPPED: u8 = 130;

fn main() -> ExitCode {
    let (command, source) = cli::parse();
    let writer = match log::Writer::stderr() {
        Ok(writer) => writer,
        Err(error) => return cannot_write(&error),
    };
    // what is logged or said gets out, also after a panic
    let _guard = writer.guard();
    match command {
        Command::Apigateway => start(Role::Apigateway, &source, &writer),
        Command::Feed => start(Role::Feed, &source, &writer),
        Command::Profile => start(Role::Profile, &source, &writer),
        Command::Topic => start(Role::Topic, &source, &writer),
        Command::Up => start(Role::Up, &source, &writer),
        Command::CheckConfig(flags) => check_config(&flags, &writer),
        Command::CheckHealth(flags) => check_health(&flags, &writer),
        Command::Status(flags) => status(&flags, &writer),
        Command::CopyStore(flags) => copy_store(&flags, &writer),
        Command::Settings { format } => {
            let page = match format {
                Format::Markdown => cli::markdown(),
                Format::Json => cli::json(),
            };
            print(page.as_bytes(), &writer)
        }
        Command::Openapi => print(gateway::openapi::text().as_bytes(), &writer),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command(), "microservice-app", &mut script);
            print(&script, &writer)
        }
        Command::Man => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(cli::command()).render(&mut page);
            rendered.map_or_else(|error| exit(Err(error.into()), &writer), |()| print(&page, &writer))
        }
    }
}

/// Runs a role with the settings of a source.
fn start(role: Role, source: &Source, writer: &log::Writer) -> ExitCode {
    let settings = match config::load(role, source) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error, writer),
    };
    let log = match log::init(&settings.log, writer.clone()) {
        Ok(log) => log,
        Err(error) => return refuse(&error, writer),
    };
    // the first thread; server/threads.rs has the others. A pool that moves tasks between threads costs more for each request
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(role, settings, log)));
    exit(ended, writer)
}

fn check_config(flags: &CheckConfig, writer: &log::Writer) -> ExitCode {
    let source = Source { file: flags.config.clone(), ..Source::default() };
    match config::load(flags.role, &source) {
        Ok(settings) => {
            let shown = config::settings::all().filter(|_| flags.show);
            let mut lines: Vec<_> =
                shown.map(|setting| format!("{} = {}\n", setting.key, setting.print(&settings))).collect();
            lines.sort();
            print(lines.concat().as_bytes(), writer)
        }
        Err(error) => refuse(&error, writer),
    }
}

fn check_health(flags: &CheckHealth, writer: &log::Writer) -> ExitCode {
    let source = Source { file: flags.config.clone(), ..Source::default() };
    let settings = match config::load(flags.role, &source) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error, writer),
    };
    let addr = flags.addr.unwrap_or(settings.admin.addr).0;
    let path = if flags.live { "/livez" } else { "/readyz" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(health::ask(addr, path, None)));
    match asked.context("check-health") {
        Ok(answer) if answer.status.is_success() => print(answer.text.as_bytes(), writer),
        Ok(answer) => {
            print(answer.text.as_bytes(), writer);
            ExitCode::FAILURE
        }
        Err(error) => exit(Err(error), writer),
    }
}

fn status(flags: &AskStatus, writer: &log::Writer) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit(Err(error.into()), writer),
    };
    loop {
        let (status, text) = match runtime.block_on(flags.ask()) {
            Ok(shown) => (shown.exit_status(), shown.text),
            Err(error) if flags.watch => (USAGE, format!("{error:#}\n")),
            Err(error) => {
                say(&format!("status: {error:#}"), writer);
                return ExitCode::from(USAGE);
            }
        };
        let clear = if flags.watch && std::io::stdout().is_terminal() { CLEAR } else { "" };
        match write_out(format!("{clear}{text}").as_bytes()) {
            Ok(true) if flags.watch => std::thread::sleep(WATCH),
            Ok(_) => return ExitCode::from(status),
            Err(error) => return exit(Err(error.into()), writer),
        }
    }
}

fn copy_store(flags: &CopyStore, writer: &log::Writer) -> ExitCode {
    let options = match flags.options() {
        Ok(options) => options,
        Err(error) => return refuse(&error, writer),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let copied = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(copy::run(&options, writer, std::io::stdout())));
    match copied {
        Ok(copy::End::Stopped) => {
            say("copy-store: stopped by a signal; repeat the command to go on", writer);
            ExitCode::from(STOPPED)
        }
        other => exit(other.map(|_| ()).context("copy-store"), writer),
    }
}

/// Writes to standard output. It is no failure if the reader, such as `head`, has closed it.
fn print(bytes: &[u8], writer: &log::Writer) -> ExitCode {
    write_out(bytes).map_or_else(|error| exit(Err(error.into()), writer), |_| ExitCode::SUCCESS)
}

/// Writes to standard output. Returns false if its reader has closed it.
fn write_out(bytes: &[u8]) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// Says something to the person at the terminal, after the lines of the log.
fn say(text: &str, mut writer: &log::Writer) {
    // it takes every line, or counts it as lost
    let _ = writer.write_all(format!("microservice-app: {text}\n").as_bytes());
}

fn refuse(error: &dyn std::fmt::Display, writer: &log::Writer) -> ExitCode {
    say(&error.to_string(), writer);
    ExitCode::from(USAGE)
}

fn exit(result: anyhow::Result<()>, writer: &log::Writer) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "failed");
            say(&format!("{error:#}"), writer);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "there is no log")]
fn cannot_write(error: &std::io::Error) -> ExitCode {
    eprintln!("microservice-app: the log cannot be written: {error}");
    ExitCode::FAILURE
}
