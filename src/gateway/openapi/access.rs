//! What the description says of tokens, for a gateway whose callers need them.

use http::StatusCode;
use serde_json::{Value, json};

use super::super::auth::refusal::MAX_TOKEN;
use super::responses::{WITHOUT_RIGHT, reference};
use crate::config::Access;

/// The name of the security scheme.
const SCHEME: &str = "bearer";

/// Returns the security schemes.
pub fn schemes() -> Value {
    let about = format!(
        "A JWT (ES256, EdDSA or RS256) of at most {MAX_TOKEN} bytes with `exp`, `iss`, `aud` and `sub`, from the issuer \
         that the gateway trusts."
    );
    json!({SCHEME: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": about}})
}

/// Adds to an operation who may use it, and the answers to others.
pub fn add(operation: &mut Value, access: &Access) {
    let (who, scopes) = match access {
        Access::Public => return,
        Access::Token => ("Needs a valid token.".to_owned(), json!([])),
        Access::Owner => ("Needs a token whose `sub` is the `user_id`.".to_owned(), json!([])),
        Access::Scope(scope) => (format!("Needs a token with the scope `{scope}`."), json!([scope])),
    };
    let description = operation["description"].as_str().unwrap_or_default();
    operation["description"] = format!("{description} {who}").into();
    operation["security"] = json!([{SCHEME: scopes}]);
    for status in WITHOUT_RIGHT {
        // every token that is valid is enough
        if *access != Access::Token || status != StatusCode::FORBIDDEN {
            operation["responses"][status.as_str()] = reference(status);
        }
    }
}
