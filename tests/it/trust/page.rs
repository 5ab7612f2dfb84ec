//! What docs/tls.md says how to do.

use std::process::Command;

use crate::docs::blocks;
use crate::kit::http::get;
use crate::kit::mesh::Mesh;
use crate::kit::wait_for;

/// The five lines make certificates that all parts take.
#[tokio::test]
async fn the_test_authority_of_the_page_makes_what_every_role_takes() {
    let mesh = Mesh::start().await;
    let lines = blocks::block("docs/tls.md", "openssl req").lines;
    assert_eq!(lines.len(), 5, "{lines:?}");
    let made =
        Command::new("sh").args(["-euc", &lines.join("\n")]).current_dir(mesh.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let gateway = mesh.role("apigateway", "strict", &[]);
    let (_feed, _profile) = (mesh.role("feed", "strict", &[]), mesh.role("profile", "strict", &[]));
    let _topic = mesh.role("topic", "strict", &[("MSA__TLS__TRUST_DOMAIN", "test.example")]);
    wait_for("every service is called", || async {
        (get(gateway.admin, "/readyz").await.body == "ready\n").then_some(())
    })
    .await;
    assert_eq!(get(gateway.addr, "/api/topic/list").await.status, 200);
}
