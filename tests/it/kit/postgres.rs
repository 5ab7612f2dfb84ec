//! A real PostgreSQL: the programs in the directory that the variable `POSTGRESQL` names, else those of Debian, else those
//! of the path.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio_postgres::{Client, Config, NoTls};

use super::{SOON, cpu, free_addr, wait_long_for};

/// The user whom the server runs as when the tests run as root: it refuses root.
const NOBODY: u32 = 65534;

/// One server on a free loopback port, its data in a directory that ends with it. It has the database `msa`, which
/// belongs to the role `app`; everybody may log in without a password.
pub struct Postgres {
    pub addr: SocketAddr,
    directory: tempfile::TempDir,
    child: Option<Child>,
}

impl Postgres {
    /// Starts it and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with further settings (`name=value`) and waits until it answers.
    pub async fn start_with(settings: &[&str]) -> Self {
        let server = Self::start_bare(settings).await;
        let admin = server.admin_of("postgres").await;
        create_database(&admin).await;
        server
    }

    /// Starts one as a new installation is, without `msa` and `app`.
    pub async fn start_bare(settings: &[&str]) -> Self {
        let mut server = Self::new(settings);
        server.launch();
        server.admin_of("postgres").await;
        server
    }

    /// Starts one on a copy of a data directory, such as a base backup, and waits until it answers.
    pub async fn start_from(data: &Path) -> Self {
        let mut server = Self { addr: free_addr(), directory: directory(), child: None };
        let run =
            |command: &mut Command| assert!(command.status().expect("it runs").success(), "{command:?}");
        run(Command::new("cp").arg("-a").arg(data).arg(server.data()));
        if is_root() {
            run(Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(server.data()));
        }
        server.append("postgresql.conf", &format!("port = {}\n", server.addr.port()));
        server.launch();
        server.admin().await;
        server
    }

    /// Makes the directory of a server that does not run yet.
    fn new(settings: &[&str]) -> Self {
        let server = Self { addr: free_addr(), directory: directory(), child: None };
        let mut initdb = server.program("initdb");
        initdb.args([
            "-U",
            "postgres",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "-D",
        ]);
        let made = initdb.arg(server.data()).stdin(Stdio::null()).output().expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut text = format!("port = {}\n", server.addr.port());
        text.push_str("listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 50\n");
        text.push_str("shared_buffers = 16MB\nlog_min_messages = warning\n");
        for setting in settings {
            writeln!(text, "{setting}").expect("memory");
        }
        server.append("postgresql.conf", &text);
        server
    }

    fn program(&self, name: &str) -> Command {
        program(name, self.directory.path())
    }

    /// Returns the directory of its data.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Adds lines to one of its files; they count from the next [`Self::restart`] or reload on.
    pub fn append(&self, file: &str, text: &str) {
        let path = self.data().join(file);
        let old = std::fs::read_to_string(&path).expect("its file");
        std::fs::write(&path, old + text).expect("its file");
    }

    /// Writes a file that only the server's user may read, as it wants its key.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.data().join(file);
        std::fs::write(&path, text).expect("its file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("ours");
        if is_root() {
            chown(&path, Some(NOBODY), Some(NOBODY)).expect("ours");
        }
    }

    /// Stops it, copies its data, starts it again, and starts the copy at `addr` as a standby that is promoted. Both can be
    /// written to then, and only the copy is the primary: its timeline is newer.
    pub async fn promote_copy(&mut self, addr: SocketAddr) -> Self {
        self.stop(Signal::INT);
        let mut copy = Self { addr, directory: directory(), child: None };
        let copied =
            Command::new("cp").arg("-a").arg(self.data()).arg(copy.data()).status().expect("cp runs");
        assert!(copied.success());
        self.launch();
        copy.append("postgresql.conf", &format!("port = {}\n", addr.port()));
        copy.write("standby.signal", "");
        copy.launch();
        copy.admin().await.execute("SELECT pg_promote()", &[]).await.expect("it is promoted");
        self.admin().await;
        copy
    }

