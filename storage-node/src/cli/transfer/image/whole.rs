//! Whether a qcow2 file has all that its tables name. What lies beyond the end of a file that was cut off, imago as QEMU reads as zeroes: a disk
//! would be imported without its end, and nobody would notice.
//!
//! Knows of the format where its header has the tables (QEMU, docs/interop/qcow2.txt, "Header" and "Cluster mapping"), and nothing else.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail};

const CLUSTER_BITS: u64 = 20;
const L1_SIZE: u64 = 36;
const L1_OFFSET: u64 = 40;
/// Where the offset is in an entry of the L1 table.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Most entries that QEMU and imago take: 32 MiB of them.
const L1_SIZE_MAX: u32 = 4 << 20;

/// The file of a qcow2 image whose tables are whole.
pub(super) struct Whole {
    length: u64,
    cluster: u64,
}

impl Whole {
    /// Looks at the tables of an image that imago has opened.
    ///
    /// # Errors
    /// When one lies beyond the end; as the system says.
    pub(super) fn require(file: &File) -> anyhow::Result<Whole> {
        let length = file.metadata()?.len();
        let bits = u32::from_be_bytes(field(file, CLUSTER_BITS)?);
        let cluster = 1u64.checked_shl(bits).context("its header names no cluster size")?;
        let entries = u32::from_be_bytes(field(file, L1_SIZE)?).min(L1_SIZE_MAX);
        let at = u64::from_be_bytes(field(file, L1_OFFSET)?);
        let size = u64::from(entries) * 8;
        if at.saturating_add(size) > length {
            bail!(cut_off(length));
        }
        let mut table = vec![0; size as usize];
        file.read_exact_at(&mut table, at)?;
        for entry in table.chunks_exact(8) {
            let offset = u64::from_be_bytes(entry.try_into().expect("eight bytes")) & OFFSET_MASK;
            if offset != 0 && offset + cluster > length {
                bail!(cut_off(length));
            }
        }
        Ok(Whole { length, cluster })
    }

    /// Refuses data of which a cluster begins beyond the end. The last one may be shorter than a cluster: what it lacks was never written.
    pub(super) fn require_data(&self, offset: u64, length: u64) -> io::Result<()> {
        let last = (offset + length.max(1) - 1) / self.cluster * self.cluster;
        match last.max(offset) < self.length {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut_off(self.length))),
        }
    }
}

fn field<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn cut_off(length: u64) -> String {
    format!(
        "the image was cut off: its tables name data beyond its end at {length} bytes. Copy it again; `qemu-img check` tells more"
    )
}
