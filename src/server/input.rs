//! What has arrived on a connection behind a request.

/// Lets the connection of a request read what has arrived meanwhile. A request with an effect does this before it
/// begins: a caller that has given up may have said so right behind the request (a reset, the end of the connection),
/// and nobody has read it yet if the process was stopped or busy.
///
/// *Cancellation*: this is where the future of a request is dropped whose caller has given up.
pub async fn read_pending() {
    // hyper looks for the caller's reset only after the handler was pending: the first time the connection reads, the
    // second time hyper has seen what was read
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
}
