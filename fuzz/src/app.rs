//! What the targets run in: a runtime for short work, and the whole application on loopback for what comes over a socket.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use http::HeaderMap;
use http_body_util::BodyExt as _;
use microservice_app::app::process::Process;
use microservice_app::app::role::ServiceKind;
use microservice_app::config::{ListenAddr, Role, Settings, Store, StoreUrl};
use microservice_app::context::Context;
use microservice_app::gateway::Problem;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Runs a future on the runtime of this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: Runtime =
            Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// The thread that the application runs in.
const THREAD: &str = "inputs-app";

/// What has panicked in the application: it catches the panic of a handler, and tokio that of a task.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Panics if the application did since the last call.
pub fn check_panic() {
    let panic = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    assert!(panic.is_none(), "the application: {}", panic.unwrap_or_default());
}

/// Notes every panic in the thread of the application, before what is done about it otherwise.
fn note_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() == Some(THREAD) {
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic.to_string());
        }
        before(panic);
    }));
}

/// Returns head and body of the answer that tells a problem.
pub fn answer_of(problem: Problem) -> (HeaderMap, Value) {
    let mut response = warp::reply::Response::default();
    problem.write(&mut response, &Context::new(Instant::now()));
    let (head, body) = response.into_parts();
    let body = block_on(body.collect()).expect("a body in memory").to_bytes();
    (head.headers, serde_json::from_slice(&body).expect("a problem is JSON"))
}

/// Returns what `run` does, and panics if a task panics meanwhile that it has begun on this thread.
pub fn watch_panics<T>(run: impl FnOnce() -> T) -> T {
    thread_local! {
        static PANICS: Cell<u32> = const { Cell::new(0) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
    let known = PANICS.get();
    let done = run();
    assert_eq!(PANICS.get(), known, "a task has panicked");
    done
}

/// Where the parts of the application listen.
pub struct App {
    pub gateway: SocketAddr,
    pub topic: SocketAddr,
}

/// Returns the application, with records in memory. It starts at the first call and ends with the process.
pub fn app() -> &'static App {
    static APP: OnceLock<App> = OnceLock::new();
    APP.get_or_init(|| {
        let (told, addresses) = std::sync::mpsc::channel();
        note_panics();
        let thread = std::thread::Builder::new().name(THREAD.to_owned());
        let running = thread.spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let process = process().await;
                told.send(process.addresses()).expect("the target waits");
                let _ = process.run(CancellationToken::new(), || {}).await;
            });
        });
        running.expect("a thread");
        let addresses = addresses.recv().expect("the application starts");
        let of = |role| addresses.of(role).expect("it listens");
        App { gateway: of(Role::Apigateway), topic: of(Role::Topic) }
    })
}

async fn process() -> Process {
    let mut settings = Settings::for_role(Role::Up);
    let free = ListenAddr::loopback(0);
    (settings.http.addr, settings.admin.addr) = (free, free);
    let mut process = Process::new(Role::Up, settings).expect("a process");
    for kind in ServiceKind::ALL {
        let store = Store { url: StoreUrl::Memory, ..Store::default() };
        process.add_service(kind, free, &store).await.expect("a service");
    }
    process.add_gateway().expect("a gateway");
    process
}
