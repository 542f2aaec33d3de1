//! Repairing what was found damaged when nobody reads it: on replicas, and by the cleaner, the sender or a scrub.
//!
//! A guest's read fetches what it needs itself. This task looks after the rest: it asks the shard now and then what is
//! damaged and fetches it from other holders. What nobody else has is tried again later, more and more seldom: a holder may
//! come back, and a newer version heals the block as well. A full store takes some repairs ([`crate::log::writer`]); when it has refused one, the others
//! of the volume wait a while with it, for what was repaired may have made room.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client_lib::transport::Class;
use client_lib::{ErrorKind, VolumeId};
use tokio::time::Instant;

use super::pull::{PULL_BLOCKS_MAX, split};
use crate::serve::volumes::Volumes;
use crate::shard::handle::{DamagedBlocks, ShardHandle};

/// How often the shard is asked.
const LOOK: Duration = Duration::from_secs(1);

/// First and longest pause after no other holder had a damaged block of a volume.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// Pause after a full store had no room for a repair.
const FULL_PAUSE: Duration = Duration::from_secs(10);

/// Repairs the damaged blocks of `volumes` in `shard` until the shard has stopped.
pub async fn run(volumes: Arc<Volumes>, shard: ShardHandle) {
    let mut waits: BTreeMap<VolumeId, (Instant, Duration)> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(damaged) = shard.damaged().await else { return };
        waits.retain(|volume, _| damaged.iter().any(|damaged| damaged.volume == *volume));
        for DamagedBlocks { volume: id, moment, runs } in damaged {
            let Some(volume) = volumes.get(id) else { continue };
            let (due, pause) = waits.get(&id).copied().unwrap_or((Instant::now(), RETRY_PAUSE.0));
            if Instant::now() < due {
                continue;
            }
            // Each part by itself: one block that nobody has must not keep the others from being repaired.
            for run in split(&runs, PULL_BLOCKS_MAX).into_iter().flatten() {
                let Err(error) = volume.puller.repair(moment, &[run], Class::Bulk, &[]).await else { continue };
                tracing::error!(volume = %volume.name, block = %run.start, count = run.count, %error, "damaged blocks cannot be repaired now");
                if error.kind() == ErrorKind::OutOfSpace {
                    waits.insert(id, (Instant::now() + FULL_PAUSE, RETRY_PAUSE.0));
                    break;
                }
                waits.insert(id, (Instant::now() + pause, (pause * 2).min(RETRY_PAUSE.1)));
            }
        }
    }
}
