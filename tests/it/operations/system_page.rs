//! The page of the system at `/` of the admin port, as a program reads it and in a real browser.

use std::net::SocketAddr;
use std::time::Duration;

use microservice_app::registry::Registration;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::kit::app::App;
use crate::kit::browser::Browser;
use crate::kit::cpu::Meter;
use crate::kit::etcd::Etcd;
use crate::kit::http::{Answer, get, parse, raw, request, send};
use crate::kit::process::Process;
use crate::kit::system::Role;
use crate::kit::{measured, wait_for};

/// Longest time from the end of an instance until its row says so.
const RED: Duration = Duration::from_secs(2);
/// Longest time for an answer with a thousand instances. An unoptimised program takes many times as long.
const ANSWER: Duration = Duration::from_millis(if cfg!(debug_assertions) { 60 } else { 5 });
/// Largest part of a core that one tab may cost.
const WATCHED: f64 = if cfg!(debug_assertions) { 0.03 } else { 0.01 };

/// Asks for the page; `tag` is that of the one that is known.
async fn page(admin: SocketAddr, method: &str, tag: &str) -> Answer {
    let mut asked = request(method, "/", "");
    if !tag.is_empty() {
        asked.headers_mut().insert("if-none-match", tag.parse().unwrap());
    }
    send(admin, asked).await.unwrap()
}

#[tokio::test]
async fn the_page_is_plain_html_that_loads_nothing_from_elsewhere() {
    let app = App::start_with(|settings| {
        settings.admin.grafana_url = Some("https://grafana.example/d/msa".parse().unwrap());
        settings.admin.zipkin_url = Some("http://zipkin.example:9411".parse().unwrap());
    })
    .await;
    let admin = app.addresses.admin;
    // once nothing changes any more
    let tag = wait_for("the page stays the same", || async {
        let first = page(admin, "GET", "").await.header("etag").to_owned();
        tokio::time::sleep(Duration::from_millis(600)).await;
        (page(admin, "GET", &first).await.status == 304).then_some(first)
    })
    .await;
    let answer = page(admin, "GET", "").await;
    assert_eq!((answer.status.as_u16(), answer.header("etag")), (200, tag.as_str()));
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    let policy = answer.header("content-security-policy");
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "frame-ancestors 'none'",
        "form-action 'self' http://zipkin.example:9411;",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    // all is there without a script, and no style or script is in the page itself
    for part in
        ["all is well", "<h2>Registry</h2>", "service-feed", "topic", "<noscript>", "data-health=\"ok\""]
    {
        assert!(answer.body.contains(part), "{part} is not in {}", answer.body);
    }
    for part in ["style=", "onclick", "<style"] {
        assert!(!answer.body.contains(part), "{part} is in {}", answer.body);
    }
    assert!(answer.body.contains("href=\"https://grafana.example/d/msa\""), "{}", answer.body);
    let known = page(admin, "GET", &format!("\"x\", {tag}")).await;
    assert_eq!((known.status.as_u16(), known.body.as_str(), known.header("etag")), (304, "", tag.as_str()));
    let head = page(admin, "HEAD", "").await;
    assert_eq!((head.status.as_u16(), head.body.as_str(), head.header("etag")), (200, "", tag.as_str()));
    for (part, kind) in [
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let answer = get(admin, part).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, kind), "{part}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
    // a trace by its id
    let id = "463AC35C9F6413AD";
    let answer = get(admin, &format!("/trace?id={id}")).await;
    let target = "http://zipkin.example:9411/zipkin/traces/463ac35c9f6413ad";
    assert_eq!((answer.status.as_u16(), answer.header("location")), (303, target));
    for query in ["", "?id=", "?id=463ac35c9f6413a", "?id=463ac35c9f6413a/", "?id=..%2f..%2fxxxxxxxxxx"] {
        assert_eq!(get(admin, &format!("/trace{query}")).await.status, 400, "{query}");
    }
    // as /status: not under a name that a page of another site may have
    let rebound = "GET / HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(parse(&raw(admin, rebound.as_bytes()).await).0, 421);
}

