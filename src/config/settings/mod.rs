//! The definitions: each setting once, with its key, type, default, kind (unit and range) and meaning.
//!
//! A setting is one entry in the file of its section: the doc comment is the meaning and is shown to users, the
//! line below it has the rest.
//!
//! ```text
//! /// Time a client has to send the whole body of a request. Then the answer is 408.
//! "http.body_timeout_ms" => body_timeout: Duration = Duration::from_secs(10), Kind::milliseconds(100, 600_000);
//!  key                      field         type       default                   kind: unit, smallest, largest
//! ```

use ::config::Value;

use super::role::Role;
use super::value::{Kind, SettingType};

/// The definition of one setting.
pub struct Setting {
    /// Section and name, `client.deadline_ms`.
    pub key: &'static str,
    /// Which values it accepts.
    pub kind: Kind,
    /// The roles that read it; all others ignore it.
    pub roles: &'static [Role],
    meaning: &'static str,
    set: fn(&mut Settings, Value, Kind) -> Result<(), String>,
    print: fn(&Settings, Kind) -> String,
}

impl Setting {
    /// Returns what it means, in sentences of markdown.
    #[must_use]
    pub fn meaning(&self) -> &'static str {
        self.meaning.trim_start()
    }

    /// Returns its value as a file would have it, without quotes; empty for none.
    #[must_use]
    pub fn print(&self, settings: &Settings) -> String {
        (self.print)(settings, self.kind)
    }

    /// Returns the default of a role, in the form of [`Setting::print`].
    #[must_use]
    pub fn default(&self, role: Role) -> String {
        self.print(&Settings::for_role(role))
    }

    /// Returns the environment variable that sets it, `MSA__CLIENT__DEADLINE_MS`.
    #[must_use]
    pub fn variable(&self) -> String {
        variable(self.key)
    }

    /// Reads, checks and stores a value.
    ///
    /// # Errors
    /// What is wrong with the value and what is wanted, without the key.
    pub(super) fn set(&self, settings: &mut Settings, value: Value) -> Result<(), String> {
        (self.set)(settings, value, self.kind)
    }
}

/// Returns the environment variable of a dotted key, known or not.
pub(super) fn variable(key: &str) -> String {
    format!("MSA__{}", key.to_uppercase().replace('.', "__"))
}

/// Settings about one subject; a table in the TOML file.
pub struct Section {
    /// The part of the keys before the dot.
    pub name: &'static str,
    about: &'static str,
    /// Its settings, in the order in which pages list them.
    pub settings: &'static [Setting],
}

impl Section {
    /// Returns what its settings are about.
    #[must_use]
    pub fn about(&self) -> &'static str {
        self.about.trim_start()
    }
}

/// Returns every setting, section by section.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    SECTIONS.iter().flat_map(|section| section.settings)
}

/// Returns the setting of a key.
#[must_use]
pub fn find(key: &str) -> Option<&'static Setting> {
    all().find(|setting| setting.key == key)
}

const EVERY_ROLE: &[Role] = &Role::ALL;
const GATEWAYS: &[Role] = &[Role::Apigateway, Role::Up];
const SERVICES: &[Role] = &Role::SERVICES;
const SERVICES_AND_UP: &[Role] = &[Role::Feed, Role::Profile, Role::Topic, Role::Up];
/// Every role that is a process of its own.
const PARTS: &[Role] = &[Role::Apigateway, Role::Feed, Role::Profile, Role::Topic];
const UP: &[Role] = &[Role::Up];

/// Defines a section: its struct, the defaults of each role, and the table of its settings.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $section:ident as $name:ident, read by $roles:expr, defaults of $role:ident:
        $(
            $(#[doc = $meaning:literal])+
            $key:literal $(read by $own_roles:expr)? => $field:ident: $type:ty = $default:expr, $kind:expr;
        )+
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug)]
        pub struct $section {
            $(
                $(#[doc = $meaning])+
                #[doc = ""]
                #[doc = concat!("`", $key, "`: `", stringify!($kind), "`, by default `", stringify!($default), "`.")]
                pub $field: $type,
            )+
        }

        impl $section {
            pub(super) const SECTION: super::Section = super::Section {
                name: stringify!($name),
                about: concat!($($about),+),
                settings: &[
                    $(
                        super::Setting {
                            key: $key,
                            kind: $kind,
                            roles: section!(@roles $roles $(, $own_roles)?),
                            meaning: concat!($($meaning),+),
                            set: |settings, value, kind| {
                                settings.$name.$field = super::SettingType::read(value, kind)?;
                                Ok(())
                            },
                            print: |settings, kind| super::SettingType::print(&settings.$name.$field, kind),
                        },
                    )+
                ],
            };

            pub(super) fn for_role($role: Role) -> Self {
                let _ = $role; // most sections have the same defaults for all
                Self { $($field: $default),+ }
            }
        }

        impl Default for $section {
            fn default() -> Self {
                Self::for_role(Role::Up)
            }
        }
    };
    (@roles $roles:expr) => { $roles };
    (@roles $roles:expr, $own_roles:expr) => { $own_roles };
}

mod admin;
mod client;
mod grpc;
mod http;
mod log;
mod registry;
mod runtime;
mod shutdown;
mod store;
mod tls;
mod trace;
mod up;

pub use admin::Admin;
pub use client::Client;
pub use grpc::Grpc;
pub use http::Http;
pub use log::Log;
pub use registry::Registry;
pub use runtime::Runtime;
pub use shutdown::Shutdown;
pub use store::Store;
pub use tls::Tls;
pub use trace::Trace;
pub use up::Up;

/// Puts the sections together.
macro_rules! sections {
    ($($name:ident: $section:ident,)+) => {
        /// Everything that can be set, for any role; a role ignores the settings that it does not read.
        #[derive(Clone, Debug)]
        pub struct Settings {
            $(
                #[doc = concat!("The section `", stringify!($name), "`.")]
                pub $name: $section,
            )+
        }

        impl Settings {
            /// Returns the defaults of a role.
            #[must_use]
            pub fn for_role(role: Role) -> Self {
                Self { $($name: $section::for_role(role)),+ }
            }
        }

        /// Every section, in the order in which pages list them.
        pub const SECTIONS: &[Section] = &[$($section::SECTION),+];
    };
}

sections! {
    http: Http,
    grpc: Grpc,
    tls: Tls,
    admin: Admin,
    registry: Registry,
    client: Client,
    store: Store,
    runtime: Runtime,
    shutdown: Shutdown,
    log: Log,
    trace: Trace,
    up: Up,
}

impl Default for Settings {
    fn default() -> Self {
        Self::for_role(Role::Up)
    }
}
