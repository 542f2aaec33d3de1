//! A manifest on its way to a replica. One that is too large for a call goes in parts: a list of millions of blocks, which a replica needs that
//! was away for long, would take longer than a call may, on a slow link every time again.
//!
//! The parts of one *telling* may come in any order, and take effect with the last word, which says how many they are. They are kept in memory
//! until then; a telling that does not come to its end is forgotten when others follow. [`split`] and [`Tellings`] are pure.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{BlockIndex, Epoch, Error, ErrorKind, Lsn, NodeId, VolumeId, random};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::manifest::{Manifest, ManifestRun, RunContent};
use crate::peer::client::PeerClient;
use crate::peer::message::{ENCODING_PARTS, PeerReply, PeerRequest, ReplicaPosition};

/// About how many bytes of a manifest go in one call: a link of 2 Mbit/s takes them in a second.
const PART_BYTES: usize = 256 << 10;

/// Parts under way at once: a mebibyte per round trip.
const PARTS_UNDER_WAY: usize = 4;

/// Tellings whose parts are kept: the sender's, a handover's, and those that were broken off just before.
const TELLINGS_MAX: usize = 4;

/// Most bytes of a run beside its checksums, and of one of those, as they are encoded.
const RUN_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 5;

/// What a replica is told.
#[derive(Clone, Debug)]
pub struct Told {
    /// Of this volume, by its owner in this epoch.
    pub volume: VolumeId,
    /// The epoch.
    pub epoch: Epoch,
    /// What has changed.
    pub manifest: Manifest,
    /// Whether everything known becomes the delta to apply next.
    pub seal: bool,
    /// Whether it is to be durable when it is answered.
    pub durable: bool,
    /// All replicas have applied everything up to here.
    pub prune: Lsn,
}

impl Told {
    /// Tells `replica`, in as many calls as it takes; where the replica is then.
    ///
    /// # Errors
    /// As [`PeerClient::ask_position`].
    ///
    /// # Cancel safety
    /// Safe: as far as the last call has not begun, nothing has changed.
    pub async fn tell(self, peers: &PeerClient, replica: NodeId) -> Result<ReplicaPosition, Error> {
        let Told { volume, epoch, mut manifest, seal, durable, prune } = self;
        let takes_parts = peers.encodings(replica) & ENCODING_PARTS != 0;
        let mut parts = if takes_parts { split(std::mem::take(&mut manifest.runs)) } else { Vec::new() };
        if parts.len() <= 1 {
            manifest.runs.extend(parts.pop().unwrap_or_default());
            let request = PeerRequest::Manifest { volume, epoch, manifest, seal, durable, prune };
            return peers.ask_position(replica, Class::Control, request, Bytes::new()).await;
        }
        let (telling, parts) = tell_runs(peers, replica, (volume, epoch), parts).await?;
        let request = PeerRequest::ManifestLast { volume, epoch, telling, parts, manifest, seal, durable, prune };
        peers.ask_position(replica, Class::Control, request, Bytes::new()).await
    }
}

/// Tells `replica` a part of its initial sync, which ends before block `end` or is the last; where it is then. Durable on return.
///
/// # Errors
/// As [`PeerClient::ask_position`].
///
/// # Cancel safety
/// As [`Told::tell`].
pub async fn tell_part(
    peers: &PeerClient,
    replica: NodeId,
    (volume, epoch): (VolumeId, Epoch),
    mut manifest: Manifest,
    end: Option<BlockIndex>,
) -> Result<ReplicaPosition, Error> {
    let runs = split(std::mem::take(&mut manifest.runs));
    let (telling, parts) = tell_runs(peers, replica, (volume, epoch), runs).await?;
    let request = PeerRequest::SyncPart { volume, epoch, telling, parts, manifest, end };
    peers.ask_position(replica, Class::Control, request, Bytes::new()).await
}

/// Tells the runs of a manifest, which take effect with the last word; the telling, and how many parts it has.
async fn tell_runs(
    peers: &PeerClient,
    replica: NodeId,
    (volume, epoch): (VolumeId, Epoch),
    parts: Vec<Vec<ManifestRun>>,
) -> Result<(u64, u32), Error> {
    let (telling, count) = (random::bits(), parts.len() as u32);
    let calls = (0u32..).zip(parts).map(|(number, runs)| async move {
        let request = PeerRequest::ManifestPart { volume, epoch, telling, number, runs };
        match peers.ask(replica, Class::Control, request, Bytes::new()).await?.head {
            PeerReply::Done => Ok(()),
            head => Err(peers.unexpected(replica, &head)),
        }
    });
    stream::iter(calls).buffer_unordered(PARTS_UNDER_WAY).try_collect::<()>().await?;
    Ok((telling, count))
}

