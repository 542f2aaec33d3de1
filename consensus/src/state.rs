//! The metadata as a pure state machine: [`MetaState::apply`] is the only way it changes.
//!
//! Deterministic: it reads no clock, draws no randomness, and every replica that applies the same commands at the
//! same log indices holds the same state. Applying never fails.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::cipher::VolumeKeys;
use client_lib::geometry::COPIES_OF_VOLUME_MAX;
use client_lib::policy::{Durability, LinkPolicy, Propagation, Rpo};
use client_lib::{
    ClientName, Epoch, GroupName, Lsn, NodeId, NodeName, ProviderId, SnapshotId, SnapshotName, VolumeGroupId, VolumeId,
    VolumeName, VolumeSize,
};
use serde::{Deserialize, Serialize};

use crate::command::{Command, Ended, Response};

pub mod access;
pub(crate) mod before;
mod clones;
pub(crate) mod groups;
mod keys;
mod leases;
mod members;
mod ownership;
pub mod places;
mod records;
mod rescues;
pub mod rights;
mod snapshots;
mod stepping_down;
mod table;
mod volumes;

use access::Access;
use ownership::HandOver;
use places::{ChangeReplicas, Places};
pub(crate) use records::{Changes, Kind, Records};
use rights::ClientRights;
use table::Table;

#[cfg(test)]
pub(crate) mod tests;

/// How many ended epochs a volume remembers; the oldest are forgotten.
pub const EPOCH_HISTORY_MAX: usize = 16;

/// How many takeovers and rescues a volume remembers one by one. The oldest two are then remembered as one that cut off as much as
/// both: a holder that was away for so long may be told that it has left the volume when it has not, never the reverse.
pub const FORKS_MAX: usize = 16;

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id, for ever.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its failure domain.
    pub provider: ProviderId,
    /// Socket address for other nodes.
    pub address: String,
    /// How often it has started.
    pub incarnation: u64,
    /// SHA-256 of the public key it joined with; `None` for a founder.
    pub key: Option<[u8; 32]>,
}

/// An ended ownership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Its epoch.
    pub epoch: Epoch,
    /// Who owned the volume.
    pub owner: NodeId,
    /// Up to where.
    pub final_lsn: Lsn,
    /// Digest of the last manifest the next owner took.
    pub manifest_digest: u64,
}

/// Where the history of a volume was cut off by a takeover, or by a rescue ([`MetaState::rescued_from`]): whatever was written after `end` in this
/// epoch or an earlier one is no part of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The epoch that ended so.
    pub epoch: Epoch,
    /// Where the next one began.
    pub end: Lsn,
}

/// A node's right to act as an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// How often it was granted or renewed. An expiry names the renewal that it waited for.
    pub renewals: u64,
    /// How long the last renewal lasts, in milliseconds.
    pub duration_ms: u64,
    /// How often it was found to be out. What the node owned before such a moment may have been taken over since.
    pub lapses: u64,
    /// Whether it is out: the node's volumes may be taken over.
    pub is_out: bool,
}

impl Lease {
    /// The number of lapses under which the node may act for what it owns in this state. `None` while the lease is out: what
    /// it owns now may be taken from it before it has its lease again.
    #[must_use]
    pub fn acts_under(&self) -> Option<u64> {
        (!self.is_out).then_some(self.lapses)
    }
}

/// What a snapshot is, once its volume's owner has made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Up to where it has the volume's writes.
    pub lsn: Lsn,
    /// The volume's size there.
    pub size: VolumeSize,
    /// When, by the owner's clock, in milliseconds since 1970.
    pub at_ms: u64,
}

/// That a snapshot has the same id in other volumes, and was made of all of them at one cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The group of the volumes; it may be gone.
    pub group: VolumeGroupId,
    /// The node that makes it, and nobody else.
    pub by: NodeId,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id, for ever: the log index of its creation, so ids rise with time.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// `None` until the owner has made it.
    pub made: Option<Made>,
    /// Tells repeated creations apart.
    pub nonce: u64,
    /// Whether it is one of several of a group of volumes.
    pub cut: Option<Cut>,
}

impl Snapshot {
    /// The one that makes it together with those of other volumes, if it is still to be made.
    #[must_use]
    pub fn made_together_by(&self) -> Option<NodeId> {
        self.cut.filter(|_| self.made.is_none()).map(|cut| cut.by)
    }
}

