//! A disk that lies: what it alters, loses or cannot read is found before anybody reads it, named, and repaired.

use client_lib::{BlockIndex, Epoch, Lsn};

use super::rig::{Rig, VOLUME};
use crate::io::sim::Fault;
use crate::log::LogError;
use crate::map::page::{Content, Place};
use crate::propagation::manifest::BlockRun;
use crate::shard::StartError;
use crate::shard::handle::{DamagedBlocks, Request, StoreError};
use crate::volume::Moment;
use crate::volume::layers::Wanted;

pub(super) const BLOCKS: u32 = 12;
const SIZE: u64 = BLOCKS as u64 * 4096;

fn place(rig: &mut Rig, block: u32) -> Place {
    place_in(rig, Moment::Now, block)
}

pub(super) fn place_in(rig: &mut Rig, moment: Moment, block: u32) -> Place {
    let core = rig.core();
    let versions = core.volumes[&VOLUME].state.versions(moment, block, block, &mut core.map).expect("reads");
    let version = versions[0].1.expect("mapped");
    let Content::Local { place, .. } = version.content else { panic!("{version:?}") };
    place
}

pub(super) fn file_of(place: Place) -> String {
    format!("{:08}.seg", place.segment)
}

pub(super) fn flip(rig: &mut Rig, block: u32) {
    flip_in(rig, Moment::Now, block);
}

pub(super) fn flip_in(rig: &mut Rig, moment: Moment, block: u32) {
    let place = place_in(rig, moment, block);
    rig.disk.flip(&file_of(place), place.block as usize * 4096 + 77);
}

fn run(start: u32, count: u32) -> BlockRun {
    BlockRun { start: BlockIndex(start), count }
}

pub(super) fn read_block(rig: &mut Rig, block: u32) -> Result<Vec<u8>, StoreError> {
    rig.read(u64::from(block) * 4096, 4096)
}

/// What the replica has becomes what the owner has.
fn catch_up(owner: &mut Rig, replica: &mut Rig) {
    let report = replica.report();
    let (manifest, delta) = owner.seal(report.known, Some(report.watermark));
    replica.apply_manifest(&manifest, true, true).expect("applies");
    let delta = delta.expect("was asked for");
    let missing = replica.missing(Wanted::Sealed, 10_000);
    if !missing.is_empty() {
        let blocks = owner.read_sealed(delta.pin, missing).expect("reads");
        replica.receive(blocks).expect("receives");
    }
    assert_eq!(replica.apply_sealed(delta.to), delta.to);
    owner.ask(|reply| Request::Release { volume: VOLUME, pin: delta.pin, reply }).expect("releases");
}

/// An owner with every block written, and a replica with the same.
fn pair(seed: u64) -> (Rig, Rig) {
    let (mut owner, mut replica) = (Rig::in_memory(seed, |_| {}), Rig::in_memory(seed + 1, |_| {}));
    owner.open(SIZE);
    replica.open(SIZE);
    owner.activate(1);
    for block in 0..BLOCKS {
        owner.write_block(block, block as u8 + 1).expect("writes");
    }
    owner.flush().expect("flushes");
    catch_up(&mut owner, &mut replica);
    (owner, replica)
}

/// Reads as a client of the volume does: what is damaged is fetched from `replica`.
pub(super) fn read_repairing(owner: &mut Rig, replica: &mut Rig, block: u32) -> Result<Vec<u8>, StoreError> {
    for _ in 0..4 {
        match read_block(owner, block) {
            Err(StoreError::Corrupt { .. }) => {}
            Err(StoreError::Damaged { runs, .. }) => {
                let blocks = replica.read_newest(runs)?;
                owner.receive(blocks)?;
            }
            answer => return answer,
        }
    }
    panic!("block {block} does not come");
}

