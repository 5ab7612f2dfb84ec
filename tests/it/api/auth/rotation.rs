//! Keys that change while the gateway runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Secured;
use crate::kit::authority::replace;
use crate::kit::http::{Connection, request};
use crate::kit::process::Process;
use crate::kit::token::{KeyFile, Signer, claims, now, publish, with};
use crate::kit::wait_for;

/// The issuer publishes a new key and signs with it at once, again and again. Nobody who has a token notices, while others
/// send tokens of keys that do not exist.
#[tokio::test]
async fn keys_rotate_under_load_without_a_refusal() {
    const ROTATIONS: u64 = 60;
    let first = Signer::es256("k0");
    let secured = Secured::start(&[&first], |_| {}).await;
    let gateway = secured.app.gateway();
    let (token, stop) = (Arc::new(Mutex::new(first.token("1"))), Arc::new(AtomicBool::new(false)));
    let (asked, junk) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let ask = |token: String| {
        let mut asked = request("GET", "/api/topic/list", "");
        asked.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        asked
    };
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (token, stop, asked) = (token.clone(), stop.clone(), asked.clone());
        workers.spawn(async move {
            let mut connection = Connection::open(gateway).await.unwrap();
            while !stop.load(Relaxed) {
                let current = token.lock().unwrap().clone();
                let answer = connection.send(ask(current)).await.unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                asked.fetch_add(1, Relaxed);
            }
        });
    }
    let (stranger, stopped, sent) = (Signer::es256("nobody"), stop.clone(), junk.clone());
    workers.spawn(async move {
        let mut connection = Connection::open(gateway).await.unwrap();
        while !stopped.load(Relaxed) {
            assert_eq!(connection.send(ask(stranger.token("1"))).await.unwrap().status, 401);
            sent.fetch_add(1, Relaxed);
        }
    });
    let mut last = first;
    for number in 1..=ROTATIONS {
        let next = if number % 2 == 0 {
            Signer::es256(&format!("k{number}"))
        } else {
            Signer::eddsa(&format!("k{number}"))
        };
        publish(&secured.file.path, &[&last, &next]);
        *token.lock().unwrap() = next.token("1");
        tokio::time::sleep(Duration::from_millis(50)).await;
        last = next;
    }
    stop.store(true, Relaxed);
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    let (asked, junk) = (asked.load(Relaxed), junk.load(Relaxed));
    assert!(asked > ROTATIONS && junk > ROTATIONS, "{asked} and {junk} requests");
}

#[tokio::test]
async fn a_key_that_leaves_takes_its_tokens_along() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let secured = Secured::start(&[&old, &new], |_| {}).await;
    let (of_old, of_new) = (old.token("1"), new.token("1"));
    for token in [&of_old, &of_new] {
        assert_eq!(secured.list(token).await.status, 200);
    }
    publish(&secured.file.path, &[&new]);
    let begun = Instant::now();
    wait_for("the old key is gone", || async { (secured.list(&of_old).await.status == 401).then_some(()) })
        .await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(secured.list(&of_new).await.status, 200);
    // the same name for another key: what the old one has signed is worth nothing
    let renamed = Signer::es256("new");
    publish(&secured.file.path, &[&renamed]);
    wait_for("the new key is another", || async {
        (secured.list(&of_new).await.status == 401).then_some(())
    })
    .await;
    assert_eq!(secured.list(&renamed.token("1")).await.status, 200);
}

#[tokio::test]
async fn a_bad_file_leaves_the_keys_as_they_are() {
    let key = Signer::es256("a");
    let secured = Secured::start(&[&key], |_| {}).await;
    let token = key.token("1");
    let stale = || secured.app.metric("http_auth_keys_stale");
    let keys = || secured.app.metric("http_auth_keys");
    assert!(stale().await < 0.5 && (keys().await - 1.0).abs() < 0.1);
    let private = json!({"keys": [with(key.jwk(), &json!({"d": "AAAA"}))]}).to_string();
    for bad in ["", "{\"keys\":[", "{}", &private] {
        replace(&secured.file.path, bad);
        wait_for("the file is seen", || async { (stale().await > 0.5).then_some(()) }).await;
        assert_eq!(secured.list(&token).await.status, 200, "remembered");
        assert_eq!(secured.list(&key.token("2")).await.status, 200, "not remembered");
        publish(&secured.file.path, &[&key, &Signer::eddsa("b")]);
        wait_for("the file is mended", || async { (stale().await < 0.5).then_some(()) }).await;
        assert!((keys().await - 2.0).abs() < 0.1);
    }
    std::fs::remove_file(&secured.file.path).unwrap();
    wait_for("the file is gone", || async { (stale().await > 0.5).then_some(()) }).await;
    assert_eq!(secured.list(&key.token("3")).await.status, 200);
    publish(&secured.file.path, &[&key]);
    wait_for("the file is back", || async { (stale().await < 0.5).then_some(()) }).await;
    assert_eq!(secured.list(&token).await.status, 200);
}

