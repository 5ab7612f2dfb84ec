//! Keeps one instance registered: grants a lease, puts the key under it, renews it, looks whether the
//! key is still what it should be, and begins anew whenever any of that is lost. It never gives up.

use std::sync::Arc;

use etcd_client::{Client, Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp};
use tokio::sync::watch;

use super::connect::{Access, Link};
use super::{Failure, backoff, limit};
use crate::config::Registry;
use crate::registry::{Instance, Registered, Registration, Wish, value};

/// Renewals between two looks at the key that no watch event asked for.
const RENEWALS_PER_LOOK: u32 = 10;

/// Starts the task.
pub fn start(settings: Arc<Registry>, access: Arc<Access>, instance: Instance) -> Registration {
    let (wish, wishes) = watch::channel(Wish::Up);
    let (state, state_rx) = watch::channel(Registered::Unknown);
    let key = value::key(&settings.prefix, &instance.service, &instance.addr);
    let reconciler = Reconciler { settings, access, instance, key, wishes, state, lease: None };
    tokio::spawn(reconciler.run());
    Registration { wish, state: state_rx }
}

struct Reconciler {
    settings: Arc<Registry>,
    access: Arc<Access>,
    instance: Instance,
    key: String,
    wishes: watch::Receiver<Wish>,
    state: watch::Sender<Registered>,
    /// Outlives a broken connection: the lease may still be good on the next one.
    lease: Option<i64>,
}

impl Reconciler {
    async fn run(mut self) {
        let mut backoff = backoff(&self.settings);
        let mut told = false;
        let refused = self.access.refused();
        let mut link = None;
        loop {
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
            if matches!(failure, Failure::LeaseLost) {
                self.lease = None;
            }
            if *self.state.borrow() != Registered::Unknown {
                backoff.reset();
                told = false;
                self.state.send_replace(Registered::Unknown);
            }
            if *self.wishes.borrow() == Wish::Gone {
                return; // the lease ends by itself
            }
            let wait = backoff.next_wait();
            if std::mem::replace(&mut told, true) {
                // an outage is one line, not one a second
                tracing::debug!(key = %self.key, error = %failure, ?wait, "not registered");
            } else {
                tracing::warn!(key = %self.key, error = %failure, "not registered, trying until it is");
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.wishes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One session, on a new connection if there is none. Returns the connection to go on with, `None` at
    /// the end.
    async fn connected(&mut self, link: Option<Link>) -> Result<Option<Link>, Failure> {
        let access = self.access.clone();
        let link = match link {
            Some(link) => link,
            None => access.connect().await?,
        };
        match self.session(&access, &link).await {
            Err(failure) => access.recover(&link, failure).await.map(Some),
            ended => ended,
        }
    }

    /// Registers and keeps registered, until the connection is to be replaced by the returned one. `None`
    /// when the wish is `Gone`, or when nobody wishes any more.
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
        // somebody may delete or overwrite the key
        let mut own_key = limit(&settings, "a watch", client.watch(self.key.as_str(), None)).await?;
        self.fulfil(&mut client, lease).await?;

        let mut tick =
            tokio::time::interval_at(tokio::time::Instant::now() + settings.keepalive, settings.keepalive);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut renewals: u32 = 0;
        // somebody else who wants this key would answer each repair at once: one a renewal is enough
        let (mut repaired, mut dirty) = (false, false);
        loop {
            tokio::select! {
                changed = self.wishes.changed() => {
                    if changed.is_err() {
                        return Ok(None);
                    }
                    self.fulfil(&mut client, lease).await?;
                    if *self.wishes.borrow() == Wish::Gone {
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
                    if dirty || renewals.is_multiple_of(RENEWALS_PER_LOOK) {
                        repaired = self.look(&mut client, lease).await?;
                    } else {
                        repaired = false;
                    }
                    dirty = false;
                }
                event = own_key.message() => {
                    let event = event?.ok_or(Failure::Ended)?;
                    if event.canceled() {
                        return Err(Failure::Cancelled(event.cancel_reason().to_owned()));
                    }
                    if !event.events().is_empty() {
                        if repaired {
                            dirty = true;
                        } else {
                            repaired = self.look(&mut client, lease).await?;
                        }
                    }
                }
            }
        }
    }

    /// Makes the registry what is wished. Only `Up` takes the key; once draining, a key that is no longer
    /// under our lease belongs to a successor at the same address.
    async fn fulfil(&mut self, client: &mut Client, lease: i64) -> Result<(), Failure> {
        let settings = self.settings.clone();
        let wish = *self.wishes.borrow_and_update();
        let key = self.key.as_str();
        let ours = [Compare::lease(key, CompareOp::Equal, lease)];
        let reached = match wish {
            Wish::Up => {
                self.put(client, lease).await?;
                Registered::Up
            }
            Wish::Draining => {
                let put = TxnOp::put(key, self.value(wish), Some(PutOptions::new().with_lease(lease)));
                let txn = Txn::new().when(ours).and_then([put]);
                limit(&settings, "a put", client.txn(txn)).await?;
                Registered::Draining
            }
            Wish::Deleted => {
                let txn = Txn::new().when(ours).and_then([TxnOp::delete(key, None)]);
                limit(&settings, "a delete", client.txn(txn)).await?;
                Registered::Absent
            }
            Wish::Gone => {
                limit(&settings, "a revoke", client.lease_revoke(lease)).await?;
                Registered::Gone
            }
        };
        if *self.state.borrow() != reached {
            tracing::info!(key, state = reached.name(), "registration");
        }
        self.state.send_replace(reached);
        Ok(())
    }

    async fn put(&self, client: &mut Client, lease: i64) -> Result<(), Failure> {
        let options = PutOptions::new().with_lease(lease);
        let put = client.put(self.key.as_str(), self.value(Wish::Up), Some(options));
        match limit(&self.settings, "a put", put).await {
            Err(Failure::Etcd(error)) if error.to_string().contains("lease not found") => {
                Err(Failure::LeaseLost)
            }
            other => other.map(|_| ()),
        }
    }

    fn value(&self, wish: Wish) -> String {
        value::encode(&Instance { draining: wish == Wish::Draining, ..self.instance.clone() })
    }

    /// Puts the key again if somebody deleted it, overwrote it or took it from the lease. Returns whether
    /// that was so.
    async fn look(&self, client: &mut Client, lease: i64) -> Result<bool, Failure> {
        if *self.wishes.borrow() != Wish::Up {
            return Ok(false);
        }
        let found = limit(&self.settings, "a get", client.get(self.key.as_str(), None)).await?;
        if found.kvs().first().is_some_and(|kv| self.is_ours(kv, lease)) {
            return Ok(false);
        }
        tracing::warn!(key = %self.key, "somebody changed the key, putting it again");
        self.put(client, lease).await?;
        Ok(true)
    }

    fn is_ours(&self, kv: &KeyValue, lease: i64) -> bool {
        kv.lease() == lease && kv.value() == self.value(Wish::Up).as_bytes()
    }
}
