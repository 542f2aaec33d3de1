//! The snapshots of a volume at one node: what metadata lists, and what the store has.
//!
//! One task per volume, [`follow_snapshots`], makes the two the same: the owner makes what is listed and not made yet, in the
//! order in which it was asked for, and tells metadata what came of it; every node deletes what is not listed any more. So a
//! snapshot that was asked for is made whatever happens to whoever asked, by the next owner if need be. It also tells that a
//! clone is there, after which the snapshot that it comes from is not needed any more.
//!
//! One that is made of several volumes at one cut ([`super::cut`]) is left to whoever makes it, and those after it wait for that. If nobody
//! does any more, it is taken off the list.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, SnapshotId};
use consensus::{Made, Snapshot, Volume};
use tokio::sync::Notify;

use super::outcome::{Outcomes, retry};
use super::volume::{ServedVolume, store_failure};
use crate::ownership::driver::OwnershipLog;
use crate::ownership::gate::Phase;

/// What metadata says of a volume's snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listed {
    snapshots: Vec<Snapshot>,
    /// The newest one of which it can say whether it exists.
    newest: SnapshotId,
    /// Whether the volume is a clone of which the owner has not said that it is there.
    is_new_clone: bool,
}

/// The snapshots that metadata lists.
#[derive(Debug, Default)]
pub struct Snapshots {
    listed: watch::Sender<Listed>,
    look: Notify,
    /// Whether this process makes one of several volumes, or is about to.
    is_cutting: AtomicBool,
}

/// As long as it lasts, this process makes a snapshot of several volumes that is one of this volume too.
pub struct Cutting(Arc<ServedVolume>);

impl Cutting {
    /// Begins with `volume`; there is one at a time, since a volume changes in one way at a time.
    #[must_use]
    pub fn begin(volume: Arc<ServedVolume>) -> Cutting {
        volume.snapshots.is_cutting.store(true, Ordering::Release);
        Cutting(volume)
    }
}

impl Drop for Cutting {
    fn drop(&mut self) {
        self.0.snapshots.is_cutting.store(false, Ordering::Release);
        self.0.snapshots.told();
    }
}

impl Snapshots {
    /// Metadata says this; called in the order of metadata.
    pub fn list(&self, meta: &Volume) {
        let is_new_clone = meta.origin.is_some_and(|origin| !origin.is_made);
        let listed = Listed { snapshots: meta.snapshots.clone(), newest: meta.newest_snapshot, is_new_clone };
        self.listed.send_if_modified(|before| {
            let is_news = *before != listed;
            *before = listed;
            is_news
        });
    }

    /// The store may have one more.
    pub fn told(&self) {
        self.look.notify_one();
    }

    /// Every snapshot, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Snapshot> {
        self.listed.borrow().snapshots.clone()
    }

    /// The snapshot called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Snapshot> {
        self.listed.borrow().snapshots.iter().find(|snapshot| snapshot.name.as_str() == name).cloned()
    }

    /// Waits until `snapshot` is made, at most `patience`; `None` when it is not, or is deleted.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn made(&self, snapshot: SnapshotId, patience: Duration) -> Option<Made> {
        let mut watch = self.listed.subscribe();
        let find = |listed: &Listed| listed.snapshots.iter().find(|found| found.id == snapshot).map(|found| found.made);
        // Listed and made, or known to be gone.
        let is_settled = |listed: &Listed| listed.newest >= snapshot && find(listed) != Some(None);
        let settled = tokio::time::timeout(patience, watch.wait_for(is_settled)).await;
        let listed = settled.ok()?.ok()?;
        find(&listed)?
    }
}

/// Keeps the snapshots in the store what metadata lists, until the volume is closed.
pub async fn follow_snapshots(volume: Arc<ServedVolume>, log: Arc<dyn OwnershipLog>) {
    let (mut listed, mut views) = (volume.snapshots.listed.subscribe(), volume.gate.subscribe());
    let mut outcomes = Outcomes::default();
    loop {
        let view = *views.borrow_and_update();
        let now = listed.borrow_and_update().clone();
        let owner = match view.phase {
            Phase::Closed => return,
            Phase::Owner => Some(view.epoch),
            Phase::Activating | Phase::Transferring(_) | Phase::Elsewhere => None,
        };
        let outcome = follow(&volume, &*log, &now, owner).await;
        // A handover under way, consensus out of reach, or the volume deleted meanwhile.
        let passing = [ErrorKind::Busy, ErrorKind::NotOwner, ErrorKind::Unavailable, ErrorKind::Closed];
        outcomes.note(&outcome, &passing, |error| {
            tracing::error!(volume = %volume.name, epoch = %view.epoch, %error, "snapshots are not as listed; it is tried again");
        });
        let changed = tokio::select! {
            biased;
            changed = listed.changed() => changed,
            changed = views.changed() => changed,
            () = volume.snapshots.look.notified() => Ok(()),
            () = retry(&outcome) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn follow(
    volume: &ServedVolume,
    log: &dyn OwnershipLog,
    listed: &Listed,
    owner: Option<Epoch>,
) -> Result<(), Error> {
    // A node that has left the volume keeps all that it has: also what the takeover took off the list.
    let stored = match volume.standing.tail() {
        Some(_) => Vec::new(),
        None => volume.shard.snapshots(volume.id).await.map_err(store_failure)?,
    };
    for stored in stored {
        let is_listed = listed.snapshots.iter().any(|snapshot| snapshot.id == stored.snapshot);
        if !is_listed && stored.snapshot <= listed.newest {
            volume.shard.delete_snapshot(volume.id, stored.snapshot).await.map_err(store_failure)?;
            tracing::info!(volume = %volume.name, snapshot = %stored.snapshot, "a snapshot is deleted");
        }
    }
    let Some(epoch) = owner else { return Ok(()) };
    if listed.is_new_clone {
        log.clone_made(volume.id, epoch).await?;
        tracing::info!(volume = %volume.name, "a clone is made");
    }
    for snapshot in listed.snapshots.iter().filter(|snapshot| snapshot.made.is_none()) {
        if snapshot.cut.is_some() {
            if !volume.snapshots.is_cutting.load(Ordering::Acquire) {
                log.drop_unmade(vec![(volume.id, snapshot.id)]).await?;
                tracing::warn!(volume = %volume.name, snapshot = %snapshot.name, "a snapshot of a group was not made, and is dropped");
            }
            // What comes after it waits: this is not the newest that is listed by now.
            return Ok(());
        }
        let stored = volume.shard.create_snapshot(volume.id, snapshot.id).await.map_err(store_failure)?;
        let made = Made { lsn: stored.lsn, size: stored.size, at_ms: now_ms() };
        match log.snapshot_made(volume.id, epoch, snapshot.id, made).await {
            Ok(()) => {
                tracing::info!(volume = %volume.name, snapshot = %snapshot.name, lsn = %made.lsn, "a snapshot is made")
            }
            // Deleted meanwhile: the next look finds it not listed.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The owner's clock; one before 1970 is told as 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
