//! The shipped rules and configurations: what the real tools say of them, and an alert on its whole way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::docs;
use crate::kit::alertmanager::{Alertmanager, Webhook};
use crate::kit::etcd::Etcd;
use crate::kit::exporter::Exporter;
use crate::kit::http::{self, get};
use crate::kit::process::Process;
use crate::kit::prometheus::{Prometheus, fill, metrics, shipped, shipped_config};
use crate::kit::{SOON, free_addr, wait_for, wait_long_for};

/// Runs a tool and expects that it is content.
fn check(program: &str, args: &[&str]) {
    let run = Command::new(program).args(args).output();
    let run = run.unwrap_or_else(|error| panic!("{program}: {error} (make deps)"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(run.status.success(), "{program} {args:?}\n{}{}", said(&run.stdout), said(&run.stderr));
}

fn read(name: &str) -> String {
    let path = shipped(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the shipped configuration of Alertmanager, everything at once.
fn alertmanager_config(receiver: &str, more: &[(&str, &str)]) -> String {
    let mut values = more.to_vec();
    values.extend([
        ("RECEIVER", receiver),
        ("GROUP_WAIT", "200ms"),
        ("GROUP_INTERVAL", "500ms"),
        ("REPEAT_INTERVAL", "1h"),
        ("SLACK_CHANNEL", "#ops"),
        ("SLACK_URL_FILE", "slack-url"),
        ("WEBHOOK_URL", "http://127.0.0.1:1/"),
        ("WEBHOOK_TOKEN_FILE", "token"),
    ]);
    fill(&read("alertmanager.yml"), &values)
}

/// Returns the files of the rules' cases.
fn cases() -> Vec<PathBuf> {
    let dir = std::fs::read_dir(shipped("rules/tests")).expect("a directory");
    let files: Vec<_> = dir.map(|entry| entry.expect("an entry").path()).collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn prometheus_takes_the_shipped_configuration_and_rules() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prometheus.yml");
    let gateways = ["10.0.0.1:6060".parse().unwrap(), "10.0.0.2:6060".parse().unwrap()];
    let all = ["ALERTMANAGER", "PROMETHEUS", "ETCD", "NODE", "CADVISOR", "ZIPKIN"];
    for (gateways, more) in [
        (&gateways[..], all.map(|name| (name, "['10.0.0.9:1', '[fd00::9]:1']"))),
        (&[], all.map(|name| (name, "[]"))),
    ] {
        std::fs::write(&path, shipped_config(gateways, &more)).unwrap();
        check("promtool", &["check", "config", path.to_str().unwrap()]);
    }
    for name in ["recording", "alerts", "expected"] {
        let path = shipped(&format!("rules/{name}.yml"));
        check("promtool", &["check", "rules", "--lint-fatal", path.to_str().unwrap()]);
    }
}

#[test]
fn alertmanager_takes_the_shipped_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("alertmanager.yml");
    for receiver in ["none", "slack", "webhook", "both"] {
        let config = alertmanager_config(receiver, &[]);
        // NixOS puts it through envsubst
        assert!(!config.contains('$'));
        std::fs::write(&path, config).unwrap();
        check("amtool", &["check-config", path.to_str().unwrap()]);
    }
}

#[test]
fn every_alert_fires_and_clears_in_its_cases() {
    let files = cases();
    std::thread::scope(|scope| {
        for file in &files {
            scope.spawn(|| check("promtool", &["test", "rules", file.to_str().unwrap()]));
        }
    });
    // and each has a case in which it does not fire, fires, clears, in this order
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let mut alert = "";
        for line in text.lines().map(str::trim) {
            if line.starts_with("alert_rule_test:") {
                for seen in seen.values_mut() {
                    seen.push('|');
                }
            } else if let Some(name) = line.strip_prefix("alertname: ") {
                alert = name;
            } else if let Some(expected) = line.strip_prefix("exp_alerts:") {
                let mark = if expected.trim() == "[]" { '0' } else { '1' };
                seen.entry(alert.to_owned()).or_default().push(mark);
            }
        }
    }
    let alerts = alerts_in_file();
    let complete = |alert: &&String| seen.get(*alert).is_some_and(|seen| seen.contains("010"));
    let incomplete: Vec<_> = alerts.iter().filter(|alert| !complete(alert)).collect();
    assert!(incomplete.is_empty(), "no case shows the beginning and end of {incomplete:?}: {seen:#?}");
}

/// Returns the names of all alerts as the file has them.
fn alerts_in_file() -> BTreeSet<String> {
    let text = read("rules/alerts.yml");
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let names: BTreeSet<_> = names.map(str::to_owned).collect();
    assert!(names.len() > 10, "{names:?}");
    names
}

#[test]
fn the_runbook_has_a_paragraph_for_every_alert_and_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbook.md");
    let runbook = std::fs::read_to_string(path).unwrap();
    let mut paragraphs = BTreeSet::new();
    for paragraph in runbook.split("\n### ").skip(1) {
        let (name, text) = paragraph.split_once('\n').unwrap();
        let whole = text.contains("Means: ")
            && text.contains("heck")
            && (text.contains("Do: ") || text.contains(" do: "));
        assert!(whole, "{name} does not say what it means, how to check and what to do");
        paragraphs.insert(name.to_owned());
    }
    assert_eq!(paragraphs, alerts_in_file());
}

#[tokio::test]
async fn every_rule_is_complete_and_asks_for_metrics_that_exist() {
    let prometheus = Prometheus::start(&shipped_config(&[], &[]), &[]).await;
    let rules = prometheus.rules().await;
    let recorded: BTreeSet<_> = rules
        .iter()
        .filter(|rule| rule["type"] == "recording")
        .map(|rule| rule["name"].as_str().unwrap().to_owned())
        .collect();
    let kinds = |kind: &str| rules.iter().filter(|rule| rule["type"] == kind).count();
    assert!(kinds("alerting") >= alerts_in_file().len() && kinds("recording") > 5, "{rules:#?}");
    let ours = docs::metrics();
    let mut foreign = BTreeSet::new();
    for rule in &rules {
        let query = rule["query"].as_str().unwrap();
        let asked = metrics(query);
        assert!(!asked.is_empty() || query == "vector(1)", "{query}");
        for name in asked {
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
            let known = ours.contains(&name) || base.is_some_and(|base| ours.contains(base));
            if !known && !recorded.contains(&name) && name != "up" {
                foreign.insert(name);
            }
        }
        if rule["type"] == "alerting" {
            let name = rule["name"].as_str().unwrap();
            let severity = rule["labels"]["severity"].as_str();
            assert!(matches!(severity, Some("critical" | "warning")), "{name}: {severity:?}");
            assert!(rule["labels"]["component"].is_string(), "{name}");
            for annotation in ["summary", "description"] {
                assert!(rule["annotations"][annotation].is_string(), "{name} has no {annotation}");
            }
            let anchor = format!("docs/runbook.md#{}", name.to_lowercase());
            assert_eq!(rule["annotations"]["runbook_url"], anchor);
        }
    }
    assert!(foreign.len() > 5, "{foreign:?}");
    // what others export, asked of these others
    let (etcd, webhook, node) = (Etcd::start().await, Webhook::start().await, Exporter::node().await);
    let url = format!("http://{}/", webhook.addr);
    let config = alertmanager_config("webhook", &[("WEBHOOK_URL", &url)]);
    let alertmanager = Alertmanager::start(&config, &[("token", "")]).await;
    let list = |addr: std::net::SocketAddr| format!("['{addr}']");
    let (etcd_list, node_list) = (list(etcd.addr), list(node.addr));
    let (alertmanager_list, own_list) = (list(alertmanager.addr), list(prometheus.addr));
    let jobs = [
        ("ETCD", &*etcd_list),
        ("NODE", &node_list),
        ("ALERTMANAGER", &alertmanager_list),
        ("PROMETHEUS", &own_list),
    ];
    prometheus.reload(&shipped_config(&["127.0.0.1:1".parse().unwrap()], &jobs)).await;
    let names: Vec<_> = foreign.iter().map(String::as_str).collect();
    let found = format!("count by (__name__) ({{__name__=~\"{}\"}})", names.join("|"));
    wait_long_for(&format!("all of {names:?} are there"), || async {
        (prometheus.query(&found).await.len() == names.len()).then_some(())
    })
    .await;
}

#[test]
fn metrics_are_found_in_expressions() {
    let expr = r#"sum by (le, job) (rate(a_bucket{le="b > c"}[5m])) > on (d) group_left (e) f:g:h * 1.5 or max(i) unless vector(1)"#;
    assert_eq!(metrics(expr), ["a_bucket", "f:g:h", "i"].map(str::to_owned).into());
}

#[tokio::test]
async fn both_receivers_get_what_they_need_and_consequences_are_silent() {
    let webhook = Webhook::start().await;
    let url = format!("http://{}/generic", webhook.addr);
    let slack = format!("http://{}/slack", webhook.addr);
    let config = alertmanager_config("both", &[("WEBHOOK_URL", &url)]);
    let files = [("slack-url", slack.as_str()), ("token", "opensesame")];
    let alertmanager = Alertmanager::start(&config, &files).await;
    let alert = |name: &str, more: Value| {
        let mut labels = json!({"alertname": name, "severity": "warning", "component": "x"});
        labels.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"labels": labels, "annotations": {"summary": "feed is away", "runbook_url": "docs/runbook.md#x"}})
    };
    let post = async |alerts: Value| {
        let mut request = http::request("POST", "/api/v2/alerts", &alerts.to_string());
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        let answer = http::send(alertmanager.addr, request).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    post(json!([alert("EtcdNoQuorum", json!({"severity": "critical"}))])).await;
    webhook.wait_for("firing", "EtcdNoQuorum").await;
    post(json!([
        alert("RegistryStale", json!({"instance": "a:1"})),
        alert("RegistrationLost", json!({"instance": "a:1"})),
        alert("EtcdDown", json!({"instance": "a:1"})),
        alert("DiskFull", json!({"instance": "a:1", "mountpoint": "/"})),
        alert("DiskFillsUp", json!({"instance": "a:1", "mountpoint": "/"})),
        alert("DiskFillsUp", json!({"instance": "a:1", "mountpoint": "/home"})),
        alert("ServiceDown", json!({"service": "feed"})),
    ]))
    .await;
    webhook.wait_for("firing", "ServiceDown").await;
    let known = alertmanager.alerts().await;
    let known = known.iter().filter(|alert| alert["status"]["state"] == "active");
    let label = |alert: &Value, name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
    let active: BTreeSet<_> =
        known.map(|alert| label(alert, "alertname") + &label(alert, "mountpoint")).collect();
    let wanted = ["DiskFillsUp/home", "DiskFull/", "EtcdNoQuorum", "ServiceDown"];
    assert_eq!(active, wanted.map(str::to_owned).into());

    let message = wait_for("a message to Slack", || async {
        let seen = webhook.seen().into_iter().filter(|one| one.path == "/slack");
        let mut seen = seen.filter(|one| one.body.to_string().contains("ServiceDown"));
        seen.next()
    })
    .await;
    assert_eq!((&message.body["channel"], message.authorization.as_str()), (&json!("#ops"), ""));
    let attachment = &message.body["attachments"][0];
    assert_eq!(attachment["title"], "FIRING x feed");
    let text = attachment["text"].as_str().unwrap();
    for part in ["firing: ServiceDown (warning) feed is away", "docs/runbook.md#x"] {
        assert!(text.contains(part), "{text}");
    }
    let generic = webhook.seen().into_iter().filter(|one| one.path == "/generic").collect::<Vec<_>>();
    assert!(!generic.is_empty(), "{:#?}", webhook.seen());
    assert!(generic.iter().all(|one| one.authorization == "Bearer opensesame"), "{generic:#?}");
}

