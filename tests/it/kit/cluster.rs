//! Three real members of etcd, each behind relays, so that one can be killed, frozen or cut off.

use std::net::SocketAddr;
use std::process::{Child, Command};

use rustix::process::Signal;

use super::relay::{Faults, Relay};
use super::{etcd, free_addr, wait_for};

/// One member. Its data ends with it.
pub struct Member {
    /// Where clients reach it, through a relay.
    pub addr: SocketAddr,
    direct: SocketAddr,
    clients: Relay,
    /// How the other members reach it.
    peers: Relay,
    data: tempfile::TempDir,
    args: Vec<String>,
    child: Child,
}

/// A cluster of three.
pub struct Cluster {
    pub members: Vec<Member>,
}

impl Cluster {
    /// Starts it and waits until every member answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with further arguments of every member.
    pub async fn start_with(further: &[&str]) -> Self {
        let addrs: Vec<_> = (0..3).map(|_| (free_addr(), free_addr())).collect();
        let mut relays = Vec::new();
        for (number, (_, peer)) in addrs.iter().enumerate() {
            relays.push(Relay::start(*peer, 0xe7cd + number as u64).await);
        }
        let named: Vec<_> = relays
            .iter()
            .enumerate()
            .map(|(number, relay)| format!("m{number}=http://{}", relay.addr))
            .collect();
        let mut members = Vec::new();
        for (number, ((client, peer), relay)) in addrs.into_iter().zip(relays).enumerate() {
            let clients = Relay::start(client, number as u64).await;
            let mut args = vec![
                format!("--name=m{number}"),
                format!("--listen-client-urls=http://{client}"),
                format!("--advertise-client-urls=http://{}", clients.addr),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-advertise-peer-urls=http://{}", relay.addr),
                format!("--initial-cluster={}", named.join(",")),
                "--log-level=error".to_owned(),
            ];
            args.extend(further.iter().map(ToString::to_string));
            let data = tempfile::tempdir().expect("a directory");
            let child = spawn(&args, &data);
            let addr = clients.addr;
            members.push(Member { addr, direct: client, clients, peers: relay, data, args, child });
        }
        let cluster = Self { members };
        for member in &cluster.members {
            member.wait_until_healthy().await;
        }
        cluster
    }

    /// Returns the endpoints as a setting wants them.
    pub fn endpoints(&self) -> String {
        self.members.iter().map(|member| member.addr.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Returns a client of one member.
    pub async fn client_of(&self, number: usize) -> etcd_client::Client {
        let endpoint = [self.members[number].direct.to_string()];
        etcd_client::Client::connect(endpoint, None).await.expect("a lazy client")
    }

    /// Returns the number of the member that leads.
    pub async fn leader(&self) -> usize {
        self.leader_beside(usize::MAX).await
    }

    /// Waits until another member than one that is lost leads, and returns its number.
    pub async fn leader_beside(&self, lost: usize) -> usize {
        wait_for("the cluster has a leader", || async {
            for (number, member) in self.members.iter().enumerate().filter(|(number, _)| *number != lost) {
                let client = etcd_client::Client::connect([member.direct.to_string()], None).await;
                let asked = async { client.ok()?.status().await.ok() };
                let status = tokio::time::timeout(std::time::Duration::from_millis(500), asked).await;
                if let Ok(Some(status)) = status
                    && status.leader() != 0
                    && status.header().is_some_and(|header| header.member_id() == status.leader())
                {
                    return Some(number);
                }
            }
            None
        })
        .await
    }

    /// Cuts one member off from its clients and from every connection that its peers opened to it. On
    /// those etcd sends what it has to say, so a leader is heard no more and another one is elected.
    pub fn partition(&self, number: usize) {
        let member = &self.members[number];
        member.clients.set(Faults::cut());
        member.peers.set(Faults::cut());
    }

    /// Ends every partition.
    pub fn heal(&self) {
        for member in &self.members {
            member.clients.heal();
            member.peers.heal();
        }
    }
}

impl Member {
    /// Kills it; its data stays.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on its data.
    pub fn launch(&mut self) {
        self.kill();
        self.child = spawn(&self.args, &self.data);
    }

    /// Starts it again on its data and waits until it answers, for which it needs a second member.
    pub async fn restart(&mut self) {
        self.launch();
        self.wait_until_healthy().await;
    }

    /// Sends a signal: `STOP` freezes it, `CONT` lets it go on. One that was killed hears nothing.
    pub fn signal(&self, signal: Signal) {
        super::process::signal(&self.child, signal);
    }

    async fn wait_until_healthy(&self) {
        etcd::wait_until_healthy(self.direct).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(args: &[String], data: &tempfile::TempDir) -> Child {
    let mut command = Command::new(etcd::program());
    command.args(args).arg("--data-dir").arg(data.path());
    etcd::quiet(command).spawn().expect("etcd is installed (make deps)")
}
