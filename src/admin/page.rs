//! `/metrics`: the page that Prometheus reads.
//!
//! To make a page takes about a millisecond, so it is made on a thread of its own while other requests are answered.
//! There is one page at a time, for all who wait.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use tokio::sync::Mutex;
use tokio::time::Instant;
use warp::reply::Response;

use super::reply::text;
use super::state::State;
use crate::client::Client;
use crate::telemetry::metrics;

/// The pages of a process. Cheap to clone.
#[derive(Clone)]
pub struct Pages {
    state: Arc<State>,
    /// The last page, and when it was begun. Locked while a page is made.
    last: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

impl Pages {
    /// Returns the pages of a process; none has been made yet.
    pub fn new(state: Arc<State>) -> Self {
        Self { state, last: Arc::default() }
    }

    /// Answers with a page that was begun after the request came.
    pub async fn answer(self) -> Response {
        let came = Instant::now();
        let mut last = self.last.clone().lock_owned().await;
        let page = match &*last {
            Some((begun, page)) if *begun >= came => Ok(page.clone()),
            _ => {
                let made = tokio::task::spawn_blocking(move || {
                    let begun = Instant::now();
                    let page = Bytes::from(self.state.page());
                    *last = Some((begun, page.clone()));
                    page
                });
                made.await
            }
        };
        let mut response = match page {
            Ok(page) => Response::new(page.into()),
            Err(error) => {
                tracing::error!(%error, "the page of metrics cannot be made");
                let failed = "the page of metrics cannot be made\n".to_owned();
                return text(StatusCode::INTERNAL_SERVER_ERROR, failed);
            }
        };
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl State {
    /// Updates the metrics that are set when they are read, and returns all metrics as text.
    #[inline(never)] // tests/counts finds it by its name
    fn page(&self) -> String {
        if let Some(view) = &self.view {
            self.registry_metrics.set_view(view);
        }
        Client::update_gauges(&self.clients);
        let registrations = self.roles.iter().filter_map(|role| {
            let state = *role.registration.as_ref()?.borrow();
            Some((role.name, state))
        });
        self.registry_metrics.set_registrations(registrations);
        metrics::text(&self.metrics)
    }
}
