//! A histogram of the durations of rpcs, by method and code; for servers and for attempts of clients.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::Histogram;

use crate::api::error::code_name;
use crate::api::rpc::{PerRpc, Rpc};

use super::Histograms;

/// gRPC codes, 0 to 16.
const CODES: usize = 17;

/// The rpcs of one server, or of the client of one service.
#[derive(Debug)]
pub struct RpcDurations {
    family: Histograms,
    /// By rpc and code. A cell is resolved when its code first occurs, since most codes never do.
    cells: Box<PerRpc<[OnceLock<Histogram>; CODES]>>,
}

impl RpcDurations {
    /// Wraps a family with the labels service, method and code. The `usual` codes of the rpcs of `service`, which is a name
    /// in the registry, are exported from the start.
    pub fn new(family: Histograms, service: &str, usual: &[tonic::Code]) -> Self {
        let calls = Self { family, cells: Box::default() };
        for rpc in Rpc::of_service(service) {
            for code in usual {
                calls.cell(rpc, *code);
            }
        }
        calls
    }

    /// Records one rpc.
    pub fn observe(&self, rpc: Rpc, code: tonic::Code, took: Duration) {
        if let Some(cell) = self.cell(rpc, code) {
            cell.observe(took.as_secs_f64());
        }
    }

    fn cell(&self, rpc: Rpc, code: tonic::Code) -> Option<&Histogram> {
        let cell = self.cells[rpc].get(code as usize)?;
        let resolve = || self.family.with_label_values(&[rpc.grpc_service(), rpc.method(), code_name(code)]);
        Some(cell.get_or_init(resolve))
    }
}
