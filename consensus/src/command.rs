//! What can be changed in the metadata, and what comes of it.
//!
//! Commands are entries of the Raft log: encoded with postcard behind a version byte ([`COMMAND_VERSION`]). A new
//! command goes at the end of the enum; an old one never changes. Applying cannot fail: a refusal is a response.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::cipher::keys::{KEYS_MAX, KeyFingerprint};
use client_lib::cipher::{SealedKey, VolumeKeys};
use client_lib::geometry::{COPIES_OF_VOLUME_MAX, GROUP_VOLUMES_MAX, SNAPSHOTS_MAX};
use client_lib::pki::Fingerprint;
use client_lib::policy::placement::Placement;
use client_lib::policy::{Durability, LinkPolicy, Propagation, Rpo};
use client_lib::rights::{Right, Role, VolumePattern, VolumeRule};
use client_lib::{
    ClientName, Epoch, Error, ErrorKind, GroupName, KeyName, Label, Lsn, NodeId, NodeName, ProviderId, SnapshotId,
    SnapshotName, VolumeGroupId, VolumeId, VolumeName, VolumeSize,
};
use serde::{Deserialize, Serialize};

use crate::state::Made;
use crate::state::access::{CLIENT_CERTIFICATES_MAX, CLIENTS_MAX, REVOKED_MAX};
use crate::state::places::LABELS_MAX;
use crate::state::rights::{RULES_MAX, RULES_OF_ALL_MAX};

/// The version in front of every encoded command.
pub const COMMAND_VERSION: u8 = 1;

/// How many bytes a handover encloses at most, for all its volumes together: they go through the log of every voter. Who has more
/// to say to the new owner does so before.
pub const ENCLOSED_BYTES_MAX: usize = 64 << 10;

/// The end of one volume's epoch, where several end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ended {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that ends.
    pub epoch: Epoch,
    /// Its last LSN.
    pub final_lsn: Lsn,
    /// Digest of the last manifest that the new owner took.
    pub manifest_digest: u64,
}

