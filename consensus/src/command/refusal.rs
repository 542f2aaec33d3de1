//! Why a command changed nothing: what is told to whoever proposed it, with what to do.

use client_lib::cipher::keys::{KEYS_MAX, KeyFingerprint};
use client_lib::geometry::{COPIES_OF_VOLUME_MAX, GROUP_VOLUMES_MAX, SNAPSHOTS_MAX};
use client_lib::{
    ClientName, Epoch, Error, ErrorKind, GroupName, KeyName, Lsn, NodeId, NodeName, SnapshotId, SnapshotName,
    VolumeGroupId, VolumeId, VolumeName, VolumeSize,
};
use serde::{Deserialize, Serialize};

use super::{RESCUE_ENCLOSED_BYTES_MAX, STEP_DOWN_MAX};
use crate::state::MetaState;
use crate::state::access::{CLIENT_CERTIFICATES_MAX, CLIENTS_MAX, REVOKED_MAX};
use crate::state::places::LABELS_MAX;
use crate::state::rights::{RULES_MAX, RULES_OF_ALL_MAX};

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another node has the name.
    #[error("there is a node {name} already; choose another name")]
    NodeNameTaken {
        /// The name.
        name: NodeName,
        /// Who has it.
        holder: NodeId,
    },
    /// The id belongs to a node of another provider or name.
    #[error("node id {node} belongs to node {name} already; a wiped node joins under a new id")]
    NodeIdTaken {
        /// The id.
        node: NodeId,
        /// Who has it.
        name: NodeName,
    },
    /// No such node.
    #[error("{}", self.with_numbers())]
    UnknownNode(NodeId),
    /// Another volume has the name.
    #[error("volume {0} exists already; choose another name or delete it first")]
    VolumeNameTaken(VolumeName),
    /// No such volume.
    #[error("{}", self.with_numbers())]
    UnknownVolume(VolumeId),
    /// The proposer's epoch is over.
    #[error("{}", self.with_numbers())]
    NotOwner {
        /// The volume.
        volume: VolumeId,
        /// Who proposed.
        from: NodeId,
        /// For which epoch.
        proposed: Epoch,
        /// The owner.
        owner: NodeId,
        /// The epoch.
        current: Epoch,
    },
    /// The process that proposed has been succeeded by another.
    #[error("{}", self.with_numbers())]
    OldIncarnation {
        /// The node.
        node: NodeId,
        /// Which process proposed.
        proposed: u64,
        /// Which one runs.
        current: u64,
    },
    /// The new owner holds no replica.
    #[error("{}", self.with_numbers())]
    NotReplica {
        /// The volume.
        volume: VolumeId,
        /// The node.
        to: NodeId,
    },
    /// The volume got another size meanwhile.
    #[error("{}", self.with_numbers())]
    SizeChanged {
        /// The volume.
        volume: VolumeId,
        /// The size that the proposer knew.
        expected: VolumeSize,
        /// The size it has.
        found: VolumeSize,
    },
    /// The lease was found to be out since the node last had it: it owns what the metadata says from now on, and no more.
    #[error("{}", self.with_numbers())]
    LeaseLapsed {
        /// The node.
        node: NodeId,
        /// How often that was found.
        lapses: u64,
    },
    /// The owner has its lease, or may have.
    #[error("{}", self.with_numbers())]
    LeaseHeld {
        /// The node.
        node: NodeId,
        /// The number of its last renewal.
        renewals: u64,
    },
    /// What the node holds was left behind by a takeover before.
    #[error("{}", self.with_numbers())]
    LeftBehind {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// What it holds.
        position: Lsn,
    },
    /// Another snapshot of the volume has the name.
    #[error("snapshot {volume}@{name} exists already; choose another name or delete it first")]
    SnapshotNameTaken {
        /// The volume's name.
        volume: VolumeName,
        /// The snapshot's.
        name: SnapshotName,
    },
    /// No such snapshot.
    #[error("{}", self.with_numbers())]
    UnknownSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The volume has as many snapshots as it may have.
    #[error("volume {0} has {max} snapshots, and may have no more: delete some first", max = SNAPSHOTS_MAX)]
    TooManySnapshots(VolumeName),
    /// A clone needs the snapshot until its owner has made it.
    #[error("volume {clone} is being made of a snapshot of {origin}: wait until it is there, or delete it")]
    BeingCloned {
        /// The volume's name.
        origin: VolumeName,
        /// The clone's.
        clone: VolumeName,
    },
    /// Another group has the name.
    #[error("group {0} exists already; choose another name or delete it first")]
    GroupNameTaken(GroupName),
    /// No such group.
    #[error("{}", self.with_numbers())]
    UnknownGroup(VolumeGroupId),
    /// The volume goes with others.
    #[error(
        "volume {volume} is in group {group}: `helio group migrate {group} --to NODE` moves all of it, `helio group remove {group} {volume}` takes it out"
    )]
    InGroup {
        /// The volume.
        volume: VolumeName,
        /// Its group.
        group: GroupName,
    },
    /// The volumes of a group have one owner when they come into it.
    #[error(
        "volume {volume} is owned by node {owner}, volume {other} by node {other_owner}: `helio volume migrate {volume} --to {other_owner}` first"
    )]
    OwnersDiffer {
        /// The volume.
        volume: VolumeName,
        /// Its owner.
        owner: NodeName,
        /// Another one.
        other: VolumeName,
        /// The owner of that.
        other_owner: NodeName,
    },
    /// The volumes of a group are held by the same nodes.
    #[error(
        "volume {volume} has replicas at other nodes than volume {other}: `helio volume replica add` and `remove` change them"
    )]
    ReplicasDiffer {
        /// The volume.
        volume: VolumeName,
        /// Another one.
        other: VolumeName,
    },
    /// A group has one volume at least.
    #[error("group {0} would have no volumes: `helio group delete {0}` ends it")]
    GroupEmpty(GroupName),
    /// The group would have more volumes than it may have.
    #[error("group {0} would have more than {max} volumes", max = GROUP_VOLUMES_MAX)]
    GroupTooLarge(GroupName),
    /// The volume is not in the group.
    #[error("volume {volume} is not in group {group}; `helio group status {group}` shows those that are")]
    NotInGroup {
        /// The volume.
        volume: VolumeName,
        /// The group.
        group: GroupName,
    },
    /// What was proposed is not for all that it must be for.
    #[error(
        "group {0} has other volumes by now, or they have other owners: look at it with `helio group status {0}` and try again"
    )]
    GroupIsOther(GroupName),
    /// A snapshot is on its way that must be made first.
    #[error("snapshot {volume}@{snapshot} is being made: try again when it is")]
    SnapshotOnItsWay {
        /// The volume.
        volume: VolumeName,
        /// Its snapshot.
        snapshot: SnapshotName,
    },
    /// Only the volumes of a group go in one step.
    #[error("{0} volumes cannot be handed over in one step: they are in no group")]
    NotOneVolume(usize),
    /// The node was removed from the cluster.
    #[error("node {0} was removed from the cluster: it may join as a new node, with an empty data directory")]
    NodeRemoved(NodeName),
    /// A node that owns something is not removed.
    #[error(
        "node {node} owns {volumes} volumes, {volume} among them: `helio node drain {node}` gives them to others; if it is lost, \
         `helio volume takeover {volume}` does"
    )]
    NodeOwns {
        /// The node.
        node: NodeName,
        /// One of its volumes.
        volume: VolumeName,
        /// How many there are.
        volumes: usize,
    },
    /// A cluster has one node at least.
    #[error("node {0} is the only one: stop it and delete its data directory to end the cluster")]
    LastNode(NodeName),
    /// What was revoked once stays so.
    #[error("the certificate was revoked")]
    CertificateRevoked,
    /// The client has as many certificates as are listed.
    #[error(
        "client {0} has {max} certificates, and may have no more: `helio cluster client revoke --fingerprint FINGERPRINT` takes one of them back, \
         `helio cluster client revoke {0}` all, and those that have ended are forgotten when every node runs a program that does so",
        max = CLIENT_CERTIFICATES_MAX
    )]
    TooManyCertificates(ClientName),
    /// There are as many clients as are listed.
    #[error("the cluster has {max} names of clients, and may have no more: issue under one that exists", max = CLIENTS_MAX)]
    TooManyClients,
    /// There are as many certificates as are revoked one by one.
    #[error("{max} certificates are revoked one by one, and no more may be: revoke the client by its name", max = REVOKED_MAX)]
    TooManyRevoked,
    /// The volume would have more copies than it may have.
    #[error("volume {0} would have more than {max} copies: take replicas away first, with `helio volume replica remove {0} NODE…`", max = COPIES_OF_VOLUME_MAX)]
    TooManyReplicas(VolumeName),
    /// The node would have more labels than it may have.
    #[error("node {0} would have more than {max} labels", max = LABELS_MAX)]
    TooManyLabels(NodeName),
    /// What is withdrawn was never given.
    #[error("client {client} has no rule {rule}; `helio cluster client show {client}` shows those it has")]
    NoSuchRule {
        /// The client.
        client: ClientName,
        /// The rule, as it was named.
        rule: String,
    },
    /// Nothing can be withdrawn of somebody who may use everything because nobody ever gave it a rule.
    #[error(
        "client {0} was never given a rule, so none can be withdrawn: without any, one of role `volume` may use every volume; \
         `helio cluster client allow {0} VOL…` gives it some, and from then on it may use nothing else"
    )]
    NoRules(ClientName),
    /// The client has as many rules as it may have.
    #[error("client {0} would have more than {max} rules: use patterns, such as `vm-*`", max = RULES_MAX)]
    TooManyRules(ClientName),
    /// There are as many rules as there may be.
    #[error("the cluster would have more than {max} rules of clients: use patterns, such as `vm-*`", max = RULES_OF_ALL_MAX)]
    TooManyRulesOfAll,
    /// The volume has no key.
    #[error("volume {0} is not encrypted: that is said when a volume is made")]
    NotEncrypted(VolumeName),
    /// What is sealed is the key of another volume, or the keys are not as they may be.
    #[error("what is sealed is not the key of volume {0}")]
    NotItsKey(VolumeName),
    /// The volume is opened by a key of that name, or by that key under another name.
    #[error("volume {volume} is opened by key {name} ({fingerprint}) already")]
    VolumeKeyTaken {
        /// The volume.
        volume: VolumeName,
        /// What the key is called that it has.
        name: KeyName,
        /// Which it is.
        fingerprint: KeyFingerprint,
    },
    /// The volume is not opened by a key of that name.
    #[error("volume {volume} is not opened by a key {name}; `helio volume key list {volume}` shows those that open it")]
    UnknownVolumeKey {
        /// The volume.
        volume: VolumeName,
        /// What the key is called.
        name: KeyName,
    },
    /// What nothing opens is lost.
    #[error("key {name} is the only one that opens volume {volume}: add another one first")]
    LastVolumeKey {
        /// The volume.
        volume: VolumeName,
        /// What the key is called.
        name: KeyName,
    },
    /// The volume is opened by as many keys as may be.
    #[error("volume {0} is opened by {max} keys, and may be by no more: remove one first", max = KEYS_MAX)]
    TooManyVolumeKeys(VolumeName),
    /// More volumes than one command has.
    #[error("an owner steps down for {max} volumes at a time, not for {0}", max = STEP_DOWN_MAX)]
    TooManyToStepDownFor(usize),
    /// More than goes through the log of every voter.
    #[error("{0} bytes are too much to be enclosed in a rescue, which takes {max} at the most", max = RESCUE_ENCLOSED_BYTES_MAX)]
    TooMuchEnclosed(usize),
}

