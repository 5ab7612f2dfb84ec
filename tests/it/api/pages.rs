//! The files that the gateway serves: versions, headers, the setting; and the page of the API in a real browser.

use microservice_app::config::Switch;
use microservice_app::gateway::{PAGES, openapi};

use crate::kit::app::App;
use crate::kit::browser::Browser;
use crate::kit::http::{Answer, get, request, send};
use crate::kit::token::{AUDIENCE, ISSUER, KeyFile, Signer};

async fn conditional(app: &App, method: &str, path: &str, tag: &str) -> Answer {
    let mut asked = request(method, path, "");
    asked.headers_mut().insert("if-none-match", tag.parse().unwrap());
    send(app.gateway(), asked).await.unwrap()
}

#[tokio::test]
async fn each_file_has_a_version_that_a_caller_can_compare() {
    let app = App::start().await;
    let mut tags = std::collections::BTreeSet::new();
    for page in &PAGES {
        let whole = get(app.gateway(), page.path).await;
        assert_eq!(whole.status, 200, "{}", page.path);
        let tag = whole.header("etag").to_owned();
        assert!(!whole.body.is_empty() && tags.insert(tag.clone()), "{}", page.path);
        let policy = whole.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(whole.header("x-content-type-options"), "nosniff");
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            for method in ["GET", "HEAD"] {
                let answer = conditional(&app, method, page.path, &known).await;
                assert_eq!(
                    (answer.status.as_u16(), answer.body.as_str()),
                    (304, ""),
                    "{} {known}",
                    page.path
                );
                assert_eq!(
                    (answer.header("etag"), answer.header("cache-control")),
                    (tag.as_str(), "no-cache")
                );
                assert!(!answer.headers.contains_key("content-type"), "{answer:?}");
            }
        }
        for unknown in ["\"other\"", "W/\"other\"", "x", ""] {
            let answer = conditional(&app, "GET", page.path, unknown).await;
            assert_eq!((answer.status.as_u16(), &answer.body), (200, &whole.body), "{} {unknown}", page.path);
        }
        assert_eq!(get(app.gateway(), &format!("{}?x=1", page.path)).await.status, 400);
        let refused = send(app.gateway(), request("PUT", page.path, "{}")).await.unwrap();
        assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, "GET, HEAD, OPTIONS"));
        assert_eq!(get(app.gateway(), &format!("{}/", page.path)).await.status, 404);
    }
    assert_eq!(get(app.gateway(), openapi::PATH).await.body, openapi::text());
    // another process of the same build has the same versions
    let other = App::start().await;
    assert!(tags.contains(get(other.gateway(), "/docs").await.header("etag")));
}

#[tokio::test]
async fn the_files_are_off_by_one_setting() {
    let app = App::start_with(|settings| settings.http.docs = Switch::Off).await;
    for page in &PAGES {
        for method in ["GET", "HEAD", "OPTIONS", "PUT"] {
            let answer = send(app.gateway(), request(method, page.path, "")).await.unwrap();
            assert_eq!(answer.status, 404, "{method} {}", page.path);
        }
    }
    assert_eq!(get(app.gateway(), "/api/topic/list").await.status, 200);
}

const CHECK: &str = "the page of the API in a browser";

/// Opens the page and waits until it is made.
async fn open(browser: &Browser, app: &App) {
    browser.open(&format!("http://{}/docs", app.gateway())).await;
    browser
        .wait_until("the page is made", "return document.querySelectorAll('details.operation').length > 0")
        .await;
}

#[tokio::test]
async fn the_page_loads_without_complaints_and_asks_nobody_else() {
    let Some(browser) = Browser::start(CHECK).await else { return };
    let app = App::start().await;
    open(&browser, &app).await;
    let noted = browser.noted().await;
    assert!(noted.complaints.is_empty(), "{noted:?}");
    let own = format!("http://{}/", app.gateway());
    assert!(noted.requests.len() >= 4 && noted.requests.iter().all(|url| url.starts_with(&own)), "{noted:?}");
    let shown = browser.script("return document.querySelectorAll('details.operation').length").await;
    assert_eq!(shown, microservice_app::gateway::ROUTES.len() + 1);
    // the policy does stop what it is to stop
    browser.script("const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s)").await;
    assert_eq!(browser.script("return window.broken === undefined").await, true);
    assert!(browser.noted().await.complaints.iter().any(|line| line.contains("Content Security Policy")));
}

