//! Volumes: created, listed, looked at, deleted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client_lib::clock::{Clock, SystemClock};
use client_lib::policy::Durability;
use client_lib::policy::placement::Placement;
use client_lib::wire::admin::{
    CloneOrigin, CreateVolume, EncryptionStatus, ReplicaStatus, RpoStatus, VolumeStatus, VolumeSummary,
};
use client_lib::{BLOCK_SIZE, Error, ErrorKind, NodeId, VolumeId, VolumeName, VolumeSize};
use consensus::state::{MetaState, Origin};
use consensus::{Command, Response};

use super::durability::{asked_for, require_possible};
use super::elsewhere::elsewhere;
use super::links::{fetch_told, freight_told};
use super::names::{node_named, volume_named};
use super::placement::require_few;
use super::space::unix_ms_of;
use super::{NodeAdmin, deleted, nonce, out_of_turn};
use crate::node::policy::action_named;
use crate::node::propagation::mode_told;
use crate::node::takeover::tail_status;
use crate::node::{METADATA_DEADLINE, reach};
use crate::peer::message::AdminForward;
use crate::propagation::watermarks::Watermarks;
use crate::serve::volume::{ServedVolume, store_failure};

/// How long a new volume may take to be served at its owner before `create` says so.
const CREATE_PATIENCE: Duration = Duration::from_secs(10);

