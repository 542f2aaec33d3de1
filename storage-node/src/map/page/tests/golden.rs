//! Known pages and chunks as bytes: a change here is a change of the shard's format.

use super::*;
use crate::golden;

fn local(sequence: u64, segment: u32, block: u32, crc: u32) -> Version {
    let place = Place { segment, block };
    Version { lsn: Lsn::new(Epoch(3), sequence), content: Content::Local { place, crc } }
}

/// Runs of every stride, single blocks, zeroes, another epoch.
fn page() -> Vec<(Index, Version)> {
    let zero = Version { lsn: Lsn::new(Epoch(2), 700), content: Content::Zero };
    let mut entries: Vec<(Index, Version)> = Vec::new();
    entries.extend((0..8).map(|at| (at, local(1000, 5, 100 + u32::from(at), 0xc0de_0000 + u32::from(at)))));
    entries.extend((8..12).map(|at| (at, local(1000 + u64::from(at), 5, 200 + u32::from(at), u32::from(at)))));
    entries.extend((12..16).map(|at| (at, local(2000 + u64::from(at), 6, 300 + 2 * u32::from(at), u32::from(at)))));
    entries.extend((20..24).map(|at| (at, zero)));
    entries.push((77, local(70_000, 12, 16_000, 0x1234_5678)));
    entries.push((255, Version { lsn: Lsn::new(Epoch(9), 1 << 40), content: Content::Zero }));
    entries
}

/// Stale and local entries, as a layer holds them.
fn chunk() -> Vec<(Index, Version)> {
    let stale = |sequence, crc| Version { lsn: Lsn::new(Epoch(4), sequence), content: Content::Stale { crc } };
    vec![(3, stale(50, 1)), (4, stale(50, 2)), (5, local(49, 1, 2, 3)), (200, stale(51, u32::MAX))]
}

#[test]
fn pages_have_these_bytes() {
    for (name, entries) in [("page.hex", page()), ("page-chunk.hex", chunk()), ("page-empty.hex", Vec::new())] {
        let kept = golden::check(name, &encode_entries(entries.clone().into_iter()));
        assert_eq!(decode_entries(&kept), Ok(entries), "{name}");
    }
}
