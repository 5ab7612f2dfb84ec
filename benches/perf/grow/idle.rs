//! A process that holds idle connections: `idle http|h2 ADDR COUNT` prints `open` once they are.

use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::net::TcpStream;

pub fn child(arguments: &[String]) -> ExitCode {
    let [kind, addr, count] = arguments else { panic!("idle http|h2 ADDR COUNT") };
    let addr: SocketAddr = addr.parse().expect("an address");
    let count: usize = count.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut streams, mut senders) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let stream = TcpStream::connect(addr).await.expect("it listens");
            if kind == "h2" {
                let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
                tokio::spawn(connection);
                senders.push(sender);
            } else {
                streams.push(stream);
            }
        }
        // the other side takes what is in its backlog
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        println!("open");
        // until the parent ends it
        tokio::time::sleep(std::time::Duration::from_mins(10)).await;
        drop((streams, senders));
    });
    ExitCode::SUCCESS
}
