//! Which instance gets the next attempt, and the part of the call path that each instance has for itself.
//!
//! [`balancer`] is the layer. It asks [`pick`] to choose among the instances that [`discover`] publishes. Each
//! is an [`endpoint`] with its layers in call order: [`circuit_breaker`], [`concurrency_limit`], [`measure`].

pub mod balancer;
pub mod breaker;
pub mod breaker_state;
pub mod circuit_breaker;
pub mod concurrency_limit;
pub mod discover;
pub mod ejection;
pub mod endpoint;
pub mod in_flight;
pub mod load;
pub mod measure;
pub mod pick;
#[cfg(test)]
pub mod testing;
