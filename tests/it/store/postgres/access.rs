//! How the database is reached: passwords, TLS, certificates.

use std::path::Path;
use std::time::Duration;

use microservice_app::config::Store;

use super::super::contract::{at, record, soon};
use super::{open, wait_until_well};
use crate::kit::authority::{Authority, replace};
use crate::kit::postgres::Postgres;

const LIFE: Duration = Duration::from_hours(1);

/// Lets the role `app` in only as `rule` has it.
fn admit(server: &Postgres, rule: &str) {
    let rules = format!("host all postgres 127.0.0.1/32 trust\n{rule}\n");
    server.write("pg_hba.conf", &rules);
    server.reload();
}

#[tokio::test]
async fn a_password_is_read_from_its_file_at_each_connection() {
    let server = Postgres::start().await;
    let admin = server.admin().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    admin.batch_execute("ALTER ROLE app PASSWORD 'one'").await.unwrap();
    admit(&server, "host msa app 127.0.0.1/32 scram-sha-256");
    let settings = Store { password_file: Some(file.clone()), ..at(&server.url()) };
    let refused = open(&settings).await.err().expect("no file").to_string();
    assert!(refused.contains("`store.password_file`: ") && refused.contains("No such file"), "{refused}");

    std::fs::write(&file, "one\n").unwrap();
    let store = open(&settings).await.unwrap();
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    admin.batch_execute("ALTER ROLE app PASSWORD 'two'").await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
    admin.execute(end, &[]).await.unwrap();
    crate::kit::wait_for("the old password is refused", || async {
        store.warnings().iter().any(|line| line.contains("28P01")).then_some(())
    })
    .await;
    replace(&file, "two\n");
    wait_until_well(store.as_ref()).await;
    store.create(record(7, 2, "x"), soon()).await.unwrap();
    assert!(!store.warnings().join(" ").contains("two"));
}

/// Makes a server with TLS, whose certificate has these names.
async fn with_tls(authority: &Authority, dir: &Path, names: &[&str]) -> Postgres {
    let mut server = Postgres::start().await;
    authority.issue(dir, "server", names, LIFE);
    for (file, from) in [("server.crt", "server.pem"), ("server.key", "server.key")] {
        server.write(file, &std::fs::read_to_string(dir.join(from)).unwrap());
    }
    server.write("ca.crt", &authority.pem());
    server.append("postgresql.conf", "ssl = on\nssl_ca_file = 'ca.crt'\n");
    server.restart().await;
    server
}

#[tokio::test]
async fn tls_verifies_the_server_and_shows_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let server = with_tls(&authority, dir.path(), &["127.0.0.1"]).await;
    admit(&server, "hostssl msa app 127.0.0.1/32 cert");
    let path = |name: &str| Some(dir.path().join(name));
    authority.issue(dir.path(), "app", &[], LIFE);
    std::fs::write(path("ca.pem").unwrap(), authority.pem()).unwrap();
    let right = Store {
        ca_file: path("ca.pem"),
        cert_file: path("app.pem"),
        key_file: path("app.key"),
        ..at(&format!("{}&sslmode=verify-full", server.url()))
    };
    let store = open(&right).await.unwrap();
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    let admin = server.admin().await;
    let sessions =
        "SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE usename = 'app'";
    assert!(admin.query_one(sessions, &[]).await.unwrap().get::<_, bool>(0));

    // without a certificate, and without TLS
    let wrong = Store { cert_file: None, key_file: None, ..right.clone() };
    let told = open(&wrong).await.unwrap().warnings().join("\n");
    assert!(told.contains("certificate"), "{told}");
    let told = open(&at(&server.url())).await.unwrap().warnings().join("\n");
    assert!(told.contains("no encryption"), "{told}");
    // an authority that did not sign
    std::fs::write(path("ca.pem").unwrap(), Authority::new("other").pem()).unwrap();
    let told = open(&right).await.unwrap().warnings().join("\n");
    assert!(told.contains("UnknownIssuer") || told.contains("BadSignature"), "{told}");
}

#[tokio::test]
async fn a_certificate_of_another_host_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let server = with_tls(&authority, dir.path(), &["elsewhere.example"]).await;
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let settings = Store { ca_file: Some(dir.path().join("ca.pem")), ..at(&server.url()) };
    let told = open(&settings).await.unwrap().warnings().join("\n");
    assert!(told.contains("not valid for"), "{told}");
}
