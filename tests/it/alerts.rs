//! Metrics, rules and notifications against a real Prometheus and a real Alertmanager.

use serde_json::json;

use crate::kit::alertmanager::{Alertmanager, Webhook};
use crate::kit::http;
use crate::kit::prometheus::{Prometheus, fill};

#[tokio::test]
async fn the_guards_start_and_answer() {
    let webhook = Webhook::start().await;
    let config = "route: {receiver: hook, group_wait: 100ms}\n\
                  receivers: [{name: hook, webhook_configs: [{url: 'http://${HOOK}/'}]}]\n";
    let config = fill(config, &[("HOOK", &webhook.addr.to_string())]);
    let alertmanager = Alertmanager::start(&config, &[]).await;
    let config = "global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}\n\
                  rule_files: [rules.yml]\n\
                  alerting: {alertmanagers: [{static_configs: [{targets: ['${AM}']}]}]}\n\
                  scrape_configs: [{job_name: alertmanager, static_configs: [{targets: ['${AM}']}]}]\n";
    let config = fill(config, &[("AM", &alertmanager.addr.to_string())]);
    let rules = "groups: [{name: a, rules: [{alert: Up, expr: up == 1}]}]\n";
    let prometheus = Prometheus::start(&config, &[("rules.yml", rules)]).await;
    let found = prometheus.wait_for("up == 1").await;
    assert_eq!(found[0].0["job"], "alertmanager");
    let fired = webhook.wait_for("firing", "Up").await;
    assert_eq!(fired["labels"]["job"], json!("alertmanager"));
    assert_eq!(prometheus.targets().await[0].health, "up");
    assert_eq!(prometheus.rules().await[0]["health"], "ok");
    assert!(prometheus.alerts().await[0].firing);
    assert_eq!(alertmanager.alerts().await.len(), 1);
    assert!(prometheus.try_query("up{").await.is_err());
    prometheus.reload(&config.replace("rule_files: [rules.yml]", "")).await;
    assert_eq!(prometheus.rules().await, [] as [serde_json::Value; 0]);
    assert_eq!(http::get(prometheus.addr, "/-/healthy").await.status, 200);
}