/// What is wrong has its state on the page, in `/status` and in `/readyz`.
#[tokio::test]
async fn the_page_tells_what_happens_and_what_was_answered() {
    let app = App::launch(|settings| settings.up.topic_replicas = 0);
    let admin = app.addresses.admin;
    let (gateway, dead) = (app.gateway(), crate::kit::free_addr());
    wait_for("the others are called", || async {
        (get(admin, "/readyz").await.body == "ready\nwarn: topic: no instance can be called\n").then_some(())
    })
    .await;
    let status = get(admin, "/status").await.json();
    assert_eq!(
        (&status["health"], &status["roles"][0]["health"]),
        (&json!("fail"), &json!("ok")),
        "{status:#}"
    );
    let there = |part: String| async move {
        wait_for(&part, || async { get(admin, "/").await.body.contains(&part).then_some(()) }).await;
    };
    there("data-health=\"fail\"".to_owned()).await;
    there("</strong>: topic: no instance is known</p>".to_owned()).await;
    let registration: Registration = app.register("topic", dead);
    there(format!("topic {dead}: joined")).await;
    there(format!("<li id=\"topic-{dead}\" class=\"fail\"><span class=\"state\">down</span>")).await;
    there("it cannot be connected to; ".to_owned()).await;
    drop(registration);
    there(format!("topic {dead}: left")).await;
    for _ in 0..20 {
        assert_eq!(get(gateway, "/api/feed/get_feeds?user_id=1").await.status, 404);
        assert_eq!(get(gateway, "/api/topic/list").await.status, 503);
    }
    // a sample is taken every five seconds
    there("<th scope=\"row\">/api/topic/list<svg".to_owned()).await;
    let status = get(admin, "/status").await.json();
    let routes = status["traffic"]["routes"].as_array().unwrap();
    let failed = |name: &str| {
        let route = routes.iter().find(|route| route["name"] == name).unwrap_or_else(|| panic!("{status:#}"));
        assert!(route["per_second"].as_f64().unwrap() > 0.2, "{route}");
        route["failed"].as_f64().unwrap()
    };
    assert!((failed("/api/topic/list") - 1.0).abs() < 1e-9 && failed("/api/feed/get_feeds") == 0.0);
}

#[tokio::test]
async fn the_page_of_a_thousand_instances_is_quick_and_small() {
    let app = App::start().await;
    let admin = app.addresses.admin;
    let dead = |n: u16| SocketAddr::from(([127, 1, (n / 250) as u8, (n % 250) as u8 + 1], 9));
    let _registered: Vec<Registration> = (0..1000).map(|n| app.register("topic", dead(n))).collect();
    wait_for("all are known", || async {
        get(admin, "/").await.body.contains("1001 instances").then_some(())
    })
    .await;
    let mut size = get(admin, "/").await.body.len();
    assert!(size > 10_000, "{size}");
    for part in ["/page.css", "/page.js", "/icon.svg"] {
        size += get(admin, part).await.body.len();
    }
    assert!(size <= 100_000, "{size} bytes");
    measured("an answer with a thousand instances", || async {
        // the quickest of some: the instances are being connected to meanwhile, by the same thread
        let mut quickest = Duration::MAX;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let begun = Instant::now();
            assert_eq!(page(admin, "GET", "").await.status, 200);
            quickest = quickest.min(begun.elapsed());
        }
        println!("{size} bytes in {quickest:?}");
        if quickest <= ANSWER { Ok(()) } else { Err(quickest) }
    })
    .await;
}

#[tokio::test]
async fn a_tab_costs_little_and_nobody_looking_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let mut up = Process::start(&["up", "--free-ports", "--data-dir", &data]);
    let (_, admin) = up.wait_for_role("apigateway");
    let id = up.id();
    wait_for("it is ready", || async { (get(admin, "/readyz").await.body == "ready\n").then_some(()) }).await;
    measured("CPU of a tab", || async {
        let looks = Duration::from_secs(8);
        let alone = Meter::start(id);
        tokio::time::sleep(looks).await;
        let alone = alone.seconds();
        let watched = Meter::start(id);
        let (begun, mut tag) = (Instant::now(), String::new());
        while begun.elapsed() < looks {
            let answer = page(admin, "GET", &tag).await;
            answer.header("etag").clone_into(&mut tag);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let cost = (watched.seconds() - alone) / looks.as_secs_f64();
        println!("alone {alone:.3} s, a tab costs {:.2} % of a core", cost * 100.0);
        // samples are taken whether or not somebody looks
        if cost <= WATCHED && alone / looks.as_secs_f64() <= WATCHED { Ok(()) } else { Err((alone, cost)) }
    })
    .await;
}

