//! The limits of the gateway over HTTP/2, where one connection carries many requests: what callers with bad intent hold
//! together, and what they can make the gateway do.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use microservice_app::config::Settings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::task::AbortOnDropHandle;

use crate::kit::frames::{
    END_HEADERS, END_STREAM, Flood, HEADERS, PING, fields, flood_on, frame, hello_on, reset,
};
use crate::kit::secure::Secure;
use crate::kit::wait_for;

const LIST: &str = "https://localhost/api/topic/list";
const CREATE: &str = "https://localhost/api/feed/create_feed";
/// Longest time for what ends at once.
const PATIENCE: Duration = Duration::from_secs(6);

/// Opens a connection; it lasts as long as the second value.
async fn open(secure: &Secure) -> (SendRequest<Bytes>, AbortOnDropHandle<()>) {
    let tls = secure.connect(&[b"h2"]).await.unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    (sender, AbortOnDropHandle::new(driver))
}

async fn read(answer: Response<h2::RecvStream>) -> (u16, serde_json::Value) {
    let (head, mut body) = answer.into_parts();
    let mut text = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        body.flow_control().release_capacity(part.len()).unwrap();
        text.extend_from_slice(&part);
    }
    (head.status.as_u16(), serde_json::from_slice(&text).unwrap_or_default())
}

async fn answer(sender: &SendRequest<Bytes>, request: Request<()>) -> Response<h2::RecvStream> {
    let mut sender = sender.clone().ready().await.unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap()
}

async fn get(sender: &SendRequest<Bytes>, request: Request<()>) -> (u16, serde_json::Value) {
    read(answer(sender, request).await).await
}

/// What is asked for over another connection is answered.
async fn serves(secure: &Secure) {
    let (sender, _driver) = open(secure).await;
    assert_eq!(get(&sender, Request::get(LIST).body(()).unwrap()).await.0, 200);
}

fn patient(settings: &mut Settings) {
    (settings.http.body_timeout, settings.http.header_timeout) = (2 * PATIENCE, 2 * PATIENCE);
}

async fn refused_for_memory(secure: &Secure) -> f64 {
    secure.app.metric("http_server_refused_total{reason=\"memory\"}").await
}

/// An eighth of what all bodies may hold is what those of one connection may hold.
#[tokio::test]
async fn the_bodies_of_one_connection_share_their_memory() {
    let secure = Secure::start(patient).await;
    let (sender, _driver) = open(&secure).await;
    let (mut bodies, part) = (Vec::new(), Bytes::from(vec![b' '; 200 * 1024]));
    for _ in 0..64 {
        let mut sender = sender.clone().ready().await.unwrap();
        let (answer, mut body) = sender.send_request(Request::put(CREATE).body(()).unwrap(), false).unwrap();
        body.send_data(part.clone(), false).unwrap();
        bodies.push((answer, body));
    }
    let refused = async {
        let answers = bodies.into_iter().map(|(answer, body)| {
            Box::pin(async move {
                let answer = read(answer.await.unwrap()).await;
                drop(body);
                answer
            })
        });
        futures_util::future::select_all(answers).await.0
    };
    let (status, problem) = tokio::time::timeout(PATIENCE, refused).await.expect("one of them is refused");
    assert_eq!((status, &problem["type"]), (503, &"urn:microservice-app:problem:overloaded".into()));
    assert!(refused_for_memory(&secure).await >= 1.0);
    serves(&secure).await;
}

/// A head waits for as long as its body, and is held as well.
#[tokio::test]
async fn the_heads_of_bodies_that_do_not_come_are_counted() {
    /// The newest field of the dynamic table (RFC 7541, 6.1): its index is 62.
    const INDEXED: u8 = 0xbe;
    let secure = Secure::start(patient).await;
    let start = [
        fields(&[(":method", b"PUT"), (":scheme", b"https"), (":authority", b"localhost")]),
        fields(&[(":path", b"/api/feed/create_feed")]),
    ]
    .concat();
    // 4000 bytes that are sent once (RFC 7541, 6.2.1), and repeated by one byte each time
    let large = fields(&[("x", &[b'x'; 4000])]);
    let (mut open, mut last) = (Vec::new(), 0.0);
    for _ in 0..30 {
        let mut tls = hello_on(secure.connect(&[b"h2"]).await.unwrap()).await;
        let mut bytes = Vec::new();
        for stream in 0..128 {
            let mut head = start.clone();
            if stream == 0 {
                head.push(0x40);
                head.extend_from_slice(&large[1..]);
            }
            head.extend_from_slice(&[INDEXED; 7][usize::from(stream == 0)..]);
            bytes.extend(frame(HEADERS, END_HEADERS, 2 * stream + 1, &head));
        }
        tls.write_all(&bytes).await.unwrap();
        tls.flush().await.unwrap();
        open.push(tls);
        last = refused_for_memory(&secure).await;
        if last > 0.0 {
            break;
        }
    }
    assert!(last > 0.0, "{} heads of 28 KiB are held", 128 * open.len());
    assert!(open.len() > 10, "the bodies of all may hold 64 MiB");
    drop(open);
    wait_for("others are served", || async {
        let before = refused_for_memory(&secure).await;
        serves(&secure).await;
        (refused_for_memory(&secure).await <= before).then_some(())
    })
    .await;
}

