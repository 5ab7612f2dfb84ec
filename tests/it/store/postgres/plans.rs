//! How the server executes the statements: by the index of the table, in its order, and no more rows than are asked for.

use super::super::contract::{at, metrics, record, soon};
use super::{MS, feed};
use crate::kit::postgres::Postgres;
use crate::kit::wait_for;
use microservice_app::store::{self, Topic};

/// The server logs the plan of each statement with what it has read, and would rather read whole tables.
const EXPLAIN: [&str; 5] = [
    "random_page_cost = 10000",
    "session_preload_libraries = 'auto_explain'",
    "auto_explain.log_min_duration = 0",
    "auto_explain.log_analyze = on",
    "auto_explain.log_timing = off",
];

/// Runs something and returns the plans that were logged meanwhile of statements on `table`.
async fn plans(server: &Postgres, table: &str, run: impl Future) -> Vec<String> {
    let before = server.log().len();
    run.await;
    wait_for("the plans are logged", || async {
        let log = server.log()[before..].to_owned();
        let plans: Vec<_> = log.split("Query Text:").skip(1).filter(|plan| plan.contains(table)).collect();
        (!plans.is_empty()).then(|| plans.into_iter().map(str::to_owned).collect())
    })
    .await
}

/// Returns the most rows that a node of a plan has returned.
fn most_rows(plan: &str) -> u64 {
    let actual = plan.split("(actual rows=").skip(1);
    actual.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap()).max().unwrap()
}

#[tokio::test]
async fn every_read_is_by_the_index_whatever_is_there() {
    let server = Postgres::start_with(&EXPLAIN).await;
    let (feeds, topics) =
        (feed(&server.url()).await, store::topic(&at(&server.url()), &metrics()).await.unwrap());
    // before there are statistics, and after: few users with many feeds, for which a plan without order looks cheap
    for round in 0..2 {
        let pages = plans(&server, "feed.feeds", async { feeds.newest(7, 20, 0).await.unwrap() }).await;
        assert!(pages[0].contains("Index Scan Backward using feeds_pkey"), "{pages:#?}");
        for plan in &pages {
            assert!(
                !plan.contains("Seq Scan") && !plan.contains("Sort") && !plan.contains("Bitmap"),
                "{plan}"
            );
            // the sum looks one row ahead
            assert!(most_rows(plan) <= 21, "{plan}");
        }
        let list = plans(&server, "topic.topics", async { topics.list(0, 20).await.unwrap() }).await;
        assert!(list[0].contains("Index Scan using topics_pkey") && most_rows(&list[0]) <= 21, "{list:#?}");
        if round == 0 {
            let admin = server.admin().await;
            admin
                .batch_execute(
                    "INSERT INTO feed.feeds SELECT n % 3 + 6, n, repeat('x', 100) FROM generate_series(1, 30000) n;
                     INSERT INTO topic.topics SELECT n, 's', 'c' FROM generate_series(1, 3000) n;
                     ANALYZE",
                )
                .await
                .unwrap();
        }
    }
    assert_eq!(feeds.newest(7, 20, 0).await.unwrap().unwrap().feeds.len(), 20);
}

#[tokio::test]
async fn a_page_reads_no_text_beyond_its_limit() {
    let server = Postgres::start_with(&EXPLAIN).await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    // 32 MiB of text that cannot be compressed, which the table keeps apart from its rows
    admin
        .batch_execute(
            "INSERT INTO feed.feeds SELECT 7, n, (SELECT string_agg(md5(n::text || m::text), '') FROM generate_series(1, 1024) m)
             FROM generate_series(1, 1000) n; CHECKPOINT",
        )
        .await
        .unwrap();
    let read = async || {
        let row = admin.query_one("SELECT pg_stat_clear_snapshot(), heap_blks_read + heap_blks_hit + toast_blks_read + toast_blks_hit
                                   FROM pg_statio_all_tables WHERE schemaname = 'feed' AND relname = 'feeds'", &[]).await.unwrap();
        row.get::<_, i64>(1)
    };
    let before = read().await;
    let page = store.newest(7, 1000, 0).await.unwrap().unwrap();
    assert!(page.shortened && page.feeds.len() == 64, "{}", page.feeds.len());
    // the statistics of a session are a second late
    tokio::time::sleep(1500 * MS).await;
    store.newest(7, 1, 0).await.unwrap();
    tokio::time::sleep(500 * MS).await;
    let blocks = read().await - before;
    assert!((256..2600).contains(&blocks), "{blocks} blocks of 8 KiB for 2 MiB of text");
}

#[tokio::test]
async fn a_write_finds_its_rows_by_the_index() {
    let server = Postgres::start_with(&EXPLAIN).await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    let fill = "INSERT INTO feed.feeds SELECT 7, n, 'x' FROM generate_series(1, 20000) n; ANALYZE";
    admin.batch_execute(fill).await.unwrap();
    let deleted = plans(&server, "feed.feeds", async {
        assert!(store.delete(7, 5, soon()).await.unwrap());
    })
    .await;
    assert!(
        deleted[0].contains("Index Scan using feeds_pkey") && most_rows(&deleted[0]) <= 1,
        "{deleted:#?}"
    );
    let created =
        plans(&server, "feed.feeds", async { store.create(record(7, 5, "y"), soon()).await.unwrap() }).await;
    assert!(created[0].contains("Conflict Arbiter Indexes: feeds_pkey"), "{created:#?}");
    let topic = Topic { topic_id: 1, subject: String::new(), content: String::new() };
    store::topic(&at(&server.url()), &metrics()).await.unwrap().put(topic, soon()).await.unwrap();
}

/// On Citus most statements cannot be planned without the values of their parameters.
#[tokio::test]
async fn a_statement_is_planned_once_and_on_citus_for_each_call() {
    let counted =
        ["shared_preload_libraries = 'pg_stat_statements'", "pg_stat_statements.track_planning = on"];
    let server = Postgres::start_with(&counted).await;
    let admin = server.admin().await;
    admin.batch_execute("CREATE EXTENSION pg_stat_statements").await.unwrap();
    // only its name is there
    let citus = "SET allow_system_table_mods = on;
                 INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
                 VALUES (99999, 'citus', 10, 11, false, '0')";
    for (script, plans) in [("", 1), (citus, 3)] {
        admin.batch_execute(script).await.unwrap();
        let store = feed(&server.url()).await;
        admin.query_one("SELECT pg_stat_statements_reset()", &[]).await.unwrap();
        for id in 1..=3 {
            store.create(record(7, id, "x"), soon()).await.unwrap();
        }
        let question =
            "SELECT plans, calls FROM pg_stat_statements WHERE query LIKE 'INSERT INTO feed.feeds%'";
        let counted = admin.query_one(question, &[]).await.unwrap();
        assert_eq!((counted.get::<_, i64>(0), counted.get::<_, i64>(1)), (plans, 3), "{script}");
    }
}
