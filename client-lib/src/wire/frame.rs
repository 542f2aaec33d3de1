//! The frame: a fixed header of 32 bytes, a head (a small serialised message) and a payload (raw block data).
//!
//! Owns the layout (docs/format.md), its version and its checksum. Decoding copies nothing: head and
//! payload are slices of the received buffer. Bytes from the network never panic here. The head's meaning is
//! not known to this module.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::transport::FRAME_SIZE_MAX;
use crate::types::GroupId;

/// The first bytes of every frame: "HELF".
pub const FRAME_MAGIC: [u8; 4] = *b"HELF";
/// The frame version that this build speaks. Nodes of different versions refuse each other's frames.
pub const FRAME_VERSION: u16 = 2;
/// Bytes of the fixed header.
pub const FRAME_HEADER_SIZE: usize = 32;

const VERSION_AT: usize = 4;
const SERVICE_AT: usize = VERSION_AT + 2;
const GROUP_AT: usize = SERVICE_AT + 2;
const HEAD_LENGTH_AT: usize = GROUP_AT + 8;
const PAYLOAD_LENGTH_AT: usize = HEAD_LENGTH_AT + 4;
const RESERVED_AT: usize = PAYLOAD_LENGTH_AT + 4;
const CHECKSUM_AT: usize = RESERVED_AT + 4;
const _: () = assert!(CHECKSUM_AT + 4 == FRAME_HEADER_SIZE, "the fields fill the header");

/// Who answers a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum ServiceId {
    /// The metadata group's consensus.
    Raft = 1,
    /// Propagation, pulls and handover between nodes.
    Peer = 2,
    /// Requests of the command line and of clients, passed on.
    Admin = 3,
    /// A node without a certificate asks to join.
    Join = 4,
    /// Clients that use volumes.
    Client = 5,
}

impl TryFrom<u16> for ServiceId {
    type Error = FrameError;

    fn try_from(number: u16) -> Result<ServiceId, FrameError> {
        match number {
            1 => Ok(ServiceId::Raft),
            2 => Ok(ServiceId::Peer),
            3 => Ok(ServiceId::Admin),
            4 => Ok(ServiceId::Join),
            5 => Ok(ServiceId::Client),
            found => Err(FrameError::Service { found }),
        }
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header.
    #[error("{found} bytes are too few for a frame header of {FRAME_HEADER_SIZE}")]
    Short {
        /// Bytes present.
        found: usize,
    },
    /// Something else than a frame.
    #[error("a frame starts with {found:02x?} instead of {FRAME_MAGIC:02x?}")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The peer runs another version.
    #[error("frame version {found} found, version {expected} expected: the nodes run different releases")]
    Version {
        /// The frame's version.
        found: u16,
        /// [`FRAME_VERSION`].
        expected: u16,
    },
    /// A service this build does not know.
    #[error("frame for unknown service {found}")]
    Service {
        /// The number in the frame.
        found: u16,
    },
    /// The lengths in the header do not add up to the bytes present.
    #[error("the frame header announces {announced} bytes, {found} are present")]
    Length {
        /// Header, head and payload according to the header.
        announced: u64,
        /// Bytes present.
        found: usize,
    },
    /// Larger than [`FRAME_SIZE_MAX`].
    #[error("a frame of {0} bytes is over the limit of {FRAME_SIZE_MAX}")]
    TooLarge(u64),
    /// Bytes that this version leaves unused are not zero.
    #[error("reserved header bytes are {found:#010x}, expected zero")]
    Reserved {
        /// What they hold.
        found: u32,
    },
    /// The bytes changed on the way.
    #[error("frame checksum {found:08x}, expected {expected:08x}")]
    Checksum {
        /// Computed over what is present.
        found: u32,
        /// In the header.
        expected: u32,
    },
    /// The head is not the expected message.
    #[error("frame head cannot be read: {0}")]
    Head(String),
}

/// One message between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Who answers it.
    pub service: ServiceId,
    /// The Raft group it concerns; [`GroupId::META`] outside Raft.
    pub group: GroupId,
    /// The serialised message.
    pub head: Bytes,
    /// Raw data that belongs to the message.
    pub payload: Bytes,
}