#[test]
fn a_damaged_block_is_repaired_from_a_replica_and_stays_so() {
    let (mut owner, mut replica) = pair(1);
    let before = place(&mut owner, 5);
    flip(&mut owner, 5);
    assert!(matches!(read_block(&mut owner, 5), Err(StoreError::Corrupt { block: BlockIndex(5), .. })));
    assert_eq!(owner.report().damaged_blocks, 1);
    let refused = owner.read(0, SIZE as u32);
    assert_eq!(refused, Err(StoreError::Damaged { volume: VOLUME, runs: vec![run(5, 1)] }));
    assert_eq!(
        owner.ask(|reply| Request::Damaged { reply }).expect("tells"),
        [DamagedBlocks { volume: VOLUME, moment: Moment::Now, runs: vec![run(5, 1)] }]
    );
    assert_eq!(read_block(&mut owner, 4).expect("its neighbour is served"), [5; 4096]);
    assert_eq!(read_repairing(&mut owner, &mut replica, 5).expect("is repaired"), [6; 4096]);
    let report = owner.report();
    assert_eq!((report.damaged_blocks, report.repaired_blocks), (0, 1));
    assert_ne!(place(&mut owner, 5), before);
    owner.flush().expect("flushes");
    owner.crash();
    owner.activate(2);
    assert_eq!(read_block(&mut owner, 5).expect("reads"), [6; 4096]);
}

#[test]
fn a_part_of_a_damaged_block_is_written_after_the_repair() {
    let (mut owner, mut replica) = pair(3);
    flip(&mut owner, 2);
    assert!(matches!(owner.write(2 * 4096 + 512, vec![9; 512]), Err(StoreError::Corrupt { .. })));
    assert!(matches!(owner.write(2 * 4096 + 512, vec![9; 512]), Err(StoreError::Damaged { .. })));
    let blocks = replica.read_newest(vec![run(2, 1)]).expect("reads");
    assert_eq!(owner.receive(blocks), Ok(1));
    owner.write(2 * 4096 + 512, vec![9; 512]).expect("writes");
    assert_eq!(read_block(&mut owner, 2).expect("reads"), [vec![3; 512], vec![9; 512], vec![3; 3072]].concat());
}

#[test]
fn of_neighbours_read_together_only_the_unreadable_one_is_damaged() {
    let (mut owner, mut replica) = pair(5);
    // One write, so that they lie side by side and are read at once.
    owner.write(0, vec![7; 6 * 4096]).expect("writes");
    owner.flush().expect("flushes");
    catch_up(&mut owner, &mut replica);
    let place = place(&mut owner, 3);
    owner.disk.make_unreadable(&file_of(place), place.block as usize);
    let refused = owner.read(0, 6 * 4096);
    assert_eq!(refused, Err(StoreError::Damaged { volume: VOLUME, runs: vec![run(3, 1)] }));
    for block in [0, 1, 2, 4, 5] {
        assert_eq!(read_block(&mut owner, block).expect("is served"), [7; 4096], "block {block}");
    }
    assert_eq!(read_repairing(&mut owner, &mut replica, 3).expect("is repaired"), [7; 4096]);
    assert_eq!(owner.read(0, 6 * 4096).expect("reads"), [7; 6 * 4096]);
}

/// A stopped owner, its replica, and where block 4 lies: in a segment that the log has left.
pub(super) fn stopped() -> (Rig, Rig, Place) {
    let (mut owner, replica) = pair(9);
    owner.restart();
    owner.activate(2);
    let place = place(&mut owner, 4);
    while place_of_new(&mut owner).segment == place.segment {}
    // With a checkpoint, so that nothing is replayed from there.
    owner.ask(|reply| Request::Stop { reply }).expect("stops");
    owner.drop_core();
    (owner, replica, place)
}

/// The process ended with the first look at a block in a segment whose file was gone, and again after each start: all volumes of the node were
/// gone with it.
#[test]
fn of_a_segment_whose_file_is_gone_blocks_are_damaged_and_repaired() {
    let (mut owner, mut replica, place) = stopped();
    owner.disk.lose(&file_of(place));
    owner.start();
    owner.activate(3);
    let refused = read_block(&mut owner, 4).expect_err("is gone");
    assert!(matches!(refused, StoreError::Corrupt { .. } | StoreError::Damaged { .. }), "{refused}");
    assert_eq!(read_repairing(&mut owner, &mut replica, 4).expect("is repaired"), [5; 4096]);
}

