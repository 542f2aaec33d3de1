//! What nodes ask of each other about volumes, and how it is laid into frames.
//!
//! A message is a postcard head (these types) and a payload of raw block data, so that data is neither
//! copied into nor parsed out of the head. Versions: the frame header carries the protocol version; new
//! requests go at the end of [`PeerRequest`], old ones never change.

use std::collections::BTreeSet;

use bytes::Bytes;
use client_lib::wire::client::{ClientReply, ClientRequest};
use client_lib::wire::frame::{Frame, ServiceId, decode_head, encode_head};
use client_lib::{BlockIndex, Epoch, Error, ErrorKind, GroupId, Lsn, SnapshotId, VolumeGroupId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::ownership::standing::Tail;
use crate::propagation::manifest::{BlockRun, Manifest, ManifestRun, VersionRun};
use crate::shard::scrub::ScrubAction;
use crate::volume::Moment;
use crate::volume::ledger::{LedgerNews, Writer};

/// A request to another node. Offsets and lengths are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Are you there?
    Ping,
    /// Read as the owner. `epoch` is the sender's: a receiver that knows less waits until it knows as much.
    Read { volume: VolumeId, epoch: Epoch, moment: Moment, offset: u64, length: u32 },
    /// Write the payload as the owner, for a session of another node.
    Write { volume: VolumeId, epoch: Epoch, writer: Writer, offset: u64, fua: bool },
    /// Make a range read as zeroes, as the owner.
    Zero { volume: VolumeId, epoch: Epoch, writer: Writer, offset: u64, length: u64, fua: bool },
    /// Make forwarded writes durable, as the owner.
    Flush { volume: VolumeId, epoch: Epoch },
    /// What is mapped, as the owner.
    Extents { volume: VolumeId, epoch: Epoch, moment: Moment, offset: u64, length: u64 },
    /// A replica's positions, asked by the owner of `epoch`.
    ReplicaStatus { volume: VolumeId, epoch: Epoch },
    /// Take note of a manifest from the owner of `epoch`; all replicas have applied up to `prune`.
    Manifest { volume: VolumeId, epoch: Epoch, manifest: Manifest, seal: bool, durable: bool, prune: Lsn },
    /// Which blocks of the sealed delta the replica still misses.
    Missing { volume: VolumeId, epoch: Epoch, after: BlockIndex, limit: u32 },
    /// Data of the sealed delta; the payload holds the blocks with data one after the other.
    Blocks { volume: VolumeId, epoch: Epoch, blocks: Vec<BlockHead> },
    /// Apply the sealed delta, which ends at `to`.
    Apply { volume: VolumeId, epoch: Epoch, to: Lsn },
    /// Send the newest version you hold, or a snapshot's; `visited` have been asked already.
    Pull { volume: VolumeId, moment: Moment, runs: Vec<BlockRun>, visited: Vec<client_lib::NodeId> },
    /// The last manifest before a handover to the receiver, and all that is known of the volume's writers: durable on reply.
    Prepare { volume: VolumeId, epoch: Epoch, manifest: Manifest, ledger: LedgerNews },
    /// An administrative request for the owner, as JSON of `serve::admin` (slow path, human-paced).
    Admin { request: AdminForward },
    /// Take note of a manifest that begins at the replica's watermark, take its data, and apply it all, if nothing is missing then:
    /// what a flush waits for, in one call. Durable on reply.
    Deliver { volume: VolumeId, epoch: Epoch, manifest: Manifest, blocks: Vec<BlockHead>, prune: Lsn },
    /// Which encodings of payloads do you understand? A program that does not know this request answers that it cannot read it.
    Encodings,
    /// As `Blocks`; the payload is a zstd frame of what is there.
    BlocksZstd { volume: VolumeId, epoch: Epoch, blocks: Vec<BlockHead> },
    /// As `Deliver`; the payload is a zstd frame of what is there.
    DeliverZstd { volume: VolumeId, epoch: Epoch, manifest: Manifest, blocks: Vec<BlockHead>, prune: Lsn },
    /// As `Pull`; the answer may be `BlocksZstd`.
    PullZstd { volume: VolumeId, moment: Moment, runs: Vec<BlockRun>, visited: Vec<client_lib::NodeId> },
    /// Carry this out as soon as you are the owner in `epoch`, which was proposed, if that begins behind `after`.
    Ahead { volume: VolumeId, epoch: Epoch, after: Lsn, operation: Operation },
    /// Send those of these versions that you hold, in their order; fetch none. The answer is `Held`; of `offers` the receiver has what may be the same.
    PullHeld { volume: VolumeId, moment: Moment, wanted: Vec<VersionRun>, offers: Vec<Alike> },
    /// You are to own the volume, since `epoch` or soon: these extents, of [`crate::propagation::heat::EXTENT_BLOCKS`] blocks each, were
    /// read and written most at its last owner, the hottest first.
    HotSet { volume: VolumeId, epoch: Epoch, extents: Vec<u32> },
    /// As `Missing`, and what the replica has that may be the same; the answer is `Offered`.
    MissingOffered { volume: VolumeId, epoch: Epoch, after: BlockIndex, limit: u32 },
    /// As `Blocks`, or `BlocksZstd` if so; and versions that are what was offered for them.
    BlocksAlike { volume: VolumeId, epoch: Epoch, blocks: Vec<BlockHead>, is_zstd: bool, alike: Vec<Alike> },
    /// Fetch what you miss of the sealed delta from `holder`, for some seconds, or until nothing has come for so long.
    FetchFrom { volume: VolumeId, epoch: Epoch, holder: client_lib::NodeId, patience_ms: u32 },
    /// What a client asked of the sender, for the owner. `epoch` is the sender's, as in `Read`.
    Client { epoch: Epoch, request: ClientRequest },
    /// Which blocks you lack of the volume as far as you know it, or do not know in which version they are meant; the answer is `Missing`.
    Lacking { volume: VolumeId, epoch: Epoch, after: BlockIndex, limit: u32 },
    /// Part `number` of the manifest that `telling` names; it takes effect with `ManifestLast`.
    ManifestPart { volume: VolumeId, epoch: Epoch, telling: u64, number: u32, runs: Vec<ManifestRun> },
    /// As `Manifest`, which has no runs but those of so many parts.
    ManifestLast {
        volume: VolumeId,
        epoch: Epoch,
        telling: u64,
        parts: u32,
        manifest: Manifest,
        seal: bool,
        durable: bool,
        prune: Lsn,
    },
    /// A volume is about to be yours: hold what you send in the background for so long.
    HoldBulk { for_ms: u32 },
    /// Take note of a part of an initial sync ([`crate::volume::initial`]), which ends before block `end` or is the last: a manifest that has
    /// no runs but those of so many parts of `telling`.
    SyncPart { volume: VolumeId, epoch: Epoch, telling: u64, parts: u32, manifest: Manifest, end: Option<BlockIndex> },
    /// Sign this request for a certificate of the sender, if you have the authority; the answer is `Signed`.
    Renew { request_pem: String },
}

