//! The section `store`.

use std::path::PathBuf;
use std::time::Duration;

use super::super::store_url::StoreUrl;
use super::{Kind, Role, SERVICES};

/// Form of the keys that name a file.
const PATH: &str = "a path";

section! {
    /// Where a service keeps its records. The files named here are read at each connection to PostgreSQL. A relative name
    /// is looked up in `$CREDENTIALS_DIRECTORY` if that is set, else in the working directory.
    Store as store, read by SERVICES, defaults of role:

    /// Where the records are: `memory:` loses them when the process ends, `sqlite:PATH` keeps them in a file, `postgres://`
    /// in a database that instances on several hosts share. A path is the name of a file, not a URI. A file belongs to one
    /// service; the instances of that service on one machine share it. (`up` keeps `feed.db`, `profile.db` and `topic.db`
    /// in `up.data_dir`.) A URL of PostgreSQL names a user, a database and one or more hosts, of which the one that can be
    /// written to is used; it must not hold a password.
    "store.url" => url: StoreUrl = match role {
        Role::Up => StoreUrl::Sqlite(PathBuf::from("data")),
        Role::Apigateway | Role::Feed | Role::Profile | Role::Topic => StoreUrl::Memory,
    }, Kind::text(StoreUrl::FORM);

    /// File with the password of the user of PostgreSQL. Line ends at the end of the file are ignored.
    "store.password_file" => password_file: Option<PathBuf> = None, Kind::text(PATH);

    /// File with the certificates (PEM) of the authorities that may sign the certificate of PostgreSQL. With it every
    /// connection uses TLS, and the certificate must have the name of the host. Needed with `sslmode=require`.
    "store.ca_file" => ca_file: Option<PathBuf> = None, Kind::text(PATH);

    /// File with the certificate chain (PEM) that this process shows to PostgreSQL. Goes with `store.key_file`.
    "store.cert_file" => cert_file: Option<PathBuf> = None, Kind::text(PATH);

    /// File with the private key (PEM) of `store.cert_file`.
    "store.key_file" => key_file: Option<PathBuf> = None, Kind::text(PATH);

    /// Longest time of one statement and of one commit in PostgreSQL, and of its silence: then the connection is given up
    /// and the server looked for anew. A write whose commit takes longer may or may not be there, and is answered 503.
    /// Should not be shorter than the deadlines of callers.
    "store.timeout_ms" => timeout: Duration = Duration::from_millis(2500), Kind::milliseconds(100, 600_000);
}
