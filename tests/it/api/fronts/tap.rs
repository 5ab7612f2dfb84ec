//! Stands between a proxy and the gateway, and keeps the bytes of both directions.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What went over one connection, in the order in which it came.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// From the proxy to the gateway.
    pub requests: Vec<u8>,
    /// From the gateway to the proxy.
    pub answers: Vec<u8>,
}

/// All connections since the last look.
type Kept = Arc<Mutex<Vec<Arc<Mutex<Passed>>>>>;

/// A listener that passes everything on.
pub struct Tap {
    pub addr: SocketAddr,
    kept: Kept,
}

impl Tap {
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, kept) = (listener.local_addr().unwrap(), Kept::default());
        let connections = kept.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let passed = Arc::<Mutex<Passed>>::default();
                connections.lock().unwrap().push(passed.clone());
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                let requests = passed.clone();
                let keep = move |bytes: &[u8]| requests.lock().unwrap().requests.extend_from_slice(bytes);
                tokio::spawn(pass(from_client, to_server, keep));
                let keep = move |bytes: &[u8]| passed.lock().unwrap().answers.extend_from_slice(bytes);
                tokio::spawn(pass(from_server, to_client, keep));
            }
        });
        Self { addr, kept }
    }

    /// Returns what has passed on each connection since the last call.
    pub fn take(&self) -> Vec<Passed> {
        let kept = self.kept.lock().unwrap();
        kept.iter().map(|passed| std::mem::take(&mut *passed.lock().unwrap())).collect()
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, keep: impl Fn(&[u8])) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        keep(&bytes[..count]);
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