#[tokio::test]
async fn a_call_from_the_page_shows_status_headers_body_and_time() {
    let Some(browser) = Browser::start(CHECK).await else { return };
    let app = App::start().await;
    open(&browser, &app).await;
    let status = |id: &str, begins: &str| {
        format!("return document.querySelector('#{id} [role=status]').textContent.startsWith('{begins}')")
    };
    let text = async |css: String| {
        let script = format!("return document.querySelector('{css}').textContent");
        browser.script(&script).await.as_str().unwrap().to_owned()
    };
    // by keyboard alone: the largest id keeps its digits
    browser.script("document.querySelector('#put_topic > summary').focus()").await;
    browser.press("\u{E007}").await;
    let body = r#"{"topic_id": 9223372036854775807, "subject": "<b>é</b>", "content": "c"}"#;
    browser.fill("#put_topic-body", body).await;
    browser.script("document.querySelector('#put_topic button').focus()").await;
    browser.press("\u{E007}").await;
    browser.wait_until("it is stored", &status("put_topic", "200 OK, ")).await;
    assert!(text("#put_topic [role=status]".to_owned()).await.ends_with(" ms"));
    assert!(browser.noted().await.complaints.is_empty());

    browser.click("#get_topic > summary").await;
    browser.fill("#get_topic-topic_id", "9223372036854775807").await;
    browser.fill("#get_topic-x-request-id", "from-the-page").await;
    browser.click("#get_topic button").await;
    browser.wait_until("it is read", &status("get_topic", "200 OK, ")).await;
    let answer = text("#get_topic-answer".to_owned()).await;
    for shown in [
        "\"topic_id\": 9223372036854775807",
        "<b>é</b>",
        "x-request-id",
        "from-the-page",
        "application/json",
        "curl -i -X GET",
    ] {
        assert!(answer.contains(shown), "{shown}: {answer}");
    }
    browser.script("document.querySelector('#put_topic').open = false").await;
    browser.picture("api", "#get_topic", 1000, 900).await;

    browser.fill("#get_topic-topic_id", "0").await;
    browser.click("#get_topic button").await;
    browser.wait_until("it is refused", &status("get_topic", "400 Bad Request, ")).await;
    assert!(text("#get_topic-answer pre".to_owned()).await.contains("problem:bad_request"));
}

/// The token of a gateway that asks for one: typed, sent where it is needed, and kept nowhere.
#[tokio::test]
async fn a_token_is_sent_from_the_page_and_kept_in_memory_only() {
    let Some(browser) = Browser::start(CHECK).await else { return };
    let (key, rule) = (Signer::es256("a"), "list_topics=public");
    let file = KeyFile::new(&[&key]);
    let app = App::start_with(|settings| {
        settings.http.auth_jwks_file = Some(file.path.clone());
        settings.http.auth_issuer = Some(ISSUER.to_owned());
        settings.http.auth_audience = vec![AUDIENCE.to_owned()];
        settings.http.auth_policy = vec![rule.parse().unwrap()];
    })
    .await;
    open(&browser, &app).await;
    let status = |begins: &str| {
        format!(
            "return document.querySelector('#create_feed [role=status]').textContent.startsWith('{begins}')"
        )
    };
    browser.click("#create_feed > summary").await;
    browser.click("#create_feed button").await;
    browser.wait_until("it is refused", &status("401 Unauthorized, ")).await;
    let token = key.token("123");
    browser.fill("#token", &token).await;
    browser.click("#create_feed button").await;
    browser.wait_until("it is stored", &status("200 OK, ")).await;
    let shown = browser.script("return document.body.innerText").await;
    let shown = shown.as_str().unwrap();
    assert!(shown.contains("authorization: Bearer $TOKEN") && !shown.contains(&token), "{shown}");
    assert!(shown.contains("Needs a token whose sub is the user_id."), "{shown}");
    let kept = "return localStorage.length + sessionStorage.length + document.cookie.length + location.href.length \
                - document.baseURI.length";
    assert_eq!(browser.script(kept).await, 0);
    assert_eq!(browser.script("return document.querySelector('#token').type").await, "password");
    let findings = browser.serious_findings(CHECK).await;
    assert!(findings.is_empty(), "{findings:?}");
    open(&browser, &app).await;
    assert_eq!(browser.script("return document.querySelector('#token').value").await, "");
}

#[tokio::test]
async fn the_page_fits_a_small_screen_and_everybody_can_use_it() {
    let Some(browser) = Browser::start(CHECK).await else { return };
    let app = App::start().await;
    open(&browser, &app).await;
    for (scheme, width, height, scale) in [
        ("light", 1280, 1024, 1.0),
        ("dark", 1280, 1024, 1.0),
        ("light", 360, 640, 2.0),
        ("dark", 320, 256, 4.0),
    ] {
        browser.prefer("prefers-color-scheme", scheme).await;
        browser.viewport(width, height, scale).await;
        open(&browser, &app).await;
        browser.script("document.querySelectorAll('details').forEach(one => { one.open = true })").await;
        browser.click("#list_topics button").await;
        let done =
            "return document.querySelector('#list_topics [role=status]').textContent.startsWith('200')";
        browser.wait_until("it is answered", done).await;
        assert_eq!(browser.overflow().await, 0, "{scheme} {width}");
        let ground =
            browser.script("return getComputedStyle(document.documentElement).backgroundColor").await;
        assert_eq!(ground == "rgb(255, 255, 255)", scheme == "light", "{ground}");
        let found = browser.serious_findings(CHECK).await;
        assert!(found.is_empty(), "{scheme} {width}: {found:#?}");
    }
}
