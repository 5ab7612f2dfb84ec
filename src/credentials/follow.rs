//! Files that may be replaced while the process runs: they are read again when they change, and again and again while they
//! cannot be used. What was read last stays in use meanwhile.

use super::{Source, Stamp, Unusable};

/// What was seen of some files.
#[derive(Debug)]
pub struct Follower {
    sources: Vec<Source>,
    /// The versions at the last look.
    stamp: Stamp,
    /// The last failure, while there is one.
    failure: Option<Failed>,
}

/// The files could not be used at the last look.
#[derive(Debug)]
struct Failed {
    reason: String,
    /// True once it was said.
    told: bool,
}

/// What a look at the files has brought.
#[derive(Debug)]
pub enum Look<T> {
    /// Nothing has changed since the last look that went well.
    Unchanged,
    /// What they hold now.
    Read(T),
    /// They cannot be used.
    Failed {
        /// Why.
        error: Unusable,
        /// True if it is to be said: once for each reason, and not at the first look, which may have come between two writes.
        news: bool,
    },
}

impl Follower {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// That of `read`.
    pub fn start<'a, T>(
        sources: impl IntoIterator<Item = &'a Source>,
        read: impl FnOnce() -> Result<T, Unusable>,
    ) -> Result<(Self, T), Unusable> {
        let sources: Vec<_> = sources.into_iter().cloned().collect();
        // before the files are read: a change meanwhile counts
        let stamp = Stamp::of(&sources);
        let first = read()?;
        Ok((Self { sources, stamp, failure: None }, first))
    }

    /// Looks at the files, and reads them if they have changed, if the last look has failed, or if they are `due` anyway.
    pub fn look<T>(&mut self, due: bool, read: impl FnOnce() -> Result<T, Unusable>) -> Look<T> {
        let stamp = Stamp::of(&self.sources);
        if stamp == self.stamp && self.failure.is_none() && !due {
            return Look::Unchanged;
        }
        self.stamp = stamp;
        match read() {
            Ok(value) => {
                self.failure = None;
                Look::Read(value)
            }
            Err(error) => Look::Failed { news: self.note_failure(&error), error },
        }
    }

    /// Returns true if the files are others than at the last look, whether that went well or not.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        Stamp::of(&self.sources) != self.stamp
    }

    fn note_failure(&mut self, error: &Unusable) -> bool {
        // how long ago something expired changes with every look
        let reason: String = error.to_string().chars().filter(|c| !c.is_ascii_digit()).collect();
        match &mut self.failure {
            Some(failed) if failed.reason == reason => !std::mem::replace(&mut failed.told, true),
            _ => {
                self.failure = Some(Failed { reason, told: false });
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn followed(dir: &Path) -> (Follower, Source) {
        let file = Source::new("admin.token_file", Path::new("token"), Some(dir));
        std::fs::write(file.path(), "one").unwrap();
        let (follower, first) = Follower::start([&file], || file.password()).unwrap();
        assert_eq!(first, "one");
        (follower, file)
    }

    /// What a look has read, or whether its failure is news.
    fn found(look: Look<String>) -> Option<Result<String, bool>> {
        match look {
            Look::Unchanged => None,
            Look::Read(text) => Some(Ok(text)),
            Look::Failed { news, .. } => Some(Err(news)),
        }
    }

    #[test]
    fn a_change_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let (mut follower, file) = followed(dir.path());
        assert_eq!(found(follower.look(false, || file.password())), None);
        assert_eq!(found(follower.look(true, || file.password())), Some(Ok("one".to_owned())));
        std::fs::write(file.path(), "other").unwrap();
        assert!(follower.has_changed());
        assert_eq!(found(follower.look(false, || file.password())), Some(Ok("other".to_owned())));
        assert!(!follower.has_changed());
        assert_eq!(found(follower.look(false, || file.password())), None);
    }

    /// The file may be the same as at the look that failed: for want of a file descriptor, for one.
    #[test]
    fn what_could_not_be_read_is_read_again_though_nothing_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut follower, file) = followed(dir.path());
        std::fs::write(file.path(), "another").unwrap();
        let fails = || Err(file.refuse("Too many open files"));
        assert_eq!(found(follower.look(false, fails)), Some(Err(false)));
        assert!(!follower.has_changed());
        assert_eq!(found(follower.look(false, || file.password())), Some(Ok("another".to_owned())));
    }

    #[test]
    fn a_failure_is_said_once_and_not_at_the_first_look() {
        let dir = tempfile::tempdir().unwrap();
        let (mut follower, file) = followed(dir.path());
        let mut fail = |reason: &str| found(follower.look(true, || Err(file.refuse(reason))));
        for (reason, news) in [
            ("is empty", false),
            ("is empty", true),
            ("is empty", false),
            ("expired 7 s ago", false),
            ("expired 8 s ago", true),
            ("expired 9 s ago", false),
            ("is empty", false),
            ("is empty", true),
        ] {
            assert_eq!(fail(reason), Some(Err(news)), "{reason}");
        }
    }
}
