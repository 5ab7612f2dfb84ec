//! A highly available PostgreSQL: three nodes that Patroni keeps, over three members of etcd. Each node is a process
//! tree of its own behind relays, so that a part of it can be killed, frozen, slowed or cut off.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::cluster::Cluster;
use super::http::{request, send};
use super::lane::Lane;
use super::postgres::{self, Postgres};
use super::relay::{Direction, Faults};
use super::{wait_for, wait_long_for};

mod node;

pub use node::Node;

/// Time between two looks of a Patroni. Far below what one would set in production, so that a test takes seconds.
pub const LOOP_WAIT: Duration = Duration::from_secs(1);

/// Major version of the Patroni that is tested.
pub static MAJOR: LazyLock<u32> = LazyLock::new(node::major_version);

/// Life of the leader's key: the shortest that this Patroni takes, or less than one would set in production.
pub static TTL: LazyLock<Duration> = LazyLock::new(|| Duration::from_secs(if *MAJOR < 4 { 5 } else { 20 }));

/// Pause between two questions to a Patroni.
const PAUSE: Duration = Duration::from_millis(150);

/// Time after which a Patroni that has not done its part after a fault is taken to have an old view of etcd.
const STALE: Duration = Duration::from_secs(10);

/// Bytes that a replica may lack to count as one that follows, while writes go on.
const NEAR: u64 = 1 << 20;

/// What a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// Nothing: what is not replicated yet is lost with the primary.
    Asynchronous,
    /// The one synchronous standby, or until there is one that is fit. It alone is promoted.
    Synchronous,
    /// Whichever standby is the quickest, or until there is one. Needs Patroni 4.
    Quorum,
}

impl Replication {
    /// Returns the role of the standbys that may be promoted, in Patroni's words, and how many there are of them.
    const fn standbys(self) -> (&'static str, usize) {
        match self {
            Self::Asynchronous => ("sync_standby", 0),
            Self::Synchronous => ("sync_standby", 1),
            Self::Quorum => ("quorum_standby", 2),
        }
    }
}

/// Three nodes and their etcd.
pub struct Patroni {
    pub nodes: Vec<Node>,
    pub etcd: Cluster,
    waits_for: Replication,
    /// Where the relays run.
    _lane: Lane,
}

impl Patroni {
    /// Starts it and waits until it has a primary and, if commits wait for one, a synchronous standby.
    pub async fn start(waits_for: Replication) -> Self {
        let lane = Lane::start();
        // a busy machine must not cost it its leader; its shortest lease is then 3 s
        let etcd =
            lane.run(Cluster::start_with(&["--heartbeat-interval=200", "--election-timeout=2000"])).await;
        let members: Vec<_> = etcd.members.iter().map(|member| member.addr).collect();
        let mut nodes = Vec::new();
        for number in 0..3 {
            nodes.push(lane.run(Node::start(number, members.clone(), waits_for)).await);
        }
        let patroni = Self { nodes, etcd, waits_for, _lane: lane };
        patroni.wait_until_whole().await;
        let server = patroni.nodes[patroni.primary().await].server;
        let admin =
            wait_for("the primary answers", || postgres::connect(server, "postgres", "postgres")).await;
        postgres::create_database(&admin).await;
        patroni
    }

    /// Waits until one node leads and the others have all that it has, as the standbys that there have to be.
    async fn wait_until_whole(&self) {
        let (standby, standbys) = self.waits_for.standbys();
        Self::wait("the database cluster is whole", || async {
            let members = self.members().await?;
            let role = |name: &str| members.iter().filter(|member| member["role"] == name).count();
            let leader = members.iter().find(|member| member["role"] == "leader")?;
            let follows = |member: &Value| {
                let near = member["lag"].as_u64().is_none_or(|bytes| bytes < NEAR);
                // Patroni 4 has a word of its own for a standby that follows
                let runs = member["state"] == "running" || member["state"] == "streaming";
                runs && member["timeline"] == leader["timeline"] && near
            };
            let following = members.iter().filter(|member| follows(member)).count();
            (following == 3 && role(standby) == standbys).then_some(())
        })
        .await;
    }

    /// Waits until the cluster is whole again after a fault.
    pub async fn wait_until_healed(&self) {
        tokio::select! {
            () = self.wait_until_whole() => {}
            () = self.watch_anew() => {}
        }
    }