/// What a session asks of the owner of a volume. Data that is written is the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// As [`PeerRequest::Read`], of the present.
    Read { offset: u64, length: u32 },
    /// As [`PeerRequest::Write`].
    Write { writer: Writer, offset: u64, fua: bool },
    /// As [`PeerRequest::Zero`].
    Zero { writer: Writer, offset: u64, length: u64, fua: bool },
}

impl Operation {
    /// The request for whoever owns `volume` in `epoch`.
    #[must_use]
    pub fn for_owner(self, volume: VolumeId, epoch: Epoch) -> PeerRequest {
        match self {
            Operation::Read { offset, length } => {
                PeerRequest::Read { volume, epoch, moment: Moment::Now, offset, length }
            }
            Operation::Write { writer, offset, fua } => PeerRequest::Write { volume, epoch, writer, offset, fua },
            Operation::Zero { writer, offset, length, fua } => {
                PeerRequest::Zero { volume, epoch, writer, offset, length, fua }
            }
        }
    }
}

/// In an answer to `Encodings`: zstd frames are understood.
pub const ENCODING_ZSTD: u32 = 1;

/// In an answer to `Encodings`: versions can be asked for by name, a hot set is taken, and what is the same is not sent.
pub const ENCODING_HELD: u32 = 2;

/// In an answer to `Encodings`: a manifest may come in parts.
pub const ENCODING_PARTS: u32 = 4;

