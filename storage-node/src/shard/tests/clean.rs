//! Segments are emptied under guests' writes: nothing is lost, whenever the process or the power goes.

use client_lib::BLOCK_SIZE;

use super::damage::flip;
use super::rig::{Rig, VOLUME, catch_up};
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::shard::handle::{DamagedBlocks, FreezeWhen, Request, StoreError};

/// What one write covers: 16 blocks.
pub(super) const CHUNK: u64 = 16 * BLOCK_SIZE as u64;
pub(super) const CAPACITY_SEGMENTS: u64 = 12;
/// About 60 % of the capacity.
pub(super) const CHUNKS: u64 = CAPACITY_SEGMENTS * SEGMENT_BYTES_MIN * 60 / 100 / CHUNK;

pub(super) fn rig(seed: u64) -> Rig {
    let mut rig = Rig::with(seed, |options| options.log.capacity_bytes = Some(CAPACITY_SEGMENTS * SEGMENT_BYTES_MIN));
    rig.open(CHUNKS * CHUNK);
    rig.activate(1);
    rig
}

/// What each chunk may read as: its values since the last flush, the newest last.
pub(super) struct Chunks {
    pub(super) values: Vec<Vec<u8>>,
    random: u64,
}

impl Chunks {
    pub(super) fn new(seed: u64) -> Chunks {
        Chunks { values: vec![vec![0]; CHUNKS as usize], random: seed | 1 }
    }

    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    pub(super) fn write(&mut self, rig: &mut Rig, chunk: u64) {
        let fill = 1 + self.random(250) as u8;
        rig.write(chunk * CHUNK, vec![fill; CHUNK as usize])
            .unwrap_or_else(|error| panic!("chunk {chunk}: {error}, with room for what is live"));
        self.values[chunk as usize].push(fill);
    }

    /// Writes `count` of them, drawn at random.
    pub(super) fn overwrite(&mut self, rig: &mut Rig, count: u64) {
        for _ in 0..count {
            let chunk = self.random(CHUNKS);
            self.write(rig, chunk);
        }
    }

    /// What was not flushed may not be lost any more.
    pub(super) fn settle(&mut self) {
        self.values.iter_mut().for_each(|values| drop(values.drain(..values.len() - 1)));
    }

    /// Every chunk reads as one of its values; from now on that one.
    pub(super) fn check(&mut self, rig: &mut Rig, when: &str) {
        for (chunk, values) in self.values.iter_mut().enumerate() {
            let found = rig.read(chunk as u64 * CHUNK, CHUNK as u32).expect("reads");
            let blocks: Vec<u8> = found.chunks(BLOCK_SIZE as usize).map(|block| block[0]).collect();
            assert!(found.iter().all(|byte| *byte == found[0]), "{when}: chunk {chunk} is a mix: {blocks:?}");
            assert!(values.contains(&found[0]), "{when}: chunk {chunk} is {}, not of {values:?}", found[0]);
            *values = vec![found[0]];
        }
    }
}