/// A change of the metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A node is a member under this name, and reached here. Repeated at every start with the present address.
    RegisterNode {
        /// Its id.
        id: NodeId,
        /// Its name; unique.
        name: NodeName,
        /// Its failure domain.
        provider: ProviderId,
        /// Socket address for other nodes.
        address: String,
    },
    /// A process of this node begins: whatever an earlier one proposed for it and is not applied yet is void.
    NodeStarted {
        /// The node.
        node: NodeId,
    },
    /// A new volume.
    CreateVolume {
        /// Its name; unique.
        name: VolumeName,
        /// Its size.
        size: VolumeSize,
        /// The node that may write it.
        owner: NodeId,
        /// The nodes that follow.
        replicas: BTreeSet<NodeId>,
        /// Tells a repeated proposal from another volume of the same name.
        nonce: u64,
    },
    /// The volume and its data are not needed any more.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The owner ends its epoch and gives the volume to another node.
    Transfer {
        /// The volume.
        volume: VolumeId,
        /// The owner who proposes.
        from: NodeId,
        /// The process of the owner that proposes, as numbered by [`Command::NodeStarted`].
        incarnation: u64,
        /// The epoch that ends.
        epoch: Epoch,
        /// The new owner: a replica that was prepared.
        to: NodeId,
        /// The last LSN of the epoch.
        final_lsn: Lsn,
        /// Digest of the last manifest that `to` took.
        manifest_digest: u64,
    },
    /// A node becomes a member and is given an id.
    JoinNode {
        /// Its name; unique.
        name: NodeName,
        /// Its failure domain.
        provider: ProviderId,
        /// Socket address for other nodes.
        address: String,
        /// SHA-256 of its public key: tells a repeated proposal from another node of the same name.
        key: [u8; 32],
    },
    /// The owner, which has carried out every size before, gives the volume another one.
    ResizeVolume {
        /// The volume.
        volume: VolumeId,
        /// The owner who proposes.
        from: NodeId,
        /// The process of the owner that proposes, as numbered by [`Command::NodeStarted`].
        incarnation: u64,
        /// The epoch of the ownership.
        epoch: Epoch,
        /// The size that it has carried out.
        expected: VolumeSize,
        /// The new size.
        size: VolumeSize,
    },
    /// The node may act as an owner for a while, counted from before it asked.
    RenewLease {
        /// The node.
        node: NodeId,
        /// How often its lease was found to be out, as far as it knows.
        lapses: u64,
        /// For how long, in milliseconds.
        duration_ms: u64,
    },
    /// The node's lease is out: whoever proposes this has waited for as long as it lasts, and longer, since it saw the
    /// renewal of this number.
    ExpireLease {
        /// The node.
        node: NodeId,
        /// The number of its last renewal.
        renewals: u64,
    },
    /// A replica takes the volume from an owner whose lease is out.
    Takeover {
        /// The volume.
        volume: VolumeId,
        /// The owner that was lost.
        from: NodeId,
        /// The epoch that ends.
        epoch: Epoch,
        /// The new owner, which proposes.
        to: NodeId,
        /// The process of the new owner that proposes, as numbered by [`Command::NodeStarted`].
        incarnation: u64,
        /// What the new owner holds: all of the volume up to here, and nothing after it.
        start: Lsn,
    },
    /// The owner is to keep the volume as it is, under this name, as soon as it can.
    CreateSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot's name; unique in the volume.
        name: SnapshotName,
        /// Tells a repeated proposal from another snapshot of the same name.
        nonce: u64,
    },
    /// The owner has made a snapshot.
    SnapshotMade {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
        /// The owner who proposes.
        from: NodeId,
        /// The epoch of the ownership.
        epoch: Epoch,
        /// What it is.
        made: Made,
    },
    /// The snapshot is not needed any more.
    DeleteSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// What happens when the volume's owner is lost.
    SetTakeover {
        /// The volume.
        volume: VolumeId,
        /// A replica takes over by itself when the owner's lease has been out for so many milliseconds; `None` leaves it to an
        /// operator.
        after_ms: Option<u64>,
    },
    /// A new volume that begins as a snapshot, proposed by the owner of the snapshot's volume, which has all of it.
    CloneVolume {
        /// The new volume's name.
        name: VolumeName,
        /// The snapshot's volume.
        origin: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
        /// The owner who proposes, and owns the clone.
        from: NodeId,
        /// The epoch of its ownership of the origin.
        epoch: Epoch,
        /// Tells repeated proposals apart from different volumes with the same name.
        nonce: u64,
    },
    /// The clone's owner has it: the snapshot is not needed for it any more.
    CloneMade {
        /// The clone.
        volume: VolumeId,
        /// The owner who proposes.
        from: NodeId,
        /// The epoch of the ownership.
        epoch: Epoch,
    },
    /// A new volume whose flushes wait for more than its owner.
    CreateVolumeOfClass {
        /// Its name; unique.
        name: VolumeName,
        /// Its size.
        size: VolumeSize,
        /// The node that may write it.
        owner: NodeId,
        /// The nodes that follow.
        replicas: BTreeSet<NodeId>,
        /// What FLUSH and FUA wait for.
        durability: Durability,
        /// Tells a repeated proposal from another volume of the same name.
        nonce: u64,
    },
    /// What FLUSH and FUA of the volume wait for from now on.
    SetDurability {
        /// The volume.
        volume: VolumeId,
        /// What.
        durability: Durability,
    },
    /// How far the volume's best replica may be behind from now on.
    SetRpo {
        /// The volume.
        volume: VolumeId,
        /// How far; `None` is as far as it is.
        rpo: Option<Rpo>,
    },
    /// Where the volume goes when it is written there: until then, until it is withdrawn, or until the epoch ends.
    SetOnWrite {
        /// The volume.
        volume: VolumeId,
        /// One of its replicas; `None` withdraws it.
        to: Option<NodeId>,
    },
    /// When the volume's replicas are sent data from now on.
    SetPropagation {
        /// The volume.
        volume: VolumeId,
        /// When.
        propagation: Propagation,
    },
    /// How much bulk data a link may take from now on.
    SetLink {
        /// The node that sends.
        from: NodeId,
        /// The node that it sends to.
        to: NodeId,
        /// How much.
        policy: LinkPolicy,
    },
    /// Volumes go together from now on.
    CreateGroup {
        /// The group's name; unique.
        name: GroupName,
        /// The volumes.
        members: BTreeSet<VolumeId>,
        /// Tells a repeated proposal from another group of the same name.
        nonce: u64,
    },
    /// The volumes of a group do not go together any more.
    DeleteGroup {
        /// The group.
        group: VolumeGroupId,
    },
    /// Other volumes are in a group from now on.
    ChangeGroup {
        /// The group.
        group: VolumeGroupId,
        /// Those that come into it.
        add: BTreeSet<VolumeId>,
        /// Those that are taken out.
        remove: BTreeSet<VolumeId>,
    },
    /// The owner ends the epochs of all volumes of a group that it owns, and gives them to another node: all or none.
    TransferGroup {
        /// The group.
        group: VolumeGroupId,
        /// The owner who proposes.
        from: NodeId,
        /// The process of the owner that proposes, as numbered by [`Command::NodeStarted`].
        incarnation: u64,
        /// The new owner: a replica of each that was prepared for each.
        to: NodeId,
        /// The volumes, and where their epochs end.
        members: Vec<Ended>,
    },
    /// Where the volumes of a group go when one of them is written there.
    SetGroupOnWrite {
        /// The group.
        group: VolumeGroupId,
        /// One of their replicas; `None` withdraws it.
        to: Option<NodeId>,
    },
    /// The owner of all volumes of a group is about to keep them as they are at one cut, under this name, each.
    CreateGroupSnapshot {
        /// The group.
        group: VolumeGroupId,
        /// The name of the snapshot of each.
        name: SnapshotName,
        /// The owner who proposes.
        from: NodeId,
        /// The process of the owner that proposes: with its end the snapshot is void if it is not made.
        incarnation: u64,
        /// The volumes, all of the group, and the epochs of their ownership.
        members: Vec<(VolumeId, Epoch)>,
        /// Tells a repeated proposal from another snapshot of the same name.
        nonce: u64,
    },
    /// The owner has made a snapshot of several volumes at one cut.
    GroupSnapshotMade {
        /// Its id in every volume.
        snapshot: SnapshotId,
        /// The owner who proposes.
        from: NodeId,
        /// The volumes, the epochs of their ownership, and what the snapshot of each is.
        made: Vec<(VolumeId, Epoch, Made)>,
    },
    /// Snapshots of several volumes are not needed any more; those that are gone already do not matter.
    DeleteSnapshots {
        /// The volumes and their snapshots.
        snapshots: Vec<(VolumeId, SnapshotId)>,
        /// Only those that are not made: whoever proposes this has given up making them.
        if_unmade: bool,
    },
    /// The owner ends its epochs of some volumes, and gives them to another node: all or none.
    HandOver {
        /// The group that they are all of, as far as `from` owns them; volumes that go by themselves have none.
        group: Option<VolumeGroupId>,
        /// The owner who proposes.
        from: NodeId,
        /// The process of the owner that proposes, as numbered by [`Command::NodeStarted`].
        incarnation: u64,
        /// The new owner: a replica of each.
        to: NodeId,
        /// The volumes, and where their epochs end.
        members: Vec<Ended>,
        /// What the new owner must know of a volume to begin, where it has not been told before: kept until it has it. Nobody
        /// else reads it. At most [`ENCLOSED_BYTES_MAX`] in all.
        enclosed: BTreeMap<VolumeId, Vec<u8>>,
    },
    /// The owner of this epoch has made durable what was enclosed for it.
    EnclosureTaken {
        /// The volume.
        volume: VolumeId,
        /// The epoch.
        epoch: Epoch,
    },
    /// A node is no member any more: it follows nothing, and its certificate counts no more. It must own nothing. This and what
    /// follows is proposed only where every member that answers knows of it.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// Whether it is given up without having been asked for anything.
        was_lost: bool,
        /// When, by the proposer's clock, in milliseconds since 1970.
        at_ms: u64,
    },
    /// The cluster's authority has issued a certificate to a client.
    ClientIssued {
        /// The client.
        client: ClientName,
        /// The certificate.
        fingerprint: Fingerprint,
        /// When, by the proposer's clock, in milliseconds since 1970.
        at_ms: u64,
    },
    /// Whatever was issued to a client so far counts no more.
    RevokeClient {
        /// The client.
        client: ClientName,
        /// When, by the proposer's clock, in milliseconds since 1970.
        at_ms: u64,
    },
    /// A certificate of a client counts no more.
    RevokeCertificate {
        /// The certificate.
        fingerprint: Fingerprint,
        /// When, by the proposer's clock, in milliseconds since 1970.
        at_ms: u64,
    },
    /// The owner has other nodes follow volumes from now on. This and what follows is proposed only where every member that answers
    /// knows of it.
    ChangeReplicas {
        /// The volumes, and the epochs of the ownership; of a group all.
        members: Vec<(VolumeId, Epoch)>,
        /// The owner who proposes.
        from: NodeId,
        /// The process of the owner that proposes, as numbered by [`Command::NodeStarted`].
        incarnation: u64,
        /// Those that follow from now on, from nothing.
        add: BTreeSet<NodeId>,
        /// Those that follow no more.
        remove: BTreeSet<NodeId>,
    },
    /// A replica that was added is a complete copy: it proposes this itself.
    ReplicaJoined {
        /// The volume.
        volume: VolumeId,
        /// The replica.
        node: NodeId,
        /// The log index at which it was added.
        since: u64,
    },
    /// What a node is, for rules of placement.
    LabelNode {
        /// The node.
        node: NodeId,
        /// All its labels.
        labels: BTreeSet<Label>,
    },
    /// Where copies of volumes are to be.
    SetPlacement {
        /// The volumes; of a group all.
        volumes: BTreeSet<VolumeId>,
        /// Where; `None` leaves them where they are.
        placement: Option<Placement>,
    },
    /// A client may do other things from now on: all of it, or nothing is changed. From its first rule on it may use no volume that no
    /// rule is for. This is proposed only where every member that answers sees to it.
    ChangeRights {
        /// The client.
        client: ClientName,
        /// What it is there for; `None` leaves that as it is.
        role: Option<Role>,
        /// Rules that it is given; one of the same volumes is replaced.
        allow: Vec<VolumeRule>,
        /// Rules that are withdrawn, of these volumes, and only if they give this right where one is named.
        deny: Vec<(VolumePattern, Option<Right>)>,
    },
    /// A new volume of which nodes hold ciphertext. This and what follows is proposed only where every member that answers knows of it.
    CreateEncryptedVolume {
        /// Its name; unique.
        name: VolumeName,
        /// Its size.
        size: VolumeSize,
        /// The node that may write it.
        owner: NodeId,
        /// The nodes that follow.
        replicas: BTreeSet<NodeId>,
        /// What FLUSH and FUA wait for.
        durability: Durability,
        /// Its key, sealed.
        keys: VolumeKeys,
        /// Tells a repeated proposal from another volume of the same name.
        nonce: u64,
    },
    /// Another key opens the volume, too.
    AddVolumeKey {
        /// The volume.
        volume: VolumeId,
        /// The check value of the key that is sealed: the volume's.
        check: KeyFingerprint,
        /// The volume's key, sealed under that.
        key: SealedKey,
    },
    /// A key does not open the volume any more.
    RemoveVolumeKey {
        /// The volume.
        volume: VolumeId,
        /// What the key is called.
        name: KeyName,
    },
}

