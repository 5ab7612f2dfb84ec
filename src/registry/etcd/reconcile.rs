//! Keeps one instance registered: grants a lease, puts the key under it, renews it, looks whether the
//! key is still what it should be, and begins anew whenever any of that is lost. It never gives up.

use std::sync::Arc;

use etcd_client::{Client, GetResponse, PutOptions};
use tokio::sync::watch;

use super::{Failure, backoff, connect, limit};
use crate::config::Registry;
use crate::registry::{Instance, Registered, Registration, Wish, value};

/// Renewals between two looks at the key that no watch event asked for.
const RENEWALS_PER_LOOK: u32 = 10;

/// Starts the task.
pub fn start(settings: Arc<Registry>, instance: Instance) -> Registration {
    let (wish, wishes) = watch::channel(Wish::Up);
    let (state, state_rx) = watch::channel(Registered::Absent);
    let key = value::key(&settings.prefix, &instance.service, &instance.addr);
    let reconciler = Reconciler { settings, instance, key, wishes, state, lease: None };
    tokio::spawn(reconciler.run());
    Registration { wish, state: state_rx }
}

struct Reconciler {
    settings: Arc<Registry>,
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
        loop {
            let failure = match self.session().await {
                Ok(()) => return,
                Err(failure) => failure,
            };
            if matches!(failure, Failure::LeaseLost) {
                self.lease = None;
            }
            if *self.state.borrow() != Registered::Absent {
                backoff.reset();
                self.state.send_replace(Registered::Absent);
            }
            if *self.wishes.borrow() == Wish::Gone {
                return; // the lease ends by itself
            }
            let wait = backoff.next_wait();
            tracing::warn!(key = %self.key, error = %failure, ?wait, "not registered, trying again");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.wishes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One connection: registers and keeps registered. `Ok` when the wish is `Gone`, or when nobody
    /// wishes any more.
    async fn session(&mut self) -> Result<(), Failure> {
        let settings = self.settings.clone();
        let mut client = connect(&settings).await?;
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
        loop {
            tokio::select! {
                changed = self.wishes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.fulfil(&mut client, lease).await?;
                    if *self.wishes.borrow() == Wish::Gone {
                        return Ok(());
                    }
                }
                _ = tick.tick() => {
                    limit(&settings, "a renewal", keeper.keep_alive()).await?;
                    let answer = limit(&settings, "a renewal", answers.message()).await?;
                    if answer.ok_or(Failure::Ended)?.ttl() <= 0 {
                        return Err(Failure::LeaseLost);
                    }
                    renewals = renewals.wrapping_add(1);
                    if renewals.is_multiple_of(RENEWALS_PER_LOOK) {
                        self.look(&mut client, lease).await?;
                    }
                }
                event = own_key.message() => {
                    let event = event?.ok_or(Failure::Ended)?;
                    if event.canceled() {
                        return Err(Failure::Cancelled(event.cancel_reason().to_owned()));
                    }
                    if !event.events().is_empty() {
                        self.look(&mut client, lease).await?;
                    }
                }
            }
        }
    }

    /// Makes the registry what is wished.
    async fn fulfil(&mut self, client: &mut Client, lease: i64) -> Result<(), Failure> {
        let settings = self.settings.clone();
        let wish = *self.wishes.borrow_and_update();
        let reached = match wish {
            Wish::Up | Wish::Draining => {
                self.put(client, lease, wish).await?;
                if wish == Wish::Up { Registered::Up } else { Registered::Draining }
            }
            Wish::Deleted => {
                limit(&settings, "a delete", client.delete(self.key.as_str(), None)).await?;
                Registered::Absent
            }
            Wish::Gone => {
                limit(&settings, "a revoke", client.lease_revoke(lease)).await?;
                Registered::Gone
            }
        };
        if *self.state.borrow() != reached {
            tracing::info!(key = %self.key, state = reached.name(), "registration");
        }
        self.state.send_replace(reached);
        Ok(())
    }

    async fn put(&self, client: &mut Client, lease: i64, wish: Wish) -> Result<(), Failure> {
        let options = PutOptions::new().with_lease(lease);
        let put = client.put(self.key.as_str(), self.value(wish), Some(options));
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

    /// Puts the key again if somebody deleted it, overwrote it or took it from the lease.
    async fn look(&self, client: &mut Client, lease: i64) -> Result<(), Failure> {
        let wish = *self.wishes.borrow();
        if !matches!(wish, Wish::Up | Wish::Draining) {
            return Ok(());
        }
        let found = limit(&self.settings, "a get", client.get(self.key.as_str(), None)).await?;
        if self.is_ours(&found, lease, wish) {
            return Ok(());
        }
        tracing::warn!(key = %self.key, "somebody changed the key, putting it again");
        self.put(client, lease, wish).await
    }

    fn is_ours(&self, found: &GetResponse, lease: i64, wish: Wish) -> bool {
        let kv = found.kvs().first();
        kv.is_some_and(|kv| kv.lease() == lease && kv.value() == self.value(wish).as_bytes())
    }
}
