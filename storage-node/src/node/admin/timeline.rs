//! The last changes of a volume's owner, put together from what the nodes tell that carried them out.

use std::time::Duration;

use client_lib::wire::admin::{OwnershipChange, OwnershipPhase, OwnershipTimeline};
use client_lib::{Error, ErrorKind, NodeId};
use consensus::MetaState;
use futures_util::future::join_all;

use super::NodeAdmin;
use super::names::volume_named;
use crate::ownership::chronicle::{End, Kind, Phase, Told};
use crate::peer::message::AdminForward;

/// How long a node may take to tell before the answer goes out without it.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Changes of an answer; older ones are left out.
const CHANGES_MAX: usize = 50;

impl NodeAdmin {
    /// The last changes of a volume's owner.
    pub(super) async fn timeline_of(&self, name: &str) -> Result<OwnershipTimeline, Error> {
        let state = self.meta.state();
        let volume = volume_named(&state, name)?.id;
        let nodes: Vec<NodeId> = state.nodes().map(|node| node.id).collect();
        let of = |node: NodeId| async move {
            if node == self.this.id {
                return Ok(self.chronicle.of(volume));
            }
            let asked = self.ask::<Vec<Told>>(node, AdminForward::Chronicle { volume });
            let late = |_| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {PATIENCE:?}")));
            tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(late)
        };
        let mut timeline = OwnershipTimeline { volume: name.to_owned(), ..OwnershipTimeline::default() };
        for (node, told) in nodes.iter().zip(join_all(nodes.iter().map(|node| of(*node))).await) {
            match told {
                Ok(told) => timeline.changes.extend(told.iter().map(|told| change(&state, *node, told))),
                Err(error) => {
                    tracing::debug!(%node, %error, "its changes of owner are not told");
                    timeline.silent.push(state.name_of(*node));
                }
            }
        }
        timeline.changes.sort_by(|a, b| b.began_ms.cmp(&a.began_ms).then(b.epoch.cmp(&a.epoch)));
        timeline.changes.truncate(CHANGES_MAX);
        Ok(timeline)
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn change(state: &MetaState, node: NodeId, told: &Told) -> OwnershipChange {
    let (kind, mode) = match told.kind {
        Kind::Instant => ("handover", Some("instant")),
        Kind::Synced => ("handover", Some("synced")),
        Kind::OnWrite => ("handover", Some("on-write")),
        Kind::Rescue => ("handover", Some("rescue")),
        Kind::Takeover => ("takeover", None),
    };
    let froze = told.spans.iter().find(|span| span.phase == Phase::Freezing);
    let holds = |began: Duration| froze.is_some_and(|froze| began >= froze.began);
    let (outcome, error, stale_bytes) = match &told.end {
        None => ("running", None, None),
        Some(End::Moved(stale)) => ("moved", None, Some(*stale)),
        Some(End::Failed(error)) => ("failed", Some(error.clone()), None),
    };
    let phase = |span: &crate::ownership::chronicle::Span| OwnershipPhase {
        name: span.phase.name().to_owned(),
        doing: span.phase.doing().to_owned(),
        began_ms: ms(span.began),
        took_ms: ms(span.took),
        holds_writers: holds(span.began),
    };
    OwnershipChange {
        kind: kind.to_owned(),
        mode: mode.map(str::to_owned),
        told_by: state.name_of(node),
        from: state.name_of(told.from),
        to: state.name_of(told.to),
        epoch: told.epoch.0,
        volumes: told.volumes as u64,
        began_ms: told.began_ms,
        took_ms: ms(told.took),
        held_ms: froze.map(|froze| ms(told.took.saturating_sub(froze.began))),
        outcome: outcome.to_owned(),
        error,
        stale_bytes,
        phases: told.spans.iter().map(phase).collect(),
    }
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;

    use super::*;
    use crate::ownership::chronicle::Span;

    #[test]
    fn writers_are_held_from_the_freeze_to_the_end() {
        let at = Duration::from_millis;
        let span = |phase, began, took| Span { phase, began: at(began), took: at(took) };
        let told = Told {
            kind: Kind::Synced,
            from: NodeId(1),
            to: NodeId(2),
            epoch: Epoch(4),
            volumes: 1,
            began_ms: 1000,
            took: at(450),
            spans: vec![
                span(Phase::CatchingUp, 0, 300),
                span(Phase::Freezing, 300, 50),
                span(Phase::Proposing, 350, 100),
            ],
            end: Some(End::Moved(8192)),
        };
        let state = MetaState::default();
        let shown = change(&state, NodeId(1), &told);
        assert_eq!(
            (shown.kind.as_str(), shown.mode.as_deref(), shown.outcome.as_str()),
            ("handover", Some("synced"), "moved")
        );
        assert_eq!((shown.held_ms, shown.took_ms, shown.stale_bytes), (Some(150.0), 450.0, Some(8192)));
        let held: Vec<bool> = shown.phases.iter().map(|phase| phase.holds_writers).collect();
        assert_eq!(held, [false, true, true]);
        assert_eq!(shown.phases[1].name, "freezing");
        let failed = Told { kind: Kind::Takeover, spans: Vec::new(), end: Some(End::Failed("no".to_owned())), ..told };
        let shown = change(&state, NodeId(2), &failed);
        assert_eq!((shown.held_ms, shown.error.as_deref(), shown.outcome.as_str()), (None, Some("no"), "failed"));
    }
}
