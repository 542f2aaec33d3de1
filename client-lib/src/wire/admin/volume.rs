//! Volumes: made, listed, resized, told of.

use serde::{Deserialize, Serialize};

use crate::cipher::keys::KeyFingerprint;
use crate::cipher::{SealedKey, VolumeKeys};

use super::{
    DurabilityStatus, FetchStatus, FreightStatus, PlacementStatus, ReplicaPolicy, RpoStatus, TailStatus, VolumeSpace,
};

/// Asks for a new volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Its size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// The node that owns it; the node asked, if none is given.
    #[serde(default)]
    pub owner: Option<String>,
    /// The nodes that follow, at most 15; all others, or 15 of them, if none are given.
    #[serde(default)]
    pub replicas: Option<Vec<String>>,
    /// Where copies are to be, in place of `replicas`, as `2 in eu, 1 elsewhere`.
    #[serde(default)]
    pub placement: Option<String>,
    /// What FLUSH and FUA wait for: `local`, `site:N` or `geo:N`; `local`, if it is not given.
    #[serde(default)]
    pub durability: Option<String>,
    /// What happens while that cannot be met: `block` or `degrade`; `block`, if it is not given.
    #[serde(default)]
    pub unmet: Option<String>,
    /// With `degrade`: how long it is waited for, in milliseconds.
    #[serde(default)]
    pub degrade_after_ms: Option<u64>,
    /// Whether a class is accepted that these nodes can never meet.
    #[serde(default)]
    pub accept_unmet: bool,
    /// The volume's key, sealed by whoever asks, if the volume is to be encrypted; nodes never see the key itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<VolumeKeys>,
}

/// Asks for another key to open an encrypted volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AddVolumeKey {
    /// The check value of what is sealed, which is the volume's.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub check: KeyFingerprint,
    /// The volume's key, sealed under the one that is to open it.
    pub key: SealedKey,
}

/// How a volume is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EncryptionStatus {
    /// The cipher.
    pub cipher: String,
    /// The keys that open it.
    pub keys: Vec<OpeningKey>,
}

/// A key that opens a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OpeningKey {
    /// What it is called.
    pub name: String,
    /// Which it is, in hexadecimal.
    pub fingerprint: String,
}

impl From<&VolumeKeys> for EncryptionStatus {
    fn from(keys: &VolumeKeys) -> EncryptionStatus {
        let opening =
            |key: &SealedKey| OpeningKey { name: key.name.to_string(), fingerprint: key.fingerprint.to_string() };
        EncryptionStatus { cipher: keys.cipher.to_string(), keys: keys.sealed.iter().map(opening).collect() }
    }
}

/// Asks for another size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The new size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Whether it may be smaller than the present one: what lies beyond the end is dropped.
    #[serde(default)]
    pub shrink: bool,
}

/// A volume in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeSummary {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The node that owns it.
    pub owner: String,
    /// The epoch of that ownership.
    pub epoch: u64,
    /// The nodes that follow.
    pub replicas: Vec<String>,
    /// Its class of durability; empty from a node that does not tell yet.
    #[serde(default)]
    pub durability: String,
    /// Whether nodes hold ciphertext of it.
    #[serde(default)]
    pub encrypted: bool,
}

