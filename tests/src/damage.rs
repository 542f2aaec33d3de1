//! Bytes altered on a disk, behind a node's back.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = client_lib::BLOCK_SIZE as usize;

/// Alters a byte of every copy of these blocks in the segments of `store`; returns how many copies there were.
///
/// # Errors
/// When the segments cannot be read or written.
pub fn alter(store: &Path, wanted: &[Vec<u8>]) -> anyhow::Result<usize> {
    let mut altered = 0;
    for entry in fs::read_dir(store.join("segments"))? {
        let path = entry?.path();
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        for (at, found) in (0u64..).zip(fs::read(&path)?.chunks_exact(BLOCK)) {
            if wanted.iter().any(|wanted| wanted == found) {
                file.write_all_at(&[!found[1000]], at * BLOCK as u64 + 1000)?;
                altered += 1;
            }
        }
        file.sync_all()?;
    }
    Ok(altered)
}
