//! A real browser: Chromium without a window, driven by chromedriver over the HTTP of WebDriver.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{SOON, http, skip, wait_for};

/// The member of an element that WebDriver names it by.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One browser with one tab. It ends when dropped.
pub struct Browser {
    driver: Child,
    addr: SocketAddr,
    session: String,
    profile: tempfile::TempDir,
}

/// What a tab has done since the last look.
#[derive(Debug, Default)]
pub struct Noted {
    /// Messages of the console that are warnings or worse: failed scripts, loads that failed, what the
    /// Content-Security-Policy stopped.
    pub complaints: Vec<String>,
    /// The URL of each request of the page.
    pub requests: Vec<String>,
}

impl Browser {
    /// Starts one, 1280 by 1024. Where there is none, says that `check` is skipped and returns none.
    pub async fn start(check: &str) -> Option<Self> {
        let (Some(driver), Some(chromium)) = (on_path("chromedriver"), on_path("chromium")) else {
            skip(check, "chromium and chromedriver are not installed");
            return None;
        };
        let profile = tempfile::tempdir().expect("a directory");
        let (driver, port) = spawn(&driver, profile.path());
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let mut browser = Self { driver, addr, session: String::new(), profile };
        let directory = browser.profile.path().join("profile");
        let arguments = [
            "--headless=new",
            "--no-sandbox", // root may not use it
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-crash-reporter",
            "--window-size=1280,1024",
            &format!("--user-data-dir={}", directory.display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "timeouts": {"script": 20_000, "pageLoad": 20_000, "implicit": 0},
        }}});
        let session = browser.ask("POST", "/session", &wanted).await;
        session["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        browser.viewport(1280, 1024, 1.0).await;
        Some(browser)
    }

    /// Sends a command of WebDriver, `path` behind `/session/{id}`; panics with what the driver says if it fails.
    async fn command(&self, method: &str, path: &str, body: Value) -> Value {
        self.ask(method, &format!("/session/{}{path}", self.session), &body).await
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let answer = http::send(self.addr, http::request(method, path, &body)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        answer.json()["value"].take()
    }

    /// Sends a command of the DevTools protocol, for what WebDriver has no command for.
    pub async fn devtools(&self, command: &str, params: Value) -> Value {
        self.command("POST", "/goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// Opens a page and waits until it is loaded.
    pub async fn open(&self, url: &str) {
        self.command("POST", "/url", json!({ "url": url })).await;
    }

    /// Runs the body of a function in the page and returns what it returns; a promise is waited for.
    pub async fn script(&self, body: &str) -> Value {
        self.script_with(body, json!([])).await
    }

    /// As [`Self::script`], with values for `arguments`.
    pub async fn script_with(&self, body: &str, arguments: Value) -> Value {
        self.command("POST", "/execute/sync", json!({"script": body, "args": arguments})).await
    }

    /// Waits until a script returns true.
    pub async fn wait_until(&self, what: &str, script: &str) {
        wait_for(what, || async { (self.script(script).await == true).then_some(()) }).await;
    }

    /// Makes the page so wide and high, CSS pixels, with so many pixels of the screen each. A window of 1280 by 1024 zoomed
    /// to 400 % is 320 by 256 with 4.
    pub async fn viewport(&self, width: u32, height: u32, scale: f64) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Sets a preference of the user, `prefers-color-scheme` to `dark`.
    pub async fn prefer(&self, feature: &str, value: &str) {
        let features = json!({"media": "", "features": [{"name": feature, "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// Clicks on the first element that a CSS selector finds, as a user does: it has to be visible.
    pub async fn click(&self, css: &str) {
        let element = self.element(css).await;
        self.command("POST", &format!("/element/{element}/click"), json!({})).await;
    }

    /// Puts a text in the place of what an input field has.
    pub async fn fill(&self, css: &str, text: &str) {
        let element = self.element(css).await;
        self.command("POST", &format!("/element/{element}/clear"), json!({})).await;
        self.command("POST", &format!("/element/{element}/value"), json!({ "text": text })).await;
    }

    /// Presses keys, one after the other, where the focus is: `\u{E004}` is Tab, `\u{E007}` Enter.
    pub async fn press(&self, keys: &str) {
        let pressed =
            |key: char| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let keys: Vec<Value> = keys.chars().flat_map(pressed).collect();
        self.command(
            "POST",
            "/actions",
            json!({"actions": [{"type": "key", "id": "keys", "actions": keys}]}),
        )
        .await;
    }

    async fn element(&self, css: &str) -> String {
        let found = self.command("POST", "/element", json!({"using": "css selector", "value": css})).await;
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    /// Returns the picture of what the window shows, PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        let picture = self.devtools("Page.captureScreenshot", json!({"format": "png"})).await;
        decode_base64(picture["data"].as_str().expect("a picture"))
    }

    /// Takes the picture of a page from an element on, in a window of that size in pixels. It is kept, as `NAME.png`, in
    /// the directory that `PICTURES` names, if there is one.
    pub async fn picture(&self, name: &str, css: &str, width: u32, height: u32) {
        self.viewport(width, height, 1.0).await;
        let begin =
            format!("document.activeElement.blur(); document.querySelector('{css}').scrollIntoView()");
        self.script(&begin).await;
        let png = self.screenshot().await;
        assert!(png.starts_with(b"\x89PNG"));
        if let Some(directory) = std::env::var_os("PICTURES") {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(Path::new(&directory).join(format!("{name}.png")), &png).unwrap();
            assert!(png.len() <= 150_000, "{} bytes", png.len());
        }
    }

    /// Returns what the tab has done since the last call.
    pub async fn noted(&self) -> Noted {
        let mut noted = Noted::default();
        for line in self.log("browser").await {
            if line["level"] != "INFO" && line["level"] != "DEBUG" {
                noted.complaints.push(line["message"].as_str().expect("a message").to_owned());
            }
        }
        for line in self.log("performance").await {
            let event: Value =
                line["message"].as_str().and_then(|text| serde_json::from_str(text).ok()).expect("an event");
            let event = &event["message"];
            // the tab that the browser begins with is a page of its own
            let own = event["params"]["documentURL"].as_str().is_some_and(|url| url.starts_with("chrome"));
            if event["method"] == "Network.requestWillBeSent" && !own {
                noted.requests.push(event["params"]["request"]["url"].as_str().expect("a URL").to_owned());
            }
        }
        noted
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let lines = self.command("POST", "/se/log", json!({ "type": kind })).await;
        lines.as_array().expect("a list").clone()
    }

    /// Returns how many CSS pixels the page is wider than its window; 0 if nobody has to scroll sideways.
    pub async fn overflow(&self) -> i64 {
        let wider = "const page = document.scrollingElement; return page.scrollWidth - window.innerWidth";
        self.script(wider).await.as_i64().expect("a number").max(0)
    }

    /// Returns what axe-core finds serious or critical in the page, a line each. Where axe-core is not installed, says that
    /// `check` is skipped.
    pub async fn serious_findings(&self, check: &str) -> Vec<String> {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("target/web/node/node_modules/axe-core/axe.min.js");
        let Ok(axe) = std::fs::read_to_string(file) else {
            skip(check, "axe-core is not installed: see what tests/web/build says");
            return Vec::new();
        };
        // through DevTools: a script element would break the page's Content-Security-Policy
        self.devtools("Runtime.evaluate", json!({ "expression": axe })).await;
        let run = "return axe.run().then(found => found.violations
            .filter(rule => rule.impact == 'serious' || rule.impact == 'critical')
            .flatMap(rule => rule.nodes.map(node =>
                `${rule.id}: ${node.target.join(' ')}: ${node.failureSummary.replace(/\\s+/g, ' ')}`)))";
        let found = self.script(run).await;
        let lines = found.as_array().expect("a list").iter();
        lines.map(|line| line.as_str().expect("a line").to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        // the browser and its helpers are processes of their own, and each names the profile
        let profile = self.profile.path().display().to_string();
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&profile)
                && let Some(pid) = Pid::from_raw(pid)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Starts a driver, whose temporary files are in `directory`; returns it and its port.
fn spawn(driver: &Path, directory: &Path) -> (Child, u16) {
    let mut driver = Command::new(driver)
        .arg("--port=0")
        .env("TMPDIR", directory)
        .env("HOME", directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chromedriver starts");
    let stdout = driver.stdout.take().expect("piped");
    let (send, lines) = channel();
    std::thread::spawn(move || {
        // to the end, so that it never waits for room in the pipe
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("started successfully on port ") {
                let _ = send.send(rest.trim_end_matches('.').parse::<u16>().expect("a port"));
            }
        }
    });
    let port = lines.recv_timeout(SOON).expect("chromedriver says its port");
    (driver, port)
}

/// Returns the file of a program.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn decode_base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = four.iter().fold(0_u32, |bits, byte| bits << 6 | u32::from(value(*byte)));
        let bits = bits << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    const PAGE: &str = r#"<!doctype html><html lang="en"><title>A page</title><body style="min-width: 600px">
        <h1>A page</h1><input id="name"><button id="go">go</button><img src="/picture.png">
        <script>document.getElementById('go').onclick = () => { console.error('clicked ' + name.value) };
        const name = document.getElementById('name');</script>"#;

    /// Serves [`PAGE`] at every path; returns where.
    fn serve() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().take(20).flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n{PAGE}"
                );
            }
        });
        addr
    }

    #[tokio::test]
    async fn a_browser_tells_what_a_page_says_asks_for_and_looks_like() {
        let Some(browser) = Browser::start("a browser opens a page").await else { return };
        let addr = serve();
        browser.open(&format!("http://{addr}/")).await;
        assert_eq!(browser.script("return document.title").await, "A page");
        browser.fill("#name", "x").await;
        browser.click("#go").await;
        browser.press("\u{E007}").await;
        let noted = browser.noted().await;
        let said = noted.complaints.iter().filter(|line| line.contains("clicked x")).count();
        assert_eq!(said, 2, "{noted:?}");
        assert!(noted.requests.contains(&format!("http://{addr}/picture.png")), "{noted:?}");
        assert!(browser.noted().await.requests.is_empty());
        assert_eq!(browser.overflow().await, 0);
        browser.viewport(360, 640, 1.0).await;
        assert!(browser.overflow().await > 200);
        browser.prefer("prefers-color-scheme", "dark").await;
        browser.wait_until("it is dark", "return matchMedia('(prefers-color-scheme: dark)').matches").await;
        assert!(browser.screenshot().await.starts_with(b"\x89PNG"));
    }

    #[tokio::test]
    async fn axe_finds_what_nobody_can_read_or_hear() {
        let Some(browser) = Browser::start("axe judges a page").await else { return };
        browser.open(&format!("http://{}/", serve())).await;
        let found = browser.serious_findings("axe judges a page").await;
        let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/web/node").exists();
        let judged = |rule: &str| found.iter().any(|line| line.starts_with(rule));
        assert!(!installed || judged("label: #name") && judged("image-alt: img"), "{found:#?}");
    }

    #[test]
    fn base64_is_decoded() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")]
        {
            assert_eq!(decode_base64(text), bytes.as_bytes());
        }
        assert_eq!(decode_base64("+/8="), [0xfb, 0xff]);
    }
}
