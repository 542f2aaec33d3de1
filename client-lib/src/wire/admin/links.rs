//! What crosses between nodes, and what may.

use serde::{Deserialize, Serialize};

/// A time of every day, and what a link may take then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LinkWindow {
    /// From then on, as `HH:MM` in UTC.
    pub from: String,
    /// Until then; on the next day if it is not after `from`.
    pub to: String,
    /// Bytes per second; `null` is as many as come, 0 is none.
    pub rate_bytes_per_second: Option<u64>,
}

/// Asks for another limit of a link. What is not given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeLink {
    /// Bytes of bulk data per second outside all windows; `null` is as many as come, 0 is none.
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_second: Option<Option<u64>>,
    /// All windows; the first that fits counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<Vec<LinkWindow>>,
}

/// Bytes of blocks on their way to another node, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FreightStatus {
    /// Written by guests, as far as the other node has come: what is still to be sent to it is not in it.
    pub written_bytes: u64,
    /// Sent as data, before compression; what was sent again after a break counts again.
    pub sent_bytes: u64,
    /// What that was on the wire, without what goes around it.
    pub wire_bytes: u64,
    /// Not sent because a mark says that a block holds zeroes.
    pub zero_bytes: u64,
    /// Not sent because the block was written again before.
    pub overwritten_bytes: u64,
    /// Not sent because the other node has the same content there already.
    #[serde(default)]
    pub same_bytes: u64,
    /// Not sent because the other node had it from one at its provider.
    #[serde(default)]
    pub relayed_bytes: u64,
    /// Saved by compression: `sent_bytes` less `wire_bytes`.
    pub compressed_bytes: u64,
}

/// Blocks that a new owner lacked, and how it came by them, since its ownership began or it was started, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FetchStatus {
    /// Lacked when the ownership began.
    pub lacked_bytes: u64,
    /// Fetched because a guest waited for them.
    pub demanded_bytes: u64,
    /// Fetched because a guest read what is beside them.
    pub near_bytes: u64,
    /// Fetched because they were read and written most at the last owner.
    pub hot_bytes: u64,
    /// Fetched in the background.
    pub rest_bytes: u64,
    /// Not fetched because they were written again before.
    pub overwritten_bytes: u64,
    /// Calls whose answer was late, so that a second node was asked as well.
    pub hedged_calls: u64,
}

/// The way from one node to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LinkStatus {
    /// The node that sends.
    pub from: String,
    /// The node that it sends to.
    pub to: String,
    /// That node's provider.
    pub provider: String,
    /// Round trip, in milliseconds; `null` before the first connection.
    pub rtt_ms: Option<f64>,
    /// What went over it, of all volumes, since the sending node was started. Blocks that were fetched on demand are in `sent_bytes`
    /// and not in `written_bytes`.
    pub freight: FreightStatus,
    /// How fast it took bulk data, as far as that was measured.
    pub measured_bytes_per_second: Option<u64>,
    /// How long 19 of 20 fetches take on which a guest waits, from that node to this one, beside what their bytes take, in milliseconds;
    /// `null` while there were few.
    #[serde(default)]
    pub fetch_p95_ms: Option<f64>,
    /// Fetches from that node whose answer was late, so that another node was asked as well.
    #[serde(default)]
    pub hedged_calls: u64,
    /// How much bulk data it may take outside all windows; `null` is as much as comes, 0 is none.
    pub rate_bytes_per_second: Option<u64>,
    /// Other rates at times of the day.
    pub windows: Vec<LinkWindow>,
    /// How much it may take now.
    pub limit_bytes_per_second: Option<u64>,
}

/// The links of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LinkList {
    /// Each direction by itself.
    pub links: Vec<LinkStatus>,
    /// Nodes that do not answer: the links that begin at them are left out.
    pub silent: Vec<String>,
}