#[tokio::test]
async fn clocks_may_differ_by_the_leeway() {
    let key = Signer::eddsa("a");
    let secured =
        Secured::start(&[&key], |settings| settings.http.auth_leeway = Duration::from_secs(10)).await;
    let token = |members| key.sign(&key.head(), &with(claims("1"), &members));
    for (what, members, status) in [
        ("expired 5 s ago", json!({"exp": now() - 5}), 200),
        ("expired 11 s ago", json!({"exp": now() - 11}), 401),
        ("valid in 5 s", json!({"nbf": now() + 5}), 200),
        ("valid in 20 s", json!({"nbf": now() + 20}), 401),
        ("issued in the future", json!({"iat": now() + 3600}), 200),
    ] {
        assert_eq!(secured.list(&token(members)).await.status, status, "{what}");
    }
    // a token that is remembered expires as well
    let short = token(json!({"exp": now() - 8}));
    assert_eq!(secured.list(&short).await.status, 200);
    wait_for("it expires", || async { (secured.list(&short).await.status == 401).then_some(()) }).await;
}

/// What a key that has leaked has signed can be refused at once, also if there is no other one yet. Public routes go on.
#[tokio::test]
async fn the_last_key_can_be_taken_back() {
    let key = Signer::es256("a");
    let secured = Secured::start(&[&key], |settings| {
        settings.http.auth_policy = vec!["get_feeds=public".parse().unwrap()];
    })
    .await;
    let token = key.token("1");
    let others = r#"{"keys":[{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}]}"#;
    for none in [r#"{"keys":[]}"#, others] {
        assert_eq!(secured.list(&token).await.status, 200);
        replace(&secured.file.path, none);
        wait_for("it counts no more", || async { (secured.list(&token).await.status == 401).then_some(()) })
            .await;
        assert_eq!(secured.list(&key.token("2")).await.status, 401);
        let feeds = secured.ask("GET", "/api/feed/get_feeds?user_id=1", "", &[]).await;
        assert_eq!(feeds.status, 404, "{feeds:?}");
        assert!(secured.app.metric("http_auth_keys").await < 0.5);
        assert!(secured.app.metric("http_auth_keys_stale").await < 0.5);
        // a damaged file after that brings no key back
        replace(&secured.file.path, "{");
        wait_for("the file is seen", || async {
            (secured.app.metric("http_auth_keys_stale").await > 0.5).then_some(())
        })
        .await;
        assert_eq!(secured.list(&token).await.status, 401);
        publish(&secured.file.path, &[&key]);
        wait_for("the key is back", || async { (secured.list(&token).await.status == 200).then_some(()) })
            .await;
    }
}

/// A gateway that could verify nothing does not start, and what is wrong is named.
#[tokio::test]
async fn a_gateway_without_keys_does_not_start() {
    let key = Signer::es256("a");
    let file = KeyFile::new(&[&key]);
    let path = file.path.to_str().unwrap().to_owned();
    let data = tempfile::tempdir().unwrap();
    let start = |content: Option<&str>| {
        match content {
            Some(content) => std::fs::write(&file.path, content).unwrap(),
            None => std::fs::remove_file(&file.path).unwrap(),
        }
        let mut command = std::process::Command::new(crate::kit::process::PROGRAM);
        command.args(["up", "--free-ports", "--data-dir", data.path().to_str().unwrap()]);
        let env = [
            ("MSA__HTTP__AUTH__JWKS_FILE", path.as_str()),
            ("MSA__HTTP__AUTH__ISSUER", "i"),
            ("MSA__HTTP__AUTH__AUDIENCE", "a"),
        ];
        let mut process = Process::spawn_with(command, &env);
        let status = process.wait(Duration::from_secs(20));
        (status.code(), format!("{:?}", process.seen))
    };
    for (content, why) in
        [(Some("{"), "is not JSON"), (Some("{\"keys\":[]}"), "has no key"), (None, "No such file")]
    {
        let (code, log) = start(content);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("`http.auth.jwks_file`: ") && log.contains(why), "{log}");
    }
}