/// Volumes that go together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeGroup {
    /// Its id, for ever.
    pub id: VolumeGroupId,
    /// Its name.
    pub name: GroupName,
    /// Its volumes: one at least; none is in two groups; all are held by the same nodes.
    pub members: BTreeSet<VolumeId>,
    /// Tells repeated creations apart.
    pub nonce: u64,
}

/// Where a clone comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The volume; it may be gone.
    pub volume: VolumeId,
    /// Its snapshot; it may be gone once the clone is made.
    pub snapshot: SnapshotId,
    /// Whether the clone's owner has made it.
    pub is_made: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id, for ever.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its size.
    pub size: VolumeSize,
    /// The one node that may write it.
    pub owner: NodeId,
    /// The fencing number of that ownership.
    pub epoch: Epoch,
    /// The nodes that follow; never the owner.
    pub replicas: BTreeSet<NodeId>,
    /// Who owned it before: where stale blocks are.
    pub source: Option<NodeId>,
    /// The last LSN of the epoch before: what the owner must know before it serves.
    pub final_lsn: Lsn,
    /// Ended epochs, oldest first, at most [`EPOCH_HISTORY_MAX`].
    pub history: Vec<EpochRecord>,
    /// Tells repeated creations apart.
    pub nonce: u64,
    /// The takeovers and rescues, oldest first, at most [`FORKS_MAX`].
    pub forks: Vec<Fork>,
    /// The snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The newest snapshot that was ever created; a holder that has an older one which is not listed has a deleted one.
    pub newest_snapshot: SnapshotId,
    /// A replica takes over by itself when the owner's lease has been out for so many milliseconds; `None` leaves it to an
    /// operator.
    pub takeover_after_ms: Option<u64>,
    /// What it is a clone of, if it is one.
    pub origin: Option<Origin>,
    /// What FLUSH and FUA wait for.
    pub durability: Durability,
    /// How far its best replica may be behind; `None` is as far as it is.
    pub rpo: Option<Rpo>,
    /// The replica to which it goes when that is written at, for as long as the present epoch lasts.
    pub on_write: Option<NodeId>,
    /// When its replicas are sent data.
    pub propagation: Propagation,
}

impl Volume {
    /// A volume in its first epoch, without replicas.
    pub(crate) fn new(id: VolumeId, name: VolumeName, size: VolumeSize, owner: NodeId) -> Volume {
        Volume {
            id,
            name,
            size,
            owner,
            epoch: Epoch(1),
            replicas: BTreeSet::new(),
            source: None,
            final_lsn: Lsn::ZERO,
            history: Vec::new(),
            nonce: 0,
            forks: Vec::new(),
            snapshots: Vec::new(),
            newest_snapshot: SnapshotId(0),
            takeover_after_ms: None,
            origin: None,
            durability: Durability::default(),
            rpo: None,
            on_write: None,
            propagation: Propagation::default(),
        }
    }

    /// A volume for tests and documentation.
    #[doc(hidden)]
    #[must_use]
    pub fn example() -> Volume {
        let (name, size) = ("example".parse().expect("a name"), VolumeSize::try_from(1 << 20).expect("a size"));
        Volume::new(VolumeId(9), name, size, NodeId(1))
    }

    /// Whether `node`, which does not own it, has anything to do with it.
    pub(crate) fn names(&self, node: NodeId) -> bool {
        self.replicas.contains(&node)
            || self.source == Some(node)
            || self.on_write == Some(node)
            || self.propagation.replicas.contains_key(&node)
    }

    /// The snapshot called `name`.
    #[must_use]
    pub fn snapshot_named(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.name.as_str() == name)
    }

    /// Whether a holder that knows the volume up to `position` has what is no part of it: a takeover left it behind.
    #[must_use]
    pub fn has_left(&self, position: Lsn) -> bool {
        self.forks.iter().any(|fork| position.epoch <= fork.epoch && position > fork.end)
    }

    /// The last position that a holder, which knows the volume up to `position`, has in common with it.
    #[must_use]
    pub fn common_with(&self, position: Lsn) -> Lsn {
        let left = self.forks.iter().filter(|fork| position.epoch <= fork.epoch);
        left.map(|fork| fork.end).fold(position, Lsn::min)
    }
}

