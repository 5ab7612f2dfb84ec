//! Records that cannot be read: each is the failure of the calls that ask for it, and of nothing else.

use futures_util::future::join_all;
use microservice_app::store::{self, Profile, StoreError, Topic};

use super::super::contract::{at, ids, metrics, record, soon};
use super::{feed, found, sessions};
use crate::kit::postgres::Postgres;

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