/// In an answer to `Encodings`: bulk can be held.
pub const ENCODING_HOLD: u32 = 8;

/// In an answer to `Encodings`: an initial sync may come in parts.
pub const ENCODING_SYNC: u32 = 16;

/// The encodings that this program understands.
pub const ENCODINGS: u32 = ENCODING_ZSTD | ENCODING_HELD | ENCODING_PARTS | ENCODING_HOLD | ENCODING_SYNC;

/// Administrative requests that only one node can carry out: the owner of a volume, or the one that is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminForward {
    /// Status of a volume.
    Status { volume: VolumeId },
    /// Hand a volume over to a node: with `synced` once that holds everything, with `deadline_ms` not later than so long from now.
    Migrate { volume: VolumeId, to: client_lib::NodeId, synced: bool, deadline_ms: Option<u64> },
    /// Give a volume another size; a smaller one only with `shrink`.
    Resize { volume: VolumeId, size: client_lib::VolumeSize, shrink: bool },
    /// The snapshots of a volume.
    Snapshots { volume: VolumeId },
    /// Make a volume what a snapshot is.
    RollBack { volume: VolumeId, snapshot: client_lib::SnapshotId },
    /// What the node asked holds of a volume.
    Holding { volume: VolumeId },
    /// The node asked is to take a volume over from node `from`, which owns it in `epoch`, if no other replica may hold more that was
    /// flushed; how that goes is told.
    Takeover { volume: VolumeId, from: client_lib::NodeId, epoch: Epoch },
    /// How the takeover from the owner of `epoch` goes.
    TakeoverState { volume: VolumeId, epoch: Epoch },
    /// The node asked is to drop what it holds of a volume that it has left, and to follow again.
    Rejoin { volume: VolumeId },
    /// Make a new volume, with this name, that begins as a snapshot.
    Clone { volume: VolumeId, snapshot: client_lib::SnapshotId, name: client_lib::VolumeName },
    /// Where the space of the node goes.
    Space,
    /// The scrub of a volume at the node, or of all that it stores.
    Scrub { action: ScrubAction, volume: Option<VolumeId> },
    /// Hand a volume over to a node where it is written, if it may go there and nobody uses it here.
    HandOverOnWrite { volume: VolumeId, to: client_lib::NodeId },
    /// End a handover that has not been proposed yet.
    CancelMigrate { volume: VolumeId },
    /// What went over the links that begin at the node asked.
    Links,
    /// Hand all volumes of a group that the node owns over to another; the rest as with `Migrate`.
    MigrateGroup { group: VolumeGroupId, to: client_lib::NodeId, synced: bool, deadline_ms: Option<u64> },
    /// Make a snapshot of all volumes of a group at one cut.
    SnapshotGroup { group: VolumeGroupId, name: client_lib::SnapshotName },
    /// As `Takeover`, whatever others hold.
    TakeoverBehind { volume: VolumeId, from: client_lib::NodeId, epoch: Epoch },
    /// The volumes that the node asked owns, at a glance.
    Glances,
    /// What of a volume is at the node asked, in at most so many parts.
    Residency { volume: VolumeId, parts: u32 },
    /// The last changes of a volume's owner that the node asked carried out.
    Chronicle { volume: VolumeId },
    /// What the node asked is, and how far its metadata is applied. Who understands this knows of removed nodes and revoked certificates.
    About,
    /// The newest acts of administrators at the node asked.
    Audit { limit: usize },
    /// Have other nodes follow volumes that the node asked owns.
    ChangeReplicas { volumes: Vec<VolumeId>, add: BTreeSet<client_lib::NodeId>, remove: BTreeSet<client_lib::NodeId> },
    /// Where the time of a volume's operations goes: of these kinds, or of all if there are none, for so long, with so many single ones.
    Trace { volume: VolumeId, kinds: Vec<String>, for_ms: u64, slowest: u32 },
    /// The node asked is to step down as the owner of a volume in `epoch`, if its store has failed.
    StepDown { volume: VolumeId, epoch: Epoch },
    /// As `ChangeReplicas`, if enough are left when it is done: whoever asks has looked at that, and so have others.
    ChangeReplicasIfEnough {
        volumes: Vec<VolumeId>,
        add: BTreeSet<client_lib::NodeId>,
        remove: BTreeSet<client_lib::NodeId>,
    },
}