/// A replica of a volume, as its owner sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReplicaStatus {
    /// The node.
    pub node: String,
    /// Its provider.
    pub provider: String,
    /// Up to where it holds a complete prefix.
    pub watermark: String,
    /// Up to where it knows what changed.
    pub known: String,
    /// Bytes of distinct blocks changed since its watermark.
    pub bytes_behind: u64,
    /// What of that is still to come to it: the rest is there, and is applied when all of its delta has come. `null` from a node that does not tell yet.
    #[serde(default)]
    pub to_send_bytes: Option<u64>,
    /// Age of the oldest write that it lacks, by the owner's clock: at most so much, to a tenth of a second for the last minute. Of
    /// writes under an earlier owner only that they are older than the present ownership is known.
    pub seconds_behind: f64,
    /// The moment as of which it shows the volume, by the owner's clock, in milliseconds since 1970; the position is `watermark`. `null`
    /// when that was before the present ownership.
    #[serde(default)]
    pub consistent_ms: Option<u64>,
    /// Bytes it knows in a newer version than it holds.
    pub stale_bytes: u64,
    /// Whether the last call to it succeeded.
    pub reachable: bool,
    /// Whether what it holds counts toward the volume's class of durability.
    #[serde(default)]
    pub counts: bool,
    /// What it keeps, if a takeover cut off what it holds: it does not follow until it rejoins.
    #[serde(default)]
    pub tail: Option<TailStatus>,
    /// Whether it comes back to the volume after that, and cannot take it over before it has fetched what is counted as behind: what has
    /// changed since it was cut off, and what it had discarded, blocks that are among both counted twice.
    #[serde(default)]
    pub is_rejoining: bool,
    /// Whether it became a replica later, and does not have everything for the first time yet: until then it counts for nothing, and cannot
    /// take over.
    #[serde(default)]
    pub is_joining: bool,
    /// Why not, as it said or as the network did; `null` when it did.
    #[serde(default)]
    pub error: Option<String>,
    /// What was sent to it since the ownership began, or the owner was started.
    #[serde(default)]
    pub freight: FreightStatus,
    /// When it is sent data.
    #[serde(default)]
    pub policy: ReplicaPolicy,
    /// How much bulk data of all volumes it may be sent per second now, as its link is set; `null` is as much as comes, 0 is none.
    #[serde(default)]
    pub limit_bytes_per_second: Option<u64>,
}

/// What a volume began as, if it is a clone. That is all it says: from when it is made neither needs the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CloneOrigin {
    /// The volume, by its present name; `null` when it is deleted.
    pub volume: Option<String>,
    /// The snapshot of it; `null` when it, or the volume, is deleted.
    pub snapshot: Option<String>,
    /// Whether the clone's owner has made it; until then the snapshot cannot be deleted.
    pub is_made: bool,
}

/// What the owner of a volume has yet to fetch, of the volume and of its snapshots, and who has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Elsewhere {
    /// Bytes of it.
    pub bytes: u64,
    /// The nodes in reach that have all of it: one of them is enough.
    pub all_at: Vec<String>,
    /// The others that may have some of it: as long as no node is known to have all, each is needed.
    pub some_at: Vec<String>,
}

impl Elsewhere {
    /// Whether blocks may be lost without the nodes of which `is_gone` is true.
    pub fn needs(&self, is_gone: impl Fn(&str) -> bool) -> bool {
        match self.all_at.is_empty() {
            true => self.some_at.iter().any(|node| is_gone(node)),
            false => self.all_at.iter().all(|node| is_gone(node)),
        }
    }

    /// Where it comes from, and which nodes must stay: "node b: keep it running".
    #[must_use]
    pub fn told(&self) -> String {
        let nodes = |nodes: &[String]| match nodes {
            [node] => format!("node {node}"),
            nodes => format!("nodes {}", nodes.join(", ")),
        };
        match (self.all_at.as_slice(), self.some_at.as_slice()) {
            ([_], _) => format!("{}: keep it running", nodes(&self.all_at)),
            ([], [_]) => format!("{}: keep it running", nodes(&self.some_at)),
            ([], []) => "nowhere: no node that is left is known to have any of it".to_owned(),
            ([], _) => format!("{}, of which each may have some: keep all of them running", nodes(&self.some_at)),
            _ => format!("{}, of which each has all of it: keep one of them running", nodes(&self.all_at)),
        }
    }
}

