//! A log that is opened again and again: each life's records are its own.

use super::*;

fn open_in(disk: &SimDisk, life: u16) -> (Log, Vec<u64>) {
    let mut found = Vec::new();
    let known = Known { identity: IDENTITY, life, from: None, live: &BTreeSet::new(), cold: None };
    let mut note = |replayed: Replayed| found.push(number_of(&replayed.entry));
    let log = Log::recover(Box::new(disk.engine()), settings(), &known, &mut note).expect("recovers");
    (log, found)
}

fn append(log: &mut Log, number: u64) -> LogPosition {
    let before = log.position();
    let (entry, data) = write(number, 1);
    log.append(entry, data, false, number).expect("is queued");
    assert_eq!(acked(&settle(log)), [number]);
    before
}

/// A life appended two records, and the power was cut when the disk had the second and not the first. The next one appended what the first of
/// them had said, at the same place and with the same number: byte for byte the lost record, so that the one behind it continued the log again, and
/// what had been cut off took effect one life late.
#[test]
fn what_was_cut_off_does_not_come_back_behind_a_record_that_says_the_same() {
    // In lives of one number, as those of older programs are, it does.
    for (lives, expected) in [([0, 0, 0, 0], &[1, 2, 3][..]), ([1, 2, 3, 4], &[1, 2])] {
        let disk = SimDisk::new(22);
        append(&mut open_in(&disk, lives[0]).0, 1);
        disk.kill();
        let (mut log, found) = open_in(&disk, lives[1]);
        assert_eq!(found, [1]);
        let (lost, kept) = (append(&mut log, 2), append(&mut log, 3));
        disk.kill();
        let file = format!("{:08}.seg", lost.segment);
        (lost.block..kept.block).for_each(|block| disk.alter(&file, block as usize, |bytes| bytes.fill(0)));
        let (mut log, found) = open_in(&disk, lives[2]);
        assert_eq!(found, [1]);
        append(&mut log, 2);
        disk.kill();
        assert_eq!(open_in(&disk, lives[3]).1, expected, "{lives:?}");
    }
}
