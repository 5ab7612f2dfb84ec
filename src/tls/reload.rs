//! Certificates that are replaced while the process runs.
//!
//! One task looks at the files every second. What it reads replaces what is in use only if all of it fits together: a
//! certificate without its key, as it may be found between two writes, a damaged file or an expired certificate leaves
//! the last good set in use, and is read again with the next look. Authorities are another matter: those that have left
//! their file or have expired are trusted no more, whatever the other files hold.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::files::{Authorities, Files, Material};
use super::metrics::FileMetrics;
use crate::credentials::Unusable;
use crate::credentials::follow::{self, Follower};

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// Makes what is used out of what the files hold.
type Build<T> = dyn Fn(&Material) -> Result<T, Unusable> + Send + Sync;

/// Something that is made from the files, and made again when they change.
pub struct Reloading<T> {
    shared: Arc<Shared<T>>,
    _task: AbortOnDropHandle<()>,
}

struct Shared<T> {
    current: ArcSwap<T>,
    changed: watch::Sender<()>,
}

impl<T: Send + Sync + 'static> Reloading<T> {
    /// Reads the files, makes the first value, and begins to watch the files. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The first file that cannot be used, or why nothing can be made of them.
    pub fn start(
        files: Files,
        metrics: FileMetrics,
        build: impl Fn(&Material) -> Result<T, Unusable> + Send + Sync + 'static,
    ) -> Result<Self, Unusable> {
        let (follower, material) = Follower::start(files.sources(), || files.read(SystemTime::now()))?;
        let shared =
            Shared { current: ArcSwap::from_pointee(build(&material)?), changed: watch::Sender::default() };
        let shared = Arc::new(shared);
        metrics.set_in_use(material.leaf.period, material.authorities.first_to_expire());
        metrics.set_unusable(false);
        let look = Look { files, build: Box::new(build), metrics, material, seen: None, follower };
        let task = tokio::spawn(follow(shared.clone(), look));
        Ok(Self { shared, _task: AbortOnDropHandle::new(task) })
    }

    /// Returns what is in use.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        self.shared.current.load_full()
    }

    /// Returns a channel that changes with what is in use.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }
}

async fn follow<T: Send + Sync + 'static>(shared: Arc<Shared<T>>, mut look: Look<T>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // a file may be on a network
        let looked = tokio::task::spawn_blocking(move || {
            let new = look.look(SystemTime::now());
            (look, new)
        });
        let Ok((back, new)) = looked.await else { return };
        look = back;
        if let Some(new) = new {
            shared.current.store(Arc::new(new));
            shared.changed.send_replace(());
        }
    }
}

/// What is known of the files.
struct Look<T> {
    files: Files,
    build: Box<Build<T>>,
    metrics: FileMetrics,
    /// What is in use was made of this.
    material: Material,
    /// The authorities as the last look has found them that could not use the files.
    seen: Option<Authorities>,
    follower: Follower,
}

impl<T> Look<T> {
    /// Returns what is to be used from now on, if the files have changed and can be used.
    fn look(&mut self, now: SystemTime) -> Option<T> {
        let changed = self.material.authorities.changes_at().is_some_and(|at| now > at);
        let looked = self.follower.look(changed, || {
            let material = self.files.read(now)?;
            let same = material.is_same(&self.material);
            let built = if same { None } else { Some((self.build)(&material)?) };
            Ok((material, built))
        });
        match looked {
            follow::Look::Unchanged => None,
            follow::Look::Read((material, built)) => {
                self.seen = None;
                self.metrics.set_unusable(false);
                if built.is_some() {
                    tracing::info!(names = %material.leaf, "certificates have changed, using the new ones");
                    self.metrics.note_used();
                    self.metrics.set_in_use(material.leaf.period, material.authorities.first_to_expire());
                }
                self.material = material;
                built
            }
            follow::Look::Failed { error, news } => {
                if news {
                    tracing::warn!(
                        %error,
                        "certificates have changed and cannot be used, going on with those from before"
                    );
                    self.metrics.note_failed();
                    self.metrics.set_unusable(true);
                }
                self.look_at_authorities(now)
            }
        }
    }

