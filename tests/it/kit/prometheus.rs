//! A real Prometheus, its data in a directory that ends with it.
//!
//! It takes up to 5 s to follow a change of what service discovery says, and twice that if the change
//! comes right after another one; that time is its own and cannot be set.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{free_addr, http, wait_long_for};

/// The labels of a series, a target or an alert, `__name__` too.
pub type Labels = BTreeMap<String, String>;

/// One running server. Killed when dropped.
pub struct Prometheus {
    pub addr: SocketAddr,
    dir: tempfile::TempDir,
    child: Child,
}

/// Something that is scraped.
#[derive(Clone, Debug)]
pub struct Target {
    /// After relabelling: `job`, `instance`, ...
    pub labels: Labels,
    /// `up`, `down`, or `unknown` before the first scrape.
    pub health: String,
    /// Why the last scrape failed; empty if it did not.
    pub error: String,
}

/// Returns the path of a file in `deploy/monitoring`.
pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring").join(name)
}

/// Returns a text in which each `${NAME}` has its value; panics if one has none.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("${{{name}}}"), value);
    }
    let left = text.find("${").map(|at| text[at..].lines().next().unwrap_or_default().to_owned());
    assert_eq!(left, None, "a placeholder without a value");
    text
}

/// Returns the shipped configuration with the gateways whose admin listeners tell what to scrape. Everything
/// happens every second; other placeholders than those given are empty, or as shipped.
pub fn shipped_config(gateways: &[SocketAddr], more: &[(&str, &str)]) -> String {
    let gateway = |admin: &SocketAddr| format!("{{url: 'http://{admin}/sd/targets', refresh_interval: 1s}}");
    let gateways = gateways.iter().map(gateway).collect::<Vec<_>>().join(", ");
    let gateways = format!("[{gateways}]");
    let (rules, expected) = (shipped("rules"), shipped("rules/expected.yml"));
    let mut values = more.to_vec();
    values.extend([
        ("SCRAPE_INTERVAL", "1s"),
        ("EVAL_INTERVAL", "1s"),
        ("RULES", rules.to_str().expect("UTF-8")),
        ("EXPECTED", expected.to_str().expect("UTF-8")),
        ("GATEWAYS", &gateways),
    ]);
    values.extend(
        ["ALERTMANAGER", "PROMETHEUS", "ETCD", "NODE", "CADVISOR", "ZIPKIN"].map(|name| (name, "[]")),
    );
    let template = std::fs::read_to_string(shipped("prometheus.yml")).expect("a template");
    fill(&template, &values)
}

/// Returns the names of metrics in an expression as Prometheus prints it.
pub fn metrics(expr: &str) -> BTreeSet<String> {
    const WORDS: [&str; 9] = ["and", "or", "unless", "on", "ignoring", "by", "without", "bool", "offset"];
    let mut names = BTreeSet::new();
    let mut rest = expr;
    let mut before = String::new();
    while let Some(first) = rest.chars().next() {
        let word =
            rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_:.".contains(c)).unwrap_or(rest.len());
        // what is in quotes, braces and brackets holds no metric, nor does a list of labels
        let close = match first {
            '"' => Some('"'),
            '{' => Some('}'),
            '[' => Some(']'),
            '(' if ["on", "ignoring", "by", "without", "group_left", "group_right"]
                .contains(&before.as_str()) =>
            {
                Some(')')
            }
            _ => None,
        };
        let length = match close {
            Some(close) => rest[1..].find(close).map_or(rest.len(), |at| at + 2),
            None => word.max(first.len_utf8()),
        };
        let (token, tail) = rest.split_at(length);
        let next = tail.trim_start();
        let called = ["(", "by (", "without ("].iter().any(|begin| next.starts_with(begin));
        let is_word = WORDS.contains(&token) || token.starts_with("group_");
        if word > 0 && !first.is_ascii_digit() && !is_word && !called {
            names.insert(token.to_owned());
        }
        if !token.trim().is_empty() {
            token.clone_into(&mut before);
        }
        rest = tail;
    }
    names
}

impl Prometheus {
    /// Starts it on a configuration (YAML text) and waits until it is ready. Further files, by name, are
    /// put beside the configuration; `rule_files` and the like may name them so.
    pub async fn start(config: &str, files: &[(&str, &str)]) -> Self {
        Self::start_at(free_addr(), config, files).await
    }