/// One block of a [`PeerRequest::Blocks`] or [`PeerReply::Blocks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockHead {
    /// Which block.
    pub block: BlockIndex,
    /// Which version.
    pub lsn: Lsn,
    /// Whether it is a block of zeroes, absent from the payload.
    pub zero: bool,
}

/// A version of a block, and what may be, or is, its content: somebody has that already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Alike {
    /// Which block.
    pub block: BlockIndex,
    /// Which version.
    pub lsn: Lsn,
    /// The first half of the BLAKE3 hash of the content.
    pub hash: [u8; 16],
}

/// A replica's positions, as it reports them with every reply of propagation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPosition {
    /// Up to where it knows what changed.
    pub known: Lsn,
    /// Up to where it holds a complete prefix.
    pub watermark: Lsn,
    /// Blocks it knows in a version that it does not hold.
    pub stale_blocks: u64,
    /// The newest snapshot that it knows of; 0 when there is none.
    pub newest_snapshot: SnapshotId,
    /// The snapshot that its sealed delta ends at, if it does.
    pub awaited_snapshot: Option<SnapshotId>,
    /// The end of its sealed delta.
    pub sealed_to: Option<Lsn>,
}

/// The answer to a [`PeerRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub enum PeerReply {
    /// Done.
    Done,
    /// Written, under this epoch.
    Written(Epoch),
    /// The parts of a read, in order: `(length, zero)`; data parts are in the payload.
    Read(Vec<(u32, bool)>),
    /// Lengths and whether mapped.
    Extents(Vec<(u64, bool)>),
    /// A replica's positions.
    Position(ReplicaPosition),
    /// Missing blocks.
    Missing(Vec<BlockRun>),
    /// Pulled blocks; data in the payload.
    Blocks(Vec<BlockHead>),
    /// An administrative answer as JSON.
    Admin(String),
    /// The receiver does not own the volume; it knows this epoch.
    NotOwner(Epoch),
    /// The sender's epoch or generation is over.
    Superseded(Epoch),
    /// The replica's position does not fit: ask for its status and go on from there.
    Gap(ReplicaPosition),
    /// It failed.
    Failed(Error),
    /// The receiver has left the volume: a takeover cut off what it holds.
    Left(Tail),
    /// A replica's positions, and up to where it holds the volume durably.
    Delivered {
        /// The positions.
        position: ReplicaPosition,
        /// Everything up to here is applied, and synced.
        held: Lsn,
    },
    /// It is done at the owner and not durable in the volume's class yet: ask for a flush until it is.
    Waiting,
    /// The encodings of payloads that the receiver understands, a bit for each.
    Encodings(u32),
    /// Pulled blocks; the payload is a zstd frame of their data.
    BlocksZstd(Vec<BlockHead>),
    /// Those of the versions asked for that are held.
    Held {
        /// Sent as data, or as zeroes.
        blocks: Vec<BlockHead>,
        /// Whether the payload is a zstd frame.
        is_zstd: bool,
        /// Not sent, because they are what was offered.
        alike: Vec<Alike>,
    },
    /// What a replica misses.
    Offered {
        /// Missing blocks.
        runs: Vec<BlockRun>,
        /// Of those, what it has that may be the same.
        offers: Vec<Alike>,
    },
    /// What a replica has fetched from another.
    Fetched {
        /// Blocks that came.
        blocks: u64,
        /// Whether it misses nothing more of the sealed delta.
        is_whole: bool,
    },
    /// The answer to a client.
    Client(ClientReply),
    /// To `ReplicaStatus`: the positions of a replica that comes back to the volume ([`crate::volume::rejoin`]).
    Rejoining {
        /// The positions.
        position: ReplicaPosition,
        /// It holds the volume as of here, but for the blocks that it lacks.
        base: Lsn,
        /// Of so many of those it does not know in which version they are meant: it takes only a manifest that tells of all of them.
        unknown: u64,
    },
    /// To `ReplicaStatus`: the positions of a replica whose initial sync is under way.
    InitialSync {
        /// The positions.
        position: ReplicaPosition,
        /// It holds what lies before `next` as of here.
        base: Lsn,
        /// The first block of which it holds nothing.
        next: BlockIndex,
    },
    /// The certificate of who has asked.
    Signed {
        /// In PEM.
        certificate_pem: String,
    },
}

