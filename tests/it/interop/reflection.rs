//! Reflection: what a server says that it serves. Tools find messages by it; those before 2023, and the Python library
//! to this day, ask its first version, v1alpha.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use microservice_app::config::Role;
use tonic::codegen::tokio_stream;
use tonic::{Code, Status};

use crate::kit::app::App;
use crate::kit::grpc::channel;

macro_rules! version {
    ($version:ident) => {
        mod $version {
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            use super::*;

            async fn ask(addr: SocketAddr, message: MessageRequest) -> Result<MessageResponse, Status> {
                let asked = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
                let mut client = ServerReflectionClient::new(channel(addr).await);
                let stream = client.server_reflection_info(tokio_stream::once(asked)).await?;
                let answer = stream.into_inner().message().await?.expect("one answer");
                Ok(answer.message_response.expect("not empty"))
            }

            /// Returns the services that a server lists.
            pub async fn list(addr: SocketAddr) -> BTreeSet<String> {
                match ask(addr, MessageRequest::ListServices("*".to_owned())).await {
                    Ok(MessageResponse::ListServicesResponse(list)) => {
                        list.service.into_iter().map(|service| service.name).collect()
                    }
                    other => panic!("{other:?}"),
                }
            }

            /// Returns whether a server describes a symbol.
            pub async fn describes(addr: SocketAddr, symbol: &str) -> bool {
                let asked = MessageRequest::FileContainingSymbol(symbol.to_owned());
                match ask(addr, asked).await {
                    Ok(MessageResponse::FileDescriptorResponse(_)) => true,
                    Err(status) if status.code() == Code::NotFound => false,
                    other => panic!("{other:?}"),
                }
            }
        }
    };
}
version!(v1);
version!(v1alpha);

#[tokio::test]
async fn a_server_describes_what_it_serves_and_nothing_else() {
    let app = App::start().await;
    let ours = [(Role::Feed, "feed.Feed"), (Role::Profile, "profile.Profile"), (Role::Topic, "topic.Topic")];
    for (role, name) in ours {
        let addr = app.addresses.of(role).unwrap();
        let every = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
        let every = every.into_iter().chain(["grpc.reflection.v1alpha.ServerReflection", name]);
        let served: BTreeSet<_> = every.map(str::to_owned).collect();
        assert_eq!(v1::list(addr).await, served);
        assert_eq!(v1alpha::list(addr).await, served);
        for symbol in &served {
            assert!(v1::describes(addr, symbol).await, "{symbol} of {name}");
            assert!(v1alpha::describes(addr, symbol).await, "{symbol} of {name}");
        }
        for (_, other) in ours.into_iter().filter(|(_, other)| *other != name) {
            assert!(!v1::describes(addr, other).await, "{name} describes {other}");
            assert!(!v1alpha::describes(addr, other).await, "{name} describes {other}");
        }
    }
}
