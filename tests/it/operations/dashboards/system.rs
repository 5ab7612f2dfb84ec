//! The system that the dashboards show: five processes over etcd, a database, a node exporter, cAdvisor where it is there,
//! and Prometheus with the configuration and the rules as they are shipped.

use std::time::Duration;

use http::{HeaderValue, Request};
use http_body_util::Full;
use tokio::task::JoinHandle;

use crate::kit::etcd::Etcd;
use crate::kit::exporter::Exporter;
use crate::kit::http::{request, send};
use crate::kit::load::Load;
use crate::kit::parts::Cadvisor;
use crate::kit::postgres::Postgres;
use crate::kit::prometheus::{Prometheus, shipped_config};
use crate::kit::system::Role;
use crate::kit::{SOON, wait_for};

/// Everything; it ends when dropped.
pub struct System {
    pub prometheus: Prometheus,
    pub gateway: Role,
    pub services: Vec<(&'static str, Role)>,
    cadvisor: Option<Cadvisor>,
    _node: Exporter,
    etcd: Etcd,
    _data: tempfile::TempDir,
    database: Postgres,
}

impl System {
    /// Starts it and waits until the gateway can call everybody. `scrape` is the time between two scrapes.
    pub async fn start(scrape: &str) -> Self {
        let (etcd, node) = (Etcd::start().await, Exporter::node().await);
        let cadvisor = match Cadvisor::missing() {
            None => Some(Cadvisor::start().await),
            Some(_) => None,
        };
        let registry = etcd.addr.to_string();
        let gateway = Role::gateway(&registry);
        // before the services, so that the gateway has had to refuse something
        let refused = send(gateway.addr, request("GET", "/api/topic/view?topic_id=1", "")).await;
        assert_eq!(refused.expect("an answer").status, 503);
        let data = tempfile::tempdir().expect("a directory");
        // topics are in a shared database, the others in files
        let database = Postgres::start().await;
        let url = |role| if role == "topic" { database.url() } else { store(&data, role) };
        let start = |role| (role, start(&registry, role, &url(role)));
        let services = Vec::from(["feed", "feed", "profile", "topic"].map(start));
        for (service, count) in [("feed", 2), ("profile", 1), ("topic", 1)] {
            gateway.wait_for_certain(service, count).await;
        }
        let list = |addr: Option<String>| addr.map_or("[]".to_owned(), |addr| format!("[\"{addr}\"]"));
        let exporters = [
            ("SCRAPE_INTERVAL", scrape.to_owned()),
            ("ETCD", list(Some(registry.clone()))),
            ("NODE", list(Some(node.addr.to_string()))),
            ("CADVISOR", list(cadvisor.as_ref().map(|one| one.addr.to_string()))),
        ];
        let exporters: Vec<_> = exporters.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let config = shipped_config(&[gateway.admin], &exporters);
        let prometheus = Prometheus::start(&config, &[]).await;
        Self { prometheus, gateway, services, cadvisor, _node: node, etcd, _data: data, database }
    }

    /// Returns whether the exporter of a job is there.
    pub fn has(&self, job: &str) -> bool {
        job != "cadvisor" || self.cadvisor.is_some()
    }

    /// Returns a load of so many requests a second, over all routes.
    pub fn load(&self, rate: f64) -> Load {
        Load::of(self.gateway.addr, rate, any_request)
    }

    /// Makes a service fail, as the calls of [`Self::load`] should not.
    pub async fn fail_in_every_way(&self) {
        let (_, profile) = self.services.iter().find(|(role, _)| *role == "profile").expect("it runs");
        let failed = "grpc_server_handling_seconds_count{code=\"DEADLINE_EXCEEDED\"";
        wait_for("a service has seen a deadline pass", || async {
            let mut hasty = request("GET", "/api/profile/get_profile?user_id=1", "");
            hasty.headers_mut().insert("x-request-timeout-ms", HeaderValue::from_static("1"));
            send(self.gateway.addr, hasty).await.expect("an answer");
            profile.metric_above(failed, 0.0).await.then_some(())
        })
        .await;
    }

    /// Writes into etcd until it is aborted (at most 1000 times): otherwise nobody does while nothing changes.
    pub async fn write_to_etcd(&self) -> JoinHandle<()> {
        let mut client = self.etcd.client().await;
        tokio::spawn(async move {
            for number in 0..1000 {
                client.put("/dashboards", number.to_string(), None).await.expect("etcd takes it");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    }

    /// Lets one of the events of the picture happen.
    pub async fn happen(&mut self, event: &str) {
        let ends = match event {
            "an instance of feed is killed" => Some("feed"),
            "topic ends" => Some("topic"),
            _ => None,
        };
        let at = self.services.iter().position(|(role, _)| ends == Some(role));
        let ends = at.map(|at| self.services.remove(at));
        let (registry, store) = (self.etcd.addr.to_string(), self.database.url());
        // the load goes on meanwhile
        let happening = tokio::task::spawn_blocking(move || match ends {
            Some(("feed", mut feed)) => {
                feed.process.kill();
                None
            }
            Some((_, mut other)) => {
                other.process.stop(SOON);
                None
            }
            None => Some(("topic", start(&registry, "topic", &store))),
        });
        self.services.extend(happening.await.expect("it happens"));
    }

    /// Waits until everything there is was scraped so often.
    pub async fn wait_until_scraped(&self, times: usize) {
        let targets = 1 + self.services.len() + 2 + usize::from(self.cadvisor.is_some());
        let scraped = format!("count((count_over_time(up[5m]) >= {times}) and up == 1) == {targets}");
        self.prometheus.wait_for(&scraped).await;
        self.prometheus.wait_for("msa:http_errors:ratio_rate1h").await;
    }
}

/// Returns the setting of a service's file of records.
fn store(data: &tempfile::TempDir, role: &str) -> String {
    format!("sqlite:{}", data.path().join(role).display())
}

fn start(registry: &str, role: &'static str, store: &str) -> Role {
    Role::start(registry, role, "127.0.0.1:0", &[("MSA__STORE__URL", store)])
}

/// Returns one of the requests that there are: reads and writes, found and not.
fn any_request(number: u64) -> Request<Full<bytes::Bytes>> {
    let user = number % 20 + 1;
    let (method, path, body) = match number % 9 {
        0 => (
            "PUT",
            "/api/feed/create_feed".to_owned(),
            format!(r#"{{"id":{},"user_id":{user},"content":"hello"}}"#, number % 500 + 1),
        ),
        1 => (
            "PUT",
            "/api/profile/put_profile".to_owned(),
            format!(r#"{{"user_id":{user},"name":"Ada","company":"Acme","title":"engineer"}}"#),
        ),
        2 => (
            "PUT",
            "/api/topic/put_topic".to_owned(),
            format!(r#"{{"topic_id":{user},"subject":"rust","content":"a language"}}"#),
        ),
        3 => ("GET", format!("/api/topic/view?topic_id={user}"), String::new()),
        4 => ("GET", "/api/topic/list".to_owned(), String::new()),
        5 => ("GET", format!("/api/feed/get_feeds?user_id={user}"), String::new()),
        6 => {
            ("DELETE", format!("/api/feed/delete_feed?user_id={user}&id={}", number % 500 + 1), String::new())
        }
        _ => ("GET", format!("/api/profile/get_profile?user_id={user}"), String::new()),
    };
    request(method, &path, &body)
}
