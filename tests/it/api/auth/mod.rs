//! Callers of a gateway that asks for tokens.

mod attacks;
mod others;
mod policy;
mod rotation;

use microservice_app::config::Settings;

use crate::kit::app::App;
use crate::kit::http::{Answer, request, send};
use crate::kit::token::{AUDIENCE, ISSUER, KeyFile, Signer};

/// An application whose gateway trusts these keys.
struct Secured {
    app: App,
    file: KeyFile,
}

impl Secured {
    async fn start(keys: &[&Signer], change: impl FnOnce(&mut Settings)) -> Self {
        let file = KeyFile::new(keys);
        let app = App::start_with(|settings| {
            settings.http.auth_jwks_file = Some(file.path.clone());
            settings.http.auth_issuer = Some(ISSUER.to_owned());
            settings.http.auth_audience = vec!["another".to_owned(), AUDIENCE.to_owned()];
            change(settings);
        })
        .await;
        Self { app, file }
    }

    /// Sends a request with these values of `authorization`.
    async fn ask(&self, method: &str, path: &str, body: &str, authorization: &[&str]) -> Answer {
        let mut asked = request(method, path, body);
        for value in authorization {
            let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            asked.headers_mut().append("authorization", value);
        }
        send(self.app.gateway(), asked).await.unwrap()
    }

    /// Reads the topics with a token.
    async fn list(&self, token: &str) -> Answer {
        self.ask("GET", "/api/topic/list", "", &[&format!("Bearer {token}")]).await
    }

    async fn refused(&self, reason: &str) -> f64 {
        self.app.metric(&format!("http_auth_refused_total{{reason=\"{reason}\"}}")).await
    }
}

/// Returns status, kind of problem, and challenge of a refusal.
fn refusal(answer: &Answer) -> (u16, String, String) {
    let kind = answer.json()["type"].as_str().unwrap_or_default().rsplit(':').next().unwrap().to_owned();
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.header("cache-control"), "no-store");
    (answer.status.as_u16(), kind, answer.header("www-authenticate").to_owned())
}
