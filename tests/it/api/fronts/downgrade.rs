//! HTTP/2 in front of HTTP/1.1: what a proxy makes of requests over HTTP/2, and what the gateway itself does with them over
//! TLS. No form makes another request than the one that it is.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::forms::INNER;
use super::forms2::{Form, all};
use super::proxy::{Callers, Kind};
use super::tap::Tap;
use super::{ID, SILENCE, faults};
use crate::kit::app::App;
use crate::kit::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, fields, frame, hello_on,
};
use crate::kit::secure::Secure;
use crate::kit::{SOON, skip};

const FEED: &[u8] = br#"{"id":1,"user_id":1,"content":"x"}"#;
/// What is malformed, and which the libraries accept: they leave a fragment out before anybody sees it, on HTTP/1.1 as well, and
/// pass over pseudo-header fields of trailers. No other request comes of either.
const ACCEPTED: [&str; 2] = ["path, a fragment", "trailers, a path"];
/// `:status: 200` of the static table (RFC 7541, A).
const OK: u8 = 0x88;

/// What came back on a connection.
#[derive(Debug, Default)]
struct Heard {
    /// Kind, stream and payload of each frame.
    frames: Vec<(u8, u32, Vec<u8>)>,
    ended: bool,
}

impl Heard {
    fn of(&self, kind: u8, stream: u32) -> impl Iterator<Item = &[u8]> {
        let fits = move |frame: &&(u8, u32, Vec<u8>)| (frame.0, frame.1) == (kind, stream);
        self.frames.iter().filter(fits).map(|(_, _, payload)| payload.as_slice())
    }

    fn body(&self, stream: u32) -> String {
        String::from_utf8_lossy(&self.of(DATA, stream).collect::<Vec<_>>().concat()).into_owned()
    }

    /// Returns true if a stream has got one answer, and it is 200.
    fn is_ok(&self, stream: u32) -> bool {
        self.of(HEADERS, stream).any(|head| head.first() == Some(&OK))
    }

    /// Returns true if the connection was given up.
    fn is_over(&self) -> bool {
        self.ended || self.frames.iter().any(|(kind, ..)| *kind == GOAWAY)
    }
}

/// Sends frames behind the greeting, and returns what comes back until these streams have ended, the other side ends the
/// connection, or says nothing more for so long.
async fn exchange<S>(stream: S, bytes: &[u8], streams: &[u32], silence: Duration) -> Heard
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = hello_on(stream).await;
    // it may end before it has read all
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let (mut heard, mut ends) = (Heard::default(), 0);
    while ends < streams.len() {
        let next = async {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let [a, b, c, kind, flags, id @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            stream.read_exact(&mut payload).await?;
            Ok::<_, std::io::Error>((kind, flags, u32::from_be_bytes(id), payload))
        };
        match tokio::time::timeout(silence, next).await {
            Ok(Ok((kind, flags, id, payload))) => {
                let ends_stream =
                    kind == RST_STREAM || matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
                ends += usize::from(ends_stream && streams.contains(&id));
                heard.frames.push((kind, id, payload));
            }
            Ok(Err(_)) => {
                heard.ended = true;
                break;
            }
            Err(_) => break,
        }
    }
    heard
}

/// A request of somebody for a topic that is not there. Its answer names the topic.
fn canary(stream: u32, topic: usize, scheme: &str) -> Vec<u8> {
    let path = format!("/api/topic/view?topic_id={topic}");
    let head = fields(&[
        (":method", b"GET".as_slice()),
        (":scheme", scheme.as_bytes()),
        (":authority", b"x"),
        (":path", path.as_bytes()),
    ]);
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)
}

fn names(heard: &Heard, stream: u32, topic: usize) -> bool {
    heard.body(stream).contains(&format!("\"there is no topic {topic}\""))
}

