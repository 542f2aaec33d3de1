//! Where copies are to be: labels of nodes, rules of volumes.

use serde::{Deserialize, Serialize};

/// Asks for other labels of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeLabels {
    /// Those that it has from now on.
    #[serde(default)]
    pub add: Vec<String>,
    /// Those that it has no more.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// The labels of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeLabels {
    /// The node.
    pub node: String,
    /// Its labels.
    pub labels: Vec<String>,
}

/// Asks for a rule of placement of a volume, or of all volumes of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangePlacement {
    /// How many copies go where, as `2 in eu, 1 elsewhere, never cloud-3`; `null` leaves them where they are from now on.
    pub rule: Option<String>,
    /// Whether it is only looked what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// How a volume stands to its rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlacementStatus {
    /// The rule; `null` where copies were put by hand.
    pub rule: Option<String>,
    /// The nodes that hold a copy, the owner first.
    pub copies: Vec<String>,
    /// Those that will get one.
    pub add: Vec<String>,
    /// Those whose copy the rule does not ask for: they follow no more when the others have everything.
    pub surplus: Vec<String>,
    /// Copies for which there is no node that is up, as `1 in eu`.
    pub lacking: Vec<String>,
    /// Whether the owner is where no copy is to be: a handover changes that, nothing else does.
    pub owner_is_misplaced: bool,
    /// What the owner waits for, or why its last attempt failed, in sentences. Only the owner tells it.
    #[serde(default)]
    pub waits_for: Vec<String>,
}
