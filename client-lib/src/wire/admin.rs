//! What administrators ask and are answered, as JSON of the HTTP admin API and of the commands' `--json`.
//!
//! Names are names, sizes are bytes, LSNs are text (`EPOCH.SEQUENCE`). Fields are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Asks for a new volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Its size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// The node that owns it; the node asked, if none is given.
    #[serde(default)]
    pub owner: Option<String>,
    /// The nodes that follow; all others, if none are given.
    #[serde(default)]
    pub replicas: Option<Vec<String>>,
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
}

/// Asks for a handover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct OnWriteStatus {
    /// The node.
    pub to: String,
    /// The epoch of the present ownership, with whose end this ends.
    pub epoch: u64,
}

/// What was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelledMigrate {
    /// Whether a handover was told to end; whoever asked for it hears whether it did.
    pub handover: bool,
    /// The node to which the volume would have gone with a write there.
    pub on_write: Option<String>,
}

/// Asks for a takeover: the owner is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskTakeover {
    /// The node that is to own the volume; the replica that holds most of it, if none is given.
    #[serde(default)]
    pub to: Option<String>,
    /// Whether the new owner may hold less than another replica, or than one that does not answer and may hold what was flushed in
    /// the volume's class: what only that one holds is cut off.
    #[serde(default)]
    pub behind: bool,
}

/// A takeover under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeoverProgress {
    /// The owner that is lost.
    pub from: String,
    /// The node that takes over.
    pub to: String,
    /// `waiting`, `expiring`, `holding`, `proposing`, `resolving` or `taking_up`.
    pub stage: String,
    /// What that is, in words.
    pub doing: String,
    /// How long the owner's lease still lasts, in milliseconds, while that is waited for.
    pub remaining_ms: Option<u64>,
}

/// What a takeover came to. What the lost owner had told nobody is not in it: only that node has it, and its status shows it
/// when it is back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakeoverReport {
    /// The volume.
    pub volume: String,
    /// The owner that is lost.
    pub from: String,
    /// The new owner.
    pub to: String,
    /// The new epoch.
    pub epoch: u64,
    /// Everything up to here is there, and nothing after it.
    pub start: String,
    /// The newest write that any replica in reach had been told of.
    pub known: String,
    /// Writes between `start` and `known`, which are lost: at least so many.
    pub lost_writes: u64,
    /// Bytes of distinct blocks that the new owner had been told of and did not hold: at most so many of those it knew of.
    pub lost_bytes: u64,
    /// From when the first lost write was told of to when the owner was last heard of, at the new owner.
    pub lost_seconds: f64,
    /// How long before the takeover the new owner last heard of the lost one, which is silent while nothing is written;
    /// `null` when it never did since it was started.
    pub heard_seconds_ago: Option<f64>,
    /// How long it took, most of it the rest of the owner's lease.
    pub took_seconds: f64,
    /// Snapshots that were made after `start`, and are lost.
    pub lost_snapshots: Vec<String>,
    /// Replicas that hold more than `start`: they have left the volume and keep what they hold.
    pub left: Vec<String>,
}

/// What a volume's owner promises, and what happens when it is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct ReplicaPolicy {
    /// `eager` or `lazy`.
    pub propagation: String,
    /// As in [`VolumePolicy`].
    pub interval_ms: Option<u64>,
}

/// Asks for another policy. What is not given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangePolicy {
    /// As in [`VolumePolicy`]; `null` is `manual`.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
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
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
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

/// A time of every day, and what a link may take then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(deny_unknown_fields)]
pub struct ChangeLink {
    /// Bytes of bulk data per second outside all windows; `null` is as many as come, 0 is none.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_second: Option<Option<u64>>,
    /// All windows; the first that fits counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<Vec<LinkWindow>>,
}

/// Tells `null` from a field that is not there.
fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// How a volume stands to its class of durability, as its owner sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// The owner of a volume, as the node asked sees it, whether it answers or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerStatus {
    /// The node.
    pub owner: String,
    /// The epoch of its ownership.
    pub epoch: u64,
    /// Whether it answers the node asked, now.
    pub reachable: bool,
    /// How long its lease still lasts if it is not renewed, in milliseconds; 0 when it is out.
    pub lease_left_ms: u64,
    /// For how long its lease has been out, in milliseconds, as seen at the node asked.
    pub lease_out_for_ms: u64,
    /// The policy: as in [`VolumePolicy`].
    pub takeover_after_ms: Option<u64>,
}

/// What the loss of the owner would cost now, and may cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// Asks a node that has left a volume to drop what it holds and follow again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejoin {
    /// The node.
    pub node: String,
    /// Must be true: what a takeover cut off is dropped for good.
    #[serde(default)]
    pub discard_tail: bool,
}

/// What a node held of a volume after a takeover cut it off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailStatus {
    /// The node that holds it, and has left the volume.
    pub node: String,
    /// After this position.
    pub from: String,
    /// Up to and with this.
    pub to: String,
    /// The read-only NBD export that shows the volume with it, at that node.
    pub export: String,
    /// Writes in it.
    pub writes: u64,
    /// Bytes of distinct blocks in it, at most.
    pub bytes: u64,
}

/// Asks for another size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The new size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Whether it may be smaller than the present one: what lies beyond the end is dropped.
    #[serde(default)]
    pub shrink: bool,
}

/// Asks for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name, unique in the volume.
    pub name: String,
}

/// Asks for a volume to become what a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Whether what was written since may go, as far as no other snapshot has it.
    #[serde(default)]
    pub discard_changes: bool,
}