impl Frame {
    /// A frame of a head alone, in the metadata group.
    #[must_use]
    pub fn new(service: ServiceId, head: Bytes) -> Frame {
        Frame { service, group: GroupId::META, head, payload: Bytes::new() }
    }

    /// The same frame with `payload`.
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Frame {
        self.payload = payload;
        self
    }

    /// The bytes to send.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`].
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        let size = FRAME_HEADER_SIZE as u64 + self.head.len() as u64 + self.payload.len() as u64;
        if size > FRAME_SIZE_MAX as u64 {
            return Err(FrameError::TooLarge(size));
        }
        let mut bytes = BytesMut::with_capacity(size as usize);
        bytes.put_slice(&FRAME_MAGIC);
        bytes.put_u16_le(FRAME_VERSION);
        bytes.put_u16_le(self.service as u16);
        bytes.put_u64_le(self.group.0);
        bytes.put_u32_le(self.head.len() as u32);
        bytes.put_u32_le(self.payload.len() as u32);
        bytes.put_u32_le(0);
        bytes.put_u32_le(0);
        bytes.put_slice(&self.head);
        bytes.put_slice(&self.payload);
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..FRAME_HEADER_SIZE].copy_from_slice(&checksum.to_le_bytes());
        Ok(bytes.freeze())
    }

    /// The head of what is perhaps a frame for `service`, with nothing verified: for who must know what is asked before the whole is looked
    /// at.
    #[must_use]
    pub fn peek_head(bytes: &Bytes, service: ServiceId) -> Option<Bytes> {
        let header = bytes.get(..FRAME_HEADER_SIZE)?;
        let head = u32::from_le_bytes(field(header, HEAD_LENGTH_AT)) as usize;
        let is_for_it = header.starts_with(&FRAME_MAGIC)
            && u16::from_le_bytes(field(header, VERSION_AT)) == FRAME_VERSION
            && u16::from_le_bytes(field(header, SERVICE_AT)) == service as u16;
        (is_for_it && head <= bytes.len() - FRAME_HEADER_SIZE)
            .then(|| bytes.slice(FRAME_HEADER_SIZE..FRAME_HEADER_SIZE + head))
    }

    /// Reads a frame; head and payload share `bytes`.
    ///
    /// # Errors
    /// As [`FrameError`] says; any input is allowed.
    pub fn decode(bytes: &Bytes) -> Result<Frame, FrameError> {
        if bytes.len() < FRAME_HEADER_SIZE {
            return Err(FrameError::Short { found: bytes.len() });
        }
        if bytes.len() > FRAME_SIZE_MAX {
            return Err(FrameError::TooLarge(bytes.len() as u64));
        }
        let magic: [u8; 4] = field(bytes, 0);
        if magic != FRAME_MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        // The version comes before everything it governs, so that a newer layout is named and not called corrupt.
        let version = u16::from_le_bytes(field(bytes, VERSION_AT));
        if version != FRAME_VERSION {
            return Err(FrameError::Version { found: version, expected: FRAME_VERSION });
        }
        let head = u32::from_le_bytes(field(bytes, HEAD_LENGTH_AT));
        let payload = u32::from_le_bytes(field(bytes, PAYLOAD_LENGTH_AT));
        let announced = FRAME_HEADER_SIZE as u64 + u64::from(head) + u64::from(payload);
        if announced != bytes.len() as u64 {
            return Err(FrameError::Length { announced, found: bytes.len() });
        }
        let expected = u32::from_le_bytes(field(bytes, CHECKSUM_AT));
        let found = checksum(bytes);
        if found != expected {
            return Err(FrameError::Checksum { found, expected });
        }
        let reserved = u32::from_le_bytes(field(bytes, RESERVED_AT));
        if reserved != 0 {
            return Err(FrameError::Reserved { found: reserved });
        }
        let service = ServiceId::try_from(u16::from_le_bytes(field(bytes, SERVICE_AT)))?;
        let split = FRAME_HEADER_SIZE + head as usize;
        Ok(Frame {
            service,
            group: GroupId(u64::from_le_bytes(field(bytes, GROUP_AT))),
            head: bytes.slice(FRAME_HEADER_SIZE..split),
            payload: bytes.slice(split..),
        })
    }
}

