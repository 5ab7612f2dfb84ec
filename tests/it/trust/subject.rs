//! Who asked the gateway, as a service tells it to the next one: believed of a caller with a certificate, and of nobody else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use microservice_app::api::proto::profile::{GetProfileRequest, PutProfileRequest};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::kit::mesh::{Mesh, acceptor, client13, connect};
use crate::kit::{SOON, peer, wait_for};

const SUBJECT: &str = "x-msa-subject";
/// Who asks, in one of the calls.
const SOMEBODY: &str = "zQ7somebodyX9";

/// Calls profile over a stream, in the name of somebody; returns the status of gRPC.
async fn call<S>(stream: S, rpc: &str, message: &impl Message, subject: &str) -> String
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = http::Request::post(format!("http://any.example/profile.Profile/{rpc}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(SUBJECT, subject)
        .body(())
        .unwrap();
    let (answer, mut body) = sender.send_request(request, false).unwrap();
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    body.send_data(Bytes::from([&[0], &length[..], &message].concat()), true).unwrap();
    let answered = async {
        let answer = answer.await.unwrap();
        let status = |headers: &http::HeaderMap| headers.get("grpc-status").cloned();
        let (head, mut body) = answer.into_parts();
        while let Some(part) = body.data().await {
            let length = part.unwrap().len();
            body.flow_control().release_capacity(length).unwrap();
        }
        let trailers = body.trailers().await.unwrap().unwrap_or_default();
        status(&head.headers).or_else(|| status(&trailers)).unwrap().to_str().unwrap().to_owned()
    };
    let status = tokio::time::timeout(Duration::from_secs(10), answered).await.expect("an answer");
    driver.abort();
    status
}

/// While it is permissive, profile takes calls of anybody over plaintext: such a caller asks in nobody's name.
#[tokio::test]
async fn who_asked_is_the_word_of_a_caller_with_a_certificate() {
    let mesh = Mesh::start().await;
    let heard = Arc::<Mutex<Vec<Option<String>>>>::default();
    let told = heard.clone();
    let feed = peer::secured(acceptor(mesh.path(), "feed", b"h2"), move |request, mut respond| {
        let told = told.clone();
        async move {
            if request.uri().path() == "/feed.Feed/GetFeeds" {
                let subject = request.headers().get(SUBJECT);
                told.lock().unwrap().push(subject.map(|value| value.to_str().unwrap().to_owned()));
                peer::fine(&mut respond);
            } else {
                peer::say(&mut respond, tonic::Code::Unimplemented, &[]);
            }
        }
    })
    .await;
    let (addr, mut etcd) = (feed.addr.to_string(), mesh.etcd.client().await);
    etcd.put(format!("/services/feed/{addr}"), addr.as_str(), None).await.unwrap();
    let everything = [("MSA__LOG__LEVEL", "trace"), ("MSA__LOG__SLOW_MS", "0")];
    let mut profile = mesh.role("profile", "permissive", &everything);
    wait_for("profile calls feed", || async {
        (profile.metric("client_endpoints{service=\"feed\",state=\"up\"}").await > 0.5).then_some(())
    })
    .await;
    let (put, get) =
        (PutProfileRequest { user_id: 7, ..Default::default() }, GetProfileRequest { user_id: 7 });
    let plain = async || TcpStream::connect(profile.addr).await.unwrap();
    let secured = async || connect(profile.addr, client13(mesh.path(), "apigateway")).await.unwrap();
    assert_eq!(call(plain().await, "PutProfile", &put, "ada").await, "0");
    for _ in 0..2 {
        for (proven, subject, wanted) in
            [(false, SOMEBODY, None), (true, SOMEBODY, Some(SOMEBODY)), (true, "7", Some("7"))]
        {
            heard.lock().unwrap().clear();
            let status = if proven {
                call(secured().await, "GetProfile", &get, subject).await
            } else {
                call(plain().await, "GetProfile", &get, subject).await
            };
            assert_eq!(status, "0", "proven: {proven}");
            // feed may have been asked twice
            let heard = std::mem::take(&mut *heard.lock().unwrap());
            assert!(!heard.is_empty(), "feed was not asked");
            assert!(heard.iter().all(|heard| heard.as_deref() == wanted), "proven: {proven}: {heard:?}");
        }
    }
    profile.process.stop(SOON);
    assert!(profile.process.count_logs(|line| line["message"] == "slow call") > 0, "it logs each call");
    let named = profile.process.count_logs(|line| line.to_string().contains(SOMEBODY));
    assert_eq!(named, 0, "no log says who asked");
}