/// Starts a role; returns it with its admin address.
fn role(role: &str, etcd: &Etcd, admin: &str) -> (Process, String) {
    let listen = if role == "apigateway" { "--http-addr" } else { "--addr" };
    let args = [role, listen, "127.0.0.1:0", "--debug-addr", admin, "--etcd-addr", &etcd.addr.to_string()];
    let mut process = Process::start(&args);
    let (_, admin) = process.wait_for_role(role);
    (process, admin.to_string())
}

#[tokio::test]
async fn a_killed_service_is_told_and_so_is_its_return() {
    let webhook = Webhook::start().await;
    let url = format!("http://{}/", webhook.addr);
    let config = alertmanager_config("webhook", &[("WEBHOOK_URL", &url)]);
    let alertmanager = Alertmanager::start(&config, &[("token", "opensesame")]).await;
    let etcd = Etcd::start().await;
    let (_gateway, gateway) = role("apigateway", &etcd, "127.0.0.1:0");
    let at = free_addr().to_string();
    let (mut killed, _) = role("feed", &etcd, &at);
    let (mut stopped, stopped_at) = role("topic", &etcd, "127.0.0.1:0");
    let gateway = gateway.parse().unwrap();
    wait_for("the gateway tells of all of them", || async {
        let answer = get(gateway, "/sd/targets").await;
        (answer.status == 200 && answer.json().as_array()?.len() == 3).then_some(())
    })
    .await;
    let (own, alertmanagers, etcds) =
        (free_addr(), format!("['{}']", alertmanager.addr), format!("['{}']", etcd.addr));
    let own_list = format!("['{own}']");
    let jobs = [("ALERTMANAGER", &*alertmanagers), ("ETCD", &etcds), ("PROMETHEUS", &own_list)];
    let prometheus = Prometheus::start_at(own, &shipped_config(&[gateway], &jobs), &[]).await;
    prometheus.wait_for("count(up{job=~\"apigateway|feed|topic\"} == 1) == 3").await;

    killed.kill();
    stopped.stop(SOON);
    let alert = wait_for_alert(&webhook, "firing", &at).await;
    assert_eq!((&alert["labels"]["job"], &alert["labels"]["service"]), (&json!("feed"), &json!("feed")));
    assert_eq!(alert["annotations"]["summary"], format!("feed at {at} does not answer"));
    webhook.wait_for("firing", "NoInstance").await;
    let (_back, _) = role("feed", &etcd, &at);
    wait_for_alert(&webhook, "resolved", &at).await;
    assert!(webhook.seen().iter().all(|one| one.authorization == "Bearer opensesame"));

    // the instance that was stopped in the same moment was told as missing only, not as a crash
    let seen = webhook.seen();
    let mut alerts = seen.iter().flat_map(|one| one.body["alerts"].as_array().expect("a list of alerts"));
    assert!(alerts.all(|alert| alert["labels"]["instance"] != stopped_at), "{seen:#?}");
    let alerts = prometheus.alerts().await;
    assert!(!alerts.is_empty(), "topic has no instance, which is one");
    assert!(alerts.iter().all(|alert| alert.get("instance") != Some(&stopped_at)), "{alerts:#?}");
}

/// Waits until the webhook has heard that the scrape of an instance fails, or does so no more.
async fn wait_for_alert(webhook: &Webhook, status: &str, instance: &str) -> Value {
    wait_long_for(&format!("ServiceDown of {instance} is {status}"), || async {
        let seen = webhook.seen();
        let alerts = seen.iter().flat_map(|one| one.body["alerts"].as_array().into_iter().flatten());
        let mut wanted = alerts.filter(|alert| {
            let labels = &alert["labels"];
            alert["status"] == status
                && labels["alertname"] == "ServiceDown"
                && labels["instance"] == instance
        });
        wanted.next().cloned()
    })
    .await
}
