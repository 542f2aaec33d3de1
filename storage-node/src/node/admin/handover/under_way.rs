//! A handover that is under way, in a task of its own: how it is ended, and what those hear who wait for it.
//!
//! It belongs to its task and to nobody who asked. Its deadline is kept there, so that it holds also when the answer is lost, or was not waited
//! for. Whoever waits is answered in bounded time, and may ask again: then he waits for the same one.

use std::pin::pin;
use std::time::Duration;

use client_lib::watch;
use client_lib::{Epoch, Error, ErrorKind, NodeId, VolumeId};
use tokio_util::sync::CancellationToken;

use super::How;
use crate::ownership::driver::HandoverReport;

/// What is said of a handover that goes on when its answer has been waited for as long as that may take. Asked for again, it is waited for again.
pub(crate) const GOES_ON: &str = "the handover goes on, and `--cancel` ends it";

/// How long an answer may take of a handover that waits until the new owner holds everything. With what a call takes beside it, and what it may take to
/// find the owner, it is less than the command line waits for.
pub(in crate::node::admin) const ANSWER_PATIENCE: Duration = Duration::from_secs(40);

/// What a handover came to; its error as it would cross the wire, since several may be told.
pub(super) type Outcome = Result<HandoverReport, (ErrorKind, String)>;

/// A handover that is under way.
pub(in crate::node) struct UnderWay {
    pub(super) cancel: CancellationToken,
    pub(super) volumes: Vec<(VolumeId, Epoch)>,
    pub(super) to: NodeId,
    pub(super) how: How,
    pub(super) outcome: watch::Receiver<Option<Outcome>>,
}

impl UnderWay {
    /// Whether a request for this one means the same. Only those are joined that wait for the new owner, and those that the new owner asks for because it is
    /// written there: it asks again when the answer was lost. Of any other a second request is a mistake.
    pub(super) fn is_meant(&self, volumes: &[(VolumeId, Epoch)], to: NodeId, how: How) -> bool {
        let is_limited = |how: How| how.deadline.is_some();
        let is_joined = (self.how.synced && how.synced) || (self.how.flushed && how.flushed);
        is_joined && is_limited(self.how) == is_limited(how) && self.to == to && self.volumes == volumes
    }

    /// What it comes to.
    ///
    /// # Errors
    /// Why everything stays where it is; `Busy`, with [`GOES_ON`], when it is not known yet.
    ///
    /// # Cancel safety
    /// Safe: it goes on.
    pub(super) async fn answer(&self, what: &str, to: &str) -> Result<HandoverReport, Error> {
        let mut outcome = self.outcome.clone();
        let known = outcome.wait_for(Option::is_some);
        let known = match self.how.synced {
            false => known.await,
            true => tokio::time::timeout(ANSWER_PATIENCE, known).await.map_err(|_| {
                let what =
                    format!("{what} goes to node {to} when that holds everything, which it does not yet: {GOES_ON}");
                Error::new(ErrorKind::Busy, what)
            })?,
        };
        let ended_early = |error| Error::new(ErrorKind::Internal, "the handover ended early").caused_by(error);
        match known.map_err(ended_early)?.as_ref().expect("it was waited for") {
            Ok(report) => Ok(report.clone()),
            Err((kind, message)) => Err(Error::new(*kind, message.clone())),
        }
    }
}

