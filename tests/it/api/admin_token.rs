//! An admin port with a token: what needs it, and what does not open without it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::kit::app::App;
use crate::kit::authority::replace;
use crate::kit::browser::Browser;
use crate::kit::http::{Answer, request, send};
use crate::kit::process::{PROGRAM, Process, run};

const TOKEN: &str = "7bfbb9e8c0f24bd0a3c4c2c3f9a1d6e5";
/// What monitoring reads, without a secret of its own: probes of a load balancer or a kubelet have none to send.
const OPEN: [&str; 4] = ["/metrics", "/livez", "/readyz", "/sd/targets"];
/// What has an effect: a browser adds a password by itself, and so it does not count here.
/// With it they get as far as their input, and as the log level, which tests in process do not set.
const WITH_EFFECT: [(&str, &str, u16); 2] =
    [("PUT", "/loglevel", 501), ("GET", "/debug/pprof/profile?seconds=0", 400)];
/// What tells about the system, and what is not there.
const SHUT: [&str; 9] = [
    "/",
    "/page.css",
    "/page.js",
    "/icon.svg",
    "/status",
    "/trace?id=80f198ee56343ba8",
    "/loglevel",
    "/debug/pprof/heap",
    "/nowhere",
];

struct Locked {
    app: App,
    dir: tempfile::TempDir,
}

impl Locked {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let app = App::start_with(|settings| settings.admin.token_file = Some(file)).await;
        Self { app, dir }
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("token")
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&'static str, &str)]) -> Answer {
        ask(self.app.addresses.admin, method, path, headers).await
    }

    async fn with(&self, token: &str) -> u16 {
        self.ask("GET", "/status", &[("authorization", &format!("Bearer {token}"))]).await.status.as_u16()
    }
}

