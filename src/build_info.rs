//! Which build this is.

/// The version of the package, `0.1.0`.
pub const PACKAGE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, or the hash of the sources where there is no commit.
pub const COMMIT: &str = env!("MSA_COMMIT");

/// Version and commit, `0.1.0 (1a2b3c4d5e6f)`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("MSA_COMMIT"), ")");