/// Sends every form through a proxy, and after each one the requests of two other callers.
async fn check(kind: Kind) {
    let app = App::start().await;
    let tap = Tap::start(app.gateway()).await;
    let Some(proxy) = kind.start(tap.addr, Callers::Http2).await else {
        return skip(&format!("request smuggling from HTTP/2 through {kind:?}"), "it is not installed");
    };
    let connect = async || TcpStream::connect(proxy.addr).await.unwrap();
    let (mut failed, mut forwarded, forms) = (Vec::new(), 0, all(INNER.as_bytes()));
    for (number, form) in forms.iter().enumerate() {
        tap.take();
        let bytes = [form.frames(1, "http"), canary(3, 777, "http")].concat();
        let own = exchange(connect().await, &bytes, &[1, 3], SILENCE).await;
        let mut found = Vec::new();
        if !own.body(3).is_empty() && own.is_ok(3) {
            found.push(format!("its own next request got {:?}", own.body(3)));
        }
        for other in 0..2 {
            let topic = 10_000 + 10 * number + other;
            let mut heard = Heard::default();
            // a proxy answers itself when the gateway has just closed the connection that it had chosen
            for _ in 0..5 {
                heard = exchange(connect().await, &canary(1, topic, "http"), &[1], SOON).await;
                if names(&heard, 1, topic) {
                    break;
                }
            }
            if !names(&heard, 1, topic) {
                found.push(format!("another caller who asked for topic {topic} got {:?}", heard.body(1)));
            }
        }
        let passed = tap.take();
        found.extend(passed.iter().flat_map(faults));
        let reached = passed.iter().map(|passed| String::from_utf8_lossy(&passed.requests).into_owned());
        let reached = reached.filter(|text| !text.is_empty()).collect::<Vec<_>>();
        let count = reached.concat().to_ascii_lowercase().matches(ID).count();
        forwarded += usize::from(count > 3);
        println!("{kind:?}: {}: {count} requests passed on", form.name);
        for fault in found {
            failed.push(format!("{}: {fault}\n  passed on {reached:?}", form.name));
        }
    }
    println!("{kind:?}: {} forms, {forwarded} of them passed on", forms.len());
    assert!(failed.is_empty(), "{kind:?}: {}:\n{}", failed.len(), failed.join("\n"));
    // a proxy that refused everything would show nothing
    assert!(forwarded > 10, "{kind:?} passed on {forwarded} of {}", forms.len());
}

#[tokio::test]
async fn nginx_makes_one_request_of_each_over_http2() {
    check(Kind::Nginx).await;
}

#[tokio::test]
async fn nginx_that_passes_on_bodies_as_they_come_makes_one_request_of_each_over_http2() {
    check(Kind::NginxUnbuffered).await;
}

#[tokio::test]
async fn haproxy_makes_one_request_of_each_over_http2() {
    check(Kind::Haproxy).await;
}

#[tokio::test]
async fn haproxy_that_accepts_invalid_requests_makes_one_request_of_each_over_http2() {
    check(Kind::HaproxyLenient).await;
}

#[tokio::test]
async fn envoy_makes_one_request_of_each_over_http2() {
    check(Kind::Envoy).await;
}

/// What is malformed is refused, what is odd is answered once, and the next request on the connection gets its own answer.
#[tokio::test]
async fn the_gateway_refuses_what_is_malformed_over_http2() {
    let secure = Secure::start(|_| {}).await;
    let connect = async || secure.connect(&[b"h2"]).await.unwrap();
    let (mut failed, forms) = (Vec::new(), all(FEED));
    for (number, form) in forms.iter().enumerate() {
        let topic = 10_000 + number;
        let bytes = [form.frames(1, "https"), canary(3, topic, "https")].concat();
        let heard = exchange(connect().await, &bytes, &[1, 3], SOON).await;
        let mut found = Vec::new();
        let malformed = form.malformed && !ACCEPTED.contains(&form.name.as_str());
        if malformed && heard.is_ok(1) {
            found.push("is answered with 200".to_owned());
        }
        if !malformed && heard.of(HEADERS, 1).count() != 1 {
            found.push("is not answered".to_owned());
        }
        if !names(&heard, 3, topic) && !heard.is_over() {
            found.push(format!("the next request got {:?}", heard.body(3)));
        }
        let heads = [1, 3].map(|stream| heard.of(HEADERS, stream).count());
        let all = heard.frames.iter().filter(|(kind, ..)| *kind == HEADERS).count();
        if heads.iter().any(|count| *count > 1) || all > heads.iter().sum() {
            found.push(format!("{all} answers"));
        }
        println!("{}: 200: {}, over: {}, {:?}", form.name, heard.is_ok(1), heard.is_over(), heard.body(1));
        failed.extend(found.into_iter().map(|fault| format!("{}: {fault}", form.name)));
    }
    assert!(failed.is_empty(), "{}:\n{}", failed.len(), failed.join("\n"));
    let well = forms.iter().filter(|form: &&Form| !form.malformed).count();
    assert!(well > 10 && forms.len() > 80, "{well} of {}", forms.len());
}
