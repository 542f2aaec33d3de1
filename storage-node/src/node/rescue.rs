//! An owner whose store takes no writes any more gives its volumes away, with everything that it acked: whoever uses them sees a handover
//! (docs/ownership.md, *Rescue*).
//!
//! It needs a replica in reach, and a store that still reads. Where that is not to be had, it is tried again for as long as the node owns the volume:
//! what is read there goes on being read. Writes wait for it for a while (`serve/volume/rescue.rs`), and then a volume may be taken over
//! by itself, if that is its policy ([`super::stepping_down`]): that brings back what the replicas have.

mod attempts;
mod heirs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{Error, ErrorKind, NodeId};
use consensus::{MetaState, Volume};
use futures_util::future::{join, join_all};
use tokio::time::Instant;

use attempts::Attempts;
use heirs::{Heirs, Rank};

use super::admin::{NodeAdmin, require_class};
use crate::ownership::gate::Phase;
use crate::peer::message::{PeerRequest, ReplicaPosition};
use crate::serve::volume::ServedVolume;

/// How often it is looked whether a store has failed.
const LOOK: Duration = Duration::from_millis(100);

/// How long a replica may take to say where it is.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// Why a volume stays where it cannot be written.
struct Refused {
    error: Error,
    /// Whether a replica has said where it is.
    has_an_answer: bool,
}

/// Gives away what is to be given away, for as long as the node runs.
pub(super) async fn keep(admin: Arc<NodeAdmin>) {
    let mut attempts = Attempts::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let state = admin.meta.state();
        let due = admin.due_to_rescue(&state);
        let epochs: BTreeMap<_, _> = due.iter().map(|(meta, _)| (meta.id, meta.epoch)).collect();
        let turn = attempts.turn(&epochs, Instant::now());
        let turn: Vec<_> = due.into_iter().filter(|(meta, _)| turn.contains(&meta.id)).collect();
        let outcomes = join_all(turn.iter().map(|(meta, served)| admin.rescue(&state, meta, served))).await;
        for ((meta, served), outcome) in turn.iter().zip(outcomes) {
            let Err(Refused { error, has_an_answer }) = outcome else { continue };
            let epoch = meta.epoch;
            attempts.failed(meta.id, epoch, has_an_answer, Instant::now());
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
    async fn rescue(&self, state: &MetaState, meta: &Volume, served: &Arc<ServedVolume>) -> Result<(), Refused> {
        let mut heirs = Heirs::new(meta.replicas.iter().map(|node| async {
            let position = self.where_is(meta, *node).await;
            (*node, position.map(|position| self.rank(state, meta, *node, position)))
        }));
        // A voter that cannot read the proposal would stop.
        let (known, ()) = join(self.require_rescues_known(state), heirs.hear()).await;
        known.map_err(|error| Refused { error, has_an_answer: true })?;
        let mut why_not = Vec::new();
        while let Some(node) = heirs.next().await {
            match self.rescue_to(served.clone(), meta.epoch, node).await {
                Ok(report) => {
                    let to = state.name_of(node);
                    tracing::warn!(volume = %meta.name, epoch = %meta.epoch, to, held = ?report.held, stale_bytes = report.stale_bytes, "the store of the volume takes no writes any more: it was given to a replica, with everything that was acked");
                    return Ok(());
                }
                Err(error) => why_not.push(format!("to node {}: {error}", state.name_of(node))),
            }
            if served.gate.view().epoch != meta.epoch {
                break;
            }
        }
        let silent = heirs.silent().iter();
        why_not.extend(
            silent.map(|(node, error)| format!("node {} does not say what it has: {error}", state.name_of(*node))),
        );
        // In whatever order they were tried: what is the same is not told again.
        why_not.sort();
        let error = Error::new(ErrorKind::Unavailable, why_not.join("; "));
        Err(Refused { error, has_an_answer: heirs.has_an_answer() })
    }

    /// Who comes first: one with which the volume's class can be met, one that has ever been complete, one that holds all that it was told of, the
    /// nearest.
    fn rank(&self, state: &MetaState, meta: &Volume, node: NodeId, position: ReplicaPosition) -> Rank {
        let rtt = self.peers.transport().rtt(node).unwrap_or(Duration::MAX);
        let joins = state.places().is_joining(meta.id, node);
        Rank::new(require_class(state, meta, node).is_ok(), joins, &position, rtt)
    }

    async fn where_is(&self, meta: &Volume, node: NodeId) -> Result<ReplicaPosition, Error> {
        let request = PeerRequest::ReplicaStatus { volume: meta.id, epoch: meta.epoch };
        let asked = self.peers.ask_position(node, Class::Control, request, Bytes::new());
        let late = |_| Error::new(ErrorKind::Unavailable, format!("no answer within {ASK_PATIENCE:?}"));
        tokio::time::timeout(ASK_PATIENCE, asked).await.map_err(late)?
    }
}
