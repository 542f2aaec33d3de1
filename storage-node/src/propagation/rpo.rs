//! Watches how far the replicas of an owned volume are behind: keeps its timeline, says when its target is missed, and slows its writes
//! if its policy says so.
//!
//! The target is for the replica that is least behind: a takeover goes on with that one.

use std::sync::Arc;
use std::time::Duration;

use client_lib::policy::RpoAction;
use client_lib::{BLOCK_SIZE, Lsn};
use tokio::time::Instant;

use super::rest::Rest;
use super::throttle::{Observed, Throttle};
use super::watermarks::Watermarks;
use crate::serve::volume::ServedVolume;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);

/// How often, when nothing was written for [`IDLE_LOOKS`] and something is lacking: a lag may then be told to be so much too long.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Looks without news after which it is looked less often.
const IDLE_LOOKS: u32 = 50;

/// Whoever stops watching lets the writes go.
struct Limited(Arc<ServedVolume>);

impl Drop for Limited {
    fn drop(&mut self) {
        self.0.pace.limit(None);
    }
}

/// Watches `volume`, which this node owns, until it is aborted or the volume's shard stops.
pub async fn watch(volume: Arc<ServedVolume>, watermarks: Arc<Watermarks>) {
    let _limited = Limited(volume.clone());
    let mut throttle = Throttle::default();
    let (mut looked, mut written) = (Instant::now(), volume.pace.written());
    let (mut head, mut idle) = (Lsn::ZERO, 0);
    let Ok(news) = volume.shard.news(volume.id).await else { return };
    let mut rest = Rest::new(news);
    loop {
        if !rest.is_resting() {
            tokio::time::sleep(if idle < IDLE_LOOKS { LOOK } else { IDLE_LOOK }).await;
        } else if let Some(moment) = rest.over().await {
            watermarks.note_calm(moment);
        }
        let Ok(report) = volume.shard.report(volume.id).await else { return };
        watermarks.note_head(report.head);
        idle = if report.head == head { idle + 1 } else { 0 };
        head = report.head;
        rest.looked(idle >= IDLE_LOOKS && watermarks.is_level(head));
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(&mut looked, now));
        let total = volume.pace.written();
        let since = total - std::mem::replace(&mut written, total);
        let Some(rpo) = volume.pace.rpo() else {
            volume.pace.limit(None);
            watermarks.note_target(false);
            throttle = Throttle::default();
            continue;
        };
        let target = Duration::from_millis(rpo.target_ms);
        let best = watermarks.highest();
        // Without a replica everything would be lost.
        let lag = best.map_or(Duration::MAX, |watermark| watermarks.behind(watermark));
        if watermarks.note_target(lag > target) {
            match lag > target {
                true => {
                    tracing::warn!(volume = %volume.name, ?target, ?lag, "the replicas are further behind than they may be");
                }
                false => tracing::info!(volume = %volume.name, ?target, "the replicas are within their target again"),
            }
        }
        let (RpoAction::Throttle, Some(watermark)) = (rpo.action, best) else {
            volume.pace.limit(None);
            continue;
        };
        let Ok(changed) = volume.shard.changed_blocks(volume.id, watermark).await else { return };
        let behind = changed * u64::from(BLOCK_SIZE);
        volume.pace.limit(throttle.step(target, Observed { elapsed, written: since, behind }));
    }
}