    /// Starts it on its data without waiting.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .expect("a log");
        let mut server = self.program("postgres");
        server.arg("-D").arg(self.data());
        server.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(server.spawn().expect("PostgreSQL is installed (make deps)"));
    }

    /// Starts it again on its data and waits until it answers.
    pub async fn restart(&mut self) {
        self.kill();
        self.launch();
        self.admin().await;
    }

    /// Kills it and all of its processes; its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_all(&mut child);
        }
    }

    /// Tells it to stop at once, which ends every session (SIGINT), or as after a crash (SIGQUIT); waits for its end.
    pub fn stop(&mut self, how: Signal) {
        let mut child = self.child.take().expect("it runs");
        signal(child.id(), how);
        let _ = child.wait();
    }

    /// Tells it to read its settings again.
    pub fn reload(&self) {
        signal(self.child.as_ref().expect("it runs").id(), Signal::HUP);
    }

    /// Stops all of its processes in place. Its sockets still accept.
    pub fn freeze(&self) {
        self.each(Signal::STOP);
    }

    /// Ends [`Self::freeze`].
    pub fn thaw(&self) {
        self.each(Signal::CONT);
    }

    fn each(&self, what: Signal) {
        let server = self.child.as_ref().expect("it runs").id();
        // the server first, so that no process is added meanwhile
        signal(server, what);
        for pid in processes(server) {
            signal(pid, what);
        }
    }

    /// Returns the URL of the database, for the role `app`.
    pub fn url(&self) -> String {
        Self::url_at(&[self.addr])
    }

    /// Returns the URL of the database at other addresses, such as those of relays.
    pub fn url_at(addrs: &[SocketAddr]) -> String {
        let hosts: Vec<_> = addrs.iter().map(ToString::to_string).collect();
        format!("postgres://app@{}/msa?target_session_attrs=read-write", hosts.join(","))
    }

    /// Waits until it answers, and returns a client of the superuser in the database.
    pub async fn admin(&self) -> Client {
        self.admin_of("msa").await
    }

    async fn admin_of(&self, database: &str) -> Client {
        let addr = self.addr;
        wait_long_for("PostgreSQL answers", || connect(addr, "postgres", database)).await
    }

    /// Returns what it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of PostgreSQL: {}", self.log());
        }
    }
}

/// Returns a client, whose connection is driven by a task; `None` if the server does not accept it.
pub async fn connect(addr: SocketAddr, user: &str, database: &str) -> Option<Client> {
    let mut config = Config::new();
    config.user(user).dbname(database);
    let tcp = TcpStream::connect(addr).await.ok()?;
    let (client, connection) = config.connect_raw(tcp, NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// Creates the role `app` and its database `msa`.
pub async fn create_database(admin: &Client) {
    admin.batch_execute("CREATE ROLE app LOGIN").await.expect("a role");
    admin.batch_execute("CREATE DATABASE msa OWNER app").await.expect("a database");
}

/// Returns a directory that ends with it, owned by the user whom servers run as.
pub fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    if is_root() {
        // its parent is everybody's
        chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("ours");
    }
    directory
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Returns a command that runs a program of PostgreSQL, as an ordinary user, in a directory of that user.
pub fn program(name: &str, directory: &Path) -> Command {
    unprivileged(installed(name), directory)
}

/// Returns a command that runs any program so.
pub fn unprivileged(program: impl AsRef<OsStr>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("LC_ALL", "C.UTF-8");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Returns the path of a program of PostgreSQL.
pub fn installed(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("POSTGRESQL") {
        return Path::new(&directory).join(name);
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found: Vec<_> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|p| p.exists()).collect();
    found.into_iter().max().unwrap_or_else(|| PathBuf::from(name))
}

/// Kills a server with all of its processes, and waits until they have ended.
pub fn kill_all(server: &mut Child) {
    let all = processes(server.id());
    cpu::note_orphans(&all[1..]);
    for &pid in &all {
        signal(pid, Signal::KILL);
    }
    let _ = server.wait();
    // a new server refuses to start while the memory of the old one is in use
    let begun = Instant::now();
    while all.iter().any(|pid| runs(*pid)) && begun.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns a process and its children.
fn processes(parent: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.unwrap_or_default();
    [parent].into_iter().chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
}

/// Returns true unless a process has ended.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

fn signal(pid: u32, what: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    // a child may have ended by itself
    let _ = kill_process(pid, what);
}
