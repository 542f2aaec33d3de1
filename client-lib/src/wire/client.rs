//! What a client asks of a node, and what it is told: the messages of [`ServiceId::Client`].
//!
//! A message is a postcard head (these types) and a payload of raw data. New requests and replies go at the end of their
//! enum, old ones never change (docs/format.md, "The Client service"). Any node answers any of them: what only the owner can
//! do is passed on. Who retries what, and when, is the client's business ([`crate::client`]); the rules that make a retry safe
//! are these:
//!
//! - A request names the [`Tenure`] that its session is attached to. An owner of another tenure does nothing and says so.
//! - A write has a number in its session, the same in every attempt: it is carried out once (docs/decisions/0025).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::frame::{Frame, ServiceId, decode_head, encode_head};
use crate::cipher::VolumeKeys;
use crate::error::{Error, ErrorKind};
use crate::rights::Right;
use crate::types::{Epoch, GroupId, Lsn, NAME_LEN_MAX, NodeId, SnapshotId, VolumeId};

mod bounded;

/// The most bytes that one request may make zeroes; a client cuts what is longer.
pub const ZERO_MAX: u64 = 4 << 30;

/// The most sessions that one request asks about; our own clients ask about one. A request with more cannot be read.
pub const ATTACH_SESSIONS_MAX: usize = 16;

/// The longest name that can be one: `VOLUME@SNAPSHOT`. A request with a longer one cannot be read.
pub const OPEN_NAME_LEN_MAX: usize = 2 * NAME_LEN_MAX + 1;

/// The longest head of a request, with room to spare: what is longer is none that can be read.
pub const REQUEST_HEAD_MAX: usize = 1024;
const _: () = assert!(
    REQUEST_HEAD_MAX >= OPEN_NAME_LEN_MAX + ATTACH_SESSIONS_MAX * 10 + 128,
    "a varint has up to 10 bytes, and everything else in a head is a few numbers"
);

/// A process that owns a volume, in one epoch. Within a tenure nothing that was acked is lost; what was acked and not flushed
/// may be gone in the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tenure {
    /// The epoch of the ownership.
    pub epoch: Epoch,
    /// How often the owner's node had been started.
    pub incarnation: u64,
}

impl std::fmt::Display for Tenure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {}, start {} of its node", self.epoch, self.incarnation)
    }
}

/// What is read: a volume under a tenure, or a snapshot, which never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The volume, as its owner of this tenure has it.
    Live {
        /// Which.
        volume: VolumeId,
        /// Under whom.
        tenure: Tenure,
    },
    /// A snapshot of it.
    Snapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        snapshot: SnapshotId,
    },
}

impl Target {
    /// The volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        match self {
            Target::Live { volume, .. } | Target::Snapshot { volume, .. } => *volume,
        }
    }
}

/// Which write it is, and by what right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteId {
    /// The session, as [`ClientReply::Opened`] gave it out.
    pub session: u64,
    /// The write's number in it, the same in every attempt.
    pub number: u64,
    /// Every write below this number is over: none of them may be carried out any more.
    pub answered: u64,
    /// Rises when the outcome of an attempt is unknown: what comes late of an older one is refused.
    pub generation: u64,
    /// The epoch of the session's right to write.
    pub right: Epoch,
}

/// What is asked about a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtentsOf {
    /// Where there is data.
    Allocation,
    /// Where the newest versions are, as the owner sees it.
    Residency,
}

/// The state of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtentState {
    /// There is data; asked for residency: at the owner.
    Data,
    /// It reads as zeroes.
    Zero,
    /// There is data, and the owner has yet to fetch it.
    Stale,
}

