//! The last good view on disk, so that a gateway that restarts while etcd is away still serves.
//!
//! *Shape*: a line `microservice-app view 1 <checksum>`, then JSON `{"saved_at","cluster_id","revision",
//! "epoch","services":{name:[value of each entry]}}`. Written to a temporary file beside it
//! and renamed, so a reader finds the old file or the new one, never a part.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::registry::instance::Instance;
use crate::registry::value;
use crate::registry::view::{View, ViewHandle};

const HEAD: &str = "microservice-app view 1";
/// Older snapshots are not used: too many instances may have moved.
const MAX_AGE: Duration = Duration::from_hours(24);
/// Time after which an unchanged view is written again.
const REWRITE_EVERY: Duration = Duration::from_mins(5);
/// A temporary file that has not been written to for so long is nobody's.
const SCRATCH_AGE: Duration = Duration::from_mins(1);
/// Least time between two writes.
const WRITE_EVERY: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Saved {
    /// When the registry last confirmed it, seconds since 1970.
    #[serde(rename = "saved_at")]
    time: u64,
    cluster_id: u64,
    revision: i64,
    epoch: u64,
    services: BTreeMap<String, Vec<(String, String)>>,
}

/// Writes a view that the registry confirmed `age` ago; instances in limbo are part of it.
///
/// # Errors
/// When the directory cannot be written.
pub fn save(path: &Path, view: &View, age: Duration) -> std::io::Result<()> {
    let services = view.services.iter().map(|(name, instances)| {
        let entries =
            instances.values().map(|i: &std::sync::Arc<Instance>| (i.addr.clone(), value::encode(i)));
        (name.clone(), entries.collect())
    });
    let saved = Saved {
        time: now().saturating_sub(age.as_secs()),
        cluster_id: view.cluster_id,
        revision: view.revision,
        epoch: view.epoch,
        services: services.collect(),
    };
    let body = serde_json::to_vec(&saved)?;
    let scratch = scratch_of(path);
    let mut file = std::fs::File::create(&scratch)?;
    writeln!(file, "{HEAD} {:016x}", checksum(&body))?;
    file.write_all(&body)?;
    file.sync_all()?;
    std::fs::rename(&scratch, path)
}

/// Returns a name beside a file that no other file and no other process uses.
fn scratch_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

/// Removes the temporary files of processes that ended amid a [`save`]. A file that was written a moment ago is left: its
/// process may be of another container.
pub fn remove_scratch(path: &Path) {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    for entry in std::fs::read_dir(directory.unwrap_or(Path::new("."))).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|file| file.modified()).ok().and_then(|time| time.elapsed().ok());
        if writer_of(&entry.path(), path).is_some_and(has_ended) && age.is_some_and(|age| age > SCRATCH_AGE) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Returns the id of the process whose temporary file this is, if it is one of `path`.
fn writer_of(scratch: &Path, path: &Path) -> Option<u32> {
    let name = scratch.file_name()?.to_str()?.strip_prefix(path.file_name()?.to_str()?)?;
    name.strip_prefix('.')?.strip_suffix(".new")?.parse().ok()
}

fn has_ended(process: u32) -> bool {
    !Path::new("/proc").join(process.to_string()).exists()
}

/// Reads a view and its age.
///
/// # Errors
/// Why there is no view that can be used: no file, a damaged one, one that is too old.
pub fn load(path: &Path) -> Result<(View, Duration), String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let split = bytes.iter().position(|b| *b == b'\n').ok_or("it has no first line")?;
    let (head, body) = bytes.split_at(split);
    let body = body.get(1..).unwrap_or_default();
    if head != format!("{HEAD} {:016x}", checksum(body)).as_bytes() {
        return Err("it is damaged or of another version".to_owned());
    }
    let saved: Saved = serde_json::from_slice(body).map_err(|error| {
        // the error itself may repeat all of it
        format!("it holds something else from line {}, column {} on", error.line(), error.column())
    })?;
    // a clock that was set back makes the view look young, not unusable
    let age = Duration::from_secs(now().saturating_sub(saved.time));
    if age > MAX_AGE {
        return Err(format!("it is {} h old", age.as_secs() / 3600));
    }
    let mut view = View {
        cluster_id: saved.cluster_id,
        revision: saved.revision,
        epoch: saved.epoch,
        ..View::default()
    };
    for (service, entries) in saved.services {
        for (addr, entry) in entries {
            // as a reader of the registry sees it: nothing else can be called
            let key = value::key("", &service, &addr);
            let (service, addr) = value::decode_key("", key.as_bytes())?;
            view.insert(value::decode(service, addr, entry.as_bytes())?);
        }
    }
    Ok((view, age))
}

