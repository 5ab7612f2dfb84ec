//! Makes one connection to one member of etcd, and proves that it works.

use std::error::Error;
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, GetOptions};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tonic::transport::Endpoint;

use super::credentials::Credentials;
use super::dial::Dial;
use super::failure::{Failure, limit, refused_certificate, says};
use crate::config::{self, bare_endpoint};

/// Most tokens that a new connection asks for after its first one.
const TOKENS: u32 = 3;

/// Connects to a member, authenticates, and reads.
///
/// # Errors
/// [`Failure::Refused`] if the member refuses `credentials`; else what went wrong.
pub async fn connect(
    settings: &config::Registry,
    endpoint: &str,
    credentials: &Credentials,
    dial: &Dial,
) -> Result<Client, Failure> {
    let addr = bare_endpoint(endpoint).to_owned();
    let target = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|error| Failure::Unreachable(chain(&error)))?
        .connect_timeout(settings.timeout)
        // etcd closes a connection that is pinged more often than every 5 s
        .http2_keep_alive_interval(Duration::from_secs(6))
        .keep_alive_timeout(settings.watch_silence)
        .keep_alive_while_idle(true);
    let dial = dial.clone();
    let Some(tls) = &credentials.tls else {
        let connector = tower::service_fn(move |_| {
            let socket = dial(&addr);
            async { socket.await.map(TokioIo::new) }
        });
        return prove(settings, Box::pin(target.connect_with_connector(connector)), credentials).await;
    };
    let (tls, alert) = tls.for_one();
    let connector = tower::service_fn(move |_| {
        let (tls, addr, socket) = (tls.clone(), addr.clone(), dial(&addr));
        async move { tls.handshake(&addr, socket.await?).await.map(TokioIo::new) }
    });
    let proven = prove(settings, Box::pin(target.connect_with_connector(connector)), credentials).await;
    proven.map_err(|failure| alert.get().and_then(refused_certificate).unwrap_or(failure))
}

/// Makes a connection, authenticates, and reads.
async fn prove(
    settings: &config::Registry,
    connect: BoxFuture<'_, Result<tonic::transport::Channel, tonic::transport::Error>>,
    credentials: &Credentials,
) -> Result<Client, Failure> {
    let channel = match tokio::time::timeout(settings.timeout, connect).await {
        Err(_) => return Err(Failure::Slow("a connection")),
        Ok(Err(error)) => return Err(Failure::Unreachable(chain(&error))),
        Ok(Ok(channel)) => Channel::Tonic(channel),
    };
    let options = ConnectOptions::new().with_require_leader(true);
    let mut client = match &credentials.user {
        None => Client::from_channel(channel, Some(options)).await?,
        Some((user, password)) => {
            let known = options.clone().with_user(user, password).with_auto_token_refresh(true);
            let known = Client::from_channel(channel.clone(), Some(known));
            match limit(settings, "an authentication", known).await {
                Err(Failure::Etcd(error)) if says(&error, "authentication is not enabled") => {
                    tracing::debug!("etcd requires no user, going on without one");
                    Client::from_channel(channel, Some(options)).await?
                }
                other => other?,
            }
        }
    };
    let mut tokens = 0;
    loop {
        let read = client.get(settings.prefix.as_str(), Some(GetOptions::new().with_keys_only()));
        match limit(settings, "a read", read).await {
            // a user may have rights for its own key only
            Err(Failure::Etcd(error)) if says(&error, "permission denied") => return Ok(client),
            // a user was changed between the two calls
            Err(Failure::Token) if tokens < TOKENS => {
                tokens += 1;
                limit(settings, "an authentication", client.refresh_token()).await?;
            }
            other => return other.map(|_| client),
        }
    }
}

/// Returns an error with its causes, each text once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
