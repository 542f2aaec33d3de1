//! What can be changed in the metadata, and what comes of it.
//!
//! Commands are entries of the Raft log: encoded with postcard behind a version byte ([`COMMAND_VERSION`]). A new
//! command goes at the end of the enum; an old one never changes. Applying cannot fail: a refusal is a response.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::cipher::keys::KeyFingerprint;
use client_lib::cipher::{SealedKey, VolumeKeys};
use client_lib::pki::Fingerprint;
use client_lib::policy::placement::Placement;
use client_lib::policy::{Durability, LinkPolicy, Propagation, Rpo};
use client_lib::rights::{Right, Role, VolumePattern, VolumeRule};
use client_lib::{
    ClientName, Epoch, Error, ErrorKind, GroupName, KeyName, Label, Lsn, NodeId, NodeName, ProviderId, SnapshotId,
    SnapshotName, VolumeGroupId, VolumeId, VolumeName, VolumeSize,
};
use serde::{Deserialize, Serialize};

use crate::state::{Made, MetaState};

mod refusal;

pub use refusal::Refusal;

/// The version in front of every encoded command.
pub const COMMAND_VERSION: u8 = 1;

/// The set of commands that this program knows. Raised with new commands that change no [format](crate::FORMAT): those are proposed only where every
/// member that answers knows the set they came with. 1 has [`Command::GiveUpReplicas`] and [`Command::ForgetEnded`].
pub const COMMAND_SET: u64 = 1;

/// How many bytes a handover encloses at most, for all its volumes together: they go through the log of every voter. Who has more
/// to say to the new owner does so before.
pub const ENCLOSED_BYTES_MAX: usize = 64 << 10;

/// How many bytes a rescue encloses at most: it is rare, and what is not durable at its owner cannot be told before.
pub const RESCUE_ENCLOSED_BYTES_MAX: usize = 256 << 10;

/// How many volumes an owner steps down for in one command. Who owns more proposes several.
pub const STEP_DOWN_MAX: usize = 512;

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
    /// A replica takes the volume from an owner whose lease is out, or which has stepped down.
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
        /// When, by the proposer's clock, and for how long: an [`Issued`](crate::Issued).
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
    /// The owner has ceased to act for volumes in these epochs, for as long as its present process runs: they may be taken over though
    /// its lease is not out. What it does not own in the epoch that is named is left out. This is proposed only where every member that
    /// answers knows of it.
    StepDown {
        /// The owner who proposes.
        node: NodeId,
        /// The process of the owner that proposes, as numbered by [`Command::NodeStarted`]: with its end this is void.
        incarnation: u64,
        /// The volumes, at most [`STEP_DOWN_MAX`], and the epochs of their ownership.
        volumes: Vec<(VolumeId, Epoch)>,
    },
    /// The owner, whose store takes no writes any more, ends its epoch and gives the volume to another node with everything that it acked. What
    /// that store has beyond the end, or has lost, is cut off as by a takeover. This is proposed only where every member that answers knows of it.
    Rescue {
        /// The owner who proposes.
        from: NodeId,
        /// The process of the owner that proposes, as numbered by [`Command::NodeStarted`].
        incarnation: u64,
        /// The new owner: a replica.
        to: NodeId,
        /// The volume, and where its epoch ends.
        ended: Ended,
        /// Up to where it is durable at the owner.
        durable: Lsn,
        /// What the new owner must know to begin and was not told before: at most [`RESCUE_ENCLOSED_BYTES_MAX`].
        enclosed: Vec<u8>,
    },
    /// As [`Command::ChangeReplicas`] where none is added, however many are left. For volumes that were made with more copies than one may have: they
    /// become fewer one by one. This and what follows is proposed only where every member that answers knows of it ([`COMMAND_SET`]).
    GiveUpReplicas {
        /// The volumes, and the epochs of the ownership; of a group all.
        members: Vec<(VolumeId, Epoch)>,
        /// The owner who proposes.
        from: NodeId,
        /// The process of the owner that proposes, as numbered by [`Command::NodeStarted`].
        incarnation: u64,
        /// Those that follow no more.
        remove: BTreeSet<NodeId>,
    },
    /// Certificates of a client that have ended, and not just now, are listed no more.
    ForgetEnded {
        /// The client.
        client: ClientName,
        /// When, by the proposer's clock, in milliseconds since 1970.
        at_ms: u64,
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
    /// The owner acts no more for those volumes that it owns in the epochs that were named.
    SteppedDown,
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

    /// The same, with the names that `state` has of the nodes and volumes in a refusal.
    ///
    /// # Errors
    /// The refusal.
    pub fn into_result_told(self, state: &MetaState) -> Result<Response, Error> {
        match self {
            Response::Refused(refusal) => Err(refusal.told(state)),
            response => Ok(response),
        }
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
