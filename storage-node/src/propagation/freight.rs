//! What became of blocks on their way: how many bytes were written, sent and saved, and by what. Pure.
//!
//! For what a replica has reached, `written` is what was sent once, and `zero`, `same`, `relayed` and
//! `overwritten`. What was sent more than once, after
//! a break or in deliveries that overlap, is in `sent` each time.

use std::ops::AddAssign;

use client_lib::{BLOCK_SIZE, Lsn};

use crate::volume::tally::Tally;

/// Bytes of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freight {
    /// Written at the owner, as far as the other end has reached.
    pub written: u64,
    /// Sent as data, before compression.
    pub sent: u64,
    /// What that was on the wire.
    pub wire: u64,
    /// Not sent because a mark says that the block holds zeroes.
    pub zero: u64,
    /// Not sent because the block was written again before.
    pub overwritten: u64,
    /// Not sent because the other end has the same content.
    pub same: u64,
    /// Not sent from here because the other end has it from a node at its provider.
    pub relayed: u64,
}

impl AddAssign for Freight {
    fn add_assign(&mut self, other: Freight) {
        self.written += other.written;
        self.sent += other.sent;
        self.wire += other.wire;
        self.zero += other.zero;
        self.overwritten += other.overwritten;
        self.same += other.same;
        self.relayed += other.relayed;
    }
}

impl Freight {
    /// Bytes that compression has saved.
    #[must_use]
    pub fn compressed(&self) -> u64 {
        self.sent.saturating_sub(self.wire)
    }
}

/// What a delta has of what was written under the present ownership, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// What was written up to its end; `None` where that is not known, at a snapshot.
    pub tally: Option<Tally>,
    /// Its blocks.
    pub blocks: u64,
    /// Those of them that are zeroes, of which the manifest tells.
    pub zeroes: u64,
}

/// What became of the blocks of a volume on their way to one replica, since the ownership began.
#[derive(Clone, Debug, Default)]
pub struct Account {
    freight: Freight,
    /// Up to where the written blocks are accounted for.
    counted: Tally,
    /// Blocks of deltas that the replica has reached since.
    blocks: u64,
    /// Deltas on their way.
    under_way: Vec<(Lsn, Covered)>,
}

impl Account {
    /// So far.
    #[must_use]
    pub fn freight(&self) -> Freight {
        self.freight
    }

    /// This was sent.
    pub fn sent(&mut self, freight: Freight) {
        self.freight += freight;
    }

    /// A delta up to `to` is on its way, and covers this beside what is on its way already.
    pub fn sealed(&mut self, to: Lsn, covered: Covered) {
        self.under_way.push((to, covered));
    }

    /// What is on its way is sent anew.
    pub fn begin_anew(&mut self) {
        self.under_way.clear();
    }

    /// The replica has reached `watermark`; returns what that adds.
    pub fn reached(&mut self, watermark: Lsn) -> Freight {
        let mut added = Freight::default();
        let bytes = |blocks: u64| blocks * u64::from(BLOCK_SIZE);
        for (_, covered) in self.under_way.extract_if(.., |(to, _)| *to <= watermark) {
            self.blocks += covered.blocks;
            added.zero += bytes(covered.zeroes);
            let Some(tally) = covered.tally else { continue };
            // After a restart of the node counting begins anew.
            let before = if tally.since == self.counted.since { self.counted.blocks } else { 0 };
            if tally.blocks > before {
                let written = tally.blocks - before;
                added.written += bytes(written);
                added.overwritten += bytes(written.saturating_sub(self.blocks));
                (self.counted, self.blocks) = (tally, 0);
            }
        }
        self.freight += added;
        added
    }
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;

    use super::*;

    const KB4: u64 = BLOCK_SIZE as u64;

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(Epoch(1), sequence)
    }

    fn covered(written: Option<u64>, blocks: u64, zeroes: u64) -> Covered {
        Covered { tally: written.map(|blocks| Tally { since: Lsn::ZERO, blocks }), blocks, zeroes }
    }

    #[test]
    fn what_was_written_is_what_was_sent_and_zeroes_and_what_was_overwritten() {
        let mut account = Account::default();
        account.sealed(lsn(10), covered(Some(100), 60, 10));
        assert_eq!(account.reached(lsn(9)), Freight::default(), "it is on its way");
        account.sent(Freight { sent: 50 * KB4, wire: 20 * KB4, ..Freight::default() });
        let added = account.reached(lsn(10));
        let expected = Freight { written: 100 * KB4, zero: 10 * KB4, overwritten: 40 * KB4, ..Freight::default() };
        assert_eq!(added, expected);
        let freight = account.freight();
        assert_eq!(freight.written, freight.sent + freight.zero + freight.overwritten);
        assert_eq!(freight.compressed(), 30 * KB4);
        assert_eq!(account.reached(lsn(10)), Freight::default(), "once");
    }

    #[test]
    fn a_snapshot_is_accounted_for_with_what_follows_it() {
        let mut account = Account::default();
        account.sealed(lsn(5), covered(None, 10, 0));
        assert_eq!(account.reached(lsn(5)).written, 0);
        account.sealed(lsn(9), covered(Some(30), 12, 0));
        let added = account.reached(lsn(9));
        assert_eq!((added.written, added.overwritten), (30 * KB4, 8 * KB4));
    }

    #[test]
    fn what_is_sent_anew_counts_once() {
        let mut account = Account::default();
        account.sealed(lsn(5), covered(Some(10), 10, 0));
        account.begin_anew();
        account.sealed(lsn(8), covered(Some(20), 15, 0));
        let added = account.reached(lsn(8));
        assert_eq!((added.written, added.overwritten), (20 * KB4, 5 * KB4));
        account.sealed(lsn(9), Covered { tally: Some(Tally { since: lsn(8), blocks: 3 }), blocks: 3, zeroes: 0 });
        assert_eq!(account.reached(lsn(9)).written, 3 * KB4, "the node was started again");
    }
}