/// A request to a node. Offsets and lengths are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientRequest {
    /// The nodes of the cluster.
    Members,
    /// The volumes.
    Volumes,
    /// Begin a session of the volume or snapshot called so (`VOLUME` or `VOLUME@SNAPSHOT`).
    Open {
        /// The name, of at most [`OPEN_NAME_LEN_MAX`] bytes.
        #[serde(deserialize_with = "bounded::name")]
        name: String,
    },
    /// Who owns the volume, and which writes of these sessions it has.
    Attach {
        /// Which volume.
        volume: VolumeId,
        /// The sessions that the client still has writes of, at most [`ATTACH_SESSIONS_MAX`].
        #[serde(deserialize_with = "bounded::sessions")]
        sessions: Vec<u64>,
    },
    /// Read.
    Read {
        /// From what.
        target: Target,
        /// The first byte.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// Write the payload.
    Write {
        /// Which volume.
        volume: VolumeId,
        /// Under whom.
        tenure: Tenure,
        /// Which write.
        id: WriteId,
        /// The first byte.
        offset: u64,
        /// Durable before the answer.
        fua: bool,
    },
    /// Make a range read as zeroes, at most [`ZERO_MAX`] bytes. None at all changes nothing, and is answered like any other write: after all attempts
    /// of older generations.
    Zero {
        /// Which volume.
        volume: VolumeId,
        /// Under whom.
        tenure: Tenure,
        /// Which write.
        id: WriteId,
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
        /// Durable before the answer.
        fua: bool,
    },
    /// Make every acked write durable, in the volume's class.
    Flush {
        /// Which volume.
        volume: VolumeId,
        /// Under whom.
        tenure: Tenure,
    },
    /// The state of a range, which may be told in part.
    Extents {
        /// Of what.
        target: Target,
        /// What about it.
        of: ExtentsOf,
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Bring a range to the owner, as far as it is stale.
    Cache {
        /// Of what.
        target: Target,
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// As [`Open`](Self::Open), by a client that decrypts what is encrypted (others must not get to see that at all), and what it may do with
    /// it. Like the next one, known since clients have rights: where a node answers that it cannot read this, nobody is limited, and nothing is
    /// encrypted.
    OpenFor {
        /// The name, of at most [`OPEN_NAME_LEN_MAX`] bytes.
        #[serde(deserialize_with = "bounded::name")]
        name: String,
    },
    /// As [`Volumes`](Self::Volumes), and what the client may do with each.
    List,
}

/// A node, as clients need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its failure domain.
    pub provider: String,
    /// Where it listens, as `HOST:PORT`.
    pub address: String,
}

/// A volume or one of its snapshots, as clients need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// `VOLUME` or `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Whether it is a snapshot.
    pub is_snapshot: bool,
}

/// A volume or snapshot that the client may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedVolume {
    /// Which.
    pub volume: VolumeInfo,
    /// What it may do with the volume; a snapshot can only be read in any case.
    pub right: Right,
}

/// Where the history of a volume was cut off by a takeover: what was written after `end` in this epoch or an earlier one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkInfo {
    /// The epoch that the takeover ended.
    pub epoch: Epoch,
    /// The last write that is left of it.
    pub end: Lsn,
}

/// What a session began with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The volume, for ever.
    pub volume: VolumeId,
    /// The snapshot of it that was asked for.
    pub snapshot: Option<SnapshotId>,
    /// Bytes.
    pub size: u64,
    /// Unique over the cluster's life.
    pub session: u64,
    /// The newest epoch: the session's right to write.
    pub epoch: Epoch,
}

/// Writes of a session, as runs `from..to` of numbers.
pub type Runs = Vec<(u64, u64)>;

/// How things stand at the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Its tenure.
    pub tenure: Tenure,
    /// Its node.
    pub owner: NodeId,
    /// Bytes of the volume.
    pub size: u64,
    /// The newest write that may have been acked; those under way come after it.
    pub head: Lsn,
    /// The takeovers, oldest first.
    pub forks: Vec<ForkInfo>,
    /// The last epoch in which a session at an owner's own node has written: older rights to write are over.
    pub claimed: Epoch,
    /// Of each session that was asked about, the numbers that are not to be carried out any more.
    pub done: Vec<(u64, Runs)>,
}

/// The answer to a [`ClientRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub enum ClientReply {
    /// The nodes.
    Members(Vec<MemberInfo>),
    /// The volumes and their snapshots, by name.
    Volumes(Vec<VolumeInfo>),
    /// A session.
    Opened(Opened),
    /// The owner.
    Attached(Attached),
    /// The parts of a read, in order: `(length, zero)`; data parts are in the payload.
    Read(Vec<(u32, bool)>),
    /// The write is in the volume.
    Written {
        /// Up to where the owner's order has it.
        lsn: Lsn,
        /// As durable as it was asked to be; else flush until it is.
        durable: bool,
    },
    /// Whether all that was acked before is durable; else ask again.
    Flushed(bool),
    /// Lengths and states, from the first byte that was asked about.
    Extents(Vec<(u64, ExtentState)>),
    /// Done.
    Done,
    /// Nothing was done: the owner has this tenure.
    Moved(Tenure),
    /// Nothing was done: a later attempt of the session was seen.
    Outrun,
    /// It failed. What it was is not done, unless the kind says that nobody knows.
    Failed(Error),
    /// A session, and what may be done in it.
    OpenedFor {
        /// The session.
        opened: Opened,
        /// What may be done.
        right: Right,
        /// The sealed keys of a volume that is encrypted.
        keys: Option<VolumeKeys>,
    },
    /// The volumes and their snapshots that the client may use, by name.
    Listed(Vec<ListedVolume>),
}

