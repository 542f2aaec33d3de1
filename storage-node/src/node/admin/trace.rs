//! Where the time of a volume's operations goes, as its owner sees it.

use std::sync::Arc;
use std::time::Duration;

use client_lib::clock::{Clock, SystemClock};
use client_lib::trace::OperationKind;
use client_lib::wire::admin::TraceReport;
use client_lib::{Error, ErrorKind};
use tokio::time::Instant;

use super::NodeAdmin;
use super::names::volume_named;
use crate::peer::message::AdminForward;
use crate::serve::admin::AskTrace;
use crate::serve::volume::ServedVolume;
use crate::trace::tap::{Frame, Tap};

/// For how long it is looked in one request, at most: less than a call to the owner may take. Whoever wants to see more asks again.
const FOR_MS_MAX: u64 = 10_000;
const FOR_MS: u64 = 2_000;

/// Single operations that are told, at most.
const SLOWEST_MAX: u32 = 100;
const SLOWEST: u32 = 5;

impl NodeAdmin {
    pub(super) async fn trace_volume(&self, name: &str, asked: AskTrace) -> Result<TraceReport, Error> {
        let AskTrace { kinds, for_ms, slowest } = asked;
        let (for_ms, slowest) = (for_ms.unwrap_or(FOR_MS), slowest.unwrap_or(SLOWEST));
        kinds_named(&kinds)?;
        if !(1..=FOR_MS_MAX).contains(&for_ms) || slowest > SLOWEST_MAX {
            let what = format!(
                "a trace takes 1 to {FOR_MS_MAX} ms and has up to {SLOWEST_MAX} single operations; {for_ms} and {slowest} were asked for"
            );
            return Err(Error::new(ErrorKind::InvalidRequest, what));
        }
        let volume = volume_named(&self.meta.state(), name)?.id;
        let forward = AdminForward::Trace { volume, kinds: kinds.clone(), for_ms, slowest };
        self.at_owner(volume, forward, |served| self.trace_here(served, &kinds, for_ms, slowest)).await
    }

    /// Ends early when the volume goes elsewhere.
    pub(super) async fn trace_here(
        &self,
        volume: Arc<ServedVolume>,
        kinds: &[String],
        for_ms: u64,
        slowest: u32,
    ) -> Result<TraceReport, Error> {
        let took = Duration::from_millis(for_ms.min(FOR_MS_MAX));
        let tap = Tap::new(kinds_named(kinds)?, slowest.min(SLOWEST_MAX) as usize);
        let (mut views, view, began) = (volume.gate.subscribe(), volume.gate.view(), Instant::now());
        let looking = volume.tracer.look(tap.clone())?;
        let moved = tokio::time::timeout(took, views.wait_for(|now| *now != view)).await.is_ok();
        drop(looking);
        let now = Instant::now();
        let frame = Frame {
            volume: volume.name.as_str(),
            node: self.this.name.as_str(),
            took: now - began,
            moved,
            now_ms: SystemClock::new().unix_ms(),
            now,
        };
        let state = self.meta.state();
        Ok(tap.report(&frame, |node| state.name_of(node)))
    }
}

fn kinds_named(names: &[String]) -> Result<Vec<OperationKind>, Error> {
    let kind = |name: &String| {
        let found = OperationKind::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            let all = OperationKind::ALL.map(OperationKind::name).join(", ");
            Error::new(ErrorKind::InvalidRequest, format!("there is no operation {name:?}: there are {all}"))
        })
    };
    names.iter().map(kind).collect()
}
