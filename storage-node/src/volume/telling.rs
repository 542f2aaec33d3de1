//! Versions as a manifest tells of them, and what one from outside must be like.

use client_lib::geometry::BLOCKS_MAX;
use client_lib::{BlockIndex, Lsn};

use crate::map::page::Version;
use crate::propagation::manifest::{Manifest, ManifestRun, RunContent};

/// The manifest `(from, to]` of versions in block order.
#[must_use]
pub fn manifest_of(from: Lsn, to: Lsn, versions: &[(u32, Version)]) -> Manifest {
    let mut runs: Vec<ManifestRun> = Vec::new();
    for (block, version) in versions {
        if let Some(last) = runs.last_mut()
            && last.lsn == version.lsn
            && u64::from(last.start.0) + u64::from(last.blocks()) == u64::from(*block)
        {
            match (&mut last.content, version.content.crc()) {
                (RunContent::Data(checksums), Some(crc)) => {
                    checksums.push(crc);
                    continue;
                }
                (RunContent::Zero(count), None) => {
                    *count += 1;
                    continue;
                }
                _ => {}
            }
        }
        let content = version.content.crc().map_or(RunContent::Zero(1), |crc| RunContent::Data(vec![crc]));
        runs.push(ManifestRun { start: BlockIndex(*block), lsn: version.lsn, content });
    }
    Manifest { from, to, runs, mark: None }
}

/// Why a manifest from outside cannot be taken; `None` when it can. It may tell of blocks beyond the size known here: the
/// owner hears first that the volume has grown.
#[must_use]
pub fn manifest_fault(manifest: &Manifest) -> Option<&'static str> {
    if manifest.from > manifest.to {
        return Some("it ends before it starts");
    }
    let mut end = 0;
    for run in &manifest.runs {
        if u64::from(run.start.0) < end {
            return Some("its runs are not in order");
        }
        end = u64::from(run.start.0) + u64::from(run.blocks());
        if run.blocks() == 0 || end > BLOCKS_MAX {
            return Some("a run is empty or lies outside any volume");
        }
        if run.lsn > manifest.to {
            return Some("a run is newer than its end");
        }
    }
    None
}
