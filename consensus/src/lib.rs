//! The cluster's metadata: who may write a volume and up to where, agreed by Raft.
//!
//! [`command`] says what can change, [`state`] is the pure state machine that applies it, [`invariants`] what holds
//! in every state. Knows nothing of QUIC or of block data: no block write passes through here.

pub mod command;
pub mod invariants;
pub mod state;

pub use command::{Command, Refusal, Response};
pub use state::{EpochRecord, MetaState, Node, Volume};
