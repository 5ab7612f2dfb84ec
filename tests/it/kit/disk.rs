//! A small disk that can be full: a tmpfs in a mount namespace of its own, which ends with this guard.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::wait_for;

/// Why there is none, for a row or test that is skipped.
pub const NO_DISK: &str = "no leave to mount a small disk (unshare -rm)";

/// The disk, mounted at a directory that is empty for everybody else.
pub struct SmallDisk {
    dir: tempfile::TempDir,
    /// Keeps the namespace. It ends by itself if the test is killed.
    holder: Child,
}

impl SmallDisk {
    /// Mounts one; returns none where that is not allowed.
    pub async fn mount(bytes: usize) -> Option<Self> {
        let mut attempt = Command::new("unshare");
        attempt.args(["-rm", "mount", "-t", "tmpfs", "none", "/tmp"]).stderr(Stdio::null());
        if !attempt.status().is_ok_and(|status| status.success()) {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs -o size=\"$1\" none \"$0\" && touch \"$0/mounted\" && exec sleep 3600";
        command.args(["-rm", "sh", "-c", script]).arg(dir.path()).arg(bytes.to_string());
        let holder = command.stdin(Stdio::null()).spawn().expect("unshare");
        let disk = Self { dir, holder };
        let mounted = disk.seen("mounted");
        wait_for("the disk is mounted", || async { mounted.exists().then_some(()) }).await;
        Some(disk)
    }

    /// Returns the path of a file for processes on the disk's side.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the path of a file for this process. It is for reading and writing alone: what follows links by itself
    /// ends elsewhere.
    pub fn seen(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root).join(self.path(name).strip_prefix("/").expect("an absolute path"))
    }

    /// Returns a command that runs a program on the disk's side.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--user", "--mount", "--preserve-credentials", "--target"]);
        command.arg(self.holder.id().to_string()).arg("--").arg(program);
        command
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(self.seen("ballast"));
        let mut file = file.expect("a file");
        let error = loop {
            if let Err(error) = file.write_all(&[0; 512]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    /// Makes room again.
    pub fn empty(&self) {
        std::fs::remove_file(self.seen("ballast")).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
