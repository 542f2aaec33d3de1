//! The shard against an array of bytes: whatever is asked, in whatever order it completes.

use std::collections::BTreeMap;

use client_lib::{Epoch, ReadPart, VolumeSize};
use proptest::prelude::*;

use super::rig::{Rig, VOLUME, cases};
use crate::map::page::{PAGE_ENTRIES, PAGE_MEMORY_MAX};
use crate::shard::extents::EXTENT_BLOCKS_MAX;
use crate::shard::handle::{MappedExtent, Request, StoreError};
use crate::volume::Moment;
use crate::volume::ledger::Author;

/// Forty blocks and a sector, so that the last block is cut off.
const SIZE: u64 = 40 * 4096 + 512;
/// The volume grows and shrinks between this and [`SIZE`].
const SIZE_MIN: u64 = 20 * 4096 + 1024;

#[derive(Clone, Debug)]
enum Op {
    Write {
        offset: u64,
        length: u64,
        fill: u8,
        fua: bool,
    },
    Zero {
        offset: u64,
        length: u64,
    },
    /// Waited for, or cut off after so many turns.
    Resize {
        bytes: u64,
        cut_off: Option<u8>,
    },
    /// Of everything that is acked by then, and perhaps of what is under way.
    Snapshot,
    DeleteSnapshot(usize),
    Flush,
    Settle,
    Checkpoint,
    Kill,
    Restart,
    Crash,
}

fn range(align: u64) -> impl Strategy<Value = (u64, u64)> {
    (0..SIZE / align, 1..12 * 4096 / align).prop_map(move |(start, length)| {
        let offset = start * align;
        (offset, (length * align).min(SIZE - offset))
    })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let write = |align| {
        (range(align), 1..255u8, prop::bool::weighted(0.2)).prop_map(|((offset, length), fill, fua)| Op::Write {
            offset,
            length,
            fill,
            fua,
        })
    };
    let op = prop_oneof![
        4 => write(512),
        4 => write(4096),
        1 => write(1),
        3 => range(512).prop_map(|(offset, length)| Op::Zero { offset, length }),
        2 => (SIZE_MIN / 512..=SIZE / 512, prop::option::weighted(0.3, 0..6u8))
            .prop_map(|(sectors, cut_off)| Op::Resize { bytes: sectors * 512, cut_off }),
        3 => Just(Op::Snapshot),
        1 => any::<usize>().prop_map(Op::DeleteSnapshot),
        2 => Just(Op::Flush),
        4 => Just(Op::Settle),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Kill),
        1 => Just(Op::Restart),
        1 => Just(Op::Crash),
    ];
    proptest::collection::vec(op, 1..60)
}

/// Every snapshot reads as it was found when it was made, whatever happened since.
fn check_snapshots(rig: &mut Rig, snapshots: &BTreeMap<u64, Vec<u8>>) {
    assert!(rig.snapshots().iter().map(|found| found.snapshot.0).eq(snapshots.keys().copied()));
    for (id, content) in snapshots {
        let found = rig.read_snapshot(*id, 0, content.len() as u32).expect("reads");
        assert!(found == *content, "snapshot {id} has changed");
    }
}

/// What the volume may read as: the content after each request, in order of arrival.
struct Model {
    history: Vec<Vec<u8>>,
    /// Up to which request everything is acked, or durable.
    acked: usize,
    durable: usize,
}

impl Model {
    fn new() -> Model {
        Model { history: vec![vec![0; SIZE as usize]], acked: 0, durable: 0 }
    }

    fn change(&mut self, offset: u64, length: u64, fill: u8) {
        let mut next = self.history.last().expect("never empty").clone();
        next[offset as usize..(offset + length) as usize].fill(fill);
        self.history.push(next);
    }