/// What the owner of an epoch must know to begin it, until it has that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enclosure {
    epoch: Epoch,
    content: Vec<u8>,
}

/// All metadata of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaState {
    nodes: Table<NodeId, Node>,
    volumes: Table<VolumeId, Volume>,
    leases: Table<NodeId, Lease>,
    /// By who sends and who is sent to; those that may take whatever comes are left out.
    links: Table<(NodeId, NodeId), LinkPolicy>,
    groups: Table<VolumeGroupId, VolumeGroup>,
    enclosures: Table<VolumeId, Enclosure>,
    access: Access,
    places: Places,
    /// Clients that were never given any are left out.
    rights: Table<ClientName, ClientRights>,
    /// Of the volumes that are encrypted.
    keys: Table<VolumeId, VolumeKeys>,
    /// The volumes whose owners act for them no more, and in which epoch: the present one.
    stepped_down: Table<VolumeId, Epoch>,
    /// Of the volumes that were given away from stores that took no writes any more, the epochs that ended so, and up to where they were durable there.
    rescues: Table<VolumeId, BTreeMap<Epoch, Lsn>>,
}

impl MetaState {
    /// Whether it is certain that this state and one that it came from, or that came from it, differ in leases at the most. Takes no time.
    #[must_use]
    pub fn differs_in_leases_only(&self, other: &MetaState) -> bool {
        self.nodes.is(&other.nodes)
            && self.volumes.is(&other.volumes)
            && self.links.is(&other.links)
            && self.groups.is(&other.groups)
            && self.enclosures.is(&other.enclosures)
            && self.access.is(&other.access)
            && self.places.is(&other.places)
            && self.rights.is(&other.rights)
            && self.keys.is(&other.keys)
            && self.stepped_down.is(&other.stepped_down)
            && self.rescues.is(&other.rescues)
    }

    /// Whether it is certain that this state and another one let in the same. Takes no time.
    #[must_use]
    pub fn has_same_access(&self, other: &MetaState) -> bool {
        self.access.is(&other.access)
    }

