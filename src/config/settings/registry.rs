//! The registry: how etcd is reached, and how a process registers and watches there.

use std::path::PathBuf;
use std::time::Duration;

use super::{EVERY_ROLE, Kind, Role};

/// Form of the keys that name a file.
const PATH: &str = "a path";

section! {
    /// etcd, in which instances register and find each other. The files named here are read at each connection and
    /// watched for changes. A relative name is looked up in `$CREDENTIALS_DIRECTORY` if that is set, else in the
    /// working directory.
    Registry as registry, read by EVERY_ROLE, defaults of role:

    /// Client addresses of etcd; `host:port` means `http://host:port`. All use TLS (`https://`) or none does. An
    /// empty list, which only `up` accepts, is a registry inside the process.
    "registry.endpoints" => endpoints: Vec<String> = match role {
        Role::Up => Vec::new(),
        Role::Apigateway | Role::Feed | Role::Profile | Role::Topic => vec!["127.0.0.1:2379".to_owned()],
    }, Kind::list("host:port, http://host:port or https://host:port");

    /// File with the certificates (PEM) of the authorities that may sign etcd's certificate. Needed with `https://`.
    "registry.ca_file" => ca_file: Option<PathBuf> = None, Kind::text(PATH);

    /// File with the certificate chain (PEM) that this process shows to etcd. Goes with `registry.key_file`.
    "registry.cert_file" => cert_file: Option<PathBuf> = None, Kind::text(PATH);

    /// File with the private key (PEM) of `registry.cert_file`.
    "registry.key_file" => key_file: Option<PathBuf> = None, Kind::text(PATH);

    /// Name that etcd's certificate must have. Without it, the host of the endpoint.
    "registry.tls_server_name" => tls_server_name: Option<String> =
        None, Kind::text("a host name or an IP address");

    /// User name for the login at etcd. Goes with `registry.password_file`.
    "registry.user" => user: Option<String> = None, Kind::text("a name");

    /// File with the password of `registry.user`. Line ends at the end of the file are ignored.
    "registry.password_file" => password_file: Option<PathBuf> = None, Kind::text(PATH);

    /// Beginning of every key in etcd. With one without `/`, such as `services-`, clients in Go need no authority of
    /// their own.
    "registry.prefix" => prefix: String =
        "/services/".to_owned(), Kind::text("begins and ends with `/`, or has none and ends with `-`, `.` or `_`");

    /// Life of an instance's lease. A crashed instance stays listed for at most this time and 0.5 s.
    "registry.ttl_s" => ttl: Duration = Duration::from_secs(3), Kind::seconds(1, 3600);

    /// Time between two renewals of the lease. At most half of `registry.ttl_s`.
    "registry.keepalive_ms" => keepalive: Duration =
        Duration::from_secs(1), Kind::milliseconds(100, 1_800_000);

    /// Deadline of one request to etcd. A registration gives up earlier, after a third of the time between a renewal that
    /// is due and the end of the lease (half of it with a single endpoint), so that another member can renew it.
    "registry.timeout_ms" => timeout: Duration = Duration::from_secs(1), Kind::milliseconds(100, 60_000);

    /// Longest wait between two attempts while etcd cannot be reached. The first wait is 100 ms, each next one up
    /// to twice as long, with jitter. With the default, every key is registered again 2 s after etcd returns. While
    /// etcd elects a leader, for up to 10 s, every wait is at most 200 ms.
    "registry.backoff_cap_ms" => backoff_cap: Duration =
        Duration::from_secs(2), Kind::milliseconds(100, 60_000);

    /// Silence on etcd's watch stream after which the stream is opened again. A progress request is sent every
    /// third of this time.
    "registry.watch_silence_ms" => watch_silence: Duration =
        Duration::from_secs(3), Kind::milliseconds(1000, 60_000);

    /// Time between two complete reads that verify what the watch reported.
    "registry.relist_ms" => relist: Duration = Duration::from_secs(30), Kind::milliseconds(1000, 3_600_000);

    /// File that keeps the last good list of instances, so that a process which restarts while etcd is down still
    /// finds the services. Its directory must exist.
    "registry.snapshot_file" => snapshot_file: Option<PathBuf> = None, Kind::text(PATH);

    /// Availability zone that the instance registers. No balancer uses it yet.
    "registry.zone" => zone: Option<String> = None, Kind::text("a name");

    /// Relative weight that the instance registers. No balancer uses it yet.
    "registry.weight" => weight: u32 = 100, Kind::number(1, 1000);
}
