//! What administrators have done.

use serde::{Deserialize, Serialize};

/// An administrative act.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// When it was asked for, by the clock of the node asked, in milliseconds since 1970.
    pub at_ms: u64,
    /// The node asked.
    pub node: String,
    /// Who asked, as far as it is proven: a client, by its certificate, or whoever has the node's secret. Empty of what was noted before that was
    /// demanded.
    #[serde(default)]
    pub identity: String,
    /// Who asked, as he says himself: nothing proves it. Empty if he does not say.
    pub user: String,
    /// What was asked: method and path.
    pub act: String,
    /// With what, as JSON; cut off where it is long.
    pub with: String,
    /// What came of it: a status of HTTP; 0 if whoever asked did not wait for it.
    pub status: u16,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// What administrators have done, newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditList {
    /// The acts.
    pub entries: Vec<AuditEntry>,
    /// Nodes that do not tell theirs.
    pub silent: Vec<String>,
}
