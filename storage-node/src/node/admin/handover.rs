//! Handovers, as an administrator asks for them; and that a volume changes in one way at a time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use client_lib::wire::admin::{Migrate, MigrateReport};
use client_lib::{Error, ErrorKind, NodeId, VolumeId};
use tokio_util::sync::CancellationToken;

use super::durability::require_possible;
use super::names::{name_of, node_named, volume_named};
use super::{NodeAdmin, moved};
use crate::node::METADATA_DEADLINE;
use crate::ownership::driver::Driver;
use crate::peer::message::AdminForward;
use crate::serve::volume::ServedVolume;

impl NodeAdmin {
    pub(super) async fn migrate_to(&self, name: &str, request: &Migrate) -> Result<MigrateReport, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let to = node_named(&state, &request.to)?;
        if volume.owner != to && !volume.replicas.contains(&to) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "node {} holds no replica of volume {name}; its replicas are at {}",
                    name_of(&state, to),
                    volume.replicas.iter().map(|node| name_of(&state, *node)).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
        if volume.owner != to && !request.accept_unmet {
            let replicas = volume.replicas.iter().copied().chain([volume.owner]).filter(|node| *node != to);
            require_possible(&state, name, volume.durability.class, to, replicas)?;
        }
        let (volume, synced) = (volume.id, request.synced);
        let forward = match synced {
            true => AdminForward::MigrateSynced { volume, to },
            false => AdminForward::Migrate { volume, to },
        };
        self.at_owner(volume, forward, |served| self.migrate_here(served, to, synced)).await
    }

    pub(super) async fn migrate_here(
        &self,
        volume: Arc<ServedVolume>,
        to: NodeId,
        synced: bool,
    ) -> Result<MigrateReport, Error> {
        let view = volume.gate.view();
        if to == self.this.id {
            // Already there: a repeated request is a success that took no time.
            let epoch = view.epoch.0;
            return Ok(MigrateReport { handover_ms: 0.0, epoch, stale_bytes_at_handover: 0, caught_up_seconds: 0.0 });
        }
        let busy = Busy::begin(self.busy.clone(), &volume)?;
        let driver = Driver::new(volume.clone(), to, view.epoch, self.ownership.clone(), CancellationToken::new());
        let driver = match (synced, self.reconciler.watermarks(volume.id)) {
            (false, _) => driver,
            (true, Some(watermarks)) => driver.synced(watermarks),
            (true, None) => return Err(moved(volume.id)),
        };
        // A task of its own: it goes on, and stays marked, when the one who asked stops waiting.
        let task = tokio::spawn(async move {
            let _busy = busy;
            driver.run().await
        });
        let report = task
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, "the handover ended early").caused_by(error))??;
        tracing::info!(volume = %volume.name, epoch = %report.epoch, to = %to, held = ?report.held, stale_bytes = report.stale_bytes, "handed over");
        Ok(MigrateReport {
            handover_ms: report.held.as_secs_f64() * 1000.0,
            epoch: report.epoch.0,
            stale_bytes_at_handover: report.stale_bytes,
            caught_up_seconds: report.caught_up.as_secs_f64(),
        })
    }
}

/// Marks a volume as being handed over, taken over or resized; another such request meanwhile is refused.
pub(in crate::node) struct Busy {
    busy: Arc<Mutex<BTreeSet<VolumeId>>>,
    volume: VolumeId,
}

impl Busy {
    pub(in crate::node) fn begin(busy: Arc<Mutex<BTreeSet<VolumeId>>>, volume: &ServedVolume) -> Result<Busy, Error> {
        if !busy.lock().unwrap_or_else(PoisonError::into_inner).insert(volume.id) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "volume {} is being handed over, taken over or resized already; wait for that to end",
                    volume.name
                ),
            ));
        }
        Ok(Busy { busy, volume: volume.id })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
    }
}
