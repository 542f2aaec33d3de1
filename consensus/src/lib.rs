//! The cluster's metadata: who may write a volume and up to where, agreed by Raft.
//!
//! [`command`] says what can change, [`state`] is the pure state machine that applies it, [`store`] keeps log and
//! state in RocksDB, [`placement`] says who votes, [`network`] carries Raft's calls over a small byte-call trait, [`runtime`] is what openraft runs on, [`raft`] is the handle that the node
//! uses. Knows nothing of QUIC or of block data: no block write passes through here.

pub mod command;
pub mod invariants;
pub mod network;
pub mod placement;
pub mod raft;
pub mod runtime;
pub mod state;
pub mod store;
pub mod timings;

/// Shared with the node: both keep their golden files in one place.
#[cfg(test)]
#[path = "../../storage-node/src/golden.rs"]
mod golden;

pub use command::{
    COMMAND_SET, Command, ENCLOSED_BYTES_MAX, Ended, RESCUE_ENCLOSED_BYTES_MAX, Refusal, Response, STEP_DOWN_MAX,
};
pub use network::RaftCalls;
pub use raft::{MetaFigures, MetaOptions, MetaRaft};
pub use state::access::{Access, ClientRecord, Issued, RemovedNode};
pub use state::places::Places;
pub use state::rights::ClientRights;
pub use state::{Cut, EpochRecord, Fork, Lease, Made, MetaState, Node, Snapshot, Volume, VolumeGroup};
pub use store::database::{FORMAT, MetaPlace};
pub use store::memory::MetaDisk;
pub use store::types::Member;
pub use timings::Timings;
