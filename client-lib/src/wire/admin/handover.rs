//! Handovers: now, synced, and by a write.

use serde::{Deserialize, Serialize};

/// Asks for a handover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The node that is to own the volume.
    pub to: String,
    /// Whether the volume may go where its class of durability can never be met.
    #[serde(default)]
    pub accept_unmet: bool,
    /// Whether it goes only when that node holds everything, so that the loss of the present owner costs nothing from then on. Else
    /// it goes at once, and what is still on its way is fetched on demand.
    #[serde(default)]
    pub synced: bool,
    /// How long it may take, in milliseconds; when that is over, and nothing is decided yet, the volume stays where it is.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
}

/// Asks that a volume goes to a node when it is written there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OnWrite {
    /// The node.
    pub to: String,
    /// Whether it may go where its class of durability can never be met.
    #[serde(default)]
    pub accept_unmet: bool,
}

/// Where a volume goes when it is written there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OnWriteStatus {
    /// The node.
    pub to: String,
    /// The epoch of the present ownership, with whose end this ends.
    pub epoch: u64,
}

/// What was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CancelledMigrate {
    /// Whether a handover was told to end; whoever asked for it hears whether it did.
    pub handover: bool,
    /// The node to which the volume would have gone with a write there.
    pub on_write: Option<String>,
}

/// What a handover came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MigrateReport {
    /// How long writers were held, in milliseconds.
    pub handover_ms: f64,
    /// The new epoch.
    pub epoch: u64,
    /// Bytes that the new owner knew of and did not hold yet.
    pub stale_bytes_at_handover: u64,
    /// How long the new owner was waited for before that, until it held nearly everything.
    #[serde(default)]
    pub caught_up_seconds: f64,
    /// Nothing was to be done: the volume was there, in this epoch, and lacks so many bytes now.
    #[serde(default)]
    pub was_there: bool,
}
