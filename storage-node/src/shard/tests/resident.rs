//! Pictures of where a volume's blocks are.

use client_lib::Lsn;

use super::rig::{Rig, VOLUME, catch_up};
use crate::shard::handle::Request;
use crate::volume::resident::Resident;

const BLOCK: u64 = 4096;
/// Blocks of a page of the map.
const PAGE: u64 = 256;

fn parts(rig: &mut Rig, blocks: u32) -> Vec<Resident> {
    let mut found = Vec::new();
    loop {
        let first = found.len() as u64 * u64::from(blocks);
        let some = rig.ask(|reply| Request::ResidentParts { volume: VOLUME, first, blocks, parts: 3, reply });
        let some = some.expect("are counted");
        assert!(some.len() <= 3);
        if some.is_empty() {
            return found;
        }
        found.extend(some);
    }
}

fn counts(rig: &mut Rig, blocks: u32) -> Vec<(u64, u64)> {
    let found = parts(rig, blocks);
    assert!(found.iter().all(|part| !part.is_guess), "{found:?}");
    found.iter().map(|part| (part.local, part.stale)).collect()
}

#[test]
fn what_is_here_and_what_is_known_is_counted_per_part_and_moves_from_one_to_the_other() {
    let (mut owner, mut replica) = (Rig::new(1), Rig::new(2));
    for rig in [&mut owner, &mut replica] {
        rig.open((2 * PAGE + 1) * BLOCK);
    }
    owner.activate(1);
    for block in [0, 1, 5, 300, 512] {
        owner.write_block(block, 7).expect("is written");
    }
    owner.zero(5 * BLOCK, BLOCK).expect("is zeroed");
    owner.flush().expect("is synced");
    let expected = [(2, 0), (0, 0), (1, 0), (0, 0), (1, 0)];
    assert_eq!(counts(&mut owner, 128), expected, "the last part is one block");
    let (manifest, _) = owner.seal(Lsn::ZERO, None);
    replica.apply_manifest(&manifest, false, true).expect("is taken note of");
    assert_eq!(counts(&mut replica, 128), expected.map(|(here, _)| (0, here)), "it knows all and has nothing");
    assert_eq!(counts(&mut replica, u32::MAX), [(0, 4)]);
    catch_up(&mut owner, &mut replica);
    assert_eq!(counts(&mut replica, 128), expected);
    for rig in [&mut owner, &mut replica] {
        rig.checkpoint().expect("is written");
        rig.restart();
        assert_eq!(counts(rig, 128), expected, "also from pages");
    }
}

#[test]
fn of_a_large_part_two_pages_are_looked_at_and_the_others_are_taken_to_be_like_them() {
    let mut owner = Rig::new(1);
    owner.open(64 * PAGE * BLOCK);
    owner.activate(1);
    // Ten pages of 40 blocks each, and nothing in the others.
    for page in 0..10 {
        owner.write(page * 3 * PAGE * BLOCK, vec![9; 40 * BLOCK as usize]).expect("is written");
    }
    owner.checkpoint().expect("is written");
    let found = parts(&mut owner, 64 * PAGE as u32);
    assert_eq!(found.len(), 1);
    assert!(found[0].is_guess || found[0].local == 400, "{found:?}");
    assert_eq!((found[0].local, found[0].stale), (400, 0));
}