    /// After a restart every byte must be one that it had at request `at_least` or later: requests that were not acked
    /// were concurrent, so any of them may have happened.
    fn resume(&mut self, found: &[u8], at_least: usize) {
        let steps = &self.history[at_least..];
        for (at, byte) in found.iter().enumerate() {
            assert!(
                steps.iter().any(|step| step[at] == *byte),
                "byte {at} came back as {byte} after request {at_least}"
            );
        }
        self.history = vec![found.to_vec()];
        (self.acked, self.durable) = (0, 0);
    }
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn a_volume_reads_as_an_array_of_bytes(ops in ops(), seed in any::<u64>()) {
        let mut rig = Rig::new(seed);
        let mut model = Model::new();
        let mut epoch = 1;
        let mut under_way = Vec::new();
        let mut size = SIZE;
        let (mut snapshots, mut next_snapshot) = (BTreeMap::new(), 1);
        rig.open(SIZE);
        rig.activate(epoch);
        for op in ops {
            match op {
                Op::Write { offset, length, .. } | Op::Zero { offset, length } if offset + length > size => {
                    let refused = rig.write(offset, vec![1; length as usize]);
                    prop_assert!(matches!(refused, Err(StoreError::BeyondEnd { .. })), "{refused:?}");
                }
                Op::Resize { bytes, cut_off } => {
                    let wanted = VolumeSize::try_from(bytes).expect("valid");
                    let owner = Some(Epoch(epoch));
                    let answer = rig.send(|reply| Request::Resize { volume: VOLUME, size: wanted, owner, reply });
                    if bytes < size {
                        model.change(bytes, size - bytes, 0);
                    }
                    match cut_off {
                        None => {
                            prop_assert_eq!(rig.wait(answer).expect("is resized").size.bytes(), bytes);
                            size = bytes;
                        }
                        Some(turns) => {
                            (0..turns).for_each(|_| rig.turn());
                            rig.kill();
                            under_way.clear();
                            let found = rig.report().size.bytes();
                            prop_assert!(found == size || found == bytes, "{found}");
                            size = found;
                            epoch += 1;
                            rig.activate(epoch);
                            let at_least = model.acked;
                            let mut found = rig.read(0, size as u32).expect("reads");
                            // What lies beyond the end reads as zeroes when the volume has grown again.
                            found.resize(SIZE as usize, 0);
                            model.resume(&found, at_least);
                        }
                    }
                }
                Op::Snapshot => {
                    rig.snapshot(next_snapshot).expect("is made");
                    let found = rig.read_snapshot(next_snapshot, 0, size as u32).expect("reads");
                    let steps = &model.history[model.acked..];
                    for (at, byte) in found.iter().enumerate() {
                        prop_assert!(steps.iter().any(|step| step[at] == *byte), "byte {at} of the snapshot is {byte}");
                    }
                    snapshots.insert(next_snapshot, found);
                    next_snapshot += 1;
                }
                Op::DeleteSnapshot(at) => {
                    if let Some(id) = snapshots.keys().nth(at % snapshots.len().max(1)).copied() {
                        rig.delete_snapshot(id).expect("is deleted");
                        snapshots.remove(&id);
                        prop_assert!(rig.read_snapshot(id, 0, 512).is_err());
                    }
                }
                Op::Write { offset, length, fill, fua } => {
                    under_way.push(rig.send_write(offset, vec![fill; length as usize], fua));
                    model.change(offset, length, fill);
                    if under_way.len().is_multiple_of(2) {
                        rig.turn();
                    }
                }
                Op::Zero { offset, length } => {
                    under_way.push(rig.send(|reply| Request::Zero { volume: VOLUME, offset, length, fua: false, author: Author::Session(None), reply }));
                    model.change(offset, length, 0);
                }
                Op::Settle | Op::Flush => {
                    for answer in under_way.drain(..) {
                        rig.wait(answer).expect("is acked");
                    }
                    check_snapshots(&mut rig, &snapshots);
                    model.acked = model.history.len() - 1;
                    if matches!(op, Op::Flush) {
                        rig.flush().expect("flushes");
                        model.durable = model.acked;
                    }
                    prop_assert!(rig.read(0, size as u32).expect("reads") == model.history[model.acked][..size as usize]);
                }
                Op::Checkpoint => rig.checkpoint().expect("is written"),
                Op::Kill | Op::Restart | Op::Crash => {
                    let at_least = match op {
                        Op::Crash => { rig.crash(); model.durable }
                        Op::Kill => { rig.kill(); model.acked }
                        _ => {
                            rig.restart();
                            model.history.len() - 1
                        }
                    };
                    under_way.clear();
                    epoch += 1;
                    rig.activate(epoch);
                    check_snapshots(&mut rig, &snapshots);
                    size = rig.report().size.bytes();
                    let mut found = rig.read(0, size as u32).expect("reads");
                    found.resize(SIZE as usize, 0);
                    model.resume(&found, at_least);
                }
            }
        }
    }
}

#[test]
fn a_read_starts_and_ends_anywhere() {
    let mut rig = Rig::new(1);
    rig.open(SIZE);
    rig.activate(1);
    let data: Vec<u8> = (0..6 * 4096u32).map(|at| (at / 7) as u8).collect();
    rig.write(4096 + 100, data.clone()).expect("writes");
    let mut whole = vec![0; SIZE as usize];
    whole[4196..4196 + data.len()].copy_from_slice(&data);
    for (offset, length) in [(0, 512), (4096, 100), (4000, 5000), (4196, 1), (9000, 20_000), (SIZE - 512, 512)] {
        assert_eq!(rig.read(offset, length).expect("reads"), whole[offset as usize..offset as usize + length as usize]);
    }
    assert!(rig.read(SIZE - 512, 1024).is_err());
    assert!(rig.write(SIZE - 512, vec![1; 1024]).is_err());
}

