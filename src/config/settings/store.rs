//! The section `store`.

use std::path::PathBuf;

use super::super::types::StoreUrl;
use super::{Kind, Role, SERVICES};

section! {
    /// Where a service keeps its records.
    Store as store, read by SERVICES, defaults of role:

    /// Where the records are: `memory:` loses them when the process ends, `sqlite:PATH` keeps them. A path is the name of a file,
    /// not a URI. A file belongs to one service; the instances of that service on one machine share it. (`up` keeps `feed.db`, `profile.db`
    /// and `topic.db` in `up.data_dir`.)
    "store.url" => url: StoreUrl = match role {
        Role::Up => StoreUrl::Sqlite(PathBuf::from("data")),
        Role::Apigateway | Role::Feed | Role::Profile | Role::Topic => StoreUrl::Memory,
    }, Kind::text(StoreUrl::FORM);
}