/// As many as over HTTP/1.1, where the HTTP library counts them.
#[tokio::test]
async fn a_head_has_at_most_100_fields() {
    let secure = Secure::start(|_| {}).await;
    let (sender, _driver) = open(&secure).await;
    for (count, status) in [(100, 200), (101, 431)] {
        let mut request = Request::get(LIST).header("x-request-id", "of-the-caller");
        for n in 1..count {
            request = request.header("x-many", n);
        }
        let answer = answer(&sender, request.body(()).unwrap()).await;
        assert_eq!(answer.headers()["x-request-id"], "of-the-caller");
        let (answered, problem) = read(answer).await;
        assert_eq!(answered, status, "{count}: {problem}");
        if status == 431 {
            assert_eq!(problem["type"], "urn:microservice-app:problem:too_many_fields");
        }
    }
    // the connection goes on
    assert_eq!(get(&sender, Request::get(LIST).body(()).unwrap()).await.0, 200);
}

/// The head of a read, as HPACK.
fn read_head() -> Vec<u8> {
    fields(&[
        (":method", b"GET"),
        (":scheme", b"https"),
        (":authority", b"localhost"),
        (":path", b"/api/topic/list"),
    ])
}

async fn floods_cut(secure: &Secure) -> f64 {
    secure.app.metric("server_connections_cut_total{reason=\"flood\"}").await
}

#[tokio::test]
async fn each_kind_of_flood_ends_over_tls() {
    let secure = Secure::start(|_| {}).await;
    for (n, kind) in Flood::ALL.into_iter().enumerate() {
        let tls = hello_on(secure.connect(&[b"h2"]).await.unwrap()).await;
        let flooded = flood_on(tls, kind, &read_head(), PATIENCE).await;
        assert!(flooded.closed.is_some(), "{kind:?}");
        serves(&secure).await;
        wait_for(&format!("{kind:?} is counted"), || async {
            (floods_cut(&secure).await > n as f64).then_some(())
        })
        .await;
    }
}

/// Sends requests that are reset at once, so many in each of some bursts. Returns true if the connection lives on.
async fn survives_resets(secure: &Secure, bursts: u32, each: u32) -> bool {
    let (mut reader, mut writer) = tokio::io::split(hello_on(secure.connect(&[b"h2"]).await.unwrap()).await);
    let ended = tokio::spawn(async move {
        let mut bytes = Vec::new();
        let _ = reader.read_to_end(&mut bytes).await;
        bytes
    });
    let head = read_head();
    for burst in 0..bursts {
        let streams = (burst * each..(burst + 1) * each).map(|step| 2 * step + 1);
        let bytes: Vec<u8> = streams
            .flat_map(|stream| {
                [frame(HEADERS, END_STREAM | END_HEADERS, stream, &head), reset(stream)].concat()
            })
            .collect();
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = writer.write_all(&frame(PING, 0, 0, &[7; 8])).await;
    let _ = writer.flush().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    !ended.is_finished()
}

/// Nobody is trusted at the edge: fewer resets end a connection than between the parts. A caller that gives up all it has
/// asked for, again and again, is served.
#[tokio::test]
async fn resets_of_a_caller_are_bounded() {
    let secure = Secure::start(|_| {}).await;
    assert!(survives_resets(&secure, 8, 100).await, "800 in bursts of 100");
    assert!(floods_cut(&secure).await < 0.5);
    assert!(!survives_resets(&secure, 40, 50).await, "2000 in bursts of 50");
    assert!(!survives_resets(&secure, 1, 1500).await, "1500 at once");
    wait_for("both are counted", || async { (floods_cut(&secure).await > 1.5).then_some(()) }).await;
    serves(&secure).await;
}
