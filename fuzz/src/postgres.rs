//! What a database answers: rows whose columns hold anything, from a server that may say anything.

use std::time::Duration;

use microservice_app::store::postgres_rows as decode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_postgres::{Config, NoTls, Row};

use super::app::block_on;

/// The types of the columns, by the first byte: those of every statement that the stores read.
const SHAPES: [&[u32]; 6] =
    [&[INT8, TEXT], &[TEXT, TEXT, TEXT], &[TEXT, TEXT], &[INT8, INT8], &[TEXT], &[INT8, TEXT, BOOL]];
const BOOL: u32 = 16;
const INT8: u32 = 20;
const TEXT: u32 = 25;

/// A first byte for the types of the columns, then rows. If the byte is below 128, each value is a byte for its length (255
/// for none) and its bytes; otherwise what follows are the messages of the server, as they are.
pub fn rows(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let shape = SHAPES[usize::from(kind % 128) % SHAPES.len()];
    let answer = if *kind < 128 { rows_of(shape.len(), data) } else { data.to_vec() };
    let rows = block_on(async { tokio::time::timeout(Duration::from_secs(5), ask(shape, answer)).await });
    let Ok(rows) = rows.expect("an answer or an error in time") else { return };
    check(&rows);
}

/// Reads the rows in every way in which the stores do.
fn check(rows: &[Row]) {
    let read = rows.len();
    if let Ok(page) = decode::feeds(1, rows) {
        assert!(page.feeds.len() <= read && (page.feeds.len() == read || page.shortened), "{page:?}");
    }
    if let Ok(page) = decode::topics(3, rows) {
        assert!(page.topics.len() <= 3, "{page:?}");
        assert!(
            page.next == 0 || page.topics.last().is_some_and(|last| last.topic_id == page.next),
            "{page:?}"
        );
    }
    if let Ok(keys) = decode::keys(rows) {
        assert!(keys.len() == read && keys.is_sorted(), "{keys:?}");
    }
    for row in rows {
        let _ = decode::profile(1, row);
        let _ = decode::topic(1, row);
    }
}

/// Asks a question of a server that answers so. An error is what the program sees as one of the connection.
async fn ask(shape: &'static [u32], answer: Vec<u8>) -> Result<Vec<Row>, tokio_postgres::Error> {
    let (client, server) = tokio::io::duplex(1 << 20);
    let script = [greeting(), description(shape), [message(b'2', &[]), answer, end()].concat()];
    let serve = serve(server, script);
    let query = async {
        let (client, connection) = Config::new().user("u").connect_raw(client, NoTls).await?;
        tokio::select! {
            rows = client.query("SELECT", &[]) => rows,
            // with the connection, the question fails
            ended = connection => ended.map(|()| Vec::new()),
        }
    };
    tokio::select! {
        rows = query => rows,
        () = serve => Ok(Vec::new()),
    }
}

/// Gives an answer to the greeting and to each `Sync`, then closes the connection.
async fn serve(mut stream: DuplexStream, script: [Vec<u8>; 3]) {
    let mut script = script.into_iter();
    let mut length = [0; 4];
    // the greeting has no kind
    let mut kind = b'S';
    loop {
        if stream.read_exact(&mut length).await.is_err() {
            return;
        }
        let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        if kind == b'S' {
            let Some(answer) = script.next() else { break };
            if stream.write_all(&answer).await.is_err() {
                return;
            }
            if script.len() == 0 {
                break;
            }
        }
        let Ok(next) = stream.read_u8().await else { return };
        kind = next;
    }
    // what is still to be read is left to the other end
    let _ = stream.shutdown().await;
    std::future::pending::<()>().await;
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short message").to_be_bytes();
    [&[kind], length.as_slice(), body].concat()
}

/// `AuthenticationOk`, then `ReadyForQuery`.
fn greeting() -> Vec<u8> {
    [message(b'R', &[0; 4]), message(b'Z', b"I")].concat()
}

/// `ParseComplete`, `ParameterDescription`, `RowDescription`, `ReadyForQuery`.
fn description(shape: &[u32]) -> Vec<u8> {
    let mut columns = u16::try_from(shape.len()).expect("a few").to_be_bytes().to_vec();
    for oid in shape {
        // name, table, column, type, size, modifier, format
        columns.extend_from_slice(&[b'c', 0, 0, 0, 0, 0, 0, 0]);
        columns.extend_from_slice(&oid.to_be_bytes());
        columns.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    }
    [message(b'1', &[]), message(b't', &[0, 0]), message(b'T', &columns), message(b'Z', b"I")].concat()
}

/// `CommandComplete`, `ReadyForQuery`.
fn end() -> Vec<u8> {
    [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat()
}

fn rows_of(columns: usize, mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while !data.is_empty() {
        let mut row = u16::try_from(columns).expect("a few").to_be_bytes().to_vec();
        for _ in 0..columns {
            let Some((length, rest)) = data.split_first() else { return out };
            if *length == 255 {
                row.extend_from_slice(&(-1_i32).to_be_bytes());
                data = rest;
                continue;
            }
            let (value, rest) = rest.split_at(rest.len().min(usize::from(*length)));
            row.extend_from_slice(&u32::try_from(value.len()).expect("at most 254").to_be_bytes());
            row.extend_from_slice(value);
            data = rest;
        }
        out.extend_from_slice(&message(b'D', &row));
    }
    out
}
