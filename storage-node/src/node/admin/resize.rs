//! Another size for a volume, proposed by its owner and waited for.

use std::sync::Arc;
use std::time::Duration;

use client_lib::wire::admin::{Resize, VolumeStatus};
use client_lib::{Error, ErrorKind, VolumeSize};

use super::handover::Busy;
use super::names::volume_named;
use super::{NodeAdmin, deleted, moved, outcome};
use crate::node::METADATA_DEADLINE;
use crate::peer::message::AdminForward;
use crate::serve::resize::InForce;
use crate::serve::volume::ServedVolume;
use crate::{ownership, size};

/// How long a size may take to be in force at the owner before `resize` says so: dropping much data takes its time.
/// It may be waited for twice, which is shorter than the patience of the command line.
pub(super) const SIZE_PATIENCE: Duration = Duration::from_secs(30);

impl NodeAdmin {
    pub(super) async fn resize_to(&self, name: &str, request: Resize) -> Result<VolumeStatus, Error> {
        let size = VolumeSize::try_from(request.size_bytes)?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?.id;
        let forward = AdminForward::Resize { volume, size, shrink: request.shrink };
        self.at_owner(volume, forward, |served| self.resize_here(served, size, request.shrink)).await
    }

    pub(super) async fn resize_here(
        &self,
        volume: Arc<ServedVolume>,
        size: VolumeSize,
        shrink: bool,
    ) -> Result<VolumeStatus, Error> {
        let busy = Busy::begin(self.busy.clone(), &volume)?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let meta = state.volume(volume.id).ok_or_else(|| deleted(&volume))?;
        if meta.owner != self.this.id {
            return Err(moved(volume.id));
        }
        if size < meta.size && !shrink {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "volume {} has {}; a smaller size drops all data beyond its end for good: add --shrink if that is meant",
                    volume.name,
                    size::human(meta.size.bytes())
                ),
            ));
        }
        // Another size may be wanted only when the last one is carried out: what was dropped must stay dropped.
        let (epoch, expected) = (meta.epoch, meta.size);
        in_force(&volume, InForce { size: expected, epoch }).await?;
        if size != expected {
            let (ownership, id) = (self.ownership.clone(), volume.id);
            // A task of its own, which stays marked: its outcome must be known before another one is proposed.
            let proposed = tokio::spawn(async move {
                let _busy = busy;
                ownership.resize(ownership::driver::Resize { volume: id, epoch, expected, size }).await
            });
            outcome::known(proposed, &format!("the size of volume {}", volume.name)).await?;
            tracing::info!(volume = %volume.name, %epoch, from = expected.bytes(), to = size.bytes(), "resized");
            in_force(&volume, InForce { size, epoch }).await?;
        }
        self.status_here(volume).await
    }
}

/// Waits until the owner has carried out a size.
async fn in_force(volume: &ServedVolume, wanted: InForce) -> Result<(), Error> {
    if volume.sizes.reaches(wanted, SIZE_PATIENCE).await {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!(
            "volume {} is to have {}, and its owner has not carried that out yet (its log says why); it goes on trying",
            volume.name,
            size::human(wanted.size.bytes())
        ),
    ))
}