    /// Returns what is to be used from now on if the authorities have changed, with the certificate from before. What one look
    /// alone has found may have come between two writes.
    fn look_at_authorities(&mut self, now: SystemTime) -> Option<T> {
        // a file that cannot be read says nothing of who has left it, but time goes on
        let found = self.files.read_authorities(now);
        let found = found.unwrap_or_else(|_| self.material.authorities.at(now));
        let before = self.seen.replace(found.clone());
        if found == self.material.authorities || before.as_ref() != Some(&found) {
            return None;
        }
        let material = Material { authorities: found, ..self.material.clone() };
        let built = (self.build)(&material).ok()?;
        let trusted = material.authorities.valid.len();
        if trusted == 0 {
            tracing::error!("no authority is valid any more: nobody is trusted");
        } else {
            tracing::warn!(
                trusted,
                "the authorities have changed, using them with the certificate from before"
            );
        }
        self.metrics.set_in_use(material.leaf.period, material.authorities.first_to_expire());
        self.material = material;
        Some(built)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair, KeyUsagePurpose};

    use super::*;
    use crate::credentials::Source;
    use crate::telemetry::metrics::text;
    use crate::tls::metrics::{Metrics, Purpose};

    /// Writes a certificate that counts for some seconds from now, and its key, into a directory.
    fn make(dir: &Path, life: i64) {
        std::fs::create_dir_all(dir).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["feed".to_owned()]).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = (SystemTime::now() - Duration::from_hours(1)).into();
        let life = Duration::from_secs(life.unsigned_abs()) * u32::from(life > 0);
        params.not_after = (SystemTime::now() + life - Duration::from_mins(1)).into();
        std::fs::write(dir.join("cert"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(dir.join("key"), key.serialize_pem()).unwrap();
    }

    /// Looks at the files until nothing is new to say; returns whether something else is in use then.
    fn look_twice(look: &mut Look<SystemTime>) -> bool {
        let looks = [look.look(SystemTime::now()), look.look(SystemTime::now())];
        looks.into_iter().flatten().count() > 0
    }

    fn looking(dir: &Path) -> (Look<SystemTime>, prometheus::Registry) {
        looking_at(dir, None)
    }

    fn looking_at(dir: &Path, authorities: Option<&str>) -> (Look<SystemTime>, prometheus::Registry) {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap().of_files(Purpose::Http);
        let source = |key, name: &str| Source::new(key, Path::new(name), Some(dir));
        let (certificate, key) = (source("http.tls.cert_file", "cert"), source("http.tls.key_file", "key"));
        let authorities = authorities.map(|name| source("tls.ca_file", name));
        let files = Files { certificate, key, authorities };
        let (follower, material) =
            Follower::start(files.sources(), || files.read(SystemTime::now())).unwrap();
        let build = Box::new(|material: &Material| Ok(material.leaf.period.to));
        (Look { files, build, metrics, material, seen: None, follower }, registry)
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_a_change_and_the_same_content_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("..one"), dir.path().join("..two"));
        make(&one, 3600);
        make(&two, 7200);
        // as Kubernetes does: cert -> ..data/cert, ..data -> ..one
        symlink("..one", dir.path().join("..data")).unwrap();
        symlink("..data/cert", dir.path().join("cert")).unwrap();
        symlink("..data/key", dir.path().join("key")).unwrap();
        let (mut look, _) = looking(dir.path());
        assert!(!look_twice(&mut look));
        symlink("..two", dir.path().join("..next")).unwrap();
        std::fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
        assert!(look_twice(&mut look));
        // written again, the same
        let text = std::fs::read(two.join("cert")).unwrap();
        std::fs::write(two.join("next"), text).unwrap();
        std::fs::rename(two.join("next"), two.join("cert")).unwrap();
        assert!(!look_twice(&mut look));
    }