#[test]
fn extents_tell_what_is_mapped() {
    let mut rig = Rig::new(1);
    rig.open(SIZE);
    rig.activate(1);
    rig.write(3 * 4096, vec![1; 4 * 4096]).expect("writes");
    rig.zero(4 * 4096, 4096).expect("zeroes");
    let extents = rig
        .ask(|reply| Request::Extents { volume: VOLUME, moment: Moment::Now, offset: 512, length: SIZE - 512, reply })
        .expect("lists");
    let expected = [(3 * 4096 - 512, false), (4096, true), (4096, false), (2 * 4096, true), (SIZE - 7 * 4096, false)];
    assert_eq!(extents, expected.map(|(length, mapped)| MappedExtent { length, mapped }));
    assert_eq!(rig.report().mapped_blocks, 3);
}

/// Story: `qemu-img convert` of a gigabyte took 80 seconds, since each of its questions for one extent had the shard look
/// at everything behind it.
#[test]
fn extents_end_after_a_bounded_amount_of_data_and_go_on_when_asked_again() {
    let size = 256 << 20;
    let mut rig = Rig::new(1);
    rig.open(size);
    rig.activate(1);
    let data_bytes = 2 * EXTENT_BLOCKS_MAX as u64 * 4096;
    let begin = 128 << 20;
    for at in (begin..begin + data_bytes).step_by(1 << 20) {
        rig.write(at, vec![1; 1 << 20]).expect("writes");
    }
    let (mut at, mut told) = (0, Vec::new());
    while at < size {
        let extents = rig.ask(|reply| Request::Extents {
            volume: VOLUME,
            moment: Moment::Now,
            offset: at,
            length: size - at,
            reply,
        });
        let extents = extents.expect("lists");
        let bytes: u64 = extents.iter().map(|extent| extent.length).sum();
        let mapped: u64 = extents.iter().filter(|extent| extent.mapped).map(|extent| extent.length).sum();
        assert!(mapped <= data_bytes / 2, "{mapped} bytes of data in one answer");
        at += bytes;
        told.push(bytes);
    }
    assert_eq!(told, [begin + data_bytes / 2, data_bytes / 2, size - begin - data_bytes]);
}

#[test]
fn a_volume_larger_than_the_cache_comes_back_whole() {
    let mut rig = Rig::new(1);
    let pages = 2500;
    rig.open(u64::from(pages * PAGE_ENTRIES) * 4096);
    rig.activate(1);
    let blocks: Vec<u32> = (0..pages * 2).map(|number| number * 97 % pages * PAGE_ENTRIES + number % 7 * 31).collect();
    for (index, block) in blocks.iter().enumerate() {
        rig.write_block(*block, index as u8 | 1).expect("writes");
        let (found, max) = (rig.core().map.cache.bytes(), rig.core().map.cache.limit_bytes());
        assert!(found <= max + PAGE_MEMORY_MAX, "{found} bytes of {max}, beyond what waits for a checkpoint");
    }
    assert!(rig.core().map.cache.pages() < pages as usize, "all of them fit");
    for round in 0..2 {
        let mut newest = std::collections::BTreeMap::new();
        newest.extend(blocks.iter().enumerate().map(|(index, block)| (*block, index as u8 | 1)));
        for (block, fill) in newest {
            let found = rig.read(u64::from(block) * 4096, 4096).expect("reads");
            assert_eq!(found, [fill; 4096], "block {block} in round {round}");
        }
        rig.kill();
        rig.activate(2);
    }
}

#[test]
fn a_write_of_many_mebibytes_is_one_write() {
    let mut rig = Rig::new(1);
    rig.open(64 << 20);
    rig.activate(1);
    let data: Vec<u8> = (0..(20u32 << 20) + 512).map(|at| (at >> 10) as u8).collect();
    let lsn = rig.write(1024, data.clone()).expect("writes");
    assert_eq!(rig.report().head, lsn);
    assert_eq!(rig.flush().expect("flushes"), lsn);
    let chunks = rig
        .ask(|reply| Request::Read {
            volume: VOLUME,
            moment: Moment::Now,
            offset: 1024,
            length: data.len() as u32,
            reply,
        })
        .expect("reads");
    assert!(ReadPart::joined(chunks) == data);
}

#[test]
fn zeroes_over_what_was_never_written_cost_nothing() {
    let mut rig = Rig::new(1);
    rig.open(1 << 44);
    rig.activate(1);
    rig.write_block(5, 1).expect("writes");
    rig.zero(0, 1 << 44).expect("zeroes");
    assert_eq!(rig.report().mapped_blocks, 0);
    assert_eq!(rig.core().map.cache.pages(), 1);
    assert_eq!(rig.read(5 * 4096, 4096).expect("reads"), [0; 4096]);
    rig.write((1 << 44) - 512, vec![9; 512]).expect("writes the last sector");
    assert_eq!(rig.read((1 << 44) - 1024, 1024).expect("reads")[500..520], [[0; 12].as_slice(), &[9; 8]].concat());
}
