//! The registry: registration and discovery over a real etcd, access to it, and life without it.

mod absence;
mod access;
mod discovery;
mod families;
mod limbo;
mod sessions;
