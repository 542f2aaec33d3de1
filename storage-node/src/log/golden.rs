//! Known records and segment headers as bytes: a change here is a change of the log's format.

use client_lib::{BLOCK_SIZE, BlockIndex, Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};

use super::record::{Entry, Stamp, decode_entries, decode_header, encode, first_misfit};
use super::segment::SegmentHeader;
use crate::golden;
use crate::propagation::manifest::{Manifest, ManifestRun, RunContent, SnapshotMark};
use crate::volume::ledger::LedgerNews;

const BLOCK: usize = BLOCK_SIZE as usize;
/// Fills each data block.
const FILLS: [u8; 3] = [0x11, 0x22, 0x33];

/// One of each kind, with three data blocks.
fn entries() -> Vec<Entry> {
    let volume = VolumeId(0x0102_0304);
    let lsn = |sequence| Lsn::new(Epoch(3), sequence);
    let crc = |number: usize| crc32fast::hash(&[FILLS[number]; BLOCK]);
    let run = |start, sequence, content| ManifestRun { start: BlockIndex(start), lsn: lsn(sequence), content };
    let runs = vec![run(8, 41, RunContent::Data(vec![1, u32::MAX])), run(300, 42, RunContent::Zero(1 << 20))];
    let part = Manifest { from: Lsn::ZERO, to: lsn(42), runs: vec![run(9, 41, RunContent::Zero(2))], mark: None };
    let mark = Some(SnapshotMark { snapshot: SnapshotId(599), size: VolumeSize::try_from(2 << 40).expect("valid") });
    vec![
        Entry::Opened { volume, size: VolumeSize::try_from(1 << 40).expect("valid") },
        Entry::Role { volume, epoch: Epoch(3), owner: true },
        Entry::Write { volume, lsn: lsn(40), start: BlockIndex(70_000), checksums: vec![crc(0), crc(1)] },
        Entry::Zero { volume, lsn: lsn(41), start: BlockIndex(5), count: 1000 },
        Entry::Manifest { volume, manifest: Manifest { from: lsn(40), to: lsn(42), runs, mark }, seal: true },
        Entry::Received { volume, blocks: vec![(BlockIndex(9), lsn(42), crc(2))] },
        Entry::Applied { volume, to: lsn(42) },
        Entry::Deleted { volume },
        Entry::Relocated {
            volume,
            segment: 300,
            block: 17,
            moves: vec![(BlockIndex(9), 2, 70), (BlockIndex(10), 3, 1)],
        },
        Entry::Resized { volume, size: VolumeSize::try_from(3 << 40).expect("valid") },
        Entry::Snapshot { volume, snapshot: SnapshotId(600) },
        Entry::SnapshotDeleted { volume, snapshot: SnapshotId(600) },
        Entry::RolledBack { volume, lsn: lsn(43), snapshot: SnapshotId(500) },
        Entry::Rewound { volume, to: lsn(40) },
        Entry::Cloned { volume, origin: VolumeId(9), snapshot: SnapshotId(600) },
        Entry::Writers { volume, news: LedgerNews { claim: Epoch(3), done: vec![(2571, vec![(0, 300), (302, 303)])] } },
        Entry::Discarded { volume, to: lsn(40) },
        Entry::SyncPart { volume, manifest: part.clone(), earlier: 300, end: Some(BlockIndex(70_000)) },
        Entry::Told { volume, manifest: part, earlier: 300, seal: true },
    ]
}

#[test]
fn a_record_has_these_bytes() {
    let entries = entries();
    for life in [0, 0x090a] {
        let stamp = Stamp {
            log: 0x1112_1314_1516_1718,
            generation: 0x0a0b,
            sequence: 0x0c0d_0e0f,
            chain: 0xdead_beef,
            durable: 0x0c0d_0e00,
            life,
        };
        let (mut buffer, header_blocks, checksum) =
            encode(&stamp, &entries.iter().collect::<Vec<_>>(), FILLS.len() as u32, 0);
        FILLS.iter().for_each(|fill| buffer.push(&[*fill; BLOCK]));
        // The data is whatever the guest wrote, and not part of the format.
        let front = &buffer[..header_blocks as usize * BLOCK];
        let kept = match life {
            // Of programs that did not number the lives of a log.
            0 => golden::read("record.hex"),
            _ => golden::check("record-of-a-life.hex", front),
        };
        assert!(kept == front, "a record of life {life}");
        let header = decode_header(&kept, 0x0a0b, 0x0c0d_0e0f, 0xdead_beef).expect("the header");
        assert_eq!((header.checksum, header.blocks()), (checksum, header_blocks));
        assert_eq!((header.log, header.durable, header.life), (stamp.log, stamp.durable, life));
        assert_eq!(decode_entries(&header, &kept), Ok(entries.clone()));
        assert_eq!(first_misfit(&entries, &buffer[header_blocks as usize * BLOCK..]), None);
    }
}

#[test]
fn a_segment_header_has_these_bytes() {
    for (name, cold) in [("segment-header.hex", false), ("segment-header-cold.hex", true)] {
        let header = SegmentHeader { segment: 0x0102_0304, generation: 0x0506_0708_090a_0b0c, cold };
        let mut block = vec![0; BLOCK];
        header.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&golden::check(name, &block)), Ok(Some(header)));
    }
}
