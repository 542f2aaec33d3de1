//! The client that programs link: volumes of a cluster, used from a machine that runs no node.
//!
//! A [`Cluster`] is reached by credentials (`helio cluster client`). A [`Volume`] of it is a disk that outlives the node behind
//! it: nodes may be killed and started again, a volume may be handed over or taken over, and its user sees latency and no error.
//! [`journal`] keeps what a loss could undo, [`session`] sends it again where it is missing, [`closing`] ends that, [`nodes`] finds who
//! answers.
//! [`blocking`] is the same without `async`. What is promised and what is not: `docs/client.md`.

pub mod blocking;
mod closing;
pub mod cluster;
mod credentials;
pub mod journal;
mod nodes;
mod opening;
mod replay;
mod session;
mod standing;
#[cfg(test)]
mod stub;
pub mod volume;

pub use cluster::Cluster;
pub use credentials::require_not_ended;
pub use opening::{Found, JOURNAL_BYTES, OpenOptions};
pub use standing::{Position, VolumeState, VolumeStatus};
pub use volume::{Extent, Volume};
