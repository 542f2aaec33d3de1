//! How a volume is opened, and what was found under its name.

use std::sync::Arc;
use std::time::Duration;

#[cfg(doc)]
use super::volume::Volume;
use crate::cipher::{KeySource, VolumeCipher};
use crate::rights::Right;
use crate::wire::client::Opened;

/// How many bytes of writes a volume keeps until they are durable, unless told otherwise.
pub const JOURNAL_BYTES: u64 = 64 << 20;

/// How a volume is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Refuse writes here.
    pub is_read_only: bool,
    /// Open for reading what this client may not write; [`Volume::is_read_only`] tells. Otherwise opening that for writing fails.
    pub or_read_only: bool,
    /// How long an operation may wait for a node that can carry it out. `None` waits as long as it takes. A write that was
    /// given up may have been carried out, or be carried out while an attempt at it is still held at the owner; nothing that is written after it
    /// is undone by that.
    pub give_up: Option<Duration>,
    /// Bytes of writes that are kept until they are durable. At half of it the volume is flushed; when it is full, writes wait
    /// for that.
    pub journal_bytes: u64,
    /// Where the keys are that open encrypted volumes. With them a volume that is not encrypted is refused: whoever has the nodes could
    /// say so of one that is, and be sent its data in the clear.
    pub keys: Option<KeySource>,
    /// Whether volumes that are not encrypted are opened with [`keys`](Self::keys), too.
    pub allows_plain: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            is_read_only: false,
            or_read_only: false,
            give_up: None,
            journal_bytes: JOURNAL_BYTES,
            keys: None,
            allows_plain: false,
        }
    }
}

/// A volume or snapshot that was looked up.
#[derive(Clone, Debug)]
pub struct Found {
    pub(super) opened: Opened,
    pub(super) cipher: Option<Arc<VolumeCipher>>,
    pub(super) right: Right,
}

impl Found {
    /// `options` as far as the client may: who may not write opens for reading.
    pub(super) fn options(&self, options: OpenOptions) -> OpenOptions {
        OpenOptions { is_read_only: options.is_read_only || self.right < Right::Write, ..options }
    }
}
