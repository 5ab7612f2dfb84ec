//! Keeps one instance registered: takes a lease, puts the key under it, renews the lease, checks that the key is still
//! what it should be, and starts over whenever any of that is lost. It never gives up.

use std::sync::Arc;

use etcd_client::{Client, Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp};
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::{Access, Link};
use super::failure::{Failure, UNREACHABLE, Waits, cancelled, has_lasted, limit};
use crate::config::Registry;
use crate::registry::instance::Instance;
use crate::registry::registration::{Desired, Registered, Registration};
use crate::registry::value;
use crate::telemetry::log::LogThrottle;

/// The key is checked with every so many renewals, even if no watch event asks for it.
const RENEWALS_PER_CHECK: u32 = 10;

/// Starts the task.
pub fn start(settings: &Registry, access: Arc<Access>, instance: Instance) -> Registration {
    let (registration, desired, observed) = Registration::new(Registered::Unknown);
    let key = value::key(&settings.prefix, &instance.service, &instance.addr);
    let settings = Arc::new(within_lease(settings));
    let changed_by_others = LogThrottle::default();
    let reconciler =
        Reconciler { settings, access, instance, key, desired, observed, lease: None, changed_by_others };
    tokio::spawn(reconciler.run());
    registration
}

/// Returns the settings with such a time limit of calls that a lease does not expire while a member is silent: of the
/// time from a renewal that is due to the end of the lease, two thirds are left to renew it at other members, or half at
/// the only one.
fn within_lease(settings: &Registry) -> Registry {
    let tries = if settings.endpoints.len() > 1 { 3 } else { 2 };
    let spare = settings.ttl.saturating_sub(settings.keepalive) / tries;
    Registry { timeout: settings.timeout.min(spare), ..settings.clone() }
}

struct Reconciler {
    settings: Arc<Registry>,
    access: Arc<Access>,
    instance: Instance,
    key: String,
    desired: watch::Receiver<Desired>,
    observed: watch::Sender<Registered>,
    /// Kept when a connection breaks: the lease may still be valid on the next one.
    lease: Option<i64>,
    /// Two processes that advertise one address overwrite each other's key for ever.
    changed_by_others: LogThrottle,
}

