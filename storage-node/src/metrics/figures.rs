//! The numbers of a node at one moment, as plain structs: what is gathered, before it has names.

use std::time::Duration;

use client_lib::pki::Validity;
use consensus::MetaFigures;
use nbd_frontend::server::ConnectionFigures;

use super::process::ProcessFigures;
use crate::ownership::changes::ChangeFigures;
use crate::peer::links::Link;
use crate::propagation::pull::Fetched;
use crate::serve::observe::Health;
use crate::shard::figures::VolumeFigures;
use crate::shards::StoreFigures;
use crate::trace::export::ExportFigures;

/// In [`NodeFigures::certificates`]: what the node proves itself with to others, and renews.
pub const OWN_CERTIFICATE: &str = "node";

/// Everything.
#[derive(Debug, Default)]
pub struct NodeFigures {
    /// Its name.
    pub node: String,
    /// Its failure domain.
    pub provider: String,
    /// The process; of a cluster in one process the same at each of its nodes.
    pub process: ProcessFigures,
    /// What `/health/ready` says.
    pub health: Health,
    /// Consensus.
    pub metadata: MetadataView,
    /// The right to act as an owner.
    pub lease: LeaseFigures,
    /// Until when which certificate counts.
    pub certificates: Vec<(&'static str, Validity)>,
    /// The other nodes.
    pub links: Vec<LinkFigures>,
    /// NBD, if it is served.
    pub nbd: Option<ConnectionFigures>,
    /// The disks.
    pub stores: Vec<StoreFigures>,
    /// Handovers and takeovers.
    pub changes: ChangeFigures,
    /// Traces that a collector was told, if there is one.
    pub exported: Option<ExportFigures>,
    /// The volumes.
    pub volumes: VolumesFigures,
}

/// Consensus, as seen from a node.
#[derive(Debug, Default)]
pub struct MetadataView {
    /// Where it is.
    pub figures: MetaFigures,
    /// Whether this node leads.
    pub is_leader: bool,
    /// Whether it votes.
    pub is_voter: bool,
    /// How many nodes there are.
    pub nodes: u64,
}

/// The lease of a node.
#[derive(Debug, Default)]
pub struct LeaseFigures {
    /// Whether the node has to do with any volume.
    pub is_needed: bool,
    /// For how long it is in force.
    pub remaining: Duration,
    /// For how long it is when it is renewed.
    pub duration: Duration,
    /// How often it was found to be out.
    pub lapses: u64,
}

/// A link to another node.
#[derive(Debug)]
pub struct LinkFigures {
    /// The other node's name.
    pub peer: String,
    /// The round trip, while there is a connection.
    pub rtt: Option<Duration>,
    /// What went over it.
    pub link: Link,
    /// Bytes per second that it may take now.
    pub limit: Option<u64>,
}

/// The volumes of a node.
#[derive(Debug, Default)]
pub struct VolumesFigures {
    /// Owned and served here.
    pub owned: u64,
    /// Followed here.
    pub followed: u64,
    /// That should be served here and are not.
    pub troubled: u64,
    /// Of which it is the owner or a replica, and whose owner has stepped down.
    pub stepped_down: u64,
    /// Their names.
    pub each_stepped_down: Vec<String>,
    /// That are not in `each`.
    pub omitted: u64,
    /// One by one.
    pub each: Vec<VolumeView>,
}

/// A volume at a node.
#[derive(Debug)]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// What its store counts; `None` when that does not answer.
    pub stored: Option<VolumeFigures>,
    /// Bytes that this node keeps beyond a takeover.
    pub tail_bytes: Option<u64>,
    /// What its owner knows, if that is this node.
    pub owned: Option<OwnedFigures>,
    /// The epoch of the ownership.
    pub epoch: u64,
}

/// What the owner of a volume knows.
#[derive(Debug)]
pub struct OwnedFigures {
    /// Bytes that guests have written.
    pub written_bytes: u64,
    /// The age of what the best replica lacks.
    pub rpo: Option<Duration>,
    /// What it may be.
    pub rpo_target: Option<Duration>,
    /// For how long it has been more than that.
    pub rpo_missed: Option<Duration>,
    /// Bytes per second that may be written, while that is limited.
    pub write_limit: Option<u64>,
    /// Flushes that wait for the volume's class.
    pub flushes_waiting: u64,
    /// Whether they are answered without it.
    pub is_degraded: bool,
    /// What this ownership has fetched, in blocks, if it lacked anything when it began.
    pub fetched: Option<Fetched>,
    /// The replicas.
    pub replicas: Vec<ReplicaFigures>,
}

/// A replica, as the owner sees it.
#[derive(Debug)]
pub struct ReplicaFigures {
    /// Its node's name.
    pub replica: String,
    /// The age of the oldest write that it lacks.
    pub lag: Duration,
    /// Whether the last call to it succeeded.
    pub is_reachable: bool,
    /// Bytes that it knows of and does not hold.
    pub stale_bytes: u64,
    /// Whether it comes back to the volume.
    pub is_rejoining: bool,
    /// Bytes that it keeps beyond a takeover.
    pub tail_bytes: Option<u64>,
}
