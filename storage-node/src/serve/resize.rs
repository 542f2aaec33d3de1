//! The size of a volume at one node: what metadata wants, and what is in force.
//!
//! One task per volume, [`follow_size`], brings the store to the newest size wanted, in the order of metadata, and again
//! whenever this node becomes the owner: only the owner drops what lies beyond a smaller end. Only that task says what is
//! in force, so an administrator can wait for it, and nobody acts on a size that is not durable here. Which sizes may be
//! wanted is decided where they are proposed (`node::admin`).

use std::sync::Arc;
use std::time::Duration;

use client_lib::transport::Class;
use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, VolumeSize};

use super::outcome::{Outcomes, retry};
use super::volume::{ServedVolume, store_failure};
use crate::ownership::gate::Phase;
use crate::shard::handle::{Role, StoreError};
use crate::volume::Moment;

/// The size that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The size.
    pub size: VolumeSize,
    /// The ownership under which it was carried out here; `Epoch(0)` when this node was not the owner.
    pub epoch: Epoch,
}

/// The sizes of a volume, wanted and in force.
#[derive(Debug)]
pub struct Sizes {
    wanted: watch::Sender<VolumeSize>,
    in_force: watch::Sender<InForce>,
}

impl Sizes {
    /// A volume of which `size` is in force so far.
    #[must_use]
    pub fn new(size: VolumeSize) -> Sizes {
        Sizes { wanted: watch::Sender::new(size), in_force: watch::Sender::new(InForce { size, epoch: Epoch(0) }) }
    }

    /// Metadata says this; called in the order of metadata, and before the ownership that it also says is taken up.
    pub fn want(&self, size: VolumeSize) {
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, size) != size);
    }

    /// What clients are told.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        *self.in_force.borrow()
    }

    /// The size that is wanted is in force, unless another one is wanted by now.
    fn put(&self, found: InForce) {
        self.in_force.send_if_modified(|before| {
            *self.wanted.borrow() == found.size && std::mem::replace(before, found) != found
        });
    }

    /// Waits until `wanted` is in force, at most `patience`; whether it is.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn reaches(&self, wanted: InForce, patience: Duration) -> bool {
        let mut watch = self.in_force.subscribe();
        let reached = tokio::time::timeout(patience, watch.wait_for(|found| *found == wanted)).await;
        reached.is_ok_and(|found| found.is_ok())
    }

    /// Waits until the volume has at least `end` bytes, at most `patience`; whether it has.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn covers(&self, end: u64, patience: Duration) -> bool {
        let mut watch = self.in_force.subscribe();
        let reached = tokio::time::timeout(patience, watch.wait_for(|found| found.size.bytes() >= end)).await;
        reached.is_ok_and(|found| found.is_ok())
    }
}

/// Keeps the size in force what metadata wants, until the volume is closed.
pub async fn follow_size(volume: Arc<ServedVolume>) {
    let (mut wanted, mut views) = (volume.sizes.wanted.subscribe(), volume.gate.subscribe());
    let mut outcomes = Outcomes::default();
    loop {
        // The view first: the size read after it is that of the ownership it shows, or newer. The other way round an old
        // size could be carried out under a new ownership.
        let view = *views.borrow_and_update();
        let size = *wanted.borrow_and_update();
        let outcome = match view.phase {
            Phase::Closed => return,
            // Not now: what is held must be the same before and after.
            Phase::Activating | Phase::Transferring(_) => Ok(()),
            Phase::Owner => put_in_force(&volume, size, Some(view.epoch)).await,
            Phase::Elsewhere => put_in_force(&volume, size, None).await,
        };
        // A handover under way or a holder out of reach.
        let passing = [ErrorKind::Busy, ErrorKind::NotOwner, ErrorKind::Unavailable];
        outcomes.note(&outcome, &passing, |error| {
            tracing::error!(volume = %volume.name, epoch = %view.epoch, size = size.bytes(), %error, "the size is not in force; it is tried again");
        });
        let changed = tokio::select! {
            biased;
            changed = wanted.changed() => changed,
            changed = views.changed() => changed,
            () = retry(&outcome) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Lets a volume grow before this node takes up its ownership, so that nobody who has seen the size is refused. A
/// failure is left to [`follow_size`], which tries again and says so.
pub async fn grow(volume: &ServedVolume, size: VolumeSize) {
    if volume.shard.resize(volume.id, size, None).await.is_ok_and(|report| report.size >= size) {
        volume.sizes.put(InForce { size, epoch: Epoch(0) });
    }
}

async fn put_in_force(volume: &ServedVolume, size: VolumeSize, owner: Option<Epoch>) -> Result<(), Error> {
    let report = loop {
        match volume.shard.resize(volume.id, size, owner).await {
            Ok(report) => break report,
            // The block that the new end cuts is not here yet.
            Err(StoreError::Stale { runs }) => volume.puller.pull(Moment::Now, &runs, Class::Pull, &[]).await?,
            Err(error) => return Err(store_failure(error)),
        }
    };
    // A replica keeps what lies beyond a smaller end until the owner's zeroes arrive.
    let carried_out = |epoch: &Epoch| report.role == Role::Owner && report.epoch == *epoch && report.size == size;
    volume.sizes.put(InForce { size, epoch: owner.filter(carried_out).unwrap_or(Epoch(0)) });
    Ok(())
}