/// A segment file that the disk did not open kept the node from starting, whatever lay in it.
#[test]
fn of_a_segment_that_cannot_be_opened_blocks_are_damaged_and_repaired() {
    let (mut owner, mut replica, place) = stopped();
    owner.disk.shut(&file_of(place), Some(rustix::io::Errno::IO));
    owner.start();
    owner.activate(3);
    // Nobody has to read them for that.
    let mut turns = 0;
    while owner.report().damaged_blocks < u64::from(BLOCKS) - 1 {
        turns += 1;
        assert!(turns < 10_000, "{} are found", owner.report().damaged_blocks);
    }
    let refused = read_block(&mut owner, 4).expect_err("is gone");
    assert!(matches!(refused, StoreError::Corrupt { .. } | StoreError::Damaged { .. }), "{refused}");
    for block in 1..BLOCKS {
        assert_eq!(read_repairing(&mut owner, &mut replica, block).expect("is repaired"), [block as u8 + 1; 4096]);
    }
    assert_eq!(owner.core().map.usage.live(place.segment), 0);
    // Nothing needs it any more: it goes, and is never used again.
    owner.checkpoint().expect("is written");
    owner.checkpoint().expect("is written");
    assert!(owner.core().log.segments().iter().all(|info| info.segment != place.segment));
    owner.restart();
    owner.activate(4);
    for block in 1..BLOCKS {
        assert_eq!(read_block(&mut owner, block).expect("reads"), [block as u8 + 1; 4096]);
    }
}

/// Where the log goes on in a file that the disk does not open, nobody can tell what was acked: the node says which file it is.
#[test]
fn a_log_that_ends_in_a_segment_that_cannot_be_opened_is_not_opened() {
    let (mut owner, _, place) = stopped();
    let newest = owner.disk.written().into_iter().map(|(file, _)| file).max().expect("there are some");
    assert_ne!(newest, file_of(place));
    owner.disk.shut(&newest, Some(rustix::io::Errno::IO));
    let Err(StartError::Log { source: source @ LogError::Unreadable { .. }, directory }) = owner.try_start() else {
        panic!("starts, or for another reason not")
    };
    let told = StartError::Log { source, directory }.to_string();
    assert!(told.contains(&newest) && told.contains("docs/damage.md"), "{told}");
}

/// The node did not start when the first blocks of a segment could not be read, wherever it lay.
#[test]
fn of_a_segment_whose_beginning_is_gone_the_damaged_blocks_are_repaired_and_the_others_served() {
    let (mut owner, mut replica, place) = stopped();
    // With the headers of all records that might tell what its own said.
    (0..=place.block as usize).for_each(|block| owner.disk.make_unreadable(&file_of(place), block));
    owner.start();
    owner.activate(3);
    let refused = read_block(&mut owner, 4).expect_err("cannot be read");
    assert!(matches!(refused, StoreError::Corrupt { .. } | StoreError::Damaged { .. }), "{refused}");
    assert_eq!(owner.report().damaged_blocks, 1);
    assert_eq!(read_block(&mut owner, BLOCKS - 1).expect("lies behind it"), [BLOCKS as u8; 4096]);
    assert_eq!(read_repairing(&mut owner, &mut replica, 4).expect("is repaired"), [5; 4096]);
}

/// Where a block lies that is written now.
fn place_of_new(owner: &mut Rig) -> Place {
    owner.write(0, vec![3; 4096]).expect("writes");
    place(owner, 0)
}

#[test]
fn a_replica_does_not_pass_damage_on_and_is_repaired_by_the_owner() {
    let (mut owner, mut replica) = pair(7);
    flip(&mut replica, 4);
    assert!(matches!(replica.read_newest(vec![run(0, BLOCKS)]), Err(StoreError::Corrupt { .. })));
    let refused = replica.read_newest(vec![run(0, BLOCKS)]);
    assert_eq!(refused, Err(StoreError::Damaged { volume: VOLUME, runs: vec![run(4, 1)] }));
    let blocks = owner.read_newest(vec![run(4, 1)]).expect("reads");
    assert_eq!(replica.receive(blocks), Ok(1));
    assert_eq!(replica.applied_prefix(), (1..=BLOCKS as u8).collect::<Vec<_>>());
    assert_eq!(replica.report().repaired_blocks, 1);
}

#[test]
fn another_version_or_other_bytes_repair_nothing() {
    let (mut owner, mut replica) = pair(9);
    flip(&mut owner, 1);
    read_block(&mut owner, 1).expect_err("is damaged");
    let mut blocks = replica.read_newest(vec![run(1, 1)]).expect("reads");
    let lsn = blocks[0].lsn;
    blocks[0].lsn = Lsn::new(Epoch(1), lsn.sequence + 100);
    assert_eq!(owner.receive(blocks.clone()), Ok(0));
    blocks[0].lsn = lsn;
    blocks[0].data = Some(vec![0xee; 4096].into());
    assert!(matches!(owner.receive(blocks), Err(StoreError::Corrupt { .. })));
    assert!(matches!(read_block(&mut owner, 1), Err(StoreError::Damaged { .. })));
    owner.write_block(1, 0x77).expect("a newer version heals it");
    assert_eq!(read_block(&mut owner, 1).expect("reads"), [0x77; 4096]);
    let report = owner.report();
    assert_eq!((report.damaged_blocks, report.repaired_blocks), (0, 0));
}

