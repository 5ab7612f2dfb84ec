//! What operators see: start and stop, the command line, logs, metrics, traces, profiles, alerts, dashboards.

mod alerts;
mod command_line;
mod dashboards;
mod database;
mod durability;
mod logs;
mod metrics;
mod newcomer;
mod numbers;
mod parts;
mod pprof;
mod sbom;
mod settings;
mod shutdown;
mod stack;
mod status_command;
mod stderr;
mod store;
mod suite;
mod system_page;
mod systemd;
mod targets;
mod threads;
mod traces;