    /// Ends the watches of etcd now and then. A Patroni before 3.1 that did not run for a while may keep an old view of
    /// etcd; then it makes no change, and says "Synchronous replication key updated by someone else" each time
    /// (patroni/patroni#2779).
    async fn watch_anew(&self) {
        loop {
            sleep(STALE).await;
            self.nodes.iter().for_each(Node::watch_anew);
        }
    }

    /// Returns what the first node that answers knows of the members.
    async fn members(&self) -> Option<Vec<Value>> {
        for node in &self.nodes {
            if let Some(answer) = node.ask("/cluster").await {
                return answer["members"].as_array().cloned();
            }
        }
        None
    }

    /// Waits for something that a Patroni is asked for, each time with some work for it and for etcd.
    async fn wait<T, F: Future<Output = Option<T>>>(what: &str, probe: impl Fn() -> F) -> T {
        wait_long_for(what, || async {
            let found = probe().await;
            if found.is_none() {
                sleep(PAUSE).await;
            }
            found
        })
        .await
    }

    /// Waits until a node is the primary by its own word, and returns its number.
    pub async fn primary(&self) -> usize {
        self.primary_beside(usize::MAX).await
    }

    /// Waits until another node than one that is lost is the primary, and returns its number.
    pub async fn primary_beside(&self, lost: usize) -> usize {
        Self::wait("a node is the primary", || async {
            for (number, node) in self.nodes.iter().enumerate().filter(|(number, _)| *number != lost) {
                if node.is_primary().await {
                    return Some(number);
                }
            }
            None
        })
        .await
    }

    /// Waits until there is a standby that may be promoted, and returns its number.
    pub async fn standby(&self) -> usize {
        let (role, _) = self.waits_for.standbys();
        Self::wait("there is a standby that may be promoted", || async {
            let members = self.members().await?;
            let standby = members.iter().find(|member| member["role"] == role)?;
            self.nodes.iter().position(|node| standby["name"] == node.name)
        })
        .await
    }

    /// Returns the numbers of the primary, a standby that may be promoted and the third node.
    pub async fn roles(&self) -> [usize; 3] {
        let (primary, standby) = (self.primary().await, self.standby().await);
        [primary, standby, 3 - primary - standby]
    }

    /// Returns a store's URL with the nodes in this order, each by its relay.
    pub fn url(&self, order: [usize; 3]) -> String {
        Postgres::url_at(&order.map(|number| self.nodes[number].clients.addr))
    }

    /// Asks for another primary by hand.
    pub async fn switchover(&self, from: usize, to: usize) {
        let body = json!({ "leader": self.nodes[from].name, "candidate": self.nodes[to].name }).to_string();
        let answer =
            send(self.nodes[from].rest, request("POST", "/switchover", &body)).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// Cuts a node off from its clients, from etcd and from the other nodes. These cannot ask each other for their
    /// state either: what they need for that is a vote of etcd.
    pub fn cut_off(&self, number: usize) {
        self.nodes[number].cut_off();
        for node in &self.nodes {
            node.peers_rest.set(Faults::cut());
        }
    }

    /// Makes the answers of a node to other nodes late.
    pub fn delay_answers(&self, number: usize, delay: Duration) {
        let late = Direction { delay, ..Direction::default() };
        self.nodes[number].peers_rest.set(Faults { down: late, ..Faults::default() });
    }

    /// Takes etcd away, or all but one of its members, which then has no leader.
    pub fn stop_etcd(&mut self, members: std::ops::Range<usize>) {
        for member in &mut self.etcd.members[members] {
            member.kill();
        }
    }

    /// Starts the members of etcd again and waits until they answer.
    pub async fn restart_etcd(&mut self) {
        for member in &mut self.etcd.members {
            member.launch();
        }
        self.etcd.leader().await;
    }

    /// Ends every fault of the relays and every freeze, and starts the nodes that are gone.
    pub async fn heal(&mut self) {
        for node in &mut self.nodes {
            node.heal();
            node.signal_server(Signal::CONT);
            node.signal_patroni(Signal::CONT);
            node.launch_if_gone().await;
        }
    }

    /// Returns where clients reach the nodes directly, past every relay.
    pub fn direct(&self) -> [SocketAddr; 3] {
        [0, 1, 2].map(|number| self.nodes[number].server)
    }
}
