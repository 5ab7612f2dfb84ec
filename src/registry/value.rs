//! The form of an entry in etcd: the JSON of etcd's gRPC naming, so that Go's resolver reads it, and our attributes
//! beside it.
//!
//! Key `<prefix><service>/<host:port>`, where the prefix ends the name of a directory (`/services/`) or begins a name
//! (`services-`); value
//! `{"Op":0,"Addr":"host:port","Metadata":null,"instance":{"id","version","zone","weight","state","admin","started_at"}}`.
//! `Metadata` stays null: a JSON object there makes Go's resolver panic (etcd-io/etcd#19700). A bare
//! `host:port`, as the original wrote it, is read as well.

use serde::{Deserialize, Serialize};

use super::instance::Instance;
use crate::config::HostPort;

/// Longest text of an instance, bytes: its service, its addresses, and each of its attributes. Others may have written it,
/// and it goes into logs, pages and labels of metrics.
pub const MAX_TEXT: usize = 255;

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "Op", default)]
    op: u32,
    #[serde(rename = "Addr")]
    addr: String,
    #[serde(rename = "Metadata", default)]
    metadata: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<Attributes>,
}

/// A later version may leave some out or add others.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Attributes {
    id: String,
    version: String,
    zone: Option<String>,
    weight: u32,
    state: State,
    admin: Option<String>,
    started_at: u64,
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            id: String::new(),
            version: String::new(),
            zone: None,
            weight: 100,
            state: State::Up,
            admin: None,
            started_at: 0,
        }
    }
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum State {
    Draining,
    /// Also any state that a later version may add: the instance is registered, so it expects calls.
    #[serde(other)]
    Up,
}

/// Returns the key of an instance.
pub fn key(prefix: &str, service: &str, addr: &str) -> String {
    format!("{prefix}{service}/{addr}")
}

/// Returns the value of an instance.
pub fn encode(instance: &Instance) -> String {
    let entry = Entry {
        op: 0,
        addr: instance.addr.clone(),
        metadata: None,
        instance: Some(Attributes {
            id: instance.id.clone(),
            version: instance.version.clone(),
            zone: instance.zone.clone(),
            weight: instance.weight,
            state: if instance.draining { State::Draining } else { State::Up },
            admin: instance.admin.clone(),
            started_at: instance.started_at,
        }),
    };
    // strings and numbers always serialize
    serde_json::to_string(&entry).unwrap_or_default()
}

/// Returns the service and address of a key.
///
/// # Errors
/// Why the key is not the key of an instance.
pub fn decode_key<'a>(prefix: &str, key: &'a [u8]) -> Result<(&'a str, &'a str), &'static str> {
    let key = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8")?;
    let rest = key.strip_prefix(prefix).ok_or("the key has another prefix")?;
    let (service, addr) = rest.split_once('/').ok_or("the key is not <service>/<host:port>")?;
    if service.is_empty() {
        return Err("the key names no service");
    }
    if service.len() > MAX_TEXT || addr.len() > MAX_TEXT {
        return Err("the key is too long");
    }
    match addr.parse::<HostPort>() {
        Ok(parsed) if parsed.port != 0 => Ok((service, addr)),
        _ => Err("the key does not end in host:port"),
    }
}

/// Returns the instance of an entry.
///
/// # Errors
/// Why the value is not the value of an instance.
pub fn decode(service: &str, addr: &str, value: &[u8]) -> Result<Instance, &'static str> {
    if value == addr.as_bytes() {
        return Ok(Instance::bare(service, addr));
    }
    let entry: Entry =
        serde_json::from_slice(value).map_err(|_| "the value is neither naming JSON nor host:port")?;
    if entry.addr != addr {
        return Err("the value's address is not the key's");
    }
    let a = entry.instance.unwrap_or_default();
    Ok(Instance {
        id: shortened(a.id),
        version: shortened(a.version),
        zone: a.zone.map(shortened),
        weight: a.weight.clamp(1, 1000),
        draining: a.state == State::Draining,
        // a part of an address is another address
        admin: a.admin.filter(|admin| admin.len() <= MAX_TEXT),
        started_at: a.started_at,
        ..Instance::bare(service, addr)
    })
}