/// A head with its payload.
#[derive(Debug)]
pub struct ClientMessage<T> {
    /// The typed part.
    pub head: T,
    /// Raw data; empty for most.
    pub payload: Bytes,
}

impl<T: Serialize> ClientMessage<T> {
    /// The message as one frame of the client service.
    ///
    /// # Errors
    /// `InvalidRequest` when it is over the limit of a frame.
    pub fn encode(&self) -> Result<Bytes, Error> {
        let too_large = |error| Error::new(ErrorKind::InvalidRequest, "a message cannot be encoded").caused_by(error);
        let head = encode_head(&self.head).map_err(too_large)?;
        let frame = Frame { service: ServiceId::Client, group: GroupId::META, head, payload: self.payload.clone() };
        frame.encode().map_err(too_large)
    }
}

impl<T: for<'de> Deserialize<'de>> ClientMessage<T> {
    /// Reads a message out of a frame.
    ///
    /// # Errors
    /// `Corrupt` when it is no frame of the client service, or its head is not one of `T`.
    pub fn decode(frame: Frame) -> Result<ClientMessage<T>, Error> {
        if frame.service != ServiceId::Client {
            return Err(Error::new(ErrorKind::Corrupt, "not a message between a client and a node"));
        }
        let head = decode_head(&frame.head)
            .map_err(|error| Error::new(ErrorKind::Corrupt, "a message cannot be read").caused_by(error))?;
        Ok(ClientMessage { head, payload: frame.payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenures_are_in_the_order_in_which_they_come() {
        let tenure = |epoch, incarnation| Tenure { epoch: Epoch(epoch), incarnation };
        assert!(tenure(1, 9) < tenure(2, 1) && tenure(2, 1) < tenure(2, 3));
    }

    #[test]
    fn a_message_of_another_service_is_refused() {
        let encoded = ClientMessage { head: ClientRequest::Members, payload: Bytes::new() }.encode().expect("is small");
        let mut frame = Frame::decode(&encoded).expect("our own");
        assert_eq!(
            ClientMessage::<ClientRequest>::decode(frame.clone()).expect("our own").head,
            ClientRequest::Members
        );
        frame.service = ServiceId::Peer;
        assert!(ClientMessage::<ClientRequest>::decode(frame).is_err());
    }

    /// One client, with no right at all, ended a node: it asked about 41 million sessions, a byte each on the wire and eight in memory, or for a
    /// volume with a name of 40 MB, and all of it was read before its rights were looked at.
    #[test]
    fn a_request_without_bound_cannot_be_read() {
        let read = |head: ClientRequest| {
            let encoded = ClientMessage { head, payload: Bytes::new() }.encode().expect("fits into a frame");
            ClientMessage::<ClientRequest>::decode(Frame::decode(&encoded).expect("our own"))
                .map(|message| message.head)
        };
        let attach =
            |count: usize| ClientRequest::Attach { volume: VolumeId(u64::MAX), sessions: vec![u64::MAX; count] };
        let name = |length: usize| "n".repeat(length);
        let most = [
            attach(0),
            attach(ATTACH_SESSIONS_MAX),
            ClientRequest::Open { name: name(OPEN_NAME_LEN_MAX) },
            ClientRequest::OpenFor { name: name(OPEN_NAME_LEN_MAX) },
        ];
        for head in most {
            assert!(encode_head(&head).expect("is plain data").len() <= REQUEST_HEAD_MAX, "{head:?}");
            assert_eq!(read(head.clone()).expect("is within bounds"), head);
        }
        for head in [
            attach(ATTACH_SESSIONS_MAX + 1),
            attach(1 << 20),
            ClientRequest::Open { name: name(OPEN_NAME_LEN_MAX + 1) },
            ClientRequest::OpenFor { name: name(1 << 20) },
        ] {
            assert_eq!(read(head).expect_err("has no bound").kind(), ErrorKind::Corrupt);
        }
    }
}