#[test]
fn cleaning_loses_nothing_whenever_the_process_or_the_power_goes() {
    for seed in 1..=6 {
        let (mut rig, mut chunks) = (rig(seed), Chunks::new(seed));
        (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
        for life in 2..8 {
            let count = 200 + chunks.random(400);
            chunks.overwrite(&mut rig, count);
            match life % 3 {
                0 => {
                    chunks.settle();
                    rig.kill();
                }
                1 => rig.crash(),
                _ => {
                    rig.flush().expect("flushes");
                    chunks.settle();
                    // Some that may be lost, and a cut in the middle of a pass.
                    (0..30).for_each(|chunk| chunks.write(&mut rig, chunk));
                    rig.crash();
                }
            }
            rig.activate(life);
            chunks.check(&mut rig, &format!("seed {seed}, life {life}"));
        }
        assert!(rig.core().log.segments().len() as u64 <= CAPACITY_SEGMENTS);
        assert_eq!(rig.report().mapped_blocks, CHUNKS * CHUNK / u64::from(BLOCK_SIZE));
    }
}

/// Copies went to the next segment as soon as a full batch did not fit any more: an eighth of each small segment stayed empty, and the store was
/// that much fuller.
#[test]
fn segments_of_copies_are_filled_to_their_ends() {
    let (mut rig, mut chunks) = (rig(29), Chunks::new(29));
    (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
    let mut begun = std::collections::BTreeSet::new();
    let active = loop {
        let chunk = chunks.random(CHUNKS);
        chunks.write(&mut rig, chunk);
        let segments = rig.core().log.segments();
        let Some(active) = segments.into_iter().find(|info| info.cold && info.active) else { continue };
        begun.insert(active.generation);
        if begun.len() > 5 {
            break active;
        }
    };
    let traffic = rig.core().log.traffic();
    let in_active = u64::from(active.blocks) - rig.core().log.copy_room(&[]) as u64;
    let in_full = traffic.copies + traffic.copy_headers - in_active;
    let full = (begun.len() - 1) as u64 * u64::from(active.blocks);
    assert!(in_full <= full && full - in_full <= 20 * 5, "{in_full} of {full} blocks");
    chunks.settle();
    chunks.check(&mut rig, "after cleaning");
}

/// A record header that cannot be read hides the records behind it from the scan; their blocks are live all the same.
#[test]
fn what_damaged_records_hide_is_found_through_the_maps() {
    let (mut rig, mut chunks) = (rig(9), Chunks::new(9));
    (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
    rig.checkpoint().expect("is written");
    let segments = rig.core().log.segments();
    let victims: Vec<_> = segments.iter().filter(|info| info.generation > 0 && !info.active).collect();
    for victim in &victims {
        // The second record: the first is the segment's header block, 16 blocks and a header.
        let name = format!("{:08}.seg", victim.segment);
        rig.disk.flip(&name, (1 + 17) * BLOCK_SIZE as usize + 20);
    }
    chunks.overwrite(&mut rig, 3000);
    let left = rig.core().log.segments();
    let is_as_before = |info: &&crate::log::SegmentInfo| {
        victims.iter().any(|it| (it.segment, it.generation) == (info.segment, info.generation))
    };
    assert!(left.iter().filter(is_as_before).count() < victims.len() / 2, "damaged segments were emptied");
    chunks.settle();
    chunks.check(&mut rig, "after cleaning");
}

/// A segment with a damaged block cannot be emptied, and what was copied out of it takes room. When no segment was free for
/// the next copy, the cleaner chose one and dropped it again, for ever: writes were neither carried out nor refused.
#[test]
fn a_store_that_damage_keeps_full_refuses_writes_and_goes_on_after_a_trim() {
    let (mut rig, mut chunks) = (rig(19), Chunks::new(19));
    (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
    rig.checkpoint().expect("is written");
    for block in (0..CHUNKS as u32).map(|chunk| chunk * 16).step_by(64) {
        let core = rig.core();
        let version = core.volumes[&VOLUME].state.view(block, &mut core.map).expect("reads").expect("mapped");
        let place = version.content.place().expect("data");
        rig.disk.flip(&format!("{:08}.seg", place.segment), place.block as usize * BLOCK_SIZE as usize + 100);
    }
    let mut refused = 0;
    for _ in 0..2000 {
        // Behind the damaged blocks, so that they stay.
        let chunk = chunks.random(CHUNKS / 4) * 4 + 1 + chunks.random(3);
        let outcome = rig.write(chunk * CHUNK, vec![7; CHUNK as usize]);
        assert!(matches!(outcome, Ok(_) | Err(StoreError::OutOfSpace)), "{outcome:?}");
        refused += u32::from(outcome.is_err());
    }
    assert!(refused > 0, "every segment holds damage");
    assert_eq!(rig.core().log.poisoned(), None);
    rig.zero(0, CHUNKS * CHUNK).expect("is trimmed");
    for chunk in 0..CHUNKS / 2 {
        rig.write(chunk * CHUNK, vec![9; CHUNK as usize]).expect("waits for the space and has it");
    }
    assert_eq!(rig.read(0, 4096).expect("reads"), [9; 4096]);
}

/// What was damaged in a full store could not be repaired: a repair was refused like any data, and as long as the damage was there, its segments
/// could not be emptied. Nor were they once a newer version had healed the damage, before the next start.
#[test]
fn a_store_that_damage_keeps_full_is_repaired_from_another_holder_and_cleaning_goes_on() {
    let mut rig = Rig::in_memory(31, |options| {
        options.log.capacity_bytes = Some(CAPACITY_SEGMENTS * SEGMENT_BYTES_MIN);
    });
    let (mut replica, mut chunks) = (Rig::in_memory(32, |_| {}), Chunks::new(31));
    for rig in [&mut rig, &mut replica] {
        rig.open(CHUNKS * CHUNK);
    }
    rig.activate(1);
    for chunk in 0..CHUNKS {
        chunks.write(&mut rig, chunk);
    }
    rig.flush().expect("flushes");
    catch_up(&mut rig, &mut replica);
    rig.checkpoint().expect("is written");
    let damaged: Vec<u32> = (0..CHUNKS as u32).step_by(4).map(|chunk| chunk * 16).collect();
    damaged.iter().for_each(|block| flip(&mut rig, *block));
    // Behind the damaged blocks, so that they stay.
    let others = |chunks: &mut Chunks| chunks.random(CHUNKS / 4) * 4 + 1 + chunks.random(3);
    let refused = (0..3000).any(|_| {
        let chunk = others(&mut chunks);
        let outcome = rig.write(chunk * CHUNK, vec![251; CHUNK as usize]);
        assert!(matches!(outcome, Ok(_) | Err(StoreError::OutOfSpace)), "{outcome:?}");
        if outcome.is_ok() {
            chunks.values[chunk as usize].push(251);
        }
        outcome.is_err()
    });
    assert!(refused, "every segment holds damage");
    let emptied = rig.core().cleaner.emptied();

    // As the task does that looks after damage.
    let mut repaired = 0;
    for _ in 0..20 {
        for DamagedBlocks { moment, runs, .. } in rig.ask(|reply| Request::Damaged { reply }).expect("tells") {
            for run in runs {
                let blocks = replica.read_versions(moment, vec![run]).expect("holds them");
                match rig.receive(blocks) {
                    Ok(count) => repaired += count,
                    Err(error) => assert_eq!(error, StoreError::OutOfSpace),
                }
            }
        }
    }
    assert_eq!((rig.report().damaged_blocks, rig.core().log.poisoned()), (0, None));
    assert!(repaired > 100, "{repaired} blocks");
    for _ in 0..2000 {
        let chunk = others(&mut chunks);
        chunks.write(&mut rig, chunk);
        // What the cleaner has not met yet is found now.
        for DamagedBlocks { moment, runs, .. } in rig.ask(|reply| Request::Damaged { reply }).expect("tells") {
            rig.receive(replica.read_versions(moment, runs).expect("holds them")).expect("is repaired");
        }
    }
    assert!(rig.core().cleaner.emptied() > emptied + 4, "segments are emptied again");
    for block in damaged {
        let expected = chunks.values[block as usize / 16].clone();
        let read = (0..3).find_map(|_| match rig.read(u64::from(block) * 4096, 4096) {
            Ok(read) => Some(read),
            Err(StoreError::Damaged { runs, .. }) => {
                rig.receive(replica.read_newest(runs).expect("holds them")).expect("is repaired");
                None
            }
            Err(StoreError::Corrupt { .. }) => None,
            Err(error) => panic!("block {block}: {error}"),
        });
        assert!(expected.contains(&read.expect("is read")[0]), "block {block}");
    }
}

#[test]
fn a_store_that_is_truly_full_refuses_writes_and_takes_them_again_after_a_trim() {
    let mut rig = Rig::with(11, |options| options.log.capacity_bytes = Some(CAPACITY_SEGMENTS * SEGMENT_BYTES_MIN));
    rig.open(2 * CAPACITY_SEGMENTS * SEGMENT_BYTES_MIN);
    rig.activate(1);
    let mut written = 0;
    let refused = loop {
        match rig.write(written * CHUNK, vec![7; CHUNK as usize]) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, StoreError::OutOfSpace);
    let share = written * CHUNK * 100 / (CAPACITY_SEGMENTS * SEGMENT_BYTES_MIN);
    assert!(share >= 70, "{share} % of the capacity hold data");
    rig.flush().expect("flushes");
    assert_eq!(rig.write(0, vec![8; CHUNK as usize]), Err(StoreError::OutOfSpace), "an overwrite needs space first");
    rig.zero(0, written / 2 * CHUNK).expect("is trimmed");
    for chunk in 0..written / 3 {
        rig.write(chunk * CHUNK, vec![9; CHUNK as usize]).expect("waits for the space and has it");
    }
    rig.ask(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply }).expect("freezes");
    assert_eq!(rig.read((written - 1) * CHUNK, 4096).expect("reads"), [7; 4096]);
    assert_eq!(rig.read(0, 4096).expect("reads"), [9; 4096]);
}

#[test]
fn a_shard_stops_in_the_middle_of_making_space() {
    let (mut rig, mut chunks) = (rig(13), Chunks::new(13));
    (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
    // Overwrites until some wait for the cleaner.
    let mut waiting = Vec::new();
    while !rig.core().log.is_starved() {
        let chunk = chunks.random(CHUNKS);
        waiting.push(rig.send_write(chunk * CHUNK, vec![3; CHUNK as usize], false));
        rig.turn();
        assert!(waiting.len() < 100_000, "never short of space");
    }
    rig.restart();
    rig.activate(2);
    assert!(waiting.into_iter().all(|mut answer| answer.try_recv().is_ok()), "every write was answered");
    rig.write(0, vec![5; CHUNK as usize]).expect("writes again");
}

/// The cold segment that was being filled is filled further after a restart, behind its last record. A record in its middle
/// whose header was damaged once seemed to be the end: copies then overwrote live blocks behind it.
#[test]
fn a_cold_segment_with_a_damaged_record_is_filled_further_only_behind_what_is_in_use() {
    let (mut rig, mut chunks) = (rig(17), Chunks::new(17));
    (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
    let second_record = loop {
        let chunk = chunks.random(CHUNKS);
        chunks.write(&mut rig, chunk);
        let segments = rig.core().log.segments();
        let Some(target) = segments.iter().find(|info| info.cold && info.active) else { continue };
        // The header block, then records of a block and 256 copies each.
        if rig.core().map.usage.live(target.segment) > 1000 {
            break (format!("{:08}.seg", target.segment), (1 + 257) * BLOCK_SIZE as usize + 20);
        }
    };
    rig.disk.flip(&second_record.0, second_record.1);
    chunks.settle();
    rig.kill();
    rig.activate(2);
    chunks.overwrite(&mut rig, 1500);
    chunks.settle();
    chunks.check(&mut rig, "after more cleaning");
}

/// The header of any segment that was damaged, or could not be read, kept the shard from being opened, or left a segment of which nobody knew
/// when it was written.
#[test]
fn a_lost_header_of_any_segment_costs_nothing() {
    let (mut rig, mut chunks) = (rig(23), Chunks::new(23));
    (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
    loop {
        let chunk = chunks.random(CHUNKS);
        chunks.write(&mut rig, chunk);
        let segments = rig.core().log.segments();
        if segments.iter().any(|info| info.cold && info.active) {
            break;
        }
    }
    let files = |rig: &mut Rig| -> Vec<(String, u64)> {
        let used = rig.core().log.segments().into_iter().filter(|info| !info.free && info.generation > 0);
        used.map(|info| (format!("{:08}.seg", info.segment), info.generation)).collect()
    };
    let mut epoch = 1;
    for loss in 0..2 {
        for (file, generation) in files(&mut rig) {
            chunks.settle();
            rig.flush().expect("flushes");
            match loss {
                0 => rig.disk.flip(&file, 16),
                _ => rig.disk.make_unreadable(&file, 0),
            }
            rig.kill();
            epoch += 1;
            rig.activate(epoch);
            assert!(files(&mut rig).contains(&(file.clone(), generation)), "{file} is what it was");
            let chunk = chunks.random(CHUNKS);
            chunks.write(&mut rig, chunk);
            chunks.settle();
            chunks.check(&mut rig, &file);
        }
    }
}