/// A head with its payload.
#[derive(Debug)]
pub struct Message<T> {
    /// The typed part.
    pub head: T,
    /// Raw block data; empty for most.
    pub payload: Bytes,
}

impl<T: Serialize> Message<T> {
    /// The message as one frame of the peer service.
    ///
    /// # Errors
    /// `InvalidRequest` when it is over the limit of a frame.
    pub fn encode(&self) -> Result<Bytes, Error> {
        let too_large =
            |error| Error::new(ErrorKind::InvalidRequest, "a message for a peer cannot be encoded").caused_by(error);
        let head = encode_head(&self.head).map_err(too_large)?;
        let frame = Frame { service: ServiceId::Peer, group: GroupId::META, head, payload: self.payload.clone() };
        frame.encode().map_err(too_large)
    }
}

impl<T: for<'de> Deserialize<'de>> Message<T> {
    /// Reads a message out of a decoded frame.
    ///
    /// # Errors
    /// `Corrupt` when the head is not one of `T`.
    pub fn decode(frame: Frame) -> Result<Message<T>, Error> {
        let head = decode_head(&frame.head).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "a peer sent a message that cannot be read").caused_by(error)
        })?;
        Ok(Message { head, payload: frame.payload })
    }
}

#[cfg(test)]
mod tests {
    use client_lib::NodeId;

    use super::*;
    use crate::golden;
    use crate::propagation::manifest::RunContent;
    use crate::volume::ledger::Origin;

    fn head(block: u32, zero: bool) -> BlockHead {
        BlockHead { block: BlockIndex(block), lsn: Lsn::new(Epoch(3), 300), zero }
    }

