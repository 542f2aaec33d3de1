//! A snapshot of several volumes at one cut: a write that was begun after another was acked is in it only if that one is.
//!
//! It is listed first, for all volumes, with the mark that this process makes it. Then writes are held on every volume; when they are,
//! the snapshot is made in each; then they go on; and what came of it is told for all at once. Whatever ends this on the way, the process
//! included, leaves none listed: metadata drops what is marked and not made with the process or the ownership, and [`super::snapshots`] what
//! this one gave up. What is stored and not listed is deleted like any snapshot.

use std::sync::Arc;
use std::time::Duration;

use client_lib::{Epoch, Error, ErrorKind, SnapshotId, SnapshotName, VolumeGroupId, VolumeId};
use consensus::Made;
use futures_util::future::{join_all, try_join_all};

use super::snapshots::{Cutting, now_ms};
use super::volume::{ServedVolume, store_failure};
use crate::ownership::driver::{FREEZE_DEADLINE, OwnershipLog};
use crate::shard::handle::FreezeWhen;

/// Pause before consensus is told again of what nobody may have heard.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What a snapshot of several volumes came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutReport {
    /// Its id in every volume.
    pub snapshot: SnapshotId,
    /// What it is of each, in the order of the volumes.
    pub made: Vec<Made>,
    /// How long writers were held.
    pub held: Duration,
}

/// Makes a snapshot called `name` of `volumes`, which are all of `group` and owned here in these epochs, in the order of their ids.
///
/// # Errors
/// The snapshot is made of none, and not listed, or will be dropped.
///
/// # Cancel safety
/// Not safe: run it as a task.
pub async fn snapshot_together(
    group: VolumeGroupId,
    volumes: &[(Arc<ServedVolume>, Epoch)],
    name: SnapshotName,
    nonce: u64,
    log: &dyn OwnershipLog,
) -> Result<CutReport, Error> {
    let _cutting: Vec<Cutting> = volumes.iter().map(|(volume, _)| Cutting::begin(volume.clone())).collect();
    let members: Vec<(VolumeId, Epoch)> = volumes.iter().map(|(volume, epoch)| (volume.id, *epoch)).collect();
    let snapshot = log.snapshot_group(group, name, members.clone(), nonce).await?;

    let began = tokio::time::Instant::now();
    // A volume whose disk does not answer holds the writers of the others no longer than a handover would.
    let made = tokio::time::timeout(FREEZE_DEADLINE, make(volumes, snapshot)).await.unwrap_or_else(|_| {
        let what = format!(
            "the volumes could not be held within {FREEZE_DEADLINE:?}, and the snapshot is made of none of them: is a disk slow, or a volume being \
             rolled back?"
        );
        Err(Error::new(ErrorKind::Unavailable, what))
    });
    // Whatever came of it, also of those that could not be frozen.
    let thawed = join_all(volumes.iter().map(|(volume, _)| volume.thaw())).await;
    let held = began.elapsed();
    let made = match made.and_then(|made| thawed.into_iter().collect::<Result<Vec<()>, Error>>().map(|_| made)) {
        Ok(made) => made,
        Err(error) => {
            // Should this not be heard, it is dropped when this process has given up making it.
            let all = members.iter().map(|(volume, _)| (*volume, snapshot)).collect();
            let _ = log.drop_unmade(all).await;
            return Err(error);
        }
    };
    let told: Vec<(VolumeId, Epoch, Made)> =
        members.iter().zip(&made).map(|((volume, epoch), made)| (*volume, *epoch, *made)).collect();
    loop {
        match log.group_snapshot_made(snapshot, told.clone()).await {
            Ok(()) => return Ok(CutReport { snapshot, made, held }),
            // It is there: whether that was heard will be known.
            Err(error) if error.kind() == ErrorKind::Unavailable => tokio::time::sleep(RETRY_PAUSE).await,
            Err(error) => {
                let what = "the snapshot was dropped before all of it was known to be made: try again";
                return Err(Error::new(ErrorKind::Busy, what).caused_by(error));
            }
        }
    }
}

/// Holds the writes of every volume, and then makes the snapshot of each.
async fn make(volumes: &[(Arc<ServedVolume>, Epoch)], snapshot: SnapshotId) -> Result<Vec<Made>, Error> {
    let frozen = join_all(volumes.iter().map(|(volume, _)| volume.shard.freeze(volume.id, FreezeWhen::Always))).await;
    frozen.into_iter().collect::<Result<Vec<_>, _>>().map_err(store_failure)?;
    let at_ms = now_ms();
    let made = try_join_all(volumes.iter().map(|(volume, _)| volume.shard.create_frozen(volume.id, snapshot))).await;
    let made = made.map_err(store_failure)?;
    Ok(made.into_iter().map(|stored| Made { lsn: stored.lsn, size: stored.size, at_ms }).collect())
}
