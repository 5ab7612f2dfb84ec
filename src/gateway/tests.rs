//! What a caller sees of a defect.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use warp::Filter as _;

use super::*;
use crate::server::listener::Listener;
use crate::server::{Limits, Protocol, Stop, serve};
use crate::telemetry::metrics;

/// A filter that panics when it is called, before there is a future, as warp's path filter did (warp#1166).
fn broken() -> BoxedFilter<(Response,)> {
    warp::method().map(|_: Method| -> Response { panic!("a defect") }).boxed()
}

#[tokio::test]
async fn a_panic_in_a_route_is_answered_with_500_and_counted() {
    let registry = prometheus::Registry::new();
    let (server, settings) =
        (server_metrics::Metrics::register(&registry).unwrap(), Settings::for_role(Role::Apigateway));
    let unsent = crate::server::UnsentLimit::new(1024);
    let routes = ROUTES.each_ref().map(|route| (route.path, route.method.clone()));
    let gateway = Arc::new(Gateway {
        routes: broken(),
        admission: Admission::http("apigateway", &settings.http, unsent.clone(), &server),
        pauses: Pauses::watch(),
        requests: server.requests(&routes),
        auth: None,
        description: None,
        cors: None,
        scheme: Scheme::HTTP,
        hosts: Arc::default(),
        hsts: None,
        docs: false,
        tracer: Tracer::off(),
        deadline: Duration::from_secs(2),
        body_timeout: Duration::from_secs(10),
        slow: Duration::from_secs(1),
    });
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = listener.addr();
    let limits = Limits { max_connections: 1, write_timeout: Duration::from_secs(10), unsent };
    let stop = Stop { begin: CancellationToken::new(), grace: Duration::ZERO };
    let protocol = Protocol::Http1 { header_timeout: Duration::from_secs(10) };
    let answer = move |request, peer| gateway.clone().call(request, peer);
    tokio::spawn(async move { serve(listener, protocol, limits, &server, answer, stop).await });

    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let ask = "GET /api/topic/list HTTP/1.1\r\nhost: x\r\n";
    // the connection goes on
    stream.write_all(format!("{ask}\r\n{ask}connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 500 Internal Server Error\r\n").count(), 2, "{answers}");
    assert_eq!(answers.matches("urn:microservice-app:problem:internal").count(), 2, "{answers}");
    assert!(!answers.contains("a defect"), "{answers}");
    let counted = "http_server_request_duration_seconds_count{code=\"500\",method=\"GET\",route=\"/api/topic/list\"} 2\n";
    let page = metrics::text(&registry);
    assert!(page.contains(counted), "{page}");
}

/// Both futures are allocated for each request, and copied.
#[test]
fn the_futures_of_a_request_are_small() {
    let sizes = [crate::server::measure_future(Gateway::call), crate::server::measure_future(feed::get)];
    assert!(sizes[0] <= 4 * 1024 && sizes[1] <= 11 * 1024, "{sizes:?} bytes");
}
