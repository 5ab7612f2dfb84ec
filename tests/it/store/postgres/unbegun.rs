//! Transactions that do not begin: their BEGIN fails, as one does that somebody cancels. What was sent behind it is then
//! committed statement by statement.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use microservice_app::store::StoreError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::super::contract::{record, soon};
use super::{MS, feed, found, wait_until_well};
use crate::kit::postgres::Postgres;

/// What the server gets in the place of a BEGIN.
const FAILS: &[u8] = b"DO $$ BEGIN RAISE SQLSTATE '57014'; END $$\0";

/// Relays to a server. While `fail` is set, each BEGIN fails there.
async fn relay(server: SocketAddr, fail: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server).await.unwrap();
            let ((from, mut down), (mut answers, to)) = (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut down).await });
            tokio::spawn(pass(from, to, fail.clone()));
        }
    });
    addr
}

/// Passes the messages of a client on.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, fail: Arc<AtomicBool>) -> io::Result<()> {
    // the first one has no type
    let mut kind = None;
    loop {
        let mut body = vec![0; from.read_u32().await? as usize - 4];
        from.read_exact(&mut body).await?;
        if kind == Some(b'Q') && body.starts_with(b"BEGIN") && fail.load(Relaxed) {
            body = FAILS.to_vec();
        }
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        let head = kind.iter().copied().chain(length);
        to.write_all(&head.chain(body).collect::<Vec<_>>()).await?;
        kind = Some(from.read_u8().await?);
    }
}

#[tokio::test]
async fn a_write_whose_transaction_does_not_begin_is_not_said_to_be_unmade() {
    let (server, fail) = (Postgres::start().await, Arc::new(AtomicBool::new(false)));
    let store = feed(&Postgres::url_at(&[relay(server.addr, fail.clone()).await])).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    fail.store(true, Relaxed);
    // so near a deadline needs a limit of its own, and so a transaction
    let written = store.create(record(7, 2, "x"), Instant::now() + 900 * MS).await;
    assert!(
        matches!(&written, Err(StoreError::Unknown(why)) if why.contains("did not begin")),
        "{written:?}"
    );
    fail.store(false, Relaxed);
    wait_until_well(store.as_ref()).await;
    assert_eq!(found(store.as_ref(), 7).await, [1, 2]);
}

#[tokio::test]
async fn a_search_for_records_that_are_about_to_appear_makes_none() {
    let (server, fail) = (Postgres::start().await, Arc::new(AtomicBool::new(false)));
    let store = feed(&Postgres::url_at(&[relay(server.addr, fail.clone()).await])).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    fail.store(true, Relaxed);
    let deleted = store.delete(7, 2, soon()).await;
    assert!(matches!(deleted, Err(StoreError::Failed(_))), "{deleted:?}");
    fail.store(false, Relaxed);
    assert_eq!(found(store.as_ref(), 7).await, [1]);
    assert!(!store.delete(7, 2, soon()).await.unwrap());
}
