//! The members.

use serde::{Deserialize, Serialize};

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemberStatus {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its provider.
    pub provider: String,
    /// Where other nodes reach it.
    pub address: String,
    /// Whether it votes on metadata.
    pub voter: bool,
    /// Whether it leads the metadata group.
    pub leader: bool,
    /// Whether it answers the node asked, now.
    pub reachable: bool,
    /// Round trip from the node asked, in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// Where a node serves NBD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NbdAddresses {
    /// Over TCP, as `HOST:PORT`.
    pub tcp: Option<String>,
    /// The absolute path of its Unix socket, for clients on the same machine.
    pub unix: Option<String>,
}

/// The cluster, as the node asked sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClusterStatus {
    /// The node that answered.
    pub node: String,
    /// Where that node serves NBD.
    #[serde(default)]
    pub nbd: NbdAddresses,
    /// The Raft term it is in.
    pub term: u64,
    /// The members.
    pub members: Vec<MemberStatus>,
    /// Bytes that crossed the emulated WAN of `helio up`, both ways; 0 without one.
    pub wan_bytes: u64,
}
