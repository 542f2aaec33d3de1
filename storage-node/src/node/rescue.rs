//! An owner whose store takes no writes any more gives its volumes away, with everything that it acked: whoever uses them sees a handover
//! (docs/ownership.md, *Rescue*).
//!
//! It needs a replica in reach, and a store that still reads. Where that is not to be had, it is tried again for as long as the node owns the volume:
//! what is read there goes on being read. Writes wait for it for a while (`serve/volume/rescue.rs`), and then a volume may be taken over
//! by itself, if that is its policy ([`super::stepping_down`]): that brings back what the replicas have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{Epoch, Error, ErrorKind, NodeId, VolumeId};
use consensus::{MetaState, Volume};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::admin::{NodeAdmin, name_of, require_class};
use crate::ownership::gate::Phase;
use crate::peer::message::{PeerRequest, ReplicaPosition};
use crate::serve::volume::ServedVolume;

/// How often it is looked whether a store has failed.
const LOOK: Duration = Duration::from_millis(100);

/// How many volumes are given away at a time.
const AT_ONCE: usize = 16;

/// How long a replica may take to say where it is.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// After so long another attempt is made, the first time and at the most.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What was tried for a volume.
struct Attempt {
    epoch: Epoch,
    pause: Duration,
    next: Instant,
}

/// Gives away what is to be given away, for as long as the node runs.
pub(super) async fn keep(admin: Arc<NodeAdmin>) {
    let mut attempts: BTreeMap<VolumeId, Attempt> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let state = admin.meta.state();
        let due = admin.due_to_rescue(&state);
        attempts.retain(|id, attempt| due.iter().any(|(meta, _)| (meta.id, meta.epoch) == (*id, attempt.epoch)));
        let now = Instant::now();
        let is_its_turn = |meta: &Volume| attempts.get(&meta.id).is_none_or(|attempt| attempt.next <= now);
        let turn: Vec<_> = due.into_iter().filter(|(meta, _)| is_its_turn(meta)).take(AT_ONCE).collect();
        let outcomes = join_all(turn.iter().map(|(meta, served)| admin.rescue(&state, meta, served))).await;
        for ((meta, served), outcome) in turn.iter().zip(outcomes) {
            let Err(error) = outcome else { continue };
            let (epoch, next) = (meta.epoch, Instant::now() + RETRY_PAUSE.0);
            let first = Attempt { epoch, pause: RETRY_PAUSE.0, next };
            let attempt = attempts.entry(meta.id).or_insert(first);
            attempt.next = Instant::now() + attempt.pause;
            attempt.pause = (attempt.pause * 2).min(RETRY_PAUSE.1);
            let text = error.to_string();
            // Once, and not with every attempt.
            if served.rescue.note_refused(epoch, text.clone()) {
                tracing::warn!(volume = %meta.name, %epoch, error = text, "the store of the volume takes no writes, and it cannot be given to a replica; that is tried again");
            }
        }
    }
}

impl NodeAdmin {
    /// What this node serves as the owner and cannot write.
    fn due_to_rescue<'a>(&self, state: &'a MetaState) -> Vec<(&'a Volume, Arc<ServedVolume>)> {
        let (ceased, shards) = (self.reconciler.ceased(), self.reconciler.shards());
        if shards.faults().next().is_none() {
            return Vec::new();
        }
        let owned = state.volumes().filter(|volume| volume.owner == self.this.id);
        let served = owned.filter_map(|volume| Some((volume, self.volumes.get(volume.id)?)));
        let is_due = |(volume, served): &(&Volume, Arc<ServedVolume>)| {
            let view = served.gate.view();
            served.shard.fault().is_some()
                && (view.epoch, view.phase) == (volume.epoch, Phase::Owner)
                && served.rescue.is_possible.load(Ordering::Relaxed)
                && !ceased.has(volume.id, volume.epoch)
        };
        served.filter(is_due).collect()
    }

    /// Whether a volume whose store takes no writes may be given away yet, so that nothing else need be done.
    pub(super) fn may_be_rescued(&self, volume: &Volume) -> bool {
        self.volumes.get(volume.id).is_some_and(|served| served.rescue.is_awaited(volume.epoch))
    }

    /// Why a volume that this node serves as its owner, and whose store takes no writes, is still here.
    pub(super) fn not_given_away(&self, state: &MetaState, meta: &Volume, served: &ServedVolume) -> Option<String> {
        if served.shard.fault().is_none() || state.has_stepped_down(meta.id) {
            return None;
        }
        match served.rescue.is_possible.load(Ordering::Relaxed) {
            true => Some(format!("{}; it is tried again all the time", served.rescue.refused(meta.epoch)?)),
            false if meta.replicas.is_empty() => Some("it has no replica".to_owned()),
            false => Some(format!("`[store] hand_over_when_failed` is false at node {}", self.this.name)),
        }
    }

    /// Gives the volume to the first replica that can have it.
    async fn rescue(&self, state: &MetaState, meta: &Volume, served: &Arc<ServedVolume>) -> Result<(), Error> {
        // A voter that cannot read the proposal would stop.
        self.require_stepping_down_known(state).await?;
        let mut why_not = Vec::new();
        let mut heirs = Vec::new();
        let asked = join_all(meta.replicas.iter().map(|node| self.where_is(meta, *node))).await;
        for (node, answer) in meta.replicas.iter().zip(asked) {
            match answer {
                Ok(position) => heirs.push((self.rank(state, meta, *node, position), *node)),
                Err(error) => {
                    why_not.push(format!("node {} does not say what it has: {error}", name_of(state, *node)));
                }
            }
        }
        heirs.sort();
        for (_, node) in heirs {
            match self.rescue_to(served.clone(), meta.epoch, node).await {
                Ok(report) => {
                    let to = name_of(state, node);
                    tracing::warn!(volume = %meta.name, epoch = %meta.epoch, to, held = ?report.held, stale_bytes = report.stale_bytes, "the store of the volume takes no writes any more: it was given to a replica, with everything that was acked");
                    return Ok(());
                }
                Err(error) => why_not.push(format!("to node {}: {error}", name_of(state, node))),
            }
            if served.gate.view().epoch != meta.epoch {
                break;
            }
        }
        Err(Error::new(ErrorKind::Unavailable, why_not.join("; ")))
    }

    /// Who comes first: one with which the volume's class can be met, one that holds all that it was told of, the nearest.
    fn rank(
        &self,
        state: &MetaState,
        meta: &Volume,
        node: NodeId,
        position: ReplicaPosition,
    ) -> (bool, bool, Duration) {
        let rtt = self.peers.transport().rtt(node).unwrap_or(Duration::MAX);
        (require_class(state, meta, node).is_err(), position.stale_blocks > 0, rtt)
    }

    async fn where_is(&self, meta: &Volume, node: NodeId) -> Result<ReplicaPosition, Error> {
        let request = PeerRequest::ReplicaStatus { volume: meta.id, epoch: meta.epoch };
        let asked = self.peers.ask_position(node, Class::Control, request, Bytes::new());
        let late = |_| Error::new(ErrorKind::Unavailable, format!("no answer within {ASK_PATIENCE:?}"));
        tokio::time::timeout(ASK_PATIENCE, asked).await.map_err(late)?
    }
}
