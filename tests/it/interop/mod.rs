//! Other people's clients, and servers of others that register beside ours: what gRPC's own documents promise them.

mod health;
mod reflection;
