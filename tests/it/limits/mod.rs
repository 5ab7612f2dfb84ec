//! The limits of the listeners: what is refused, how, and that other callers are served meanwhile.

mod gateway;
mod http2;
mod services;
