//! Damage in cold segments, where the cleaner has put what guests wrote long ago, at their ends too: what it does not reach is served, what it reaches
//! is found before anybody reads it, and repaired.

use client_lib::{BLOCK_SIZE, BlockIndex};

use super::clean::{CAPACITY_SEGMENTS, CHUNK, CHUNKS, Chunks, rig};
use super::rig::{Rig, VOLUME};
use crate::log::cold::COLD_SEQUENCE;
use crate::log::segment::SEGMENT_BYTES_MIN;
use crate::map::page::Version;
use crate::propagation::manifest::VersionedBlock;
use crate::shard::handle::{Request, StoreError};

const BLOCK: usize = BLOCK_SIZE as usize;
/// Blocks of a chunk.
const WIDTH: u32 = (CHUNK / BLOCK_SIZE as u64) as u32;

/// The block of the last record's header in the cold segment being filled, and its file, once the map points to a block of that record.
fn last_copies(rig: &mut Rig) -> Option<(String, usize)> {
    let target = rig.core().log.segments().into_iter().find(|info| info.cold && info.active)?;
    let file = format!("{:08}.seg", target.segment);
    let is_header = |bytes: &[u8]| bytes[..4] == *b"HELR" && bytes[8..16] == target.generation.to_le_bytes();
    let headers = rig.disk.find(is_header).into_iter().filter(|(found, _)| *found == file);
    let last = headers.map(|(_, block)| block).max()?;
    let is_needed = (0..CHUNKS as u32 * 16).any(|block| {
        let core = rig.core();
        let version = core.volumes[&VOLUME].state.view(block, &mut core.map).expect("reads");
        let place = version.and_then(|version| version.content.place());
        place.is_some_and(|place| place.segment == target.segment && place.block as usize > last)
    });
    is_needed.then_some((file, last))
}

/// Ends the process, in one of three ways.
fn end(rig: &mut Rig, ending: u64) {
    match ending {
        // The checkpoint alone says what is in use.
        0 => rig.ask(|reply| Request::Stop { reply }).expect("stops"),
        // The log behind it may say more.
        1 => rig.disk.kill(),
        _ => {
            rig.flush().expect("flushes");
            rig.disk.crash();
        }
    }
    rig.drop_core();
}

