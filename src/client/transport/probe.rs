//! How the registry client finds out whether an instance that the registry has lost still serves, and whether it is still
//! that service which answers at its address: by one question, on a connection that calls use or on one of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;

use crate::api::error::chain;
use crate::api::headers::{INSTANCE, TRACE_ID, service_identity};
use crate::api::rpc::Rpc;
use crate::client::transport::connection::{
    Connector, Dialer, Http1Connection, Http2Connection, RequestSender,
};
use crate::client::transport::outcome::ExchangeEnd;
use crate::client::transport::{health, wire};
use crate::config::{self, Role};
use crate::registry::{Instance, Probe};

/// After this time without an answer on a connection that calls use, an instance is asked on another one as well.
const OFFERED_LIMIT: Duration = Duration::from_millis(250);

/// Returns a probe of instances whose keys begin with `prefix`: a gateway is asked by HTTP, everything else for its
/// health by gRPC.
pub fn probe(settings: config::Client, prefix: String, connector: Connector) -> Probe {
    let settings = Arc::new(settings);
    Arc::new(move |instance| {
        let identity = service_identity(&prefix, &instance.service);
        let (connector, settings) = (connector.clone(), settings.clone());
        let service = Arc::from(instance.service.as_str());
        let dialer = Dialer { connector, settings, identity, service };
        async move {
            if instance.service == Role::Apigateway.name() {
                ask_gateway(&dialer, &instance.addr).await
            } else {
                ask_service(&dialer, &instance).await
            }
        }
        .boxed()
    })
}

/// Asks a gateway for a page that it does not have. Every gateway marks its answers, also its refusals, with the id of
/// their trace; another server at its address does not.
///
/// The registry does not tell which gateways have a certificate (`http.tls`), and one may be restarted with another setting at
/// the same address. So who gives no answer of HTTP is asked once more by TLS. The certificate is not verified: anybody may
/// learn the question, and the answer only keeps an address in the list that was there before.
async fn ask_gateway(dialer: &Dialer, addr: &str) -> Result<(), String> {
    let plain = dialer.connect_http1(addr, false).await?;
    let marked = match ask_for_page(plain, addr).await {
        Ok(marked) => marked,
        Err(plain) => {
            let secured = async { ask_for_page(dialer.connect_http1(addr, true).await?, addr).await };
            secured.await.map_err(|error| format!("{plain}; by TLS: {error}"))?
        }
    };
    marked.then_some(()).ok_or_else(|| "another server answers at its address".to_owned())
}

/// Returns whether the answer is that of a gateway.
async fn ask_for_page(connection: Http1Connection, addr: &str) -> Result<bool, String> {
    let Http1Connection { mut sender, driver: _driver } = connection;
    let response = sender.send_request(wire::page_request(addr)?).await.map_err(|e| chain(&e))?;
    Ok(response.headers().contains_key(TRACE_ID))
}

/// Asks an instance of a service: on a connection that calls use, which costs little, and without a good answer soon on
/// another one, too. For no answer on the first one proves nothing: it may be dead or full.
async fn ask_service(dialer: &Dialer, instance: &Instance) -> Result<(), String> {
    let offered = dialer.connector.offered(&instance.addr);
    let mut offered = offered.map(|sender| Box::pin(ask_on(sender, dialer, instance)));
    if let Some(asked) = &mut offered {
        match tokio::time::timeout(OFFERED_LIMIT, asked).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => offered = None,
            Err(_) => {}
        }
    }
    let late = async {
        if let Some(asked) = offered
            && asked.await.is_ok()
        {
            return Ok(());
        }
        std::future::pending().await
    };
    let another = async {
        let Http2Connection { sender, mut driver, .. } = dialer.connect(&instance.addr).await?;
        tokio::select! {
            result = ask_on(sender, dialer, instance) => result,
            _ = &mut driver => Err("the connection ended".to_owned()),
        }
    };
    tokio::select! {
        result = late => result,
        result = another => result,
    }
}

/// Asks for the health. An instance that registered an id is one of ours, so it has a health service and sends an id
/// (perhaps a new one: it has restarted). One that registered its address alone is another implementation and may have
/// no health service; then it must know a read of its service.
async fn ask_on(mut sender: RequestSender, dialer: &Dialer, instance: &Instance) -> Result<(), String> {
    let ours = !instance.id.is_empty();
    let mut ask = async |rpc: Rpc, framed: Bytes| {
        let request = wire::request(&instance.addr, &dialer.identity, rpc.path(), framed)?;
        let response = sender.send_request(request).await.map_err(|e| chain(&e))?;
        Ok::<_, String>(wire::read_answer(response).await)
    };
    match ask(Rpc::HealthCheck, health::whole_server()?).await? {
        ExchangeEnd::Answered(answer) if !health::is_serving(&answer.message) => {
            Err("it does not serve".to_owned())
        }
        ExchangeEnd::Answered(answer) if ours && !answer.headers.contains_key(INSTANCE) => {
            Err("another server answers at its address".to_owned())
        }
        ExchangeEnd::Answered(_) => Ok(()),
        ExchangeEnd::Status(status) if !ours && status.code() == tonic::Code::Unimplemented => {
            let read = Rpc::of_service(&instance.service).find(|rpc| rpc.policy().fallback);
            let Some(read) = read else { return Ok(()) };
            match ask(read, wire::frame(&()).map_err(|e| e.to_string())?).await? {
                ExchangeEnd::Status(status) if status.code() == tonic::Code::Unimplemented => {
                    Err("another service answers at its address".to_owned())
                }
                ExchangeEnd::Answered(_) | ExchangeEnd::Status(_) => Ok(()),
                end => Err(end.to_string()),
            }
        }
        end => Err(end.to_string()),
    }
}
