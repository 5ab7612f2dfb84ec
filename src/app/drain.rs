//! The order in which the members of one process drain: a member begins when all its callers in the process have ended
//! their drains, so that a request that has begun still finds the services it needs.
//!
//! Who calls whom is in [`Member::calls`]; there is no other order.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::role::Member;

/// The drain of one process.
pub struct Drain {
    stop: CancellationToken,
    /// Counts the members of each kind that have not ended.
    present: BTreeMap<Member, TaskTracker>,
}

/// One member's part in a drain.
pub struct Turn {
    stop: CancellationToken,
    callers: Vec<TaskTracker>,
    present: TaskTrackerToken,
}

impl Drain {
    /// Returns the drain that `stop` begins.
    pub fn new(stop: CancellationToken) -> Self {
        let present = Member::ALL.map(|member| (member, TaskTracker::new()));
        Self { stop, present: present.into() }
    }

    /// Adds a member. It counts as present until the returned value, or the token in it, is dropped.
    pub fn join(&self, member: Member) -> Turn {
        let tracker = |member| self.present.get(&member).cloned().unwrap_or_default();
        Turn {
            stop: self.stop.clone(),
            callers: member.callers().map(tracker).collect(),
            present: tracker(member).token(),
        }
    }

    /// Returns the token that begins the drain.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Closes the list of members. Services do not begin to drain before, since a caller may still be added.
    pub fn close(self) {
        for tracker in self.present.values() {
            tracker.close();
        }
    }
}

impl Turn {
    /// Waits until it is this member's turn to drain. Returns a token to hold until the drain has ended.
    pub async fn begin(self) -> TaskTrackerToken {
        self.stop.cancelled().await;
        for caller in self.callers {
            caller.wait().await;
        }
        self.present
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::app::role::ServiceKind;

    const FEED: Member = Member::Service(ServiceKind::Feed);
    const PROFILE: Member = Member::Service(ServiceKind::Profile);
    const TOPIC: Member = Member::Service(ServiceKind::Topic);
    const HOUR: Duration = Duration::from_hours(1);

    /// Runs members whose drains take so many seconds. Returns when, in seconds after the stop, each began and ended.
    async fn drained(members: &[(Member, u64)]) -> Vec<(u64, u64)> {
        let stop = CancellationToken::new();
        let drain = Drain::new(stop.clone());
        let times = Arc::new(Mutex::new(vec![(0, 0); members.len()]));
        let begun = tokio::time::Instant::now();
        let tasks: Vec<_> = members
            .iter()
            .enumerate()
            .map(|(index, (member, takes))| {
                let (turn, takes, times) = (drain.join(*member), *takes, times.clone());
                tokio::spawn(async move {
                    let _present = turn.begin().await;
                    let start = begun.elapsed().as_secs();
                    tokio::time::sleep(Duration::from_secs(takes)).await;
                    times.lock().unwrap()[index] = (start, begun.elapsed().as_secs());
                })
            })
            .collect();
        drain.close();
        tokio::time::sleep(Duration::ZERO).await;
        assert!(tasks.iter().all(|task| !task.is_finished()), "nothing drains before the stop");
        stop.cancel();
        for task in tasks {
            task.await.unwrap();
        }
        let times = times.lock().unwrap();
        times.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn members_drain_after_their_callers() {
        // as in `up` with replicas: the slowest replica of a caller counts
        let members = [(FEED, 1), (FEED, 2), (PROFILE, 5), (PROFILE, 9), (TOPIC, 4), (Member::Gateway, 3)];
        let times = drained(&members).await;
        assert_eq!(times, [(12, 13), (12, 14), (3, 8), (3, 12), (3, 7), (0, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_without_callers_in_the_process_drains_at_once() {
        for member in Member::ALL {
            assert_eq!(drained(&[(member, 2)]).await, [(0, 2)], "{member:?}");
        }
        assert_eq!(drained(&[(FEED, 1), (TOPIC, 1)]).await, [(0, 1), (0, 1)]);
        assert_eq!(drained(&[(FEED, 1), (PROFILE, 3)]).await, [(3, 4), (0, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_waits_until_no_caller_can_be_added() {
        let stop = CancellationToken::new();
        let drain = Drain::new(stop.clone());
        let feed = tokio::spawn(drain.join(FEED).begin());
        stop.cancel();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let gateway = drain.join(Member::Gateway);
        drain.close();
        assert!(timeout(Duration::from_secs(1), gateway.begin()).await.is_ok(), "it waits for nobody");
        drop(timeout(HOUR, feed).await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_fails_is_not_waited_for() {
        let stop = CancellationToken::new();
        let drain = Drain::new(stop.clone());
        let (feed, gateway) = (drain.join(FEED), drain.join(Member::Gateway));
        drain.close();
        stop.cancel();
        drop(gateway);
        drop(timeout(HOUR, feed.begin()).await.unwrap());
    }
}
