//! Records that the database does not accept, or that cannot be read: each is the failure of the calls that are about it,
//! and of nothing else.

use std::time::Duration;

use futures_util::future::join_all;
use microservice_app::store::{self, Profile, StoreError, Topic};

use super::super::contract::{at, ids, metrics, record, soon};
use super::{feed, found, sessions};
use crate::kit::etcd::Etcd;
use crate::kit::http::{get, put};
use crate::kit::postgres::Postgres;
use crate::kit::system::Role;

/// More failures than open a breaker in a row.
const MANY: usize = 12;

#[tokio::test]
async fn a_record_that_cannot_be_read_fails_its_own_calls_alone() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    for (user, id) in [(7, 1), (7, 2), (7, 4), (8, 1)] {
        store.create(record(user, id, "x"), soon()).await.unwrap();
    }
    let admin = server.admin().await;
    admin
        .batch_execute(
            "ALTER TABLE feed.feeds ALTER content DROP NOT NULL; INSERT INTO feed.feeds VALUES (7, 3, NULL)",
        )
        .await
        .unwrap();
    let before = sessions(&admin).await;
    let bad = join_all((0..40).map(|_| store.newest(7, 20, 0)));
    let good = join_all((0..40).map(|_| store.newest(8, 20, 0)));
    let (bad, good) = futures_util::join!(bad, good);
    for page in bad {
        let why = page.unwrap_err();
        assert!(matches!(&why, StoreError::Unreadable(text) if text.contains("NULL")), "{why}");
    }
    for page in good {
        assert_eq!(ids(&page.unwrap().unwrap()), [1]);
    }
    assert_eq!(sessions(&admin).await, before, "what is bad is the record, not the connection");
    // pages that end before it, and begin behind it
    let newest = store.newest(7, 1, 0).await.unwrap().unwrap();
    assert_eq!((ids(&newest), newest.shortened), (vec![4], false));
    assert_eq!(ids(&store.newest(7, 20, 3).await.unwrap().unwrap()), [1, 2]);
    // and once it is written again it can be read
    store.create(record(7, 3, "x"), soon()).await.unwrap();
    assert_eq!(found(store.as_ref(), 7).await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn the_same_holds_for_profiles_and_topics() {
    let server = Postgres::start().await;
    let profiles = store::profile(&at(&server.url()), &metrics()).await.unwrap();
    let topics = store::topic(&at(&server.url()), &metrics()).await.unwrap();
    let text = || "x".to_owned();
    profiles.put(Profile { user_id: 8, name: text(), company: text(), title: text() }, soon()).await.unwrap();
    topics.put(Topic { topic_id: 8, subject: text(), content: text() }, soon()).await.unwrap();
    let admin = server.admin().await;
    admin
        .batch_execute(
            "ALTER TABLE profile.profiles ALTER title DROP NOT NULL;
             INSERT INTO profile.profiles VALUES (7, 'x', 'x', NULL);
             ALTER TABLE topic.topics ALTER subject DROP NOT NULL; INSERT INTO topic.topics VALUES (7, NULL, 'x')",
        )
        .await
        .unwrap();
    let before = sessions(&admin).await;
    let unreadable = |error: StoreError| assert!(matches!(error, StoreError::Unreadable(_)), "{error}");
    for _ in 0..5 {
        unreadable(profiles.get(7).await.unwrap_err());
        assert!(profiles.get(8).await.unwrap().is_some());
        unreadable(topics.get(7).await.unwrap_err());
        unreadable(topics.list(0, 20).await.unwrap_err());
        assert!(topics.get(8).await.unwrap().is_some());
    }
    // the key is no key any more
    admin
        .batch_execute(
            "ALTER TABLE profile.profiles DROP CONSTRAINT profiles_pkey;
             INSERT INTO profile.profiles VALUES (8, 'y', 'y', 'y')",
        )
        .await
        .unwrap();
    unreadable(profiles.get(8).await.unwrap_err());
    assert_eq!(sessions(&admin).await, before);
}

#[tokio::test]
async fn neither_is_tried_again_nor_held_against_the_instance() {
    let (etcd, server) = (Etcd::start().await, Postgres::start().await);
    let env = [("MSA__STORE__URL", server.url())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut feed = Role::start(&etcd.addr.to_string(), "feed", "127.0.0.1:0", &env);
    let gateway = Role::gateway(&etcd.addr.to_string());
    gateway.wait_for_certain("feed", 1).await;
    let write = async |user: i64, content: &str| {
        let body = format!(r#"{{"id":1,"user_id":{user},"content":"{content}"}}"#);
        put(gateway.addr, "/api/feed/create_feed", &body).await
    };
    assert_eq!(write(8, "good").await.status, 200);
    let admin = server.admin().await;
    admin
        .batch_execute(
            "ALTER TABLE feed.feeds ADD CONSTRAINT bad CHECK (content <> 'bad');
             ALTER TABLE feed.feeds ALTER content DROP NOT NULL; INSERT INTO feed.feeds VALUES (9, 1, NULL)",
        )
        .await
        .unwrap();
    for _ in 0..MANY {
        let refused = write(7, "bad").await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert_eq!(refused.json()["detail"], "the store does not accept this record");
        let unread = get(gateway.addr, "/api/feed/get_feeds?user_id=9").await;
        assert_eq!(unread.status, 503, "{}", unread.body);
    }
    let tries = server.log().matches("violates check constraint").count();
    assert_eq!(tries, MANY, "each is tried once");
    assert_eq!(gateway.metric("client_retry_granted_total").await as i64, 0);
    assert_eq!(gateway.metric("client_breaker_transitions_total").await as i64, 0);
    // others go on
    assert_eq!(write(8, "better").await.status, 200);
    let read = get(gateway.addr, "/api/feed/get_feeds?user_id=8").await;
    assert_eq!(read.json()["feeds"][0]["content"], "better");
    // a caller cannot fill the log
    feed.process.poll_logs();
    let lines = feed.process.count_logs(|line| line["message"] == "a record cannot be stored or read");
    assert_eq!(lines, 1, "{:#?}", feed.process.seen);
    feed.process.stop(Duration::from_secs(10));
}