/// Writes every new view to `path`, until nothing is published any more.
pub async fn keep(path: &Path, mut view: ViewHandle) {
    view.mark_changed();
    let mut failing = false;
    let beside = path.to_owned();
    let _ = tokio::task::spawn_blocking(move || remove_scratch(&beside)).await;
    loop {
        // an unchanged view is confirmed again and again, so the file must not grow old meanwhile
        let changed = tokio::time::timeout(REWRITE_EVERY, view.changed()).await;
        if changed.is_ok_and(|changed| changed.is_err()) {
            return;
        }
        let latest = view.take();
        let Some(age) = view.age() else { continue };
        let path = path.to_owned();
        let shown = path.display().to_string();
        let saved = tokio::task::spawn_blocking(move || save(&path, &latest, age)).await;
        match saved {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) if !failing => {
                failing = true;
                tracing::warn!(%error, path = shown, "the view cannot be kept on disk");
            }
            _ => {}
        }
        tokio::time::sleep(WRITE_EVERY).await;
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Returns a checksum that shows a damaged or edited file. It is no protection against forgery.
fn checksum(bytes: &[u8]) -> u64 {
    // FNV-1a: the hash of the standard library may change between versions
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let mut view = View { cluster_id: 7, revision: 42, epoch: 1, ..View::default() };
        view.insert(value::decode("feed", "a:1", b"a:1").unwrap());
        view.insert(value::decode("topic", "b:2", b"b:2").unwrap());
        view
    }

    #[test]
    fn a_view_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view");
        save(&path, &view(), Duration::ZERO).unwrap();
        let (read, age) = load(&path).unwrap();
        assert_eq!(read, view());
        assert!(age < Duration::from_secs(5));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the scratch file is gone");
    }

    #[test]
    fn no_two_views_share_a_scratch_file_and_none_is_its_own() {
        let names = ["view", "view.a", "view.b", "view.new", "view.a.new"];
        let paths = names.map(|name| Path::new("/somewhere").join(name));
        let mut all: std::collections::BTreeSet<_> = paths.iter().map(|path| scratch_of(path)).collect();
        assert!(all.iter().all(|scratch| scratch.parent() == Some(Path::new("/somewhere"))));
        all.extend(paths);
        assert_eq!(all.len(), 2 * names.len(), "{all:?}");
    }

    #[test]
    fn what_a_process_left_that_ended_amid_a_save_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view");
        let mut process = std::process::Command::new("true").spawn().unwrap();
        process.wait().unwrap();
        let (ended, own) = (process.id(), std::process::id());
        let gone = format!("view.{ended}.new");
        let kept = ["view", "view.new", "view.x.new"].map(str::to_owned).into_iter();
        let kept = kept.chain([format!("view.{own}.new"), format!("other.{ended}.new")]);
        let kept: std::collections::BTreeSet<_> = kept.collect();
        let found = || -> std::collections::BTreeSet<_> {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let write = |name: &String, age: Duration| {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        for name in &kept {
            write(name, 2 * SCRATCH_AGE);
        }
        write(&gone, Duration::ZERO);
        remove_scratch(&path);
        assert!(found().contains(&gone), "it may be of another container");
        write(&gone, 2 * SCRATCH_AGE);
        remove_scratch(&path);
        assert_eq!(found(), kept);
    }

    #[test]
    fn an_entry_that_cannot_be_called_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view");
        for (service, addr) in [("feed", ""), ("feed", "a"), ("feed", "a:0"), ("", "a:1"), ("feed", "x/a:1")]
        {
            let mut view = view();
            view.insert(Instance::bare(service, addr));
            save(&path, &view, Duration::ZERO).unwrap();
            load(&path).unwrap_err();
        }
    }

    #[test]
    fn a_damaged_missing_or_old_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view");
        load(&path).unwrap_err();
        save(&path, &view(), Duration::ZERO).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 10, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            load(&path).unwrap_err();
        }
        let body = String::from_utf8(whole).unwrap().replace("\"revision\":42", "\"revision\":43");
        std::fs::write(&path, body).unwrap();
        assert!(load(&path).unwrap_err().contains("damaged"));

        save(&path, &view(), Duration::from_hours(25)).unwrap();
        assert!(load(&path).unwrap_err().contains("25 h old"));
    }
}