#[test]
fn a_delta_that_is_being_sent_is_read_from_the_repaired_copy() {
    let (mut owner, mut replica) = pair(11);
    owner.write_block(0, 0x55).expect("writes");
    let report = replica.report();
    let (_, delta) = owner.seal(report.known, Some(Lsn::ZERO));
    let pin = delta.expect("was asked for").pin;
    flip(&mut owner, 6);
    assert!(matches!(owner.read_sealed(pin, vec![run(0, BLOCKS)]), Err(StoreError::Corrupt { .. })));
    let refused = owner.read_sealed(pin, vec![run(0, BLOCKS)]);
    assert_eq!(refused, Err(StoreError::Damaged { volume: VOLUME, runs: vec![run(6, 1)] }));
    owner.receive(replica.read_newest(vec![run(6, 1)]).expect("reads")).expect("receives");
    assert_eq!(owner.read_sealed(pin, vec![run(0, BLOCKS)]).expect("reads").len(), BLOCKS as usize);
}

/// One fault of a kind in a history of writes, then every block is read, before and after a restart.
fn is_found_and_repaired(seed: u64) {
    let (mut owner, mut replica) = pair(seed * 2);
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut newest: Vec<u8> = (1..=BLOCKS as u8).collect();
    let fault = match seed % 4 {
        0 => None,
        1 => Some(Fault::Lost),
        2 => Some(Fault::Torn),
        _ => Some(Fault::Misdirected),
    };
    if let Some(fault) = fault {
        owner.disk.inject(fault, next(8));
    }
    let mut fill = BLOCKS as u8;
    // More writes than it takes to meet the fault, so that the newest records have a witness.
    for _ in 0..16 {
        fill += 1;
        let (first, count) = (next(u64::from(BLOCKS)), 1 + next(3));
        let count = count.min(u64::from(BLOCKS) - first);
        owner.write(first * 4096, vec![fill; count as usize * 4096]).expect("writes");
        newest[first as usize..(first + count) as usize].fill(fill);
        owner.flush().expect("flushes");
        if fault.is_none() && next(4) == 0 {
            // The replica has what was just written, unless the owner cannot even read it.
            catch_up(&mut owner, &mut replica);
        }
    }
    assert_eq!(owner.disk.faults_left(), 0, "seed {seed}");
    if fault.is_none() {
        catch_up(&mut owner, &mut replica);
        for _ in 0..3 {
            flip(&mut owner, next(u64::from(BLOCKS)) as u32);
        }
    }
    for restarts in 0..2 {
        for block in 0..BLOCKS {
            let found = if fault.is_none() {
                Ok(read_repairing(&mut owner, &mut replica, block).expect("a replica holds it"))
            } else {
                read_block(&mut owner, block)
            };
            match found {
                Ok(found) => assert!(found == [newest[block as usize]; 4096], "seed {seed}, {fault:?}: block {block}"),
                Err(StoreError::Corrupt { .. } | StoreError::Damaged { .. }) => {}
                Err(error) => panic!("seed {seed}, {fault:?}: block {block}: {error}"),
            }
        }
        if restarts > 0 {
            break;
        }
        owner.flush().expect("flushes");
        owner.disk.kill();
        owner.drop_core();
        match owner.try_start() {
            Ok(()) => drop(owner.activate(2)),
            // Nobody reads from a log that is damaged: that is found, too.
            Err(StartError::Log { source: LogError::Damaged { .. } | LogError::Corrupt { .. }, .. })
                if fault.is_some() =>
            {
                return;
            }
            Err(error) => panic!("seed {seed}, {fault:?}: {error}"),
        }
    }
}

#[test]
fn thousands_of_flips_and_of_lost_torn_and_misdirected_writes_are_found() {
    let seeds = std::env::var("HELIO_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(4000);
    (1..=seeds).for_each(is_found_and_repaired);
}
