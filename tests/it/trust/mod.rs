//! Who may talk to whom: certificates between the gateway and the services.

mod callers;
mod refusals;
mod rollout;
mod rotation;
