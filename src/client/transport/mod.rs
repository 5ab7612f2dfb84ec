//! One attempt at one instance, in call order, each importing only modules after it: [`exchange`] sends a call
//! over a connection of the [`pool`], whose [`upkeep`] fills its [`slots`] with connections, opened by [`health`] (the peer must answer a health
//! watch) and [`connection`] (HTTP/2 over a stream of a connector, which may be [`secured`]). [`wire`] is the gRPC format, and [`outcome`]
//! decides what the end of an exchange means.

pub mod connection;
pub mod exchange;
pub mod health;
pub mod outcome;
pub mod pool;
pub mod probe;
pub mod secured;
pub mod slots;
pub mod state;
pub mod upkeep;
pub mod wire;