/// Carries `handover` out, and ends it by `cancel` when its time is over. Once it is proposed it goes on all the same.
pub(super) async fn in_time(
    handover: impl Future<Output = Result<HandoverReport, Error>>,
    deadline: Option<Duration>,
    cancel: &CancellationToken,
    what: &str,
) -> Result<HandoverReport, Error> {
    let Some(deadline) = deadline else { return handover.await };
    let mut handover = pin!(handover);
    if let Ok(outcome) = tokio::time::timeout(deadline, &mut handover).await {
        return outcome;
    }
    cancel.cancel();
    handover.await.map_err(|error| match error.kind() {
        ErrorKind::Closed => Error::new(
            ErrorKind::Unavailable,
            format!("{what} could not be handed over in the {deadline:?} that were left, and stays where it is"),
        ),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(deadline: Option<Duration>) -> How {
        How { synced: true, deadline, ..How::default() }
    }

    fn under_way(how: How) -> (watch::Sender<Option<Outcome>>, UnderWay) {
        let (told, outcome) = watch::channel(None);
        let volumes = vec![(VolumeId(1), Epoch(1))];
        (told, UnderWay { cancel: CancellationToken::new(), volumes, to: NodeId(2), how, outcome })
    }

    fn report() -> HandoverReport {
        HandoverReport { epochs: vec![Epoch(2)], held: Duration::ZERO, stale_bytes: 0, caught_up: Duration::ZERO }
    }

    /// A volume of 2 GiB was moved, and its owner asked through another node: that gave the owner up after 15 s, the command said that the move had
    /// failed, and the volume moved minutes later. A second request was refused meanwhile.
    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_told_that_it_goes_on_and_hears_the_outcome_when_he_asks_again() {
        let (told, under_way) = under_way(how(None));
        let waits = under_way.answer("volume disk", "b").await.expect_err("nothing is known");
        assert!(waits.kind() == ErrorKind::Busy && waits.to_string().ends_with(GOES_ON), "{waits}");
        assert!(!under_way.cancel.is_cancelled());
        assert!(under_way.is_meant(&[(VolumeId(1), Epoch(1))], NodeId(2), how(None)));
        told.send_replace(Some(Ok(report())));
        assert_eq!(under_way.answer("volume disk", "b").await.expect("is there"), report());
    }

    /// The dashboard, as the command line, knows by these words that it may ask again.
    #[test]
    fn the_dashboard_knows_the_words() {
        assert!(include_str!("../../../../dashboard/actions.js").contains(GOES_ON));
    }

    #[test]
    fn only_the_same_is_joined() {
        let (_told, under_way) = under_way(how(None));
        let volumes = [(VolumeId(1), Epoch(1))];
        assert!(!under_way.is_meant(&volumes, NodeId(3), how(None)), "to another node");
        assert!(
            !under_way.is_meant(&volumes, NodeId(2), how(Some(Duration::from_secs(1)))),
            "it would not keep to that"
        );
        assert!(!under_way.is_meant(&volumes, NodeId(2), How::default()), "at once");
        let two = [(VolumeId(1), Epoch(1)), (VolumeId(2), Epoch(1))];
        assert!(!under_way.is_meant(&two, NodeId(2), how(None)), "of more volumes");
    }

    /// The metadata had no leader for a while in the middle of it. The node where the first write waited gave its call up and asked again, was told that
    /// the volume is being handed over already, and refused the write, moments before the volume came.
    #[test]
    fn a_handover_for_a_write_is_joined_by_the_node_that_asks_again() {
        let flushed = How { flushed: true, ..How::default() };
        let (_told, under_way) = under_way(flushed);
        let volumes = [(VolumeId(1), Epoch(1))];
        assert!(under_way.is_meant(&volumes, NodeId(2), flushed));
        assert!(!under_way.is_meant(&volumes, NodeId(3), flushed), "by another node");
        assert!(!under_way.is_meant(&volumes, NodeId(2), How::default()), "by an operator");
        assert!(!under_way.is_meant(&volumes, NodeId(2), how(None)), "by one who waits");
    }

    /// The deadline was kept by whoever waited for the answer, so that a handover whose answer was given up had none.
    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_what_is_not_proposed_by_then() {
        let cancel = CancellationToken::new();
        let waits = async {
            cancel.cancelled().await;
            Err(Error::new(ErrorKind::Closed, "the handover was cancelled"))
        };
        let late = in_time(waits, Some(Duration::from_secs(20)), &cancel, "volume disk").await.expect_err("is ended");
        assert_eq!(late.kind(), ErrorKind::Unavailable);
        assert!(late.to_string().contains("in the 20s that were left, and stays where it is"), "{late}");
        let decided = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Ok(report())
        };
        let cancel = CancellationToken::new();
        in_time(decided, Some(Duration::from_secs(20)), &cancel, "volume disk").await.expect("goes on");
    }
}
