//! A freeze that waits for nobody's work to be lost: only as a stopped machine leaves its disk.

use client_lib::Lsn;

use super::rig::{Rig, VOLUME};
use crate::shard::handle::{FreezeWhen, Request, StoreError};

impl Rig {
    fn freeze_flushed(&mut self) -> Result<Lsn, StoreError> {
        self.ask(|reply| Request::Freeze { volume: VOLUME, when: FreezeWhen::Flushed, reply })
    }
}

fn owner() -> Rig {
    let mut rig = Rig::new(1);
    rig.open(64 * 4096);
    rig.activate(1);
    rig
}

#[test]
fn a_volume_that_was_flushed_last_is_frozen_and_another_is_not() {
    let mut rig = owner();
    let before = rig.report().head;
    assert_eq!(rig.freeze_flushed(), Ok(before), "nobody did anything");
    rig.ask(|reply| Request::Thaw { volume: VOLUME, reply }).expect("thaws");
    let written = rig.write_block(1, 1).expect("writes");
    assert_eq!(rig.freeze_flushed(), Err(StoreError::NotFlushed(VOLUME)));
    rig.ask(|reply| Request::Sync { volume: VOLUME, reply }).expect("syncs");
    assert_eq!(rig.freeze_flushed(), Err(StoreError::NotFlushed(VOLUME)), "no client's flush");
    rig.write_block(1, 2).expect("a refused freeze holds nobody up");
    let written = rig.flush().expect("flushes").max(written);
    assert_eq!(rig.freeze_flushed(), Ok(written));
    assert_eq!(rig.write_block(1, 3), Err(StoreError::Frozen(VOLUME)));
}

#[test]
fn a_flush_while_a_write_is_under_way_is_not_the_last_act() {
    let mut rig = owner();
    rig.write_block(1, 1).expect("writes");
    let under_way = rig.send_write(0, vec![2; 4096], false);
    let flushed = rig.send(|reply| Request::Flush { volume: VOLUME, reply });
    rig.wait(under_way).expect("writes");
    rig.wait(flushed).expect("flushes");
    assert_eq!(rig.freeze_flushed(), Err(StoreError::NotFlushed(VOLUME)));
    rig.flush().expect("flushes");
    rig.freeze_flushed().expect("is frozen");
}