    /// The volumes of which this state may say anything else than `before`, which it came from, apart from the group that each is in: those
    /// that are new among them, and all of them when something is said of nodes. Costs a comparison of pointers for each volume that there
    /// is.
    pub fn volumes_changed_since<'a>(&'a self, before: &MetaState) -> impl Iterator<Item = &'a Volume> {
        // Who is where concerns all.
        let concerns_all = !self.nodes.is(&before.nodes) || !self.places.labels.is(&before.places.labels);
        let says_the_same = move |volume: &VolumeId| {
            self.volumes.has_same(&before.volumes, volume)
                && self.enclosures.has_same(&before.enclosures, volume)
                && self.places.joining.has_same(&before.places.joining, volume)
                && self.places.wanted.has_same(&before.places.wanted, volume)
                && self.keys.has_same(&before.keys, volume)
                && self.stepped_down.has_same(&before.stepped_down, volume)
                && self.rescues.has_same(&before.rescues, volume)
        };
        self.volumes.values().filter(move |volume| concerns_all || !says_the_same(&volume.id))
    }

    /// Whether it is certain that both have the same volumes, whatever they say of them. Takes the time to look at each.
    #[must_use]
    pub fn has_volumes_of(&self, other: &MetaState) -> bool {
        self.volumes.is(&other.volumes) || self.volumes.keys().eq(other.volumes.keys())
    }

    /// Applies the command at `log_index`.
    pub fn apply(&mut self, log_index: u64, command: Command) -> Response {
        let result = match command {
            Command::RegisterNode { id, name, provider, address } => self.register_node(id, name, provider, address),
            Command::NodeStarted { node } => self.node_started(node),
            Command::CreateVolume { name, size, owner, replicas, nonce } => {
                let durability = Durability::default();
                let create = volumes::Create { name, size, owner, replicas, durability, nonce };
                self.create_volume(log_index, create)
            }
            Command::DeleteVolume { volume } => self.delete_volume(volume),
            Command::Transfer { volume, from, incarnation, epoch, to, final_lsn, manifest_digest } => {
                let members = vec![Ended { volume, epoch, final_lsn, manifest_digest }];
                let handover = HandOver { group: None, from, incarnation, to, members, enclosed: BTreeMap::new() };
                self.hand_over(handover).map(|()| Response::Transferred { epoch: epoch.next() })
            }
            Command::JoinNode { name, provider, address, key } => {
                self.join_node(log_index, name, provider, address, key)
            }
            Command::ResizeVolume { volume, from, incarnation, epoch, expected, size } => {
                self.resize_volume(volumes::Resize { volume, from, incarnation, epoch, expected, size })
            }
            Command::RenewLease { node, lapses, duration_ms } => self.renew_lease(node, lapses, duration_ms),
            Command::ExpireLease { node, renewals } => self.expire_lease(node, renewals),
            Command::Takeover { volume, from, epoch, to, incarnation, start } => {
                self.takeover(ownership::Takeover { volume, from, epoch, to, incarnation, start })
            }
            Command::CreateSnapshot { volume, name, nonce } => self.create_snapshot(log_index, volume, name, nonce),
            Command::SnapshotMade { volume, snapshot, from, epoch, made } => {
                self.snapshot_made(volume, snapshot, from, epoch, made)
            }
            Command::DeleteSnapshot { volume, snapshot } => self.delete_snapshot(volume, snapshot),
            Command::SetTakeover { volume, after_ms } => self.set_takeover(volume, after_ms),
            Command::CloneVolume { name, origin, snapshot, from, epoch, nonce } => {
                self.clone_volume(log_index, clones::Clone { name, origin, snapshot, from, epoch, nonce })
            }
            Command::CloneMade { volume, from, epoch } => self.clone_made(volume, from, epoch),
            Command::CreateVolumeOfClass { name, size, owner, replicas, durability, nonce } => {
                let create = volumes::Create { name, size, owner, replicas, durability, nonce };
                self.create_volume(log_index, create)
            }
            Command::SetDurability { volume, durability } => self.set_durability(volume, durability),
            Command::SetRpo { volume, rpo } => self.set_rpo(volume, rpo),
            Command::SetOnWrite { volume, to } => self.set_on_write(volume, to),
            Command::SetPropagation { volume, propagation } => self.set_propagation(volume, propagation),
            Command::SetLink { from, to, policy } => self.set_link(from, to, policy),
            Command::CreateGroup { name, members, nonce } => self.create_group(log_index, name, members, nonce),
            Command::DeleteGroup { group } => self.delete_group(group),
            Command::ChangeGroup { group, add, remove } => self.change_group(group, &add, &remove),
            Command::TransferGroup { group, from, incarnation, to, members } => {
                let enclosed = BTreeMap::new();
                let handover = HandOver { group: Some(group), from, incarnation, to, members, enclosed };
                self.hand_over(handover).map(|()| Response::GroupTransferred)
            }
            Command::SetGroupOnWrite { group, to } => self.set_group_on_write(group, to),
            Command::CreateGroupSnapshot { group, name, from, incarnation, members, nonce } => self
                .create_group_snapshot(
                    log_index,
                    groups::CreateSnapshot { group, name, from, incarnation, members, nonce },
                ),
            Command::GroupSnapshotMade { snapshot, from, made } => self.group_snapshot_made(snapshot, from, &made),
            Command::DeleteSnapshots { snapshots, if_unmade } => self.delete_snapshots(&snapshots, if_unmade),
            Command::HandOver { group, from, incarnation, to, members, enclosed } => {
                let handover = HandOver { group, from, incarnation, to, members, enclosed };
                self.hand_over(handover).map(|()| Response::GroupTransferred)
            }
            Command::EnclosureTaken { volume, epoch } => self.enclosure_taken(volume, epoch),
            Command::RemoveNode { node, was_lost, at_ms } => self.remove_node(node, was_lost, at_ms),
            Command::ClientIssued { client, fingerprint, at_ms } => self.client_issued(client, fingerprint, at_ms),
            Command::RevokeClient { client, at_ms } => self.revoke_client(client, at_ms),
            Command::RevokeCertificate { fingerprint, at_ms } => self.revoke_certificate(fingerprint, at_ms),
            Command::ChangeReplicas { members, from, incarnation, add, remove } => {
                let change = ChangeReplicas { members, from, incarnation, add, remove };
                self.change_replicas(log_index, change, COPIES_OF_VOLUME_MAX)
            }
            Command::ReplicaJoined { volume, node, since } => self.replica_joined(volume, node, since),
            Command::LabelNode { node, labels } => self.label_node(node, labels),
            Command::SetPlacement { volumes, placement } => self.set_placement(&volumes, placement.as_ref()),
            Command::ChangeRights { client, role, allow, deny } => self.change_rights(client, role, allow, deny),
            Command::CreateEncryptedVolume { name, size, owner, replicas, durability, keys, nonce } => {
                let create = volumes::Create { name, size, owner, replicas, durability, nonce };
                self.create_encrypted_volume(log_index, create, keys)
            }
            Command::AddVolumeKey { volume, check, key } => self.add_volume_key(volume, check, key),
            Command::RemoveVolumeKey { volume, name } => self.remove_volume_key(volume, &name),
            Command::StepDown { node, incarnation, volumes } => self.step_down(node, incarnation, &volumes),
            Command::Rescue { from, incarnation, to, ended, durable, enclosed } => {
                self.rescue(rescues::Rescue { from, incarnation, to, ended, durable, enclosed })
            }
            Command::GiveUpReplicas { members, from, incarnation, remove } => {
                let change = ChangeReplicas { members, from, incarnation, add: BTreeSet::new(), remove };
                self.change_replicas(log_index, change, usize::MAX)
            }
            Command::ForgetEnded { client, at_ms } => self.forget_ended(client, at_ms),
        };
        debug_assert_eq!(crate::invariants::violated(self), None);
        result.unwrap_or_else(Response::Refused)
    }

    /// The members, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The member `id`.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// What people call node `id`: its name, also of one that was removed; the number, as `#9`, of one that never was here.
    #[must_use]
    pub fn name_of(&self, id: NodeId) -> String {
        let present = self.node(id).map(|node| node.name.to_string());
        let removed = || self.access().removed(id).map(|node| format!("{} (removed)", node.name));
        present.or_else(removed).unwrap_or_else(|| format!("#{id}"))
    }

    /// The lease of a node; one that never had any has the default.
    #[must_use]
    pub fn lease(&self, node: NodeId) -> Lease {
        self.leases.get(&node).copied().unwrap_or_default()
    }

    /// The leases that were ever asked for, by node.
    pub fn leases(&self) -> impl Iterator<Item = (NodeId, Lease)> {
        self.leases.iter().map(|(node, lease)| (*node, *lease))
    }

    /// How much bulk data may go from one node to another.
    #[must_use]
    pub fn link(&self, from: NodeId, to: NodeId) -> LinkPolicy {
        self.links.get(&(from, to)).cloned().unwrap_or_default()
    }

    /// The volumes, by id.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }

    /// The groups of volumes, by id.
    pub fn groups(&self) -> impl Iterator<Item = &VolumeGroup> {
        self.groups.values()
    }

    /// What the last owner of `volume` enclosed for the present one, until that has said that it has it.
    #[must_use]
    pub fn enclosed(&self, volume: VolumeId) -> Option<&[u8]> {
        self.enclosures.get(&volume).map(|enclosure| enclosure.content.as_slice())
    }

    /// The volumes with something enclosed, and for the owner of which epoch.
    pub(crate) fn enclosures(&self) -> impl Iterator<Item = (VolumeId, Epoch)> {
        self.enclosures.iter().map(|(volume, enclosure)| (*volume, enclosure.epoch))
    }

    /// The group `id`.
    #[must_use]
    pub fn group(&self, id: VolumeGroupId) -> Option<&VolumeGroup> {
        self.groups.get(&id)
    }

    /// The group that `volume` is in.
    #[must_use]
    pub fn group_of(&self, volume: VolumeId) -> Option<&VolumeGroup> {
        self.groups.values().find(|group| group.members.contains(&volume))
    }

    /// The volumes that are changed together with `volume`, itself among them, by id: those of its group, or it alone. `None` unless it is the
    /// first of them, so that who goes through all volumes meets each once.
    #[must_use]
    pub fn led_by(&self, volume: VolumeId) -> Option<Vec<VolumeId>> {
        match self.group_of(volume) {
            None => Some(vec![volume]),
            Some(group) if group.members.first() == Some(&volume) => Some(group.members.iter().copied().collect()),
            Some(_) => None,
        }
    }

    /// The volume `id`.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id)
    }
}