/// A bit of the header of the last record in the cold segment that is being filled, and after a restart the segment seemed to end before it:
/// the next copies went over the blocks there, though the map pointed to them, and reads of those failed wherever no replica had them.
#[test]
fn the_last_copies_of_a_cold_segment_are_not_written_over_when_their_header_is_lost() {
    for (seed, ending, loss) in [(29, 0, 0), (31, 0, 1), (37, 1, 0), (41, 1, 1), (43, 2, 0), (47, 2, 2)] {
        let (mut rig, mut chunks) = (rig(seed), Chunks::new(seed));
        (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
        let (file, header) = loop {
            chunks.overwrite(&mut rig, 16);
            if let Some(found) = last_copies(&mut rig) {
                break found;
            }
        };
        chunks.settle();
        end(&mut rig, ending);
        match loss {
            0 => rig.disk.flip(&file, header * BLOCK + 20),
            // Its version: no other program wrote it.
            1 => rig.disk.flip(&file, header * BLOCK + 4),
            _ => rig.disk.make_unreadable(&file, header),
        }
        rig.start();
        rig.activate(2);
        chunks.overwrite(&mut rig, 1500);
        chunks.settle();
        chunks.check(&mut rig, &format!("seed {seed}"));
        // Once more, with the damage in the middle of what was filled since, if it still is.
        rig.kill();
        rig.activate(3);
        chunks.overwrite(&mut rig, 500);
        chunks.settle();
        chunks.check(&mut rig, &format!("seed {seed}, again"));
    }
}

fn version(rig: &mut Rig, block: u32) -> Version {
    let core = rig.core();
    core.volumes[&VOLUME].state.view(block, &mut core.map).expect("reads").expect("mapped")
}

/// The headers of the records in cold segments, of this log and of earlier lives of its segments; the last of the segment being filled last.
fn headers(rig: &mut Rig) -> Vec<(String, usize)> {
    let target = rig.core().log.cold_end();
    let is_cold = |bytes: &[u8]| bytes[..4] == *b"HELR" && bytes[16..24] == COLD_SEQUENCE.to_le_bytes();
    let mut all = rig.disk.find(is_cold);
    if let Some(target) = target {
        let file = format!("{:08}.seg", target.segment);
        let last = all.iter().rposition(|(found, block)| *found == file && *block < target.block as usize);
        last.into_iter().for_each(|last| {
            let last = all.remove(last);
            all.push(last);
        });
    }
    all
}

/// Reads a block as a client does where another node has all that this one had: what is damaged is brought from there. Returns whether it was.
fn read_repairing(rig: &mut Rig, block: u32, fill: u8) -> bool {
    let lsn = version(rig, block).lsn;
    for attempt in 0..4 {
        match rig.read(u64::from(block) * u64::from(BLOCK_SIZE), BLOCK_SIZE) {
            Ok(found) => {
                assert!(found == [fill; BLOCK], "block {block} is {}, not {fill}", found[0]);
                return attempt > 0;
            }
            Err(StoreError::Corrupt { .. }) => {}
            Err(StoreError::Damaged { .. }) => {
                let data = Some(vec![fill; BLOCK].into());
                rig.receive(vec![VersionedBlock { block: BlockIndex(block), lsn, data }]).expect("is taken");
            }
            Err(error) => panic!("block {block}: {error}"),
        }
    }
    panic!("block {block} does not come");
}

/// A history of overwriting and cleaning in several lives. Between them, any headers of the cleaner's records are altered, also that of the last: all
/// is served as it was, without repairs. At the end blocks in the newest cold segment are altered, too.
fn outlives_damage(seed: u64) {
    let mut rig =
        Rig::in_memory(seed, |options| options.log.capacity_bytes = Some(CAPACITY_SEGMENTS * SEGMENT_BYTES_MIN));
    rig.open(CHUNKS * CHUNK);
    rig.activate(1);
    let mut chunks = Chunks::new(seed);
    (0..CHUNKS).for_each(|chunk| chunks.write(&mut rig, chunk));
    let mut lost = 0;
    for life in 2..6 {
        let count = 150 + chunks.random(300);
        chunks.overwrite(&mut rig, count);
        chunks.settle();
        let headers = headers(&mut rig);
        let ending = chunks.random(3);
        end(&mut rig, ending);
        for _ in 0..headers.len().min(3) {
            let at = match chunks.random(2) {
                0 => headers.len() - 1,
                _ => chunks.random(headers.len() as u64) as usize,
            };
            let (file, block) = &headers[at];
            match chunks.random(4) {
                0 => rig.disk.flip(file, block * BLOCK + 4 + chunks.random(2) as usize),
                1 => rig.disk.make_unreadable(file, *block),
                _ => rig.disk.flip(file, block * BLOCK + chunks.random(52) as usize),
            }
            lost += 1;
        }
        rig.start();
        rig.activate(life);
        chunks.check(&mut rig, &format!("seed {seed}, life {life}, {lost} headers lost"));
    }
    assert_eq!(rig.report().damaged_blocks, 0, "seed {seed}");

    // Of one segment, so that the others can be emptied: there would be no room for repairs else.
    let segments = rig.core().log.segments();
    let cold = segments.iter().filter(|info| info.cold).filter(|info| rig.core().map.usage.live(info.segment) > 0);
    let newest = cold.max_by_key(|info| info.generation).expect("the cleaner has copied").segment;
    let mut altered = 0;
    for _ in 0..2000 {
        let block = chunks.random(CHUNKS * u64::from(WIDTH)) as u32;
        let place = version(&mut rig, block).content.place().expect("data");
        if place.segment == newest && altered < 100 {
            let byte = chunks.random(BLOCK as u64) as usize;
            rig.disk.flip(&format!("{:08}.seg", place.segment), place.block as usize * BLOCK + byte);
            altered += 1;
        }
    }
    rig.kill();
    rig.activate(6);
    let mut repaired = 0;
    for block in 0..CHUNKS as u32 * WIDTH {
        let fill = chunks.values[(block / WIDTH) as usize][0];
        repaired += u64::from(read_repairing(&mut rig, block, fill));
    }
    assert!(repaired <= altered, "seed {seed}: {repaired} repaired of {altered}");
    let report = rig.report();
    assert_eq!((report.damaged_blocks, report.repaired_blocks), (0, repaired), "seed {seed}");
    rig.kill();
    rig.activate(7);
    chunks.check(&mut rig, &format!("seed {seed}, repaired"));
}

#[test]
fn damage_to_the_cleaners_records_costs_nothing_and_to_their_blocks_a_repair() {
    let seeds = std::env::var("HELIO_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    (1..=seeds).for_each(outlives_damage);
}
