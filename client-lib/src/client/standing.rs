//! How an open volume stands: whether it can be used, and where its use has got to.

use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::types::{Epoch, Lsn, SnapshotId, VolumeId};
use crate::wire::client::Tenure;

/// Whether a volume can be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeStatus {
    /// What is asked of it is done.
    Connected,
    /// What is asked of it waits, for this reason.
    Waiting(String),
    /// It cannot be used any more, for this reason: open it anew.
    Failed(String),
}

/// How a volume stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeState {
    /// Whether it can be used.
    pub status: VolumeStatus,
    /// The name of the node that owns it, as far as is known.
    pub owner: Option<String>,
    /// The epoch of that ownership.
    pub epoch: Epoch,
    /// Bytes.
    pub size: u64,
    /// Bytes of writes that are kept because they are not durable yet.
    pub journal_bytes: u64,
}

/// Where the use of a volume stands: with it another process goes on as if it were the same one ([`Cluster::resume`]).
///
/// What was flushed is what it covers. Writes that are not acked, or were acked and not flushed, stay with the [`Volume`] that made them
/// ([`Volume::settle`]).
///
/// [`Cluster::resume`]: super::Cluster::resume
/// [`Volume`]: super::Volume
/// [`Volume::settle`]: super::Volume::settle
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The volume, for ever.
    pub volume: VolumeId,
    /// The snapshot of it that is used.
    pub snapshot: Option<SnapshotId>,
    /// As it was opened.
    pub name: String,
    /// The epoch of the right to write.
    pub right: Epoch,
    /// The one that the journal was compared with last; none before the first.
    pub tenure: Option<Tenure>,
    /// The newest write that was relied on: when a takeover cuts it off, the use of the volume is over.
    pub settled: Lsn,
    /// Why the volume cannot be used any more.
    pub failure: Option<(ErrorKind, String)>,
}