impl NodeAdmin {
    pub(super) async fn create(&self, request: CreateVolume) -> Result<VolumeStatus, Error> {
        let name: VolumeName = request.name.parse()?;
        let size = VolumeSize::try_from(request.size_bytes)?;
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let owner = match &request.owner {
            Some(owner) => node_named(&state, owner)?,
            None => self.this.id,
        };
        let rule = request.placement.as_deref().map(str::parse::<Placement>).transpose()?;
        let replicas: BTreeSet<NodeId> = match (&request.replicas, &rule) {
            (Some(_), Some(_)) => {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "name the replicas, or a rule of placement, not both",
                ));
            }
            (None, Some(rule)) => {
                self.require_places_known(&state).await?;
                self.replicas_by(&state, owner, rule).await
            }
            (Some(names), None) => names.iter().map(|name| node_named(&state, name)).collect::<Result<_, _>>()?,
            (None, None) => self.replicas_unasked(&state, owner).await,
        };
        let replicas: BTreeSet<NodeId> = replicas.into_iter().filter(|replica| *replica != owner).collect();
        require_few(&name, &replicas)?;
        let (class, unmet) = (request.durability.as_deref(), request.unmet.as_deref());
        let durability = asked_for(Durability::default(), class, unmet, request.degrade_after_ms)?;
        if !request.accept_unmet {
            require_possible(&state, name.as_str(), durability.class, owner, replicas.iter().copied())?;
        }
        if request.keys.is_some() {
            self.require_keys_known_to_all(&state).await?;
        }
        let nonce = nonce();
        let command = match (request.keys, durability == Durability::default()) {
            (Some(keys), _) => {
                Command::CreateEncryptedVolume { name: name.clone(), size, owner, replicas, durability, keys, nonce }
            }
            (None, true) => Command::CreateVolume { name: name.clone(), size, owner, replicas, nonce },
            (None, false) => {
                Command::CreateVolumeOfClass { name: name.clone(), size, owner, replicas, durability, nonce }
            }
        };
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::VolumeCreated { volume } => {
                if rule.is_some() {
                    let command = Command::SetPlacement { volumes: [volume].into(), placement: rule };
                    self.meta.carry_out(command, METADATA_DEADLINE).await?;
                }
                self.created(volume).await
            }
            other => Err(out_of_turn(&other)),
        }
    }

    /// Waits until the owner serves the new volume, so that a client may connect at once.
    pub(super) async fn created(&self, id: VolumeId) -> Result<VolumeStatus, Error> {
        let ready = async {
            loop {
                match self.status_of(id).await {
                    Ok(status) => return Ok(status),
                    Err(error) if error.kind() == ErrorKind::Unavailable || error.kind() == ErrorKind::Busy => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(CREATE_PATIENCE, ready).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "the volume was created, but its owner does not serve it yet: is that node up? `helio cluster status` tells",
            ))
        })
    }

    pub(super) async fn list(&self) -> Result<Vec<VolumeSummary>, Error> {
        let state = self.recall().await;
        Ok(state
            .volumes()
            .map(|volume| VolumeSummary {
                name: volume.name.to_string(),
                size_bytes: volume.size.bytes(),
                owner: state.name_of(volume.owner),
                epoch: volume.epoch.0,
                replicas: volume.replicas.iter().map(|replica| state.name_of(*replica)).collect(),
                durability: volume.durability.class.to_string(),
                encrypted: state.keys(volume.id).is_some(),
            })
            .collect())
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?.id;
        if let Some(group) = state.group_of(volume) {
            let group = &group.name;
            let what = format!(
                "volume {name} is in group {group}: take it out with `helio group remove {group} {name}` first"
            );
            return Err(Error::new(ErrorKind::InvalidRequest, what));
        }
        self.meta.carry_out(Command::DeleteVolume { volume }, METADATA_DEADLINE).await.map(drop)
    }

    pub(in crate::node) async fn status_of(&self, id: VolumeId) -> Result<VolumeStatus, Error> {
        self.at_owner(id, AdminForward::Status { volume: id }, |served| self.status_here(served)).await
    }

    pub(super) async fn status_here(&self, volume: Arc<ServedVolume>) -> Result<VolumeStatus, Error> {
        let state = self.meta.state();
        let meta = state.volume(volume.id).ok_or_else(|| deleted(&volume))?;
        let report = volume.shard.report(volume.id).await.map_err(store_failure)?;
        let marks = self.reconciler.watermarks(volume.id);
        if let Some(marks) = &marks {
            marks.note_head(report.head);
        }
        let mut progress = marks.as_ref().map(|marks| reach::known(marks, self.peers.links())).unwrap_or_default();
        // Those that only a snapshot lacks are among them.
        let elsewhere = elsewhere(&state, meta, report.stale_blocks, &progress);
        let now_ms = SystemClock::new().unix_ms();
        let mut replicas = Vec::with_capacity(meta.replicas.len());
        for replica in &meta.replicas {
            let seen = progress.remove(replica).unwrap_or_default();
            let watermark = seen.position.watermark;
            let ago = marks.as_ref().and_then(|marks| marks.moment_ago(watermark));
            let ago = if watermark >= report.head { Some(Duration::ZERO) } else { ago };
            // What was written since the replica's last word counts too.
            let changed = volume.shard.changed_blocks(volume.id, seen.base()).await.map_err(store_failure)?;
            // Of what it was told of it holds what has come already; the rest it has not heard of.
            let untold = volume
                .shard
                .changed_blocks(volume.id, seen.position.known.max(seen.base()))
                .await
                .map_err(store_failure)?;
            let to_send = match seen.rejoining {
                Some(_) => None,
                None => Some(changed.min(seen.stale_blocks() + untold)),
            };
            let lacked = changed + seen.rejoining.map_or(0, |rejoining| rejoining.discarded);
            // The newest write may have a position and not be carried out yet: nobody lacks it.
            let behind = marks.as_ref().filter(|_| lacked > 0).map_or(Duration::ZERO, |marks| marks.behind(watermark));
            replicas.push(ReplicaStatus {
                node: state.name_of(*replica),
                provider: state.node(*replica).map(|node| node.provider.to_string()).unwrap_or_default(),
                watermark: watermark.to_string(),
                known: seen.position.known.to_string(),
                to_send_bytes: Some(to_send.unwrap_or(lacked) * u64::from(BLOCK_SIZE)),
                bytes_behind: lacked * u64::from(BLOCK_SIZE),
                seconds_behind: behind.as_secs_f64(),
                consistent_ms: ago.map(|ago| now_ms.saturating_sub(ago.as_millis() as u64)),
                stale_bytes: seen.stale_blocks() * u64::from(BLOCK_SIZE),
                reachable: seen.reachable,
                counts: volume.flushes.counts(*replica),
                is_rejoining: seen.rejoining.is_some(),
                is_joining: state.places().is_joining(meta.id, *replica),
                tail: seen.tail.map(|tail| tail_status(&state, meta, *replica, tail)),
                error: seen.error,
                policy: mode_told(meta.propagation.of(*replica)),
                limit_bytes_per_second: self.peers.links().limit(*replica),
                freight: marks.as_ref().map(|marks| freight_told(marks.freight(*replica))).unwrap_or_default(),
            });
        }
        let source_needed = elsewhere.as_ref().and_then(|it| it.all_at.first().or(it.some_at.first()).cloned());
        let stale_bytes = report.stale_blocks * u64::from(BLOCK_SIZE);
        let durability = self.durability_here(&state, meta, &volume, stale_bytes).await?;
        Ok(VolumeStatus {
            name: meta.name.to_string(),
            id: meta.id.0,
            size_bytes: meta.size.bytes(),
            owner: state.name_of(meta.owner),
            epoch: meta.epoch.0,
            head: report.head.to_string(),
            mapped_bytes: report.mapped_blocks * u64::from(BLOCK_SIZE),
            stale_bytes,
            replicas,
            source_needed,
            elsewhere,
            damaged_blocks: report.damaged_blocks,
            repaired_blocks: report.repaired_blocks,
            verified_blocks: report.verified_blocks,
            fault_since_ms: report.fault.as_ref().and_then(|_| volume.shard.fault_since()).map(unix_ms_of),
            fault: report.fault,
            not_given_away: self.not_given_away(&state, meta, &volume),
            stepped_down: state.has_stepped_down(meta.id),
            is_full: report.is_full,
            space: self.volume_space(&volume).await?,
            durability,
            rpo: marks.map(|marks| rpo_told(&volume, &marks)).unwrap_or_default(),
            on_write: meta.on_write.map(|to| state.name_of(to)),
            clone_of: meta.origin.map(|origin| origin_told(&state, origin)),
            group: state.group_of(meta.id).map(|group| group.name.to_string()),
            fetch: fetch_told(volume.puller.fetched(), report.stale_blocks),
            encryption: state.keys(meta.id).map(EncryptionStatus::from),
            placement: match state.places().wanted(meta.id) {
                Some(rule) => Some(self.told(&state, meta, Some(rule)).await),
                None => None,
            },
            written_bytes: report.tally.blocks * u64::from(BLOCK_SIZE),
        })
    }
}