/// Everything about a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its id: a volume that is made anew under the same name has another. 0 from a node that does not tell yet.
    #[serde(default)]
    pub id: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The node that owns it.
    pub owner: String,
    /// The epoch of that ownership.
    pub epoch: u64,
    /// The newest LSN.
    pub head: String,
    /// Bytes that occupy space at the owner.
    pub mapped_bytes: u64,
    /// Bytes that the owner has yet to fetch.
    pub stale_bytes: u64,
    /// The nodes that follow.
    pub replicas: Vec<ReplicaStatus>,
    /// One node whose loss may cost data now; `null` when there is none. `elsewhere` says it of all.
    pub source_needed: Option<String>,
    /// Where the owner's missing blocks are; `null` when it has everything, or is of an older version.
    #[serde(default)]
    pub elsewhere: Option<Elsewhere>,
    /// Blocks whose data at the owner is damaged and not yet repaired, as far as it was found.
    #[serde(default)]
    pub damaged_blocks: u64,
    /// Damaged blocks at the owner that were repaired from another node since it started.
    #[serde(default)]
    pub repaired_blocks: u64,
    /// Blocks that the owner's scrub has read and compared since it started, counted again in each pass.
    #[serde(default)]
    pub verified_blocks: u64,
    /// Why the owner takes no writes until it is restarted; `null` when it does.
    #[serde(default)]
    pub fault: Option<String>,
    /// Since when, in milliseconds since 1970; `null` when it does, and from a node that does not tell yet.
    #[serde(default)]
    pub fault_since_ms: Option<u64>,
    /// Why the owner, which takes no writes, still has it: what kept it from giving it to a replica when it last tried, or why it does not try.
    /// `null` when it takes writes, has not tried yet or has stepped down, and from a node that does not tell yet.
    #[serde(default)]
    pub not_given_away: Option<String>,
    /// Whether the owner has ceased to act for it, until its node is restarted, since its store has failed: nothing is read or written, and
    /// a takeover waits for nothing.
    #[serde(default)]
    pub stepped_down: bool,
    /// Whether the owner's store refused the last write, of this or another volume, for want of space; `false` from a node that
    /// does not tell yet.
    #[serde(default)]
    pub is_full: bool,
    /// Where its space goes at the owner.
    #[serde(default)]
    pub space: VolumeSpace,
    /// How it stands to its class of durability.
    #[serde(default)]
    pub durability: DurabilityStatus,
    /// How far its replicas are behind, and may be.
    #[serde(default)]
    pub rpo: RpoStatus,
    /// The node to which it goes when it is written there.
    #[serde(default)]
    pub on_write: Option<String>,
    /// What it is a clone of; `null` when it is none.
    #[serde(default)]
    pub clone_of: Option<CloneOrigin>,
    /// The group that it is in.
    #[serde(default)]
    pub group: Option<String>,
    /// Bytes of blocks that were written since the ownership began, or the owner was started, each time counted.
    #[serde(default)]
    pub written_bytes: u64,
    /// How its copies stand to its rule of placement; `null` where it has none.
    #[serde(default)]
    pub placement: Option<PlacementStatus>,
    /// What it lacked at the owner when the ownership began, and what became of that.
    #[serde(default)]
    pub fetch: FetchStatus,
    /// How it is encrypted; `null` when it is not.
    #[serde(default)]
    pub encryption: Option<EncryptionStatus>,
}

impl VolumeStatus {
    /// Where the owner's missing blocks are, also as owners of older versions tell it.
    #[must_use]
    pub fn fetched_from(&self) -> Option<Elsewhere> {
        let told_of_one =
            |source: &String| Elsewhere { bytes: self.stale_bytes, all_at: vec![source.clone()], some_at: vec![] };
        self.elsewhere.clone().or_else(|| self.source_needed.as_ref().map(told_of_one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After two instant moves in a row everything was at the first owner alone, and the second, which had fetched nothing yet, was called the
    /// one to keep running: `helio node drain` said that nobody needed the first.
    #[test]
    fn one_node_that_has_everything_is_enough_and_without_one_each_is_needed() {
        let at = |all: &[&str], some: &[&str]| {
            let named = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect();
            Elsewhere { bytes: 4096, all_at: named(all), some_at: named(some) }
        };
        let needs = |elsewhere: &Elsewhere, gone: &[&str]| elsewhere.needs(|node| gone.contains(&node));
        let first = at(&["a"], &["b"]);
        assert!(needs(&first, &["a"]) && !needs(&first, &["b"]));
        assert_eq!(first.told(), "node a: keep it running");
        let several = at(&["a", "d"], &["b"]);
        assert!(!needs(&several, &["a"]) && !needs(&several, &["b", "d"]) && needs(&several, &["a", "d"]));
        assert_eq!(several.told(), "nodes a, d, of which each has all of it: keep one of them running");
        let unknown = at(&[], &["a", "b"]);
        assert!(needs(&unknown, &["a"]) && needs(&unknown, &["b"]) && !needs(&unknown, &["c"]));
        assert!(at(&[], &[]).told().starts_with("nowhere") && !needs(&at(&[], &[]), &["a"]));
        assert_eq!(unknown.told(), "nodes a, b, of which each may have some: keep all of them running");
    }
}