async fn ask(admin: SocketAddr, method: &str, path: &str, headers: &[(&'static str, &str)]) -> Answer {
    let mut asked = request(method, path, "");
    for (name, value) in headers {
        if *name == "host" {
            asked.headers_mut().remove("host");
        }
        asked.headers_mut().append(*name, value.parse().unwrap());
    }
    send(admin, asked).await.unwrap()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The challenges of an answer.
fn challenges(answer: &Answer) -> Vec<&str> {
    let all = answer.headers.get_all("www-authenticate").iter();
    all.map(|value| value.to_str().unwrap().split(' ').next().unwrap()).collect()
}

#[tokio::test]
async fn without_the_token_only_monitoring_is_answered() {
    let locked = Locked::start().await;
    let (bearer, wrong) = (format!("Bearer {TOKEN}"), format!("Bearer {TOKEN}x"));
    let (password, bad) = (basic("", TOKEN), basic("admin", "x"));
    for path in OPEN {
        for authorization in [&[][..], &[("authorization", wrong.as_str())]] {
            assert_eq!(locked.ask("GET", path, authorization).await.status, 200, "{path}");
        }
    }
    for path in SHUT {
        for method in ["GET", "HEAD"] {
            for authorization in ["", &wrong, &bad] {
                let answer = locked.ask(method, path, &[("authorization", authorization)]).await;
                assert_eq!(answer.status, 401, "{method} {path} {authorization}");
                assert_eq!(
                    challenges(&answer),
                    ["Bearer", "Basic"][..if path.contains("pprof") { 1 } else { 2 }],
                    "{path}"
                );
                assert_eq!(answer.header("cache-control"), "no-store");
            }
            for authorization in [&bearer, &password] {
                let status =
                    locked.ask(method, path, &[("authorization", authorization)]).await.status.as_u16();
                // profiles count as having an effect
                let refused = path.contains("pprof") && authorization == &password;
                assert_eq!(status == 401, refused, "{method} {path} {authorization}: {status}");
            }
        }
    }
    for (method, path, status) in WITH_EFFECT {
        for authorization in ["", &wrong, &bad, &password] {
            let answer = locked.ask(method, path, &[("authorization", authorization)]).await;
            assert_eq!(
                (answer.status.as_u16(), challenges(&answer)),
                (401, vec!["Bearer"]),
                "{path} {authorization}"
            );
        }
        let answer = locked.ask(method, path, &[("authorization", &bearer)]).await;
        assert_eq!(answer.status, status, "{path}");
    }
    assert!(locked.app.metric("admin_unauthorized_total").await >= 60.0);
}

/// What somebody tries who has seen a token, or half of one, or who has a browser of an operator ask.
#[tokio::test]
async fn nothing_like_the_token_opens_and_the_token_opens_no_more_than_before() {
    let locked = Locked::start().await;
    for near in [
        "",
        "x",
        &TOKEN[1..],
        &TOKEN[..31],
        &TOKEN.to_uppercase(),
        &format!("{TOKEN}{TOKEN}"),
        &format!("{TOKEN} x"),
        &format!("{TOKEN},"),
        &"x".repeat(4096),
    ] {
        assert_eq!(locked.with(near).await, 401, "{near}");
    }
    let right = format!("Bearer {TOKEN}");
    assert_eq!(locked.with(TOKEN).await, 200);
    let ask =
        async |headers: &[(&'static str, &str)]| locked.ask("GET", "/status", headers).await.status.as_u16();
    assert_eq!(ask(&[("authorization", &format!("bEARER   {TOKEN} "))]).await, 200);
    for other in [
        TOKEN,
        &format!("Token {TOKEN}"),
        &format!("Basic {TOKEN}"),
        &basic(TOKEN, ""),
        "Basic Og==",
        "Basic !",
    ] {
        assert_eq!(ask(&[("authorization", other)]).await, 401, "{other}");
    }
    assert_eq!(ask(&[("authorization", &right), ("authorization", &right)]).await, 401);
    assert_eq!(ask(&[("cookie", &format!("token={TOKEN}"))]).await, 401);
    assert_eq!(locked.ask("GET", &format!("/status?token={TOKEN}"), &[]).await.status, 401);
    for path in ["//metrics", "/metrics/../status", "/%6detrics", "/status/", "/STATUS", "/livez/status"] {
        assert_eq!(locked.ask("GET", path, &[]).await.status, 401, "{path}");
    }
    // pages of other sites, under any name
    for password in [right.clone(), basic("x", TOKEN)] {
        let credentials = ("authorization", password.as_str());
        assert_eq!(ask(&[credentials, ("host", "evil.example")]).await, 421);
        assert_eq!(ask(&[credentials, ("origin", "http://evil.example")]).await, 403);
        let image = [credentials, ("sec-fetch-site", "cross-site")];
        assert_eq!(locked.ask("GET", "/debug/pprof/profile?seconds=1", &image).await.status, 403);
    }
    let answer = locked.ask("GET", "/status", &[("authorization", &right)]).await;
    assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin");
    assert_eq!(
        (answer.header("x-content-type-options"), answer.header("cache-control")),
        ("nosniff", "no-store")
    );
}

#[tokio::test]
async fn the_token_is_read_again_when_it_changes() {
    let locked = Locked::start().await;
    assert_eq!(locked.with(TOKEN).await, 200);
    let next = TOKEN.to_uppercase();
    replace(&locked.file(), &next);
    assert_eq!((locked.with(TOKEN).await, locked.with(&next).await), (401, 200));
    for bad in
        ["", "short", "a token with blanks in it", "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}"]
    {
        replace(&locked.file(), bad);
        assert_eq!((locked.with(&next).await, locked.with(bad.trim()).await), (200, 401), "{bad:?}");
    }
    std::fs::remove_file(locked.file()).unwrap();
    assert_eq!(locked.with(&next).await, 200);
    replace(&locked.file(), TOKEN);
    assert_eq!((locked.with(TOKEN).await, locked.with(&next).await), (200, 401));
}

#[tokio::test]
async fn a_process_whose_token_cannot_be_used_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("token"));
    let start = |text: Option<&str>| {
        match text {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let mut command = std::process::Command::new(PROGRAM);
        command.args(["up", "--free-ports", "--data-dir", data.to_str().unwrap()]);
        let mut process = Process::spawn_with(command, &[("MSA__ADMIN__TOKEN_FILE", file.to_str().unwrap())]);
        let status = process.wait(Duration::from_secs(20));
        (status.code(), format!("{:?}", process.seen))
    };
    for (text, why) in [(Some("hunter2"), "16 to 1024"), (Some(""), "is empty"), (None, "No such file")] {
        let (code, log) = start(text);
        assert_eq!(code, Some(1), "{log}");
        assert!(
            log.contains("`admin.token_file`: ") && log.contains(why) && !log.contains("hunter2"),
            "{log}"
        );
    }
}

#[tokio::test]
async fn the_command_status_shows_the_token() {
    let locked = Locked::start().await;
    let admin = locked.app.addresses.admin.to_string();
    let status = async |file: Option<&Path>| {
        let (admin, file) = (admin.clone(), file.map(|file| file.to_str().unwrap().to_owned()));
        let asked = tokio::task::spawn_blocking(move || {
            let mut args = vec!["status".to_owned(), admin];
            args.extend(file.into_iter().flat_map(|file| ["--token-file".to_owned(), file]));
            run(&args.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let (status, out, err) = asked.await.unwrap();
        (status.code(), out, err)
    };
    let (code, out, err) = status(Some(&locked.file())).await;
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.starts_with("ok  0."), "{out}");
    let (code, _, err) = status(None).await;
    assert!(code == Some(2) && err.contains("name its file by --token-file"), "{err}");
    let other = locked.dir.path().join("other");
    std::fs::write(&other, "another-token-of-somebody").unwrap();
    let (code, _, err) = status(Some(&other)).await;
    assert!(code == Some(2) && err.contains("is another one") && !err.contains("another-token"), "{err}");
    let (code, _, err) = status(Some(&locked.dir.path().join("absent"))).await;
    assert!(code == Some(2) && err.contains("--token-file") && err.contains("No such file"), "{err}");
}

/// A browser asks for a password, and the page goes on to update itself.
#[tokio::test]
async fn a_browser_shows_the_page_with_the_token_as_its_password() {
    let Some(browser) = Browser::start("the page of the system with a token in a browser").await else {
        return;
    };
    let locked = Locked::start().await;
    let admin = locked.app.addresses.admin;
    browser.open(&format!("http://{admin}/")).await;
    assert_eq!(browser.script("return document.querySelectorAll('h2').length").await, 0);
    // as if it were typed: the browser keeps it for this server
    browser.open(&format!("http://operator:{TOKEN}@{admin}/")).await;
    browser.open(&format!("http://{admin}/")).await;
    browser.wait_until("the page is there", "return document.querySelectorAll('h2').length > 1").await;
    let _registration = locked.app.register("topic", crate::kit::free_addr());
    browser
        .wait_until("it follows", "return document.body.innerText.includes('cannot be connected to')")
        .await;
}