impl Reconciler {
    async fn run(mut self) {
        let mut waits = Waits::new(&self.settings);
        let mut logged = false;
        let refused = self.access.refused();
        let mut link = None;
        let mut connected = self.access.connected();
        loop {
            connected.mark_unchanged();
            let begun = Instant::now();
            let failure = match Box::pin(self.connected(link.take())).await {
                Ok(None) => return,
                Ok(renewed) => {
                    link = renewed;
                    continue;
                }
                Err(failure) => failure,
            };
            if refused.borrow().is_some() {
                return; // the process is about to end
            }
            let lease_lost = matches!(failure, Failure::LeaseLost);
            if lease_lost {
                self.lease = None;
            }
            if *self.observed.borrow() != Registered::Unknown {
                // a lost lease is etcd's answer, not a broken session
                if lease_lost || has_lasted(&self.settings, begun) {
                    waits.reset();
                }
                logged = false;
                self.observed.send_replace(Registered::Unknown);
            }
            if *self.desired.borrow() == Desired::Gone {
                return; // the lease ends by itself
            }
            let wait = waits.after(&failure);
            if std::mem::replace(&mut logged, true) {
                // one line for an outage, not one every second
                tracing::debug!(key = %self.key, error = %failure, ?wait, "not registered");
            } else {
                let hint = failure.is_of_connecting().then_some(UNREACHABLE);
                tracing::warn!(key = %self.key, error = %failure, hint, "not registered, trying until it is");
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // another task of this process has found etcd
                _ = connected.changed(), if failure.is_of_connecting() => {}
                changed = self.desired.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Runs one session, over a new connection if there is none. Returns the connection for the next session, `None` at
    /// the end.
    async fn connected(&mut self, link: Option<Link>) -> Result<Option<Link>, Failure> {
        let access = self.access.clone();
        let link = match link {
            Some(link) => link,
            None => access.connect().await?,
        };
        match self.session(&access, &link).await {
            Err(failure) => access.recover(link, failure).await.map(Some),
            ended => ended,
        }
    }

    /// Registers and keeps registered, until the returned connection replaces the current one. Returns `None` when the
    /// desired state is `Gone`, or when the [`Registration`] has been dropped.
    async fn session(&mut self, access: &Access, link: &Link) -> Result<Option<Link>, Failure> {
        let settings = self.settings.clone();
        let mut client = link.client.clone();
        let renewed = access.renewed(link);
        tokio::pin!(renewed);
        let lease = if let Some(lease) = self.lease {
            lease
        } else {
            let ttl = i64::try_from(settings.ttl.as_secs()).unwrap_or(i64::MAX);
            let granted = limit(&settings, "a lease", client.lease_grant(ttl, None)).await?;
            *self.lease.insert(granted.id())
        };
        let (mut keeper, mut answers) = match limit(&settings, "a renewal", client.lease_keep_alive(lease))
            .await
        {
            Err(Failure::Etcd(etcd_client::Error::LeaseKeepAliveError(_))) => return Err(Failure::LeaseLost),
            other => other?,
        };
        // others may delete or overwrite the key
        let mut own_key = limit(&settings, "a watch", client.watch(self.key.as_str(), None)).await?;
        self.apply(&mut client, lease).await?;

        let mut tick = tokio::time::interval_at(Instant::now() + settings.keepalive, settings.keepalive);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut renewals: u32 = 0;
        // if another process also writes this key, each repair causes a new event: one repair between renewals is enough
        let (mut repaired, mut dirty) = (false, false);
        loop {
            tokio::select! {
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return Ok(None);
                    }
                    self.apply(&mut client, lease).await?;
                    if *self.desired.borrow() == Desired::Gone {
                        return Ok(None);
                    }
                }
                renewed = &mut renewed => return Ok(Some(renewed)),
                _ = tick.tick() => {
                    limit(&settings, "a renewal", keeper.keep_alive()).await?;
                    let answer = limit(&settings, "a renewal", answers.message()).await?;
                    if answer.ok_or(Failure::Ended)?.ttl() <= 0 {
                        return Err(Failure::LeaseLost);
                    }
                    renewals = renewals.wrapping_add(1);
                    if dirty || renewals.is_multiple_of(RENEWALS_PER_CHECK) {
                        repaired = self.check(&mut client, lease).await?;
                    } else {
                        repaired = false;
                    }
                    dirty = false;
                }
                event = own_key.message() => {
                    let event = event?.ok_or(Failure::Ended)?;
                    if event.canceled() {
                        return Err(cancelled(&event));
                    }
                    if !event.events().is_empty() {
                        if repaired {
                            dirty = true;
                        } else {
                            repaired = self.check(&mut client, lease).await?;
                        }
                    }
                }
            }
        }
    }

    /// Writes the desired state. Only `Up` takes the key from others; while draining, a key under another lease belongs
    /// to a successor at the same address.
    async fn apply(&mut self, client: &mut Client, lease: i64) -> Result<(), Failure> {
        let settings = self.settings.clone();
        let desired = *self.desired.borrow_and_update();
        let key = self.key.as_str();
        let ours = [Compare::lease(key, CompareOp::Equal, lease)];
        let reached = match desired {
            Desired::Up => {
                self.put(client, lease).await?;
                Registered::Up
            }
            Desired::Draining => {
                let put = TxnOp::put(key, self.value(desired), Some(PutOptions::new().with_lease(lease)));
                let txn = Txn::new().when(ours).and_then([put]);
                limit(&settings, "a put", client.txn(txn)).await?;
                Registered::Draining
            }
            Desired::Deleted => {
                let txn = Txn::new().when(ours).and_then([TxnOp::delete(key, None)]);
                limit(&settings, "a delete", client.txn(txn)).await?;
                Registered::Absent
            }
            Desired::Gone => {
                limit(&settings, "a revoke", client.lease_revoke(lease)).await?;
                Registered::Gone
            }
        };
        if *self.observed.borrow() != reached {
            tracing::info!(key, state = reached.name(), "registration");
        }
        self.observed.send_replace(reached);
        Ok(())
    }

    async fn put(&self, client: &mut Client, lease: i64) -> Result<(), Failure> {
        let options = PutOptions::new().with_lease(lease);
        let put = client.put(self.key.as_str(), self.value(Desired::Up), Some(options));
        match limit(&self.settings, "a put", put).await {
            Err(Failure::Etcd(error)) if error.to_string().contains("lease not found") => {
                Err(Failure::LeaseLost)
            }
            other => other.map(|_| ()),
        }
    }

    fn value(&self, desired: Desired) -> String {
        value::encode(&Instance { draining: desired == Desired::Draining, ..self.instance.clone() })
    }

    /// Puts the key again if others have deleted it, overwritten it or detached it from the lease. Returns whether they
    /// had.
    async fn check(&self, client: &mut Client, lease: i64) -> Result<bool, Failure> {
        if *self.desired.borrow() != Desired::Up {
            return Ok(false);
        }
        let found = limit(&self.settings, "a get", client.get(self.key.as_str(), None)).await?;
        if found.kvs().first().is_some_and(|kv| self.is_ours(kv, lease)) {
            return Ok(false);
        }
        if let Some(times) = self.changed_by_others.note() {
            tracing::warn!(key = %self.key, times, "the key was changed by others, putting it again");
        }
        self.put(client, lease).await?;
        Ok(true)
    }

    fn is_ours(&self, kv: &KeyValue, lease: i64) -> bool {
        kv.lease() == lease && kv.value() == self.value(Desired::Up).as_bytes()
    }
}