/// Runs in groups, in order, each of which fits a call.
fn split(runs: Vec<ManifestRun>) -> Vec<Vec<ManifestRun>> {
    let checksums_max = (PART_BYTES - RUN_BYTES) / CHECKSUM_BYTES;
    let mut parts = vec![Vec::new()];
    let mut room = PART_BYTES;
    for run in runs {
        let mut rest = Some(run);
        while let Some(mut run) = rest.take() {
            if let RunContent::Data(checksums) = &mut run.content
                && checksums.len() > checksums_max
            {
                let tail = checksums.split_off(checksums_max);
                let start = BlockIndex(run.start.0 + checksums_max as u32);
                rest = Some(ManifestRun { start, lsn: run.lsn, content: RunContent::Data(tail) });
            }
            let checksums = match &run.content {
                RunContent::Data(checksums) => checksums.len(),
                RunContent::Zero(_) => 0,
            };
            let bytes = RUN_BYTES + checksums * CHECKSUM_BYTES;
            if bytes > room {
                parts.push(Vec::new());
                room = PART_BYTES;
            }
            room -= bytes;
            parts.last_mut().expect("there is one").push(run);
        }
    }
    parts
}

/// Parts that have come, by telling.
#[derive(Debug, Default)]
pub struct Tellings {
    begun: VecDeque<(u64, BTreeMap<u32, Vec<ManifestRun>>)>,
}

impl Tellings {
    /// A part of `telling` has come.
    pub fn part(&mut self, telling: u64, number: u32, runs: Vec<ManifestRun>) {
        let at = self.begun.iter().position(|(begun, _)| *begun == telling).unwrap_or_else(|| {
            if self.begun.len() == TELLINGS_MAX {
                self.begun.pop_front();
            }
            self.begun.push_back((telling, BTreeMap::new()));
            self.begun.len() - 1
        });
        self.begun[at].1.insert(number, runs);
    }

    /// All runs of `telling`, which has so many parts.
    ///
    /// # Errors
    /// `Unavailable` when not all of them have come: it is to be told anew.
    pub fn whole(&mut self, telling: u64, parts: u32) -> Result<Vec<ManifestRun>, Error> {
        let at = self.begun.iter().position(|(begun, _)| *begun == telling);
        let (_, come) = at.and_then(|at| self.begun.remove(at)).unwrap_or_default();
        if come.len() != parts as usize || come.keys().next_back().is_some_and(|last| *last >= parts) {
            let what = format!("of {parts} parts of a manifest {} have come: tell it again", come.len());
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        Ok(come.into_values().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::message::Message;

    fn runs(blocks: u32, each: u32) -> Vec<ManifestRun> {
        let run = |index: u32| ManifestRun {
            start: BlockIndex(index * (each + 1)),
            lsn: Lsn::new(Epoch(u64::MAX), u64::MAX - u64::from(index)),
            content: RunContent::Data(vec![u32::MAX - index; each as usize]),
        };
        (0..blocks / each).map(run).collect()
    }

    /// A replica that had been away for a gigabyte of small writes could not be told of them on a slow link: one call had all of it.
    #[test]
    fn a_part_fits_a_call_however_the_blocks_lie_and_the_parts_are_the_whole() {
        for (blocks, each) in [(100_000, 1), (200_000, 7), (400_000, 200_000), (0, 1), (1, 1)] {
            let told = runs(blocks, each);
            let parts = split(told.clone());
            for runs in &parts {
                let (volume, epoch) = (VolumeId(u64::MAX), Epoch(u64::MAX));
                let head = PeerRequest::ManifestPart {
                    volume,
                    epoch,
                    telling: u64::MAX,
                    number: u32::MAX,
                    runs: runs.clone(),
                };
                let message = Message { head, payload: Bytes::new() };
                assert!(message.encode().expect("fits a frame").len() <= PART_BYTES + 256, "{} runs", runs.len());
            }
            let blocks_of = |runs: &[ManifestRun]| -> Vec<(u32, Lsn, u32)> {
                let each = runs.iter().flat_map(|run| {
                    let RunContent::Data(checksums) = &run.content else { unreachable!("data only") };
                    checksums.iter().enumerate().map(|(at, crc)| (run.start.0 + at as u32, run.lsn, *crc))
                });
                each.collect()
            };
            let mut tellings = Tellings::default();
            for (number, runs) in parts.iter().enumerate().rev() {
                tellings.part(7, number as u32, runs.clone());
            }
            let whole = tellings.whole(7, parts.len() as u32).expect("all have come");
            assert_eq!(blocks_of(&whole), blocks_of(&told));
        }
    }

    #[test]
    fn what_lacks_a_part_or_was_forgotten_is_told_anew() {
        let mut tellings = Tellings::default();
        tellings.part(1, 0, runs(2, 1));
        tellings.part(1, 2, runs(2, 1));
        assert!(tellings.whole(1, 3).is_err());
        assert!(tellings.whole(1, 2).is_err(), "it is gone with that");
        for telling in 0..=TELLINGS_MAX as u64 {
            tellings.part(telling, 0, runs(2, 1));
        }
        assert!(tellings.whole(0, 1).is_err(), "the oldest");
        assert_eq!(tellings.whole(TELLINGS_MAX as u64, 1).expect("the newest"), runs(2, 1));
        assert!(tellings.whole(99, 0).expect("no parts").is_empty());
    }
}
