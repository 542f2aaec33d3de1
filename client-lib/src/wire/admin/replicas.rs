//! Which nodes follow a volume.

use serde::{Deserialize, Serialize};

/// Asks for other nodes to follow a volume, or all volumes of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeReplicas {
    /// The nodes that follow from now on. They are sent everything, and count for a class of durability when they have it.
    #[serde(default)]
    pub add: Vec<String>,
    /// The nodes that follow no more. They drop what they hold.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Also where no replica is left, or a class of durability cannot be met by those that are.
    #[serde(default)]
    pub accept_fewer: bool,
}

/// What came of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReplicasReport {
    /// `changed`; `waiting`, where it is to be asked for again: nothing has changed then.
    pub state: String,
    /// What is waited for before nodes follow no more; empty when nothing is.
    pub waiting_for: Vec<String>,
    /// The volumes.
    pub volumes: Vec<String>,
    /// The node that owns them.
    pub owner: String,
    /// The nodes that follow.
    pub replicas: Vec<String>,
    /// Those of them that do not have everything for the first time yet.
    pub joining: Vec<String>,
}