    /// Starts it at an address that its configuration knows, to scrape itself.
    pub async fn start_at(addr: SocketAddr, config: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("a file");
        }
        std::fs::write(dir.path().join("prometheus.yml"), config).expect("a file");
        let log = File::create(dir.path().join("log")).expect("a file");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .args(["--web.enable-lifecycle", "--log.level=warn"])
            // hidden: how often the scraper looks for what discovery has to say
            .arg("--scrape.discovery-reload-interval=200ms")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus is installed (make deps)");
        let mut prometheus = Self { addr, dir, child };
        prometheus.wait_until_ready().await;
        prometheus
    }

    async fn wait_until_ready(&mut self) {
        let addr = self.addr;
        let child = &mut self.child;
        wait_long_for("prometheus is ready", || {
            let ended = child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "prometheus ended: {ended:?}");
            async move {
                let answer = http::send(addr, http::request("GET", "/-/ready", "")).await.ok()?;
                answer.status.is_success().then_some(())
            }
        })
        .await;
    }

    /// Replaces the configuration and waits until it is in force; panics if it is refused.
    pub async fn reload(&self, config: &str) {
        std::fs::write(self.dir.path().join("prometheus.yml"), config).expect("a file");
        let answer = http::send(self.addr, http::request("POST", "/-/reload", "")).await.expect("an answer");
        assert!(answer.status.is_success(), "{answer:?}");
    }

    /// Returns the `data` of an API answer.
    ///
    /// # Errors
    /// Prometheus' own words, or why there was no answer.
    pub async fn api(&self, path: &str) -> Result<Value, String> {
        let asked = http::send(self.addr, http::request("GET", path, ""));
        let answer = asked.await.map_err(|error| error.to_string())?;
        let mut body: Value =
            serde_json::from_str(&answer.body).map_err(|error| format!("{error}: {}", answer.body))?;
        match body["status"].as_str() {
            Some("success") => Ok(body["data"].take()),
            _ => Err(body["error"].to_string()),
        }
    }

    /// Evaluates an expression now; returns its series, or one without labels for a scalar.
    ///
    /// # Errors
    /// As [`Self::api`].
    pub async fn try_query(&self, expr: &str) -> Result<Vec<(Labels, f64)>, String> {
        let query = utf8_percent_encode(expr, NON_ALPHANUMERIC);
        let data = self.api(&format!("/api/v1/query?query={query}")).await?;
        let number = |sample: &Value| -> f64 {
            sample[1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
        };
        match data["resultType"].as_str() {
            Some("scalar") => Ok(vec![(Labels::new(), number(&data["result"]))]),
            _ => Ok(list(&data["result"]).map(|s| (labels(&s["metric"]), number(&s["value"]))).collect()),
        }
    }

    /// Evaluates an expression now; panics if it is wrong.
    pub async fn query(&self, expr: &str) -> Vec<(Labels, f64)> {
        self.try_query(expr).await.unwrap_or_else(|error| panic!("{expr}: {error}"))
    }

    /// Waits until an expression has an answer and returns it.
    pub async fn wait_for(&self, expr: &str) -> Vec<(Labels, f64)> {
        wait_long_for(expr, || async {
            let found = self.query(expr).await;
            (!found.is_empty()).then_some(found)
        })
        .await
    }

    /// Returns what is scraped.
    pub async fn targets(&self) -> Vec<Target> {
        let data = self.api("/api/v1/targets?state=active").await.expect("an answer");
        let target = |target: &Value| Target {
            labels: labels(&target["labels"]),
            health: text(&target["health"]),
            error: text(&target["lastError"]),
        };
        list(&data["activeTargets"]).map(target).collect()
    }

    /// Returns the labels of the alerts that are pending or firing.
    pub async fn alerts(&self) -> Vec<Labels> {
        let data = self.api("/api/v1/alerts").await.expect("an answer");
        list(&data["alerts"]).map(|alert| labels(&alert["labels"])).collect()
    }

    /// Returns every rule as Prometheus tells it: `name`, `query`, `health`, `lastError`, `type`, ...
    pub async fn rules(&self) -> Vec<Value> {
        let data = self.api("/api/v1/rules").await.expect("an answer");
        list(&data["groups"]).flat_map(|group| list(&group["rules"]).cloned()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let end: Vec<_> = log.lines().rev().take(15).collect();
            eprintln!("log of prometheus, the last line first:\n{}", end.join("\n"));
        }
    }
}

/// Returns a JSON object of strings.
pub fn labels(object: &Value) -> Labels {
    let pairs = object.as_object().into_iter().flatten();
    pairs.map(|(name, value)| (name.clone(), text(value))).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