/// What a clone began as, as far as that still has a name.
fn origin_told(state: &MetaState, origin: Origin) -> CloneOrigin {
    let volume = state.volume(origin.volume);
    let snapshot = volume.and_then(|volume| volume.snapshots.iter().find(|listed| listed.id == origin.snapshot));
    CloneOrigin {
        volume: volume.map(|volume| volume.name.to_string()),
        snapshot: snapshot.map(|snapshot| snapshot.name.to_string()),
        is_made: origin.is_made,
    }
}

/// What the loss of the owner would cost, and may cost.
pub(super) fn rpo_told(volume: &ServedVolume, marks: &Watermarks) -> RpoStatus {
    let rpo = volume.pace.rpo();
    let lag = marks.highest().map(|watermark| marks.behind(watermark));
    // The target is looked at now and then, the lag is as of now: that is not said to be missed which this one is within.
    let is_within = |target_ms| lag.is_some_and(|lag| lag <= Duration::from_millis(target_ms));
    let missed = rpo.filter(|rpo| !is_within(rpo.target_ms)).and_then(|_| marks.missed_for());
    RpoStatus {
        seconds: lag.map(|lag| lag.as_secs_f64()),
        target_ms: rpo.map(|rpo| rpo.target_ms),
        action: rpo.map(|rpo| action_named(rpo.action).to_owned()),
        missed_seconds: missed.map(|missed| missed.as_secs_f64()),
        limit_bytes_per_second: volume.pace.rate(),
    }
}