/// Returns the first [`MAX_TEXT`] bytes of a text, or a little less.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Instance {
        Instance {
            service: "feed".to_owned(),
            addr: "10.0.0.1:8082".to_owned(),
            id: "00000000000000ab".to_owned(),
            version: "0.1.0".to_owned(),
            zone: None,
            weight: 100,
            draining: true,
            admin: Some("10.0.0.1:6062".to_owned()),
            started_at: 1_700_000_000,
        }
    }

    #[test]
    fn the_value_is_what_gos_resolver_reads() {
        assert_eq!(
            encode(&instance()),
            r#"{"Op":0,"Addr":"10.0.0.1:8082","Metadata":null,"instance":{"id":"00000000000000ab","version":"0.1.0","zone":null,"weight":100,"state":"draining","admin":"10.0.0.1:6062","started_at":1700000000}}"#
        );
        assert_eq!(key("/services/", "feed", "10.0.0.1:8082"), "/services/feed/10.0.0.1:8082");
        assert_eq!(key("services-", "feed", "10.0.0.1:8082"), "services-feed/10.0.0.1:8082");
    }

    #[test]
    fn an_entry_survives_the_round_trip() {
        let value = encode(&instance());
        assert_eq!(decode("feed", "10.0.0.1:8082", value.as_bytes()), Ok(instance()));
    }

    #[test]
    fn entries_of_others_are_read_if_they_can_be() {
        let go = br#"{"Op":0,"Addr":"a:1","Metadata":{"x":1}}"#;
        assert_eq!(decode("feed", "a:1", go).unwrap().weight, 100);
        let bare = decode("feed", "[::1]:1", b"[::1]:1").unwrap();
        assert_eq!((bare.addr.as_str(), bare.id.as_str()), ("[::1]:1", ""));
        let newer = br#"{"Addr":"a:1","instance":{"id":"x","state":"warming","colour":"red"}}"#;
        let newer = decode("feed", "a:1", newer).unwrap();
        assert_eq!((newer.id.as_str(), newer.draining), ("x", false));
        for junk in [&b""[..], b"b:1", b"{}", b"\xff", br#"{"Addr":"b:1"}"#, br#"{"Addr":7}"#] {
            assert!(decode("feed", "a:1", junk).is_err(), "{junk:?}");
        }
    }

    #[test]
    fn a_long_attribute_is_cut_and_a_long_address_is_none() {
        let long = format!("{}x", "\u{e9}".repeat(MAX_TEXT));
        let instance = format!(r#"{{"id":"{long}","version":"{long}","zone":"{long}","admin":"{long}:1"}}"#);
        let value = format!(r#"{{"Addr":"a:1","instance":{instance}}}"#);
        let read = decode("feed", "a:1", value.as_bytes()).unwrap();
        let cut = "\u{e9}".repeat(MAX_TEXT / 2);
        assert_eq!((&read.id, &read.version, read.zone.as_ref()), (&cut, &cut, Some(&cut)));
        assert_eq!(read.admin, None);
    }

    #[test]
    fn keys_of_others_are_refused() {
        assert_eq!(decode_key("/s/", b"/s/feed/a:1"), Ok(("feed", "a:1")));
        assert_eq!(decode_key("s-", b"s-feed/a:1"), Ok(("feed", "a:1")));
        for junk in [
            &b"/s/feed"[..],
            b"/s//a:1",
            b"/t/feed/a:1",
            b"/s/feed/a",
            b"/s/feed/a:0",
            b"/s/feed/a:b",
            b"/s/\xff/a:1",
            b"/s/feed/x/a:1",
            b"/s/feed/a:+1",
            b"/s/feed/a: 1",
            format!("/s/feed/{}:1", "a".repeat(MAX_TEXT - 1)).as_bytes(),
            format!("/s/{}/a:1", "f".repeat(MAX_TEXT + 1)).as_bytes(),
        ] {
            assert!(decode_key("/s/", junk).is_err(), "{junk:?}");
        }
    }
}