/// Serialises a head.
///
/// # Errors
/// [`FrameError::Head`] for a type that postcard cannot serialise.
pub fn encode_head<T: Serialize>(message: &T) -> Result<Bytes, FrameError> {
    postcard::to_stdvec(message).map(Bytes::from).map_err(|error| FrameError::Head(error.to_string()))
}

/// Reads a head; bytes left over are an error.
///
/// # Errors
/// [`FrameError::Head`].
pub fn decode_head<T: DeserializeOwned>(head: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(head).map_err(|error| FrameError::Head(error.to_string()))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Head(format!("{} bytes follow the message", rest.len())))
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has the array's length")
}

/// Over everything but the checksum itself.
fn checksum(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..CHECKSUM_AT]);
    hasher.update(&frame[FRAME_HEADER_SIZE..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of the sample frame; computed once with version 1 and fixed since.
    const GOLDEN_CHECKSUM: u32 = 0xf7f2_97c2;

    fn sample() -> Frame {
        Frame {
            service: ServiceId::Peer,
            group: GroupId(7),
            head: Bytes::from_static(b"head"),
            payload: Bytes::from_static(b"data!"),
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = sample().encode().expect("small");
        let mut golden = Vec::new();
        golden.extend_from_slice(b"HELF");
        golden.extend_from_slice(&[2, 0, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&GOLDEN_CHECKSUM.to_le_bytes());
        golden.extend_from_slice(b"headdata!");
        assert_eq!(&bytes[..], &golden[..]);
    }

    #[test]
    fn the_head_is_seen_without_the_rest_and_only_by_whom_it_is_for() {
        let bytes = sample().encode().expect("small");
        let head = |length: usize, service| Frame::peek_head(&bytes.slice(..length), service);
        assert_eq!(head(bytes.len(), ServiceId::Peer).as_deref(), Some(&b"head"[..]));
        assert_eq!(head(bytes.len(), ServiceId::Client), None);
        assert_eq!(head(FRAME_HEADER_SIZE + 4, ServiceId::Peer).as_deref(), Some(&b"head"[..]));
        assert!((0..FRAME_HEADER_SIZE + 4).all(|length| head(length, ServiceId::Peer).is_none()), "it is cut off");
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = sample().encode().expect("small").to_vec();
        bytes[VERSION_AT] = 9;
        let error = Frame::decode(&bytes.into()).expect_err("another version");
        assert_eq!(error, FrameError::Version { found: 9, expected: 2 });
        assert!(error.to_string().contains("version 9 found, version 2 expected"));
    }

    #[test]
    fn a_frame_over_the_limit_is_not_encoded() {
        let frame = sample().with_payload(Bytes::from(vec![0; FRAME_SIZE_MAX]));
        assert!(matches!(frame.encode(), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn heads_round_trip_and_leftovers_are_refused() {
        let head = encode_head(&(5u32, "name")).expect("plain");
        assert_eq!(decode_head::<(u32, String)>(&head).expect("same type"), (5, "name".to_owned()));
        let longer = [&head[..], &[0]].concat();
        assert!(matches!(decode_head::<(u32, String)>(&longer), Err(FrameError::Head(_))));
    }

    proptest! {
        #[test]
        fn any_frame_round_trips(service in 1u16..=5, group: u64, head: Vec<u8>, payload: Vec<u8>) {
            let frame = Frame {
                service: ServiceId::try_from(service).expect("in range"),
                group: GroupId(group),
                head: head.into(),
                payload: payload.into(),
            };
            prop_assert_eq!(Frame::decode(&frame.encode().expect("small")).expect("own frame"), frame);
        }

        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            let _ = Frame::decode(&bytes.into());
        }

        #[test]
        fn any_changed_byte_is_noticed(at in 0usize..41, flip in 1u8..) {
            let mut bytes = sample().encode().expect("small").to_vec();
            bytes[at] ^= flip;
            prop_assert!(Frame::decode(&bytes.into()).is_err());
        }

        #[test]
        fn any_shortened_frame_is_refused(length in 0usize..41) {
            let bytes = sample().encode().expect("small").slice(..length);
            prop_assert!(Frame::decode(&bytes).is_err());
        }
    }
}
