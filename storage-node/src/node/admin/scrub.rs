//! Scrubs that are asked for: at this node or passed on, and what the shards of a node say of theirs as one.

use client_lib::wire::admin::{ScrubState, ScrubStatus};
use client_lib::{BLOCK_SIZE, Error, ErrorKind, VolumeId};

use super::{METADATA_DEADLINE, NodeAdmin, node_named, replicas_told, volume_named};
use crate::peer::message::AdminForward;
use crate::serve::volume::store_failure;
use crate::shard::scrub::{Pass, PassState, ScrubAction, ScrubReport};

impl NodeAdmin {
    pub(super) async fn scrub_at(
        &self,
        action: ScrubAction,
        volume: Option<&str>,
        node: Option<&str>,
    ) -> Result<ScrubStatus, Error> {
        let Some(name) = volume else {
            let forward = AdminForward::Scrub { action, volume: None };
            return self.at_node(node, forward, || self.scrub_here(action, None)).await;
        };
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let at = node.map_or(Ok(volume.owner), |node| node_named(&state, node))?;
        if at != volume.owner && !volume.replicas.contains(&at) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "node {} holds nothing of volume {name}; its owner is {}, {}",
                    state.name_of(at),
                    state.name_of(volume.owner),
                    replicas_told(&state, volume)
                ),
            ));
        }
        let forward = AdminForward::Scrub { action, volume: Some(volume.id) };
        if at == self.this.id { self.scrub_here(action, Some(volume.id)).await } else { self.ask(at, forward).await }
    }

    pub(super) async fn scrub_here(&self, action: ScrubAction, volume: Option<VolumeId>) -> Result<ScrubStatus, Error> {
        let mut reports = Vec::new();
        let mut status = ScrubStatus { node: self.this.name.to_string(), ..ScrubStatus::default() };
        match volume {
            Some(id) => {
                let served = self.volumes.get(id).ok_or_else(|| {
                    Error::new(ErrorKind::Unavailable, format!("volume {id} is not served here (yet); try again"))
                })?;
                status.volume = Some(served.name.to_string());
                reports.push(served.shard.scrub(action, Some(id)).await.map_err(store_failure)?);
            }
            None => {
                for shard in self.reconciler.shards().all() {
                    reports.push(shard.scrub(action, None).await.map_err(store_failure)?);
                }
            }
        }
        sum(&mut status, &reports);
        Ok(status)
    }
}

/// The passes of several shards as one: under way while one of them is.
fn sum(status: &mut ScrubStatus, reports: &[ScrubReport]) {
    let bytes = |blocks: u64| blocks * u64::from(BLOCK_SIZE);
    let passes: Vec<&Pass> = reports.iter().filter_map(|report| report.pass.as_ref()).collect();
    let is_any = |state: PassState| passes.iter().any(|pass| pass.state == state);
    status.state = match () {
        () if passes.is_empty() => ScrubState::Never,
        () if is_any(PassState::Running) => ScrubState::Running,
        () if is_any(PassState::Stopped) => ScrubState::Stopped,
        () => ScrubState::Finished,
    };
    status.by_hand = passes.iter().any(|pass| pass.by_hand);
    status.began_ms = passes.iter().map(|pass| pass.began_ms).min();
    status.ended_ms = passes.iter().map(|pass| pass.ended_ms).max().filter(|_| status.state != ScrubState::Running);
    for pass in passes {
        status.total_bytes += bytes(pass.total_blocks);
        status.checked_bytes += bytes(pass.checked_blocks);
        status.damaged_blocks += pass.damaged_blocks;
        status.repaired_blocks += pass.repaired_blocks;
    }
    status.damaged_now = reports.iter().map(|report| report.damaged_now).sum();
}
