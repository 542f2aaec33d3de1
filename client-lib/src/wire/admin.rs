//! What administrators ask and are answered, as JSON of the HTTP admin API and of the commands' `--json`.
//!
//! Names are names, sizes are bytes, LSNs are text (`EPOCH.SEQUENCE`). Fields are only ever added.

use serde::{Deserialize, Serialize};

mod audit;
mod clients;
mod cluster;
mod group;
mod handover;
mod links;
mod members;
mod overview;
mod placement;
mod policy;
mod replicas;
mod residency;
mod scrub;
mod snapshot;
mod space;
mod takeover;
mod timeline;
mod trace;
mod volume;

pub use audit::{AuditEntry, AuditList};
pub use clients::{
    AccessReport, CertificateStatus, ChangeRights, ClientList, ClientStatus, NoteClient, RevokeClient,
    RevokedCertificate,
};
pub use cluster::{ClusterStatus, MemberStatus, NbdAddresses};
pub use group::{
    ChangeGroup, CreateGroup, CutVolume, GroupMigrateReport, GroupSnapshot, GroupSnapshotReport, GroupStatus,
    GroupVolume, MovedVolume,
};
pub use handover::{CancelledMigrate, Migrate, MigrateReport, OnWrite, OnWriteStatus};
pub use links::{ChangeLink, FetchStatus, FreightStatus, LinkList, LinkStatus, LinkWindow};
pub use members::{GivenUpReplica, NodeList, NodeRemoval, NodeSummary, RemoveNode, RemovedStatus};
pub use overview::{Backlog, Overview, OverviewQuery, OwnerRow, ReplicaRow, VolumeRow};
pub use placement::{ChangeLabels, ChangePlacement, NodeLabels, PlacementStatus};
pub use policy::{ChangePolicy, DurabilityStatus, ReplicaPolicy, RpoStatus, VolumePolicy};
pub use replicas::{ChangeReplicas, ReplicasReport};
pub use residency::ResidencyMap;
pub use scrub::{ScrubState, ScrubStatus};
pub use snapshot::{CloneSnapshot, CreateSnapshot, RollBack, SnapshotStatus};
pub use space::{NodeSpace, StoreFault, StoreSpace, VolumeSpace};
pub use takeover::{AskTakeover, OwnerStatus, Rejoin, TailStatus, TakeoverProgress, TakeoverReport};
pub use timeline::{OwnershipChange, OwnershipPhase, OwnershipTimeline};
pub use trace::{TraceBucket, TraceReport, TraceSpan, TraceStage, TraceTimes, TracedKind, TracedOperation};
pub use volume::{
    AddVolumeKey, CloneOrigin, CreateVolume, Elsewhere, EncryptionStatus, OpeningKey, ReplicaStatus, Resize,
    VolumeStatus, VolumeSummary,
};

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Failure {
    /// What to do about it.
    pub kind: crate::ErrorKind,
    /// What happened.
    pub message: String,
}

/// Tells `null` from a field that is not there.
fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
