//! A service with each of the stores, as the page starts it.

use super::*;
use crate::kit::postgres::Postgres;

const PAGE: &str = "docs/storage.md";

#[tokio::test]
async fn a_service_starts_with_each_store_as_the_page_says() {
    let (mut session, postgres) = (Session::new(Walk::Choice), Postgres::start_bare(&[]).await);
    let [host, port] = [postgres.addr.ip().to_string(), postgres.addr.port().to_string()];
    for (name, value) in [("PGHOST", host.as_str()), ("PGPORT", port.as_str()), ("PGUSER", "postgres")] {
        session.set(name, value);
    }
    session.run(PAGE, "createuser app");
    session.swap("db.example", &postgres.addr.to_string());
    let starts = session.lines(PAGE, "microservice-app feed --store memory:");
    assert_eq!(starts.len(), 3);
    for (command, warnings) in starts.iter().zip(["warn: feed: store memory", "", ""]) {
        let mut feed =
            start(&session, &format!("{command} --addr 127.0.0.1:0 --debug-addr 127.0.0.1:0"), &[]);
        let (_, admin) = feed.wait_for_role("feed");
        wait_for("its store is there", || async {
            let page = get(admin, "/readyz").await;
            let lines: Vec<_> = page.body.lines().filter(|line| line.contains(": store ")).collect();
            (page.status == 200 && lines.join("").starts_with(warnings) && lines.len() <= 1).then_some(())
        })
        .await;
        if command.contains("postgres:") {
            session.swap("localhost:6062", &admin.to_string());
            let status = session.run(PAGE, "curl localhost:6062/status");
            let status: Value = serde_json::from_str(&status).unwrap();
            let database = &status["roles"][0]["database"];
            assert_eq!(database["hosts"][0], postgres.addr.to_string(), "{database}");
            assert_eq!(database["connections"][1]["host"], postgres.addr.to_string(), "{database}");
        }
        feed.stop(SOON);
    }
    let tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'feed'";
    let tables: i64 = postgres.admin().await.query_one(tables, &[]).await.unwrap().get(0);
    assert!(tables > 0);
    session.finish();
}
