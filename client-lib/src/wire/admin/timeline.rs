//! The last changes of owner, and what took how long in them.

use serde::{Deserialize, Serialize};

/// The last changes of a volume's owner, as the nodes tell that carried them out. They keep some hundred of all volumes, in memory: what
/// was before they were started is not in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnershipTimeline {
    /// The volume.
    pub volume: String,
    /// The changes, the newest first; also those that came to nothing, and one that is under way.
    pub changes: Vec<OwnershipChange>,
    /// Nodes that do not answer: what they carried out is left out.
    pub silent: Vec<String>,
}

/// A change of owner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnershipChange {
    /// `handover` or `takeover`.
    pub kind: String,
    /// Of a handover: `instant`, `synced` or `on-write`, or `rescue`, of a volume whose store took no writes any more.
    pub mode: Option<String>,
    /// The node that tells: the old owner of a handover, the new one of a takeover.
    pub told_by: String,
    /// The old owner.
    pub from: String,
    /// The new owner.
    pub to: String,
    /// The epoch that ended, or was to end.
    pub epoch: u64,
    /// How many volumes went in this step: more than one if they are of a group.
    pub volumes: u64,
    /// When it began, by the clock of the node that tells, in milliseconds since 1970.
    pub began_ms: u64,
    /// How long it took, or takes by now, in milliseconds.
    pub took_ms: f64,
    /// How long writers were held, in milliseconds: from `freezing` on. Of a takeover nobody knows.
    pub held_ms: Option<f64>,
    /// `running`, `moved` or `failed`.
    pub outcome: String,
    /// Why it failed.
    pub error: Option<String>,
    /// Bytes that the new owner lacked: of a handover to be fetched, of a takeover lost.
    pub stale_bytes: Option<u64>,
    /// What was done, in order.
    pub phases: Vec<OwnershipPhase>,
}

/// A part of a change of owner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OwnershipPhase {
    /// Of a handover `asking`, `catching-up`, `telling`, `freezing`, `preparing`, `proposing`, `resolving`, `releasing`; of a takeover
    /// `waiting`, `expiring`, `holding`, `proposing`, `resolving`, `taking-up`.
    pub name: String,
    /// What that is, in words.
    pub doing: String,
    /// When it began, in milliseconds since the change began.
    pub began_ms: f64,
    /// How long it took, or takes by now, in milliseconds.
    pub took_ms: f64,
    /// Whether writers are held meanwhile.
    pub holds_writers: bool,
}