impl Command {
    /// The command as bytes of the Raft log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![COMMAND_VERSION];
        bytes.extend(postcard::to_stdvec(self).expect("commands are plain data"));
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Corrupt`, saying which version was found where it is another.
    pub fn decode(bytes: &[u8]) -> Result<Command, Error> {
        match bytes.split_first() {
            Some((&COMMAND_VERSION, body)) => postcard::from_bytes(body)
                .map_err(|error| Error::new(ErrorKind::Corrupt, "a metadata command cannot be read").caused_by(error)),
            Some((version, _)) => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "a metadata command has version {version}, this program reads {COMMAND_VERSION}: use the newer program"
                ),
            )),
            None => Err(Error::new(ErrorKind::Corrupt, "a metadata command is empty")),
        }
    }
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// An entry without a command: nothing changed.
    Nothing,
    /// The node is a member under this id.
    Registered {
        /// Its id.
        node: NodeId,
    },
    /// The node's process has this number.
    Started {
        /// Rises with every start.
        incarnation: u64,
    },
    /// The volume exists.
    VolumeCreated {
        /// Its id.
        volume: VolumeId,
    },
    /// The volume does not exist any more.
    VolumeDeleted,
    /// The volume has its new owner, under this epoch.
    Transferred {
        /// The new epoch.
        epoch: Epoch,
    },
    /// Nothing changed, and why.
    Refused(Refusal),
    /// The volume has this size.
    VolumeResized {
        /// The size.
        size: VolumeSize,
    },
    /// The lease was granted or renewed.
    LeaseGranted {
        /// The number of the renewal.
        renewals: u64,
    },
    /// The lease is out: the node's volumes may be taken over.
    LeaseExpired,
    /// The volume has its new owner, under this epoch.
    TakenOver {
        /// The new epoch.
        epoch: Epoch,
    },
    /// The snapshot has this id; its owner makes it.
    SnapshotCreated {
        /// Its id.
        snapshot: SnapshotId,
    },
    /// It is known where the snapshot is in the volume's order.
    SnapshotMade,
    /// The snapshot does not exist any more.
    SnapshotDeleted,
    /// The policy is what was asked for.
    TakeoverSet,
    /// The clone is known to exist.
    CloneMade,
    /// The policy is what was asked for.
    PolicySet,
    /// The group exists.
    GroupCreated {
        /// Its id.
        group: VolumeGroupId,
    },
    /// The group does not exist any more; its volumes do.
    GroupDeleted,
    /// The group has other volumes.
    GroupChanged,
    /// Each of the volumes has its new owner, under the epoch after the one that was named.
    GroupTransferred,
    /// It is not kept any more.
    EnclosureTaken,
    /// The node is no member.
    NodeRemoved,
    /// The certificate is listed.
    ClientIssued,
    /// It counts no more.
    Revoked,
    /// The volumes are followed by those that were asked for.
    ReplicasChanged,
    /// The client may do what was asked for.
    RightsChanged,
    /// The volume is opened by what was asked for.
    VolumeKeysChanged,
}

impl Response {
    /// The response, with a refusal as the caller's error.
    ///
    /// # Errors
    /// The refusal.
    pub fn into_result(self) -> Result<Response, Error> {
        match self {
            Response::Refused(refusal) => Err(refusal.into()),
            response => Ok(response),
        }
    }
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another node has the name.
    #[error("node name {name} belongs to node {holder} already; choose another")]
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
    #[error("there is no node {0}")]
    UnknownNode(NodeId),
    /// Another volume has the name.
    #[error("volume {0} exists already; choose another name or delete it first")]
    VolumeNameTaken(VolumeName),
    /// No such volume.
    #[error("there is no volume {0}; it may have been deleted")]
    UnknownVolume(VolumeId),
    /// The proposer's epoch is over.
    #[error(
        "volume {volume} is in epoch {current} of node {owner}; what was proposed for epoch {proposed} of node {from} is void"
    )]
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
    #[error("node {node} has started again since (process {current}); what its process {proposed} proposed is void")]
    OldIncarnation {
        /// The node.
        node: NodeId,
        /// Which process proposed.
        proposed: u64,
        /// Which one runs.
        current: u64,
    },
    /// The new owner holds no replica.
    #[error("node {to} holds no replica of volume {volume}")]
    NotReplica {
        /// The volume.
        volume: VolumeId,
        /// The node.
        to: NodeId,
    },
    /// The volume got another size meanwhile.
    #[error("volume {volume} has {} bytes by now, not {}; look at it and try again", found.bytes(), expected.bytes())]
    SizeChanged {
        /// The volume.
        volume: VolumeId,
        /// The size that the proposer knew.
        expected: VolumeSize,
        /// The size it has.
        found: VolumeSize,
    },
    /// The lease was found to be out since the node last had it: it owns what the metadata says from now on, and no more.
    #[error("the lease of node {node} was out (found for the {lapses}. time): it takes up its volumes anew")]
    LeaseLapsed {
        /// The node.
        node: NodeId,
        /// How often that was found.
        lapses: u64,
    },
    /// The owner has its lease, or may have.
    #[error("node {node} has renewed its lease: it is alive; use `helio volume migrate` to move its volumes")]
    LeaseHeld {
        /// The node.
        node: NodeId,
        /// The number of its last renewal.
        renewals: u64,
    },
    /// What the node holds was left behind by a takeover before.
    #[error("node {node} holds volume {volume} up to {position}, which a takeover has left behind")]
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
    #[error("volume {volume} has no snapshot {snapshot}; it may have been deleted")]
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
    #[error("there is no group {0}; it may have been deleted")]
    UnknownGroup(VolumeGroupId),
    /// The volume goes with others.
    #[error(
        "volume {volume} is in group {group}: `helio group migrate {group}` moves all of it, `helio group remove {group} {volume}` takes it out"
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
        "client {0} has {max} certificates, and may have no more: `helio cluster client revoke {0}` takes all of them back",
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
    #[error("volume {0} would have more than {max} copies: take a replica away with `helio volume replica remove {0} NODE`", max = COPIES_OF_VOLUME_MAX)]
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
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let kind = match &refusal {
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
            | Refusal::TooManyVolumeKeys(_) => ErrorKind::InvalidRequest,
            Refusal::SizeChanged { .. }
            | Refusal::LeaseHeld { .. }
            | Refusal::BeingCloned { .. }
            | Refusal::GroupIsOther(_)
            | Refusal::SnapshotOnItsWay { .. } => ErrorKind::Busy,
            Refusal::LeaseLapsed { .. } => ErrorKind::Fenced,
        };
        Error::new(kind, refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_back_and_other_versions_are_named() {
        let command = Command::NodeStarted { node: NodeId(7) };
        let mut bytes = command.encode();
        assert_eq!(Command::decode(&bytes).expect("reads back"), command);
        bytes[0] = 9;
        let error = Command::decode(&bytes).expect_err("another version");
        assert!(error.to_string().contains("version 9"), "{error}");
        assert!(Command::decode(&[]).is_err());
        assert!(Command::decode(&[COMMAND_VERSION, 200, 1]).is_err());
    }
}
