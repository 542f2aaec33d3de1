//! Manifests and deltas as an owner seals them for its replicas.

use std::sync::Arc;

use client_lib::{BlockIndex, Lsn, SnapshotId};
use roaring::RoaringBitmap;

use super::{Answer, Reply};
use crate::propagation::freight::Covered;
use crate::propagation::manifest::{BlockRun, Manifest};

/// A manifest, and the delta that was pinned with it.
pub type Sealed = (Manifest, Option<SealedDelta>);

/// A set of blocks.
pub type Blocks = Arc<RoaringBitmap>;

/// A delta pinned at an owner: the versions at `to` stay readable until it is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedDelta {
    /// Names the pin.
    pub pin: u64,
    /// The snapshot that it ends at, if it does.
    pub snapshot: Option<SnapshotId>,
    /// The watermark it starts from.
    pub from: Lsn,
    /// The position it ends at.
    pub to: Lsn,
    /// How many blocks hold data, at the most, and are to be sent; zero runs travel in the manifest alone.
    pub blocks: u64,
    /// What it has of what was written under this ownership.
    pub covered: Covered,
    /// Which part of an initial sync it is, if it is one.
    pub part: Option<Part>,
}

/// A part of an initial sync ([`crate::volume::initial`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// It ends before this block; `None`: it is the last.
    pub end: Option<BlockIndex>,
    /// About how many blocks are to come after it.
    pub rest: u64,
}

/// The end of an epoch of an owner whose store takes no writes any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsyncedEnd {
    /// What the new owner was not told before.
    pub manifest: Manifest,
    /// Up to where the volume is durable here.
    pub durable: Lsn,
}

/// Some of the blocks that are known and not held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LackingSince {
    /// Those that were asked for.
    pub runs: Vec<BlockRun>,
    /// Where to go on; `None` when these were the last.
    pub next: Option<BlockIndex>,
}

/// What is to be sealed together with others; the fields are as in [`ShardHandle::seal_manifest`](super::ShardHandle::seal_manifest).
#[derive(Debug)]
pub struct Seal {
    pub(in crate::shard) from: Lsn,
    pub(in crate::shard) after: SnapshotId,
    pub(in crate::shard) delta_from: Option<Lsn>,
    pub(in crate::shard) also: Blocks,
    pub(in crate::shard) reply: Reply<Sealed>,
}

impl Seal {
    /// A delta to be sealed, and what will answer it. Dropped before, the answer lets go of the delta.
    #[must_use]
    pub fn new(from: Lsn, after: SnapshotId, delta_from: Lsn) -> (Seal, Answer<Sealed>) {
        let (reply, answer) = Reply::channel();
        (Seal { from, after, delta_from: Some(delta_from), also: Arc::default(), reply }, answer)
    }

    /// A manifest alone.
    pub(in crate::shard) fn plain(from: Lsn, after: SnapshotId) -> (Seal, Answer<Sealed>) {
        let (reply, answer) = Reply::channel();
        (Seal { from, after, delta_from: None, also: Arc::default(), reply }, answer)
    }

    /// The same with the blocks of `also`, whenever they changed; of those, what was never written is told as zeroes.
    #[must_use]
    pub fn with(self, also: Blocks) -> Seal {
        Seal { also, ..self }
    }
}