/// Asks for a new volume that begins as a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneSnapshot {
    /// The new volume's name.
    pub name: String,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// The volume.
    pub volume: String,
    /// Its name: `VOLUME@NAME` is an export.
    pub name: String,
    /// Its id, never used again.
    pub id: u64,
    /// Up to where it has the volume's writes; `null` until the owner has made it.
    pub lsn: Option<String>,
    /// The volume's size there; 0 until it is made.
    pub size_bytes: u64,
    /// When it was made, by the owner's clock, in milliseconds since 1970.
    pub created_ms: Option<u64>,
    /// Bytes at the owner that neither the volume nor a newer snapshot has any more.
    pub held_bytes: u64,
    /// The nodes that hold all of it. It can be read at the others too.
    pub complete_at: Vec<String>,
}

/// What a handover came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
}

/// A volume in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// Bytes of blocks on their way to another node, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Saved by compression: `sent_bytes` less `wire_bytes`.
    pub compressed_bytes: u64,
}

/// The way from one node to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// How much bulk data it may take outside all windows; `null` is as much as comes, 0 is none.
    pub rate_bytes_per_second: Option<u64>,
    /// Other rates at times of the day.
    pub windows: Vec<LinkWindow>,
    /// How much it may take now.
    pub limit_bytes_per_second: Option<u64>,
}

/// The links of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkList {
    /// Each direction by itself.
    pub links: Vec<LinkStatus>,
    /// Nodes that do not answer: the links that begin at them are left out.
    pub silent: Vec<String>,
}

/// A replica of a volume, as its owner sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
pub struct CloneOrigin {
    /// The volume, by its present name; `null` when it is deleted.
    pub volume: Option<String>,
    /// The snapshot of it; `null` when it, or the volume, is deleted.
    pub snapshot: Option<String>,
    /// Whether the clone's owner has made it; until then the snapshot cannot be deleted.
    pub is_made: bool,
}

/// Everything about a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// The node whose loss would cost data now; `null` when there is none.
    pub source_needed: Option<String>,
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
    /// Bytes of blocks that were written since the ownership began, or the owner was started, each time counted.
    #[serde(default)]
    pub written_bytes: u64,
}

/// Whether a scrub is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// There was none.
    #[default]
    Never,
    /// It is not.
    Running,
    /// Everything was read.
    Finished,
    /// Somebody ended it.
    Stopped,
}

/// A scrub at one node: the one under way, or the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// The node.
    pub node: String,
    /// The volume; `null` for everything that the node stores.
    pub volume: Option<String>,
    /// Whether it is over.
    pub state: ScrubState,
    /// Whether somebody asked for it; else it began by itself.
    pub by_hand: bool,
    /// When it began, by the node's clock, in milliseconds since 1970.
    pub began_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Bytes to read; about, until it is through.
    pub total_bytes: u64,
    /// Bytes that were read and compared with their checksums.
    pub checked_bytes: u64,
    /// Blocks that it found damaged.
    pub damaged_blocks: u64,
    /// Those of them that were repaired from another node.
    pub repaired_blocks: u64,
    /// Blocks that are damaged at this moment, whoever found them.
    pub damaged_now: u64,
}

/// Where the space of a volume goes at one node. `docs/space.md` says what is exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpace {
    /// Its name; empty for one that is deleted and not yet gone.
    pub volume: String,
    /// Its id.
    pub id: u64,
    /// The directory of the store that it is in.
    pub store: String,
    /// Whether the node owns it.
    pub owner: bool,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes that its blocks occupy.
    pub mapped_bytes: u64,
    /// Bytes that only its snapshots have any more.
    pub snapshot_bytes: u64,
    /// Those of them that are of deleted snapshots and on their way back.
    pub deleted_bytes: u64,
    /// Those mapped bytes that were received and are not applied yet; what they replace is mapped as well.
    pub unapplied_bytes: u64,
    /// Overwritten bytes that are kept because they are being sent to a replica; about.
    pub held_bytes: u64,
}

/// Where the space of a store goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSpace {
    /// Its directory.
    pub directory: String,
    /// The size of the file system that it is on.
    pub file_system_bytes: u64,
    /// What is free there.
    pub file_system_free_bytes: u64,
    /// The most that its segments may take, if that was set.
    pub capacity_bytes: Option<u64>,
    /// Segment files.
    pub segments: u64,
    /// Their bytes.
    pub log_bytes: u64,
    /// Segments that wait to be used again.
    pub pooled_segments: u64,
    /// Their bytes.
    pub pooled_bytes: u64,
    /// What is left in the segments that are written to.
    pub unwritten_bytes: u64,
    /// Bytes that volumes and snapshots need.
    pub live_bytes: u64,
    /// Bytes that nothing needs any more, and headers; the cleaner gets them back when space is wanted.
    pub garbage_bytes: u64,
    /// Those of them that come free with the next checkpoint.
    pub emptied_bytes: u64,
    /// Bytes of files of the block map.
    pub map_bytes: u64,
    /// What volumes may not take, so that TRIM, deletion, handover and the cleaner work on a full disk.
    pub reserve_bytes: u64,
    /// What volumes may still write before anything must be cleaned; about.
    pub available_bytes: u64,
    /// Why the store takes no writes until the node is restarted; `null` when it does.
    pub fault: Option<String>,
}

/// Where the space of a node goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpace {
    /// The node.
    pub node: String,
    /// Its stores.
    pub stores: Vec<StoreSpace>,
    /// The volumes in them.
    pub volumes: Vec<VolumeSpace>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
pub struct NbdAddresses {
    /// Over TCP, as `HOST:PORT`.
    pub tcp: Option<String>,
    /// The absolute path of its Unix socket, for clients on the same machine.
    pub unix: Option<String>,
}

/// The cluster, as the node asked sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What to do about it.
    pub kind: crate::ErrorKind,
    /// What happened.
    pub message: String,
}
