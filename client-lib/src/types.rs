//! The identifiers and positions that every other module speaks in.
//!
//! Quantities are newtypes: a node id cannot be passed where a volume id is wanted, and an [`Epoch`]
//! cannot be compared with a sequence number. All of them are plain values without I/O.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id!(
    /// A volume, for ever: the metadata log allocates it, and it is never used again after deletion.
    VolumeId
);
id!(
    /// A node of the cluster. Never reused: a wiped node joins under a new id.
    NodeId
);
id!(
    /// A snapshot of a volume, for ever: never used again in that volume, not even after deletion. 0 is none.
    SnapshotId
);
id!(
    /// A group of volumes, for ever: never used again after deletion.
    VolumeGroupId
);
id!(
    /// A Raft group. There is one today ([`GroupId::META`]); keys and frames carry it so that more can follow.
    GroupId
);
id!(
    /// The fencing number of a volume's ownership. Rises by one with every change of owner; 0 is "never owned".
    Epoch
);

impl GroupId {
    /// The group that holds the cluster's metadata.
    pub const META: GroupId = GroupId(0);
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// The position of a write in its volume's total order.
///
/// Ordered by epoch, then sequence. The sequence goes on across epochs (a new epoch starts one above
/// the final sequence of the last), so within one history the sequence alone orders writes; the epoch
/// tells two histories apart that forked at a takeover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lsn {
    /// The ownership under which the write was made.
    pub epoch: Epoch,
    /// The write's number; 0 is "before the first write".
    pub sequence: u64,
}

impl Lsn {
    /// The position before any write.
    pub const ZERO: Lsn = Lsn { epoch: Epoch(0), sequence: 0 };

    /// After every write.
    pub const MAX: Lsn = Lsn { epoch: Epoch(u64::MAX), sequence: u64::MAX };

    /// The position `sequence` under `epoch`.
    #[must_use]
    pub const fn new(epoch: Epoch, sequence: u64) -> Lsn {
        Lsn { epoch, sequence }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Lsn, Error> {
        let wrong = || {
            Error::new(ErrorKind::InvalidRequest, format!("{text:?} is not an LSN; write EPOCH.SEQUENCE, as in 3.1042"))
        };
        let (epoch, sequence) = text.split_once('.').ok_or_else(wrong)?;
        Ok(Lsn::new(Epoch(epoch.parse().map_err(|_| wrong())?), sequence.parse().map_err(|_| wrong())?))
    }
}

/// The label of an autonomous failure domain: a cloud, a region, a site. Same rules as [`NodeName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProviderId(String);

/// What people call a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// What people and NBD clients call a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// What people call a snapshot, within its volume; `VOLUME@SNAPSHOT` names it outside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

/// What people call a group of volumes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(String);

/// What people call a client of a cluster: who is let in with a certificate of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientName(String);

/// What people call a key that opens volumes, and its file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyName(String);

/// A word that says what a node is, for rules of placement: a region, a kind of disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

/// The longest name of a node, provider, volume, snapshot, group, client, key or label, in bytes. Longer ones are refused as invalid.
pub const NAME_LEN_MAX: usize = 63;

macro_rules! name {
    ($name:ident, $what:literal) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                check_name($what, &text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(ProviderId, "provider");
name!(NodeName, "node");
name!(VolumeName, "volume");
name!(SnapshotName, "snapshot");
name!(GroupName, "group");
name!(ClientName, "client");
name!(KeyName, "key");
name!(Label, "label");

/// Letters, digits, `-`, `_` and `.`, starting with a letter or digit. Safe as a file name, in a URI and in a
/// shell, and leaves `@` free for snapshots (`VOL@SNAP`).
fn check_name(what: &str, text: &str) -> Result<(), Error> {
    let refuse = |why: String| {
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "{text:?} cannot name a {what}: {why}; use 1 to {NAME_LEN_MAX} letters, digits, '-', '_' or '.', starting with a letter or digit"
            ),
        ))
    };
    let Some(first) = text.bytes().next() else {
        return refuse("it is empty".into());
    };
    if text.len() > NAME_LEN_MAX {
        return refuse(format!("it has {} bytes", text.len()));
    }
    if let Some(odd) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_.".contains(*c))) {
        return refuse(format!("it contains {odd:?}"));
    }
    if !first.is_ascii_alphanumeric() {
        return refuse(format!("it starts with {:?}", first as char));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsns_order_by_epoch_then_sequence() {
        assert!(Lsn::new(Epoch(1), 9) < Lsn::new(Epoch(2), 1));
        assert!(Lsn::new(Epoch(2), 1) < Lsn::new(Epoch(2), 2));
        assert!(Lsn::ZERO < Lsn::new(Epoch(1), 0));
    }

    #[test]
    fn an_lsn_reads_back_what_it_prints() {
        let lsn = Lsn::new(Epoch(3), 1042);
        assert_eq!(lsn.to_string(), "3.1042");
        assert_eq!(lsn.to_string().parse::<Lsn>().expect("parses"), lsn);
        assert!("3".parse::<Lsn>().is_err());
        assert!("3.x".parse::<Lsn>().is_err());
    }

    #[test]
    fn odd_names_are_refused_with_the_reason() {
        for (name, reason) in [
            ("", "empty"),
            ("a/b", "'/'"),
            ("a b", "' '"),
            ("..", "starts with '.'"),
            ("-x", "starts with '-'"),
            ("vol@snap", "'@'"),
            ("naïve", "'ï'"),
            ("a\0b", "'\\0'"),
            (&"x".repeat(64), "64 bytes"),
        ] {
            let error = name.parse::<VolumeName>().expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            assert!(error.to_string().contains(reason), "{name:?}: {error}");
        }
        for name in ["a", "vm-1.disk_0", &"x".repeat(63)] {
            assert!(name.parse::<VolumeName>().is_ok(), "{name:?}");
        }
    }
}
