//! One health check on a connection of its own: how the registry client finds out whether an instance that the
//! registry has lost still serves.

use std::sync::Arc;

use futures_util::FutureExt as _;

use crate::api::error::chain;
use crate::api::headers::service_identity;
use crate::api::rpc::Rpc;
use crate::client::transport::connection::{Connector, Dialer, Http2Connection};
use crate::client::transport::outcome::ExchangeEnd;
use crate::client::transport::{health, wire};
use crate::config;
use crate::registry::Probe;

/// Returns a probe of instances whose keys begin with `prefix`. An instance that has no health service
/// (another implementation) serves as long as it answers.
pub fn probe(settings: config::Client, prefix: String, connector: Connector) -> Probe {
    let settings = Arc::new(settings);
    Arc::new(move |instance| {
        let identity = service_identity(&prefix, &instance.service);
        let dialer = Dialer { connector: connector.clone(), settings: settings.clone(), identity };
        async move {
            let Http2Connection { mut sender, mut driver } = dialer.connect(&instance.addr).await?;
            let (path, asked) = (Rpc::HealthCheck.path(), health::whole_server()?);
            let request = wire::request(&instance.addr, &dialer.identity, path, asked)?;
            let check = async {
                let response = sender.send_request(request).await.map_err(|e| chain(&e))?;
                match wire::read_answer(response).await {
                    ExchangeEnd::Answered(answer) if health::is_serving(&answer.message) => Ok(()),
                    ExchangeEnd::Answered(_) => Err("it does not serve".to_owned()),
                    ExchangeEnd::Status(status) if status.code() == tonic::Code::Unimplemented => Ok(()),
                    end => Err(end.to_string()),
                }
            };
            tokio::select! {
                result = check => result,
                _ = &mut driver => Err("the connection ended".to_owned()),
            }
        }
        .boxed()
    })
}
