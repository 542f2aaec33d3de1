//! Writes from afar are carried out once, whatever happens between two attempts.

use client_lib::{Epoch, Lsn};

use super::rig::{Rig, VOLUME};
use crate::shard::handle::{FreezeWhen, Request, StoreError};
use crate::volume::ledger::{Author, LedgerNews, Origin, Writer};

const SIZE: u64 = 64 * 4096;

impl Rig {
    fn write_from(&mut self, number: u64, block: u32, fill: u8, fua: bool) -> Result<Lsn, StoreError> {
        let author = Author::Afar(writer(number));
        let (offset, data) = (u64::from(block) * 4096, vec![fill; 4096].into());
        self.ask(|reply| Request::Write { volume: VOLUME, offset, data, fua, author, reply })
    }

    fn zero_from(&mut self, number: u64, offset: u64, length: u64) -> Result<Lsn, StoreError> {
        let author = Author::Afar(writer(number));
        self.ask(|reply| Request::Zero { volume: VOLUME, offset, length, fua: false, author, reply })
    }

    fn ledger(&mut self) -> LedgerNews {
        self.ask(|reply| Request::Ledger { volume: VOLUME, reply }).expect("tells")
    }

    fn fill(&mut self, block: u32) -> u8 {
        let bytes = self.read(u64::from(block) * 4096, 4096).expect("reads");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "of one write");
        bytes[0]
    }
}

/// Of a session that has the right of the first epoch.
fn writer(number: u64) -> Writer {
    Writer { origin: Origin { session: 7, number, answered: 0 }, generation: 0, right: Epoch(1) }
}

fn owner(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.open(SIZE);
    rig.activate(1);
    rig
}

#[test]
fn an_attempt_after_the_first_changes_nothing_and_covers_it() {
    let mut rig = owner(1);
    let first = rig.write_from(0, 3, 1, false).expect("writes");
    let other = rig.write_from(1, 3, 2, false).expect("writes");
    let again = rig.write_from(0, 3, 1, true).expect("is answered");
    assert!(again >= other && other > first);
    assert_eq!(rig.fill(3), 2);
    assert_eq!(rig.report().head, other, "no third write");
    assert_eq!(rig.report().durable, other, "the attempt asked for durability, and has it");
}

/// What changes nothing is carried out too: zeroes where there were zeroes, asked for again over data.
#[test]
fn zeroes_over_nothing_are_remembered_as_well() {
    let mut rig = owner(2);
    rig.zero_from(0, 512, 512).expect("nothing to do");
    rig.zero_from(1, 8 * 4096, 4096).expect("nothing to do");
    for block in [0, 8] {
        rig.write_block(block, 5).expect("writes");
    }
    rig.zero_from(0, 512, 512).expect("is answered");
    rig.zero_from(1, 8 * 4096, 4096).expect("is answered");
    assert_eq!((rig.fill(0), rig.fill(8)), (5, 5));
}

#[test]
fn a_restart_forgets_nothing_that_it_keeps() {
    for in_order in [false, true] {
        let mut rig = owner(3);
        rig.write_from(0, 3, 1, false).expect("writes");
        rig.write_block(3, 2).expect("a session here claims the volume");
        rig.flush().expect("flushes");
        // From the log, or from the checkpoint that it ends with.
        if in_order {
            rig.restart()
        } else {
            rig.kill()
        }
        rig.activate(1);
        rig.write_from(0, 3, 1, false).expect("is answered");
        assert_eq!(rig.fill(3), 2);
        assert_eq!(rig.ledger().claim, Epoch(1), "others' rights stay ended");
    }
}

/// A write of a machine that had lost the volume waited in the shard for the old content of its block. The machine that the volume
/// had come to wrote meanwhile, and was answered; then the old machine's write went over it: its right had been looked at before.
#[test]
fn a_write_from_afar_that_waited_does_not_come_behind_a_claim() {
    // A session that had sent its write elsewhere before claims the volume as any other.
    for sent_before in [None, Some(Origin { session: 8, number: 0, answered: 0 })] {
        let mut rig = owner(8);
        rig.write_block(3, 1).expect("writes");
        rig.flush().expect("flushes");
        rig.deactivate(2);
        rig.activate(3);
        let send = |rig: &mut Rig, offset: u64, data: Vec<u8>, author| {
            let data = data.into();
            rig.send(|reply| Request::Write { volume: VOLUME, offset, data, fua: false, author, reply })
        };
        let late = send(&mut rig, 3 * 4096 + 512, vec![9; 512], Author::Afar(writer(0)));
        let here = send(&mut rig, 5 * 4096, vec![2; 4096], Author::Session(sent_before));
        rig.wait(here).expect("who sits at the owner writes");
        let refused = rig.wait(late).expect_err("the claim came first");
        assert_eq!(refused, StoreError::Claimed { volume: VOLUME, epoch: Epoch(3) });
        assert_eq!(rig.fill(3), 1);
        rig.restart();
        rig.activate(3);
        assert_eq!(rig.write_from(1, 4, 1, false).expect_err("for good"), refused);
    }
}