/// Returns the part of a page that a selector finds as text; empty if there is none.
async fn text(browser: &Browser, css: &str) -> String {
    let script = "const found = document.querySelector(arguments[0]); return found ? found.textContent : ''";
    browser.script_with(script, json!([css])).await.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn in_a_browser_a_killed_instance_turns_red_and_a_stale_registry_is_said() {
    let check = "the page of the system in a browser";
    let Some(browser) = Browser::start(check).await else { return };
    let mut etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let lease = [("MSA__REGISTRY__TTL_S", "6"), ("MSA__REGISTRY__KEEPALIVE_MS", "1000")];
    let start = |role| Role::start(&endpoint, role, "127.0.0.1:0", &lease);
    let (mut first, second, _topic, _profile) =
        (start("feed"), start("feed"), start("topic"), start("profile"));
    let gateway = start("apigateway");
    gateway.wait_for_certain("feed", 2).await;
    for n in 0..30 {
        let body = format!(r#"{{"id":{n},"user_id":1,"content":"x"}}"#);
        crate::kit::http::put(gateway.addr, "/api/feed/create_feed", &body).await;
        get(gateway.addr, "/api/feed/get_feeds?user_id=1").await;
    }
    let admin = gateway.admin;
    browser.open(&format!("http://{admin}/")).await;
    browser
        .wait_until("all are up", "return document.querySelectorAll('li[id^=feed-].ok').length == 2")
        .await;
    browser
        .wait_until("numbers are there", "return document.querySelectorAll('svg polyline').length > 0")
        .await;
    let noted = browser.noted().await;
    assert!(noted.complaints.is_empty(), "{noted:?}");
    let own = format!("http://{admin}/");
    // a new tab has a page of the browser's own
    let requests: Vec<_> = noted.requests.iter().filter(|url| !url.starts_with("chrome")).collect();
    assert!(requests.len() >= 4 && requests.iter().all(|url| url.starts_with(&own)), "{requests:?}");

    // somebody reads: has scrolled, and has the focus on a link
    browser.viewport(700, 400, 1.0).await;
    let place = "const link = document.querySelector(`li[id='feed-' + arguments[0]] a`);";
    let focus = format!(
        "{} link.focus(); window.kept = link; window.scrollTo(0, 300); return window.scrollY",
        place.replace("'feed-' + arguments[0]", &format!("'feed-{}'", second.addr))
    );
    let scrolled = browser.script(&focus).await.as_f64().unwrap();
    assert!(scrolled > 100.0, "{scrolled}");
    first.process.signal(Signal::KILL);
    let begun = Instant::now();
    let row = format!("li[id='feed-{}']", first.addr);
    browser
        .wait_until("it is red", &format!("return document.querySelector(\"{row}\").className == 'fail'"))
        .await;
    let took = begun.elapsed();
    assert!(took <= RED, "{took:?}");
    let said = text(&browser, &row).await;
    assert!(said.starts_with("down") && said.contains("it cannot be connected to; "), "{said}");
    assert!(text(&browser, "#summary").await.starts_with("fail: "), "{}", text(&browser, "#summary").await);
    assert!(browser.script("return document.title").await.as_str().unwrap().starts_with("fail: "));
    let kept = "return [window.kept === document.activeElement, window.scrollY]";
    let kept = browser.script(kept).await;
    assert_eq!(kept[0], true, "the focus stays");
    // the browser scrolls by what has come above, so that what is read stays where it is
    let moved = kept[1].as_f64().unwrap() - scrolled;
    assert!((-1.0..=120.0).contains(&moved), "{kept}, {scrolled} before");
    // what a screen reader says
    browser
        .wait_until(
            "the change is said",
            "return document.getElementById('said').textContent.startsWith('fail')",
        )
        .await;
    first.process.wait(crate::kit::SOON);

    looks_right(&browser, check).await;
    browser.picture("system", "body", 1000, 760).await;

    etcd.kill();
    browser
        .wait_until(
            "a stale registry is said",
            "return document.body.textContent.includes('last heard from ')",
        )
        .await;
    // it is looked at every five seconds
    browser
        .wait_until(
            "the event",
            "return document.body.textContent.includes('nothing is heard from the registry')",
        )
        .await;
    etcd.restart().await;
    browser
        .wait_until("it is current", "return document.body.textContent.includes('the view is current')")
        .await;
    let left = format!("return document.body.textContent.includes('feed {}: left')", first.addr);
    browser.wait_until("the event of the instance", &left).await;
    let noted = browser.noted().await;
    assert!(noted.complaints.is_empty(), "{noted:?}");

    ends(&browser, gateway).await;
}

/// Checks what people need who do not see as others do, or have a small screen.
async fn looks_right(browser: &Browser, check: &str) {
    for scheme in ["light", "dark"] {
        browser.prefer("prefers-color-scheme", scheme).await;
        let found = browser.serious_findings(check).await;
        assert!(found.is_empty(), "{scheme}: {found:#?}");
    }
    browser.prefer("prefers-color-scheme", "light").await;
    // a phone; a window of 1280 by 1024 at 400 %
    for (width, height, scale) in [(360, 640, 2.0), (320, 256, 4.0)] {
        browser.viewport(width, height, scale).await;
        assert_eq!(browser.overflow().await, 0, "{width}");
    }
    // by the keyboard alone
    browser.viewport(1280, 1024, 1.0).await;
    browser.script("document.activeElement.blur()").await;
    let mut reached = Vec::new();
    for _ in 0..40 {
        browser.press("\u{E004}").await;
        let focus = "const at = document.activeElement; return at.id || at.getAttribute('href') || ''";
        reached.push(browser.script(focus).await.as_str().unwrap().to_owned());
    }
    for wanted in ["pause", "/status"] {
        assert!(reached.iter().any(|at| at == wanted), "{wanted}: {reached:?}");
    }
}

/// Checks what a tab says whose program is another version, or has ended.
async fn ends(browser: &Browser, mut gateway: Role) {
    gateway.process.kill();
    browser
        .wait_until(
            "the end is said",
            "return document.getElementById('notice').textContent.startsWith('No answer since')",
        )
        .await;
    let notice = "document.documentElement.dataset.version = 'another'; return true";
    assert_eq!(browser.script(notice).await, true);
    // another process at the same address
    let listen = gateway.admin.to_string();
    let another = Process::start(&["topic", "--addr", "127.0.0.1:0", "--debug-addr", &listen]);
    browser
        .wait_until(
            "the other version is said",
            "return document.getElementById('notice').textContent.includes('older than the program')",
        )
        .await;
    drop(another);
}

/// With scripts turned off the page has everything but its updates; the form still leads to Zipkin.
#[tokio::test]
async fn without_scripts_the_page_is_whole() {
    let Some(browser) = Browser::start("the page of the system without scripts").await else { return };
    let zipkin = crate::kit::free_addr();
    let app = App::start_with(|settings| {
        settings.admin.zipkin_url = Some(format!("http://{zipkin}").parse().unwrap());
    })
    .await;
    let listener = std::net::TcpListener::bind(zipkin).unwrap();
    let heard = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let length = stream.read(&mut head).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        String::from_utf8_lossy(&head[..length]).into_owned()
    });
    browser.devtools("Emulation.setScriptExecutionDisabled", json!({"value": true})).await;
    browser.open(&format!("http://{}/", app.addresses.admin)).await;
    browser.fill("#trace", "463ac35c9f6413ad").await;
    browser.press("\u{E007}").await;
    let asked = tokio::task::spawn_blocking(move || heard.join().unwrap()).await.unwrap();
    assert!(asked.starts_with("GET /zipkin/traces/463ac35c9f6413ad HTTP/1.1\r\n"), "{asked}");
}
