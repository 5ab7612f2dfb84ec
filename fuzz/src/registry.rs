//! What others may have written into the registry, or onto the disk.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use microservice_app::config::HostPort;
use microservice_app::registry::keeper::Keeper;
use microservice_app::registry::{Instance, View, snapshot, value};
use tokio::time::Instant;

const PREFIX: &str = "/services/";

/// Returns the instance of an entry, as a reader of the registry sees it.
fn decode(key: &[u8], value: &[u8]) -> Result<Instance, &'static str> {
    let (service, addr) = value::decode_key(PREFIX, key)?;
    value::decode(service, addr, value)
}

/// Checks that an instance can be called, and that it is what its own entry says.
fn check(instance: &Instance) {
    let parsed: HostPort = instance.addr.parse().expect("an address to call");
    let uri: http::Uri = format!("http://{}/", instance.addr).parse().expect("an address for a URI");
    let port = uri.port_u16();
    assert!(port == Some(parsed.port) && parsed.port > 0, "{}", instance.addr);
    assert!((1..=1000).contains(&instance.weight), "{}", instance.weight);
    assert!(!instance.service.is_empty());
    let key = value::key(PREFIX, &instance.service, &instance.addr);
    assert_eq!(decode(key.as_bytes(), value::encode(instance).as_bytes()).as_ref(), Ok(instance));
    let texts = [&instance.service, &instance.addr, &instance.id, &instance.version];
    let texts = texts.into_iter().chain(&instance.zone).chain(&instance.admin);
    assert!(texts.map(String::len).max() <= Some(value::MAX_TEXT), "{instance:?}");
}

/// A line with the key of an entry, and its value.
pub fn entry(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (key, value) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    if let Ok((service, addr)) = value::decode_key(PREFIX, key) {
        assert_eq!(value::key(PREFIX, service, addr).as_bytes(), key);
        check(&Instance::bare(service, addr));
    }
    match decode(key, value) {
        Ok(instance) => check(&instance),
        Err(reason) => assert!(!reason.is_empty()),
    }
}

/// Lines of news from the registry, `<what> <key> <value>`: `+` puts, `-` deletes, `!` is a failed probe, `=` begins a list
/// that has the lines up to the next one which is not `.`; the key of `=` is ignored.
pub fn list(data: &[u8]) {
    let mut keeper = Keeper::default();
    let (mut revision, mut epoch) = (0, 0);
    let mut lines = data.split(|byte| *byte == b'\n').take(256).peekable();
    while let Some(line) = lines.next() {
        let (what, key, value) = fields(line);
        let named = value::decode_key(PREFIX, key);
        revision += 1;
        match what {
            b'+' => match decode(key, value) {
                Ok(instance) => keeper.put(instance),
                Err(_) => named.into_iter().for_each(|(service, addr)| keeper.delete(service, addr)),
            },
            b'-' => named.into_iter().for_each(|(service, addr)| keeper.delete(service, addr)),
            b'!' => {
                if let Ok((service, addr)) = named {
                    keeper.give_up(service, addr, Instant::now());
                }
            }
            b'=' => {
                let mut listed = Vec::new();
                while let Some(line) = lines.next_if(|line| line.first() == Some(&b'.')) {
                    let (_, key, value) = fields(line);
                    listed.extend(decode(key, value));
                }
                // of this cluster or another one, and maybe of an earlier state
                let cluster = u64::try_from(value.len()).unwrap_or_default();
                keeper.list(cluster, revision - i64::from(value.first() == Some(&b'<')), false, listed);
            }
            _ => {}
        }
        keeper.advance(revision);
        let view = keeper.view();
        assert!(view.epoch >= epoch && view.revision >= revision, "{view:?}");
        epoch = view.epoch;
        check_view(&view);
    }
    round_trip(&keeper.view());
}

fn fields(line: &[u8]) -> (u8, &[u8], &[u8]) {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let mut next = || parts.next().unwrap_or_default();
    (next().first().copied().unwrap_or_default(), next(), next())
}

fn check_view(view: &View) {
    let mut all = BTreeSet::new();
    for (service, instances) in &view.services {
        assert!(!instances.is_empty(), "{service} has no instance");
        for (addr, instance) in instances.iter() {
            assert_eq!((&instance.service, &instance.addr), (service, addr));
            check(instance);
            all.insert((service.clone(), addr.clone()));
        }
    }
    assert!(view.limbo.is_subset(&all), "{:?}", view.limbo);
}

/// A view on disk. If the data begin with a `#`, the line before the rest says that the rest is whole.
pub fn view_on_disk(data: &[u8]) {
    let file = file();
    match data.strip_prefix(b"#") {
        Some(body) => {
            let head = format!("microservice-app view 1 {:016x}\n", fnv1a(body));
            std::fs::write(&file, [head.as_bytes(), body].concat()).expect("a file");
        }
        None => std::fs::write(&file, data).expect("a file"),
    }
    match snapshot::load(&file) {
        Ok((view, age)) => {
            assert!(age <= Duration::from_hours(24), "{age:?}");
            check_view(&view);
            round_trip(&view);
        }
        Err(reason) => assert!(!reason.is_empty() && reason.len() < 1024, "{reason}"),
    }
}

fn round_trip(view: &View) {
    let file = file();
    snapshot::save(&file, view, Duration::ZERO).expect("a file");
    let (read, _) = snapshot::load(&file).expect("what was saved is read");
    assert_eq!((&read.services, read.revision, read.epoch), (&view.services, view.revision, view.epoch));
}

/// Returns a file of this thread.
fn file() -> PathBuf {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
    }
    DIR.with(|dir| dir.path().join("view"))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}
