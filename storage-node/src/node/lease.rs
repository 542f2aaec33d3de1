//! Keeps the node's lease and watches the others': the effects of [`Keeper`] on consensus, and the clock of leases.

use std::sync::Arc;
use std::time::Duration;

use client_lib::NodeId;
use client_lib::clock::{Clock, SystemClock};
use consensus::{Command, MetaRaft, MetaState, Refusal, Response};
use rustix::time::{ClockId, clock_gettime};

use crate::ownership::expiry::LeaseWatch;
use crate::ownership::lease::{Effect, Event, Keeper, LeaseCell};

/// Monotonic time that goes on while the machine sleeps: a lease must not outlast that (`man 2 clock_gettime`,
/// `CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        let time = clock_gettime(ClockId::Boottime);
        // Neither is ever negative: it counts from the start of the machine.
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
    }

    fn unix_ms(&self) -> u64 {
        SystemClock::new().unix_ms()
    }
}

/// Renews the lease of node `me` for as long as it has to do with any volume, and tells the shards through `cell`.
pub async fn keep(meta: MetaRaft, me: NodeId, cell: Arc<LeaseCell>) {
    let mut states = meta.subscribe();
    let mut keeper = Keeper::new(meta.state().lease(me).lapses);
    loop {
        let state = states.borrow_and_update().clone();
        let duration = meta.timings().lease;
        let lapses = state.lease(me).lapses;
        if keeper.on(cell.now(), duration, Event::Lapsed { lapses }).is_some() {
            tracing::warn!(lapses, "this node's lease was found to be out: it takes up its volumes anew");
            cell.hold(keeper.terms());
        }
        let is_needed = has_volumes(&state, me);
        if is_needed && let Some(Effect::Ask { asked, lapses, duration }) = keeper.on(cell.now(), duration, Event::Wake)
        {
            cell.hold(keeper.terms());
            let event = ask(&meta, me, asked, lapses, duration).await;
            if keeper.on(cell.now(), duration, event).is_some() {
                cell.hold(keeper.terms());
            }
            continue;
        }
        let rest = keeper.next().saturating_sub(cell.now());
        tokio::select! {
            biased;
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(rest), if is_needed => {}
        }
    }
}

/// Asks for the lease, for a part of what it lasts: a question that is put anew counts from later.
async fn ask(meta: &MetaRaft, me: NodeId, asked: Duration, lapses: u64, duration: Duration) -> Event {
    let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let command = Command::RenewLease { node: me, lapses, duration_ms };
    match meta.propose(command, duration / consensus::timings::LEASE_RENEWALS).await {
        Ok(Response::LeaseGranted { .. }) => Event::Granted { asked },
        Ok(Response::Refused(Refusal::LeaseLapsed { lapses, .. })) => Event::Lapsed { lapses },
        Ok(other) => {
            tracing::error!(?other, "a lease was answered out of turn");
            Event::Failed { asked }
        }
        Err(error) => {
            tracing::warn!(%error, "the lease is not renewed; while it is out, reads and writes wait");
            Event::Failed { asked }
        }
    }
}

/// Notes every renewal of every node's lease as soon as it is applied here.
pub async fn watch_others(meta: MetaRaft, leases: Arc<LeaseWatch>) {
    let mut states = meta.subscribe();
    loop {
        let state = states.borrow_and_update().clone();
        for (node, lease) in state.leases() {
            leases.observe(node, &lease);
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Whether node `me` owns or follows any volume, and so keeps up its lease.
pub(super) fn has_volumes(state: &MetaState, me: NodeId) -> bool {
    state.volumes().any(|volume| volume.owner == me || volume.replicas.contains(&me))
}
