//! What docs/tls.md says how to do.

use std::collections::BTreeSet;
use std::process::Command;

use crate::docs::blocks;
use crate::kit::http::get;
use crate::kit::mesh::{Mesh, ROLES};
use crate::kit::wait_for;

/// The lines make certificates that all parts take, and leave the key of the authority beside what they are given.
#[tokio::test]
async fn the_test_authority_of_the_page_makes_what_every_role_takes() {
    let mesh = Mesh::start().await;
    let lines = blocks::block("docs/tls.md", "openssl req").lines;
    assert_eq!(lines.len(), 6, "{lines:?}");
    let made =
        Command::new("sh").args(["-euc", &lines.join("\n")]).current_dir(mesh.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = |role: &str, name: &str| mesh.path().join("certificates").join(role).join(name);
    for role in ROLES {
        let entries = std::fs::read_dir(file(role, "")).unwrap();
        let there: BTreeSet<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let wanted = ["ca.pem".to_owned(), format!("{role}.pem"), format!("{role}.key")];
        assert_eq!(there, wanted.into(), "{role}");
    }
    let start = |role: &'static str, more: &[(&str, &str)]| {
        let names = ["ca.pem".to_owned(), format!("{role}.pem"), format!("{role}.key")];
        let [authority, certificate, key] = names.map(|name| file(role, &name).display().to_string());
        let files = [
            ("MSA__TLS__CA_FILE", authority.as_str()),
            ("MSA__TLS__CERT_FILE", &certificate),
            ("MSA__TLS__KEY_FILE", &key),
        ];
        mesh.role(role, "strict", &[&files[..], more].concat())
    };
    let gateway = start("apigateway", &[]);
    let (_feed, _profile) = (start("feed", &[]), start("profile", &[]));
    let _topic = start("topic", &[("MSA__TLS__TRUST_DOMAIN", "test.example")]);
    wait_for("every service is called", || async {
        (get(gateway.admin, "/readyz").await.body == "ready\n").then_some(())
    })
    .await;
    assert_eq!(get(gateway.addr, "/api/topic/list").await.status, 200);
}