/// A write and word of it are two entries: whatever the power leaves, a write that was answered, or flushed, is known to have
/// been carried out.
#[test]
fn a_power_cut_leaves_no_write_that_is_not_known() {
    for cut in 0..12 {
        let mut rig = owner(100 + cut);
        rig.write_from(0, 3, 1, true).expect("writes");
        rig.disk.crash_after(cut);
        let mut newest = 1;
        for number in 1..6 {
            if rig.write_from(number, 3, 1 + number as u8, true).is_err() {
                break;
            }
            newest = 1 + number as u8;
        }
        rig.crash();
        rig.activate(1);
        let found = rig.fill(3);
        assert!(found >= newest, "cut {cut}: {found}, flushed {newest}");
        rig.write_block(3, 99).expect("writes");
        for number in 0..u64::from(newest) {
            rig.write_from(number, 3, 1 + number as u8, false).expect("is answered");
            assert_eq!(rig.fill(3), 99, "cut {cut}: write {number} was carried out again");
        }
    }
}

#[test]
fn the_next_owner_hears_of_everything_that_a_freeze_waited_for() {
    let (mut old, mut new) = (owner(4), Rig::new(5));
    new.open(SIZE);
    old.write_from(0, 3, 1, false).expect("writes");
    old.write_from(2, 4, 1, false).expect("writes");
    old.ask(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Always, reply }).expect("freezes");
    let refused = old.write_from(2, 4, 1, false).expect_err("is frozen, also for what was carried out");
    assert_eq!(refused, StoreError::Frozen(VOLUME));
    let news = old.ledger();
    assert_eq!(news.done, [(7, vec![(0, 1), (2, 3)])]);
    new.ask(|reply| Request::NoteLedger { volume: VOLUME, news, reply }).expect("notes");
    new.flush().expect("flushes");
    new.restart();
    new.activate(2);
    let head = new.report().head;
    new.write_from(0, 3, 1, false).expect("is answered");
    assert_eq!(new.report().head, head, "carried out by the old owner");
    new.write_from(1, 3, 6, false).expect("writes");
    assert_eq!(new.fill(3), 6, "which had not seen this one");
}

#[test]
fn a_large_ledger_is_taken_whole() {
    let mut rig = owner(6);
    let runs: Vec<(u64, u64)> = (0..500u64).map(|run| (u64::MAX / 2 + 2 * run, u64::MAX / 2 + 2 * run + 1)).collect();
    let news = LedgerNews {
        claim: Epoch(1),
        done: (0..300).map(|session| (u64::MAX - 1000 + session, runs.clone())).collect(),
    };
    let told = news.clone();
    rig.ask(|reply| Request::NoteLedger { volume: VOLUME, news, reply }).expect("notes");
    assert_eq!(rig.ledger(), told);
    let runs = (0..100_000).map(|run| (2 * run, 2 * run + 1)).collect();
    let news = LedgerNews { claim: Epoch(1), done: vec![(u64::MAX, runs)] };
    rig.ask(|reply| Request::NoteLedger { volume: VOLUME, news, reply }).expect("more than a session has is not kept");
    let refused =
        rig.ask(|reply| Request::NoteLedger { volume: client_lib::VolumeId(99), news: LedgerNews::default(), reply });
    assert_eq!(refused, Err(StoreError::UnknownVolume(client_lib::VolumeId(99))));
}

/// A client that came while a write was under way was told that the volume goes up to it, and relied on that. When the store then
/// failed and a replica got the volume, without that write, which nobody had been told of, its session was refused.
#[test]
fn what_is_under_way_is_not_in_the_volume_yet() {
    let mut rig = owner(9);
    let acked = rig.write_block(3, 1).expect("writes");
    let mut write = rig.send_write(0, vec![2; 4096], false);
    let report = rig.report();
    write.try_recv().expect_err("is not answered yet");
    assert_eq!(report.applied, acked);
    assert!(report.head > acked, "it has its place");
    let written = rig.wait(write).expect("writes");
    assert_eq!(rig.report().applied, written);
}
