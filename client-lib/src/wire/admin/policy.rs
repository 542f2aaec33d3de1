//! What volumes promise, and how they stand to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a volume's owner promises, and what happens when it is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumePolicy {
    /// A replica takes over by itself when the owner's lease has been out for so many milliseconds; `null` leaves it to an
    /// operator.
    pub takeover_after_ms: Option<u64>,
    /// What FLUSH and FUA wait for: `local`, `site:N` or `geo:N`.
    #[serde(default)]
    pub durability: String,
    /// What happens while that cannot be met: `block` or `degrade`.
    #[serde(default)]
    pub unmet: String,
    /// With `degrade`: how long it is waited for, in milliseconds.
    #[serde(default)]
    pub degrade_after_ms: Option<u64>,
    /// How far the best replica may be behind, in milliseconds; `null` is as far as it is.
    #[serde(default)]
    pub rpo_target_ms: Option<u64>,
    /// What happens beyond that: `alarm` or `throttle`.
    #[serde(default)]
    pub rpo_action: Option<String>,
    /// When the replicas are sent data that have no mode of their own: `eager` or `lazy`.
    #[serde(default)]
    pub propagation: String,
    /// With `lazy`: how long after the last delta was begun the next one is, at least, in milliseconds.
    #[serde(default)]
    pub interval_ms: Option<u64>,
    /// Those that have a mode of their own, by node.
    #[serde(default)]
    pub replicas: BTreeMap<String, ReplicaPolicy>,
    /// What lazy replicas are sent first: `log`, `least-volatile`, `write-count` or `benefit`.
    #[serde(default)]
    pub send_order: String,
}

/// When a replica is sent data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReplicaPolicy {
    /// `eager` or `lazy`.
    pub propagation: String,
    /// As in [`VolumePolicy`].
    pub interval_ms: Option<u64>,
}

/// Asks for another policy. What is not given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangePolicy {
    /// As in [`VolumePolicy`]; `null` is `manual`.
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    pub takeover_after_ms: Option<Option<u64>>,
    /// As in [`VolumePolicy`].
    #[serde(default)]
    pub durability: Option<String>,
    /// As in [`VolumePolicy`].
    #[serde(default)]
    pub unmet: Option<String>,
    /// As in [`VolumePolicy`]; with `unmet`.
    #[serde(default)]
    pub degrade_after_ms: Option<u64>,
    /// Whether a class is accepted that the volume's nodes can never meet.
    #[serde(default)]
    pub accept_unmet: bool,
    /// As in [`VolumePolicy`]; `null` is no target.
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    pub rpo_target_ms: Option<Option<u64>>,
    /// As in [`VolumePolicy`].
    #[serde(default)]
    pub rpo_action: Option<String>,
    /// As in [`VolumePolicy`]; with `replica` also `default`, which takes its own mode from it.
    #[serde(default)]
    pub propagation: Option<String>,
    /// As in [`VolumePolicy`].
    #[serde(default)]
    pub interval_ms: Option<u64>,
    /// The replica that `propagation` and `interval_ms` are for; all that have no mode of their own, if it is not given.
    #[serde(default)]
    pub replica: Option<String>,
    /// As in [`VolumePolicy`]; for all replicas.
    #[serde(default)]
    pub send_order: Option<String>,
}

/// How a volume stands to its class of durability, as its owner sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DurabilityStatus {
    /// What FLUSH and FUA wait for: `local`, `site:N` or `geo:N`; empty from a node that does not tell yet.
    pub class: String,
    /// What happens while that cannot be met: `block` or `degrade`.
    pub unmet: String,
    /// With `degrade`: how long it is waited for, in milliseconds.
    pub degrade_after_ms: Option<u64>,
    /// `met`, `unmet` (a flush waits, or would) or `degraded` (flushes are answered without it).
    pub state: String,
    /// Up to where the volume is durable in its class, as far as is known; `null` in class `local`.
    pub durable: Option<String>,
    /// How many clients' requests wait for it now.
    pub waiting: u64,
    /// For how long the first of them has.
    pub waiting_seconds: f64,
    /// Since when the volume is degraded, by the owner's clock, in milliseconds since 1970.
    pub degraded_since_ms: Option<u64>,
    /// Bytes of distinct blocks that were flushed since and are not durable in the class, at most.
    pub at_risk_bytes: u64,
    /// Why the class is not met; `null` when it is.
    pub cause: Option<String>,
    /// What happens next by itself.
    pub next: Option<String>,
}

/// What the loss of the owner would cost now, and may cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RpoStatus {
    /// Age of the oldest write that no replica has; `null` when there is no replica, or from a node that does not tell yet.
    pub seconds: Option<f64>,
    /// How far that may go, in milliseconds; `null` when nothing is said.
    pub target_ms: Option<u64>,
    /// What happens beyond it: `alarm` or `throttle`.
    pub action: Option<String>,
    /// For how long the target has been missed; `null` when it is met, or there is none.
    pub missed_seconds: Option<f64>,
    /// What may be written per second, while writes are slowed.
    pub limit_bytes_per_second: Option<u64>,
}