    /// What carries blocks, plain and compressed: its place in the enum and its fields are what other nodes read.
    #[test]
    fn messages_with_blocks_are_encoded_as_these_bytes() {
        let (volume, epoch) = (VolumeId(9), Epoch(3));
        let runs = vec![BlockRun { start: BlockIndex(7), count: 2 }];
        let visited = vec![NodeId(1)];
        let content = RunContent::Data(vec![0xdead_beef]);
        let run = ManifestRun { start: BlockIndex(7), lsn: Lsn::new(epoch, 300), content };
        let (from, to, mark) = (Lsn::new(epoch, 1), Lsn::new(epoch, 300), None);
        let manifest = Manifest { from, to, runs: vec![run.clone()], mark };
        let blocks = vec![head(7, false), head(8, true)];
        let prune = Lsn::ZERO;
        let origin = Origin { session: 5, number: 6, answered: 4 };
        let writer = Writer { origin, generation: 1, right: Epoch(2) };
        let operation = Operation::Zero { writer, offset: 4096, length: 300, fua: true };
        let lsn = Lsn::new(epoch, 300);
        let alike = vec![Alike { block: BlockIndex(7), lsn, hash: [9; 16] }];
        let requests = [
            PeerRequest::Blocks { volume, epoch, blocks: blocks.clone() },
            PeerRequest::Pull { volume, moment: Moment::Now, runs: runs.clone(), visited: visited.clone() },
            PeerRequest::Deliver { volume, epoch, manifest: manifest.clone(), blocks: blocks.clone(), prune },
            PeerRequest::Encodings,
            PeerRequest::BlocksZstd { volume, epoch, blocks: blocks.clone() },
            PeerRequest::DeliverZstd { volume, epoch, manifest, blocks: blocks.clone(), prune },
            PeerRequest::PullZstd { volume, moment: Moment::Now, runs, visited },
            PeerRequest::Ahead { volume, epoch, after: Lsn::new(epoch, 300), operation },
            PeerRequest::PullHeld {
                volume,
                moment: Moment::Now,
                wanted: VersionRun::of(&[(7, lsn)]),
                offers: alike.clone(),
            },
            PeerRequest::HotSet { volume, epoch, extents: vec![300, 7] },
            PeerRequest::MissingOffered { volume, epoch, after: BlockIndex(7), limit: 300 },
            PeerRequest::BlocksAlike { volume, epoch, blocks: blocks.clone(), is_zstd: true, alike: alike.clone() },
            PeerRequest::FetchFrom { volume, epoch, holder: NodeId(3), patience_ms: 300 },
            PeerRequest::Lacking { volume, epoch, after: BlockIndex(7), limit: 300 },
            PeerRequest::ManifestPart { volume, epoch, telling: 5, number: 300, runs: vec![run] },
            PeerRequest::ManifestLast {
                volume,
                epoch,
                telling: 5,
                parts: 301,
                manifest: Manifest { from, to, runs: Vec::new(), mark },
                seal: true,
                durable: false,
                prune,
            },
            PeerRequest::HoldBulk { for_ms: 300 },
            PeerRequest::SyncPart {
                volume,
                epoch,
                telling: 5,
                parts: 301,
                manifest: Manifest { from: Lsn::ZERO, to, runs: Vec::new(), mark },
                end: Some(BlockIndex(300)),
            },
            PeerRequest::Renew { request_pem: "request".to_owned() },
        ];
        let encoded: Vec<u8> = requests.iter().flat_map(|head| encode_head(head).expect("is plain data")).collect();
        golden::check("peer-requests.hex", &encoded);
        let replies = [
            PeerReply::Blocks(blocks.clone()),
            PeerReply::Encodings(ENCODINGS),
            PeerReply::BlocksZstd(blocks.clone()),
            PeerReply::Held { blocks, is_zstd: true, alike: alike.clone() },
            PeerReply::Offered { runs: vec![BlockRun { start: BlockIndex(7), count: 2 }], offers: alike },
            PeerReply::Fetched { blocks: 300, is_whole: true },
            PeerReply::Rejoining { position: ReplicaPosition::default(), base: lsn, unknown: 300 },
            PeerReply::InitialSync { position: ReplicaPosition::default(), base: lsn, next: BlockIndex(300) },
            PeerReply::Signed { certificate_pem: "certificate".to_owned() },
        ];
        let encoded: Vec<u8> = replies.iter().flat_map(|head| encode_head(head).expect("is plain data")).collect();
        golden::check("peer-replies.hex", &encoded);
    }
}