    #[test]
    fn an_authority_is_taken_when_its_time_comes_and_the_expired_one_leaves() {
        let (dir, now, minute) = (tempfile::tempdir().unwrap(), SystemTime::now(), Duration::from_mins(1));
        make(dir.path(), 4 * 3600);
        let authority = |from: SystemTime, to: SystemTime| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            (params.not_before, params.not_after) = (from.into(), to.into());
            params.self_signed(&KeyPair::generate().unwrap()).unwrap()
        };
        let old = authority(now - 60 * minute, now + 60 * minute);
        let new = authority(now + 60 * minute, now + 600 * minute);
        std::fs::write(dir.path().join("ca"), old.pem() + &new.pem()).unwrap();
        let (mut look, _) = looking_at(dir.path(), Some("ca"));
        let trusted = |look: &Look<SystemTime>| look.material.authorities.valid.roots.clone();
        let of = |certificate: &rcgen::Certificate| {
            let mut store = tokio_rustls::rustls::RootCertStore::empty();
            store.add(certificate.der().clone()).unwrap();
            store.roots
        };
        assert!(look.look(now).is_none());
        assert_eq!(trusted(&look), of(&old));
        // one for the other: their number stays
        assert!(look.look(now + 120 * minute).is_some());
        assert_eq!(trusted(&look), of(&new));
        assert!(look.look(now + 121 * minute).is_none());
        // the last one, and the certificate as well: what one look alone finds counts at the next one
        assert!(look.look(now + 601 * minute).is_none());
        assert!(look.look(now + 602 * minute).is_some());
        assert!(trusted(&look).is_empty());
        assert!(look.look(now + 603 * minute).is_none());
        let next = authority(now, now + 900 * minute);
        std::fs::write(dir.path().join("ca"), next.pem()).unwrap();
        assert!(look.look(now + 604 * minute).is_none());
        assert!(look.look(now + 605 * minute).is_some());
        assert_eq!(trusted(&look), of(&next));
        // a damaged file says nothing of who has left it
        std::fs::write(dir.path().join("ca"), "").unwrap();
        assert!(look.look(now + 606 * minute).is_none());
        assert!(look.look(now + 607 * minute).is_none());
        assert_eq!(trusted(&look), of(&next));
        // but those that it had expire
        assert!(look.look(now + 901 * minute).is_none());
        assert!(look.look(now + 902 * minute).is_some());
        assert!(trusted(&look).is_empty());
    }

    #[test]
    fn what_cannot_be_used_leaves_what_is_in_use_and_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 3600);
        let (mut look, registry) = looking(dir.path());
        let whole = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        let (cert, key) = (whole("cert"), whole("key"));
        let failed = |look: &mut Look<SystemTime>, count: usize| {
            for _ in 0..3 {
                assert!(!look_twice(look));
            }
            let text = text(&registry);
            let line = format!("tls_reloads_total{{purpose=\"http\",result=\"failed\"}} {count}");
            assert!(
                text.contains(&line) && text.contains("tls_files_unusable{purpose=\"http\"} 1"),
                "{text}"
            );
        };
        let other = dir.path().join("other");
        make(&other, 7200);
        std::fs::copy(other.join("cert"), dir.path().join("cert")).unwrap();
        failed(&mut look, 1);
        std::fs::write(dir.path().join("cert"), &cert[..cert.len() / 2]).unwrap();
        failed(&mut look, 2);
        make(dir.path(), -1);
        failed(&mut look, 3);
        std::fs::write(dir.path().join("cert"), &cert).unwrap();
        std::fs::remove_file(dir.path().join("key")).unwrap();
        failed(&mut look, 4);
        // back to what is in use: no change, and no failure any more
        std::fs::write(dir.path().join("cert"), cert).unwrap();
        std::fs::write(dir.path().join("key"), key).unwrap();
        assert!(!look_twice(&mut look));
        let text = text(&registry);
        assert!(text.contains("tls_files_unusable{purpose=\"http\"} 0"), "{text}");
        std::fs::copy(other.join("cert"), dir.path().join("cert")).unwrap();
        assert!(look.look(SystemTime::now()).is_none(), "between two writes");
        std::fs::copy(other.join("key"), dir.path().join("key")).unwrap();
        assert!(look.look(SystemTime::now()).is_some());
        let text = super::tests::text(&registry);
        assert!(text.contains("tls_reloads_total{purpose=\"http\",result=\"failed\"} 4"), "{text}");
        assert!(text.contains("tls_reloads_total{purpose=\"http\",result=\"ok\"} 1"), "{text}");
    }
}
