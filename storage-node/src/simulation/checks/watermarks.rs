//! Watermarks are in order: what an owner counts a replica with is no more than that replica holds from then on, durably, whatever happens to it; and
//! no more than the owner has made durable itself.

use std::time::Duration;

use client_lib::{NodeId, VolumeId};

use crate::shard::handle::Role;
use crate::simulation::history::{Book, Counted, History};
use crate::simulation::machine::{LocalTime, Running};

/// Notes what the node of `running` counts replicas of `volume` with, if it owns it.
pub(crate) fn look(running: &Running, history: &History, owner: NodeId, volume: VolumeId, time: &LocalTime) {
    let Some((epoch, told)) = running.parts.exports.flushes(volume).map(|flushes| flushes.told()) else { return };
    let at = time.now();
    let counted = told.into_iter().map(|(replica, held)| Counted { volume, epoch, owner, replica, held, at });
    history.book().counted.extend(counted);
}

pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<(), String> {
    let of_volume = || book.seen.iter().filter(|seen| seen.volume == volume);
    // One that has yet to hear that the volume is another's has nobody follow it: what it counted with is no promise.
    let owned = |counted: &&Counted| book.ended(volume, counted.epoch).is_none_or(|end| counted.at < end);
    for counted in book.counted.iter().filter(|counted| counted.volume == volume).filter(owned) {
        // Once it is removed it holds nothing, and is counted no more.
        let removals = book.removals.get(&(volume, counted.replica)).into_iter().flatten();
        let until = removals.copied().find(|removed| *removed > counted.at).unwrap_or(Duration::MAX);
        let later = of_volume().filter(|seen| seen.node == counted.replica && seen.at > counted.at && seen.at < until);
        // In a later epoch it may have been cut off.
        let mut replica = later.filter(|seen| seen.report.epoch <= counted.epoch && seen.report.role == Role::Replica);
        if let Some(seen) = replica.find(|seen| seen.report.watermark < counted.held) {
            return Err(format!("{counted:?}, but then {seen:?}"));
        }
        let later = of_volume().filter(|seen| seen.node == counted.owner && seen.at > counted.at);
        let mut owner = later.filter(|seen| seen.report.epoch == counted.epoch && seen.report.role == Role::Owner);
        if let Some(seen) = owner.find(|seen| seen.report.durable < counted.held) {
            return Err(format!("{counted:?}, of which the owner has less: {seen:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use client_lib::{Epoch, Lsn, SnapshotId, VolumeSize};

    use super::*;
    use crate::shard::handle::VolumeReport;
    use crate::simulation::history::Seen;
    use crate::volume::tally::Tally;

    const VOLUME: VolumeId = VolumeId(20);
    const REPLICA: NodeId = NodeId(1);

    /// A replica that has nothing of the volume, at `at`.
    fn empty(at: Duration) -> Seen {
        let report = VolumeReport {
            size: VolumeSize::try_from(1 << 20).expect("a size"),
            role: Role::Replica,
            epoch: Epoch(0),
            head: Lsn::ZERO,
            durable: Lsn::ZERO,
            known: Lsn::ZERO,
            applied: Lsn::ZERO,
            watermark: Lsn::ZERO,
            held: Lsn::ZERO,
            stale_blocks: 0,
            newest_snapshot: SnapshotId(0),
            awaited_snapshot: None,
            sealed_to: None,
            mapped_blocks: 0,
            damaged_blocks: 0,
            repaired_blocks: 0,
            verified_blocks: 0,
            fault: None,
            is_full: false,
            tally: Tally::default(),
            claimed: Epoch(0),
            rejoining: None,
        };
        Seen { node: REPLICA, volume: VOLUME, at, report }
    }

    /// Seed 82 of the stories in which replicas change failed: node 5 was taken over by node 2 while it was cut off; node 2 had node 1 drop its
    /// copy, rightly, and node 5, which had not heard of any of it, still counted with what node 1 had had.
    #[test]
    fn what_an_owner_of_before_counts_with_is_no_promise() {
        let seconds = Duration::from_secs;
        let held = Lsn { epoch: Epoch(2), sequence: 147 };
        let counted = |at| Counted { volume: VOLUME, epoch: Epoch(2), owner: NodeId(5), replica: REPLICA, held, at };
        let mut book = Book::default();
        book.counted.push(counted(seconds(18)));
        book.seen.push(empty(seconds(19)));
        book.ownerships.insert((VOLUME, Epoch(2)), (NodeId(5), seconds(9)));
        check(&book, VOLUME).expect_err("while node 5 owns the volume it is one");

        book.ownerships.insert((VOLUME, Epoch(3)), (NodeId(2), seconds(11)));
        check(&book, VOLUME).expect("the volume is node 2's");

        book.counted.push(counted(seconds(10)));
        check(&book, VOLUME).expect_err("it was node 5's then, and node 1 was not removed since");
        book.removals.insert((VOLUME, REPLICA), vec![seconds(12)]);
        check(&book, VOLUME).expect("it was removed");
    }
}
