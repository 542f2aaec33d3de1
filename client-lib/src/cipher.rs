//! Encryption of volumes where they are used: AES-256-XTS over sectors, and the keys for it (docs/encryption.md).
//!
//! What leaves through a [`VolumeCipher`] is all that nodes ever see: their logs, snapshots, deltas and wires hold ciphertext, and a
//! node without a key can own, replicate and hand over a volume like any other. The key of a volume is random and lies in the
//! metadata, sealed for each key that may open it ([`keys`]); where those come from is told by a [`KeySource`]. Lengths do not
//! change, sectors stay where they are, and zeroes that were never written stay zeroes. Nothing here tells what was changed by
//! whoever holds the data: docs/decisions/0045 says why, and what that means.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

pub mod keys;
pub mod octets;
pub mod source;
mod xts;

pub use keys::{CipherName, Kek, SealedKey, VolumeKey, VolumeKeys};
pub use source::KeySource;

use crate::error::Error;
use crate::read_part::ReadPart;
use xts::{UNIT_BYTES, Xts};

/// What is encrypted or decrypted before others on the same thread get their turn, in bytes: about 20 microseconds of a core.
const TURN_BYTES: usize = 64 << 10;

/// The cipher of a volume under its key. Its round keys are overwritten when it is dropped.
pub struct VolumeCipher {
    xts: Xts,
}

impl fmt::Debug for VolumeCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeCipher").finish_non_exhaustive()
    }
}

impl VolumeCipher {
    /// Under `key`.
    #[must_use]
    pub fn new(key: &VolumeKey) -> VolumeCipher {
        VolumeCipher { xts: Xts::new(key.reveal()) }
    }

    /// The cipher of the volume called `name`, which has these keys, by one that `source` has.
    ///
    /// # Errors
    /// As [`KeySource::unlock`].
    pub async fn unlocked(source: &KeySource, name: &str, keys: &VolumeKeys) -> Result<Arc<VolumeCipher>, Error> {
        Ok(Arc::new(VolumeCipher::new(&source.unlock(name, keys).await?)))
    }

    /// What is stored for `data` at byte `offset` of the volume. Others on this thread get their turn in between.
    ///
    /// # Panics
    /// If these are not whole sectors.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn encrypt(&self, offset: u64, data: Bytes) -> Bytes {
        let first = unit_at(offset, &data);
        let mut data = in_place(data);
        for (turn, piece) in (0u64..).zip(data.chunks_mut(TURN_BYTES)) {
            if turn > 0 {
                tokio::task::yield_now().await;
            }
            self.xts.encrypt(first + turn * UNITS_PER_TURN, piece);
        }
        data.freeze()
    }

    /// What is read where `stored` is stored at byte `offset` of the volume. Sectors of zeroes were never written, and are zeroes: no
    /// key and no data make them with a chance above 2⁻⁴⁰⁰⁰.
    ///
    /// # Panics
    /// If these are not whole sectors.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn decrypt(&self, offset: u64, stored: Bytes) -> Bytes {
        let first = unit_at(offset, &stored);
        let mut data = in_place(stored);
        for (turn, piece) in (0u64..).zip(data.chunks_mut(TURN_BYTES)) {
            if turn > 0 {
                tokio::task::yield_now().await;
            }
            self.xts.decrypt(first + turn * UNITS_PER_TURN, piece);
        }
        data.freeze()
    }

    /// The same for the parts of a read that began at `offset`, each in its place.
    ///
    /// # Panics
    /// If one of them is not of whole sectors.
    ///
    /// # Cancel safety
    /// Some parts are decrypted then, some are not.
    pub async fn decrypt_parts(&self, mut offset: u64, parts: &mut [ReadPart]) {
        for part in parts {
            let length = part.length();
            if let ReadPart::Data(data) = part {
                *data = self.decrypt(offset, std::mem::take(data)).await;
            }
            offset += length;
        }
    }
}

const UNITS_PER_TURN: u64 = (TURN_BYTES / UNIT_BYTES) as u64;
const _: () = assert!(TURN_BYTES.is_multiple_of(UNIT_BYTES), "a turn ends where a sector does");
const _: () = assert!(UNIT_BYTES == crate::geometry::SECTOR_SIZE as usize, "the least that can be read or written");

/// The number of the sector at `offset`, of which on there are `data`.
fn unit_at(offset: u64, data: &[u8]) -> u64 {
    let unit = UNIT_BYTES as u64;
    assert!(offset.is_multiple_of(unit), "{offset} is inside of a sector");
    assert!(data.len().is_multiple_of(UNIT_BYTES), "{} bytes end inside of a sector", data.len());
    offset / unit
}

/// The same bytes to be changed; copied only if somebody else has them, too.
fn in_place(data: Bytes) -> BytesMut {
    data.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
}

#[cfg(test)]
mod tests;