/// What nodes and volumes are called in a refusal, which has only their ids: by their names in the metadata, or, without that, by their numbers.
struct Words<'a>(Option<&'a MetaState>);

impl Words<'_> {
    fn node(&self, id: NodeId) -> String {
        self.0.map_or_else(|| id.to_string(), |state| state.name_of(id))
    }

    fn volume(&self, id: VolumeId) -> String {
        let volume = self.0.and_then(|state| state.volume(id));
        volume.map_or_else(|| id.to_string(), |volume| volume.name.to_string())
    }
}

impl Refusal {
    /// It as the caller's error, in which nodes and volumes have the names that `state` has of them.
    #[must_use]
    pub fn told(&self, state: &MetaState) -> Error {
        Error::new(self.kind(), self.named(&Words(Some(state))).unwrap_or_else(|| self.to_string()))
    }

    /// What is displayed of one that has ids in it. Never what is derived, which for such a one is this.
    fn with_numbers(&self) -> String {
        self.named(&Words(None)).unwrap_or_else(|| format!("{self:?}"))
    }

    /// The text of one that has ids in it; `None` of any other, which has what is derived.
    fn named(&self, words: &Words<'_>) -> Option<String> {
        let text = match self {
            Refusal::UnknownNode(node) => format!("there is no node {}", words.node(*node)),
            Refusal::UnknownVolume(volume) => {
                format!("there is no volume {}; it may have been deleted", words.volume(*volume))
            }
            Refusal::NotOwner { volume, from, proposed, owner, current } => format!(
                "volume {} is in epoch {current} of node {}; what was proposed for epoch {proposed} of node {} is void",
                words.volume(*volume),
                words.node(*owner),
                words.node(*from)
            ),
            Refusal::OldIncarnation { node, proposed, current } => format!(
                "node {} has started again since (process {current}); what its process {proposed} proposed is void",
                words.node(*node)
            ),
            Refusal::NotReplica { volume, to } => {
                format!("node {} holds no replica of volume {}", words.node(*to), words.volume(*volume))
            }
            Refusal::SizeChanged { volume, expected, found } => format!(
                "volume {} has {} bytes by now, not {}; look at it and try again",
                words.volume(*volume),
                found.bytes(),
                expected.bytes()
            ),
            Refusal::LeaseLapsed { node, lapses } => format!(
                "the lease of node {} was out (found for the {lapses}. time): it takes up its volumes anew",
                words.node(*node)
            ),
            Refusal::LeaseHeld { node, .. } => format!(
                "node {} has renewed its lease: it is alive; use `helio volume migrate` to move its volumes",
                words.node(*node)
            ),
            Refusal::LeftBehind { volume, node, position } => format!(
                "node {} holds volume {} up to {position}, which a takeover has left behind",
                words.node(*node),
                words.volume(*volume)
            ),
            Refusal::UnknownSnapshot { volume, snapshot } => {
                format!("volume {} has no snapshot {}; it may have been deleted", words.volume(*volume), snapshot)
            }
            Refusal::UnknownGroup(group) => format!("there is no group {group}; it may have been deleted"),
            _ => return None,
        };
        Some(text)
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Refusal::NodeNameTaken { .. }
            | Refusal::NodeIdTaken { .. }
            | Refusal::VolumeNameTaken(_)
            | Refusal::SnapshotNameTaken { .. }
            | Refusal::VolumeKeyTaken { .. }
            | Refusal::GroupNameTaken(_) => ErrorKind::AlreadyExists,
            Refusal::UnknownNode(_)
            | Refusal::UnknownVolume(_)
            | Refusal::UnknownSnapshot { .. }
            | Refusal::UnknownGroup(_)
            | Refusal::NotInGroup { .. }
            | Refusal::UnknownVolumeKey { .. }
            | Refusal::NoSuchRule { .. } => ErrorKind::NotFound,
            Refusal::NotOwner { .. } => ErrorKind::NotOwner,
            Refusal::OldIncarnation { .. } | Refusal::NodeRemoved(_) => ErrorKind::Fenced,
            Refusal::NotReplica { .. }
            | Refusal::LeftBehind { .. }
            | Refusal::TooManySnapshots(_)
            | Refusal::InGroup { .. }
            | Refusal::NotOneVolume(_)
            | Refusal::OwnersDiffer { .. }
            | Refusal::ReplicasDiffer { .. }
            | Refusal::GroupEmpty(_)
            | Refusal::GroupTooLarge(_)
            | Refusal::NodeOwns { .. }
            | Refusal::LastNode(_)
            | Refusal::CertificateRevoked
            | Refusal::TooManyCertificates(_)
            | Refusal::TooManyClients
            | Refusal::TooManyRevoked
            | Refusal::TooManyReplicas(_)
            | Refusal::TooManyLabels(_)
            | Refusal::NoRules(_)
            | Refusal::TooManyRules(_)
            | Refusal::TooManyRulesOfAll
            | Refusal::NotEncrypted(_)
            | Refusal::NotItsKey(_)
            | Refusal::LastVolumeKey { .. }
            | Refusal::TooManyVolumeKeys(_)
            | Refusal::TooManyToStepDownFor(_)
            | Refusal::TooMuchEnclosed(_) => ErrorKind::InvalidRequest,
            Refusal::SizeChanged { .. }
            | Refusal::LeaseHeld { .. }
            | Refusal::BeingCloned { .. }
            | Refusal::GroupIsOther(_)
            | Refusal::SnapshotOnItsWay { .. } => ErrorKind::Busy,
            Refusal::LeaseLapsed { .. } => ErrorKind::Fenced,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::new(refusal.kind(), refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;

    #[test]
    fn a_refusal_has_the_names_of_those_it_is_of_where_they_are_known() {
        let mut state = MetaState::default();
        for (id, name) in [(7, "a"), (8, "b")] {
            let (name, provider) = (name.parse().expect("a name"), "cloud".parse().expect("a name"));
            let register = Command::RegisterNode { id: NodeId(id), name, provider, address: String::new() };
            state.apply(id, register).into_result().expect("is registered");
        }
        let removal = Command::RemoveNode { node: NodeId(8), was_lost: true, at_ms: 1 };
        state.apply(9, removal).into_result().expect("is removed");
        let create = Command::CreateVolume {
            name: "disk".parse().expect("a name"),
            size: VolumeSize::try_from(1_u64 << 20).expect("a size"),
            owner: NodeId(7),
            replicas: [].into(),
            nonce: 1,
        };
        state.apply(10, create).into_result().expect("is created");
        let volume = state.volumes().next().expect("it is there").id;
        let refusal = Refusal::NotReplica { volume, to: NodeId(8) };
        assert_eq!(refusal.told(&state).message(), "node b (removed) holds no replica of volume disk");
        assert_eq!(Error::from(refusal).message(), format!("node 8 holds no replica of volume {volume}"));
        let refusal = Refusal::NotReplica { volume: VolumeId(99), to: NodeId(9) };
        assert_eq!(refusal.told(&state).message(), "node #9 holds no replica of volume 99");
        let refusal = Refusal::LastNode("a".parse().expect("a name"));
        assert_eq!(refusal.told(&state).message(), Error::from(refusal).message(), "it had its names");
    }
}
