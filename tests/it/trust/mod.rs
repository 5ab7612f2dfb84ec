//! Who may talk to whom: certificates between the gateway and the services.

mod callers;
mod page;
mod refusals;
mod rollout;
mod rotation;
mod subject;
